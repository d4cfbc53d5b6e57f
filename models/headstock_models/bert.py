"""BERT and RoBERTa: encoders whose tokens see each other both ways, pooled or classified.

Shapes: T tokens in the step, P rows pooled, D hidden size. Sources: Devlin et al. 2019, "BERT"; Liu
et al. 2019, "RoBERTa"; Conneau et al. 2020, "XLM-R"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from headstock.graph.attention import Attention
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm
from headstock.graph.placed_embedding import PlacedEmbedding
from headstock.graph.pooled import PooledModel, Pooler, Pooling, head, num_labels
from headstock.ops.activation import activate
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.attention import StepBatch
from headstock.ops.base import Spec
from headstock.ops.outputs import soft_cap


class BertConfig(ModelConfig, frozen=True, kw_only=True):
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0


class BertEmbeddings(Module):
    """What id, place and type stand for, added up and normalised."""

    def __init__(self, ctx: Context, c: BertConfig, first_place: int) -> None:
        tables = {
            "word_embeddings": c.vocab_size,
            "position_embeddings": c.max_position_embeddings,
            "token_type_embeddings": c.type_vocab_size,
        }
        self.embed = PlacedEmbedding(ctx, tables, c.hidden_size, first_place=first_place)
        self.norm = LayerNorm(ctx, c.hidden_size, leaf="LayerNorm", eps=c.layer_norm_eps)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        return self.norm(self.embed(ids_T, batch), None)[0]


class BertSelf(Module):
    """attend(W_q x, W_k x, W_v x), before and behind."""

    alias = "self"

    def __init__(self, ctx: Context, c: BertConfig) -> None:
        heads, head_dim = c.num_attention_heads, c.hidden_size // c.num_attention_heads
        part = Part(c.hidden_size, unit=head_dim)
        leaves = {"query": part, "key": part, "value": part}
        self.qkv = Linear(ctx, c.hidden_size, leaves, has_bias=True)
        self.attend = Attention(ctx, heads, heads, head_dim, is_causal=False)

    def forward(self, x_TD: Tensor, batch: StepBatch) -> Tensor:
        return self.attend(self.qkv(x_TD), batch)


class BertOutput(Module):
    """norm(W y + x), where x came into the sublayer and y out of it."""

    alias = "output"

    def __init__(self, ctx: Context, c: BertConfig, in_features: int) -> None:
        leaves = {"dense": c.hidden_size}
        self.out = Linear(ctx, in_features, leaves, split="in", has_bias=True)
        self.norm = LayerNorm(ctx, c.hidden_size, leaf="LayerNorm", eps=c.layer_norm_eps)

    def forward(self, y_TF: Tensor, x_TD: Tensor) -> Tensor:
        return self.norm(self.out(y_TF), x_TD)[0]


class BertAttention(Module):
    def __init__(self, ctx: Context, c: BertConfig) -> None:
        self.both_ways = BertSelf(ctx, c)
        self.join = BertOutput(ctx, c, c.hidden_size)

    def forward(self, x_TD: Tensor, batch: StepBatch) -> Tensor:
        return self.join(self.both_ways(x_TD, batch), x_TD)


class BertIntermediate(Module):
    """activation(W x)."""

    def __init__(self, ctx: Context, c: BertConfig) -> None:
        self.up = Linear(ctx, c.hidden_size, {"dense": c.intermediate_size}, has_bias=True)
        kind = BY_CONFIG_NAME[c.hidden_act]
        size = c.intermediate_size // ctx.tp.size
        run = ctx.ops.resolve(activate, ctx.spec(features=kind.features, size=size))
        self.act = partial(run, activation=kind) if kind.features else run

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.act(self.up(x_TD))


class BertLayer(Module):
    """Attention, then the feed-forward layer; each sum is normalised."""

    def __init__(self, ctx: Context, c: BertConfig) -> None:
        self.attention = BertAttention(ctx, c)
        self.intermediate = BertIntermediate(ctx, c)
        self.join = BertOutput(ctx, c, c.intermediate_size)

    def forward(self, x_TD: Tensor, batch: StepBatch) -> Tensor:
        x_TD = self.attention(x_TD, batch)
        return self.join(self.intermediate(x_TD), x_TD)


class BertLayers(Module):
    alias = "encoder"

    def __init__(self, ctx: Context, c: BertConfig) -> None:
        self.layer = [BertLayer(ctx, c) for _ in range(c.num_hidden_layers)]

    def forward(self, x_TD: Tensor, batch: StepBatch) -> Tensor:
        for layer in self.layer:
            x_TD = layer(x_TD, batch)
        return x_TD


class BertHead(Module):
    """tanh(W x), of pooled vectors."""

    def __init__(self, ctx: Context, c: BertConfig) -> None:
        self.dense = head(ctx, c.hidden_size, {"dense": c.hidden_size}, has_bias=True)
        self.squash = ctx.ops.resolve(soft_cap, Spec(dtype="float32"))

    def forward(self, x_PD: Tensor) -> Tensor:
        return self.squash(self.dense(x_PD), cap=1.0)


class BertEncoder(Module):
    """Embeddings and layers; with ``has_head`` what turns the first token into a vector, too."""

    def __init__(
        self, ctx: Context, c: BertConfig, alias: str, first_place: int, *, has_head: bool
    ) -> None:
        self.alias = alias
        self.embeddings = BertEmbeddings(ctx, c, first_place)
        self.layers = BertLayers(ctx, c)
        self.pooler = BertHead(ctx, c) if has_head else None

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        return self.layers(self.embeddings(ids_T, batch), batch)


class BertModel(PooledModel):
    """The encoder; its hidden states are pooled."""

    base_prefix = "bert"
    is_causal = False
    skip: Mapping[str, str] = {
        r"embeddings\.position_ids$": "old files have the numbers from 0 on",
        r"(^|\.)pooler\.dense\.": "vectors are pooled hidden states",
        r"^(cls|lm_head)\.": "tokens are not predicted",
    }
    has_head: ClassVar[bool] = False

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(
            config,
            hidden_act=tuple(BY_CONFIG_NAME),
            position_embedding_type=("absolute",),
            is_decoder=(False,),
            add_cross_attention=(False,),
        )
        c = read_config(BertConfig, config)
        self.num_token_types = c.type_vocab_size
        self.config = c
        first = self.first_place(c)
        self.model = BertEncoder(ctx, c, self.base_prefix, first, has_head=self.has_head)
        self.pooler = Pooler(ctx, ctx.pooling or Pooling("cls"))

    @staticmethod
    def first_place(c: BertConfig) -> int:
        """Return the row of the table of places for a text's first token."""
        return 0


class BertForSequenceClassification(BertModel):
    """The encoder's first token, squashed, to a number a label."""

    skip: Mapping[str, str] = {
        r"embeddings\.position_ids$": "old files have the numbers from 0 on",
    }
    has_head = True

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        super().__init__(ctx, config)
        leaves = {"classifier": num_labels(config)}
        self.classifier = head(ctx, self.config.hidden_size, leaves, has_bias=True)

    def pool(self, hidden_TD: Tensor, batch: StepBatch, rows_P: Tensor) -> Tensor:
        assert isinstance(self.model, BertEncoder), "the encoder is the model"
        assert self.model.pooler is not None, "a classifier has a head"
        first_PD = self.pooler(hidden_TD, batch, rows_P)
        return self.classifier(self.model.pooler(first_PD))


class RobertaModel(BertModel):
    """BERT with another training; XLM-R too. Places are counted from behind the padding's id."""

    base_prefix = "roberta"
    spare_length = 2
    skip: Mapping[str, str] = {**BertModel.skip, r"^classifier\.": "texts are not classified"}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, pad_token_id=range(self.spare_length))
        super().__init__(ctx, config)

    @staticmethod
    def first_place(c: BertConfig) -> int:
        return (c.pad_token_id or 0) + 1


class RobertaHead(BertHead):
    """W_out tanh(W x), of pooled vectors."""

    def __init__(self, ctx: Context, c: BertConfig, labels: int) -> None:
        super().__init__(ctx, c)
        self.out = head(ctx, c.hidden_size, {"out_proj": labels}, has_bias=True)

    def forward(self, x_PD: Tensor) -> Tensor:
        return self.out(super().forward(x_PD))


class RobertaForSequenceClassification(RobertaModel):
    """The encoder's first token to a number a label."""

    skip: Mapping[str, str] = BertModel.skip

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        super().__init__(ctx, config)
        self.classifier = RobertaHead(ctx, self.config, num_labels(config))

    def pool(self, hidden_TD: Tensor, batch: StepBatch, rows_P: Tensor) -> Tensor:
        return self.classifier(self.pooler(hidden_TD, batch, rows_P))
