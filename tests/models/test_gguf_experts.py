"""GGUF files of mixtures of experts, against transformers on what their blocks stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from headstock.checkpoint.files import ModelFiles
from headstock.checkpoint.gguf_model import open_gguf
from headstock.errors import CheckpointError, UnsupportedError
from headstock.graph.loader import load_weights
from headstock.ops.canonical import dequantize
from headstock.ops.layouts import CanonicalLayout
from headstock.ops.linear import INT8_GROUP, MXFP4
from tests.models.harness import Sequences, build, context
from tests.unit.gguf_files import HEADS, HIDDEN, INNER, KV_HEADS, llama_tensors, write_gguf

IDS = [5, 9, 1, 47, 31, 2, 2, 11]
EXPERTS, CHOSEN, BETWEEN = 6, 2, 96
Tensors = dict[str, NDArray[np.float32]]


def tensors_of(architecture: str, num_layers: int = 2) -> Tensors:
    """Return random tensors by the names that GGUF gives those of a mixture of experts."""
    draw = np.random.default_rng(3)
    tensors = llama_tensors(num_layers=num_layers)
    between = INNER if architecture == "llama" else BETWEEN
    has_bias = architecture == "gpt-oss"
    shapes: dict[str, tuple[int, ...]] = {
        "ffn_gate_inp": (EXPERTS, HIDDEN),
        "ffn_gate_exps": (EXPERTS, between, HIDDEN),
        "ffn_up_exps": (EXPERTS, between, HIDDEN),
        "ffn_down_exps": (EXPERTS, HIDDEN, between),
    }
    vectors: dict[str, int] = {}
    if architecture == "qwen3moe":
        vectors = {"attn_q_norm": HIDDEN // HEADS, "attn_k_norm": HIDDEN // HEADS}
    if has_bias:
        vectors = {"attn_sinks": HEADS}
    for layer in range(num_layers):
        prefix = f"blk.{layer}."
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            del tensors[f"{prefix}{name}.weight"]
        for name, shape in (shapes | {n: (size,) for n, size in vectors.items()}).items():
            value = draw.standard_normal(shape).astype(np.float32)
            tensors[f"{prefix}{name}.weight"] = value * np.float32(0.3)
        if not has_bias:
            continue
        tensors[f"{prefix}post_attention_norm.weight"] = tensors.pop(f"{prefix}ffn_norm.weight")
        kv = HIDDEN // HEADS * KV_HEADS
        sizes = {"attn_q": (HIDDEN,), "attn_k": (kv,), "attn_v": (kv,), "attn_output": (HIDDEN,)}
        sizes |= {name: shape[:-1] for name, shape in shapes.items()}
        for name, shape in sizes.items():
            value = draw.standard_normal(shape).astype(np.float32)
            tensors[f"{prefix}{name}.bias"] = value * np.float32(0.3)
    return tensors


def write(path: Path, architecture: str, types: dict[str, Type], **more: Any) -> ModelFiles:
    """Write such a file; ``types`` are of kinds of tensors."""
    tensors = tensors_of(architecture)
    counts = {"expert_count": EXPERTS, "expert_used_count": CHOSEN}
    if architecture != "llama":
        counts["expert_feed_forward_length"] = BETWEEN
    if architecture == "gpt-oss":
        counts["attention.sliding_window"] = 5
        more |= {
            "gpt-oss.rope.scaling.type": "yarn",
            "gpt-oss.rope.scaling.factor": 4.0,
            "gpt-oss.rope.scaling.original_context_length": 128,
        }
    named = {
        name: kind
        for name in tensors
        for part, kind in types.items()
        if name.endswith(f"{part}.weight")
    }
    metadata = {f"{architecture}.{key}": value for key, value in counts.items()} | more
    return open_gguf(
        write_gguf(
            path / "m.gguf", tensors, architecture=architecture, types=named, metadata=metadata
        )
    )


def oracle_of(files: ModelFiles, path: Path) -> transformers.PreTrainedModel:
    """Return transformers' model of the file's configuration and dequantised weights."""
    config_type = transformers.AutoConfig.for_model(files.config["model_type"])
    names = set(config_type.to_dict()) | {"rope_parameters", "moe_intermediate_size"}
    names |= {"num_experts", "norm_topk_prob", "head_dim", "sliding_window", "num_local_experts"}
    given = {name: value for name, value in files.config.items() if name in names}
    config = type(config_type)(**given, attn_implementation="eager")
    config.architectures = [files.architecture]
    weights: dict[str, Tensor] = {}
    for name, tensor in files.index.items():
        parts = {n: torch.from_numpy(p.copy()) for n, p in tensor.read_all().items()}
        weights[name] = dequantize(tensor.layout, parts, torch.float32)
    if config.model_type == "gpt_oss":
        weights = stacked(weights)
    folder = path / "oracle"
    config.save_pretrained(folder)
    save_file({n: t.contiguous().clone() for n, t in weights.items()}, folder / "model.safetensors")
    loader = getattr(transformers, files.architecture)
    return loader.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def stacked(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return experts as gpt-oss has them: inputs first, features of gate and up by turns."""
    found = {name: tensor for name, tensor in weights.items() if ".experts." not in name}
    layers = {name.partition(".experts.")[0] for name in weights if ".experts." in name}
    for layer in layers:
        for end, kind in (("", "weight"), ("_bias", "bias")):
            parts = {
                matrix: torch.stack(
                    [weights[f"{layer}.experts.{e}.{matrix}.{kind}"] for e in range(EXPERTS)]
                )
                for matrix in ("gate_proj", "up_proj", "down_proj")
            }
            both = torch.stack((parts["gate_proj"], parts["up_proj"]), dim=2).flatten(1, 2)
            down = parts["down_proj"]
            if kind == "weight":
                both, down = both.transpose(1, 2), down.transpose(1, 2)
            found[f"{layer}.experts.gate_up_proj{end}"] = both
            found[f"{layer}.experts.down_proj{end}"] = down
    return found


Q8 = {"ffn_gate_exps": Type.Q8_0, "ffn_up_exps": Type.Q8_0, "ffn_down_exps": Type.Q8_0}
MX = dict.fromkeys(Q8, Type.MXFP4)
MIXED = Q8 | {"ffn_down_exps": Type.Q4_0, "attn_q": Type.Q8_0}


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe", "gpt-oss"])
@pytest.mark.parametrize("types", [{}, Q8, MX, MIXED], ids=["f32", "q8_0", "mxfp4", "mixed"])
def test_experts_have_the_logits_of_their_dequantised_weights(
    tmp_path: Path, architecture: str, types: dict[str, Type]
) -> None:
    files = write(tmp_path, architecture, types)
    with torch.no_grad():
        want = oracle_of(files, tmp_path)(torch.tensor([IDS])).logits[0]
    ctx = context()
    model = build(files, ctx)
    files.rename(model.named)
    load_weights(model, files, ctx)
    sequences = Sequences(model, ctx)
    got = sequences.step(a=IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize(("types", "layout"), [(Q8, INT8_GROUP), (MX, MXFP4)])
def test_each_expert_has_the_rows_that_the_stack_has(
    tmp_path: Path, types: dict[str, Type], layout: CanonicalLayout
) -> None:
    files = write(tmp_path, "qwen3moe", types)
    stack = tensors_of("qwen3moe")["blk.1.ffn_down_exps.weight"]
    for expert in (0, EXPERTS - 1):
        stored = files.index[f"model.layers.1.mlp.experts.{expert}.down_proj.weight"]
        assert (stored.layout, stored.shape) == (layout, (HIDDEN, BETWEEN))
        parts = {n: torch.from_numpy(p.copy()) for n, p in stored.read(7, 12).items()}
        got = dequantize(layout, parts, torch.float32)
        want = torch.from_numpy(stack[expert, 7:12])
        assert (got - want).abs().max() < (0.02 if layout == INT8_GROUP else 0.3)
        assert (got - want).norm() < 0.2 * want.norm()


def test_experts_of_a_family_that_has_none_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", architecture="qwen3", metadata={"qwen3.expert_count": 4})
    with pytest.raises(UnsupportedError, match="has 4 experts a layer"):
        open_gguf(path)


def test_a_stack_of_another_number_of_dimensions_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of("qwen3moe")
    name = "blk.0.ffn_up_exps.weight"
    tensors[name] = tensors[name][0]
    counts = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": BETWEEN}
    metadata = {f"qwen3moe.{key}": value for key, value in counts.items()}
    path = write_gguf(tmp_path / "m.gguf", tensors, architecture="qwen3moe", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"ffn_up_exps.weight is \[96, 32\]; 3 dimensions"):
        open_gguf(path)
