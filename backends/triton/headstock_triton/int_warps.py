"""Integer weights by some dozens of rows at most: each warp turns weights of its own into numbers.

The words are those of `int_kernels.py`. Making floats of them is what takes the time with few rows.
Here a warp loads words as its lanes hold the left factor of a tensor core's product, and four
instructions make two neighbouring numbers of two words, in the activations' dtype: nothing goes
through shared memory. The numbers are whole and small, and so exact; the products of a group are
added up in float32 before they are scaled.

Written in Gluon, Triton's language for explicit layouts, since here it matters which lane has what.
For NVIDIA's cards from compute capability 8.0 on, and slabs of 32 words.

Shapes: W warps, O output features, M rows of activations, I input features, S words of a chunk.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants and tensors by classes of its own, which Gluon's stubs do not know.
# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SLAB = gl.constexpr(32)
"""Words of a chunk. The four lanes that share a row of the left factor have eight each."""
MAGIC = {torch.bfloat16: 0x43004300, torch.float16: 0x64006400}
"""Two exponents of 2^m, m being the mantissa's bits: with u in the lowest, it reads 2^m + u. An
argument of the kernel, since an instruction holds one constant, and the mask is one."""


def _nibbles(kind: str, one: int, away: int) -> str:
    """Return the instructions that make eight pairs of two words' nibbles, less 8.

    $8 and $9 are the words, $10 the magic number; ``away`` is -(2^m + 8), twice.
    """
    lines = [f"mov.b32 one, {one:#x}; mov.b32 away, {away:#x};"]
    for k in range(8):
        if k % 4 == 0:
            lines.append(f"prmt.b32 half, $8, $9, {(0x5410, 0x7632)[k // 4]:#x};")
        lines += [
            f"shr.u32 field, half, {k % 4 * 4};",
            "lop3.b32 field, field, 0x000f000f, $10, 0xea;",  # (field & mask) | magic
            f"fma.rn.{kind} ${k}, field, one, away;",
        ]
    return _block(lines)


def _bytes_as_bfloat16() -> str:
    """Return the instructions that make four pairs of two words' bytes, less 128.

    A bfloat16 has room for seven bits. From 128 + the low bits of a byte 128 is taken where its
    high bit is set, and 256, the next exponent, where it is not.
    """
    lines = ["mov.b32 one, 0xbf80bf80;"]  # -1
    for k in range(4):
        lines += [
            f"prmt.b32 half, $4, $5, {_twice(k):#x};",
            "lop3.b32 field, half, 0x007f007f, $6, 0xea;",  # (half & mask) | magic
            "lop3.b32 away, half, 0x00800080, $6, 0xae;",  # (~half & mask) | magic
            f"fma.rn.bf16x2 ${k}, away, one, field;",
        ]
    return _block(lines)


def _bytes_as_float16() -> str:
    """Return the same for float16, which has room for a byte."""
    lines = ["mov.b32 one, 0x3c003c00; mov.b32 away, 0xe480e480;"]  # 1 and -(1024 + 128)
    for k in range(4):
        lines += [
            f"prmt.b32 half, $4, $5, {_twice(k):#x};",
            "lop3.b32 field, half, 0x00ff00ff, $6, 0xea;",
            f"fma.rn.f16x2 ${k}, field, one, away;",
        ]
    return _block(lines)


def _twice(k: int) -> int:
    """Return the selector of byte ``k`` of both words, each in a half of its own."""
    return (4 + k) * 0x1100 | k * 0x11


def _block(lines: list[str]) -> str:
    return "{ .reg .b32 half, field, away, one;\n" + "\n".join(lines) + " }"


NIBBLES_AS_BFLOAT16 = gl.constexpr(_nibbles("bf16x2", 0x3F803F80, 0xC308C308))
NIBBLES_AS_FLOAT16 = gl.constexpr(_nibbles("f16x2", 0x3C003C00, 0xE408E408))
BYTES_AS_BFLOAT16 = gl.constexpr(_bytes_as_bfloat16())
BYTES_AS_FLOAT16 = gl.constexpr(_bytes_as_float16())


@gluon.jit
def fields_of(tile, magic, IS_BFLOAT16: gl.constexpr, BITS: gl.constexpr):
    """Return the fields of words, less half of their range. Each [W, O, S], as the words are."""
    if BITS == 4:
        if IS_BFLOAT16:
            fields = gl.inline_asm_elementwise(
                NIBBLES_AS_BFLOAT16, "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r", [tile, magic], (
                    gl.bfloat16, gl.bfloat16, gl.bfloat16, gl.bfloat16,
                    gl.bfloat16, gl.bfloat16, gl.bfloat16, gl.bfloat16,
                ), True, 2
            )  # fmt: skip
        else:
            fields = gl.inline_asm_elementwise(
                NIBBLES_AS_FLOAT16, "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r", [tile, magic], (
                    gl.float16, gl.float16, gl.float16, gl.float16,
                    gl.float16, gl.float16, gl.float16, gl.float16,
                ), True, 2
            )  # fmt: skip
    else:
        if IS_BFLOAT16:
            fields = gl.inline_asm_elementwise(
                BYTES_AS_BFLOAT16, "=r,=r,=r,=r,r,r,r,r", [tile, magic],
                (gl.bfloat16, gl.bfloat16, gl.bfloat16, gl.bfloat16), True, 2
            )  # fmt: skip
        else:
            fields = gl.inline_asm_elementwise(
                BYTES_AS_FLOAT16, "=r,=r,=r,=r,r,r,r,r", [tile, magic],
                (gl.float16, gl.float16, gl.float16, gl.float16), True, 2
            )  # fmt: skip
    return fields


@gluon.jit
def index(SIZE: gl.constexpr, DIM: gl.constexpr, LAYOUT: gl.constexpr):
    """Return 0, 1, … along dimension DIM of the three of LAYOUT."""
    first: gl.constexpr = 1 if DIM == 0 else 0
    second: gl.constexpr = 0 if DIM == 2 else 2
    line: gl.constexpr = gl.SliceLayout(first, gl.SliceLayout(second, LAYOUT))
    return gl.expand_dims(gl.expand_dims(gl.arange(0, SIZE, line), first), second)


@gluon.jit(do_not_specialize=["M"])
def warps_kernel(
    x,
    words,
    scale,
    minimum,
    bias,
    out,
    M,
    NUM_OUT,
    x_stride,
    magic,
    NUM_IN: gl.constexpr,
    NUM_WORDS: gl.constexpr,
    GROUP_SIZE: gl.constexpr,
    BITS: gl.constexpr,
    RUN: gl.constexpr,
    WARPS: gl.constexpr,
    ABREAST: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_O: gl.constexpr,
    HAS_LEAST: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    PDL: gl.constexpr,
):
    """Compute BLOCK_O output features of BLOCK_M rows, every warp every WARPS-th chunk.

    Which warp adds up what does not depend on the number of rows, and a row's sums on no other row.
    """
    FIELDS: gl.constexpr = 32 // BITS
    CHUNKS: gl.constexpr = NUM_WORDS // SLAB
    STEPS: gl.constexpr = (CHUNKS + WARPS - 1) // WARPS
    NUM_GROUPS: gl.constexpr = NUM_IN // GROUP_SIZE
    MASKED: gl.constexpr = CHUNKS % WARPS != 0 or NUM_IN % (SLAB * FIELDS) != 0
    IS_BFLOAT16: gl.constexpr = x.dtype.element_ty == gl.bfloat16
    of_sum: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, ABREAST, 1], [1, 16, 8])
    of_weight: gl.constexpr = gl.DotOperandLayout(0, of_sum, 8)
    of_x: gl.constexpr = gl.DotOperandLayout(1, of_sum, 8)

    feature = gl.program_id(0) * BLOCK_O + index(BLOCK_O, 1, of_weight)
    row = gl.minimum(feature, NUM_OUT - 1).to(gl.int64)  # past the end: work for nothing
    chunk = index(WARPS, 0, of_weight)
    words_at = words + row * NUM_WORDS + chunk * SLAB + index(SLAB, 2, of_weight)
    if PDL:
        gdc_launch_dependents()
    ahead = gl.load(words_at, mask=chunk < CHUNKS, other=0)
    if PDL:
        gdc_wait()

    x_row = gl.minimum(gl.program_id(1) * BLOCK_M + index(BLOCK_M, 2, of_x), M - 1).to(gl.int64)
    x_column = index(WARPS, 0, of_x) * (SLAB * FIELDS) + index(SLAB, 1, of_x)
    x_at = x + x_row * x_stride + x_column

    sum_feature = gl.program_id(0) * BLOCK_O + index(BLOCK_O, 1, of_sum)
    scale_at = gl.minimum(sum_feature, NUM_OUT - 1) * NUM_GROUPS
    scale_column = index(WARPS, 0, of_sum) * (SLAB * FIELDS)
    ones = gl.full([WARPS, BLOCK_O, SLAB], 1.0, x.dtype.element_ty, of_weight)
    zeros = gl.zeros([WARPS, BLOCK_O, BLOCK_M], gl.float32, of_sum)
    total = zeros
    for step in range(STEPS):
        tile = ahead
        follows = chunk + (step + 1) * WARPS
        ahead = gl.load(words_at + (step + 1) * (WARPS * SLAB), mask=follows < CHUNKS, other=0)
        fields = fields_of(tile, magic, IS_BFLOAT16, BITS)
        dot = zeros
        sums = zeros
        for k in gl.static_range(FIELDS):
            begin = step * (WARPS * SLAB * FIELDS) + k * SLAB
            if MASKED:
                value = gl.load(x_at + begin, mask=x_column + begin < NUM_IN, other=0.0)
            else:
                value = gl.load(x_at + begin)
            dot = mma_v2(fields[k], value, dot)
            if HAS_LEAST:
                sums = mma_v2(ones, value, sums)
            if k % RUN == RUN - 1:
                column = scale_column + begin
                at = scale_at + column // GROUP_SIZE
                inside = column + scale_at * 0 < NUM_IN
                factor = gl.load(scale + at, mask=inside, other=0.0)
                total += dot * factor
                if HAS_LEAST:
                    least = gl.load(minimum + at, mask=inside, other=0.0) + 8.0 * factor
                    total += sums * least
                dot = zeros
                sums = zeros
    store_sum(total, bias, out, M, NUM_OUT, HAS_BIAS)


@gluon.jit
def store_sum(total, bias, out, M, NUM_OUT, HAS_BIAS: gl.constexpr):
    """Add up what the warps have, and the bias, and store it."""
    of_y: gl.constexpr = gl.SliceLayout(0, total.type.layout)
    y_OM = gl.sum(total, axis=0)
    feature_O = gl.arange(0, y_OM.shape[0], gl.SliceLayout(1, of_y))
    feature_O += gl.program_id(0) * y_OM.shape[0]
    row_M = gl.arange(0, y_OM.shape[1], gl.SliceLayout(0, of_y))
    row_M += gl.program_id(1) * y_OM.shape[1]
    if HAS_BIAS:
        bias_O = gl.load(bias + gl.minimum(feature_O, NUM_OUT - 1)).to(gl.float32)
        y_OM += gl.expand_dims(bias_O, 1)
    at = out + gl.expand_dims(row_M.to(gl.int64) * NUM_OUT, 0) + gl.expand_dims(feature_O, 1)
    inside = gl.expand_dims(feature_O < NUM_OUT, 1) & gl.expand_dims(row_M < M, 0)
    gl.store(at, y_OM.to(out.dtype.element_ty), mask=inside)
