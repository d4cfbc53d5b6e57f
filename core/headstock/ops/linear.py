"""Matrix products with weights in canonical layouts.

A checkpoint's format is converted at load into one of few canonical layouts; a provider packs the
canonical tensors once, into storage of its own choosing, and multiplies by what it packed.

Shapes: M rows of activations, O output features, I input features, G groups along I.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from headstock.ops.activation_kinds import FEATURES, SILU, Activation
from headstock.ops.base import Spec, op
from headstock.ops.layouts import FP4_VALUES, CanonicalLayout, Stored

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from headstock.ops.device import OpDevice

_HERE = "headstock.ops.canonical"
_SCALE = Stored("float32", 0)
DENSE = CanonicalLayout(
    "dense",
    parts={"weight": Stored("")},
    dequantize=f"{_HERE}:dequantize_dense",
    quantize=f"{_HERE}:keep_dense",
)
INT8_GROUP = CanonicalLayout(
    "int8-group",
    parts={"weight": Stored("int8"), "scale": _SCALE},
    dequantize=f"{_HERE}:dequantize_scaled",
    quantize=f"{_HERE}:quantize_int8",
)
INT4_GROUP = CanonicalLayout(
    "int4-group",
    parts={"weight": Stored("uint8", 2), "scale": _SCALE, "minimum": _SCALE},
    dequantize=f"{_HERE}:dequantize_int4",
    quantize=f"{_HERE}:quantize_int4",
)
FP8_GROUP = CanonicalLayout(
    "fp8-group",
    parts={"weight": Stored("float8_e4m3fn"), "scale": _SCALE},
    dequantize=f"{_HERE}:dequantize_scaled",
    quantize=f"{_HERE}:quantize_fp8",
)
MXFP4 = CanonicalLayout(
    "mxfp4",
    parts={"weight": Stored("uint8", 2), "scale": _SCALE},
    dequantize=f"{_HERE}:dequantize_mxfp4",
    quantize=f"{_HERE}:quantize_mxfp4",
)
LAYOUTS = (DENSE, INT8_GROUP, INT4_GROUP, FP8_GROUP, MXFP4)
"""Headstock's own; plugins bring others, see :mod:`headstock.plugins.quantization`."""
ROWS = "rows"
"""Feature of providers whose weight can be looked up by row."""
SCALED_ROWS = "scaled-rows"
"""Feature of providers that multiply what they look up by a number."""
GATED = "gated"
"""Feature of providers that return silu(gate) * up of a product of gate and up features.

With another activation than SiLU, a feature of its kind is asked besides.
"""
PRODUCT = "product"
"""Feature of providers of gated products that return the product itself as well."""
GROUPED_INPUTS = "grouped-inputs"
"""Feature of providers that take activations quantised as their weights are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """One weight matrix, as a layer needs it multiplied.

    Attributes:
        in_features: I on this rank.
        out_features: O on this rank.
        dtype: Of activations in and out.
        layout: One of :data:`LAYOUTS`, or a plugin's.
        group_size: Input features that share a scale; 0 for dense.
        has_bias: Whether a bias is added.
        needs_rows: Whether :meth:`LinearProvider.rows` is called: the weight is an embedding table,
            perhaps tied to the output layer. Asked of providers as feature ``rows``.
        row_scale: Multiplies what is looked up, and no product. Asked of providers as feature
            ``scaled-rows`` where it is not 1.
        is_gated: Whether :func:`~headstock.ops.activation.silu_and_mul` of the product is returned.
            Asked of providers as feature ``gated``.
        activation: Of the gate, where the product is gated; see
            :mod:`headstock.ops.activation_kinds`.
        has_product: Whether the product is wanted without its gate, too, from
            :meth:`GatedLinearProvider.product`. Asked of providers as feature ``product``.
        takes_groups: Whether inputs may come as :class:`GroupedActivations` too. Asked of providers
            as feature ``grouped-inputs``.
    """

    in_features: int
    out_features: int
    dtype: torch.dtype
    layout: CanonicalLayout = DENSE
    group_size: int = 0
    has_bias: bool = False
    needs_rows: bool = False
    row_scale: float = 1.0
    is_gated: bool = False
    activation: Activation = SILU
    has_product: bool = False
    takes_groups: bool = False

    def as_spec(self) -> Spec:
        """Return what the op ``linear`` is resolved for."""
        asked = {
            ROWS: self.needs_rows,
            SCALED_ROWS: self.row_scale != 1,
            GATED: self.is_gated,
            PRODUCT: self.has_product,
            GROUPED_INPUTS: self.takes_groups,
        }
        return Spec(
            dtype=str(self.dtype).removeprefix("torch."),
            sizes={
                "in_features": self.in_features,
                "out_features": self.out_features,
                "group_size": self.group_size,
            },
            layout=str(self.layout),
            features=frozenset(feature for feature, is_asked in asked.items() if is_asked)
            | (self.activation.features if self.is_gated else frozenset[str]()),
        )


CanonicalWeight = Mapping[str, "Tensor"]
"""Tensors of a weight by part, in the layout's canonical form; of Headstock's own:

- ``dense``: ``weight`` in the model's dtype. [O, I]
- ``int8-group``: ``weight`` int8 [O, I]; ``scale`` float32 [O, G]. w = scale * q.
- ``int4-group``: ``weight`` uint8 [O, I / 2], features 2j in the low and 2j+1 in the high nibble
  of byte j; ``scale`` and ``minimum`` float32 [O, G]. w = scale * q + minimum, 0 <= q <= 15.
- ``fp8-group``: ``weight`` float8_e4m3fn [O, I]; ``scale`` float32 [O, G]. w = scale * q. Scales of
  larger blocks, of whole channels or of a tensor are repeated. Providers may quantise activations
  likewise, group by group.
- ``mxfp4``: ``weight`` uint8 [O, I / 2], features in nibbles as those of ``int4-group``, each a
  float4_e2m1 (a sign, then :data:`FP4_MAGNITUDES` by the low three bits); ``scale`` float32 [O, G],
  powers of two, for groups of 32. w = scale * value.
"""

FP4_MAGNITUDES = FP4_VALUES
"""What the low three bits of a float4_e2m1 stand for."""


class GroupedActivations(NamedTuple):
    """Activations in 8 bits, a scale for each group of features: x = scale * value.

    Attributes:
        values_MI: float8_e4m3fn. [M, I]
        scale_MG: float32, in any strides. [M, G]
    """

    values_MI: Tensor
    scale_MG: Tensor


class LinearProvider(Protocol):
    """Products with one packed weight. Addresses of the packed storage never change."""

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        """Pack the canonical rows ``part`` as output features from ``row_begin`` on.

        Called as the checkpoint streams by, once or more for disjoint row ranges, and again with
        the same ranges when weights are updated. Keeps no reference to ``part``.
        """
        ...

    def load_bias(self, bias: Tensor, begin: int) -> None:
        """Set the bias of output features from ``begin`` on. [rows]"""
        ...

    def __call__(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias in the spec's dtype. [M, O]; gated: [M, O / 2].

        ``x_MI`` is in that dtype, or :class:`GroupedActivations` where the spec takes them.
        """
        ...

    def rows(self, ids_T: Tensor, first: int) -> Tensor:
        """Look up an embedding.

        Args:
            ids_T: Token ids. int64. [T]
            first: The id of row 0; ids outside of [first, first + O) give rows of zeros.

        Returns:
            The weight's rows in the spec's dtype, times the spec's ``row_scale``. [T, I]
        """
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed storage."""
        ...


class GatedLinearProvider(LinearProvider, Protocol):
    """One that was asked for ``has_product``."""

    def product(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias in the spec's dtype, not gated. [M, O]"""
        ...


class LinearBuilder(Protocol):
    """What a provider registers for the built op ``linear``."""

    def __call__(self, spec: LinearSpec, device: Any) -> LinearProvider:
        """Allocate the packed storage for ``spec``."""
        ...


@op(
    is_built=True,
    features=frozenset({ROWS, SCALED_ROWS, GATED, PRODUCT, GROUPED_INPUTS}) | FEATURES,
)
def linear(spec: LinearSpec, device: OpDevice) -> LinearProvider:
    """Build the reference provider: every canonical layout, stored as it comes.

    Layers resolve with :meth:`LinearSpec.as_spec`.
    """
    from headstock.ops.linear_reference import DenseLinear, GroupedLinear

    return DenseLinear(spec, device) if spec.layout == DENSE else GroupedLinear(spec, device)
