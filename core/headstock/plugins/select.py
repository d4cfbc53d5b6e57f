"""Which backend serves: the one that was asked for, or the best one that can."""

from __future__ import annotations

from headstock.errors import ConfigError, PluginError, did_you_mean
from headstock.plugins.chosen import Chosen
from headstock.plugins.loader import WRONG, PluginRecord, Plugins, State
from headstock.plugins.probe import Probe, Status

Probed = tuple[PluginRecord, Probe]


def select(plugins: Plugins, wanted: str | None = None) -> Chosen:
    """Choose the backend to serve with.

    Args:
        plugins: What :func:`~headstock.plugins.loader.discover` found.
        wanted: ``--backend``. It is used or refused, never replaced.

    Raises:
        ConfigError: ``wanted`` does not exist or has no hardware here; or two are equally good.
        PluginError: ``wanted``, or a better backend than any that works, is broken.
    """
    if wanted is not None:
        return _asked_for(plugins, wanted)
    probed = probe_all(plugins)
    record, probe = best_of(probed)
    return Chosen(record, probe, plugins, _notes(plugins, probed))


def best_of(probed: list[Probed]) -> Probed:
    """Return the backend that serves when none is asked for.

    Raises:
        ConfigError: Two are equally good.
        PluginError: None works, or one better than all that work is broken.
    """
    usable = [(r, p) for r, p in probed if p.status is Status.AVAILABLE and p.is_default]
    best_score = max((p.score for _, p in usable), default=-1)
    _refuse_broken(probed, best_score)
    best = [(r, p) for r, p in usable if p.score == best_score]
    if not best:
        raise PluginError(
            "No backend can be used here, not even the built-in one.",
            remedy="Reinstall headstock; `headstock backends` shows each one's reason.",
        )
    if len(best) > 1:
        names = " and ".join(r.name for r, _ in best)
        raise ConfigError(
            f"Backends {names} are equally good here (score {best_score}).",
            remedy=f"Say which: --backend {best[0][0].name}.",
        )
    return best[0]


def probe_all(plugins: Plugins) -> list[Probed]:
    """Probe every loaded backend; highest score first, then by name."""
    probed = [(r, plugins.probe(r)) for r in plugins.backends if r.state is State.LOADED]
    return sorted(probed, key=lambda pair: (-pair[1].score, pair[0].name))


def _asked_for(plugins: Plugins, wanted: str) -> Chosen:
    records = [r for r in plugins.backends if r.name == wanted]
    if not records:
        names = sorted({r.name for r in plugins.backends})
        raise ConfigError(
            f"backend is {wanted!r}, which is not installed.{did_you_mean(wanted, names)}",
            remedy=f"Installed: {', '.join(names)}.",
        )
    record = next((r for r in records if r.state is State.LOADED), records[0])
    if record.state is not State.LOADED:
        raise PluginError(
            f"Backend {wanted!r} ({record.dist} {record.version}) is {record.state.value}:"
            f" {record.reason}.",
            remedy=record.remedy or f"Discover with backend={wanted!r}.",
        )
    probe = plugins.probe(record)
    if probe.status is not Status.AVAILABLE:
        kind = PluginError if probe.status is Status.BROKEN else ConfigError
        raise kind(
            f"Backend {wanted!r} is {probe.status.value}: {probe.reason}.",
            remedy=probe.remedy or "Drop --backend to serve with what is here.",
        )
    return Chosen(record, probe, plugins)


def _refuse_broken(probed: list[Probed], best_score: int) -> None:
    """Stop when a backend better than all that work is broken: hardware must not idle unnoticed."""
    for record, probe in probed:
        if probe.status is Status.BROKEN and probe.score > best_score:
            raise PluginError(
                f"Backend {record.name!r} found its hardware and cannot use it: {probe.reason}.",
                remedy=f"{probe.remedy or 'Repair it.'} Or pass --backend reference.",
            )


def _notes(plugins: Plugins, probed: list[Probed]) -> tuple[str, ...]:
    """Say what is here and does not serve: hardware that lacks its extra, plugins that failed."""
    unused = [
        f"{r.name} is not used: {p.reason}. {p.remedy}".rstrip()
        for r, p in probed
        if p.status is Status.BROKEN or (p.status is Status.ABSENT and p.remedy)
    ]
    wrong = [
        f"plugin {r.name} ({r.dist}) is {r.state.value}: {r.reason}. {r.remedy}".rstrip()
        for r in plugins.records
        if r.state in WRONG
    ]
    return (*unused, *wrong)
