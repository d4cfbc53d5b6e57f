"""gpt-oss as the hub has it: experts stacked, in MXFP4 blocks and scales, or in bfloat16."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError
from headstock.graph.estimate import estimate_weight_bytes
from headstock.graph.loader import load_random, load_weights, weight_bytes
from headstock.graph.module import find_layers
from headstock.graph.moe import Experts
from headstock.ops.canonical import dequantize, quantize_mxfp4
from headstock.ops.linear import MXFP4
from headstock.quantization.plan import Layout
from headstock.testing.oracle.ranks import ThreadGroup, on_ranks
from tests.models.conftest import Save, Saved
from tests.models.harness import Sequences, build, context, load

IDS = [5, 9, 1, 77, 31, 64, 2, 2, 100, 18, 44]


def save_blocks(saved: Saved) -> None:
    """Quantise the experts of a saved model, on disk and in the oracle."""
    file = saved.path / "model.safetensors"
    tensors = load_file(file)
    parameters = dict(saved.oracle.named_parameters())
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj")) and "exp" in n]:
        weight_EOI = tensors.pop(name).transpose(1, 2)
        num_experts, size_out, size_in = weight_EOI.shape
        parts = quantize_mxfp4(weight_EOI.flatten(0, 1), 32)
        values = dequantize(MXFP4, parts, torch.float32).view(weight_EOI.shape)
        parameters[name].data.copy_(values.transpose(1, 2))
        shape = (num_experts, size_out, size_in // 32)
        tensors[f"{name}_blocks"] = parts["weight"].view(*shape, 16).contiguous()
        exponents = parts["scale"].log2().round().to(torch.int32) + 127
        tensors[f"{name}_scales"] = exponents.to(torch.uint8).view(shape).contiguous()
    save_file(tensors, file)
    config = json.loads((saved.path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["x"]}
    (saved.path / "config.json").write_text(json.dumps(config))


def assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.fixture
def quantised(save: Save) -> Saved:
    saved = save("gpt_oss", hidden_size=96)
    save_blocks(saved)
    return saved


def test_a_checkpoint_in_mxfp4_has_the_logits_of_its_values(quantised: Saved) -> None:
    sequences = load(quantised.path)
    experts = [m for _, m in find_layers(sequences.model) if isinstance(m, Experts)]
    assert {layer._kept for layer in experts} == {Layout(MXFP4, 32)}
    got = [sequences.step(a=IDS[:6]), *(sequences.step(a=[token]) for token in IDS[6:])]
    assert_close(torch.cat(got), quantised.logits(IDS))


def test_ranks_have_the_logits_of_one(quantised: Saved) -> None:
    want = quantised.logits(IDS)

    def run(group: ThreadGroup) -> Tensor:
        return load(quantised.path, context(tp=group)).step(a=IDS)

    for got in on_ranks(2, run):
        assert_close(got, want)


def test_the_estimate_is_what_it_takes(quantised: Saved) -> None:
    ctx, files = context(), open_folder(quantised.path)
    model = build(files, ctx)
    load_weights(model, files, ctx)
    assert weight_bytes(model) == estimate_weight_bytes(model, files.index, ctx)


def test_the_bytes_of_the_pieces_are_those_of_the_files(quantised: Saved) -> None:
    stored = load_file(quantised.path / "model.safetensors")
    assert open_folder(quantised.path).num_bytes == sum(t.nbytes for t in stored.values())


def test_scales_that_do_not_fit_are_refused(quantised: Saved) -> None:
    file = quantised.path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.experts.down_proj_scales"
    tensors[name] = tensors[name][:, :, :1].contiguous()
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"down_proj_scales is \[6, 96, 1\]"):
        open_folder(quantised.path)
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="down_proj_scales is not there"):
        open_folder(quantised.path)


def test_a_missing_bias_is_named(save: Save) -> None:
    files = open_folder(save("gpt_oss").path)
    name = "model.layers.1.mlp.experts.3.up_proj.bias"
    del files.index[name]
    ctx = context()
    with pytest.raises(CheckpointError, match=name):
        load_weights(build(files, ctx), files, ctx)


@pytest.mark.parametrize("asked", ["int8", "int4"])
def test_experts_may_be_quantised_by_the_operator(save: Save, asked: str) -> None:
    saved = save("gpt_oss")
    got = load(saved.path, context(quantization=asked)).step(a=IDS)
    want = saved.logits(IDS)
    assert 0 < (got - want).norm() / want.norm() < {"int8": 0.1, "int4": 0.7}[asked]


def test_random_weights_compute(save: Save) -> None:
    ctx = context()
    model = build(open_folder(save("gpt_oss").path), ctx)
    load_random(model, ctx)
    assert Sequences(model, ctx).step(a=IDS).isfinite().all()
