"""Weights that are quantised at load, and layers whose weights come in several layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headstock.checkpoint.files import ModelFiles, StoredTensor
from headstock.checkpoint.folder import open_folder
from headstock.errors import ConfigError
from headstock.graph.loader import load_weights, weight_bytes
from headstock.ops.canonical import dequantize
from headstock.ops.layouts import CanonicalLayout
from headstock.ops.linear import INT4_GROUP, INT8_GROUP
from headstock.testing.oracle.ranks import ThreadGroup, on_ranks
from tests.models.conftest import Save, Saved
from tests.models.harness import Sequences, build, context, load

IDS = [5, 9, 1, 77, 31]


def quantized(tensor: StoredTensor, layout: CanonicalLayout, group_size: int = 32) -> StoredTensor:
    """Return the tensor as a checkpoint that has it quantised would."""
    whole = torch.from_numpy(tensor.read_all()["weight"])
    parts = {name: part.numpy() for name, part in layout.load_quantize()(whole, group_size).items()}
    return replace(
        tensor,
        layout=layout,
        group_size=group_size,
        read=lambda begin, end: {name: part[begin:end] for name, part in parts.items()},
    )


def dequantize_oracle(saved: Saved, index: dict[str, StoredTensor]) -> None:
    """Give the oracle the values that the quantised tensors stand for."""
    for name, value in saved.oracle.state_dict().items():
        parts = {n: torch.from_numpy(p) for n, p in index[name].read_all().items()}
        value.copy_(dequantize(index[name].layout, parts, torch.float32))


@pytest.mark.parametrize("layouts", [(INT4_GROUP, INT4_GROUP), (INT4_GROUP, INT8_GROUP)])
def test_a_quantised_checkpoint_has_the_logits_of_its_dequantised_weights(
    save: Save, layouts: tuple[str, str]
) -> None:
    saved = save("llama")
    files = open_folder(saved.path)
    for name, tensor in files.index.items():
        if "q_proj" in name or "k_proj" in name or "up_proj" in name:
            files.index[name] = quantized(tensor, layouts[0])
        if "v_proj" in name or "embed" in name or "down_proj" in name:
            files.index[name] = quantized(tensor, layouts[1])
    dequantize_oracle(saved, files.index)
    ctx = context()
    model = build(files, ctx)
    load_weights(model, files, ctx)
    want = saved.logits(IDS)
    torch.testing.assert_close(Sequences(model, ctx).step(a=IDS), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("asked", "error"), [("int8", 0.02), ("int4", 0.3)])
def test_quantised_logits_stay_close(save: Save, asked: str, error: float) -> None:
    saved = save("llama")
    want = saved.logits(IDS)
    got = load(saved.path, context(quantization=asked)).step(a=IDS)
    assert 0 < (got - want).norm() / want.norm() < error


@pytest.mark.parametrize(("asked", "share"), [("int8", 0.35), ("int4", 0.32)])
def test_quantised_weights_are_smaller(save: Save, asked: str, share: float) -> None:
    path = save("llama").path
    ctx = context(quantization=asked)
    model, files = load(path, ctx).model, open_folder(path)
    assert weight_bytes(model) < share * files.num_bytes


@pytest.mark.parametrize("layout", [INT8_GROUP, INT4_GROUP])
@pytest.mark.parametrize("group_size", [32, 96])
def test_groups_that_ranks_cut_keep_their_scales(
    save: Save, layout: CanonicalLayout, group_size: int
) -> None:
    saved = save("llama")

    def files() -> ModelFiles:
        found = open_folder(saved.path)
        for name, tensor in found.index.items():
            if "down_proj" in name:
                found.index[name] = quantized(tensor, layout, group_size)
        return found

    dequantize_oracle(saved, files().index)
    want = saved.logits(IDS)

    def run(group: ThreadGroup) -> torch.Tensor:
        ctx, here = context(tp=group), files()
        model = build(here, ctx)
        load_weights(model, here, ctx)
        return Sequences(model, ctx).step(a=IDS)

    for got in on_ranks(2, run):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_groups_that_ranks_would_cut_too_small_are_refused(save: Save) -> None:
    files = open_folder(save("llama", intermediate_size=80).path)
    for name, tensor in files.index.items():
        if "down_proj" in name:
            files.index[name] = quantized(tensor, INT4_GROUP, 16)
    group = ThreadGroup(0, 4, None, [])  # type: ignore[arg-type]
    ctx = context(tp=group)
    with pytest.raises(ConfigError, match=r"down_proj 20 input features .* groups have 16"):
        load_weights(build(files, ctx), files, ctx)
