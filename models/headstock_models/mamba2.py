"""Mamba 2 and Codestral Mamba: state spaces in every layer, and nothing else.

Shapes: T tokens in the step, D hidden size.
Source: Dao and Gu 2024, "Transformers are SSMs"; names as in Hugging Face transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.last import LastOfRows
from headstock.graph.mamba2 import Mamba2, Mamba2Sizes
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.ops.attention import StepBatch
from headstock_models.mamba_layers import step_limits


class Mamba2Config(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    num_heads: int = 128
    head_dim: int = 64
    n_groups: int = 8
    state_size: int = 128
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    layer_norm_epsilon: float = 1e-5
    time_step_limit: tuple[float, float] | None = None
    tie_word_embeddings: bool = False

    @property
    def state_spaces(self) -> Mamba2Sizes:
        """What the layers are made of."""
        return Mamba2Sizes(
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            num_groups=self.n_groups,
            state_size=self.state_size,
            kernel_size=self.conv_kernel,
            eps=self.layer_norm_epsilon,
            has_conv_bias=self.use_conv_bias,
            has_bias=self.use_bias,
            has_out_bias=self.use_bias,
            step_limits=self.time_step_limit or (0.0, math.inf),
        )


class Mamba2Layer(Module):
    """x + mixer(norm(x))."""

    def __init__(self, ctx: Context, c: Mamba2Config, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="norm", eps=c.layer_norm_epsilon)
        self.mixer = Mamba2(ctx, c.state_spaces)

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        return self.mixer(x_TD, batch, self.keep), self.keep(total_TD, batch)


class Mamba2Decoder(Module):
    alias = "backbone"

    def __init__(self, ctx: Context, c: Mamba2Config) -> None:
        self.embed = Embedding(ctx, c.vocab_size, c.hidden_size, leaf="embeddings")
        self.layers = [Mamba2Layer(ctx, c, number) for number in range(c.num_hidden_layers)]
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="norm_f", eps=c.layer_norm_epsilon)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self.embed(ids_T), None
        for layer in self.layers:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


class Mamba2ForCausalLM(Model):
    """A decoder with an output layer, perhaps tied to the embedding."""

    base_prefix = "backbone"
    length_keys: ClassVar[tuple[str, ...]] = ("max_position_embeddings", "model_max_length")

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, hidden_act=("silu", "swish"))
        limits = step_limits(config.get("time_step_limit"))
        c = read_config(Mamba2Config, {**config, "time_step_limit": limits})
        self.model = Mamba2Decoder(ctx, c)
        tied = self.model.embed if c.tie_word_embeddings else None
        self.lm_head = LMHead(ctx, c.vocab_size, c.hidden_size, leaf="lm_head", tied=tied)

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors with the embedding as it is called today."""
        old, new = r"^backbone\.embedding\.", "backbone.embeddings."
        return {re.sub(old, new, name): tensor for name, tensor in index.items()}
