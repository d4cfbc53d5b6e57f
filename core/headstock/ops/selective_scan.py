"""State spaces of Mamba 1: what a row has seen is a few numbers of each feature, not pages.

Token by token and feature by feature, a state s of N numbers decays, each number at its own speed,
takes the token's x under its b, and is read by its c:

    s <- exp(-exp(A) d) s + d x b;   y = s' c + D x

with d = softplus(dt). All features have b and c in common.

Shapes: T tokens, R rows, C features, N numbers of a feature's state.

Source:
    Gu and Dao 2023, "Mamba"; JambaMambaMixer of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from headstock.ops.attention import CacheProvider, StepBatch
from headstock.ops.base import Spec, op, spec_of
from headstock.ops.selective_scan_reference import ReferenceSelectiveScan

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectiveScanSpec:
    """What a model's state spaces have in common.

    Attributes:
        size: C, on this rank.
        state_size: N.
        dtype: Of the activations; pages are float32.
        max_rows: Most rows of a step.
        max_tokens: Most tokens of a step.
    """

    size: int
    state_size: int
    dtype: torch.dtype
    max_rows: int
    max_tokens: int

    @property
    def page_numbers(self) -> int:
        """Numbers of a page."""
        return self.size * self.state_size

    def as_spec(self) -> Spec:
        """Return what the op ``selective_scan`` is resolved for."""
        return spec_of(self, "size", "state_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanWeights:
    """A layer's small weights.

    Attributes:
        decay_CN: A: logarithm of how fast a number is forgotten. float32. [C, N]
        skip_C: D: what of x goes past the state. float32. [C]
    """

    decay_CN: Tensor
    skip_C: Tensor


class SelectiveScanProvider(CacheProvider, Protocol):
    """Mamba 1 for one spec on one device; shared by the layers that have that spec.

    A page of its group holds one row's states after some tokens. A row finds its own on the page
    ``page_table_RP[r, 0]`` and leaves it on ``page_table_RP[r, 1]``; where these differ, the first
    stays as it is. A row without a token before the step begins with zeros, whatever the page
    holds.
    """

    def run(
        self,
        x_TC: Tensor,
        dt_TC: Tensor,
        bc_TX: Tensor,
        weights: ScanWeights,
        kv: Tensor,
        batch: StepBatch,
    ) -> Tensor:
        """Update the rows' states and read them.

        Args:
            x_TC: What is taken in. [T, C]
            dt_TC: What a token's step is made of. [T, C]
            bc_TX: Under what it is taken in, and by what states are read. [T, 2 N]
            weights: The layer's.
            kv: The layer's pages.
            batch: As it was planned.

        Returns:
            In the dtype of ``x_TC``, contiguous; of padding tokens: anything finite or not. [T, C]
        """
        ...

    def read(self, kv: Tensor, pages_R: Tensor) -> Tensor:
        """Return what pages hold. [R, C, N]"""
        ...


@op(is_built=True, reads_host=True)
def selective_scan(spec: SelectiveScanSpec, device: OpDevice) -> SelectiveScanProvider:
    """Build the reference provider. Layers resolve with :meth:`SelectiveScanSpec.as_spec`.

    Its pages are float32: [C, N].
    """
    return ReferenceSelectiveScan(spec, device)
