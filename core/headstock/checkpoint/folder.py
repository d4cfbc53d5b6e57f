"""A Hugging Face folder as model files: config.json, generation_config.json, safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from headstock.checkpoint.files import ModelFiles, StoredTensor
from headstock.checkpoint.quantized import find_reader
from headstock.checkpoint.safetensors_file import read_safetensors
from headstock.checkpoint.stacked_experts import split_experts
from headstock.errors import CheckpointError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def open_folder(path: Path, *, needs_weights: bool = True) -> ModelFiles:
    """Return the model in ``path``.

    Args:
        path: The folder.
        needs_weights: Whether a folder without tensors is an error; random weights need none.

    Raises:
        CheckpointError: Files are missing or damaged, or the weights are in pickles.
        UnsupportedError: The weights are quantised in a way that we cannot read.
    """
    config = _read_json(path / CONFIG)
    join = find_reader(path, config)
    has_generation = (path / GENERATION_CONFIG).is_file()
    index: dict[str, StoredTensor] = {}
    for file in _weight_files(path, needs_weights=needs_weights):
        for tensor in read_safetensors(file):
            if tensor.name in index:
                raise CheckpointError(
                    f"{path}: tensor {tensor.name} is in two files, {file.name} being the second.",
                    remedy="Remove the safetensors files that do not belong to the model.",
                )
            index[tensor.name] = tensor
    return ModelFiles(
        kind="folder",
        path=path,
        name=path.resolve().name,
        config=config,
        generation_config=_read_json(path / GENERATION_CONFIG) if has_generation else {},
        index=dict(split_experts(join(index), config)),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}.",
            remedy="Give a folder as `save_pretrained` of transformers writes it, or a GGUF file.",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.", remedy="Download the file again."
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object.", remedy="Download the file again.")
    return cast("dict[str, Any]", found)


def _weight_files(path: Path, *, needs_weights: bool) -> list[Path]:
    """Return the safetensors files: those of the index, else the one file, else all there are."""
    if (path / WEIGHTS_INDEX).is_file():
        weight_map = _read_json(path / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(
                f"{path / WEIGHTS_INDEX} has no weight_map.", remedy="Download the file again."
            )
        names = sorted({str(name) for name in cast("dict[str, Any]", weight_map).values()})
        strays = [name for name in names if Path(name).name != name]
        missing = [name for name in names if not (path / name).is_file()]
        if strays or missing:
            raise CheckpointError(
                f"{path} lacks {len(missing or strays)} of {len(names)} weight files:"
                f" {', '.join((missing or strays)[:5])}.",
                remedy="Download the missing files.",
            )
        return [path / name for name in names]
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    found = sorted(path.glob("*.safetensors"))
    if not found and needs_weights:
        raise _no_weights(path)
    return found


def _no_weights(path: Path) -> CheckpointError:
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        return CheckpointError(
            f"{path} has its weights in pickles ({', '.join(pickles[:3])}), which can run code.",
            remedy="Convert them to safetensors: load with transformers, then save_pretrained.",
        )
    return CheckpointError(
        f"{path} has no *.safetensors files.",
        remedy="Download the weights, or start with --load-format dummy for random ones.",
    )
