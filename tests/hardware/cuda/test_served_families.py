"""Every family served over HTTP on a card: transformers' greedy ids on the same weights."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers

if torch.version.hip is not None or not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU", allow_module_level=True)

from headstock.testing.oracle.case import ModelCase, Saved, prompt
from tests.e2e.served import Served, served
from tests.models.wide import families, save

NEW_TOKENS = 10
LONG = prompt(57, seed=3)
PROMPTS = [LONG, [*LONG[:48], *prompt(9, seed=4)], prompt(1, seed=5), prompt(80, seed=6)]
"""The first two have three pages of 16 in common."""
FLAGS = ("--backend", "cuda", "--dtype", "float32", "--skip-tokenizer-init")
SMALL = ("--cache-tokens", "2048", "--chunked-prefill-size", "24", "--max-running-requests", "4")
KIMI_IMAGES = {
    "media_proc_cfg": {
        "in_patch_limit": 60,
        "patch_limit_on_one_side": 9,
        "patch_size": 4,
        "merge_kernel_size": 2,
        "fixed_output_tokens": None,
        "in_patch_limit_each_frame": 30,
        "sample_fps": 2.0,
        "temporal_merge_kernel_size": 3,
        "timestamp_mode": "hh:mm:ss.fff",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.4, 0.5, 0.6],
    }
}
"""How Kimi K2.5 cuts images; none is sent here."""
ORACLE = (5, 24)
"""The transformers that tests/models compares the reference backend with."""
NEEDS_ORACLE = {"gpt_oss", "mamba2", "gemma3n", "gemma3n-hub"}
"""Whose configurations have options that an older one computes in another way, or not at all."""


def drawn(saved: Saved, ids: list[int]) -> list[int]:
    """Return what transformers draws after a prompt, or, where it is too old, the reference."""
    version = tuple(map(int, transformers.__version__.split(".")[:2]))
    if version < ORACLE and saved.case.name in NEEDS_ORACLE:
        reference = saved.load()
        found, tokens = [], ids
        for _ in range(NEW_TOKENS):
            tokens = [int(reference.step(a=tokens)[-1].argmax())]
            found += tokens
        return found
    found = []
    for _ in range(NEW_TOKENS):
        found.append(int(saved.logits([*ids, *found])[-1].argmax()))
    return found


def answer(server: Served, ids: list[int]) -> list[int]:
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    response = server.post("/generate", input_ids=ids, sampling_params=sampling)
    assert response.status_code == 200, response.text
    return response.json()["output_ids"]


def check(saved: Saved, *flags: str) -> None:
    """Serve, ask for all at once, and once more from the cache."""
    want = [drawn(saved, ids) for ids in PROMPTS]
    if saved.case.name == "kimik25":  # text, of a model that sees
        (saved.folder / "preprocessor_config.json").write_text(json.dumps(KIMI_IMAGES))
    flags = ("--model", str(saved.folder), "--max-model-len", str(saved.case.max_length), *flags)
    with served(*flags, *FLAGS, *SMALL) as server, ThreadPoolExecutor(len(PROMPTS)) as clients:
        assert answer(server, PROMPTS[0]) == want[0]
        assert list(clients.map(lambda ids: answer(server, ids), PROMPTS)) == want
        assert server.lost_pages() == 0


@pytest.mark.parametrize("case", families(), ids=lambda case: case.name)
def test_greedy_ids_over_http(case: ModelCase, tmp_path: Path) -> None:
    check(save(case, tmp_path))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two cards")
@pytest.mark.parametrize(
    "case", [case for case in families() if case.num_ranks > 1], ids=lambda case: case.name
)
def test_greedy_ids_over_http_from_two_cards(case: ModelCase, tmp_path: Path) -> None:
    check(save(case, tmp_path), "--tp-size", "2")
