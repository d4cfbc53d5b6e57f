"""The registry of architectures."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from headstock.errors import PluginError, UnsupportedError
from headstock.plugins.models import ModelRegistry


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
    assert registry.choose(["AForCausalLM", "BForCausalLM"]) == "BForCausalLM"


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


def test_in_tree_architectures_are_listed_without_torch() -> None:
    had_torch = "torch" in sys.modules
    assert "LlamaForCausalLM" in ModelRegistry().names
    assert ("torch" in sys.modules) is had_torch
