"""The tokenizer of a model. Read by both processes, so it imports little."""

from __future__ import annotations

from pathlib import Path

from headstock.checkpoint import ModelFiles
from headstock.text import Tokenizer


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
