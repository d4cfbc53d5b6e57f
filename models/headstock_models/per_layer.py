"""Embeddings that each layer of a decoder has for itself, as Gemma 3n and Gemma 4 do.

Shapes: T tokens in the step, D hidden size, L layers, P features of an embedding of a layer.
Source: ``project_per_layer_inputs`` of Hugging Face transformers; names as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.graph.config import ModelConfig
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.ops.activation import activate_and_mul
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.embedding import known_ids
from headstock.ops.features import add_features, scale_features


class PerLayerConfig(ModelConfig, frozen=True, kw_only=True):
    """What a decoder says whose layers may have embeddings of their own."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    vocab_size_per_layer_input: int = 262_144
    hidden_size_per_layer_input: int = 256
    knows_all_ids: ClassVar[bool] = True
    """Whether every id must have embeddings of layers; otherwise some have those of id 0."""

    def make_norm(self, ctx: Context, leaf: str, size: int | None = None) -> RMSNorm:
        """Return a norm of hidden states, or of ``size`` features."""
        return RMSNorm(ctx, size or self.hidden_size, leaf=leaf, eps=self.rms_norm_eps)


class EmbeddingDecoder(Module):
    """Base of a decoder: embeddings of tokens, and those that its layers have.

    A layer's is (e + rms_norm(W x)) / sqrt(2), where x is the token's embedding, and e the one
    that the layer has for it.

    Raises:
        UnsupportedError: Some ids have an embedding and none for the layers.
    """

    def __init__(self, ctx: Context, c: PerLayerConfig) -> None:
        sizes, scale = (c.vocab_size, c.hidden_size), c.hidden_size**0.5
        self.embed = Embedding(ctx, *sizes, leaf="embed_tokens", scale=scale)
        self._shape = c.num_hidden_layers, c.hidden_size_per_layer_input
        self.layer_embed: Embedding | None = None
        if not c.hidden_size_per_layer_input:
            return
        self._known = self._make_known(ctx, c)
        width = c.num_hidden_layers * c.hidden_size_per_layer_input
        ids, scale = c.vocab_size_per_layer_input, c.hidden_size_per_layer_input**0.5
        leaf = "embed_tokens_per_layer"
        self.layer_embed = Embedding(ctx, ids, width, leaf=leaf, scale=scale)
        leaves = {"per_layer_model_projection": width}
        self.to_layers = Linear(ctx, c.hidden_size, leaves, split="none")
        leaf = "per_layer_projection_norm"
        self.layers_norm = c.make_norm(ctx, leaf, c.hidden_size_per_layer_input)
        scale_by = ctx.ops.resolve(scale_features, ctx.spec())
        self._shrink = partial(scale_by, factor=c.hidden_size**-0.5)
        self._halve = partial(scale_by, factor=2**-0.5)
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def layer_inputs(self, ids_T: Tensor, x_TD: Tensor) -> Sequence[Tensor | None]:
        """Return what each layer gets of a token beside its hidden state. [T, P] each"""
        num_layers, size = self._shape
        if self.layer_embed is None:
            return [None] * num_layers
        given_TC = self._shrink(self.to_layers(x_TD))
        normed_TLP, _ = self.layers_norm(given_TC.unflatten(1, self._shape), None)
        both_TC = self._halve(
            self._add(normed_TLP.flatten(1), self.layer_embed(self._known(ids_T)))
        )
        return both_TC.split(size, dim=1)

    def _make_known(self, ctx: Context, c: PerLayerConfig) -> Callable[[Tensor], Tensor]:
        """Return what makes ids that layers have embeddings for."""
        if c.vocab_size_per_layer_input >= c.vocab_size:
            return lambda ids_T: ids_T
        if not c.knows_all_ids:
            run = ctx.ops.resolve(known_ids, ctx.spec())
            return partial(run, size=c.vocab_size_per_layer_input)
        raise UnsupportedError(
            f"The configuration has vocab_size_per_layer_input ="
            f" {c.vocab_size_per_layer_input}, less than its vocab_size, {c.vocab_size}.",
            remedy="Compare config.json with the model's original.",
        )


class LayerWithInput(Module):
    """Base of a decoder's layer: what it makes of the embedding that it has for itself.

    That is rms_norm(W_out (activation(W_in x) * e)).
    """

    def __init__(self, ctx: Context, c: PerLayerConfig) -> None:
        size, between = c.hidden_size, c.hidden_size_per_layer_input
        self.has_input = bool(between)
        if not between:
            return
        self.input_gate = Linear(ctx, size, {"per_layer_input_gate": between}, split="none")
        self.input_out = Linear(ctx, between, {"per_layer_projection": size}, split="none")
        self.input_norm = c.make_norm(ctx, "post_per_layer_input_norm")
        activation = BY_CONFIG_NAME[c.hidden_activation]
        spec = ctx.spec(features=activation.features, size=between)
        self._join = partial(ctx.ops.resolve(activate_and_mul, spec), activation=activation)

    def of_input(self, x_TD: Tensor, given_TP: Tensor) -> Tensor:
        """Return what is added to the hidden state. [T, D]"""
        between_TP = self._join(self.input_gate(x_TD), given_TP)
        return self.input_norm(self.input_out(between_TP), None)[0]
