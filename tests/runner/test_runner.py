from __future__ import annotations

import copy

import pytest
import torch

from headstock.errors import ConfigError
from headstock.plugins.host import HostDevice
from headstock.runner.graphs import StepGraphs

PROMPTS = [[3, 14, 15, 9, 26, 5], [35, 8, 9], [7] * 11, [2], [50, 28, 8, 41, 9, 7, 16, 9, 39]]
DRAWN = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02}
PENALISED = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3}


def jobs(kit, **params):
    return [kit.job(prompt, params=dict(params)) for prompt in PROMPTS]


def mixed(kit):
    options = [{}, DRAWN | {"seed": 5}, PENALISED, {"bias_ids": [1, 9], "biases": [8.0, -50.0]}]
    options.append(DRAWN | PENALISED | {"seed": -3, "min_outputs": 4, "stop_ids": [9, 7, 44]})
    return [kit.job(p, params=o) for p, o in zip(PROMPTS, options, strict=True)]


@pytest.mark.parametrize(
    "params",
    [
        {},
        DRAWN | {"seed": 7},
        {"temperature": 1.0, "seed": 2**63 - 1},
        PENALISED,
        {"bias_ids": [1, 9], "biases": [4.0, -50.0]},
        {"stop_ids": [9, 7, 44, 8, 3]},
        {"stop_ids": list(range(0, 61, 2)), "min_outputs": 5},
        DRAWN | PENALISED | {"seed": -3, "min_outputs": 2, "stop_ids": [9, 7]},
    ],
    ids=["greedy", "drawn", "seed", "penalties", "bias", "stops", "floor", "all"],
)
def test_outputs_equal_a_naive_loop(kit, params):
    served = jobs(kit, **params)
    kit.serve(*served)
    assert [job.outputs for job in served] == [
        kit.naive(kit.job(job.prompt, params=job.params)) for job in served
    ]


def test_a_request_is_served_alike_alone_and_among_others(kit):
    together = kit.serve(*mixed(kit))
    assert together == [kit.serve(job)[0] for job in mixed(kit)]


@pytest.mark.parametrize("chunk", [1, 3, 5, 7])
def test_chunks_do_not_change_outputs(kit, chunk):
    assert kit.serve(*mixed(kit), chunk=chunk) == kit.serve(*mixed(kit))


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_retracted_request_goes_on_as_if_nothing_had_been(kit, step):
    assert kit.serve(*mixed(kit), retract_at=step) == kit.serve(*mixed(kit))


def test_two_steps_in_flight_change_nothing(kit):
    served = mixed(kit)
    for job in served:
        job.params = job.params | {"stop_ids": [9, 7, 44, 8, 3, 21]}
    again = copy.deepcopy(served)
    assert kit.serve(*served, depth=2) == kit.serve(*again, depth=1)


def test_more_requests_than_slots_reuse_them(kit):
    served = [kit.job([n, n + 1, 2 * n], 3 + n % 4, params=PENALISED) for n in range(15)]
    again = copy.deepcopy(served)
    assert kit.serve(*served) == [kit.naive(job) for job in again]


def test_a_done_slot_draws_nothing_in_the_step_that_was_in_flight(kit):
    runner = kit.runner(kit.model, depth=2)
    driver = kit.driver(runner)
    outputs = kit.naive(kit.job(PROMPTS[0]))
    stopped = kit.job(PROMPTS[0], params={"stop_ids": [outputs[2]]})
    results = []
    settle = driver._settle
    driver._settle = lambda result, owners: (results.append(result), settle(result, owners))
    driver.run(stopped)
    count = outputs.index(outputs[2]) + 1
    assert [result.counts for result in results if result.slots] == [[1]] * count + [[0]]


def test_logprobs_are_the_models_own(kit):
    job = kit.job(PROMPTS[0], params=PENALISED | {"logprobs": 2, "asked_ids": [4, 11]})
    other = kit.job(PROMPTS[1], params={"logprobs": 0})
    kit.serve(job, other, kit.job(PROMPTS[2]))
    logs = kit.model.naive(job.prompt + job.outputs).log_softmax(-1)[len(job.prompt) - 1 : -1]
    chosen = torch.tensor([entry.chosen[0] for entry in job.logprobs])
    top = torch.tensor([entry.top[0] for entry in job.logprobs])
    asked = torch.tensor([entry.asked[0] for entry in job.logprobs])
    torch.testing.assert_close(
        chosen, logs.gather(1, torch.tensor(job.outputs)[:, None])[:, 0], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(top, logs.topk(2).values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(asked, logs[:, [4, 11]], rtol=1e-4, atol=1e-4)
    assert [entry.top_ids for entry in job.logprobs] == [
        [row] for row in logs.topk(2).indices.tolist()
    ]
    assert [entry.top for entry in other.logprobs] == [[[]]] * len(other.outputs)


@pytest.mark.parametrize("chunk", [48, 4, 3])
def test_prompt_logprobs_do_not_depend_on_chunks(kit, chunk):
    job = kit.job(PROMPTS[4], params={"logprobs": 1}, score_from=2)
    kit.serve(job, kit.job(PROMPTS[2]), chunk=chunk)
    logs = kit.model.naive(job.prompt).log_softmax(-1)
    expected = [logs[at - 1, job.prompt[at]].item() for at in range(2, len(job.prompt))]
    found = [x for entry in job.logprobs if entry.is_prompt for x in entry.chosen]
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_row_without_numbers_fails_alone(kit):
    kit.model.poison = 60
    bad, good = kit.job([3, 60]), kit.job(PROMPTS[1])
    kit.serve(bad, good)
    assert (bad.outputs, len(bad.faults)) == ([], 1)
    kit.model.poison = None
    assert good.outputs == kit.naive(kit.job(PROMPTS[1]))


def test_a_step_that_raises_leaves_the_slots_usable(kit):
    runner = kit.runner(kit.model)
    driver = kit.driver(runner)
    failed = kit.job(PROMPTS[2])
    kit.model.fails = True
    with pytest.raises(MemoryError):
        driver.run(failed)
    kit.model.fails = False
    driver._release(failed)
    job = kit.job(PROMPTS[0], params=PENALISED)
    driver.run(job)
    assert job.outputs == kit.naive(kit.job(PROMPTS[0], params=PENALISED))


def test_pages_may_be_scattered_and_hold_garbage(kit):
    runner = kit.runner(kit.model)
    for layer in kit.model.layers:
        layer.kv.fill_(torch.nan)
    driver = kit.driver(runner)
    driver.free_pages.reverse()
    served = jobs(kit)
    driver.run(*served)
    assert [job.outputs for job in served] == [kit.naive(kit.job(job.prompt)) for job in served]


def test_a_step_that_finds_no_memory_says_so_and_the_next_one_runs(kit, monkeypatch):
    right = kit.serve(*jobs(kit))
    run = StepGraphs.run_forward

    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(StepGraphs, "run_forward", exhausted)
    with pytest.raises(ConfigError, match=r"ran out of memory in a step of \d+ tokens"):
        kit.serve(*jobs(kit))
    monkeypatch.setattr(StepGraphs, "run_forward", run)
    assert kit.serve(*jobs(kit)) == right


def test_biases_of_a_slot_go_with_its_request(kit):
    biased = {"bias_ids": [1], "biases": [1e4]}
    driver = kit.driver(kit.runner(kit.model))
    driver.run(kit.job(PROMPTS[0], params=biased))
    driver.free_slots.sort()
    plain, other = kit.job(PROMPTS[1]), kit.job(PROMPTS[3], params=biased)
    driver.run(plain, other)
    assert plain.outputs == kit.naive(kit.job(PROMPTS[1]))
    assert other.outputs == [1] * 8


class WatchedDevice(HostDevice):
    """Counts the transfers that were waited for, by when they were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.waited: list[int] = []

    def fetch(self, source, into):
        self.asked += 1
        number, arrived, waited = self.asked, super().fetch(source, into), self.waited

        class Watched:
            def wait(self):
                waited.append(number)
                return arrived.wait()

        return Watched()


def test_the_result_of_every_step_waits_for_the_step(kit):
    device = WatchedDevice()
    runner = kit.runner(kit.model, device, depth=2)
    launch, result, queued = runner.launch, runner.result, {}

    def launched(plan):
        handle = launch(plan)
        queued[plan.step] = device.asked
        return handle

    def waited(handle):
        first = queued.get(handle.step - 1, 0)
        found = result(handle)
        assert any(first < number <= queued[handle.step] for number in device.waited), handle.step
        return found

    runner.launch, runner.result = launched, waited
    driver = kit.driver(runner, chunk=3)
    driver.run(*mixed(kit))
    assert any(0 in plan.rows.yields for plan in driver.plans), "every step drew"
