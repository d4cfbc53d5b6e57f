"""Logits with adapters against PEFT on the same weights, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headstock.checkpoint.folder import open_folder
from headstock.errors import AdapterError
from headstock.graph.estimate import estimate_weight_bytes
from headstock.graph.loader import load_weights
from headstock.graph.lora import AdapterSpace
from headstock.lora import AdaptedModules, open_adapter
from headstock.ops.base import OpRegistry, Requires, Resolver
from headstock.ops.linear import GATED, PRODUCT, linear
from headstock.ops.linear_reference import DenseLinear
from headstock.plugins.host import HostDevice
from tests.models.adapters import ALL, Adapted, adapt
from tests.models.conftest import Save, Saved
from tests.models.harness import Sequences, build, context, load
from tests.models.test_oracle import assert_close, prompt

SPACE = AdapterSpace(num_places=2, max_rank=8)


def serve(saved: Saved, *adapters: Adapted, space: AdapterSpace = SPACE) -> Sequences:
    """Load the model and put ``adapters`` into its places, from 1 on."""
    sequences = load(saved.path, context(adapters=space))
    put(sequences, *adapters, space=space)
    return sequences


def put(sequences: Sequences, *adapters: Adapted, space: AdapterSpace = SPACE) -> None:
    """Put ``adapters`` into the model's places, from 1 on."""
    modules = AdaptedModules(sequences.model, space, torch.float32)
    for place, adapter in enumerate(adapters, 1):
        packed = modules.pack(open_adapter(adapter.path), HostDevice(num_threads=1))
        for number, layer in enumerate(modules.layers):
            layer.place(place, packed.get(number))


def differ(one: Tensor, other: Tensor) -> bool:
    return (one - other).abs().max().item() > 0.05 * one.abs().max().item()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_prefill_and_decode_have_the_logits_of_peft(
    save: Save, family: str, tmp_path: Path
) -> None:
    saved = save(family)
    adapter = adapt(saved.oracle, tmp_path / "a", seed=1)
    ids = prompt(17)
    want = adapter.logits(ids)
    assert differ(want, saved.logits(ids)), "the adapter changes nothing"
    sequences = serve(saved, adapter)
    sequences.adapters["a"] = 1
    got = [sequences.step(a=ids[:9]), sequences.step(a=ids[9:12])]
    got += [sequences.step(a=[token]) for token in ids[12:]]
    assert_close(torch.cat(got), want)


OPTIONS = [
    pytest.param({"r": 8, "lora_alpha": 3, "use_rslora": True}, id="rank-stabilised"),
    pytest.param({"target_modules": ["v_proj", "up_proj"]}, id="some-modules"),
    pytest.param({"layers_to_transform": [1]}, id="one-layer"),
    pytest.param(
        {
            "rank_pattern": {"layers.1.self_attn.q_proj": 8, "down_proj": 2},
            "alpha_pattern": {"q_proj": 5, "model.layers.0.mlp.down_proj": 1},
        },
        id="patterns",
    ),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_peft_count(save: Save, options: dict[str, object], tmp_path: Path) -> None:
    saved = save("llama")
    adapter = adapt(saved.oracle, tmp_path / "a", seed=1, **options)
    ids = prompt(11)
    sequences = serve(saved, adapter)
    sequences.adapters["a"] = 1
    assert_close(sequences.step(a=ids), adapter.logits(ids))


def test_rows_of_two_adapters_and_none_share_a_step(save: Save, tmp_path: Path) -> None:
    saved = save("llama")
    one = adapt(saved.oracle, tmp_path / "one", seed=1)
    two = adapt(saved.oracle, tmp_path / "two", seed=2, r=8, target_modules=ALL[:4])
    sequences = serve(saved, one, two)
    sequences.adapters |= {"b": 1, "c": 2, "e": 2}
    ids = {
        name: prompt(length, length) for name, length in zip("abcde", (9, 6, 7, 1, 12), strict=True)
    }
    begun = {name: row[:-2] for name, row in ids.items() if len(row) > 2}
    sequences.step(**begun)
    got = sequences.step(**{name: row[-2:] for name, row in ids.items()})
    oracles = {"b": one, "c": two, "e": two}
    want = [oracles.get(name, saved).logits(row)[-2:] for name, row in ids.items()]
    assert_close(got, torch.cat(want))


def test_a_place_holds_nothing_of_the_adapter_before(save: Save, tmp_path: Path) -> None:
    saved = save("llama")
    large = adapt(saved.oracle, tmp_path / "large", seed=1, r=8)
    small = adapt(saved.oracle, tmp_path / "small", seed=2, r=2, target_modules=["q_proj"])
    sequences = serve(saved, large)
    put(sequences, small)
    sequences.adapters["a"] = 1
    ids = prompt(8)
    assert_close(sequences.step(a=ids), small.logits(ids))


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_next"])
def test_layers_of_other_kinds_take_adapters(save: Save, family: str, tmp_path: Path) -> None:
    saved = save(family)
    names = {
        "deepseek_v3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"],
        "qwen3_next": ["in_proj_qkvz", "in_proj_ba", "out_proj", "q_proj", "k_proj", "o_proj"],
    }
    adapter = adapt(saved.oracle, tmp_path / "a", seed=1, target_modules=names[family])
    sequences = serve(saved, adapter)
    sequences.adapters["a"] = 1
    ids = prompt(13)
    assert differ(adapter.logits(ids), saved.logits(ids))
    assert_close(sequences.step(a=ids), adapter.logits(ids))


@pytest.mark.parametrize(
    "name", ["lm_head", "model.layers.0.mlp.experts.3.gate_proj", "model.embed_tokens"]
)
def test_adapters_of_other_layers_are_refused_by_name(
    save: Save, tmp_path: Path, name: str
) -> None:
    """Of the output layer, of an expert, and of the embedding as if it were a matrix."""
    saved = save("qwen3_moe")
    adapter = adapt(saved.oracle, tmp_path / "a", seed=1, target_modules=["o_proj"])
    file = adapter.path / "adapter_model.safetensors"
    old = "model.layers.0.self_attn.o_proj"
    save_file({key.replace(old, name): t for key, t in load_file(file).items()}, file)
    with pytest.raises(
        AdapterError, match=f"{name}, which is not a linear layer that takes adapters"
    ):
        serve(saved, adapter)


@pytest.mark.parametrize("family", ["llama", "qwen3_next"])
def test_the_room_is_known_before_it_is_made(save: Save, family: str) -> None:
    saved = save(family)
    files, ctx = open_folder(saved.path), context(adapters=SPACE)
    model = build(files, ctx)
    bare = build(files, context())
    known = estimate_weight_bytes(model, files.index, ctx)
    known -= estimate_weight_bytes(bare, files.index, context())
    load_weights(model, files, ctx)
    layers = AdaptedModules(model, SPACE, torch.float32).layers
    assert known == sum(layer.down_NKI.nbytes + layer.up_NOR.nbytes for layer in layers) > 0


class FusedLinear(DenseLinear):
    """A product that is gated in one kernel, and counts how it was asked for."""

    gated = plain = 0

    def __call__(self, x_MI: Tensor) -> Tensor:
        FusedLinear.gated += self.spec.is_gated
        return super().__call__(x_MI)

    def product(self, x_MI: Tensor) -> Tensor:
        FusedLinear.plain += 1
        return super().product(x_MI)


def test_steps_without_adapters_keep_what_is_fused(save: Save, tmp_path: Path) -> None:
    saved = save("llama")
    adapter = adapt(saved.oracle, tmp_path / "a", seed=1)
    registry = OpRegistry()
    fused = Requires(layouts=frozenset({"dense"}), features=frozenset({GATED, PRODUCT}))
    registry.add(linear, "fused", FusedLinear, requires=fused)
    ops = Resolver(registry, HostDevice(num_threads=1))
    ids = prompt(9)
    for space, counts in ((None, (2, 0)), (SPACE, (2, 2))):
        FusedLinear.gated = FusedLinear.plain = 0
        sequences = load(saved.path, context(adapters=space, ops=ops))
        assert_close(sequences.step(a=ids), saved.logits(ids))
        if space is not None:
            put(sequences, adapter)
            sequences.adapters["b"] = 1
            assert_close(sequences.step(b=ids), adapter.logits(ids))
        assert (FusedLinear.gated, FusedLinear.plain) == counts
