"""A rank's side: joins, runs the plans that come, and ends with rank 0."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import zmq

from headstock.errors import ConfigError, HeadstockError, describe
from headstock.parallel.address import RankAddress
from headstock.parallel.messages import (
    END,
    DropAdapter,
    Failed,
    Joining,
    KeepAdapter,
    ReleasePages,
    Report,
    RestorePages,
    orders,
)
from headstock.parallel.pages import LocalPages
from headstock.parallel.shelf import LocalShelf
from headstock.wire.steps import Masks, Runner, StepHandle

PARENT_POLL_S = 1.0
LINGER_MS = 2000
"""How long a rank's last report may take to leave. Milliseconds."""

EXIT_ORPHAN = 71
"""Exit code of a rank whose rank 0 is gone."""


@contextmanager
def join_ranks(address: RankAddress) -> Iterator[None]:
    """Be a rank: say that it joins, and say why if what follows raises.

    From here on the process ends with rank 0's, even while it hangs in a collective.
    """
    thread = threading.Thread(target=_follow, args=(address.parent,), name="parent", daemon=True)
    thread.start()
    with zmq.Context() as sockets, sockets.socket(zmq.PUSH) as socket:
        socket.linger = LINGER_MS
        socket.connect(address.reports)
        _tell(socket, Joining(rank=address.rank))
        try:
            yield
        except Exception as error:
            # The process boundary: rank 0 must know, then this process goes down.
            _tell(socket, _failure(address.rank, error))
            raise


def serve_rank(
    runner: Runner,
    address: RankAddress,
    shelf: LocalShelf | None = None,
    pages: LocalPages | None = None,
) -> None:
    """Run the plans of rank 0 until it says that it is enough.

    Args:
        runner: This rank's.
        address: Where it is.
        shelf: Where its LoRA adapters wait; None: there is no room for any.
        pages: The memory of its pages; None: it stays taken.
    """
    flight: deque[StepHandle] = deque()
    with zmq.Context() as sockets, sockets.socket(zmq.PAIR) as socket:
        socket.linger = 0
        socket.connect(address.plans)
        while (frame := socket.recv()) != END:
            order = orders.decode(frame)
            if isinstance(order, Masks):
                runner.sample(flight[-1], order)
                continue
            if isinstance(order, KeepAdapter | DropAdapter):
                assert shelf is not None, "an adapter comes to a rank without room for any"
                if isinstance(order, KeepAdapter):
                    shelf.fetch(order.adapter, order.path)
                else:
                    shelf.drop(order.adapter)
                continue
            if isinstance(order, ReleasePages | RestorePages):
                assert pages is not None, "a rank is to give back pages that stay"
                while flight:
                    runner.result(flight.popleft())
                if isinstance(order, ReleasePages):
                    pages.release_pages()
                else:
                    pages.restore_pages()
                continue
            while len(flight) >= runner.limits.depth:
                runner.result(flight.popleft())
            flight.append(runner.launch(order))


def _tell(socket: zmq.Socket[bytes], report: Report) -> None:
    socket.send(msgspec.msgpack.encode(report))


def _failure(rank: int, error: Exception) -> Failed:
    if isinstance(error, HeadstockError):
        is_config = isinstance(error, ConfigError)
        return Failed(rank=rank, problem=error.problem, remedy=error.remedy, is_config=is_config)
    remedy = "See its traceback above; report it if it happens again."
    return Failed(rank=rank, problem=describe(error), remedy=remedy, is_config=False)


def _follow(parent: int) -> None:
    """End this process when ``parent`` is no longer its parent. Own thread."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(EXIT_ORPHAN)
