"""Trials of what clients send: bad bodies, floods, words that must not show, many names."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from reliability_parts.load import Load
from reliability_parts.memory import anon_mb, family
from reliability_parts.outcome import Outcome, quantile
from tests.e2e.served import SMALL, served

MALFORMED, DISCONNECTS, PROBES, NAMES = 2000, 400, 60, 100_000
CANARY = "xylophone7731"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0.5,
        "stop": ["x"], "logit_bias": {"5": 1.0}, "n": 1, "stream": False,
    },
    "/v1/completions": {"prompt": "hi", "max_tokens": 1, "logprobs": 1, "seed": 3, "top_p": 0.5},
    "/generate": {"text": "hi", "sampling_params": {"max_new_tokens": 1, "stop": ["x"]}},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    "/v1/responses": {"input": "hi", "max_output_tokens": 1, "reasoning": {"effort": "low"}},
    "/api/generate": {"model": "smollm2", "prompt": "hi", "options": {"num_predict": 1}},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [3, 4]},
    "/v1/embeddings": {"input": "hi"},
}  # fmt: skip
VALUES = [
    None, True, -1, 10**9, 10**40, -(2**63) - 1, "", "\x00", "é" * 300, [], {}, [[]], [None],
    [1, "a"], {"a": {"b": [1]}}, ["x"] * 1000, [[[[[1]]]]], {"type": "text"}, 1e308,
]  # fmt: skip
RAW = [
    b"", b"{", b"[]", b"null", b'{"text":NaN}', b'{"n":1e400}', b'{"text":"\xff\xfe"}',
    b'{"text":"\\ud800"}', b"[" * 100_000, b'{"text":' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"text":"a","text":3}', b"\xef\xbb\xbf{}", b"\x00" * 100,
]  # fmt: skip


def mutated(rng: random.Random, value: Any) -> Any:
    """Return a copy of ``value`` with one thing wrong with it, somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], mutated(rng, value[at]), *value[at + 1 :]]
    return rng.choice(VALUES)


def malformed(model: str) -> Outcome:
    """R2: thousands of malformed bodies on every protocol."""
    rng = random.Random(2)
    refused_s: list[float] = []
    faults: list[str] = []
    headers = {"content-type": "application/json"}
    short = ("--max-model-len", "64")  # some bodies are good ones without a limit of tokens
    with (
        served(model, *SMALL, *short) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        for number in range(MALFORMED + 200):
            if number == 200:  # the first ones load what is loaded on first use
                before = sum(anon_mb(pid) for pid in family(server.process.pid))
            path = rng.choice(list(BODIES))
            content = rng.choice(RAW)
            if rng.random() < 0.8:
                content = json.dumps(mutated(rng, mutated(rng, BODIES[path]))).encode()
            begin_s = time.monotonic()
            answer = client.post(path, content=content, headers=headers)
            if answer.status_code >= 400:
                refused_s.append(time.monotonic() - begin_s)
                if answer.status_code >= 500 or "error" not in answer.json():
                    faults.append(f"{path} {content[:200]!r}: {answer.text[:200]}")
        grown = sum(anon_mb(pid) for pid in family(server.process.pid)) - before
        starts = server.get("/server_info").json()["engine"]["starts"]
    p99_ms = 1000 * quantile(refused_s, 0.99)
    return Outcome(
        f"{MALFORMED + 200} bodies, {len(refused_s)} refused, {len(faults)} without the envelope or"
        f" with a 5xx, {starts - 1} restarts; p99 of a refusal {p99_ms:.0f} ms; memory grew by"
        f" {grown:.1f} MB",
        not faults and starts == 1 and p99_ms <= 20 and grown <= 20,
        {"faults": faults[:10], "median_ms": 1000 * quantile(refused_s, 0.5)},
    )


async def _leave(url: str, number: int, rng: random.Random) -> None:
    """Open a stream and leave it after a random number of bytes, at times before the first."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    sampling = {"max_new_tokens": 200, "ignore_eos": True}
    if number % 7 == 0:
        sampling["regex"] = f"[a-z]{{{number},{number + 50}}}"
    text = " ".join(["word"] * rng.randrange(1, 200))
    body = json.dumps({"text": text, "stream": True, "sampling_params": sampling})
    head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
    if rng.random() < 0.3:
        await asyncio.sleep(rng.uniform(0, 0.2))
    else:
        await reader.read(rng.randrange(1, 2000))
    writer.transport.abort()


def disconnects(model: str) -> Outcome:
    """R11: streams cut at a random byte leave nothing behind."""
    rng = random.Random(11)

    async def storm(url: str) -> None:
        for begin in range(0, DISCONNECTS, 32):
            many = range(begin, min(DISCONNECTS, begin + 32))
            await asyncio.gather(*(_leave(url, number, rng) for number in many))

    with served(model, *SMALL) as server:
        asyncio.run(storm(server.url))
        left_s = time.monotonic()
        lost_pages = server.lost_pages()
        quiet_s = time.monotonic() - left_s
        live = server.get("/server_info").json()["live_requests"]
    return Outcome(
        f"{DISCONNECTS} streams left at a random byte: {lost_pages} pages lost, {live} requests"
        f" left, idle {quiet_s:.1f} s after the last",
        lost_pages == 0 and live == 0,
    )


def smirnov(first: list[float], second: list[float]) -> float:
    """Return the p-value of the two-sample Kolmogorov-Smirnov test (asymptotic)."""
    both = sorted([*first, *second])
    n, m = len(first), len(second)
    gap = max(abs(sum(v <= x for v in first) / n - sum(v <= x for v in second) / m) for x in both)
    root = math.sqrt(n * m / (n + m))
    reach = (root + 0.12 + 0.11 / root) * gap
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * k * k * reach * reach) for k in range(1, 101))
    return min(1.0, max(0.0, sum(terms))) if reach > 0.3 else 1.0


def other_tenants(model: str) -> Outcome:
    """R19: what another key has cached cannot be seen in the time to the first token."""
    keys = ("first-tenant-key", "second-tenant-key")
    rng = random.Random(19)

    def prompt() -> list[int]:
        return [rng.randrange(100, 40_000) for _ in range(400)]

    def ttft_s(client: httpx.Client, key: str, ids: list[int]) -> float:
        body = {"input_ids": ids, "sampling_params": {"max_new_tokens": 1}}
        begin_s = time.perf_counter()
        answer = client.post("/generate", json=body, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        return time.perf_counter() - begin_s

    others: list[float] = []
    fresh: list[float] = []
    own: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys"
        path.write_text("\n".join(f"tenant{at}:user:{key}" for at, key in enumerate(keys)))
        path.chmod(0o600)
        with (
            served(model, *SMALL, "--api-key-file", str(path)) as server,
            httpx.Client(base_url=server.url, timeout=120) as client,
        ):
            for _ in range(PROBES):
                cached = prompt()
                ttft_s(client, keys[0], cached)
                pair = [("others", cached), ("fresh", prompt())]
                rng.shuffle(pair)
                for name, ids in pair:
                    (others if name == "others" else fresh).append(ttft_s(client, keys[1], ids))
                own.append(ttft_s(client, keys[0], cached))
    p_others, p_own = smirnov(others, fresh), smirnov(own, fresh)
    return Outcome(
        f"{PROBES} probes of each kind: p = {p_others:.2f} for prompts that another key cached"
        f" against new ones, p = {p_own:.1e} for one's own, which shows that the test can see it",
        p_others > 0.05 and p_own < 0.01,
        {
            "median_ms": [
                round(1000 * quantile(v, 0.5), 1) for v in (others, fresh, own)
            ]
        },
    )  # fmt: skip


def canaries(model: str) -> Outcome:
    """R21: words of requests stand in no log, metric or error."""
    path_like = re.compile(r"(/[\w.-]+){2,}\.py|0x[0-9a-f]{8,}")
    shown: list[str] = []
    with served(model, *SMALL) as server:
        turns = [{"role": "user", "content": f"Say {CANARY}"}]
        image = [{"type": "image_url", "image_url": {"url": f"https://{CANARY}.example/x.png"}}]
        tool = {"type": "function", "function": {"name": CANARY, "parameters": {}}}
        asks: list[tuple[str, dict[str, Any]]] = [
            ("/v1/chat/completions", {"messages": turns, "max_tokens": 4}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": image}]}),
            ("/v1/chat/completions", {"messages": turns, "tools": [tool], "max_tokens": 4}),
            ("/v1/completions", {"prompt": CANARY, "max_tokens": 4, "user": CANARY}),
            ("/generate", {"text": CANARY, "sampling_params": {"max_new_tokens": 2}}),
            ("/generate", {"text": CANARY, "sampling_params": {"stop_regex": "(" + CANARY}}),
            ("/v1/messages", {"messages": turns, "max_tokens": 4, "system": CANARY}),
        ]
        for route, body in asks:
            answer = server.post(route, headers={"x-canary": CANARY}, **body)
            if answer.status_code >= 400 and path_like.search(answer.text):
                shown.append(f"{route}: {answer.text[:200]}")
        server.get(f"/generate?{CANARY}=1")
        server.get(f"/{CANARY}")
        if CANARY in server.get("/metrics").text:
            shown.append("/metrics")
        if CANARY in server.get("/server_info").text:
            shown.append("/server_info")
        if CANARY in server.log:
            shown += [line for line in server.log.splitlines() if CANARY in line][:5]
    return Outcome(
        f"{len(asks) + 2} requests with a word of their own in prompts, headers, addresses and"
        f" tools: found in {len(shown)} places of logs, metrics and errors; no path or address of"
        " memory in an error",
        not shown,
        {"shown": shown},
    )


def names(model: str) -> Outcome:
    """R22: random methods, paths, models and ids make no new series."""
    rng = random.Random(22)

    def word() -> str:
        return "".join(rng.choice("abcdefghijklmnop") for _ in range(12))

    with served(model, *SMALL) as server, httpx.Client(base_url=server.url, timeout=30) as client:

        def one() -> None:
            client.request(rng.choice(["GET", "POST", word().upper()]), f"/{word()}/{word()}")
            body = {"model": word(), "prompt": "x", "max_tokens": 1, "user": word()}
            client.post("/v1/completions", json=body, headers={"x-request-id": word()})
            client.get(f"/v1/models/{word()}")

        for _ in range(20):
            one()
        before = len(client.get("/metrics").content)
        for _ in range(0, NAMES, 3):
            one()
        grown = len(client.get("/metrics").content) - before
    return Outcome(
        f"{NAMES:,} requests with random methods, paths, models and ids: /metrics grew by {grown}"
        " bytes",
        grown <= 2048,
    )


HOOK = """
import os, sys
_out = os.open(os.environ["AUDIT_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def _hook(event, args):
    if event in ("pickle.find_class", "os.system", "socket.bind", "marshal.loads"):
        if event == "marshal.loads":
            return
        text = repr(args[1:] if event == "socket.bind" else args)[:200]
        os.write(_out, f"{os.getpid()} {event} {text}\\n".encode())
sys.addaudithook(_hook)
"""


def audited(model: str) -> Outcome:
    """R23: under a mixed load no pickle is read, no shell started, no other port opened."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(HOOK)
        report = Path(folder) / "audit.txt"
        paths = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": paths, "AUDIT_FILE": str(report)}
        with served(model, *SMALL, environment=environment) as server:

            async def drive() -> Load:
                async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
                    load = Load(client, 23)
                    for _ in range(15):
                        await asyncio.gather(*(load.one() for _ in range(6)))
                    return load

            load = asyncio.run(drive())
        events = report.read_text().splitlines()
    pickles = [line for line in events if "pickle" in line]
    shells = [line for line in events if "os.system" in line]
    binds = [line for line in events if "socket.bind" in line and "127.0.0.1" not in line]
    listening = [line for line in events if "socket.bind" in line and "127.0.0.1" in line]
    return Outcome(
        f"{sum(load.answers.values())} requests: {len(pickles)} classes unpickled, {len(shells)}"
        f" shells, {len(listening)} socket bound, on loopback, {len(binds)} elsewhere",
        not pickles and not shells and not binds and len(listening) == 1 and bool(events),
        {"events": events[:20], "server_errors": load.server_errors},
    )
