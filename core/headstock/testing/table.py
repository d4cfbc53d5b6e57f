"""From reports of the conformance kit to the table of docs/backends.md.

``python -m headstock.testing.table keep REPORT… HOW FOLDER`` keeps of a report what the table
shows; a kit that was run in parts has several, which are kept as one. HOW says how the backend was
run: one of :data:`WAYS`. With ``--backend NAME`` it is kept as that backend's, whose code the kit
ran under another name. ``… write FOLDER PAGE`` writes the page.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

Way = Literal["hardware", "virtual device", "interpreted", "compiled", "stand-in kernels", "schema"]
WAYS: dict[Way, str] = {
    "hardware": "on the device itself",
    "virtual device": "the vendor's runtime on the host's processor",
    "interpreted": "kernels interpreted on the host's processor: right, and nothing said of speed",
    "compiled": "kernels compiled for the device and not run",
    "stand-in kernels": "kernels written for the tests, under the vendor's signatures, on the"
    " host's processor: the backend's own code runs, and nothing is said of the vendor's kernels",
    "schema": "calls checked against the vendor's published signatures, not run",
}
GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("attention",),
    "latent attention": ("latent_attention",),
    "linear attention": ("linear_attention",),
    "rotation and stores": ("rotate_and_write", "rotate_and_write_latent"),
    "products": ("linear",),
    "experts": ("experts", "route_topk", "route_experts", "add_shared"),
    "norms": ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm", "gated_norm"),
    "activations": ("silu_and_mul", "activate"),
    "adapters": ("add_lora",),
    "images": (
        "place_features",
        "add_placed",
        "encoder_attention",
        "span_attention",
        "axis_angles",
    ),
    "drawing": ("argmax_tokens", "draw_tokens", "token_logprobs", "apply_penalties", "mark_faults"),
    "grammar masks": ("apply_masks",),
    "drafts": ("accept_drafts", "draft_ngrams", "append_outputs", "enter_drafts"),
    "the step's tables": ("place_step", "advance_lengths", "settle_step", "take_rows"),
    "whole steps": ("model_step",),
}
"""Rows of the table, and the ops that each stands for."""
PARTS = {
    "device": "test_2_device",
    "captured steps": "test_6_graphs",
    "served tokens": "test_7_engine",
    "two ranks": "test_8_communication",
    "rules": "test_9_rules",
}
"""Further rows, and the parts of the kit that they show."""
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
HEAD = """# Backends, and how each was run

Every cell comes from a report of the [conformance kit](writing-a-backend.md#10-the-kit), kept in
`docs/reports`; nothing here is written by hand. A cell names the dtypes in which the backend's own
implementation equals the reference, and the features and weight layouts that were tried with it.
*reference* means that the backend leaves it to plain PyTorch on its device: right, and not fast.
"""
TAIL = """## Renewing it

`make reports` runs the kit on what this machine has and writes this page. A report from elsewhere
comes in by `python -m headstock.testing.table keep REPORT HOW docs/reports`. A kit can be run in
parts, by the files of its tests; `keep` takes all of their reports together.
"""


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a report says of one op."""

    dtypes: list[str]
    kinds: list[str]
    cases: int


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a report."""

    backend: str
    how: Way
    device: str
    version: str
    ops: dict[str, Cell]
    parts: dict[str, dict[str, int]]


def keep(report: dict[str, Any], how: Way, backend: str | None = None) -> Kept:
    """Return what the table needs of a kit's report, of ``backend`` if that has another name.

    Raises:
        ValueError: Something failed: a table of what holds has no place for it.
    """
    wrong = sorted({"failed", "error"} & set(report["counts"]))
    if wrong:
        raise ValueError(f"the report has tests that {' or '.join(wrong)}: mend them first")
    ops: dict[str, Cell] = {}
    parts: dict[str, dict[str, int]] = {name: {} for name in PARTS}
    for result in report["results"]:
        for name, module in PARTS.items():
            if result["test"].startswith(module):
                outcome = result["outcome"]
                parts[name][outcome] = parts[name].get(outcome, 0) + 1
        if not result.get("num_cases"):
            continue
        known = ops.get(result["op"], Cell([], [], 0))
        ops[result["op"]] = Cell(
            [*known.dtypes, result["dtype"]],
            sorted({*known.kinds, *result.get("kinds", [])}),
            known.cases + result["num_cases"],
        )
    return Kept(
        backend=backend or report["backend"],
        how=how,
        device=report["device"],
        version=report["headstock"],
        ops=ops,
        parts=parts,
    )


def joined(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the report of a kit that was run in parts, each with some of its tests.

    A part whose tests open no device does not name one: it may join any.

    Raises:
        ValueError: They are of other backends, devices or versions, or have a test in common.
    """
    first, *others = sorted(reports, key=lambda report: "device" not in report)
    names = ("backend", "device", "headstock")
    for other in others:
        unlike = [name for name in names if other.get(name, first.get(name)) != first.get(name)]
        if unlike:
            raise ValueError(f"the reports are not of one kit: they differ in {', '.join(unlike)}")
    results = [result for report in reports for result in report["results"]]
    tests = Counter(result["test"] for result in results)
    twice = sorted(test for test, count in tests.items() if count > 1)
    if twice:
        raise ValueError(f"the reports share {len(twice)} tests: {twice[0]}, for example")
    counts = Counter[str]()
    for report in reports:
        counts.update(report["counts"])
    return first | {"counts": dict(counts), "results": results}


def page(kept: Sequence[Kept], others: Iterable[str] = ()) -> str:
    """Return the page.

    Args:
        kept: Reports, in the order of the columns.
        others: Backends of this repository of which no report is kept.
    """
    rows = [["", *(f"{each.backend}, {each.how}" for each in kept)]]
    rows += [[name, *(_cell(each, ops) for each in kept)] for name, ops in GROUPS.items()]
    rows += [[name, *(_part(each, name) for each in kept)] for name in PARTS]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    ways = [f"* *{name}*: {text}" for name, text in WAYS.items()]
    ran = [f"* `{k.backend}`, {k.how}: {k.device}, Headstock {k.version}" for k in kept]
    missing = sorted(set(others) - {each.backend for each in kept})
    note = f"No report is kept of: {', '.join(f'`{name}`' for name in missing)}." if missing else ""
    parts = (HEAD, "\n".join(lines), "## Run on", "\n".join(ran), note, "## Words", "\n".join(ways))
    return "\n\n".join(part.strip() for part in (*parts, TAIL) if part) + "\n"


def _cell(kept: Kept, ops: Sequence[str]) -> str:
    found = [kept.ops[op] for op in ops if op in kept.ops]
    if not found:
        return "reference"
    tried = {dtype for cell in found for dtype in cell.dtypes}
    dtypes = [short for dtype, short in SHORT.items() if dtype in tried]
    kinds = sorted({kind for cell in found for kind in cell.kinds} - set(SHORT))
    own = "" if len(found) == len(ops) else f" ({len(found)} of {len(ops)} ops)"
    return ", ".join(dtypes) + own + (f"; {', '.join(kinds)}" if kinds else "")


def _part(kept: Kept, name: str) -> str:
    counts = kept.parts[name]
    passed, skipped = counts.get("passed", 0), counts.get("skipped", 0)
    if not passed:
        return "not claimed" if skipped else "not run"
    return f"{passed} tests pass"


def main(argv: Sequence[str]) -> int:
    """Keep a report, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    keeping = commands.add_parser("keep")
    keeping.add_argument("reports", type=Path, nargs="+", metavar="report")
    keeping.add_argument("how", choices=list(WAYS))
    keeping.add_argument("folder", type=Path)
    keeping.add_argument("--backend")
    writing = commands.add_parser("write")
    writing.add_argument("folder", type=Path)
    writing.add_argument("page", type=Path)
    asked = parser.parse_args(list(argv))
    if asked.command == "keep":
        reports = [msgspec.json.decode(file.read_bytes()) for file in asked.reports]
        kept = keep(joined(reports), asked.how, asked.backend)
        file = asked.folder / f"{kept.backend}-{kept.how.replace(' ', '-')}.json"
        file.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
        return 0
    asked.page.write_text(page(read(asked.folder), in_tree()), encoding="utf-8")
    return 0


def read(folder: Path) -> list[Kept]:
    """Return the reports of ``folder``, by name."""
    return [msgspec.json.decode(f.read_bytes(), type=Kept) for f in sorted(folder.glob("*.json"))]


def in_tree() -> list[str]:
    """Return the backends that come with Headstock."""
    from headstock.plugins.loader import PROJECT, discover

    return [record.name for record in discover(only=()).backends if record.dist == PROJECT]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
