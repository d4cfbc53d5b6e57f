from __future__ import annotations

import os
from pathlib import Path

import pytest

from headstock_xeon import threads


def machine(root: Path, siblings: dict[int, str], cpu_max: str | None = None) -> Path:
    for cpu, names in siblings.items():
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(names + "\n")
    if cpu_max is not None:
        (root / "sys/fs/cgroup").mkdir(parents=True)
        (root / "sys/fs/cgroup/cpu.max").write_text(cpu_max + "\n")
    return root


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})


def test_hyperthreads_of_a_core_count_once(four: None, tmp_path: Path) -> None:
    root = machine(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert threads.num_compute_threads(root) == 2


def test_processors_of_unknown_topology_count_each(four: None, tmp_path: Path) -> None:
    assert threads.num_compute_threads(tmp_path) == 4


@pytest.mark.parametrize(
    ("cpu_max", "wanted"),
    [("max 100000", 4), ("150000 100000", 2), ("20000 100000", 1), ("900000 100000", 4)],
)
def test_a_containers_share_of_time_limits_the_threads(
    four: None, tmp_path: Path, cpu_max: str, wanted: int
) -> None:
    root = machine(tmp_path, {cpu: str(cpu) for cpu in range(4)}, cpu_max)
    assert threads.num_compute_threads(root) == wanted


def test_machines_of_one_memory_node_bind_nothing(four: None, tmp_path: Path) -> None:
    (tmp_path / "sys/devices/system/node/node0").mkdir(parents=True)
    assert threads.cores_by_node(tmp_path) == []


def test_cores_are_taken_node_by_node(four: None, tmp_path: Path) -> None:
    root = machine(tmp_path, {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7"})
    for node, cpus in ((0, "0,2,4,6"), (1, "1,3,5,7")):
        folder = root / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus + "\n")
    assert threads.cores_by_node(root) == [0, 2, 1, 3]
