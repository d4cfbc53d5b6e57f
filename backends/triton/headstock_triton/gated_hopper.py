"""silu(gate) * up of one product on Hopper, before it leaves the multiprocessor.

A block computes 128 rows of 128 outputs, which takes as many gate and as many up features: two
groups of four warps multiply 64 rows each, one more warp copies tiles of activations and weights
into a ring in shared memory. Blocks stay and take tile after tile, so that the ring fills for the
next while the last is written. Written in Gluon, as `attention/hopper.py` is.

Shapes: M rows, I input features, F outputs; the weight has gate's F rows, then up's.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants and tensors by classes of its own, which Gluon's stubs do not know.
# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from headstock_triton.target import cdiv

if TYPE_CHECKING:
    from torch import Tensor

barrier = getattr(gl, "barrier", None) or gl.thread_barrier
"""Waits for the warps of a group; Triton 3.7 renamed it."""

BLOCK_M = 128
BLOCK_F = 128
BLOCK_I = 64
STAGES = 4
M_TILES_TOGETHER = 8
"""Row tiles that blocks go through before the next outputs: what they read stays in the cache."""


@gluon.jit
def place_of(tile, m_tiles, f_tiles, TOGETHER: gl.constexpr):
    """Return the row and output tile that tile number ``tile`` is."""
    in_band = TOGETHER * f_tiles
    first = tile // in_band * TOGETHER
    height = gl.minimum(m_tiles - first, TOGETHER)
    within = tile % in_band
    return first + within % height, within // height


@gluon.jit
def copy_operands(
    x,
    weight,
    x_SMI,
    w_SGI,
    full,
    empty,
    m_tiles,
    f_tiles,
    num_out,
    STEPS: gl.constexpr,
    TOGETHER: gl.constexpr,
):
    """Copy activations, gate and up rows of every tile of this block into the ring."""
    stages: gl.constexpr = x_SMI.shape[0]
    rows: gl.constexpr = x_SMI.shape[1]
    outs: gl.constexpr = w_SGI.shape[1] // 2
    depth: gl.constexpr = x_SMI.shape[2]
    count = 0
    for tile in range(gl.program_id(0), m_tiles * f_tiles, gl.num_programs(0)):
        m, f = place_of(tile, m_tiles, f_tiles, TOGETHER)
        for step in range(STEPS):
            stage = count % stages
            mbarrier.wait(empty.index(stage), ((count // stages) & 1) ^ 1)
            arrived = full.index(stage)
            mbarrier.expect(arrived, (rows + 2 * outs) * depth * 2)
            at = step * depth
            gate = w_SGI.index(stage).slice(0, outs, 0)
            up = w_SGI.index(stage).slice(outs, outs, 0)
            tma.async_copy_global_to_shared(x, [m * rows, at], arrived, x_SMI.index(stage))
            tma.async_copy_global_to_shared(weight, [f * outs, at], arrived, gate)
            tma.async_copy_global_to_shared(weight, [num_out + f * outs, at], arrived, up)
            count += 1


@gluon.jit
def multiply_rows(
    out,
    x_SMI,
    w_SGI,
    out_MF,
    full,
    empty,
    m_tiles,
    f_tiles,
    WHICH: gl.constexpr,
    STEPS: gl.constexpr,
    TOGETHER: gl.constexpr,
):
    """Compute this group's half of the rows of every tile."""
    stages: gl.constexpr = x_SMI.shape[0]
    rows: gl.constexpr = out_MF.shape[0]
    outs: gl.constexpr = out_MF.shape[1]
    of_both: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * outs, 16])
    of_out: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, outs, 16])
    count = 0
    for tile in range(gl.program_id(0), m_tiles * f_tiles, gl.num_programs(0)):
        m, f = place_of(tile, m_tiles, f_tiles, TOGETHER)
        acc_MG = gl.zeros([rows, 2 * outs], gl.float32, of_both)
        stage = count % stages
        mbarrier.wait(full.index(stage), (count // stages) & 1)
        x_MI = x_SMI.index(stage).slice(WHICH * rows, rows, 0)
        w_IG = w_SGI.index(stage).permute((1, 0))
        acc_MG = warpgroup_mma(x_MI, w_IG, acc_MG, use_acc=False, is_async=True)
        acc_MG = warpgroup_mma_wait(1, deps=(acc_MG,))
        count += 1
        for _ in range(1, STEPS):
            before = stage
            stage = count % stages
            mbarrier.wait(full.index(stage), (count // stages) & 1)
            x_MI = x_SMI.index(stage).slice(WHICH * rows, rows, 0)
            w_IG = w_SGI.index(stage).permute((1, 0))
            acc_MG = warpgroup_mma(x_MI, w_IG, acc_MG, is_async=True)
            acc_MG = warpgroup_mma_wait(1, deps=(acc_MG,))
            mbarrier.arrive(empty.index(before), count=1)
            count += 1
        acc_MG = warpgroup_mma_wait(0, deps=(acc_MG,))
        mbarrier.arrive(empty.index(stage), count=1)
        halves = gl.permute(gl.reshape(acc_MG, [rows, 2, outs]), [0, 2, 1])
        gate_MF, up_MF = gl.split(halves)
        # exp2 of -log2(e) times the gate: the exponential of the sigmoid.
        value_MF = gate_MF / (1.0 + gl.exp2(gate_MF * -1.4426950408889634)) * up_MF
        tma.store_wait(0)
        barrier()
        out_MF.store(gl.convert_layout(value_MF, of_out).to(out.dtype))
        fence_async_shared()
        barrier()
        corner = [m * 2 * rows + WHICH * rows, f * outs]
        tma.async_copy_shared_to_global(out, corner, out_MF)
    tma.store_wait(0)


@gluon.jit
def gated_kernel(
    x,
    weight,
    out,
    num_rows,
    num_out,
    NUM_IN: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_F: gl.constexpr,
    BLOCK_I: gl.constexpr,
    STAGES: gl.constexpr,
    TOGETHER: gl.constexpr,
):
    """Compute every ``num_programs``-th tile. Launched without programmatic dependence."""
    m_tiles = (num_rows + BLOCK_M - 1) // BLOCK_M
    f_tiles = num_out // BLOCK_F
    steps: gl.constexpr = NUM_IN // BLOCK_I
    pattern: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    x_SMI = gl.allocate_shared_memory(x.dtype, [STAGES, BLOCK_M, BLOCK_I], pattern)
    w_SGI = gl.allocate_shared_memory(x.dtype, [STAGES, 2 * BLOCK_F, BLOCK_I], pattern)
    first_MF = gl.allocate_shared_memory(x.dtype, [BLOCK_M // 2, BLOCK_F], pattern)
    second_MF = gl.allocate_shared_memory(x.dtype, [BLOCK_M // 2, BLOCK_F], pattern)
    flag: gl.constexpr = mbarrier.MBarrierLayout()
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], flag)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], flag)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    fence_async_shared()
    barrier()
    gl.warp_specialize(
        [
            (multiply_rows, (
                out, x_SMI, w_SGI, first_MF, full, empty, m_tiles, f_tiles, 0, steps, TOGETHER,
            )),
            (multiply_rows, (
                out, x_SMI, w_SGI, second_MF, full, empty, m_tiles, f_tiles, 1, steps, TOGETHER,
            )),
            (copy_operands, (
                x, weight, x_SMI, w_SGI, full, empty, m_tiles, f_tiles, num_out, steps, TOGETHER,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def takes(num_out: int, num_in: int, dtype: torch.dtype) -> bool:
    """Whether a weight of ``2 * num_out`` rows can be multiplied here."""
    is_narrow = dtype in (torch.bfloat16, torch.float16)
    return is_narrow and num_out % BLOCK_F == 0 and num_in % BLOCK_I == 0


def gated(x_MI: Tensor, weight_GI: Tensor, num_sms: int) -> Tensor:
    """Return silu(gate) * up of ``x_MI`` times the weight. [M, F]"""
    (num_rows, num_in), num_out = x_MI.shape, weight_GI.shape[0] // 2
    out_MF = torch.empty((num_rows, num_out), dtype=x_MI.dtype, device=x_MI.device)
    pattern = gl.NVMMASharedLayout(128, 16, 2)
    tiles = cdiv(num_rows, BLOCK_M) * (num_out // BLOCK_F)
    gated_kernel[(min(num_sms, tiles),)](
        TensorDescriptor.from_tensor(x_MI, [BLOCK_M, BLOCK_I], pattern),
        TensorDescriptor.from_tensor(weight_GI, [BLOCK_F, BLOCK_I], pattern),
        TensorDescriptor.from_tensor(out_MF, [BLOCK_M // 2, BLOCK_F], pattern),
        num_rows,
        num_out,
        NUM_IN=num_in,
        BLOCK_M=BLOCK_M,
        BLOCK_F=BLOCK_F,
        BLOCK_I=BLOCK_I,
        STAGES=STAGES,
        TOGETHER=M_TILES_TOGETHER,
        num_warps=4,
    )
    return out_MF
