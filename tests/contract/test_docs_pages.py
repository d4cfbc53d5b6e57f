"""The documentation holds together: links lead somewhere, snippets compile, names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from headstock.cli.commands import COMMANDS, plugin_commands
from headstock.config.aliases import aliases
from headstock.config.options import options

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("docker/*.md")])
WRITTEN = [page for page in PAGES if page.name != "configuration.md"]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?headstock ((?:bench |config )?[a-z][a-z-]*)", re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]+)")
FOREIGN = re.compile(r"\b(pip|pytest|docker|kubectl|tool|benchmarks)\b")
"""Lines whose flags are another program's."""
COMPARING = {"from-sglang.md", "from-vllm.md"}
CLI = ROOT / "core" / "headstock" / "cli"
BENCHMARKS = ROOT / "benchmarks"
KIT_OPTIONS = CLI.parent / "testing" / "plugin.py"


def blocks(text: str, language: str) -> list[str]:
    return [code for name, code in FENCE.findall(text) if name == language]


def anchors(page: Path) -> set[str]:
    """What headings are linked by, as forges make it of them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_snippets_compile(page: Path) -> None:
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        ast.parse(code)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_snippets_import_from_headstock_exists(page: Path) -> None:
    from importlib import import_module

    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headstock."):
                module = import_module(node.module or "")
                missing = [name.name for name in node.names if not hasattr(module, name.name)]
                assert not missing, f"{page.name}: {node.module} has no {missing}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    known = {row.name for row in (*COMMANDS, *plugin_commands())}
    text = page.read_text(encoding="utf-8")
    shown = [*blocks(text, "console"), *re.findall(r"`(headstock [^`]+)`", text)]
    for code in shown:
        for command in COMMAND.findall(code):
            assert command in known, f"{page.name} names `headstock {command}`"


def test_every_command_is_documented() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in WRITTEN)
    for row in COMMANDS:
        last = row.name.split()[-1]
        is_named = f"headstock {row.name}" in text or f"`bench {last}`" in text
        assert is_named, f"`headstock {row.name}` is on no page"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_flags_exist(page: Path) -> None:
    known = {option.flag for option in options()}
    known |= {f"--no-{option.name.replace('_', '-')}" for option in options()}
    for source in [*CLI.glob("*.py"), *BENCHMARKS.glob("*.py"), KIT_OPTIONS]:
        known |= set(re.findall(r'"(--[a-z0-9-]+)"', source.read_text(encoding="utf-8")))
    lines = page.read_text(encoding="utf-8").splitlines()
    if page.name in COMPARING:  # the flags of its tables have a test of their own
        known |= {*aliases().spelling, *aliases().value, *aliases().always}
        lines = [line for line in lines if not line.startswith("|")]
    for line in lines:
        unknown = set() if FOREIGN.search(line) else set(FLAG.findall(line)) - known
        assert not unknown, f"{page.name}: {unknown} in: {line}"


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert 60 <= len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_paths_in_the_repository_exist(page: Path) -> None:
    rooms = ("core/", "models/", "backends/", "tests/", "docs/", "docker/", "benchmarks/")
    named = re.findall(r"`([\w./-]+)`", FENCE.sub("", page.read_text(encoding="utf-8")))
    for name in named:
        if name == "tests/test_conformance.py":  # of a generated package
            continue
        if name.startswith(rooms):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        elif re.fullmatch(r"(headstock/)?(\w+/)+\w+\.py", name) and page.name == "tour.md":
            path = ROOT / "core" / "headstock" / name.removeprefix("headstock/")
            assert path.exists(), f"{page.name} names {name}"
