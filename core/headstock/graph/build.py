"""Builds a model from its class and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.errors import PluginError, UnsupportedError
from headstock.graph.context import Context
from headstock.graph.module import Layer, Module, find_layers
from headstock.graph.vision import MediaModel
from headstock.ops.attention import StepBatch

REQUIRED = ("leaves", "allocate", "load", "num_bytes")
"""What a layer must define."""


class Model(Module):
    """Base of the classes that are registered for an architecture.

    A subclass sets ``model`` and ``lm_head``, as Hugging Face calls them, or says otherwise what
    :meth:`forward` and :meth:`logits` do.

    Attributes:
        skip: Regular expressions of checkpoint names that the model does without, each with the
            reason why that is right. Anything else that no layer declares is refused.
        length_keys: Configuration keys that say how long a request may be; the first that is there
            counts.
        spare_length: Positions of those that no request uses.
        base_prefix: What stands before the names of all tensors but the head's: checkpoints that
            were saved without a head lack it.
        yields: What rows may yield: ``draw``, ``pool``.
        token_yields: What rows may yield of each of their tokens: ``token_embed``,
            ``token_classify``.
        is_causal: Whether tokens see only what is before them.
        num_token_types: Kinds of tokens, such as those of a pair's first and second text. Id ``i``
            of type ``t`` goes in as ``i + t * vocab_size``.
        takes_chunks: Whether a prompt may be computed in parts, of which some may be cached.
        pools_last: Whether the hidden states of rows' last tokens are all that pooling needs.
        model: (ids, batch) to hidden states.
        lm_head: Hidden states to logits.
        media: How it takes images; None: it does not.
    """

    skip: Mapping[str, str] = {r"rotary_emb\.inv_freq$": "old files have what the config says too"}
    length_keys: ClassVar[tuple[str, ...]] = ("max_position_embeddings",)
    spare_length: ClassVar[int] = 0
    base_prefix: str = "model"
    yields: ClassVar[tuple[str, ...]] = ("draw",)
    is_causal: bool = True
    num_token_types: int = 1
    model: Module
    lm_head: Module
    media: MediaModel | None = None

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Refuse a configuration that the class serves nothing of, before its sizes are read.

        Args:
            config: In Hugging Face keys.

        Raises:
            UnsupportedError: Its architecture is not one of the class's.
        """

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return a checkpoint's tensors by the names of this model's leaves.

        Args:
            index: Tensors by name as the files have them.
        """
        return index

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

    def pool_tokens(self, hidden_SD: Tensor, *, is_score: bool) -> Tensor:
        """Return a vector, or scores, for each of some tokens' hidden states. float32. [S, E]

        Raises:
            UnsupportedError: The model has none.
        """
        raise UnsupportedError(
            f"{type(self).__name__} yields nothing of single tokens.",
            remedy="Serve a model with heads for tokens.",
        )

    @property
    def token_yields(self) -> tuple[str, ...]:
        """See the class."""
        return ()

    @property
    def takes_chunks(self) -> bool:
        """See the class."""
        return self.is_causal

    @property
    def pools_last(self) -> bool:
        """See the class."""
        return False

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
        PluginError: One of its layers is no complete layer.
        ConfigError: Its sizes do not divide among the ranks, or the page size does not fit.
        UnsupportedError: It asks for what we do not compute.
    """
    model = model_class(ctx, config)
    for prefix, layer in find_layers(model):
        _check_layer(prefix, layer)
    return model


def _check_layer(prefix: str, layer: Layer) -> None:
    """Refuse a layer that lacks what every layer has: loading it would fail half-way.

    Raises:
        PluginError: Naming the class and what it lacks.
    """
    kind = type(layer)
    lacking = [name for name in REQUIRED if getattr(kind, name) is getattr(Layer, name)]
    if lacking:
        raise PluginError(
            f"Layer {kind.__module__}.{kind.__qualname__} at {prefix.rstrip('.') or 'the top'!r}"
            f" does not define {', '.join(lacking)}.",
            remedy="Define it, as headstock.graph.module.Layer describes; num_bytes is a property.",
        )
