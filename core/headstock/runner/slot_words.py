"""The words of the slot table on a device, and how changed ones are written there.

A change is a pair (index, value) of int32 words, whatever dtype the field has. Where memory can be
seen with several dtypes, the table is one buffer and its fields are views; where it cannot, there
is an array for each dtype, and the pairs are parted among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headstock.plugins.device import Device

if TYPE_CHECKING:
    from headstock.runner.upload import HostArrays


class SharedWords:
    """One buffer, whose fields are views: all pairs are written at once.

    Args:
        device: Where.
        num_longs: How many int64 there are, two words each; they come first.
        num_ints: How many int32 come then.
        num_floats: How many float32 come then.
        rest: Sizes of int32 fields at the end.

    Attributes:
        longs: int64. [num_longs]
        ints: int32. [num_ints]
        floats: float32. [num_floats]
        rest: int32, by the sizes asked for.
        is_split: Whether pairs are given to ``apply_split``, on the host, instead of ``apply``.
    """

    is_split = False

    def __init__(
        self, device: Device, num_longs: int, num_ints: int, num_floats: int, rest: Sequence[int]
    ) -> None:
        sizes = (2 * num_longs, num_ints, num_floats, *rest)
        self._words = device.empty((sum(sizes),), torch.int32).zero_()
        longs, self.ints, floats, *rest_of = self._words.split(sizes)
        self.rest: Sequence[Tensor] = rest_of
        self.longs, self.floats = longs.view(torch.int64), floats.view(torch.float32)

    def apply(self, indexes: Tensor, values: Tensor) -> None:
        """Set words. int32, on the device. [edits] each"""
        self._words.index_copy_(0, indexes.long(), values)

    def apply_split(self, pairs: np.ndarray, arrays: HostArrays) -> None:
        """Refuse: the caller must look at ``is_split`` first."""
        raise AssertionError("the pairs of a table in one buffer are not split")


class SplitWords:
    """An array for each dtype, where views cannot have another one. As :class:`SharedWords`."""

    is_split = True

    def __init__(
        self, device: Device, num_longs: int, num_ints: int, num_floats: int, rest: Sequence[int]
    ) -> None:
        self.longs = device.empty((num_longs,), torch.int64).zero_()
        self.floats = device.empty((num_floats,), torch.float32).zero_()
        self._words = device.empty((num_ints + sum(rest),), torch.int32).zero_()
        self.ints, *rest_of = self._words.split([num_ints, *rest])
        self.rest: Sequence[Tensor] = rest_of
        self._ends = np.cumsum((2 * num_longs, num_ints, num_floats))

    def apply(self, indexes: Tensor, values: Tensor) -> None:
        """Refuse: the caller must look at ``is_split`` first."""
        raise AssertionError("the pairs of a split table are split on the host")

    def apply_split(self, pairs: np.ndarray, arrays: HostArrays) -> None:
        """Set words, given as indexes and values on the host. int32. [2, edits]"""
        order = np.argsort(pairs[0], kind="stable")
        indexes, values = pairs[0][order], pairs[1][order]
        longs_at, ints_at, floats_at = np.searchsorted(indexes, self._ends)
        longs = values[:longs_at].view(np.int64)
        self._write(self.longs, indexes[:longs_at:2] // 2, longs, arrays)
        floats = values[ints_at:floats_at].view(np.float32)
        self._write(self.floats, indexes[ints_at:floats_at] - self._ends[1], floats, arrays)
        num_floats = int(self._ends[2] - self._ends[1])
        ints = np.concatenate((indexes[longs_at:ints_at], indexes[floats_at:] - num_floats))
        of_ints = np.concatenate((values[longs_at:ints_at], values[floats_at:]))
        self._write(self._words, ints - self._ends[0], of_ints, arrays)

    @staticmethod
    def _write(into: Tensor, indexes: np.ndarray, values: np.ndarray, arrays: HostArrays) -> None:
        """Set elements of one array; the last pair stands for the padding, too."""
        if len(indexes):
            places, numbers = arrays.send_padded(indexes.astype(np.int64), values)
            into.index_copy_(0, places, numbers)
            arrays.cut()
