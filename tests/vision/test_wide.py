"""Every family that sees has ranks, drafts, 8 bits and adapters as docs/models.md says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.harness import REGISTRY
from tests.vision import wide

RECORDED = json.loads(wide.REPORT.read_text(encoding="utf-8"))
TRIALS = [(name, claim) for name in wide.BY_ARCHITECTURE for claim in wide.CLAIMS]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "claim"), TRIALS)
def test_it_does_what_the_page_says(name: str, claim: str, tmp_path: Path) -> None:
    model = wide.BY_ARCHITECTURE[name](tmp_path / "model")
    assert wide.outcome(model, claim) == RECORDED[name][claim]


def test_every_family_is_on_record() -> None:
    assert list(RECORDED) == list(wide.BY_ARCHITECTURE)
    assert not RECORDED.keys() - set(REGISTRY.names)
