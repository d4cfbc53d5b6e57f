"""The default model over HTTP on torch-xla's CPU device: greedy ids, and a grammar's masks."""

from __future__ import annotations

import re

import httpx
import pytest

pytest.importorskip("torch_xla", reason="needs torch-xla: make tpu-test", exc_type=ImportError)

from headstock.checkpoint.pull import cached_path, find
from tests.e2e import served as serving

PROMPTS = ["The capital of France is", "def fibonacci(n):"]
GREEDY = {"temperature": 0.0, "max_new_tokens": 8}
LIMITS = ("--max-model-len", "128", "--cache-tokens", "1024", "--max-running-requests", "4")
ON_XLA = ("--backend", "tpu", "--backend-option", "pjrt=cpu", "--chunked-prefill-size", "64")
START_S = 3600.0
"""The start compiles every program, while others may compute beside it."""


@pytest.fixture(scope="module")
def model():
    path = cached_path(find("smollm2"))
    if not path.is_file():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    return str(path)


@pytest.fixture(scope="module")
def answers(model):
    """Return what each backend answers: to the prompts, and under a grammar."""
    return {name: ask(model, *flags) for name, flags in FLAGS.items()}


FLAGS = {"reference": ("--backend", "reference", "--dtype", "float32"), "tpu": ON_XLA}


def ask(model, *flags):
    patch = pytest.MonkeyPatch()
    patch.setattr(serving, "START_S", START_S)
    try:
        with serving.served(model, *LIMITS, *flags) as server:
            under = GREEDY | {"regex": "(yes|no)"}
            plain = post(server, text=PROMPTS, sampling_params=GREEDY)
            masked = post(server, text="Is water wet? ", sampling_params=under)
            return [answer["output_ids"] for answer in plain], masked["text"]
    finally:
        patch.undo()


def post(server, **body):
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=START_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_it_serves_the_ids_of_the_reference_backend(answers):
    assert answers["tpu"][0] == answers["reference"][0]
    assert [len(ids) for ids in answers["tpu"][0]] == [8, 8]


def test_a_grammar_is_kept_to_and_chooses_as_on_the_reference_backend(answers):
    assert re.fullmatch("yes|no", answers["tpu"][1])
    assert answers["tpu"][1] == answers["reference"][1]
