"""The reference of :mod:`headstock.ops.compressed`.

Shapes: as there; R rows, Q queries of a row, K tokens that a window's row reads, N entries of a
row, C tokens that may be the last of an entry, A tokens that an entry is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.device import OpDevice
from headstock.ops.norm import rms_norm
from headstock.ops.pages_reference import NONE_CHOSEN, SCORES_AT_ONCE, Piece, pieces_of
from headstock.ops.rotary import rotate

if TYPE_CHECKING:
    from headstock.ops.compressed import CompressedSpec, EntryPages

TAG = "pages-shared-td"
"""One layer's buffer is [page, token, feature]."""


class ReferenceCompressedAttention:
    """A window of tokens, and entries, in one softmax."""

    def __init__(self, spec: CompressedSpec, device: OpDevice) -> None:
        self.spec = spec
        preferred = tuple(dict.fromkeys((16, spec.page_size)))
        self.page_format = PageFormat(tag=TAG, page_sizes=preferred, dtype=spec.kv_dtype)
        self.graph_key: tuple[int, ...] = ()

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, page_size, D]."""
        return (num_pages, self.spec.page_size, self.spec.head_dim)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: every layer reads the batch itself."""

    def write(self, kv_TD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store vectors at the batch's write slots."""
        slots_T = batch.write_slots_T[: len(kv_TD)]
        kv.view(-1, kv.shape[2]).index_copy_(0, slots_T, kv_TD.to(kv.dtype))

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return vectors at token slots. [S, D]"""
        return kv.view(-1, kv.shape[2])[slots_S]

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
        """Attend; tokens that no host row covers get zeros. [T, H, D]"""
        out_THD = torch.zeros_like(q_THD)
        others: Iterator[Piece | None] = repeat(None)
        if entries is not None:
            others = pieces_of(entries.batch)
        for piece, other in zip(pieces_of(batch), others, strict=False):
            where = (len(piece.lengths_R), -1)
            q_RQHD = q_THD[piece.tokens].unflatten(0, where)
            keys, masks = [], []
            for key_RKD, mask_RQK in self._readable(q_RQHD.shape[1], kv, piece, entries, other):
                keys.append(key_RKD)
                masks.append(mask_RQK)
            if chosen_Tk is not None:
                masks[-1] = masks[-1] & _marked(chosen_Tk[piece.tokens], masks[-1])
            out_RQHD = self._attend(q_RQHD, torch.cat(keys, 1), torch.cat(masks, 2), sinks_H)
            out_THD[piece.tokens] = out_RQHD.flatten(0, 1)
        return out_THD

    def _readable(
        self,
        num_queries: int,
        kv: Tensor,
        piece: Piece,
        entries: EntryPages | None,
        other: Piece | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield vectors, and which queries see them: of tokens, then of entries."""
        lengths_R, spec = piece.lengths_R.long(), self.spec
        positions_RQ = _positions(lengths_R, num_queries)
        span = torch.arange(num_queries + spec.window - 1, device=lengths_R.device)
        places_RK = (positions_RQ[:, :1] - spec.window + 1) + span
        ages_RQK = positions_RQ.unsqueeze(2) - places_RK.unsqueeze(1)
        is_seen_RQK = (ages_RQK >= 0) & (ages_RQK < spec.window) & (places_RK >= 0).unsqueeze(1)
        slots_RK = _token_slots(piece.page_table_RP, places_RK, spec.page_size)
        yield _gather(kv, slots_RK, places_RK >= 0), is_seen_RQK
        if entries is not None:
            assert other is not None, "the step has other pieces in the entries' group"
            yield _entries_of(
                entries.pages, other, num_queries, page_size=spec.page_size, rate=spec.rate
            )

    def _attend(self, q_RQHD: Tensor, k_RKD: Tensor, mask_RQK: Tensor, sinks_H: Tensor) -> Tensor:
        """Return the weighted sums, some queries at a time. [R, Q, H, D]"""
        k_RKD = k_RKD.float()
        at_once = max(1, SCORES_AT_ONCE // (k_RKD[..., 0].numel() * q_RQHD.shape[2]))
        outs: list[Tensor] = []
        for q, mask in zip(q_RQHD.split(at_once, 1), mask_RQK.split(at_once, 1), strict=True):
            scores_RQHK = torch.einsum("rqhd,rkd->rqhk", q.float(), k_RKD) * self.spec.scale
            scores_RQHK = scores_RQHK.masked_fill(~mask.unsqueeze(2), -torch.inf)
            sinks_RQH1 = sinks_H[:, None].expand(*scores_RQHK.shape[:3], 1)
            probs_RQHK = torch.cat((scores_RQHK, sinks_RQH1), dim=3).softmax(dim=3)[..., :-1]
            outs.append(torch.einsum("rqhk,rkd->rqhd", probs_RQHK, k_RKD))
        return torch.cat(outs, dim=1).to(q_RQHD.dtype)


def make_entries(
    waiting: Tensor,
    waiting_batch: StepBatch,
    batch: StepBatch,
    *,
    bias_mF: Tensor,
    norm_D: Tensor,
    cos_sin_LE: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Make the entries whose last token is the step's, of keys and gates that are stored.

    A row of n tokens ends at most n / m + 1 entries: their number has a bound that the device
    need not be asked for. What is left of the bound goes to the null page.

    Returns:
        Entries, [C, D], and their slots in pages of tokens: those of their last tokens. [C]
    """
    (rate, width), size, page_size = bias_mF.shape, norm_D.shape[0], waiting.shape[1]
    num_tokens, is_overlapped = batch.num_tokens, width > size
    positions_T, rows_T = batch.positions_T[:num_tokens], batch.row_of_token_T[:num_tokens].long()
    most = min(num_tokens, num_tokens // rate + batch.num_rows)
    is_last_T = (positions_T + 1) % rate == 0
    tokens_C = is_last_T.logical_not().to(torch.uint8).sort(stable=True).indices[:most]
    places_C, rows_C = positions_T[tokens_C], rows_T[tokens_C]

    span = torch.arange((2 if is_overlapped else 1) * rate, device=places_C.device)
    places_CA = places_C.unsqueeze(1) - len(span) + 1 + span
    tables_CP = waiting_batch.page_table_RP[rows_C]
    slots_CA = _token_slots(tables_CP, places_CA, page_size)
    read_CAG = _gather(waiting, slots_CA, places_CA >= 0).float()
    key_CAF, gate_CAF = read_CAG.split(width, dim=2)
    gate_CAF = gate_CAF + bias_mF.repeat(len(span) // rate, 1)
    if is_overlapped:
        key_CAF, gate_CAF = (_both_halves(x, rate, size) for x in (key_CAF, gate_CAF))
    gate_CAF = gate_CAF.masked_fill((places_CA < 0).unsqueeze(2), -torch.inf)
    made_CD = (key_CAF * gate_CAF.softmax(dim=1)).sum(dim=1)
    made_CD = rms_norm.reference(made_CD, norm_D.float(), eps=eps)
    # What is no entry may begin before the row does.
    first_C = (places_C + 1 - rate).clamp(min=0)
    made_CD = turn_last(made_CD.unsqueeze(1), first_C, cos_sin_LE, is_inverse=False).squeeze(1)
    # Rows that are done write to the null page, whatever their tables have.
    return made_CD, batch.write_slots_T[tokens_C].masked_fill(~is_last_T[tokens_C], 0)


def best_entries(
    q_THD: Tensor,
    weights_TH: Tensor,
    entries: Tensor,
    batch: StepBatch,
    *,
    page_size: int,
    rate: int,
    num_chosen: int,
) -> Tensor:
    """Choose by scores of all entries of a row; tokens that no host row covers choose none."""
    most = max(1, min(num_chosen, batch.max_kv // rate))
    chosen_Tk = torch.full((len(q_THD), most), NONE_CHOSEN, dtype=torch.int32, device=q_THD.device)
    for piece in pieces_of(batch):
        where = (len(piece.lengths_R), -1)
        q_RQHD = q_THD[piece.tokens].unflatten(0, where).float()
        weights_RQH = weights_TH[piece.tokens].unflatten(0, where).float()
        key_RND, mask_RQN = _entries_of(
            entries, piece, q_RQHD.shape[1], page_size=page_size, rate=rate
        )
        count = min(most, key_RND.shape[1])
        at_once = max(1, SCORES_AT_ONCE // (key_RND[..., 0].numel() * q_RQHD.shape[2]))
        parts = (x.split(at_once, dim=1) for x in (q_RQHD, weights_RQH, mask_RQN))
        outs: list[Tensor] = []
        for q, weights, mask in zip(*parts, strict=True):
            scores_RQHN = torch.einsum("rqhd,rnd->rqhn", q, key_RND.float()).relu()
            scores_RQN = torch.einsum("rqh,rqhn->rqn", weights, scores_RQHN)
            best = scores_RQN.masked_fill(~mask, -torch.inf).topk(count, dim=2)
            outs.append(best.indices.masked_fill(best.values == -torch.inf, NONE_CHOSEN).int())
        chosen_Tk[piece.tokens, :count] = torch.cat(outs, dim=1).flatten(0, 1)
    return chosen_Tk


def turn_last(
    x_THD: Tensor, positions_T: Tensor, cos_sin_LE: Tensor, *, is_inverse: bool
) -> Tensor:
    """Rotate the last features of heads, or back: by the angles' opposites."""
    size = cos_sin_LE.shape[1]
    if is_inverse:
        signs_E = torch.ones_like(cos_sin_LE[0])
        signs_E[size // 2 :] = -1
        table_TE = cos_sin_LE[positions_T] * signs_E
    else:
        table_TE = cos_sin_LE[positions_T]
    rows_T = torch.arange(len(table_TE), device=x_THD.device)
    kept, turned = x_THD.split((x_THD.shape[2] - size, size), dim=2)
    return torch.cat((kept, rotate(turned, rows_T, table_TE, is_interleaved=True)), dim=2)


def _positions(lengths_R: Tensor, num_queries: int) -> Tensor:
    """Return the positions of a row's queries, its last tokens. int64. [R, Q]"""
    offsets_Q = torch.arange(num_queries, device=lengths_R.device) - num_queries
    return lengths_R.long().unsqueeze(1) + offsets_Q


def _entries_of(
    entries: Tensor, piece: Piece, num_queries: int, *, page_size: int, rate: int
) -> tuple[Tensor, Tensor]:
    """Return the entries of rows, as many as there may be, and which queries see them.

    Returns:
        [R, N, D], and [R, Q, N].
    """
    numbers_N = torch.arange(max(1, piece.max_kv // rate), device=entries.device)
    places_N = (numbers_N + 1) * rate - 1
    num_pages = piece.page_table_RP.shape[1]
    pages_RN = piece.page_table_RP[:, (places_N // page_size).clamp(max=num_pages - 1)].long()
    slots_RN = pages_RN * entries.shape[1] + places_N % page_size // rate
    is_there_RN = places_N < piece.lengths_R.unsqueeze(1)
    mask_RQN = places_N <= _positions(piece.lengths_R, num_queries).unsqueeze(2)
    return _gather(entries, slots_RN, is_there_RN), mask_RQN


def _marked(chosen_Tk: Tensor, like_RQN: Tensor) -> Tensor:
    """Return which entries were chosen, of as many as ``like_RQN`` has. [R, Q, N]"""
    num_entries = like_RQN.shape[2]
    places_Tk = torch.where(chosen_Tk == NONE_CHOSEN, num_entries, chosen_Tk.clamp(max=num_entries))
    shape = (len(chosen_Tk), num_entries + 1)
    marked_TN = torch.zeros(shape, dtype=torch.bool, device=chosen_Tk.device)
    marked_TN = marked_TN.scatter(1, places_Tk.long(), True)
    return marked_TN[:, :-1].view_as(like_RQN)


def _token_slots(table_RP: Tensor, places_RK: Tensor, page_size: int) -> Tensor:
    """Return where tokens of rows lie, in tokens of a buffer; of others: anywhere. [R, K]"""
    places_RK = places_RK.clamp(0, table_RP.shape[1] * page_size - 1)
    pages_RK = table_RP.long().gather(1, places_RK // page_size)
    return pages_RK * page_size + places_RK % page_size


def _gather(pages: Tensor, slots_RK: Tensor, is_there_RK: Tensor) -> Tensor:
    """Return what lies at slots, zeros where nothing does: 0 * nan is nan. [R, K, features]"""
    flat = pages.view(-1, pages.shape[-1])
    read = flat.index_select(0, slots_RK.flatten()).unflatten(0, slots_RK.shape)
    return read.masked_fill(~is_there_RK.unsqueeze(2), 0)


def _both_halves(x_CAF: Tensor, rate: int, size: int) -> Tensor:
    """Return first halves of the tokens before, second halves of an entry's own. [C, A, D]"""
    return torch.cat((x_CAF[:, :rate, :size], x_CAF[:, rate:, size:]), dim=1)
