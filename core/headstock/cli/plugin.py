"""The in-tree commands for authors of plugins, as the plugin that they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from headstock.plugins.commands import CommandRegistry

HOOK_API = (2, 2)
hookimpl = pluggy.HookimplMarker("headstock")


@hookimpl
def headstock_register_commands(registry: CommandRegistry) -> None:
    """Name the command that writes the package of a new backend."""
    registry.add_command(
        "new-backend", "headstock.cli.new_backend", "Write the package of a new backend"
    )
