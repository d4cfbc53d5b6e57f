"""The runner on every device that is here: graphs, steps in flight, and no waiting in a launch.

Float32, so that outputs are compared id by id. The reference backend captures nothing and is
tested elsewhere.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from headstock.graph.build import build_model
from headstock.graph.context import Context, Limits
from headstock.graph.loader import load_random, weight_bytes
from headstock.ops import load_all_ops
from headstock.ops.base import Resolver
from headstock.ops.communication import SingleRank
from headstock.plugins.loader import discover
from headstock.plugins.probe import Status
from headstock.plugins.select import probe_all, select
from headstock.runner import ModelParts, RunnerOptions, build_runner, padded_sizes
from headstock_models.llama import LlamaForCausalLM
from tests.runner.conftest import Driver, Job

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "tie_word_embeddings": False,  # tied, random weights repeat the last token
}
DRAWN = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "seed": 11}
PENALISED = {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2}
OPTIONS = [
    {},
    DRAWN,
    PENALISED | {"logprobs": 3},
    {"bias_ids": [1, 9], "biases": [8.0, -50.0]},
    DRAWN | PENALISED | {"min_outputs": 6, "stop_ids": list(range(0, 1024, 20))},
    {},
    DRAWN | {"seed": -4},
]


def available():
    found = probe_all(discover())
    usable = [r.name for r, p in found if p.status is Status.AVAILABLE and p.is_default]
    names = [name for name in usable if name != "reference"]
    return names or [pytest.param("", marks=pytest.mark.skip("no backend with a device is here"))]


class Bench:
    """One backend's device with a small model of random weights."""

    def __init__(self, backend: str) -> None:
        chosen = select(discover(backend=backend), backend)
        self.device = chosen.open_device(0, 0)
        load_all_ops()
        self.resolver = Resolver(chosen.offer_ops(self.device), self.device)
        self.before = self.device.memory()
        self.options = RunnerOptions(
            num_slots=12,
            max_step_tokens=128,
            max_length=512,
            vocab_size=CONFIG["vocab_size"],
            page_size=0,
            cache_tokens=12 * 512,
        )
        self.sizes = padded_sizes(self.device.graph_policy, self.options)
        self.ctx = Context(
            ops=self.resolver,
            dtype=torch.float32,
            limits=Limits(
                max_rows=self.sizes.max_rows, max_tokens=self.sizes.max_tokens, max_length=512
            ),
        )
        with torch.inference_mode():
            self.model = build_model(LlamaForCausalLM, self.ctx, CONFIG)
            load_random(self.model, self.ctx)

    def runner(
        self, *, graphs: bool = True, overlap: bool | None = None, cache_tokens: int = 12 * 512
    ):
        runner, self.memory = build_runner(
            self.device,
            ModelParts(
                model=self.model,
                layers=self.ctx.attention_layers,
                groups=self.ctx.groups,
                resolver=self.resolver,
                ranks=SingleRank(),
                dtype=torch.float32,
                hidden_size=CONFIG["hidden_size"],
            ),
            options=replace(
                self.options,
                page_size=self.ctx.page_size,
                graphs=graphs,
                overlap=overlap,
                cache_tokens=cache_tokens,
            ),
            sizes=self.sizes,
            before=self.before,
            weight_bytes=weight_bytes(self.model),
        )
        return runner

    @contextmanager
    def no_waiting(self):
        """Let what waits for the device raise, where PyTorch can tell."""
        if self.device.torch_device.type != "cuda":
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module", params=available())
def bench(request):
    return Bench(request.param)


def jobs(num=len(OPTIONS)):
    return [
        Job(
            [(7 * i + 13 * j) % 1000 for j in range(3 + 29 * i)],
            12 + i,
            dict(params),
            score_from=2 if i == 2 else None,
        )
        for i, params in enumerate(OPTIONS[:num])
    ]


def outputs(runner, chunk=128):
    made = jobs()
    Driver(runner, chunk=chunk).run(*made)
    return [job.outputs for job in made]


def test_replayed_steps_equal_eager_ones(bench):
    assert outputs(bench.runner()) == outputs(bench.runner(graphs=False))


def test_pages_that_were_given_back_change_nothing(bench):
    if not bench.device.facts.gives_memory_back:
        pytest.skip("this device keeps its memory")
    # Memory goes back in the blocks that the device's library asked for: pages larger than one.
    runner = bench.runner(cache_tokens=128 * 1024)
    before = outputs(runner)
    free = bench.device.memory().free
    released = runner.release_pages()
    if not bench.device.facts.shares_host_memory:
        assert bench.device.memory().free >= free + released * 9 // 10
    runner.restore_pages()
    assert outputs(runner) == before


def test_steps_in_flight_change_nothing(bench):
    found = outputs(bench.runner(overlap=True))
    assert found == outputs(bench.runner(overlap=False))


def test_chunks_that_wait_for_a_slow_device_keep_their_rows(bench):
    if bench.device.torch_device.type != "cuda":
        pytest.skip("nothing makes this device slow")
    runner = bench.runner(overlap=True)
    launch = runner.launch

    def slow(plan):
        torch.cuda._sleep(20_000_000)  # 10 ms before the step's rows are read
        return launch(plan)

    runner.launch = slow
    assert outputs(runner, chunk=16) == outputs(bench.runner(overlap=False), chunk=16)


def test_neighbours_and_chunks_change_nothing(bench):
    runner = bench.runner()
    driver = Driver(runner)
    alone = jobs()
    for job in alone:
        driver.run(job)
    assert outputs(bench.runner(), chunk=37) == [job.outputs for job in alone]


def test_padding_and_free_pages_may_hold_anything(bench):
    runner = bench.runner()
    expected = outputs(bench.runner())
    runner = bench.runner()
    with torch.inference_mode():
        for layer in bench.ctx.attention_layers:
            layer.kv.fill_(torch.nan)
    assert outputs(runner) == expected


def test_a_launch_never_waits_for_the_device(bench):
    runner = bench.runner(overlap=True)
    outputs(runner)  # captures, compiles
    launch = runner.launch

    def watched(plan):
        with bench.no_waiting():
            return launch(plan)

    runner.launch = watched
    assert outputs(runner)


def test_the_memory_plan_holds(bench):
    if bench.device.torch_device.type == "cpu":
        pytest.skip("the host's memory is others' too")
    bench.runner()
    assert bench.memory.workspace > 0
    assert bench.device.memory().total - bench.device.memory().free < bench.memory.total
