"""Examine this installation: every plugin in a process of its own, then the device and its ops.

Exit codes: 0 all well, 1 nothing could serve, 2 something is broken.
"""

from __future__ import annotations

import argparse

import msgspec

from headstock.cli.backends import describe_devices
from headstock.cli.table import format_table
from headstock.config.environment import child_environment
from headstock.config.exclusions import EXCLUSIONS
from headstock.plugins.doctor import Examined, Report, examine_all
from headstock.plugins.examine import ChosenOp
from headstock.plugins.hooks import Finding


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock doctor``."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--backend", metavar="NAME", help="open this backend's device")
    parser.add_argument(
        "--device-index", type=int, default=0, metavar="N", help="which of its devices"
    )
    parser.add_argument(
        "--disable-plugin", action="append", default=[], metavar="NAME", help="leave one out"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the report; return its exit code."""
    report = examine_all(
        child_environment,
        disabled=arguments.disable_plugin,
        backend=arguments.backend,
        index=arguments.device_index,
    )
    if arguments.json:
        encoded = msgspec.json.encode(
            {"exit_code": report.exit_code, **msgspec.to_builtins(report)}
        )
        print(msgspec.json.format(encoded, indent=2).decode())
    else:
        print(format_report(report))
    return report.exit_code


def format_report(report: Report) -> str:
    """Return the report for people."""
    torch = "not installed" if report.torch is None else " ".join(_pairs(report.torch))
    lines = [f"headstock {report.headstock}, Python {report.python}, torch {torch}", ""]
    for examined in report.plugins:
        lines += _plugin_lines(examined)
    lines += ["", f"would use: {report.chosen or 'nothing'}"]
    if report.trouble:
        lines.append(f"  BROKEN  its device: {report.trouble}")
    lines += [f"drafters: {', '.join(drafter.name for drafter in report.drafters) or 'none'}"]
    if report.ops:
        lines += ["", format_table(("op", "spec", "provider", "passed over"), _op_rows(report.ops))]
    rows = [(entry.feature, entry.other, entry.effect, entry.reason) for entry in EXCLUSIONS]
    lines += ["", format_table(("feature", "excluded by", "then it is", "why"), rows)]
    return "\n".join(lines)


def _pairs(torch: dict[str, str]) -> list[str]:
    return [value if name == "version" else f"{name}={value}" for name, value in torch.items()]


def _plugin_lines(examined: Examined) -> list[str]:
    record, probe = examined.record, examined.probe
    mark = "BROKEN" if examined.is_broken else "ok" if examined.is_available else "-"
    state = probe.status.value if probe else record.state.value
    text = (describe_devices(probe) or probe.reason) if probe else record.reason
    remedy = probe.remedy if probe else record.remedy
    found = f"{state}; {text}" if text else state
    lines = [f"  {mark:<6}  {record.name} ({record.dist} {record.version}): {found}"]
    if examined.trouble:
        lines.append(f"          {examined.trouble}")
    if remedy:
        lines.append(f"          -> {remedy}")
    for finding in examined.findings:
        lines += _finding_lines(finding)
    return lines


def _finding_lines(finding: Finding) -> list[str]:
    mark = "ok" if finding.is_ok else "BROKEN"
    lines = [f"          {mark:<6}  {finding.subject}: {finding.text}"]
    return [*lines, f"                  -> {finding.remedy}"] if finding.remedy else lines


def _op_rows(ops: list[ChosenOp]) -> list[tuple[str, str, str, str]]:
    return [
        (o.op, o.spec, o.provider, "; ".join(f"{who}: {why}" for who, why in o.passed_over) or "-")
        for o in ops
    ]
