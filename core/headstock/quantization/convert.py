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
from headstock.quantization.plan import Layout, layout_of_share


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
    if wanted.name == stored.name and stored.group_size % wanted.group_size == 0:
        return split_groups(part, stored, wanted.group_size)
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

    It has the layout of :func:`~headstock.quantization.plan.layout_of_share`.
    """
    if layout.name == DENSE:
        return {"weight": part["weight"][:, begin:end].contiguous()}
    group = layout_of_share(layout, end - begin).group_size
    part = split_groups(part, layout, group)
    assert begin % group == end % group == 0, f"[{begin}, {end}) cuts a group of {group}"
    per_byte = 2 if layout.name in (INT4_GROUP, MXFP4) else 1
    columns = {"weight": slice(begin // per_byte, end // per_byte)}
    groups = slice(begin // group, end // group)
    return {n: rows[:, columns.get(n, groups)].contiguous() for n, rows in part.items()}


def split_groups(part: CanonicalWeight, layout: Layout, group_size: int) -> CanonicalWeight:
    """Return ``part`` in smaller groups, exactly: each has what its group had.

    Args:
        part: Rows of a weight.
        layout: Its layout.
        group_size: Divides that of the layout.
    """
    times = layout.group_size // group_size
    if times == 1:
        return part
    return {n: t if n == "weight" else t.repeat_interleave(times, 1) for n, t in part.items()}
