"""Attention of Gemma 3n and Gemma 4, whose last layers keep no keys and values.

Each of these reads those of the last layer of its kind that does. Queries, keys and values are
normalised, values without weights.

Shapes: T tokens in the step, D hidden size. Source: ``Gemma4TextAttention`` of Hugging Face
transformers; names as there.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.graph.attention import Attention
from headstock.graph.context import Context
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Module
from headstock.graph.shared_attention import SharedAttention
from headstock.ops.attention import StepBatch
from headstock_models.llama import FULL, SLIDING, Rotaries
from headstock_models.per_layer import PerLayerConfig


class HeadSizes(NamedTuple):
    """Of a layer's attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class SharingConfig(PerLayerConfig, frozen=True, kw_only=True):
    """What a decoder says some of whose layers read what others keep."""

    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    attention_bias: bool = False
    sliding_window: int = 512
    layer_types: tuple[str, ...] = ()
    num_kv_shared_layers: int = 0
    pattern: ClassVar[int] = 6
    """Every so manieth layer is a full one where the configuration has no list."""

    def kind(self, number: int) -> str:
        """Return what layer ``number`` is."""
        if self.layer_types:
            return self.layer_types[number]
        return SLIDING if (number + 1) % self.pattern else FULL

    def sizes(self, number: int) -> HeadSizes:
        """Return what heads layer ``number`` has."""
        return HeadSizes(self.num_attention_heads, self.num_key_value_heads, self.head_dim)

    def takes_keys(self, number: int) -> bool:
        """Whether the keys of layer ``number`` are its values too."""
        return False

    def sees_spans(self, number: int) -> bool:
        """Whether tokens of an image see all of it in layer ``number``: in none, of text alone."""
        return False

    @property
    def first_shared(self) -> int:
        """The first layer that reads what others keep."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def keeper(self, number: int) -> int | None:
        """Return the layer whose keys and values layer ``number`` reads; None: it keeps its own.

        Raises:
            UnsupportedError: No layer of its kind keeps any.
        """
        if number < self.first_shared:
            return None
        kind = self.kind(number)
        for earlier in reversed(range(max(0, self.first_shared))):
            if self.kind(earlier) == kind:
                return earlier
        raise UnsupportedError(
            f"The configuration has num_kv_shared_layers = {self.num_kv_shared_layers}, and layer"
            f" {number}, of kind {kind}, has no earlier one of its kind that keeps keys and"
            " values.",
            remedy="Compare config.json with the model's original.",
        )


class KeepingAttention(Module):
    """W_o attend(rotate(norm(W_q x)), rotate(norm(W_k x)), v / rms(v)), with v = W_v x or W_k x."""

    def __init__(self, ctx: Context, c: SharingConfig, rotaries: Rotaries, number: int) -> None:
        sizes, kind, has_bias = c.sizes(number), c.kind(number), c.attention_bias
        heads, kv_heads, head_dim = sizes
        takes_keys = c.takes_keys(number)
        kv = Part(kv_heads * head_dim, unit=head_dim, is_shared=True)
        leaves = {"q_proj": Part(heads * head_dim, unit=head_dim), "k_proj": kv}
        if not takes_keys:
            leaves["v_proj"] = kv
        self.qkv = Linear(ctx, c.hidden_size, leaves, has_bias=has_bias)
        self.attend = Attention(
            ctx,
            *sizes,
            rotary=rotaries[kind],
            qk_norm=c.rms_norm_eps,
            scale=1.0,
            window=c.sliding_window if kind == SLIDING else None,
            norms_values=True,
            takes_keys=takes_keys,
            sees_spans=c.sees_spans(number),
        )
        leaf = {"o_proj": c.hidden_size}
        self.out = Linear(ctx, heads * head_dim, leaf, split="in", has_bias=has_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        return self.out(keep(self.attend(self.qkv(x_TD), batch), batch))


class ReadingAttention(Module):
    """W_o attend(rotate(norm(W_q x))) to what another layer keeps."""

    def __init__(
        self, ctx: Context, c: SharingConfig, rotaries: Rotaries, number: int, keeper: Attention
    ) -> None:
        heads, _, head_dim = c.sizes(number)
        has_bias, width = c.attention_bias, heads * head_dim
        leaves = {"q_proj": Part(width, unit=head_dim)}
        self.query = Linear(ctx, c.hidden_size, leaves, has_bias=has_bias)
        rotary, eps = rotaries[c.kind(number)], c.rms_norm_eps
        self.attend = SharedAttention(ctx, keeper, rotary=rotary, q_norm=eps)
        leaf = {"o_proj": c.hidden_size}
        self.out = Linear(ctx, width, leaf, split="in", has_bias=has_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        return self.out(keep(self.attend(self.query(x_TD), batch), batch))


def make_attentions(ctx: Context, c: SharingConfig, rotaries: Rotaries) -> list[Module]:
    """Return the attention of each layer.

    Raises:
        UnsupportedError: A layer has none to read from.
    """
    made: list[Module] = []
    keepers: dict[int, Attention] = {}
    for number in range(c.num_hidden_layers):
        earlier = c.keeper(number)
        if earlier is None:
            keeping = KeepingAttention(ctx, c, rotaries, number)
            keepers[number] = keeping.attend
            made.append(keeping)
        else:
            made.append(ReadingAttention(ctx, c, rotaries, number, keepers[earlier]))
    return made


def unread_leaves(c: SharingConfig) -> dict[str, str]:
    """Return which tensors of checkpoints layers that read others' do without, and why."""
    numbers = "|".join(str(number) for number in range(c.first_shared, c.num_hidden_layers))
    if not numbers:
        return {}
    leaves = rf"layers\.({numbers})\.self_attn\.(k_proj|v_proj|k_norm)\."
    return {leaves: "the layer reads the keys and values of another"}
