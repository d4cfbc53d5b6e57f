"""The engine on torch-xla's CPU device: ids, programs, donated memory, what falls back."""

from __future__ import annotations

import json

import pytest

metrics = pytest.importorskip(
    "torch_xla.debug.metrics", reason="needs torch-xla: make tpu-test", exc_type=ImportError
)

import headstock  # noqa: E402
from tests.hardware.tpu.conftest import ON_XLA, SETTINGS, SMALL, prompts_of  # noqa: E402

NUM_TOKENS = 12
GREEDY = {"temperature": 0.0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}
PROMPTS = prompts_of(1, 15, 17, 70, 100)
ASKED = [
    {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "sampling_seed": 5},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    {"logit_bias": {"7": 8.0, "9": -50.0}, "min_new_tokens": 6, "stop_token_ids": [7]},
]


def num_compiled():
    return metrics.metric_data("CompileTime")[0]


def engine_of(folder, **settings):
    fixed = {"load_format": "dummy", "skip_tokenizer_init": True}
    return headstock.Engine(model=str(folder), **(fixed | SETTINGS | settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("small")
    (made / "config.json").write_text(json.dumps(SMALL))
    return made


@pytest.fixture(scope="module")
def engine(folder):
    with engine_of(folder, **ON_XLA) as opened:
        yield opened


@pytest.fixture(scope="module")
def right(reference):
    return reference(SMALL, PROMPTS, NUM_TOKENS)


def ids_of(results):
    return [result["output_ids"] for result in results]


def test_requests_get_the_ids_of_the_reference_backend(engine, right):
    assert ids_of(engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)) == right


def test_nothing_is_compiled_once_it_is_ready(engine, right):
    before = num_compiled()
    for _ in range(2):  # the second time, prompts are in the cache
        assert ids_of(engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)) == right
    for prompt, wanted in zip(PROMPTS, right, strict=True):
        assert engine.generate(input_ids=prompt, sampling_params=GREEDY)["output_ids"] == wanted
    assert num_compiled() == before


@pytest.mark.parametrize("asked", ASKED, ids=["drawn", "penalties", "bias"])
def test_what_requests_ask_of_sampling_gives_the_ids_of_the_reference(engine, folder, asked):
    params = {"max_new_tokens": NUM_TOKENS, "temperature": 0.0} | asked
    before = num_compiled()
    metrics.clear_counters()
    answers = ids_of(engine.generate(input_ids=PROMPTS, sampling_params=params))
    assert num_compiled() == before
    assert [name for name in metrics.counter_names() if name.startswith("aten::")] == []
    with engine_of(folder, backend="reference") as other:
        assert answers == ids_of(other.generate(input_ids=PROMPTS, sampling_params=params))


def test_pages_are_not_copied_but_given_to_the_program(engine):
    assert engine.generate(input_ids=PROMPTS[1], sampling_params=GREEDY)["output_ids"]
    given = metrics.metric_data("InputOutputAliasCount")  # of each program, when it was compiled
    assert max(count for _, count in given[2]) >= SMALL["num_hidden_layers"]


def test_no_step_falls_back_to_the_host(engine):
    metrics.clear_counters()
    engine.generate(input_ids=PROMPTS, sampling_params=GREEDY | {"temperature": 0.8, "top_k": 9})
    fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::")]
    assert fallbacks == []


def test_drafts_change_nothing_and_are_accepted_inside_the_program(folder, right):
    settings = ON_XLA | {"speculation": "ngram", "num_drafts": 3}
    with engine_of(folder, **settings) as drafting:
        before = num_compiled()
        metrics.clear_counters()
        assert ids_of(drafting.generate(input_ids=PROMPTS, sampling_params=GREEDY)) == right
        assert num_compiled() == before
        assert [name for name in metrics.counter_names() if name.startswith("aten::")] == []
