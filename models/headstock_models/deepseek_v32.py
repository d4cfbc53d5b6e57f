"""DeepSeek V3.2: latent attention that reads the tokens which an indexer chooses.

Shapes: T tokens in the step, D hidden size, k tokens chosen.
Source: DeepSeek-AI 2025, "DeepSeek-V3.2"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headstock.graph.config import require
from headstock.graph.context import Context
from headstock.graph.indexer import TokenIndexer
from headstock.graph.last import LastOfRows
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary
from headstock.ops.attention import StepBatch
from headstock_models.deepseek_v3 import (
    Decoder,
    DeepseekConfig,
    DeepseekV3ForCausalLM,
    LatentParts,
)

DENSE, SPARSE = "dense", "sparse"
ATTENTION = ("indexed_attention", "deepseek_sparse_attention")
"""What configurations call the one kind of layer that there is."""


class DeepseekV32Config(DeepseekConfig, frozen=True, kw_only=True):
    q_lora_rank: int = 1536
    n_shared_experts: int = 1
    n_group: int = 8
    topk_group: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    first_k_dense_replace: int = 3
    mlp_layer_types: tuple[str, ...] = ()
    index_topk: int = 2048
    index_head_dim: int = 128
    index_n_heads: int = 64
    indexer_rope_interleave: bool = False

    def is_dense(self, number: int) -> bool:
        """Whether layer ``number`` has no experts."""
        if self.mlp_layer_types:
            return self.mlp_layer_types[number] == DENSE
        return super().is_dense(number)

    def has_indexer(self, number: int) -> bool:
        """Whether layer ``number`` chooses tokens; others read those of the layer before."""
        return True


class SparseAttention(LatentParts):
    """W_o of latent attention over chosen tokens."""

    def __init__(
        self, ctx: Context, c: DeepseekV32Config, rotary: Rotary, scale: float, number: int
    ) -> None:
        super().__init__(ctx, c, rotary, scale, num_chosen=c.index_topk)
        self.indexer = None
        if c.has_indexer(number):
            self.indexer = TokenIndexer(
                ctx,
                c.hidden_size,
                c.q_lora_rank,
                num_heads=c.index_n_heads,
                head_dim=c.index_head_dim,
                rotary=rotary,
                is_interleaved=c.indexer_rope_interleave,
                num_chosen=c.index_topk,
            )

    def forward(
        self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows, chosen_Tk: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's output, and what was chosen."""
        q_TR, kv_TX = self.narrow(x_TD)
        if self.indexer is not None:
            chosen_Tk = self.indexer(x_TD, q_TR, batch)
        assert chosen_Tk is not None, "the first layer has no indexer"
        y_TX = self.attend(self.queries(q_TR), kv_TX, batch, chosen_Tk)
        return self.out(keep(y_TX, batch)), chosen_Tk


class SparseLayer(Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream."""

    def __init__(
        self, ctx: Context, c: DeepseekV32Config, rotary: Rotary, scale: float, number: int
    ) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="input_layernorm", eps=c.rms_norm_eps)
        self.self_attn = SparseAttention(ctx, c, rotary, scale, number)
        leaf = "post_attention_layernorm"
        self.mlp_norm = RMSNorm(ctx, c.hidden_size, leaf=leaf, eps=c.rms_norm_eps)
        self.mlp = c.make_mlp(ctx, number)

    def forward(
        self,
        x_TD: Tensor,
        sum_TD: Tensor | None,
        batch: StepBatch,
        chosen_Tk: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD, chosen_Tk = self.self_attn.forward(x_TD, batch, self.keep, chosen_Tk)
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        return self.mlp(x_TD), total_TD, chosen_Tk


class SparseDecoder(Decoder):
    def make_layer(
        self, ctx: Context, c: DeepseekConfig, rotary: Rotary, scale: float, number: int
    ) -> Module:
        assert isinstance(c, DeepseekV32Config), type(c)
        return SparseLayer(ctx, c, rotary, scale, number)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD, chosen_Tk = self.embed(ids_T), None, None
        for layer in self.layers:
            x_TD, sum_TD, chosen_Tk = layer(x_TD, sum_TD, batch, chosen_Tk)
        return self.norm(x_TD, sum_TD)[0]


class DeepseekV32ForCausalLM(DeepseekV3ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = DeepseekV32Config
    decoder_type = SparseDecoder

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, mlp_bias=(False,))
        for kind in config.get("layer_types") or ():
            require({"layer_types": kind}, layer_types=ATTENTION)
        for kind in config.get("mlp_layer_types") or ():
            require({"mlp_layer_types": kind}, mlp_layer_types=(DENSE, SPARSE))
        super().__init__(ctx, config)
