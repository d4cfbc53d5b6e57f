"""`headstock batch` and `headstock run` as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.e2e.served import SMALL, Served


def headstock(*words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headstock.cli", *map(str, words)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def ask(number: int, country: str) -> str:
    messages = [{"role": "user", "content": f"What is the capital of {country}?"}]
    body = {"messages": messages, "max_tokens": 12, "temperature": 0}
    return json.dumps({"custom_id": f"c{number}", "url": "/v1/chat/completions", "body": body})


def texts(path: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"]
        for line in lines
    }


def test_a_batch_on_a_server_and_on_an_engine(server: Served, model: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join([ask(1, "France"), ask(2, "Italy")]))
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    done = headstock("batch", tmp_path / "in.jsonl", one, "--url", server.url)
    assert done.returncode == 0, done.stderr
    done = headstock("batch", tmp_path / "in.jsonl", two, model, *SMALL)
    assert done.returncode == 0, done.stderr
    assert texts(one) == texts(two)
    assert "Paris" in texts(one)["c1"]
    assert "Italy" in texts(one)["c2"]
    again = headstock("batch", tmp_path / "in.jsonl", one, "--url", "http://127.0.0.1:9")
    assert again.returncode == 0  # nothing is left to ask
    assert "2 of 2 rows are answered" in again.stderr


def test_run_answers_a_prompt(model: str) -> None:
    done = headstock(
        "run", model, "What is the capital of France?", *SMALL, "--temperature", "0",
        "--max-new-tokens", "12",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_run_talks_without_one(model: str) -> None:
    flags = (*SMALL, "--temperature", "0", "--max-new-tokens", "12")
    done = headstock("run", model, *flags, stdin="What is the capital of France?\n")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
