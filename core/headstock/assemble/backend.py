"""Opens the backend that serves: its device, its ops, and which device each rank has."""

from __future__ import annotations

import os
from dataclasses import dataclass

from headstock.config import DeviceSettings, EngineSettings, Loaded
from headstock.errors import ConfigError
from headstock.ops import load_all_ops
from headstock.ops.base import Resolver
from headstock.plugins.chosen import Chosen, backend_options
from headstock.plugins.cores import take_share
from headstock.plugins.device import Device
from headstock.plugins.loader import discover
from headstock.plugins.models import ModelRegistry
from headstock.plugins.select import select


@dataclass(frozen=True, slots=True)
class Opened:
    """A backend in use.

    Attributes:
        chosen: The backend.
        device: Its device.
        resolver: Chooses ops for the device.
        settings: With what the backend wanted changed.
        architectures: What models can be served.
    """

    chosen: Chosen
    device: Device
    resolver: Resolver
    settings: EngineSettings
    architectures: ModelRegistry


def open_backend(loaded: Loaded[EngineSettings], *, rank: int = 0, size: int = 1) -> Opened:
    """Choose the backend, open this rank's device and collect its ops.

    Args:
        loaded: Settings, and who set them.
        rank: Of the ranks that share the model.
        size: How many those are.

    Raises:
        ConfigError: The backend asked for is not here; ``op`` names what does not exist.
        PluginError: A backend is broken.
    """
    wanted = loaded.settings.device
    plugins = discover(backend=wanted.backend, disabled=wanted.disable_plugin)
    chosen = select(plugins, wanted.backend)
    index, threads = rank_device(chosen, wanted, rank, size)
    if size > 1 and _is_host(chosen):
        take_share(rank, size)
    device = chosen.open_device(index, threads, backend_options(wanted.backend_option))
    for patch in chosen.config_patches(loaded.values, device):
        loaded = loaded.with_patch(patch.path, patch.value, patch.reason)
    forced = forced_providers(wanted.op)
    if forced:
        load_all_ops()  # for names that are no op's
    resolver = Resolver(chosen.offer_ops(device), device, forced, chosen.failures)
    architectures = ModelRegistry.of_plugins(plugins)
    chosen.failures.extend(architectures.failures)
    return Opened(chosen, device, resolver, loaded.settings, architectures)


def check_ranks(settings: EngineSettings) -> None:
    """Refuse more ranks than there are devices, or cores, for: before any is started.

    Raises:
        ConfigError: There are too many, or the backend asked for is not here.
        PluginError: A backend is broken.
    """
    wanted, size = settings.device, settings.parallel.tp_size
    plugins = discover(backend=wanted.backend, disabled=wanted.disable_plugin)
    chosen = select(plugins, wanted.backend)
    rank_device(chosen, wanted, 0, size)
    available = _available_cores()
    if size > available and _is_host(chosen):
        raise ConfigError(
            f"tp_size is {size}; this machine has {available} cores, and each rank needs one.",
            remedy="Lower --tp-size.",
        )


def rank_device(chosen: Chosen, wanted: DeviceSettings, rank: int, size: int) -> tuple[int, int]:
    """Return which device a rank opens, and with how many host threads.

    Ranks take the backend's devices one after another. Where it has one only, and that is the
    host, they share its cores.

    Raises:
        ConfigError: There are not as many devices as ranks.
    """
    devices = chosen.probe.devices
    if size == 1:
        return wanted.device_index, wanted.threads
    if _is_host(chosen):
        cores = wanted.threads or _available_cores()
        return wanted.device_index, max(1, cores // size)
    if wanted.device_index + size > len(devices):
        raise ConfigError(
            f"tp_size is {size} from device {wanted.device_index} on; backend {chosen.name!r} has"
            f" {len(devices)} devices.",
            remedy="Lower --tp-size.",
        )
    return wanted.device_index + rank, wanted.threads


def _is_host(chosen: Chosen) -> bool:
    return all(device.is_host for device in chosen.probe.devices)


def _available_cores() -> int:
    """Return the machine's cores: ranks of a process that may use fewer share these."""
    return os.cpu_count() or 1


def forced_providers(flags: list[str]) -> dict[str, str]:
    """Return op to provider from ``name=provider`` settings.

    Raises:
        ConfigError: One is not of that form.
    """
    forced: dict[str, str] = {}
    for flag in flags:
        name, separator, provider = flag.partition("=")
        if not (name and separator and provider):
            raise ConfigError(
                f"op is {flag!r}.", remedy="Write name=provider, such as attention=reference."
            )
        forced[name] = provider
    return forced
