"""What measures R25: which mutants there are, and how coverage is split by room."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_mutants_are_of_what_decides_something() -> None:
    mutants = load("mutants")
    for module, name in mutants.EQUIVALENT:
        source = (ROOT / "core" / "headstock" / module).read_text(encoding="utf-8")
        assert f"\n{name} = " in source, f"{module} has no {name}"
    changer = mutants.Changer("scheduler/policy.py")
    changer.walk(ast.parse("UNIT = 1 << 20\nLIMIT = 4\nzip(a, b, strict=True)\nassert a < 3"))
    assert changer.found == [(2, "4 to 5"), (3, "without zip()")]


def test_each_target_has_its_modules_and_tests() -> None:
    mutants = load("mutants")
    for target in mutants.TARGETS.values():
        assert all(mutants.mutants_of(module) for module in target.modules)
        assert all((ROOT / path).is_file() for path in target.tests)


def test_coverage_is_told_by_room() -> None:
    covered = load("covered")

    def summary(lines: int, branches: int) -> dict[str, dict[str, int]]:
        return {
            "summary": {
                "num_statements": 10,
                "covered_lines": lines,
                "num_branches": 4,
                "covered_branches": branches,
            }
        }

    files = {
        "core/headstock/cache/pool.py": summary(10, 4),
        "core/headstock/cache/tree.py": summary(5, 2),
        "core/headstock/errors.py": summary(1, 0),
    }
    rooms = covered.by_room({"files": files})
    assert list(rooms) == ["", "cache"]
    assert covered.shares_of(rooms["cache"]) == {
        "lines": 20,
        "branches": 8,
        "covered_lines": 75.0,
        "covered_branches": 75.0,
    }
    assert covered.shares_of(rooms[""])["covered_lines"] == 10.0
