"""The formats of quantised folders that Headstock reads itself, by ``quant_method``. No torch.

A reader turns the tensors that a folder's files have into tensors in canonical layouts (see
:data:`headstock.ops.linear.CanonicalWeight`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any, Protocol

from headstock.checkpoint.files import StoredTensor

Index = Mapping[str, StoredTensor]
Join = Callable[[Index, Mapping[str, Any]], Index]
"""A reader: takes the files' tensors by name and the ``quantization_config``; returns the tensors
as the model has them, by name, each of which reads rows in a canonical layout."""

_HERE = "headstock.checkpoint"
OWN: Mapping[str, str] = {
    "awq": f"{_HERE}.awq:join_awq",
    "bitsandbytes": f"{_HERE}.bitsandbytes:join_bitsandbytes",
    "compressed-tensors": f"{_HERE}.compressed_tensors:join_compressed",
    "fbgemm_fp8": f"{_HERE}.fp8:join_fp8",
    "fp8": f"{_HERE}.fp8:join_fp8",
    "gptq": f"{_HERE}.gptq:join_gptq",
    "modelopt": f"{_HERE}.modelopt:join_modelopt",
    "modelopt_fp4": f"{_HERE}.modelopt:join_modelopt",
    "mxfp4": f"{_HERE}.stacked_experts:keep_stacked",
}
"""Where the reader of each is, ``module:name``: most models need none."""


class Readers(Protocol):
    """What knows formats."""

    @property
    def names(self) -> list[str]:
        """Every ``quant_method`` that can be read."""
        ...

    @property
    def layout_names(self) -> Collection[str]:
        """The layouts that plugins brought, which readers may use besides Headstock's own."""
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

    @property
    def layout_names(self) -> Collection[str]:
        """None."""
        return ()

    def load(self, name: str) -> Join:
        """Return the reader of one."""
        module, _, reader = OWN[name].partition(":")
        return getattr(import_module(module), reader)


Formats = Callable[[], Readers]
"""Called for folders that are quantised only: finding plugins takes time."""
