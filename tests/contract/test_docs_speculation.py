"""The drafter of the page, installed as a package: it is found and asked, and changes no id."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.tiny import CONFIG

PAGE = (Path(__file__).parents[2] / "docs" / "speculation.md").read_text(encoding="utf-8")
SERVE = """
import json, sys, headstock
settings = {"load_format": "dummy", "skip_tokenizer_init": True, "backend": "reference"}
settings |= {"dtype": "float32", "cache_tokens": 512, "speculation": sys.argv[2]}
with headstock.Engine(model=sys.argv[1], **settings) as engine:
    params = {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True}
    found = engine.generate(input_ids=[[5, 6, 7], [9, 9]], sampling_params=params)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the page's package is installed in, and the tiny model's."""
    root = tmp_path_factory.mktemp("again")
    plugin, drafter = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (entry,) = re.findall(r"^again = \"(.*)\"$", PAGE, re.MULTILINE)
    package = root / "headstock_again"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "plugin.py").write_text(plugin)
    (package / "drafter.py").write_text(drafter)
    info = root / "headstock_again-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: headstock-again\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[headstock.plugins]\nagain = {entry}\n")
    (root / "config.json").write_text(json.dumps(CONFIG))
    return root


def run(site: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_drafter_of_the_page_is_asked_and_changes_no_id(site: Path) -> None:
    results = {
        name: json.loads(run(site, "-c", SERVE, str(site), name)) for name in ("none", "again")
    }
    ids = {name: [row["output_ids"] for row in rows] for name, rows in results.items()}
    assert ids["again"] == ids["none"]
    drafted = [row["meta_info"].get("spec_draft_token_num", 0) for row in results["again"]]
    assert min(drafted) > 0
    assert "spec_draft_token_num" not in results["none"][0]["meta_info"]


def test_the_doctor_lists_drafters(site: Path) -> None:
    report = json.loads(
        run(site, "-m", "headstock.cli", "doctor", "--json", "--backend", "reference")
    )
    assert {drafter["name"] for drafter in report["drafters"]} == {"again", "ngram"}
