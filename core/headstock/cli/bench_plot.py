"""Draw what `bench serve` has measured: latencies against the rate of requests, and percentiles.

FILE is what --output-file of `bench serve` has written; several, of runs with different
--request-rate, make lines. The drawing is text; with --output it is a picture, too.

Examples:
  headstock bench serve --request-rate 2 --output-file rate-2.json
  headstock bench serve --request-rate 4 --output-file rate-4.json
  headstock bench plot rate-*.json --output latency.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstock.cli.bench_figures import KINDS
from headstock.errors import ConfigError

SPREADS = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "time between pieces",
    "e2el": "whole request",
}
SHOWN = ("median", "p95", "p99")
WIDTH = 40
"""Characters of the longest bar."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a benchmark.

    Attributes:
        label: Of its file.
        rate: Requests a second: those asked for, or those served where all were sent at once.
        figures: Milliseconds by name, such as ``p95_ttft_ms``.
        throughput: Output tokens a second.
    """

    label: str
    rate: float
    figures: dict[str, float]
    throughput: float

    def ms(self, kind: str, spread: str) -> float | None:
        """Return a figure; None: this run has none."""
        return self.figures.get(f"{kind}_{spread}_ms")


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock bench plot``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="results of `bench serve`")
    parser.add_argument("--output", metavar="FILE", help="picture: .png, .svg or .pdf")


def run(arguments: argparse.Namespace) -> int:
    """Draw."""
    runs = sorted((read(Path(name)) for name in arguments.files), key=lambda one: one.rate)
    print(as_text(runs))
    if arguments.output is not None:
        draw(runs, Path(arguments.output))
        print(f"picture: {arguments.output}")
    return 0


def read(path: Path) -> Run:
    """Return the run that a file is of.

    Raises:
        ConfigError: It is not one of `bench serve`.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", remedy="Check FILE.") from error
    if not isinstance(found, dict) or "median_ttft_ms" not in found:
        raise ConfigError(
            f"{path} has no median_ttft_ms: it is not a result of `bench serve`.",
            remedy="Give what its --output-file has written.",
        )
    figures = {name: float(value) for name, value in found.items() if name.endswith("_ms")}
    rate = found.get("request_rate") or found["requests_per_s"]
    return Run(path.stem, float(rate), figures, float(found["output_tokens_per_s"]))


def as_text(runs: Sequence[Run]) -> str:
    """Return the drawing as lines of text: a bar for each run and percentile."""
    lines: list[str] = []
    for spread, title in SPREADS.items():
        kinds = SHOWN if len(runs) > 1 else KINDS
        rows = [(one, kind, one.ms(kind, spread)) for one in runs for kind in kinds]
        known = [(one, kind, value) for one, kind, value in rows if value is not None]
        if not known:
            continue
        longest = max(value for _, _, value in known)
        lines.append(f"{title}, ms" + (", by requests a second" if len(runs) > 1 else ""))
        for one, kind, value in known:
            size = round(WIDTH * value / longest) if longest else 0
            head = f"{one.rate:8.2f}/s " if len(runs) > 1 else "  "
            lines.append(f"{head}{kind:<7}{'█' * size:<{WIDTH}} {value:,.1f}")
        lines.append("")
    lines.append("output tokens a second")
    longest = max(one.throughput for one in runs)
    for one in runs:
        size = round(WIDTH * one.throughput / longest) if longest else 0
        lines.append(f"{one.rate:8.2f}/s {'':<7}{'█' * size:<{WIDTH}} {one.throughput:,.1f}")
    return "\n".join(lines)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw a picture: a panel for each latency, lines for its percentiles.

    Raises:
        ConfigError: Matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"--output needs matplotlib, and {error.name} is not installed.",
            remedy="pip install 'headstock[plot]', or leave --output out.",
        ) from error
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    for panel, (spread, title) in zip(panels.flat, SPREADS.items(), strict=True):
        if len(runs) > 1:
            _draw_lines(panel, runs, spread)
        else:
            _draw_percentiles(panel, runs[0], spread)
        panel.set_title(title)
        panel.set_ylabel("ms")
        panel.set_ylim(bottom=0)
        panel.grid(visible=True, alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be written: {error}.", remedy="Name a .png, .svg or .pdf file."
        ) from error


def _draw_lines(panel: Any, runs: Sequence[Run], spread: str) -> None:
    """Draw percentiles against the rate."""
    for kind in SHOWN:
        points = [(one.rate, value) for one in runs if (value := one.ms(kind, spread)) is not None]
        if points:
            rates, values = zip(*points, strict=True)
            panel.plot(rates, values, marker="o", label=kind)
    panel.set_xlabel("requests a second")
    if panel.lines:
        panel.legend()


def _draw_percentiles(panel: Any, one: Run, spread: str) -> None:
    """Draw the percentiles of one run."""
    known = [(kind, value) for kind in KINDS if (value := one.ms(kind, spread)) is not None]
    panel.bar([kind for kind, _ in known], [value for _, value in known])
