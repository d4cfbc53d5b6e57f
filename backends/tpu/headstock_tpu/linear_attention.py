"""The gated delta rule in programs of a fixed size. Pages are the reference's.

Shapes: as in :mod:`headstock.ops.linear_attention`; C chunks, N and M tokens of a chunk, c channels
that decay apart: Dk, or 1 where a head decays as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.linear_attention_reference import ReferenceLinearAttention
from headstock.ops.states_reference import begun, is_new
from headstock_tpu.ragged import Chunks, OneEach, Rows

if TYPE_CHECKING:
    from headstock.ops.attention import StepBatch
    from headstock.ops.linear_attention import DeltaWeights

CHUNK, CHANNEL_CHUNK = 32, 16
"""Tokens of a chunk, powers of 2; by channel each pair of them has Dk decays."""


class StaticLinearAttention(ReferenceLinearAttention):
    """Steps of one token a row at once, others in chunks, which are at once too.

    The reference solves triangular systems, which torch-xla leaves to the host.
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
        """Convolve, update the rows' states and read them. [T, V, Dv]"""
        heads, size = self.spec.num_value_heads, CHUNK
        if self.spec.decays_by_channel:
            size = CHANNEL_CHUNK
        rows = Rows(batch)
        chunks = OneEach() if batch.max_query == 1 else Chunks(rows, size)
        found, is_new_R = self.read(kv, batch.page_table_RP[:, 0]), is_new(batch)
        inputs_RXC, matrix_RVkd = (begun(x, is_new_R) for x in found)
        x_TC, inputs_RXC = rows.convolve(qkv_TC, weights.conv_CW, inputs_RXC)
        q, k, v = self._heads(chunks.spread(x_TC))
        decay_TVc = functional.softplus(a_TG.float() + weights.bias_G).unflatten(1, (heads, -1))
        decay_TVc = -weights.decay_V.exp().unsqueeze(1) * decay_TVc
        g, beta = (chunks.spread(x).transpose(1, 2) for x in (decay_TVc, b_TV.float().sigmoid()))
        parts = parts_of(q, k, v, g, beta)
        if isinstance(chunks, Chunks):
            decay, added = parts.decay(), parts.added()
            begun_CVkd, left_RVkd = chunks.states(decay, added, matrix_RVkd, torch.matmul)
        else:
            begun_CVkd, left_RVkd = matrix_RVkd, parts.after(matrix_RVkd)
        y_CVNd = parts.read(begun_CVkd)
        left_RX = torch.cat((inputs_RXC.flatten(1), left_RVkd.flatten(1)), dim=1)
        kv.index_copy_(0, batch.page_table_RP[:, 1].long(), left_RX)
        return chunks.gather(y_CVNd.transpose(1, 2)).to(qkv_TC.dtype)


class Parts(NamedTuple):
    """What a chunk does to the state that it begins with, and reads. float32.

    Attributes:
        kept: What is left of each row of the state. [C, V, c, 1]
        left: Keys of what is written, decayed to the chunk's end. [C, V, Dk, N]
        query: Reads the state. [C, V, N, Dk]
        scores: Read what the chunk's own tokens write. [C, V, N, M]
        own: What a token writes beside what the state has under its key. [C, V, N, Dv]
        through: Reads the latter. [C, V, N, Dk]
    """

    kept: Tensor
    left: Tensor
    query: Tensor
    scores: Tensor
    own: Tensor
    through: Tensor

    def decay(self) -> Tensor:
        """Return what multiplies a state. [C, V, Dk, Dk]"""
        size = self.left.shape[2]
        kept_kk = torch.eye(size, device=self.left.device) * self.kept
        return kept_kk - self.left @ self.through

    def added(self) -> Tensor:
        """Return what is then added to it. [C, V, Dk, Dv]"""
        return self.left @ self.own

    def read(self, state_CVkd: Tensor) -> Tensor:
        """Return what queries read where chunks begin with these states. [C, V, N, Dv]"""
        written = self.own - self.through @ state_CVkd
        return self.query @ state_CVkd + self.scores @ written

    def after(self, state_CVkd: Tensor) -> Tensor:
        """Return the states after chunks that begin with these. [C, V, Dk, Dv]"""
        return self.kept * state_CVkd + self.left @ (self.own - self.through @ state_CVkd)


def parts_of(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Parts:
    """Return what chunks do.

    Args:
        q: Scaled queries of unit length. [C, V, N, Dk]
        k: Keys of unit length; 0: no token. [C, V, N, Dk]
        v: Values. [C, V, N, Dv]
        g: Logarithms of the decays before each token, 0 or less. [C, V, N, c]
        beta: How much of what is under its key a token replaces. [C, V, N]
    """
    sum_Nc = g.cumsum(dim=2)  # logarithms of the decays since the chunk began
    between_NMc = sum_Nc.unsqueeze(3) - sum_Nc.unsqueeze(2)
    is_later_NM = torch.ones(between_NMc.shape[2:4], dtype=torch.bool, device=g.device).tril()
    between_NMc = between_NMc.masked_fill(~is_later_NM.unsqueeze(2), -torch.inf).exp()
    since_Nc, beta_N1 = sum_Nc.exp(), beta.unsqueeze(3)
    # A token replaces what earlier ones of its chunk left under its key: a triangular system.
    inverse_NM = unit_lower_inverse(_compare(k * beta_N1, k, between_NMc))
    own, through = inverse_NM @ (v * beta_N1), inverse_NM @ (k * beta_N1 * since_Nc)
    last_1c = sum_Nc[:, :, -1:]
    return Parts(
        kept=last_1c.exp().transpose(2, 3),
        left=(k * (last_1c - sum_Nc).exp()).transpose(2, 3),
        query=q * since_Nc,
        scores=_compare(q, k, between_NMc),
        own=own,
        through=through,
    )


def unit_lower_inverse(matrix_NN: Tensor) -> Tensor:
    """Invert lower triangles whose diagonal counts as 1, by products alone. [..., N, N]

    Blocks of twice the size each round, as [[A, 0], [C, B]] has -inv(B) C inv(A) below its
    diagonal: a power series would cancel where keys are alike.

    Args:
        matrix_NN: What is above the diagonal, or on it, is not looked at. N is a power of 2.
    """
    size = matrix_NN.shape[-1]
    places_N = torch.arange(size, device=matrix_NN.device)
    inverse_NN = torch.eye(size, device=matrix_NN.device).expand_as(matrix_NN)
    done = 1
    while done < size:
        half_N = places_N.div(done, rounding_mode="floor")
        is_below_NN = (half_N[:, None] == half_N + 1) & (half_N[:, None] % 2 == 1)
        below_NN = torch.where(is_below_NN, matrix_NN, 0)
        inverse_NN = inverse_NN - inverse_NN @ below_NN @ inverse_NN
        done *= 2
    return inverse_NN


def _compare(x_Nk: Tensor, k_Mk: Tensor, between_NMc: Tensor) -> Tensor:
    """Return each token's product with the keys of earlier ones, decayed since. [C, V, N, M]"""
    if between_NMc.shape[-1] == 1:
        return x_Nk @ k_Mk.transpose(2, 3) * between_NMc.squeeze(-1)
    return (x_Nk.unsqueeze(3) * k_Mk.unsqueeze(2) * between_NMc).sum(-1)
