"""`headstock config explain`, and completion scripts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from headstock.cli import main
from headstock.cli.commands import COMMANDS, plugin_commands
from headstock.cli.completion import known_flags
from headstock.config.options import options


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["config", "explain", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "key", ["port", "server.port", "--port", "HEADSTOCK_PORT"], ids=lambda key: key
)
def test_a_setting_has_several_names(capsys: pytest.CaptureFixture[str], key: str) -> None:
    printed = explained(capsys, key)
    assert printed.startswith("server.port\n  Port to listen on")
    assert "value     30000 (the default)" in printed
    assert "0 to 65535" in printed or "at most 65535" in printed


def test_another_engines_flag_is_explained_too(capsys: pytest.CaptureFixture[str]) -> None:
    from headstock.config.aliases import aliases

    flag, path = next(iter(aliases().spelling.items()))
    printed = explained(capsys, flag)
    assert printed.startswith(path)
    assert flag in printed


def test_it_says_where_a_value_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "engine.toml"
    file.write_text("[server]\nport = 1\n")
    assert f"1 (from {file}: server.port)" in explained(capsys, "port", "--config", str(file))
    monkeypatch.setenv("HEADSTOCK_PORT", "2")
    printed = explained(capsys, "port", "--config", str(file))
    assert "2 (from HEADSTOCK_PORT)" in printed


def test_keys_are_never_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTOCK_API_KEYS", "secret")
    assert "secret" not in explained(capsys, "api_keys")
    assert "secret" not in explained(capsys)


def test_without_a_key_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    printed = explained(capsys)
    assert all(option.path in printed for option in options())


def test_an_unknown_setting_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", "pag_size"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_every_command_has_its_flags() -> None:
    flags = known_flags()
    assert set(flags) == {row.name for row in [*COMMANDS, *plugin_commands()]}
    assert "--port" in flags["serve"][1]
    assert "--concurrency" in flags["batch"][1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_printed(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for row in COMMANDS for word in row.name.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("headstock ser", "serve"),
        ("headstock bench la", "latency"),
        ("headstock config e", "explain"),
        ("headstock serve --por", "--port"),
        ("headstock bench serve --request-r", "--request-rate"),
    ],
)
def test_bash_completes(capsys: pytest.CaptureFixture[str], line: str, expected: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    assert main(["completion", "bash"]) == 0
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    script = capsys.readouterr().out + (
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _headstock\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        [bash, "--norc", "-c", script], capture_output=True, text=True, timeout=20, check=False
    )
    assert expected in done.stdout.split(), done.stdout + done.stderr
