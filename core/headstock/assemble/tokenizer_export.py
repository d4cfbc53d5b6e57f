"""A model's tokenizer as files that a client can open, where the model itself has none."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

from headstock import __version__
from headstock.checkpoint import ModelFiles
from headstock.config.environment import read_environment
from headstock.server.prompter import Prompter
from headstock.text import Tokenizer

log = logging.getLogger(__name__)
_MADE_FROM = "made-from.txt"
"""Says what the files were written from: writing them takes longer than building the tokenizer."""


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
