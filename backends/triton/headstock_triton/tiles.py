"""Products of a tile of rows with weights in any canonical layout, dequantised as they are read.

Quantised weights are multiplied as whole numbers, which every dtype of ours holds exactly, and the
products of a group are scaled in float32.

Shapes: M rows of a tile, J output features, I input features.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(
    x_at, at, NUM_IN: tl.constexpr, BLOCK_I: tl.constexpr, IS_INT4: tl.constexpr
):  # fmt: skip
    """Return input features [at, at + BLOCK_I); of int4 weights even and odd ones apart."""
    if IS_INT4:
        return tl.load(x_at + at), tl.load(x_at + at + 1)
    if NUM_IN % BLOCK_I != 0:
        inside_I = at + tl.arange(0, BLOCK_I) < NUM_IN
        x_MI = tl.load(x_at + at, mask=inside_I[None, :], other=0.0)
    else:
        x_MI = tl.load(x_at + at)
    return x_MI, x_MI


@triton.jit
def load_weights(
    weight_at, at, inside_J, NUM_IN: tl.constexpr, NUM_OUT: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Return a tile of weights or of bytes; zeros past the input features. [I, J]

    Past the output features it holds anything: what is made of that is not stored.
    """
    inside_I = (at + tl.arange(0, BLOCK_I) < NUM_IN)[:, None]
    if NUM_IN % BLOCK_I != 0:
        tile = tl.load(weight_at + at, mask=inside_I & inside_J[None, :], other=0)
    elif NUM_OUT % BLOCK_J != 0:
        tile = tl.load(weight_at + at, mask=inside_J[None, :])
    else:
        tile = tl.load(weight_at + at)
    return tile


@triton.jit
def halves_of_fp4(nibble):
    """Return how many halves a float4_e2m1 is: a whole number from -12 to 12."""
    code = nibble.to(tl.int32) & 7
    magnitude = tl.where(code < 2, code, (2 | (code & 1)) << tl.maximum((code >> 1) - 1, 0))
    return tl.where(nibble > 7, -magnitude, magnitude)


@triton.jit
def multiply_add(
    acc, x_MI, odd_MI, weight_at, scale_at, minimum_at, inside_J, at, NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_I: tl.constexpr, GROUP: tl.constexpr,
    IS_INT4: tl.constexpr, IS_FP4: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return ``acc`` plus the product of input features [at, at + BLOCK_I). [M, J]

    For weights of 4 bits (IS_INT4; with IS_FP4 they are floats) ``x_MI`` has the even features and
    ``odd_MI`` the odd ones, and a tile holds bytes of two. ``scale_at`` and ``minimum_at`` are
    where each output feature's first group is.
    """
    if GROUP == 0:
        tile = load_weights(weight_at, at, inside_J, NUM_IN, NUM_OUT, BLOCK_I, BLOCK_J)
        return tl.dot(x_MI, tile, acc, input_precision=PRECISION)
    scale_J = tl.load(scale_at + at // GROUP, mask=inside_J, other=0.0)
    if IS_INT4:
        bytes_IJ = load_weights(
            weight_at, at // 2, inside_J, NUM_IN // 2, NUM_OUT, BLOCK_I // 2, BLOCK_J
        )
        low_IJ, high_IJ = bytes_IJ & 15, bytes_IJ >> 4
        if IS_FP4:
            low_IJ, high_IJ = halves_of_fp4(low_IJ), halves_of_fp4(high_IJ)
            scale_J = scale_J * 0.5
        low_IJ, high_IJ = low_IJ.to(x_MI.dtype), high_IJ.to(x_MI.dtype)
        product_MJ = tl.dot(x_MI, low_IJ, input_precision=PRECISION)
        product_MJ = tl.dot(odd_MI, high_IJ, product_MJ, input_precision=PRECISION)
        if not IS_FP4:
            minimum_J = tl.load(minimum_at + at // GROUP, mask=inside_J, other=0.0)
            sum_M = tl.sum(x_MI.to(tl.float32) + odd_MI.to(tl.float32), axis=1)
            acc += sum_M[:, None] * minimum_J[None, :]
    else:
        tile = load_weights(weight_at, at, inside_J, NUM_IN, NUM_OUT, BLOCK_I, BLOCK_J)
        product_MJ = tl.dot(x_MI, tile.to(x_MI.dtype), input_precision=PRECISION)
    return acc + product_MJ * scale_J[None, :]
