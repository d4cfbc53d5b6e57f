"""Matrix products, several checkpoint matrices in one.

Shapes: T tokens, O output features, I input features, on this rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from headstock.checkpoint.files import OrderedInputs
from headstock.errors import CheckpointError, ConfigError
from headstock.graph.context import Context
from headstock.graph.lora import LowRank
from headstock.graph.module import Layer, Leaf
from headstock.graph.readback import bias_of_product, rows_of_product
from headstock.graph.source import CheckpointSource, Source, read_span
from headstock.graph.split import Gap, Span, split_evenly, split_or_replicate
from headstock.ops.activation import silu_and_mul, silu_and_mul_groups
from headstock.ops.activation_kinds import SILU, Activation
from headstock.ops.features import order_features
from headstock.ops.linear import (
    FP8_GROUP,
    GatedLinearProvider,
    GroupedActivations,
    LinearProvider,
    LinearSpec,
    linear,
)
from headstock.ops.outputs import join_features
from headstock.quantization.convert import convert, narrow_inputs
from headstock.quantization.plan import (
    GROUP_UNIT,
    Layout,
    Role,
    choose_layout,
    layout_of_share,
)


@dataclass(frozen=True, slots=True)
class Part:
    """Output features of one checkpoint matrix.

    Attributes:
        size: How many, over all ranks.
        unit: How many stay together, such as a head's.
        is_shared: Whether ranks may hold the same ones when there are too few for all.
    """

    size: int
    unit: int = 1
    is_shared: bool = False


@dataclass(slots=True)
class _Place:
    """Where a checkpoint matrix goes: into ``provider`` from row ``begin`` on.

    ``multiply`` is the product without what is fused with it; None: it is not to be had.
    """

    provider: LinearProvider
    begin: int
    stored: Layout
    kept: Layout
    multiply: Callable[[Any], Tensor] | None


class _Product(NamedTuple):
    """What multiplies activations by a provider's matrices.

    Attributes:
        multiply: As the provider does.
        before_gate: Without the gate that is joined to it.
    """

    multiply: Callable[[Any], Tensor]
    before_gate: Callable[[Any], Tensor]


class Linear(Layer):
    """y = x·Wᵀ + b, where W is made of one or more checkpoint matrices, one below the other.

    Neighbours that are kept in equal layouts share one provider; where layouts differ, as in some
    GGUF files, the outputs are joined.

    Args:
        ctx: What to build with.
        in_features: Of the whole model.
        leaves: Checkpoint name of each matrix to its output features.
        split: ``out`` gives each rank some output features; ``in`` some input features, and the
            results are summed over the ranks; ``none`` all of both.
        has_bias: Whether each matrix has a bias.
        role: What the matrices are for; decides how small they may be made.
        activation: Turns the outputs, gate's and then up's, into half as many. Joined to the
            product where a provider does both at once.
        into: The layer that takes what the activation makes, quantised where it says so.

    Attributes:
        input_group: Features of a group in which inputs may come quantised; 0: they may not.
        low_rank: What adapters add to the product; None: there is no room for any.

    Raises:
        ConfigError: The features do not divide among the ranks.
    """

    def __init__(
        self,
        ctx: Context,
        in_features: int,
        leaves: Mapping[str, int | Part],
        *,
        split: Literal["out", "in", "none"] = "out",
        has_bias: bool = False,
        activation: Activation | None = None,
        into: Linear | None = None,
        role: Role = Role.MATRIX,
    ) -> None:
        self._ctx, self._role = ctx, role
        self._parts = {n: Part(p) if isinstance(p, int) else p for n, p in leaves.items()}
        self._in_features = in_features
        self._is_split_in, self._is_split_out = split == "in", split == "out"
        self._inputs = Span(0, in_features)
        if self._is_split_in:
            self._inputs = split_evenly(" and ".join(leaves), in_features, ctx.tp)
        self._outputs = {name: self._rows_of(name, part) for name, part in self._parts.items()}
        self._has_bias = has_bias
        self._activation, self._into = activation, into
        self.input_group = 0
        self.low_rank: LowRank | None = None
        self._places: dict[str, _Place] = {}
        self._ordered: Mapping[str, OrderedInputs] = {}
        self._orders: list[Tensor] = []
        self._run: Callable[[Any], Any] = _not_loaded

    def _rows_of(self, name: str, part: Part) -> Span:
        if not self._is_split_out:
            return Span(0, part.size)
        split = split_or_replicate if part.is_shared else split_evenly
        return split(name, part.size, self._ctx.tp, unit=part.unit)

    @property
    def in_features(self) -> int:
        """I, on this rank."""
        return self._inputs.size

    @property
    def allocated_after(self) -> Layer | None:
        """The layer that takes what the activation makes: it is asked whether quantised."""
        return self._into

    @property
    def is_allocated(self) -> bool:
        """Whether there is room for the weights."""
        return bool(self._places)

    def forward(self, x_TI: Tensor | GroupedActivations) -> Any:
        """Return the product, [T, O], or what the gate makes of it."""
        return self._run(x_TI)

    def leaves(self) -> Sequence[Leaf]:
        """Return the matrices, and their biases."""
        found: list[Leaf] = []
        for name, part in self._parts.items():
            found.append(Leaf(f"{name}.weight", (part.size, self._in_features), self._role))
            if self._has_bias:
                found.append(Leaf(f"{name}.bias", (part.size,), Role.BIAS))
        return found

    @property
    def takes_orders(self) -> bool:
        """Whether it can have its matrices with input features in another order.

        Ranks that have some of them cannot, and layers that load in a way of their own do not.
        """
        is_plain = type(self).load is Linear.load and self._role is Role.MATRIX
        return is_plain and self._inputs.size == self._in_features

    def offer(self, ordered: Mapping[str, OrderedInputs]) -> None:
        """Have matrices in smaller layouts, before they are allocated, where it can.

        Args:
            ordered: What else the checkpoint has matrices as, by the leaf's name.
        """
        if self.takes_orders:
            self._ordered = {n.removesuffix(".weight"): found for n, found in ordered.items()}

    def _stored_layout(self, name: str, layouts: Mapping[str, Layout]) -> Layout:
        ordered = self._ordered.get(name)
        if ordered is None:
            return layouts[f"{name}.weight"]
        return Layout(ordered.tensor.layout, ordered.tensor.group_size)

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Build a provider for each run of matrices in equal layouts."""
        self.low_rank = self._make_low_rank()
        stored = {name: self._stored_layout(name, layouts) for name in self._parts}
        kept = {name: self._kept(name, layout) for name, layout in stored.items()}
        runs: list[list[str]] = []
        for name in self._parts:
            if runs and kept[last := runs[-1][-1]] == kept[name] and self._is_alike(last, name):
                runs[-1].append(name)
            else:
                runs.append([name])
        products: list[_Product] = []
        is_gated = False
        for run in runs:
            size = sum(self._outputs[name].size for name in run)
            spec = self._choose_spec(size, kept[run[0]], is_whole=len(runs) == 1)
            provider = self._ctx.ops.resolve(linear, spec.as_spec())(spec, self._ctx.device)
            is_gated |= spec.is_gated
            self.input_group = spec.group_size if spec.takes_groups else 0
            products.append(product := self._product(provider, run[0]))
            multiply = product.before_gate if spec.is_gated else product.multiply
            plain = None if spec.is_gated and not spec.has_product else multiply
            begin = 0
            for name in run:
                self._places[name] = _Place(provider, begin, stored[name], kept[name], plain)
                begin += self._outputs[name].size
        self._run = self._make_run(products, is_gated=is_gated)

    def _is_alike(self, one: str, other: str) -> bool:
        """Whether two matrices have their input features in one order."""
        orders = [self._ordered.get(name) for name in (one, other)]
        first, second = (None if o is None else o.order_I.tobytes() for o in orders)
        return first == second

    def _product(self, provider: LinearProvider, name: str) -> _Product:
        """Return what multiplies by the matrices of a provider, of which ``name`` is one."""
        gated = cast("GatedLinearProvider", provider)
        ordered = self._ordered.get(name)
        if ordered is None:
            return _Product(provider, lambda x_TI: gated.product(x_TI))
        order_I = torch.from_numpy(ordered.order_I).to(self._ctx.device.torch_device)
        self._orders.append(order_I)
        arrange = self._ctx.ops.resolve(order_features, self._ctx.spec())
        return _Product(
            lambda x_TI: provider(arrange(x_TI, order_I)),
            lambda x_TI: gated.product(arrange(x_TI, order_I)),
        )

    def _make_low_rank(self) -> LowRank | None:
        """Return the room for adapters; None where no matrix is to have any."""
        if not self._is_adapted:
            return None
        rows = {name: list(self._spans_of(name)) for name in self._parts}
        return LowRank(self._ctx, self._inputs, rows)

    @property
    def _is_adapted(self) -> bool:
        adapters = self._ctx.adapters
        if adapters is None or self._role is not Role.MATRIX:
            return False
        return any(adapters.space.takes(name) for name in self._parts)

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the room for adapters, before it is made as well as after."""
        adapters = self._ctx.adapters
        if adapters is None or not self._is_adapted:
            return 0
        num_outputs = sum(rows.size for rows in self._outputs.values())
        numbers = len(self._parts) * self._inputs.size + num_outputs
        space = adapters.space
        return space.num_places * space.rank * numbers * self._ctx.dtype.itemsize

    def _spans_of(self, name: str) -> Iterable[Span | Gap]:
        """Return this rank's rows of a checkpoint matrix, in the order of the outputs."""
        return (self._outputs[name],)

    def _kept(self, name: str, stored: Layout) -> Layout:
        return layout_on_rank(self._ctx, name, stored, self._inputs.size, self._role)

    def _choose_spec(self, out_features: int, layout: Layout, *, is_whole: bool) -> LinearSpec:
        """Say what is asked; of the whole layer's outputs what is fused, where a provider does.

        Adapters add to the product itself: then it is asked for as well.
        """
        spec = LinearSpec(
            in_features=self._inputs.size,
            out_features=out_features,
            dtype=self._ctx.dtype,
            layout=layout.name,
            group_size=layout.group_size,
            has_bias=self._has_bias and self._adds_bias,
        )
        fused: list[LinearSpec] = []
        if is_whole and self._activation is not None:
            gated = replace(spec, is_gated=True, activation=self._activation)
            fused.append(replace(gated, has_product=self.low_rank is not None))
        if is_whole and layout.name == FP8_GROUP:
            fused.append(replace(spec, takes_groups=True))
        for asked in fused:
            if self._ctx.ops.own(linear, asked.as_spec()) is not None:
                return asked
        return spec

    @property
    def _adds_bias(self) -> bool:
        """Of ranks whose results are summed, only the first adds the bias."""
        return not self._is_split_in or self._ctx.tp.rank == 0

    def _make_run(self, products: Sequence[_Product], *, is_gated: bool) -> Callable[[Any], Any]:
        """Return what the layer computes; in steps whose rows have adapters, that and theirs."""
        multiply = products[0].multiply
        if len(products) > 1:
            join = self._ctx.ops.resolve(join_features, self._ctx.spec())
            multiply = _joined([product.multiply for product in products], join)
        plain = self._finish(multiply, is_gated=is_gated, into=self._into)
        adapters, low_rank, into = self._ctx.adapters, self.low_rank, self._into
        is_followed = into is not None and into.low_rank is not None
        if adapters is None or (low_rank is None and not is_followed):
            return plain
        if low_rank is not None:
            product = products[0].before_gate if is_gated else multiply
            multiply, is_gated = _adapted(product, low_rank), False
        adapted = self._finish(multiply, is_gated=is_gated, into=None)
        return lambda x_TI: adapted(x_TI) if adapters.is_used else plain(x_TI)

    def _finish(
        self, multiply: Callable[[Any], Tensor], *, is_gated: bool, into: Linear | None
    ) -> Callable[[Any], Any]:
        """Return what follows the product: a sum over the ranks, or an activation."""
        if self._is_split_in and self._ctx.tp.size > 1:
            return _then(multiply, self._ctx.tp.all_reduce)
        if self._activation is None or is_gated:
            return multiply
        size = sum(rows.size for rows in self._outputs.values()) // 2
        return _then(multiply, _activate(self._ctx, self._activation, size, into))

    def load(self, name: str, source: Source) -> None:
        """Take this rank's rows, or columns, of a matrix, or its share of a bias."""
        part_name, _, kind = name.rpartition(".")
        place, rows = self._places[part_name], self._outputs[part_name]
        if kind == "bias":
            if self._adds_bias:
                bias = source.read(rows.begin, rows.end)["weight"]
                place.provider.load_bias(bias.to(self._ctx.dtype), place.begin)
            return
        if part_name in self._ordered:
            source = self._in_order(part_name, source)
        for offset, part in read_span(source, rows):
            stored = place.stored
            if self._inputs.size < self._in_features:
                part = narrow_inputs(part, stored, self._inputs.begin, self._inputs.end)
                stored = layout_of_share(stored, self._inputs.size)
            if place.kept != stored:
                part = {n: t.to(self._ctx.device.torch_device) for n, t in part.items()}
            part = convert(part, stored, place.kept, self._ctx.dtype)
            place.provider.load(part, place.begin + offset)

    def read(self, name: str, num_rows: int) -> Tensor:
        """Return the first rows of a matrix, or values of a bias, from products with it.

        Raises:
            UnsupportedError: The product comes with its gate alone, or rows lie in an order of
                their own.
        """
        part_name, _, kind = name.rpartition(".")
        place, own = self._places[part_name], type(self)
        is_plain = own.load is Linear.load and own._spans_of is Linear._spans_of
        if place.multiply is None or not is_plain:
            return super().read(name, num_rows)
        count = min(num_rows, self._outputs[part_name].size)
        rows = Span(place.begin, place.begin + count)
        read = bias_of_product if kind == "bias" else rows_of_product
        where = self._ctx.device.torch_device
        return read(place.multiply, self._inputs.size, rows, self._ctx.dtype, where)

    @property
    def num_bytes(self) -> int:
        """Bytes of the providers' storage, of orders and of adapters."""
        providers = {id(place.provider): place.provider for place in self._places.values()}
        packed = sum(provider.num_bytes for provider in providers.values())
        return self.adapter_bytes + packed + sum(order_I.nbytes for order_I in self._orders)

    def _in_order(self, name: str, source: Source) -> Source:
        """Return the matrix with its input features in the order that there is room for."""
        found = source.stored.ordered if isinstance(source, CheckpointSource) else None
        if found is None or (found.order_I != self._ordered[name].order_I).any():
            raise CheckpointError(
                f"{name}.weight comes with its input features in another order than before.",
                remedy="Start again with the new weights.",
            )
        return CheckpointSource(found.tensor)


class QKVLinear(Linear):
    """Queries, keys and values of all heads in one product.

    Args:
        ctx: What to build with.
        in_features: Of the hidden state.
        num_heads: Query heads, over all ranks.
        num_kv_heads: Key/value heads; with fewer than ranks, several ranks hold the same.
        head_dim: Features of a head.
        has_bias: Whether each projection has a bias.
    """

    def __init__(
        self,
        ctx: Context,
        in_features: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        has_bias: bool = False,
    ) -> None:
        kv = Part(num_kv_heads * head_dim, unit=head_dim, is_shared=True)
        q = Part(num_heads * head_dim, unit=head_dim)
        leaves = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        super().__init__(ctx, in_features, leaves, has_bias=has_bias)


def layout_on_rank(
    ctx: Context, name: str, stored: Layout, in_features: int, role: Role = Role.MATRIX
) -> Layout:
    """Return the layout to keep a matrix in, of which this rank has ``in_features``.

    Raises:
        ConfigError: They cut the groups of the checkpoint's layout too small.
    """
    share = layout_of_share(stored, in_features)
    if share != stored and share.group_size % math.lcm(GROUP_UNIT, share.name.unit):
        raise ConfigError(
            f"tp_size is {ctx.tp.size}, which leaves {name} {in_features} input"
            f" features a rank; the checkpoint's groups have {stored.group_size}.",
            remedy="Lower --tp-size, or serve an unquantised checkpoint.",
        )
    return choose_layout(role, share, in_features, ctx.quantization)


def _joined(
    products: Sequence[Callable[[Any], Tensor]], join: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    first, *others = products

    def run(x_TI: Tensor) -> Tensor:
        out_TO = first(x_TI)
        for multiply in others:
            out_TO = join(out_TO, multiply(x_TI))
        return out_TO

    return run


def _adapted(multiply: Callable[[Any], Tensor], low_rank: LowRank) -> Callable[[Any], Tensor]:
    return lambda x_TI: low_rank(multiply(x_TI), x_TI)


def _activate(
    ctx: Context, activation: Activation, size: int, into: Linear | None
) -> Callable[[Tensor], Any]:
    """Return the activation, quantising for ``into`` where that is fused with it."""
    assert into is None or into.is_allocated, "the layer that takes the result is allocated first"
    if into is not None and into.input_group and activation == SILU:
        group_size = into.input_group
        quantise = ctx.ops.own(silu_and_mul_groups, ctx.spec(size=size, group_size=group_size))
        if quantise is not None:
            return lambda gate_up_TG: GroupedActivations(
                *quantise(gate_up_TG, group_size=group_size)
            )
    run = ctx.ops.resolve(silu_and_mul, ctx.spec(features=activation.features, size=size))
    return run if activation == SILU else partial(run, activation=activation)


def _then(
    multiply: Callable[[Any], Tensor], follow: Callable[[Tensor], Any]
) -> Callable[[Any], Any]:
    return lambda x_TI: follow(multiply(x_TI))


def _not_loaded(x_TI: Any) -> Any:
    raise AssertionError("a layer runs before its weights are allocated")
