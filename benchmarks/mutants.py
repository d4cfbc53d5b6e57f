"""R25: whether the quick tests notice a change of what decides who gets what.

    python benchmarks/mutants.py [--only tree] [--count 14] [--seed 25] [--jobs 1]

A mutant is a module with one change, such as ``<=`` for ``<``. It exists in the memory of one test
run only: the files stay as they are. Mutants are drawn with a fixed seed from all that there are.
Messages, assertions, types, decorators and defaults of parameters are left alone, and so is what
changes no behaviour: see ``EQUIVALENT``.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "core"
VARIABLE = "HEADSTOCK_MUTANT"
LIMIT_S = 120.0
"""A test run that takes longer has noticed the mutant: it hangs."""


@dataclass(frozen=True)
class Target:
    """Modules that are changed together, and the quick tests that should notice."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


TARGETS = {
    "allocator": Target(
        ("cache/pool.py", "cache/arena.py"),
        (
            "tests/unit/test_cache_pool.py", "tests/unit/test_cache_arena.py",
            "tests/unit/test_cache_nodes.py",
        ),
    ),
    "tree": Target(
        ("cache/tree.py",), ("tests/unit/test_cache_tree.py", "tests/unit/test_cache_nodes.py")
    ),
    "scheduler": Target(
        (
            "scheduler/scheduler.py", "scheduler/planner.py", "scheduler/residence.py",
            "scheduler/queue.py", "scheduler/policy.py", "scheduler/settling.py",
        ),
        (
            "tests/unit/test_scheduler.py", "tests/unit/test_scheduler_fair.py",
            "tests/unit/test_scheduler_drafting.py", "tests/unit/test_scheduler_sharing.py",
            "tests/unit/test_scheduler_story.py", "tests/unit/test_scheduler_bounds.py",
            "tests/unit/test_scheduler_prefixes.py", "tests/unit/test_scheduler_room.py",
            "tests/unit/test_scheduler_adapters.py", "tests/engine/test_engine_properties.py",
        ),
    ),
    "limits": Target(
        ("server/places.py", "server/payers.py"),
        ("tests/unit/test_server_places.py", "tests/server/test_limits.py"),
    ),
    "auth": Target(
        ("server/keys.py", "server/http/gate.py", "server/http/gate.py"),
        (
            "tests/unit/test_server_places.py", "tests/unit/test_server_keys.py",
            "tests/server/test_roles.py",
            "tests/server/test_limits.py",
        ),
    ),
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATIONS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
_SKIPPED = (ast.Assert, ast.Raise, ast.AnnAssign, ast.arguments, ast.JoinedStr)
EQUIVALENT = {
    ("scheduler/policy.py", "UNIT"): "clocks are compared with each other alone: any unit will do",
}
"""Constants by module and name whose value decides nothing, and why."""
_QUIET = {"debug", "info", "warning", "error", "exception", "log"}


@dataclass(frozen=True)
class Mutant:
    """One change of one module: its ``number`` among all that the module has."""

    module: str
    number: int
    line: int
    change: str


class Changer:
    """Walks a module and makes its ``wanted``-th change; notes what each would be."""

    def __init__(self, module: str, wanted: int = -1) -> None:
        self._module = module
        self._wanted = wanted
        self.found: list[tuple[int, str]] = []

    def _is_wanted(self, node: ast.AST, change: str) -> bool:
        self.found.append((getattr(node, "lineno", 0), change))
        return len(self.found) - 1 == self._wanted

    def walk(self, node: ast.AST) -> None:
        """Change what is below ``node``."""
        left_alone: list[ast.AST] = [*getattr(node, "decorator_list", [])]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            left_alone.append(node.returns)
        if isinstance(node, ast.ClassDef):
            left_alone += node.keywords
        for child in list(ast.iter_child_nodes(node)):
            if isinstance(child, _SKIPPED) or child in left_alone or self._is_idle(child):
                continue
            self._change(child)
            self.walk(child)
        for body in ("body", "orelse"):
            lines = getattr(node, body, None)
            if isinstance(lines, list):
                self._drop_calls(lines)

    def _is_idle(self, node: ast.AST) -> bool:
        """Whether a change of ``node`` changes no behaviour; ``strict`` only asserts."""
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            return (self._module, node.targets[0].id) in EQUIVALENT
        return isinstance(node, ast.keyword) and node.arg == "strict"

    def _change(self, node: ast.AST) -> None:
        match node:
            case ast.Compare(ops=[op]) if type(op) in _COMPARISONS:
                other = _COMPARISONS[type(op)]
                if self._is_wanted(node, f"{type(op).__name__} to {other.__name__}"):
                    node.ops = [other()]
            case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in _OPERATIONS:
                changed = _OPERATIONS[type(op)]
                if self._is_wanted(node, f"{type(op).__name__} to {changed.__name__}"):
                    node.op = changed()
            case ast.BoolOp(op=op):
                joined = ast.Or if isinstance(op, ast.And) else ast.And
                if self._is_wanted(node, f"{type(op).__name__} to {joined.__name__}"):
                    node.op = joined()
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                if self._is_wanted(node, "the condition negated"):
                    node.test = ast.copy_location(ast.UnaryOp(ast.Not(), test), test)
            case ast.Constant(value=bool(value)):
                if self._is_wanted(node, f"{value} to {not value}"):
                    node.value = not value
            case ast.Constant(value=int(value)):
                if self._is_wanted(node, f"{value} to {value + 1}"):
                    node.value = value + 1
            case ast.Call(func=ast.Name(id="min" | "max" as name) as function):
                swapped = "max" if name == "min" else "min"
                if self._is_wanted(node, f"{name} to {swapped}"):
                    function.id = swapped
            case _:
                pass

    def _drop_calls(self, lines: list[ast.stmt]) -> None:
        """Leave out calls whose result nobody takes, but for those that log."""
        for at, line in enumerate(lines):
            if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Call)):
                continue
            function = line.value.func
            if isinstance(function, ast.Attribute) and function.attr in _QUIET:
                continue
            if self._is_wanted(line, f"without {ast.unparse(function)}()"):
                lines[at] = ast.copy_location(ast.Pass(), line)


def mutants_of(module: str) -> list[Mutant]:
    """Return every mutant of a module."""
    changer = Changer(module)
    changer.walk(ast.parse((CORE / "headstock" / module).read_text(encoding="utf-8")))
    return [Mutant(module, at, line, what) for at, (line, what) in enumerate(changer.found)]


class MutantLoader(SourceFileLoader):
    """Loads a module with one change."""

    def __init__(self, name: str, path: str, module: str, number: int) -> None:
        super().__init__(name, path)
        self._module = module
        self._number = number

    def get_code(self, fullname: str) -> CodeType:
        """Return the changed module's code."""
        tree = ast.parse(Path(self.path).read_text(encoding="utf-8"))
        Changer(self._module, self._number).walk(tree)
        return compile(ast.fix_missing_locations(tree), self.path, "exec")


class MutantFinder:
    """Finds one module where its mutant is, before anybody else is asked."""

    def __init__(self, module: str, number: int) -> None:
        self.name = "headstock." + module.removesuffix(".py").replace("/", ".")
        self._path = str(CORE / "headstock" / module)
        self._module = module
        self._number = number

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where ``name`` is loaded from; None: not from here."""
        if name != self.name:
            return None
        loader = MutantLoader(name, self._path, self._module, self._number)
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)


def run_tests(argv: list[str]) -> int:
    """Run pytest in this process, with the mutant that the environment names."""
    if given := os.environ.get(VARIABLE):
        module, number = given.split(":")
        finder = MutantFinder(module, int(number))
        sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
        # Now: pytest puts a finder of its own before ours.
        loaded = importlib.import_module(finder.name)
        assert isinstance(loaded.__loader__, MutantLoader), f"{finder.name} is unchanged"
    import pytest

    return int(pytest.main(argv))


def is_noticed(target: Target, mutant: Mutant | None) -> bool:
    """Return whether the tests fail, or hang, with ``mutant``; None: with nothing changed."""
    options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-p", "no:rerunfailures"]
    options += ["-o", "markers=slow\nchaos\nflaky", "-m", "not slow", *target.tests]
    environment = dict(os.environ)
    if mutant is not None:
        environment[VARIABLE] = f"{mutant.module}:{mutant.number}"
    command = [sys.executable, str(Path(__file__).resolve()), "--run-tests", *options]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def drawn(target: Target, count: int, seed: int) -> list[Mutant]:
    """Return ``count`` mutants of a target's modules, the same for the same seed."""
    every = [mutant for module in target.modules for mutant in mutants_of(module)]
    return random.Random(seed).sample(every, min(count, len(every)))


def judged(name: str, count: int, seed: int, jobs: int) -> dict[str, Any]:
    """Return how many of a target's mutants are noticed, and which are not."""
    target, begin_s = TARGETS[name], time.monotonic()
    if is_noticed(target, None):
        raise SystemExit(f"The tests of {name} fail with nothing changed.")
    mutants = drawn(target, count, seed)
    with ThreadPoolExecutor(jobs) as pool:
        noticed = list(pool.map(lambda mutant: is_noticed(target, mutant), mutants))
    survivors = [
        f"{mutant.module}:{mutant.line}: {mutant.change}"
        for mutant, is_seen in zip(mutants, noticed, strict=True)
        if not is_seen
    ]
    return {
        "mutants": len(mutants),
        "of": sum(len(mutants_of(module)) for module in target.modules),
        "noticed": sum(noticed),
        "survivors": survivors,
        "seconds": round(time.monotonic() - begin_s),
    }


def lines_of(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the results, a line each."""
    for name, row in found.items():
        share = row["noticed"] / max(1, row["mutants"])
        yield f"{name}: {row['noticed']} of {row['mutants']} noticed ({share:.0%})"
        yield from (f"  {survivor}" for survivor in row["survivors"])
    noticed, count = (sum(row[key] for row in found.values()) for key in ("noticed", "mutants"))
    yield f"all: {noticed} of {count} noticed ({noticed / max(1, count):.0%})"


def main() -> int:
    if sys.argv[1:2] == ["--run-tests"]:
        return run_tests(sys.argv[2:])
    parser = argparse.ArgumentParser(description="How many mutants the quick tests notice.")
    parser.add_argument("--only", action="append", choices=list(TARGETS))
    parser.add_argument("--count", type=int, default=14, help="mutants of each target")
    parser.add_argument("--seed", type=int, default=25)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file for the results, as JSON")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name in options.only or TARGETS:
        found[name] = judged(name, options.count, options.seed, options.jobs)
        print("\n".join(list(lines_of({name: found[name]}))[:-1]), flush=True)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(list(lines_of(found))[-1])
    noticed, count = (sum(row[key] for row in found.values()) for key in ("noticed", "mutants"))
    return 0 if noticed >= 0.8 * count else 1


if __name__ == "__main__":
    raise SystemExit(main())
