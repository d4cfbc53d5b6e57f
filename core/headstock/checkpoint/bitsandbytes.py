"""Checkpoints of bitsandbytes, NF4, FP4 and LLM.int8, as `int8-group` tensors. No torch.

A 4-bit module has ``weight`` with two neighbouring elements in a byte, the first in its high
nibble, row after row without gaps; ``weight.quant_map`` float32 [16], what a nibble stands for;
``weight.absmax``, which multiplies it, for each block of some 64 elements; and a JSON text in
``weight.quant_state.bitsandbytes__nf4``. With double quantisation ``absmax`` is uint8, an index
into ``nested_quant_map``, times ``nested_absmax`` of its block of some 256, plus an offset.

The 16 numbers of NF4 are no multiples of one: in ``int8-group`` they are *rounded*, by at most
1/254 of a block's largest magnitude. NF4 itself is off by up to 1/7 of that.

An 8-bit module has ``weight`` int8 [O, I] and ``SCB`` [O]: SCB / 127 * q, exactly.

Shapes: O output features, I input features, G groups along I.

Source:
    https://github.com/bitsandbytes-foundation/bitsandbytes, functional.py, "QuantState".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headstock.checkpoint.files import Array, StoredTensor, as_float32
from headstock.checkpoint.packed_ints import pairs_of
from headstock.checkpoint.scaled_matrix import join_scale
from headstock.errors import CheckpointError, UnsupportedError
from headstock.ops.linear import INT8_GROUP

QUANT_STATE = "quant_state.bitsandbytes__"
TYPES = ("nf4", "fp4")
IN_WEIGHT = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
"""What a 4-bit weight has below its own name, besides its state."""
BESIDE = ("SCB", "weight_format")
"""What an 8-bit weight has beside it."""
MAX_STATE_BYTES = 1 << 16
LARGEST = 127


def join_bitsandbytes(
    index: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Return the tensors of ``index`` with those of each quantised module joined to one weight.

    Args:
        index: Tensors as the files have them.
        quantization: ``quantization_config`` of the model's configuration; the tensors say it all.

    Raises:
        CheckpointError: A module lacks a tensor, or has one of another shape.
        UnsupportedError: A module has another type, or the order of a kernel.
    """
    joined: dict[str, StoredTensor] = {}
    for name, tensor in index.items():
        if f"{name}.quant_map" in index:
            joined[name] = _join_four_bits(tensor, index)
        elif f"{_module(name)}.SCB" in index and name.endswith(".weight"):
            joined[name] = _join_eight_bits(tensor, index)
        elif not _is_part(name, index):
            joined[name] = tensor
    return joined


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_part(name: str, index: Mapping[str, StoredTensor]) -> bool:
    """Whether it belongs to a quantised weight that is there."""
    weight, _, part = name.partition(".weight.")
    if part:
        is_known = part in IN_WEIGHT or part.startswith(QUANT_STATE)
        return is_known and f"{weight}.weight" in index
    return name.rpartition(".")[2] in BESIDE and f"{_module(name)}.weight" in index


@dataclass(frozen=True, slots=True)
class _State:
    """What the JSON text says."""

    shape: tuple[int, int]
    block: int
    nested_block: int
    offset: float


def _join_four_bits(weight: StoredTensor, index: Mapping[str, StoredTensor]) -> StoredTensor:
    state = _read_state(weight, index)
    out_features, in_features = state.shape
    num_elements = out_features * in_features
    parts = {n: t for part in IN_WEIGHT if (t := index.get(n := f"{weight.name}.{part}"))}
    table = _numbers(parts, f"{weight.name}.quant_map", 16)
    pairs = pairs_of(np.rint(table * LARGEST).astype(np.int8), is_high_first=True)
    if weight.num_bytes < num_elements // 2 or in_features % 2:
        raise CheckpointError(
            f"{weight.name} has {weight.num_bytes} bytes, and its state says {list(state.shape)}"
            " in 4 bits; whole bytes for each row are expected.",
            remedy="Check that the files belong together, and download them again.",
        )
    largest = _largest(weight.name, state, parts)
    group_size = math.gcd(in_features, state.block)

    def read(begin: int, end: int) -> dict[str, Array]:
        rows = weight.read_all()["weight"].reshape(-1).view(np.uint8)
        rows = rows[begin * in_features // 2 : end * in_features // 2]
        first_G = np.arange(begin * in_features, end * in_features, group_size)
        scale = largest[first_G // state.block] / np.float32(LARGEST)
        return {
            "weight": np.take(pairs, rows).view(np.int8).reshape(end - begin, in_features),
            "scale": scale.reshape(end - begin, -1),
        }

    return replace(
        weight,
        shape=state.shape,
        dtype="int8",
        layout=INT8_GROUP,
        group_size=group_size,
        num_bytes=weight.num_bytes + sum(part.num_bytes for part in parts.values()),
        read=read,
    )


def _largest(name: str, state: _State, parts: Mapping[str, StoredTensor]) -> Array:
    """Return what multiplies each block. float32. [blocks]"""
    num_blocks = -(-state.shape[0] * state.shape[1] // state.block)
    key = f"{name}.absmax"
    found = parts.get(key)
    if found is None or found.dtype != "uint8":
        return _numbers(parts, key, num_blocks)
    table = _numbers(parts, f"{name}.nested_quant_map", 256)
    of_nested = _numbers(parts, f"{name}.nested_absmax", -(-num_blocks // state.nested_block))
    code = _array(parts, key, num_blocks)
    return table[code] * of_nested[np.arange(num_blocks) // state.nested_block] + np.float32(
        state.offset
    )


def _numbers(parts: Mapping[str, StoredTensor], name: str, count: int) -> Array:
    return as_float32(parts[name].dtype if name in parts else "", _array(parts, name, count))


def _array(parts: Mapping[str, StoredTensor], name: str, count: int) -> Array:
    """Return the elements of a tensor that must have so many.

    Raises:
        CheckpointError: It has not.
    """
    found = parts.get(name)
    if found is None or math.prod(found.shape) != count:
        has = "is not there" if found is None else f"is {list(found.shape)}"
        raise CheckpointError(
            f"{name} {has}; {count} elements are expected.",
            remedy="Check that the files belong together, and download them again.",
        )
    return found.read_all()["weight"].reshape(-1)


def _read_state(weight: StoredTensor, index: Mapping[str, StoredTensor]) -> _State:
    """Read the JSON text of a 4-bit weight.

    Raises:
        CheckpointError: There is none, or it lacks what is needed.
        UnsupportedError: It is of another type.
    """
    prefix = f"{weight.name}.{QUANT_STATE}"
    name = next((f"{prefix}{kind}" for kind in TYPES if f"{prefix}{kind}" in index), None)
    if name is None:
        raise UnsupportedError(
            f"{weight.name} has no {QUANT_STATE}{' or '.join(TYPES)} beside it.",
            remedy="Save the model with bitsandbytes 0.41.3 or later, in one of these types.",
        )
    stored = index[name]
    try:
        if stored.num_bytes > MAX_STATE_BYTES:
            raise ValueError(f"it has {stored.num_bytes} bytes")
        found: Any = json.loads(stored.read_all()["weight"].tobytes())
        rows, columns = (_count(size) for size in found["shape"])
        nested_block = _count(found.get("nested_blocksize") or 1)
        offset = float(found.get("nested_offset") or 0)
        return _State((rows, columns), _count(found["blocksize"]), nested_block, offset)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{name} is not a state of a matrix: {error}.", remedy="Download the files again."
        ) from error


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise ValueError(f"{value!r} is not a count")
    return value


def _join_eight_bits(weight: StoredTensor, index: Mapping[str, StoredTensor]) -> StoredTensor:
    module = _module(weight.name)
    scale, order = index[f"{module}.SCB"], index.get(f"{module}.weight_format")
    if order is not None and order.read_all()["weight"].any():
        raise UnsupportedError(
            f"{module}.weight_format is {int(order.read_all()['weight'].max())}: the weight is in"
            " the order of a kernel.",
            remedy="Save the model with bitsandbytes 0.45 or later.",
        )
    if len(weight.shape) != 2 or weight.dtype != "int8":
        raise CheckpointError(
            f"{weight.name} is {weight.dtype} {list(weight.shape)}; a matrix of int8 is expected.",
            remedy="Check that the files belong together, and download them again.",
        )
    scaled = join_scale(weight, scale, scale.name, INT8_GROUP)

    def read(begin: int, end: int) -> dict[str, Array]:
        parts = scaled.read(begin, end)
        return {**parts, "scale": parts["scale"] / np.float32(LARGEST)}

    return replace(scaled, read=read)
