"""Matrix products with weights packed for the vector units, and what adapters add to them.

Shapes: M rows of activations, O output features, I input features, G groups along I, T ids; of
adapters as in :mod:`headstock.ops.lora`.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import replace

import torch
from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.ops import lora
from headstock.ops.base import Sizes
from headstock.ops.canonical import mxfp4_as_int8
from headstock.ops.linear import (
    DENSE,
    INT4_GROUP,
    INT8_GROUP,
    MXFP4,
    ROWS,
    SCALED_ROWS,
    CanonicalWeight,
    LinearSpec,
    linear,
)
from headstock.ops.offers import computes
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels import base
from headstock_xeon.kernels.base import EIGHTS, Kernels
from headstock_xeon.stream import as_bits, rows_of, strided

FLOAT32, BFLOAT16, INT8, INT4 = range(4)
"""``WeightKind`` of ``weight.h``."""
KINDS = {DENSE: FLOAT32, INT8_GROUP: INT8, INT4_GROUP: INT4, MXFP4: INT8}
PACKED = tuple(
    replace(base.FLOAT32, layouts=frozenset(of), sizes={"group_size": Sizes(multiple_of=unit)})
    for of, unit in (({DENSE, INT8_GROUP}, 16), ({INT4_GROUP, MXFP4}, 32))
)
"""What weights there are kernels for: whole vectors of integers have one scale."""


@computes(linear, *(replace(each, features=frozenset({ROWS, SCALED_ROWS})) for each in PACKED))
class NativeLinear:
    """One packed weight.

    Quantised ones keep their scales as float16 relative to a power of two of the row: nothing is
    lost of what a GGUF file has, and a relative 2**-11 at most of other scales. Int8 weights are
    multiplied by activations of 16 bits, int4 ones by activations of 8, one scale a group, and in
    groups that stand out in their row by what rounding left as well.
    Those of 4-bit floats are packed as int8, which holds them exactly.
    Dense weights stay bfloat16 where that is what they are loaded from.

    Raises:
        UnsupportedError: The input features do not divide into groups, or memory is out.
    """

    def __init__(self, spec: LinearSpec, device: XeonDevice) -> None:
        self.spec = spec
        self._device = device
        self._stream = device.stream
        size, group = spec.in_features, spec.group_size
        if group and size % group:
            raise UnsupportedError(
                f"{size} input features do not divide into groups of {group}.",
                remedy="Serve this layer dense, or at a tensor parallel size that keeps groups.",
            )
        self._kind = KINDS[spec.layout]
        self._handle = 0 if spec.layout == DENSE else self._allocate(self._kind)
        self._row_scale = as_bits(spec.row_scale)

    @property
    def kernel(self) -> str:
        """Name of the native kernel that multiplies."""
        return self._device.library.calls.hs_weight_kernel(self.handle).decode()

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed storage."""
        return self._device.library.calls.hs_weight_bytes(self.handle)

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        """Pack the canonical rows ``part`` as output features from ``row_begin`` on."""
        if self.spec.layout == MXFP4:
            part = mxfp4_as_int8(part)
        weight = part["weight"]
        weight = (self._fitting(weight) if self.spec.layout == DENSE else weight).contiguous()
        given = (part.get("scale"), part.get("minimum"))
        scales = [None if x is None else x.contiguous().to(torch.float32) for x in given]
        group = 0 if scales[0] is None else self.spec.in_features // scales[0].shape[1]
        is_done = self._device.library.calls.hs_weight_pack(
            self._stream.engine,
            self.handle,
            weight.data_ptr(),
            weight.stride(0) * weight.element_size(),
            *(None if x is None else x.data_ptr() for x in scales),
            *(group, weight.shape[0], row_begin),
        )
        assert is_done, "packing needs no scratch"

    def load_bias(self, bias: Tensor, begin: int) -> None:
        """Set the bias of output features from ``begin`` on. [rows]"""
        self._bias(begin + bias.shape[0])[begin:].copy_(bias)

    def _bias(self, count: int) -> Tensor:
        """Return the first entries of the weight's bias, as they lie there."""
        address = self._device.library.calls.hs_weight_bias(self.handle)
        memory = (ctypes.c_float * count).from_address(address)
        return torch.frombuffer(memory, dtype=torch.float32)

    def __call__(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias. [M, O]"""
        out_features = self.spec.out_features
        if x_MI.dim() != 2:
            flat = self(x_MI.reshape(-1, self.spec.in_features))
            return flat.view(*x_MI.shape[:-1], out_features)
        rows, stream = x_MI.shape[0], self._stream
        x_MI, between = strided(x_MI)
        y_MO = stream.empty((rows, out_features))
        stream.hold(self)
        given = (x_MI, y_MO)
        at = (self._handle or self.handle, x_MI.data_ptr(), between, y_MO.data_ptr())
        stream.emit_words("linear", given, *at, out_features, rows)
        return y_MO

    def rows(self, ids_T: Tensor, first: int) -> Tensor:
        """Look up an embedding; ids outside of [first, first + O) give rows of zeros. [T, I]"""
        return self._rows(ids_T, first, self._row_scale)

    def _rows(self, ids_T: Tensor, first: int, factor: int) -> Tensor:
        """Look up rows and multiply them by the number whose bits are ``factor``."""
        y_TI = self._stream.empty((ids_T.shape[0], self.spec.in_features))
        self._stream.hold(self)
        ids = (ids_T.contiguous(), y_TI, ids_T.shape[0], first)
        self._stream.emit("look_up", self.handle, *ids, factor)
        return y_TI

    @property
    def handle(self) -> int:
        """The native weight; dense ones that nothing was loaded into are float32."""
        if not self._handle:
            self._handle = self._allocate(self._kind)
        return self._handle

    def _fitting(self, weight_OI: Tensor) -> Tensor:
        """Return dense rows in the dtype they are kept in: bfloat16 if the first ones are."""
        if not self._handle:
            self._kind = BFLOAT16 if weight_OI.dtype == torch.bfloat16 else FLOAT32
        elif self._kind == BFLOAT16 and weight_OI.dtype != torch.bfloat16:
            self._widen()
        return weight_OI.to(torch.bfloat16 if self._kind == BFLOAT16 else torch.float32)

    def _widen(self) -> None:
        """Keep the rows loaded so far in float32: other rows have more than bfloat16 holds."""
        all_ids = torch.arange(self.spec.out_features)
        loaded_OI = self._rows(all_ids, 0, as_bits(1.0))
        bias_O = self._bias(self.spec.out_features).clone()
        self._kind, self._handle = FLOAT32, 0
        self.load({"weight": loaded_OI}, 0)
        self.load_bias(bias_O, 0)

    def _allocate(self, kind: int) -> int:
        spec, calls = self.spec, self._device.library.calls
        packed_group = 0 if kind in (FLOAT32, BFLOAT16) else 32 if spec.group_size % 32 == 0 else 16
        handle = calls.hs_weight_new(
            self._stream.engine, kind, spec.in_features, spec.out_features, packed_group
        )
        if not handle:
            raise UnsupportedError(
                f"There is no memory for a weight of {spec.out_features} x {spec.in_features}.",
                remedy="Serve a smaller model, or quantise it: --quantization int8.",
            )
        weakref.finalize(self, calls.hs_weight_free, handle).atexit = False
        return handle


class LoraKernels(Kernels):
    """The op ``add_lora``; R must be a multiple of a vector."""

    def __init__(self, device: XeonDevice) -> None:
        super().__init__(device)
        self._starts: dict[tuple[int, ...], ctypes.Array[ctypes.c_int64]] = {}

    @computes(lora.add_lora, replace(base.FLOAT32, sizes={"rank": EIGHTS}))
    def add_lora(
        self,
        out_TO: Tensor,
        x_TI: Tensor,
        down_NKI: Tensor,
        up_NOR: Tensor,
        adapters_T: Tensor,
        *,
        starts: tuple[int, ...],
    ) -> Tensor:
        """Add in place what each token's adapter says."""
        out_TO = rows_of(out_TO)
        if starts not in self._starts:  # no tensor: a capture would take its making down
            self._starts[starts] = (ctypes.c_int64 * len(starts))(*starts)
        starts_P = self._starts[starts]
        self._stream.hold(starts_P)
        given = (*strided(x_TI), down_NKI, up_NOR, adapters_T, ctypes.addressof(starts_P))
        sizes = (*x_TI.shape, *up_NOR.shape[1:], len(starts))
        self._stream.emit("lora", *given, *strided(out_TO), *sizes)
        return out_TO
