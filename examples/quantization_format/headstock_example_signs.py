"""A checkpoint format of one's own, kept as it is: of each weight the sign, and a scale for 32.

    pip install ./examples/quantization_format
    headstock serve FOLDER          a folder whose quantization_config has "quant_method": "signs"

A module has ``name.signs`` uint8 [O, I / 8], eight neighbouring input features to a byte, the first
in the lowest bit, 1 for minus; and ``name.scales`` float32 [O, I / 32]. None of Headstock's layouts
has one bit a weight, so the package brings its own: the reference multiplies it on every device,
and a backend may offer ``linear`` for it.

Shapes: O output features, I input features, G groups along I, g features of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headstock.ops.layouts import CanonicalLayout, Stored
from headstock.plugins.hooks import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.checkpoint.files import Array, StoredTensor
    from headstock.plugins.quantization import QuantizationRegistry

HOOK_API = (2, 3)
GROUP = 32
HERE = "headstock_example_signs"
SIGNS = CanonicalLayout(
    f"{HERE}::signs",
    parts={"signs": Stored("uint8", features=8), "scale": Stored("float32", features=0)},
    dequantize=f"{HERE}:from_signs",
    quantize=f"{HERE}:to_signs",
)


@hookimpl
def headstock_register_quantization(registry: QuantizationRegistry) -> None:
    """Name the reader, which is called for folders of this format only, and the layout."""
    registry.add("signs", f"{HERE}:join_signs")
    registry.add_layout(SIGNS, f"{HERE}:SIGNS")


def from_signs(part: Mapping[str, Tensor]) -> Tensor:
    """Return the weight that signs and scales stand for. float32. [O, I]"""
    import torch

    places = torch.arange(8, device=part["signs"].device)
    is_minus_OI = ((part["signs"].unsqueeze(-1) >> places) & 1).flatten(1)
    scale_OG = part["scale"]
    signs_OGg = (1.0 - 2.0 * is_minus_OI).unflatten(1, (scale_OG.shape[1], -1))
    return (signs_OGg * scale_OG.unsqueeze(-1)).flatten(1)


def to_signs(weight_OI: Tensor, group_size: int) -> dict[str, Tensor]:
    """Return a float32 weight's signs, and the mean magnitude of each group."""
    import torch

    scale_OG = weight_OI.unflatten(1, (-1, group_size)).abs().mean(dim=-1)
    bits = 2 ** torch.arange(8, device=weight_OI.device)
    signs = ((weight_OI < 0).unflatten(1, (-1, 8)) * bits).sum(dim=-1)
    return {"signs": signs.to(torch.uint8), "scale": scale_OG}


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
    from headstock.checkpoint.files import StoredTensor
    from headstock.errors import CheckpointError

    out_features, in_features = signs.shape[0], 8 * signs.shape[1]
    if scales is None or scales.shape != (out_features, in_features // GROUP):
        raise CheckpointError(
            f"{module}.signs is {list(signs.shape)}, and {module}.scales does not fit.",
            remedy="Check that the files belong together.",
        )

    def read(begin: int, end: int) -> dict[str, Array]:
        rows = signs.read(begin, end)["weight"]
        return {"signs": rows, "scale": scales.read(begin, end)["weight"]}

    return StoredTensor(
        name=f"{module}.weight",
        shape=(out_features, in_features),
        dtype="",
        layout=SIGNS,
        group_size=GROUP,
        num_bytes=signs.num_bytes + scales.num_bytes,
        read=read,
    )
