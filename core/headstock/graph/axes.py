"""Rotary position embedding where a position has several axes: time, height, width.

Angles are looked up once a step, not once a layer: layers see a table of the step's own tokens.

Shapes: T tokens, A axes, L positions, C rotated features of a head, F = C / 2 frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from headstock.graph.context import Context
from headstock.graph.rotary import Rotary
from headstock.ops.attention import StepBatch
from headstock.ops.base import Spec
from headstock.ops.media import axis_angles


class AxialRotary(Rotary):
    """The table of a model whose positions have several axes.

    Args:
        ctx: What to build with; the table ends at ``ctx.limits.max_length``.
        rotary_dim: C.
        config: In Hugging Face keys.
        axes: Axis of each frequency. [F]
        is_interleaved: Whether neighbours are rotated, not halves.
    """

    def __init__(
        self,
        ctx: Context,
        rotary_dim: int,
        config: Mapping[str, Any],
        axes: Sequence[int],
        *,
        is_interleaved: bool = False,
    ) -> None:
        super().__init__(ctx, rotary_dim, config, is_interleaved=is_interleaved)
        assert len(axes) == rotary_dim // 2, f"{len(axes)} axes for {rotary_dim // 2} frequencies"
        where = ctx.device.torch_device
        self._axis_F = torch.tensor(axes, dtype=torch.int64, device=where)
        self._tokens_T = torch.arange(ctx.limits.max_tokens, dtype=torch.int64, device=where)
        self._look_up = ctx.ops.resolve(axis_angles, Spec(dtype="float32"))

    def forward(self, batch: StepBatch) -> None:
        """Have the layers that see ``batch`` rotate by the angles of its tokens."""
        assert batch.shifts_AT is not None, "the step has positions on one axis only"
        angles_TC = self._look_up(self.cos_sin_LC, batch.shifts_AT, self._axis_F, batch.positions_T)
        tokens_T = self._tokens_T[: batch.num_tokens]
        for view in batch.groups:
            view.turned = None
            view.turned = (angles_TC, replace(view, positions_T=tokens_T))


def interleaved_axes(sections: Sequence[int]) -> list[int]:
    """Return the axis of each frequency where axes take turns as far as their sections reach.

    Args:
        sections: Frequencies of each axis; what is left over is the first axis's.

    Source:
        Qwen3-VL; ``recomposition_frequencies`` of Hugging Face transformers.
    """
    count = len(sections)
    axes = [0] * sum(sections)
    for axis in range(1, count):
        for place in range(axis, min(sections[axis] * count, len(axes)), count):
            axes[place] = axis
    return axes


def stacked_axes(sections: Sequence[int]) -> list[int]:
    """Return the axis of each frequency where each axis has neighbouring ones.

    Args:
        sections: Frequencies of each axis.

    Source:
        Wang et al. 2024, "Qwen2-VL", section 2.1.
    """
    return [axis for axis, count in enumerate(sections) for _ in range(count)]
