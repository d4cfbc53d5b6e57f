"""Collectives that are wrong."""

from __future__ import annotations

import torch

from headstock_mutants.mutation import Changed, mutates

AGREE = "8_communication::ranks_agree_on[{}]"


@mutates("group", AGREE.format("sums"))
def sums_are_means(group):
    return Changed(group, all_reduce=lambda x: group.all_reduce(x) / group.size)


@mutates("group", AGREE.format("gathers"))
def gathers_are_reversed(group):
    def all_gather(x_TC):
        return torch.cat(group.all_gather(x_TC).chunk(group.size, -1)[::-1], -1)

    return Changed(group, all_gather=all_gather)


@mutates("group", AGREE.format("broadcasts"))
def the_last_rank_is_broadcast(group):
    def broadcast(x):
        return group.all_gather(x).chunk(group.size, -1)[-1].contiguous()

    return Changed(group, broadcast=broadcast)


@mutates("group", AGREE.format("sums"))
def every_rank_adds_in_its_own_order(group):
    def all_reduce(x):
        noise = 1 + 1e-7 * group.rank if x.dtype == torch.float32 else 1
        return group.all_reduce(x) * noise

    return Changed(group, all_reduce=all_reduce)


@mutates("group", AGREE.format("sums"))
def sums_are_narrow(group):
    def all_reduce(x):
        summed = x.clone()
        summed[..., :512] = group.all_reduce(x[..., :512].contiguous())
        return summed

    return Changed(group, all_reduce=all_reduce)


@mutates("group", AGREE.format("identity"))
def every_rank_is_the_first(group):
    return Changed(group, rank=0)
