"""Next-token distributions against transformers in float32, by the script that measures them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/cpu_accuracy.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_greedy_ids_and_distributions_are_those_of_transformers(model: str, tmp_path: Path) -> None:
    """Identical ids in float32; a divergence under the bars where weights or pages are narrow."""
    report = tmp_path / "accuracy.json"
    command = [sys.executable, str(SCRIPT), "--prompts", "6", "--output-file", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert report.exists(), done.stderr[-3000:]
    findings = {found["part"]: found for found in json.loads(report.read_text())["findings"]}
    assert set(findings) == {"float32", "int8", "int4", "blocks", "int8-kv"}
    assert findings["float32"]["identical"] == 6
    assert {name: found["goal"] for name, found in findings.items() if not found["is_met"]} == {}
