"""List the installed backends, what each found here, and which one would serve.

Each plugin is loaded and probed once, in a process of its own with a time limit: one that crashes
or hangs is listed as such. Loads no tensor library: it works when that is what is broken.
"""

from __future__ import annotations

import argparse

from headstock.cli.table import format_table
from headstock.config.environment import child_environment
from headstock.errors import HeadstockError
from headstock.observe.units import GIB
from headstock.plugins.doctor import Examined, probe_each
from headstock.plugins.probe import Probe, Status
from headstock.plugins.select import best_of

HEADER = ("name", "from", "api", "state", "score", "devices / reason")


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock backends``."""
    parser.add_argument(
        "--disable-plugin", action="append", default=[], metavar="NAME", help="leave one out"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table and the choice."""
    examined = probe_each(child_environment, disabled=arguments.disable_plugin)
    print(format_table(HEADER, [row for one in examined for row in _rows(one)]))
    try:
        probed = [(e.record, e.probe) for e in examined if e.probe is not None]
        print(f"-> would use: {best_of(probed)[0].name}")
    except HeadstockError as error:
        print(f"-> would not start: {error.problem}\n   {error.remedy}")
    return 0


def _rows(examined: Examined) -> list[tuple[str, ...]]:
    """Return the plugin's line, and one with the remedy where there is one."""
    record = examined.record
    state, score, text, remedy = _state(examined)
    api = f"{record.api[0]}.{record.api[1]}" if record.api else "-"
    first = (record.name, f"{record.dist} {record.version}", api, state, score, text)
    return [first, ("", "", "", "", "", f"fix: {remedy}")] if remedy else [first]


def _state(examined: Examined) -> tuple[str, str, str, str]:
    record, probe = examined.record, examined.probe
    if examined.trouble:
        remedy = f"Reinstall {record.dist}, or pass --disable-plugin {record.name}."
        return "BROKEN", "-", f"when it is loaded, {examined.trouble}", remedy
    if probe is None:
        return record.state.value, "-", record.reason, record.remedy
    state = "BROKEN" if probe.status is Status.BROKEN else probe.status.value
    return state, str(probe.score), describe_devices(probe) or probe.reason, probe.remedy


def describe_devices(probe: Probe) -> str:
    """Return "2 x Name (arch, 80 GiB)" for each kind of device, or "" when it found none."""
    counts: dict[str, int] = {}
    for device in probe.devices if probe.status is Status.AVAILABLE else ():
        facts = [] if device.arch in device.name else [device.arch]
        if device.memory_bytes:
            facts.append(f"{device.memory_bytes / GIB:.0f} GiB")
        text = f"{device.name} ({', '.join(facts)})" if facts else device.name
        counts[text] = counts.get(text, 0) + 1
    return "; ".join(f"{n} x {text}" if n > 1 else text for text, n in counts.items())
