"""Mixtures of experts: routing, and the products of all experts in two calls.

Shapes: T tokens, E experts, k experts of a token, N = T · k choices, D hidden size, F features
between an expert's matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.device import OpDevice
from headstock.ops.linear import CanonicalWeight
from headstock.ops.moe import NO_EXPERT, ExpertsSpec, Matrix
from headstock.ops.routing import Routing
from headstock.ops.routing import route_experts as reference_routing

COUNTS = 1
"""Of the kernels: lists of groups say how many rows each has, not where it ends."""
BY_ROWS = 0
"""Of the grouped product: the rows of x are in groups, one for each expert."""
ONE_OUTPUT = 2
"""Of the grouped product: all groups come out in one tensor."""
BEST_ALONE, BEST_TWO = 0, 1
"""Of routing: what the score of a group of experts is."""
AMONG_CHOSEN = 1
"""Of routing: the softmax is taken of the chosen logits alone."""
SIGMOID = 1
"""Of routing: what makes scores of logits."""


def route_topk(logits_TE: Tensor, *, k: int, is_normalized: bool) -> tuple[Tensor, Tensor]:
    """Choose the k experts with the highest logits; weights float32, experts int32. [T, k] each"""
    wide_TE = logits_TE.float().contiguous()
    # Of the chosen ones alone: after a softmax over all, those that are far behind would be equal.
    weights_Tk, experts_Tk, _ = torch.ops.npu.npu_moe_gating_top_k_softmax_v2(
        wide_TE, k=k, renorm=AMONG_CHOSEN
    )
    if not is_normalized:
        sums_T1 = wide_TE.logsumexp(dim=1, keepdim=True)
        weights_Tk = (wide_TE.gather(1, experts_Tk.long()) - sums_T1).exp()
    return _without_padding(wide_TE, weights_Tk, experts_Tk)


def route_experts(
    logits_TE: Tensor, bias_E: Tensor | None, *, routing: Routing
) -> tuple[Tensor, Tensor]:
    """Choose by biased scores within the best groups. [T, k] each

    The kernel does what DeepSeek V3 does: sigmoids, weights that sum to the factor. The reference
    does the rest.
    """
    group_size = logits_TE.shape[1] // routing.num_groups
    is_theirs = routing.scores == "sigmoid" and routing.is_normalized and group_size > 2
    if not is_theirs or routing.group_best > 2:
        return reference_routing.reference(logits_TE, bias_E, routing=routing)
    wide_TE = logits_TE.float().contiguous()
    weights_Tk, experts_Tk, _ = torch.ops.npu.npu_moe_gating_top_k(
        wide_TE,
        routing.k,
        bias=bias_E,
        k_group=routing.groups_kept,
        group_count=routing.num_groups,
        group_select_mode=BEST_ALONE if routing.group_best == 1 else BEST_TWO,
        norm_type=SIGMOID,
        routed_scaling_factor=routing.factor,
    )
    return _without_padding(wide_TE, weights_Tk, experts_Tk)


def _without_padding(
    logits_TE: Tensor, weights_Tk: Tensor, experts_Tk: Tensor
) -> tuple[Tensor, Tensor]:
    """Send rows with NaN nowhere."""
    has_nan_T1 = logits_TE.isnan().any(dim=1, keepdim=True)
    experts_Tk = experts_Tk.masked_fill(has_nan_T1, NO_EXPERT)
    return weights_Tk.masked_fill(has_nan_T1, 0), experts_Tk


class GroupedExperts:
    """Dense experts: tokens in the order of their experts, two grouped products, and back."""

    def __init__(self, spec: ExpertsSpec, device: OpDevice) -> None:
        self.spec = spec
        size, between, where = spec.hidden_size, spec.intermediate_size, device.torch_device
        first, second = (spec.num_experts, size, 2 * between), (spec.num_experts, between, size)
        self._gate_up_EDG = torch.empty(first, dtype=spec.dtype, device=where)
        self._down_EFD = torch.empty(second, dtype=spec.dtype, device=where)

    def load(self, part: CanonicalWeight, expert: int, matrix: Matrix, row_begin: int) -> None:
        """Copy the canonical rows ``part``, turned."""
        rows = part["weight"]
        whole = self._down_EFD if matrix == "down" else self._gate_up_EDG
        begin = row_begin if matrix == "down" else self.spec.above(matrix) + row_begin
        whole[expert, :, begin : begin + len(rows)].copy_(rows.T)

    def load_bias(self, bias: Tensor, expert: int, matrix: Matrix, begin: int) -> None:
        """Fail: biases were never declared."""
        raise AssertionError("feature `bias` was not declared, so it must not be asked for")

    def __call__(self, x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor) -> Tensor:
        """Return each token's weighted sum over its experts. [T, D]"""
        number = self.spec.num_experts
        # What is computed by none goes to an expert past the last, whose tokens are left out.
        chosen_Tk = torch.where(experts_Tk < 0, number, experts_Tk)
        x_ND, places_N, counts_E, _ = torch.ops.npu.npu_moe_init_routing_v2(
            x_TD.contiguous(),
            chosen_Tk,
            expert_num=number + 1,
            expert_tokens_num_type=COUNTS,
            expert_tokens_num_flag=True,
            active_expert_range=[0, number],
        )
        gate_up_NG = _grouped_product(x_ND, self._gate_up_EDG, counts_E)
        between_NF = torch.ops.npu.npu_swiglu(gate_up_NG)
        y_ND = _grouped_product(between_NF, self._down_EFD, counts_E)
        is_left_out_Tk1 = (places_N < 0).view_as(experts_Tk).unsqueeze(-1)
        y_TkD = y_ND.index_select(0, places_N.clamp(min=0)).unflatten(0, experts_Tk.shape)
        # Left out, not multiplied by 0: what was not computed may be anything.
        weighed_TkD = (y_TkD.float() * weights_Tk.unsqueeze(-1)).masked_fill(is_left_out_Tk1, 0)
        return weighed_TkD.sum(dim=1).to(x_TD.dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes of the storage."""
        return self._gate_up_EDG.nbytes + self._down_EFD.nbytes


def _grouped_product(x_NI: Tensor, weight_EIO: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply each expert's rows by its matrix; rows past all counts come out as anything."""
    (out_NO,) = torch.ops.npu.npu_grouped_matmul(
        [x_NI],
        [weight_EIO],
        group_list=counts_E,
        split_item=ONE_OUTPUT,
        group_type=BY_ROWS,
        group_list_type=COUNTS,
    )
    return out_NO


def build_experts(spec: ExpertsSpec, device: OpDevice) -> GroupedExperts:
    """Build the provider."""
    return GroupedExperts(spec, device)
