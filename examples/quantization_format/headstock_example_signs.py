"""A checkpoint format of one's own: of each weight the sign, and a scale for 32 of them.

    pip install ./examples/quantization_format
    headstock serve FOLDER          a folder whose quantization_config has "quant_method": "signs"

A module has ``name.signs`` uint8 [O, I / 8], eight neighbouring input features to a byte, the first
in the lowest bit, 1 for minus; and ``name.scales`` float32 [O, I / 32]. It becomes the canonical
layout ``int8-group``, which every backend multiplies.

Shapes: O output features, I input features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headstock.plugins.hooks import hookimpl

if TYPE_CHECKING:
    from headstock.checkpoint.files import Array, StoredTensor
    from headstock.plugins.quantization import QuantizationRegistry

HOOK_API = (2, 3)
GROUP = 32


@hookimpl
def headstock_register_quantization(registry: QuantizationRegistry) -> None:
    """Name the reader; it is called for folders of this format only."""
    registry.add("signs", "headstock_example_signs:join_signs")


def join_signs(
    index: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Return the tensors of ``index`` with the signs and scales of each module as one weight.

    Args:
        index: Tensors as the files have them.
        quantization: ``quantization_config`` of the model's configuration.

    Raises:
        UnsupportedError: The groups are of another size.
        CheckpointError: A module lacks its scales.
    """
    from headstock.errors import UnsupportedError

    if quantization.get("group_size") != GROUP:
        raise UnsupportedError(
            f"quantization_config has group_size {quantization.get('group_size')!r}; signs come in"
            f" groups of {GROUP}.",
            remedy="Quantise the model again.",
        )
    joined: dict[str, StoredTensor] = {}
    for name, tensor in index.items():
        module, _, part = name.rpartition(".")
        if part == "signs":
            joined[f"{module}.weight"] = _weight(module, tensor, index.get(f"{module}.scales"))
        elif part != "scales":
            joined[name] = tensor
    return joined


def _weight(module: str, signs: StoredTensor, scales: StoredTensor | None) -> StoredTensor:
    import numpy as np

    from headstock.checkpoint.files import StoredTensor
    from headstock.errors import CheckpointError
    from headstock.ops.linear import INT8_GROUP

    out_features, in_features = signs.shape[0], 8 * signs.shape[1]
    if scales is None or scales.shape != (out_features, in_features // GROUP):
        raise CheckpointError(
            f"{module}.signs is {list(signs.shape)}, and {module}.scales does not fit.",
            remedy="Check that the files belong together.",
        )

    def read(begin: int, end: int) -> dict[str, Array]:
        bits = np.unpackbits(signs.read(begin, end)["weight"], axis=-1, bitorder="little")
        weight = 1 - 2 * bits.astype(np.int8)
        return {"weight": weight, "scale": scales.read(begin, end)["weight"]}

    return StoredTensor(
        name=f"{module}.weight",
        shape=(out_features, in_features),
        dtype="",
        layout=INT8_GROUP,
        group_size=GROUP,
        num_bytes=signs.num_bytes + scales.num_bytes,
        read=read,
    )
