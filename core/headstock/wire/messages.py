"""What an API process and an engine process say to each other.

An API process sends a ``ToEngine`` message, the engine answers with ``FromEngine`` ones. Both are
tagged unions that :mod:`msgspec` decodes strictly. Failure is a message too: every submitted
request gets exactly one :class:`Ended`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from headstock.requests import FinishReason, Grammar, SamplingParams, TokenIds
from headstock.wire.media import MediaItem
from headstock.wire.steps import RunnerLimits

PauseMode = Literal["abort", "retract", "in_place"]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Base of every message."""


class ThoughtLimit(msgspec.Struct, frozen=True, array_like=True):
    """How long a request may think.

    Attributes:
        budget: Tokens of thoughts; then their end is drawn.
        end_id: The id that ends thoughts.
        begin_ids: The ids that begin them in the output.
        is_open: Whether the prompt has begun them.
    """

    budget: int
    end_id: int
    begin_ids: list[int]
    is_open: bool


class Submit(Message, frozen=True, kw_only=True, tag=True):
    """Serve a request, or go on with one that another engine process began.

    Attributes:
        id: Made by the API process, unique for its life.
        attempt: 0 at first, one more each time it is sent again.
        prompt_ids: The prompt's tokens.
        output_ids: Tokens already generated and sent to the client by earlier attempts.
        params: ``n`` is 1 and ``sampling_seed`` set: the API process expands both.
        stop_ids: Ids that end it, the model's EOS ids included unless ``ignore_eos``.
        namespace: Requests share cached prefixes only within one; "" is the common one.
        priority: Larger is served first, where the policy looks at it.
        payer: What it counts against, where the policy shares among those; "": all such are one.
        share: Weight of that one's requests.
        user: Who of those that it counts against sends it; they share among themselves.
        logprobs: -1: none; k: the drawn token's and the top k's.
        prompt_logprobs_from: Prompt position from which logprobs are wanted; None: none are.
        asked_ids: Ids whose logprobs are wanted at each of those positions.
        drafts: Whether tokens may be drafted for it, where the runner drafts.
        pool: What it yields instead of drawn tokens, a name of ``steps.POOLED``; "": it draws.
        adapter: Generation id of its LoRA adapter; "": none. Its prefixes are its own.
        grammar: What the output must look like; None: anything.
        media: Images of the prompt, in its order.
        allowed_ids: Ids that may be drawn, those that end it among them; none: all.
        banned: Sequences of ids that the output must not have.
        thoughts: How long it may think; None: without end.
        wants_story: Whether its :class:`Story` is wanted at its end.
    """

    id: str
    attempt: int = 0
    prompt_ids: TokenIds
    output_ids: list[int] = []
    params: SamplingParams
    stop_ids: list[int] = []
    namespace: str = ""
    priority: int = 0
    payer: str = ""
    share: int = 1
    user: str = ""
    logprobs: int = -1
    prompt_logprobs_from: int | None = None
    asked_ids: list[int] = []
    drafts: bool = True
    pool: str = ""
    adapter: str = ""
    grammar: Grammar | None = None
    media: list[MediaItem] = []
    allowed_ids: list[int] = []
    banned: list[list[int]] = []
    thoughts: ThoughtLimit | None = None
    wants_story: bool = False

    @property
    def is_masked(self) -> bool:
        """Whether each of its draws obeys a mask."""
        return self.grammar is not None or self.has_rules

    @property
    def has_rules(self) -> bool:
        """Whether lists or limits of the caller's, not a grammar, say what may be drawn."""
        return bool(self.allowed_ids or self.banned) or self.thoughts is not None


class Abort(Message, frozen=True, kw_only=True, tag=True):
    """End a request now; its pages are free once the steps in flight have settled."""

    id: str


class AbortAll(Message, frozen=True, kw_only=True, tag=True):
    """End every request of this engine."""


class Cut(Message, frozen=True, kw_only=True, tag=True):
    """The text of a request matched a stop string or pattern: end it there.

    Attributes:
        keep: Output tokens that count; nothing past them has been published.
        matched: The text that matched.
    """

    id: str
    attempt: int
    keep: int
    matched: str


class FlushCache(Message, frozen=True, kw_only=True, tag=True):
    """Forget every cached prefix that no live request uses."""

    call: int


class AskState(Message, frozen=True, kw_only=True, tag=True):
    """Answer with :class:`State`."""

    call: int


class Pause(Message, frozen=True, kw_only=True, tag=True):
    """Compute no more steps until :class:`Resume`; what is submitted waits. Answered by a State.

    Attributes:
        mode: What becomes of the requests that are here: they end (``abort``), give their pages
            back and wait again (``retract``), or stay as they are (``in_place``).
    """

    call: int
    mode: PauseMode


class Resume(Message, frozen=True, kw_only=True, tag=True):
    """Go on after a :class:`Pause`. Answered by a State."""

    call: int


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


ToEngine = (
    Submit
    | Abort
    | AbortAll
    | Cut
    | FlushCache
    | AskState
    | Pause
    | Resume
    | LoadAdapter
    | UnloadAdapter
    | LoadWeights
    | StartProfile
    | StopProfile
    | Sleep
    | Wake
    | ReadWeight
)


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Logprobs at consecutive positions of one request; columns as in ``steps.Logprobs``."""

    id: str
    is_prompt: bool
    chosen: list[float]
    top_ids: list[list[int]] = []
    top: list[list[float]] = []
    asked: list[list[float]] = []


class Tokens(Message, frozen=True, kw_only=True, tag=True):
    """What a step drew, for all requests of one API process.

    Attributes:
        ids: Whose tokens.
        attempts: Which attempt of it; stale ones are dropped.
        offsets: Output index of its first token here, earlier attempts' outputs counted.
        counts: How many tokens.
        token_ids: The tokens, one request after another. [sum(counts)]
        logprobs: Of the requests that asked.
        cached_tokens: Prompt tokens that came from the cache, of those whose offset is 0, in order.
    """

    ids: list[str]
    attempts: list[int]
    offsets: list[int]
    counts: list[int]
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = []
    cached_tokens: list[int] = []


class Vector(Message, frozen=True, kw_only=True, tag=True):
    """What a pooled request yields; its ``Ended`` follows.

    Attributes:
        values: The vector's elements, or those of each token in turn, little-endian float32.
    """

    id: str
    attempt: int
    values: bytes


class Story(msgspec.Struct, frozen=True, array_like=True):
    """What became of a request in the engine.

    Attributes:
        waits: Seconds that it waited for admission, by what for: ``slots``, ``pages``, ``step``
            (the next one), ``prefix`` (another request computes it), ``grammar``, ``pause``, or a
            budget.
        evicted_pages: Pages that were evicted when it was admitted.
        shared_tokens: Cached prompt tokens that running requests used when it was admitted.
        chunk_steps: Steps that computed a chunk of its prompt, after retractions again.
        chunk_ends: Where those chunks end. Tokens.
        chunk_times_s: When they were planned, after it came to the scheduler. Seconds.
        last_step: The last step launched with it; 0: none was.
    """

    waits: dict[str, float]
    evicted_pages: int
    shared_tokens: int
    chunk_steps: list[int]
    chunk_ends: list[int]
    chunk_times_s: list[float]
    last_step: int


class Ended(Message, frozen=True, kw_only=True, tag=True):
    """A request is over; the one and only such message of its attempt.

    Attributes:
        num_outputs: Output tokens that count.
        cached_tokens: Prompt tokens whose KV came from the cache when it was first admitted.
        num_retractions: How often it lost its pages to others.
        queue_s: How long it waited for admission. Seconds.
        num_drafted: Drafts of it that steps have verified.
        num_accepted: Of these, right.
        story: Where the request asked for it.
    """

    id: str
    attempt: int
    reason: FinishReason
    num_outputs: int
    cached_tokens: int = 0
    num_retractions: int = 0
    queue_s: float = 0.0
    num_drafted: int = 0
    num_accepted: int = 0
    story: Story | None = None


class Started(Message, frozen=True, kw_only=True, tag=True):
    """The engine is ready.

    Attributes:
        model_facts: Lines for the banner, such as device and memory plan.
    """

    limits: RunnerLimits
    model_facts: dict[str, str] = {}


class Loading(Message, frozen=True, kw_only=True, tag=True):
    """Progress of the start-up: ``done`` of ``total`` units of ``phase``."""

    phase: str
    done: int = 0
    total: int = 0
    unit: str = ""


class Crashed(Message, frozen=True, kw_only=True, tag=True):
    """The engine cannot start or go on; it exits after this.

    Attributes:
        is_config: Whether the operator must change something, so that a restart is useless.
    """

    problem: str
    remedy: str
    is_config: bool


class Rested(Message, frozen=True, kw_only=True, tag=True):
    """The engine's process has ended on request; another starts when the server is woken.

    Attributes:
        problem: Why one that was to start did not, so that the server sleeps on; "": nothing.
        remedy: What the operator can do about it.
    """

    problem: str = ""
    remedy: str = ""


class Flushed(Message, frozen=True, kw_only=True, tag=True):
    """Answer to :class:`FlushCache`: pages that were freed, and whether requests were live."""

    call: int
    freed_pages: int
    was_idle: bool


class GroupPages(msgspec.Struct, frozen=True):
    """The pages of a group of layers: held by requests, held by the cache alone, and all."""

    kind: str
    held: int
    cached: int
    total: int


class State(Message, frozen=True, kw_only=True, tag=True):
    """Answer to :class:`AskState`, and sent once a second: counters for health and metrics.

    Attributes:
        call: The call answered, or 0.
        received: Messages taken from the API process since the start; None: unknown.
        steps: Steps settled since the start: progress, for the watchdog.
        is_paused: Whether steps wait for a :class:`Resume`.
        totals: Monotonic counters by metric name (``prompt_tokens``, ``cached_tokens`` …).
        groups: Pages of each group of layers.
    """

    call: int = 0
    received: int | None = None
    steps: int
    running: int
    waiting: int
    free_pages: int
    cached_pages: int
    total_pages: int
    is_paused: bool = False
    totals: dict[str, float] = {}
    groups: list[GroupPages] = []


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


FromEngine = (
    Tokens
    | Vector
    | Ended
    | Started
    | Loading
    | Crashed
    | Rested
    | Flushed
    | State
    | AdapterReply
    | UpkeepReply
    | WeightRows
)
