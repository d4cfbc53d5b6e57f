"""The attention layer. Shapes: T tokens, H query heads, K key/value heads, D head size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.graph.context import Context, Retention
from headstock.graph.module import Layer, Leaf
from headstock.graph.norm import NormWeight
from headstock.graph.rotary import AngleTable
from headstock.graph.source import Source
from headstock.graph.split import split_evenly, split_or_replicate
from headstock.ops.attention import (
    BIDIRECTIONAL,
    BOTH_SIDES,
    CHOSEN_BLOCKS,
    CHUNKED,
    AttentionProvider,
    StepBatch,
    page_format_of,
)
from headstock.ops.base import Spec
from headstock.ops.features import scale_by_position
from headstock.ops.rotary import (
    KEYS_AS_VALUES,
    NORMED_LAST,
    NORMED_VALUES,
    rotate_and_write,
)
from headstock.ops.spans import span_attention
from headstock.quantization.plan import Layout, Role

FULL = Retention("full")
KEYWORDS = {
    NORMED_LAST: "is_normed_last",
    NORMED_VALUES: "has_normed_values",
    KEYS_AS_VALUES: "takes_keys",
}
"""What ``rotate_and_write`` calls what its features stand for."""


class Attention(Layer):
    """Rotates queries and keys, stores keys and values, attends.

    Layers with equal arguments share a provider, which plans each step once.

    Args:
        ctx: What to build with; the layer enters itself into ``ctx.attention_layers``.
        num_heads: H, over all ranks.
        num_kv_heads: K, over all ranks.
        head_dim: D.
        rotary: The table, perhaps with one that scales queries; None leaves positions out.
        qk_norm: Epsilon of an RMS norm over each query and key head, whose weights are the leaves
            ``norm_leaves`` names; None: no norm.
        scale: Multiplies q·k; 1 / sqrt(D) when None.
        window: Tokens a query sees, itself included; None: all before it. Where tokens see each
            other both ways, it sees those whose distance from it is less.
        is_chunked: Whether it sees those of its own chunk of ``window`` tokens instead.
        soft_cap: Scores become cap · tanh(score / cap); None: as they are.
        has_sinks: Whether each query head has a sink, a logit without a value: the leaf ``sinks``.
        is_zero_centered: Whether the checkpoint has how far the norms' weights are from 1.
        is_causal: Whether a token sees only those before it and itself; None: as ``ctx`` says.
        norm_leaves: What the checkpoint calls the norms of queries and of keys; (): these have no
            weights.
        is_normed_last: Whether the norms come behind the rotation.
        query_scale_L: What multiplies queries at each position; None: what ``rotary`` says.
        sees_spans: Whether tokens of an image see those of it that come later, too.
        block_size: Tokens of a block, where an indexer chooses which blocks are read; 0: none does.
        norms_values: Whether values are divided by their root mean square, with ``qk_norm``.
        takes_keys: Whether the keys, before norm and rotation, are the values too.

    Raises:
        ConfigError: The heads do not divide among the ranks.
        UnsupportedError: No provider computes this kind of attention.
    """

    kv: Tensor
    """This layer's pages; the runner sets them when it has planned the memory."""

    def __init__(
        self,
        ctx: Context,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        rotary: AngleTable | None = None,
        qk_norm: float | None = None,
        scale: float | None = None,
        window: int | None = None,
        soft_cap: float | None = None,
        has_sinks: bool = False,
        is_zero_centered: bool = False,
        is_causal: bool | None = None,
        norm_leaves: tuple[str, ...] = ("q_norm", "k_norm"),
        is_chunked: bool = False,
        is_normed_last: bool = False,
        query_scale_L: Tensor | None = None,
        sees_spans: bool = False,
        block_size: int = 0,
        norms_values: bool = False,
        takes_keys: bool = False,
    ) -> None:
        if window is not None and window >= ctx.limits.max_length:
            window = None  # every token is inside of it
        is_causal = ctx.is_causal if is_causal is None else is_causal
        self.head_dim = head_dim
        heads = split_evenly("attention", num_heads * head_dim, ctx.tp, unit=head_dim)
        kv_heads = split_or_replicate("attention", num_kv_heads * head_dim, ctx.tp, unit=head_dim)
        self.num_heads, self.num_kv_heads = heads.size // head_dim, kv_heads.size // head_dim
        features = _features(
            window,
            soft_cap,
            block_size,
            has_sinks=has_sinks,
            is_causal=is_causal,
            is_chunked=is_chunked,
        )
        self.provider: AttentionProvider = ctx.attention_provider(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5 if scale is None else scale,
            features=features,
            window=window,
            soft_cap=soft_cap,
            block_size=block_size,
        )
        self._see_spans = self._make_spans(ctx, features, scale, window) if sees_spans else None
        # Texts whose tokens see both ways are whole, and kept whole.
        self.group = ctx.group(_retention(window if is_causal else None))
        self._build_norms(ctx, qk_norm, norm_leaves, is_zero_centered=is_zero_centered)
        self._all_heads, self._first_head = num_heads, heads.begin // head_dim
        self._sinks_H = self._make_sinks(ctx) if has_sinks else None
        prepared = _prepared(is_normed_last, norms_values, takes_keys)
        self._resolve_rotation(ctx, rotary, query_scale_L, prepared)
        ctx.attention_layers.append(self)

    def _resolve_rotation(
        self,
        ctx: Context,
        rotary: AngleTable | None,
        query_scale_L: Tensor | None,
        prepared: frozenset[str],
    ) -> None:
        """Choose what turns queries and keys, and what scales queries by their positions."""
        self._table_LC = None if rotary is None else rotary.cos_sin_LC
        self._is_interleaved = rotary is not None and rotary.is_interleaved
        run = ctx.ops.resolve(rotate_and_write, self._spec(ctx, rotary, prepared))
        self._prepare = partial(run, **{KEYWORDS[feature]: True for feature in prepared})
        self._query_scale_L = query_scale_L
        if query_scale_L is None and rotary is not None:
            self._query_scale_L = rotary.query_scale_L
        if self._query_scale_L is not None:
            self._scale_queries = ctx.ops.resolve(scale_by_position, ctx.spec())

    def _build_norms(
        self, ctx: Context, eps: float | None, leaves: tuple[str, ...], *, is_zero_centered: bool
    ) -> None:
        """Make the norms of queries and keys, unless ``eps`` is None; without leaves of ones."""
        self._eps = 0.0 if eps is None else eps
        self._norms: dict[str, NormWeight] = {}
        self._q_norm_D: Tensor | None = None
        self._k_norm_D: Tensor | None = None
        if eps is None:
            return
        size = self.head_dim
        self._norms = {
            f"{leaf}.weight": NormWeight(ctx, size, is_zero_centered=is_zero_centered)
            for leaf in leaves
        }
        ones_D = torch.ones(size, dtype=ctx.dtype, device=ctx.device.torch_device)
        weights = [norm.values_D for norm in self._norms.values()] or [ones_D, ones_D]
        self._q_norm_D, self._k_norm_D = weights

    def _make_sinks(self, ctx: Context) -> Tensor:
        """Return room for a sink for each head. float32. [H]"""
        return torch.zeros(self.num_heads, device=ctx.device.torch_device)

    def _make_spans(
        self, ctx: Context, features: frozenset[str], scale: float | None, window: int | None
    ) -> Callable[..., Tensor]:
        """Return what lets the tokens of an image see all of it."""
        _check_spans(features)
        spec = ctx.spec(
            page_format=page_format_of(self.provider).tag,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
        )
        return partial(
            ctx.ops.resolve(span_attention, spec),
            provider=self.provider,
            page_size=ctx.page_size,
            scale=self.head_dim**-0.5 if scale is None else scale,
            window=window,
        )

    def _spec(self, ctx: Context, rotary: AngleTable | None, prepared: frozenset[str]) -> Spec:
        """Say what is asked of ``rotate_and_write``; a rotary size of 0 is no rotation."""
        features = [norm.features for norm in self._norms.values()]
        return ctx.spec(
            page_format=page_format_of(self.provider).tag,
            features=prepared.union(*features),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            rotary_size=0 if rotary is None else rotary.rotary_dim,
            page_size=ctx.page_size,
        )

    def forward(self, qkv_TC: Tensor, batch: StepBatch, chosen_TKk: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            qkv_TC: Queries, keys and values, side by side; where keys are the values too, without
                these. [T, (H + 2 K) D]
            batch: The step, which the provider has planned in the view of the layer's group.
            chosen_TKk: What an indexer chose, where one does. int32. [T, K, k]

        Returns:
            [T, H D]
        """
        batch = batch.groups[self.group]
        table_LC, turned = (self._table_LC, batch) if batch.turned is None else batch.turned
        q_THD = self._prepare(
            qkv_TC,
            table_LC,
            self._q_norm_D,
            self._k_norm_D,
            self.kv,
            turned,
            provider=self.provider,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            eps=self._eps,
            is_interleaved=self._is_interleaved,
        )
        if self._query_scale_L is not None:
            q_THD = self._scale_queries(q_THD, batch.positions_T, self._query_scale_L)
        return self.attend(q_THD, batch, chosen_TKk)

    def attend(self, q_THD: Tensor, batch: StepBatch, chosen_TKk: Tensor | None = None) -> Tensor:
        """Attend to what the layer's pages hold, the step's own tokens among it.

        Args:
            q_THD: Queries, rotated: this layer's, or another's that keeps nothing. [T, H, D]
            batch: The step, as the layer's group sees it.
            chosen_TKk: What an indexer chose, where one does. int32. [T, K, k]

        Returns:
            [T, H D]
        """
        given = {} if chosen_TKk is None else {"chosen_TKk": chosen_TKk}
        out_THD = self.provider.run(q_THD, self.kv, batch, sinks_H=self._sinks_H, **given)
        if self._see_spans is not None and batch.media is not None:
            out_THD = self._see_spans(out_THD, q_THD, self.kv, batch, spans=batch.media.spans)
        return out_THD.flatten(1)

    def leaves(self) -> Sequence[Leaf]:
        """Return the norms' weights and the sinks, where there are any."""
        found = [Leaf(name, (self.head_dim,), Role.SCALE) for name in self._norms]
        if self._sinks_H is not None:
            found.append(Leaf("sinks", (self._all_heads,), Role.BIAS))
        return found

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Do nothing: the weights are small, and made at once."""

    def load(self, name: str, source: Source) -> None:
        """Copy a norm's weight, or this rank's heads' sinks."""
        if name == "sinks":
            assert self._sinks_H is not None, "sinks came for attention without any"
            end = self._first_head + self.num_heads
            self._sinks_H.copy_(source.read(self._first_head, end)["weight"])
        else:
            self._norms[name].load(source)

    def read(self, name: str, num_rows: int) -> Tensor:
        """Return the first values of a norm's weight, or the first heads' sinks."""
        if name == "sinks":
            assert self._sinks_H is not None, "sinks are read from attention without any"
            return self._sinks_H[:num_rows]
        return self._norms[name].read(num_rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of the norms' weights and the sinks."""
        kept = (self._q_norm_D, self._k_norm_D, self._sinks_H)
        return sum(weight.nbytes for weight in kept if weight is not None)


def _prepared(*asked: bool) -> frozenset[str]:
    """Return which of the features of :data:`KEYWORDS` are asked, given in their order."""
    return frozenset(name for name, is_asked in zip(KEYWORDS, asked, strict=True) if is_asked)


def _retention(window: int | None) -> Retention:
    return FULL if window is None else Retention("window", window)


def _check_spans(features: frozenset[str]) -> None:
    """Refuse features that are not computed where the tokens of an image see each other.

    Raises:
        UnsupportedError: Naming the features of attention.
    """
    others = sorted(features - {"sliding_window"})
    if others:
        raise UnsupportedError(
            f"The model's attention has {', '.join(others)}, and tokens of an image see each other:"
            " both together are not computed.",
            remedy="Serve another model, or its text alone.",
        )


def _features(
    window: int | None,
    soft_cap: float | None,
    block_size: int,
    *,
    has_sinks: bool,
    is_causal: bool,
    is_chunked: bool,
) -> frozenset[str]:
    asked = {
        CHOSEN_BLOCKS: block_size > 0,
        "sliding_window": window is not None and is_causal and not is_chunked,
        CHUNKED: window is not None and is_causal and is_chunked,
        BOTH_SIDES: window is not None and not is_causal,
        "soft_cap": soft_cap is not None,
        "sinks": has_sinks,
        BIDIRECTIONAL: not is_causal,
    }
    return frozenset(name for name, is_asked in asked.items() if is_asked)
