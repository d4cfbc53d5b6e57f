"""Show what a model takes and how much fits, without loading its weights.

Takes the settings of `headstock serve` that change the memory. Weights and workspace are estimated
here; a start measures them. The exit code is 1 when it does not fit.

Examples:
  headstock plan ./my-model
  headstock plan ./my-model --max-model-len 8192 --quantization int8
  headstock plan ./folder-with-config-json --load-format dummy --backend reference
"""

from __future__ import annotations

import argparse

import msgspec

from headstock.cli.progress import byte_progress
from headstock.cli.table import format_table
from headstock.config import EngineSettings, add_flags, read_settings
from headstock.observe.units import GIB

SHORTER = (32768, 8192, 2048)
"""Lengths of requests to count beside the greatest. Tokens."""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock plan``."""
    parser.add_argument("--json", action="store_true", help="print the plan as JSON, in bytes")
    add_flags(parser, EngineSettings)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    loaded = read_settings(arguments, EngineSettings)
    from headstock.assemble.plan import make_plan

    with byte_progress("fetching the model") as progress:
        plan = make_plan(loaded, progress)
    if arguments.json:
        fields = {**msgspec.to_builtins(plan), "longest_at_once": plan.longest_at_once}
        if plan.memory is not None:
            fields["memory"]["cache_tokens"] = plan.memory.cache_tokens
        print(msgspec.json.format(msgspec.json.encode(fields), indent=2).decode())
        return 1 if plan.problem else 0
    ranks = f", each of {plan.num_ranks} ranks" if plan.num_ranks > 1 else ""
    print(f"{plan.name} ({plan.architecture}) on {plan.device}{ranks}\n")
    facts = [
        ("parameters", f"{plan.num_parameters / 1e6:,.1f} million"),
        ("task", plan.task),
        ("computes in", plan.dtype),
        ("longest request", f"{plan.max_length:,} tokens"),
        ("requests at once", f"{plan.max_requests:,}"),
        ("largest step", f"{plan.step_tokens:,} tokens"),
        (
            "keys and values",
            f"{plan.token_bytes:,} bytes a token, in {plan.num_layers} layers,"
            f" {plan.page_size} tokens a page",
        ),
    ]
    print(format_table(("fact", "value"), facts))
    sizes = [("free now", plan.total), ("allowed by --memory-fraction", plan.allowed)]
    if plan.memory is None:
        sizes += [
            ("weights, estimated", plan.weights),
            ("workspace, estimated", plan.workspace),
            ("penalties and biases, once used", plan.optional),
        ]
    else:
        estimated = {"weights", "workspace"}
        sizes += [(f"{n}, estimated" if n in estimated else n, b) for n, b in plan.memory.table()]
    print("\n" + format_table(("memory", "     GiB"), [(n, f"{b / GIB:8.3f}") for n, b in sizes]))
    if plan.problem:
        print(f"\nDoes not fit: {plan.problem}\n  -> {plan.remedy}")
        return 1
    print(f"\nThe cache holds {plan.longest_at_once:,} requests of the greatest length together.")
    shorter = [length for length in SHORTER if length < plan.max_length]
    if (
        plan.memory is not None and len(plan.memory.groups) > 1 and shorter
    ):  # of windows, short requests have no less
        held = ", ".join(f"{plan.at_once(length):,} of {length:,} tokens" for length in shorter)
        print(f"Of shorter ones: {held}.")
    return 0
