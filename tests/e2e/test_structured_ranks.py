"""Two ranks draw under the masks that rank 0 makes: the tokens of one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.e2e.served import served
from tests.e2e.tiny import CONFIG
from tests.server.toy_tokenizer import EOS, toy_backend

FLAGS = ["--dtype", "float32", "--cache-tokens", "2048", "--max-running-requests", "4"]
PATTERN = "[a-f]{3}( [0-9]{2}){1,4}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model of random weights with a tokenizer of bytes."""
    path = tmp_path_factory.mktemp("bytes")
    backend = toy_backend()
    sizes = {name: value for name, value in CONFIG.items() if name != "architectures"}
    sizes |= {"vocab_size": 288, "eos_token_id": EOS}
    torch.manual_seed(5)
    config = transformers.LlamaConfig(**sizes, initializer_range=0.2)
    transformers.LlamaForCausalLM(config).save_pretrained(str(path))
    backend.save(str(path / "tokenizer.json"))
    Path(path, "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return str(path)


def answers(folder: str, *flags: str) -> list[dict[str, Any]]:
    """Return what bound and free requests of one batch get."""
    bound = {"temperature": 0.8, "max_new_tokens": 40, "regex": PATTERN}
    free = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    with served(folder, *FLAGS, *flags) as server:
        return server.post(
            "/generate",
            text=["one", "two", "three", "four"],
            sampling_params=[
                bound | {"sampling_seed": 3},
                free,
                bound | {"sampling_seed": 4},
                free,
            ],
        ).json()


def test_ranks_draw_under_the_same_masks(folder: str) -> None:
    one, two = answers(folder), answers(folder, "--tp-size", "2")
    assert [answer["output_ids"] for answer in two] == [answer["output_ids"] for answer in one]
    for answer in (one[0], one[2]):
        assert re.fullmatch(PATTERN, answer["text"])
