"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.served import Served
from tests.e2e.tiny import DUMMY

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*words: object, codes: tuple[int, ...] = (0,), **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout


def test_the_openai_example_streams_an_answer(server: Served) -> None:
    answer, usage = run(EXAMPLES / "openai_chat.py", server.url).rsplit("\n", 2)[:2]
    assert answer.strip()
    assert re.fullmatch(r"\(\d+ tokens in, \d+ out\)", usage)


def test_the_offline_example_answers_a_batch(model: str) -> None:
    printed = run(EXAMPLES / "offline_batch.py", model)
    first, *_ = printed.splitlines()
    assert "Paris" in first
    assert re.search(r"at \d+%$", printed.strip())


def test_the_few_shot_example_shares_its_examples(server: Served) -> None:
    lines = run(EXAMPLES / "programs/few_shot.py", server.url).splitlines()
    assert len(lines) == 4
    shares = [int(share) for share in re.findall(r"\((\d+)% of the prompt", "".join(lines))]
    assert sorted(shares)[1] > 60  # one of them computes what the others share


def test_the_tree_of_thought_draws_its_trace(server: Served, tmp_path: Path) -> None:
    printed = run(EXAMPLES / "programs/tree_of_thought.py", server.url, tmp_path / "trace.svg")
    assert len(re.findall(r"^\[(?:Yes|No)\]", printed, re.MULTILINE)) == 3
    assert printed.count("risk:") == 3
    picture = (tmp_path / "trace.svg").read_text()
    assert picture.count('class="gen"') >= 9


def test_the_agent_picks_tools(server: Served) -> None:
    lines = run(EXAMPLES / "programs/agent.py", server.url).splitlines()
    assert len(lines) == 2
    assert all(re.search(r"\[(clock|weather|none)\] \S", line) for line in lines)


def test_records_are_extracted(server: Served) -> None:
    *records, typed = run(EXAMPLES / "programs/extract.py", server.url).splitlines()
    found = [json.loads(record) for record in records]
    assert found[0]["name"] == "Maria Silva"
    assert {record["job"] for record in found} <= {"nurse", "painter", "teacher", "other"}
    assert typed.startswith("Person(")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that the example plugin is installed into, from a copy of its source."""
    root = tmp_path_factory.mktemp("op_plugin")
    source = root / "source"
    source.mkdir()
    for file in ("pyproject.toml", "headstock_example_op.py"):
        (source / file).write_text((EXAMPLES / "op_plugin" / file).read_text())
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    target = root / "site"
    run("-m", "pip", "install", *offline, "--no-build-isolation", "--target", target, source)
    return str(target)


@pytest.mark.slow
def test_the_example_op_beats_the_reference_and_nobody_else(site: str) -> None:
    def provider(*flags: str) -> str:
        words = ("-m", "headstock.cli", "doctor", "--json", "--backend", "reference", *flags)
        printed = run(*words, codes=(0, 2), PYTHONPATH=site)  # 2: another plugin is broken
        return {o["op"]: o["provider"] for o in json.loads(printed)["ops"]}["silu_and_mul"]

    assert provider() == "example_op"
    assert provider("--disable-plugin", "example_op") == "reference"


@pytest.mark.slow
def test_the_example_op_serves_the_same_tokens(site: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"input_ids": [5, 6, 7]}\n')
    flags = ("--input", tmp_path / "in.jsonl", "--temperature", "0", "--max-new-tokens", "8")
    words = ("-m", "headstock.cli", "generate", folder, *DUMMY, *flags)
    own = run(*words, "--op", "silu_and_mul=example_op", PYTHONPATH=site)
    assert json.loads(own)["output_ids"] == json.loads(run(*words))["output_ids"]
