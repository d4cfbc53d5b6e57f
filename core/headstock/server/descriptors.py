"""Open files: every connection takes one, and an engine that must be started needs some too."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource

from headstock.errors import ConfigError

RESERVED = 96
"""Kept from connections: for the engine's start, sockets, pipes, the model's files."""
LEAST = 64
"""With a lower limit there is no server: libraries end the process when they run out."""
FEW_CONNECTIONS = 256
"""With room for fewer the operator is warned."""
SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS})
"""What the system says when it has no more of something: later it may have."""
log = logging.getLogger(__name__)


def prepare(max_connections: int) -> None:
    """Raise this process's limit to what ``max_connections`` need, as far as it may be raised.

    Raises:
        ConfigError: The limit is too low for a server.
    """
    wanted = max_connections + RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
    limit = _limit()
    if limit < LEAST:
        raise ConfigError(
            f"This process may open {limit} files; at least {LEAST} are needed.",
            remedy=f"Raise the limit, such as by `ulimit -n {wanted}`.",
        )
    room = room_for_connections()
    if room < min(FEW_CONNECTIONS, max_connections):
        log.warning(
            "This process may open %d files: that is room for %d connections, not %d. Raise the"
            " limit, such as by `ulimit -n %d`.",
            limit, room, max_connections, wanted,
        )  # fmt: skip


def room_for_connections() -> int:
    """Return how many connections the limit on open files leaves room for."""
    limit = _limit()
    return max(limit // 4, limit - RESERVED)


def require(count: int) -> None:
    """Make sure that ``count`` more files can be opened now.

    Raises:
        OSError: They cannot.
    """
    opened: list[int] = []
    try:
        while len(opened) < count:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if soft == resource.RLIM_INFINITY else soft
