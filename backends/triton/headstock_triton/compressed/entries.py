"""What lies around attention to entries: making them, choosing them, rotating the last features.

Shapes: as in :mod:`headstock.ops.compressed`.
"""

# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.ops.compressed import NO_ENTRY, entries_a_page
from headstock_triton.compressed.make import compress_kernel, turn_last_kernel
from headstock_triton.sparse.choose import choose_kernel
from headstock_triton.sparse.provider import LOOKED_AT, SCORES_AT_ONCE, TOKENS, programs_of
from headstock_triton.sparse.scores import score_tokens_kernel
from headstock_triton.target import Target, cdiv, next_power_of_2

TILE = 4096
"""Features of all tokens of an entry that are looked at together."""
HEADS_AT_ONCE = 8
"""Heads that a program rotates."""


class Entries:
    """The ops on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def compress_tokens(
        self,
        waiting_TG: Tensor,
        bias_mF: Tensor,
        norm_D: Tensor,
        cos_sin_LE: Tensor,
        waiting: Tensor,
        waiting_batch: StepBatch,
        entries: Tensor,
        batch: StepBatch,
        *,
        eps: float,
    ) -> None:
        """See :func:`headstock.ops.compressed.compress_tokens`."""
        (rate, width), size, page_size = bias_mF.shape, norm_D.shape[0], waiting.shape[1]
        assert entries.shape[1] == entries_a_page(page_size, rate), "entries of other pages"
        waiting_TG = waiting_TG if waiting_TG.stride(1) == 1 else waiting_TG.contiguous()
        block_d = next_power_of_2(size)
        compress_kernel[(waiting_TG.shape[0],)](
            waiting_TG,
            bias_mF,
            norm_D,
            cos_sin_LE,
            waiting,
            waiting_batch.page_table_RP,
            waiting_batch.write_slots_T,
            entries,
            batch.write_slots_T,
            batch.positions_T,
            batch.row_of_token_T,
            batch.query_starts_R1,
            batch.counts,
            waiting_TG.stride(0),
            waiting_batch.page_table_RP.stride(0),
            eps,
            D=size,
            F=width,
            E=cos_sin_LE.shape[1],
            RATE=rate,
            PAGE=page_size,
            BLOCK_A=max(1, min(next_power_of_2(rate * width // size), TILE // block_d)),
            BLOCK_D=block_d,
            BLOCK_G=next_power_of_2(2 * width),
            **self._target.launch(4),
        )

    def choose_entries(
        self,
        q_THD: Tensor,
        weights_TH: Tensor,
        entries: Tensor,
        batch: StepBatch,
        *,
        page_size: int,
        rate: int,
        num_chosen: int,
    ) -> Tensor:
        """See :func:`headstock.ops.compressed.choose_entries`. [T, k]"""
        num_tokens, most = q_THD.shape[0], max(1, batch.max_kv // rate)
        q_THD = q_THD.contiguous()
        weights_TH = weights_TH if weights_TH.stride(1) == 1 else weights_TH.contiguous()
        shape, where = (num_tokens, min(num_chosen, most)), q_THD.device
        chosen_Tk = torch.empty(shape, dtype=torch.int32, device=where)
        # Where no query sees more than it may choose, nothing is scored.
        length = most if most > num_chosen else 1
        at_once = min(num_tokens, max(1, SCORES_AT_ONCE // length))
        scores = torch.empty((at_once, length), dtype=torch.float32, device=where)
        for begin in range(0, num_tokens, at_once):
            count = min(at_once, num_tokens - begin)
            if length > 1:
                sizes = (num_chosen, page_size, rate)
                self._score(q_THD, weights_TH, entries, batch, scores, (begin, count), sizes)
            choose_kernel[(count, 1)](
                scores,
                batch.row_of_token_T,
                batch.query_starts_R1,
                batch.kv_lengths_R,
                batch.counts,
                chosen_Tk,
                begin,
                length,
                shape[1],
                HEADS=1,
                SIZE=rate,
                IS_WHOLE=True,
                K=num_chosen,
                NONE=NO_ENTRY,
                BLOCK_K=next_power_of_2(shape[1]),
                BLOCK=min(LOOKED_AT, max(128, next_power_of_2(length))),
                **self._target.launch(8),
            )
        return chosen_Tk

    def _score(
        self,
        q_THD: Tensor,
        weights_TH: Tensor,
        entries: Tensor,
        batch: StepBatch,
        scores: Tensor,
        lines: tuple[int, int],
        sizes: tuple[int, int, int],
    ) -> None:
        """Score entries for some queries; ``sizes`` are those chosen, of a page, of an entry."""
        (begin, count), (num_chosen, page_size, rate) = lines, sizes
        _, heads, size = q_THD.shape
        programs = programs_of(self._target, count, cdiv(scores.shape[1], TOKENS))
        score_tokens_kernel[(count, programs)](
            q_THD,
            weights_TH,
            entries,
            batch.page_table_RP,
            batch.row_of_token_T,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            scores,
            begin,
            weights_TH.stride(0),
            batch.page_table_RP.stride(0),
            scores.stride(0),
            HEADS=heads,
            D=size,
            K=num_chosen,
            PAGE=page_size,
            RATE=rate,
            BLOCK_H=max(16, next_power_of_2(heads)),
            BLOCK_D=max(16, next_power_of_2(size)),
            BLOCK_N=TOKENS,
            **self._target.launch(4),
        )

    def rotate_last(
        self, x_THD: Tensor, positions_T: Tensor, cos_sin_LE: Tensor, *, is_inverse: bool
    ) -> Tensor:
        """See :func:`headstock.ops.compressed.rotate_last`."""
        x_THD = x_THD if x_THD.stride(2) == 1 else x_THD.contiguous()
        num_tokens, num_heads, size = x_THD.shape
        out_THD = torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device)
        rotary_size = cos_sin_LE.shape[1]
        heads = min(HEADS_AT_ONCE, next_power_of_2(num_heads))
        if num_tokens:
            turn_last_kernel[(num_tokens, cdiv(num_heads, heads))](
                x_THD,
                positions_T,
                cos_sin_LE,
                out_THD,
                x_THD.stride(0),
                x_THD.stride(1),
                HEADS=num_heads,
                D=size,
                E=rotary_size,
                IS_INVERSE=is_inverse,
                BLOCK_H=heads,
                BLOCK_F=next_power_of_2(rotary_size // 2),
                BLOCK_D=next_power_of_2(size - rotary_size),
                **self._target.launch(4),
            )
        return out_THD
