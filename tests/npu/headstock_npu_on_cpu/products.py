"""Kernels of products and experts, as :mod:`headstock_npu_on_cpu.kernels` has the others."""

from __future__ import annotations

import torch
from torch import Tensor

from headstock_npu_on_cpu.refusals import FLOATS, NARROW, need


def npu_convert_weight_to_int4pack(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    need(weight.dtype == torch.int32 and weight.is_contiguous(), "what is packed")
    need(weight.shape[1] % 8 == 0 and bool(((weight >= -8) & (weight <= 7)).all()), "int4")
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    nibbles = (weight & 15).unflatten(1, (-1, 8)) << shifts
    return nibbles.sum(-1, dtype=torch.int64).to(torch.int32)


def npu_weight_quant_batchmatmul(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    bias: Tensor | None = None,
    antiquant_group_size: int = 0,
    inner_precise: int = 0,
    weight_dtype: int | None = None,
) -> Tensor:
    need(x.dtype in NARROW and antiquant_scale.dtype == x.dtype, "dtypes of a product")
    need(weight.t().is_contiguous() and antiquant_scale.t().is_contiguous(), "a strided weight")
    wanted = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    need(bias is None or bias.dtype == wanted, "dtype of a bias")
    rows = weight.t()
    if weight.dtype == torch.int32:
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        nibbles = ((rows.unsqueeze(-1) >> shifts) & 15).flatten(1)
        rows = nibbles - 16 * (nibbles > 7)
    size = x.shape[1]
    need(rows.shape[1] == size, "inputs of a product")
    groups = antiquant_scale.shape[0]
    is_whole = antiquant_group_size == 0 and groups == 1
    is_split = antiquant_group_size % 32 == 0 and 32 <= antiquant_group_size < size
    need(is_whole or (is_split and groups * antiquant_group_size == size), "groups of a weight")
    wide = rows.float().unflatten(1, (groups, -1))
    if antiquant_offset is not None:
        need(antiquant_offset.dtype == x.dtype, "dtype of offsets")
        wide = wide + antiquant_offset.t().float().unsqueeze(-1)
    out = x.float() @ (wide * antiquant_scale.t().float().unsqueeze(-1)).flatten(1).t()
    return (out if bias is None else out + bias.float()).to(x.dtype)


def npu_grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    *,
    group_list: Tensor | None = None,
    split_item: int | None = 0,
    group_type: int | None = None,
    group_list_type: int | None = 0,
    **others: object,
) -> list[Tensor]:
    (rows,), (matrices,) = x, weight
    need(rows.dtype == matrices.dtype and rows.dtype in FLOATS, "dtypes of a product")
    need(rows.is_contiguous() and matrices.is_contiguous(), "strided tensors")
    assert group_list is not None, "the backend groups by a tensor"
    need(group_list.dtype == torch.int64 and len(group_list) == len(matrices), "groups")
    need((split_item, group_type, group_list_type) == (2, 0, 1), "modes of a grouped product")
    out = rows.new_full((len(rows), matrices.shape[2]), torch.nan)
    begin = 0
    for expert, count in enumerate(group_list.tolist()):
        some = slice(begin, begin + count)
        out[some] = (rows[some].float() @ matrices[expert].float()).to(rows.dtype)
        begin += count
    return [out]


def npu_moe_init_routing_v2(
    x: Tensor,
    expert_idx: Tensor,
    *,
    expert_num: int = -1,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    active_expert_range: list[int],
    quant_mode: int = -1,
    row_idx_type: int = 0,
    **others: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need(x.dtype in FLOATS and expert_idx.dtype == torch.int32, "dtypes of routing")
    need(expert_tokens_num_type == 1 and expert_tokens_num_flag, "counts of tokens")
    need(quant_mode == -1 and row_idx_type == 0, "modes of routing")
    first, last = active_expert_range
    need(0 <= first < last <= expert_num, "active experts")
    flat = expert_idx.flatten()
    need(bool(((flat >= 0) & (flat < expert_num)).all()), "experts that there are not")
    order = flat.argsort(stable=True)
    order = order[(flat[order] >= first) & (flat[order] < last)]
    expanded = x.new_full((flat.numel(), x.shape[1]), torch.nan)
    expanded[: len(order)] = x[order // expert_idx.shape[1]]
    places = torch.full((flat.numel(),), -1, dtype=torch.int32)
    places[order] = torch.arange(len(order), dtype=torch.int32)
    counts = torch.bincount(flat, minlength=expert_num)[first:last]
    return expanded, places, counts, x.new_empty(flat.numel(), dtype=torch.float32)


def npu_moe_gating_top_k_softmax_v2(
    x: Tensor,
    *,
    k: int = 1,
    finished: Tensor | None = None,
    renorm: int | None = 0,
    output_softmax: bool | None = False,
) -> tuple[Tensor, Tensor, Tensor]:
    need(x.dtype in FLOATS and 0 < k <= min(1024, x.shape[-1]), "routing to more than there are")
    need(renorm == 1 and not output_softmax, "modes of routing")
    ranked, experts = x.float().sort(dim=-1, descending=True, stable=True)
    weights = ranked[:, :k].softmax(-1).to(x.dtype)
    return weights, experts[:, :k].to(torch.int32), torch.zeros(0)


def npu_moe_gating_top_k(
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
    **others: object,
) -> tuple[Tensor, Tensor, Tensor]:
    size = x.shape[1] // group_count
    need(bias is None or bias.dtype == x.dtype, "dtype of a bias")
    need(x.shape[1] <= 2048 and size > 2 and 1 <= k <= size * k_group, "groups of experts")
    need(norm_type == 1 and renorm == 0, "modes of routing")
    scores = x.float().sigmoid()
    biased = scores if bias is None else scores + bias.float()
    groups = biased.unflatten(1, (group_count, size))
    best = groups.topk(2 if group_select_mode else 1, -1).values.sum(-1)
    kept = best.sort(dim=-1, descending=True, stable=True).indices[:, :k_group]
    is_kept = torch.zeros_like(best, dtype=torch.bool).scatter(1, kept, True)
    biased = groups.masked_fill(~is_kept.unsqueeze(-1), -torch.inf).flatten(1)
    experts = biased.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights = scores.gather(1, experts)
    weights = weights / (weights.sum(-1, keepdim=True) + eps) * routed_scaling_factor
    return weights.to(x.dtype), experts.to(torch.int32), scores
