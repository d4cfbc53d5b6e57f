"""Discovery: every plugin behind its own guard."""

from __future__ import annotations

from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from headstock.plugins import loader
from headstock.plugins.hooks import HOOK_API, hookimpl
from headstock.plugins.loader import State, discover
from headstock.plugins.probe import Probe, Status

FINE = Probe(status=Status.AVAILABLE, reason="found one", score=7)


def backend(probe: Any = FINE, api: Any = HOOK_API) -> Any:
    @hookimpl
    def headstock_probe() -> Any:
        if isinstance(probe, BaseException):
            raise probe
        return probe

    @hookimpl
    def headstock_device(index: int) -> Any:
        return f"device {index}"

    return module(HOOK_API=api, headstock_probe=headstock_probe, headstock_device=headstock_device)


def module(**names: Any) -> ModuleType:
    made = ModuleType("made_for_a_test")
    vars(made).update(names)
    return made


def found(name: str, plugin: Any, **options: Any) -> loader.PluginRecord:
    plugins = discover(extra={name: plugin}, **options)
    return next(r for r in plugins.backends if r.name == name)


class FakeEntryPoint:
    """An installed entry point: loading it returns ``plugin``, or raises it."""

    def __init__(self, name: str, dist: str, plugin: Any) -> None:
        self.name, self._plugin = name, plugin
        self.dist = SimpleNamespace(name=dist, version="1.2")

    def load(self) -> Any:
        if isinstance(self._plugin, BaseException):
            raise self._plugin
        return self._plugin


def install(monkeypatch: pytest.MonkeyPatch, *entry_points: FakeEntryPoint) -> None:
    groups = {loader.BACKENDS: list(entry_points)}
    found = SimpleNamespace(select=lambda group: groups.get(group, []))
    monkeypatch.setattr(metadata, "entry_points", lambda: found)


def test_a_good_backend_is_loaded() -> None:
    assert found("toy", backend()).state is State.LOADED


@pytest.mark.parametrize(
    "error", [ImportError("no lib"), SystemExit(3), RuntimeError("two\nlines"), AttributeError()]
)
def test_a_broken_import_is_a_record_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    install(monkeypatch, FakeEntryPoint("bad", "dist-bad", error))
    record = next(r for r in discover().backends if r.name == "bad")
    assert record.state is State.FAILED
    said = str(error).split("\n")[0]
    kind = type(error).__name__
    assert record.reason.startswith(f"{kind}: {said} (in " if said else f"{kind} (in ")
    assert "\n" not in record.reason
    assert "dist-bad" in record.remedy


def test_a_broken_import_stops_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        FakeEntryPoint("bad", "a", ImportError("x")),
        FakeEntryPoint("good", "b", backend()),
    )
    states = {r.name: r.state for r in discover().backends}
    assert (states["bad"], states["good"]) == (State.FAILED, State.LOADED)


@pytest.mark.parametrize(
    "api", [None, (HOOK_API[0] + 1, 0), (HOOK_API[0], HOOK_API[1] + 1), (1, 0), "2.0", (2,)]
)
def test_another_hook_api_is_incompatible(api: Any) -> None:
    record = found("toy", backend(api=api))
    assert record.state is State.INCOMPATIBLE
    assert record.remedy


def test_an_unknown_hook_is_refused_by_name() -> None:
    plugin = backend()

    @hookimpl
    def headstock_prob() -> None: ...

    plugin.headstock_prob = headstock_prob
    record = found("toy", plugin)
    assert record.state is State.FAILED
    assert "headstock_prob" in record.reason


def test_an_unknown_argument_is_refused_by_name() -> None:
    plugin = backend()

    @hookimpl
    def headstock_device(gpu: int) -> None: ...

    plugin.headstock_device = headstock_device
    record = found("toy", plugin)
    assert record.state is State.FAILED
    assert "gpu" in record.reason


def test_a_refused_plugin_leaves_no_hooks_behind() -> None:
    plugin = backend()

    @hookimpl
    def headstock_prob() -> None: ...

    plugin.headstock_prob = headstock_prob
    plugins = discover(extra={"bad": plugin, "good": backend()})
    assert {r.name: r.state for r in plugins.backends}["good"] is State.LOADED


def test_a_name_from_two_distributions_is_a_conflict_that_names_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(
        monkeypatch,
        FakeEntryPoint("toy", "dist-b", backend()),
        FakeEntryPoint("toy", "dist-a", backend()),
    )
    records = [r for r in discover().backends if r.name == "toy"]
    assert [r.state for r in records] == [State.CONFLICT, State.CONFLICT]
    assert "dist-a and dist-b" in records[0].reason


def test_disabling_one_side_settles_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        FakeEntryPoint("toy", "dist-a", backend()),
        FakeEntryPoint("toy", "dist-b", backend()),
    )
    records = [r for r in discover(disabled=["dist-a:toy"]).backends if r.name == "toy"]
    assert {r.dist: r.state for r in records} == {"dist-a": State.DISABLED, "dist-b": State.LOADED}


def test_a_disabled_plugin_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeEntryPoint("bad", "a", AssertionError("imported")))
    assert next(r for r in discover(disabled=["bad"]).backends if r.name == "bad").state is (
        State.DISABLED
    )


def test_with_a_backend_named_no_other_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        FakeEntryPoint("other", "a", AssertionError("imported")),
        FakeEntryPoint("toy", "b", backend()),
    )
    states = {r.name: r.state for r in discover(backend="toy").backends}
    assert states == {
        "other": State.SKIPPED,
        "reference": State.SKIPPED,
        "toy": State.LOADED,
    }


def test_a_probe_that_raises_is_broken() -> None:
    plugins = discover(extra={"toy": backend(ValueError("driver 3"))})
    probe = plugins.probe(next(r for r in plugins.backends if r.name == "toy"))
    assert probe.status is Status.BROKEN
    assert "ValueError: driver 3" in probe.reason


def test_a_probe_that_returns_something_else_is_broken() -> None:
    plugins = discover(extra={"toy": backend("yes")})
    probe = plugins.probe(next(r for r in plugins.backends if r.name == "toy"))
    assert probe.status is Status.BROKEN


def test_a_backend_without_a_device_hook_is_never_available() -> None:
    plugin = backend()
    del plugin.headstock_device
    plugins = discover(extra={"toy": plugin})
    probe = plugins.probe(next(r for r in plugins.backends if r.name == "toy"))
    assert probe.status is Status.ABSENT
    assert probe.reason.startswith("probe only")


def test_a_hook_of_one_plugin_is_called_alone() -> None:
    plugins = discover(extra={"a": backend(), "b": backend()})
    record = next(r for r in plugins.backends if r.name == "b")
    opened = plugins.call(record, "headstock_device", index=3, num_threads=0, options={})
    assert opened == ["device 3"]


def test_installed_backends_all_have_a_record() -> None:
    names = {r.name for r in discover().backends}
    assert names >= {"reference", "cuda", "rocm", "tpu", "ascend", "xeon"}
