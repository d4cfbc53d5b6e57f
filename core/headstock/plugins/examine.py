"""One examination of the doctor, in a process of its own: ``python -m …examine WHAT …``.

A plugin may hang, print, or kill its process; then only this process is lost. What was found until
then has been written, a JSON line each, to what was standard output when the process began.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING, cast

import msgspec

from headstock.plugins.drafters import DrafterRegistry
from headstock.plugins.guard import Failure, guarded
from headstock.plugins.hooks import PROJECT, Finding
from headstock.plugins.loader import BACKENDS, PluginRecord, Plugins, State, discover
from headstock.plugins.probe import Probe
from headstock.plugins.select import select

if TYPE_CHECKING:
    from headstock.ops.base import Implementation, Spec


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """What loading the plugin came to."""

    record: PluginRecord


class Probed(msgspec.Struct, frozen=True, tag=True):
    """What its probe said."""

    probe: Probe


class Found(msgspec.Struct, frozen=True, tag=True):
    """A line that its ``headstock_doctor`` added."""

    finding: Finding


class ChosenOp(msgspec.Struct, frozen=True, tag=True):
    """Who computes an op on the opened device, and who was passed over, with the reason."""

    op: str
    spec: str
    provider: str
    passed_over: list[tuple[str, str]]


class NamedDrafter(msgspec.Struct, frozen=True, tag=True):
    """What ``--speculation`` can name, and where it is."""

    name: str
    place: str


Line = Loaded | Probed | Found | ChosenOp | NamedDrafter


def examine_plugin(group: str, name: str, *, is_questioned: bool = True) -> Iterable[Line]:
    """Load and probe one plugin; ask its own doctor where it ``is_questioned``."""
    plugins = discover(only=[(group, name)])
    for record in plugins.records:
        if (record.group, record.name) != (group, name):
            continue
        yield Loaded(record)
        if record.state is State.LOADED:
            if group == BACKENDS:
                yield Probed(plugins.probe(record))
            if is_questioned:
                yield from _findings(plugins, record)


def examine_ops(
    backend: Callable[[], str], index: int, disabled: Sequence[str] = ()
) -> Iterable[Line]:
    """Open the device and choose a provider for every op, in the dtype that it is asked in.

    Drafters that plugins name are listed, too.

    Args:
        backend: Returns the backend's name; called once all that does not depend on it is done.
        index: Which of its devices.
        disabled: Plugins to leave out.
    """
    from headstock.ops import load_all_ops
    from headstock.ops.base import OpRegistry, Resolver
    from headstock.plugins.models import ModelRegistry
    from headstock.plugins.resolved import describe_spec

    ops = load_all_ops()
    name = backend()
    chosen = select(discover(backend=name, disabled=disabled), name)
    device = chosen.open_device(index, 0)
    registry: OpRegistry = chosen.offer_ops(device)
    resolver = Resolver(registry, device)
    dtype = str(device.default_dtype or "torch.float32").removeprefix("torch.")
    models = ModelRegistry.of_plugins(chosen.plugins)
    for failure in (*chosen.failures, *models.failures):
        remedy = "Report it to its authors, or leave it out with --disable-plugin."
        yield Found(Finding(subject="plugins", is_ok=False, text=failure, remedy=remedy))
    for architecture in models.names_beside(PROJECT):
        guarded(partial(models.load, architecture))  # they may declare ops; our models have none
    for name in sorted(ops):
        offered = registry.offered(ops[name])
        dtypes = {each for i in offered for each in i.requires.dtypes}
        # Ops around the model work on integers, whatever the model computes in.
        asked = dtype if not dtypes or dtype in dtypes else min(dtypes)
        for spec in _named(offered, asked):
            resolver.resolve(ops[name], spec)
    for resolution in resolver.resolutions:
        yield ChosenOp(
            resolution.op,
            describe_spec(resolution.spec),
            resolution.provider,
            list(resolution.passed_over),
        )
    drafters = DrafterRegistry()
    chosen.name_drafters(drafters)
    for drafter in drafters.names:
        yield NamedDrafter(drafter, drafters.place(drafter) or "")
    device.close()


def main(argv: Sequence[str]) -> int:
    """Examine what ``argv`` names and write the lines."""
    # It imports, writes and ends: looking for garbage takes a seventh of a tensor library's import.
    gc.disable()
    out = _keep_stdout()
    what, *rest = argv
    if what == "ops":
        index, *disabled = rest
        lines = examine_ops(sys.stdin.read, int(index), disabled)
    else:
        places = zip(rest[::2], rest[1::2], strict=True)
        lines = (
            line
            for name, group in places
            for line in examine_plugin(group, name, is_questioned=what == "plugin")
        )
    for line in lines:
        out.write(msgspec.json.encode(line, enc_hook=_encode) + b"\n")
        out.flush()
    return 0


def _named(offered: Iterable[Implementation], dtype: str) -> Iterator[Spec]:
    """Yield a spec for each name that somebody requires, so that whoever takes it is chosen."""
    from headstock.ops.base import Spec

    asked = [
        Spec(dtype=dtype, **{what: name})
        for what in ("layout", "page_dtype", "page_format", "architecture")
        for name in sorted({n for i in offered for n in getattr(i.requires, f"{what}s")})
    ]
    yield from asked or [Spec(dtype=dtype)]


def _findings(plugins: Plugins, record: PluginRecord) -> Iterable[Line]:
    answers = guarded(lambda: [list(a) for a in plugins.call(record, "headstock_doctor")])
    if isinstance(answers, Failure):
        remedy = f"Report it to {record.dist}."
        yield Found(
            Finding(subject="headstock_doctor", is_ok=False, text=answers.reason, remedy=remedy)
        )
        return
    for answer in answers.value:
        yield from (Found(finding) for finding in cast("list[Finding]", answer))


def _encode(value: object) -> object:
    """Write what only a plugin's own mistake puts into a record, such as HOOK_API = [1]."""
    return repr(value)


def _keep_stdout() -> IO[bytes]:
    """Return the standard output, and send all other prints to standard error."""
    kept = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return kept


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
