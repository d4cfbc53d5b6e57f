"""The tokenizer of the served model: opened, written for clients, and as grammars see it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

from headstock import __version__
from headstock.assemble.model_files import find_model
from headstock.checkpoint import ModelFiles
from headstock.config import EngineSettings
from headstock.config.environment import read_environment
from headstock.server.prompter import Prompter
from headstock.structured.provider import Vocabulary
from headstock.text import Tokenizer

log = logging.getLogger(__name__)
_MADE_FROM = "made-from.txt"
"""Says what the files were written from: writing them takes longer than building the tokenizer."""


def load_tokenizer(files: ModelFiles, path: str | None) -> Tokenizer:
    """Return the model's tokenizer, or the one at ``path``: a folder or a ``tokenizer.json``.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    if path is not None:
        is_folder = Path(path).is_dir()
        return Tokenizer.from_folder(path) if is_folder else Tokenizer.from_file(path)
    if files.read_tokenizer is not None:
        return Tokenizer.from_gguf(files.read_tokenizer())
    return Tokenizer.from_folder(files.path)


def openable_path(files: ModelFiles, model: str, prompter: Prompter) -> str:
    """Return what a client on this machine can open the model's tokenizer from.

    A GGUF file has its vocabulary inside, where benchmarks and evaluations do not look: the
    tokenizer is written into a folder beside it, or into the cache where that cannot be.

    Args:
        files: The model's.
        model: As the operator named it.
        prompter: With the tokenizer that serves.
    """
    if files.read_tokenizer is None or prompter.tokenizer is None:
        return model
    name = f"{files.path.stem}-tokenizer"
    for folder in (files.path.parent / name, read_environment().cache_dir / "tokenizers" / name):
        with contextlib.suppress(OSError):
            _write(folder, prompter.tokenizer, prompter, _source_of(files.path, prompter))
            return str(folder.resolve())
    log.warning("the tokenizer of %s could not be written for clients to open", files.path)
    return model


def _write(folder: Path, tokenizer: Tokenizer, prompter: Prompter, made_from: str) -> None:
    """Write the tokenizer's files, unless they were written from the same already."""
    if _read(folder / _MADE_FROM) == made_from and (folder / "tokenizer.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    template = None if prompter.template is None else prompter.template.source
    texts = {**tokenizer.exported(template), _MADE_FROM: made_from}  # last: the others are there
    for name, text in texts.items():
        path = folder / name
        if _read(path) == text:
            continue
        handle, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)  # whole or not at all: another server may read it now


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _source_of(path: Path, prompter: Prompter) -> str:
    """Return what changes when the files would be others: the model's file, the template, us."""
    seen = path.stat()
    template = "" if prompter.template is None else prompter.template.source
    digest = hashlib.sha256(template.encode()).hexdigest()
    return f"{path.name} {seen.st_size} {seen.st_mtime_ns} {digest} {__version__}\n"


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
