"""One step on the device, top to bottom, and the ops around the model.

Two halves that a device may capture apart: the forward pass, from the slot table to hidden states
of the positions that rows draw from, and drawing, from there back into the slot table.

Shapes: T tokens and R rows of the step; J positions that a row draws from; D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from headstock.graph.context import Retention
from headstock.graph.vision import MediaModel
from headstock.ops import drafts, sampling, steps
from headstock.ops.attention import CachedLayer, StepBatch
from headstock.ops.base import Op, Resolver, Spec
from headstock.ops.communication import Group
from headstock.ops.model_step import StepProvider, StepWidth
from headstock.ops.steps import StepInputs
from headstock.plugins.device import Device
from headstock.runner.batch import StepBuffers, StepShape
from headstock.runner.upload import Upload
from headstock.speculative.provider import Drafter

Forward = Callable[[Tensor, StepBatch], Tensor]


class TakenSteps:
    """Asks a provider once for each width.

    Args:
        provider: Offers to take steps over.
        layers: Computes the others.
    """

    def __init__(self, provider: StepProvider, layers: Forward) -> None:
        self._provider = provider
        self._layers = layers
        self._chosen: dict[StepWidth, Forward] = {}

    def of(self, shape: StepShape) -> Forward:
        """Return what computes a step of ``shape``."""
        width = StepWidth(
            shape.num_tokens,
            shape.num_rows,
            shape.max_query if shape.is_uniform else 0,
            has_adapters=shape.has_adapters,
            has_media=shape.has_media,
        )
        if width not in self._chosen:
            is_taken = self._provider.why_not(width) is None
            self._chosen[width] = self._provider.run if is_taken else self._layers
        return self._chosen[width]


def describe_taken(
    name: str, provider: StepProvider, *, num_rows: int, step_tokens: int, num_drafts: int
) -> str:
    """Return, in words, which steps ``provider`` takes over, and why not the others.

    Args:
        name: Of the provider.
        provider: Asked about the widths that serving meets most.
        num_rows: Requests at once.
        step_tokens: Tokens a step may have.
        num_drafts: Tokens drafted a row; 0: none.
    """
    widths = {
        "one decoding row": StepWidth(1, 1, 1),
        f"{num_rows} decoding rows": StepWidth(num_rows, num_rows, 1),
        "prompts": StepWidth(step_tokens, 1, 0),
    }
    if num_drafts:
        query = num_drafts + 1
        widths["verification"] = StepWidth(num_rows * query, num_rows, query)
    reasons = {what: provider.why_not(width) for what, width in widths.items()}
    taken = [what for what, reason in reasons.items() if reason is None]
    left = [f"{what} ({reason})" for what, reason in reasons.items() if reason is not None]
    text = f"{name} for {', '.join(taken)}" if taken else f"{name} for no step"
    return f"{text}; the layers for {', '.join(left)}" if left else text


class StepModel(Protocol):
    """What the runner calls of a model."""

    @property
    def media(self) -> MediaModel | None:
        """How it takes images; None: it does not."""
        ...

    @property
    def pools_last(self) -> bool:
        """Whether pooling needs the hidden states of rows' last tokens alone."""
        ...

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        """Return the last hidden states. [T, D]"""
        ...

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Return logits of every id, on every rank. float32. [S, V]"""
        ...

    def scores(self, hidden_SD: Tensor) -> Tensor:
        """Return them in whatever dtype they are computed: enough to find the highest. [S, V]"""
        ...

    def pool(self, hidden_TD: Tensor, batch: StepBatch, rows_P: Tensor) -> Tensor:
        """Return one vector for each of the rows that ``rows_P`` (int64) names. [P, D]"""
        ...

    def pool_tokens(self, hidden_SD: Tensor, *, is_score: bool) -> Tensor:
        """Return a vector, or scores, for each of some tokens. [S, E]"""
        ...


class Adapters(Protocol):
    """The LoRA adapters that plans may name."""

    def place(self, place: int, adapter: str) -> None:
        """Queue the copy of ``adapter`` into ``place`` of the model."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """A loaded model, and all that runs with it.

    Attributes:
        model: What is computed.
        layers: Its layers that keep state; a runner gives them their pages.
        groups: What each of their page groups keeps.
        resolver: Chooses the ops around the model.
        ranks: Those that run the same plans; rank 0's draws count. A runner leaves them in the end.
        dtype: Of the hidden states.
        hidden_size: Features of a hidden state.
        adapters: The LoRA adapters that plans may name; None: none.
        drafter: Drafts as many tokens a row as the limits say; None: nothing is drafted.
        step: Takes over the forward passes that it covers; None: the layers compute all.
    """

    model: StepModel
    layers: Sequence[CachedLayer]
    groups: Sequence[Retention]
    resolver: Resolver
    ranks: Group
    dtype: torch.dtype
    hidden_size: int
    adapters: Adapters | None = None
    drafter: Drafter | None = None
    step: StepProvider | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOps:
    """Callables with the signatures of the ops of the same names.

    Attributes:
        takes_narrow: Whether ``argmax_tokens`` and ``mark_faults`` take logits in the model's
            dtype, too: then greedy steps need not widen them.
        keep_hidden: ``keep_rows`` for hidden states.
    """

    place_step: Callable[..., tuple[Tensor, StepBatch]]
    advance_lengths: Callable[..., steps.Slots]
    settle_step: Callable[..., tuple[steps.Slots, Tensor]]
    accept_drafts: Callable[..., Tensor]
    append_outputs: Callable[..., tuple[Tensor, Tensor]]
    enter_drafts: Callable[..., tuple[steps.Slots, Tensor]]
    count_drafts: Callable[..., Tensor]
    keep_accepted: Callable[..., Tensor]
    spread_draws: Callable[..., tuple[Tensor, Tensor]]
    count_outputs: Callable[..., None]
    take_rows: Callable[..., Tensor]
    take_draws: Callable[..., Tensor]
    last_of_rows: Callable[..., Tensor]
    keep_rows: Callable[..., None]
    keep_hidden: Callable[..., None]
    mark_faults: Callable[..., Tensor]
    forbid_stops: Callable[..., Tensor]
    apply_masks: Callable[..., Tensor]
    apply_penalties: Callable[..., Tensor]
    add_bias: Callable[..., Tensor]
    argmax_tokens: Callable[..., Tensor]
    draw_tokens: Callable[..., Tensor]
    token_logprobs: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    takes_narrow: bool


def resolve_step_ops(resolver: Resolver, dtype: torch.dtype, vocab_size: int) -> StepOps:
    """Choose the ops for a model whose hidden states have ``dtype``."""
    table, logits = Spec(dtype="int32"), Spec(dtype="float32", sizes={"vocab_size": vocab_size})
    hidden = Spec(dtype=str(dtype).removeprefix("torch."))
    narrow = Spec(dtype=hidden.dtype, sizes=logits.sizes)
    takes_narrow = _is_one(resolver, sampling.argmax_tokens, narrow, logits) and _is_one(
        resolver, steps.mark_faults, narrow, logits
    )
    return StepOps(
        place_step=resolver.resolve(steps.place_step, table),
        advance_lengths=resolver.resolve(steps.advance_lengths, table),
        settle_step=resolver.resolve(steps.settle_step, table),
        accept_drafts=resolver.resolve(steps.accept_drafts, table),
        append_outputs=resolver.resolve(drafts.append_outputs, table),
        enter_drafts=resolver.resolve(drafts.enter_drafts, table),
        count_drafts=resolver.resolve(drafts.count_drafts, table),
        keep_accepted=resolver.resolve(drafts.keep_accepted, table),
        spread_draws=resolver.resolve(steps.spread_draws, table),
        count_outputs=resolver.resolve(steps.count_outputs, table),
        take_rows=resolver.resolve(steps.take_rows, table),
        take_draws=resolver.resolve(steps.take_draws, hidden),
        last_of_rows=resolver.resolve(steps.last_of_rows, hidden),
        keep_rows=resolver.resolve(steps.keep_rows, logits),
        keep_hidden=resolver.resolve(steps.keep_rows, hidden),
        mark_faults=resolver.resolve(steps.mark_faults, logits),
        forbid_stops=resolver.resolve(steps.forbid_stops, logits),
        apply_masks=resolver.resolve(steps.apply_masks, logits),
        apply_penalties=resolver.resolve(sampling.apply_penalties, logits),
        add_bias=resolver.resolve(sampling.add_bias, logits),
        argmax_tokens=resolver.resolve(sampling.argmax_tokens, logits),
        draw_tokens=resolver.resolve(sampling.draw_tokens, logits),
        token_logprobs=resolver.resolve(sampling.token_logprobs, logits),
        takes_narrow=takes_narrow,
    )


def _is_one(resolver: Resolver, op: Op[..., Any], narrow: Spec, wide: Spec) -> bool:
    """Whether some provider other than the reference computes ``op`` for both specs alike."""
    own = resolver.own(op, narrow)
    return own is not None and own == resolver.resolve(op, wide)


class ForwardPass:
    """The first half of a step. Reads nothing of the host but what it is given.

    So that a graph captured from :meth:`run` is right for any later step of the same shape,
    whatever lies in the buffers then.

    Attributes:
        hidden_SD: Of the positions that the last step's rows draw from, J of each row, one row
            after another. [rows * drafts + rows, D]
    """

    def __init__(
        self,
        device: Device,
        parts: ModelParts,
        ops: StepOps,
        upload: Upload,
        buffers: StepBuffers,
        *,
        num_positions: int,
    ) -> None:
        self._model = parts.model
        taken = parts.step
        self._taken = None if taken is None else TakenSteps(taken, parts.model.forward)
        self._ops = ops
        self._table = upload.table
        self._buffers = buffers
        by_place = {(id(layer.provider), layer.group): layer for layer in parts.layers}
        self._planned = [(layer.provider, layer.group) for layer in by_place.values()]
        self.hidden_SD = device.empty((num_positions, parts.hidden_size), parts.dtype)

    def plan(self, batch: StepBatch) -> tuple[int, ...]:
        """Have attention prepare for ``batch``; return what it decided that graphs bake in."""
        key: tuple[int, ...] = (batch.max_kv,)
        for provider, group in self._planned:
            provider.plan(batch.groups[group])
            key += provider.graph_key
        return key

    def run(self, batch: StepBatch, inputs: StepInputs, shape: StepShape) -> Tensor:
        """Queue the forward pass and return its last hidden states, which a graph overwrites.

        Returns:
            [T, D]; or [R, D], of the rows' last tokens, where the batch wants no more.
        """
        ops, table = self._ops, self._table
        ids_T, batch = ops.place_step(
            table.slots, inputs, self._buffers.ids_T[: shape.num_tokens], batch
        )
        forward = self._model.forward if self._taken is None else self._taken.of(shape)
        hidden_TD = forward(ids_T, batch)
        table.slots = ops.advance_lengths(table.slots, inputs, batch)
        if shape.max_draws:
            drawn_SD = self._of_draws(hidden_TD, inputs, shape)
            ops.keep_hidden(drawn_SD, self.hidden_SD[: drawn_SD.shape[0]])
        return hidden_TD

    def _of_draws(self, hidden_TD: Tensor, inputs: StepInputs, shape: StepShape) -> Tensor:
        """Return the hidden states of the positions that rows draw from. [R * J, D]"""
        if hidden_TD.shape[0] == shape.num_rows * shape.max_draws:
            return hidden_TD  # of a uniform step, or already cut to the rows' last tokens
        if shape.max_draws == 1:
            return self._ops.last_of_rows(hidden_TD, inputs.query_starts_R1)
        return self._ops.take_draws(
            hidden_TD, inputs.query_starts_R1, inputs.num_draws_R, num_draws=shape.max_draws
        )
