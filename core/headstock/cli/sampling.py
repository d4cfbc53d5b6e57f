"""Flags for how tokens are chosen, for the commands that generate."""

from __future__ import annotations

import argparse
from typing import Any

FIELDS = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "sampling_seed", "stop")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Add them; what is not given is left to the model's defaults."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens of an answer")
    group.add_argument("--temperature", type=float, metavar="X", help="0: the likeliest token")
    group.add_argument("--top-p", type=float, metavar="X", help="draw from this much probability")
    group.add_argument("--top-k", type=int, metavar="N", help="draw from so many tokens")
    group.add_argument("--min-p", type=float, metavar="X", help="least share of the likeliest's")
    group.add_argument(
        "--seed", type=int, metavar="N", dest="sampling_seed", help="draw the same again"
    )
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end there; may be given several times"
    )


def sampling_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given, by the fields of ``SamplingParams``."""
    values = {name: getattr(arguments, name) for name in FIELDS}
    return {name: value for name, value in values.items() if value is not None}
