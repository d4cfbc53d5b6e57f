"""What mkdocs does not know: pages that lie outside docs/, and links that leave the site.

Pages are written to be read in the repository. In the site, a link to a page outside docs/ leads to
that page's copy, and a link to code becomes its text.
"""

from __future__ import annotations

import importlib.util
import os.path
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = "docs"
OUTSIDE = {
    "docker/README.md": "containers.md",
    "examples/README.md": "examples.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages that lie elsewhere, and what they are called in the site."""
FOLDERS = {"docs/decisions": "decisions/index.md", "examples": "examples.md"}
"""Folders that pages link to, and the page that lists what is in them."""
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Give pages that the menu does not name a section of their own."""
    named = {page for entry in config["nav"] for page in _named(entry)}
    own = {path.name for path in (ROOT / DOCS).glob("*.md")}
    if rest := sorted(own - named):
        config["nav"].append({"More": rest})
    return config


def _named(entry: Any) -> list[str]:
    """Return the pages of an entry of the menu."""
    if isinstance(entry, str):
        return [entry]
    return [page for pages in entry.values() for page in pages]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/, the benchmarks' and a list of the decisions."""
    for path, name in OUTSIDE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "decisions/index.md", content=_decisions()))
    files.append(File.generated(config, "benchmarks.md", content=_benchmarks()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Return a page with links as the site has them."""
    place = {name: path for path, name in OUTSIDE.items()}.get(page.file.src_uri)
    source = place or f"{DOCS}/{page.file.src_uri}"
    parts = _FENCE.split(markdown)
    parts[::2] = [
        _LINK.sub(lambda found: _link(found, source, page.file.src_uri), part)
        for part in parts[::2]
    ]
    return "".join(parts)


def _link(found: re.Match[str], source: str, name: str) -> str:
    """Return a link of the page ``source``, which the site calls ``name``."""
    text, link = found.groups()
    path, mark, anchor = link.partition("#")
    if "://" in link or not path:
        return found[0]
    target = os.path.normpath(os.path.join(os.path.dirname(source), path))
    is_page = target.startswith(f"{DOCS}/") and (ROOT / target).is_file()
    inside = target.removeprefix(f"{DOCS}/") if is_page else None
    inside = inside or OUTSIDE.get(target) or FOLDERS.get(target)
    if inside is None:
        return text
    return f"[{text}]({os.path.relpath(inside, os.path.dirname(name))}{mark}{anchor})"


def _decisions() -> str:
    """Return the page that lists the decisions."""
    rows: list[str] = []
    for path in sorted((ROOT / DOCS / "decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        rows.append(f"- [{title}]({path.name})")
    return "\n".join(["# Decisions", "", *rows, ""])


def _benchmarks() -> str:
    """Return the page that `benchmarks/report.py` makes of the results."""
    path = ROOT / "benchmarks" / "report.py"
    spec = importlib.util.spec_from_file_location("headstock_benchmarks_report", path)
    assert spec is not None, f"no module at {path}"
    assert spec.loader is not None, f"no loader for {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.render()
