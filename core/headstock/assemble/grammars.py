"""The engine's grammar compiler: provider, vocabulary and limits, from the settings."""

from __future__ import annotations

from headstock.assemble.compute import Opened
from headstock.assemble.model_files import find_model
from headstock.assemble.tokenizer import load_tokenizer
from headstock.checkpoint import ModelFiles
from headstock.config import EngineSettings
from headstock.errors import ConfigError, did_you_mean
from headstock.structured.compiler import GrammarCompiler
from headstock.structured.messages import CompileLimits
from headstock.structured.provider import GrammarRegistry, Vocabulary
from headstock.text import Tokenizer

OFF = "none"


def grammar_compiler(opened: Opened) -> tuple[GrammarCompiler | None, str]:
    """Return what compiles grammars, or None and why there is nothing that does.

    Raises:
        ConfigError: The provider asked for is not registered.
    """
    settings = opened.settings.grammar
    wanted = opened.settings.model
    registry = GrammarRegistry()
    opened.chosen.name_grammars(registry)
    name = settings.grammar_backend
    if name is not None and name != OFF and registry.place(name) is None:
        known = ", ".join([*registry.names, OFF])
        raise ConfigError(
            f"grammar_backend is {name!r}; there are {known}.{did_you_mean(name, registry.names)}",
            remedy="Choose one of these, or install the plugin that brings it.",
        )
    if wanted.skip_tokenizer_init:
        return None, "This engine was started without a tokenizer, which grammars need."
    if name == OFF:
        return None, "This engine was started without grammars."
    if not registry.names:
        return None, "No grammar provider is installed with this engine."
    place = registry.place(name or registry.names[0])
    assert place is not None, f"grammar provider {name} has gone"
    limits = CompileLimits(
        settings.grammar_timeout_s, settings.grammar_memory_bytes, settings.grammar_workers
    )
    return GrammarCompiler(
        place,
        lambda: read_vocabulary(opened.settings),
        limits,
        cache_bytes=settings.grammar_cache_bytes,
    ), ""


def read_vocabulary(settings: EngineSettings) -> Vocabulary:
    """Return the vocabulary of the served model, from its tokenizer.

    Raises:
        CheckpointError: The tokenizer is missing or damaged.
    """
    files = find_model(settings, needs_weights=False)
    return vocabulary_of(files, load_tokenizer(files, settings.model.tokenizer))


def vocabulary_of(files: ModelFiles, tokenizer: Tokenizer) -> Vocabulary:
    """Return ``tokenizer``'s ids as a grammar sees them, as many as the model has."""
    vocab_size = int(files.config["vocab_size"])
    ends = dict.fromkeys([*files.eos_ids, *tokenizer.end_ids])  # as the model card has them
    eos_ids = [index for index in ends if index < vocab_size]
    special = {index for index in (*tokenizer.special_ids, *eos_ids) if index < vocab_size}
    return Vocabulary(
        [tokenizer.token_bytes(index) for index in range(vocab_size)],
        special_ids=sorted(special),
        eos_ids=eos_ids,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
    )
