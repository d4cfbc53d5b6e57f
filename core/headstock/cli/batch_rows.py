"""Rows of a batch: what is asked, what was answered already, and the file that answers go to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from headstock.errors import ConfigError

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
FINAL_BELOW = 500
"""Answers with a lower status are not asked for again, but those in :data:`AGAIN`."""
AGAIN = frozenset({408, 429})


class Row(msgspec.Struct, kw_only=True):
    """A line of the input: OpenAI's batch form, or a body with an id or none."""

    custom_id: str | None = None
    url: str | None = None
    body: dict[str, Any] | None = None
    id: str | int | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    sampling_params: dict[str, Any] = {}


class Asked(msgspec.Struct, frozen=True):
    """A checked row."""

    custom_id: str
    path: str
    body: dict[str, Any]


class Response(msgspec.Struct):
    """What a row was answered with."""

    status_code: int
    body: Any = None


class Answered(msgspec.Struct):
    """A line of the output, in OpenAI's batch form."""

    id: str
    custom_id: str
    response: Response | None = None
    error: Any = None

    @property
    def is_final(self) -> bool:
        """Whether asking again would bring nothing else."""
        if self.response is None:
            return False
        return self.response.status_code < FINAL_BELOW and self.response.status_code not in AGAIN


def read_rows(path: str) -> list[Asked]:
    """Return the rows of an input file.

    Raises:
        ConfigError: It cannot be read, a line is no row, or two have one id.
    """
    rows: list[Asked] = []
    known: set[str] = set()
    for number, line in _lines(path):
        row = _asked(path, number, line)
        if row.custom_id in known:
            raise ConfigError(
                f"{path}, line {number}: the id {row.custom_id!r} was used before.",
                remedy="Give each row its own custom_id.",
            )
        known.add(row.custom_id)
        rows.append(row)
    if not rows:
        raise ConfigError(f"{path} has no rows.", remedy="Give one a line.")
    return rows


def _lines(path: str) -> Iterator[tuple[int, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The input {path} cannot be read: {error}.", remedy="Give a file of UTF-8 text."
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _asked(path: str, number: int, line: str) -> Asked:
    try:
        row = msgspec.json.decode(line, type=Row)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{path}, line {number} is not a row: {error}.",
            remedy="See `headstock batch --help` for what a row has.",
        ) from error
    custom_id = row.custom_id or (f"row-{number}" if row.id is None else str(row.id))
    if row.body is not None:
        return Asked(
            custom_id, row.url or (CHAT if "messages" in row.body else COMPLETION), row.body
        )
    if (row.prompt is None) == (row.messages is None):
        raise ConfigError(
            f"{path}, line {number} has not exactly one of body, prompt and messages.",
            remedy="Give one.",
        )
    if row.messages is not None:
        return Asked(custom_id, CHAT, {"messages": row.messages, **row.sampling_params})
    return Asked(custom_id, COMPLETION, {"prompt": row.prompt, **row.sampling_params})


class Output:
    """The file of answers: what it has is kept, what is new is added line by line.

    Args:
        path: Of the file.
        rows: What is asked.

    Attributes:
        done: Ids that have a final answer.

    Raises:
        ConfigError: It cannot be written, or has answers to other rows.
    """

    def __init__(self, path: str, rows: list[Asked]) -> None:
        self._path = Path(path)
        kept = self._kept({row.custom_id for row in rows})
        self.done = {answer.custom_id for answer in kept}
        try:
            self._rewrite(kept)
            self._file: IO[bytes] = self._path.open("ab")
        except OSError as error:
            raise ConfigError(
                f"The output {path} cannot be written: {error.strerror or error}.",
                remedy="Give another path.",
            ) from error

    def write(self, answer: Answered) -> None:
        """Add an answer; it is there even if the machine stops now."""
        self._file.write(msgspec.json.encode(answer) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _kept(self, ids: set[str]) -> list[Answered]:
        """Return final answers of an earlier run; a last line that was cut off is not one."""
        if not self._path.exists():
            return []
        found: list[Answered] = []
        lines = self._path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                answer = msgspec.json.decode(line, type=Answered)
            except msgspec.DecodeError as error:
                if number == len(lines):
                    continue
                raise ConfigError(
                    f"{self._path}, line {number} is not an answer of a batch: {error}.",
                    remedy="Give another output.",
                ) from error
            if answer.custom_id not in ids:
                raise ConfigError(
                    f"{self._path} has an answer to {answer.custom_id!r}, which the input has not.",
                    remedy="Give another output, or the input that it belongs to.",
                )
            if answer.is_final:
                found.append(answer)
        return found

    def _rewrite(self, kept: list[Answered]) -> None:
        """Drop what is asked again."""
        beside = self._path.with_name(f"{self._path.name}.part")
        beside.write_bytes(b"".join(msgspec.json.encode(answer) + b"\n" for answer in kept))
        os.replace(beside, self._path)
