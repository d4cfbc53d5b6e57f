"""GGUF metadata that lie, or are not there: one error that names file, key and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from headstock.checkpoint.gguf_config import read_config, read_tokenizer
from headstock.checkpoint.gguf_file import GGUFFile
from headstock.errors import CheckpointError
from tests.unit.gguf_files import HEADS, HIDDEN, VOCAB, llama_tensors, write_gguf


def refusal(path: Path) -> str:
    """Return what reading the file's metadata says is wrong."""
    with pytest.raises(CheckpointError) as caught:
        read_config(GGUFFile(path))
    assert str(path) in caught.value.problem
    assert caught.value.remedy
    return caught.value.problem


def file_of(path: Path, **changed: Any) -> GGUFFile:
    """Return an honest Llama whose metadata are changed after they were read; None: left out."""
    file = GGUFFile(write_gguf(path / "m.gguf"))
    for key, value in changed.items():
        name = f"llama.{key.replace('__', '.')}"
        metadata = cast("dict[str, Any]", file.metadata)
        metadata[name] = value
        if value is None:
            del metadata[name]
    return file


@pytest.mark.parametrize("value", [None, -1, 2**31, 2.5, "3", True])
@pytest.mark.parametrize("key", ["embedding_length", "attention__head_count", "block_count"])
def test_a_count_that_is_none_is_named_with_its_value(tmp_path: Path, key: str, value: Any) -> None:
    file = file_of(tmp_path, **{key: value})
    with pytest.raises(CheckpointError) as caught:
        read_config(file)
    name = f"llama.{key.replace('__', '.')}"
    assert f"{name} is {value!r}, not a count" in caught.value.problem


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "x", True])
@pytest.mark.parametrize("key", ["rope__freq_base", "attention__layer_norm_rms_epsilon"])
def test_a_number_that_must_be_positive_is_named_with_its_value(
    tmp_path: Path, key: str, value: Any
) -> None:
    file = file_of(tmp_path, **{key: value})
    with pytest.raises(CheckpointError) as caught:
        read_config(file)
    name = f"llama.{key.replace('__', '.')}"
    assert f"{name} is {value!r}, not a positive number" in caught.value.problem


def test_sizes_that_the_tensors_belie_are_refused(tmp_path: Path) -> None:
    problem = refusal(write_gguf(tmp_path / "m.gguf", num_layers=7))
    assert f"claims 7 layers with {HEADS} heads of {HIDDEN // HEADS}" in problem
    assert f"it has 1 layers with query rows [{HIDDEN}]" in problem


@pytest.mark.parametrize("shape", [None, (VOCAB,)])
def test_a_file_without_a_matrix_of_embeddings_is_refused(
    tmp_path: Path, shape: tuple[int, ...] | None
) -> None:
    tensors = llama_tensors()
    del tensors["token_embd.weight"]
    if shape is not None:
        tensors["token_embd.weight"] = np.zeros(shape, np.float32)
    assert "no token_embd.weight matrix" in refusal(write_gguf(tmp_path / "m.gguf", tensors))


def test_factors_of_frequencies_of_another_size_are_refused(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"rope_freqs.weight": np.ones(3, np.float32)}
    problem = refusal(write_gguf(tmp_path / "m.gguf", tensors))
    assert f"is F32 [3], not F32 [{HIDDEN // HEADS // 2}]" in problem


def test_a_file_without_a_tokenizer_says_how_to_name_one(tmp_path: Path) -> None:
    file = GGUFFile(write_gguf(tmp_path / "m.gguf"))
    del cast("dict[str, Any]", file.metadata)["tokenizer.ggml.model"]
    with pytest.raises(CheckpointError, match="carries no tokenizer") as caught:
        read_tokenizer(file)
    assert "--tokenizer" in caught.value.remedy
