"""The reference of the op ``short_convolution``. Shapes: as in its module; N tokens of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.device import OpDevice
from headstock.ops.states_reference import begun, causal_conv, is_new, state_pieces

if TYPE_CHECKING:
    from headstock.ops.short_convolution import ConvolutionWeights, ShortConvolutionSpec

TAG = "state-inputs"
"""A page is the inputs of the convolution."""


class ReferenceShortConvolution:
    """Products, a causal convolution, and products again."""

    def __init__(self, spec: ShortConvolutionSpec, device: OpDevice) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        self.page_format = PageFormat(tag=TAG, page_sizes=(1,), dtype=torch.float32)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, numbers of a state]."""
        return (num_pages, self.spec.state_size)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: every layer reads the batch itself."""

    def read(self, kv: Tensor, pages_R: Tensor) -> Tensor:
        """Return what pages hold. [R, W - 1, C]"""
        return kv.index_select(0, pages_R.long()).unflatten(1, (-1, self.spec.size))

    def run(
        self, bcx_TY: Tensor, weights: ConvolutionWeights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Convolve, and note the rows' last inputs. [T, C]"""
        inputs_TC, c_TC = bcx_TY, None
        if self.spec.is_gated:
            b_TC, c_TC, x_TC = bcx_TY.split(self.spec.size, dim=1)
            inputs_TC = b_TC * x_TC
        y_TC, is_new_R = torch.zeros_like(inputs_TC), is_new(batch)
        for rows, tokens in state_pieces(batch):
            where = (rows.stop - rows.start, -1)
            found_RXC = begun(self.read(kv, batch.page_table_RP[rows, 0]), is_new_R[rows])
            part_RNC, left_RXC = causal_conv(
                inputs_TC[tokens].unflatten(0, where),
                weights.conv_CW,
                found_RXC,
                weights.bias_C,
                has_silu=False,
            )
            y_TC[tokens] = part_RNC.flatten(0, 1)
            kv.index_copy_(0, batch.page_table_RP[rows, 1].long(), left_RXC.flatten(1))
        return y_TC if c_TC is None else y_TC * c_TC
