"""Models that yield a vector a request instead of tokens. Shapes: P rows pooled, D features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.checkpoint.sentence import PREFIX, SCORES, VECTORS, Dense, Pooling, TokenHead
from headstock.errors import UnsupportedError
from headstock.graph.attention import Attention
from headstock.graph.build import Model, ModelClass
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.ops.attention import StepBatch
from headstock.ops.base import Spec
from headstock.ops.outputs import as_float32, rectify, soft_cap
from headstock.ops.pooling import normalize_vectors, pool_rows
from headstock.quantization.plan import Role

LABELS = 2
"""Labels of a classifier whose configuration does not say how many: transformers' default."""


class Pooler(Module):
    """Hidden states of rows to one vector a row.

    Args:
        ctx: What to build with.
        pooling: How.
    """

    alias = PREFIX

    def __init__(self, ctx: Context, pooling: Pooling) -> None:
        self.pooling = pooling
        self._pool = ctx.ops.resolve(pool_rows, ctx.spec())
        self.dense = [DenseLayer(ctx, dense) for dense in pooling.dense]
        heads = {given.kind: TokenLayer(ctx, given, pooling) for given in pooling.tokens}
        self.vectors, self.scores = heads.get(VECTORS), heads.get(SCORES)
        if self.dense and pooling.is_normalized:
            self._normalize = ctx.ops.resolve(normalize_vectors, Spec(dtype="float32"))

    def forward(self, hidden_TD: Tensor, batch: StepBatch, rows_P: Tensor) -> Tensor:
        """Return the vectors of the rows that ``rows_P`` names. float32. [P, D]"""
        is_normalized = self.pooling.is_normalized
        vectors_PD = self._pool(
            hidden_TD,
            batch.query_starts_R1,
            rows_P,
            kind=self.pooling.kind,
            is_normalized=is_normalized and not self.dense,
        )
        for dense in self.dense:
            vectors_PD = dense(vectors_PD)
        return self._normalize(vectors_PD) if self.dense and is_normalized else vectors_PD


class TokenLayer(Module):
    """What is made of the hidden states of single tokens: vectors, or scores over 0.

    Args:
        ctx: What to build with.
        given: Its product.
        pooling: How texts become vectors; those of tokens are normalised where they are.
    """

    def __init__(self, ctx: Context, given: TokenHead, pooling: Pooling) -> None:
        self._widen = ctx.ops.resolve(as_float32, ctx.spec())
        leaves = {"linear": given.out_features}
        self.product = head(ctx, given.in_features, leaves, has_bias=given.has_bias)
        self._finish: Callable[[Tensor], Tensor] | None = None
        if given.kind == SCORES:
            self._finish = ctx.ops.resolve(rectify, Spec(dtype="float32"))
        elif pooling.is_normalized:
            self._finish = ctx.ops.resolve(normalize_vectors, Spec(dtype="float32"))

    def forward(self, hidden_SD: Tensor) -> Tensor:
        """Return what single tokens' hidden states stand for. float32. [S, E]"""
        y_SE = self.product(self._widen(hidden_SD))
        return y_SE if self._finish is None else self._finish(y_SE)


class DenseLayer(Module):
    """W x + b of pooled vectors, perhaps squashed.

    Args:
        ctx: What to build with.
        dense: Its sizes.
    """

    def __init__(self, ctx: Context, dense: Dense) -> None:
        leaves = {"linear": dense.out_features}
        self.product = head(ctx, dense.in_features, leaves, has_bias=dense.has_bias)
        self._squash: Callable[[Tensor], Tensor] | None = None
        if dense.activation == "tanh":
            self._squash = partial(ctx.ops.resolve(soft_cap, Spec(dtype="float32")), cap=1.0)

    def forward(self, x_PD: Tensor) -> Tensor:
        """Return what comes out. float32. [P, O]"""
        y_PO = self.product(x_PD)
        return y_PO if self._squash is None else self._squash(y_PO)


class PooledModel(Model):
    """Base of the models that yield vectors; a subclass sets ``model`` and perhaps ``pooler``.

    Attributes:
        pooler: (hidden states, batch, rows) to vectors.
    """

    yields = ("pool",)
    pooler: Pooler

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Refuse: there is no output layer.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            f"{type(self).__name__} yields pooled vectors and no logits.",
            remedy="Serve a model that generates.",
        )

    scores = logits

    def pool(self, hidden_TD: Tensor, batch: StepBatch, rows_P: Tensor) -> Tensor:
        """Return one vector for each of the rows that ``rows_P`` (int64) names. float32. [P, D]"""
        return self.pooler(hidden_TD, batch, rows_P)

    def pool_tokens(self, hidden_SD: Tensor, *, is_score: bool) -> Tensor:
        """Return a vector, or scores, for each of some tokens' hidden states. float32. [S, E]"""
        layer = self.pooler.scores if is_score else self.pooler.vectors
        assert layer is not None, "rows yield only what the model has heads for"
        return layer(hidden_SD)

    @property
    def token_yields(self) -> tuple[str, ...]:
        """What the model has heads for."""
        return tuple(head.kind for head in self.pooler.pooling.tokens)

    @property
    def takes_chunks(self) -> bool:
        """Whether tokens see only what is before them, and the last one is all that counts."""
        return self.is_causal and self.pools_last

    @property
    def pools_last(self) -> bool:
        """Whether the hidden states of rows' last tokens are all that pooling needs."""
        return self.pooler.pooling.kind == "last" and not self.token_yields


class PooledDecoder(PooledModel):
    """A decoder without its output layer: its hidden states are pooled, perhaps then classified.

    Args:
        ctx: What to build with; its ``pooling`` says how.
        config: In Hugging Face keys.
        decoder: The class of the decoder with an output layer.
        is_classifier: Whether a matrix ``score`` turns a vector into a number a label.
    """

    def __init__(
        self,
        ctx: Context,
        config: Mapping[str, Any],
        decoder: ModelClass,
        *,
        is_classifier: bool = False,
    ) -> None:
        whole = decoder(ctx, config)
        self.is_causal = ctx.is_causal
        if not ctx.is_causal:
            _check_both_ways(ctx, type(whole))
        self.skip = {
            **whole.skip,
            r"^lm_head\.": "logits are not computed: hidden states are pooled",
        }
        self.base_prefix = whole.base_prefix
        self._named = whole.named
        self.media = whole.media
        self.model = whole.model
        self.pooler = Pooler(ctx, ctx.pooling or Pooling("last", is_normalized=not is_classifier))
        self.score: Linear | None = None
        if is_classifier:
            leaves = {"score": num_labels(config)}
            size = config["hidden_size"] if "hidden_size" in config else config["n_embd"]
            self.score = head(ctx, size, leaves, has_bias=False)

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return a checkpoint's tensors by the names that the decoder has for them."""
        return self._named(index)

    def pool(self, hidden_TD: Tensor, batch: StepBatch, rows_P: Tensor) -> Tensor:
        """Return the vectors, or what the labels get of them. float32. [P, D] or [P, labels]"""
        vectors_PD = self.pooler(hidden_TD, batch, rows_P)
        return vectors_PD if self.score is None else self.score(vectors_PD)


def _check_both_ways(ctx: Context, decoder: type[Model]) -> None:
    """Refuse a decoder that has more than attention: states and latents go forwards alone.

    Raises:
        UnsupportedError: Naming the class.
    """
    if not all(isinstance(layer, Attention) for layer in ctx.attention_layers):
        raise UnsupportedError(
            "The configuration has tokens see those behind them, and not all layers of"
            f" {decoder.__name__} can: some keep states or latents.",
            remedy="Serve another model.",
        )


def head(ctx: Context, in_features: int, leaves: Mapping[str, int], *, has_bias: bool) -> Linear:
    """Return a product for pooled vectors: in float32, whole on every rank, never quantised."""
    return Linear(wide(ctx), in_features, leaves, split="none", has_bias=has_bias, role=Role.WHOLE)


def wide(ctx: Context) -> Context:
    """Return what to build layers for pooled vectors with: they are float32."""
    return replace(ctx, dtype=torch.float32)


def num_labels(config: Mapping[str, Any]) -> int:
    """Return how many labels a classifier's configuration has."""
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and labels:
        return len(labels)  # pyright: ignore[reportUnknownArgumentType]
    return int(config.get("num_labels") or LABELS)
