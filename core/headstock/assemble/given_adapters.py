"""The LoRA adapters that settings name. Read by both processes, so it imports little."""

from __future__ import annotations

from pathlib import Path

from headstock.config import LoraSettings
from headstock.errors import ConfigError, RequestError
from headstock.server.adapter_names import check_name


def given_adapters(settings: LoraSettings) -> dict[str, str]:
    """Return name to folder of the adapters that are served from the start.

    Raises:
        ConfigError: One is not of the form name=folder, or two have one name.
    """
    found: dict[str, str] = {}
    for given in settings.lora:
        name, separator, path = given.partition("=")
        if not (name and separator and path):
            raise ConfigError(f"lora is {given!r}.", remedy="Write name=folder.")
        if name in found:
            raise ConfigError(
                f"lora names {name!r} twice.", remedy="Give each adapter a name of its own."
            )
        try:
            check_name(name)
        except RequestError as error:
            raise ConfigError(f"lora is {given!r}: {error.problem}", remedy=error.remedy) from error
        found[name] = str(Path(path).expanduser().absolute())
    return found
