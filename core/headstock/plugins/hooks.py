"""The hooks a plugin may implement. pluggy discovers them; nothing on a token's path does.

A plugin is a module or object with functions of these names, marked with :data:`hookimpl`, and
``HOOK_API = (major, minor)``: the interface version it was written for. It may take fewer
arguments than a hook has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pluggy

from headstock.plugins.installed import PROJECT

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.ops.communication import Group
    from headstock.plugins.commands import CommandRegistry
    from headstock.plugins.device import Device
    from headstock.plugins.drafters import DrafterRegistry
    from headstock.plugins.models import ModelRegistry
    from headstock.plugins.probe import Probe
    from headstock.plugins.quantization import QuantizationRegistry
    from headstock.plugins.routes import RouteRegistry
    from headstock.plugins.tiers import TierRegistry
    from headstock.plugins.transports import TransportRegistry
    from headstock.structured.provider import GrammarRegistry
    from headstock.text.parsers.registry import FormatRegistry

HOOK_API = (2, 3)

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigPatch:
    """A setting that a backend wants changed, with the reason the doctor shows.

    Attributes:
        path: Section and field, such as ``cache.page_size``.
        value: What it should be. Only settings the operator left alone are changed.
        reason: Why, in one sentence.
    """

    path: str
    value: object
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor.

    Attributes:
        subject: What was looked at.
        is_ok: Whether it is as it should be.
        text: What was found.
        remedy: What to do; empty when ``is_ok``.
    """

    subject: str
    is_ok: bool
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInfo:
    """The ranks that a communication group joins.

    Attributes:
        name: ``tp``.
        rank: This process's.
        size: How many.
        address: Where they meet, as ``tcp://host:port`` or ``file:///path``.
    """

    name: str
    rank: int
    size: int
    address: str


@hookspec
def headstock_probe() -> Probe:
    """Say whether this backend can run here. Required.

    Cheap and without side effects: imports no vendor library and no torch, opens no device.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def headstock_device(index: int, num_threads: int, options: Mapping[str, str]) -> Device:
    """Open device ``index``. Required. Called in the engine process only.

    ``num_threads`` is what the operator set for host threads, 0 for "as you see fit"; ``options``
    what ``--backend-option name=value`` says, of which unknown ones are to be refused.
    """
    raise NotImplementedError


@hookspec
def headstock_register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer implementations of ops for ``device``."""


@hookspec
def headstock_register_grammars(registry: GrammarRegistry) -> None:
    """Name a provider of grammars, which compiles them and makes masks.

    Called in the engine process. Name it only: it is imported when the first grammar comes.
    """


@hookspec
def headstock_register_drafters(registry: DrafterRegistry) -> None:
    """Name a drafter, which proposes tokens for steps to verify.

    Called in every process that runs the model. Name it only: it is imported when asked for.
    """


@hookspec
def headstock_register_models(registry: ModelRegistry) -> None:
    """Name the classes of architectures. Called in the API and the engine process.

    Name them only: a class is imported when a checkpoint of its architecture is served.
    """


@hookspec
def headstock_register_quantization(registry: QuantizationRegistry) -> None:
    """Name the readers of formats of quantised folders, by ``quant_method``, and new layouts.

    Called in every process that opens the model, if its folder is quantised; of backends it is not
    called. Name them only: a reader is imported when a folder needs it.
    """


@hookspec
def headstock_register_parsers(registry: FormatRegistry) -> None:
    """Add formats in which models write thoughts and calls. Called in the API process."""


@hookspec
def headstock_register_routes(registry: RouteRegistry) -> None:
    """Name routers of the server. Called in the API process, before it listens.

    Name them only: each is imported, and its function called, when the application is built.
    """


@hookspec
def headstock_register_commands(registry: CommandRegistry) -> None:
    """Name commands of ``headstock``. Called for ``--help`` and for words that are no command.

    Name them only: a command is imported when it is typed.
    """


@hookspec
def headstock_register_kv_transports(registry: TransportRegistry) -> None:
    """Name what moves pages between engines. Provisional: see ``headstock.plugins.transports``."""


@hookspec
def headstock_register_cache_tiers(registry: TierRegistry) -> None:
    """Name what keeps pages below the device. Provisional: see ``headstock.plugins.tiers``."""


@hookspec(firstresult=True)
def headstock_communication(group: GroupInfo, device: Device) -> Group | None:
    """Join ``group``; None leaves it to the host's network."""
    raise NotImplementedError


@hookspec
def headstock_configure(settings: Mapping[str, object], device: Device) -> Iterable[ConfigPatch]:
    """Ask for other settings. ``settings`` maps paths such as ``cache.page_size`` to values."""
    raise NotImplementedError


@hookspec
def headstock_doctor() -> Iterable[Finding]:
    """Add lines to ``headstock doctor``. Runs in a subprocess with a time limit."""
    raise NotImplementedError
