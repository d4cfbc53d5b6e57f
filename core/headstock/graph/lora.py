"""Low-rank adapters on linear layers: their matrices, place by place, and whose token is whose.

Shapes: T tokens, R rows, I input and O output features on this rank, N places, P parts of a
layer (its checkpoint matrices), r the rank that there is room for, K = P · r.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.graph.split import Gap, Span
from headstock.ops.base import Spec
from headstock.ops.lora import RANK_UNIT, add_lora
from headstock.ops.steps import take_rows

if TYPE_CHECKING:
    from headstock.graph.build import Model
    from headstock.graph.context import Context
    from headstock.ops.attention import StepBatch
    from headstock.ops.base import Resolver

_INDICES = Spec(dtype="int32")
"""What ``take_rows`` is resolved for: places are whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpace:
    """The room that a model is built with.

    Attributes:
        num_places: Adapters on the device at once.
        max_rank: Largest rank of theirs.
        targets: Last names of the modules that may have any; None: every linear layer.
    """

    num_places: int
    max_rank: int
    targets: frozenset[str] | None = None

    @property
    def rank(self) -> int:
        """The rank that there is room for: what kernels take."""
        return -(-self.max_rank // RANK_UNIT) * RANK_UNIT

    def takes(self, module: str) -> bool:
        """Whether the module of this name may have adapters."""
        return self.targets is None or module.rpartition(".")[2] in self.targets


class StepAdapters:
    """What layers know of the step at hand: which token has which adapter.

    Args:
        space: The room there is.
        ops: Chooses implementations.
    """

    def __init__(self, space: AdapterSpace, ops: Resolver) -> None:
        self.space = space
        self._ops = ops
        self._take: Callable[..., Tensor] | None = None
        self._by_row_R: Tensor | None = None
        self._by_token_T: Tensor | None = None

    def enter(self, batch: StepBatch) -> None:
        """Begin a step: its rows' adapters count for the layers that run from now on."""
        self._by_row_R = self._by_token_T = batch.adapters_R
        if batch.adapters_R is None or batch.num_tokens == batch.num_rows:
            return
        if self._take is None:
            self._take = self._ops.resolve(take_rows, _INDICES)
        rows_T = batch.row_of_token_T
        self._by_token_T = self._take(batch.adapters_R, rows_T, dim=0)

    def leave(self) -> None:
        """End it: what runs from now on has no adapters."""
        self._by_row_R = self._by_token_T = None

    @property
    def is_used(self) -> bool:
        """Whether some row of the step has an adapter."""
        return self._by_row_R is not None

    def of(self, num_tokens: int) -> Tensor | None:
        """Return the places of the adapters of a layer's inputs; None: no row has any. int32. [T]

        Args:
            num_tokens: Of the layer: all of the step's, or of each row the last one.
        """
        by_token_T = self._by_token_T
        if by_token_T is None or by_token_T.shape[0] == num_tokens:
            return by_token_T
        by_row_R = self._by_row_R
        assert by_row_R is not None, "tokens have adapters and rows have none"
        assert by_row_R.shape[0] == num_tokens, f"{num_tokens} inputs are neither tokens nor rows"
        return by_row_R


class LowRank:
    """The adapters' matrices of one linear layer, at fixed addresses.

    Args:
        ctx: What to build with; has adapters.
        inputs: Input features of this rank.
        rows: Of each checkpoint matrix its rows on this rank, in the order of the outputs.
    """

    def __init__(
        self, ctx: Context, inputs: Span, rows: Mapping[str, Sequence[Span | Gap]]
    ) -> None:
        assert ctx.adapters is not None, "a model without adapters has no such matrices"
        self._adapters, self._inputs = ctx.adapters, inputs
        self._parts = list(rows)
        self._rows = [list(spans) for spans in rows.values()]
        sizes = [sum(span.size for span in spans) for spans in self._rows]
        self._begins = [sum(sizes[:part]) for part in range(len(sizes))]
        places, self._rank = ctx.adapters.space.num_places, ctx.adapters.space.rank
        inner, where = len(sizes) * self._rank, ctx.device.torch_device
        self.down_NKI = torch.zeros((places, inner, inputs.size), dtype=ctx.dtype, device=where)
        self.up_NOR = torch.zeros((places, sum(sizes), self._rank), dtype=ctx.dtype, device=where)
        spec = ctx.spec(
            in_features=inputs.size, out_features=sum(sizes), rank=self._rank, parts=len(sizes)
        )
        self._add = partial(ctx.ops.resolve(add_lora, spec), starts=tuple(self._begins))

    def __call__(self, out_TO: Tensor, x_TI: Tensor) -> Tensor:
        """Return the product with what the tokens' adapters add to it. [T, O]"""
        adapters_T = self._adapters.of(x_TI.shape[0])
        if adapters_T is None:
            return out_TO
        return self._add(out_TO, x_TI, self.down_NKI, self.up_NOR, adapters_T)

    @property
    def parts(self) -> Sequence[str]:
        """Names of the checkpoint matrices, in the order of the outputs."""
        return self._parts

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What a place holds: of :meth:`pack`'s two tensors. [K, I], [O, r]"""
        return tuple(self.down_NKI.shape[1:]), tuple(self.up_NOR.shape[1:])

    def pack(self, part: int, down_RI: Tensor, up_OR: Tensor, into: tuple[Tensor, Tensor]) -> None:
        """Write this rank's share of an adapter's matrices of one part as places hold them.

        Args:
            part: Which of :attr:`parts`.
            down_RI: Of the whole model. [rank, input features]
            up_OR: Likewise, scaled. [output features, rank]
            into: Zeros on the host, of :attr:`shapes`.
        """
        down_KI, up_OK = into
        rank, first, begin = down_RI.shape[0], part * self._rank, self._begins[part]
        inputs = self._inputs
        down_KI[first : first + rank].copy_(down_RI[:, inputs.begin : inputs.end])
        for span in self._rows[part]:
            if isinstance(span, Span):
                rows_OR = up_OR[span.begin : span.end]
                up_OK[begin : begin + span.size, :rank].copy_(rows_OR)
            begin += span.size

    def place(self, place: int, packed: tuple[Tensor, Tensor] | None) -> None:
        """Queue the copy of an adapter into ``place``, 1 to N; None: it does not touch the layer.

        The host's tensors must stay until the copy is over.
        """
        stacks = (self.down_NKI, self.up_NOR)
        if packed is None:
            for stack in stacks:
                stack[place - 1].zero_()
            return
        for stack, values in zip(stacks, packed, strict=True):
            stack[place - 1].copy_(values, non_blocking=True)


class AdaptedModel:
    """A model that enters each step's adapters before its layers run.

    Args:
        model: The model.
        adapters: What its layers were built with.
    """

    def __init__(self, model: Model, adapters: StepAdapters) -> None:
        self._model, self._adapters = model, adapters
        self.logits, self.scores = model.logits, model.scores
        self.pools_last = model.pools_last
        self.media = model.media

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        """Return the last hidden states. [T, D] or [R, D]"""
        self._adapters.enter(batch)
        hidden_TD = self._model.forward(ids_T, batch)
        self._adapters.leave()
        return hidden_TD

    def pool(self, hidden_TD: Tensor, batch: StepBatch, rows_P: Tensor) -> Tensor:
        """Return one vector for each of the rows that ``rows_P`` names. [P, D]"""
        return self._model.pool(hidden_TD, batch, rows_P)

    def pool_tokens(self, hidden_SD: Tensor, *, is_score: bool) -> Tensor:
        """Return a vector, or scores, for each of some tokens. [S, E]"""
        return self._model.pool_tokens(hidden_SD, is_score=is_score)
