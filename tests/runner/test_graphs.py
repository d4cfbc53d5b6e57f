from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from tests.runner.conftest import StaticAttention

PROMPTS = [[3, 14, 15, 9, 26, 5], [35, 8, 9], [7] * 11, [2], [50, 28, 8, 41, 9, 7, 16, 9, 39]]
DRAWN = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02}
PENALISED = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3}
OPTIONS = [
    {},
    DRAWN | {"seed": 5},
    PENALISED | {"logprobs": 2},
    {"bias_ids": [1, 9], "biases": [8.0, -50.0]},
    DRAWN | PENALISED | {"seed": -3, "min_outputs": 4, "stop_ids": [9, 7, 44]},
]


def mixed(kit, count=5):
    return [
        kit.job(p, 5 + 2 * i, params=o)
        for i, (p, o) in enumerate(zip(PROMPTS[:count], OPTIONS, strict=False))
    ]


@pytest.fixture
def serve(static_kit, tape_device):
    kit = static_kit

    def run(*jobs, chunk=48, depth=1, **options):
        device = tape_device(**options)
        kit.driver(kit.runner(kit.model, device, depth=depth, captures=True), chunk=chunk).run(
            *jobs
        )
        return device, [job.outputs for job in jobs]

    return run


@pytest.mark.parametrize("runs_at_capture", [1, 3])
@pytest.mark.parametrize("is_ragged", [False, True])
def test_replayed_steps_equal_eager_ones(kit, serve, is_ragged, runs_at_capture):
    jobs, again = mixed(kit), mixed(kit)
    device, outputs = serve(*jobs, is_ragged=is_ragged, runs_at_capture=runs_at_capture, chunk=7)
    assert outputs == kit.serve(*again, chunk=7)
    assert device.replays > len(device.keys)
    found, expected = ([e.chosen[0] for e in js[2].logprobs] for js in (jobs, again))
    assert found == pytest.approx(expected, rel=1e-4)


def test_two_replays_in_flight_equal_one_after_another(kit, serve):
    jobs = mixed(kit)
    again = copy.deepcopy(jobs)
    assert serve(*jobs, depth=2)[1] == serve(*again, depth=1)[1]


def test_a_graph_is_captured_once_for_all_that_it_fits(kit, serve):
    device, _ = serve(*[kit.job([n, n + 1], 6) for n in range(6)], *[kit.job([9], 9)])
    sizes = [(key.kind, key.num_rows, key.features) for key in device.keys]
    assert len(sizes) == len(set(sizes)) <= 6


def test_warm_up_captures_what_the_policy_names_and_fits(kit, tape_device):
    device = tape_device()
    runner = kit.runner(kit.model, device, captures=True)
    seen = []
    runner.warm_up(lambda done, total: seen.append((done, total)))
    forward = [key for key in device.keys if key.kind == "uniform"]
    draws = [key for key in device.keys if key.kind == "draws"]
    alone = [key.num_rows for key in forward if "draws" not in key.features]
    with_draws = [key.num_rows for key in forward if "draws" in key.features]
    assert alone == with_draws == [8, 4, 2, 1]
    assert [key.num_rows for key in draws] == [8, 8, 4, 4, 2, 2, 1, 1]
    assert seen == [(count, 16) for count in range(1, 17)]
    job = kit.job([5, 6, 7])
    kit.driver(runner).run(job)
    assert job.outputs == kit.naive(kit.job([5, 6, 7]))
    assert len(device.keys) == 16


def test_padding_may_hold_anything(kit, tape_device):
    runner = kit.runner(kit.model, tape_device(), captures=True)
    for layer in kit.model.layers:
        layer.kv.fill_(torch.nan)
    runner._graphs._buffers._groups[0].page_table_RP.fill_(5)
    jobs = mixed(kit, count=3)
    kit.driver(runner).run(*jobs)
    assert [job.outputs for job in jobs] == kit.serve(*mixed(kit, count=3))


def test_a_launch_never_waits_for_the_device(kit, tape_device, no_sync):
    runner = kit.runner(kit.model, tape_device(), captures=True, depth=2)
    launch = runner.launch

    def watched(plan):
        with no_sync():
            return launch(plan)

    runner.launch = watched
    job = kit.job(PROMPTS[0], params=PENALISED | {"logprobs": 1}, score_from=1)
    kit.driver(runner).run(job, *mixed(kit))


def test_a_steady_step_sends_nothing(kit, tape_device):
    runner = kit.runner(kit.model, tape_device(), captures=True)
    driver = kit.driver(runner)
    sent = []
    send = runner._upload.rows._send
    runner._upload.rows._send = lambda *args: (sent.append(driver.step), send(*args))
    driver.run(kit.job([1, 2, 3], 12), kit.job([4, 5, 6], 12))
    steady = {
        plan.step
        for last, plan in itertools.pairwise(driver.plans)
        if plan.steady and not last.host_ids and not plan.append.slots
    }
    assert len(steady) >= 6
    assert not steady & set(sent)


def test_padded_rows_do_not_outgrow_their_tokens():
    from headstock.runner.batch import captured_shape
    from headstock.runner.options import PaddedSizes

    class Policy:
        def bucket(self, num_tokens, num_rows, is_uniform):
            return (-(-num_tokens // 16) * 16, 8)

    for tokens in range(6, 120):
        for rows in range(1, 8):
            if rows == tokens:
                continue
            shape = captured_shape(Policy(), PaddedSizes(128, 8), tokens, rows, 64)
            assert shape is None or shape.num_tokens - tokens >= shape.num_rows - rows >= 1


def test_small_ragged_steps_find_a_bucket_with_room_for_padding():
    from headstock.runner.batch import captured_shape
    from headstock.runner.options import PaddedSizes

    class Policy:
        def bucket(self, num_tokens, num_rows, is_uniform):
            rows = next((r for r in (4, 32) if r >= num_rows), None)
            tokens = next((t for t in (16, 32, 64, 128) if t >= num_tokens), None)
            return None if rows is None or tokens is None or rows > tokens else (tokens, rows)

    shape = captured_shape(Policy(), PaddedSizes(128, 32), 20, 4, 64)
    assert (shape.num_tokens, shape.num_rows) == (64, 32)


def test_a_device_that_needs_lengths_has_them_before_every_replay(
    static_kit, tape_device, monkeypatch
):
    kit, device, seen = static_kit, tape_device(), []
    device.facts = replace(device.facts, needs_host_lengths=True)
    monkeypatch.setattr(StaticAttention, "plan", lambda self, batch: seen.append(batch.host_rows))
    runner = kit.runner(kit.model, device, depth=1, captures=True)
    jobs = [kit.job([3, 1, 4], 5), kit.job([5, 9], 5), kit.job([2], 5)]
    seen.clear()
    kit.driver(runner, chunk=48).run(*jobs)
    assert [job.outputs for job in jobs] == [job.outputs for job in _again(kit)]
    assert device.replays
    decodes = [rows for rows, _ in itertools.groupby(seen) if [q for q, _ in rows] == [1] * 4]
    wanted = [[(1, 4 + n), (1, 3 + n), (1, 2 + n), (1, 1)] for n in range(4)]
    assert decodes == wanted, "three rows, and one of padding"


def _again(kit):
    jobs = [kit.job([3, 1, 4], 5), kit.job([5, 9], 5), kit.job([2], 5)]
    kit.serve(*jobs)
    return jobs
