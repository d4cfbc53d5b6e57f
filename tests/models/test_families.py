"""Every family against transformers on the same weights, in float32: the oracle kit's claims."""

from __future__ import annotations

import pytest

from headstock.testing.oracle.case import ModelCase, Saved
from headstock.testing.oracle.claims import CLAIMS, trials
from tests.models import cases

CASES = cases.CASES


def _marks(variant: str, claim: str) -> tuple[pytest.MarkDecorator, ...]:
    """Leave to the long run what ``decoding`` compares of a variant, too: a prompt in one step."""
    return (pytest.mark.slow,) if claim == "prefill" and variant != "plain" else ()


TRIALS = [
    pytest.param(
        case, variant, claim, id=f"{case.name}-{variant}-{claim}", marks=_marks(variant, claim)
    )
    for case in CASES
    for variant, claim in trials(case.configurations)
]


@pytest.fixture(scope="module")
def kept() -> dict[tuple[str, str], Saved]:
    """The checkpoints that were written, by case and variant."""
    return {}


@pytest.mark.parametrize(("case", "variant", "claim"), TRIALS)
def test_claim(
    case: ModelCase,
    variant: str,
    claim: str,
    kept: dict[tuple[str, str], Saved],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    key = case.name, variant
    if key not in kept:
        kept.clear()
        kept[key] = case.save(tmp_path_factory.mktemp("checkpoint"), variant)
    CLAIMS[claim](kept[key])


def test_every_registered_architecture_has_a_case() -> None:
    from tests.models.harness import REGISTRY

    tried = {case.model for case in CASES}
    generating = [name for name in REGISTRY.names if name.endswith("ForCausalLM")]
    lacking = [name for name in generating if REGISTRY.load(name) not in tried]  # see test_pooled
    assert not lacking
