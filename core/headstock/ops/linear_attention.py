"""Linear attention by the gated delta rule: what a row has seen is one matrix a head, not pages.

Queries, keys and values first go through a causal convolution over few tokens. Then, token by
token and head by head, a state S of Dk x Dv decays, forgets what it holds under the token's key,
takes the token's value in its place, and is read by the query:

    S <- exp(g) S;   S <- S + k (beta (v - S' k))';   y = S' q / sqrt(Dk)

with q and k of unit length, g = -exp(A) softplus(a + dt) and beta = sigmoid(b).

Shapes: T tokens, R rows, K key heads, V value heads (V / K of them have a key head in common), Dk
and Dv sizes of their heads, C = 2 K Dk + V Dv convolved features, W tokens of the convolution.

Source:
    Yang et al. 2024, "Gated Delta Networks"; Qwen3NextGatedDeltaNet of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.ops.base import Spec, op

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headstock.ops.cases.base import Bench, Case
    from headstock.ops.device import OpDevice

NO_STATE = -1
"""Stands for the page of a row that has seen nothing yet: its states are zeros."""
UNIT_EPS = 1e-6
"""Added to the squared length of queries and keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttentionSpec:
    """What a model's layers of linear attention have in common.

    Attributes:
        num_key_heads: K, on this rank.
        num_value_heads: V, on this rank.
        key_size: Dk.
        value_size: Dv.
        kernel_size: W.
        dtype: Of the activations and of the convolution's state; the matrices are float32.
        max_rows: Most rows of a step.
        max_tokens: Most tokens of a step.
    """

    num_key_heads: int
    num_value_heads: int
    key_size: int
    value_size: int
    kernel_size: int
    dtype: torch.dtype
    max_rows: int
    max_tokens: int

    @property
    def conv_size(self) -> int:
        """C."""
        return 2 * self.num_key_heads * self.key_size + self.num_value_heads * self.value_size

    def as_spec(self) -> Spec:
        """Return what the op ``linear_attention`` is resolved for."""
        return Spec(
            dtype=str(self.dtype).removeprefix("torch."),
            sizes={
                "num_key_heads": self.num_key_heads,
                "num_value_heads": self.num_value_heads,
                "values_per_key": self.num_value_heads // self.num_key_heads,
                "key_size": self.key_size,
                "value_size": self.value_size,
                "kernel_size": self.kernel_size,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePlane:
    """What one page of a state group holds of one layer.

    Attributes:
        name: ``conv`` or ``matrix``.
        shape: Of a page.
        dtype: Of its elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(slots=True, kw_only=True)
class StateView:
    """Where each row of a step finds its states, and where it leaves them.

    A row may leave them elsewhere than it found them: who else begins from there is not disturbed.
    No page is left to by two rows, nor found by one and left to by another, but the null page.

    Attributes:
        pages_in_R: :data:`NO_STATE` for rows that begin with zeros. int32. [R]
        pages_out_R: int32. [R]
    """

    pages_in_R: Tensor
    pages_out_R: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaWeights:
    """A layer's small weights.

    Attributes:
        conv_CW: Of the convolution, the newest token last, in the model's dtype. [C, W]
        decay_V: A: logarithm of how fast a head forgets. float32. [V]
        bias_V: dt. float32. [V]
    """

    conv_CW: Tensor
    decay_V: Tensor
    bias_V: Tensor


class LinearAttentionProvider(Protocol):
    """Linear attention for one spec on one device; shared by the layers that have that spec."""

    @property
    def planes(self) -> tuple[StatePlane, StatePlane]:
        """What it keeps of a row and layer: inputs of the convolution, and the matrices."""
        ...

    @property
    def graph_key(self) -> tuple[int, ...]:
        """What the last ``plan`` decided that a captured launch bakes in."""
        ...

    def plan(self, batch: StepBatch) -> None:
        """Prepare for ``batch``: writes only into buffers made when it was built."""
        ...

    def run(
        self,
        qkv_TC: Tensor,
        b_TV: Tensor,
        a_TV: Tensor,
        weights: DeltaWeights,
        states: tuple[Tensor, Tensor],
        batch: StepBatch,
        view: StateView,
    ) -> Tensor:
        """Convolve, update the rows' states and read them.

        Args:
            qkv_TC: Queries and keys of all key heads, values of all value heads, before the
                convolution. [T, C]
            b_TV: Logits of what a token's value replaces. [T, V]
            a_TV: What a token's decay is made of. [T, V]
            weights: The layer's.
            states: The layer's planes, in the order of ``planes``: [pages, *shape], pages in any
                stride, what is inside of a page contiguous.
            batch: As it was planned.
            view: Where the states of its rows are.

        Returns:
            In qkv's dtype, contiguous; of padding tokens: anything finite or not. [T, V, Dv]
        """
        ...


def _cases(bench: Bench) -> Iterator[Case]:
    from headstock.ops.cases.linear_attention import linear_attention_cases

    return linear_attention_cases(bench)


@op(is_built=True, cases=_cases)
def linear_attention(spec: LinearAttentionSpec, device: OpDevice) -> LinearAttentionProvider:
    """Build the reference provider. Layers resolve with :meth:`LinearAttentionSpec.as_spec`.

    Its planes are ``conv``, [W - 1, C], the oldest token first, and ``matrix``, [V, Dk, Dv].
    """
    from headstock.ops.linear_attention_reference import ReferenceLinearAttention

    return ReferenceLinearAttention(spec, device)
