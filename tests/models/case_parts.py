"""What cases are made of: a family by its name, and edits of what is saved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from headstock.testing.oracle.case import ModelCase
from tests.models.harness import REGISTRY


def family(
    stem: str,
    options: Mapping[str, Any] | None = None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    name: str = "",
    config: str | Callable[..., Any] = "",
    oracle: str = "",
    architecture: str = "",
    **given: Any,
) -> ModelCase:
    """Return the case of ``{stem}ForCausalLM``.

    ``oracle`` is what transformers calls it otherwise, ``architecture`` what we do, and ``config``
    makes its configuration, or is what transformers calls what does.
    """
    oracle = oracle or f"{stem}ForCausalLM"
    known = config or f"{stem}Config"
    make: Any = getattr(transformers, known) if isinstance(known, str) else known
    return ModelCase(
        name=name or stem.lower(),
        model=REGISTRY.load(architecture or oracle),
        config=make,
        oracle=getattr(transformers, oracle),
        options=options or {},
        variants=variants or {},
        **given,
    )


def inside_text(config: str, **beside: Any) -> Callable[..., Any]:
    """Return what makes a configuration of images and text, options being those of the text."""

    def make(*, attn_implementation: str = "eager", **text: Any) -> Any:
        kind = getattr(transformers, config)
        return kind(text_config=text, attn_implementation=attn_implementation, **beside)

    return make


def longrope(original: int) -> Mapping[str, Any]:
    """Return options whose factors are the long ones past ``original`` tokens."""
    factors = {"short_factor": [1.0, 1.1, 1.3, 2.0] * 2, "long_factor": [1.0, 2.0, 4.0, 9.0] * 2}
    rope = {"rope_type": "longrope", "rope_theta": 100.0, **factors}
    return {"rope_parameters": rope, "original_max_position_embeddings": original}


def rewrite(**keys: Any) -> Any:
    """Return what gives ``config.json`` other keys; those with None are removed."""

    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | keys
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return edit


def rewrite_text(**keys: Any) -> Any:
    """Return what gives ``text_config`` other keys."""

    def edit(folder: Path) -> None:
        text = json.loads((folder / "config.json").read_text())["text_config"] | keys
        rewrite(text_config={k: v for k, v in text.items() if v is not None})(folder)

    return edit


def rename(pattern: str, name: str) -> Any:
    """Return what gives tensors other names: those of the hub."""

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {re.sub(pattern, name, key): x for key, x in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})

    return edit


def add(name: str, tensor: Tensor) -> Any:
    """Return what puts a tensor more into the file, such as old ones have."""

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({**load_file(path), name: tensor}, path, metadata={"format": "pt"})

    return edit


def text_alone(folder: Path) -> None:
    """Leave a model's text as if it had never had images, its configuration beside nothing."""
    path, file = folder / "config.json", folder / "model.safetensors"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({"architectures": whole["architectures"], **whole["text_config"]}))
    kept = {k: x for k, x in load_file(file).items() if k.startswith(("model.", "lm_head."))}
    save_file(kept, file, metadata={"format": "pt"})


def inside(key: str) -> Any:
    """Return what puts a configuration into another, as models of images have that of text."""

    def edit(folder: Path) -> None:
        path = folder / "config.json"
        whole = json.loads(path.read_text())
        path.write_text(json.dumps({"architectures": whole["architectures"], key: whole}))

    return edit


def in_turn(*edits: Any) -> Any:
    """Return what makes several changes."""

    def edit(folder: Path) -> None:
        for each in edits:
            each(folder)

    return edit
