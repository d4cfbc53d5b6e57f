"""A Hugging Face folder as model files: config.json, generation_config.json, safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from headstock.checkpoint.bounded import read_object_bounded
from headstock.checkpoint.files import ModelFiles, StoredTensor
from headstock.checkpoint.formats import Formats, OwnReaders
from headstock.checkpoint.nested import fill_text_config
from headstock.checkpoint.quantized import find_reader
from headstock.checkpoint.ranges import check_generation, check_ranges
from headstock.checkpoint.safetensors_file import read_safetensors
from headstock.checkpoint.sentence import PREFIX, SentenceFiles, read_sentence_files
from headstock.checkpoint.stacked_experts import split_experts
from headstock.checkpoint.torch_file import read_torch_file
from headstock.errors import CheckpointError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
OLD_QUANTIZATION = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
"""Files that AutoGPTQ, AutoAWQ and ModelOpt wrote before ``config.json`` had it; their methods."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def open_folder(
    path: Path, *, needs_weights: bool = True, formats: Formats = OwnReaders
) -> ModelFiles:
    """Return the model in ``path``.

    Args:
        path: The folder.
        needs_weights: Whether a folder without tensors is an error; random weights need none.
        formats: Returns the formats that can be read; called where the folder is quantised.

    Raises:
        CheckpointError: Files are missing or damaged, or the weights are in pickles.
        UnsupportedError: The weights are quantised in a way that we cannot read.
    """
    config = fill_text_config(_with_quantization(path, _read_json(path / CONFIG)))
    check_ranges(path / CONFIG, config)
    join = find_reader(path, config, formats)
    has_generation = (path / GENERATION_CONFIG).exists()
    generation = _read_json(path / GENERATION_CONFIG) if has_generation else {}
    check_generation(path / GENERATION_CONFIG, generation)
    index: dict[str, StoredTensor] = {}
    given = _weight_map(path)
    for file in _weight_files(path, given, needs_weights=needs_weights):
        for tensor in read_safetensors(file):
            if given is not None and given.get(tensor.name) != file.name:
                continue  # the index is the list: what it does not give to this file is not meant
            if tensor.name in index:
                raise CheckpointError(
                    f"{path}: tensor {tensor.name} is in two files, {file.name} being the second.",
                    remedy="Remove the safetensors files that do not belong to the model.",
                )
            index[tensor.name] = tensor
    _check_index(path, given, index)
    sentence = read_sentence_files(path)
    index = dict(split_experts(join(index), config))
    index.update((tensor.name, tensor) for tensor in _dense_tensors(path, sentence))
    return ModelFiles(
        kind="folder",
        path=path,
        name=path.resolve().name,
        config=config,
        generation_config=generation,
        index=index,
        sentence=sentence,
    )


def _dense_tensors(path: Path, sentence: SentenceFiles | None) -> Iterator[StoredTensor]:
    """Yield the tensors of the products that vectors go through, which have files of their own."""
    pooling = None if sentence is None else sentence.pooling
    for number, dense in enumerate(() if pooling is None else pooling.dense):
        file = path / dense.folder / WEIGHTS
        for tensor in read_safetensors(file) if file.exists() else ():
            yield replace(tensor, name=f"{PREFIX}.dense.{number}.{tensor.name}")
    for head in () if pooling is None else pooling.tokens:
        for name, tensor in read_torch_file(path / head.file).items():
            yield replace(tensor, name=head.prefix + name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object_bounded(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}.",
            remedy="Give a folder as `save_pretrained` of transformers writes it, or a GGUF file.",
        ) from error


def _with_quantization(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return ``config`` with what old tools wrote beside it on how weights are quantised."""
    if config.get("quantization_config"):
        return config
    for name, method in OLD_QUANTIZATION.items():
        if (path / name).exists():
            given = {"quant_method": method, **_read_json(path / name)}
            return {**config, "quantization_config": given}
    return config


def _weight_map(path: Path) -> dict[str, str] | None:
    """Return the index's file of each tensor, or None where there is no index."""
    if not (path / WEIGHTS_INDEX).exists():
        return None
    found = _read_json(path / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path / WEIGHTS_INDEX} has no weight_map.", remedy="Download the file again."
        )
    return {name: str(file) for name, file in cast("dict[str, Any]", found).items()}


def _check_index(
    path: Path, weight_map: dict[str, str] | None, index: dict[str, StoredTensor]
) -> None:
    """Refuse an index that gives a file tensors which it has not."""
    lost = sorted(name for name in weight_map or {} if name not in index)
    if lost:
        assert weight_map is not None, "an index names tensors"
        raise CheckpointError(
            f"{path}: the index gives {lost[0]} to {weight_map[lost[0]]}, which lacks it"
            f" ({len(lost)} such tensors).",
            remedy="Download the index and the weight files again.",
        )


def _weight_files(
    path: Path, weight_map: dict[str, str] | None, *, needs_weights: bool
) -> list[Path]:
    """Return the safetensors files: those of the index, else the one file, else all there are."""
    if weight_map is not None:
        names = sorted(set(weight_map.values()))
        strays = [name for name in names if Path(name).name != name]
        missing = [name for name in names if not (path / name).is_file()]
        if strays or missing:
            raise CheckpointError(
                f"{path} lacks {len(missing or strays)} of {len(names)} weight files:"
                f" {', '.join((missing or strays)[:5])}.",
                remedy="Download the missing files.",
            )
        return [path / name for name in names]
    if (path / WEIGHTS).exists():
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
