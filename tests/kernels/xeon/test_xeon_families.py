"""Families with windows, caps and gates of their own, natively, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import headstock
from headstock.ops.base import OpRegistry, Resolver
from headstock.testing.oracle.case import prompt
from headstock.testing.oracle.claims import assert_close
from headstock_xeon.kernels.register import PROVIDER, register
from tests.models.conftest import Save, save  # noqa: F401 - a fixture
from tests.models.harness import context, load
from tests.models.wide import families
from tests.models.wide import save as save_case

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
}
FAMILIES = {
    "gemma2": {"head_dim": 32},
    "gemma3": {},
    "gpt_oss": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_transformers(device, save: Save, family: str) -> None:  # noqa: F811
    saved = save(family, **FAMILIES[family])
    registry = OpRegistry()
    register(registry, device)
    ctx = context(ops=Resolver(registry, device), page_size=16)
    sequences = load(saved.path, ctx)
    ids = torch.randint(0, 128, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    got = torch.cat([sequences.step(a=ids[:40]), *(sequences.step(a=[i]) for i in ids[40:])])
    want = saved.logits(ids)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    plain = {r.op for r in ctx.ops.resolutions if r.provider != PROVIDER}
    assert not plain, f"{plain} have no kernel of their own"


CHOOSING = [case for case in families() if case.name in ("deepseekv32", "deepseekv4", "minimaxm3")]
"""Families whose attention reads what was chosen for a query."""


@pytest.mark.parametrize("case", CHOOSING, ids=lambda case: case.name)
def test_what_is_chosen_gives_the_logits_of_transformers(device, tmp_path: Path, case) -> None:
    saved, registry = save_case(case, tmp_path), OpRegistry()
    register(registry, device)
    ctx = context(ops=Resolver(registry, device), page_size=16, max_length=case.max_length)
    sequences, ids = saved.load(ctx), prompt(45)
    got = [sequences.step(a=ids[:19]), sequences.step(a=ids[19:40], b=ids[:3])[:21]]
    got += [sequences.step(a=[i]) for i in ids[40:]]
    assert_close(torch.cat(got), saved.logits(ids))


@pytest.mark.parametrize("case", CHOOSING, ids=lambda case: case.name)
def test_captured_steps_choose_as_the_reference_does(tmp_path: Path, case) -> None:
    saved = save_case(case, tmp_path)
    sizes = {"max_model_len": case.max_length, "max_running_requests": 4}
    settings = {"dtype": "float32", "skip_tokenizer_init": True, **sizes}
    sampling = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    prompts = [prompt(30), prompt(7, seed=1), prompt(1, seed=2)]
    found: dict[str, list[list[int]]] = {}
    for backend in ("reference", "xeon"):
        with headstock.Engine(model=str(saved.folder), backend=backend, **settings) as engine:
            results = engine.generate(input_ids=prompts, sampling_params=sampling)
            found[backend] = [result["output_ids"] for result in results]
    assert found["xeon"] == found["reference"]


POOLED = {
    "an encoder": {"architectures": ["BertModel"], "num_attention_heads": 4},
    "a cross-encoder": {"architectures": ["RobertaForSequenceClassification"], "pad_token_id": 1},
    "an encoder with windows": {
        "architectures": ["ModernBertModel"],
        "model_type": "modernbert",
        "local_attention": 10,
        "pad_token_id": 0,
    },
    "a decoder": {"architectures": ["Qwen3Model"], "num_key_value_heads": 2, "head_dim": 16},
}


@pytest.mark.parametrize("name", POOLED)
def test_vectors_are_those_of_the_reference(device, tmp_path: Path, name: str) -> None:
    config = POOLED[name] | SIZES
    (tmp_path / "config.json").write_text(json.dumps(config))
    texts = [[5, 6, 7], [8] * 50, [9], list(range(10, 45))]
    found: dict[str, torch.Tensor] = {}
    for backend in ("reference", "xeon"):
        settings = {"load_format": "dummy", "skip_tokenizer_init": True, "dtype": "float32"}
        with headstock.Engine(model=str(tmp_path), backend=backend, **settings) as engine:
            answers = engine.embed(input_ids=texts)
            found[backend] = torch.tensor([answer["embedding"] for answer in answers])
            facts = engine.started.model_facts
    torch.testing.assert_close(found["xeon"], found["reference"], rtol=1e-4, atol=1e-5)
    assert facts["attention"] == PROVIDER
