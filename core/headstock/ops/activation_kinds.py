"""Activations of feed-forward layers, as values that ops take.

A kind beyond SiLU is a feature of its name: providers that do not know it are passed over for
layers that ask for it. Parameters are numbers, whatever they are: one kernel serves all of a kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

KINDS = (
    "silu",
    "gelu-tanh",
    "gelu",
    "relu2",
    "clipped-swiglu",
    "xielu",
    "bounded-swiglu",
    "limited-swiglu",
)
"""Every kind there is; kernels know them by their place here."""
FEATURES = frozenset(KINDS[1:])
"""What ops that take an activation may be asked beyond the plain op."""
OF_BOTH = frozenset({"clipped-swiglu", "bounded-swiglu", "limited-swiglu"})
"""Kinds that change what the gate is multiplied with, too: of features without a gate none is."""
MAX_PARAMETERS = 4


@dataclass(frozen=True, slots=True)
class Activation:
    """How a feed-forward layer joins its gate and up features.

    Attributes:
        kind: One of :data:`KINDS`.
        parameters: What the kind takes; see the functions below.
    """

    kind: str
    parameters: tuple[float, ...] = ()

    @property
    def features(self) -> frozenset[str]:
        """What an op is asked for beyond the plain op."""
        return FEATURES & {self.kind}

    @property
    def number(self) -> int:
        """The kind's place among all."""
        return KINDS.index(self.kind)

    @property
    def padded(self) -> tuple[float, ...]:
        """The parameters, as many for every kind: kernels have fixed arguments."""
        return self.parameters + (0.0,) * (MAX_PARAMETERS - len(self.parameters))

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return activation(gate) * up, in their dtype."""
        return _JOINS[self.kind](gate, up, *self.parameters)


SILU = Activation("silu")
GELU_TANH = Activation("gelu-tanh")
"""GELU with its error function approximated by a hyperbolic tangent."""
GELU = Activation("gelu")
RELU2 = Activation("relu2")
"""The square of what is positive. Source: So et al. 2021, "Primer"."""

BY_CONFIG_NAME: Mapping[str, Activation] = {
    "silu": SILU,
    "swish": SILU,
    "gelu_pytorch_tanh": GELU_TANH,
    "gelu_new": GELU_TANH,
    "gelu": GELU,
    "relu2": RELU2,
}
"""By what configurations of Hugging Face call them."""


def clipped_swiglu(limit: float, alpha: float) -> Activation:
    """Return gate · sigmoid(alpha · gate) · (up + 1), where both are bounded first.

    Args:
        limit: Largest gate, and largest magnitude of up.
        alpha: Steepness.

    Source:
        gpt-oss; ``GptOssExperts`` of Hugging Face transformers.
    """
    return Activation("clipped-swiglu", (limit, alpha))


def bounded_swiglu(limit: float) -> Activation:
    """Return silu(gate) · up, where what silu makes and up are bounded.

    Args:
        limit: Largest silu(gate), and largest magnitude of up.

    Source:
        Step 3.5; ``Step3p7MLP`` of Hugging Face transformers.
    """
    return Activation("bounded-swiglu", (limit,))


def limited_swiglu(limit: float) -> Activation:
    """Return silu(gate) · up, where the gate and up are bounded before.

    Args:
        limit: Largest gate, and largest magnitude of up.

    Source:
        DeepSeek-AI 2026, "DeepSeek-V4"; ``DeepseekV4MLP`` of Hugging Face transformers.
    """
    return Activation("limited-swiglu", (limit,))


def xielu(alpha_p: float, alpha_n: float, beta: float, eps: float) -> Activation:
    """Return xIELU: a square over 0, an exponential's integral below.

    Args:
        alpha_p: Of the square; positive.
        alpha_n: Of the exponential; positive.
        beta: Slope at 0.
        eps: Largest argument of the exponential; under 0, and nearly.

    Source:
        Huang and Schlag 2024, "Deriving Activation Functions Using Integration";
        ``XIELUActivation`` of Hugging Face transformers, after its softplus.
    """
    return Activation("xielu", (alpha_p, alpha_n, beta, eps))


def _silu(gate: Tensor, up: Tensor) -> Tensor:
    from torch.nn.functional import silu

    return silu(gate) * up


def _gelu_tanh(gate: Tensor, up: Tensor) -> Tensor:
    from torch.nn.functional import gelu

    return gelu(gate, approximate="tanh") * up


def _gelu(gate: Tensor, up: Tensor) -> Tensor:
    from torch.nn.functional import gelu

    return gelu(gate) * up


def _relu2(gate: Tensor, up: Tensor) -> Tensor:
    return gate.relu().square() * up


def _clipped_swiglu(gate: Tensor, up: Tensor, limit: float, alpha: float) -> Tensor:
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * (gate * alpha).sigmoid())


def _bounded_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    from torch.nn.functional import silu

    return silu(gate).clamp(max=limit) * up.clamp(-limit, limit)


def _limited_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    from torch.nn.functional import silu

    return silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)


def _xielu(
    gate: Tensor, up: Tensor, alpha_p: float, alpha_n: float, beta: float, eps: float
) -> Tensor:
    # In float32: the exponential and its argument nearly cancel.
    wide = gate.float()
    above = alpha_p * wide.square() + beta * wide
    below = (wide.clamp(max=eps).expm1() - wide) * alpha_n + beta * wide
    return above.where(wide > 0, below).to(gate.dtype) * up


_JOINS: Mapping[str, Callable[..., Tensor]] = {
    "silu": _silu,
    "gelu-tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu2": _relu2,
    "clipped-swiglu": _clipped_swiglu,
    "xielu": _xielu,
    "bounded-swiglu": _bounded_swiglu,
    "limited-swiglu": _limited_swiglu,
}
