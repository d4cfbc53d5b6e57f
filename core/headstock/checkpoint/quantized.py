"""Which reader turns a folder's quantised tensors into canonical layouts. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from headstock.checkpoint.formats import Formats, Index, OwnReaders, Readers
from headstock.errors import PluginError, UnsupportedError
from headstock.ops.layouts import CanonicalLayout
from headstock.ops.linear import LAYOUTS


def find_reader(
    path: Path, config: Mapping[str, Any], formats: Formats = OwnReaders
) -> Callable[[Index], Index]:
    """Return what joins the quantised tensors of the folder ``path``; nothing for dense ones.

    Args:
        path: The folder, for errors.
        config: The model's configuration; models of images may say it of their text.
        formats: Returns the formats that can be read.

    Raises:
        PluginError: The reader does not import. What is returned raises it for a layout that no
            plugin named.
        UnsupportedError: The weights are quantised by a method that we cannot read.
    """
    text = config.get("text_config")
    inside = cast("dict[str, Any]", text) if isinstance(text, dict) else {}
    given = config.get("quantization_config") or inside.get("quantization_config")
    if not given:
        return lambda index: index
    quantization = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    method, known = quantization.get("quant_method"), formats()
    if not isinstance(method, str) or method not in known.names:
        raise UnsupportedError(
            f"{path} is quantised by {method or 'an unnamed method'}, which cannot be read yet.",
            remedy=f"Use a checkpoint in {', '.join(known.names)}, a GGUF file, or the model's"
            " unquantised folder, with --quantization int8 or int4 if memory is short.",
        )
    join = known.load(method)

    def read(index: Index) -> Index:
        joined = join(index, quantization)
        _check_layouts(method, joined, known)
        return joined

    return read


def _check_layouts(method: str, index: Index, known: Readers) -> None:
    """Refuse a layout that no plugin named: the kit has not seen it, and it may be misspelt."""
    for name, tensor in index.items():
        layout = cast("object", tensor.layout)
        is_named = layout in LAYOUTS or layout in known.layout_names
        if not (is_named and isinstance(layout, CanonicalLayout)):
            raise PluginError(
                f"The reader of {method} gives {name} in layout {layout!r}, which is none.",
                remedy=f"Use one of {', '.join([*LAYOUTS, *known.layout_names])}, or name it by"
                " add_layout in headstock_register_quantization.",
            )
