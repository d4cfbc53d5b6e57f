"""The reference of the op ``linear_attention``: steps for rows of one token, chunks for others.

Shapes: as in :mod:`headstock.ops.linear_attention`; N and M tokens of a chunk, c channels that
decay apart: Dk, or 1 where a head decays as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.device import OpDevice
from headstock.ops.states_reference import begun, causal_conv, is_new, state_pieces

if TYPE_CHECKING:
    from headstock.ops.linear_attention import DeltaWeights, LinearAttentionSpec

UNIT_EPS = 1e-6
"""Added to the squared length of queries and keys."""
TAG = "state-inputs-vkd"
"""A page is the inputs of the convolution, then the matrices."""
CHUNK, CHANNEL_CHUNK = 64, 16
"""Tokens whose updates of a state are made one: by channel, each pair of them has Dk decays."""


class ReferenceLinearAttention:
    """The gated delta rule after a causal convolution."""

    def __init__(self, spec: LinearAttentionSpec, device: OpDevice) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        self.page_format = PageFormat(tag=TAG, page_sizes=(1,), dtype=torch.float32)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, numbers of a state]."""
        return (num_pages, self.spec.state_size)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: every layer reads the batch itself."""

    def read(self, kv: Tensor, pages_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return what pages hold. [R, W - 1, C] and [R, V, Dk, Dv]"""
        spec = self.spec
        inputs_RX, matrix_RX = kv.index_select(0, pages_R.long()).tensor_split(
            (spec.inputs_size,), dim=1
        )
        shape = (spec.num_value_heads, spec.key_size, spec.value_size)
        return inputs_RX.unflatten(1, (-1, spec.conv_size)), matrix_RX.unflatten(1, shape)

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
        spec = self.spec
        beta_TV = b_TV.float().sigmoid()
        decay_TVc = functional.softplus(a_TG.float() + weights.bias_G)
        decay_TVc = decay_TVc.unflatten(1, (spec.num_value_heads, -1))
        decay_TVc = -weights.decay_V.exp().unsqueeze(1) * decay_TVc
        y_TVd = qkv_TC.new_zeros((len(qkv_TC), spec.num_value_heads, spec.value_size))
        is_new_R = is_new(batch)
        for rows, tokens in state_pieces(batch):
            where = (rows.stop - rows.start, -1)
            found = self.read(kv, batch.page_table_RP[rows, 0])
            inputs_RXC, matrix_RVkd = (begun(x, is_new_R[rows]) for x in found)
            x_RNC = qkv_TC[tokens].unflatten(0, where)
            x_RNC, inputs_RXC = causal_conv(x_RNC, weights.conv_CW, inputs_RXC)
            q, k, v = self._heads(x_RNC)
            g, beta = (x[tokens].unflatten(0, where).transpose(1, 2) for x in (decay_TVc, beta_TV))
            y_RVNd, matrix_RVkd = gated_delta(q, k, v, g, beta, matrix_RVkd)
            y_TVd[tokens] = y_RVNd.transpose(1, 2).flatten(0, 1).to(y_TVd.dtype)
            left_RX = torch.cat((inputs_RXC.flatten(1), matrix_RVkd.flatten(1)), dim=1)
            kv.index_copy_(0, batch.page_table_RP[rows, 1].long(), left_RX)
        return y_TVd

    def _heads(self, x_RNC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit queries and keys, and values, of every value head. float32. [R, V, N, D]"""
        spec = self.spec
        keys = spec.num_key_heads * spec.key_size
        parts = x_RNC.float().split((keys, keys, spec.num_value_heads * spec.value_size), dim=2)
        sizes = (spec.key_size, spec.key_size, spec.value_size)
        q, k, v = (
            x.unflatten(2, (-1, size)).transpose(1, 2) for x, size in zip(parts, sizes, strict=True)
        )
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + UNIT_EPS) for x in (q, k))
        each = spec.num_value_heads // spec.num_key_heads
        q, k = (x.repeat_interleave(each, dim=1) for x in (q, k))
        return q * spec.key_size**-0.5, k, v


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state_RVkd: Tensor
) -> tuple[Tensor, Tensor]:
    """Update states by the gated delta rule and read them, chunk by chunk. All in float32.

    Args:
        q: Scaled queries of unit length. [R, V, N, Dk]
        k: Keys of unit length. [R, V, N, Dk]
        v: Values. [R, V, N, Dv]
        g: Logarithms of the decays before each token, 0 or less. [R, V, N, c]
        beta: How much of what is under its key a token replaces. [R, V, N]
        state_RVkd: States. [R, V, Dk, Dv]

    Returns:
        What queries read, [R, V, N, Dv], and the states after the last token.
    """
    outs: list[Tensor] = []
    chunk = CHUNK if g.shape[3] == 1 else CHANNEL_CHUNK
    pieces = zip(*(x.split(chunk, dim=2) for x in (q, k, v, g, beta)), strict=True)
    for q_n, k_n, v_n, g_n, beta_n in pieces:
        sum_Nc = g_n.cumsum(dim=2)  # logarithms of the decays since the chunk began
        between_NMc = sum_Nc.unsqueeze(3) - sum_Nc.unsqueeze(2)
        is_later_NM = torch.ones_like(between_NMc[0, 0, ..., 0], dtype=torch.bool).tril()
        between_NMc = between_NMc.masked_fill(~is_later_NM.unsqueeze(2), -torch.inf).exp()
        since_Nc, beta_N1 = sum_Nc.exp(), beta_n.unsqueeze(3)
        # A token replaces what earlier ones of its chunk left under its key: a triangular system.
        mixed_NM = _compare(k_n * beta_N1, k_n, between_NMc)
        wanted = torch.cat((v_n * beta_N1, k_n * beta_N1 * since_Nc), dim=3)
        solved = torch.linalg.solve_triangular(mixed_NM, wanted, upper=False, unitriangular=True)
        own, through = solved.split((v.shape[3], k.shape[3]), dim=3)
        written = own - through @ state_RVkd
        outs.append((q_n * since_Nc) @ state_RVkd + _compare(q_n, k_n, between_NMc) @ written)
        last_1c = sum_Nc[:, :, -1:]
        left = k_n * (last_1c - sum_Nc).exp()
        state_RVkd = state_RVkd * last_1c.exp().transpose(2, 3) + left.transpose(2, 3) @ written
    return torch.cat(outs, dim=2), state_RVkd


def _compare(x_Nk: Tensor, k_Mk: Tensor, between_NMc: Tensor) -> Tensor:
    """Return each token's product with the keys of earlier ones, decayed since. [R, V, N, M]"""
    if between_NMc.shape[-1] == 1:
        return x_Nk @ k_Mk.transpose(2, 3) * between_NMc.squeeze(-1)
    return (x_Nk.unsqueeze(3) * k_Mk.unsqueeze(2) * between_NMc).sum(-1)
