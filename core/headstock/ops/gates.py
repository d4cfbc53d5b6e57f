"""What gates the output of attention. Shapes: T tokens, H heads, D head size, C features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.base import op
from headstock.ops.norm import rms_norm


@op()
def gated_norm(x_THD: Tensor, gate_THD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """Normalise each head, then multiply by silu(gate). Resolved with the size ``size``: D.

    Args:
        x_THD: Outputs of heads. [T, H, D]
        gate_THD: A head's features lie together, tokens in any stride. [T, H, D]
        weight_D: Of the norm, in the dtype of ``x_THD``. [D]
        eps: As in :func:`headstock.ops.norm.rms_norm`.

    Returns:
        In the dtype of ``x_THD``, contiguous. [T, H, D]

    Source:
        Qwen3NextRMSNormGated of transformers.
    """
    y_THD = rms_norm.reference(x_THD, weight_D, eps=eps)
    return (y_THD.float() * functional.silu(gate_THD.float())).to(x_THD.dtype)


@op()
def gate_features(x_TC: Tensor, gate_TC: Tensor) -> Tensor:
    """Return x · sigmoid(gate).

    Args:
        x_TC: Output of attention. [T, C]
        gate_TC: Logits, perhaps columns of a wider tensor. [T, C]

    Returns:
        In the dtype of ``x_TC``. [T, C]
    """
    return (x_TC.float() * gate_TC.float().sigmoid()).to(x_TC.dtype)


@op()
def gate_heads(x_TC: Tensor, gate_TH: Tensor) -> Tensor:
    """Return x · sigmoid(gate), where a head's features have one gate. Resolved with ``size``: D.

    Args:
        x_TC: Output of attention. [T, H D]
        gate_TH: Logits, perhaps columns of a wider tensor. [T, H]

    Returns:
        In the dtype of ``x_TC``. [T, H D]

    Source:
        ``Step3p7Attention`` of Hugging Face transformers.
    """
    x_THD = x_TC.unflatten(1, (gate_TH.shape[1], -1)).float()
    return (x_THD * gate_TH.float().sigmoid().unsqueeze(2)).flatten(1).to(x_TC.dtype)


@op()
def gate_by_softplus(x_TC: Tensor, gate_TG: Tensor) -> Tensor:
    """Return x · softplus(gate), where equally many neighbouring features have one gate.

    Args:
        x_TC: Output of attention. [T, C]
        gate_TG: Perhaps columns of a wider tensor; G divides C. [T, G]

    Returns:
        In the dtype of ``x_TC``. [T, C]

    Source:
        ``LagunaAttention`` of Hugging Face transformers.
    """
    x_TGD = x_TC.unflatten(1, (gate_TG.shape[1], -1)).float()
    gate_TG1 = functional.softplus(gate_TG.float()).unsqueeze(2)
    return (x_TGD * gate_TG1).flatten(1).to(x_TC.dtype)


@op()
def gate_by_silu(x_TC: Tensor, gate_TC: Tensor) -> Tensor:
    """Return x · silu(gate).

    Args:
        x_TC: Output of a state space. [T, C]
        gate_TC: Perhaps columns of a wider tensor. [T, C]

    Returns:
        In the dtype of ``x_TC``. [T, C]
    """
    return (x_TC.float() * functional.silu(gate_TC.float())).to(x_TC.dtype)


@op()
def gated_group_norm(
    x_TC: Tensor,
    gate_TC: Tensor,
    weight_C: Tensor,
    *,
    num_groups: int,
    eps: float,
    is_gated_first: bool,
) -> Tensor:
    """Gate by silu, and divide each group of features by its root mean square.

    Resolved with the size ``group_size``: features of a group.

    Args:
        x_TC: Output of a state space. [T, C]
        gate_TC: Perhaps columns of a wider tensor. [T, C]
        weight_C: Of the norm, in the dtype of ``x_TC``. [C]
        num_groups: Groups of neighbouring features, equally many in each.
        eps: Added to the means of squares.
        is_gated_first: Whether what is gated is normalised, or what is normalised gated.

    Returns:
        In the dtype of ``x_TC``. [T, C]

    Source:
        BambaRMSNormGated and FalconH1RMSNormGated of transformers.
    """
    x32_TC, gate_TC = x_TC.float(), functional.silu(gate_TC.float())
    if is_gated_first:
        x32_TC = x32_TC * gate_TC
    grouped = x32_TC.unflatten(1, (num_groups, -1))
    grouped = grouped * torch.rsqrt(grouped.square().mean(2, keepdim=True) + eps)
    y_TC = grouped.flatten(1)
    if is_gated_first:
        return y_TC.to(x_TC.dtype) * weight_C
    return (y_TC * weight_C.float() * gate_TC).to(x_TC.dtype)
