"""The formats of quantised folders that Headstock reads itself, by ``quant_method``. No torch.

A reader turns the tensors that a folder's files have into tensors in canonical layouts (see
:data:`headstock.ops.linear.CanonicalWeight`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from headstock.checkpoint import (
    awq,
    bitsandbytes,
    compressed_tensors,
    fp8,
    gptq,
    modelopt,
    stacked_experts,
)
from headstock.checkpoint.files import StoredTensor

Index = Mapping[str, StoredTensor]
Join = Callable[[Index, Mapping[str, Any]], Index]
"""A reader: takes the files' tensors by name and the ``quantization_config``; returns the tensors
as the model has them, by name, each of which reads rows in a canonical layout."""

OWN: dict[str, Join] = {
    "awq": awq.join_awq,
    "bitsandbytes": bitsandbytes.join_bitsandbytes,
    "compressed-tensors": compressed_tensors.join_compressed,
    "fbgemm_fp8": fp8.join_fp8,
    "fp8": fp8.join_fp8,
    "gptq": gptq.join_gptq,
    "modelopt": modelopt.join_modelopt,
    "modelopt_fp4": modelopt.join_modelopt,
    "mxfp4": stacked_experts.keep_stacked,
}


class Readers(Protocol):
    """What knows formats."""

    @property
    def names(self) -> list[str]:
        """Every ``quant_method`` that can be read."""
        ...

    def load(self, name: str) -> Join:
        """Return the reader of one."""
        ...


class OwnReaders:
    """Knows Headstock's own formats: what is read where no plugin is asked."""

    @property
    def names(self) -> list[str]:
        """Every ``quant_method`` that can be read."""
        return list(OWN)

    def load(self, name: str) -> Join:
        """Return the reader of one."""
        return OWN[name]


Formats = Callable[[], Readers]
"""Called for folders that are quantised only: finding plugins takes time."""
