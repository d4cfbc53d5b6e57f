"""InternLM2 and 2.5: Llama by other names, with q, k and v fused by key head; and rewards.

Shapes: T tokens, P rows, D hidden size. Source: Cai et al. 2024, "InternLM2 Technical Report";
names as in the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.checkpoint.sentence import Pooling
from headstock.graph.arranged import ArrangedLinear, Rows
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.pooled import PooledDecoder, head
from headstock.ops.attention import StepBatch
from headstock_models.llama import LlamaConfig, LlamaForCausalLM
from headstock_models.stored_rows import renamed

NAMES = {
    r"\.attention\.wo\.": ".self_attn.o_proj.",
    r"\.attention\.wqkv\.": ".self_attn.wqkv.",
    r"\.feed_forward\.w1\.": ".mlp.gate_proj.",
    r"\.feed_forward\.w3\.": ".mlp.up_proj.",
    r"\.feed_forward\.w2\.": ".mlp.down_proj.",
    r"\.attention_norm\.": ".input_layernorm.",
    r"\.ffn_norm\.": ".post_attention_layernorm.",
    r"^model\.tok_embeddings\.": "model.embed_tokens.",
    r"^output\.": "lm_head.",
}
"""The authors' names, as regular expressions, to those of Llama's modules."""


class InternLM2Config(LlamaConfig, frozen=True, kw_only=True):
    bias: bool = True

    @property
    def has_out_bias(self) -> bool:
        return self.bias

    def make_qkv(self, ctx: Context) -> Linear:
        heads, kv_heads, head_dim = self.sizes
        group = heads // kv_heads
        stride = (group + 2) * head_dim
        q = Rows(first=0, size=group * head_dim, stride=stride, num_heads=kv_heads)
        kv = partial(Rows, size=head_dim, stride=stride, num_heads=kv_heads)
        rows = [q, kv(first=group * head_dim), kv(first=(group + 1) * head_dim)]
        return ArrangedLinear(ctx, self.hidden_size, {"wqkv": rows}, has_bias=self.bias)


class InternLM2ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer."""

    config_type = InternLM2Config
    accepted: ClassVar = {**LlamaForCausalLM.accepted, "pretraining_tp": (1,)}

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by the names of Llama's modules."""
        return renamed(index, NAMES.items())


class InternLM2ForRewardModel(PooledDecoder):
    """The reward of a row's last token, which the authors have be one of its own."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        super().__init__(replace(ctx, pooling=Pooling("last")), config, InternLM2ForCausalLM)
        self.reward = head(ctx, int(config["hidden_size"]), {"v_head": 1}, has_bias=False)

    def pool(self, hidden_TD: Tensor, batch: StepBatch, rows_P: Tensor) -> Tensor:
        return self.reward(self.pooler(hidden_TD, batch, rows_P))
