"""Finding and loading plugins: each behind a guard, so that a broken one stops no other.

Nothing here raises out of discovery. What went wrong with a plugin is in its
:class:`PluginRecord`, and the code that needs that plugin raises the error then.
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, cast

import pluggy

from headstock.plugins import hooks
from headstock.plugins.guard import Failure, guarded
from headstock.plugins.hooks import HOOK_API, PROJECT
from headstock.plugins.installed import BACKENDS, PLUGINS, installed_points
from headstock.plugins.probe import Probe, Status

REFERENCE = "reference"
REFERENCE_MODULE = "headstock.plugins.reference"
OLDEST_MAJOR = 2


class State(enum.Enum):
    """How far a plugin came."""

    LOADED = "loaded"
    SKIPPED = "skipped"
    """Another backend was asked for: not imported."""
    DISABLED = "disabled"
    """The operator named it in ``--disable-plugin``: not imported."""
    FAILED = "failed"
    """It does not import, or its hooks are not ours."""
    INCOMPATIBLE = "incompatible"
    """It was written for another version of the hooks."""
    CONFLICT = "conflict"
    """Two distributions bring a plugin of this name: neither is imported."""


WRONG = frozenset({State.FAILED, State.INCOMPATIBLE, State.CONFLICT})


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRecord:
    """One installed plugin, and what became of it.

    Attributes:
        name: Its entry point's name.
        group: ``headstock.backends`` or ``headstock.plugins``.
        dist: The distribution that brings it.
        version: Of the distribution.
        state: See :class:`State`.
        reason: Why it is not LOADED; empty when it is.
        remedy: What to do about that.
        api: The ``HOOK_API`` it declares, once imported.
    """

    name: str
    group: str
    dist: str
    version: str
    state: State
    reason: str = ""
    remedy: str = ""
    api: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """The name that the plugin manager knows it by."""
        return f"{self.group}:{self.name}"


@dataclass(frozen=True, slots=True)
class _Found:
    """A plugin that may be loaded: where it comes from, and how."""

    name: str
    group: str
    dist: str
    version: str
    entry_point: metadata.EntryPoint | None = None
    plugin: object | None = None

    def load(self) -> object:
        if self.entry_point is not None:
            return self.entry_point.load()
        if self.plugin is not None:
            return self.plugin
        return importlib.import_module(REFERENCE_MODULE)

    def record(self, state: State, **details: Any) -> PluginRecord:
        return PluginRecord(
            name=self.name,
            group=self.group,
            dist=self.dist,
            version=self.version,
            state=state,
            **details,
        )


@dataclass(frozen=True, slots=True)
class Plugins:
    """All that discovery found.

    Attributes:
        records: Every installed plugin, backends first, by name.
        manager: Holds the LOADED ones under ``record.key``.
    """

    records: tuple[PluginRecord, ...]
    manager: pluggy.PluginManager = field(repr=False)

    @property
    def backends(self) -> tuple[PluginRecord, ...]:
        """The records of backends, whatever their state."""
        return tuple(r for r in self.records if r.group == BACKENDS)

    @property
    def loaded(self) -> tuple[PluginRecord, ...]:
        """The records of what is LOADED, backends first."""
        return tuple(r for r in self.records if r.state is State.LOADED)

    def plugin(self, record: PluginRecord) -> object:
        """Return the module or object of a LOADED plugin."""
        plugin = self.manager.get_plugin(record.key)
        assert plugin is not None, f"plugin {record.key} is {record.state.value}, not loaded"
        return plugin

    def offers(self, record: PluginRecord, hook: str) -> bool:
        """Say whether a LOADED plugin implements ``hook``."""
        callers = self.manager.get_hookcallers(self.plugin(record)) or []
        return any(caller.name == hook for caller in callers)

    def takes(self, record: PluginRecord, hook: str, argument: str) -> bool:
        """Say whether a LOADED plugin's ``hook`` has that argument."""
        plugin = self.plugin(record)
        callers = self.manager.get_hookcallers(plugin) or []
        found = [i for c in callers if c.name == hook for i in c.get_hookimpls()]
        return any(i.plugin is plugin and argument in i.argnames for i in found)

    def call(self, record: PluginRecord, hook: str, **arguments: Any) -> list[Any]:
        """Call ``hook`` of one LOADED plugin alone; its answers, none when it has no such hook.

        Whatever the plugin raises goes through.
        """
        plugin = self.plugin(record)
        others = [p for p in self.manager.get_plugins() if p is not plugin]
        answer = self.manager.subset_hook_caller(hook, others)(**arguments)
        if isinstance(answer, list):
            return cast("list[Any]", answer)
        return [] if answer is None else [answer]  # a hook whose first answer counts

    def probe(self, record: PluginRecord) -> Probe:
        """Ask a LOADED backend whether it can run here. Never raises."""
        if not self.offers(record, "headstock_probe"):
            return _broken("it has no headstock_probe hook", record)
        answers = guarded(lambda: self.call(record, "headstock_probe"))
        if isinstance(answers, Failure):
            return _broken(f"its probe raised {answers.reason}", record)
        probe = answers.value[0] if answers.value else None
        if not isinstance(probe, Probe):
            return _broken(f"its probe returned {type(probe).__name__}, not a Probe", record)
        if probe.status is Status.AVAILABLE and not self.offers(record, "headstock_device"):
            reason = f"probe only: it has no headstock_device hook ({probe.reason})"
            return replace(
                probe, status=Status.ABSENT, reason=reason, remedy="Use another backend."
            )
        return probe


def discover(
    *,
    backend: str | None = None,
    disabled: Collection[str] = (),
    only: Collection[tuple[str, str]] | None = None,
    extra: Mapping[str, object] | None = None,
) -> Plugins:
    """Find all installed plugins, and load those that may be needed. Never raises.

    Args:
        backend: Import this backend only; the others are SKIPPED. None: import all, to probe them.
        disabled: Plugins not to import, as ``name`` or ``distribution:name``.
        only: Import only these, as (group, name); the others are SKIPPED. Empty: import nothing.
        extra: Backends beside the installed ones, by name: for tests.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hooks)
    found = [*_built_in(extra or {}), *_installed()]
    conflicts = _conflicts(found, disabled)
    records: list[PluginRecord] = []
    for plugin in sorted(found, key=lambda p: (p.group, p.name, p.dist)):
        if _is_disabled(plugin, disabled):
            reason = "named in --disable-plugin"
            records.append(
                plugin.record(State.DISABLED, reason=reason, remedy="Drop it from that list.")
            )
        elif plugin.group == BACKENDS and backend not in (None, plugin.name):
            records.append(plugin.record(State.SKIPPED, reason=f"--backend {backend} was asked"))
        elif (plugin.group, plugin.name) in conflicts:
            records.append(_conflict(plugin, conflicts[plugin.group, plugin.name]))
        elif only is not None and (plugin.group, plugin.name) not in only:
            records.append(plugin.record(State.SKIPPED, reason="not asked for"))
        else:
            records.append(_load(manager, plugin))
    return Plugins(tuple(records), manager)


def _built_in(extra: Mapping[str, object]) -> list[_Found]:
    from headstock import __version__

    built_in = _Found(REFERENCE, BACKENDS, PROJECT, __version__)
    return [built_in, *(_Found(n, BACKENDS, "extra", "0", plugin=p) for n, p in extra.items())]


def _installed() -> Iterable[_Found]:
    for each in installed_points(BACKENDS, PLUGINS):
        yield _Found(each.point.name, each.group, each.dist, each.version, each.point)


def _is_disabled(plugin: _Found, disabled: Collection[str]) -> bool:
    if plugin.name in disabled and plugin.entry_point is not None:
        return True
    return f"{plugin.dist}:{plugin.name}" in disabled


def _conflicts(
    found: Iterable[_Found], disabled: Collection[str]
) -> dict[tuple[str, str], list[str]]:
    """Return the distributions that bring the same name, for names that several bring."""
    dists: dict[tuple[str, str], list[str]] = {}
    for plugin in found:
        if not _is_disabled(plugin, disabled):
            dists.setdefault((plugin.group, plugin.name), []).append(plugin.dist)
    return {key: sorted(names) for key, names in dists.items() if len(names) > 1}


def _conflict(plugin: _Found, dists: list[str]) -> PluginRecord:
    return plugin.record(
        State.CONFLICT,
        reason=f"{' and '.join(dists)} both bring a plugin {plugin.name!r}",
        remedy=f"Uninstall one, or pass --disable-plugin {dists[0]}:{plugin.name} for the other.",
    )


def _load(manager: pluggy.PluginManager, found: _Found) -> PluginRecord:
    reinstall = f"Reinstall {found.dist}, or pass --disable-plugin {found.name}."
    loaded = guarded(found.load)
    if isinstance(loaded, Failure):
        return found.record(State.FAILED, reason=loaded.reason, remedy=reinstall)
    api: object = getattr(loaded.value, "HOOK_API", None)
    refusal = _refusal(api, found.dist)
    if refusal is not None:
        reason, remedy = refusal
        declared = api if _is_api(api) else None
        return found.record(State.INCOMPATIBLE, reason=reason, remedy=remedy, api=declared)
    registered = guarded(lambda: _register(manager, found, loaded.value))
    reason = registered.reason if isinstance(registered, Failure) else registered.value
    if reason is not None:
        return found.record(State.FAILED, reason=reason, remedy=reinstall, api=api)
    return found.record(State.LOADED, api=api)


def _is_api(api: object) -> bool:
    match api:
        case (int(), int()):
            return True
        case _:
            return False


def _refusal(api: object, dist: str) -> tuple[str, str] | None:
    """Return reason and remedy when a plugin of ``api`` cannot be loaded here."""
    match api:
        case (int(major), int(minor)):
            pass
        case _:
            reason = f"it declares HOOK_API = {api!r}, which is no (major, minor)"
            return reason, f"Set HOOK_API = {HOOK_API} in the plugin."
    have = f"this Headstock has {HOOK_API[0]}.{HOOK_API[1]}"
    if (major, minor) > HOOK_API:
        return f"it needs hook API {major}.{minor}, {have}", "Upgrade headstock."
    if major < OLDEST_MAJOR:
        return f"it was written for hook API {major}.{minor}, {have}", f"Upgrade {dist}."
    return None


def _register(manager: pluggy.PluginManager, found: _Found, plugin: object) -> str | None:
    """Register ``plugin``, or say which of its hooks is not ours and leave nothing behind."""
    key = f"{found.group}:{found.name}"
    try:
        manager.register(plugin, key)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        manager.unregister(name=key)
        return " ".join(str(error).split())  # pluggy spreads its message over lines
    return None


def _broken(reason: str, record: PluginRecord) -> Probe:
    return Probe(
        status=Status.BROKEN,
        reason=reason,
        remedy=f"Reinstall {record.dist}, or pass --disable-plugin {record.name}.",
    )
