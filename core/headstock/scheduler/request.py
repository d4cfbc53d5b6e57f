"""One request while it lives in the engine."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from headstock.cache import NO_TABLES, Tables
from headstock.requests import SamplingParams
from headstock.scheduler.story import Notes
from headstock.wire.media import MediaItem, MediaSpan
from headstock.wire.steps import Admit

NEVER = 1 << 62
NO_IDS: list[int] = []
NO_BIASES: list[float] = []


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, the tokens drawn for it, and where it stands.

    There is no prefill or decode state: tokens up to ``computed`` have their keys and values in
    its pages once the launched steps have run, the others do not.

    Attributes:
        id: The API process's name for it.
        attempt: Which sending of it this is.
        arrival: Its place in the order of arrival, unique.
        prompt: Prompt token ids.
        outputs: Drawn token ids that have settled, earlier attempts' included.
        max_outputs: It is over when it has this many.
        draw_limit: The same, but one at least: that its last prompt row draws marks its end.
        yields: What its last prompt row yields, and all that follow: ``DRAW`` or one of ``POOLED``.
        score_next: First prompt position whose logprob is still wanted; past the prompt: none.
        num_drafts: Tokens that may be drafted for it in a step.
        last_begin: Its length when its last output is drawn, at most: no row begins later.
        kv_limit: What its pages must ever hold. Tokens.
        page_ids: Digests of its full pages, as far as they have been needed.
        awaited: Digest of a page in the making that it waits for.
        slot: Its place in the runner's table; -1 while it waits.
        adapter: Generation id of its LoRA adapter; "": none.
        payer: What it counts against, where the policy shares among those.
        share: Weight of that one's requests.
        turn: Its place in the order of fair shares; -1: it has none yet.
        clock: Its payer's clock when it arrived; see the policy.
        seat: Of those of one payer with the same turn and clock, which is first.
        user: Who of the payer's sends it.
        user_turn: Its place among the payer's users.
        user_clock: Its user's clock when it arrived.
        adapter_place: Place of it on the device while the request runs; 0: none.
        host_end: Tokens the host knew when it was admitted; from there on the device feeds itself.
        computed: Tokens whose keys and values the launched steps write. Upper bound: steps in
            flight may find that drafts were wrong, and it shrinks when they settle.
        drawn: Outputs it has once the launched steps have run. Lower bound: of each step in
            flight one is certain, and it grows by what more a step has drawn when that settles.
        tables: Its page tables.
        pages: That of the first group of tokens.
        num_shared: Leading entries of ``full`` groups that rows with the same prefix share.
        cuts: Where chunks end to keep a state, the next one last. Tokens.
        media: Images of the prompt, in its order.
        is_masked: A grammar or a list says which ids may be drawn for it.
        is_private: Its further pages do not enter the tree.
        is_turning: Its state entries change before its next row.
        look_at: Number of outputs with which it is over, or its next page is full.
        last_step: Last step launched with it.
        query: Tokens that the step being planned computes.
        score: Prompt logprobs that the step being planned yields.
        num_ready: Drafts that it has for its next row, as far as steps have settled.
        draft_gain: Of such drafts, how many were right lately. A mean.
        num_drafted: Drafts of it that steps have verified.
        num_accepted: Of these, right.
        overtaken_at: Count of admissions after which it goes first; see the policies.
        notes: What is noted for its story; None: it is not wanted.
    """

    id: str
    attempt: int
    arrival: int
    prompt: array[int]
    outputs: list[int]
    params: SamplingParams
    stop_ids: list[int]
    namespace: str
    priority: int
    logprobs: int
    asked_ids: list[int]
    max_outputs: int
    draw_limit: int
    yields: int
    score_next: int
    num_drafts: int
    last_begin: int
    kv_limit: int
    submitted_s: float
    media: list[MediaItem] = field(default_factory=list[MediaItem])
    is_masked: bool = False
    page_ids: list[bytes] = field(default_factory=list[bytes])
    awaited: bytes | None = None
    slot: int = -1
    adapter: str = ""
    payer: str = ""
    share: int = 1
    turn: int = -1
    clock: int = -1
    seat: int = -1
    user: str = ""
    user_turn: int = -1
    user_clock: int = -1
    adapter_place: int = 0
    host_end: int = 0
    computed: int = 0
    drawn: int = 0
    tables: Tables = NO_TABLES
    pages: list[int] = field(default_factory=list[int])
    num_shared: int = 0
    cuts: list[int] = field(default_factory=list[int])
    is_private: bool = False
    is_turning: bool = False
    look_at: int = 0
    last_step: int = 0
    query: int = 0
    score: int = 0
    num_ready: int = 0
    draft_gain: float = 0.0
    num_drafted: int = 0
    num_accepted: int = 0
    overtaken_at: int = 0
    cached_tokens: int = -1
    num_retractions: int = 0
    queue_s: float = 0.0
    is_over: bool = False
    is_failed: bool = False
    notes: Notes | None = None

    @property
    def num_known(self) -> int:
        """Tokens that the host knows: the prompt and the settled outputs."""
        return len(self.prompt) + len(self.outputs)

    def draw_query(self, width: int) -> int:
        """Return how many tokens its next row from the device computes, ``width`` at most.

        A row that begins later than ``last_begin`` would follow the last output: it is done then,
        so the bound need not count it. Its drafts end where its pages must.
        """
        room = self.kv_limit - min(self.computed, self.last_begin)
        return min(width, 1 + self.num_drafts, room)

    @property
    def begin_min(self) -> int:
        """Where the row being planned begins, at least, whatever drafts prove wrong."""
        return min(self.computed - self.query, len(self.prompt) + self.drawn - 2)

    @property
    def kv_max(self) -> int:
        """Its length once the row being planned is written, at most."""
        return min(self.computed, self.last_begin + self.query)

    def tokens(self, begin: int, end: int) -> list[int]:
        """Return the known tokens at positions [begin, end), fewer where they are not known."""
        num_prompt = len(self.prompt)
        if end <= num_prompt:
            return self.prompt[begin:end].tolist()
        outputs = self.outputs[max(0, begin - num_prompt) : end - num_prompt]
        return self.prompt[begin:num_prompt].tolist() + outputs

    def admit_facts(self) -> Admit:
        """Return what the runner must know of it when it enters ``slot``."""
        params = self.params
        has_history = params.has_penalties or self.num_drafts > 0
        history = self.tokens(0, self.num_known) if has_history else NO_IDS
        return Admit(
            slot=self.slot,
            length=self.computed,
            num_outputs=len(self.outputs),
            max_outputs=self.draw_limit,
            min_outputs=params.min_new_tokens,
            stop_ids=self.stop_ids,
            temperature=0.0 if params.is_greedy else params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            seed=params.sampling_seed or 0,
            bias_ids=list(params.logit_bias) if params.logit_bias else NO_IDS,
            biases=list(params.logit_bias.values()) if params.logit_bias else NO_BIASES,
            history=history,
            num_prompt=len(self.prompt) if history else 0,
            logprobs=self.logprobs,
            asked_ids=self.asked_ids,
            adapter=self.adapter_place,
            drafts=self.num_drafts > 0,
            media=[
                MediaSpan(item.begin, item.count, item.grid, item.time, item.follows)
                for item in self.media
            ],
        )
