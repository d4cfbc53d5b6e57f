"""The attention layer. Shapes: T tokens, H query heads, K key/value heads, D head size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headstock.graph.context import Context, Retention
from headstock.graph.module import Layer, Leaf
from headstock.graph.norm import NormWeight
from headstock.graph.rotary import Rotary
from headstock.graph.source import Source
from headstock.graph.split import split_evenly, split_or_replicate
from headstock.ops.attention import AttentionProvider, StepBatch
from headstock.ops.base import Spec
from headstock.ops.rotary import rotate_and_write
from headstock.quantization.plan import Layout, Role

FULL = Retention("full")


class Attention(Layer):
    """Rotates queries and keys, stores keys and values, attends.

    Layers with equal arguments share a provider, which plans each step once.

    Args:
        ctx: What to build with; the layer enters itself into ``ctx.attention_layers``.
        num_heads: H, over all ranks.
        num_kv_heads: K, over all ranks.
        head_dim: D.
        rotary: The table; None leaves positions out.
        qk_norm: Epsilon of an RMS norm over each query and key head, whose weights are the leaves
            ``q_norm`` and ``k_norm``; None: no norm.
        scale: Multiplies q·k; 1 / sqrt(D) when None.
        window: Tokens a query sees, itself included; None: all before it.
        soft_cap: Scores become cap · tanh(score / cap); None: as they are.
        has_sinks: Whether each query head has a sink, a logit without a value: the leaf ``sinks``.
        is_zero_centered: Whether the checkpoint has how far the norms' weights are from 1.

    Raises:
        ConfigError: The heads do not divide among the ranks.
        UnsupportedError: Nobody computes this kind of attention.
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
        rotary: Rotary | None = None,
        qk_norm: float | None = None,
        scale: float | None = None,
        window: int | None = None,
        soft_cap: float | None = None,
        has_sinks: bool = False,
        is_zero_centered: bool = False,
    ) -> None:
        if window is not None and window >= ctx.limits.max_length:
            window = None  # every token is inside of it
        self.head_dim = head_dim
        heads = split_evenly("attention", num_heads * head_dim, ctx.tp, unit=head_dim)
        kv_heads = split_or_replicate("attention", num_kv_heads * head_dim, ctx.tp, unit=head_dim)
        self.num_heads, self.num_kv_heads = heads.size // head_dim, kv_heads.size // head_dim
        self.provider: AttentionProvider = ctx.attention_provider(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5 if scale is None else scale,
            features=_features(window, soft_cap, has_sinks=has_sinks),
            window=window,
            soft_cap=soft_cap,
        )
        self.group = ctx.group(FULL if window is None else Retention("window", window))
        self._eps = 0.0 if qk_norm is None else qk_norm
        self._norms = (
            {}
            if qk_norm is None
            else {
                name: NormWeight(ctx, head_dim, is_zero_centered=is_zero_centered)
                for name in ("q_norm.weight", "k_norm.weight")
            }
        )
        norms = [norm.values_D for norm in self._norms.values()] or [None, None]
        self._q_norm_D, self._k_norm_D = norms
        self._all_heads, self._first_head = num_heads, heads.begin // head_dim
        self._sinks_H: Tensor | None = None
        if has_sinks:
            shape, where = (self.num_heads,), ctx.device.torch_device
            self._sinks_H = torch.zeros(shape, dtype=torch.float32, device=where)
        self._table_LC = None if rotary is None else rotary.cos_sin_LC
        self._is_interleaved = rotary is not None and rotary.is_interleaved
        self._prepare = ctx.ops.resolve(rotate_and_write, self._spec(ctx, rotary))
        ctx.attention_layers.append(self)

    def _spec(self, ctx: Context, rotary: Rotary | None) -> Spec:
        """Say what is asked of ``rotate_and_write``; a rotary size of 0 is no rotation."""
        features = [norm.features for norm in self._norms.values()]
        return ctx.spec(
            layout=self.provider.layout.tag,
            features=frozenset[str]().union(*features),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            rotary_size=0 if rotary is None else rotary.rotary_dim,
            page_size=ctx.page_size,
        )

    def forward(self, qkv_TC: Tensor, batch: StepBatch) -> Tensor:
        """Attend.

        Args:
            qkv_TC: Queries, keys and values, side by side. [T, (H + 2 K) D]
            batch: The step, which the provider has planned in the view of the layer's group.

        Returns:
            [T, H D]
        """
        batch = batch.groups[self.group]
        q_THD = self._prepare(
            qkv_TC,
            self._table_LC,
            self._q_norm_D,
            self._k_norm_D,
            self.kv,
            batch,
            provider=self.provider,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            eps=self._eps,
            is_interleaved=self._is_interleaved,
        )
        return self.provider.run(q_THD, self.kv, batch, sinks_H=self._sinks_H).flatten(1)

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

    @property
    def num_bytes(self) -> int:
        """Bytes of the norms' weights and the sinks."""
        kept = (self._q_norm_D, self._k_norm_D, self._sinks_H)
        return sum(weight.nbytes for weight in kept if weight is not None)


def _features(window: int | None, soft_cap: float | None, *, has_sinks: bool) -> frozenset[str]:
    asked = {
        "sliding_window": window is not None,
        "soft_cap": soft_cap is not None,
        "sinks": has_sinks,
    }
    return frozenset(name for name, is_asked in asked.items() if is_asked)
