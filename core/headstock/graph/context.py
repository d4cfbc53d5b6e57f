"""What layers are built with: chosen ops, dtype, ranks, limits. Passed in, never global."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from headstock.errors import ConfigError
from headstock.ops.attention import (
    AttentionProvider,
    AttentionSpec,
    CacheProvider,
    attention,
    page_format_of,
)
from headstock.ops.base import Op, Resolver, Spec
from headstock.ops.communication import Group, SingleRank

if TYPE_CHECKING:
    import torch

    from headstock.checkpoint.sentence import Pooling
    from headstock.graph.lora import StepAdapters
    from headstock.ops.attention import CachedLayer
    from headstock.ops.device import OpDevice

FIRST_PAGE_SIZE = 16
"""Tokens a page: what a provider is asked with when the operator leaves the choice to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the model must be able to take.

    Attributes:
        max_rows: Most rows of a step.
        max_tokens: Most tokens of a step.
        max_length: Longest request. Tokens.
        page_size: Tokens a KV page holds; None: what the attention provider likes best.
    """

    max_rows: int
    max_tokens: int
    max_length: int
    page_size: int | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """What a page group keeps of a request.

    Attributes:
        kind: ``full``: every token; ``window``: the last ``window``; ``state``: one state.
        window: Tokens.
    """

    kind: Literal["full", "window", "state"]
    window: int = 0


@dataclass(slots=True, kw_only=True)
class Context:
    """What the layers of one model on one device are built with.

    Attributes:
        ops: Chooses implementations, and knows the device.
        dtype: Of activations and dense weights.
        limits: See :class:`Limits`; ``page_size`` is set once the first provider is built.
        tp: The ranks that share every layer.
        quantization: ``--quantization``: ``int8``, ``int4``, ``none``, or None.
        kv_dtype: Of KV pages; the activations' when None.
        pooling: How a model that yields vectors makes them; None: as its class has it.
        is_causal: Whether tokens see only what is before them; False: a model whose attention may
            go either way has tokens see all of their text.
        adapters: Low-rank adapters that linear layers make room for; None: they make none.
        attention_layers: Every layer that keeps state, in the order of building.
        groups: What each page group keeps, in the order in which layers asked for them.
        providers: One for each distinct spec of attention, in the order of building.
    """

    ops: Resolver
    dtype: torch.dtype
    limits: Limits
    tp: Group = field(default_factory=SingleRank)
    quantization: str | None = None
    kv_dtype: torch.dtype | None = None
    pooling: Pooling | None = None
    is_causal: bool = True
    adapters: StepAdapters | None = None
    attention_layers: list[CachedLayer] = field(default_factory=list["CachedLayer"])
    groups: list[Retention] = field(default_factory=list[Retention])
    providers: dict[Hashable, CacheProvider] = field(default_factory=dict[Hashable, CacheProvider])

    @property
    def device(self) -> OpDevice:
        """Where the layers' tensors live."""
        return self.ops.device

    @property
    def page_size(self) -> int:
        """Tokens a KV page holds; of models with states alone, those that a known prefix grows by.

        Known once an attention layer is built, where there is any.
        """
        return self.limits.page_size or FIRST_PAGE_SIZE

    def group(self, retention: Retention) -> int:
        """Return the index of the page group that keeps what ``retention`` says."""
        if retention not in self.groups:
            self.groups.append(retention)
        return self.groups.index(retention)

    def spec(
        self,
        *,
        layout: str = "",
        page_format: str = "",
        features: frozenset[str] = frozenset(),
        **sizes: int,
    ) -> Spec:
        """Return a spec in this model's dtype, to resolve an op with."""
        dtype = str(self.dtype).removeprefix("torch.")
        return Spec(
            dtype=dtype, sizes=sizes, layout=layout, page_format=page_format, features=features
        )

    def attention_provider(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        features: frozenset[str] = frozenset(),
        window: int | None = None,
        soft_cap: float | None = None,
        block_size: int = 0,
    ) -> AttentionProvider:
        """Return the provider of attention for heads on this rank; one for equal arguments.

        Raises:
            ConfigError: It does not take the page size that was set, or another layer's provider
                has settled.
            UnsupportedError: No provider computes this kind of attention.
        """
        spec = AttentionSpec(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            scale=scale,
            features=features,
            window=window,
            soft_cap=soft_cap,
            block_size=block_size,
            **self.cache_sizes(),
        )
        return self.cache_provider(attention, spec)

    def cache_sizes(self) -> dict[str, Any]:
        """Return what the specs of all cache providers say alike: dtypes, page size and limits."""
        return {
            "dtype": self.dtype,
            "kv_dtype": self.kv_dtype or self.dtype,
            "page_size": self.limits.page_size or FIRST_PAGE_SIZE,
            "max_length": self.limits.max_length,
            "max_rows": self.limits.max_rows,
            "max_tokens": self.limits.max_tokens,
        }

    def cache_provider(self, op: Op[..., Any], spec: Any) -> Any:
        """Return the provider of ``op``, which keeps pages, for ``spec``; one for equal specs.

        Raises:
            ConfigError: It does not take the page size that was set, or another layer's provider
                has settled.
            UnsupportedError: No provider computes it.
        """
        if spec not in self.providers:
            spec, provider = self._build_provider(op, spec)
            self.limits = replace(self.limits, page_size=spec.page_size)
            self.providers[spec] = provider
        return self.providers[spec]

    def state_provider(self, op: Op[..., Any], spec: Any) -> Any:
        """Return the provider of ``op``, which keeps one state a request, for ``spec``.

        Raises:
            UnsupportedError: No provider computes it.
        """
        if spec not in self.providers:
            self.providers[spec] = self.ops.resolve(op, spec.as_spec())(spec, self.device)
        return self.providers[spec]

    def _build_provider(self, op: Op[..., Any], spec: Any) -> tuple[Any, Any]:
        """Build for the page size that is set; while none is, for the provider's favourite."""
        is_free = self.limits.page_size is None
        asked = spec.as_spec()
        if is_free:
            sizes = {name: size for name, size in asked.sizes.items() if name != "page_size"}
            asked = replace(asked, sizes=sizes)
        build = self.ops.resolve(op, asked)
        provider = build(spec, self.device)
        pages = page_format_of(provider)
        if is_free and pages.page_sizes[0] != spec.page_size:
            spec = replace(spec, page_size=pages.page_sizes[0])
            provider = build(spec, self.device)
        elif not pages.accepts(spec.page_size):
            raise ConfigError(
                f"page_size is {spec.page_size}; {op.name} here takes"
                f" {', '.join(map(str, pages.page_sizes))}.",
                remedy="Drop --page-size or give one of these, or force another provider with --op"
                f" {op.name}=NAME.",
            )
        return spec, provider
