"""Convolutions and state spaces in programs of a fixed size. Pages are the reference's.

Shapes: as in the modules of their ops; R rows, L and M tokens of a chunk, K chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.mamba2_reference import ReferenceMamba2
from headstock.ops.selective_scan_reference import ReferenceSelectiveScan
from headstock.ops.short_convolution_reference import ReferenceShortConvolution
from headstock.ops.states_reference import begun, is_new
from headstock_tpu.ragged import Chunks, Rows, joined

if TYPE_CHECKING:
    from headstock.ops.attention import StepBatch
    from headstock.ops.mamba2 import Mamba2Weights
    from headstock.ops.selective_scan import ScanWeights
    from headstock.ops.short_convolution import ConvolutionWeights

CHUNK = 32
"""Tokens of a chunk."""


class StaticShortConvolution(ReferenceShortConvolution):
    """Steps of one token a row as the reference computes them, others in one convolution."""

    def run(
        self, bcx_TY: Tensor, weights: ConvolutionWeights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Convolve, and note the rows' last inputs. [T, C]"""
        if batch.max_query == 1:
            return super().run(bcx_TY, weights, kv, batch)
        inputs_TC, c_TC = bcx_TY, None
        if self.spec.is_gated:
            b_TC, c_TC, x_TC = bcx_TY.split(self.spec.size, dim=1)
            inputs_TC = b_TC * x_TC
        found_RXC = begun(self.read(kv, batch.page_table_RP[:, 0]), is_new(batch))
        y_TC, left_RXC = Rows(batch).convolve(
            inputs_TC, weights.conv_CW, found_RXC, weights.bias_C, has_silu=False
        )
        kv.index_copy_(0, batch.page_table_RP[:, 1].long(), left_RXC.flatten(1))
        return y_TC if c_TC is None else y_TC * c_TC


class StaticMamba2(ReferenceMamba2):
    """Steps of one token a row as the reference computes them, others chunk by chunk at once."""

    def run(
        self, xbc_TC: Tensor, dt_TH: Tensor, weights: Mamba2Weights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Convolve, update the rows' states and read them. [T, H, P]"""
        if batch.max_query == 1:
            return super().run(xbc_TC, dt_TH, weights, kv, batch)
        spec, rows = self.spec, Rows(batch)
        chunks, is_new_R = Chunks(rows, CHUNK), is_new(batch)
        step_TH = functional.softplus(dt_TH.float() + weights.step_bias_H)
        step_TH = step_TH.clamp(spec.least_step, spec.largest_step)
        found = self.read(kv, batch.page_table_RP[:, 0])
        inputs_RXC, state_RHNP = (begun(x, is_new_R) for x in found)
        xbc_TC, inputs_RXC = rows.convolve(xbc_TC, weights.conv_CW, inputs_RXC, weights.conv_bias_C)
        x, b, c = self._heads(chunks.spread(xbc_TC))
        decay_TH = -weights.decay_H.exp() * step_TH
        g, step = (chunks.spread(v).transpose(1, 2) for v in (decay_TH, step_TH))
        v, since_L1 = x * step.unsqueeze(3), g.cumsum(dim=2).unsqueeze(3)
        between_LM = since_L1 - since_L1.transpose(2, 3)
        is_later_LM = torch.ones(between_LM.shape[2:], dtype=torch.bool, device=x.device).tril()
        between_LM = between_LM.masked_fill(~is_later_LM, -torch.inf).exp()
        last_11 = since_L1[:, :, -1:]
        added_NP = (b * (last_11 - since_L1).exp()).transpose(2, 3) @ v
        begun_KHNP, left_RHNP = chunks.states(last_11.exp(), added_NP, state_RHNP, torch.mul)
        y = (c @ b.transpose(2, 3) * between_LM) @ v + (c * since_L1.exp()) @ begun_KHNP
        y = y + x * weights.skip_H[:, None, None]
        left_RX = torch.cat((inputs_RXC.flatten(1), left_RHNP.flatten(1)), dim=1)
        kv.index_copy_(0, batch.page_table_RP[:, 1].long(), left_RX)
        return chunks.gather(y.transpose(1, 2)).to(xbc_TC.dtype)


class StaticSelectiveScan(ReferenceSelectiveScan):
    """Steps of one token a row as the reference computes them, others all tokens at once."""

    def run(
        self,
        x_TC: Tensor,
        dt_TC: Tensor,
        bc_TX: Tensor,
        weights: ScanWeights,
        kv: Tensor,
        batch: StepBatch,
    ) -> Tensor:
        """Update the rows' states and read them. [T, C]"""
        if batch.max_query == 1:
            return super().run(x_TC, dt_TC, bc_TX, weights, kv, batch)
        rows = Rows(batch)
        found_RCN = begun(self.read(kv, batch.page_table_RP[:, 0]), is_new(batch))
        step_TC1 = functional.softplus(dt_TC.float()).unsqueeze(2)
        b_TN, c_TN = bc_TX.float().chunk(2, dim=1)
        decay_TCN = (-weights.decay_CN.exp() * step_TC1).exp()
        added_TCN = x_TC.float().unsqueeze(2) * step_TC1 * b_TN.unsqueeze(1)
        is_first_T11 = (rows.offset_T == 0)[:, None, None]
        found_TCN = found_RCN.index_select(0, rows.row_T)
        added_TCN = torch.where(is_first_T11, decay_TCN * found_TCN + added_TCN, added_TCN)
        decay_TCN = torch.where(is_first_T11, 0, decay_TCN)
        state_TCN = joined(decay_TCN, added_TCN, torch.mul, rows.num_tokens)
        ends_R = (rows.starts_R + rows.counts_R - 1).clamp(0, rows.num_tokens - 1)
        left_RCN = state_TCN.index_select(0, ends_R)
        kv.index_copy_(0, batch.page_table_RP[:, 1].long(), left_RCN.flatten(1))
        y_TC = (state_TCN * c_TN.unsqueeze(1)).sum(2) + x_TC.float() * weights.skip_C
        return y_TC.to(x_TC.dtype)
