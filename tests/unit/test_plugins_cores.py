"""Which of the host's cores are computed on, and which of them each rank takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headstock.plugins import cores


def machine(
    root: Path,
    siblings: dict[int, str],
    *,
    nodes: dict[int, str] | None = None,
    cpu_max: str | None = None,
) -> Path:
    """Write what ``sys`` says of processors, memory nodes and a container's share."""
    for cpu, names in siblings.items():
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(names + "\n")
    for node, cpus in (nodes or {}).items():
        folder = root / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus + "\n")
    if cpu_max is not None:
        (root / "sys/fs/cgroup").mkdir(parents=True)
        (root / "sys/fs/cgroup/cpu.max").write_text(cpu_max + "\n")
    return root


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch):
    """Return a function that sets the processors that this process may run on."""

    def allowed(*cpus: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cpus))

    return allowed


@pytest.fixture
def two_sockets(allow, tmp_path: Path) -> Path:
    """Eight cores of two threads each, in two memory nodes that take turns: as servers number."""
    allow(*range(16))
    siblings = {cpu: f"{cpu % 8},{cpu % 8 + 8}" for cpu in range(16)}
    return machine(tmp_path, siblings, nodes={0: "0,2,4,6,8,10,12,14", 1: "1,3,5,7,9,11,13,15"})


def test_hyperthreads_of_a_core_count_once(allow, tmp_path: Path) -> None:
    allow(0, 1, 2, 3)
    root = machine(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert cores.num_compute_threads(root) == 2


def test_processors_of_unknown_topology_count_each(allow, tmp_path: Path) -> None:
    allow(0, 1, 2, 3)
    assert cores.num_compute_threads(tmp_path) == 4


@pytest.mark.parametrize(
    ("cpu_max", "wanted"),
    [("max 100000", 4), ("150000 100000", 2), ("20000 100000", 1), ("900000 100000", 4)],
)
def test_a_containers_share_of_time_limits_the_threads(
    allow, tmp_path: Path, cpu_max: str, wanted: int
) -> None:
    allow(0, 1, 2, 3)
    root = machine(tmp_path, {cpu: str(cpu) for cpu in range(4)}, cpu_max=cpu_max)
    assert cores.num_compute_threads(root) == wanted


def test_cores_are_taken_node_by_node(two_sockets: Path) -> None:
    nodes = cores.memory_nodes(two_sockets)
    assert nodes.is_bound
    assert nodes.in_order == [0, 2, 4, 6, 1, 3, 5, 7]
    assert cores.described(nodes.cores) == "0 2 4 6 | 1 3 5 7"


def test_a_core_is_bound_by_the_thread_of_it_that_is_allowed(allow, two_sockets: Path) -> None:
    allow(8, 10, 1)  # The second threads of cores 0 and 2, the first of core 1.
    assert cores.memory_nodes(two_sockets).in_order == [8, 10, 1]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ({}, "one memory node"),
        ({0: "0-3"}, "one memory node"),
        ({0: "0-3", 1: ""}, "one memory node"),  # The second has memory only.
        ({0: "0-1", 1: "2-x"}, "node1 has the processors '2-x'"),
        ({0: "0-1", 1: "3-2"}, "node1 has the processors '3-2'"),
        ({0: "0-2", 1: "2-3"}, "processors [2] are not in one node each"),
        ({0: "0-1", 1: "2"}, "processors [3] are not in one node each"),
    ],
)
def test_nodes_that_make_no_sense_bind_nothing(
    allow, tmp_path: Path, nodes: dict[int, str], reason: str
) -> None:
    allow(0, 1, 2, 3)
    found = cores.memory_nodes(machine(tmp_path, {}, nodes=nodes))
    assert (found.reason, found.in_order) == (reason, [])


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (2, [{0, 2, 4, 6, 8, 10, 12, 14}, {1, 3, 5, 7, 9, 11, 13, 15}]),
        (4, [{0, 2, 8, 10}, {4, 6, 12, 14}, {1, 3, 9, 11}, {5, 7, 13, 15}]),
        (3, [{0, 2, 8, 10}, {4, 6, 12, 14}, {1, 3, 9, 11}]),
        (9, [set(range(16))] * 9),  # More ranks than cores: the system decides.
    ],
)
def test_each_rank_takes_cores_of_its_own_node_by_node(
    two_sockets: Path, size: int, wanted: list[set[int]]
) -> None:
    assert [cores.share_of(rank, size, two_sockets) for rank in range(size)] == wanted


def test_ranks_of_one_node_are_left_to_the_system(allow, tmp_path: Path) -> None:
    allow(0, 1, 2, 3)
    assert cores.share_of(1, 2, machine(tmp_path, {}, nodes={0: "0-3"})) == {0, 1, 2, 3}


def test_a_rank_that_is_none_is_refused(two_sockets: Path) -> None:
    with pytest.raises(AssertionError, match="rank 2 of 2"):
        cores.share_of(2, 2, two_sockets)


def test_a_process_keeps_to_its_share(monkeypatch, two_sockets: Path) -> None:
    kept: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: kept.append(cpus))
    cores.take_share(1, 2, two_sockets)
    assert kept == [{1, 3, 5, 7, 9, 11, 13, 15}]
    cores.take_share(0, 1, two_sockets)
    assert len(kept) == 1  # It has all of them already.
