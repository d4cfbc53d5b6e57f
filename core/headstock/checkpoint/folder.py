"""A Hugging Face folder as model files: config.json, generation_config.json, weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from headstock.checkpoint.bounded import read_object_bounded
from headstock.checkpoint.cache_scales import part_cache_scales
from headstock.checkpoint.files import ModelFiles, StoredTensor
from headstock.checkpoint.formats import Formats, OwnReaders
from headstock.checkpoint.nested import fill_text_config
from headstock.checkpoint.quantized import find_reader
from headstock.checkpoint.ranges import check_generation, check_ranges
from headstock.checkpoint.sentence import PREFIX, SentenceFiles, read_sentence_files
from headstock.checkpoint.stacked_experts import split_experts
from headstock.checkpoint.weight_files import find_weights, read_tensors, read_weights
from headstock.errors import CheckpointError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
OLD_QUANTIZATION = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
"""Files that AutoGPTQ, AutoAWQ and ModelOpt wrote before ``config.json`` had it; their methods."""


def open_folder(
    path: Path, *, needs_weights: bool = True, formats: Formats = OwnReaders
) -> ModelFiles:
    """Return the model in ``path``.

    Args:
        path: The folder.
        needs_weights: Whether a folder without tensors is an error; random weights need none.
        formats: Returns the formats that can be read; called where the folder is quantised.

    Raises:
        CheckpointError: Files are missing or damaged, or have something else than tensors.
        UnsupportedError: The weights are quantised in a way that we cannot read.
    """
    config = fill_text_config(_with_quantization(path, _read_json(path / CONFIG)))
    check_ranges(path / CONFIG, config)
    join = find_reader(path, config, formats)
    has_generation = (path / GENERATION_CONFIG).exists()
    generation = _read_json(path / GENERATION_CONFIG) if has_generation else {}
    check_generation(path / GENERATION_CONFIG, generation)
    index, left_out = part_cache_scales(read_weights(path, needs_weights=needs_weights))
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
        left_out=left_out,
    )


def _dense_tensors(path: Path, sentence: SentenceFiles | None) -> Iterator[StoredTensor]:
    """Yield the tensors of the products that vectors go through, which have files of their own."""
    pooling = None if sentence is None else sentence.pooling
    for number, dense in enumerate(() if pooling is None else pooling.dense):
        file = find_weights(path / dense.folder)
        for tensor in () if file is None else read_tensors(file):
            yield replace(tensor, name=f"{PREFIX}.dense.{number}.{tensor.name}")
    for head in () if pooling is None else pooling.tokens:
        for tensor in read_tensors(path / head.file):
            yield replace(tensor, name=head.prefix + tensor.name)


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
