"""Messages of what is done between two steps: adapters, weights, profiles, sleep."""

from __future__ import annotations

from headstock.wire.base import Message


class LoadAdapter(Message, frozen=True, kw_only=True, tag=True):
    """Read a LoRA adapter, so that requests may name it. Answered by :class:`AdapterReply`.

    Attributes:
        adapter: Its generation id: another one each time that an adapter is loaded, so that what
            was computed with one of the same name is never taken for this one's.
        path: Its folder.
    """

    call: int
    adapter: str
    path: str


class UnloadAdapter(Message, frozen=True, kw_only=True, tag=True):
    """Forget an adapter; what still runs with it ends. Answered by :class:`AdapterReply`."""

    call: int
    adapter: str


class LoadWeights(Message, frozen=True, kw_only=True, tag=True):
    """Put the weights of another checkpoint in the places of the model's, between two steps.

    Requests that run give their pages back and are computed anew; cached prefixes are forgotten.
    Answered by :class:`UpkeepReply`.

    Attributes:
        path: The checkpoint's folder or file.
        is_aborting: Whether all requests end first.
    """

    call: int
    path: str
    is_aborting: bool = False


class StartProfile(Message, frozen=True, kw_only=True, tag=True):
    """Record what the next steps spend their time with. Answered by :class:`UpkeepReply`.

    Attributes:
        folder: Where the trace is written; "": a new folder for files that may go.
        num_steps: After so many steps the recording ends by itself.
        has_stacks: Whether it has the Python stack of each op.
        has_shapes: Whether it has the shapes of each op's tensors.
    """

    call: int
    folder: str = ""
    num_steps: int
    has_stacks: bool = False
    has_shapes: bool = False


class StopProfile(Message, frozen=True, kw_only=True, tag=True):
    """End the recording now, and write it. Answered by :class:`UpkeepReply`."""

    call: int


class Sleep(Message, frozen=True, kw_only=True, tag=True):
    """Give the memory of the pages back to the system, until :class:`Wake`.

    Requests that run give their pages back and wait; they are computed anew after that. Cached
    prefixes are forgotten. Answered by :class:`UpkeepReply`, whose count is the pages' bytes.
    """

    call: int


class Wake(Message, frozen=True, kw_only=True, tag=True):
    """Make the pages again, and go on. Answered by :class:`UpkeepReply`."""

    call: int


class ReadWeight(Message, frozen=True, kw_only=True, tag=True):
    """Read a weight back from the device. Answered by :class:`WeightRows`.

    Attributes:
        name: As checkpoints have it.
        num_rows: The first so many of it.
    """

    call: int
    name: str
    num_rows: int


class AdapterReply(Message, frozen=True, kw_only=True, tag=True):
    """Answer to :class:`LoadAdapter` and :class:`UnloadAdapter`.

    Attributes:
        problem: Why it could not be done; "": it is done.
        remedy: What the operator can do about it.
    """

    call: int
    problem: str = ""
    remedy: str = ""


class UpkeepReply(Message, frozen=True, kw_only=True, tag=True):
    """Answer to :class:`LoadWeights`, :class:`StartProfile`, :class:`StopProfile` and sleep.

    Attributes:
        problem: Why it could not be done; "": it is done.
        remedy: What the operator can do about it.
        path: The trace that was, or will be, written.
        count: Requests that ran when weights were loaded, steps that a trace has, or bytes that
            pages took.
    """

    call: int
    problem: str = ""
    remedy: str = ""
    path: str = ""
    count: int = 0


class WeightRows(Message, frozen=True, kw_only=True, tag=True):
    """Answer to :class:`ReadWeight`.

    Attributes:
        problem: Why it could not be read; "": it was.
        remedy: What the operator can do about it.
        shape: Of what was read.
        values: Its elements, little-endian float32.
    """

    call: int
    problem: str = ""
    remedy: str = ""
    shape: list[int] = []
    values: bytes = b""
