"""Mixtures of experts: which layers have them, how they are kept, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headstock.checkpoint.files import ModelFiles, StoredTensor
from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError, ConfigError
from headstock.graph.estimate import estimate_weight_bytes
from headstock.graph.loader import load_random, load_weights, weight_bytes
from headstock.graph.module import find_layers
from headstock.graph.moe import Experts
from headstock.ops.canonical import dequantize
from headstock.ops.layouts import CanonicalLayout
from headstock.ops.linear import DENSE, INT4_GROUP, INT8_GROUP
from headstock.quantization.plan import Layout
from headstock.testing.oracle.ranks import ThreadGroup, on_ranks
from tests.models.conftest import Save
from tests.models.harness import Sequences, build, context, load
from tests.models.test_fp8_checkpoint import save_blocks

IDS = [5, 9, 1, 77, 31, 64, 2, 2, 100]


def experts_of(model: object) -> list[Experts]:
    return [layer for _, layer in find_layers(model) if isinstance(layer, Experts)]


@pytest.mark.parametrize(
    ("options", "num_sparse"),
    [
        pytest.param({"norm_topk_prob": False}, 2, id="weights-not-normalised"),
        pytest.param({"decoder_sparse_step": 2}, 1, id="every-other-layer"),
        pytest.param({"mlp_only_layers": [1]}, 1, id="one-layer-without"),
        pytest.param({"num_experts_per_tok": 1}, 2, id="one-expert-a-token"),
        pytest.param({"num_experts_per_tok": 6}, 2, id="all-experts"),
        pytest.param({"tie_word_embeddings": True}, 2, id="tied"),
    ],
)
def test_options_of_the_mixture_agree_with_transformers(
    save: Save, options: dict[str, object], num_sparse: int
) -> None:
    saved = save("qwen3_moe", **options)
    sequences = load(saved.path)
    assert len(experts_of(sequences.model)) == num_sparse
    want = saved.logits(IDS)
    got = sequences.step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_the_hub_and_transformers_call_the_number_of_experts_differently(save: Save) -> None:
    files = open_folder(save("qwen3_moe").path)
    config = dict(files.config)
    number = config.pop("num_local_experts")
    model = build(replace(files, config=config | {"num_experts": number}), context())
    assert len(experts_of(model)) == 2
    with pytest.raises(CheckpointError, match="num_experts"):
        build(replace(files, config=config), context())


@pytest.mark.parametrize(("asked", "error"), [("int8", 0.03), ("int4", 0.4)])
def test_quantised_experts_stay_close(save: Save, asked: str, error: float) -> None:
    saved = save("qwen3_moe", moe_intermediate_size=64)
    want = saved.logits(IDS)
    sequences = load(saved.path, context(quantization=asked))
    got = sequences.step(a=IDS)
    assert 0 < (got - want).norm() / want.norm() < error


@pytest.mark.parametrize("asked", [None, "int8", "int4"])
def test_the_estimate_of_experts_is_what_they_take(save: Save, asked: str | None) -> None:
    ctx = context(quantization=asked)
    files = open_folder(save("qwen3_moe", moe_intermediate_size=64).path)
    model = build(files, ctx)
    load_weights(model, files, ctx)
    assert weight_bytes(model) == estimate_weight_bytes(model, files.index, ctx)


def test_experts_whose_features_are_no_whole_groups_stay_dense(save: Save) -> None:
    sequences = load(save("qwen3_moe").path, context(quantization="int8"))
    assert {experts._kept for experts in experts_of(sequences.model)} == {Layout()}


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_ranks_have_the_logits_of_one(save: Save, quantization: str) -> None:
    saved = save("qwen3_moe", moe_intermediate_size=64, intermediate_size=128)
    want = load(saved.path, context(quantization=quantization)).step(a=IDS)

    def run(group: ThreadGroup) -> Tensor:
        return load(saved.path, context(tp=group, quantization=quantization)).step(a=IDS)

    for got in on_ranks(2, run):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def logits(files: ModelFiles) -> Tensor:
    ctx = context()
    model = build(files, ctx)
    load_weights(model, files, ctx)
    return Sequences(model, ctx).step(a=IDS)


def quantized(tensor: StoredTensor, layout: CanonicalLayout) -> StoredTensor:
    """Return the tensor as a checkpoint that has it quantised would."""
    parts = layout.load_quantize()(torch.from_numpy(tensor.read_all()["weight"]), 32)
    arrays = {name: part.numpy() for name, part in parts.items()}
    return replace(
        tensor,
        layout=layout,
        group_size=32,
        read=lambda begin, end: {name: part[begin:end] for name, part in arrays.items()},
    )


def dequantized(files: ModelFiles) -> ModelFiles:
    """Return the checkpoint with every tensor dense, of the values that it stands for."""
    index = dict(files.index)
    for name, tensor in files.index.items():
        parts = {n: torch.from_numpy(p) for n, p in tensor.read_all().items()}
        if tensor.layout == "fp8-group":
            parts["weight"] = parts["weight"].view(torch.float8_e4m3fn)
        values = dequantize(tensor.layout, parts, torch.float32).numpy()
        index[name] = replace(
            tensor,
            layout=DENSE,
            group_size=0,
            dtype="float32",
            read=lambda begin, end, v=values: {"weight": v[begin:end]},
        )
    return replace(files, index=index)


@pytest.mark.parametrize("down", [INT4_GROUP, INT8_GROUP])
def test_experts_in_one_layout_and_in_two_have_the_logits_of_their_values(
    save: Save, down: str
) -> None:
    saved = save("qwen3_moe", moe_intermediate_size=64)
    files = open_folder(saved.path)
    for name, tensor in files.index.items():
        if ".experts." in name:
            files.index[name] = quantized(tensor, down if "down_proj" in name else INT4_GROUP)
    got, want = logits(files), logits(dequantized(files))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_experts_of_an_fp8_checkpoint_have_the_logits_of_their_values(save: Save) -> None:
    saved = save("qwen3_moe", hidden_size=128, moe_intermediate_size=256)
    save_blocks(saved)
    files = open_folder(saved.path)
    got, want = logits(files), logits(dequantized(files))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_features_that_do_not_divide_among_ranks_are_refused(save: Save) -> None:
    saved = save("qwen3_moe", moe_intermediate_size=45)
    group = ThreadGroup(0, 2, None, [])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tp_size is 2.*an expert has 45 features"):
        load(saved.path, context(tp=group))


def test_a_missing_expert_is_named(save: Save) -> None:
    files = open_folder(save("qwen3_moe").path)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    del files.index[name]
    ctx = context()
    with pytest.raises(CheckpointError, match=name):
        load_weights(build(files, ctx), files, ctx)


def test_random_weights_fill_every_expert(save: Save) -> None:
    ctx = context()
    model = build(open_folder(save("qwen3_moe").path), ctx)
    load_random(model, ctx)
    assert Sequences(model, ctx).step(a=IDS).isfinite().all()


def test_a_padding_row_of_not_numbers_changes_no_other(save: Save) -> None:
    model = load(save("qwen3_moe").path).model
    mixture = model.model.layers[0].mlp
    x_TD = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    wanted = mixture(x_TD)[:3].clone()
    x_TD[3:] = torch.nan
    assert torch.equal(mixture(x_TD)[:3], wanted)
