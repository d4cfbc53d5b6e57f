"""Which provider compiles grammars, and for which ids."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from headstock.assemble.serving_loop import grammar_compiler
from headstock.assemble.tokenizer import vocabulary_of
from headstock.config import EngineSettings, GrammarSettings, ModelSettings
from headstock.errors import ConfigError, PluginError
from headstock.plugins.chosen import Chosen
from headstock.plugins.loader import discover
from headstock.plugins.select import select
from headstock.structured.provider import GrammarRegistry
from headstock.text import Tokenizer
from tests.server.toy_tokenizer import EOS, toy_backend


@dataclass
class Named:
    """A choice of plugins that name these providers."""

    places: dict[str, str]

    def name_grammars(self, registry: GrammarRegistry) -> None:
        for name, place in self.places.items():
            registry.add(name, place)


@dataclass
class Opened:
    chosen: Named
    settings: EngineSettings = field(default_factory=EngineSettings)


def opened(*names: str, **settings: str) -> Opened:
    grammar = GrammarSettings(**settings)
    return Opened(Named({name: f"{name}:open" for name in names}), EngineSettings(grammar=grammar))


@dataclass
class Files:
    config: dict[str, int]
    eos_ids: list[int]


def test_the_provider_of_this_distribution_comes_by_its_entry_point() -> None:
    chosen = select(discover(backend="reference"), "reference")
    assert isinstance(chosen, Chosen)
    registry = GrammarRegistry()
    chosen.name_grammars(registry)
    assert "llguidance" in registry.names
    assert registry.place("llguidance") == "headstock.structured.guidance:open_llguidance"


def test_the_first_provider_serves_unless_another_is_asked_for() -> None:
    for wanted, place in ((None, "a:open"), ("b", "b:open")):
        settings = {} if wanted is None else {"grammar_backend": wanted}
        compiler, why_not = grammar_compiler(opened("a", "b", **settings))
        assert compiler is not None
        assert not why_not
        assert compiler.place == place


def test_a_provider_that_is_not_there_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="grammar_backend is 'llguidence'; there are llguidance"):
        grammar_compiler(opened("llguidance", grammar_backend="llguidence"))


def test_without_a_compiler_there_is_a_reason() -> None:
    assert "without grammars" in grammar_compiler(opened("a", grammar_backend="none"))[1]
    assert "No grammar provider" in grammar_compiler(opened())[1]
    bare = opened("a")
    bare.settings = EngineSettings(model=ModelSettings(skip_tokenizer_init=True))
    compiler, why_not = grammar_compiler(bare)
    assert compiler is None
    assert "tokenizer" in why_not


def test_two_providers_of_one_name_are_refused() -> None:
    registry = GrammarRegistry()
    registry.add("a", "x:open")
    with pytest.raises(PluginError, match="'a'"):
        registry.add("a", "y:open")
    with pytest.raises(PluginError, match="module:function"):
        registry.add("b", "y")


def test_a_vocabulary_has_as_many_ids_as_the_model_and_special_ones_are_no_text() -> None:
    tokenizer = Tokenizer(toy_backend(), special={"eos_token": "<|end|>"})
    vocabulary = vocabulary_of(Files({"vocab_size": 272}, [EOS, 300]), tokenizer)
    assert len(vocabulary.tokens) == 272
    assert vocabulary.tokens[3 + ord("a")] == b"a"
    assert vocabulary.tokens[260:] == [b""] * 12
    assert vocabulary.special_ids == [0, 1, 2]
    assert vocabulary.eos_ids == [EOS]
    assert vocabulary.encode is not None
    assert vocabulary.encode("ab") == [3 + ord("a"), 3 + ord("b")]
