"""The step's work lists, made on the device so that captured steps follow rows as they change.

``plan_rows`` (one program) decides what each row and each tree node becomes; ``plan_items`` writes
the lists. What a node saves is (rows - 1) times its tokens; a node that saves too little is left
out, and what it covers is read by its nearest kept descendants, or by the rows' tails.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.attention.pages import first_seen
from headstock_triton.overlap import begin

# Columns of the tables that the two kernels hand on.
NODE_TABLE_COLUMNS = 6
"""first token, last token + 1, chunk, chunks (0: left out), place, first item."""
ROW_PLAN_COLUMNS = 5
"""tail's first token, chunk, first tail item, first block, decode rows before it."""


@triton.jit
def is_above(tree, other, node_N, row_first_N, row_last_N, last_N):
    """Say of each node whether ``other`` is an ancestor: has all its rows, and ends before it.

    Nodes may begin where their ancestors do; of two alike, the first is above.

    Returns:
        Which nodes it is above of, and its last token + 1.
    """
    other_last = tl.load(tree + other * 4 + 3)
    has_rows_N = (tl.load(tree + other * 4) <= row_first_N) & (
        tl.load(tree + other * 4 + 1) >= row_last_N
    )
    is_before_N = (other_last < last_N) | ((other_last == last_N) & (other < node_N))
    return has_rows_N & is_before_N, other_last


@triton.jit(do_not_specialize=["NUM_ROWS", "NODE_ITEMS"])
def plan_rows(
    query_starts,
    kv_lengths,
    counts,
    tree,
    node_table,
    row_plan,
    row_table,
    totals,
    NUM_ROWS,
    NODE_ITEMS,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    NODE_CAPACITY: tl.constexpr,
    NODE_PARTIALS: tl.constexpr,
    NODE_SPREAD: tl.constexpr,
    NODE_ROWS: tl.constexpr,
    NODE_MIN_CHUNK: tl.constexpr,
    MIN_GAIN: tl.constexpr,
    TAIL_SPREAD: tl.constexpr,
    TAIL_MIN_CHUNK: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    WINDOW: tl.constexpr,
    TAIL_UNIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Fill ``row_plan``, ``row_table``, ``node_table`` and ``totals`` (tails, nodes, blocks).

    Args:
        query_starts: As in the step batch. [R + 1]
        kv_lengths: Likewise. [R]
        counts: Likewise.
        tree: Likewise. [N, 4]
        node_table: [N, 6]
        row_plan: [R, 5]
        row_table: What the attention kernels read of a row. [R, 3]
        totals: [3]
        NUM_ROWS: R, padded.
        NODE_ITEMS: Items there is room for.
        ROWS: R or more, a power of two.
        NODES: N or more, a power of two; 0 without a tree.
        NODE_CAPACITY: N.
        NODE_PARTIALS: Partials of nodes there is room for.
        NODE_SPREAD: Items to aim at, to fill the device.
        NODE_ROWS: Rows of an item.
        NODE_MIN_CHUNK: Least tokens of an item; divides by the tile.
        MIN_GAIN: Row-tokens that a node must save.
        TAIL_SPREAD: As NODE_SPREAD, for tails.
        TAIL_MIN_CHUNK: As NODE_MIN_CHUNK.
        BLOCK_QUERIES: Queries of a block of longer rows.
        WINDOW: Tokens that a query sees, itself included; 0: all before it; negated: of a chunk.
        TAIL_UNIT: A window's tail begins at a multiple of this, with all of the window in it.
        PDL: See :mod:`headstock_triton.overlap`.
    """
    begin(PDL)
    row_R = tl.arange(0, ROWS)
    num_real = tl.load(counts)
    is_real_R = (row_R < num_real) & (row_R < NUM_ROWS)
    start_R = tl.load(query_starts + row_R, mask=is_real_R, other=0)
    queries_R = tl.load(query_starts + row_R + 1, mask=is_real_R, other=0) - start_R
    length_R = tl.load(kv_lengths + row_R, mask=is_real_R, other=0)
    is_decode_R = is_real_R & (queries_R == 1)
    tail_first_R = tl.zeros((ROWS,), tl.int32)
    node_partials_R = tl.zeros((ROWS,), tl.int32)
    num_node_items = 0

    if NODES > 0:
        before_R = tl.cumsum(is_decode_R.to(tl.int32), axis=0)
        tl.store(row_plan + row_R * 5 + 4, before_R, mask=row_R < NUM_ROWS)
        tl.debug_barrier()
        num_nodes = tl.minimum(tl.load(counts + 2), NODE_CAPACITY)
        node_N = tl.arange(0, NODES)
        is_node_N = node_N < num_nodes
        row_first_N = tl.load(tree + node_N * 4, mask=is_node_N, other=0)
        row_last_N = tl.load(tree + node_N * 4 + 1, mask=is_node_N, other=0)
        own_first_N = tl.load(tree + node_N * 4 + 2, mask=is_node_N, other=0)
        last_N = tl.load(tree + node_N * 4 + 3, mask=is_node_N, other=0)
        has_rows_N = is_node_N & (row_last_N > row_first_N)
        upto_N = tl.load(row_plan + (row_last_N - 1) * 5 + 4, mask=has_rows_N, other=0)
        below_N = tl.load(
            row_plan + (row_first_N - 1) * 5 + 4, mask=has_rows_N & (row_first_N > 0), other=0
        )
        members_N = upto_N - below_N
        for other in range(num_nodes):
            is_above_N, other_last = is_above(tree, other, node_N, row_first_N, row_last_N, last_N)
            own_first_N = tl.where(is_above_N, tl.maximum(own_first_N, other_last), own_first_N)
        gain_N = (members_N - 1) * (last_N - own_first_N)
        parts_N = (row_last_N - row_first_N + NODE_ROWS - 1) // NODE_ROWS
        width_N = row_last_N - row_first_N

        # Raise the bar until the lists fit; nearly always the first bar does.
        bar = MIN_GAIN
        is_kept_N = is_node_N & (gain_N >= bar)
        first_N = own_first_N
        chunk = NODE_MIN_CHUNK
        chunks_N = tl.zeros((NODES,), tl.int32)
        fits = 0
        while fits == 0:
            is_kept_N = is_node_N & (gain_N >= bar)
            first_N = tl.zeros((NODES,), tl.int32)
            for other in range(num_nodes):
                is_above_N, other_last = is_above(
                    tree, other, node_N, row_first_N, row_last_N, last_N
                )
                is_kept = tl.sum(tl.where((node_N == other) & is_kept_N, 1, 0), axis=0) > 0
                first_N = tl.where(is_above_N & is_kept, tl.maximum(first_N, other_last), first_N)
            tokens_N = tl.where(is_kept_N, last_N - first_N, 0)
            work = tl.sum(tokens_N * parts_N, axis=0)
            chunk = (work + NODE_SPREAD - 1) // NODE_SPREAD
            chunk = (chunk + NODE_MIN_CHUNK - 1) // NODE_MIN_CHUNK * NODE_MIN_CHUNK
            chunk = tl.maximum(chunk, NODE_MIN_CHUNK)
            chunks_N = (tokens_N + chunk - 1) // chunk
            num_items = tl.sum(chunks_N * parts_N, axis=0)
            num_partials = tl.sum(chunks_N * width_N, axis=0)
            if (num_items <= NODE_ITEMS) & (num_partials <= NODE_PARTIALS):
                fits = 1
            else:
                bar = bar * 2
        items_N = chunks_N * parts_N
        first_item_N = tl.cumsum(items_N, axis=0) - items_N
        num_node_items = tl.sum(items_N, axis=0)

        place_N = tl.zeros((NODES,), tl.int32)
        for other in range(num_nodes):
            is_above_N, other_last = is_above(tree, other, node_N, row_first_N, row_last_N, last_N)
            other_rows = tl.load(tree + other * 4)
            other_end = tl.load(tree + other * 4 + 1)
            other_chunks = tl.sum(tl.where(node_N == other, chunks_N, 0), axis=0)
            place_N += tl.where(is_above_N, other_chunks, 0)
            is_member_R = (row_R >= other_rows) & (row_R < other_end) & (other_chunks > 0)
            node_partials_R += tl.where(is_member_R, other_chunks, 0)
            tail_first_R = tl.where(is_member_R, tl.maximum(tail_first_R, other_last), tail_first_R)
        in_table_N = node_N < NODE_CAPACITY
        tl.store(node_table + node_N * 6, first_N, mask=in_table_N)
        tl.store(node_table + node_N * 6 + 1, last_N, mask=in_table_N)
        tl.store(node_table + node_N * 6 + 2, tl.zeros_like(first_N) + chunk, mask=in_table_N)
        tl.store(node_table + node_N * 6 + 3, chunks_N, mask=in_table_N)
        tl.store(node_table + node_N * 6 + 4, place_N, mask=in_table_N)
        tl.store(node_table + node_N * 6 + 5, first_item_N, mask=in_table_N)

    if WINDOW != 0:
        tail_first_R = tl.maximum(first_seen(length_R - 1, WINDOW), 0) // TAIL_UNIT * TAIL_UNIT
    tail_R = tl.where(is_decode_R, length_R - tail_first_R, 0)
    work = tl.sum(tail_R, axis=0)
    tail_chunk = (work + TAIL_SPREAD - 1) // TAIL_SPREAD
    tail_chunk = (tail_chunk + TAIL_MIN_CHUNK - 1) // TAIL_MIN_CHUNK * TAIL_MIN_CHUNK
    tail_chunk = tl.maximum(tail_chunk, TAIL_MIN_CHUNK)
    tail_items_R = (tail_R + tail_chunk - 1) // tail_chunk
    partials_R = tail_items_R + tl.where(is_decode_R, node_partials_R, 0)
    first_item_R = tl.cumsum(tail_items_R, axis=0) - tail_items_R
    first_partial_R = tl.cumsum(partials_R, axis=0) - partials_R
    blocks_R = tl.where(queries_R > 1, (queries_R + BLOCK_QUERIES - 1) // BLOCK_QUERIES, 0)
    first_block_R = tl.cumsum(blocks_R, axis=0) - blocks_R

    in_table_R = row_R < NUM_ROWS
    tl.store(row_plan + row_R * 5, tail_first_R, mask=in_table_R)
    tl.store(row_plan + row_R * 5 + 1, tl.zeros_like(row_R) + tail_chunk, mask=in_table_R)
    tl.store(row_plan + row_R * 5 + 2, first_item_R, mask=in_table_R)
    tl.store(row_plan + row_R * 5 + 3, first_block_R, mask=in_table_R)
    tl.store(row_table + row_R * 3, first_partial_R, mask=in_table_R)
    tl.store(row_table + row_R * 3 + 1, partials_R, mask=in_table_R)
    tl.store(row_table + row_R * 3 + 2, tail_items_R, mask=in_table_R)
    tl.store(totals, tl.sum(tail_items_R, axis=0))
    tl.store(totals + 1, num_node_items)
    tl.store(totals + 2, tl.sum(blocks_R, axis=0))


@triton.jit(do_not_specialize=["NUM_ROWS"])
def plan_items(
    query_starts,
    kv_lengths,
    counts,
    tree,
    node_table,
    row_plan,
    row_table,
    tail_items,
    node_items,
    blocks,
    NUM_ROWS,
    NODE_ROWS: tl.constexpr,
    NODE_CAPACITY: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write the items of row ``program_id(0)``, or of node ``program_id(0) - NUM_ROWS``."""
    begin(PDL)
    program = tl.program_id(0)
    lane = tl.arange(0, 32)
    if program < NUM_ROWS:
        row = program
        if row >= tl.load(counts):
            return
        queries = tl.load(query_starts + row + 1) - tl.load(query_starts + row)
        if queries == 1:
            length = tl.load(kv_lengths + row)
            first = tl.load(row_plan + row * 5)
            chunk = tl.load(row_plan + row * 5 + 1)
            first_item = tl.load(row_plan + row * 5 + 2)
            items = tl.load(row_table + row * 3 + 2)
            node_partials = tl.load(row_table + row * 3 + 1) - items
            first_partial = tl.load(row_table + row * 3) + node_partials
            for done in range(0, items, 32):
                index = done + lane
                entry = tail_items + (first_item + index) * 4
                begins = first + index * chunk
                inside = index < items
                tl.store(entry, tl.zeros_like(index) + row, mask=inside)
                tl.store(entry + 1, begins, mask=inside)
                tl.store(entry + 2, tl.minimum(begins + chunk, length), mask=inside)
                tl.store(entry + 3, first_partial + index, mask=inside)
        else:
            first_block = tl.load(row_plan + row * 5 + 3)
            num_blocks = (queries + BLOCK_QUERIES - 1) // BLOCK_QUERIES
            for done in range(0, num_blocks, 32):
                index = done + lane
                entry = blocks + (first_block + index) * 2
                inside = index < num_blocks
                tl.store(entry, tl.zeros_like(index) + row, mask=inside)
                tl.store(entry + 1, index * BLOCK_QUERIES, mask=inside)
    else:
        node = program - NUM_ROWS
        if node >= tl.minimum(tl.load(counts + 2), NODE_CAPACITY):
            return
        table = node_table + node * 6
        first = tl.load(table)
        last = tl.load(table + 1)
        chunk = tl.load(table + 2)
        chunks = tl.load(table + 3)
        place = tl.load(table + 4)
        first_item = tl.load(table + 5)
        row_first = tl.load(tree + node * 4)
        row_last = tl.load(tree + node * 4 + 1)
        parts = (row_last - row_first + NODE_ROWS - 1) // NODE_ROWS
        items = chunks * parts
        for done in range(0, items, 32):
            # Parts of one chunk are neighbours: they read the same keys at the same time.
            index = done + lane
            which = index // parts
            rows_at = row_first + (index % parts) * NODE_ROWS
            begins = first + which * chunk
            entry = node_items + (first_item + index) * 5
            inside = index < items
            tl.store(entry, rows_at, mask=inside)
            tl.store(entry + 1, tl.minimum(NODE_ROWS, row_last - rows_at), mask=inside)
            tl.store(entry + 2, begins, mask=inside)
            tl.store(entry + 3, tl.minimum(begins + chunk, last), mask=inside)
            tl.store(entry + 4, place + which, mask=inside)
