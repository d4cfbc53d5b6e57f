"""Every family that is named on the page is registered, and tried where the page says."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from headstock_models.plugin import CLASSES
from tests.models import named
from tests.models.harness import REGISTRY

TESTS = Path(__file__).parents[1]
EVERY = [(group, name) for group, families in named.GROUPS.items() for name in families]


@cache
def functions(file: str) -> frozenset[str]:
    """Return the names of a file's tests."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_a_family_is_registered_and_its_tests_are_there(group: str, name: str) -> None:
    family = named.GROUPS[group][name]
    assert not set(family.architectures) - set(REGISTRY.names)
    for test in family.tests:
        file, _, function = test.partition("::")
        assert function in functions(file), test
    for architecture in () if family.tests else family.architectures:
        assert named.cases_of(architecture), f"{architecture} has no case in cases.py"


@pytest.mark.parametrize("what", named.FORMATS)
def test_what_is_said_of_formats_has_its_tests(what: str) -> None:
    for test in named.FORMATS[what]:
        file, _, function = test.partition("::")
        assert function in functions(file), test


def test_every_architecture_with_a_file_has_a_name_on_the_page() -> None:
    families = [family for group in named.GROUPS.values() for family in group.values()]
    listed = {architecture for family in families for architecture in family.architectures}
    assert listed == set(REGISTRY.names)


def test_half_of_the_model_files_are_shorter_than_150_lines() -> None:
    folder = Path(__file__).parents[2] / "models" / "headstock_models"
    lengths = [len((folder / f"{name}.py").read_text().splitlines()) for name in CLASSES]
    short = sum(length < 150 for length in lengths)
    assert short >= len(lengths) / 2, f"{short} of {len(lengths)}"
