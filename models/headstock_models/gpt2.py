"""GPT-2, and what BigCode made of it (StarCoder, SantaCoder): learned positions, biases, no gates.

Shapes: T tokens in the step, D hidden size. Sources: Radford et al. 2019, "Language Models are
Unsupervised Multitask Learners"; Li et al. 2023, "StarCoder"; names as in Hugging Face
transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.arranged import ArrangedLinear, Rows
from headstock.graph.attention import Attention
from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.feed_forward import MLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.attention import StepBatch
from headstock.ops.features import add_features
from headstock.ops.linear import DENSE

TURNED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
"""Matrices that the files have inputs first."""


class Gpt2Config(ModelConfig, frozen=True, kw_only=True):
    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Query heads, key/value heads, and features of a head."""
        return self.n_head, self.n_head, self.n_embd // self.n_head

    def scale(self, number: int) -> float:
        """Return what multiplies q·k in layer ``number``."""
        scale = self.sizes[2] ** -0.5 if self.scale_attn_weights else 1.0
        return scale / (number + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def qkv_rows(self) -> Sequence[Rows]:
        """Return where queries, keys and values are in their matrix: one kind after the other."""
        heads, kv_heads, d = self.sizes
        rows = partial(Rows, size=d, stride=d)
        kv = partial(rows, num_heads=kv_heads, is_shared=True)
        end = heads * d
        return [rows(first=0, num_heads=heads), kv(first=end), kv(first=end + kv_heads * d)]


class GptBigCodeConfig(Gpt2Config, frozen=True, kw_only=True):
    activation_function: str = "gelu_pytorch_tanh"
    multi_query: bool = True

    @property
    def sizes(self) -> tuple[int, int, int]:
        heads, _, head_dim = super().sizes
        return heads, 1 if self.multi_query else heads, head_dim

    def qkv_rows(self) -> Sequence[Rows]:
        """Return them; where every head has keys and values of its own, head after head."""
        if self.multi_query:
            return super().qkv_rows()
        heads, _, d = self.sizes
        return [Rows(first=n * d, size=d, stride=3 * d, num_heads=heads) for n in range(3)]


class Gpt2Attention(Module):
    """W_o attend(W_qkv x)."""

    alias = "attn"

    def __init__(self, ctx: Context, c: Gpt2Config, number: int) -> None:
        size = c.n_embd
        self.qkv = ArrangedLinear(ctx, size, {"c_attn": c.qkv_rows()}, has_bias=True)
        self.attend = Attention(ctx, *c.sizes, scale=c.scale(number))
        self.out = Linear(ctx, size, {"c_proj": size}, split="in", has_bias=True)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        return self.out(keep(self.attend(self.qkv(x_TD), batch), batch))


class Gpt2Layer(Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream."""

    def __init__(self, ctx: Context, c: Gpt2Config, number: int) -> None:
        size, norm = c.n_embd, partial(LayerNorm, ctx, c.n_embd, eps=c.layer_norm_epsilon)
        self.keep = LastOfRows(ctx, is_last=number == c.n_layer - 1)
        self.norm = norm(leaf="ln_1")
        self.attention = Gpt2Attention(ctx, c, number)
        self.mlp_norm = norm(leaf="ln_2")
        activation = BY_CONFIG_NAME[c.activation_function]
        between, names = c.n_inner or 4 * size, {"up": "c_fc", "down": "c_proj"}
        self.mlp = MLP(ctx, size, between, activation, **names, has_bias=True)

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD = self.attention(x_TD, batch, self.keep)
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        return self.mlp(x_TD), total_TD


class Gpt2Decoder(Module):
    alias = "transformer"

    def __init__(self, ctx: Context, c: Gpt2Config) -> None:
        self.embed = Embedding(ctx, c.vocab_size, c.n_embd, leaf="wte")
        self.places = Embedding(ctx, c.n_positions, c.n_embd, leaf="wpe")
        self.h = [Gpt2Layer(ctx, c, number) for number in range(c.n_layer)]
        self.norm = LayerNorm(ctx, c.n_embd, leaf="ln_f", eps=c.layer_norm_epsilon)
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self._add(self.embed(ids_T), self.places(batch.positions_T)), None
        for layer in self.h:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


class GPT2LMHeadModel(Model):
    """A decoder whose output layer is the embedding, unless the configuration says otherwise."""

    config_type: type[Gpt2Config] = Gpt2Config
    length_keys: ClassVar[tuple[str, ...]] = ("n_positions",)
    base_prefix = "transformer"
    skip: Mapping[str, str] = {
        **Model.skip,
        r"\.attn\.(masked_)?bias$": "old files have the causal mask",
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, activation_function=BY_CONFIG_NAME, add_cross_attention=(False,))
        c = read_config(self.config_type, config)
        self.model = Gpt2Decoder(ctx, c)
        tied = self.model.embed if c.tie_word_embeddings else None
        self.lm_head = LMHead(ctx, c.vocab_size, c.n_embd, leaf="lm_head", tied=tied)

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors, all matrices with outputs first."""
        return {name: _turn(x) if TURNED.search(name) else x for name, x in index.items()}


class GPTBigCodeForCausalLM(GPT2LMHeadModel):
    """The same with one head of keys and values, and matrices that are not turned."""

    config_type = GptBigCodeConfig

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors as they are."""
        return index


def _turn(tensor: StoredTensor) -> StoredTensor:
    """Return a matrix with its rows for its columns; one that is quantised has outputs first."""
    if tensor.layout != DENSE:
        return tensor

    def read(begin: int, end: int) -> Mapping[str, Any]:
        whole = tensor.read(0, tensor.shape[0])["weight"]
        return {"weight": np.ascontiguousarray(whole[:, begin:end].T)}

    return replace(tensor, shape=tensor.shape[::-1], read=read)
