"""The registry of architectures."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from headstock.errors import PluginError, UnsupportedError
from headstock.plugins.hooks import HOOK_API, hookimpl
from headstock.plugins.loader import discover
from headstock.plugins.models import ModelRegistry, installed_models


def entry(name: str, dist: str, loaded: Any = dict) -> Any:
    def load() -> Any:
        if isinstance(loaded, BaseException):
            raise loaded
        return loaded

    return SimpleNamespace(name=name, dist=SimpleNamespace(name=dist), load=load)


def test_listing_imports_nothing() -> None:
    registry = ModelRegistry([entry("AForCausalLM", "d", AssertionError("imported"))])
    assert registry.names == ["AForCausalLM"]


def test_the_first_known_architecture_is_chosen() -> None:
    registry = ModelRegistry([entry("BForCausalLM", "d")])
    assert registry.choose(["AForCausalLM", "BForCausalLM"]).architecture == "BForCausalLM"


def test_an_unknown_architecture_gets_a_suggestion() -> None:
    with pytest.raises(UnsupportedError, match="Did you mean 'LlamaForCausalLM'"):
        ModelRegistry([entry("LlamaForCausalLM", "d")]).load("LlamaForCausualLM")


def test_no_architecture_at_all_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="none"):
        ModelRegistry([]).choose([])


def test_two_distributions_with_one_architecture_are_named_when_it_is_asked_for() -> None:
    registry = ModelRegistry([entry("A", "dist-b"), entry("A", "dist-a"), entry("B", "c", list)])
    assert registry.load("B") is list
    with pytest.raises(PluginError, match="dist-a and dist-b"):
        registry.load("A")


def test_a_module_that_does_not_import_is_named_with_its_reason() -> None:
    with pytest.raises(PluginError, match="dist-a does not import: ImportError: gone"):
        ModelRegistry([entry("A", "dist-a", ImportError("gone"))]).load("A")


def test_models_of_other_distributions_are_listed_apart() -> None:
    registry = ModelRegistry([entry("OtherForCausalLM", "other")])
    assert registry.names_beside("headstock") == ["OtherForCausalLM"]
    assert registry.names_beside("other") == []


def test_our_own_models_declare_no_ops() -> None:
    """The doctor lists ops without importing our models."""
    code = (
        "from headstock.ops import load_all_ops\n"
        "from headstock.plugins.models import installed_models\n"
        "before = set(load_all_ops())\n"
        "models = installed_models()\n"
        "for name in set(models.names) - set(models.names_beside('headstock')): models.load(name)\n"
        "assert len(models.names) > 50\n"
        "assert set(load_all_ops()) == before, set(load_all_ops()) - before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_in_tree_architectures_are_listed_without_torch() -> None:
    had_torch = "torch" in sys.modules
    assert "LlamaForCausalLM" in installed_models().names
    assert ("torch" in sys.modules) is had_torch


def plugin(register: Any) -> Any:
    made = ModuleType("own")
    vars(made).update(HOOK_API=HOOK_API, headstock_register_models=hookimpl(register))
    return made


def registered(*registers: Any) -> ModelRegistry:
    extra = {f"p{number}": plugin(register) for number, register in enumerate(registers)}
    return ModelRegistry.of_plugins(discover(backend="p0", only=named(extra), extra=extra))


def named(extra: Any) -> list[tuple[str, str]]:
    return [("headstock.backends", name) for name in extra]


def test_a_plugin_registers_a_class_that_is_imported_when_asked_for() -> None:
    def headstock_register_models(registry: ModelRegistry) -> None:
        registry.add("OwnForCausalLM", "collections:OrderedDict")
        registry.add("GoneForCausalLM", "no_such_package.own:Own")

    registry = registered(headstock_register_models)
    assert registry.choose(["OwnForCausalLM"]).dist == "extra"
    assert registry.load("OwnForCausalLM").__name__ == "OrderedDict"
    with pytest.raises(PluginError, match=r"GoneForCausalLM of extra does not import.*no_such"):
        registry.load("GoneForCausalLM")


def test_a_plugin_whose_hook_raises_registers_nothing_and_the_reason_is_kept() -> None:
    def headstock_register_models(registry: ModelRegistry) -> None:
        registry.add("HalfForCausalLM", "collections:OrderedDict")
        registry.add("OwnForCausalLM", "collections.OrderedDict")

    registry = registered(headstock_register_models)
    assert "HalfForCausalLM" not in registry.names
    with pytest.raises(UnsupportedError, match="passed over: A model's class is given as 'coll"):
        registry.choose(["HalfForCausalLM"])


def test_the_fallback_serves_what_has_no_class_and_nothing_else() -> None:
    def headstock_register_models(registry: ModelRegistry) -> None:
        registry.add("OwnForCausalLM", "collections:OrderedDict")
        registry.add_fallback("collections:Counter")

    registry = registered(headstock_register_models)
    assert not registry.choose(["OtherForCausalLM", "OwnForCausalLM"]).is_fallback
    assert registry.choose(["OtherForCausalLM"]).is_fallback
    assert registry.load("OtherForCausalLM").__name__ == "Counter"
    assert registry.load("OwnForCausalLM").__name__ == "OrderedDict"
    with pytest.raises(UnsupportedError, match="none"):
        registry.choose([])


def test_an_entry_point_and_a_hook_with_one_architecture_are_refused() -> None:
    registry = ModelRegistry([entry("A", "dist-a")])
    registry.add("A", "collections:OrderedDict")
    with pytest.raises(PluginError, match="A is brought by"):
        registry.choose(["A"])
