"""Products with integer weights that are scaled group by group, and their way back to floats.

A weight is kept as 32-bit words of FIELDS unsigned integers u, a row after the other. A row is cut
into chunks of FIELDS * SLAB input features, and field k of word s of a chunk is its feature
k * SLAB + s: the fields of neighbouring words are neighbours too, so that activations are read as
they lie. SLAB divides the group size, so that a field of a chunk's words has one scale.

A field becomes a float without a conversion: below the exponent of 2^(23 - p), its bits at p of the
mantissa read 2^(23 - p) + u, exactly. A weight is scale * u + minimum; of 8 bits, where u counts
from 128, the minimum is MIDDLE * scale and is not kept.

Shapes: M rows of activations, O output features, I input features, G groups along I, Q quads of
words.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.overlap import begin

EXPONENT = tl.constexpr(150 << 23)
"""Of 2^23, where a float has it."""
MIDDLE = tl.constexpr(-128.0)


@triton.jit
def as_float(words, exponent, k: tl.constexpr, BITS: tl.constexpr):
    """Return field ``k`` of each word in float32."""
    AWAY: tl.constexpr = (8 + BITS) * ((k + 1) * BITS > 23)  # fields past the mantissa come down
    AT: tl.constexpr = k * BITS - AWAY
    MASK: tl.constexpr = (2**BITS - 1) * 2**AT
    if AWAY > 0:
        words = words >> AWAY
    mantissa = (words & MASK) | (exponent - AT * 2**23)
    return mantissa.to(tl.float32, bitcast=True) - 2 ** (23 - AT)


@triton.jit
def load_some(at, inside, MASKED: tl.constexpr):
    """Load what is at ``at``; zeros outside, where anything is."""
    return tl.load(at, mask=inside, other=0.0) if MASKED else tl.load(at)


@triton.jit
def load_scales(scale, minimum, at, inside, BITS: tl.constexpr, MASKED: tl.constexpr):
    """Return scales and minima at the offsets ``at``; zeros outside."""
    factor = load_some(scale + at, inside, MASKED)
    if BITS == 8:
        return factor, factor * MIDDLE
    return factor, load_some(minimum + at, inside, MASKED)


@triton.jit
def few_rows_kernel(
    x,
    words,
    scale,
    minimum,
    bias,
    out,
    NUM_OUT,
    x_stride,
    exponent,
    M: tl.constexpr,
    NUM_IN: tl.constexpr,
    NUM_WORDS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BITS: tl.constexpr,
    SLAB: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute output features [BLOCK_O * program_id(0), …) of all M rows.

    A thread has four neighbouring words of a row, and so four neighbouring activations a field.
    Products of a run of fields with one scale are added up before they are scaled; the minimum
    takes the sum of the activations. Weights are asked for one step ahead, the first ones before
    the kernels ahead have ended: they do not depend on them. Everything is kept in dimensions
    [M, O, Q, word] from the load on, so that no value has to change threads before the last sum.
    EXPONENT comes as the argument ``exponent``: an instruction holds one constant, the mask, and
    the compiler would rather make two instructions than keep the other in a register.
    """
    FIELDS: tl.constexpr = 32 // BITS
    NUM_GROUPS: tl.constexpr = NUM_IN // GROUP_SIZE
    MASKED: tl.constexpr = NUM_IN % (BLOCK_Q * 4 * FIELDS) != 0
    feature_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    row_O = tl.minimum(feature_O, NUM_OUT - 1).to(tl.int64)  # past the end: work for nothing
    row_M = tl.minimum(tl.arange(0, BLOCK_M), M - 1)
    quad_Q = tl.arange(0, BLOCK_Q)
    word = tl.arange(0, 4)[None, None, None, :]
    words_at = (
        words + row_O[None, :, None, None] * NUM_WORDS + quad_Q[None, None, :, None] * 4 + word
    )
    x_at = x + row_M[:, None, None, None] * x_stride + word
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()  # pyright: ignore[reportAttributeAccessIssue]
    first = (quad_Q * 4 < NUM_WORDS)[None, None, :, None]
    ahead = tl.load(words_at, mask=first, other=0, eviction_policy="evict_first")
    if PDL:
        tl.extra.cuda.gdc_wait()  # pyright: ignore[reportAttributeAccessIssue]
    acc_MOQ = tl.zeros((BLOCK_M, BLOCK_O, BLOCK_Q), tl.float32)
    for at in range(0, NUM_WORDS, BLOCK_Q * 4):
        tile = ahead
        beyond = at + BLOCK_Q * 4
        follows = (beyond + quad_Q * 4 < NUM_WORDS)[None, None, :, None]
        ahead = tl.load(words_at + beyond, mask=follows, other=0, eviction_policy="evict_first")
        quad = at // 4 + quad_Q
        column_Q = quad // (SLAB // 4) * (FIELDS * SLAB) + quad % (SLAB // 4) * 4
        for k in tl.static_range(FIELDS):  # pyright: ignore[reportGeneralTypeIssues]
            here_Q = column_Q + k * SLAB
            here = here_Q[None, None, :, None]
            value = load_some(x_at + here, here < NUM_IN, MASKED).to(tl.float32)
            product = value * as_float(tile, exponent, k, BITS)
            if k % RUN == 0:
                products, values = product, value
            else:
                products += product
                values += value
            if k % RUN == RUN - 1:
                group_OQ = row_O[:, None] * NUM_GROUPS + (here_Q // GROUP_SIZE)[None, :]
                inside = (here_Q < NUM_IN)[None, :]
                factor, least = load_scales(scale, minimum, group_OQ, inside, BITS, MASKED)
                acc_MOQ += tl.sum(products, axis=3) * factor[None, :, :]
                acc_MOQ += tl.sum(values, axis=3) * least[None, :, :]
    y_MO = tl.sum(acc_MOQ, axis=2)
    if HAS_BIAS:
        y_MO += tl.load(bias + row_O).to(tl.float32)[None, :]
    each_M = tl.arange(0, BLOCK_M)
    out_MO = out + each_M[:, None] * NUM_OUT + feature_O[None, :]
    mask_MO = (each_M < M)[:, None] & (feature_O < NUM_OUT)[None, :]
    tl.store(out_MO, y_MO.to(out.dtype.element_ty), mask=mask_MO)


@triton.jit(do_not_specialize=["M"])
def tiles_kernel(
    x,
    words,
    scale,
    minimum,
    bias,
    out,
    M,
    NUM_OUT,
    x_stride,
    NUM_IN: tl.constexpr,
    NUM_WORDS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BITS: tl.constexpr,
    SLAB: tl.constexpr,
    RUN: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute BLOCK_M rows of BLOCK_O output features over CHUNKS chunks of the input features.

    program_id(0) counts rows, so that programs that want the same weights run together;
    program_id(1) output features, program_id(2) parts of the input features, each with a result of
    its own. Weights are the left factor: tensor cores take that one from registers, where the
    fields have been turned into floats.
    """
    FIELDS: tl.constexpr = 32 // BITS
    NUM_GROUPS: tl.constexpr = NUM_IN // GROUP_SIZE
    MASKED: tl.constexpr = NUM_IN % (SLAB * FIELDS) != 0
    begin(PDL)
    row_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    feature_O = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    split = tl.program_id(2)
    row_O = tl.minimum(feature_O, NUM_OUT - 1).to(tl.int64)  # past the end: work for nothing
    x_row_M = tl.minimum(row_M, M - 1).to(tl.int64)
    s = tl.arange(0, SLAB)
    words_at = words + row_O[:, None] * NUM_WORDS + s[None, :]
    x_at = x + x_row_M[None, :] * x_stride + s[:, None]
    acc_OM = tl.zeros((BLOCK_O, BLOCK_M), tl.float32)
    for chunk in range(split * CHUNKS, tl.minimum((split + 1) * CHUNKS, NUM_WORDS // SLAB)):
        tile = tl.load(words_at + chunk * SLAB)
        for k in tl.static_range(FIELDS):  # pyright: ignore[reportGeneralTypeIssues]
            column = (chunk * FIELDS + k) * SLAB
            value = load_some(x_at + column, column < NUM_IN, MASKED)
            if k % RUN == 0:
                group_O = row_O * NUM_GROUPS + column // GROUP_SIZE
                inside = column < NUM_IN
                factor, least = load_scales(scale, minimum, group_O, inside, BITS, MASKED)
            weight = as_float(tile, EXPONENT, k, BITS) * factor[:, None] + least[:, None]
            weight = weight.to(x.dtype.element_ty)
            acc_OM = tl.dot(weight, value, acc_OM, input_precision="ieee")
    if HAS_BIAS:
        acc_OM += tl.load(bias + row_O).to(tl.float32)[:, None]
    at_OM = (split * M + row_M).to(tl.int64)[None, :] * NUM_OUT + feature_O[:, None]
    mask_OM = (feature_O < NUM_OUT)[:, None] & (row_M < M)[None, :]
    tl.store(out + at_OM, acc_OM.to(out.dtype.element_ty), mask=mask_OM)


@triton.jit(do_not_specialize=["COUNT"])
def sum_parts_kernel(
    parts,
    bias,
    out,
    COUNT,
    NUM_OUT,
    NUM_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Add up NUM_PARTS results of COUNT numbers in their order, and the bias."""
    begin(PDL)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < COUNT
    total = tl.load(parts + at, mask=inside, other=0.0)
    for part in tl.static_range(1, NUM_PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.load(parts + part * COUNT + at, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + at % NUM_OUT, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first", "count"])
def floats_kernel(
    words,
    scale,
    minimum,
    ids,
    out,
    first,
    count,
    NUM_OUT,
    NUM_IN: tl.constexpr,
    NUM_WORDS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BITS: tl.constexpr,
    SLAB: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    HAS_IDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Turn BLOCK_R of ``count`` rows into floats, of each the quads [BLOCK_Q * program_id(1), …).

    Row r is first + r; with ids it is ids[r] - first, and zeros where that is none of NUM_OUT.
    """
    FIELDS: tl.constexpr = 32 // BITS
    NUM_GROUPS: tl.constexpr = NUM_IN // GROUP_SIZE
    begin(PDL)
    place_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_R = first + place_R.to(tl.int64)
    if HAS_IDS:
        row_R = tl.load(ids + place_R, mask=place_R < count, other=0).to(tl.int64) - first
    is_here_R1 = ((row_R >= 0) & (row_R < NUM_OUT))[:, None]
    quad_Q = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    word = tl.arange(0, 4)[None, None, :]
    words_at = words + row_R[:, None, None] * NUM_WORDS + quad_Q[None, :, None] * 4 + word
    tile = tl.load(words_at, mask=(is_here_R1 & (quad_Q * 4 < NUM_WORDS)[None, :])[:, :, None])
    column_Q = quad_Q // (SLAB // 4) * (FIELDS * SLAB) + quad_Q % (SLAB // 4) * 4
    out_at = out + place_R.to(tl.int64)[:, None, None] * NUM_IN + word
    for k in tl.static_range(FIELDS):  # pyright: ignore[reportGeneralTypeIssues]
        here_Q = column_Q + k * SLAB
        is_in_1Q = (here_Q < NUM_IN)[None, :]
        if k % RUN == 0:
            group_RQ = row_R[:, None] * NUM_GROUPS + (here_Q // GROUP_SIZE)[None, :]
            inside = is_here_R1 & is_in_1Q
            factor, least = load_scales(scale, minimum, group_RQ, inside, BITS, True)
        value = as_float(tile, EXPONENT, k, BITS) * factor[:, :, None] + least[:, :, None]
        value = tl.where(is_here_R1[:, :, None], value, 0.0)
        inside = (place_R < count)[:, None] & is_in_1Q
        at = out_at + here_Q[None, :, None]
        tl.store(at, value.to(out.dtype.element_ty), mask=inside[:, :, None])
