"""Mixtures of experts: which experts a token goes to, and what they make of it.

Nothing here depends on how tokens spread over experts but values: shapes are those of the step.
Padding tokens may have the expert :data:`NO_EXPERT`; they cost nothing and change nothing.

Shapes: T tokens, E experts, k experts of a token, D hidden size, F features between an expert's
matrices on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from headstock.ops.activation_kinds import FEATURES, SILU, Activation
from headstock.ops.base import Spec, op
from headstock.ops.layouts import CanonicalLayout
from headstock.ops.linear import DENSE, CanonicalWeight
from headstock.ops.moe_reference import ReferenceExperts

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

BIAS = "bias"
"""Feature of providers that add a bias to each expert's products."""
UNGATED = "ungated"
"""Feature of providers whose experts may have no gate."""
NO_EXPERT = -1
"""Stands for the expert of a token that is computed by none."""

Matrix = Literal["gate", "up", "down"]
"""Which of an expert's matrices: gate and up are [F, D], down is [D, F]."""


@op()
def route_topk(logits_TE: Tensor, *, k: int, is_normalized: bool) -> tuple[Tensor, Tensor]:
    """Choose the k experts with the highest logits of each token, best first.

    Of equal logits the lower expert wins. Rows with NaN, which only padding has, go nowhere.
    Resolved with the sizes ``num_experts`` and ``experts_per_token``.

    Args:
        logits_TE: Of the router, in the model's dtype. [T, E]
        k: Experts of a token.
        is_normalized: Whether the weights of a token sum to 1; else they are its shares of the
            softmax over all experts.

    Returns:
        Weights, float32 [T, k], and experts, int32 [T, k]. 0 and :data:`NO_EXPERT` in rows with
        NaN.

    Source:
        Shazeer et al. 2017, "Outrageously Large Neural Networks"; Qwen3MoeTopKRouter of
        transformers.
    """
    logits_TE = logits_TE.float()
    ranked_TE, experts_TE = logits_TE.sort(dim=1, descending=True, stable=True)
    # The softmax of the chosen ones alone is the share of all, renormalised.
    among_TE = ranked_TE[:, :k] if is_normalized else ranked_TE
    weights_Tk = among_TE.softmax(dim=1)[:, :k]
    has_nan_T1 = logits_TE.isnan().any(dim=1, keepdim=True)
    weights_Tk = weights_Tk.masked_fill(has_nan_T1, 0)
    return weights_Tk, experts_TE[:, :k].to(torch.int32).masked_fill(has_nan_T1, NO_EXPERT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSpec:
    """The experts of one layer, as the layer needs them computed.

    Attributes:
        hidden_size: D.
        intermediate_size: F, on this rank.
        num_experts: E.
        experts_per_token: k.
        dtype: Of activations in and out.
        layout: Of all matrices: a canonical layout of :mod:`headstock.ops.linear`.
        group_size: Input features that share a scale; 0 for dense.
        has_bias: Whether each matrix has a bias. Asked of providers as feature ``bias``.
        activation: Of the gate; a kind beyond SiLU is asked as a feature of its name.
        is_gated: Whether each has a gate; without one the activation is that of up. Asked of
            providers as feature ``ungated``.
    """

    hidden_size: int
    intermediate_size: int
    num_experts: int
    experts_per_token: int
    dtype: torch.dtype
    layout: CanonicalLayout = DENSE
    group_size: int = 0
    has_bias: bool = False
    activation: Activation = SILU
    is_gated: bool = True

    @property
    def inner_size(self) -> int:
        """Features that an expert's first product makes: of gate and up, or of up alone."""
        return self.intermediate_size * (2 if self.is_gated else 1)

    def above(self, matrix: Matrix) -> int:
        """Return the features of the first product that stand before those of ``matrix``."""
        return self.intermediate_size if matrix == "up" and self.is_gated else 0

    @property
    def features(self) -> frozenset[str]:
        """What providers are asked for beyond plain experts."""
        asked = {BIAS: self.has_bias, UNGATED: not self.is_gated}
        return self.activation.features | {name for name, is_asked in asked.items() if is_asked}

    def as_spec(self) -> Spec:
        """Return what the op ``experts`` is resolved for."""
        return Spec(
            dtype=str(self.dtype).removeprefix("torch."),
            sizes={
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_experts": self.num_experts,
                "experts_per_token": self.experts_per_token,
                "group_size": self.group_size,
            },
            layout=str(self.layout),
            features=self.features,
        )


class ExpertsProvider(Protocol):
    """The packed experts of one layer. Addresses of the packed storage never change."""

    def load(self, part: CanonicalWeight, expert: int, matrix: Matrix, row_begin: int) -> None:
        """Pack canonical rows of one of an expert's matrices, from output feature ``row_begin`` on.

        Called as the checkpoint streams by, for disjoint ranges in any order, and again with the
        same ranges when weights are updated. Keeps no reference to ``part``.
        """
        ...

    def load_bias(self, bias: Tensor, expert: int, matrix: Matrix, begin: int) -> None:
        """Set the bias of one of an expert's matrices, from output feature ``begin`` on.

        Called where the spec has biases. Those that are not set are 0. [rows]
        """
        ...

    def __call__(self, x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor) -> Tensor:
        """Return each token's sum over its experts of weight · down(activation(gate x) * up x).

        Of experts without a gate it is weight · down(activation(up x)).

        Sums over experts are in float32, in an order that other tokens do not change.

        Args:
            x_TD: [T, D]
            weights_Tk: float32. [T, k]
            experts_Tk: Different ones in a row, or :data:`NO_EXPERT`, which adds nothing. int32.
                [T, k]

        Returns:
            In x's dtype. What rows without any expert hold does not matter. [T, D]
        """
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed storage."""
        ...


@op(is_built=True, features=FEATURES | {BIAS, UNGATED})
def experts(spec: ExpertsSpec, device: OpDevice) -> ExpertsProvider:
    """Build the reference provider: every canonical layout, stored as it comes.

    Layers resolve with :meth:`ExpertsSpec.as_spec`.
    """
    return ReferenceExperts(spec, device)
