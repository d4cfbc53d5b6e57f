"""ModernBERT: an encoder with rotary positions, gated feed-forward layers and windows.

Two of three layers see the tokens near them. Shapes: T tokens in the step, P rows pooled, D hidden
size. Source: Warner et al. 2024, "Smarter, Better, Faster, Longer"; names as in Hugging Face
transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from headstock.graph.arranged import ArrangedLinear, Rows
from headstock.graph.attention import Attention
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm
from headstock.graph.pooled import PooledModel, Pooler, Pooling, head, num_labels, wide
from headstock.graph.rotary import Rotary
from headstock.ops.activation import activate
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.attention import StepBatch
from headstock.ops.moe import Matrix

SLIDING, FULL = "sliding_attention", "full_attention"
NAMES: Mapping[Matrix, str] = {"gate": "Wi", "up": "Wi", "down": "Wo"}
Rotaries = Mapping[str, Rotary]
"""Tables of angles by kind of layer."""


class ModernBertConfig(ModelConfig, frozen=True, kw_only=True):
    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    layer_types: tuple[str, ...] = ()
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    classifier_pooling: str = "cls"
    classifier_bias: bool = False
    classifier_activation: str = "gelu"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def kind(self, number: int) -> str:
        """Return what layer ``number`` is; without a list every period begins with a full one."""
        if self.layer_types:
            return self.layer_types[number]
        return SLIDING if number % self.global_attn_every_n_layers else FULL

    def make_norm(self, ctx: Context, leaf: str) -> LayerNorm:
        size, has_bias = self.hidden_size, self.norm_bias
        return LayerNorm(ctx, size, leaf=leaf, eps=self.norm_eps, has_bias=has_bias)


class ModernBertEmbeddings(Module):
    """What ids stand for, normalised."""

    def __init__(self, ctx: Context, c: ModernBertConfig) -> None:
        self.embed = Embedding(ctx, c.vocab_size, c.hidden_size, leaf="tok_embeddings")
        self.norm = c.make_norm(ctx, "norm")

    def forward(self, ids_T: Tensor) -> Tensor:
        return self.norm(self.embed(ids_T), None)[0]


class ModernBertAttention(Module):
    """W_o attend(rotate(W_q x), rotate(W_k x), W_v x), before and behind."""

    alias = "attn"

    def __init__(self, ctx: Context, c: ModernBertConfig, rotary: Rotary, kind: str) -> None:
        size, heads, has_bias = c.hidden_size, c.num_attention_heads, c.attention_bias
        rows = [
            Rows(first=place * size, size=c.head_dim, stride=c.head_dim, num_heads=heads)
            for place in range(3)
        ]
        self.qkv = ArrangedLinear(ctx, size, {"Wqkv": rows}, has_bias=has_bias)
        self.attend = Attention(
            ctx,
            heads,
            heads,
            c.head_dim,
            rotary=rotary,
            window=c.local_attention // 2 + 1 if kind == SLIDING else None,
            is_causal=False,
        )
        self.out = Linear(ctx, size, {"Wo": size}, split="in", has_bias=has_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch) -> Tensor:
        return self.out(self.attend(self.qkv(x_TD), batch))


class ModernBertLayer(Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream.

    What comes into the first layer is normalised already.
    """

    def __init__(self, ctx: Context, c: ModernBertConfig, rotaries: Rotaries, number: int) -> None:
        kind = c.kind(number)
        self.attn_norm = c.make_norm(ctx, "attn_norm") if number else None
        self.attention = ModernBertAttention(ctx, c, rotaries[kind], kind)
        self.mlp_norm = c.make_norm(ctx, "mlp_norm")
        self.mlp = GatedMLP(
            ctx,
            c.hidden_size,
            c.intermediate_size,
            BY_CONFIG_NAME[c.hidden_activation],
            has_bias=c.mlp_bias,
            is_fused=True,
            names=NAMES,
        )

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        total_TD = x_TD
        if self.attn_norm is not None:
            x_TD, total_TD = self.attn_norm(x_TD, sum_TD)
        x_TD, total_TD = self.mlp_norm(self.attention(x_TD, batch), total_TD)
        return self.mlp(x_TD), total_TD


class ModernBertEncoder(Module):
    def __init__(self, ctx: Context, c: ModernBertConfig, rotaries: Rotaries) -> None:
        self.embeddings = ModernBertEmbeddings(ctx, c)
        numbers = range(c.num_hidden_layers)
        self.layers = [ModernBertLayer(ctx, c, rotaries, number) for number in numbers]
        self.norm = c.make_norm(ctx, "final_norm")

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self.embeddings(ids_T), None
        for layer in self.layers:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


class ModernBertModel(PooledModel):
    """The encoder; its hidden states are pooled."""

    is_causal = False
    skip: Mapping[str, str] = {
        r"^(head|decoder|classifier)\.": "neither tokens nor labels are predicted",
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        names = tuple(BY_CONFIG_NAME)
        require(config, hidden_activation=names, classifier_activation=names)
        for kind in config.get("layer_types") or ():
            require({"layer_types": kind}, layer_types=(SLIDING, FULL))
        self.config = c = read_config(ModernBertConfig, config)
        self.model = ModernBertEncoder(ctx, c, rotaries(ctx, c, config))
        self.pooler = Pooler(ctx, self.pooling(ctx))

    def pooling(self, ctx: Context) -> Pooling:
        """Return how hidden states become a vector."""
        return ctx.pooling or Pooling("mean")


class ModernBertHead(Module):
    """norm(activation(W x)), of pooled vectors."""

    alias = "head"

    def __init__(self, ctx: Context, c: ModernBertConfig) -> None:
        size, kind = c.hidden_size, BY_CONFIG_NAME[c.classifier_activation]
        self.dense = head(ctx, size, {"dense": size}, has_bias=c.classifier_bias)
        spec = wide(ctx).spec(features=kind.features, size=size)
        self.act = partial(ctx.ops.resolve(activate, spec), activation=kind)
        self.norm = c.make_norm(wide(ctx), "norm")

    def forward(self, x_PD: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(x_PD)), None)[0]


class ModernBertForSequenceClassification(ModernBertModel):
    """The encoder's first token, or the mean of all, through a head to a number a label."""

    skip: Mapping[str, str] = {r"^decoder\.": "tokens are not predicted"}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        super().__init__(ctx, config)
        self.before = ModernBertHead(ctx, self.config)
        leaves = {"classifier": num_labels(config)}
        self.classifier = head(ctx, self.config.hidden_size, leaves, has_bias=True)

    def pooling(self, ctx: Context) -> Pooling:
        """Return how hidden states become a vector: as the configuration says."""
        kind = self.config.classifier_pooling
        require({"classifier_pooling": kind}, classifier_pooling=("cls", "mean"))
        return Pooling("mean" if kind == "mean" else "cls")

    def pool(self, hidden_TD: Tensor, batch: StepBatch, rows_P: Tensor) -> Tensor:
        return self.classifier(self.before(self.pooler(hidden_TD, batch, rows_P)))


def rotaries(ctx: Context, c: ModernBertConfig, config: Mapping[str, Any]) -> Rotaries:
    """Return the tables of angles by kind of layer; older configurations have a base for each."""
    bases = {SLIDING: c.local_rope_theta, FULL: c.global_rope_theta}
    scaling = dict(config.get("rope_scaling") or {})
    given = dict(config.get("rope_parameters") or {})
    parameters = {
        kind: {"rope_theta": base, **scaling, **(given.get(kind) or {})}
        for kind, base in bases.items()
    }
    rope = {**config, "rope_scaling": None, "rope_parameters": parameters}
    return {kind: Rotary(ctx, c.head_dim, rope, layer_kind=kind) for kind in (SLIDING, FULL)}
