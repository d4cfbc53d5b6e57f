"""AWQ, GPTQ and compressed-tensors checkpoints, against transformers on what they stand for.

The test packs the integers itself, bit by bit, as the formats' own descriptions have it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headstock.checkpoint.folder import open_folder
from headstock.errors import CheckpointError, UnsupportedError
from headstock.graph.estimate import estimate_weight_bytes
from headstock.graph.loader import reload_weights, weight_bytes
from headstock.ops.canonical import dequantize
from headstock.ops.linear import INT4_GROUP, INT8_GROUP
from headstock.testing.oracle.ranks import ThreadGroup, on_ranks
from tests.models.adapters import adapt
from tests.models.conftest import Save, Saved
from tests.models.harness import build, context, load
from tests.models.quantized_folders import change, configure, write_quantized
from tests.models.test_lora import serve

IDS = [5, 9, 1, 77, 31]
GROUP = 16
SIZES = {"intermediate_size": 96, "head_dim": 32}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
UP = "model.layers.0.mlp.up_proj"

Pack = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


def as_words(integers: Tensor, bits: int, order: Sequence[int] | None = None) -> Tensor:
    """Pack the last dimension into int32; nibble k of a word is the word's integer order[k]."""
    per_word = 32 // bits
    groups = integers.to(torch.int64).unflatten(-1, (-1, per_word))
    order = order or range(per_word)
    words = sum(groups[..., order[k]] << (bits * k) for k in range(per_word))
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def pack_awq(q_OI: Tensor, zero_OG: Tensor, scale_OG: Tensor) -> dict[str, Tensor]:
    return {
        "qweight": as_words(q_OI.T, 4, AWQ_ORDER),
        "qzeros": as_words(zero_OG.T, 4, AWQ_ORDER),
        "scales": scale_OG.T.contiguous().half(),
    }


def groups_of(num_features: int, *, is_scattered: bool) -> Tensor:
    """Return each input feature's group."""
    runs = torch.arange(num_features) // GROUP
    if not is_scattered:
        return runs
    return runs[torch.randperm(num_features, generator=torch.Generator().manual_seed(3))]


def gptq_packer(bits: int, zero_offset: int, *, is_scattered: bool = False) -> Pack:
    def pack(q_OI: Tensor, zero_OG: Tensor, scale_OG: Tensor) -> dict[str, Tensor]:
        return {
            "qweight": as_words(q_OI, bits).T.contiguous(),
            "qzeros": as_words(zero_OG.T - zero_offset, bits),
            "scales": scale_OG.T.contiguous().half(),
            "g_idx": groups_of(q_OI.shape[1], is_scattered=is_scattered).int(),
        }

    return pack


def compressed_packer(bits: int, *, has_zeros: bool = False, is_scattered: bool = False) -> Pack:
    def pack(q_OI: Tensor, zero_OG: Tensor, scale_OG: Tensor) -> dict[str, Tensor]:
        parts = {
            "weight_packed": as_words(q_OI, bits),
            "weight_scale": scale_OG.bfloat16(),
            "weight_shape": torch.tensor(q_OI.shape),
        }
        if has_zeros:
            parts["weight_zero_point"] = as_words(zero_OG.T, bits).T.contiguous()
        if is_scattered:
            parts["weight_g_idx"] = groups_of(q_OI.shape[1], is_scattered=True).int()
        return parts

    return pack


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}
GPTQ8 = GPTQ | {"bits": 8}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}

FORMATS: dict[str, tuple[dict[str, Any], Pack, int, bool]] = {
    "awq": (AWQ, pack_awq, 4, False),
    "gptq": (GPTQ, gptq_packer(4, 1), 4, False),
    "gptq v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, gptq_packer(4, 0), 4, False),
    "gptq 8 bits": (GPTQ8, gptq_packer(8, 1), 8, True),
    "gptq 8 bits asymmetric": (GPTQ8, gptq_packer(8, 1), 8, False),
    "gptq act-order": (GPTQ | {"desc_act": True}, gptq_packer(4, 1, is_scattered=True), 4, False),
    "gptq 8 bits act-order": (GPTQ8, gptq_packer(8, 1, is_scattered=True), 8, True),
    "compressed 4 bits": (COMPRESSED, compressed_packer(4), 4, True),
    "compressed 8 bits": (COMPRESSED, compressed_packer(8), 8, True),
    "compressed 4 bits asymmetric": (COMPRESSED, compressed_packer(4, has_zeros=True), 4, False),
    "compressed 8 bits asymmetric": (COMPRESSED, compressed_packer(8, has_zeros=True), 8, False),
    "compressed act-order": (
        COMPRESSED,
        compressed_packer(4, has_zeros=True, is_scattered=True),
        4,
        False,
    ),
}
"""Configuration, packer, bits, and whether zeros are the midpoint."""
ACT_ORDER = [name for name in FORMATS if "act-order" in name]
DENSE_FORMATS = [*ACT_ORDER, "gptq 8 bits asymmetric", "compressed 8 bits asymmetric"]
"""Of those that have no canonical layout in their bits."""


def draw(rows: int, columns: int, bits: int, is_symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Draw integers, zeros and scales: any, not such as a quantiser would choose."""
    top, groups = (1 << bits) - 1, columns // GROUP
    q_OI = torch.randint(0, top + 1, (rows, columns))
    zero_OG = torch.randint(1, top + 1, (rows, groups))
    if is_symmetric:
        zero_OG = torch.full((rows, groups), 1 << (bits - 1))
    scale_OG = (torch.rand(rows, groups) + 0.5) * 0.4 / top
    return q_OI, zero_OG, scale_OG.bfloat16().half()


def quantize(saved: Saved, name: str, *, kept: Sequence[str] = ()) -> None:
    """Let the checkpoint have its matrices in the format, and the oracle what they stand for."""
    config, pack, bits, is_symmetric = FORMATS[name]
    file = saved.path / "model.safetensors"
    tensors, written = load_file(file), {}
    torch.manual_seed(1)
    for key, value in tensors.items():
        if "_proj" not in key or any(module in key for module in kept):
            written[key] = value
            continue
        q_OI, zero_OG, scale_OG = draw(*value.shape, bits, is_symmetric)
        module = key.removesuffix("weight")
        written |= {module + part: t for part, t in pack(q_OI, zero_OG, scale_OG).items()}
        group_I = groups_of(value.shape[1], is_scattered=name in ACT_ORDER)
        value.copy_(scale_OG.float()[:, group_I] * (q_OI - zero_OG[:, group_I]))
    saved.oracle.load_state_dict(tensors, strict=False)
    save_file({key: value.contiguous() for key, value in written.items()}, file)
    configure(saved, config | {"modules_to_not_convert": list(kept) or None})


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_has_the_logits_of_its_dequantised_weights(save: Save, name: str) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, name)
    want = saved.logits(IDS)
    loaded = load(saved.path)
    got = loaded.step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    if name not in DENSE_FORMATS or name in ACT_ORDER:
        assert weight_bytes(loaded.model) < 0.7 * sum(p.nbytes for p in saved.oracle.parameters())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("begin", "end"), [(0, 96), (3, 29), (40, 41)])
def test_any_rows_are_exactly_what_the_file_stands_for(
    save: Save, name: str, begin: int, end: int
) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, name)
    stored = open_folder(saved.path).index[f"{UP}.weight"]
    packed = INT4_GROUP if FORMATS[name][2] == 4 else INT8_GROUP
    assert stored.layout == ("dense" if name in DENSE_FORMATS else packed)
    parts = {n: torch.from_numpy(p.copy()) for n, p in stored.read(begin, end).items()}
    want = saved.oracle.state_dict()[f"{UP}.weight"][begin:end]
    got = dequantize(stored.layout, parts, torch.float32)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FORMATS)
def test_two_ranks_have_the_logits_of_one(save: Save, name: str) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, name)
    want = saved.logits(IDS)

    def run(group: ThreadGroup) -> Tensor:
        return load(saved.path, context(tp=group)).step(a=IDS)

    for got in on_ranks(2, run):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_modules_that_were_not_converted_stay_dense(save: Save, name: str) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, name, kept=["mlp.up_proj", "layers.1.self_attn"])
    assert open_folder(saved.path).index[f"{UP}.weight"].layout == "dense"
    want = saved.logits(IDS)
    got = load(saved.path).step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_biases_stand_beside_quantised_weights(save: Save) -> None:
    saved = save("qwen3", **SIZES, attention_bias=True)
    quantize(saved, "awq", kept=["bias"])
    want = saved.logits(IDS)
    got = load(saved.path).step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_a_gptq_checkpoint_may_lack_its_group_indices(save: Save) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, "gptq")
    change(saved, lambda tensors: [tensors.pop(n) for n in list(tensors) if "g_idx" in n])
    torch.testing.assert_close(
        load(saved.path).step(a=IDS), saved.logits(IDS), rtol=1e-4, atol=1e-3
    )


def test_awq_s_old_names_of_settings_are_read(save: Save) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, "awq")
    old = {"quant_method": "awq", "w_bit": 4, "q_group_size": GROUP, "version": "GEMM"}
    configure(saved, old)
    torch.testing.assert_close(
        load(saved.path).step(a=IDS), saved.logits(IDS), rtol=1e-4, atol=1e-3
    )
    configure(saved, old | {"w_bit": 3})
    with pytest.raises(UnsupportedError, match="3 bits"):
        open_folder(saved.path)


@pytest.mark.parametrize(
    ("name", "file", "settings"),
    [
        ("gptq", "quantize_config.json", {"bits": 4, "group_size": GROUP, "desc_act": False}),
        ("awq", "quant_config.json", {"w_bit": 4, "q_group_size": GROUP, "version": "GEMM"}),
    ],
)
def test_settings_in_a_file_of_their_own_are_read(
    save: Save, name: str, file: str, settings: dict[str, Any]
) -> None:
    saved = save("llama")
    quantize(saved, name)
    path = saved.path / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    (saved.path / file).write_text(json.dumps(settings))
    want = saved.logits(IDS)
    got = load(saved.path).step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("is_unset", [True, False])
def test_compressed_groups_that_are_runs_may_say_so(save: Save, is_unset: bool) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, "compressed 4 bits")
    group_of_I = torch.full((64,), -1) if is_unset else torch.arange(64) // GROUP
    change(saved, lambda tensors: tensors.update({f"{UP}.weight_g_idx": group_of_I.int()}))
    torch.testing.assert_close(
        load(saved.path).step(a=IDS), saved.logits(IDS), rtol=1e-4, atol=1e-3
    )


def test_biases_of_zeros_that_gptq_adds_are_left_out(save: Save) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, "gptq")
    change(saved, lambda tensors: tensors.update({f"{UP}.bias": torch.zeros(96).half()}))
    torch.testing.assert_close(
        load(saved.path).step(a=IDS), saved.logits(IDS), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("name", ["gptq act-order", "compressed act-order"])
@pytest.mark.parametrize("group", [-1, 4])
def test_groups_that_are_not_there_are_refused_by_name(save: Save, name: str, group: int) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, name)
    part = "g_idx" if "gptq" in name else "weight_g_idx"
    change(saved, lambda tensors: tensors[f"{UP}.{part}"][3].fill_(group))
    with pytest.raises(CheckpointError, match=rf"up_proj\.{part} holds groups from .*there are 4"):
        open_folder(saved.path)


def scatter_anew(saved: Saved, module: str) -> None:
    """Give a matrix of a checkpoint another order of its input features, and the oracle too."""
    tensors = load_file(saved.path / "model.safetensors")
    old_I = tensors[f"{module}.g_idx"].long()
    new_I = old_I[torch.randperm(len(old_I))]
    unpacked = open_folder(saved.path).index[f"{module}.weight"].ordered
    assert unpacked is not None
    parts = {n: torch.from_numpy(p.copy()) for n, p in unpacked.tensor.read_all().items()}
    weight_OI = torch.empty(unpacked.tensor.shape)
    weight_OI[:, new_I.argsort(stable=True)] = dequantize(INT4_GROUP, parts, torch.float32)
    integers_OI = torch.stack((parts["weight"] & 15, parts["weight"] >> 4), dim=-1).flatten(1)
    scattered_OI = torch.empty_like(integers_OI)
    scattered_OI[:, new_I.argsort(stable=True)] = integers_OI
    words = as_words(scattered_OI, 4).T.contiguous()
    edited = {f"{module}.g_idx": new_I.int(), f"{module}.qweight": words}
    change(saved, lambda found: found.update(edited))
    saved.oracle.state_dict()[f"{module}.weight"].copy_(weight_OI)


def test_matrices_of_one_product_may_have_orders_of_their_own(save: Save) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, "gptq act-order")
    for module in ("model.layers.0.self_attn.v_proj", UP):
        scatter_anew(saved, module)
    want = saved.logits(IDS)
    loaded = load(saved.path)
    got = loaded.step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    assert weight_bytes(loaded.model) < 0.7 * sum(p.nbytes for p in saved.oracle.parameters())


@pytest.mark.parametrize("name", ["gptq act-order", "gptq 8 bits act-order"])
def test_groups_of_several_sizes_are_kept_dense(save: Save, name: str) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, name)
    change(saved, lambda tensors: tensors[f"{UP}.g_idx"].fill_(0))
    stored = open_folder(saved.path).index[f"{UP}.weight"]
    assert (stored.layout, stored.ordered) == ("dense", None)
    assert load(saved.path).step(a=IDS).isfinite().all()


def test_scattered_experts_are_what_the_file_stands_for(save: Save) -> None:
    saved = save("deepseek_v2", moe_intermediate_size=48)

    def scattered(weight_OI: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        q_OI, zero_OG, scale_OG = draw(*weight_OI.shape, 4, is_symmetric=False)
        group_I = groups_of(weight_OI.shape[1], is_scattered=True)
        parts = gptq_packer(4, 1, is_scattered=True)(q_OI, zero_OG, scale_OG)
        return parts, scale_OG.float()[:, group_I] * (q_OI - zero_OG[:, group_I])

    write_quantized(saved, scattered, FORMATS["gptq act-order"][0], marker="experts.")
    want = saved.logits(IDS)
    got = load(saved.path).step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("asked", ["int8", "int4"])
def test_a_scattered_checkpoint_may_be_quantised_again(save: Save, asked: str) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, "gptq 8 bits act-order")
    want = saved.logits(IDS)
    got = load(saved.path, context(quantization=asked)).step(a=IDS)
    assert 0 < (got - want).norm() / want.norm() < {"int8": 0.02, "int4": 0.4}[asked]


def test_the_estimate_of_a_scattered_checkpoint_is_what_it_takes(save: Save) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, "gptq act-order")
    files, ctx = open_folder(saved.path), context()
    estimate = estimate_weight_bytes(build(files, ctx), files.index, ctx)
    assert estimate == pytest.approx(weight_bytes(load(saved.path).model), rel=0.05)


def test_adapters_add_to_products_with_scattered_groups(save: Save, tmp_path: Path) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, "gptq act-order")
    adapter = adapt(saved.oracle, tmp_path / "adapter", seed=1)
    want = adapter.logits(IDS)
    sequences = serve(saved, adapter)
    sequences.adapters["a"] = 1
    got = sequences.step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_an_update_in_another_order_is_refused(save: Save) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, "gptq act-order")
    loaded = load(saved.path)
    change(saved, lambda tensors: tensors[f"{UP}.g_idx"].copy_(tensors[f"{UP}.g_idx"].flip(0)))
    files = open_folder(saved.path)
    with pytest.raises(CheckpointError, match=r"up_proj.weight comes with .* another order"):
        reload_weights(loaded.model, files.tensors(), files.num_bytes)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("awq", "qzeros"),
        ("awq", "scales"),
        ("gptq", "qzeros"),
        ("compressed 4 bits", "weight_scale"),
    ],
)
def test_a_module_without_one_of_its_tensors_is_refused_by_name(
    save: Save, name: str, part: str
) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, name)
    change(saved, lambda tensors: tensors.pop(f"{UP}.{part}"))
    with pytest.raises(CheckpointError, match=rf"up_proj\.{part} is not there"):
        open_folder(saved.path)


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_a_group_size_that_does_not_fit_the_scales_is_refused(save: Save, name: str) -> None:
    saved = save("qwen3", **SIZES)
    quantize(saved, name)
    configure(saved, FORMATS[name][0] | {"group_size": 32})
    with pytest.raises(CheckpointError, match=r"qzeros is \[6, .*make it \[3, "):
        open_folder(saved.path)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (AWQ | {"version": "gemv"}, "version 'gemv' with 4 bits"),
        (AWQ | {"bits": 8}, "version 'gemm' with 8 bits"),
        (GPTQ | {"bits": 3}, "3 bits"),
        (GPTQ | {"checkpoint_format": "marlin"}, "'marlin'"),
        (COMPRESSED | {"format": "marlin-24"}, "format 'marlin-24'"),
        (
            COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}},
            r"sparsity_config\.format 'sparse-24-bitmask'",
        ),
        (
            COMPRESSED | {"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}},
            "transform_config .*hadamard",
        ),
    ],
)
def test_forms_that_we_cannot_read_are_refused(
    save: Save, quantization: dict[str, Any], message: str
) -> None:
    saved = save("qwen3", **SIZES)
    configure(saved, quantization)
    with pytest.raises(UnsupportedError, match=message):
        open_folder(saved.path)
