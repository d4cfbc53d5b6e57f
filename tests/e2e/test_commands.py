"""The commands that need a model: on random weights where any do, else on the running server."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import headstock
from headstock.cli import main
from tests.e2e.served import Served
from tests.e2e.tiny import DUMMY

KV_BYTES = 3 * 2 * 2 * 16 * 4
"""Of a token: layers, keys and values, heads, head size, float32."""


def plan(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    main(["plan", *argv, "--json"])
    return json.loads(capsys.readouterr().out)


def test_plan_counts_parameters_and_cache_bytes(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(capsys, folder, *DUMMY)
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64
    assert found["num_parameters"] == 2 * 500 * 64 + 3 * layer + 64
    assert found["weights"] == 4 * found["num_parameters"]
    assert found["token_bytes"] == KV_BYTES
    assert found["memory"]["cache_tokens"] == 1024
    assert found["longest_at_once"] == 4


def test_plan_divides_by_the_ranks(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = plan(capsys, folder, *DUMMY), plan(capsys, folder, *DUMMY, "--tp-size", "2")
    assert two["token_bytes"] == one["token_bytes"] / 2
    assert two["num_parameters"] == one["num_parameters"]
    assert 0.5 <= two["weights"] / one["weights"] < 0.51


def test_plan_of_what_does_not_fit_says_what_would(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", folder, *DUMMY, "--cache-tokens", "10000000000"]) == 1
    printed = capsys.readouterr().out
    assert "Does not fit: cache_tokens is 10,000,000,000" in printed
    assert "-> Set --cache-tokens to" in printed


def test_plan_reads_no_weights(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, model, "--cache-tokens", "16384", "--max-model-len", "2048")
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["num_parameters"] == 134_515_008
    assert 70e6 < found["weights"] < 120e6


def test_generate_writes_a_line_a_row(folder: str, tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 7], "id": "a"}, {"prompt": "no tokenizer"}, {"input_ids": [8]}]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    paths = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main(["generate", folder, *DUMMY, *paths, "--max-new-tokens", "5", "--seed", "1"]) == 1
    first, bad, last = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["id"], len(first["output_ids"]), len(last["output_ids"])) == ("a", 5, 5)
    assert bad["error"]["code"] == "no_tokenizer"


@pytest.mark.parametrize("kind", ["latency", "throughput"])
def test_an_offline_bench_writes_its_figures(folder: str, tmp_path: Path, kind: str) -> None:
    lengths = ["--input-len", "16", "--output-len", "4", "--output-file", str(tmp_path / "f.json")]
    assert main(["bench", kind, folder, *DUMMY, *lengths]) == 0
    written = json.loads((tmp_path / "f.json").read_text())
    assert written["output_len"] == 4
    figure = "mean_ttft_ms" if kind == "latency" else "output_tokens_per_s"
    assert written[figure] > 0


def test_bench_serve_counts_what_the_server_counts(server: Served, tmp_path: Path) -> None:
    before = server.idle_state()["totals"]
    argv = ["--url", server.url, "--num-prompts", "6", "--input-len", "20", "--output-len", "5"]
    argv += ["--warmup", "0", "--output-file", str(tmp_path / "f.json")]
    assert main(["bench", "serve", *argv]) == 0
    after = server.idle_state()["totals"]
    written = json.loads((tmp_path / "f.json").read_text())
    assert (written["input_tokens"], written["output_tokens"]) == (120, 30)
    assert after["generation_tokens"] - before["generation_tokens"] == 30
    assert written["p99_ttft_ms"] > 0


def test_chat_answers_a_pipe_from_the_server(
    server: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "What is the capital of France?"
    monkeypatch.setattr(sys, "stdin", io.StringIO(question))
    words = ["--temperature", "0", "--max-new-tokens", "12"]
    assert main(["chat", "--url", server.url, *words]) == 0
    ask = {"messages": [{"role": "user", "content": question}], "max_tokens": 12}
    answer = server.post("/v1/chat/completions", **ask, temperature=0).json()
    assert capsys.readouterr().out.strip() == answer["choices"][0]["message"]["content"].strip()


def test_a_chat_of_the_offline_engine_is_the_servers(model: str, server: Served) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    asked = server.post("/tokenize", messages=messages).json()["tokens"]
    settings: dict[str, Any] = {"cache_tokens": 512, "max_model_len": 512}
    with headstock.Engine(model=model, max_running_requests=2, **settings) as engine:
        assert engine.encode_chat(messages) == asked
