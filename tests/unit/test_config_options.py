"""The schema as a list of options."""

from __future__ import annotations

import pytest

from headstock.config.options import Option, options
from headstock.config.schema import EngineSettings, ServeSettings
from headstock.errors import ConfigError

ALL = {option.name: option for option in options(ServeSettings)}


def test_no_two_sections_share_a_setting_name() -> None:
    assert len(ALL) == len(options(ServeSettings))


def test_commands_without_a_server_have_no_server_settings() -> None:
    assert not [o for o in options(EngineSettings) if o.section == "server"]


@pytest.mark.parametrize("option", ALL.values(), ids=lambda o: o.path)
def test_every_setting_has_a_help_that_is_a_sentence(option: Option) -> None:
    assert option.help.endswith(".")


@pytest.mark.parametrize("option", ALL.values(), ids=lambda o: o.path)
def test_every_default_is_allowed(option: Option) -> None:
    assert option.convert(option.default, option.path, is_text=False) == option.default


def test_a_name_gives_flag_key_and_variable() -> None:
    option = ALL["page_size"]
    assert (option.flag, option.path, option.variable) == (
        "--page-size",
        "cache.page_size",
        "HEADSTOCK_PAGE_SIZE",
    )


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("page_size", "an integer, at least 1"),
        ("memory_fraction", "a number, over 0 and at most 1"),
        ("policy", "fair, fcfs, lpm, priority"),
        ("graphs", "true or false"),
        ("op", "a list of strings"),
        ("host", "a string"),
    ],
)
def test_what_is_allowed_is_said_in_words(name: str, allowed: str) -> None:
    assert ALL[name].allowed == allowed


def test_a_refusal_names_place_value_and_what_is_allowed() -> None:
    with pytest.raises(ConfigError) as caught:
        ALL["port"].convert("70000", "--port", is_text=True)
    assert caught.value.problem == (
        "--port is '70000'; allowed: an integer, at least 0 and at most 65535."
    )
    assert caught.value.remedy == "Change it, or leave it out for the default, 30000."


def test_a_mistyped_choice_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'priority'"):
        ALL["policy"].convert("prioriti", "--policy", is_text=True)


def test_text_stands_for_a_number_only_where_text_is_all_there_is() -> None:
    assert ALL["port"].convert("8000", "--port", is_text=True) == 8000
    with pytest.raises(ConfigError):
        ALL["port"].convert("8000", "engine.toml", is_text=False)


def test_a_secret_is_not_repeated_in_its_error() -> None:
    with pytest.raises(ConfigError) as caught:
        ALL["api_keys"].convert("hunter2", "engine.toml", is_text=False)
    assert "hunter2" not in str(caught.value)
