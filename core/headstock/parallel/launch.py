"""Rank 0's side: starts the other ranks, sends them plans, and notices when one is gone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import zmq

from headstock.errors import ConfigError, DeviceError, HeadstockError
from headstock.parallel.address import RankAddress
from headstock.parallel.messages import END, Failed, Joining, Order, reports
from headstock.wire.folders import PrivateFolder

log = logging.getLogger(__name__)

RANK_MODULE = "headstock.assemble.rank_process"
JOIN_TIMEOUT_S = 300.0
END_TIMEOUT_S = 5.0
GRACE_S = 0.5
"""How long the engine may take to notice a lost rank by itself, before the process is ended.

It may be idle, or hang in a collective that cannot be cancelled."""
POLL_S = 0.2

EXIT_LOST_RANK = 70
"""Exit code of rank 0 when it hangs on a lost rank."""


def end_process() -> None:
    """End this process at once, whatever its other threads hang in."""
    os._exit(EXIT_LOST_RANK)


def spawn_ranks(
    size: int,
    argument_of: Callable[[RankAddress], str],
    *,
    command: Sequence[str] = (sys.executable, "-m", RANK_MODULE),
) -> Ranks:
    """Start ranks 1 to ``size`` - 1.

    Args:
        size: Ranks, this process included.
        argument_of: Makes the one argument of a rank's process: its settings and its address.
        command: What to start, up to the argument.

    Returns:
        The ranks; the caller waits for them to join, then joins too.
    """
    folder = PrivateFolder("ranks-")
    own = RankAddress(rank=0, size=size, directory=str(folder.path), parent=os.getpid())
    ranks = Ranks(own, folder=folder)
    try:
        for rank in range(1, size):
            address = msgspec.structs.replace(own, rank=rank)
            ranks.add(address, [*command, argument_of(address)])
    except BaseException:
        ranks.close()
        raise
    return ranks


class Ranks:
    """The other ranks, as rank 0 sees them.

    Args:
        own: Rank 0's address.
        folder: Where they meet, deleted at the end.
        grace_s: How long a lost rank may go unnoticed by the engine. Seconds.
        die: Ends the process after that.
    """

    def __init__(
        self,
        own: RankAddress,
        *,
        folder: PrivateFolder | None = None,
        grace_s: float = GRACE_S,
        die: Callable[[], None] = end_process,
    ) -> None:
        self.own = own
        self._folder = folder
        self._grace_s = grace_s
        self._die = die
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._plans: dict[int, zmq.Socket[bytes]] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._lost: HeadstockError | None = None
        self._is_closing = threading.Event()
        self._watch: threading.Thread | None = None
        self._sockets = zmq.Context()
        self._reports = self._sockets.socket(zmq.PULL)
        self._reports.bind(own.reports)

    def add(self, address: RankAddress, command: Sequence[str]) -> None:
        """Start the process of the rank at ``address``.

        In a session of its own: an interrupt from the terminal is for rank 0, which ends the
        others in order.
        """
        socket = self._sockets.socket(zmq.PAIR)
        socket.bind(address.plans)
        self._plans[address.rank] = socket
        self._processes[address.rank] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def wait_for_joining(self, timeout_s: float = JOIN_TIMEOUT_S) -> None:
        """Wait until every rank is about to join the collectives, then keep watch over them.

        Raises:
            ConfigError: A rank says that a setting is wrong.
            DeviceError: A rank ended, or did not come in time.
        """
        deadline_s = time.monotonic() + timeout_s
        missing = set(self._processes)
        while missing:
            self._look()
            self.check()
            if self._reports.poll(int(1000 * POLL_S)):
                report = reports.decode(self._reports.recv())
                if isinstance(report, Joining):
                    missing.discard(report.rank)
                else:
                    self._note(report)
            if time.monotonic() > deadline_s:
                raise DeviceError(
                    f"Ranks {sorted(missing)} did not start within {timeout_s:.0f} s.",
                    remedy="See their output above; a smaller --tp-size needs fewer.",
                )
        self._watch = threading.Thread(target=self._keep_watch, name="ranks", daemon=True)
        self._watch.start()

    def send(self, order: Order) -> None:
        """Have every rank follow ``order``.

        Raises:
            DeviceError: A rank is lost.
        """
        self.check()
        frame = self._encoder.encode(order)
        for socket in self._plans.values():
            while not socket.poll(int(1000 * POLL_S), zmq.POLLOUT):  # it is still loading
                self.check()
            socket.send(frame)

    def check(self) -> None:
        """Raise what became of a rank that is lost.

        Raises:
            HeadstockError: Of the kind that the rank reported, else a DeviceError.
        """
        if self._lost is not None:
            raise self._lost

    def explain(self, error: Exception) -> Exception:
        """Return why a rank is lost if one is, soon after ``error`` was seen; else ``error``.

        When a rank dies the others see a broken collective first.
        """
        if self._watch is None:
            return error
        deadline_s = time.monotonic() + 5 * POLL_S
        while self._lost is None and time.monotonic() < deadline_s:
            time.sleep(POLL_S / 4)
        return self._lost or error

    def end(self) -> None:
        """End the ranks, by force those that do not end by themselves. May be called twice."""
        if self._is_closing.is_set():
            return
        self._is_closing.set()
        if self._watch is not None:
            self._watch.join()
        deadline_s = time.monotonic() + END_TIMEOUT_S
        for rank, process in self._processes.items():
            if self._plans[rank].poll(0, zmq.POLLOUT):
                self._plans[rank].send(END)
            else:  # it does not listen yet
                process.terminate()
        for process in self._processes.values():
            _end(process, deadline_s - time.monotonic())

    def close(self) -> None:
        """End the ranks and remove the folder where they met. May be called twice.

        Rank 0 has left the group by then: a library of collectives may look into the folder for as
        long as it is in use, and wait there for what is gone.
        """
        self.end()
        self._sockets.destroy(linger=0)
        if self._folder is not None:
            self._folder.remove()

    def _keep_watch(self) -> None:
        """Note lost ranks; end this process should the engine not do so itself. Own thread."""
        while self._lost is None:
            if self._is_closing.is_set():
                return
            if self._reports.poll(int(1000 * POLL_S)):
                report = reports.decode(self._reports.recv())
                if isinstance(report, Failed):
                    self._note(report)
            self._look()
        log.error("%s", self._lost.problem)
        if not self._is_closing.wait(self._grace_s):
            log.critical("The engine is ended: without all ranks it can serve nothing")
            self._die()

    def _look(self) -> None:
        """Note a rank whose process has ended, unless it has said why itself."""
        for rank, process in self._processes.items():
            code = process.poll()
            if code is None or self._lost is not None:
                continue
            while self._lost is None and self._reports.poll(0):
                report = reports.decode(self._reports.recv())
                if isinstance(report, Failed):
                    self._note(report)
            if self._lost is None:
                self._lost = _gone(rank, f"ended with exit code {code}")

    def _note(self, report: Failed) -> None:
        kind = ConfigError if report.is_config else DeviceError
        self._lost = kind(f"Rank {report.rank}: {report.problem}", remedy=report.remedy)


def _gone(rank: int, what: str) -> DeviceError:
    return DeviceError(
        f"Rank {rank} {what}.", remedy="See its output above; the engine starts all ranks again."
    )


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Wait for ``process``, then terminate it, then kill it."""
    for force in (process.terminate, process.kill):
        try:
            process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            force()
            timeout_s = 1.0
    process.wait()
