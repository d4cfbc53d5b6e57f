"""The command line's frame: fast help, errors with a remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headstock.cli import main
from headstock.cli.commands import COMMANDS
from headstock.cli.table import format_table


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(row.name in printed and row.help in printed for row in COMMANDS)


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_every_command_has_a_help(row: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*row.name.split(), "--help"])  # type: ignore[attr-defined]
    assert caught.value.code == 0
    assert "--debug" in capsys.readouterr().out


@pytest.mark.parametrize("argv", ["--help", "backends"])
def test_no_tensor_library_is_loaded_for(argv: str) -> None:
    done = python(
        "import sys\n"
        "from headstock.cli import main\n"
        f"main([{argv!r}])\n"
        "sys.exit(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)).__repr__())"
    )
    assert done.stderr.strip() == "[]"


def test_help_takes_under_0_3_s_of_processor_time() -> None:
    before = os.times()
    python("from headstock.cli import main; main(['--help'])")
    after = os.times()
    used_s = after.children_user + after.children_system
    assert used_s - before.children_user - before.children_system < 0.3


def test_an_unknown_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backend"]) == 2
    assert "Did you mean 'backends'" in capsys.readouterr().err


def test_an_unknown_flag_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backends", "--disable-plugins=x"]) == 2
    assert "Did you mean '--disable-plugin'" in capsys.readouterr().err


def test_an_error_is_problem_and_remedy_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["backends", "--bogus"]) == 2
    printed = capsys.readouterr().err
    assert "\n  -> " in printed
    assert "Traceback" not in printed


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backends", "--bogus", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_environment_can_ask_for_tracebacks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTOCK_DEBUG", "1")
    assert main(["backends", "--bogus"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_backends_lists_the_built_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backends"]) == 0
    printed = capsys.readouterr().out
    assert "reference" in printed
    assert "-> would use: " in printed


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headstock.cli", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert done.stdout.startswith("headstock ")


def test_a_table_aligns_its_columns() -> None:
    assert format_table(("a", "b"), [("long", "x"), ("s", "y")]) == "a     b\nlong  x\ns     y"
