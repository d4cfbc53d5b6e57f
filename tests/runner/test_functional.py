"""Devices that write by making new values, and compile for every size: facts that the core asks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from headstock.plugins.host import HostDevice
from headstock.runner.upload import padded_size
from tests.runner.tape import TapeDevice
from tests.runner.test_runner import DRAWN, PENALISED, mixed


class FunctionalDevice(HostDevice):
    """The host with the facts of such a device.

    Attributes:
        sizes: Elements of the host buffers that were asked for.
    """

    facts = replace(HostDevice.facts, is_functional=True, compiles_sizes=True)

    def __init__(self) -> None:
        super().__init__()
        self.sizes = set()

    def host_buffer(self, shape, dtype):
        self.sizes.add(math.prod(shape))
        return super().host_buffer(shape, dtype)


class NoOtherDtype(TorchDispatchMode):
    """Refuses views with another dtype than their base."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert str(func) != "aten.view.dtype", "a view with another dtype"
        return func(*args, **(kwargs or {}))


def test_outputs_are_those_of_a_device_that_writes_in_place(kit):
    with NoOtherDtype():
        served = kit.serve(*mixed(kit), device=FunctionalDevice(), depth=2)
    assert served == kit.serve(*mixed(kit))


def test_a_step_that_failed_is_forgotten_there_too(kit):
    runner = kit.runner(kit.model, FunctionalDevice())
    driver = kit.driver(runner)
    kit.model.fails = True
    failed = kit.job([7] * 11)
    with pytest.raises(MemoryError):
        driver.run(failed)
    kit.model.fails = False
    driver._release(failed)
    job = kit.job([35, 8, 9], params=PENALISED)
    driver.run(job)
    assert job.outputs == kit.naive(kit.job([35, 8, 9], params=PENALISED))


def test_what_is_sent_has_few_sizes_however_long_requests_are(kit):
    device = FunctionalDevice()
    runner = kit.runner(kit.model, device)
    driver = kit.driver(runner)
    driver.run(kit.job([5] * 20, params=DRAWN | PENALISED))
    met = set(device.sizes)
    for length in range(17, 30):
        driver.run(kit.job(list(range(length)), params=DRAWN | PENALISED))
    assert device.sizes == met


@pytest.mark.parametrize(("size", "padded"), [(1, 16), (16, 16), (17, 64), (65, 256)])
def test_sizes_are_padded_by_powers(size, padded):
    assert padded_size(size) == padded


class OneSizePolicy:
    """Gives decode steps one size and all others another."""

    def bucket(self, num_tokens, num_rows, is_uniform):
        if num_rows > 8 or num_tokens > 64:
            return None
        return (8 * (num_tokens // num_rows), 8) if is_uniform else (64, 8)

    def warm_up(self, max_tokens, max_rows):
        return [(8, 8, True), (64, 8, False)]


class StaticDevice(TapeDevice):
    """A functional device whose steps are all captured."""

    facts = FunctionalDevice.facts

    def __init__(self) -> None:
        super().__init__()
        self.graph_policy = OneSizePolicy()


@pytest.mark.parametrize("chunk", [48, 5])
def test_nothing_is_captured_once_it_is_warm(static_kit, chunk):
    kit, device = static_kit, StaticDevice()
    runner = kit.runner(kit.model, device, depth=2, captures=True)
    runner.warm_up(lambda done, total: None)
    met, replays = list(device.keys), device.replays
    served = mixed(kit)
    served.append(kit.job([5, 6, 7], params=PENALISED | {"logprobs": 2, "asked_ids": [4]}))
    kit.driver(runner, chunk=chunk).run(*served)
    assert device.keys == met
    assert device.replays > replays
    assert [job.outputs for job in served[:-1]] == [
        kit.naive(kit.job(job.prompt, params=job.params)) for job in served[:-1]
    ]


def test_prompts_are_scored_at_the_sizes_of_other_steps(static_kit):
    kit, device = static_kit, StaticDevice()
    runner = kit.runner(kit.model, device, captures=True)
    runner.warm_up(lambda done, total: None)
    met = list(device.keys)
    job = kit.job([50, 28, 8, 41, 9, 7, 16], params={"logprobs": 1}, score_from=2)
    kit.driver(runner, chunk=4).run(job)
    logs = kit.model.naive(job.prompt).log_softmax(-1)
    expected = [logs[at - 1, job.prompt[at]].item() for at in range(2, len(job.prompt))]
    found = [x for entry in job.logprobs if entry.is_prompt for x in entry.chosen]
    assert found == pytest.approx(expected, rel=1e-4)
    assert device.keys == met
