"""Values narrower than keys: rows of zeros that no checkpoint has, quantised and with adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headstock.graph.lora import AdapterSpace
from headstock.testing.oracle.case import Saved, prompt
from headstock.testing.oracle.claims import assert_close
from tests.models.adapters import adapt
from tests.models.cases import CASES
from tests.models.harness import context
from tests.models.test_lora import differ, put

CASE = next(case for case in CASES if case.name == "mimov2flash")
IDS = prompt(17)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return CASE.save(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize(("quantization", "bound"), [("int8", 0.1), ("int4", 0.6)])
def test_padded_rows_are_quantised_with_the_others(
    saved: Saved, quantization: str, bound: float
) -> None:
    want = saved.logits(IDS)
    got = saved.load(context(quantization=quantization)).step(a=IDS)
    assert 0 < (got - want).norm() / want.norm() < bound


def test_adapters_leave_padded_rows_alone(saved: Saved, tmp_path: Path) -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapter = adapt(saved.oracle, tmp_path, seed=1, target_modules=names)
    want = adapter.logits(IDS)
    assert differ(want, saved.logits(IDS)), "the adapter changes nothing"
    space = AdapterSpace(num_places=2, max_rank=8)
    sequences = saved.load(context(adapters=space))
    put(sequences, adapter, space=space)
    sequences.adapters["a"] = 1
    got = [sequences.step(a=IDS[:9]), sequences.step(a=IDS[9:])]
    assert_close(torch.cat(got), want)
