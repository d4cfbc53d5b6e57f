"""Every claim on every case of the module that ``--headstock-model`` names."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest

from headstock.testing.oracle.case import ModelCase, Saved
from headstock.testing.oracle.claims import CLAIMS, trials


def cases_of(target: str) -> Sequence[ModelCase]:
    """Return the cases that ``target`` names: ``module``, or ``module:LIST``.

    Raises:
        pytest.UsageError: There are none.
    """
    module, _, name = target.partition(":")
    found = getattr(importlib.import_module(module), name or "CASES", None)
    if not found or not all(isinstance(case, ModelCase) for case in found):
        raise pytest.UsageError(
            f"--headstock-model={target}: {module} has no list {name or 'CASES'} of ModelCase."
        )
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each claim on each configuration."""
    target: str | None = metafunc.config.getoption("--headstock-model")
    made = [
        pytest.param(case, variant, claim, id=f"{case.name}-{variant}-{claim}")
        for case in (cases_of(target) if target else ())
        for variant, claim in trials(case.configurations)
    ]
    metafunc.parametrize(("case", "variant", "claim"), made)


@pytest.fixture(scope="session")
def kept() -> dict[tuple[str, str], Saved]:
    """Return the checkpoints that were written, by case and variant."""
    return {}


def test_claim(
    case: ModelCase,
    variant: str,
    claim: str,
    kept: dict[tuple[str, str], Saved],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The claim holds of the configuration."""
    key = case.name, variant
    if key not in kept:
        kept[key] = case.save(tmp_path_factory.mktemp("checkpoint"), variant)
    CLAIMS[claim](kept[key])
