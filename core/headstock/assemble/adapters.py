"""The room for LoRA adapters that settings ask for. Imports torch."""

from __future__ import annotations

from headstock.assemble.given_adapters import given_adapters
from headstock.config import LoraSettings
from headstock.errors import ConfigError
from headstock.graph.lora import AdapterSpace
from headstock.lora import adapter_space


def wanted_space(settings: LoraSettings) -> AdapterSpace | None:
    """Return the room for adapters that ``settings`` ask for; None: none.

    Raises:
        AdapterError: An adapter's configuration cannot be read.
        ConfigError: The settings contradict each other.
    """
    paths = list(given_adapters(settings).values())
    if settings.max_loras == 0 and paths:
        raise ConfigError(
            f"max_loras is 0, and lora names {len(paths)} adapters.",
            remedy="Drop --max-loras, or make room for one at least.",
        )
    space = adapter_space(
        paths, settings.max_loras, settings.max_lora_rank, settings.lora_target_modules
    )
    if space is None and (settings.max_lora_rank or settings.lora_target_modules):
        raise ConfigError(
            "max_lora_rank and lora_target_modules have no effect without adapters.",
            remedy="Set --max-loras, or drop them.",
        )
    if len(paths) > settings.max_loaded_loras:
        raise ConfigError(
            f"max_loaded_loras is {settings.max_loaded_loras}; lora names {len(paths)} adapters.",
            remedy="Raise --max-loaded-loras.",
        )
    return space
