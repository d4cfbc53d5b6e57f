"""The ops that surround the model, chosen once for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstock.ops import sampling, steps
from headstock.ops.base import Op, Resolver, Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOps:
    """Callables with the signatures of the ops of the same names.

    Attributes:
        takes_narrow: Whether ``argmax_tokens`` and ``mark_faults`` take logits in the model's
            dtype, too: then greedy steps need not widen them.
    """

    place_step: Callable[..., None]
    advance_lengths: Callable[..., None]
    settle_step: Callable[..., None]
    count_outputs: Callable[..., None]
    take_rows: Callable[..., Tensor]
    last_of_rows: Callable[..., Tensor]
    keep_rows: Callable[..., None]
    mark_faults: Callable[..., Tensor]
    forbid_stops: Callable[..., Tensor]
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
        count_outputs=resolver.resolve(steps.count_outputs, table),
        take_rows=resolver.resolve(steps.take_rows, table),
        last_of_rows=resolver.resolve(steps.last_of_rows, hidden),
        keep_rows=resolver.resolve(steps.keep_rows, logits),
        mark_faults=resolver.resolve(steps.mark_faults, logits),
        forbid_stops=resolver.resolve(steps.forbid_stops, logits),
        apply_penalties=resolver.resolve(sampling.apply_penalties, logits),
        add_bias=resolver.resolve(sampling.add_bias, logits),
        argmax_tokens=resolver.resolve(sampling.argmax_tokens, logits),
        draw_tokens=resolver.resolve(sampling.draw_tokens, logits),
        token_logprobs=resolver.resolve(sampling.token_logprobs, logits),
        takes_narrow=takes_narrow,
    )


def _is_one(resolver: Resolver, op: Op[..., Any], narrow: Spec, wide: Spec) -> bool:
    """Whether somebody other than the reference computes ``op`` for both specs alike."""
    own = resolver.own(op, narrow)
    return own is not None and own == resolver.resolve(op, wide)
