"""The tiny model cut into two ranks, and the process of the second one."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from headstock.errors import ConfigError
from headstock.ops.attention_reference import ReferenceAttention
from headstock.parallel import RankAddress, join_ranks, serve_rank
from headstock.parallel.host_group import HostGroup
from headstock.plugins.host import HostDevice
from tests.runner.conftest import HEAD_DIM, HEADS, KV_HEADS, TinyModel, make_runner


class SlicedModel(TinyModel):
    """One rank's slice. Ranks above 0 see noise in their logits, which must not matter."""

    def __init__(self, group) -> None:
        super().__init__()
        self.ranks = group
        heads, kv_heads = HEADS // group.size, KV_HEADS // group.size
        self.provider = ReferenceAttention(
            replace(self.provider.spec, num_heads=heads, num_kv_heads=kv_heads), HostDevice()
        )
        for layer in self.layers:
            layer.provider = self.provider
            parts = layer.qkv.split([n * HEAD_DIM for n in (HEADS, KV_HEADS, KV_HEADS)], dim=1)
            layer.qkv = torch.cat([p.chunk(group.size, 1)[group.rank] for p in parts], dim=1)
            layer.out = layer.out.chunk(group.size, 0)[group.rank].clone()
            layer.heads = (heads, kv_heads, kv_heads)
            layer.ranks = group

    def logits(self, hidden_SD):
        logits_SV = super().logits(hidden_SD)
        return logits_SV + 50 * torch.rand_like(logits_SV) if self.ranks.rank else logits_SV


def die_at(runner, group, where, step) -> None:
    """Have this process die in a step: as it is launched, in its first sum, or as it is awaited."""
    launch, add_up, result = runner.launch, group.all_reduce, runner.result
    num_launched = num_awaited = 0

    def die() -> None:
        time.sleep(0.2)
        os._exit(9)

    def launching(plan):
        nonlocal num_launched
        num_launched += 1
        if where == "launch" and num_launched == step:
            die()
        return launch(plan)

    def adding_up(x):
        if where == "sum" and num_launched == step:
            die()
        return add_up(x)

    def awaiting(handle):
        nonlocal num_awaited
        num_awaited += 1
        if where == "result" and num_awaited == step:
            die()
        return result(handle)

    runner.launch, group.all_reduce, runner.result = launching, adding_up, awaiting


def main() -> None:
    address = msgspec.json.decode(sys.argv[2], type=RankAddress)
    mode = sys.argv[1]
    if mode == "silent":
        sys.exit(3)
    with join_ranks(address):
        if mode == "broken":
            raise ConfigError("9 heads do not divide by 2.", remedy="Use --tp-size 3.")
        group = HostGroup(address.group(), timeout_s=30)
        model = SlicedModel(group)
        runner = make_runner(model, group=group)
        if mode.startswith("dies"):
            _, where, at = mode.split("-") if "-" in mode else (mode, "launch", "3")
            die_at(runner, group, where, int(at))
        if mode == "hangs":
            runner.launch = lambda plan: time.sleep(60)
        serve_rank(runner, address)


if __name__ == "__main__":
    main()
