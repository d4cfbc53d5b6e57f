"""DeepSeek V4 in the engine: entries of known prefixes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import headstock
from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError, ConfigError
from headstock.graph.build import build_model
from headstock.graph.loader import weight_bytes
from headstock.graph.source import RandomSource
from headstock.ops.linear import FP8_GROUP, MXFP4
from headstock.quantization.plan import Role
from headstock.testing.oracle.case import prompt
from headstock.testing.oracle.sequences import context
from tests.models.deepseek_v4_cases import DEEPSEEK_V4, DEEPSEEK_V4_HUB
from tests.models.wide import engine, save

CASE, HUB = DEEPSEEK_V4[0], DEEPSEEK_V4_HUB[-1]
EXPERT = "layers.1.ffn.experts.3.w2"
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


def test_the_hub_s_weights_stay_as_narrow_as_they_are(tmp_path: Path) -> None:
    saved = HUB.save(tmp_path)
    index = open_folder(tmp_path).index
    assert index[f"{EXPERT}.weight"].layout == MXFP4
    assert index["layers.1.attn.wq_b.weight"].layout == FP8_GROUP
    assert not [name for name in index if name.endswith(".scale")]
    full = sum(value.nbytes for value in saved.oracle.parameters())
    assert weight_bytes(saved.load().model) < 0.6 * full


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        (None, r"w2\.weight_scale_inv is not there, and .*w2\.weight is int8"),
        (torch.ones(64, 1).to(torch.float8_e8m0fnu), r"w2\.scale is float8_e8m0fnu \[64, 1\]"),
        (torch.ones(64, 2), r"w2\.scale is float32 \[64, 2\]"),
    ],
)
def test_four_bits_without_their_exponents_are_refused(
    tmp_path: Path, scale: torch.Tensor | None, told: str
) -> None:
    HUB.save(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors[f"{EXPERT}.scale"]
    if scale is not None:
        tensors[f"{EXPERT}.scale"] = scale
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=told):
        open_folder(tmp_path)
