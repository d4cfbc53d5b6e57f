"""Linear attention by the gated delta rule: what a row has seen is one matrix a head, not pages.

Queries, keys and values first go through a causal convolution over few tokens. Then, token by
token and head by head, a state S of Dk x Dv decays, forgets what it holds under the token's key,
takes the token's value in its place, and is read by the query:

    S <- exp(g) S;   S <- S + k (beta (v - S' k))';   y = S' q / sqrt(Dk)

with q and k of unit length, g = -exp(A) softplus(a + dt) and beta = sigmoid(b). Where decays are
*by channel*, g is a vector of Dk numbers: each row of S decays at a rate of its own.

Shapes: T tokens, R rows, K key heads, V value heads (V / K of them have a key head in common), Dk
and Dv sizes of their heads, C = 2 K Dk + V Dv convolved features, W tokens of the convolution,
G decays of a token: V, or V Dk by channel.

Source:
    Yang et al. 2024, "Gated Delta Networks"; Qwen3NextGatedDeltaNet of transformers. By channel:
    Kimi team 2025, "Kimi Linear"; KimiLinearDeltaAttention of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from headstock.ops import linear_attention_reference as reference
from headstock.ops.attention import CacheProvider, StepBatch
from headstock.ops.base import Spec, op

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

UNIT_EPS = reference.UNIT_EPS
"""Added to the squared length of queries and keys."""
BY_CHANNEL = "decay_by_channel"
"""The feature of decays that each channel of a key has for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttentionSpec:
    """What a model's layers of linear attention have in common.

    Attributes:
        num_key_heads: K, on this rank.
        num_value_heads: V, on this rank.
        key_size: Dk.
        value_size: Dv.
        kernel_size: W.
        dtype: Of the activations; pages are float32.
        max_rows: Most rows of a step.
        max_tokens: Most tokens of a step.
        decays_by_channel: Whether each channel of a key decays at a rate of its own.
    """

    num_key_heads: int
    num_value_heads: int
    key_size: int
    value_size: int
    kernel_size: int
    dtype: torch.dtype
    max_rows: int
    max_tokens: int
    decays_by_channel: bool = False

    @property
    def num_decays(self) -> int:
        """G."""
        return self.num_value_heads * (self.key_size if self.decays_by_channel else 1)

    @property
    def conv_size(self) -> int:
        """C."""
        return 2 * self.num_key_heads * self.key_size + self.num_value_heads * self.value_size

    @property
    def inputs_size(self) -> int:
        """Numbers of a page that are inputs of the convolution."""
        return (self.kernel_size - 1) * self.conv_size

    @property
    def state_size(self) -> int:
        """Numbers of a page."""
        matrix = self.key_size * self.value_size
        return self.inputs_size + self.num_value_heads * matrix

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
            features=frozenset({BY_CHANNEL} if self.decays_by_channel else ()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaWeights:
    """A layer's small weights.

    Attributes:
        conv_CW: Of the convolution, the newest token last, in the model's dtype. [C, W]
        decay_V: A: logarithm of how fast a head forgets. float32. [V]
        bias_G: dt. float32. [G]
    """

    conv_CW: Tensor
    decay_V: Tensor
    bias_G: Tensor


class LinearAttentionProvider(CacheProvider, Protocol):
    """Linear attention for one spec on one device; shared by the layers that have that spec.

    A page of its group holds what one row has after some tokens: the W - 1 last inputs of the
    convolution, and the matrices. A row finds its own on the page ``page_table_RP[r, 0]`` and
    leaves it on ``page_table_RP[r, 1]``; where these differ, the first stays as it is. A row
    without a token before the step begins with zeros, whatever the page holds.
    """

    def run(
        self,
        qkv_TC: Tensor,
        b_TV: Tensor,
        a_TG: Tensor,
        weights: DeltaWeights,
        kv: Tensor,
        batch: StepBatch,
    ) -> Tensor:
        """Convolve, update the rows' states and read them.

        Args:
            qkv_TC: Queries and keys of all key heads, values of all value heads, before the
                convolution. [T, C]
            b_TV: Logits of what a token's value replaces. [T, V]
            a_TG: What a token's decays are made of, a head's channels together. [T, G]
            weights: The layer's.
            kv: The layer's pages.
            batch: As it was planned.

        Returns:
            In qkv's dtype, contiguous; of padding tokens: anything finite or not. [T, V, Dv]
        """
        ...

    def read(self, kv: Tensor, pages_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return what pages hold: inputs, [R, W - 1, C], and matrices, [R, V, Dk, Dv]."""
        ...


@op(is_built=True, features=frozenset({BY_CHANNEL}), reads_host=True)
def linear_attention(spec: LinearAttentionSpec, device: OpDevice) -> LinearAttentionProvider:
    """Build the reference provider. Layers resolve with :meth:`LinearAttentionSpec.as_spec`.

    Its pages are float32: the inputs of the convolution [W - 1, C], the oldest token's first, then
    the matrices [V, Dk, Dv].
    """
    return reference.ReferenceLinearAttention(spec, device)
