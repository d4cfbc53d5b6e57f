"""Attention over paged keys and values: the contract, and the step that it works on.

One ragged form serves prefill, chunks of it, decode, mixed steps and verification: row ``r`` of a
step has queries [query_starts[r], query_starts[r+1]) of the packed token axis, and they are the
last ones of its kv_lengths[r] tokens, whose keys and values lie in the pages of page_table[r].

Shapes: T tokens of the step, R rows, P pages a row can have, H query heads, K key/value heads,
D head size, N tree nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from headstock.ops.base import Spec, op
from headstock.ops.page_format import PageFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from headstock.ops.device import OpDevice


INT8_PAGES = frozenset({"int8_pages"})
"""The feature that pages in int8 are: they hold scales too."""
FP8_PAGES = frozenset({"fp8_pages"})
"""Likewise in float8_e4m3fn."""
NARROW_PAGES: Mapping[str, frozenset[str]] = {"int8": INT8_PAGES, "float8_e4m3fn": FP8_PAGES}
"""What pages are asked as, by their dtype; others are no feature."""

CHUNKED = "chunked"
"""The feature that a query sees the tokens of its own chunk alone, as many as ``window`` says."""

BIDIRECTIONAL = "bidirectional"
"""The feature that tokens see those behind them, too: whole texts in one step."""

BOTH_SIDES = "window_both_sides"
"""The feature, of ``bidirectional`` attention, that a query sees the tokens near it alone."""

CHOSEN_BLOCKS = "chosen_blocks"
"""The feature that the heads of a key/value head read those blocks of ``block_size`` tokens that
:mod:`headstock.ops.block_indexer` chose for it, and of these what is not behind the query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """What a model's attention layers have in common; one provider is built per distinct spec.

    Attributes:
        num_heads: Query heads on this rank.
        num_kv_heads: Key/value heads on this rank.
        head_dim: Of queries, keys and values.
        dtype: Of the activations.
        kv_dtype: Of the pages. With int8 and float8_e4m3fn a page also holds a float32 scale for
            each token and head of its keys and of its values, as :mod:`headstock.ops.int8_pages`
            and :mod:`headstock.ops.fp8_pages` make them.
        page_size: Tokens a page holds.
        scale: Multiplies q·k. Dimensionless.
        max_length: Longest request. Tokens.
        max_rows: Most rows of a step.
        max_tokens: Most tokens of a step.
        features: ``sliding_window``, ``sinks``, ``soft_cap`` …; {} is plain causal attention. With
            ``bidirectional`` every query of a row sees all of the row's tokens, all of which are
            the step's.
        window: With ``sliding_window``: tokens a query sees, itself included. With ``chunked``:
            tokens of a chunk, of which a query sees those up to itself. With
            ``window_both_sides``: a query sees the tokens whose distance from it is less.
        soft_cap: With ``soft_cap``: scores become cap * tanh(score / cap).
        block_size: With ``chosen_blocks``: tokens of a block; else 0.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    page_size: int
    scale: float
    max_length: int
    max_rows: int
    max_tokens: int
    features: frozenset[str] = frozenset()
    window: int | None = None
    soft_cap: float | None = None
    block_size: int = 0

    @property
    def is_bidirectional(self) -> bool:
        """Whether every query of a row sees all of the row's tokens."""
        return BIDIRECTIONAL in self.features

    @property
    def sees_both_sides(self) -> bool:
        """Whether the window is of the tokens near a query, behind it and before."""
        return BOTH_SIDES in self.features

    @property
    def is_chunked(self) -> bool:
        """Whether the window is the query's own chunk."""
        return CHUNKED in self.features

    def as_spec(self) -> Spec:
        """Return what the op ``attention`` is resolved for.

        Pages in 8 bits are a feature, ``int8_pages`` or ``fp8_pages``: a provider of any page dtype
        that has never heard of scales is not asked to keep them.
        """
        page_dtype = str(self.kv_dtype).removeprefix("torch.")
        return Spec(
            dtype=str(self.dtype).removeprefix("torch."),
            sizes={
                "num_heads": self.num_heads,
                "num_kv_heads": self.num_kv_heads,
                "heads_per_kv_head": self.num_heads // self.num_kv_heads,
                "head_dim": self.head_dim,
                "page_size": self.page_size,
                "max_length": self.max_length,
                "block_size": self.block_size,
            },
            page_dtype=page_dtype,
            features=self.features | NARROW_PAGES.get(page_dtype, frozenset()),
        )


KVLayout = PageFormat
"""What plugins of before ``HOOK_API`` 2.3 call it; until 3.0."""


@dataclass(frozen=True, slots=True)
class StepSpan:
    """Neighbouring tokens of a row that all see each other: what a step has of one image.

    Attributes:
        token: Place of the first of them in the step.
        count: How many.
        row: Row of the step.
        end: Tokens of the row, up to and with the last of them. Those before ``end - count`` are
            in the cache already, or come before them in the step.
    """

    token: int
    count: int
    row: int
    end: int


@dataclass(frozen=True, slots=True)
class StepMedia:
    """Which of a step's tokens have features of images instead of embeddings.

    Attributes:
        rows_T: Row of the store for each token; -1: it has none. int32. [T]
        features_MF: The store: what the encoder made. [M, F]
        spans: Tokens that see each other, in models where those of an image do. Host.
    """

    rows_T: Tensor
    features_MF: Tensor
    spans: Sequence[StepSpan] = ()


@dataclass(slots=True, kw_only=True)
class StepBatch:
    """The rows of one step on the device, as one page group sees them.

    The views of a step differ in ``page_table_RP`` and ``write_slots_T`` alone. Models pass the
    view of group 0 on, and a layer gives its provider its own group's out of ``groups``. Buffers
    keep their addresses from step to step.

    Tensors may be larger than the step: entries past ``num_rows`` and ``num_tokens`` are padding.
    A padding row has one query token, kv length 1 and the null page; padding tokens belong to
    padding rows. Captured code must read counts from ``counts`` or work on the padded shapes.

    Attributes:
        num_tokens: T, padded: the shape the step runs at. Host.
        num_rows: R, padded. Host.
        max_query: Upper bound of a row's queries. Host, baked into graphs.
        max_kv: Upper bound of a row's kv length. Host, bucketed, baked into graphs.
        positions_T: Position of each token in its request. int64. [T]
        query_starts_R1: int32. [R + 1]
        kv_lengths_R: Including the step's own tokens. int32. [R]
        page_table_RP: Pages of each row, of the group; of a group of states the page that the row
            reads its state from and the one that it writes it to. int32. [R, P]
        write_slots_T: page * page_size + offset where each token's key and value go; without
            meaning in a group of states. int64. [T]
        row_of_token_T: int32. [T]
        counts: (real rows, real tokens, tree nodes). int32. [3]
        tree_N4: (row_begin, row_end, kv_begin, kv_end) of prefixes that rows share; a hint.
            int32. [N, 4]
        host_rows: For providers that loop over rows on the host, as the reference does: upper
            bounds (query tokens, kv tokens) of each row. Not available under capture, and exact in
            steps captured or not where the device's facts say ``needs_host_lengths``.
        wants_last: Whether the hidden states of each row's last token are all that is wanted: a
            model may then leave out the others once no layer needs them, and return [R, D].
        adapters_R: Place of each row's LoRA adapter, 0: none; None: there are no adapters. int32.
            [R]
        shifts_AT: What is added to a token's position on each axis, in models whose positions have
            several; None: in others. int32. [A, T]
        media: Where tokens have features instead of embeddings; None: no token of the step has.
        turned: Angles of the step's own tokens, float32 [T, C], and this view with positions that
            are rows of them; None: positions are rows of the model's table.
        groups: The step as each group sees it; () stands for this view alone.
    """

    num_tokens: int
    num_rows: int
    max_query: int
    max_kv: int
    positions_T: Tensor
    query_starts_R1: Tensor
    kv_lengths_R: Tensor
    page_table_RP: Tensor
    write_slots_T: Tensor
    row_of_token_T: Tensor
    counts: Tensor
    tree_N4: Tensor
    host_rows: list[tuple[int, int]]
    wants_last: bool = False
    adapters_R: Tensor | None = None
    shifts_AT: Tensor | None = None
    media: StepMedia | None = None
    turned: tuple[Tensor, StepBatch] | None = None
    groups: tuple[StepBatch, ...] = ()

    def __post_init__(self) -> None:
        """A view that is the only one stands for itself."""
        if not self.groups:
            self.groups = (self,)


class CacheProvider(Protocol):
    """What the runner knows of a provider that keeps something of each token in pages."""

    @property
    def page_format(self) -> PageFormat:
        """How it keeps it."""
        ...

    @property
    def graph_key(self) -> tuple[int, ...]:
        """What the last ``plan`` decided that a captured launch bakes in (grid, splits …)."""
        ...

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """Shape of one layer's buffer for ``num_pages`` pages, the null page among them."""
        ...

    def plan(self, batch: StepBatch) -> None:
        """Prepare for ``batch``: writes only into buffers made when it was built."""
        ...


def page_format_of(provider: CacheProvider) -> PageFormat:
    """Return its page format, which plugins of before ``HOOK_API`` 2.3 have as ``layout``."""
    if hasattr(provider, "page_format"):
        return provider.page_format
    older: Any = provider
    return older.layout


class CachedLayer(Protocol):
    """A layer that keeps something of each request: who computes it, and its pages.

    Attributes:
        kv: Its pages, which the runner assigns.
        group: Index of its page group.
    """

    kv: Tensor
    group: int

    @property
    def provider(self) -> CacheProvider:
        """Computes it, and says the format of its pages; shared by layers of one spec."""
        ...


class AttentionProvider(CacheProvider, Protocol):
    """Attention for one spec on one device; shared by the layers that have that spec.

    A step calls ``plan`` once, then for each layer ``write`` and ``run``.
    """

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store keys and values of the step's tokens into the pages of ``kv``."""
        ...

    def run(
        self,
        q_THD: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        sinks_H: Tensor | None = None,
        chosen_TKk: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            q_THD: Queries. [T, H, D]
            kv: This layer's pages.
            batch: As it was planned.
            sinks_H: Logits without values; with feature ``sinks`` alone. [H]
            chosen_TKk: Numbers of the blocks that each query's key/value heads read, -1 where
                there are fewer; with feature ``chosen_blocks`` alone. Providers without that
                feature need not have the argument. int32. [T, K, k]

        Returns:
            Output in q's dtype; of padding tokens: anything finite or not. [T, H, D]
        """
        ...

    def read(self, kv: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values at token slots, for tests and transfers. [S, K, D] each."""
        ...


class AttentionBuilder(Protocol):
    """What a provider registers for the built op ``attention``."""

    def __call__(self, spec: AttentionSpec, device: Any) -> AttentionProvider:
        """Build the provider."""
        ...


@op(
    is_built=True,
    features=frozenset(
        {"sliding_window", "sinks", "soft_cap", BIDIRECTIONAL, BOTH_SIDES, CHUNKED, CHOSEN_BLOCKS}
    ).union(*NARROW_PAGES.values()),
)
def attention(spec: AttentionSpec, device: OpDevice) -> AttentionProvider:
    """Build the reference provider: any page size, any head size.

    Its page format ``pages-kv-thd`` keeps, page by page, the keys and then the values of tokens.
    Layers resolve with :meth:`AttentionSpec.as_spec`, where ``page_dtype`` is that of the pages.
    """
    from headstock.ops.attention_reference import ReferenceAttention

    return ReferenceAttention(spec, device)
