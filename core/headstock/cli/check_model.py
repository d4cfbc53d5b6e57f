"""Say whether a model would load here, and who would compute it, without reading its weights.

Compares the names and shapes of its tensors with what its class is made of, and lists every op with
who computes it and who was passed over. Takes the settings of `headstock serve`. The exit code is 1
when the model would not be served.

Examples:
  headstock check-model ./my-model
  headstock check-model ./my-model --quantization int4 --tp-size 2
  headstock check-model ./folder-with-config-json --load-format dummy
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec

from headstock.checkpoint.cache_scales import WHY
from headstock.cli.progress import byte_progress
from headstock.cli.table import format_table
from headstock.config import EngineSettings, add_flags, read_settings

if TYPE_CHECKING:
    from headstock.assemble.check_model import ModelCheck

SHOWN = 12
"""Tensor names that are shown of each kind; `--json` has all."""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock check-model``."""
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    add_flags(parser, EngineSettings)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found."""
    loaded = read_settings(arguments, EngineSettings)
    from headstock.assemble.check_model import check_model

    with byte_progress("fetching the model") as progress:
        check = check_model(loaded, progress)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(check), indent=2).decode())
    else:
        print(format_check(check))
    return 1 if check.problem else 0


def format_check(check: ModelCheck) -> str:
    """Return what was found for people."""
    stored = ", ".join(f"{count} {layout}" for layout, count in check.stored.items()) or "none"
    facts = [
        ("model", check.name),
        ("architectures", ", ".join(check.architectures) or "none"),
        ("served by", _served_by(check)),
        ("served to", check.task or "-"),
        ("device", check.device),
        ("computes in", check.dtype or "-"),
        ("tensors", stored),
    ]
    lines = [format_table(("fact", "value"), facts)]
    if check.ops:
        rows = [
            (o.op, o.spec, o.provider, "; ".join(f"{who}: {why}" for who, why in o.passed_over))
            for o in check.ops
        ]
        lines += ["", format_table(("op", "spec", "provider", "passed over"), rows)]
    for what in ("missing", "unexpected", "misshapen"):
        lines += _names(what, getattr(check, what))
    lines += _names(f"left out, since {WHY}", check.left_out)
    if check.problem:
        return "\n".join([*lines, "", f"Would not be served: {check.problem}\n  -> {check.remedy}"])
    return "\n".join([*lines, "", "Would be served."])


def _served_by(check: ModelCheck) -> str:
    if not check.architecture:
        return "no package"
    if check.is_fallback:
        return f"transformers' own {check.architecture}, through {check.dist}"
    return f"the class of {check.architecture} in {check.dist}"


def _names(what: str, names: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    more = [f"  and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ["", f"{what}: {len(names)}", *(f"  {name}" for name in names[:SHOWN]), *more]
