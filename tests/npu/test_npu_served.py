"""The default model, served over HTTP on the ascend backend, gives the reference backend's ids."""

from __future__ import annotations

from typing import Any

import pytest

import headstock
from headstock.checkpoint.pull import cached_path, find
from tests.e2e.served import Served

PROMPTS = ["The capital of France is", "def fibonacci(n):"]
GREEDY = {"temperature": 0.0, "max_new_tokens": 8, "ignore_eos": True}
SMALL: dict[str, Any] = {"max_model_len": 256, "max_running_requests": 2, "cache_tokens": 1024}


@pytest.mark.slow
def test_served_ids_are_those_of_the_reference(
    search_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cached_path(find("smollm2"))
    if not model.is_file():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    monkeypatch.setenv("PYTHONPATH", search_path)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    server = Served(str(model), "--backend", "npu", "--dtype", "float32", *flags)
    try:
        answers = [server.post("/generate", text=p, sampling_params=GREEDY) for p in PROMPTS]
        got = [answer.json()["output_ids"] for answer in answers]
        log = server.log
    finally:
        server.close()
    engine = headstock.Engine(model=str(model), backend="reference", dtype="float32", **SMALL)
    with engine:
        wanted = engine.generate(prompt=PROMPTS, sampling_params=GREEDY)
    assert got == [result["output_ids"] for result in wanted]
    assert "cann" in log, "the banner names who computes"
