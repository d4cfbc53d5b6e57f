"""Matrices of 8-bit values beside their scales, as `fp8-group` or `int8-group`. No torch.

Formats keep one scale for a matrix, for each output feature, for groups of input features, or for
blocks. All of them are a grid of scales over the matrix; canonical groups repeat them. Integers
whose zero is another than 0 have no such layout, and become ``dense``.

Shapes: O output features, I input features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from headstock.checkpoint.files import Array, StoredTensor, as_float32
from headstock.errors import CheckpointError, UnsupportedError
from headstock.ops.layouts import CanonicalLayout

GROUP = 128
"""Input features of a group where a scale reaches farther: what tensor cores scale by."""
LEAST_GROUP = 16
"""Rows that would have smaller groups than this are one group each."""
ACTIVATION_PARTS = frozenset(
    {
        "input_scale",
        "input_scale_ub",
        "input_global_scale",
        "input_zero_point",
        "activation_scale",
        "output_scale",
    }
)
"""Scales of activations. They are left out: none are quantised by them."""


def without_activation_scales(index: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of ``index`` that are no scales of activations."""
    return {n: t for n, t in index.items() if n.rpartition(".")[2] not in ACTIVATION_PARTS}


def join_scale(
    weight: StoredTensor,
    scale: StoredTensor | None,
    name: str,
    layout: CanonicalLayout,
    *,
    block: tuple[int, int] | None = None,
    zero: StoredTensor | None = None,
) -> StoredTensor:
    """Return ``weight`` with its scales, in a layout of groups.

    Args:
        weight: 8-bit values. [O, I]
        scale: One number, [O], [O, 1], [O, G] for G groups, or a grid of blocks.
        name: Of the scale, for errors.
        layout: ``fp8-group`` or ``int8-group``.
        block: Rows and columns of a block; those at the end may be partial.
        zero: Of integers: which of them stand for 0, in the shape of ``scale``. None: 0 does.

    Raises:
        CheckpointError: The scale is not there, or it or the zeros have another shape.
        UnsupportedError: The weight is no matrix.
    """
    scale = _check(weight, scale, name, zero)
    rows, columns = _reach(weight, scale, block)
    group_size = _group_size(weight.shape[1], columns)
    column_of_group = np.arange(0, weight.shape[1], group_size) // columns
    grid = (-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))

    def groups(tensor: StoredTensor, begin: int, end: int) -> Array:
        found = tensor.read_all()["weight"].reshape(grid)[np.arange(begin, end) // rows]
        return as_float32(tensor.dtype, found)[:, column_of_group]

    def read(begin: int, end: int) -> dict[str, Array]:
        values = weight.read(begin, end)["weight"]
        return {"weight": values, "scale": groups(scale, begin, end)}

    def read_dense(begin: int, end: int) -> dict[str, Array]:
        assert zero is not None, "integers without a zero of their own need not be dense"
        scales, zeros = (groups(t, begin, end)[..., None] for t in (scale, zero))
        values = weight.read(begin, end)["weight"].reshape(end - begin, -1, group_size)
        return {"weight": ((values - zeros) * scales).reshape(end - begin, -1)}

    num_bytes = weight.num_bytes + scale.num_bytes
    if zero is not None and zero.read_all()["weight"].any():
        return replace(weight, dtype="float32", num_bytes=num_bytes, read=read_dense)
    return replace(weight, layout=layout, group_size=group_size, num_bytes=num_bytes, read=read)


def join_stacked_scale(
    weight: StoredTensor,
    scale: StoredTensor | None,
    name: str,
    layout: CanonicalLayout,
    *,
    block: tuple[int, int] | None = None,
) -> StoredTensor:
    """Return a stack of matrices, of which each expert's is had by ``of_expert``.

    Args:
        weight: 8-bit values of all experts' matrices. [E, A, B]
        scale: An expert's each, as :func:`join_scale` takes them, which goes with the sizes as they
            are in the file. [E, …]
        name: Of the scale, for errors.
        layout: As for :func:`join_scale`.
        block: Likewise.

    Raises:
        CheckpointError: The scale is not there, or of another number of experts.
    """
    if scale is None:
        raise _missing(weight, name)
    num_experts = weight.shape[0]
    if len(scale.shape) not in (1, 2, 3) or scale.shape[0] != num_experts:
        raise _misshapen(weight, scale, f"those of {num_experts} matrices are expected")
    scales = scale

    def of_expert(expert: int, has_inputs_first: bool) -> StoredTensor:
        matrix, own = (_of_expert(t, expert, has_inputs_first) for t in (weight, scales))
        return join_scale(matrix, own, name, layout, block=block)

    num_bytes = weight.num_bytes + scale.num_bytes
    return replace(weight, layout=layout, num_bytes=num_bytes, of_expert=of_expert)


def _of_expert(stack: StoredTensor, expert: int, is_turned: bool) -> StoredTensor:
    """Return what a stack has of one expert, rows and columns exchanged where that is asked."""
    is_turned = is_turned and len(stack.shape) == 3
    shape = stack.shape[1:][::-1] if is_turned else stack.shape[1:]

    def read(begin: int, end: int) -> dict[str, Array]:
        own = stack.read(expert, expert + 1)["weight"][0]
        rows = np.atleast_1d(own.T if is_turned else own)[begin:end]
        return {"weight": np.ascontiguousarray(rows)}

    num_bytes = stack.num_bytes // stack.shape[0]
    return replace(stack, shape=shape, num_bytes=num_bytes, read=read)


def _check(
    weight: StoredTensor, scale: StoredTensor | None, name: str, zero: StoredTensor | None
) -> StoredTensor:
    """Return the scale of a weight that has one, and whose other tensors fit."""
    if len(weight.shape) != 2:
        raise UnsupportedError(
            f"{weight.name} has {len(weight.shape)} dimensions, {list(weight.shape)}; quantised"
            " tensors can be read as matrices only.",
            remedy="Use a checkpoint with a tensor for each expert, or the unquantised one.",
        )
    if scale is None:
        raise _missing(weight, name)
    if 0 in weight.shape:
        raise _misshapen(weight, scale, "a weight has elements")
    if zero is not None and zero.shape != scale.shape:
        raise _misshapen(weight, zero, f"{scale.name} is {list(scale.shape)}")
    return scale


def _reach(
    weight: StoredTensor, scale: StoredTensor, block: tuple[int, int] | None
) -> tuple[int, int]:
    """Return how many rows and columns share a scale."""
    (out_features, in_features), shape = weight.shape, scale.shape
    if block is not None:
        expected = (-(-out_features // block[0]), -(-in_features // block[1]))
        if shape != expected:
            raise _misshapen(weight, scale, f"blocks of {block[0]} x {block[1]} make it {expected}")
        return block
    if math.prod(shape) == 1:
        return out_features, in_features
    if shape in ((out_features,), (out_features, 1)):
        return 1, in_features
    if len(shape) == 2 and shape[0] == out_features and shape[1] and not in_features % shape[1]:
        return 1, in_features // shape[1]
    raise _misshapen(weight, scale, "one, one for each row, or whole groups of a row are expected")


def _group_size(in_features: int, columns: int) -> int:
    """Return the input features of a group, all of which have one scale."""
    if columns < in_features:
        # A last block that is not full is no group of its own size: smaller groups divide the row.
        return math.gcd(in_features, columns, GROUP if columns % GROUP == 0 else columns)
    size = math.gcd(in_features, GROUP)
    return size if size >= LEAST_GROUP else in_features


def _missing(weight: StoredTensor, name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is not there, and {weight.name} is quantised.",
        remedy="Check that the files belong together, and download them again.",
    )


def _misshapen(weight: StoredTensor, scale: StoredTensor, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{scale.name} is {list(scale.shape)}, of a weight {list(weight.shape)}; {expected}.",
        remedy="Check that the files and their configuration belong together.",
    )
