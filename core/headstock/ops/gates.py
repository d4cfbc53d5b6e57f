"""What gates the output of attention. Shapes: T tokens, H heads, D head size, C features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from headstock.ops.base import op
from headstock.ops.norm import rms_norm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headstock.ops.cases.base import Bench, Case


def _norm_cases(bench: Bench) -> Iterator[Case]:
    from headstock.ops.cases.gates import norm_cases

    return norm_cases(bench)


def _gate_cases(bench: Bench) -> Iterator[Case]:
    from headstock.ops.cases.gates import gate_cases

    return gate_cases(bench)


@op(cases=_norm_cases)
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


@op(cases=_gate_cases)
def gate_features(x_TC: Tensor, gate_TC: Tensor) -> Tensor:
    """Return x · sigmoid(gate).

    Args:
        x_TC: Output of attention. [T, C]
        gate_TC: Logits, perhaps columns of a wider tensor. [T, C]

    Returns:
        In the dtype of ``x_TC``. [T, C]
    """
    return (x_TC.float() * gate_TC.float().sigmoid()).to(x_TC.dtype)
