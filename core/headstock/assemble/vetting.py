"""Plugins of other distributions are tried in a child before a process that serves loads them.

A plugin that raises is passed over where it is loaded. One that ends its process or hangs is found
out here: it is loaded and probed once, in a process of its own with a time limit, and left out of
what is started then. Plugins of this distribution are covered by its tests and are not tried again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import msgspec

from headstock.config import EngineSettings, Loaded
from headstock.config.environment import child_environment
from headstock.errors import PluginError
from headstock.plugins.installed import has_foreign_plugins

if TYPE_CHECKING:
    from headstock.plugins.doctor import Examined

log = logging.getLogger(__name__)

LIMIT_S = 30.0
"""Loading and probing one plugin may take so long. Seconds."""
S = TypeVar("S", bound=EngineSettings)


def leave_out_unfit(loaded: Loaded[S], limit_s: float = LIMIT_S) -> Loaded[S]:
    """Return the settings with the plugins disabled that end their process or hang.

    Args:
        loaded: The operator's settings.
        limit_s: For each plugin. Seconds.

    Raises:
        PluginError: One of them is the backend that was asked for.
    """
    if not has_foreign_plugins():
        return loaded
    from headstock.plugins.doctor import Foreign, probe_each

    wanted = loaded.settings.device
    foreign = Foreign(wanted.backend)
    found = probe_each(
        child_environment, disabled=wanted.disable_plugin, only=foreign, limit_s=limit_s
    )
    unfit = [one for one in found if one.trouble]
    if not unfit:
        return loaded
    for one in unfit:
        problem = _problem(one)
        remedy = f"Reinstall {one.record.dist}, or pass --disable-plugin {one.record.name}."
        if foreign.is_asked_for(one.record):
            raise PluginError(problem, remedy=remedy)
        log.warning("%s It is left out. %s", problem, remedy)
    names = [f"{one.record.dist}:{one.record.name}" for one in unfit]
    device = msgspec.structs.replace(wanted, disable_plugin=[*wanted.disable_plugin, *names])
    return Loaded(msgspec.structs.replace(loaded.settings, device=device), loaded.origins)


def _problem(one: Examined) -> str:
    record = one.record
    name = f"Plugin {record.name!r} ({record.dist} {record.version})"
    return f"{name} cannot be loaded: {one.trouble.rstrip('.')}."
