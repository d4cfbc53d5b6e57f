"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from headstock.checkpoint.pull import cached_path, find, is_here
from tests.e2e.served import Served
from tests.e2e.tiny import CONFIG, DUMMY

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


@pytest.mark.slow
def test_the_search_finds_the_text_that_the_question_is_about() -> None:
    if not is_here(model := find("all-minilm-l6-v2"), cached_path(model)):
        pytest.skip("all-minilm-l6-v2 was never pulled: `headstock pull all-minilm-l6-v2`")
    printed = run(EXAMPLES / "semantic_search.py")
    assert "-> 'Put the egg into boiling water" in printed
    assert len(printed.splitlines()) == 5


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


def installed(root: Path, folder: str, module: str) -> str:
    """Install an example of one module from a copy of its source; return where to."""
    source = root / "source"
    source.mkdir()
    for file in ("pyproject.toml", f"{module}.py"):
        (source / file).write_text((EXAMPLES / folder / file).read_text())
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    target = root / "site"
    run("-m", "pip", "install", *offline, "--no-build-isolation", "--target", target, source)
    return str(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that the example of an op is installed into."""
    return installed(tmp_path_factory.mktemp("op_plugin"), "op_plugin", "headstock_example_op")


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


def save_signs(path: Path) -> tuple[Path, Path]:
    """Save a small model in the example's format, and dense as it stands for."""
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    state, written = model.state_dict(), {}
    for name, weight in state.items():
        if "_proj" not in name:
            written[name] = weight
            continue
        negative = torch.rand(weight.shape, generator=generator) < 0.5
        scale = torch.rand(weight.shape[0], weight.shape[1] // 32, generator=generator) / 8
        weight.copy_((1 - 2 * negative.float()) * scale.repeat_interleave(32, dim=1))
        powers = 2 ** torch.arange(8)
        signs = (negative.unflatten(-1, (-1, 8)) * powers).sum(-1).to(torch.uint8)
        module = name.removesuffix("weight")
        written |= {f"{module}signs": signs, f"{module}scales": scale}
    for folder in ("dense", "signs"):
        model.save_pretrained(path / folder)
    save_file(written, path / "signs" / "model.safetensors")
    config = json.loads((path / "signs" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "signs", "group_size": 32}
    (path / "signs" / "config.json").write_text(json.dumps(config))
    return path / "dense", path / "signs"


@pytest.mark.slow
def test_the_example_format_serves_what_its_integers_stand_for(tmp_path: Path) -> None:
    site = installed(tmp_path, "quantization_format", "headstock_example_signs")
    dense, signs = save_signs(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"input_ids": [5, 6, 7]}\n')
    flags = ("--input", tmp_path / "in.jsonl", "--temperature", "0", "--max-new-tokens", "12")
    stored = ("--skip-tokenizer-init", "--backend", "reference", "--dtype", "float32", *flags)

    def ids(folder: Path, path: str = "") -> list[int]:
        words = ("-m", "headstock.cli", "generate", folder, *stored)
        return json.loads(run(*words, PYTHONPATH=path))["output_ids"]

    assert ids(signs, site) == ids(dense)


@pytest.mark.slow
def test_the_example_layout_keeps_its_promises_and_is_planned_in_its_bits(tmp_path: Path) -> None:
    site = installed(tmp_path, "quantization_format", "headstock_example_signs")
    code = (
        "from headstock.testing.layouts import check_layout, plugin_layouts;"
        "from headstock.plugins.loader import discover;"
        "(layout,) = plugin_layouts(discover(backend='reference')); check_layout(layout);"
        "from headstock.ops.canonical import count_bytes; import torch;"
        "print(layout, count_bytes(layout, 32, 3200, torch.bfloat16))"
    )
    assert run("-c", code, PYTHONPATH=site).split() == ["headstock_example_signs::signs", "800"]


@pytest.mark.slow
def test_without_its_plugin_the_format_is_refused_by_name(tmp_path: Path) -> None:
    site = installed(tmp_path, "quantization_format", "headstock_example_signs")
    _, signs = save_signs(tmp_path)
    words = ("-m", "headstock.cli", "plan", signs, "--backend", "reference")
    without = (*words, "--disable-plugin", "example_signs")
    done = subprocess.run(
        [sys.executable, *map(str, without)],
        env={**os.environ, "PYTHONPATH": site},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "is quantised by signs, which cannot be read yet" in done.stderr
    run(*words, PYTHONPATH=site)
