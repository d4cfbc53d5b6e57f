"""Every route has an example in docs/http-api.md, and answers as the page says.

A block of the page is `http`, and what the model is served for; in it a request is a line, and its
answer the next one. In answers `"…"` is any value, and keys that are not shown may be there.
`$id` in a request is the `id` of the answer before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from headstock.config.schema import ServerSettings
from headstock.server.http.app import flat_routes
from headstock.server.http.routes_absent import ABSENT
from tests.server.conftest import Served
from tests.server.test_embeddings import EMBEDS

PAGE = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text(encoding="utf-8")
CLASSIFIER = {"task": "classify", "labels": ["bad", "fine", "good"]}
ANY = "…"


@dataclass(frozen=True)
class Example:
    """A request and the answer that the page shows."""

    method: str
    path: str
    body: str
    status: int
    answer: str


def blocks() -> list[tuple[str, list[Example]]]:
    """Return the page's blocks, each with what its model is served for."""
    found = re.findall(r"^```http *(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [(task or "generate", examples(text)) for task, text in found]


def examples(text: str) -> list[Example]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) % 2 == 0, text
    found = []
    for asked, told in zip(lines[::2], lines[1::2], strict=True):
        method, path, *body = asked.split(" ", 2)
        status, *answer = told.split(" ", 1)
        found.append(Example(method, path, "".join(body), int(status), "".join(answer)))
    return found


BLOCKS = blocks()
ALL = [example for _, block in BLOCKS for example in block]


def served(task: str, folder: Path) -> Served:
    """Return a server of the fake engine, whose model is served for ``task``."""
    del folder
    settings = ServerSettings(port=0, drain_timeout_s=2.0)
    if task == "embed":
        return Served(card=EMBEDS, settings=settings)
    if task == "classify":
        return Served(card=CLASSIFIER, engine={"vector_size": 3}, settings=settings)
    return Served(settings=settings)


def ask(server: Served, example: Example, last_id: str) -> httpx.Response:
    path = example.path.replace("$id", last_id)
    body = example.body.replace("$id", last_id)
    headers = {"content-type": "application/json"} if body else {}
    if body.startswith("@"):  # a file's text, as a form's part
        purpose, _, text = body[1:].partition(" ")
        content = text.replace("\\n", "\n").encode()
        form = {"files": {"file": ("in.jsonl", content)}, "data": {"purpose": purpose}}
        return httpx.request(example.method, server.url + path, timeout=20, **form)
    return httpx.request(
        example.method, server.url + path, content=body.encode(), headers=headers, timeout=20
    )


def value_of(answer: httpx.Response) -> Any:
    """Return the answer as JSON; of a stream its first event."""
    kind = answer.headers.get("content-type", "")
    if "event-stream" in kind:
        line = next(line for line in answer.text.splitlines() if line.startswith("data: "))
        return msgspec.json.decode(line.removeprefix("data: "))
    if "ndjson" in kind:
        return msgspec.json.decode(answer.text.splitlines()[0])
    return answer.json() if "json" in kind else answer.text


def id_of(told: Any) -> str | None:
    """Return the id that an answer gives what it made: its own, or itself."""
    found = told.get("id") if isinstance(told, dict) else told
    return found if isinstance(found, str) else None


def check(told: Any, shown: Any, where: str = "answer") -> None:
    """Assert that an answer is as the page shows it."""
    if shown == ANY:
        return
    if isinstance(shown, dict):
        assert isinstance(told, dict), f"{where} is {told!r}"
        for key, value in shown.items():
            assert key in told, f"{where} has no {key}: {told!r}"
            check(told[key], value, f"{where}.{key}")
    elif isinstance(shown, list):
        assert isinstance(told, list), f"{where} is {told!r}"
        assert len(told) == len(shown), f"{where} is {told!r}"
        for place, value in enumerate(shown):
            check(told[place], value, f"{where}[{place}]")
    else:
        assert told == shown, f"{where} is {told!r}"


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_page_shows_what_is_answered(number: int, tmp_path: Path) -> None:
    task, block = BLOCKS[number]
    with served(task, tmp_path) as server:
        last_id = ""
        for example in block:
            answer = ask(server, example, last_id)
            what = f"{example.method} {example.path}: {answer.status_code} {answer.text[:600]}"
            assert answer.status_code == example.status, what
            if not example.answer:
                continue
            told = value_of(answer)
            if "json" not in answer.headers["content-type"] and isinstance(told, str):
                assert example.answer in told, what
                continue
            check(told, msgspec.json.decode(example.answer), what)
            last_id = id_of(told) or last_id


def matches(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", template), path.partition("?")[0]) is not None


def test_every_route_has_an_example_or_says_what_to_use_instead() -> None:
    with Served() as server:
        routes = {
            (method, route.path)
            for route in flat_routes(server.app.routes)
            for method in (route.methods or set()) - {"HEAD"}
        }
    absent = {
        (method, path)
        for one in ABSENT
        for path, methods in one.routes.items()
        for method in methods
    }
    shown = {
        (method, path)
        for method, path in routes
        if any(e.method == method and matches(path, e.path) for e in ALL)
    }
    assert routes - absent - shown == set()
    assert absent <= routes


@pytest.mark.parametrize("one", ABSENT, ids=[one.what for one in ABSENT])
def test_absent_routes_say_what_to_use_instead(served, one) -> None:
    for path, methods in one.routes.items():
        for method in methods:
            url = served.url + re.sub(r"\{[^}]*\}", "x", path)
            answer = httpx.request(method, url, timeout=20)
            assert answer.status_code == 501, (method, path)
            error = answer.json()["error"]
            message = error if path.startswith("/api/") else error["message"]
            assert message == f"This version has no {one.what}. {one.remedy}"
