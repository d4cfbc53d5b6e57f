"""The documentation's site builds without a warning, fetches nothing, and has every page."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("mkdocs", "material"):
        if importlib.util.find_spec(module) is None:
            pytest.skip("pip install headstock[docs]")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    outside = [Path(name) for name in ("containers.md", "examples.md", "changelog.md")]
    menu = (site / "index.html").read_text(encoding="utf-8")
    for page in [*pages, *outside, Path("benchmarks.md")]:
        assert (site / page.with_suffix(".html")).is_file(), page
        assert page.parts[0] == "decisions" or f'href="{page.with_suffix(".html")}"' in menu, page


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    fetching = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*\"")
    for page in site.rglob("*.html"):
        assert not fetching.findall(page.read_text(encoding="utf-8")), page.name


def test_links_within_the_site_lead_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for link in re.findall(r'href="([^"#]+\.html)(?:#[^"]*)?"', page.read_text("utf-8")):
            if "://" not in link:
                assert (page.parent / link).resolve().is_file(), (page.name, link)


def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks/report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_benchmarks_page_has_every_file_of_results_as_tables() -> None:
    module = report()
    for path in sorted(RESULTS.glob("*.json*")):
        text = module.section(path)
        assert text.startswith(f"## {path.stem}\n")
        assert re.search(r"^(\||- )", text, re.MULTILINE), path.name
    order = re.findall(r"^## (\S+)", module.render(), re.MULTILINE)
    assert len(order) == len(list(RESULTS.glob("*.json*")))
    days = [module.date_of(Path(name)) for name in order]
    assert days == sorted(days, reverse=True)


def test_a_figure_of_a_file_is_on_the_page(tmp_path: Path) -> None:
    found = {
        "command": "bench",
        "machine": {"cores": 2},
        "rows": [{"load": f"a|{i}", "value": 1234.5, "is_met": True} for i in range(30)],
        "by_name": {"old": {"us": 1.5, "samples": [1, 2]}, "new": {"us": 0.5, "samples": [3]}},
    }
    (tmp_path / "x-2026-01-02.json").write_text(json.dumps(found))
    text = report().render(tmp_path)
    assert "- command: bench\n- machine: cores 2\n" in text
    assert "| a\\|0 | 1,234 | yes |" in text
    assert "(24 of 30 rows)" in text
    assert "|   | us |\n|---|---|\n| old | 1.5 |\n| new | 0.5 |" in text
