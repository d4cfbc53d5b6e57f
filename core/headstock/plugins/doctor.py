"""The doctor: plugins examined in processes of their own, with a time limit.

Those of this project share one, as long as it ends well; every other has one to itself.

Loads no plugin and no tensor library itself, so that it works when one of them hangs or crashes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from signal import Signals

import msgspec

from headstock.errors import ConfigError, did_you_mean
from headstock.plugins.examine import ChosenOp, Found, Line, Loaded, NamedDrafter, Probed
from headstock.plugins.hooks import PROJECT, Finding
from headstock.plugins.installed import torch_build
from headstock.plugins.loader import BACKENDS, WRONG, PluginRecord, State, discover
from headstock.plugins.probe import Probe, Status

PLUGIN_LIMIT_S = 15.0
DEVICE_LIMIT_S = 120.0
OK, NOTHING_USABLE, BROKEN = 0, 1, 2

Environ = Callable[..., dict[str, str]]


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin, and all that is known of it.

    Attributes:
        record: How far loading came.
        probe: What its probe said; None when it did not come so far.
        findings: What its own doctor hook added.
        trouble: How its process ended, when it was not well.
    """

    record: PluginRecord
    probe: Probe | None = None
    findings: list[Finding] = []
    trouble: str = ""

    @property
    def is_available(self) -> bool:
        """Whether it is a backend that could serve."""
        return self.probe is not None and self.probe.status is Status.AVAILABLE

    @property
    def is_broken(self) -> bool:
        """Whether something must be repaired."""
        is_unwell = self.probe is not None and self.probe.status is Status.BROKEN
        return bool(self.trouble) or self.record.state in WRONG or is_unwell


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that the doctor found.

    Attributes:
        headstock: Version.
        python: Version.
        torch: Version and toolkits of the installed PyTorch, or None.
        plugins: Every one.
        chosen: The backend that would serve, or None.
        ops: Who computes what on its device.
        trouble: Why ``ops`` is not complete, or "".
        drafters: What ``--speculation`` can name.
    """

    headstock: str
    python: str
    torch: dict[str, str] | None
    plugins: list[Examined]
    chosen: str | None
    ops: list[ChosenOp]
    trouble: str
    drafters: list[NamedDrafter] = []

    @property
    def exit_code(self) -> int:
        """0 all well, 1 nothing could serve, 2 something is broken."""
        if self.chosen is None and not any(p.is_available for p in self.plugins):
            return NOTHING_USABLE
        has_bad_finding = any(not f.is_ok for p in self.plugins for f in p.findings)
        is_broken = any(p.is_broken for p in self.plugins) or bool(self.trouble) or has_bad_finding
        return BROKEN if is_broken else OK


def examine_all(
    environ: Environ, *, disabled: Collection[str] = (), backend: str | None = None, index: int = 0
) -> Report:
    """Examine this installation.

    Args:
        environ: Returns the environment for a subprocess, with changes by keyword.
        disabled: Plugins to leave out.
        backend: Open this one's device; the best available one when not given.
        index: Which of its devices.

    Raises:
        ConfigError: ``backend`` is not installed.
    """
    from headstock import __version__

    records = discover(disabled=disabled, only=()).records
    names = sorted({record.name for record in records if record.group == BACKENDS})
    if backend is not None and backend not in names:
        raise ConfigError(
            f"backend is {backend!r}, which is not installed.{did_you_mean(backend, names)}",
            remedy=f"Installed: {', '.join(names)}.",
        )
    # It imports the tensor library, which takes longest, while the plugins are examined.
    of_ops = Examination(["ops", str(index), *disabled], environ())
    try:
        examined = _examine_each(records, environ, "plugin")
        chosen = backend or _best(examined)
        lines, trouble = _opened(of_ops, chosen) if chosen else ([], "")
    finally:
        of_ops.stop()
    build = torch_build()
    return Report(
        headstock=__version__,
        python=sys.version.split()[0],
        torch=None if build is None else {"version": build.version, **build.toolkits},
        plugins=examined,
        chosen=chosen,
        ops=[line for line in lines if isinstance(line, ChosenOp)],
        drafters=[line for line in lines if isinstance(line, NamedDrafter)],
        trouble=trouble,
    )


@dataclass(frozen=True, slots=True)
class Foreign:
    """Which plugins of other distributions a start would load.

    Attributes:
        backend: The one that is asked for; None: all of them are loaded.
    """

    backend: str | None = None

    def __call__(self, record: PluginRecord) -> bool:
        """Say whether ``record`` is one of them."""
        is_left_out = record.group == BACKENDS and self.backend not in (None, record.name)
        return record.dist != PROJECT and not is_left_out

    def is_asked_for(self, record: PluginRecord) -> bool:
        """Say whether ``record`` is the backend that is asked for."""
        return record.group == BACKENDS and record.name == self.backend


def probe_each(
    environ: Environ,
    *,
    disabled: Collection[str] = (),
    only: Callable[[PluginRecord], bool] | None = None,
    limit_s: float | None = None,
) -> list[Examined]:
    """Load and probe plugins, each once and in a process of its own.

    Args:
        environ: Returns the environment for a subprocess, with changes by keyword.
        disabled: Plugins to leave out.
        only: Says which to examine; None: all.
        limit_s: For each; None: the doctor's own limit. Seconds.
    """
    records = discover(disabled=disabled, only=()).records
    chosen = [record for record in records if only is None or only(record)]
    return _examine_each(chosen, environ, "probe", limit_s) if chosen else []


def _examine_each(
    records: Sequence[PluginRecord], environ: Environ, what: str, limit_s: float | None = None
) -> list[Examined]:
    limit_s = PLUGIN_LIMIT_S if limit_s is None else limit_s
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        ours = [r for r in records if r.dist == PROJECT and r.state is State.SKIPPED]
        together = pool.submit(_examine_together, ours, environ, what, limit_s)
        jobs = {
            (r.group, r.name): pool.submit(_examine, r, environ, what, limit_s)
            for r in records
            if r not in ours
        }
        known = together.result()
        jobs |= {
            (r.group, r.name): pool.submit(_examine, r, environ, what, limit_s)
            for r in ours
            if (r.group, r.name) not in known
        }
        known |= {place: job.result() for place, job in jobs.items()}
    return [known[record.group, record.name] for record in records]


def _examine_together(
    records: Sequence[PluginRecord], environ: Environ, what: str, limit_s: float
) -> dict[tuple[str, str], Examined]:
    """Return what is known of plugins of this project, by group and name: none if one is unwell.

    A process for each costs more than all that they say. Where theirs does not end well, each is
    examined in its own, which tells whose fault it is.
    """
    if not records:
        return {}
    places = [part for record in records for part in (record.name, record.group)]
    examination = Examination([what, *places], environ(TORCH_DEVICE_BACKEND_AUTOLOAD="0"))
    lines, trouble = examination.finish(limit_s)
    parts: list[list[Line]] = []
    for line in lines:
        if isinstance(line, Loaded):
            parts.append([])
        parts[-1].append(line)
    found = [_examined(record, part, "") for record, part in zip(records, parts, strict=False)]
    if trouble or [f.record.name for f in found] != [record.name for record in records]:
        return {}
    return {(each.record.group, each.record.name): each for each in found}


def _examine(record: PluginRecord, environ: Environ, what: str, limit_s: float) -> Examined:
    if record.state is not State.SKIPPED:
        return Examined(record=record)
    # PyTorch's autoloading of backends could crash on import, before our own guard is up.
    environment = environ(TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    examination = Examination([what, record.name, record.group], environment)
    lines, trouble = examination.finish(limit_s)
    return _examined(record, lines, trouble)


def _examined(record: PluginRecord, lines: Sequence[Line], trouble: str) -> Examined:
    """Return what the lines on a plugin say."""
    loaded = [line.record for line in lines if isinstance(line, Loaded)]
    probes = [line.probe for line in lines if isinstance(line, Probed)]
    return Examined(
        record=loaded[0] if loaded else record,
        probe=probes[0] if probes else None,
        findings=[line.finding for line in lines if isinstance(line, Found)],
        trouble=trouble,
    )


def _opened(examination: Examination, backend: str) -> tuple[list[Line], str]:
    lines, trouble = examination.finish(DEVICE_LIMIT_S, backend)
    failures = [line.finding.text for line in lines if isinstance(line, Found)]
    troubles = [*failures, *([trouble] if trouble else [])]
    return lines, "; ".join(troubles)


def _best(examined: Sequence[Examined]) -> str | None:
    usable = [(e.probe.score, e.record.name) for e in examined if e.probe and e.is_available]
    return max(usable)[1] if usable else None


class Examination:
    """:mod:`headstock.plugins.examine` at work on ``what``, in a process of its own."""

    def __init__(self, what: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "headstock.plugins.examine", *what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
        )

    def finish(self, limit_s: float, said: str = "") -> tuple[list[Line], str]:
        """Wait for it.

        Args:
            limit_s: How long.
            said: Written to its standard input.

        Returns:
            The lines it wrote, and how it ended when that was not well, else "".
        """
        process = self._process
        try:
            out, err = process.communicate(said.encode(), timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return _decode(out), f"it did not answer within {limit_s:.0f} s"
        if process.returncode == 0:
            return _decode(out), ""
        last = err.decode(errors="replace").strip().splitlines()[-2:]
        how = _end_of(process.returncode)
        return _decode(out), f"its process {how}: {' '.join(last)}".rstrip(": ")

    def stop(self) -> None:
        """End it; nothing of it is read."""
        self._process.kill()
        self._process.communicate()


def _end_of(code: int) -> str:
    """Return how a process ended: by which signal, or with which code."""
    names = {signal.value: signal.name for signal in Signals}
    return f"was ended by {names.get(-code, -code)}" if code < 0 else f"ended with code {code}"


def _decode(out: bytes) -> list[Line]:
    decoder = msgspec.json.Decoder(Line)
    return [decoder.decode(line) for line in out.splitlines() if line.endswith(b"}")]
