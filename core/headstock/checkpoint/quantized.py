"""Which reader turns a folder's quantised tensors into canonical layouts. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from headstock.checkpoint.formats import Formats, Index, OwnReaders
from headstock.errors import UnsupportedError


def find_reader(
    path: Path, config: Mapping[str, Any], formats: Formats = OwnReaders
) -> Callable[[Index], Index]:
    """Return what joins the quantised tensors of the folder ``path``; nothing for dense ones.

    Args:
        path: The folder, for errors.
        config: The model's configuration; models of images may say it of their text.
        formats: Returns the formats that can be read.

    Raises:
        PluginError: The reader does not import.
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
    return lambda index: join(index, quantization)
