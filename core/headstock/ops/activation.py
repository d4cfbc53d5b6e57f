"""Activations, resolved with the size ``size``: F.

Shapes: T tokens, F features of the feed-forward layer, G groups of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.activation_kinds import FEATURES, SILU, Activation
from headstock.ops.base import op
from headstock.ops.canonical import FP8_MAX


@op(features=FEATURES)
def silu_and_mul(gate_up_TG: Tensor, *, activation: Activation = SILU) -> Tensor:
    """Return activation(gate) * up, where gate and up are the halves of each row.

    Resolved with the activation's features; a provider without any computes SiLU alone.

    Args:
        gate_up_TG: Gate features, then as many up features. [T, 2 F]
        activation: What is done to the gate.

    Returns:
        [T, F]

    Source:
        Shazeer 2020, "GLU Variants Improve Transformer", SwiGLU.
    """
    return activation.join(*gate_up_TG.chunk(2, dim=-1))


@op()
def silu_and_mul_groups(gate_up_TG: Tensor, *, group_size: int) -> tuple[Tensor, Tensor]:
    """Return :func:`silu_and_mul`, of SiLU, in 8-bit floating point, a scale for each group.

    What ``fp8-group`` products take as :class:`~headstock.ops.linear.GroupedActivations`. Optional:
    layers ask for it only where a provider fuses it.

    Args:
        gate_up_TG: As in :func:`silu_and_mul`. [T, 2 F]
        group_size: Features that share a scale; divides F.

    Returns:
        Values, float8_e4m3fn [T, F], and their scales, float32 [T, F / group_size].
    """
    groups_TGg = silu_and_mul(gate_up_TG).to(torch.float32).unflatten(1, (-1, group_size))
    scale_TG = groups_TGg.abs().amax(dim=-1) / FP8_MAX
    scale_TG = torch.where(scale_TG > 0, scale_TG, 1.0)
    values_TGg = (groups_TGg / scale_TG.unsqueeze(-1)).clamp(-FP8_MAX, FP8_MAX)
    return values_TGg.flatten(1).to(torch.float8_e4m3fn), scale_TG


@op(features=FEATURES)
def activate(x_TF: Tensor, *, activation: Activation = SILU) -> Tensor:
    """Return activation(x): of feed-forward layers without a gate.

    Resolved with the activation's features; a provider without any computes SiLU alone.

    Args:
        x_TF: [T, F]
        activation: What is done; a kind of one argument.

    Returns:
        [T, F]
    """
    return activation.join(x_TF, torch.ones_like(x_TF))


@op(features=FEATURES)
def activate_and_mul(gate_TF: Tensor, x_TF: Tensor, *, activation: Activation = SILU) -> Tensor:
    """Return activation(gate) * x, of two tensors.

    Resolved with the activation's features; a provider without any computes SiLU alone.

    Args:
        gate_TF: [T, F]
        x_TF: In the same dtype, perhaps columns of a wider tensor. [T, F]
        activation: What is done to the gate.

    Returns:
        [T, F]
    """
    return activation.join(gate_TF, x_TF)
