"""Takes canonical weights from one layout to another.

Shapes: O output features, I input features, G groups along I.
"""

from __future__ import annotations

import torch

from headstock.ops.canonical import dequantize, quantize_fp8, quantize_int4, quantize_int8
from headstock.ops.linear import (
    DENSE,
    FP8_GROUP,
    INT4_GROUP,
    INT8_GROUP,
    MXFP4,
    CanonicalWeight,
)
from headstock.quantization.plan import Layout


def convert(
    part: CanonicalWeight, stored: Layout, wanted: Layout, dtype: torch.dtype
) -> CanonicalWeight:
    """Return ``part`` in the layout ``wanted``; itself where that is what it has.

    Args:
        part: Rows of a weight. [O, I]
        stored: Its layout.
        wanted: The layout to return.
        dtype: Of dense weights, in the result.
    """
    if wanted == stored:
        return part if stored.name != DENSE else {"weight": part["weight"].to(dtype)}
    weight_OI = dequantize(stored.name, part, torch.float32)
    if wanted.name == INT8_GROUP:
        return quantize_int8(weight_OI, wanted.group_size)
    if wanted.name == INT4_GROUP:
        return quantize_int4(weight_OI, wanted.group_size)
    if wanted.name == FP8_GROUP:
        return quantize_fp8(weight_OI, wanted.group_size)
    assert wanted.name == DENSE, f"no such layout: {wanted}"
    return {"weight": weight_OI.to(dtype)}


def narrow_inputs(part: CanonicalWeight, layout: Layout, begin: int, end: int) -> CanonicalWeight:
    """Return the input features [begin, end) of ``part``, contiguous: packers may count on it.

    ``begin`` and ``end`` must be multiples of the layout's group size.
    """
    if layout.name == DENSE:
        return {"weight": part["weight"][:, begin:end].contiguous()}
    group = layout.group_size
    assert begin % group == end % group == 0, f"[{begin}, {end}) cuts a group of {group}"
    per_byte = 2 if layout.name in (INT4_GROUP, MXFP4) else 1
    columns = {"weight": slice(begin // per_byte, end // per_byte)}
    groups = slice(begin // group, end // group)
    return {n: rows[:, columns.get(n, groups)].contiguous() for n, rows in part.items()}
