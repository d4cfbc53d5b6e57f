"""Rows of any lengths in a program of a fixed size: what layers with a state a row are made of.

Which tokens are whose is known on the device alone. Tokens are put into chunks of one row each;
how many chunks there are at most follows from the sizes of the step. What a chunk does to a state
is one product and one sum, and those of all chunks are joined in log2(chunks of a row) rounds.

Shapes: T tokens, R rows, C chunks, N tokens of a chunk, F features, W tokens of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from headstock.ops.attention import StepBatch


class Rows:
    """Where the tokens of each row lie.

    Args:
        batch: The step; nothing of it is read on the host but its sizes.
    """

    def __init__(self, batch: StepBatch) -> None:
        starts_R1 = batch.query_starts_R1[: batch.num_rows + 1].long()
        self.starts_R, self.counts_R = starts_R1[:-1], starts_R1.diff()
        self.num_tokens, self.num_rows = batch.num_tokens, batch.num_rows
        self.row_T = batch.row_of_token_T[: batch.num_tokens].long().clamp(0, batch.num_rows - 1)
        tokens_T = torch.arange(batch.num_tokens, device=starts_R1.device)
        self.offset_T = (tokens_T - self.starts_R.index_select(0, self.row_T)).clamp(min=0)

    def convolve(
        self,
        x_TF: Tensor,
        weight_FW: Tensor,
        before_RXF: Tensor,
        bias_F: Tensor | None = None,
        *,
        has_silu: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Convolve each feature with its last tokens, as :func:`causal_conv` does.

        Args:
            x_TF: The step's tokens. [T, F]
            weight_FW: The newest token's last. [F, W]
            before_RXF: The W - 1 tokens before each row's. float32. [R, W - 1, F]
            bias_F: Added before silu; None: nothing. [F]
            has_silu: Whether silu follows.

        Returns:
            The same shape as ``x_TF``, and each row's last W - 1 tokens, float32. [R, W - 1, F]
        """
        num_before, x32_TF = weight_FW.shape[1] - 1, x_TF.float()
        y_TF = x32_TF * weight_FW[:, num_before].float()
        for back in range(1, num_before + 1):
            before_TF = self._before(before_RXF, self.row_T, self.offset_T + num_before - back)
            shifted_TF = _shifted(x32_TF, back)
            is_own_T1 = (self.offset_T >= back).unsqueeze(1)
            tap_TF = torch.where(is_own_T1, shifted_TF, before_TF)
            y_TF = y_TF + tap_TF * weight_FW[:, num_before - back].float()
        if bias_F is not None:
            y_TF = y_TF + bias_F.float()
        y_TF = functional.silu(y_TF) if has_silu else y_TF
        return y_TF.to(x_TF.dtype), self._left(x32_TF, before_RXF)

    def _left(self, x32_TF: Tensor, before_RXF: Tensor) -> Tensor:
        """Return the last tokens of each row, those before the step among them. [R, W - 1, F]"""
        num_before = before_RXF.shape[1]
        rows_R = torch.arange(self.num_rows, device=x32_TF.device)
        left: list[Tensor] = []
        for place in range(num_before):
            offset_R = self.counts_R - num_before + place
            tokens_R = (self.starts_R + offset_R).clamp(0, self.num_tokens - 1)
            own_RF = x32_TF.index_select(0, tokens_R)
            before_RF = self._before(before_RXF, rows_R, self.counts_R + place)
            left.append(torch.where((offset_R >= 0).unsqueeze(1), own_RF, before_RF))
        return torch.stack(left, dim=1)

    def _before(self, before_RXF: Tensor, row_X: Tensor, place_X: Tensor) -> Tensor:
        """Return tokens before the step by row and place; past the end: any of them. [X, F]"""
        num_before = before_RXF.shape[1]
        places_X = row_X * num_before + place_X.clamp(max=num_before - 1)
        return before_RXF.flatten(0, 1).index_select(0, places_X)


class Chunks:
    """The tokens of a step in chunks of N, each of one row.

    Args:
        rows: Where the tokens lie.
        size: N.

    Attributes:
        row_C: Row of each chunk. [C]
        is_first_C: Whether a row begins with it. [C]
        last_R: The chunk that each row ends with. [R]
        most: Chunks that one row has at most. Host.
    """

    def __init__(self, rows: Rows, size: int) -> None:
        num_chunks = rows.num_tokens // size + rows.num_rows
        self.size, self.most = size, -(-rows.num_tokens // size)
        counts_R = (rows.counts_R + (size - 1)).div(size, rounding_mode="floor")
        ends_R = counts_R.cumsum(0)
        first_R = ends_R - counts_R
        chunks_C = torch.arange(num_chunks, device=ends_R.device)
        row_C = (chunks_C[:, None] >= ends_R).sum(dim=1).clamp(max=rows.num_rows - 1)
        within_C = chunks_C - first_R.index_select(0, row_C)
        self.row_C, self.is_first_C, self.last_R = row_C, within_C == 0, ends_R - 1
        places_N = torch.arange(size, device=ends_R.device)
        offset_CN = (within_C * size)[:, None] + places_N
        self._is_there_CN = offset_CN < rows.counts_R.index_select(0, row_C)[:, None]
        token_CN = rows.starts_R.index_select(0, row_C)[:, None] + offset_CN
        self._token_CN = token_CN.clamp(0, rows.num_tokens - 1)
        place_T = first_R.index_select(0, rows.row_T) * size + rows.offset_T
        self._place_T = place_T.clamp(0, num_chunks * size - 1)

    def spread(self, x_TX: Tensor) -> Tensor:
        """Return tokens chunk by chunk; zeros stand where a chunk has no token. [C, N, ...]"""
        x_CNX = x_TX.index_select(0, self._token_CN.flatten()).unflatten(0, (-1, self.size))
        return torch.where(_wide(self._is_there_CN, x_CNX), x_CNX, 0)

    def gather(self, x_CNX: Tensor) -> Tensor:
        """Return what chunks have in the order of tokens. [T, ...]"""
        return x_CNX.flatten(0, 1).index_select(0, self._place_T)

    def states(
        self,
        decay_CX: Tensor,
        added_CX: Tensor,
        found_RX: Tensor,
        apply: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the states that chunks begin with, and those that rows end with.

        Args:
            decay_CX: What a chunk does to a state. [C, ...]
            added_CX: What it then adds. [C, ...]
            found_RX: States that rows begin with. [R, ...]
            apply: Applies a decay to a state, or to another decay.

        Returns:
            [C, ...] and [R, ...]
        """
        is_first = _wide(self.is_first_C, added_CX)
        begun_CX = torch.where(is_first, found_RX.index_select(0, self.row_C), 0)
        added_CX = added_CX + apply(decay_CX, begun_CX)
        decay_CX = torch.where(_wide(self.is_first_C, decay_CX), 0, decay_CX)
        after_CX = joined(decay_CX, added_CX, apply, self.most)
        begun_CX = torch.where(is_first, begun_CX, _shifted(after_CX, 1))
        return begun_CX, after_CX.index_select(0, self.last_R)


class OneEach:
    """Rows of one token as chunks of one token: what :class:`Chunks` is to other steps."""

    def spread(self, x_TX: Tensor) -> Tensor:
        """Return tokens chunk by chunk. [R, 1, ...]"""
        return x_TX.unsqueeze(1)

    def gather(self, x_RNX: Tensor) -> Tensor:
        """Return what chunks have in the order of tokens. [T, ...]"""
        return x_RNX.squeeze(1)


def joined(
    decay_CX: Tensor, added_CX: Tensor, apply: Callable[[Tensor, Tensor], Tensor], most: int
) -> Tensor:
    """Return the state after each chunk, s[c] = decay[c] s[c - 1] + added[c]. [C, ...]

    Args:
        decay_CX: 0 where a row begins.
        added_CX: What is added.
        apply: Applies a decay to a state, or to another decay.
        most: Chunks that a row has at most.
    """
    done = 1
    while done < min(most, len(decay_CX)):
        added_CX = added_CX + apply(decay_CX, _shifted(added_CX, done))
        decay_CX = apply(decay_CX, _shifted(decay_CX, done))
        done *= 2
    return added_CX


def _shifted(x_CX: Tensor, count: int) -> Tensor:
    """Return each place's ``count``-th predecessor; zeros where there is none. [C, ...]"""
    count = min(count, len(x_CX))
    return torch.cat((torch.zeros_like(x_CX[:count]), x_CX[: len(x_CX) - count]))


def _wide(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` with trailing axes of 1, as many axes as ``like`` has."""
    return x.view(*x.shape, *(1 for _ in range(like.dim() - x.dim())))
