"""Adapters served whole, against PEFT: together, on hits, retracted, loaded anew, on ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers

import headstock
from headstock.errors import HeadstockError, RequestError
from tests.e2e.served import served, wait_for
from tests.models.adapters import ALL, Adapted, adapt, edit_config
from tests.models.conftest import FAMILIES, SIZES, randomize

NEW_TOKENS = 8
PARAMS = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
PROMPTS = [list(range(3, 40)), [9, 8], list(range(90, 20, -1)), list(range(3, 40))]


@dataclass
class Tuned:
    """A model's folder, its adapters, and what each draws."""

    folder: Path
    oracle: Any
    adapters: dict[str, Adapted]

    def want(self, name: str | None, prompt: list[int]) -> list[int]:
        oracle = self.oracle if name is None else self.adapters[name]
        return oracle.greedy(prompt, NEW_TOKENS)

    def engine(self, *names: str, **settings: Any) -> headstock.Engine:
        given = {
            "backend": "reference",
            "dtype": "float32",
            "cache_tokens": 1024,
            "chunked_prefill_size": 24,
            "skip_tokenizer_init": True,
            "loras": {name: str(self.adapters[name].path) for name in names},
        }
        return headstock.Engine(model=str(self.folder), **given | settings)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    config_type, model_type, given = FAMILIES["qwen3"]
    torch.manual_seed(0)
    oracle = model_type(config_type(**SIZES | given | {"eos_token_id": None})).eval()
    randomize(oracle)
    folder = tmp_path_factory.mktemp("tuned")
    oracle.save_pretrained(folder / "model")
    adapters = {
        "one": adapt(oracle, folder / "one", seed=1),
        "two": adapt(oracle, folder / "two", seed=2, r=8, use_rslora=True),
        "some": adapt(oracle, folder / "some", seed=3, target_modules=ALL[:2]),
    }
    return Tuned(folder / "model", Adapted(folder, oracle), adapters)


def ids_of(results: list[dict[str, Any]]) -> list[list[int]]:
    return [result["output_ids"] for result in results]


@pytest.mark.parametrize("backend", ["reference", "xeon"])
def test_rows_of_two_adapters_and_none_draw_what_peft_draws(tuned: Tuned, backend: str) -> None:
    names = [None, "one", "two", "one", "two", None]
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[1]]
    want = [tuned.want(*pair) for pair in zip(names, prompts, strict=True)]
    assert len({tuple(ids) for ids in want[:3]}) == 3, "the adapters change nothing"
    with tuned.engine("one", "two", backend=backend) as engine:
        for turn in range(2):
            got = engine.generate(input_ids=prompts, sampling_params=PARAMS, lora_name=names)
            assert ids_of(got) == want
            for result in got[:3]:
                cached = result["meta_info"]["cached_tokens"]
                assert (cached > 0) == bool(turn), "a prefix of another adapter, or none of its own"


def test_more_adapters_than_places_take_turns(tuned: Tuned) -> None:
    names = ["one", "two", "some", None] * 2
    with tuned.engine("one", "two", "some", max_loras=1) as engine:
        got = engine.generate(input_ids=[PROMPTS[2]] * 8, sampling_params=PARAMS, lora_path=names)
    assert ids_of(got) == [tuned.want(name, PROMPTS[2]) for name in names]


def test_retracted_rows_keep_their_adapter(tuned: Tuned) -> None:
    names, prompts = ["one", "two", None] * 2, [[*PROMPTS[1], i] for i in range(6)]
    params = PARAMS | {"max_new_tokens": 30}
    with tuned.engine("one", "two", cache_tokens=96, max_model_len=96, page_size=4) as engine:
        got = engine.generate(input_ids=prompts, sampling_params=params, lora_name=names)
        assert any(result["meta_info"]["num_retractions"] for result in got)
        for name, prompt, result in zip(names, prompts, got, strict=True):
            assert result["output_ids"][:NEW_TOKENS] == tuned.want(name, prompt)
            alone = engine.generate(input_ids=prompt, sampling_params=params, lora_name=name)
            assert result["output_ids"] == alone["output_ids"]


def test_an_adapter_loaded_again_under_a_name_meets_nothing_of_the_old(tuned: Tuned) -> None:
    ask = {"input_ids": PROMPTS[0], "sampling_params": PARAMS, "lora_name": "x"}
    with tuned.engine(max_loras=2, max_lora_rank=8) as engine:
        for name in ("one", "two"):
            engine.load_lora_adapter("x", str(tuned.adapters[name].path))
            with pytest.raises(RequestError, match="loaded already"):
                engine.load_lora_adapter("x", str(tuned.adapters[name].path))
            result = engine.generate(**ask)
            assert result["output_ids"] == tuned.want(name, PROMPTS[0])
            assert result["meta_info"]["cached_tokens"] == 0
            engine.unload_lora_adapter("x")
        with pytest.raises(RequestError, match="'x' does not exist"):
            engine.generate(**ask)


def test_what_cannot_be_served_is_refused_and_the_rest_goes_on(
    tuned: Tuned, tmp_path: Path
) -> None:
    large = adapt(tuned.oracle.oracle, tmp_path / "large", seed=1, r=16, target_modules=ALL[:2])
    with tuned.engine("some") as engine:
        for path, why in (
            (large.path, "--max-lora-rank 16"),
            (tuned.adapters["one"].path, "--lora-target-modules"),
            (tmp_path, "adapter_config.json"),
        ):
            with pytest.raises(RequestError) as caught:
                engine.load_lora_adapter("bad", str(path))
            assert why in str(caught.value)
        got = engine.generate(input_ids=PROMPTS[1], sampling_params=PARAMS, lora_name="some")
    assert got["output_ids"] == tuned.want("some", PROMPTS[1])


def test_an_adapter_given_at_the_start_must_be_whole(tuned: Tuned, tmp_path: Path) -> None:
    adapter = adapt(tuned.oracle.oracle, tmp_path / "a", seed=1)
    edit_config(adapter.path, use_dora=True)
    with pytest.raises(HeadstockError, match="use_dora"):
        tuned.engine(loras={"a": str(adapter.path)})
    edit_config(adapter.path, use_dora=False, r=2)
    with pytest.raises(HeadstockError, match="rank 4"):
        tuned.engine(loras={"a": str(adapter.path)})


def test_ranks_hold_slices_of_adapters(tuned: Tuned) -> None:
    names = ["one", None, "two"]
    with tuned.engine("one", "two", tp_size=2) as engine:
        got = engine.generate(input_ids=PROMPTS[:3], sampling_params=PARAMS, lora_name=names)
        engine.unload_lora_adapter("two")
        engine.load_lora_adapter("three", str(tuned.adapters["some"].path))
        late = engine.generate(input_ids=PROMPTS[0], sampling_params=PARAMS, lora_name="three")
    assert ids_of(got) == [tuned.want(*pair) for pair in zip(names, PROMPTS, strict=False)]
    assert late["output_ids"] == tuned.want("some", PROMPTS[0])


def test_adapters_come_back_with_the_engine_and_streams_go_on(tuned: Tuned) -> None:
    flags = ["--skip-tokenizer-init", "--backend", "reference", "--dtype", "float32"]
    flags += ["--cache-tokens", "1024", "--max-loras", "2", "--max-lora-rank", "8"]
    params = PARAMS | {"max_new_tokens": 200}
    with served(str(tuned.folder), *flags) as server:
        for name in ("one", "two"):
            path = str(tuned.adapters[name].path)
            answer = server.post("/load_lora_adapter", lora_name=name, lora_path=path)
            assert answer.status_code == 200, answer.text
        body = {"input_ids": PROMPTS[1], "sampling_params": params, "lora_path": "two"}
        whole = server.post("/generate", **body).json()["output_ids"]
        pid, again = server.engine_pid, []
        asked = {"json": body | {"stream": True}, "timeout": 120}
        with httpx.stream("POST", f"{server.url}/generate", **asked) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                if not again:
                    os.kill(pid, signal.SIGKILL)
                again = json.loads(line[6:])["output_ids"]
        wait_for(server.is_ready, 60, "readiness")
        assert server.engine_pid != pid
        assert again == whole
        assert whole[:NEW_TOKENS] == tuned.want("two", PROMPTS[1])
        late = server.post("/generate", **body | {"lora_path": "one", "sampling_params": PARAMS})
        assert late.json()["output_ids"] == tuned.want("one", PROMPTS[1])


def test_a_server_whose_adapter_does_not_fit_says_so_and_ends(tuned: Tuned, tmp_path: Path) -> None:
    adapter = adapt(tuned.oracle.oracle, tmp_path / "a", seed=1)
    edit_config(adapter.path, r=2)
    flags = ["--port", "0", "--skip-tokenizer-init", "--backend", "reference"]
    flags += ["--lora", f"a={adapter.path}"]
    done = subprocess.run(
        [sys.executable, "-m", "headstock.cli", "serve", str(tuned.folder), *flags],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 2
    assert "has rank 4; adapter_config.json says 2" in done.stderr
    assert "Traceback" not in done.stderr


FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
OTHERS = [
    pytest.param("Phi3", FUSED, {}, id="fused-matrices"),
    pytest.param("Phi", ["q_proj", "v_proj", "dense", "fc1", "fc2"], {}, id="fallback"),
    pytest.param("Qwen2", ALL, {"speculation": "ngram"}, id="drafted"),
]


@pytest.mark.parametrize(("stem", "targets", "settings"), OTHERS)
def test_other_families_and_drafts_agree(
    stem: str, targets: list[str], settings: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{stem}Config")(**SIZES, eos_token_id=None, pad_token_id=0)
    oracle = getattr(transformers, f"{stem}ForCausalLM")(config).eval()
    randomize(oracle)
    oracle.save_pretrained(tmp_path / "model")
    adapter = adapt(oracle, tmp_path / "a", seed=1, lora_alpha=32, target_modules=targets)
    tuned = Tuned(tmp_path / "model", Adapted(tmp_path, oracle), {"a": adapter})
    names = ["a", None, "a"]
    with tuned.engine("a", **settings) as engine:
        got = engine.generate(input_ids=PROMPTS[:3], sampling_params=PARAMS, lora_name=names)
    want = [tuned.want(*pair) for pair in zip(names, PROMPTS[:3], strict=True)]
    assert ids_of(got) == want
    assert want[0] != tuned.want(None, PROMPTS[0])
