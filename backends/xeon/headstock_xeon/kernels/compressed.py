"""DeepSeek V4: entries that stand for stretches of tokens, and several residual streams.

Shapes: as in :mod:`headstock.ops.compressed` and :mod:`headstock.ops.hyper_connections`.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from headstock.ops import compressed, grouped_linear, hyper_connections
from headstock.ops.attention import StepBatch
from headstock.ops.compressed import CHOSEN_ENTRIES, ENTRIES, EntryPages
from headstock.ops.compressed_reference import ReferenceCompressedAttention
from headstock.ops.offers import computes
from headstock_xeon.kernels.attention import ELEMENTS
from headstock_xeon.kernels.base import (
    EIGHTS,
    FLOAT32,
    WHOLE_PAGES,
    Kernels,
    Native,
    rows_of_step,
)
from headstock_xeon.kernels.sparse import EACH, choose, index_pages
from headstock_xeon.stream import Word, as_bits, rows_of, strided

HEADS = {"head_dim": EIGHTS}
ATTENDED = replace(WHOLE_PAGES, sizes=HEADS, features=frozenset({ENTRIES, CHOSEN_ENTRIES}))
SIZED = replace(FLOAT32, sizes=HEADS)
GROUPED = replace(FLOAT32, sizes={"in_features": EIGHTS})


@computes(compressed.compressed_attention, ATTENDED)
class NativeCompressedAttention(Native, ReferenceCompressedAttention):
    """A window of tokens, and entries, in one softmax."""

    def write(self, kv_TD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store the vectors of the step's tokens, as latents without keys of their own."""
        pages, rows = self._pages(kv), strided(kv_TD)
        given = (*rows, *rows, batch.write_slots_T, kv_TD.shape[0])
        self._stream.emit("latent_write", *pages, 0, *given)

    def _pages(self, kv: Tensor) -> tuple[Word, ...]:
        """Return what instructions say of a layer's pages."""
        return (kv, ELEMENTS[kv.dtype], self.spec.page_size, self.spec.head_dim)

    def run(
        self,
        q_THD: Tensor,
        sinks_H: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        entries: EntryPages | None = None,
        chosen_Tk: Tensor | None = None,
    ) -> Tensor:
        """Attend. [T, H, D]"""
        spec, most = self.spec, 0
        kept: tuple[Word, ...] = (None, 0, 1, None, 0)
        if entries is not None:
            most = batch.max_kv // spec.rate if chosen_Tk is None else chosen_Tk.shape[1]
            table = strided(entries.batch.page_table_RP)
            kept = (entries.pages, ELEMENTS[entries.pages.dtype], spec.rate, *table)
        q_THD = q_THD.contiguous()
        chosen_Tk = None if chosen_Tk is None else chosen_Tk.contiguous()
        y_THD = self._stream.empty(tuple(q_THD.shape))
        given = (*kept, q_THD, sinks_H, y_THD, chosen_Tk, most, spec.window)
        sizes = (*q_THD.shape[:2], as_bits(spec.scale))
        self._stream.emit("attend_entries", *self._pages(kv), *rows_of_step(batch), *given, *sizes)
        return y_THD


class CompressedKernels(Kernels):
    """Making and choosing entries, and what lies around attention to them."""

    @computes(compressed.compress_tokens, SIZED)
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
        rate, width = bias_mF.shape
        table = strided(waiting_batch.page_table_RP)
        kept = (waiting, ELEMENTS[waiting.dtype], width, waiting_batch.write_slots_T, *table)
        how = (bias_mF, norm_D, as_bits(eps), cos_sin_LE, cos_sin_LE.shape[1])
        pages = index_pages(entries, waiting.shape[1], rate)
        places = (batch.write_slots_T, batch.row_of_token_T, batch.counts, batch.positions_T)
        given = (*strided(waiting_TG), *kept, *how, *pages, *places)
        self._stream.emit("compress", *given, waiting_TG.shape[0])

    @computes(compressed.choose_entries, SIZED)
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
        most = max(1, batch.max_kv // rate)
        shape = (q_THD.shape[0], min(num_chosen, most))
        pages = index_pages(entries, page_size, rate)
        given = (q_THD.contiguous(), weights_TH.contiguous())
        return choose(self._stream, pages, batch, given, shape, EACH, most)

    @computes(compressed.rotate_last, FLOAT32)
    def rotate_last(
        self, x_THD: Tensor, positions_T: Tensor, cos_sin_LE: Tensor, *, is_inverse: bool
    ) -> Tensor:
        how = (positions_T, cos_sin_LE, cos_sin_LE.shape[1], int(is_inverse))
        return self._like(x_THD, "rotate_last", x_THD.contiguous(), *how)

    @computes(hyper_connections.spread_streams, FLOAT32)
    def spread_streams(self, x_TD: Tensor, *, num_streams: int) -> Tensor:
        (rows, size), x_TD = x_TD.shape, rows_of(x_TD)
        y_TC = self._stream.empty((rows, num_streams * size))
        for begin in range(0, num_streams * size, size):
            strides = (x_TD.stride(0) * 4, y_TC[:, begin:], num_streams * size * 4)
            self._stream.emit("copy", x_TD, *strides, rows, size * 4)
        return y_TC

    @computes(hyper_connections.collapse_streams, FLOAT32)
    def collapse_streams(
        self,
        x_TC: Tensor,
        mix_XC: Tensor,
        base_X: Tensor,
        scale_3: Tensor,
        *,
        num_streams: int,
        norm_eps: float,
        eps: float,
        num_rounds: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        write_TN = self._stream.empty((x_TC.shape[0], num_streams))
        mix_TM = self._stream.empty((x_TC.shape[0], num_streams * num_streams))
        weights = (mix_XC.contiguous(), base_X, scale_3)
        how = (as_bits(norm_eps), as_bits(eps), num_rounds)
        return self._collapse(x_TC, weights, (write_TN, mix_TM), num_streams, how), write_TN, mix_TM

    @computes(hyper_connections.merge_streams, FLOAT32)
    def merge_streams(
        self,
        x_TC: Tensor,
        mix_NC: Tensor,
        base_N: Tensor,
        scale_1: Tensor,
        *,
        norm_eps: float,
        eps: float,
    ) -> Tensor:
        weights, how = (mix_NC.contiguous(), base_N, scale_1), (as_bits(norm_eps), as_bits(eps), 0)
        return self._collapse(x_TC, weights, (None, None), mix_NC.shape[0], how)

    def _collapse(
        self,
        x_TC: Tensor,
        weights: tuple[Word, ...],
        made: tuple[Word, ...],
        num_streams: int,
        how: tuple[int, ...],
    ) -> Tensor:
        """Return the weighted sum of streams. [T, D]"""
        num_tokens, size = x_TC.shape[0], x_TC.shape[1] // num_streams
        y_TD = self._stream.empty((num_tokens, size))
        sizes = (num_tokens, num_streams, size)
        self._stream.emit("collapse", *strided(x_TC), *weights, y_TD, *made, *sizes, *how)
        return y_TD

    @computes(hyper_connections.expand_streams, FLOAT32)
    def expand_streams(
        self, x_TC: Tensor, y_TD: Tensor, write_TN: Tensor, mix_TM: Tensor
    ) -> Tensor:
        num_streams = write_TN.shape[1]
        out_TC = self._stream.empty(tuple(x_TC.shape))
        given = (*strided(x_TC), *strided(y_TD), write_TN.contiguous(), mix_TM.contiguous())
        sizes = (x_TC.shape[0], num_streams, x_TC.shape[1] // num_streams)
        self._stream.emit("expand", *given, out_TC, *sizes)
        return out_TC

    @computes(grouped_linear.multiply_groups, GROUPED)
    def multiply_groups(self, x_TX: Tensor, weight_GOI: Tensor) -> Tensor:
        num_groups, num_out, num_in = weight_GOI.shape
        y_TY = self._stream.empty((x_TX.shape[0], num_groups * num_out))
        sizes = (x_TX.shape[0], num_groups, num_in, num_out)
        self._stream.emit("groups", *strided(x_TX), weight_GOI.contiguous(), y_TY, *sizes)
        return y_TY
