"""Reward models with heads of their own, through the whole engine, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import headstock
from headstock.errors import RequestError
from tests.models.conftest import Save
from tests.models.internlm2_folder import as_internlm2
from tests.models.test_pooled import ENGINE, prompts


def save_reward(save: Save, path: Path, architecture: str, labels: int) -> torch.nn.Module:
    """Save a Qwen2 with the authors' head for rewards, and return what computes it."""
    saved = save("qwen2")
    saved.oracle.model.save_pretrained(path)
    size = saved.oracle.config.hidden_size
    score = torch.nn.Sequential(
        torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, labels)
    )
    tensors = {f"model.{n}": t for n, t in load_file(path / "model.safetensors").items()}
    tensors |= {f"score.{n}": t.detach() for n, t in score.state_dict().items()}
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))

    class Reward(torch.nn.Module):
        def forward(self, ids: list[int]) -> Tensor:
            with torch.no_grad():
                return score(saved.oracle.model(torch.tensor([ids])).last_hidden_state[0])

    return Reward()


def test_each_step_of_an_answer_has_the_probabilities_that_the_authors_compute(
    save: Save, tmp_path: Path
) -> None:
    """Texts are computed whole, several in a step; steps end in a token of their own."""
    reward = save_reward(save, tmp_path / "m", "Qwen2ForProcessRewardModel", 2)
    texts = prompts(7, 40, 1, 13)
    settings: dict[str, Any] = ENGINE | {
        "page_size": 4,
        "max_running_requests": 4,
        "max_model_len": 64,
    }
    with headstock.Engine(model=str(tmp_path / "m"), **settings) as engine:
        assert engine.started.limits.yields == ("token_classify",)
        assert not engine.started.limits.is_causal
        for _ in range(2):
            for answer, ids in zip(engine.embed(input_ids=texts), texts, strict=True):
                want = reward(ids).softmax(-1)
                torch.testing.assert_close(
                    torch.tensor(answer["embedding"]), want, rtol=1e-4, atol=1e-5
                )
                assert answer["meta_info"]["cached_tokens"] == 0


def test_the_reward_of_an_answer_is_that_of_its_last_token(save: Save, tmp_path: Path) -> None:
    reward = save_reward(save, tmp_path / "m", "Qwen2ForRewardModel", 1)
    texts = prompts(7, 40)
    settings: dict[str, Any] = ENGINE | {"chunked_prefill_size": 16, "page_size": 4}
    with headstock.Engine(model=str(tmp_path / "m"), **settings) as engine:
        for answer, ids in zip(engine.embed(input_ids=texts), texts, strict=True):
            got = torch.tensor(answer["embedding"])
            torch.testing.assert_close(got, reward(ids)[-1], rtol=1e-4, atol=1e-5)
        with pytest.raises(RequestError, match="classifies"):
            engine.generate(input_ids=[1, 2])


def test_the_reward_of_an_internlm2_is_that_of_the_token_for_it(save: Save, tmp_path: Path) -> None:
    saved = save("llama", attention_bias=True)
    path, end = saved.path, 120
    as_internlm2(path, architectures=["InternLM2ForRewardModel"], reward_token_id=end)
    tensors = load_file(path / "model.safetensors")
    tensors.pop("output.weight", None)
    value = torch.randn(1, saved.oracle.config.hidden_size)
    save_file(tensors | {"v_head.weight": value}, path / "model.safetensors")
    texts = [[token % end for token in ids] for ids in prompts(7, 40)]
    settings: dict[str, Any] = ENGINE | {"chunked_prefill_size": 16}
    with headstock.Engine(model=str(path), **settings) as engine:
        assert engine.card.task == "classify"
        for ended in (False, True):
            asked = [[*ids, end] for ids in texts] if ended else texts
            for answer, ids in zip(engine.embed(input_ids=asked), texts, strict=True):
                with torch.no_grad():
                    states = saved.oracle.model(torch.tensor([[*ids, end]])).last_hidden_state
                want = value @ states[0, -1]
                torch.testing.assert_close(
                    torch.tensor(answer["embedding"]), want, rtol=1e-4, atol=1e-4
                )
