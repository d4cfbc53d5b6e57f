"""The log's lines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from headstock.observe.log import Format, Level, request_logged_as, set_up_logging

log = logging.getLogger("headstock.test")


@pytest.fixture(autouse=True)
def _keep_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def start(format: Format = "text", level: Level = "info") -> io.StringIO:
    stream = io.StringIO()
    set_up_logging(level, format, stream)
    return stream


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_line_of_a_request_has_its_id() -> None:
    stream = start("json")
    with request_logged_as("r-1"):
        log.info("one")
        log.warning("two")
    log.info("three")
    assert [line.get("request_id") for line in parsed(stream)] == ["r-1", "r-1", None]


def test_an_id_given_with_the_line_wins() -> None:
    stream = start("json")
    with request_logged_as("r-1"):
        log.info("one", extra={"request_id": "r-2"})
    assert parsed(stream)[0]["request_id"] == "r-2"


def test_text_shows_level_place_id_and_message() -> None:
    stream = start()
    with request_logged_as("r-1"):
        log.info("took %d", 3)
    assert stream.getvalue().split(" ", 1)[1] == "INFO    test [r-1] took 3\n"


def test_a_message_cannot_forge_a_line() -> None:
    stream = start()
    with request_logged_as("r\n00:00:00.000 ERROR x"):
        log.info("a\nb")
    assert stream.getvalue().count("\n") == 1


def test_extra_fields_are_in_the_object_and_cannot_replace_ours() -> None:
    stream = start("json")
    log.info("x", extra={"tokens": 5, "level": "none"})
    (line,) = parsed(stream)
    assert (line["tokens"], line["level"]) == (5, "info")


def test_an_exception_is_in_the_object() -> None:
    stream = start("json")
    try:
        raise ValueError("lost")
    except ValueError:
        log.exception("oh")
    assert "ValueError: lost" in parsed(stream)[0]["exception"]


def test_lines_under_the_level_are_not_written() -> None:
    stream = start(level="warning")
    log.info("quiet")
    assert stream.getvalue() == ""


def test_other_packages_are_heard_from_warning_on() -> None:
    stream = start(level="debug")
    logging.getLogger("urllib3").info("chatter")
    logging.getLogger("urllib3").warning("trouble")
    assert "chatter" not in stream.getvalue()
    assert "trouble" in stream.getvalue()


def test_setting_up_twice_writes_each_line_once() -> None:
    start()
    stream = start()
    log.info("once")
    assert stream.getvalue().count("once") == 1
