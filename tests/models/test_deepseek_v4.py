"""DeepSeek V4 in the engine: entries of known prefixes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import headstock
from headstock.errors import CheckpointError, ConfigError
from headstock.graph.build import build_model
from headstock.graph.source import RandomSource
from headstock.quantization.plan import Role
from headstock.testing.oracle.case import prompt
from headstock.testing.oracle.sequences import context
from tests.models.deepseek_v4_cases import DEEPSEEK_V4
from tests.models.wide import engine, save

CASE = DEEPSEEK_V4[0]
COUNT = 5


def test_a_known_prefix_gives_the_ids_of_a_cold_run(tmp_path: Path) -> None:
    """Its entries are read where another request left them; its last tokens wait for one."""
    saved = save(CASE, tmp_path)
    first, second = prompt(22, seed=3), [*prompt(22, seed=3), *prompt(7, seed=4)]
    want = list(second)
    for _ in range(COUNT):
        want.append(int(saved.logits(want)[-1].argmax()))
    sampling = {"temperature": 0, "max_new_tokens": COUNT, "ignore_eos": True}
    served: headstock.Engine
    with engine(saved, page_size=4) as served:
        served.generate(input_ids=first, sampling_params=sampling)
        found = served.generate(input_ids=second, sampling_params=sampling)
    assert found["meta_info"]["cached_tokens"] == 20
    assert found["output_ids"] == want[len(second) :]


def test_a_page_that_no_whole_entries_fit_is_refused(tmp_path: Path) -> None:
    config = CASE.save(tmp_path).config()
    with pytest.raises(ConfigError, match=r"page_size is 6, and .* every 4 tokens"):
        build_model(CASE.model, context(page_size=6), config)


def test_a_table_that_names_experts_which_there_are_not_is_refused(tmp_path: Path) -> None:
    saved, name = CASE.save(tmp_path), "model.layers.0.ffn.gate.tid2eid"
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors[name][5, 1] = 8
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="names experts 0 to 8; the configuration has 8"):
        saved.load()


def test_a_table_of_other_numbers_is_refused(tmp_path: Path) -> None:
    saved, name = CASE.save(tmp_path), "model.layers.0.ffn.gate.tid2eid"
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = tensors[name].float()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="holds float32, not whole numbers"):
        saved.load()


def test_random_tables_name_experts_that_differ() -> None:
    source = RandomSource("t", (9, 3), Role.IDS, torch.device("cpu"), torch.bfloat16)
    assert source.read(4, 6)["weight"].tolist() == [[0, 1, 2], [0, 1, 2]]
