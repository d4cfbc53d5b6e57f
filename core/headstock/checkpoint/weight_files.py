"""Which files of a folder have its weights, and what is in them: safetensors, or torch's zips.

Safetensors win wherever a folder has both. What torch wrote is read without unpickling.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headstock.checkpoint.bounded import read_json_bytes
from headstock.checkpoint.files import StoredTensor
from headstock.checkpoint.safetensors_file import read_safetensors
from headstock.errors import CheckpointError

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Kind:
    """How the weights of a folder are kept.

    Attributes:
        weights: Name of the file of a model that has one.
        index: Name of the file that says which of several files has which tensor.
        others: Pattern of files that are read where there is neither; "": none are.
    """

    weights: str
    index: str
    others: str = ""


SAFETENSORS = Kind("model.safetensors", "model.safetensors.index.json", "*.safetensors")
TORCH = Kind("pytorch_model.bin", "pytorch_model.bin.index.json")


class _Index(msgspec.Struct):
    """What is read of a file that says which file has which tensor."""

    weight_map: dict[str, str]


def read_weights(path: Path, *, needs_weights: bool) -> dict[str, StoredTensor]:
    """Return the tensors of the folder ``path`` by name, in the order of its files.

    Args:
        path: The folder.
        needs_weights: Whether a folder without tensors is an error.

    Raises:
        CheckpointError: Files are missing or damaged, or have something else than tensors.
    """
    kind = SAFETENSORS if _has(path, SAFETENSORS) or not _has(path, TORCH) else TORCH
    given = _weight_map(path / kind.index)
    files = _weight_files(path, kind, given)
    if not files and needs_weights:
        raise _no_weights(path)
    index: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_tensors(file):
            if given is not None and given.get(tensor.name) != file.name:
                continue  # the index is the list: what it does not give to this file is not meant
            if tensor.name in index:
                raise CheckpointError(
                    f"{path}: tensor {tensor.name} is in two files, {file.name} being the second.",
                    remedy="Remove the weight files that do not belong to the model.",
                )
            index[tensor.name] = tensor
    _check_index(path, given, index)
    return index


def find_weights(path: Path) -> Path | None:
    """Return the file of weights of a folder whose weights are one file; None: it has none."""
    found = (path / kind.weights for kind in (SAFETENSORS, TORCH))
    return next((file for file in found if file.exists()), None)


def read_tensors(file: Path) -> Iterable[StoredTensor]:
    """Return the tensors of one file, as its name says that it is to be read.

    Raises:
        CheckpointError: It is damaged, or has something else than tensors.
    """
    if file.suffix not in PICKLES:
        return read_safetensors(file)
    from headstock.checkpoint.torch_file import read_torch_file  # few models have one

    return read_torch_file(file).values()


def _has(path: Path, kind: Kind) -> bool:
    """Whether a folder has weights of a kind."""
    if (path / kind.index).exists() or (path / kind.weights).exists():
        return True
    return bool(kind.others) and any(path.glob(kind.others))


def _weight_map(file: Path) -> dict[str, str] | None:
    """Return the index's file of each tensor, or None where there is no index."""
    if not file.exists():
        return None
    try:
        return msgspec.json.decode(read_json_bytes(file), type=_Index).weight_map
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} has no weight_map of names: {error}.", remedy="Download the file again."
        ) from error


def _weight_files(path: Path, kind: Kind, weight_map: dict[str, str] | None) -> list[Path]:
    """Return the files of weights: those of the index, else the one file, else all there are."""
    if weight_map is not None:
        names = set(weight_map.values())
        with os.scandir(path) as entries:  # once: an index may name a million files
            missing = names.difference(entry.name for entry in entries if entry.is_file())
        if missing:  # a path that leads elsewhere is no name of a file here
            raise CheckpointError(
                f"{path} lacks {len(missing)} of {len(names)} weight files:"
                f" {', '.join(heapq.nsmallest(5, missing))}.",
                remedy="Download the missing files.",
            )
        return [path / name for name in sorted(names)]
    if (path / kind.weights).exists():
        return [path / kind.weights]
    return sorted(path.glob(kind.others)) if kind.others else []


def _check_index(
    path: Path, weight_map: dict[str, str] | None, index: dict[str, StoredTensor]
) -> None:
    """Refuse an index that gives a file tensors which it has not."""
    if weight_map is None or not (lost := weight_map.keys() - index.keys()):
        return
    name = min(lost)
    raise CheckpointError(
        f"{path}: the index gives {name} to {weight_map[name]}, which lacks it"
        f" ({len(lost)} such tensors).",
        remedy="Download the index and the weight files again.",
    )


def _no_weights(path: Path) -> CheckpointError:
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        return CheckpointError(
            f"{path} has no *.safetensors and no {TORCH.weights}, and pickles under other names"
            f" ({', '.join(pickles[:3])}) are not read.",
            remedy="Convert them to safetensors: load with transformers, then save_pretrained.",
        )
    return CheckpointError(
        f"{path} has no *.safetensors files.",
        remedy="Download the weights, or start with --load-format dummy for random ones.",
    )
