"""What the Pallas kernel takes of a TPU's memory, as compiled for TPUs that are not here.

``python -m tests.hardware.tpu.pallas_memory docs/tpu.md`` writes the table of that page, between
its marks. It needs jax and libtpu: `make tpu-compile` has both, and no TPU is asked for.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
from jax.experimental import topologies  # pyright: ignore[reportMissingImports]

from headstock_tpu.pallas_attention import memory_of, paged_attention

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
BEGIN, END = "<!-- pallas memory -->\n", "<!-- end of pallas memory -->\n"
PAGES, PAGE_SIZE, PAGES_A_ROW = 512, 16, 64


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is compiled.

    Attributes:
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Of each.
        dtype: Of queries and pages.
        rows: Of the step.
        tokens: Of the step.
        max_query: Most tokens of a row.
    """

    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    rows: int
    tokens: int
    max_query: int


STEPS = (
    Step(32, 8, 128, "bfloat16", 64, 64, 1),
    Step(32, 8, 128, "bfloat16", 32, 512, 512),
    Step(9, 3, 64, "float32", 64, 64, 1),
)


def compiled(step: Step, topology: str) -> Any:
    """Return the kernel, compiled for the first chip of ``topology``."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    sharding = jax.sharding.SingleDeviceSharding(devices[0])

    def array(*shape: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    run = functools.partial(paged_attention, scale=step.head_dim**-0.5, max_query=step.max_query)
    pages = (PAGES, 2, step.kv_heads, PAGE_SIZE, step.head_dim)
    return (
        jax.jit(run)
        .lower(
            array(step.tokens, step.heads, step.head_dim, dtype=step.dtype),
            array(*pages, dtype=step.dtype),
            array(step.rows, PAGES_A_ROW),
            array(step.rows + 1),
            array(step.rows),
        )
        .compile()
    )


def table() -> str:
    """Return the table's lines."""
    names = [topology.split(":")[0] for topology in TOPOLOGIES]
    heads = "heads, kv heads, head size"
    lines = [f"| {heads} | pages | step | VMEM | temporary, {' | '.join(names)} |"]
    lines.append("|---" * (4 + len(names)) + "|")
    for step in STEPS:
        words = f"{step.rows} rows of one token"
        if step.max_query > 1:
            words = f"{step.tokens} tokens in {step.rows} rows"
        vmem = memory_of(
            step.heads, step.kv_heads, step.head_dim, step.dtype, PAGE_SIZE, step.max_query
        )
        temporary = [
            _mib(compiled(step, topology).memory_analysis().temp_size_in_bytes)
            for topology in TOPOLOGIES
        ]
        sizes = f"{step.heads}, {step.kv_heads}, {step.head_dim}"
        pages = f"{step.dtype}, {PAGE_SIZE} tokens"
        lines.append("| " + " | ".join([sizes, pages, words, _mib(vmem), *temporary]) + " |")
    return "\n".join(lines) + "\n"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size else "0"


def main(page: Path) -> None:
    """Write the table."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
