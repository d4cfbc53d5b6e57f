"""`headstock bench`: the figures, and a client that sees what a server streams, to the token."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstock.cli import main
from headstock.cli.bench_client import Streamed, Target
from headstock.cli.bench_figures import percentile, random_prompts, spread_ms, tell
from headstock.cli.bench_serve import Load, figures_of, run_load
from headstock.errors import ConfigError

values = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=2, max_size=50)


@given(values)
def test_percentiles_are_those_of_the_standard_library(seconds: list[float]) -> None:
    ordered = sorted(seconds)
    hundredths = statistics.quantiles(ordered, n=100, method="inclusive")
    assert percentile(ordered, 90) == pytest.approx(hundredths[89])
    assert percentile(ordered, 50) == pytest.approx(statistics.median(ordered))


def test_a_spread_of_nothing_is_nothing() -> None:
    assert spread_ms("tpot", []) == {}


def test_prompts_share_their_prefix_and_nothing_else() -> None:
    prompts = random_prompts(8, 16, prefix=4, vocab_size=5000, seed=1)
    assert {tuple(prompt[:4]) for prompt in prompts} == {tuple(prompts[0][:4])}
    assert len({tuple(prompt[4:]) for prompt in prompts}) == 8
    assert {len(prompt) for prompt in prompts} == {20}


def test_the_same_seed_draws_the_same_prompts() -> None:
    draw = [random_prompts(2, 5, prefix=0, vocab_size=999, seed=seed) for seed in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


def test_prompts_of_no_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match="There are no prompts"):
        random_prompts(2, 0, prefix=0, vocab_size=999, seed=0)


def test_figures_add_up() -> None:
    answers = [
        Streamed(0.0, [0.1, 0.2, 0.4], 0.5, 10, 3),
        Streamed(1.0, [1.2], 1.3, 5, 1),
        Streamed(error="status 500"),
    ]
    figures = figures_of(answers, 2.0)
    assert (figures["completed"], figures["failed"]) == (2, 1)
    assert (figures["input_tokens"], figures["output_tokens"]) == (15, 4)
    assert figures["output_tokens_per_s"] == 2.0
    assert figures["mean_ttft_ms"] == pytest.approx(150)
    assert figures["mean_tpot_ms"] == pytest.approx(150)
    assert figures["mean_itl_ms"] == pytest.approx(150)
    assert figures["mean_e2el_ms"] == pytest.approx(400)


def test_the_file_has_set_up_and_figures(tmp_path: Path) -> None:
    tell("t", {"seed": 3}, {"duration_s": 1.0}, str(tmp_path / "f.json"))
    written = json.loads((tmp_path / "f.json").read_text())
    assert written == {"benchmark": "t", "seed": 3, "duration_s": 1.0}


def chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text}]}).encode() + b"\n\n"


LAST = b'data: {"choices":[{"text":"","finish_reason":"length"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = chunk("a") + b": ping\n\n" + chunk("é") + LAST + USAGE + DONE


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


def response(body: bytes, status: int = 200, *, size: int = 1000) -> bytes:
    head = b"HTTP/1.1 %d X\r\ntransfer-encoding: chunked\r\n\r\n" % status
    return head + chunked(body, size)


async def serve(data: bytes, use: Callable[[str], Any], *, piece: int = 10_000) -> Any:
    """Answer every connection with ``data``, some bytes at a time."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for at in range(0, len(data), piece):
            writer.write(data[at : at + piece])
            await writer.drain()
            if piece < len(data):
                await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await use(f"http://127.0.0.1:{port}")


def complete(data: bytes, *, piece: int = 10_000) -> Streamed:
    async def use(url: str) -> Streamed:
        return await Target(url, {"authorization": "Bearer k"}).complete({"prompt": [1]})

    return asyncio.run(serve(data, use, piece=piece))


@pytest.mark.parametrize(("size", "piece"), [(1000, 10_000), (7, 10_000), (1, 3), (50, 1)])
def test_a_stream_is_understood_however_it_is_cut(size: int, piece: int) -> None:
    streamed = complete(response(WHOLE, size=size), piece=piece)
    assert streamed.error == ""
    assert (streamed.prompt_tokens, streamed.output_tokens) == (3, 2)
    assert len(streamed.arrivals_s) == 2
    assert streamed.sent_s < streamed.arrivals_s[0] <= streamed.arrivals_s[1] <= streamed.ended_s


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (response(b'{"error":{"message":"Full."}}', 429), "status 429"),
        (response(chunk("a")), "broke off"),
        (response(chunk("a"))[:-5], "broke off"),
        (response(b'data: {"error":{"message":"It died."}}\n\n' + DONE), "It died."),
        (response(DONE), "no tokens"),
        (response(b"data: nonsense\n\n"), "not a completion"),
        (b"220 smtp\r\n\r\n", "not HTTP"),
        (b"", "broke off"),
    ],
)
def test_what_goes_wrong_is_in_the_answer(data: bytes, error: str) -> None:
    assert error in complete(data).error


def test_nobody_there_is_in_the_answer() -> None:
    target = Target("http://127.0.0.1:9", {})
    assert "no connection" in asyncio.run(target.complete({})).error


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a URL"):
        Target("localhost:30000", {})


def load(count: int, **more: Any) -> Load:
    given = {"request_rate": None, "max_concurrency": 4, "seed": 0, **more}
    return Load(prompts=[[1]] * count, body={}, **given)


def test_every_prompt_of_a_load_is_sent_once() -> None:
    done: list[int] = []

    async def use(url: str) -> list[Streamed]:
        return await run_load(Target(url, {}), load(9), done.append)

    answers = asyncio.run(serve(response(WHOLE), use))
    assert [answer.error for answer in answers] == [""] * 9
    assert sum(done) == 9


def test_a_request_rate_spreads_the_load() -> None:
    async def use(url: str) -> list[Streamed]:
        return await run_load(Target(url, {}), load(10, request_rate=100.0), lambda _: None)

    answers = asyncio.run(serve(response(WHOLE), use))
    sent = [answer.sent_s for answer in answers]
    assert 0.02 < max(sent) - min(sent) < 2


def test_bench_alone_lists_its_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert "bench serve, bench latency, bench throughput" in capsys.readouterr().err


def test_a_rate_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--request-rate", "0"]) == 2
    assert "--request-rate is 0" in capsys.readouterr().err
