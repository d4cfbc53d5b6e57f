"""docs/clients.md is what the newest run of the clients says, and that run has all of them."""

from __future__ import annotations

import json

from tests.clients import run


def test_the_page_is_the_newest_run() -> None:
    found = json.loads(run.newest().read_text(encoding="utf-8"))
    assert run.page(found) == run.PAGE.read_text(encoding="utf-8")


def test_every_client_was_run_and_has_its_script() -> None:
    found = json.loads(run.newest().read_text(encoding="utf-8"))
    names = [client.name for client in run.CLIENTS]
    assert [row["name"] for row in found["clients"]] == names
    scripts = {path.stem.removeprefix("case_") for path in run.HERE.glob("case_*.py")}
    assert scripts == set(names)
