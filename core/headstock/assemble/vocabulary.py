"""The vocabulary of the served model, as grammars see it."""

from __future__ import annotations

from headstock.assemble.model_files import find_model
from headstock.assemble.tokenizer import load_tokenizer
from headstock.checkpoint import ModelFiles
from headstock.config import EngineSettings
from headstock.structured.provider import Vocabulary
from headstock.text import Tokenizer


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
