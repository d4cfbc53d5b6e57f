from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from headstock_xeon import build
from headstock_xeon.device import EXACT_TOKENS, ProgramPolicy


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "_native.so")
    monkeypatch.setattr(build, "REASON", tmp_path / "_native_missing.txt")
    monkeypatch.setattr(build, "OBJECTS", tmp_path / "objects")
    return tmp_path


def test_without_a_compiler_the_reason_is_kept(bare: Path) -> None:
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler"):
        build.build()
    assert "no C++ compiler" in build.REASON.read_text()


def test_another_architecture_is_a_reason_too(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    with pytest.raises(build.BuildError, match="aarch64"):
        build.build()


def test_what_the_compiler_said_is_in_the_error() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('line 3: no such type')"]
    with pytest.raises(build.BuildError, match="no such type"):
        build.call([*command, "source.cpp", "-o", "source.o"])


def test_the_digest_changes_with_any_source(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    (tmp_path / "a.cpp").write_text("int a;")
    before = build.sources_digest()
    (tmp_path / "b.h").write_text("int b;")
    assert build.sources_digest() != before


def test_the_build_needs_nothing_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(build.__file__), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--sanitize" in done.stdout


def test_every_kernel_source_is_compiled_for_the_set_in_its_name() -> None:
    known = set(build.BY_SUFFIX)
    for source in build.SOURCES.glob("*_*.cpp"):
        word = source.stem.rpartition("_")[2]
        assert word in known or "immintrin" not in source.read_text(), source


@pytest.mark.parametrize("rows", [1, 17, 64, 65, 100, 300])
def test_decode_steps_are_captured_at_their_size_or_a_little_above(rows: int) -> None:
    bucket = ProgramPolicy().bucket(rows, rows, True)
    assert bucket is not None
    tokens, padded_rows = bucket
    assert tokens == padded_rows >= rows
    assert tokens == rows if rows <= EXACT_TOKENS else tokens < rows + 32


def test_ragged_steps_run_eagerly() -> None:
    assert ProgramPolicy().bucket(40, 3, False) is None


@pytest.fixture
def bare(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a compiler on its path."""
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda _: None)
    return elsewhere


def test_a_compiler_that_a_package_carries_serves_where_the_system_has_none(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare / "ziglang.py").write_text("print('carried 1.0')")
    monkeypatch.setenv("PYTHONPATH", str(bare))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: name)
    command, version = build.find_compiler()
    assert command[:4] == (sys.executable, "-m", "ziglang", "c++")
    assert "-mcpu=x86_64" in command  # not for the machine at hand: one library runs on all
    assert version == "carried 1.0"


def test_without_any_compiler_the_build_says_one_line_and_goes_on(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--check"]) == 1
    assert build.main([]) == build.FATAL
    capsys.readouterr()
    assert build.main(["--if-possible"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "no C++ compiler" in line
    assert "PyTorch computes instead" in line


def test_a_library_of_these_sources_needs_no_compiler(bare: Path) -> None:
    build.LIBRARY.write_bytes(b"\0" + build.sources_digest().encode() + b"\0")
    assert build.main(["--check"]) == 0
    assert build.main(["--if-possible"]) == 0
    assert not build.REASON.exists()


def test_the_remedy_without_a_compiler_is_a_compiler(bare: Path) -> None:
    from headstock_xeon.native import how_to_build

    assert how_to_build().startswith("Install a C++ compiler")


def test_an_install_needs_no_compiler_from_the_index(bare: Path) -> None:
    root = Path(build.__file__).parents[3]
    spec = importlib.util.spec_from_file_location("hatch_build", root / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hook = module.NativeBuildHook(str(root), {}, None, None, str(bare), "wheel")
    assert hook.dependencies() == []
