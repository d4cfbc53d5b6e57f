"""GLM-OCR: GLM-4.1V made small, with norms of queries and keys in its encoder, and no positions.

Shapes: N patches, M = N / merge² tokens of images, D hidden size of the encoder, F the decoder's,
E size of a head.
Source: names as in Hugging Face transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.outputs import join_features
from headstock.ops.vision import encoder_attention
from headstock_models.glm4v import Glm4vForConditionalGeneration, Glm4vVisionConfig, GlmEncoder
from headstock_models.llama import LlamaConfig
from headstock_models.stored_rows import take_rows

NAMES = ("q_proj", "k_proj", "v_proj")
"""What rows of the checkpoint's one matrix are called here: queries and keys have norms."""
JOINED = re.compile(r"(.*\bvisual\.blocks\.\d+\.attn\.)qkv\.(weight|bias)$")


class GlmOcrVisionConfig(Glm4vVisionConfig, frozen=True, kw_only=True):
    hidden_size: int = 1024
    attention_bias: bool = True
    num_heads: int = 16
    out_hidden_size: int = 1536
    intermediate_size: int = 4096

    @property
    def head_dim(self) -> int:
        """E."""
        return self.hidden_size // self.num_heads

    @property
    def merger_size(self) -> int:
        return self.out_hidden_size * self.in_channels

    def make_attention(self, ctx: Context) -> Module:
        return GlmOcrAttention(ctx, self)

    def make_mlp(self, ctx: Context) -> GatedMLP:
        sizes = (self.hidden_size, self.intermediate_size)
        activation = BY_CONFIG_NAME[self.hidden_act]
        return GatedMLP(ctx, *sizes, activation, has_bias=self.attention_bias)


class GlmOcrAttention(Module):
    """Attention among the patches of an image, queries and keys of each head normalised."""

    alias = "attn"

    def __init__(self, ctx: Context, c: GlmOcrVisionConfig) -> None:
        size, bias = c.hidden_size, c.attention_bias
        self.q, self.k, self.v = (Linear(ctx, size, {n: size}, has_bias=bias) for n in NAMES)
        self.q_norm, self.k_norm = (
            RMSNorm(ctx, c.head_dim, leaf=leaf, eps=c.rms_norm_eps) for leaf in ("q_norm", "k_norm")
        )
        self.out = Linear(ctx, size, {"proj": size}, has_bias=bias)
        self._num_heads, self._head_dim, self._size = c.num_heads, c.head_dim, size
        spec = ctx.spec(num_heads=c.num_heads, head_dim=c.head_dim)
        self._attend = ctx.ops.resolve(encoder_attention, spec)
        self._join = ctx.ops.resolve(join_features, ctx.spec())

    def forward(self, x_ND: Tensor, angles_NE: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the layer's output. [N, D]"""
        q_RE, _ = self.q_norm(self.q(x_ND).view(-1, self._head_dim), None)
        k_RE, _ = self.k_norm(self.k(x_ND).view(-1, self._head_dim), None)
        qk_NC = self._join(q_RE.view(-1, self._size), k_RE.view(-1, self._size))
        qkv_NC = self._join(qk_NC, self.v(x_ND))
        return self.out(self._attend(qkv_NC, angles_NE, lengths=lengths, num_heads=self._num_heads))


class GlmOcrForConditionalGeneration(Glm4vForConditionalGeneration):
    """The decoder of GLM-4.1V with an encoder of its own."""

    vision_type = GlmOcrVisionConfig
    text_types = ("glm_ocr_text",)
    default_sections = (16, 24, 24)

    def read_text(self, text: dict[str, Any]) -> LlamaConfig:
        # Its attention has no biases, whatever the configuration says of those of GLM-4.1V.
        return super().read_text({**text, "attention_bias": False})

    def make_encoder(self, ctx: Context, c: Any) -> Module:
        return GlmEncoder(ctx, c)

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors with queries, keys and values of the encoder apart."""
        found: dict[str, StoredTensor] = {}
        for name, tensor in index.items():
            match = JOINED.match(name)
            if match is None:
                found[name] = tensor
                continue
            size = tensor.shape[0] // len(NAMES)
            for number, part in enumerate(NAMES):
                new = f"{match[1]}{part}.{match[2]}"
                rows = np.arange(number * size, (number + 1) * size)
                found[new] = take_rows(tensor, new, rows)
        return found
