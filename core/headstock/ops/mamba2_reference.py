"""The reference of the op ``mamba2``: steps for rows of one token, chunks for others.

Shapes: as in :mod:`headstock.ops.mamba2`; L tokens of a row.
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
    from headstock.ops.mamba2 import Mamba2Spec, Mamba2Weights

TAG = "state-inputs-hnp"
"""A page is the inputs of the convolution, then the matrices."""
CHUNK = 64
"""Tokens whose updates of a state are made one."""


class ReferenceMamba2:
    """A state space a head after a causal convolution."""

    def __init__(self, spec: Mamba2Spec, device: OpDevice) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        self.page_format = PageFormat(tag=TAG, page_sizes=(1,), dtype=torch.float32)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, numbers of a page]."""
        return (num_pages, self.spec.page_numbers)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: every layer reads the batch itself."""

    def read(self, kv: Tensor, pages_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return what pages hold. [R, W - 1, C] and [R, H, N, P]"""
        return read_states(self.spec, kv, pages_R)

    def run(
        self, xbc_TC: Tensor, dt_TH: Tensor, weights: Mamba2Weights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Convolve, update the rows' states and read them. [T, H, P]"""
        spec = self.spec
        step_TH = functional.softplus(dt_TH.float() + weights.step_bias_H)
        step_TH = step_TH.clamp(spec.least_step, spec.largest_step)
        decay_TH = -weights.decay_H.exp() * step_TH
        y_THP = xbc_TC.new_zeros((len(xbc_TC), spec.num_heads, spec.head_dim))
        is_new_R = is_new(batch)
        for rows, tokens in state_pieces(batch):
            where = (rows.stop - rows.start, -1)
            found = self.read(kv, batch.page_table_RP[rows, 0])
            inputs_RXC, state_RHNP = (begun(x, is_new_R[rows]) for x in found)
            x_RLC = xbc_TC[tokens].unflatten(0, where)
            x_RLC, inputs_RXC = causal_conv(x_RLC, weights.conv_CW, inputs_RXC, weights.conv_bias_C)
            x, b, c = self._heads(x_RLC)
            g, step = (v[tokens].unflatten(0, where).transpose(1, 2) for v in (decay_TH, step_TH))
            y_RHLP, state_RHNP = scan(x * step.unsqueeze(3), b, c, g, state_RHNP)
            y_RHLP = y_RHLP + x * weights.skip_H[:, None, None]
            y_THP[tokens] = y_RHLP.transpose(1, 2).flatten(0, 1).to(y_THP.dtype)
            left_RX = torch.cat((inputs_RXC.flatten(1), state_RHNP.flatten(1)), dim=1)
            kv.index_copy_(0, batch.page_table_RP[rows, 1].long(), left_RX)
        return y_THP

    def _heads(self, x_RLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, B and C of every head. float32. [R, H, L, P or N]"""
        spec = self.spec
        wide = spec.num_groups * spec.state_size
        parts = x_RLC.float().split((spec.num_heads * spec.head_dim, wide, wide), dim=2)
        sizes = (spec.head_dim, spec.state_size, spec.state_size)
        x, b, c = (
            v.unflatten(2, (-1, size)).transpose(1, 2) for v, size in zip(parts, sizes, strict=True)
        )
        each = spec.num_heads // spec.num_groups
        return x, b.repeat_interleave(each, dim=1), c.repeat_interleave(each, dim=1)


def read_states(spec: Mamba2Spec, kv: Tensor, pages_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return what pages of the reference's layout hold. [R, W - 1, C] and [R, H, N, P]"""
    found_RX = kv.index_select(0, pages_R.long())
    inputs_RX, states_RX = found_RX.tensor_split((spec.inputs_size,), dim=1)
    shape = (spec.num_heads, spec.state_size, spec.head_dim)
    return inputs_RX.unflatten(1, (-1, spec.conv_size)), states_RX.unflatten(1, shape)


def scan(v: Tensor, b: Tensor, c: Tensor, g: Tensor, state_RHNP: Tensor) -> tuple[Tensor, Tensor]:
    """Update states and read them, chunk by chunk. All in float32.

    Args:
        v: What is written. [R, H, L, P]
        b: Under what it is written. [R, H, L, N]
        c: What is read. [R, H, L, N]
        g: Logarithm of the decay before each token, 0 or less. [R, H, L]
        state_RHNP: States. [R, H, N, P]

    Returns:
        What was read, [R, H, L, P], and the states after the last token.
    """
    outs: list[Tensor] = []
    pieces = zip(*(x.split(CHUNK, dim=2) for x in (v, b, c, g)), strict=True)
    for v_l, b_l, c_l, g_l in pieces:
        since_L = g_l.cumsum(dim=2)  # logarithm of the decay since the chunk began
        between_LM = since_L.unsqueeze(3) - since_L.unsqueeze(2)
        is_later_LM = torch.ones_like(between_LM, dtype=torch.bool).tril()
        between_LM = between_LM.masked_fill(~is_later_LM, -torch.inf).exp()
        scores_LM = c_l @ b_l.transpose(2, 3) * between_LM
        outs.append(scores_LM @ v_l + (c_l * since_L.exp().unsqueeze(3)) @ state_RHNP)
        last = since_L[:, :, -1:]
        left = b_l * (last - since_L).exp().unsqueeze(3)
        state_RHNP = state_RHNP * last.exp().unsqueeze(3) + left.transpose(2, 3) @ v_l
    return torch.cat(outs, dim=2), state_RHNP
