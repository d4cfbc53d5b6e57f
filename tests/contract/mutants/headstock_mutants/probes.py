"""Probes that promise what the page forbids. Importing this loads no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

PROBES: dict[str, Callable[[Any], Any]] = {}
TESTS = {
    "probe_imports_torch": "1_loading::the_probe_imports_no_vendor_library",
    "probe_is_slow": "1_loading::the_probe_is_quick",
    "probe_answers_otherwise_each_time": "1_loading::the_probe_answers_twice_alike",
    "probe_gives_no_reason": "1_loading::the_probe_says_available_or_why_not",
    "probe_lists_no_device": "1_loading::the_probe_says_available_or_why_not",
}
"""The test of the kit that sees each."""


def entered(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    PROBES[change.__name__] = change
    return change


@entered
def probe_imports_torch(probe):
    import torch

    assert torch
    return probe


@entered
def probe_is_slow(probe):
    time.sleep(2.2)
    return probe


@entered
def probe_answers_otherwise_each_time(probe):
    return replace(probe, reason=f"it is {time.monotonic_ns()}")


@entered
def probe_gives_no_reason(probe):
    return replace(probe, reason="")


@entered
def probe_lists_no_device(probe):
    return replace(probe, devices=())
