"""Finding and reading model folders, without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstock.checkpoint import resolve
from headstock.checkpoint.download import fetch
from headstock.checkpoint.files import ModelFiles
from headstock.checkpoint.safetensors_file import read_safetensors
from headstock.errors import CheckpointError, ConfigError, UnsupportedError
from tests.unit.gguf_files import write_gguf

CONFIG = {"architectures": ["LlamaForCausalLM"], "eos_token_id": 2, "torch_dtype": "bfloat16"}
HALF = np.arange(6, dtype=np.float16).reshape(2, 3)


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], **kinds: str) -> Path:
    """Write the format by hand."""
    names = {"float16": "F16", "float32": "F32", "uint16": "BF16", "int64": "I64"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, array in arrays.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": kinds.get(name, names[array.dtype.name]),
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(path / "model.safetensors", {"a.weight": HALF, "b.weight": HALF + 1})
    return path


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def test_a_folder_is_found_with_its_tensors(folder: Path) -> None:
    files = resolve(str(folder))
    assert (files.kind, files.name, files.architecture) == (
        "folder",
        "my-model",
        "LlamaForCausalLM",
    )
    assert list(files.index) == ["a.weight", "b.weight"]
    np.testing.assert_array_equal(files.index["b.weight"].read(1, 2)["weight"], [[4, 5, 6]])


def test_a_gguf_file_is_found_whatever_its_suffix(tmp_path: Path) -> None:
    assert resolve(str(write_gguf(tmp_path / "model"))).kind == "gguf"


def test_all_eos_ids_are_honoured(folder: Path) -> None:
    write_json(folder / "generation_config.json", {"eos_token_id": [7, 9]})
    assert resolve(str(folder)).eos_ids == [7, 9, 2]


def test_sampling_defaults_come_from_the_generation_config(folder: Path) -> None:
    given = {"temperature": 0.6, "top_k": 0, "top_p": 0.95, "transformers_version": "5.0"}
    write_json(folder / "generation_config.json", given)
    wanted = {"temperature": 0.6, "top_k": -1, "top_p": 0.95}
    assert resolve(str(folder)).default_sampling == wanted


def test_the_dtype_is_the_configured_one_or_that_of_most_bytes(folder: Path) -> None:
    assert resolve(str(folder)).dtype == "bfloat16"
    write_json(folder / "config.json", {"architectures": ["X"]})
    assert resolve(str(folder)).dtype == "float16"


def test_a_sharded_folder_reads_the_files_of_its_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "one.safetensors", {"a.weight": HALF})
    write_safetensors(folder / "two.safetensors", {"b.weight": HALF})
    write_safetensors(folder / "stray.safetensors", {"b.weight": HALF})
    weight_map = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    assert set(resolve(str(folder)).index) == {"a.weight", "b.weight"}


@pytest.mark.parametrize("name", ["three.safetensors", "../my-model/model.safetensors"])
def test_an_index_that_names_no_file_of_the_folder_is_refused(folder: Path, name: str) -> None:
    weight_map = {"a.weight": "model.safetensors", "b.weight": name}
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(CheckpointError, match="lacks 1 of 2 weight files"):
        resolve(str(folder))


def test_two_files_with_one_tensor_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    write_safetensors(folder / "two.safetensors", {"a.weight": HALF})
    with pytest.raises(CheckpointError, match=r"a\.weight is in two files"):
        resolve(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickles_that_are_no_weights_are_refused_naming_safetensors(
    folder: Path, name: str
) -> None:
    """Of other names, or of the right one and with something else inside."""
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=name) as caught:
        resolve(str(folder))
    assert "safetensors" in caught.value.remedy


def test_a_pickle_without_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match="without a configuration"):
        resolve(str(tmp_path / "model.pt"))


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        resolve(str(tmp_path))


def test_a_quantised_folder_that_we_cannot_read_is_refused_by_method(folder: Path) -> None:
    write_json(folder / "config.json", CONFIG | {"quantization_config": {"quant_method": "quip"}})
    with pytest.raises(UnsupportedError, match="quantised by quip"):
        resolve(str(folder))


def test_what_is_neither_file_nor_name_is_refused_with_the_known_names() -> None:
    with pytest.raises(CheckpointError, match="smollm2"):
        resolve("no-such-model")


def test_a_revision_is_for_hub_models_only(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--revision main"):
        resolve(str(folder), "main")


def test_a_closed_model_holds_no_file(folder: Path) -> None:
    files = resolve(str(folder))
    files.close()
    assert files.num_bytes == 0


def test_bfloat16_comes_as_bits(tmp_path: Path) -> None:
    bits = np.array([[0x3F80, 0x4000]], np.uint16)
    (tensor,) = read_safetensors(write_safetensors(tmp_path / "m.safetensors", {"w": bits}))
    assert tensor.dtype == "bfloat16"
    np.testing.assert_array_equal(tensor.read_all()["weight"], bits)


def test_tensors_at_odd_addresses_read_aligned(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    arrays = {"a": np.zeros(1, np.uint16), "b": np.arange(3, dtype=np.float32)}
    _, tensor = read_safetensors(write_safetensors(path, arrays))
    read = tensor.read_all()["weight"]
    assert read.flags.aligned
    np.testing.assert_array_equal(read, arrays["b"])


def test_a_tensor_past_the_end_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"b\.weight \[2, 3\] F16 lies at \[12, 24\) of 23"):
        resolve(str(folder))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200), length=st.integers(0, 2**64 - 1) | st.integers(0, 200))
def test_damaged_safetensors_are_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(struct.pack("<Q", length) + content)
    try:
        tensors = list(read_safetensors(path))
    except CheckpointError:
        return
    assert tensors == []


HEADERS = [
    "[]",
    '{"w": 3}',
    '{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
    '{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
    '{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99]}}',
    '{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
    '{"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
    '{"w": {"dtype": "F32", "shape": [9e99], "data_offsets": [0, 4]}}',
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"\0" * 8)
    with pytest.raises(CheckpointError):
        list(read_safetensors(path))


def files_of(**config: object) -> ModelFiles:
    return ModelFiles(
        kind="folder", path=Path(), name="m", config=config, generation_config={}, index={}
    )


def test_a_model_that_ends_with_nothing_has_no_eos_ids() -> None:
    assert files_of(eos_token_id=None).eos_ids == []


def test_a_model_without_an_architecture_is_refused() -> None:
    with pytest.raises(CheckpointError, match="names no architecture"):
        _ = files_of().architecture


@pytest.mark.parametrize("path", ["./nothing", "../nothing", "~/nothing", "/no/thing"])
def test_a_path_that_is_not_there_is_no_hub_id(path: str) -> None:
    with pytest.raises(CheckpointError, match="is neither a file, a folder nor a hub id"):
        resolve(path)
    fetch(path)  # leaves the name to resolve


@pytest.mark.parametrize("name", ["models/a--b", "a/b.git", "a./b"])
def test_a_name_that_the_hub_refuses_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"no file or folder {name} here.*[Rr]epo"):
        fetch(name)


def test_a_configuration_in_place_of_its_folder_is_said_to_be_one(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="Give the folder that holds it"):
        resolve(str(folder / "config.json"))
