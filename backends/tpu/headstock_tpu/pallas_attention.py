"""Paged ragged attention as a Pallas kernel. Knows JAX and no PyTorch.

The grid goes row by row, in order. A row's queries are taken some at a time; for each lot the row's
pages come from the chip's memory several at a time, the next ones while these are computed, and
scores never leave the core. A lot writes as many outputs as it has room for: those past the row's
end are the next row's, which overwrites them.

Shapes: T tokens, R rows, P pages of a row, K key and value heads, G query heads of a kv head,
padded to a multiple of 8, D head size, Q queries of a lot, B pages that are read at once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
from jax.experimental import pallas as pl  # pyright: ignore[reportMissingImports]
from jax.experimental.pallas import tpu as pltpu  # pyright: ignore[reportMissingImports]

LANES = 128
SUBLANES = 8
NO_SINK = -1e30
"""Stands for minus infinity: differences of it are numbers."""
TOKENS_AT_ONCE = 128
QUERIES_AT_ONCE = 16


class Kind(NamedTuple):
    """What is fixed when the kernel is compiled.

    Attributes:
        scale: Multiplies q·k.
        window: Tokens that a query sees, itself included; None: all before it.
        soft_cap: Scores become cap * tanh(score / cap); None: they stay.
        num_queries: Q.
        num_pages: B.
    """

    scale: float
    window: int | None
    soft_cap: float | None
    num_queries: int
    num_pages: int


class Scratch(NamedTuple):
    """Memory of the core.

    Attributes:
        q: Queries of a lot. float32. [Q, K, G, D]
        kv: Pages being read and pages being computed. [2, B, 2, K, page_size, D]
        most: Highest score so far. float32. [K, Q * G, LANES]
        total: Sum of weights so far. float32. [K, Q * G, LANES]
        acc: Weighted values so far. float32. [K, Q * G, D]
        out: float32. [Q, K, G, D]
        q_done: Semaphore of queries and outputs.
        kv_done: Semaphores of pages. [2, B]
    """

    q: Any
    kv: Any
    most: Any
    total: Any
    acc: Any
    out: Any
    q_done: Any
    kv_done: Any


def paged_attention(
    q_THD: jax.Array,
    kv: jax.Array,
    page_table_RP: jax.Array,
    query_starts_R1: jax.Array,
    kv_lengths_R: jax.Array,
    sinks_H: jax.Array | None = None,
    *,
    scale: float,
    max_query: int,
    window: int | None = None,
    soft_cap: float | None = None,
    interpret: Any = False,
) -> jax.Array:
    """Attend over the pages of each row.

    Args:
        q_THD: Queries. [T, H, D]
        kv: Pages. [pages, 2, K, page_size, D]
        page_table_RP: int32. [R, P]
        query_starts_R1: int32. [R + 1]
        kv_lengths_R: int32. [R]
        sinks_H: A logit without a value of each query head, or None. [H]
        scale: Multiplies q·k.
        max_query: Upper bound of a row's queries.
        window: Tokens that a query sees, itself included; None: all before it.
        soft_cap: Scores become cap * tanh(score / cap); None: they stay.
        interpret: As ``pallas_call`` takes it.

    Returns:
        In the dtype of ``q_THD``; tokens of no row have anything. [T, H, D]
    """
    num_tokens, num_heads, head_dim = q_THD.shape
    heads, page_size = kv.shape[2], kv.shape[3]
    per_head = num_heads // heads
    kind = Kind(
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        num_queries=min(max_query, QUERIES_AT_ONCE),
        num_pages=min(page_table_RP.shape[1], max(1, TOKENS_AT_ONCE // page_size)),
    )
    missing = -per_head % SUBLANES
    q_TKGD = q_THD.astype(jnp.float32).reshape(num_tokens, heads, per_head, head_dim)
    q_TKGD = jnp.pad(q_TKGD, ((0, kind.num_queries), (0, 0), (0, missing), (0, 0)))
    first_KG = jnp.full((heads, per_head), NO_SINK, jnp.float32)
    if sinks_H is not None:
        first_KG = sinks_H.astype(jnp.float32).reshape(heads, per_head)
    first_KG = jnp.pad(first_KG, ((0, 0), (0, missing)), constant_values=NO_SINK)
    first_KGC = jnp.broadcast_to(first_KG[..., None], (*first_KG.shape, LANES))
    out_TKGD = _call(kind, kv, q_TKGD, interpret)(
        page_table_RP, query_starts_R1, kv_lengths_R, q_TKGD, first_KGC, kv
    )
    out_TKGD = out_TKGD[:num_tokens, :, :per_head]
    return out_TKGD.reshape(q_THD.shape).astype(q_THD.dtype)


def memory_of(
    num_heads: int, kv_heads: int, head_dim: int, dtype: str, page_size: int, max_query: int
) -> int:
    """Return the bytes of the core's memory (VMEM) that the kernel's buffers take.

    Args:
        num_heads: Query heads.
        kv_heads: K.
        head_dim: D.
        dtype: Of the pages.
        page_size: Tokens a page.
        max_query: Upper bound of a row's queries.
    """
    per_head = num_heads // kv_heads
    group = per_head + -per_head % SUBLANES
    queries, pages = min(max_query, QUERIES_AT_ONCE), max(1, TOKENS_AT_ONCE // page_size)
    lanes = head_dim + -head_dim % LANES
    lines = queries * kv_heads * group
    kept = 4 * lines * (3 * lanes + 2 * LANES)
    return kept + 2 * pages * 2 * kv_heads * page_size * lanes * jnp.dtype(dtype).itemsize


def _call(kind: Kind, kv: jax.Array, q_TKGD: jax.Array, interpret: Any) -> Any:
    """Return the kernel for arrays of these shapes."""
    _, heads, group, head_dim = q_TKGD.shape
    lot = (kind.num_queries, heads, group, head_dim)
    lines = kind.num_queries * group
    scratch = Scratch(
        q=pltpu.VMEM(lot, jnp.float32),
        kv=pltpu.VMEM((2, kind.num_pages, *kv.shape[1:]), kv.dtype),
        most=pltpu.VMEM((heads, lines, LANES), jnp.float32),
        total=pltpu.VMEM((heads, lines, LANES), jnp.float32),
        acc=pltpu.VMEM((heads, lines, head_dim), jnp.float32),
        out=pltpu.VMEM(lot, jnp.float32),
        q_done=pltpu.SemaphoreType.DMA(()),
        kv_done=pltpu.SemaphoreType.DMA((2, kind.num_pages)),
    )

    def run(
        table: Any,
        starts: Any,
        lengths: Any,
        q: Any,
        first: Any,
        pages: Any,
        out: Any,
        *memory: Any,
    ) -> None:
        _attend_row(kind, (table, starts, lengths), q, first, pages, out, Scratch(*memory))

    def wrapped(*operands: jax.Array) -> jax.Array:
        grid = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(operands[2].shape[0],),
            in_specs=[
                pl.BlockSpec(memory_space=pl.ANY),
                pl.BlockSpec((heads, group, LANES), lambda *_: (0, 0, 0)),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=list(scratch),
        )
        return pl.pallas_call(
            run,
            grid_spec=grid,
            out_shape=jax.ShapeDtypeStruct(q_TKGD.shape, jnp.float32),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
            interpret=interpret,
            name="paged_attention",
        )(*operands)

    return wrapped


def _attend_row(
    kind: Kind,
    scalars: tuple[Any, Any, Any],
    q: Any,
    first: Any,
    pages: Any,
    out: Any,
    has: Scratch,
) -> None:
    """Attend for the row of this place of the grid, a lot of queries at a time."""
    _, starts, lengths = scalars
    row = pl.program_id(0)
    begin, end = starts[row], starts[row + 1]
    before = lengths[row] - (end - begin)  # tokens whose keys were there before the step

    def lot(index: Any, _: Any) -> None:
        done = index * kind.num_queries
        taken = pltpu.make_async_copy(
            q.at[pl.ds(begin + done, kind.num_queries)], has.q, has.q_done
        )
        taken.start()
        taken.wait()
        _start(kind, first, has)
        _attend_lot(kind, scalars, row, pages, before + done, has)
        _finish(kind, has)
        given = pltpu.make_async_copy(
            has.out, out.at[pl.ds(begin + done, kind.num_queries)], has.q_done
        )
        given.start()
        given.wait()

    jax.lax.fori_loop(0, _parts(end - begin, kind.num_queries), lot, None)


def _start(kind: Kind, first: Any, has: Scratch) -> None:
    """Begin with the sinks: a weight without a value; or with nothing."""
    heads = has.acc.shape[0]
    first_KGC = first[...]
    lines = (heads, kind.num_queries, *first_KGC.shape[1:])
    most = jnp.broadcast_to(first_KGC[:, None], lines).reshape(has.most.shape)
    has.most[...] = most
    has.total[...] = jnp.where(most > NO_SINK / 2, 1.0, 0.0)
    has.acc[...] = jnp.zeros(has.acc.shape, jnp.float32)


def _finish(kind: Kind, has: Scratch) -> None:
    """Divide by the sum of weights."""
    group, head_dim = has.out.shape[2:]
    for head in range(has.acc.shape[0]):
        out = has.acc[head] / jnp.maximum(has.total[head][:, :1], 1e-30)
        has.out[:, head] = out.reshape(kind.num_queries, group, head_dim)


def _attend_lot(
    kind: Kind, scalars: tuple[Any, Any, Any], row: Any, pages: Any, position: Any, has: Scratch
) -> None:
    """Go through the pages that a lot of ``row`` sees, whose first query is at ``position``."""
    table, _, lengths = scalars
    page_size = has.kv.shape[4]
    num_tokens = kind.num_pages * page_size
    length = lengths[row]
    last_page = _parts(length, page_size) - 1
    end = _parts(jnp.minimum(length, position + kind.num_queries), num_tokens)
    begin = 0
    if kind.window is not None:
        begin = jax.lax.div(jnp.maximum(0, position - kind.window + 1), num_tokens)

    def copies(block: Any) -> list[Any]:
        place = jax.lax.rem(block, 2)
        return [
            pltpu.make_async_copy(
                pages.at[table[row, jnp.minimum(block * kind.num_pages + index, last_page)]],
                has.kv.at[place, index],
                has.kv_done.at[place, index],
            )
            for index in range(kind.num_pages)
        ]

    def fetch(block: Any) -> None:
        for copy in copies(block):
            copy.start()

    def step(block: Any, _: Any) -> None:
        pl.when(block + 1 < end)(functools.partial(fetch, block + 1))
        for copy in copies(block):
            copy.wait()
        for head in range(has.acc.shape[0]):
            _add(kind, head, jax.lax.rem(block, 2), block * num_tokens, position, length, has)

    fetch(begin)
    jax.lax.fori_loop(begin, end, step, None)


def _add(
    kind: Kind, head: int, place: Any, first: Any, position: Any, length: Any, has: Scratch
) -> None:
    """Add what a head's queries see of the tokens from ``first`` on that were read."""
    _, _, group, head_dim = has.q.shape
    lines, num_tokens = kind.num_queries * group, kind.num_pages * has.kv.shape[4]
    q = has.q[:, head].reshape(lines, head_dim)
    k = has.kv[place, :, 0, head].reshape(num_tokens, head_dim).astype(jnp.float32)
    v = has.kv[place, :, 1, head].reshape(num_tokens, head_dim).astype(jnp.float32)
    is_there = first + jax.lax.broadcasted_iota(jnp.int32, (num_tokens, 1), 0) < length
    k, v = jnp.where(is_there, k, 0.0), jnp.where(is_there, v, 0.0)  # 0 * nan is nan
    scores = kind.scale * jax.lax.dot_general(
        q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    if kind.soft_cap is not None:
        scores = kind.soft_cap * jnp.tanh(scores / kind.soft_cap)
    query = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0), group)
    token = first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    is_seen = (token <= position + query) & (token < length)
    if kind.window is not None:
        is_seen &= token > position + query - kind.window
    scores = jnp.where(is_seen, scores, NO_SINK)
    before = has.most[head][:, :1]
    most = jnp.maximum(before, scores.max(axis=1, keepdims=True))
    weights = jnp.where(is_seen, jnp.exp(scores - most), 0.0)
    kept = jnp.exp(before - most)
    total = kept * has.total[head][:, :1] + weights.sum(axis=1, keepdims=True)
    added = jax.lax.dot_general(
        weights, v, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    has.acc[head] = kept * has.acc[head] + added
    has.most[head] = jnp.broadcast_to(most, (lines, LANES))
    has.total[head] = jnp.broadcast_to(total, (lines, LANES))


def _parts(total: Any, size: int) -> Any:
    """Return how many parts of ``size`` hold ``total``; neither is negative."""
    return jax.lax.div(total + (size - 1), size)
