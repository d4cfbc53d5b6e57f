"""Which drafter the settings open, and what is refused before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headstock.assemble.serving_runner import drafter_place, serving_drafter
from headstock.config import EngineSettings
from headstock.config.schema import SpeculationSettings
from headstock.errors import ConfigError, PluginError
from headstock.plugins.drafters import DrafterRegistry
from headstock.speculative.provider import DrafterSpec, open_drafter


class Chosen:
    """Plugins that name one drafter."""

    def name_drafters(self, registry: DrafterRegistry) -> None:
        registry.add("ngram", "headstock.speculative.ngram:open_ngram")


def opened(**settings):
    speculation = SpeculationSettings(**settings)
    return SimpleNamespace(chosen=Chosen(), settings=EngineSettings(speculation=speculation))


def loaded(*kinds, yields=("draw",)):
    groups = [SimpleNamespace(kind=kind) for kind in kinds]
    options = SimpleNamespace(yields=yields)
    return SimpleNamespace(ctx=SimpleNamespace(groups=groups), options=options)


def test_nothing_is_drafted_unless_it_is_asked_for() -> None:
    assert drafter_place(opened()) is None


def test_a_drafter_that_nobody_brings_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'ngrams'; there are ngram, none.*ngram"):
        drafter_place(opened(speculation="ngrams"))


def test_too_many_drafts_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_drafts is 99; at most 15"):
        drafter_place(opened(speculation="ngram", num_drafts=99))


def test_a_model_with_states_is_refused_with_the_reason() -> None:
    model = loaded("full", "state")
    with pytest.raises(ConfigError, match="recurrent state, which exclude each other: A step"):
        serving_drafter(opened(speculation="ngram"), model, "a:b")


def test_a_model_of_vectors_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="pooling, which exclude each other: A model"):
        serving_drafter(opened(speculation="ngram"), loaded("full", yields=("pool",)), "a:b")


def test_two_drafters_of_one_name_are_refused() -> None:
    registry = DrafterRegistry()
    registry.add("again", "one:drafter")
    with pytest.raises(PluginError, match="Two plugins register a drafter 'again'"):
        registry.add("again", "two:drafter")
    with pytest.raises(PluginError, match="is at 'nowhere'"):
        registry.add("other", "nowhere")


def test_a_drafter_that_does_not_import_is_its_plugins_fault() -> None:
    spec = DrafterSpec(num_drafts=1, num_slots=1, max_length=1, vocab_size=1)
    with pytest.raises(PluginError, match=r"ngram:absent cannot be imported"):
        open_drafter("headstock.speculative.ngram:absent", spec, SimpleNamespace())
