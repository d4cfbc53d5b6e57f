"""State spaces of Mamba 2: what a row has seen is one matrix a head, not pages.

Features x, B and C first go through a causal convolution over few tokens. Then, token by token and
head by head, a state S of N x P decays, takes the token's x under its B, and is read by its C:

    S <- exp(-exp(A) d) S + B (d x)';   y = S' C + D x

with d = softplus(dt + bias), held within limits. Heads of a group have B and C in common.

Shapes: T tokens, R rows, H heads, G groups, P size of a head, N of a state, C = H P + 2 G N
convolved features, W tokens of the convolution.

Source:
    Dao and Gu 2024, "Transformers are SSMs"; BambaMixer and Mamba2Mixer of transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from headstock.ops.attention import CacheProvider, StepBatch
from headstock.ops.base import Spec, op, spec_of
from headstock.ops.mamba2_reference import ReferenceMamba2

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Spec:
    """What a model's layers of Mamba 2 have in common.

    Attributes:
        num_heads: H, on this rank.
        num_groups: G, on this rank.
        head_dim: P.
        state_size: N.
        kernel_size: W.
        dtype: Of the activations; pages are float32.
        max_rows: Most rows of a step.
        max_tokens: Most tokens of a step.
        least_step: d is never below.
        largest_step: Nor above.
    """

    num_heads: int
    num_groups: int
    head_dim: int
    state_size: int
    kernel_size: int
    dtype: torch.dtype
    max_rows: int
    max_tokens: int
    least_step: float = 0.0
    largest_step: float = math.inf

    @property
    def conv_size(self) -> int:
        """C."""
        return self.num_heads * self.head_dim + 2 * self.num_groups * self.state_size

    @property
    def inputs_size(self) -> int:
        """Numbers of a page that are inputs of the convolution."""
        return (self.kernel_size - 1) * self.conv_size

    @property
    def page_numbers(self) -> int:
        """Numbers of a page."""
        return self.inputs_size + self.num_heads * self.state_size * self.head_dim

    def as_spec(self) -> Spec:
        """Return what the op ``mamba2`` is resolved for."""
        return spec_of(self, "num_heads", "num_groups", "head_dim", "state_size", "kernel_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Weights:
    """A layer's small weights.

    Attributes:
        conv_CW: Of the convolution, the newest token last, in the model's dtype. [C, W]
        conv_bias_C: Added to what it yields; zeros where a model has none. [C]
        decay_H: A: logarithm of how fast a head forgets. float32. [H]
        step_bias_H: Added to dt. float32. [H]
        skip_H: D: what of x goes past the state. float32. [H]
    """

    conv_CW: Tensor
    conv_bias_C: Tensor
    decay_H: Tensor
    step_bias_H: Tensor
    skip_H: Tensor


class Mamba2Provider(CacheProvider, Protocol):
    """Mamba 2 for one spec on one device; shared by the layers that have that spec.

    A page of its group holds what one row has after some tokens: the W - 1 last inputs of the
    convolution, and the matrices. A row finds its own on the page ``page_table_RP[r, 0]`` and
    leaves it on ``page_table_RP[r, 1]``; where these differ, the first stays as it is. A row
    without a token before the step begins with zeros, whatever the page holds.
    """

    def run(
        self, xbc_TC: Tensor, dt_TH: Tensor, weights: Mamba2Weights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Convolve, update the rows' states and read them.

        Args:
            xbc_TC: x of all heads, B and C of all groups, before the convolution. [T, C]
            dt_TH: What a token's step is made of. [T, H]
            weights: The layer's.
            kv: The layer's pages.
            batch: As it was planned.

        Returns:
            In the dtype of ``xbc_TC``, contiguous; of padding tokens: anything finite or not.
            [T, H, P]
        """
        ...

    def read(self, kv: Tensor, pages_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return what pages hold: inputs, [R, W - 1, C], and matrices, [R, H, N, P]."""
        ...


@op(is_built=True, reads_host=True)
def mamba2(spec: Mamba2Spec, device: OpDevice) -> Mamba2Provider:
    """Build the reference provider. Layers resolve with :meth:`Mamba2Spec.as_spec`.

    Its pages are float32: the inputs of the convolution [W - 1, C], the oldest token's first, then
    the matrices [H, N, P].
    """
    return ReferenceMamba2(spec, device)
