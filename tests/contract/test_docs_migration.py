"""The pages for those who come from elsewhere: every row of their tables is true."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from headstock.cli.commands import COMMANDS
from headstock.config import ServeSettings, add_flags
from headstock.config.aliases import aliases
from headstock.config.environment import OTHERS
from headstock.config.options import options
from headstock.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
SYSTEMS = ("sglang", "vllm", "ollama")
FLAGS = {option.flag: option for option in options()}
VARIABLES = {option.variable for option in options()} | set(OTHERS)
PROBE = "1"
"""A value that says nothing about whether it is allowed: settings are read later."""


def rows(system: str, title: str) -> list[list[str]]:
    """Return the cells of the rows of a table, without its head."""
    page = (DOCS / f"from-{system}.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", page.split(f"## {title}\n", 1)[1], flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def takes(flag: str) -> str | None:
    """Return what `headstock serve` does of a flag: the path that it sets, "" or None: unknown."""
    table = aliases()
    if flag in FLAGS:
        return FLAGS[flag].path
    if flag in table.spelling:
        return table.spelling[flag]
    if flag in table.value:
        return table.value[flag].path
    return "" if flag in table.always else None


FLAG_ROWS = [(system, *row) for system in ("sglang", "vllm") for row in rows(system, "Flags")]


@pytest.mark.parametrize(("system", "theirs", "ours", "as_it_is", "note"), FLAG_ROWS)
def test_flags_are_taken_as_the_page_says(
    system: str, theirs: str, ours: str, as_it_is: str, note: str
) -> None:
    wanted = codes(ours)
    assert wanted or ours == "–"
    assert all(name in FLAGS or name in VARIABLES for name in wanted), wanted
    assert as_it_is in ("yes", "no")
    for flag in codes(theirs):
        path = takes(flag)
        if as_it_is == "no":
            assert path is None, f"{flag} is taken, as {path}"
            assert note or wanted
            assert not parses(flag)
        elif ours == "–":
            assert path == ""
        else:
            assert path == FLAGS[wanted[0]].path, flag
            assert parses(flag)


def parses(flag: str) -> bool:
    """Return whether the parser of `headstock serve` takes a flag, with or without a value."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    add_flags(parser, ServeSettings)
    for words in ([flag], [flag, PROBE]):
        try:
            _, unknown = parser.parse_known_args(words)
        except (argparse.ArgumentError, ConfigError):
            continue
        if not unknown or unknown == [PROBE]:
            return flag not in unknown
    return False


@pytest.mark.parametrize("system", ["sglang", "vllm"])
def test_every_flag_of_others_that_is_understood_is_on_a_page(system: str) -> None:
    table = aliases()
    named = {flag for _, theirs, *_ in FLAG_ROWS for flag in codes(theirs)}
    assert {*table.spelling, *table.value, *table.always} <= named


@pytest.mark.parametrize("system", SYSTEMS)
def test_routes_are_there(system: str) -> None:
    page = (DOCS / "http-api.md").read_text(encoding="utf-8")
    served = set(re.findall(r"`((?:GET|POST|PUT|DELETE) /[^`]*)`", page))
    for theirs, ours, *note in rows(system, "Routes"):
        assert codes(theirs)
        wanted = codes(ours)
        assert wanted or (ours == "–" and note)
        assert set(wanted) <= served, wanted


def test_commands_and_variables_are_there() -> None:
    commands = {row.name for row in COMMANDS}
    for _, ours, _ in rows("ollama", "Commands"):
        (command,) = codes(ours)
        assert command.split()[1] in commands
    for _, ours, note in rows("ollama", "Settings"):
        assert all(name in VARIABLES for name in codes(ours))
        assert codes(ours) or note
