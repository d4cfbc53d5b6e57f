"""Finds and reads model files: Hugging Face folders, GGUF. No tensors of a framework here."""

from headstock.checkpoint.files import GGUFTokenizer, ModelFiles, StoredTensor
from headstock.checkpoint.locate import fetch, resolve

__all__ = ["GGUFTokenizer", "ModelFiles", "StoredTensor", "fetch", "resolve"]
