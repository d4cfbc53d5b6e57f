"""Takes canonical weights from one layout to another.

Shapes: O output features, I input features, G groups along I.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.canonical import dequantize
from headstock.ops.linear import DENSE, CanonicalWeight
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
    if wanted.name == DENSE:
        return {"weight": weight_OI.to(dtype)}
    return wanted.name.load_quantize()(weight_OI, wanted.group_size)


def narrow_inputs(part: CanonicalWeight, layout: Layout, begin: int, end: int) -> CanonicalWeight:
    """Return the input features [begin, end) of ``part``, contiguous: packers may count on it.

    It has the layout of :func:`~headstock.quantization.plan.layout_of_share`.
    """
    group = layout_of_share(layout, end - begin).group_size
    part = split_groups(part, layout, group)
    narrowed: dict[str, Tensor] = {}
    for name, stored in layout.name.parts.items():
        each = stored.features or group
        assert begin % each == end % each == 0, f"[{begin}, {end}) cuts {each} features of {name}"
        narrowed[name] = part[name][:, begin // each : end // each].contiguous()
    return narrowed


def split_groups(part: CanonicalWeight, layout: Layout, group_size: int) -> CanonicalWeight:
    """Return ``part`` in smaller groups, exactly: each has what its group had.

    Args:
        part: Rows of a weight.
        layout: Its layout.
        group_size: Divides that of the layout.
    """
    if layout.group_size == group_size:
        return part
    times, parts = layout.group_size // group_size, layout.name.parts
    return {n: t if parts[n].features else t.repeat_interleave(times, 1) for n, t in part.items()}
