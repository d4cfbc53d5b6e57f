"""Low-rank adapters: their files, what a model holds of them, and where they are on the device."""

from headstock.lora.library import AdapterLibrary
from headstock.lora.modules import AdaptedModules
from headstock.lora.peft import AdapterFiles, AdapterSettings, open_adapter, read_settings
from headstock.lora.space import adapter_space

__all__ = [
    "AdaptedModules",
    "AdapterFiles",
    "AdapterLibrary",
    "AdapterSettings",
    "adapter_space",
    "open_adapter",
    "read_settings",
]
