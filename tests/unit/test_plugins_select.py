"""Choosing the backend that serves."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from headstock.errors import ConfigError, HeadstockError, PluginError
from headstock.plugins.chosen import backend_options
from headstock.plugins.hooks import HOOK_API, hookimpl
from headstock.plugins.loader import Plugins, discover
from headstock.plugins.probe import Probe, Status
from headstock.plugins.select import select

# No machine that runs these tests may decide them: its own backends are left out.
INSTALLED = ["cuda", "rocm", "tpu", "ascend", "xeon"]


def backend(status: Status, score: int, reason: str = "because", remedy: str = "") -> Any:
    @hookimpl
    def headstock_probe() -> Probe:
        return Probe(status=status, score=score, reason=reason, remedy=remedy)

    @hookimpl
    def headstock_device(index: int) -> Any:
        raise OSError(f"no device {index}")

    made = ModuleType("made_for_a_test")
    vars(made).update(
        HOOK_API=HOOK_API, headstock_probe=headstock_probe, headstock_device=headstock_device
    )
    return made


def with_backends(wanted: str | None = None, **backends: Any) -> Plugins:
    return discover(backend=wanted, disabled=INSTALLED, extra=backends)


def test_the_highest_score_that_is_available_serves() -> None:
    plugins = with_backends(
        slow=backend(Status.AVAILABLE, 10),
        fast=backend(Status.AVAILABLE, 100),
        gone=backend(Status.ABSENT, 200),
    )
    assert select(plugins).name == "fast"


def test_a_broken_backend_that_would_be_better_stops_with_its_remedy() -> None:
    plugins = with_backends(
        slow=backend(Status.AVAILABLE, 10),
        fast=backend(Status.BROKEN, 100, "driver too old", "Update the driver."),
    )
    with pytest.raises(PluginError) as caught:
        select(plugins)
    assert "driver too old" in caught.value.problem
    assert caught.value.remedy == "Update the driver. Or pass --backend reference."


def test_a_broken_backend_that_would_be_worse_is_a_note() -> None:
    plugins = with_backends(
        slow=backend(Status.BROKEN, 10, "torn"), fast=backend(Status.AVAILABLE, 100)
    )
    chosen = select(plugins)
    assert any("torn" in note for note in chosen.notes)


def test_hardware_without_its_extra_is_a_note_with_the_install_line() -> None:
    plugins = with_backends(
        slow=backend(Status.AVAILABLE, 10),
        fast=backend(Status.ABSENT, 100, "1 device, plain torch", "pip install 'headstock[fast]'"),
    )
    assert any("headstock[fast]" in note for note in select(plugins).notes)


def test_absent_hardware_without_a_remedy_is_no_note() -> None:
    plugins = with_backends(
        slow=backend(Status.AVAILABLE, 10), fast=backend(Status.ABSENT, 100, "no such device")
    )
    assert not any("no such device" in note for note in select(plugins).notes)


def test_two_equally_good_backends_are_an_error_that_names_both() -> None:
    plugins = with_backends(a=backend(Status.AVAILABLE, 50), b=backend(Status.AVAILABLE, 50))
    with pytest.raises(ConfigError, match="a and b"):
        select(plugins)


def test_a_named_backend_is_taken_though_another_is_better() -> None:
    plugins = with_backends(a=backend(Status.AVAILABLE, 50), b=backend(Status.AVAILABLE, 60))
    assert select(plugins, "a").name == "a"


@pytest.mark.parametrize(
    ("status", "error"), [(Status.ABSENT, ConfigError), (Status.BROKEN, PluginError)]
)
def test_a_named_backend_that_cannot_serve_is_refused(
    status: Status, error: type[HeadstockError]
) -> None:
    plugins = with_backends("a", a=backend(status, 50, "cable is out", "Plug it in."))
    with pytest.raises(error, match="cable is out") as caught:
        select(plugins, "a")
    assert caught.value.remedy == "Plug it in."


def test_an_unknown_backend_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'reference'"):
        select(with_backends(), "referense")


def test_a_named_backend_that_did_not_load_is_refused_with_its_reason() -> None:
    with pytest.raises(PluginError, match="HOOK_API"):
        select(with_backends("a", a=ModuleType("empty")), "a")


def test_an_error_in_a_device_hook_names_the_plugin() -> None:
    chosen = select(with_backends("a", a=backend(Status.AVAILABLE, 50)), "a")
    with pytest.raises(PluginError, match="headstock_device of plugin 'a'"):
        chosen.open_device(0, 0)


def test_a_backend_that_must_be_named_does_not_serve_by_itself() -> None:
    plugin = backend(Status.AVAILABLE, 50)
    answer = plugin.headstock_probe()
    plugin.headstock_probe = hookimpl(lambda: replace(answer, is_default=False))
    assert select(with_backends(a=plugin)).name == "reference"
    assert select(with_backends("a", a=plugin), "a").name == "a"


def test_options_go_to_the_backend_that_takes_them() -> None:
    plugin = backend(Status.AVAILABLE, 50)
    chosen = select(with_backends("a", a=plugin), "a")
    with pytest.raises(ConfigError, match="backend 'a' has no options"):
        chosen.open_device(0, 0, {"mesh": "4"})

    @hookimpl
    def headstock_device(index: int, options: dict[str, str]) -> Any:
        return (index, options)

    plugin.headstock_device = headstock_device
    chosen = select(with_backends("a", a=plugin), "a")
    assert chosen.open_device(2, 0, {"mesh": "4"}) == (2, {"mesh": "4"})


@pytest.mark.parametrize("flags", [["mesh"], ["=4"], ["mesh="], ["mesh=1", "mesh=2"]])
def test_options_are_written_name_and_value(flags: list[str]) -> None:
    assert backend_options(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(ConfigError, match="backend_option is"):
        backend_options(flags)
