"""MiniMax M3: what its nested configuration may not say, and what a query reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headstock.errors import UnsupportedError
from headstock.graph.build import build_model
from headstock.testing.oracle.case import prompt
from headstock.testing.oracle.sequences import context
from tests.models.cases import CASES

CASE = next(case for case in CASES if case.name == "minimaxm3")
HUB = next(case for case in CASES if case.name == "minimaxm3-hub")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_sparse_attention", False),
        ("sparse_score_type", "mean"),
        ("sparse_init_block", 1),
        ("sparse_disable_index_value", [0, 1, 0]),
    ],
)
def test_blocks_that_are_chosen_otherwise_are_refused_by_key_and_value(
    tmp_path: Path, key: str, value: Any
) -> None:
    config = HUB.save(tmp_path).config()
    config["text_config"]["sparse_attention_config"][key] = value
    with pytest.raises(UnsupportedError, match=f"{key} = "):
        build_model(HUB.model, context(), config)


def test_a_token_outside_of_the_chosen_blocks_counts_for_nothing(tmp_path: Path) -> None:
    """Where every layer reads a query's own block alone, what lies before it is not seen."""
    own = {"index_topk_blocks": 1, "layer_types": ["minimax_m3_sparse"] * 3}
    saved = replace(CASE, options={**CASE.options, **own}).save(tmp_path)
    ids = prompt(15)
    changed = [*prompt(10, seed=1), *ids[10:]]
    assert torch.equal(saved.load().step(a=changed)[10:], saved.load().step(a=ids)[10:])
