"""The in-tree formats of quantised folders, as the plugin that they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from headstock.plugins.quantization import QuantizationRegistry

HOOK_API = (2, 3)
hookimpl = pluggy.HookimplMarker("headstock")


@hookimpl
def headstock_register_quantization(registry: QuantizationRegistry) -> None:
    """Name the readers."""
    from headstock.checkpoint.formats import OWN

    for method, place in OWN.items():
        registry.add(method, place)
