"""Runs a module of transformers on small parts in place of its own, to see what it computes.

What a class is called says little; what it does to random numbers says all that matters here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

T = TypeVar("T")
SIZE = 8
"""Features of hidden states in probes."""
TOLERANCE = 1e-5
"""Of what is largest: float32, summed in another order."""


class Draw:
    """Random numbers that are the same in every process, and take nothing from others' generator.

    Args:
        seed: Of the numbers.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        """Return float32 numbers around 0.5, most of them within 1 of it."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float32) * 0.5 + 0.5


class DrawnLinear(nn.Module):
    """A product by a drawn matrix, perhaps with a bias.

    Args:
        draw: Where numbers come from.
        in_features: Of what comes.
        out_features: Of what it makes.
        has_bias: Whether a vector is added.
    """

    def __init__(
        self, draw: Draw, in_features: int, out_features: int, *, has_bias: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(out_features, in_features) - 0.5, requires_grad=False)
        given = draw(out_features) if has_bias else None
        self.bias = None if given is None else nn.Parameter(given, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product. [..., O]"""
        return functional.linear(x, self.weight, self.bias)


class Stub(nn.Module):
    """Stands for a child: any function of its first argument, and the child's own attributes.

    Args:
        like: The child.
        run: What is computed.
    """

    def __init__(self, like: nn.Module, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.__dict__["_like"], self.__dict__["_run"] = like, run

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        """Return the function's value."""
        return self.__dict__["_run"](hidden_states)

    def __getattr__(self, name: str) -> Any:
        """Return what the child has by that name."""
        return getattr(self.__dict__["_like"], name)


def shell(module: nn.Module, parts: Mapping[str, nn.Module | Tensor], **attributes: Any) -> Any:
    """Return a copy of ``module`` with other children or parameters; its own is left alone.

    Args:
        module: Of transformers.
        parts: Children and parameters by name, in place of those of that name.
        **attributes: To set beside them.
    """
    made: Any = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    children = {n: part for n, part in parts.items() if isinstance(part, nn.Module)}
    tensors = {n: part for n, part in parts.items() if isinstance(part, Tensor)}
    given = {n: nn.Parameter(t, requires_grad=False) for n, t in tensors.items()}
    made.__dict__["_modules"] = {**module._modules, **children}
    made.__dict__["_parameters"] = {**module._parameters, **given}
    made.__dict__.update(attributes)
    return made


def attempt(run: Callable[[], T]) -> T | None:
    """Return what ``run`` returns; None where code that is not ours does not take small parts."""
    try:
        with torch.no_grad():
            return run()
    except Exception:  # noqa: BLE001 - the boundary to foreign code: it is then served as it is
        return None


def is_same(got: Any, want: Tensor) -> bool:
    """Whether a probe's result is what was expected of it."""
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return False
    return bool((got.float() - want).abs().max() <= TOLERANCE * want.abs().max())


def has_parameters(module: nn.Module) -> bool:
    """Whether a module, or one below it, has any."""
    return next(module.parameters(), None) is not None


def linears(module: nn.Module) -> dict[str, nn.Linear] | None:
    """Return the products among the children; None where the others have parameters, too."""
    found: dict[str, nn.Linear] = {}
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            found[name] = child
        elif has_parameters(child):
            return None
    return None if any(p is not None for p in module._parameters.values()) else found
