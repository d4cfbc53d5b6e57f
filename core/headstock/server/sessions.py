"""Sessions: prompts that go on from what was said before, without sending it again.

A session is a tree of turns. What turns have in common is one path of the engine's prefix tree, so
a session keeps ids here and no pages: those stay cached as long as there is room.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from headstock.errors import RequestError
from headstock.requests.sampling import Int64

MAX_SESSIONS = 1024
MAX_SESSION_TOKENS = 16_000_000
"""Tokens that all sessions keep together."""
MAX_TURNS = 1024
"""Turns of a session."""
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class SessionParams(msgspec.Struct, forbid_unknown_fields=True):
    """Where a prompt goes on.

    Attributes:
        id: Of the session.
        rid: The turn that it goes on from; None: it begins a new one.
        offset: How many tokens of that turn are kept, from its end if negative; 0 or None: all.
        replace: Forget the turns that go on from that one; without ``rid`` all of the session.
        drop_previous_output: Go on from that turn's prompt, without its output.
    """

    id: Name
    rid: str | None = None
    offset: Int64 | None = None
    replace: bool | None = None
    drop_previous_output: bool | None = None


@dataclass(slots=True, eq=False)
class Turn:
    """A prompt and its output, as what they add to the turn before.

    Attributes:
        before: What it went on from.
        kept: Tokens of that which it kept.
    """

    before: Turn | None
    kept: int
    prompt_ids: Sequence[int]
    output_ids: list[int] = field(default_factory=list)

    @property
    def num_own(self) -> int:
        """Tokens that it added."""
        return len(self.prompt_ids) + len(self.output_ids)

    def context(self, *, with_output: bool = True) -> list[int]:
        """Return all tokens from the session's beginning to its end."""
        own = [*self.prompt_ids, *(self.output_ids if with_output else [])]
        pieces = [own]
        turn, kept = self.before, self.kept
        while turn is not None and kept > 0:
            own = [*turn.prompt_ids, *turn.output_ids]
            pieces.append(own[: max(0, kept - turn.kept)])
            turn, kept = turn.before, min(kept, turn.kept)
        return [token_id for piece in reversed(pieces) for token_id in piece]


@dataclass(slots=True, eq=False)
class Session:
    """Turns of one conversation, by the names of their requests.

    Attributes:
        capacity: Tokens that a turn's context may have.
        timeout_s: How long it is kept when nothing is asked of it; None: until it is closed.
        used_s: When something was asked last. Seconds.
    """

    id: str
    capacity: int
    timeout_s: float | None
    used_s: float
    turns: dict[str, Turn] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens that it keeps."""
        return sum(turn.num_own for turn in self.turns.values())


@dataclass(frozen=True, slots=True)
class Continuation:
    """A request's place in a session.

    Attributes:
        session: Whose.
        before: The turn that it goes on from.
        kept_ids: That turn's tokens, as far as they are kept.
    """

    session: Session
    before: Turn | None
    kept_ids: list[int]

    def prompt(self, token_ids: list[int], bos_id: int | None) -> list[int]:
        """Return the whole prompt; what goes on has no beginning of its own.

        Raises:
            RequestError: It is longer than the session may be.
        """
        own = self._own(token_ids, bos_id)
        count = len(self.kept_ids) + len(own)
        if count > self.session.capacity:
            raise RequestError(
                f"The session's context would have {count} tokens; its capacity is"
                f" {self.session.capacity}.",
                remedy="Open one with a larger capacity_of_str_len.",
                field="session_params.id",
                code="context_length_exceeded",
            )
        return [*self.kept_ids, *own]

    def record(self, name: str, prompt_ids: Sequence[int], output_ids: list[int]) -> None:
        """Keep a turn that is over, for those who go on from it.

        Args:
            name: Of its request.
            prompt_ids: The whole prompt.
            output_ids: What was drawn.
        """
        kept = len(self.kept_ids)
        self.session.turns[name] = Turn(self.before, kept, prompt_ids[kept:], list(output_ids))

    def _own(self, token_ids: list[int], bos_id: int | None) -> list[int]:
        if self.before is not None and token_ids and token_ids[0] == bos_id:
            return token_ids[1:]
        return token_ids


class Sessions:
    """The open sessions of all callers.

    Args:
        clock: Monotonic. Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sessions: dict[tuple[str, str], Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(
        self, owner: str, *, name: str | None, capacity: int, timeout_s: float | None
    ) -> Session:
        """Open a session.

        Args:
            owner: Whose.
            name: Its id; None: one is made.
            capacity: Tokens that a turn's context may have.
            timeout_s: Forget it when nothing was asked of it for so long; None: never.

        Raises:
            RequestError: It is open, or too many are.
        """
        self._forget_old()
        name = uuid.uuid4().hex if name is None else name
        if (owner, name) in self._sessions:
            raise RequestError(
                f"session_id {name!r} is open.",
                remedy="Close it with /close_session, or use another name.",
                field="session_id",
            )
        if len(self._sessions) >= MAX_SESSIONS:
            raise RequestError(
                f"{MAX_SESSIONS} sessions are open.",
                remedy="Close some with /close_session, or open them with a timeout.",
                field="session_id",
            )
        session = Session(name, capacity, timeout_s, self._clock())
        self._sessions[owner, name] = session
        return session

    def close(self, owner: str, name: str) -> None:
        """Forget a session.

        Raises:
            RequestError: There is none of that name.
        """
        self._find(owner, name, "session_id")
        del self._sessions[owner, name]

    def go_on(self, owner: str, params: SessionParams) -> Continuation:
        """Return where a request goes on, and forget what it replaces.

        Raises:
            RequestError: There is no such session or turn, or no room for another.
        """
        session = self._find(owner, params.id, "session_params.id")
        turns = session.turns
        before = None
        if params.rid is not None:
            before = turns.get(params.rid)
            if before is None:
                raise RequestError(
                    f"The session has no turn {params.rid[:128]!r} that is over.",
                    remedy="Use the meta_info.id of an answer in this session.",
                    field="session_params.rid",
                )
        if params.replace:
            _forget_after(turns, before)
        if len(turns) >= MAX_TURNS or self._num_tokens() >= MAX_SESSION_TOKENS:
            raise RequestError(
                f"Sessions are full: at most {MAX_TURNS} turns each, and {MAX_SESSION_TOKENS}"
                " tokens in all.",
                remedy="Close sessions, or set session_params.replace.",
                field="session_params.id",
            )
        if before is None:
            return Continuation(session, None, [])
        context = before.context(with_output=not params.drop_previous_output)
        return Continuation(session, before, context[: params.offset or None])

    def _find(self, owner: str, name: str, field_name: str) -> Session:
        self._forget_old()
        session = self._sessions.get((owner, name))
        if session is None:
            raise RequestError(
                f"There is no open session {name[:128]!r}.",
                remedy="Open it with /open_session; those with a timeout close by themselves.",
                field=field_name,
            )
        session.used_s = self._clock()
        return session

    def _forget_old(self) -> None:
        now_s = self._clock()
        for key, session in list(self._sessions.items()):
            if session.timeout_s is not None and now_s - session.used_s > session.timeout_s:
                del self._sessions[key]

    def _num_tokens(self) -> int:
        return sum(session.num_tokens for session in self._sessions.values())


def _forget_after(turns: dict[str, Turn], before: Turn | None) -> None:
    """Forget the turns that went on from ``before``, and from those; None: all."""
    if before is None:
        turns.clear()
        return
    gone = {before}
    for name, turn in list(turns.items()):  # in the order in which they were made
        if turn.before in gone:
            gone.add(turn)
            del turns[name]
