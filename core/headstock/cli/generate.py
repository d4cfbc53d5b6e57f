"""Generate from a file of prompts, without a server.

INPUT is text with a prompt a line, or JSONL with a `prompt`, `input_ids` or `messages` a row and
perhaps `sampling_params`, `id` and `metadata`. Each row gives a line of JSON, in the input's order:
`index`, `id` and `metadata` where given, and `text`, `output_ids` and `meta_info` as /generate
answers. A row that is at fault gives a line with `error`; the others go on, and the exit code is 1.

Examples:
  headstock generate --input prompts.txt --output answers.jsonl
  headstock generate ./my-model --input rows.jsonl --temperature 0 --max-new-tokens 200
  echo 'The capital of France is' | headstock generate --max-new-tokens 8
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import msgspec

from headstock.cli.offline import open_engine
from headstock.cli.progress import Advance, row_progress
from headstock.cli.sampling import add_sampling_flags, sampling_of
from headstock.config import EngineSettings, add_flags, read_settings
from headstock.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from headstock import Engine

Format = Literal["text", "jsonl"]
STANDARD = "-"
ROWS_A_SLOT = 2
"""Rows handed to the engine for each that it computes at once, so that it never waits for us."""
FATAL = frozenset({"engine_lost", "engine_unavailable"})
"""Errors of the engine itself: no other row can be served either."""


class Row(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A line of JSONL: exactly one of ``prompt``, ``input_ids`` and ``messages``."""

    prompt: str | None = None
    input_ids: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    sampling_params: dict[str, Any] = {}
    id: Any = msgspec.UNSET
    metadata: Any = msgspec.UNSET


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock generate``."""
    parser.add_argument(
        "--input", default=STANDARD, metavar="FILE", help="prompts (default: -, standard input)"
    )
    parser.add_argument(
        "--output", default=STANDARD, metavar="FILE", help="answers (default: -, standard output)"
    )
    parser.add_argument(
        "--input-format",
        choices=("text", "jsonl"),
        help="of the input; by its name and its first character when not given",
    )
    parser.add_argument(
        "--chat", action="store_true", help="each prompt is a user's message to a chat model"
    )
    add_sampling_flags(parser)
    add_flags(parser, EngineSettings)


def run(arguments: argparse.Namespace) -> int:
    """Generate; return 1 when a row was at fault."""
    loaded = read_settings(arguments, EngineSettings)
    lines = _read(arguments.input)
    kind: Format = arguments.input_format or _format_of(arguments.input, lines)
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(_open(arguments.output))
        engine = stack.enter_context(open_engine(loaded))
        advance = stack.enter_context(row_progress("generate", len(lines)))
        job = Job(engine, kind, sampling_of(arguments), is_chat=arguments.chat)
        num_failed = asyncio.run(_write_all(job, lines, output, advance))
    if num_failed:
        print(f"{num_failed} of {len(lines)} rows have errors.", file=sys.stderr)
    return 1 if num_failed else 0


async def _write_all(job: Job, lines: list[str], output: IO[str], advance: Advance) -> int:
    """Write the answers to ``lines``; return how many rows failed."""
    num_failed = 0
    async for answers in job.answers(lines):
        for answer in answers:
            output.write(msgspec.json.encode(answer).decode() + "\n")
        output.flush()
        num_failed += "error" in answers[0]
        advance(1)
    return num_failed


class Job:
    """Rows of one format for one engine.

    Args:
        engine: Generates.
        kind: Of the rows.
        sampling: Fields of ``SamplingParams`` for rows that do not set them.
        is_chat: Whether prompts are messages.
    """

    def __init__(
        self, engine: Engine, kind: Format, sampling: dict[str, Any], *, is_chat: bool
    ) -> None:
        self._engine = engine
        self._kind = kind
        self._sampling = engine.card.sampling_defaults | sampling
        self._is_chat = is_chat

    async def answers(self, lines: list[str]) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield what each line gives, in their order: a value for each completion, or an error's.

        Raises:
            RequestError: The engine is lost.
        """
        limit = asyncio.Semaphore(ROWS_A_SLOT * self._engine.started.limits.num_slots)

        async def answer(index: int, line: str) -> list[dict[str, Any]]:
            async with limit:
                return await self._answer(index, line)

        tasks = [asyncio.create_task(answer(index, line)) for index, line in enumerate(lines)]
        try:
            for task in tasks:
                yield await task
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, index: int, line: str) -> list[dict[str, Any]]:
        head: dict[str, Any] = {"index": index}
        try:
            row = self._read(line)
            named = {"id": row.id, "metadata": row.metadata}
            head |= {name: value for name, value in named.items() if value is not msgspec.UNSET}
            found = await self._generate(row)
        except RequestError as error:
            if error.code in FATAL:
                raise
            message = f"{error.problem} {error.remedy}"
            problem = {"message": message, "field": error.field, "code": error.code}
            return [{**head, "error": problem}]
        results = found if isinstance(found, list) else [found]
        numbered = enumerate(results) if len(results) > 1 else [(None, results[0])]
        return [
            {**head, **({} if number is None else {"completion": number}), **result}
            for number, result in numbered
        ]

    def _read(self, line: str) -> Row:
        """Return a line as a row.

        Raises:
            RequestError: It is none.
        """
        if self._kind == "text":
            return Row(prompt=line)
        try:
            return msgspec.json.decode(line, type=Row)
        except msgspec.DecodeError as error:
            raise RequestError(
                f"The row is not valid: {error}.",
                remedy=f"A row may have {', '.join(Row.__struct_fields__)}.",
                code="invalid_row",
            ) from error

    async def _generate(self, row: Row) -> Any:
        given = [row.prompt, row.input_ids, row.messages]
        if sum(value is not None for value in given) != 1:
            raise RequestError(
                "The row needs exactly one of prompt, input_ids and messages.",
                remedy="Give one of them.",
                field="prompt",
                code="missing_prompt",
            )
        messages = row.messages
        if self._is_chat and row.prompt is not None:
            messages = [{"role": "user", "content": row.prompt}]
        input_ids = row.input_ids if messages is None else self._engine.encode_chat(messages)
        return await self._engine.async_generate(
            prompt=row.prompt if input_ids is None else None,
            input_ids=input_ids,
            sampling_params=self._sampling | row.sampling_params,
        )


def _read(path: str) -> list[str]:
    """Return the lines that are not blank.

    Raises:
        ConfigError: The file cannot be read, or has none.
    """
    try:
        if path == STANDARD:
            text = sys.stdin.buffer.read().decode("utf-8")
        else:
            text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The input {path} cannot be read: {error}.", remedy="Give a file of UTF-8 text."
        ) from error
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ConfigError(f"The input {path} holds no prompt.", remedy="Give one a line.")
    return [line.removesuffix("\r") for line in lines]


def _format_of(path: str, lines: list[str]) -> Format:
    suffix = Path(path).suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if path != STANDARD:
        return "text"
    return "jsonl" if lines[0].lstrip().startswith("{") else "text"


@contextlib.contextmanager
def _open(path: str) -> Iterator[IO[str]]:
    if path == STANDARD:
        yield sys.stdout
        return
    try:
        file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115  # closed below
    except OSError as error:
        raise ConfigError(
            f"The output {path} cannot be written: {error.strerror or error}.",
            remedy="Check --output.",
        ) from error
    with file:
        yield file
