from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headstock.errors import ConfigError
from headstock.graph.context import Retention
from headstock.ops.communication import SingleRank
from headstock.plugins.device import DeviceFacts, Memory
from headstock.plugins.host import HostDevice
from headstock.runner import PaddedSizes, RunnerOptions, build_runner
from headstock.runner.groups import GroupSize, GroupSizes
from headstock.runner.memory import Measured, plan_memory
from headstock.runner.rehearsal import largest_plan, rehearsal

GIB = 1 << 30
OPTIONS = RunnerOptions(
    num_slots=4, max_step_tokens=512, max_length=1024, vocab_size=1000, page_size=16
)
MEASURED = Measured(
    before=Memory(total=100 * GIB, free=80 * GIB, peak=0),
    weights=10 * GIB,
    buffers=0,
    workspace=2 * GIB,
    graphs=GIB,
    groups=GroupSizes(
        (GroupSize(retention=Retention("full"), page_tokens=16, page_bytes=1 << 20),)
    ),
)


class Accelerator:
    torch_device = torch.device("meta")
    facts = DeviceFacts()


class Slow(SingleRank):
    """A rank whose neighbour has room for 112 tokens."""

    size = 2

    def all_gather(self, x_TC):
        return torch.tensor([[112, 10**6]])


def plan(device=None, measured=MEASURED, group=None, **changes):
    return plan_memory(
        device or Accelerator(), measured, replace(OPTIONS, **changes), group or SingleRank()
    )


def test_pages_take_what_the_fraction_leaves():
    made = plan(memory_fraction=0.5)
    assert made.cache_bytes <= 40 * GIB - 13 * GIB < made.cache_bytes + (2 << 20)


def test_a_host_keeps_its_memory_for_others_unless_told():
    assert plan(HostDevice()).cache_tokens == OPTIONS.num_slots * OPTIONS.max_length
    assert plan(HostDevice(), num_slots=256, max_length=8192).cache_bytes == 4 * GIB


def test_the_rank_with_least_room_decides():
    device = HostDevice()
    assert plan(device, group=Slow(), max_length=64, num_slots=1000).cache_tokens == 112


def test_cache_tokens_are_taken_literally():
    assert plan(cache_tokens=5000).cache_tokens == 5008


def test_too_many_cache_tokens_name_what_fits():
    with pytest.raises(ConfigError, match="there is room for") as error:
        plan(cache_tokens=10**9)
    fits = int(error.value.remedy.split("--cache-tokens to ")[1].split(" ")[0])
    assert plan(cache_tokens=fits).cache_tokens == fits


def test_a_length_that_does_not_fit_names_one_that_does():
    with pytest.raises(ConfigError, match="longest request has 10,000,000") as error:
        plan(max_length=10_000_000)
    fits = int(error.value.remedy.split("--max-model-len to ")[1].split(" ")[0])
    assert plan(max_length=fits).cache_tokens >= fits


def test_no_room_at_all_is_a_clear_error():
    with pytest.raises(ConfigError, match="cache holds 0 tokens"):
        plan(measured=replace(MEASURED, weights=90 * GIB))


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 100, 512, 100_000])
def test_the_profiled_step_is_as_large_as_a_step_can_be(kit, num_tokens):
    limits = kit.runner(kit.model).limits
    rows = largest_plan(limits, num_tokens, 0).rows
    assert sum(rows.query_max) == min(num_tokens, limits.max_step_tokens)
    assert max(rows.query_max) <= limits.max_length
    assert min(rows.query_max) >= 1


def test_a_built_runner_serves(kit):
    device = HostDevice()
    options = RunnerOptions(
        num_slots=4, max_step_tokens=48, max_length=64, vocab_size=61, page_size=4
    )
    runner, made = build_runner(
        device,
        kit.parts(kit.model, device, SingleRank()),
        options=options,
        sizes=PaddedSizes(64, 16),
        before=device.memory(),
        weight_bytes=1000,
    )
    job = kit.job([1, 2, 3])
    kit.driver(runner).run(job)
    assert job.outputs == kit.naive(kit.job([1, 2, 3]))
    assert made.groups[0].num_pages == runner.limits.groups[0].num_pages == 4 * 16 + 1


def test_a_rehearsal_leaves_no_trace(kit):
    runner = kit.runner(kit.model)
    for plan, masks in rehearsal(runner.limits):
        launched = runner.launch(plan)
        if masks is not None:
            runner.sample(launched, masks)
        runner.result(launched)
    job = kit.job([4, 5, 6, 7])
    kit.driver(runner).run(job)
    assert job.outputs == kit.naive(kit.job([4, 5, 6, 7]))
