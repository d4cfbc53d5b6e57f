"""What the server keeps for its callers, in memory and on disk: restarts, damage, a full disk."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstock.errors import ConfigError, RequestError
from headstock.server.store import Blobs, Bounds, DiskStore, MemoryStore, StateFolder, Store, folder
from headstock.server.store.segment import HEADER, Segment


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else DiskStore(tmp_path / "s")


def fill(store: Store) -> None:
    store.put("response", "ann", "a", b"1")
    store.put("stream", "ann", "b", b"2")
    store.put("response", "bob", "a", b"3")
    store.add("stream", "ann", "b", b"22")
    store.put("response", "bob", "gone", b"4")
    store.drop("response", "bob", "gone")
    store.add("stream", "ann", "b", b"222")
    assert store.flush() == []


def check_filled(store: Store) -> None:
    assert store.get("response", "ann", "a") == b"1"
    assert store.parts("stream", "ann", "b") == [b"2", b"22", b"222"]
    assert store.get("response", "bob", "a") == b"3"
    assert store.get("response", "bob", "gone") is None
    assert [(entry.owner, entry.name) for entry in store.entries("response")] == [
        ("ann", "a"), ("bob", "a"),
    ]  # fmt: skip
    assert [entry.name for entry in store.entries("stream", "bob")] == []
    assert (store.used("ann"), store.used("bob"), store.used("eve")) == (7, 1, 0)


def test_values_are_kept_by_kind_owner_and_name(store: Store) -> None:
    fill(store)
    check_filled(store)


def test_a_value_that_is_put_again_takes_the_place_of_the_other(store: Store) -> None:
    fill(store)
    store.put("stream", "ann", "b", b"new")
    store.add("stream", "ann", "nothing", b"of it")
    assert store.parts("stream", "ann", "b") == [b"new"]
    assert store.used("ann") == 4
    assert store.drop("stream", "ann", "b")
    assert not store.drop("stream", "ann", "b")


def test_what_does_not_fit_is_refused_and_what_is_there_stays(tmp_path: Path) -> None:
    bounds = Bounds(max_bytes=100, max_owner_bytes=60)
    for store in (MemoryStore(bounds), DiskStore(tmp_path, bounds)):
        store.put("k", "ann", "a", bytes(50))
        with pytest.raises(RequestError, match="This key keeps 50 bytes of 60") as caught:
            store.put("k", "ann", "b", bytes(20))
        assert caught.value.code == "storage_full"
        store.put("k", "ann", "a", bytes(55))  # in its place there is room
        with pytest.raises(RequestError, match="The server keeps 55 bytes of 100"):
            store.put("k", "bob", "b", bytes(50))
        assert store.get("k", "ann", "a") == bytes(55)


def test_values_outlive_a_process_that_closes_nothing(tmp_path: Path) -> None:
    fill(DiskStore(tmp_path))
    for _ in range(3):
        check_filled(DiskStore(tmp_path))


def test_files_are_private(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    fill(state.store)
    with state.blobs("files").create("f") as file:
        file.write(b"x")
    for path in [state.path, *state.path.rglob("*")]:
        allowed = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == allowed, path
    state.close()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_record_costs_that_record_alone(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskStore(tmp_path)
    fill(store)
    store.put("response", "ann", "last", b"x" * 20)
    (path,) = tmp_path.glob("*.log")
    os.truncate(path, path.stat().st_size - cut)
    again = DiskStore(tmp_path)
    assert "is damaged from byte" in caplog.text
    assert len(caplog.records) == 1
    check_filled(again)
    assert again.get("response", "ann", "last") is None
    again.put("response", "ann", "later", b"y")  # follows a whole record
    assert DiskStore(tmp_path).get("response", "ann", "later") == b"y"


def test_a_damaged_file_gives_what_stands_before_the_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskStore(tmp_path, segment_bytes=100)
    for index in range(20):
        store.put("k", "", str(index), b"v" * 30)
    first, *others = sorted(tmp_path.glob("*.log"))
    assert others
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    names = [entry.name for entry in DiskStore(tmp_path).entries("k")]
    assert "is damaged from byte" in caplog.text
    assert 0 < 20 - len(names) <= 2
    assert names[-1] == "19"


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"#!/bin/sh\n and more of it", "is not a log of this server"),
        (b"headstock-log 7\n", "is a log of version '7'"),
        (b"x", "is not a log of this server"),
    ],
)
def test_a_foreign_file_and_another_version_are_refused_in_one_line(
    tmp_path: Path, head: bytes, said: str
) -> None:
    path = tmp_path / "00000001.log"
    path.write_bytes(head)
    with pytest.raises(ConfigError, match=said) as caught:
        DiskStore(tmp_path)
    assert "\n" not in caught.value.problem
    assert path.read_bytes() == head


def test_a_file_that_was_only_just_made_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "00000001.log").write_bytes(HEADER[:5])
    fill(DiskStore(tmp_path))
    check_filled(DiskStore(tmp_path))


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    fill(DiskStore(tmp_path))
    check_filled(DiskStore(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


class FullDisk:
    """Makes every write of segments fail while it is set, after the first ``spare`` bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spare: int | None = None
        self._write = os.pwrite
        monkeypatch.setattr("headstock.server.store.segment.os.pwrite", self.write)

    def write(self, file: int, data: bytes, at: int) -> int:
        if self.spare is None:
            return self._write(file, data, at)
        if self.spare == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self._write(file, data[: self.spare], at)
        self.spare -= count
        return count


@pytest.mark.parametrize("spare", [0, 1, 30])
def test_a_full_disk_refuses_what_is_new_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FullDisk(monkeypatch)
    store = DiskStore(tmp_path)
    fill(store)
    disk.spare = spare
    for _ in range(2):
        with pytest.raises(RequestError, match="No space left on device") as caught:
            store.put("response", "ann", "more", b"m" * 40)
        assert caught.value.code == "storage_full"
    assert len(caplog.records) == 1  # said once, not for each request
    check_filled(store)
    check_filled(DiskStore(tmp_path))
    disk.spare = None
    store.put("response", "ann", "more", b"m")
    assert DiskStore(tmp_path).get("response", "ann", "more") == b"m"


def test_a_value_with_a_hole_is_dropped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    store = DiskStore(tmp_path)
    fill(store)
    store.add("stream", "ann", "b", b"lost")
    disk.spare = 3
    (lost,) = store.flush()
    assert (lost.kind, lost.owner, lost.name) == ("stream", "ann", "b")
    assert store.parts("stream", "ann", "b") == []
    assert store.get("response", "ann", "a") == b"1"


def test_the_disk_needs_little_more_than_what_is_kept(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, segment_bytes=2000)
    store.put("old", "", "kept", b"k")
    for index in range(2000):
        store.put("k", "", str(index % 5), b"v" * 50)
        store.add("old", "", "kept", b"%d," % index)
        store.flush()
        if index % 50 == 0:
            store.sync()
    store.sync()
    kept = sum(store.used(owner) for owner in [""])
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert on_disk < 3 * kept + 4 * 2000
    again = DiskStore(tmp_path, segment_bytes=2000)
    expected = [b"k", *(b"%d," % index for index in range(2000))]
    assert again.parts("old", "", "kept") == expected
    assert len(again.entries("k")) == 5


def test_a_file_is_deleted_only_when_the_next_ones_are_safe(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, segment_bytes=500)
    store.put("k", "", "moved", b"m" * 10)
    for index in range(100):
        store.put("k", "", "other", b"%d" % index * 20)
    assert (tmp_path / "00000001.log").exists()
    store.sync()
    assert not (tmp_path / "00000001.log").exists()
    assert DiskStore(tmp_path).get("k", "", "moved") == b"m" * 10


OPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "add", "flush", "drop", "sync", "reopen"]),
        st.sampled_from("abc"),
        st.binary(max_size=40),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(ops=OPS)
def test_disk_and_memory_tell_the_same_over_any_restarts(
    tmp_path_factory: pytest.TempPathFactory, ops: list[tuple[str, str, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("store")
    disk, memory = DiskStore(path, segment_bytes=120), MemoryStore()
    for what, name, value in ops:
        match what:
            case "put" | "add":
                for each in (disk, memory):
                    getattr(each, what)("k", name, "n", value)
            case "drop":
                assert disk.drop("k", name, "n") == memory.drop("k", name, "n")
            case "reopen":
                disk.flush()
                disk = DiskStore(path, segment_bytes=120)
            case _:
                getattr(disk, what)()
        for owner in "abc":
            assert disk.parts("k", owner, "n") == memory.parts("k", owner, "n")
            assert disk.used(owner) == memory.used(owner)
        assert {e.owner for e in disk.entries("k")} == {e.owner for e in memory.entries("k")}


def test_one_server_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LOCK_WAIT_S", 0.0)
    state = StateFolder(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by the process {os.getpid()}"):
        StateFolder(tmp_path)
    secret = state.secret
    state.close()
    again = StateFolder(tmp_path)
    assert again.secret == secret
    assert len(secret) == 16
    again.close()


def test_a_start_waits_for_the_server_before_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl,sys,time\nf=open(sys.argv[1],'w'); fcntl.flock(f,2); print('held',"
            "flush=True); time.sleep(0.3)",
            str(tmp_path / "lock"),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with (tmp_path / "lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    StateFolder(tmp_path).close()
    holder.wait(10)


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"state_dir .* cannot be used"):
        StateFolder(tmp_path / "file")


def test_blobs_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    with blobs.create("one") as file:
        file.write(b"12")
        assert blobs.size("one") is None
    assert (blobs.size("one"), blobs.names()) == (2, ["one"])
    with pytest.raises(ValueError, match="stop"), blobs.create("two"):
        raise ValueError("stop")
    (tmp_path / "three.unfinished").write_bytes(b"x")
    assert Blobs(tmp_path).names() == ["one"]
    assert blobs.drop("one")
    assert not blobs.drop("one")


def test_a_blob_on_a_full_disk_is_refused(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    with pytest.raises(RequestError) as caught, blobs.create("one"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.code == "storage_full"
    assert blobs.names() == []


def test_records_that_are_read_are_checked(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "s")
    with pytest.raises(OSError, match="damaged at byte"):
        segment.read(len(HEADER))
