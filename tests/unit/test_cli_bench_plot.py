"""What `bench plot` draws, as text and as a picture, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headstock.cli import main
from headstock.cli.bench_figures import spread_ms
from headstock.cli.bench_plot import WIDTH, as_text, read

PNG = b"\x89PNG\r\n\x1a\n"


def write(folder: Path, rate: float | None, seconds: float) -> str:
    """Write a result as `bench serve` does, of a server that is slower by ``seconds``."""
    spreads = ("ttft", "tpot", "itl", "e2el")
    times = [seconds * (1 + part / 100) for part in range(100)]
    figures = {k: v for name in spreads for k, v in spread_ms(name, times).items()}
    path = folder / f"rate-{rate}.json"
    run = {"request_rate": rate, "requests_per_s": 3.5, "output_tokens_per_s": 100 / seconds}
    path.write_text(json.dumps({"benchmark": "b", **run, **figures}))
    return str(path)


def test_several_runs_are_drawn_by_their_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write(tmp_path, 4.0, 0.2), write(tmp_path, 2.0, 0.1)]
    assert main(["bench", "plot", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "time to first token, ms, by requests a second"
    rates = [float(line.split("/s")[0]) for line in lines[1:7]]
    assert rates == [2.0, 2.0, 2.0, 4.0, 4.0, 4.0]
    longest = max(line.count("█") for line in lines[1:7])
    assert longest == WIDTH
    assert lines[6].count("█") == WIDTH
    assert lines[3].count("█") == pytest.approx(WIDTH / 2, abs=1)


def test_one_run_shows_its_percentiles(tmp_path: Path) -> None:
    text = as_text([read(Path(write(tmp_path, None, 0.1)))])
    first = text.splitlines()[1:6]
    assert [line.split()[0] for line in first] == ["mean", "median", "p90", "p95", "p99"]
    assert "3.50/s" in text  # all were sent at once: what was served counts


@pytest.mark.parametrize("count", [1, 3])
def test_a_picture_is_drawn(tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="pip install headstock[plot]")
    files = [write(tmp_path, float(rate + 1), 0.1 * (rate + 1)) for rate in range(count)]
    picture = tmp_path / "out.png"
    assert main(["bench", "plot", *files, "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(PNG)
    assert "picture: " in capsys.readouterr().out
    assert main(["bench", "plot", *files, "--output", str(tmp_path / "out.nonsense")]) == 2


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert main(["bench", "plot", write(tmp_path, 1.0, 0.1), "--output", "x.png"]) == 2
    assert "headstock[plot]" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}'])
def test_other_files_are_refused(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(content)
    assert main(["bench", "plot", str(tmp_path / "x.json")]) == 2
    assert "x.json" in capsys.readouterr().err
