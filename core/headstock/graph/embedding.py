"""Token ids to features, and features to logits. Ranks hold equal shares of the vocabulary.

Shapes: T tokens, S positions that want logits, D features, V token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Layer, Leaf
from headstock.graph.readback import rows_of_product
from headstock.graph.source import Source, read_span
from headstock.graph.split import Span, split_vocabulary
from headstock.ops import outputs
from headstock.ops.base import Spec
from headstock.ops.features import scale_features
from headstock.ops.linear import LinearProvider, LinearSpec, linear
from headstock.ops.outputs import as_float32
from headstock.quantization.convert import convert
from headstock.quantization.plan import Layout, Role, choose_layout


class _VocabularyLayer(Layer):
    """A matrix with a row for each token id."""

    def __init__(
        self,
        ctx: Context,
        vocab_size: int,
        size: int,
        leaf: str,
        *,
        needs_rows: bool,
        scale: float = 1.0,
    ) -> None:
        self._ctx = ctx
        self._vocab_size, self._size, self._leaf = vocab_size, size, leaf
        self._needs_rows, self._scale = needs_rows, scale
        self._ids = split_vocabulary(vocab_size, ctx.tp)
        self._stored = self._kept = Layout()
        self._provider: LinearProvider | None = None

    @property
    def provider(self) -> LinearProvider:
        """The weight, once allocated."""
        assert self._provider is not None, f"{self._leaf} is used before it is allocated"
        return self._provider

    def leaves(self) -> Sequence[Leaf]:
        """Return the matrix."""
        return [Leaf(f"{self._leaf}.weight", (self._vocab_size, self._size), Role.EMBEDDING)]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Build the provider of this rank's rows."""
        self._stored = layouts[f"{self._leaf}.weight"]
        asked = self._ctx.quantization
        self._kept = choose_layout(Role.EMBEDDING, self._stored, self._size, asked)
        spec = LinearSpec(
            in_features=self._size,
            out_features=self._ids.size,
            dtype=self._ctx.dtype,
            layout=self._kept.name,
            group_size=self._kept.group_size,
            needs_rows=self._needs_rows,
            row_scale=self._scale,
        )
        self._provider = self._ctx.ops.resolve(linear, spec.as_spec())(spec, self._ctx.device)

    def load(self, name: str, source: Source) -> None:
        """Take this rank's rows; rows past the vocabulary are zeros."""
        span = Span(min(self._ids.begin, self._vocab_size), min(self._ids.end, self._vocab_size))
        for offset, part in read_span(source, span):
            if self._kept != self._stored:
                part = {n: t.to(self._ctx.device.torch_device) for n, t in part.items()}
            part = convert(part, self._stored, self._kept, self._ctx.dtype)
            self.provider.load(part, offset)
        if span.size < self._ids.size:
            zeros = torch.zeros(self._ids.size - span.size, self._size, dtype=self._ctx.dtype)
            part = convert({"weight": zeros}, Layout(), self._kept, self._ctx.dtype)
            self.provider.load(part, span.size)

    def read(self, name: str, num_rows: int) -> Tensor:
        """Return the rows of the first token ids."""
        count = min(num_rows, self._vocab_size)
        where = self._ctx.device.torch_device
        if self._needs_rows and self._scale == 1:
            return self.provider.rows(torch.arange(count, device=where), self._ids.begin)
        return rows_of_product(self.provider, self._size, Span(0, count), self._ctx.dtype, where)

    @property
    def num_bytes(self) -> int:
        """Bytes of the storage."""
        return self.provider.num_bytes


class Embedding(_VocabularyLayer):
    """Looks up the features of token ids.

    Args:
        ctx: What to build with.
        vocab_size: V.
        size: D.
        leaf: Checkpoint name.
        scale: Multiplies the features; rounded to the model's dtype, as the models have it that
            were trained with one.
    """

    def __init__(
        self, ctx: Context, vocab_size: int, size: int, *, leaf: str, scale: float = 1.0
    ) -> None:
        scale = torch.tensor(scale, dtype=ctx.dtype).item()
        super().__init__(ctx, vocab_size, size, leaf, needs_rows=True, scale=scale)

    def forward(self, ids_T: Tensor) -> Tensor:
        """Return the features. [T, D]"""
        return self._ctx.tp.all_reduce(self.provider.rows(ids_T, self._ids.begin))


class LMHead(_VocabularyLayer):
    """Computes logits.

    Args:
        ctx: What to build with.
        vocab_size: V.
        size: D.
        leaf: Checkpoint name.
        tied: The embedding whose weight this is too; a checkpoint's own copy is then not used,
            unless :meth:`untie` says that it differs.
        soft_cap: What no logit goes past, see :func:`headstock.ops.outputs.soft_cap`; None: none.
        scale: Multiplies logits; over 0, so that the highest stays the highest.
    """

    def __init__(
        self,
        ctx: Context,
        vocab_size: int,
        size: int,
        *,
        leaf: str,
        tied: Embedding | None = None,
        soft_cap: float | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(ctx, vocab_size, size, leaf, needs_rows=False)
        self._tied = tied
        self._is_padded = self._ids.size * ctx.tp.size > vocab_size
        self._widen: Callable[[Tensor], Tensor] | None = None
        if ctx.dtype != torch.float32:
            self._widen = ctx.ops.resolve(as_float32, ctx.spec())
        self._cap: Callable[[Tensor], Tensor] | None = None
        if soft_cap is not None:
            run = ctx.ops.resolve(outputs.soft_cap, Spec(dtype="float32"))
            self._cap = partial(run, cap=soft_cap)
        self._scale_logits: Callable[[Tensor], Tensor] | None = None
        if scale != 1:
            run = ctx.ops.resolve(scale_features, Spec(dtype="float32"))
            self._scale_logits = partial(run, factor=scale)

    def forward(self, hidden_SD: Tensor, is_widened: bool = True) -> Tensor:
        """Return logits over the whole vocabulary, float32 unless not ``is_widened``. [S, V]

        Those that are not widened are neither scaled nor capped: the highest stays the highest.
        """
        weight = self._tied.provider if self._tied else self.provider
        logits_SV = self._ctx.tp.all_gather(weight(hidden_SD))
        if self._widen is not None and is_widened:
            logits_SV = self._widen(logits_SV)
        if self._scale_logits is not None and is_widened:
            logits_SV = self._scale_logits(logits_SV)
        if self._cap is not None and is_widened:
            logits_SV = self._cap(logits_SV)
        return logits_SV[:, : self._vocab_size] if self._is_padded else logits_SV

    @property
    def tied(self) -> Embedding | None:
        """The embedding whose weight this is too."""
        return self._tied

    def untie(self) -> None:
        """Give the layer a weight of its own; before anything is allocated."""
        self._tied = None

    def leaves(self) -> Sequence[Leaf]:
        """Return the matrix; of a tied one, that it may be there and is not needed."""
        (leaf,) = super().leaves()
        return (
            [Leaf(leaf.name, leaf.shape, Role.UNUSED, is_optional=True)] if self._tied else [leaf]
        )

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Build the provider, unless the embedding's serves."""
        if self._tied is None:
            super().allocate(layouts)

    def load(self, name: str, source: Source) -> None:
        """Take this rank's rows, unless the embedding's serve."""
        if self._tied is None:
            super().load(name, source)

    def read(self, name: str, num_rows: int) -> Tensor:
        """Return the rows of the first token ids; when tied, the embedding's."""
        if self._tied is not None:
            return self._tied.read(name, num_rows)
        return super().read(name, num_rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of the storage; none when tied."""
        return 0 if self._tied else super().num_bytes
