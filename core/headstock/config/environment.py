"""The environment, read in this one file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstock.config.options import Option, options
from headstock.errors import ConfigError, did_you_mean

PREFIX = "HEADSTOCK_"
CONFIG = "HEADSTOCK_CONFIG"
DEBUG = "HEADSTOCK_DEBUG"
CACHE_DIR = "HEADSTOCK_CACHE_DIR"
OTHERS = {
    CONFIG: "The TOML file to read, as `--config`.",
    DEBUG: "1: show the traceback of every error, as `--debug`.",
    "OPENAI_API_KEY": "The key of the language's back end `OpenAI`, where a program gives none.",
    "ANTHROPIC_API_KEY": "The same of `Anthropic`.",
    CACHE_DIR: "Where pulled models are kept; `$XDG_CACHE_HOME/headstock` when not set.",
}

TORCH_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"

# Kubernetes sets these in every pod for each service, and a service may be called headstock.
_SERVICE_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the environment says.

    Attributes:
        values: Settings by path, as text or a list of it.
        config_file: ``HEADSTOCK_CONFIG``.
        is_debug: ``HEADSTOCK_DEBUG``.
        cache_dir: Where pulled models are kept.
    """

    values: Mapping[str, Any]
    config_file: str | None
    is_debug: bool
    cache_dir: Path

    @property
    def model_dir(self) -> Path:
        """The folder of pulled models."""
        return self.cache_dir / "models"


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """Read ``variables``, the process's own by default.

    Raises:
        ConfigError: A ``HEADSTOCK_`` variable is no setting.
    """
    variables = os.environ if variables is None else variables
    by_variable = {option.variable: option for option in options()}
    values: dict[str, Any] = {}
    for variable, text in variables.items():
        if not variable.startswith(PREFIX) or variable in OTHERS or _is_link(variable, text):
            continue
        option = by_variable.get(variable)
        if option is None:
            guess = did_you_mean(variable, [*by_variable, *OTHERS])
            raise ConfigError(
                f"The environment sets {variable}, which is not a setting.{guess}",
                remedy="Unset it; docs/configuration.md lists all of them.",
            )
        values[option.path] = _parse(option, text)
    return Environment(
        values=values,
        config_file=variables.get(CONFIG) or None,
        is_debug=variables.get(DEBUG, "") not in ("", "0", "false"),
        cache_dir=_cache_dir(variables),
    )


def is_debug() -> bool:
    """Say whether tracebacks are wanted, even when the rest of the environment is not valid."""
    return os.environ.get(DEBUG, "") not in ("", "0", "false")


def forget_secrets() -> None:
    """Take settings that are secret out of the environment, so that no child inherits them."""
    for option in options():
        if not option.has_flag:
            os.environ.pop(option.variable, None)


def variable(name: str) -> str | None:
    """Return a variable that :data:`OTHERS` documents; None: not set, or empty."""
    assert name in OTHERS, f"{name} is not documented"
    return os.environ.get(name) or None


def hold_back_torch_backends() -> None:
    """Keep ``import torch`` from loading packages of devices, unless the operator wants it to.

    One that is installed and broken would take every backend down. A backend imports its own
    package when its device is opened.
    """
    os.environ.setdefault(TORCH_AUTOLOAD, "0")


def child_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment with ``changes``, for a subprocess."""
    return {**os.environ, **changes}


def _parse(option: Option, text: str) -> Any:
    if option.kind == "list":
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _is_link(variable: str, text: str) -> bool:
    if variable == "HEADSTOCK_PORT" and "://" in text:
        return True
    return bool(re.search(rf"_({_SERVICE_LINK.pattern})$", variable))


def _cache_dir(variables: Mapping[str, str]) -> Path:
    if variables.get(CACHE_DIR):
        return Path(variables[CACHE_DIR]).expanduser()
    base = variables.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headstock"
