"""What stands in for modules of transformers, and layers that hold their other tensors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.source import Source
from headstock.quantization.convert import convert
from headstock.quantization.plan import Layout, Role


class StandIn(nn.Module):
    """A module at the place of another, whose attributes it has where it lacks its own.

    Args:
        like: What it stands for; classes look at sizes and kinds of their children.
    """

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.__dict__["_like"] = like

    def __getattr__(self, name: str) -> Any:
        """Return what the other has by that name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_like"], name)


class Product(nn.Module):
    """A layer of ours over the last dimension of whatever comes."""

    def __init__(self, layer: Layer, like: nn.Module) -> None:
        super().__init__()
        self._layer, self.weight = layer, like.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the product. [..., O]"""
        return self._layer(x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])


class Lookup(nn.Module):
    """An embedding of ours, scaled where transformers' own is."""

    def __init__(self, layer: Layer, like: nn.Module) -> None:
        super().__init__()
        self._layer, self.weight = layer, like.weight
        scale = getattr(like, "embed_scale", None)
        self.embed_scale = scale if isinstance(scale, Tensor) else None
        self._factor = scale if isinstance(scale, float) else None

    def forward(self, ids: Tensor) -> Tensor:
        """Return the features. [..., D]"""
        x = self._layer(ids.flatten()).unflatten(0, ids.shape)
        if self.embed_scale is not None:
            return x * self.embed_scale.to(x.dtype)
        return x if self._factor is None else x * self._factor


class RoutedExperts(nn.Module):
    """Experts of ours, called as transformers' are."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Return each token's weighted sum over its experts. [..., D]"""
        flat_TD = x.reshape(-1, x.shape[-1])
        args = weights.reshape(len(flat_TD), -1).float(), experts.reshape(len(flat_TD), -1).int()
        return self._layer(flat_TD, *args).view(x.shape)


class UntouchedExperts(nn.Module):
    """Stands for experts where only shapes matter."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Return ``x``."""
        return x


class DecoderOutput:
    """What a decoder returns: hidden states, and nothing of what else callers may look for."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getattr__(self, name: str) -> None:
        """Return None: there is none."""
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, place: int) -> Tensor | None:
        """Return the hidden states for 0."""
        return None if place else self.last_hidden_state


class GivenStates(nn.Module):
    """Stands for the decoder where its hidden states are known, and logits are wanted."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **options: Any) -> Any:
        """Return ``inputs_embeds`` as what the decoder has made."""
        return DecoderOutput(inputs_embeds)


class Tensors(Layer):
    """The parameters and buffers that a module holds itself: norms, routers, positions.

    Args:
        ctx: What to build with; every rank has all of them.
        module: Of transformers.
        keeps_float32: Names of those that are kept in float32 whatever the model computes in.
    """

    def __init__(self, ctx: Context, module: nn.Module, keeps_float32: Sequence[str] = ()) -> None:
        self._ctx, self._module = ctx, module
        passing = module._non_persistent_buffers_set
        buffers = {n: b for n, b in module._buffers.items() if b is not None and n not in passing}
        parameters = {n: p for n, p in module._parameters.items() if p is not None}
        self._dtypes = {
            name: torch.float32 if name in keeps_float32 else tensor.dtype
            for name, tensor in (parameters | buffers).items()
        }
        self._shapes = {n: tuple(t.shape) for n, t in (parameters | buffers).items()}
        self._buffers = frozenset(buffers)

    def leaves(self) -> Sequence[Leaf]:
        """Return the tensors."""
        return [Leaf(name, shape, _role(name, shape)) for name, shape in self._shapes.items()]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Put empty tensors in the places of those that have no values."""
        where = self._ctx.device.torch_device
        self._layouts = layouts
        for name, shape in self._shapes.items():
            empty = torch.empty(shape, dtype=self._dtypes[name], device=where)
            if name in self._buffers:
                self._module._buffers[name] = empty
            else:
                self._module._parameters[name] = nn.Parameter(empty, requires_grad=False)

    def load(self, name: str, source: Source) -> None:
        """Copy a tensor, dequantised where the checkpoint has it so."""
        target = getattr(self._module, name)
        part = source.read(0, source.shape[0] if source.shape else 1)
        part = convert(part, self._layouts[name], Layout(), self._dtypes[name])
        target.data.copy_(part["weight"].reshape(target.shape))

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(getattr(self._module, name).nbytes for name in self._shapes)


def is_experts(module: Any) -> bool:
    """Whether a module holds the matrices of all of a layer's experts."""
    has_both = hasattr(module, "gate_up_proj") and hasattr(module, "down_proj")
    return has_both and isinstance(module.gate_up_proj, nn.Parameter)


def _role(name: str, shape: tuple[int, ...]) -> Role:
    if name.endswith("bias"):
        return Role.BIAS
    return Role.SCALE if len(shape) < 2 else Role.ROUTER


@contextmanager
def parameters_without_values() -> Iterator[None]:
    """Have modules that this thread builds keep parameters on the meta device, and real buffers."""
    thread = threading.get_ident()

    def emptied(module: nn.Module, name: str, parameter: Any) -> nn.Parameter | None:
        if threading.get_ident() != thread or parameter is None:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(emptied)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        hook.remove()
