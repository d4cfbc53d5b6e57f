"""What one forward pass computes, and what came of it: the contract of engine and runner.

A request keeps one *slot* of the runner's table from admission to its end. The table owns the
true length, the last token, the penalty counts, the page table and ``done``; the engine holds
upper bounds, which shrink when a step settles. Everything here is columnar: entry ``i`` of every
column of a table describes the same row.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from headstock.wire.media import Encode, Features, MediaLimits, MediaSpan

FROM_HOST = 0
FROM_DEVICE = 1
NULL_PAGE = 0
"""Where padding rows and finished rows write; never handed to a request."""

NOTHING = 0
"""A row yields nothing: its prompt goes on in a later step."""
DRAW = 1
"""A row yields drawn ids."""
POOL = 2
"""A row yields one pooled vector, and its request ends without drawing."""
EMBED_TOKENS = 3
"""A row yields a vector for each of its tokens, and its request ends without drawing."""
SCORE_TOKENS = 4
"""A row yields the scores of each of its tokens, and its request ends without drawing."""
POOLED = {"pool": POOL, "token_embed": EMBED_TOKENS, "token_classify": SCORE_TOKENS}
"""What rows may yield instead of draws, by the names that limits have for it."""

DRAFT_ROWS = 64
"""Rows of a step that verifies drafts, at most, unless a runner says otherwise: with more of them a
step is bound by arithmetic, which drafts add to, and their logits take gigabytes."""

STATE_IN = 0
"""Table entry of a ``state`` group: the page that the row's next step reads its state from."""
STATE_OUT = 1
"""Table entry of a ``state`` group: the page that it writes its state to. Where the two differ,
the page read from stays as it is (a checkpoint): nothing is copied."""


class Admit(msgspec.Struct, frozen=True, array_like=True):
    """A request enters ``slot``: what the sampler must know of it, and where its KV stands.

    Attributes:
        slot: The slot, from now until a plan's ``leave`` names it.
        length: Tokens whose keys and values its pages already hold.
        num_outputs: Output tokens it already has (retraction, replay); the index of its next draw.
        max_outputs: It is done when it has this many.
        min_outputs: Stop ids cannot be drawn before it has this many.
        stop_ids: Ids that end it, the model's EOS ids included unless it ignores them.
        temperature: 0 is greedy.
        top_k: -1 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        repetition_penalty: 1 is off.
        frequency_penalty: 0 is off.
        presence_penalty: 0 is off.
        seed: 64-bit seed of its draws.
        bias_ids: Ids with a logit bias.
        biases: What is added to their logits.
        history: Prompt then output ids, for penalties and drafting; empty when it has neither.
        num_prompt: How many of ``history`` are prompt.
        logprobs: -1: none; k >= 0: the drawn token's and the top k's, a step.
        asked_ids: Ids whose logprobs it wants at every position.
        adapter: Place of its LoRA adapter on the device; 0: none.
        drafts: Whether tokens may be drafted for it.
        media: Its images, in the order of the prompt.
    """

    slot: int
    length: int
    num_outputs: int
    max_outputs: int
    min_outputs: int = 0
    stop_ids: list[int] = []
    temperature: float = 0.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    bias_ids: list[int] = []
    biases: list[float] = []
    history: list[int] = []
    num_prompt: int = 0
    logprobs: int = -1
    asked_ids: list[int] = []
    adapter: int = 0
    drafts: bool = False
    media: list[MediaSpan] = []


class Rows(msgspec.Struct, frozen=True, array_like=True):
    """The rows of a step, in depth-first order of the step's tree.

    Attributes:
        slots: Whose row it is.
        query_max: Tokens the row computes, at most; exact unless the slot is already done.
        kv_max: Its length once they are written, at most.
        source: ``FROM_HOST``: its tokens are the next ``query_max`` of ``host_ids``;
            ``FROM_DEVICE``: its tokens are the slot's last drawn one and ``query_max`` - 1 drafts
            that the device made; those that prove wrong count for nothing.
        yields: ``NOTHING``, ``DRAW`` (from its last position; with drafts, from each of its
            positions, up to the first wrong draft) or one of ``POOLED``.
        score: How many of the row's last host ids are wanted as prompt logprobs, each given by
            the position before it. A row with ``score`` that yields nothing has one id more
            than it computes: the prompt token after its chunk.
    """

    slots: list[int]
    query_max: list[int]
    kv_max: list[int]
    source: list[int]
    yields: list[int]
    score: list[int]


class PageAppends(msgspec.Struct, frozen=True, array_like=True):
    """Pages that slots got: page table entry ``index`` of ``slot`` in ``group`` is now ``page``.

    In groups of tokens entry ``index`` holds the tokens from ``index`` * page_tokens on; in a
    ``window`` group entries that the window has left behind are not read any more, and need not be
    changed. A ``state`` group has the entries ``STATE_IN`` and ``STATE_OUT``; a row that begins at
    token 0 begins with the empty state, whatever is in the page that it would read.
    """

    groups: list[int] = []
    slots: list[int] = []
    indexes: list[int] = []
    pages: list[int] = []


class PageCopies(msgspec.Struct, frozen=True, array_like=True):
    """Whole pages to copy before the forward pass."""

    groups: list[int] = []
    sources: list[int] = []
    destinations: list[int] = []


class TreeNodes(msgspec.Struct, frozen=True, array_like=True):
    """Prefixes that several rows of the step share, so that attention may read them once.

    Node ``i``: rows [row_begin, row_end) have equal page table entries for the tokens
    [kv_begin, kv_end) in every ``full`` group; page-aligned, and before every member's first query
    token. A hint: each row's own page table stays complete.
    """

    row_begin: list[int] = []
    row_end: list[int] = []
    kv_begin: list[int] = []
    kv_end: list[int] = []


class StepPlan(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One forward pass.

    Applied in this order: ``adapters``, ``leave``, ``admit``, ``append``, ``features``, ``encode``,
    ``copies``, then the forward pass.

    Attributes:
        step: Its number; results settle in this order.
        rows: What is computed.
        leave: Slots that are empty from now; for one that is empty already, nothing happens (after
            a step that failed, the engine empties all).
        host_ids: Tokens of the rows that come from the host, one row after another; a row with
            ``score`` appends the one token after its chunk when the prompt has one.
        steady: The rows are the previous plan's, same order, each from the device with as many
            tokens as before.
        tree: Shared prefixes; None: the same as in the previous plan.
        masked: Slots whose draws obey a mask. Where there are any, :meth:`Runner.launch` queues the
            forward pass alone, and :meth:`Runner.sample` the rest.
        adapters: Places that hold another LoRA adapter from now on, and its generation id.
        encode: Images whose features rows of this step or later ones need.
        features: Where the features of slots' images lie; named before the first row that needs
            them, and again where they lie elsewhere.
    """

    step: int
    rows: Rows
    host_ids: list[int]
    leave: list[int] = []
    admit: list[Admit] = []
    append: PageAppends = PageAppends()
    copies: PageCopies = PageCopies()
    steady: bool = False
    tree: TreeNodes | None = None
    masked: list[int] = []
    adapters: list[tuple[int, str]] = []
    encode: list[Encode] = []
    features: list[Features] = []


class Masks(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Which ids masked rows may draw.

    Attributes:
        slots: Whose; those of the plan's ``masked``, in its order.
        words: For each slot, and each of its row's positions, a bit an id, lowest first, in
            little-endian words of 32 bits; 1: allowed. [slots][query_max][ceil(V / 32)]
    """

    slots: list[int]
    words: list[bytes]


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural logs of probabilities at one or more positions of one slot.

    Attributes:
        slot: Whose.
        is_prompt: Whether the positions are prompt tokens, not drawn ones.
        chosen: Of the token that is there. [positions]
        top_ids: The likeliest ids, best first. [positions][k]
        top: Their logprobs. [positions][k]
        asked: Of the request's ``asked_ids``. [positions][len(asked_ids)]
    """

    slot: int
    is_prompt: bool
    chosen: list[float]
    top_ids: list[list[int]] = []
    top: list[list[float]] = []
    asked: list[list[float]] = []


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """One row could not be computed (not a number in its logits, say); only it ends."""

    slot: int
    message: str


class Pooled(msgspec.Struct, frozen=True, array_like=True):
    """What a slot's request yields, of a row's tokens one after another: little-endian float32."""

    slot: int
    values: bytes


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    """What a step yielded.

    Attributes:
        step: The plan's number.
        slots: The plan's rows that draw, in its order.
        counts: Tokens drawn for each, 1 to its row's ``query_max`` where that had drafts; 0 when
            the slot was done before the step. A row that is not done has ``counts`` tokens more in
            its pages than before: of its query, the rest proved wrong.
        ids: The drawn ids, one row after another. [sum(counts)]
        done: 1: the last of them is a stop id, or the slot has all its outputs.
        logprobs: For the slots that asked.
        faults: Rows that failed.
        pooled: Of the rows that were pooled.
        drafts: Tokens that the device has drafted for the next row of each of ``slots``; empty when
            it drafts for none of them.
    """

    step: int
    slots: list[int]
    counts: list[int]
    ids: list[int]
    done: list[int]
    logprobs: list[Logprobs] = []
    faults: list[Fault] = []
    pooled: list[Pooled] = []
    drafts: list[int] = []


class PageGroup(msgspec.Struct, frozen=True, array_like=True):
    """Layers with one rule of retention, paged alike. A page holds all of the group's layers.

    Groups that share one arena take *slabs* of it: page ``p`` of a group lies in slab
    ``p // slab_pages``, whichever group that belongs to at the time. Slab 0 holds the null pages.

    Attributes:
        kind: ``full`` (every token), ``window`` (the last ``window``), ``state`` (one page is a
            request's whole state after some number of tokens) or ``encoder``.
        page_tokens: Tokens a page holds; of a ``state`` group 1.
        page_bytes: Bytes of a page over all the group's layers.
        num_pages: Pages there are, the null page included; in a shared arena, as if the group had
            it for itself.
        window: Of a ``window`` group: tokens that a query sees, itself included.
        slab_pages: Pages a slab holds; 0: the group's memory is its own.
    """

    kind: str
    page_tokens: int
    page_bytes: int
    num_pages: int
    window: int = 0
    slab_pages: int = 0


class RunnerLimits(msgspec.Struct, frozen=True, array_like=True):
    """What the runner can hold; fixed once it is built.

    Attributes:
        num_slots: Requests it can hold at once, in slots 0 to ``num_slots`` - 1.
        max_step_tokens: Tokens a step may compute.
        max_length: Longest request, prompt and output. Tokens.
        vocab_size: Ids the model has.
        depth: Steps that may be in flight: 1 runs them one at a time, 2 overlaps.
        groups: The page groups.
        max_drafts: Tokens that may be drafted a row and step; 0: none are.
        num_adapters: LoRA adapters it can hold at once.
        yields: What rows may yield: ``draw``, or names of ``POOLED``.
        is_causal: Whether tokens see only what is before them; if not, a prompt is computed whole,
            in one step, and nothing of it is shared or kept.
        max_draft_rows: Rows of a step in which any row has drafts, at most.
        media: What it takes of images; None: it takes none.
    """

    num_slots: int
    max_step_tokens: int
    max_length: int
    vocab_size: int
    depth: int
    groups: list[PageGroup]
    max_drafts: int = 0
    num_adapters: int = 0
    yields: tuple[str, ...] = ("draw",)
    is_causal: bool = True
    max_draft_rows: int = DRAFT_ROWS
    media: MediaLimits | None = None


class StepHandle(Protocol):
    """A launched step."""

    @property
    def step(self) -> int:
        """The plan's number."""
        ...


class Runner(Protocol):
    """Runs step plans on a device: all that the engine knows of tensors."""

    @property
    def limits(self) -> RunnerLimits:
        """What it can hold."""
        ...

    def launch(self, plan: StepPlan) -> StepHandle:
        """Queue ``plan`` on the device and return; at most ``depth`` may be unsettled.

        A plan with ``masked`` rows is drawn from by :meth:`sample`, before the next launch.
        """
        ...

    def sample(self, handle: StepHandle, masks: Masks) -> None:
        """Queue the draws of a launched step whose plan has ``masked`` rows."""
        ...

    def result(self, handle: StepHandle) -> StepResult:
        """Wait for a launched step and return what it drew."""
        ...

    def close(self) -> None:
        """Free the device."""
        ...
