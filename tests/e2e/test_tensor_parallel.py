"""Two ranks, each a process with half of every layer, behind one server: the tokens of one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import torch
import transformers

import headstock
from tests.e2e.served import Served, served, wait_for
from tests.e2e.tiny import CONFIG

FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
}
SETTINGS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "dtype": "float32",
    "cache_tokens": 2048,
    "chunked_prefill_size": 64,
    "max_running_requests": 8,
}
draw = random.Random(7)
PROMPTS = [[draw.randrange(3, 500) for _ in range(length)] for length in (1, 7, 30, 100, 150, 64)]
SAMPLING = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}


def flags() -> list[str]:
    words: list[str] = []
    for name, value in SETTINGS.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return words


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the weights of a small model that transformers made."""
    config_class, model_class = (getattr(transformers, name) for name in FAMILIES[request.param])
    torch.manual_seed(3)
    sizes = {name: value for name, value in CONFIG.items() if name != "architectures"}
    path = str(tmp_path_factory.mktemp(request.param))
    model_class(config_class(**sizes, initializer_range=0.2)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ranked(family: str) -> Iterator[Served]:
    with served(family, *flags(), "--tp-size", "2") as server:
        yield server


def ranks_of(server: Served) -> list[psutil.Process]:
    children = psutil.Process(server.engine_pid).children()
    return [child for child in children if "assemble.rank" in " ".join(child.cmdline())]


def outputs(server: Served) -> list[list[int]]:
    """Ask for all prompts at once."""

    def one(prompt: list[int]) -> list[int]:
        answer = server.post("/generate", input_ids=prompt, sampling_params=SAMPLING)
        return answer.json()["output_ids"]

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(one, PROMPTS))


def test_two_ranks_generate_the_tokens_of_one(ranked: Served, family: str) -> None:
    with headstock.Engine(model=family, **SETTINGS) as engine:
        results = engine.generate(input_ids=PROMPTS, sampling_params=SAMPLING)
    assert len(ranks_of(ranked)) == 1
    assert outputs(ranked) == [result["output_ids"] for result in results]


def test_no_rank_listens_on_a_port(ranked: Served) -> None:
    for process in (psutil.Process(ranked.engine_pid), *ranks_of(ranked)):
        assert process.net_connections("inet") == []


@pytest.mark.slow
def test_a_lost_rank_takes_the_engine_along_and_both_come_back(ranked: Served) -> None:
    before = outputs(ranked)
    (rank,) = ranks_of(ranked)
    engine_pid = ranked.engine_pid
    os.kill(rank.pid, signal.SIGKILL)
    begun = time.monotonic()
    wait_for(lambda: not ranked.is_ready(), 20, "the engine to notice")
    assert time.monotonic() - begun < 3  # 1 s on a machine with nothing else to do
    wait_for(ranked.is_ready, 60, "readiness")
    assert ranked.engine_pid != engine_pid
    assert outputs(ranked) == before


@pytest.mark.slow
def test_no_rank_outlives_the_server(family: str) -> None:
    with served(family, *flags(), "--tp-size", "2") as server:
        (rank,) = ranks_of(server)
        assert server.terminate() == 0
    wait_for(lambda: not rank.is_running(), 10, "the rank's end")


def test_heads_that_do_not_divide_are_a_clear_error(model: str) -> None:
    words = [sys.executable, "-m", "headstock.cli", "serve", model, "--port", "0", "--tp-size", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "9 heads of 64, which do not divide by it" in done.stderr
    assert "-> Set --tp-size to a divisor of 9." in done.stderr
