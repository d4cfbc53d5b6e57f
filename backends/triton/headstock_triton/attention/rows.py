"""The seam by which another library attends for some rows of a step, on the pages of this package.

Whoever fits it in gives :class:`~headstock_triton.attention.provider.PagedAttention` an object of
this protocol for the rows with several queries, or for steps in which every row has one query and
no prefix is shared. The pages, their layout's tag, writing, reading and the tree stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.ops.attention import StepBatch


class RowAttention(Protocol):
    """Attends for one kind of rows."""

    def compile(self) -> None:
        """Compile what has to be, for every step to come. Called once, before the first plan.

        Not when it is built: providers are also built to be asked for their favourite page size.
        """
        ...

    def plan(self, batch: StepBatch) -> bool:
        """Say on the host whether it takes its rows of ``batch``; asked once a step that has them.

        The answer may depend on nothing that a captured step's graph key does not hold.
        """
        ...

    def attend(self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, is_first: bool) -> Tensor:
        """Attend for its rows, without waiting for the device.

        Args:
            q_THD: Queries of the whole step. [T, H, D]
            kv: Pages of one layer. [pages, 2, K, page_size, D]
            batch: As it was planned.
            is_first: Whether this is the step's first layer: what depends on lengths alone can be
                made now and kept for the others.

        Returns:
            Memory for the whole step's output, filled for its rows: the others are put into it.
            [T, H, D]
        """
        ...
