"""Weights read back from the model that computes with them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from headstock.assemble.weights import InPlaceWeights
from headstock.errors import CheckpointError, UnsupportedError
from headstock.graph.readback import bias_of_product, rows_of_product
from headstock.graph.split import Span
from tests.models.conftest import FAMILIES, Save
from tests.models.harness import load
from tests.models.test_weights_in_place import WEIGHTS, another, in_place

PACKED = re.compile(
    r"\.linear_attn\.|_a_layernorm\.|kv_b_proj\.|e_score_correction| ArrangedLinear,"
)
"""What layers of attention, of states and of routing keep in forms of their own."""


def read(weights: InPlaceWeights, name: str, num_rows: int = 5) -> Tensor:
    shape, values = weights.read(name, num_rows)
    return torch.from_numpy(np.frombuffer(values, "<f4").copy()).view(shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_what_the_checkpoint_has(save: Save, family: str) -> None:
    saved = save(family)
    weights = in_place(load(saved.path), saved.path)
    num_read, packed = 0, []
    for name, tensor in load_file(saved.path / WEIGHTS).items():
        if ".experts." in name:  # a file's stacks are one weight an expert here
            continue
        try:
            found = read(weights, name)
        except UnsupportedError as error:
            packed.append(f"{name} {error}")
            continue
        num_read += 1
        torch.testing.assert_close(found, tensor[:5].float(), rtol=1e-4, atol=1e-6, msg=name)
    assert num_read > 3
    assert [each for each in packed if not PACKED.search(each)] == []


def test_other_weights_are_read_once_they_are_loaded(save: Save, tmp_path: Path) -> None:
    saved = save("llama")
    name = "model.layers.1.self_attn.v_proj.weight"
    weights = in_place(load(saved.path), saved.path)
    before = read(weights, name, 10_000)
    weights.begin(str(another(saved.path, tmp_path / "other")))
    while not weights.advance(0.0):
        pass
    torch.testing.assert_close(read(weights, name, 10_000), before * 0.5)


def test_unknown_names_and_packed_weights_are_refused(save: Save) -> None:
    saved = save("mixtral")
    sequences = load(saved.path)
    weights = in_place(sequences, saved.path)
    with pytest.raises(CheckpointError, match=r"no such weight.*model\.norm\.weight"):
        weights.read("model.norm.weigth", 1)
    name = next(n for n in expected(sequences) if ".experts." in n)
    with pytest.raises(UnsupportedError, match="Experts, has packed it"):
        weights.read(name, 1)


def expected(sequences) -> list[str]:  # type: ignore[no-untyped-def]
    from headstock.graph.loader import expected_leaves

    return list(expected_leaves(sequences.model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_bias_beside_the_product_hardly_counts(dtype: torch.dtype) -> None:
    weight_OI, bias_O = torch.randn(40, 100).to(dtype), torch.randn(40).to(dtype) * 50

    def multiply(x_MI: Tensor) -> Tensor:
        return (x_MI.float() @ weight_OI.float().T + bias_O.float()).to(dtype)

    args = (100, Span(8, 20), dtype, torch.device("cpu"))
    found = rows_of_product(multiply, *args)
    rtol = 2e-2 if dtype == torch.float16 else 5e-3
    torch.testing.assert_close(found, weight_OI[8:20].float(), rtol=rtol, atol=2e-3)
    assert torch.equal(bias_of_product(multiply, *args), bias_O[8:20].float())
