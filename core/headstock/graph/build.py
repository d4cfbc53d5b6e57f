"""Builds a model from its class and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.ops.attention import StepBatch


class Model(Module):
    """Base of the classes that are registered for an architecture.

    A subclass sets ``model`` and ``lm_head``, as Hugging Face calls them, or says otherwise what
    :meth:`forward` and :meth:`logits` do.

    Attributes:
        skip: Regular expressions of checkpoint names that the model does without, each with the
            reason why that is right. Anything else that no layer declares is refused.
        model: (ids, batch) to hidden states.
        lm_head: Hidden states to logits.
    """

    skip: Mapping[str, str] = {r"rotary_emb\.inv_freq$": "old files have what the config says too"}
    model: Module
    lm_head: Module

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        """Return the hidden state of every token. [T, D]"""
        return self.model(ids_T, batch)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Return the logits of some tokens' hidden states. float32. [S, V]"""
        return self.lm_head(hidden_SD)

    def pool(self, hidden_TD: Tensor, batch: StepBatch, rows_P: Tensor) -> Tensor:
        """Return one vector for each of the rows that ``rows_P`` (int64) names. [P, D]

        Raises:
            UnsupportedError: The model generates text and nothing else.
        """
        raise UnsupportedError(
            f"{type(self).__name__} yields no pooled vectors.",
            remedy="Serve an embedding or reward model.",
        )

    def scores(self, hidden_SD: Tensor) -> Tensor:
        """Return them in whatever dtype they are computed: enough to find the highest. [S, V]"""
        return self.lm_head(hidden_SD, False)


class ModelClass(Protocol):
    """What an architecture's entry point names."""

    def __call__(self, ctx: Context, config: Mapping[str, Any]) -> Model:
        """Build the model; reads ``config`` in Hugging Face keys."""
        ...


def build_model(model_class: ModelClass, ctx: Context, config: Mapping[str, Any]) -> Model:
    """Return the model, its weights not yet allocated: :mod:`headstock.graph.loader` does that.

    Raises:
        CheckpointError: The configuration lacks something.
        ConfigError: Its sizes do not divide among the ranks, or the page size does not fit.
        UnsupportedError: It asks for what we do not compute.
    """
    return model_class(ctx, config)
