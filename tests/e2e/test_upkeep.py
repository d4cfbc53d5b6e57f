"""Other weights and profiles in a served engine, against transformers on the same weights."""

from __future__ import annotations

import gzip
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from headstock.testing.oracle.case import SIZES, randomize
from tests.e2e.served import served, wait_for
from tests.models.conftest import FAMILIES

PROMPT = list(range(3, 40))
PARAMS = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
FLAGS = ["--skip-tokenizer-init", "--cache-tokens", "1024", "--dtype", "float32"]
BACKENDS = pytest.mark.parametrize(
    "backend", ["xeon", pytest.param("reference", marks=pytest.mark.slow)]
)


@dataclass
class Trained:
    """A model at some time of its training."""

    path: Path
    oracle: Any

    def want(self) -> list[int]:
        with torch.no_grad():
            out = self.oracle.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False)
        return out[0, len(PROMPT) :].tolist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Trained]:
    config_type, model_type, given = FAMILIES["qwen3"]
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        oracle = model_type(config_type(**SIZES | given | {"eos_token_id": None})).eval()
        randomize(oracle)
        path = tmp_path_factory.mktemp("trained")
        oracle.save_pretrained(path)
        found.append(Trained(path, oracle))
    assert found[0].want() != found[1].want(), "both draw the same"
    return found


@BACKENDS
def test_other_weights_draw_what_transformers_draws_and_outlive_the_engine(
    trained: list[Trained], backend: str
) -> None:
    first, second = trained
    with served(str(first.path), *FLAGS, "--backend", backend) as server:

        def drawn() -> tuple[list[int], str]:
            body = server.post("/generate", input_ids=PROMPT, sampling_params=PARAMS).json()
            return body["output_ids"], body["meta_info"]["weight_version"]

        assert drawn() == (first.want(), "default")
        answer = server.post(
            "/update_weights_from_disk", model_path=str(second.path), weight_version="2"
        )
        assert answer.status_code == 200, answer.text
        assert drawn() == (second.want(), "2")
        pid = server.engine_pid
        os.kill(pid, signal.SIGKILL)
        wait_for(
            lambda: server.engine_pids() not in ([], [pid]) and server.is_ready(), 120, "another"
        )
        assert drawn() == (second.want(), "2")


@BACKENDS
def test_a_server_that_slept_draws_what_it_drew_before(
    trained: list[Trained], backend: str
) -> None:
    first, second = trained
    with served(str(first.path), *FLAGS, "--backend", backend) as server:

        def drawn() -> list[int]:
            body = server.post("/generate", input_ids=PROMPT, sampling_params=PARAMS).json()
            return body["output_ids"]

        assert drawn() == first.want()
        slept = server.post("/release_memory_occupation", tags=["kv_cache"])
        assert slept.status_code == 200, slept.text
        assert slept.json()["num_bytes"] > 0
        assert server.post("/generate", input_ids=PROMPT).status_code == 503
        name = "model.layers.1.self_attn.o_proj.weight"
        loaded = server.post("/update_weights_from_disk", model_path=str(second.path))
        assert loaded.status_code == 200, loaded.text
        told = server.post("/get_weights_by_name", name=name, truncate_size=3).json()
        want = second.oracle.state_dict()[name][:3]
        torch.testing.assert_close(torch.tensor(told), want, rtol=1e-4, atol=1e-6)
        woken = server.post("/resume_memory_occupation")
        assert woken.status_code == 200, woken.text
        assert drawn() == second.want()
        pid = server.engine_pid
        server.post("/release_memory_occupation", tags=["kv_cache"])
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: server.engine_pids() not in ([], [pid]), 120, "another engine")
        wait_for(lambda: server.post("/wake_up").status_code == 200, 120, "it to wake")
        wait_for(server.is_ready, 60, "requests to be served")
        assert drawn() == second.want()


@pytest.mark.parametrize("flags", [["--backend", "reference"], ["--backend", "xeon"],
                                   ["--backend", "xeon", "--tp-size", "2"]])  # fmt: skip
def test_a_server_that_gave_its_weights_back_draws_what_it_drew_before(
    trained: list[Trained], flags: list[str]
) -> None:
    first, _ = trained
    with served(str(first.path), *FLAGS, *flags) as server:

        def drawn() -> list[int]:
            body = server.post("/generate", input_ids=PROMPT, sampling_params=PARAMS).json()
            return body["output_ids"]

        for tags in (["weights", "kv_cache"], ["kv_cache"]):
            slept = server.post("/release_memory_occupation", tags=["weights", "kv_cache"])
            assert slept.status_code == 200, slept.text
            assert server.engine_pids() == []
            assert server.post("/generate", input_ids=PROMPT).json()["error"]["code"] == "asleep"
            if "weights" not in tags:
                woken = server.post("/resume_memory_occupation", tags=["weights"])
                assert woken.status_code == 200, woken.text
            woken = server.post("/resume_memory_occupation", tags=tags)
            assert woken.status_code == 200, woken.text
            assert drawn() == first.want()


def test_ranks_sleep_together(trained: list[Trained]) -> None:
    first, _ = trained
    with served(str(first.path), *FLAGS, "--backend", "xeon", "--tp-size", "2") as server:
        for _ in range(2):
            body = server.post("/generate", input_ids=PROMPT, sampling_params=PARAMS).json()
            assert body["output_ids"] == first.want()
            slept = server.post("/release_memory_occupation", tags=["kv_cache"])
            assert slept.status_code == 200, slept.text
            assert server.post("/wake_up").status_code == 200
        body = server.post("/generate", input_ids=PROMPT, sampling_params=PARAMS).json()
        assert body["output_ids"] == first.want()
        refused = server.post("/get_weights_by_name", name="model.norm.weight")
        assert "shared among ranks" in refused.json()["error"]["message"]


def test_a_profile_has_the_ops_of_its_steps(trained: list[Trained], tmp_path: Path) -> None:
    with served(str(trained[0].path), *FLAGS, "--backend", "reference") as server:
        answer = server.post("/start_profile", output_dir=str(tmp_path), num_steps=100)
        assert answer.status_code == 200, answer.text
        server.post("/generate", input_ids=PROMPT, sampling_params=PARAMS)
        stopped = server.post("/stop_profile").json()
        assert stopped["num_steps"] == 8
        with gzip.open(stopped["path"], "rt") as file:
            events = json.load(file)["traceEvents"]
        assert any(event.get("name") == "aten::mm" for event in events)
        assert server.post("/start_profile", output_dir="/proc/none").status_code == 400
