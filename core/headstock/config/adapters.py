"""The LoRA adapters that settings name, and what an adapter may be called."""

from __future__ import annotations

import re
from pathlib import Path

from headstock.config.schema import LoraSettings
from headstock.errors import ConfigError, RequestError

NAME = "lora_name"
"""The field of a request that names an adapter."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@+-]{0,127}")


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


def check_name(name: str) -> None:
    """Refuse what is no name of an adapter.

    Raises:
        RequestError: Saying what a name may be.
    """
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{name[:128]!r} is not a name of an adapter.",
            remedy="Use 1 to 128 letters, digits and . _ / @ + -, a letter or digit first.",
            field=NAME,
        )
