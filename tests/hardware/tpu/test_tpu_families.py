"""Models with windows, and with states, on torch-xla's CPU device: the reference backend's ids."""

from __future__ import annotations

import pytest

metrics = pytest.importorskip(
    "torch_xla.debug.metrics", reason="needs torch-xla: make tpu-test", exc_type=ImportError
)

import torch  # noqa: E402

import headstock  # noqa: E402
from tests.hardware.tpu.conftest import ON_XLA, SETTINGS, prompts_of  # noqa: E402
from tests.models.conftest import FAMILIES, SIZES, randomize  # noqa: E402

PROMPTS = [[token % 120 + 3 for token in prompt] for prompt in prompts_of(5, 40)]
PARAMS = {"temperature": 0.0, "max_new_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module", params=["gemma3", "qwen3_next"])
def folder(request, tmp_path_factory):
    config_type, model_type, given = FAMILIES[request.param]
    torch.manual_seed(0)
    model = model_type(config_type(**SIZES | given | {"eos_token_id": None})).eval()
    randomize(model)
    saved = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(saved)
    return saved


def test_windows_and_states_give_the_ids_of_the_reference_and_compile_nothing_then(folder):
    settings = SETTINGS | {"skip_tokenizer_init": True, "max_model_len": 64}
    with headstock.Engine(model=str(folder), **settings, backend="reference") as engine:
        wanted = [
            r["output_ids"] for r in engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)
        ]
    with headstock.Engine(model=str(folder), **settings, **ON_XLA) as engine:
        before = metrics.metric_data("CompileTime")[0]
        for _ in range(2):  # the second time from the cache
            got = engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)
            assert [result["output_ids"] for result in got] == wanted
        assert metrics.metric_data("CompileTime")[0] == before
