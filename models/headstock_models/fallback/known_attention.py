"""Attention modules of transformers that are the same as ours, by trying them.

Shapes: T tokens, H query heads, K key/value heads, D head size, L positions, C rotated features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from headstock.graph.attention import Attention
from headstock.graph.context import Context
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Module
from headstock.graph.rotary import AngleTable
from headstock.ops.attention import StepBatch
from headstock.ops.rotary import rotate
from headstock_models.fallback.attention import CALL, AttentionCall, Step
from headstock_models.fallback.known_parts import Norm, find_norm
from headstock_models.fallback.parts import StandIn
from headstock_models.fallback.probe import (
    SIZE,
    Draw,
    DrawnLinear,
    attempt,
    is_same,
    linears,
    shell,
)
from headstock_models.fallback.trace import ANGLES, AnglesCall

INPUTS: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
OUTPUTS = ("o_proj", "dense", "out_proj")
NORMS = (
    ("q_norm", "k_norm"),
    ("q_layernorm", "k_layernorm"),
    ("query_layernorm", "key_layernorm"),
)
TRIED = 5
"""Tokens of a probe."""
Places = tuple[Tensor, Tensor]
"""Cosines and sines of a probe's tokens."""
FORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "halves": lambda x_LC: x_LC[:, : x_LC.shape[1] // 2],
    "neighbours": lambda x_LC: x_LC[:, ::2],
    "once": lambda x_LC: x_LC,
}
"""How classes have an angle for both features of a pair, to what takes each once."""


class Angles:
    """Cosines and sines of all positions, as a module of transformers makes them.

    Args:
        ctx: What to build with.
        cos_LC: float32. [L, C], or [L, C / 2] where they come once.
        sin_LC: Likewise.
    """

    def __init__(self, ctx: Context, cos_LC: Tensor, sin_LC: Tensor) -> None:
        self._ctx, self._cos_LC, self._sin_LC = ctx, cos_LC, sin_LC
        self._tables: dict[tuple[str, bool], AngleTable] = {}

    def at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of some positions, as the module makes them. [T, C] each"""
        return self._cos_LC[places], self._sin_LC[places]

    def __len__(self) -> int:
        """Return how many positions there are."""
        return len(self._cos_LC)

    def table(self, form: str, *, is_interleaved: bool) -> AngleTable:
        """Return them as attention of ours has them; one for all layers."""
        key = (form, is_interleaved)
        if key not in self._tables:
            table_LC = in_form(form, self._cos_LC, self._sin_LC)
            self._tables[key] = AngleTable(self._ctx, table_LC, is_interleaved=is_interleaved)
        return self._tables[key]


def in_form(form: str, cos_LC: Tensor, sin_LC: Tensor) -> Tensor:
    """Return cosines and sines side by side, of each angle once. [L, C]"""
    return torch.cat((FORMS[form](cos_LC), FORMS[form](sin_LC)), dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAttention:
    """What an attention module computes around the call of attention.

    Attributes:
        call: How attention itself is called.
        out: Name of the product behind it.
        hidden_size: Features of its inputs and outputs.
        has_bias: Whether queries, keys and values have one each.
        has_out_bias: Whether the product behind attention does.
        norm: Of each query and key head; None: none.
        norm_leaves: What the norms of queries and of keys are called.
        is_normed_last: Whether they come behind the rotation.
        form: How angles are written; "": positions are left out.
        is_interleaved: Whether neighbours are a pair, not halves.
        num_results: Of the tuple that it returns; 0: it returns a tensor.
    """

    call: AttentionCall
    out: str
    hidden_size: int
    has_bias: bool
    has_out_bias: bool
    norm: Norm | None
    norm_leaves: tuple[str, ...]
    is_normed_last: bool
    form: str
    is_interleaved: bool
    num_results: int


def find_angles(ctx: Context, whole: Any, made: AnglesCall) -> Angles | None:
    """Return what a call makes for all positions; None: it does not say in the usual way."""
    length = ctx.limits.max_length
    found = attempt(lambda: made.table(whole, length))
    if found is None or any(x.ndim != 2 or len(x) != length for x in found):
        return None
    return Angles(ctx, *found)


def find_attention(
    module: nn.Module, call: AttentionCall, angles: Angles | None
) -> KnownAttention | None:
    """Return what an attention module computes; None: it is not what ours do.

    Args:
        module: Of transformers, built to call attention by our name.
        call: How it does.
        angles: What it is passed; None: nothing.
    """
    found = linears_and_norms(module, call)
    if found is None or call.value_size != call.head_dim:
        return None
    products, norm, leaves = found
    out = next((name for name in OUTPUTS if name in products), None)
    if out is None or set(products) != {*INPUTS, out}:
        return None
    into = [products[name] for name in INPUTS]
    if len({m.bias is None for m in into}) > 1:
        return None
    probe = _Probe(module, call, products, out, leaves)
    places = None if angles is None else angles.at(_positions(len(angles)))
    results = attempt(lambda: probe.run(places))
    if results is None:
        return None
    for (form, is_interleaved), is_last in product(
        _rotations(places, call.head_dim), {False, norm is not None}
    ):
        tried = KnownAttention(
            call=call,
            out=out,
            hidden_size=products[out].out_features,
            has_bias=into[0].bias is not None,
            has_out_bias=products[out].bias is not None,
            norm=norm,
            norm_leaves=leaves if norm is not None else ("q_norm", "k_norm"),
            is_normed_last=is_last,
            form=form,
            is_interleaved=is_interleaved,
            num_results=results.num_results,
        )
        if probe.fits(tried, results, places):
            return tried
    return None


def linears_and_norms(
    module: nn.Module, call: AttentionCall
) -> tuple[dict[str, nn.Linear], Norm | None, tuple[str, ...]] | None:
    """Return the products, the norm of heads and what its two are called; None: there is more."""
    children = dict(module.named_children())
    leaves = next((pair for pair in NORMS if set(pair) <= set(children)), ())
    norms = [find_norm(children[leaf]) for leaf in leaves]
    products = linears(shell(module, {leaf: nn.Identity() for leaf in leaves}))
    norm = norms[0] if norms else None
    if products is None or len({*norms}) > 1 or (leaves and norm is None):
        return None
    if norm is not None and (norm.size != call.head_dim or norm.is_centering):
        return None
    return products, norm, leaves


@dataclass(frozen=True, slots=True)
class _Results:
    """What a probe saw: the call's queries, keys and values, and what the module returned."""

    qkv: Sequence[Tensor]
    out: Any
    num_results: int


class _Probe:
    """An attention module with drawn matrices, and what it is expected to do with them."""

    def __init__(
        self,
        module: nn.Module,
        call: AttentionCall,
        products: dict[str, nn.Linear],
        out: str,
        leaves: Sequence[str],
    ) -> None:
        draw = self._draw = Draw()
        self._call = call
        sizes = {n: (SIZE, m.out_features) for n, m in products.items()}
        sizes[out] = (products[out].in_features, SIZE)
        self._products = {
            n: DrawnLinear(draw, *sizes[n], has_bias=products[n].bias is not None) for n in products
        }
        self._weights = [draw(call.head_dim) for _ in leaves]
        norms = {
            leaf: shell(module.get_submodule(leaf), {"weight": weight_D})
            for leaf, weight_D in zip(leaves, self._weights, strict=True)
        }
        self._seen: list[Tensor] = []
        self._x_TD = draw(TRIED, SIZE) - 0.5
        self._attended = draw(1, TRIED, call.num_heads, call.head_dim)
        self._tried = shell(module, {**self._products, **norms}, **{CALL: self._attend})

    def _attend(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        self._seen[:] = [q, k, v]
        return self._attended, None

    def run(self, places: Places | None) -> _Results:
        """Return what the module does where tokens have the angles ``places``."""
        angles = None if places is None else (places[0][None], places[1][None])
        made = self._tried(hidden_states=self._x_TD[None], attention_mask=None, **{ANGLES: angles})
        out = made[0] if isinstance(made, tuple) else made
        return _Results(list(self._seen), out, len(made) if isinstance(made, tuple) else 0)

    def fits(self, known: KnownAttention, results: _Results, places: Places | None) -> bool:
        """Whether the module did what ``known`` says."""
        want = self._expected(known, places)
        heads = [x_THD.transpose(0, 1)[None] for x_THD in want]
        out = self._products[known.out](self._attended.flatten(2))
        pairs = zip((*results.qkv, results.out), (*heads, out), strict=True)
        return all(is_same(got, expected) for got, expected in pairs)

    def _expected(self, known: KnownAttention, places: Places | None) -> list[Tensor]:
        """Return queries, keys and values as ``known`` has them. [T, H, D] or [T, K, D] each"""
        q, k, v = (
            self._products[n](self._x_TD).unflatten(-1, (-1, self._call.head_dim)) for n in INPUTS
        )
        if known.norm is None:
            return [_turn(known, places, q), _turn(known, places, k), v]
        made: list[Tensor] = []
        for x, weight_D in zip((q, k), self._weights, strict=True):
            first = x if known.is_normed_last else known.norm.apply(x, weight_D)
            turned = _turn(known, places, first)
            made.append(known.norm.apply(turned, weight_D) if known.is_normed_last else turned)
        return [*made, v]


def _turn(known: KnownAttention, places: Places | None, x_THD: Tensor) -> Tensor:
    if not known.form or places is None:
        return x_THD
    table_TC = in_form(known.form, *places)
    return rotate(x_THD, torch.arange(TRIED), table_TC, is_interleaved=known.is_interleaved)


def _positions(length: int) -> Tensor:
    """Return where the tokens of a probe are: from the first place to the last."""
    return torch.linspace(0, length - 1, TRIED).long()


def _rotations(places: Places | None, head_dim: int) -> Iterator[tuple[str, bool]]:
    """Yield forms that angles may have, each with whether pairs are neighbours."""
    yield "", False
    if places is None:
        return
    fitting = (form for form in FORMS if in_form(form, *places).shape[-1] <= head_dim)
    yield from product(fitting, (False, True))


class OurAttention(Module):
    """An attention module's matrices and attention, all ours.

    Args:
        ctx: What to build with.
        known: What it computes.
        angles: What it was found with.
    """

    def __init__(self, ctx: Context, known: KnownAttention, angles: Angles | None) -> None:
        call, size, norm = known.call, known.call.head_dim, known.norm
        kv = Part(call.num_kv_heads * size, unit=size, is_shared=True)
        parts = dict(zip(INPUTS, (Part(call.num_heads * size, unit=size), kv, kv), strict=True))
        self.qkv = Linear(ctx, known.hidden_size, parts, has_bias=known.has_bias)
        table = None
        if known.form and angles is not None:
            table = angles.table(known.form, is_interleaved=known.is_interleaved)
        self.attend = Attention(
            ctx,
            call.num_heads,
            call.num_kv_heads,
            size,
            rotary=table,
            qk_norm=None if norm is None else norm.eps,
            scale=call.scale,
            window=call.window,
            soft_cap=call.soft_cap,
            is_zero_centered=norm is not None and norm.is_zero_centered,
            norm_leaves=known.norm_leaves,
            is_normed_last=known.is_normed_last,
        )
        out = {known.out: known.hidden_size}
        features = call.num_heads * size
        self.out = Linear(ctx, features, out, split="in", has_bias=known.has_out_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows | None = None) -> Tensor:
        """Return the module's output, of the tokens that ``keep`` keeps. [T, D]"""
        attended = self.attend(self.qkv(x_TD), batch)
        return self.out(attended if keep is None else keep(attended, batch))


class Attended(StandIn):
    """Attention of ours at the place of a module of transformers."""

    def __init__(
        self, layer: OurAttention, known: KnownAttention, step: Step, like: nn.Module
    ) -> None:
        super().__init__(like)
        self.layer, self._step, self._num_results = layer, step, known.num_results

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        """Return what the module would. [1, T, D], and no weights"""
        assert self._step.batch is not None, "attention is called outside of a step"
        return self.results(self.layer(hidden_states[0], self._step.batch)[None])

    def results(self, out: Tensor) -> Any:
        """Return the output as the module would: with weights, which there are none of."""
        return (out, *[None] * (self._num_results - 1)) if self._num_results else out
