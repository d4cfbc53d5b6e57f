"""The reference of the op ``linear_attention``: steps for rows of one token, chunks for others.

Shapes: as in :mod:`headstock.ops.linear_attention`; N tokens of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.attention import KVLayout, StepBatch
from headstock.ops.device import OpDevice
from headstock.ops.linear_attention import (
    UNIT_EPS,
    DeltaWeights,
    LinearAttentionSpec,
)

TAG = "state-inputs-vkd"
"""A page is the inputs of the convolution, then the matrices."""
CHUNK = 64
"""Tokens whose updates of a state are made one."""


class ReferenceLinearAttention:
    """The gated delta rule after a causal convolution."""

    def __init__(self, spec: LinearAttentionSpec, device: OpDevice) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        self.layout = KVLayout(tag=TAG, page_sizes=(1,), dtype=torch.float32)

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
        a_TV: Tensor,
        weights: DeltaWeights,
        kv: Tensor,
        batch: StepBatch,
    ) -> Tensor:
        """Convolve, update the rows' states and read them. [T, V, Dv]"""
        spec = self.spec
        beta_TV = b_TV.float().sigmoid()
        decay_TV = -weights.decay_V.exp() * functional.softplus(a_TV.float() + weights.bias_V)
        y_TVd = qkv_TC.new_zeros((len(qkv_TC), spec.num_value_heads, spec.value_size))
        queries_R = batch.query_starts_R1.diff()
        is_new_R = batch.kv_lengths_R <= queries_R[: batch.num_rows]
        for rows, tokens in _pieces(batch):
            where = (rows.stop - rows.start, -1)
            found = self.read(kv, batch.page_table_RP[rows, 0])
            inputs_RXC, matrix_RVkd = (_begun(x, is_new_R[rows]) for x in found)
            x_RNC = qkv_TC[tokens].unflatten(0, where)
            x_RNC, inputs_RXC = causal_conv(x_RNC, weights.conv_CW, inputs_RXC)
            q, k, v = self._heads(x_RNC)
            g, beta = (x[tokens].unflatten(0, where).transpose(1, 2) for x in (decay_TV, beta_TV))
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


def causal_conv(x_RNC: Tensor, weight_CW: Tensor, before_RXC: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve each feature with its last tokens, then silu.

    Args:
        x_RNC: Tokens of each row. [R, N, C]
        weight_CW: The newest token's last. [C, W]
        before_RXC: The W - 1 tokens before them. float32. [R, W - 1, C]

    Returns:
        The same shape as ``x_RNC``, and the last W - 1 tokens, float32.
    """
    num_tokens, width = x_RNC.shape[1], weight_CW.shape[1]
    seen_RYC = torch.cat((before_RXC, x_RNC.float()), dim=1)
    parts = [seen_RYC[:, i : i + num_tokens] * weight_CW[:, i].float() for i in range(width)]
    y_RNC = functional.silu(torch.stack(parts).sum(dim=0))
    return y_RNC.to(x_RNC.dtype), seen_RYC[:, num_tokens:]


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state_RVkd: Tensor
) -> tuple[Tensor, Tensor]:
    """Update states by the gated delta rule and read them, chunk by chunk. All in float32.

    Args:
        q: Scaled queries of unit length. [R, V, N, Dk]
        k: Keys of unit length. [R, V, N, Dk]
        v: Values. [R, V, N, Dv]
        g: Logarithm of the decay before each token, 0 or less. [R, V, N]
        beta: How much of what is under its key a token replaces. [R, V, N]
        state_RVkd: States. [R, V, Dk, Dv]

    Returns:
        What queries read, [R, V, N, Dv], and the states after the last token.
    """
    outs: list[Tensor] = []
    pieces = zip(*(x.split(CHUNK, dim=2) for x in (q, k, v, g, beta)), strict=True)
    for q_n, k_n, v_n, g_n, beta_n in pieces:
        since_N = g_n.cumsum(dim=2)  # logarithm of the decay since the chunk began
        between_NM = since_N.unsqueeze(3) - since_N.unsqueeze(2)
        is_later_NM = torch.ones_like(between_NM, dtype=torch.bool).tril()
        between_NM = between_NM.masked_fill(~is_later_NM, -torch.inf).exp()
        since_N1, beta_N1 = since_N.exp().unsqueeze(3), beta_n.unsqueeze(3)
        # A token replaces what earlier ones of its chunk left under its key: a triangular system.
        mixed_NM = (k_n * beta_N1) @ k_n.transpose(2, 3) * between_NM
        wanted = torch.cat((v_n * beta_N1, k_n * beta_N1 * since_N1), dim=3)
        solved = torch.linalg.solve_triangular(mixed_NM, wanted, upper=False, unitriangular=True)
        own, through = solved.split((v.shape[3], k.shape[3]), dim=3)
        written = own - through @ state_RVkd
        outs.append(
            (q_n * since_N1) @ state_RVkd + (q_n @ k_n.transpose(2, 3) * between_NM) @ written
        )
        last = since_N[:, :, -1:]
        left = k_n * (last - since_N).exp().unsqueeze(3)
        state_RVkd = state_RVkd * last.exp().unsqueeze(3) + left.transpose(2, 3) @ written
    return torch.cat(outs, dim=2), state_RVkd


def _begun(found: Tensor, is_new_R: Tensor) -> Tensor:
    """Return what rows begin with: what was found, or zeros. [R, ...]"""
    return torch.where(is_new_R.view(-1, *(1 for _ in found.shape[1:])), 0, found)


def _pieces(batch: StepBatch) -> list[tuple[slice, slice]]:
    """Return rows to compute at once, with their tokens: those of one token, others alone.

    Steps of one token a row need nothing of the host, and can be captured.
    """
    if batch.max_query == 1:
        return [(slice(0, batch.num_rows), slice(0, batch.num_rows))]
    assert batch.host_rows, "a step with rows of several tokens cannot be captured here"
    found: list[tuple[slice, slice]] = []
    begin = 0
    for row, (num_queries, _) in enumerate(batch.host_rows):
        found.append((slice(row, row + 1), slice(begin, begin + num_queries)))
        begin += num_queries
    return found
