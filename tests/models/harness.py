"""Loads small checkpoints into the installed classes: what the oracle kit has, by architecture."""

from __future__ import annotations

from pathlib import Path

from headstock.checkpoint import ModelFiles
from headstock.checkpoint.folder import open_folder
from headstock.graph.build import Model, build_model
from headstock.graph.context import Context
from headstock.plugins.models import installed_models
from headstock.testing.oracle.sequences import Sequences, context, load_sequences

REGISTRY = installed_models()

__all__ = ["REGISTRY", "Sequences", "build", "context", "load"]


def build(files: ModelFiles, ctx: Context) -> Model:
    return build_model(REGISTRY.load(files.architecture), ctx, files.config)


def load(path: Path, ctx: Context | None = None) -> Sequences:
    return load_sequences(REGISTRY.load(open_folder(path).architecture), path, ctx)
