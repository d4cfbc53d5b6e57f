"""A rank's process of the kit: ``python -m headstock.testing.ranks BACKEND RANK SIZE FOLDER``.

Opens the rank's device, joins the group by the backend's own means, and calls every collective
with numbers that all ranks can make. What is wrong is printed, one JSON object a check.
"""

# ruff: noqa: T201 - what it prints is its result
from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from headstock.assemble.backend import rank_device
from headstock.config import DeviceSettings
from headstock.ops.communication import Group
from headstock.parallel.host_group import HostGroup
from headstock.plugins.chosen import backend_options
from headstock.plugins.device import Device, GraphKey
from headstock.plugins.hooks import GroupInfo
from headstock.plugins.loader import discover
from headstock.plugins.select import select
from headstock.testing.compare import disagreement

SHAPES = ((1, 1), (1, 7), (3, 64), (1, 4096), (33, 1000), (256, 4096))
"""Of what is added up and broadcast: a decode step's, a batch's, odd ones."""
NUM_ROUNDS = 100
"""Calls queued one after another without waiting for the device."""
ROUNDING = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Accepted difference of a sum, as a share of the summands' magnitudes: two roundings a rank."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This rank, and the numbers of every rank."""

    group: Group
    device: Device

    def numbers(self, rank: int, seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return what ``rank`` brings to call ``seed``, on the host."""
        generator = torch.Generator().manual_seed(1000 * seed + rank)
        if not dtype.is_floating_point:
            return torch.randint(-(2**31), 2**31 - 1, shape, generator=generator).to(dtype)
        return torch.randn(shape, generator=generator).to(dtype)

    def own(self, seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return what this rank brings, on its device."""
        numbers = self.numbers(self.group.rank, seed, shape, dtype)
        return numbers.to(self.device.torch_device)

    def everyone(self, seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        """Return what all ranks bring, on the host."""
        return [self.numbers(rank, seed, shape, dtype) for rank in range(self.group.size)]


def check_identity(ranks: Ranks, size: int, rank: int) -> Iterator[str]:
    """The group says who it is."""
    found = (ranks.group.rank, ranks.group.size)
    if found != (rank, size):
        yield f"rank and size are {found}, not {(rank, size)}"


def check_sums(ranks: Ranks) -> Iterator[str]:
    """``all_reduce`` adds: each number within its rounding, the same bits on every rank."""
    digest = hashlib.sha256()
    for dtype, rounding in ROUNDING.items():
        for seed, shape in enumerate(SHAPES):
            summed = ranks.group.all_reduce(ranks.own(seed, shape, dtype)).cpu()
            digest.update(summed.float().numpy().tobytes())
            yield from _wrong_sum(ranks, seed, summed, rounding, f"{dtype} {list(shape)}")
    everyones = ranks.group.all_gather(_words(digest, ranks.device)).cpu()
    own = _words(digest, ranks.device).cpu()
    if not torch.equal(everyones, own.repeat(1, ranks.group.size)):
        yield "the ranks' sums differ in their bits"


def check_rounds(ranks: Ranks) -> Iterator[str]:
    """Calls of changing sizes, queued without waiting, do not get into each other's way."""
    shapes = [SHAPES[(7 * seed) % len(SHAPES)] for seed in range(NUM_ROUNDS)]
    dtype = torch.bfloat16
    inputs = [ranks.own(seed, shape, dtype) for seed, shape in enumerate(shapes)]
    ranks.device.synchronize()
    summed = [ranks.group.all_reduce(x) for x in inputs]
    for seed, (shape, got) in enumerate(zip(shapes, summed, strict=True)):
        yield from _wrong_sum(ranks, seed, got.cpu(), ROUNDING[dtype], f"call {seed}, {shape}")


def check_gathers(ranks: Ranks) -> Iterator[str]:
    """``all_gather`` puts the ranks side by side, rank 0 first, exactly."""
    for dtype in (torch.bfloat16, torch.float32, torch.int64):
        for seed, shape in enumerate(SHAPES):
            got = ranks.group.all_gather(ranks.own(seed, shape, dtype))
            wanted = torch.cat(ranks.everyone(seed, shape, dtype), dim=-1)
            yield from _named(f"{dtype} {list(shape)}", disagreement([got], [wanted], 0, 0))


def check_broadcasts(ranks: Ranks) -> Iterator[str]:
    """``broadcast`` gives every rank what rank 0 has, exactly."""
    for dtype in (torch.int32, torch.int64, torch.float32):
        for seed, shape in enumerate(SHAPES):
            own = ranks.own(seed, shape, dtype)
            got = ranks.group.broadcast(own)
            wanted = ranks.numbers(0, seed, shape, dtype)
            yield from _named(f"{dtype} {list(shape)}", disagreement([got], [wanted], 0, 0))


def check_replays(ranks: Ranks) -> Iterator[str]:
    """A captured step with collectives does at each replay what it says."""
    if not ranks.group.is_capturable:
        return
    shape, dtype = (4, 256), torch.bfloat16
    x = ranks.own(0, shape, dtype)
    sums, sides, sent = (torch.zeros_like(x) for _ in range(3))
    sides = sides.repeat(1, ranks.group.size)

    def step() -> None:
        sums.copy_(ranks.group.all_reduce(x.clone()))
        sides.copy_(ranks.group.all_gather(x))
        sent.copy_(ranks.group.broadcast(x.clone()))

    graph = ranks.device.capture(GraphKey("uniform", 4, 4, 1), step)
    for seed in range(1, 20):
        x.copy_(ranks.own(seed, shape, dtype))
        graph.replay()
        ranks.device.synchronize()
        everyone = ranks.everyone(seed, shape, dtype)
        yield from _wrong_sum(ranks, seed, sums.cpu(), ROUNDING[dtype], f"replay {seed}")
        wanted = [torch.cat(everyone, dim=-1), everyone[0]]
        yield from _named(f"replay {seed}", disagreement([sides, sent], wanted, 0, 0))


def _wrong_sum(
    ranks: Ranks, seed: int, summed: Tensor, rounding: float, what: str
) -> Iterator[str]:
    everyone = torch.stack(ranks.everyone(seed, tuple(summed.shape), summed.dtype)).double()
    allowed = rounding * everyone.abs().sum(dim=0)
    off = (summed.double() - everyone.sum(dim=0)).abs() > allowed
    if bool(off.any()):
        yield f"{what}: {int(off.sum())} of {off.numel()} sums are off"


def _words(digest: hashlib._Hash, device: Device) -> Tensor:
    """Return a digest as numbers, [1, 32]."""
    return torch.tensor([list(digest.digest())], dtype=torch.int64, device=device.torch_device)


def _named(what: str, text: str | None) -> Iterator[str]:
    if text is not None:
        yield f"{what}: {text}"


CHECKS: dict[str, Callable[[Ranks], Iterator[str]]] = {
    "sums": check_sums,
    "rounds": check_rounds,
    "gathers": check_gathers,
    "broadcasts": check_broadcasts,
    "replays": check_replays,
}


def main(argv: list[str]) -> None:
    """Join, check, leave.

    Args:
        argv: Backend, rank, number of ranks, a folder that they share, options of the backend.
    """
    backend, rank, size, folder, *options = argv[0], int(argv[1]), int(argv[2]), argv[3], *argv[4:]
    chosen = select(discover(backend=backend), backend)
    index, threads = rank_device(chosen, DeviceSettings(), rank, size)
    device = chosen.open_device(index, threads, backend_options(options))
    info = GroupInfo(name="kit", rank=rank, size=size, address=f"file://{folder}/kit")
    group = chosen.join_group(info, device) or HostGroup(info)
    ranks = Ranks(group, device)
    print(json.dumps({"check": "identity", "wrong": [*check_identity(ranks, size, rank)]}))
    for name, check in CHECKS.items():
        print(json.dumps({"check": name, "wrong": [*check(ranks)]}), flush=True)
    group.close()
    device.close()
    print(json.dumps({"check": "close", "wrong": []}))


if __name__ == "__main__":
    main(sys.argv[1:])
