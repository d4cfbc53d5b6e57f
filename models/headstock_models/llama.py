"""Llama 2 and 3, and what decoders of many families have in common.

A family says in its configuration what its layers are, and overrides what is left. Shapes: T tokens
in the step, D hidden size. Source: Touvron et al. 2023, "Llama 2".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from headstock.graph.attention import Attention
from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, QKVLinear
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm, RMSNorm
from headstock.graph.rotary import Rotary, rotary_size
from headstock.graph.wide_norm import WideNorm
from headstock.ops.attention import StepBatch

FULL, SLIDING = "full_attention", "sliding_attention"
Rotaries = Mapping[str, Rotary]
"""Tables of angles by kind of layer."""
WINDOWED: Mapping[str, Collection[Any] | None] = {
    "sliding_window": None,
    "layer_types": (FULL, SLIDING),
}
"""What families accept some of whose layers see a window."""


class LlamaConfig(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()

    has_qk_norm: ClassVar[bool] = False
    has_wide_norm: ClassVar[bool] = False
    has_sinks: ClassVar[bool] = False
    is_normed_last: ClassVar[bool] = False
    norm_leaves: ClassVar[tuple[str, str]] = ("q_norm", "k_norm")
    out_leaf: ClassVar[str] = "o_proj"
    is_interleaved: ClassVar[bool] = False
    rotary_share: ClassVar[float] = 1.0
    rope_theta_default: ClassVar[float] = 10_000.0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Query heads, key/value heads, and features of a head."""
        heads = self.num_attention_heads
        return heads, self.num_key_value_heads or heads, self.head_dim or self.hidden_size // heads

    @property
    def norms_heads(self) -> bool:
        """Whether each query and key head is normalised."""
        return self.has_qk_norm

    @property
    def attention_scale(self) -> float | None:
        """What multiplies q·k; None: as usual."""
        return None

    @property
    def has_out_bias(self) -> bool:
        """Whether attention's output matrix has a bias."""
        return self.attention_bias

    @property
    def embedding_scale(self) -> float:
        """What multiplies embeddings."""
        return 1.0

    @property
    def logits_scale(self) -> float:
        """What multiplies logits."""
        return 1.0

    def kind(self, number: int) -> str:
        """Return what layer ``number`` is."""
        return self.layer_types[number] if self.layer_types else self.usual_kind(number)

    def usual_kind(self, number: int) -> str:
        """Return what it is where the configuration has no list."""
        return SLIDING if self.sliding_window else FULL

    def window(self, number: int) -> int | None:
        """Return the tokens that a query of layer ``number`` sees; None: all before it."""
        return self.sliding_window if self.kind(number) == SLIDING else None

    def rotates(self, number: int) -> bool:
        """Whether layer ``number`` rotates by positions."""
        return True

    def make_norm(self, ctx: Context, leaf: str) -> RMSNorm | LayerNorm:
        return RMSNorm(ctx, self.hidden_size, leaf=leaf, eps=self.rms_norm_eps)

    def make_qkv(self, ctx: Context) -> Linear:
        return QKVLinear(ctx, self.hidden_size, *self.sizes, has_bias=self.attention_bias)

    def make_mlp(self, ctx: Context, number: int) -> Module:
        size = self.intermediate_size
        return GatedMLP(ctx, self.hidden_size, size, has_bias=self.mlp_bias)

    def make_attention(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        """Return the attention of layer ``number``, or what stands in its place."""
        return DecoderAttention(ctx, self, rotaries, number)

    def make_layer(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return DecoderLayer(ctx, self, rotaries, number)


class DecoderAttention(Module):
    """W_o attend(rotate(W_q x), rotate(W_k x), W_v x), perhaps with norms on q and k."""

    def __init__(self, ctx: Context, c: LlamaConfig, rotaries: Rotaries, number: int) -> None:
        self.qkv = c.make_qkv(ctx)
        eps, window = c.rms_norm_eps, c.window(number)
        if window is not None and not ctx.is_causal:
            window += 1  # which is then how far away a token may be, as transformers has it
        self.wide_norm = WideNorm(ctx, *c.sizes, eps=eps) if c.has_wide_norm else None
        self.attend = Attention(
            ctx,
            *c.sizes,
            rotary=rotaries[c.kind(number)] if c.rotates(number) else None,
            qk_norm=eps if c.norms_heads else None,
            scale=c.attention_scale,
            window=window,
            has_sinks=c.has_sinks,
            norm_leaves=c.norm_leaves,
            is_normed_last=c.is_normed_last,
        )
        heads, _, head_dim = c.sizes
        leaves = {c.out_leaf: c.hidden_size}
        self.out = Linear(ctx, heads * head_dim, leaves, split="in", has_bias=c.has_out_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        qkv_TC = self.qkv(x_TD)
        if self.wide_norm is not None:
            qkv_TC = self.wide_norm(qkv_TC)
        return self.out(keep(self.attend(qkv_TC, batch), batch))


class DecoderLayer(Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream."""

    def __init__(self, ctx: Context, c: LlamaConfig, rotaries: Rotaries, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = c.make_norm(ctx, "input_layernorm")
        self.self_attn = c.make_attention(ctx, rotaries, number)
        self.mlp_norm = c.make_norm(ctx, "post_attention_layernorm")
        self.mlp = c.make_mlp(ctx, number)

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD = self.self_attn(x_TD, batch, self.keep)
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        return self.mlp(x_TD), total_TD


class Decoder(Module):
    def __init__(self, ctx: Context, c: LlamaConfig, rotaries: Rotaries) -> None:
        sizes, scale = (c.vocab_size, c.hidden_size), c.embedding_scale
        self.embed = Embedding(ctx, *sizes, leaf="embed_tokens", scale=scale)
        self.layers = [c.make_layer(ctx, rotaries, n) for n in range(c.num_hidden_layers)]
        self.norm = c.make_norm(ctx, "norm")

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self.embed(ids_T), None
        for layer in self.layers:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


def rotaries_of_kinds(
    ctx: Context,
    c: LlamaConfig,
    config: Mapping[str, Any],
    kinds: Iterable[str],
    share: float = 1.0,
) -> Rotaries:
    """Return the tables of angles of layers whose kinds have parameters of their own.

    Args:
        ctx: What to build with.
        c: The sizes of heads.
        config: With ``rope_parameters`` by kind.
        kinds: Of layers.
        share: Of a head's features that are rotated, where the parameters do not say.
    """
    head_dim = c.sizes[2]
    sizes = {kind: rotary_size(config, head_dim, share=share, layer_kind=kind) for kind in kinds}
    return {kind: Rotary(ctx, size, config, layer_kind=kind) for kind, size in sizes.items()}


class LlamaForCausalLM(Model):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type: type[LlamaConfig] = LlamaConfig
    accepted: ClassVar[Mapping[str, Collection[Any] | None]] = {
        "hidden_act": ("silu", "swish"),
        "layer_types": (FULL,),
        "sliding_window": (),
        "partial_rotary_factor": (1,),
    }
    """Configuration keys to the values that are computed, of lists to what may be in them; None:
    whatever it is."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        for key, values in self.accepted.items():
            given = config.get(key)
            for value in given if isinstance(given, list) else [given]:
                require({key: value}, **({} if values is None else {key: values}))
        theta = config.get("rope_theta") or self.config_type.rope_theta_default
        config = {**config, "rope_theta": theta}
        c = read_config(self.config_type, config)
        self.model = Decoder(ctx, c, self.rotaries(ctx, c, config))
        self.lm_head = LMHead(
            ctx,
            c.vocab_size,
            c.hidden_size,
            leaf="lm_head",
            tied=self.model.embed if c.tie_word_embeddings else None,
            scale=c.logits_scale,
        )

    def rotaries(self, ctx: Context, c: LlamaConfig, config: Mapping[str, Any]) -> Rotaries:
        """Return the tables of angles by kind of layer."""
        size = rotary_size(config, c.sizes[2], share=c.rotary_share)
        both = Rotary(ctx, size, config, is_interleaved=c.is_interleaved)
        return {SLIDING: both, FULL: both}
