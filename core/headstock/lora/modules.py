"""Which modules of a model take adapters, and what an adapter is to them.

Shapes: K inner features, I input and O output features of a layer on this rank, r the room's rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.errors import AdapterError, did_you_mean
from headstock.graph.build import Model
from headstock.graph.linear import Linear
from headstock.graph.lora import AdapterSpace, LowRank
from headstock.graph.module import find_layers
from headstock.graph.source import CheckpointSource
from headstock.lora.peft import AdaptedModule, AdapterFiles
from headstock.quantization.plan import Role

Packed = tuple[Tensor, Tensor]
"""What a place of a layer holds of an adapter, on the host. [K, I], [O, r]"""


class HostMemory(Protocol):
    """Where packed adapters lie."""

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return zeroed host memory that copies to the device without waiting."""
        ...


@dataclass(frozen=True, slots=True)
class _Target:
    """A module that takes adapters: a part of a layer."""

    layer: LowRank
    part: int
    num_in: int
    num_out: int


class AdaptedModules:
    """The modules of one model on one rank that take adapters.

    Args:
        model: Its weights are allocated.
        space: The room that it was built with.
        dtype: Of the matrices on the device.
    """

    def __init__(self, model: Model, space: AdapterSpace, dtype: torch.dtype) -> None:
        self._space, self._dtype, self._named = space, dtype, model.named
        self._targets: dict[str, _Target] = {}
        self._without_room: set[str] = set()
        self._others: set[str] = set()
        self.layers: list[LowRank] = []
        for prefix, layer in find_layers(model):
            low_rank = layer.low_rank if isinstance(layer, Linear) else None
            if low_rank is not None:
                self.layers.append(low_rank)
            for leaf in layer.leaves():
                name, _, kind = leaf.name.rpartition(".")
                if kind != "weight":
                    continue
                if low_rank is None:
                    is_matrix = isinstance(layer, Linear) and leaf.role is Role.MATRIX
                    (self._without_room if is_matrix else self._others).add(prefix + name)
                    continue
                part = low_rank.parts.index(name)
                target = _Target(low_rank, part, leaf.shape[1], leaf.shape[0])
                self._targets[prefix + name] = target

    def pack(self, files: AdapterFiles, memory: HostMemory) -> dict[int, Packed]:
        """Return what an adapter is to each layer that it touches, by the layer's index.

        Raises:
            AdapterError: It does not fit the model, or the room.
        """
        found = {name: self._fitting(files, name) for name in files.modules}
        touched = {id(target.layer) for target in found.values()}
        sizes = {i: layer.shapes for i, layer in enumerate(self.layers) if id(layer) in touched}
        packed = _carve(sizes, memory, self._dtype)
        index = {id(layer): number for number, layer in enumerate(self.layers)}
        for name, target in found.items():
            down_RI, up_OR = _matrices(files, name, files.modules[name], self._dtype)
            target.layer.pack(target.part, down_RI, up_OR, packed[index[id(target.layer)]])
        return packed

    def _fitting(self, files: AdapterFiles, name: str) -> _Target:
        """Return what ``name`` is in the model.

        Raises:
            AdapterError: Nothing that takes adapters, or its matrices have other sizes.
        """
        own = self._own_name(files, name)
        target = self._targets.get(own)
        if target is None or not self._space.takes(own):
            raise self._refusal(files, own)
        module = files.modules[name]
        rank, num_in = module.down.shape
        if rank > self._space.max_rank:
            raise AdapterError(
                f"The adapter in {files.path} has rank {rank} at {name}; there is room for"
                f" {self._space.max_rank}.",
                remedy=f"Start the server with --max-lora-rank {rank}.",
            )
        if (num_in, module.up.shape[0]) != (target.num_in, target.num_out):
            raise AdapterError(
                f"The adapter in {files.path} has {num_in} inputs and {module.up.shape[0]} outputs"
                f" at {name}; the model has {target.num_in} and {target.num_out}.",
                remedy="Use an adapter of this model.",
            )
        return target

    def _own_name(self, files: AdapterFiles, name: str) -> str:
        """Return what the model calls a module: adapters have the names of their day.

        Itself where the model has it, or has no one name for its weight.
        """
        if name in self._targets:
            return name
        up = files.modules[name].up
        weight = replace(up, name=f"{name}.weight")
        found: Mapping[str, StoredTensor] = self._named({weight.name: weight})
        renamed = [new for new, tensor in found.items() if tensor.read is up.read]
        is_same = len(renamed) == len(found) == 1 and renamed[0].endswith(".weight")
        return renamed[0].removesuffix(".weight") if is_same else name

    def _refusal(self, files: AdapterFiles, name: str) -> AdapterError:
        last = name.rpartition(".")[2]
        if name in self._without_room and self._space.takes(name):
            what = f"matrices at {name}, which is of an encoder and takes no adapters"
            remedy = "Save one without them: exclude_modules of PEFT's LoraConfig names modules."
        elif name in self._targets or name in self._without_room:
            what = f"matrices at {name}, for which there is no room"
            remedy = f"Start the server with --lora-target-modules that name {last}, or all."
        elif name in self._others or ".experts" in name:
            what = f"matrices at {name}, which is not a linear layer that takes adapters"
            remedy = "Use an adapter of attention's and feed-forward layers' matrices."
        else:
            what = f"matrices at {name}, which is not a module of the model"
            remedy = f"Use an adapter of this model.{did_you_mean(name, self._targets)}"
        return AdapterError(f"The adapter in {files.path} has {what}.", remedy=remedy)


def _carve(
    shapes: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]],
    memory: HostMemory,
    dtype: torch.dtype,
) -> dict[int, Packed]:
    """Return zeros of ``shapes``, side by side in one piece of memory."""
    sizes = [math.prod(shape) for pair in shapes.values() for shape in pair]
    pieces = iter(memory.host_buffer((sum(sizes),), dtype).split(sizes))
    return {
        number: (next(pieces).view(down), next(pieces).view(up))
        for number, (down, up) in shapes.items()
    }


def _matrices(
    files: AdapterFiles, name: str, module: AdaptedModule, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return both matrices in ``dtype``, the scale in the second one.

    Raises:
        AdapterError: They hold what is no number.
    """
    down_RI, up_OR = (
        CheckpointSource(tensor).read(0, tensor.shape[0])["weight"].float()
        for tensor in (module.down, module.up)
    )
    down_RI, up_OR = down_RI.to(dtype), (up_OR * module.scale).to(dtype)
    if not (down_RI.isfinite().all() and up_OR.isfinite().all()):
        raise AdapterError(
            f"The adapter in {files.path} has numbers at {name} that are not finite, or too large"
            f" for {str(dtype).removeprefix('torch.')}.",
            remedy="Save it again, or serve it with --dtype bfloat16 or float32.",
        )
    return down_RI, up_OR
