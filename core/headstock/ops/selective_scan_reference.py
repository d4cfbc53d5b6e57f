"""The reference of the op ``selective_scan``, token by token.

Shapes: as in its module; L tokens of a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.device import OpDevice
from headstock.ops.states_reference import begun, is_new, state_pieces

if TYPE_CHECKING:
    from headstock.ops.selective_scan import ScanWeights, SelectiveScanSpec

TAG = "state-cn"
"""A page is the states of all features."""


class ReferenceSelectiveScan:
    """A state of each feature, whose numbers decay at their own speeds."""

    def __init__(self, spec: SelectiveScanSpec, device: OpDevice) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        self.page_format = PageFormat(tag=TAG, page_sizes=(1,), dtype=torch.float32)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, numbers of a page]."""
        return (num_pages, self.spec.page_numbers)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: every layer reads the batch itself."""

    def read(self, kv: Tensor, pages_R: Tensor) -> Tensor:
        """Return what pages hold. [R, C, N]"""
        return kv.index_select(0, pages_R.long()).unflatten(1, (self.spec.size, -1))

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
        y_TC, is_new_R = torch.zeros_like(x_TC), is_new(batch)
        step_TC, speed_CN = functional.softplus(dt_TC.float()), -weights.decay_CN.exp()
        for rows, tokens in state_pieces(batch):
            where = (rows.stop - rows.start, -1)
            state_RCN = begun(self.read(kv, batch.page_table_RP[rows, 0]), is_new_R[rows])
            given = (x_TC[tokens].float(), step_TC[tokens], bc_TX[tokens].float())
            x_RLC, step_RLC, bc_RLX = (part.unflatten(0, where) for part in given)
            b_RLN, c_RLN = bc_RLX.chunk(2, dim=2)
            read: list[Tensor] = []
            for t in range(x_RLC.shape[1]):
                step_RC1 = step_RLC[:, t].unsqueeze(2)
                taken_RCN = (x_RLC[:, t].unsqueeze(2) * step_RC1) * b_RLN[:, t].unsqueeze(1)
                state_RCN = state_RCN * (speed_CN * step_RC1).exp() + taken_RCN
                read.append((state_RCN * c_RLN[:, t].unsqueeze(1)).sum(2))
            y_RLC = torch.stack(read, dim=1) + x_RLC * weights.skip_C
            y_TC[tokens] = y_RLC.flatten(0, 1).to(y_TC.dtype)
            kv.index_copy_(0, batch.page_table_RP[rows, 1].long(), state_RCN.flatten(1))
        return y_TC
