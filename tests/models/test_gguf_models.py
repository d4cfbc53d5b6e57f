"""GGUF models against transformers on the weights that their blocks stand for.

That canonical blocks stand for what the format says is tested in tests/unit/test_gguf.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from headstock.checkpoint.files import ModelFiles
from headstock.checkpoint.gguf_model import open_gguf
from headstock.checkpoint.pull import cached_path, find
from headstock.graph.loader import load_weights
from headstock.ops.canonical import dequantize
from tests.models.harness import Sequences, build, context
from tests.unit.gguf_files import HEADS, HIDDEN, llama_tensors, write_gguf

IDS = [5, 9, 1, 47, 31, 2, 2, 11]


def oracle_of(files: ModelFiles) -> transformers.LlamaForCausalLM:
    """Return transformers' model of the file's configuration and dequantised weights."""
    names = set(transformers.LlamaConfig().to_dict()) | {"rope_parameters"}
    config = {name: value for name, value in files.config.items() if name in names}
    with torch.device("meta"):
        oracle = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    oracle.to_empty(device="cpu")
    oracle.model.rotary_emb = type(oracle.model.rotary_emb)(oracle.config)
    weights = {}
    for name, tensor in files.index.items():
        parts = {n: torch.from_numpy(p) for n, p in tensor.read_all().items()}
        weights[name] = dequantize(tensor.layout, parts, torch.float32)
    oracle.load_state_dict(weights, strict=False)
    oracle.tie_weights()
    return oracle.eval()


def gemma_of(files: ModelFiles) -> transformers.Gemma3ForCausalLM:
    """Likewise of a file of Gemma 3."""
    names = set(transformers.Gemma3TextConfig().to_dict())
    config = {n: v for n, v in files.config.items() if n in names and v is not None}
    config["attn_implementation"] = "eager"
    oracle = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**config))
    weights = {}
    for name, tensor in files.index.items():
        parts = {n: torch.from_numpy(p) for n, p in tensor.read_all().items()}
        weights[name] = dequantize(tensor.layout, parts, torch.float32)
    missing, unexpected = oracle.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    oracle.tie_weights()
    return oracle.eval()


def gemma_tensors(num_layers: int) -> dict[str, NDArray[np.float32]]:
    """Return random tensors by the names that GGUF gives those of Gemma 3."""
    tensors = llama_tensors(num_layers=num_layers)
    del tensors["output.weight"]
    draw = np.random.default_rng(5)
    for layer in range(num_layers):
        for name, size in (
            ("attn_q_norm", HIDDEN // HEADS),
            ("attn_k_norm", HIDDEN // HEADS),
            ("post_attention_norm", HIDDEN),
            ("post_ffw_norm", HIDDEN),
        ):
            weight = draw.standard_normal(size).astype(np.float32)
            tensors[f"blk.{layer}.{name}.weight"] = weight * np.float32(0.3)
    for name in [name for name in tensors if name.endswith("norm.weight")]:
        tensors[name] = tensors[name] + np.float32(1)
    return tensors


GEMMA = {
    "gemma3.attention.sliding_window": 5,
    "gemma3.rope.freq_base": 1_000_000.0,
    "gemma3.rope.scaling.type": "linear",
    "gemma3.rope.scaling.factor": 8.0,
}


def gemma_file(path: Path, tensors: dict[str, NDArray[np.float32]], **types: Type) -> ModelFiles:
    named = {f"{name.replace('__', '.')}.weight": kind for name, kind in types.items()}
    return open_gguf(
        write_gguf(path / "m.gguf", tensors, architecture="gemma3", types=named, metadata=GEMMA)
    )


def test_a_gemma3_has_the_logits_of_its_dequantised_weights(tmp_path: Path) -> None:
    types = {"blk__0__ffn_up": Type.Q8_0, "token_embd": Type.Q8_0, "blk__5__attn_q": Type.Q5_0}
    files = gemma_file(tmp_path, gemma_tensors(6), **types)
    ids = [*IDS, *reversed(IDS)]
    with torch.no_grad():
        want = gemma_of(files)(torch.tensor([ids])).logits[0]
    got = logits(files, ids)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_a_gemma3_s_norms_are_how_far_they_are_from_one(tmp_path: Path) -> None:
    tensors = gemma_tensors(1)
    files = gemma_file(tmp_path, tensors)
    for name, inside in (
        ("model.norm", "output_norm"),
        ("model.layers.0.pre_feedforward_layernorm", "blk.0.ffn_norm"),
        ("model.layers.0.post_feedforward_layernorm", "blk.0.post_ffw_norm"),
        ("model.layers.0.self_attn.k_norm", "blk.0.attn_k_norm"),
    ):
        stored = files.index[f"{name}.weight"].read_all()["weight"]
        assert (stored == tensors[f"{inside}.weight"] - np.float32(1)).all()
    kept = files.index["model.layers.0.mlp.up_proj.weight"].read_all()["weight"]
    assert (kept == tensors["blk.0.ffn_up.weight"]).all()


@pytest.mark.slow
def test_the_packaged_gemma3_has_the_logits_of_its_dequantised_weights() -> None:
    path = cached_path(find("gemma3-270m"))
    if not path.is_file():
        pytest.skip("gemma3-270m was never pulled: `headstock pull gemma3-270m`")
    files, ids = open_gguf(path), list(range(1000, 1020))
    with torch.no_grad():
        want = gemma_of(files)(torch.tensor([ids])).logits[0]
    got = logits(files, ids)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def logits(files: ModelFiles, ids: list[int]) -> torch.Tensor:
    ctx = context()
    model = build(files, ctx)
    load_weights(model, files, ctx)
    return Sequences(model, ctx).step(a=ids)


def assert_agrees(files: ModelFiles, ids: list[int]) -> None:
    with torch.no_grad():
        want = oracle_of(files)(torch.tensor([ids])).logits[0]
    got = logits(files, ids)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("kind", [Type.F32, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0])
def test_a_llama_has_the_logits_of_its_dequantised_weights(tmp_path: Path, kind: Type) -> None:
    tensors = llama_tensors(num_layers=2)
    types = {name: kind for name, tensor in tensors.items() if tensor.ndim == 2}
    assert_agrees(open_gguf(write_gguf(tmp_path / "m.gguf", tensors, types=types)), IDS)


def test_one_layer_may_mix_block_types(tmp_path: Path) -> None:
    tensors = llama_tensors()
    types = {"blk.0.attn_q.weight": Type.Q4_0, "blk.0.attn_k.weight": Type.Q4_1}
    types |= {"blk.0.attn_v.weight": Type.Q5_1, "blk.0.ffn_up.weight": Type.Q8_0}
    assert_agrees(open_gguf(write_gguf(tmp_path / "m.gguf", tensors, types=types)), IDS)


def test_query_rows_are_those_that_transformers_saved(tmp_path: Path) -> None:
    """Interleave the rows as the converter does, and expect the logits of the original."""
    tensors = llama_tensors()
    plain = dict(tensors)
    for name, num_heads in (("blk.0.attn_q.weight", 4), ("blk.0.attn_k.weight", 2)):
        heads = tensors[name].reshape(num_heads, 2, 4, -1)
        tensors[name] = heads.swapaxes(1, 2).reshape(tensors[name].shape)
    files = open_gguf(write_gguf(tmp_path / "m.gguf", tensors))
    for kind in "qk":
        stored = files.index[f"model.layers.0.self_attn.{kind}_proj.weight"].read_all()["weight"]
        assert (stored == plain[f"blk.0.attn_{kind}.weight"]).all()


def test_qwen3_files_keep_their_rows(tmp_path: Path) -> None:
    tensors = llama_tensors()
    files = open_gguf(write_gguf(tmp_path / "m.gguf", tensors, architecture="qwen3"))
    stored = files.index["model.layers.0.self_attn.q_proj.weight"].read_all()["weight"]
    assert (stored == tensors["blk.0.attn_q.weight"]).all()


@pytest.mark.slow
def test_the_default_model_has_the_logits_of_its_dequantised_weights() -> None:
    path = cached_path(find("smollm2"))
    if not path.is_file():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    assert_agrees(open_gguf(path), list(range(100, 140)))
