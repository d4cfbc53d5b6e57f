"""What is written down of one call, so that another reader, or another process, can go on with it.

A journal says what the engine was asked and what came of it, in the order in which it came. With
that the call's completions are made again, and with them the very events that a client saw: what a
protocol writes depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headstock.errors import RequestError
from headstock.requests import FinishReason
from headstock.requests.token_ids import decode_ids, encode_ids
from headstock.server.completion import Completion, Delta
from headstock.server.errors import error_of, reason_of
from headstock.server.store import Store
from headstock.text import Tokenizer, compile_patterns
from headstock.wire.messages import Ended, Submit
from headstock.wire.requests import TokenLogprobs

KIND = "call"
"""Of the values in the store."""


class Keeping(msgspec.Struct, frozen=True, kw_only=True):
    """What a route wants to have written down of a call.

    Attributes:
        route: Which protocol writes its answer.
        name: Of the journal; it cannot be guessed.
        owner: Whose it is.
        body: What was asked, as JSON.
        call_id: Of the answer.
        created: Seconds since 1970.
        extra: What else the route needs to write the answer.
        is_stored: Whether it runs on without a client, and must be kept.
    """

    route: str
    name: str
    owner: str
    body: bytes
    call_id: str
    created: int
    extra: bytes = b""
    is_stored: bool = False


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a journal.

    Attributes:
        payer: Id of the payer that the call counts against.
        tenant: Whose the names of its requests are.
        names: What the caller calls each completion; None: nothing.
        adapters: Name of the LoRA adapter of each completion; "": none.
        submits: What the engine was asked, for each completion.
        model: Which model was asked: token ids mean nothing to another one.
        weight_version: What its weights were called.
    """

    keeping: Keeping
    model: str
    weight_version: str = ""
    payer: str
    tenant: str
    names: list[str | None]
    adapters: list[str]
    submits: list[Submit]


class Drew(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Tokens of a completion that counted."""

    index: int
    offset: int
    token_ids: list[int]
    cached_tokens: int = 0
    logprobs: TokenLogprobs | None = None


class Scored(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Logprobs of a completion's prompt, from the engine's ``attempt``."""

    index: int
    attempt: int
    logprobs: TokenLogprobs


class Over(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The end of a completion: as the engine had it, or for a reason of the server's own."""

    index: int
    ended: Ended | None = None
    reason: FinishReason | None = None


class Revived(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Another process has resumed the call."""


_encode = msgspec.msgpack.Encoder(enc_hook=encode_ids).encode
_decode_head = msgspec.msgpack.Decoder(Head, dec_hook=decode_ids).decode
_decode = msgspec.msgpack.Decoder(Drew | Scored | Over | Revived).decode


class Journal:
    """The journal of a call that this process serves, or has served.

    Args:
        store: Where it is.
        head: Its beginning, in the store already.
        num_open: Completions that have not ended.
    """

    __slots__ = (
        "_store",
        "client_knows",
        "completions",
        "deadline_s",
        "head",
        "is_lost",
        "num_open",
    )

    def __init__(self, store: Store, head: Head, num_open: int) -> None:
        self._store = store
        self.head = head
        self.num_open = num_open
        self.completions: list[Completion] = []
        """Of the call; empty once it is over."""
        self.deadline_s: float | None = None
        """When it is forgotten, unless a reader comes; None: it has one, or needs none. Seconds."""
        self.is_lost = False
        """Whether the store could not take all of it."""
        self.client_knows = False
        """Whether a client knows its name."""

    @property
    def key(self) -> tuple[str, str]:
        """Whose it is, and its name."""
        return self.head.keeping.owner, self.head.keeping.name

    def drew(
        self, completion: Completion, offset: int, token_ids: list[int],
        logprobs: TokenLogprobs | None,
    ) -> None:  # fmt: skip
        """Write down tokens that a completion has taken."""
        cached = completion.cached_tokens if offset == 0 else 0
        self._add(Drew(completion.index, offset, token_ids, cached, logprobs))

    def scored(self, completion: Completion, logprobs: TokenLogprobs) -> None:
        """Write down logprobs of a completion's prompt."""
        self._add(Scored(completion.index, completion.submit.attempt, logprobs))

    def ended(self, completion: Completion, ended: Ended) -> None:
        """Write down that the engine ended a completion."""
        self.num_open -= 1
        self._add(Over(completion.index, ended))

    def failed(self, completion: Completion, error: RequestError) -> None:
        """Write down that a completion ended here."""
        self.num_open -= 1
        self._add(Over(completion.index, None, reason_of(error)))

    def revived(self) -> None:
        """Write down that this process resumes it."""
        self._add(Revived())

    def parts(self) -> list[bytes]:
        """Return all that was written down; nothing if it could not be."""
        return self._store.parts(KIND, *self.key)

    def _add(self, record: Drew | Scored | Over | Revived) -> None:
        if not self.is_lost:
            self._store.add(KIND, *self.key, _encode(record))


def encode_head(head: Head) -> bytes:
    """Return a head as the store keeps it."""
    return _encode(head)


def decode_head(data: bytes) -> Head:
    """Return a head from the store.

    Raises:
        msgspec.DecodeError: It is of another version.
    """
    return _decode_head(data)


class Retelling:
    """The completions of a call, made again from its journal. Any one thread at a time.

    Args:
        head: Its beginning.
        tokenizer: None where only token ids are served.
    """

    def __init__(self, head: Head, tokenizer: Tokenizer | None) -> None:
        self.completions = [
            Completion(submit, index, tokenizer, compile_patterns(submit.params.stop_regex))
            for index, submit in enumerate(head.submits)
        ]
        for completion in self.completions:
            completion.weight_version = head.weight_version
        self.num_read = 1
        """Parts of the journal that were read, its head among them."""
        self.num_revivals = 0
        """Processes that went on with the call since it drew its last token."""
        self._attempts = [0] * len(self.completions)

    def feed(self, parts: Sequence[bytes]) -> list[Delta]:
        """Take what follows what was taken, and return what it makes.

        Raises:
            RequestError: Something is missing between.
        """
        deltas: list[Delta] = []
        for part in parts[self.num_read :]:
            self.num_read += 1
            deltas += self._take(_decode(part))
        return deltas

    def _take(self, record: Drew | Scored | Over | Revived) -> list[Delta]:
        match record:
            case Drew(index, offset, token_ids, cached, logprobs):
                self.num_revivals = 0
                completion = self.completions[index]
                if offset == 0:
                    completion.cached_tokens = cached
                return completion.take(offset, token_ids, logprobs)
            case Scored(index, attempt, logprobs):
                completion = self.completions[index]
                if attempt != self._attempts[index] and not completion.output_ids:
                    completion.forget_prompt_logprobs()
                self._attempts[index] = attempt
                completion.prompt_logprobs.add(logprobs)
            case Over(index, ended, reason):
                completion = self.completions[index]
                if ended is not None:
                    return [completion.finish(ended)]
                assert reason is not None, "a completion ended for no reason"
                return [completion.fail(error_of(reason))]
            case Revived():
                self.num_revivals += 1
                for completion in self.completions:
                    if not completion.output_ids:
                        completion.forget_prompt_logprobs()
        return []
