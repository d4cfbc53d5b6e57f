"""Pages of 8 bits: each of their dtypes with how keys and values are kept in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headstock.ops.fp8_pages import pack_fp8, unpack_fp8
from headstock.ops.int8_pages import pack_int8, unpack_int8


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrow:
    """How keys and values are kept in 8 bits, a head's scale in the bytes behind its features.

    Attributes:
        name: Of the kind, in layouts' tags.
        storage: Dtype of the buffers that hold it: integers, which every device can copy.
        pack: From keys or values [..., D] to [..., D + bytes of a scale].
        unpack: Back, to float32.
    """

    name: str
    storage: torch.dtype
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor], Tensor]


NARROW: Mapping[torch.dtype, Narrow] = {
    torch.int8: Narrow(name="int8", storage=torch.int8, pack=pack_int8, unpack=unpack_int8),
    torch.float8_e4m3fn: Narrow(name="fp8", storage=torch.uint8, pack=pack_fp8, unpack=unpack_fp8),
}
"""By the dtype of the pages."""
