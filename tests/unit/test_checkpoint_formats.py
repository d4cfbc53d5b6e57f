"""Formats of quantised folders come by the hook, Headstock's own too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headstock.assemble.model_files import HOOK, installed_formats
from headstock.checkpoint.files import StoredTensor
from headstock.checkpoint.formats import Index, OwnReaders
from headstock.checkpoint.quantized import find_reader
from headstock.errors import PluginError, UnsupportedError
from headstock.plugins.hooks import hookimpl
from headstock.plugins.loader import discover
from headstock.plugins.places import ask_each
from headstock.plugins.quantization import QuantizationRegistry

QUANTIZED = {"quantization_config": {"quant_method": "mine"}}


def keep(index: Index, quantization: dict[str, Any]) -> dict[str, StoredTensor]:
    """Be a reader that renames."""
    return {f"{name}.{quantization['quant_method']}": tensor for name, tensor in index.items()}


def test_the_formats_of_headstock_come_by_the_hook() -> None:
    assert installed_formats().names == OwnReaders().names
    assert "awq" in OwnReaders().names


def test_without_its_plugin_no_format_of_headstock_is_known() -> None:
    assert installed_formats(["quantization"]).names == []


@pytest.mark.parametrize("method", OwnReaders().names)
def test_every_reader_of_headstock_imports(method: str) -> None:
    assert callable(installed_formats().load(method))


def test_a_plugin_s_reader_reads_what_it_named() -> None:
    formats = installed_formats()
    formats.add("mine", f"{__name__}:keep")
    tensor = StoredTensor(name="a", shape=(1,), dtype="float32", num_bytes=4, read=lambda *_: {})
    read = find_reader(Path("here"), QUANTIZED, lambda: formats)
    assert list(read({"a": tensor})) == ["a.mine"]


@pytest.mark.parametrize("config", [QUANTIZED, {"text_config": QUANTIZED}])
def test_a_format_that_no_plugin_reads_is_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="quantised by mine, which cannot be read yet"):
        find_reader(Path("here"), config)


def test_a_folder_that_is_not_quantised_asks_no_plugin() -> None:
    def formats() -> QuantizationRegistry:
        raise AssertionError("plugins were asked")

    assert find_reader(Path("here"), {}, formats)({}) == {}


def test_two_readers_of_one_format_are_refused_and_the_second_plugin_passed_over() -> None:
    class Brought:
        HOOK_API = (2, 3)

        @hookimpl
        def headstock_register_quantization(self, registry: QuantizationRegistry) -> None:
            registry.add("mine", f"{__name__}:keep")
            registry.add("mine", f"{__name__}:keep")

    registry = QuantizationRegistry()
    plugins = discover(backend="brought", extra={"brought": Brought()})
    (failure,) = ask_each(plugins, HOOK, registry)
    assert "Two plugins register a checkpoint format 'mine'" in failure
    assert "mine" not in registry.names


@pytest.mark.parametrize("place", ["module", "module:", ":function"])
def test_a_place_that_is_none_is_refused(place: str) -> None:
    with pytest.raises(PluginError, match="module:function"):
        QuantizationRegistry().add("mine", place)


@pytest.mark.parametrize("place", ["no_such_module:keep", f"{__name__}:no_such_function"])
def test_a_reader_that_does_not_import_is_named(place: str) -> None:
    registry = QuantizationRegistry()
    registry.add("mine", place)
    with pytest.raises(PluginError, match="checkpoint format 'mine' at"):
        registry.load("mine")
