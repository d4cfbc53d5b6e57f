"""What plugins bring beside ops: formats, routes, commands, transports and tiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headstock.assemble.api_plugins import load_api_plugins
from headstock.cli import help_text, main
from headstock.cli.commands import COMMANDS, plugin_commands
from headstock.errors import PluginError
from headstock.plugins.commands import CommandRegistry
from headstock.plugins.hooks import hookimpl
from headstock.plugins.loader import REFERENCE, Plugins, discover
from headstock.plugins.places import ask_each
from headstock.plugins.routes import RouteRegistry
from headstock.server.speech import Dialect
from headstock.text.parsers import CALL_FORMATS, REASONING_FORMATS, CallFormat, detect
from headstock.text.parsers.registry import FormatRegistry, own_formats


def plugins_with(**hooks: Callable[..., Any]) -> Plugins:
    """Return what is installed, and one plugin with ``hooks``."""

    class Brought:
        HOOK_API = (2, 2)

    for name, function in hooks.items():
        setattr(Brought, f"headstock_register_{name}", staticmethod(hookimpl(function)))
    return discover(backend="brought", extra={"brought": Brought()})


def tagged(name: str) -> CallFormat:
    return CallFormat(
        name=name, begin="<mine>", end="</mine>", read=lambda *_: None, marks=("<",), writings=()
    )


def test_the_formats_of_headstock_come_by_the_hook() -> None:
    formats = load_api_plugins(()).formats
    assert formats.calls == CALL_FORMATS
    assert formats.reasoning == REASONING_FORMATS


def test_without_its_plugin_no_format_of_headstock_is_known() -> None:
    assert load_api_plugins(("formats",)).formats.calls == ()


def test_a_plugins_format_is_found_before_those_of_headstock() -> None:
    formats = FormatRegistry()

    def register(registry: FormatRegistry) -> None:
        registry.add(tagged("mine"))

    assert ask_each(plugins_with(parsers=register), "headstock_register_parsers", formats) == []
    found = detect("<tool_call> <function=", formats.calls)
    assert found is not None
    assert found.name == "mine"
    assert Dialect(formats=formats).formats.calls[1:] == CALL_FORMATS


def test_a_format_of_a_taken_name_is_refused_and_its_plugin_passed_over() -> None:
    formats = FormatRegistry()

    def register(registry: FormatRegistry) -> None:
        registry.add(tagged("mine"))
        registry.add(tagged("mine"))

    (failure,) = ask_each(plugins_with(parsers=register), "headstock_register_parsers", formats)
    assert "brought" in failure
    assert "Two plugins add a CallFormat 'mine'" in failure
    assert formats.calls == CALL_FORMATS


def test_what_is_no_format_is_refused() -> None:
    with pytest.raises(PluginError, match="adds 'hermes', which is not a format"):
        own_formats().add("hermes")


def test_the_page_is_a_router_that_can_be_left_out() -> None:
    routers = load_api_plugins(()).load_routers()
    assert {name: make.__module__ for name, make in routers.items()} == {
        "page": "headstock.server.http.routes_page"
    }
    assert load_api_plugins(("page",)).load_routers() == {}


def test_a_router_that_does_not_import_is_named() -> None:
    registry = RouteRegistry()
    registry.add("mine", "no_such_module:make")
    with pytest.raises(PluginError, match="router 'mine' at no_such_module:make does not import"):
        registry.load("mine")


def test_a_command_of_headstocks_own_plugin_is_in_the_help() -> None:
    assert "new-backend" not in [row.name for row in COMMANDS]
    assert "new-backend" in [row.name for row in plugin_commands()]
    assert "  new-backend  " in help_text()


def test_a_word_that_is_no_command_is_refused_with_those_of_plugins(capsys) -> None:
    assert main(["new-backnd"]) == 2
    assert "new-backend" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "--serve", "three words here", "two  words"])
def test_a_command_that_cannot_be_typed_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match="Its name must be a word or two"):
        CommandRegistry().add_command(name, "module", "help")


def test_a_plugin_that_raises_takes_back_what_it_named() -> None:
    registry = CommandRegistry()

    def register(registry: CommandRegistry) -> None:
        registry.add_command("mine", "module", "help")
        raise RuntimeError("no driver")

    (failure,) = ask_each(plugins_with(commands=register), "headstock_register_commands", registry)
    assert "RuntimeError: no driver" in failure
    assert registry.names == ["new-backend"]


def test_headstocks_own_plugins_load_without_a_backend() -> None:
    names = {record.name for record in discover(backend=REFERENCE).loaded}
    assert {"formats", "page", "commands"} <= names
