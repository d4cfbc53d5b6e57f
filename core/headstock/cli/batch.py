"""Answer a file of requests; go on where an earlier run stopped.

INPUT has a JSON object a line, in the form of OpenAI's batches (`custom_id`, `url`, `body`), or
with `messages` or `prompt` and perhaps `id` and `sampling_params`, fields of a chat or completion.
OUTPUT gets a line for each as it is answered: `custom_id`, and `response` with `status_code` and
`body`. Run again with the same files, only rows without a final answer are asked: those that were
not reached, and those that met a busy or failing server. The exit code is 1 when a row has none.

Without --url the engine runs in this process; MODEL and its settings are as of `headstock serve`.

Examples:
  headstock batch requests.jsonl answers.jsonl ./my-model
  headstock batch requests.jsonl answers.jsonl --url http://10.0.0.5:30000 --concurrency 128
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import httpx
import msgspec

from headstock.cli.batch_rows import Answered, Asked, Output, Response, read_rows
from headstock.cli.chat import engine_settings
from headstock.cli.offline import open_engine
from headstock.cli.progress import Advance, row_progress
from headstock.cli.remote import CONNECT_TIMEOUT_S, own_key
from headstock.config import EngineSettings, ServeSettings, Source, add_flags, read_settings
from headstock.errors import ConfigError, HeadstockError

Ask = Callable[[str, Any], Awaitable[tuple[int, Any]]]
"""Path and body to status and answer."""
ROWS_A_SLOT = 2
REMOTE_ROWS = 64
TRIES = 6
WAIT_S = 0.5


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock batch``."""
    parser.add_argument("input", metavar="INPUT", help="requests, JSONL")
    parser.add_argument("output", metavar="OUTPUT", help="answers, JSONL; may be there already")
    parser.add_argument("--url", metavar="URL", help="server to ask, instead of an own engine")
    parser.add_argument(
        "--concurrency", type=int, metavar="N", help="rows under way at once (default: as fits)"
    )
    add_flags(parser, EngineSettings)
    parser.usage = f"{parser.prog} INPUT OUTPUT [MODEL] [options]"


def run(arguments: argparse.Namespace) -> int:
    """Answer the rows; return 1 when one has no answer with status 200."""
    loaded = read_settings(arguments, ServeSettings)
    rows = read_rows(arguments.input)
    flags = [origin.name for origin in loaded.origins.values() if origin.source is Source.FLAG]
    if arguments.url is not None and flags:
        raise ConfigError(
            f"--url names a server, and {flags[0]} sets up an engine in this process.",
            remedy=f"Drop --url or {flags[0]}.",
        )
    if arguments.concurrency is not None and arguments.concurrency < 1:
        raise ConfigError(f"--concurrency is {arguments.concurrency}.", remedy="Use 1 or more.")
    with contextlib.closing(Output(arguments.output, rows)) as output:
        left = [row for row in rows if row.custom_id not in output.done]
        if output.done:
            print(f"{len(output.done)} of {len(rows)} rows are answered.", file=sys.stderr)
        if not left:
            return 0
        with row_progress("batch", len(left)) as advance:
            if arguments.url is not None:
                key = own_key(loaded.settings.server)
                work = _remote(arguments.url, key, left, output, advance, arguments.concurrency)
                num_failed = asyncio.run(work)
            else:
                logging.getLogger("headstock.http").setLevel(logging.WARNING)
                with open_engine(engine_settings(loaded)) as engine:
                    fits = ROWS_A_SLOT * engine.started.limits.num_slots
                    count = arguments.concurrency or fits
                    work = answer_all(engine.async_request, left, output, advance, count)
                    num_failed = asyncio.run(work)
    if num_failed:
        print(f"{num_failed} of {len(left)} rows have errors.", file=sys.stderr)
    return 1 if num_failed else 0


async def _remote(
    url: str,
    key: str | None,
    rows: Sequence[Asked],
    output: Output,
    advance: Advance,
    concurrency: int | None,
) -> int:
    async with _server(url, key) as ask:
        return await answer_all(ask, rows, output, advance, concurrency or REMOTE_ROWS)


@contextlib.asynccontextmanager
async def _server(url: str, key: str | None) -> AsyncIterator[Ask]:
    """Yield a way to ask the server at ``url``."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
    base = url.rstrip("/").removesuffix("/v1")
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=base, headers=headers, timeout=timeout, limits=limits, trust_env=False
    ) as client:

        async def ask(path: str, body: Any) -> tuple[int, Any]:
            try:
                answer = await client.post(path, json=body)
                return answer.status_code, msgspec.json.decode(answer.content)
            except (httpx.HTTPError, msgspec.DecodeError) as error:
                what = f"{type(error).__name__} {error}".strip()
                return 503, {"error": {"message": what, "code": "unreachable"}}

        yield ask


async def answer_all(
    ask: Ask, rows: Sequence[Asked], output: Output, advance: Advance, concurrency: int
) -> int:
    """Ask for all ``rows``, so many at once; return how many have no good answer."""
    waiting = iter(rows)
    num_failed = 0

    async def work() -> None:
        nonlocal num_failed
        for row in waiting:
            answer = await _answer(ask, row)
            output.write(answer)
            num_failed += answer.response is None or answer.response.status_code != 200
            advance(1)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(rows))):
            group.create_task(work())
    return num_failed


async def _answer(ask: Ask, row: Asked) -> Answered:
    """Ask until the answer is final, or often enough."""
    name = f"batch_req_{uuid.uuid4().hex}"
    if row.body.get("stream"):
        refusal = {"error": {"message": "stream is set in a batch.", "code": "invalid_value"}}
        return Answered(name, row.custom_id, Response(400, refusal))
    answer = Answered(name, row.custom_id)
    for tried in range(1, TRIES + 1):
        try:
            answer.response = Response(*await ask(row.path, row.body))
        except HeadstockError as error:
            answer.error = {"message": error.problem, "code": "engine_failed"}
            return answer
        if answer.is_final or tried == TRIES:
            break
        await asyncio.sleep(WAIT_S * 2**tried)
    return answer
