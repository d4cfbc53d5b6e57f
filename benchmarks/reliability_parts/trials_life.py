"""Trials of a server's life: killed engines, ends, starts that fail, times until it is ready."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from reliability_parts.outcome import Outcome, quantile
from reliability_parts.page import ROOT
from tests.e2e.served import SMALL, Served, served, wait_for

RUNNING, QUEUED, OUTPUTS = 32, 32, 120


@dataclass
class Followed:
    """What a client was told of one stream."""

    ids: list[int] = field(default_factory=list)
    events: int = 0
    longest_pause_s: float = 0.0
    is_done: bool = False
    finish: Any = None
    is_growing: bool = True


async def follow(client: httpx.AsyncClient, number: int, told: Followed) -> None:
    sampling = {"max_new_tokens": OUTPUTS, "ignore_eos": True, "sampling_seed": number}
    sampling["temperature"] = 0.8 * (number % 2)
    ids = [5 + number, 9, 11 + number, 7]
    body = {"input_ids": ids, "stream": True, "sampling_params": sampling}
    last_s = None
    async with client.stream("POST", "/generate", json=body) as answer:
        async for line in answer.aiter_lines():
            told.is_done = told.is_done or line == "data: [DONE]"
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            now_s = time.monotonic()
            told.longest_pause_s = max(told.longest_pause_s, now_s - (last_s or now_s))
            last_s = now_s
            told.events += 1
            if "output_ids" not in event:  # an error ends the stream
                told.finish = event
                continue
            told.is_growing &= event["output_ids"][: len(told.ids)] == told.ids
            told.ids = event["output_ids"]
            told.finish = event["meta_info"]["finish_reason"]


async def under_load(server: Served, disturb: Any = None) -> list[Followed]:
    """Run all streams at once, and ``disturb`` when the engine is full."""
    told = [Followed() for _ in range(RUNNING + QUEUED)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
        tasks = [asyncio.create_task(follow(client, at, each)) for at, each in enumerate(told)]
        if disturb is not None:
            while sum(each.events >= 3 for each in told) < RUNNING // 2:
                await asyncio.sleep(0.02)
            await asyncio.to_thread(disturb)
        await asyncio.gather(*tasks)
    return told


def killed_engine(model: str) -> Outcome:
    """R7, further: kill -9 of the engine under 64 streams ends none."""
    seen: dict[str, float] = {}
    with served(model, *SMALL, "--max-running-requests", str(RUNNING)) as server:
        alone = asyncio.run(under_load(server))

        def kill() -> None:
            os.kill(server.engine_pid, signal.SIGKILL)
            killed_s = time.monotonic()
            wait_for(lambda: not server.is_ready(), 30, "a server that is not ready")
            seen["not_ready_s"] = time.monotonic() - killed_s
            begin_s = time.monotonic()
            refused = server.post("/generate", text="x")
            seen["refused_s"] = time.monotonic() - begin_s
            seen["refused_status"] = refused.status_code
            seen["retry_after"] = float(refused.headers.get("retry-after", -1))
            wait_for(server.is_ready, 120, "readiness")
            seen["ready_again_s"] = time.monotonic() - killed_s

        told = asyncio.run(under_load(server, kill))
        lost_pages = server.lost_pages()
    same = sum(a.ids == b.ids for a, b in zip(alone, told, strict=True))
    whole = sum(each.is_done and each.is_growing and len(each.ids) == OUTPUTS for each in told)
    pause_s = max(each.longest_pause_s for each in told)
    total = RUNNING + QUEUED
    return Outcome(
        f"{whole} of {total} streams go on and end whole, {same} with the ids of a run without the"
        f" kill; not ready after {seen['not_ready_s']:.2f} s, new work refused"
        f" ({seen['refused_status']:.0f}) in {1000 * seen['refused_s']:.0f} ms, ready again after"
        f" {seen['ready_again_s']:.1f} s, longest pause of a stream {pause_s:.1f} s,"
        f" {lost_pages} pages lost",
        whole == same == total
        and seen["refused_status"] == 503
        and seen["retry_after"] > 0
        and seen["not_ready_s"] <= 1
        and seen["ready_again_s"] <= 10
        and lost_pages == 0,
        seen | {"pause_s": pause_s},
    )


def told_to_end(model: str) -> Outcome:
    """R10: SIGTERM lets streams end; the port is free at once."""
    seen: dict[str, float] = {}
    with served(model, *SMALL, "--drain-timeout-s", "400") as server:
        port = int(server.url.rpartition(":")[2])

        def end() -> None:
            server.process.send_signal(signal.SIGTERM)
            sent_s = time.monotonic()
            wait_for(lambda: not server.is_ready(), 10, "a server that is not ready")
            seen["not_ready_s"] = time.monotonic() - sent_s

        told = asyncio.run(under_load(server, end))
        last_s = time.monotonic()
        code = server.process.wait(30)
        seen["exit_s"] = time.monotonic() - last_s
        with served(model, *SMALL, "--port", str(port)) as again:
            is_reused = again.url.endswith(f":{port}")
    whole = sum(each.is_done and len(each.ids) == OUTPUTS for each in told)
    total = len(told)
    return Outcome(
        f"{whole} of {total} streams end whole, not ready after"
        f" {1000 * seen['not_ready_s']:.0f} ms, exit code {code}"
        f" {seen['exit_s']:.1f} s after the last stream, port"
        f" {'free at once' if is_reused else 'still taken'}",
        whole == total and code == 0 and seen["exit_s"] <= 3 and is_reused,
        seen,
    )


def broken_starts(model: str) -> Outcome:
    """R24: what cannot be served is said in few lines that name a remedy."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [(name, *start(words)) for name, words in _broken(Path(folder), model).items()]
    bad = [
        f"{name}: code {code}, {len(text.splitlines())} lines, {seconds:.1f} s"
        for name, code, text, seconds in rows
        if code == 0 or "Traceback" in text or "->" not in text or len(text.splitlines()) > 6
    ]
    slowest = max(seconds for *_, seconds in rows)
    typical = quantile([seconds for *_, seconds in rows], 0.5)
    figure = f"{len(rows) - len(bad)} of {len(rows)} end with an error and its remedy; median"
    return Outcome(
        f"{figure} {typical:.1f} s, slowest {slowest:.1f} s",
        not bad,
        {"bad": bad, "starts": {name: round(seconds, 2) for name, _, _, seconds in rows}},
    )


def start(words: list[str]) -> tuple[int, str, float]:
    begin_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "headstock.cli", "serve", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    phase = re.compile(r"  \w[\w' ]+: [\d.]+ s$")  # of a start that got so far
    lines = [line for line in done.stderr.splitlines() if not phase.match(line)]
    return done.returncode, "\n".join(lines), time.monotonic() - begin_s


def _broken(folder: Path, model: str) -> dict[str, list[str]]:
    """Return command lines that cannot be served, by what is wrong."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 500, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip

    def made(name: str, text: str | None = None, **changes: Any) -> str:
        place = folder / name
        place.mkdir()
        whole = json.dumps({k: v for k, v in {**config, **changes}.items() if v is not None})
        (place / "config.json").write_text(whole if text is None else text)
        return str(place)

    dummy = ["--load-format", "dummy", "--skip-tokenizer-init", "--backend", "reference"]
    (folder / "noise.gguf").write_bytes(b"GGUF" + bytes(range(200)))
    (folder / "pickle.bin").write_bytes(b"\x80\x04.")
    (folder / "bad.toml").write_text("[cache]\npag_size = 3\n")
    (folder / "no.toml").write_text("[cache\n")
    shard = made("shard")
    Path(shard, "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    return {
        "no such model": ["/nowhere/at-all"],
        "unknown name": ["smolm2x"],
        "empty folder": [str(folder / "shard" / "..")],
        "damaged GGUF": [str(folder / "noise.gguf")],
        "pickle": [str(folder / "pickle.bin")],
        "configuration is no JSON": [made("nojson", "{"), *dummy],
        "unknown architecture": [made("arch", architectures=["Foo"], model_type="foo"), *dummy],
        "zero layers": [made("layers", num_hidden_layers=0), *dummy],
        "huge head": [made("head", head_dim=10**9), *dummy],
        "no vocabulary": [made("vocab", vocab_size=None), *dummy],
        "NaN epsilon": [made("nan", rms_norm_eps=float("nan")), *dummy],
        "no weights": [made("weights"), "--skip-tokenizer-init", "--backend", "reference"],
        "damaged safetensors": [shard, "--skip-tokenizer-init", "--backend", "reference"],
        "unknown flag": [model, "--prot", "1"],
        "bad value of a flag": [model, "--port", "70000"],
        "unknown dtype": [model, "--dtype", "float7"],
        "unknown backend": [model, "--backend", "abacus"],
        "unknown key in the file": [model, "--config", str(folder / "bad.toml")],
        "file is no TOML": [model, "--config", str(folder / "no.toml")],
        "no such file of settings": [model, "--config", str(folder / "absent.toml")],
        "no such key file": [model, "--api-key-file", str(folder / "absent")],
        "unresolvable host": [model, "--host", "no.such.host.invalid"],
        "no such address": [model, "--host", "203.0.113.1"],
        "privileged or taken port": [model, "--host", "203.0.113.2", "--port", "80"],
        "too much cache": [model, "--cache-tokens", "100000000000"],
        "too few tokens of cache": [model, "--cache-tokens", "1", "--max-model-len", "64"],
        "revision of a file": [model, "--revision", "main"],
        "no such template": [model, "--chat-template", str(folder / "absent.jinja")],
        "no such adapter": [model, "--lora", "a=/nowhere"],
        "unknown drafter": [model, "--speculation", "oracle"],
        "unknown grammar provider": [model, "--grammar-backend", "none-such"],
        "ranks that do not divide the heads": [made("ranks"), *dummy, "--tp-size", "3"],
    }


def times_to_ready(model: str) -> Outcome:
    """R28: how soon it is there."""
    seconds: dict[str, float] = {}
    # Installing a package compiles it: sources that are compiled anew at each start are not meant.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "compileall", "-q", "core", "backends", "models"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    with served(model, *SMALL, environment=environment) as server:
        seconds["first ready"] = server.start_s
    with served(model, *SMALL, environment=environment) as server:
        seconds["ready"] = server.start_s
    for name in ("--help", "--version", "doctor"):
        runs: list[float] = []
        for _ in range(3):
            begin_s = time.monotonic()
            command = [sys.executable, "-m", "headstock.cli", name]
            subprocess.run(command, capture_output=True, check=False, timeout=120, env=environment)
            runs.append(time.monotonic() - begin_s)
        seconds[name] = min(runs)
    return Outcome(
        ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        + f" (load {psutil.getloadavg()[0]:.1f})",
        seconds["ready"] <= 3 and seconds["--help"] <= 0.3 and seconds["doctor"] <= 2,
        seconds,
    )
