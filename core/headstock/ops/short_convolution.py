"""Gated short convolutions: what a row has seen is the last few inputs, not pages.

Each token's features come in three kinds, b, c and x. The product b·x goes through a causal
convolution over few tokens, feature by feature, and what comes out is multiplied by c. With the
feature ``ungated`` a token has x alone, which is convolved.

Shapes: T tokens, R rows, C features, W tokens of the convolution.

Source:
    Liquid AI 2025, "LFM2"; Lfm2ShortConv of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from headstock.ops.attention import CacheProvider, StepBatch
from headstock.ops.base import Spec, op, spec_of
from headstock.ops.short_convolution_reference import ReferenceShortConvolution

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice


UNGATED = "ungated"
"""The feature that features come as x alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolutionSpec:
    """What a model's short convolutions have in common.

    Attributes:
        size: C, on this rank.
        kernel_size: W.
        dtype: Of the activations; pages are float32.
        max_rows: Most rows of a step.
        max_tokens: Most tokens of a step.
        is_gated: Whether there are b and c.
    """

    size: int
    kernel_size: int
    dtype: torch.dtype
    max_rows: int
    max_tokens: int
    is_gated: bool = True

    @property
    def state_size(self) -> int:
        """Numbers of a page."""
        return (self.kernel_size - 1) * self.size

    def as_spec(self) -> Spec:
        """Return what the op ``short_convolution`` is resolved for."""
        return spec_of(
            self,
            "size",
            "kernel_size",
            features=frozenset() if self.is_gated else frozenset({UNGATED}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionWeights:
    """A layer's weights, in the model's dtype.

    Attributes:
        conv_CW: The newest token's last. [C, W]
        bias_C: Added to what the convolution yields; zeros where a model has none. [C]
    """

    conv_CW: Tensor
    bias_C: Tensor


class ShortConvolutionProvider(CacheProvider, Protocol):
    """Short convolutions for one spec on one device; shared by the layers that have that spec.

    A page of its group holds the W - 1 last products b·x of one row, the oldest first. A row finds
    its own on the page ``page_table_RP[r, 0]`` and leaves it on ``page_table_RP[r, 1]``; where
    these differ, the first stays as it is. A row without a token before the step begins with
    zeros, whatever the page holds.
    """

    def run(
        self, bcx_TY: Tensor, weights: ConvolutionWeights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Convolve, and note the rows' last inputs.

        Args:
            bcx_TY: The three kinds of features, side by side, [T, 3 C]; ungated: x. [T, C]
            weights: The layer's.
            kv: The layer's pages.
            batch: As it was planned.

        Returns:
            In the dtype of ``bcx_TY``, contiguous; of padding tokens: anything finite or not.
            [T, C]
        """
        ...

    def read(self, kv: Tensor, pages_R: Tensor) -> Tensor:
        """Return what pages hold. [R, W - 1, C]"""
        ...


@op(is_built=True, features=frozenset({UNGATED}), reads_host=True)
def short_convolution(spec: ShortConvolutionSpec, device: OpDevice) -> ShortConvolutionProvider:
    """Build the reference provider. Layers resolve with :meth:`ShortConvolutionSpec.as_spec`.

    Its pages are float32: [W - 1, C], the oldest token's first.
    """
    return ReferenceShortConvolution(spec, device)
