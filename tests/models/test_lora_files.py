"""Adapters' files from anywhere: what is honoured, what is refused, and by which name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from headstock.errors import AdapterError, ConfigError
from headstock.lora.peft import CONFIG, WEIGHTS, AdapterSettings, open_adapter, read_settings
from headstock.lora.space import adapter_space

AT = "base_model.model.model.layers.0.self_attn.q_proj"
GOOD: dict[str, tuple[int, ...]] = {f"{AT}.lora_A.weight": (4, 8), f"{AT}.lora_B.weight": (6, 4)}
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "F32") -> None:
    width = {"F32": 4, "BF16": 2, "I32": 4}[dtype]
    header, begin = {}, 0
    for name, shape in shapes.items():
        size = width
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(begin))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / CONFIG).write_text(json.dumps(PLAIN))
    write_weights(tmp_path / WEIGHTS, GOOD)
    return tmp_path


def refusal(path: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        open_adapter(path)
    return str(caught.value)


def test_a_whole_adapter_opens(adapter: Path) -> None:
    (name, module) = next(iter(open_adapter(adapter).modules.items()))
    assert name == "model.layers.0.self_attn.q_proj"
    assert (module.down.shape, module.up.shape, module.scale) == ((4, 8), (6, 4), 2.0)


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(adapter: Path, missing: str) -> None:
    (adapter / missing).unlink()
    assert f"has no {missing}" in refusal(adapter)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "bias 'all'"),
    ({"lora_bias": True}, "lora_bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
    ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
    ({"a_switch_of_next_year": True}, "a_switch_of_next_year"),
    ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern '(a+)+$'"),
    ({"r": 0}, "`$.r`"),
    ({"r": 10**9}, "`$.r`"),
    ({"r": "4"}, "`$.r`"),
    ({"lora_alpha": [1]}, "`$.lora_alpha`"),
    ({"rank_pattern": {"q_proj": -1}}, "`$.rank_pattern"),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_not_computed_is_refused_by_its_name(
    adapter: Path, changes: dict[str, Any], told: str
) -> None:
    (adapter / CONFIG).write_text(json.dumps(PLAIN | changes))
    assert told in refusal(adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": False, "modules_to_save": None, "layer_replication": []},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1, "target_modules": "all-linear"},
        {"a_switch_of_next_year": None, "megatron_core": "megatron.core"},
    ],
)
def test_what_changes_nothing_is_taken(adapter: Path, changes: dict[str, Any]) -> None:
    (adapter / CONFIG).write_text(json.dumps(PLAIN | changes))
    assert open_adapter(adapter).modules


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "not an adapter's configuration"),
        (b"[1]", "not an adapter's configuration"),
        (b"[" * 100_000, "not an adapter's configuration"),
        (b'{"r": 1e999, "peft_type": "LORA"}', "not an adapter's configuration"),
        (b" " * (2 << 20), "more than"),
    ],
)
def test_a_damaged_configuration_is_refused(adapter: Path, text: bytes, told: str) -> None:
    (adapter / CONFIG).write_bytes(text)
    assert told in refusal(adapter)


def test_pipes_are_not_read(adapter: Path) -> None:
    (adapter / CONFIG).unlink()
    os.mkfifo(adapter / CONFIG)
    assert "not a regular file" in refusal(adapter)


WEIGHTS_REFUSED: list[tuple[dict[str, tuple[int, ...]], str]] = [
    ({f"{AT}.lora_A.weight": (4, 8)}, "one matrix of two"),
    ({}, "no matrix"),
    (GOOD | {f"{AT}.lora_A.weight": (3, 8)}, "ranks that do not fit"),
    (GOOD | {f"{AT}.lora_A.weight": (4, 8, 1)}, "no matrix"),
    ({f"{AT}.lora_A.weight": (2, 8), f"{AT}.lora_B.weight": (6, 2)}, "has rank 2"),
    (GOOD | {f"{AT}.lora_magnitude_vector": (6,)}, "DoRA"),
    (GOOD | {"base_model.model.model.embed_tokens.lora_embedding_A": (4, 8)}, "embedding"),
    (GOOD | {"base_model.model.lm_head.weight": (8, 8)}, "not a matrix of low rank"),
    (GOOD | {"other.lora_A.weight": (4, 8)}, "not a matrix of low rank"),
]


@pytest.mark.parametrize(("shapes", "told"), WEIGHTS_REFUSED, ids=lambda value: str(value)[:40])
def test_weights_that_do_not_fit_are_refused(
    adapter: Path, shapes: dict[str, tuple[int, ...]], told: str
) -> None:
    write_weights(adapter / WEIGHTS, shapes)
    assert told in refusal(adapter)


def test_whole_numbers_and_cut_files_are_refused(adapter: Path) -> None:
    write_weights(adapter / WEIGHTS, GOOD, "I32")
    assert "int32" in refusal(adapter)
    write_weights(adapter / WEIGHTS, GOOD)
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-1])
    assert "not a whole safetensors file" in refusal(adapter)


def test_patterns_match_names_and_ends_of_names_alone() -> None:
    settings = AdapterSettings(
        r=4,
        lora_alpha=8,
        rank_pattern={"layers.1.q_proj": 16, "v_proj": 2},
        alpha_pattern={r"layers\.1\.q_proj": 3, "^q_proj": 5, "^model.layers.0.q_proj": 7},
    )
    assert settings.max_rank == 16
    assert settings.rank("model.layers.1.q_proj") == 16
    assert settings.rank("model.layers.11.q_proj") == 4
    assert settings.rank("model.layers.1.xv_proj") == 4
    assert settings.scale("model.layers.1.q_proj", 16) == 3 / 16
    assert settings.scale("model.layers.0.q_proj", 4) == 7 / 4
    assert settings.scale("model.layers.2.q_proj", 4) == 8 / 4
    stabilised = AdapterSettings(r=4, lora_alpha=8, use_rslora=True)
    assert stabilised.scale("x", 4) == 8 / 2


def test_room_follows_from_the_adapters_given(adapter: Path) -> None:
    targets = PLAIN | {"target_modules": ["q_proj", "mlp.up_proj"], "rank_pattern": {"x": 20}}
    (adapter / CONFIG).write_text(json.dumps(targets))
    space = adapter_space([str(adapter)], None, None, [])
    assert space is not None
    assert (space.num_places, space.max_rank, space.rank) == (8, 20, 32)
    assert space.takes("model.layers.0.self_attn.q_proj")
    assert space.takes("up_proj")
    assert not space.takes("model.layers.0.self_attn.k_proj")
    assert adapter_space([], None, None, []) is None
    free = adapter_space([], 3, None, [])
    assert free is not None
    assert (free.num_places, free.max_rank, free.targets) == (3, 16, None)
    with pytest.raises(ConfigError, match="--max-lora-rank to 20"):
        adapter_space([str(adapter)], None, 8, [])


def test_reading_settings_touches_no_weights(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    assert read_settings(adapter).r == 4
