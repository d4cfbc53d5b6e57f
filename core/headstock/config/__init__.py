"""What is set: typed sections, read once at the edge."""

from __future__ import annotations

from headstock.config.edge import Loaded, Origin, Source, read_settings, settings_from_call
from headstock.config.environment import Environment, child_environment, read_environment
from headstock.config.flags import add_flags
from headstock.config.schema import (
    CacheSettings,
    DeviceSettings,
    EngineSettings,
    GrammarSettings,
    LogSettings,
    LoraSettings,
    MediaSettings,
    ModelSettings,
    ParallelSettings,
    SchedulerSettings,
    ServerSettings,
    ServeSettings,
)

__all__ = [
    "CacheSettings",
    "DeviceSettings",
    "EngineSettings",
    "Environment",
    "GrammarSettings",
    "Loaded",
    "LogSettings",
    "LoraSettings",
    "MediaSettings",
    "ModelSettings",
    "Origin",
    "ParallelSettings",
    "SchedulerSettings",
    "ServeSettings",
    "ServerSettings",
    "Source",
    "add_flags",
    "child_environment",
    "read_environment",
    "read_settings",
    "settings_from_call",
]
