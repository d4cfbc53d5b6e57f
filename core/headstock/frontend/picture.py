"""Draws a trace: a lane for each state, a bar for each gen and select, as SVG text."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstock.frontend.trace import Trace, TraceStep

LEFT = 150
WIDTH = 900
ROW = 34
TOP = 58
_STYLE = """\
text{font:12px system-ui,sans-serif;fill:#1b1f24}.dim{fill:#57606a;font-size:11px}
.lane{stroke:#d0d7de}.wait{fill:#d0d7de}.prefill{fill:#f2b34c}.shared{fill:#4c9f70}
.gen{fill:#4c7ff2}.select{fill:#9a6bd6}.link{stroke:#57606a;fill:none;stroke-dasharray:3 3}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dim{fill:#8b949e}.lane{stroke:#30363d}}
"""


def draw(trace: Trace) -> str:
    """Return the picture of ``trace``.

    A bar is grey while the step waits in the queue, orange until its first token, and blue (a gen)
    or violet (a select) after. The green line under it is the share of its prompt that was there
    already.
    """
    lanes = _lanes(trace)
    timed = [step for step in trace.steps if step.end_s is not None]
    total = max((step.end_s or 0.0 for step in timed), default=0.0) or 1.0
    height = TOP + ROW * len(lanes) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 20}" height="{height}"'
        f' viewBox="0 0 {LEFT + WIDTH + 20} {height}" role="img">',
        f"<title>{escape(trace.program)}</title><style>{_STYLE}</style>",
        f'<text x="10" y="20">{escape(trace.program)}: {total:.3f} s</text>',
        *_legend(),
    ]
    for name, row in lanes.items():
        y = TOP + ROW * row
        label = name if len(name) <= 22 else f"…{name[-21:]}"
        parts.append(f'<text x="10" y="{y + 15}">{escape(label)}</text>')
        parts.append(f'<path class="lane" d="M{LEFT} {y + 29}h{WIDTH}"/>')
    for step in trace.steps:
        parts += _links(step, lanes, trace, total)
    for step in timed:
        parts += _bar(step, TOP + ROW * lanes[step.state], total)
    parts.append(f'<text class="dim" x="{LEFT}" y="{height - 8}">0 s</text>')
    parts.append(
        f'<text class="dim" x="{LEFT + WIDTH}" y="{height - 8}" text-anchor="end">'
        f"{total:.3f} s</text>"
    )
    return "\n".join([*parts, "</svg>\n"])


def _lanes(trace: Trace) -> dict[str, int]:
    lanes: dict[str, int] = {}
    for step in trace.steps:
        for name in (step.state, *step.others):
            lanes.setdefault(name, len(lanes))
    return lanes


def _legend() -> list[str]:
    words = ("wait", "waits"), ("prefill", "prefill"), ("gen", "gen"), ("select", "select")
    parts: list[str] = []
    for index, (kind, word) in enumerate((*words, ("shared", "prompt that was there"))):
        x = LEFT + 90 * index
        parts.append(f'<rect class="{kind}" x="{x}" y="32" width="12" height="10"/>')
        parts.append(f'<text class="dim" x="{x + 17}" y="41">{word}</text>')
    return parts


def _x(seconds: float, total: float) -> float:
    return round(LEFT + WIDTH * seconds / total, 1)


def _bar(step: TraceStep, y: int, total: float) -> list[str]:
    begin, end = step.begin_s or 0.0, step.end_s or 0.0
    queued = min(end, begin + step.queue_s)
    first = queued  # a select is scored, not drawn: it has no first token of its own
    if step.kind == "gen" and step.first_s is not None:
        first = min(end, max(queued, step.first_s))
    share = step.cached_tokens / step.prompt_tokens if step.prompt_tokens else 0.0
    title = (
        f"{step.kind} {step.name} · line {step.line} · {begin:.3f} to {end:.3f} s · waited"
        f" {step.queue_s:.3f} s · {step.cached_tokens} of {step.prompt_tokens} prompt tokens were"
        f" there · {step.completion_tokens} generated"
    )
    parts = [f"<g><title>{escape(title)}</title>"]
    for kind, low, high in (("wait", begin, queued), ("prefill", queued, first),
                            (step.kind, first, end)):  # fmt: skip
        if high > low:
            x = _x(low, total)
            width = max(1.0, _x(high, total) - x)
            parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width:.1f}" height="18"/>')
    width = (_x(end, total) - _x(begin, total)) * share
    if width > 0:
        parts.append(
            f'<rect class="shared" x="{_x(begin, total)}" y="{y + 19}" width="{width:.1f}"'
            ' height="4"/>'
        )
    if _x(end, total) - _x(begin, total) > 7 * len(step.name):
        parts.append(f'<text x="{_x(begin, total) + 4}" y="{y + 13}">{escape(step.name)}</text>')
    return [*parts, "</g>"]


def _links(step: TraceStep, lanes: dict[str, int], trace: Trace, total: float) -> list[str]:
    """Draw what a fork begins and what a join waits for."""
    if step.kind not in ("fork", "join"):
        return []
    home = TOP + ROW * lanes[step.state] + 9
    parts: list[str] = []
    for name in step.others:
        times = [s for s in trace.steps if s.state == name and s.begin_s is not None]
        if not times:
            continue
        at = times[0].begin_s if step.kind == "fork" else times[-1].end_s
        x = _x(at or 0.0, total)
        parts.append(f'<path class="link" d="M{x} {home}V{TOP + ROW * lanes[name] + 9}"/>')
    return parts
