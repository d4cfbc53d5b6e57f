"""Flags over environment over file over defaults."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstock.config import (
    EngineSettings,
    Loaded,
    ServeSettings,
    Source,
    add_flags,
    read_environment,
    read_settings,
    settings_from_call,
)
from headstock.config.aliases import aliases
from headstock.config.options import options
from headstock.errors import ConfigError


def load(*argv: str, variables: dict[str, str] | None = None, command: Any = ServeSettings) -> Any:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    add_flags(parser, command)
    return read_settings(parser.parse_args(argv), command, read_environment(variables or {}))


def toml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "engine.toml"
    path.write_text(text)
    return str(path)


def test_nothing_set_is_the_defaults() -> None:
    assert load().settings == ServeSettings()


def test_a_flag_wins_over_environment_and_file(tmp_path: Path) -> None:
    config = toml(tmp_path, "[cache]\npage_size = 1\n")
    loaded = load("--config", config, "--page-size=3", variables={"HEADSTOCK_PAGE_SIZE": "2"})
    assert loaded.settings.cache.page_size == 3
    assert loaded.origin("cache.page_size").source is Source.FLAG


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    config = toml(tmp_path, "[cache]\npage_size = 1\n")
    loaded = load("--config", config, variables={"HEADSTOCK_PAGE_SIZE": "2"})
    assert loaded.settings.cache.page_size == 2
    assert loaded.origin("cache.page_size").name == "HEADSTOCK_PAGE_SIZE"


def test_the_file_wins_over_the_default(tmp_path: Path) -> None:
    loaded = load("--config", toml(tmp_path, "[cache]\npage_size = 1\n"))
    assert loaded.settings.cache.page_size == 1
    assert loaded.origin("cache.page_size").source is Source.FILE
    assert loaded.origin("cache.memory_fraction").source is Source.DEFAULT


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    config = toml(tmp_path, "[cache]\npage_size = 5\n")
    assert load(variables={"HEADSTOCK_CONFIG": config}).settings.cache.page_size == 5


@given(st.sampled_from([o for o in options() if o.kind in ("int", "bool")]), st.integers(16, 65535))
def test_a_value_means_the_same_by_flag_environment_and_call(option: Any, number: int) -> None:
    value = bool(number % 2) if option.kind == "bool" else number
    text = str(value).lower()
    by_variable = load(variables={option.variable: text}).values
    flag = [option.flag.replace("--", "--no-", 1)] if value is False else [option.flag]
    by_flag = load(*(flag if option.kind == "bool" else [f"{option.flag}={text}"])).values
    by_call = settings_from_call(ServeSettings, {option.name: value}).values
    assert by_variable == by_flag == by_call
    assert by_call[option.path] == value


def test_the_model_may_stand_alone() -> None:
    assert load("folder/").settings.model.model == "folder/"


def test_two_different_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        load("--model", "a", "b")


def test_a_list_flag_may_be_given_several_times() -> None:
    assert load("--op", "a=x", "--op", "b=y").settings.device.op == ["a=x", "b=y"]


def test_a_list_variable_is_separated_by_commas() -> None:
    loaded = load(variables={"HEADSTOCK_API_KEYS": "one, two,"})
    assert loaded.settings.server.api_keys == ["one", "two"]


def test_secrets_have_no_flag() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, ServeSettings)
    assert "--api-keys" not in parser.format_help()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[cache]\npag_size = 1", "page_size"),
        ("[cach]\npage_size = 1", "cache"),
        ("[model]\npage_size = 1", r"Put it under \[cache\]"),
        ("page_size = 1", r"Put it under \[cache\]"),
        ("cache = 1", r"Write \[cache\]"),
        ("[cache]\npage_size = 0", "an integer, at least 1"),
        ("[cache]\npage_size = '16'", "an integer, at least 1"),
        ("[cache\n", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_refused_with_the_way_out(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load("--config", toml(tmp_path, text))


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load("--config", "/nowhere/engine.toml")


def test_a_file_may_have_settings_that_a_command_does_not_use(tmp_path: Path) -> None:
    config = toml(tmp_path, "[server]\nport = 1\n[cache]\npage_size = 4\n")
    assert load("--config", config, command=EngineSettings).settings.cache.page_size == 4


def test_an_unknown_variable_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'HEADSTOCK_PAGE_SIZE'"):
        read_environment({"HEADSTOCK_PAGE_SZIE": "1"})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("HEADSTOCK_PORT", "tcp://10.0.0.1:30000"),
        ("HEADSTOCK_SERVICE_HOST", "10.0.0.1"),
        ("HEADSTOCK_SERVICE_PORT_HTTP", "30000"),
        ("HEADSTOCK_PORT_30000_TCP_ADDR", "10.0.0.1"),
        ("HEADSTOCK_ROUTER_PORT_80_TCP", "tcp://10.0.0.2:80"),
    ],
)
def test_kubernetes_service_variables_are_not_settings(variable: str, text: str) -> None:
    assert read_environment({variable: text}).values == {}


def test_the_cache_directory_honours_xdg(tmp_path: Path) -> None:
    environment = read_environment({"XDG_CACHE_HOME": str(tmp_path)})
    assert environment.model_dir == tmp_path / "headstock" / "models"


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        (["--model-path", "m"], "model.model", "m"),
        (["--tp", "2"], "parallel.tp_size", 2),
        (["--tensor-parallel-size=2"], "parallel.tp_size", 2),
        (["--context-length", "4096"], "model.max_model_len", 4096),
        (["--mem-fraction-static", "0.8"], "cache.memory_fraction", 0.8),
        (["--max-num-seqs", "64"], "scheduler.max_running_requests", 64),
        (["--disable-radix-cache"], "cache.prefix_cache", False),
        (["--enforce-eager"], "device.graphs", False),
        (["--enable-metrics"], "cache.page_size", None),
    ],
)
def test_other_engines_flags_port(argv: list[str], path: str, value: object) -> None:
    assert load(*argv).values[path] == value


def test_an_alias_keeps_its_own_spelling_in_messages() -> None:
    with pytest.raises(ConfigError, match="--tp is 'two'"):
        load("--tp", "two")


@pytest.mark.parametrize("argv", [["--api-key", "k"], ["--trust-remote-code"]])
def test_a_flag_that_means_harm_is_refused_with_the_way_out(argv: list[str]) -> None:
    with pytest.raises(ConfigError):
        load(*argv)


def test_every_alias_means_a_setting_that_there_is() -> None:
    known = {option.path for option in options()}
    table = aliases()
    assert {*table.spelling.values(), *(v.path for v in table.value.values())} <= known


def test_no_alias_hides_a_flag_of_ours() -> None:
    table = aliases()
    ours = {option.flag for option in options()}
    assert not ours & {*table.spelling, *table.value, *table.always, *table.refused}


def test_a_backend_changes_only_what_the_operator_left_alone() -> None:
    loaded: Loaded[ServeSettings] = load("--page-size", "8")
    patched = loaded.with_patch("cache.page_size", 16, "wide loads").with_patch(
        "device.graphs", False, "no graphs"
    )
    assert patched.settings.cache.page_size == 8
    assert patched.settings.device.graphs is False
    assert patched.origin("device.graphs").name == "no graphs"


def test_a_call_with_an_unknown_argument_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'page_size'"):
        settings_from_call(EngineSettings, {"page_sise": 3})
