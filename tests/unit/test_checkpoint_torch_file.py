"""Files that torch wrote are read without running anything of them."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstock.checkpoint import torch_file
from headstock.checkpoint.files import as_float32
from headstock.checkpoint.torch_file import read_torch_file
from headstock.checkpoint.torch_pickle import REBUILD
from headstock.errors import CheckpointError


def write_zip(path: Path, entries: dict[str, bytes], packed: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_those_that_were_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    given = {
        "a": torch.randn(3, 5).to(dtype),
        "b.c": torch.randn(7).to(dtype),
        "number": torch.tensor(2.5, dtype=dtype),
        "part": torch.arange(12.0).to(dtype).reshape(3, 4)[1:],
    }
    torch.save(given, tmp_path / "t.pt")
    found = read_torch_file(tmp_path / "t.pt")
    assert list(found) == list(given)
    for name, tensor in given.items():
        assert found[name].shape == tuple(tensor.shape)
        values = as_float32(found[name].dtype, found[name].read_all()["weight"])
        np.testing.assert_array_equal(values.reshape(tensor.shape), tensor.float().numpy())


def test_a_state_dict_of_modules_is_read(tmp_path: Path) -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(4, 2))
    torch.save(layer.state_dict(), tmp_path / "t.pt")
    assert list(read_torch_file(tmp_path / "t.pt")) == ["0.weight", "0.bias"]


def test_parameters_and_whole_numbers_are_read(tmp_path: Path) -> None:
    given = {"a": torch.nn.Parameter(torch.ones(2, 3)), "position_ids": torch.arange(4)[None]}
    torch.save(given, tmp_path / "t.bin")
    found = read_torch_file(tmp_path / "t.bin")
    assert found["a"].shape == (2, 3)
    assert found["position_ids"].dtype == "int64"
    np.testing.assert_array_equal(found["position_ids"].read_all()["weight"], [[0, 1, 2, 3]])


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    """Reading rows of a file larger than the memory costs what the rows take."""
    torch.save({"a": torch.ones(4, 2), "b": torch.ones(3)}, tmp_path / "t.bin")
    found = read_torch_file(tmp_path / "t.bin")
    assert found["a"].file is not None
    assert found["a"].file is found["b"].file
    assert np.shares_memory(found["a"].read(1, 2)["weight"], found["a"].file.data)


def nested(depth: int) -> bytes:
    """Return opcodes of a tuple that holds another twice, that one another twice, and so on."""
    return b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(depth))


def rebuilt(arguments: bytes) -> bytes:
    """Return opcodes of a dict with one tensor, of these arguments."""
    head = b"\x80\x02}X\x01\x00\x00\x00ac" + REBUILD.replace(" ", "\n").encode() + b"\n"
    return head + arguments + b"Rs."


STORED = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n%bNNtQ"


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}" + nested(60) + b"Ns.",
        rebuilt(b"(" + STORED % nested(60) + b"K\x00))t"),
        rebuilt(b"(" + STORED % b"X\x01\x00\x00\x000" + b"K\x00" + nested(60) + b")t"),
        rebuilt(b"(" + nested(60) + b"K\x00))t"),
        b"\x80\x02}X\x01\x00\x00\x00a" + nested(60) + b"s.",
    ],
    ids=["key", "entry", "shape", "storage", "value"],
)
def test_what_is_small_to_write_and_endless_to_print_is_not_read(
    tmp_path: Path, data: bytes
) -> None:
    write_zip(tmp_path / "t.bin", {"t/data.pkl": data, "t/data/0": bytes(16)})
    with pytest.raises(CheckpointError, match="something else"):
        read_torch_file(tmp_path / "t.bin")


@pytest.mark.parametrize("shape", [b"K\x04K\xff\x86", b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"])
def test_sizes_that_the_storage_has_not_are_refused(tmp_path: Path, shape: bytes) -> None:
    stored = STORED % b"X\x01\x00\x00\x000"
    write_zip(
        tmp_path / "t.bin",
        {"t/data.pkl": rebuilt(b"(" + stored + b"K\x00" + shape + shape + b"t"), "t/data/0": b""},
    )
    with pytest.raises(CheckpointError):
        read_torch_file(tmp_path / "t.bin")


def test_a_directory_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "t.bin")
    monkeypatch.setattr(torch_file, "MAX_DIRECTORY_BYTES", 100)
    with pytest.raises(CheckpointError, match="directory of"):
        read_torch_file(tmp_path / "t.bin")


class Runs:
    """Would make a folder, were it unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_what_would_run_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    made = tmp_path / "made"
    data = pickle.dumps({"weight": Runs(made)}, protocol=protocol)
    write_zip(tmp_path / "t.pt", {"t/data.pkl": data})
    with pytest.raises(CheckpointError, match="something else"):
        read_torch_file(tmp_path / "t.pt")
    assert not made.exists()


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"t/data.pkl": b""},
        {"t/data.pkl": b"\x80\x02]."},
        {"t/data.pkl": b"\x80\x02}"},
        {"t/data.pkl": b"\x80\x02h\x05."},
        {"t/data.pkl": b"\x80\x02."},
        {"t/data.pkl": b"\x80\x02(t."},
        {"t/data.pkl": b"\x80\x02s."},
        {"t/data.pkl": pickle.dumps(OrderedDict(a=1), protocol=2)},
        {"t/data.pkl": pickle.dumps({}, 2), "u/data.pkl": pickle.dumps({}, 2)},
        {"t/data.pkl": pickle.dumps({}, 2), "t/byteorder": b"big"},
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, entries: dict[str, bytes]) -> None:
    write_zip(tmp_path / "t.pt", entries)
    with pytest.raises(CheckpointError):
        read_torch_file(tmp_path / "t.pt")


def test_storages_that_are_missing_short_or_packed_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.randn(4, 4)}, tmp_path / "t.pt")
    with zipfile.ZipFile(tmp_path / "t.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (data,) = (name for name in entries if name.endswith("/data/0"))
    for changed in (
        {**entries, data: entries[data][:-4]},
        {n: v for n, v in entries.items() if n != data},
    ):
        write_zip(tmp_path / "u.pt", changed)
        with pytest.raises(CheckpointError):
            read_torch_file(tmp_path / "u.pt")
    write_zip(tmp_path / "u.pt", entries, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError):
        read_torch_file(tmp_path / "u.pt")


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.ones(4, 2).T}, tmp_path / "turned.pt")
    torch.save({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "complex.pt")
    for name in ("old", "turned", "complex"):
        with pytest.raises(CheckpointError):
            read_torch_file(tmp_path / f"{name}.pt")
