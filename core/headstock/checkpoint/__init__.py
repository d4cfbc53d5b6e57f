"""Finds and reads model files: Hugging Face folders, GGUF. No tensors of a framework here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock.checkpoint.download import fetch

if TYPE_CHECKING:
    from headstock.checkpoint.files import GGUFTokenizer, ModelFiles, StoredTensor
    from headstock.checkpoint.locate import resolve

__all__ = ["GGUFTokenizer", "ModelFiles", "StoredTensor", "fetch", "resolve"]


def __getattr__(name: str) -> object:
    """Import what reads files when it is first used: fetching one does without numpy."""
    if name == "resolve":
        from headstock.checkpoint.locate import resolve

        return resolve
    if name in __all__:
        from headstock.checkpoint import files

        return getattr(files, name)
    raise AttributeError(f"module 'headstock.checkpoint' has no attribute {name!r}")
