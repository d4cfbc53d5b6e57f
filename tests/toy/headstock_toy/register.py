"""What the toy computes by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.attention import attention
from headstock.ops.base import OpRegistry, Requires, Sizes
from headstock.ops.linear import DENSE, linear
from headstock.ops.norm import add_rms_norm
from headstock_toy.attention import PAGE_SIZES, build_attention
from headstock_toy.linear import build_linear

ONLY_HERE = frozenset({"toy"})


def register_ops(registry: OpRegistry) -> None:
    sizes = {"page_size": Sizes(only=frozenset(PAGE_SIZES))}
    registry.add(
        attention,
        "toy",
        build_attention,
        requires=Requires(capabilities=ONLY_HERE, sizes=sizes),
    )
    dense = Requires(capabilities=ONLY_HERE, layouts=frozenset({DENSE}))
    registry.add(linear, "toy", build_linear, requires=dense)
    registry.add(add_rms_norm, "toy", add_rms_norm_in_place)


def add_rms_norm_in_place(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """As the op allows: the sum overwrites the residual stream."""
    total = x_TD.float() + residual_TD.float()
    residual_TD.copy_(total)
    total = residual_TD.float()
    scale = torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + eps)
    return (total * scale).to(x_TD.dtype) * weight_D, residual_TD
