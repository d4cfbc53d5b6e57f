"""What benchmarks draw and compute: prompts of random ids, percentiles, tables, result files."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstock.cli.table import format_table
from headstock.errors import ConfigError

PERCENTILES = (90, 95, 99)
KINDS = ("mean", "median", *(f"p{share}" for share in PERCENTILES))
LOWEST_ID = 100
"""Drawn ids start here: the lowest are special in most vocabularies."""


def random_prompts(
    count: int, length: int, *, prefix: int, vocab_size: int, seed: int
) -> list[list[int]]:
    """Return prompts of random ids: ``prefix`` that all share, then ``length`` of their own.

    Raises:
        ConfigError: There are no such prompts.
    """
    if prefix + length < 1 or vocab_size <= LOWEST_ID + 1:
        raise ConfigError(
            f"There are no prompts of {prefix + length} ids from {LOWEST_ID} to {vocab_size - 1}.",
            remedy="Raise --input-len or --vocab-size.",
        )
    draw = random.Random(seed)
    shared = [draw.randrange(LOWEST_ID, vocab_size) for _ in range(prefix)]
    return [
        shared + [draw.randrange(LOWEST_ID, vocab_size) for _ in range(length)]
        for _ in range(count)
    ]


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` percent lie, between neighbours by proportion.

    Args:
        ordered: Ascending, at least one.
        share: 0 to 100.
    """
    place = (len(ordered) - 1) * share / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread_ms(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Return mean, median and percentiles in milliseconds, as ``mean_NAME_ms`` …; {} of nothing.

    ``name`` is one word.
    """
    if not seconds:
        return {}
    ordered = sorted(seconds)
    figures = {"mean": sum(ordered) / len(ordered), "median": percentile(ordered, 50)}
    figures |= {f"p{share}": percentile(ordered, share) for share in PERCENTILES}
    return {f"{kind}_{name}_ms": round(1e3 * value, 3) for kind, value in figures.items()}


def tell(
    title: str, setup: Mapping[str, Any], figures: Mapping[str, Any], output_file: str | None
) -> None:
    """Print the figures, and write them with the set-up to ``output_file``.

    Raises:
        ConfigError: It cannot be written.
    """
    plain = {name: value for name, value in figures.items() if not name.endswith("_ms")}
    tables = [format_table(("figure", "value"), [(n, _shown(v)) for n, v in plain.items()])]
    spreads = list(dict.fromkeys(n.split("_")[1] for n in figures if n.endswith("_ms")))
    if spreads:
        header = ("ms", *KINDS)
        rows = [(n, *(_shown(figures[f"{kind}_{n}_ms"]) for kind in KINDS)) for n in spreads]
        tables.append(format_table(header, rows))
    print("\n".join([title, *(table for table in tables if "\n" in table)]))
    if output_file is None:
        return
    try:
        Path(output_file).write_text(
            json.dumps({"benchmark": title, **setup, **figures}, indent=2) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(
            f"The figures cannot be written to {output_file}: {error.strerror or error}.",
            remedy="Check --output-file.",
        ) from error


def _shown(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
