from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
import torch

from headstock.errors import ConfigError, DeviceError
from headstock.parallel import RankedRunner, spawn_ranks
from headstock.parallel.host_group import HostGroup
from headstock.plugins.hooks import GroupInfo
from tests.runner.rank import SlicedModel

SCRIPT = str(Path(__file__).parent / "rank.py")
DRAWN = {"temperature": 0.9, "top_k": 20, "seed": 5}


@pytest.fixture
def start():
    started = []

    def run(mode="serves"):
        ranks = spawn_ranks(
            2,
            lambda address: msgspec.json.encode(address).decode(),
            command=[sys.executable, SCRIPT, mode],
        )
        ranks._grace_s = 30.0  # a lost rank is for the test to see, which this process must outlive
        started.append(ranks)
        return ranks

    yield run
    for ranks in started:
        ranks.close()


def ranked(kit, ranks, depth=1):
    ranks.wait_for_joining(60)
    group = HostGroup(ranks.own.group(), timeout_s=30)
    local = kit.runner(SlicedModel(group), depth=depth, group=group)
    return RankedRunner(local, ranks)


def process_of(ranks):
    return ranks._processes[1]


@pytest.mark.parametrize("depth", [1, 2])
def test_two_ranks_draw_what_one_process_draws(kit, start, depth):
    runner = ranked(kit, start(), depth)
    jobs = [kit.job([3, 14, 15], params=DRAWN), kit.job([35, 8, 9, 7, 1]), kit.job([2])]
    kit.driver(runner, chunk=4).run(*jobs)
    again = [kit.job(job.prompt, params=job.params) for job in jobs]
    assert [job.outputs for job in jobs] == kit.serve(*again)


def test_ranks_meet_where_nobody_else_can_enter(start):
    mode = os.stat(start().own.directory).st_mode
    assert stat.S_IMODE(mode) == 0o700


def test_closing_ends_the_ranks_and_removes_their_directory(kit, start):
    ranks = start()
    runner = ranked(kit, ranks)
    runner.close()
    assert process_of(ranks).returncode == 0
    assert not Path(ranks.own.directory).exists()


def test_a_rank_that_dies_is_named_at_once(kit, start):
    runner = ranked(kit, start("dies"))
    began = time.monotonic()
    with pytest.raises(DeviceError, match="Rank 1 ended with exit code 9"):
        kit.driver(runner).run(kit.job([3, 14, 15]))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("where", ["launch", "sum", "result"])
@pytest.mark.parametrize("step", [1, 4])
def test_a_rank_that_dies_in_whichever_step_is_named_at_once(kit, start, where, step):
    """The first steps are chunks of prompts, which yield nothing; two steps are in flight."""
    runner = ranked(kit, start(f"dies-{where}-{step}"), depth=2)
    driver = kit.driver(runner, chunk=3)
    began = time.monotonic()
    with pytest.raises(DeviceError, match="Rank 1 ended with exit code 9"):
        driver.run(kit.job([3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 1]), kit.job([2, 7]))
    assert time.monotonic() - began < 10
    assert any(set(plan.rows.yields) == {0} for plan in driver.plans), "every step drew"


def test_a_rank_that_is_killed_between_steps_is_named(kit, start):
    ranks = start()
    runner = ranked(kit, ranks)
    kit.driver(runner).run(kit.job([3, 14, 15]))
    process_of(ranks).send_signal(signal.SIGKILL)
    time.sleep(1)
    with pytest.raises(DeviceError, match="Rank 1 ended with exit code -9"):
        kit.driver(runner).run(kit.job([3, 14, 15]))


def test_a_rank_that_refuses_its_settings_says_why(start):
    ranks = start("broken")
    with pytest.raises(ConfigError, match="Rank 1: 9 heads do not divide") as error:
        wait_until_lost(ranks)
    assert error.value.remedy == "Use --tp-size 3."


def test_a_rank_that_never_joins_does_not_hang_the_others(start):
    with pytest.raises(DeviceError, match="Rank 1 ended with exit code 3"):
        start("silent").wait_for_joining(30)


def test_an_engine_that_hangs_on_a_lost_rank_is_ended(start):
    ranks = start("hangs")
    ended = threading.Event()
    ranks._grace_s, ranks._die = 0.1, ended.set
    ranks.wait_for_joining(60)
    process_of(ranks).kill()
    assert ended.wait(10)


def test_a_rank_does_not_outlive_rank_0():
    code = (
        "import sys, msgspec, os; sys.path.insert(0, '.');"
        "from headstock.parallel import spawn_ranks;"
        f"r = spawn_ranks(2, lambda a: msgspec.json.encode(a).decode(),"
        f" command=[sys.executable, {SCRIPT!r}, 'serves']);"
        "r.wait_for_joining(60); print(r._processes[1].pid, flush=True); os._exit(1)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and is_alive(pid):
        time.sleep(0.1)
    assert not is_alive(pid)


def together(path, size, run):
    """Return what ``run`` returns of the group of each rank."""
    found = {}

    def member(rank):
        info = GroupInfo(name="tp", rank=rank, size=size, address=f"file://{path}/tp")
        group = HostGroup(info, timeout_s=20)
        found[rank] = run(group)
        group.close()

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [found[rank] for rank in range(size)]


def test_collectives_over_the_host_agree(tmp_path):
    def run(group):
        x_TC = torch.arange(6.0).view(2, 3) + group.rank
        return (
            group.all_gather(x_TC.clone()),
            group.all_reduce(x_TC.clone()),
            group.broadcast(x_TC.clone()),
            group.all_gather(torch.tensor([[group.rank]])),
        )

    x_TC = torch.arange(6.0).view(2, 3)
    for gathered, summed, told, numbers in together(tmp_path, 2, run):
        assert torch.equal(gathered, torch.cat((x_TC, x_TC + 1), dim=1))
        assert torch.equal(summed, 2 * x_TC + 1)
        assert torch.equal(told, x_TC)
        assert numbers.tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_sums_of_any_size_are_the_same_on_every_rank(tmp_path, dtype):
    def run(group):
        draw = torch.Generator().manual_seed(group.rank)
        sums = []
        for shape in ((1,), (300, 577), (0, 4), (7, 3, 2)):
            x = (100 * torch.randn(shape, generator=draw)).to(dtype)
            total = group.all_reduce(x)
            sums.append(total.clone())
        return sums

    first, *others = together(tmp_path, 3, run)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    draws = [torch.Generator().manual_seed(rank) for rank in range(3)]
    parts = [(100 * torch.randn((1,), generator=draw)).to(dtype) for draw in draws]
    total = sum(part.to(torch.float32) for part in parts)
    torch.testing.assert_close(first[0].to(torch.float32), total, rtol=1e-2, atol=1e-4)


def test_a_rank_that_leaves_is_seen_at_once_by_who_waits_for_it(tmp_path):
    def run(group):
        if group.rank == 1:
            return None
        begun = time.monotonic()
        with pytest.raises(DeviceError, match="Rank 0 lost the other ranks"):
            group.all_reduce(torch.ones(1_000_000))
        return time.monotonic() - begun

    took_s, _ = together(tmp_path, 2, run)
    assert took_s < 5  # the limit is 20


def test_a_rank_that_does_not_come_is_waited_for_no_longer_than_said(tmp_path):
    info = GroupInfo(name="tp", rank=0, size=2, address=f"file://{tmp_path}/tp")
    with pytest.raises(DeviceError, match="could not join"):
        HostGroup(info, timeout_s=0.1)


def wait_until_lost(ranks):
    ranks.wait_for_joining(60)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        ranks.check()
        time.sleep(0.05)


def is_alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()
