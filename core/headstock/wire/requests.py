"""Messages of requests: how one is sent and ended early, what it yields, how it ended."""

from __future__ import annotations

import msgspec

from headstock.requests import FinishReason, Grammar, SamplingParams, TokenIds
from headstock.wire.base import Message
from headstock.wire.media import MediaItem


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
