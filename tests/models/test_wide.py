"""Every family drafts, takes 8 bits and has adapters as docs/models.md says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headstock.testing.oracle.case import ModelCase
from tests.models import wide

RECORDED = json.loads(wide.REPORT.read_text(encoding="utf-8"))
TRIALS = [
    pytest.param(case, claim, id=f"{case.name}-{claim}")
    for case in wide.families()
    for claim in wide.CLAIMS
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "claim"), TRIALS)
def test_it_does_what_the_page_says(case: ModelCase, claim: str, tmp_path: Path) -> None:
    assert wide.outcome(wide.save(case, tmp_path), claim) == RECORDED[case.name][claim]


def test_every_family_is_on_record() -> None:
    assert list(RECORDED) == [case.name for case in wide.families()]
