"""A model's tokenizer as files that a client can open, where the model itself has none."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path

from headstock.checkpoint import ModelFiles
from headstock.config.environment import read_environment
from headstock.server.prompter import Prompter
from headstock.text import Tokenizer

log = logging.getLogger(__name__)


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
            _write(folder, prompter.tokenizer, prompter)
            return str(folder.resolve())
    log.warning("the tokenizer of %s could not be written for clients to open", files.path)
    return model


def _write(folder: Path, tokenizer: Tokenizer, prompter: Prompter) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    template = None if prompter.template is None else prompter.template.source
    for name, text in tokenizer.exported(template).items():
        path = folder / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        handle, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)  # whole or not at all: another server may read it now
