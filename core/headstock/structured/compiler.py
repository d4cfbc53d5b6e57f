"""The engine's way to compiled grammars: they are tried in a process of their own, then kept.

A grammar that passes there within its limits is compiled once more in this process, in a thread:
what a library keeps of a grammar cannot be sent. Nothing starts before the first grammar comes.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headstock.errors import HeadstockError, RequestError
from headstock.requests.grammar import Grammar
from headstock.structured.link import COMMAND, CompileLink
from headstock.structured.messages import Compiled, CompileLimits, Setup
from headstock.structured.provider import (
    CompiledGrammar,
    GrammarProvider,
    Matcher,
    ProviderError,
    Vocabulary,
    open_provider,
)

log = logging.getLogger(__name__)

MIN_ENTRY_BYTES = 16 * 1024
"""What a kept grammar counts for at least. Bytes."""
CLOSE_S = 5.0


@dataclass(slots=True, eq=False)
class Ticket:
    """A grammar being compiled, or what came of it; set by another thread, ``is_done`` last."""

    grammar: Grammar
    compiled: CompiledGrammar | None = None
    error: RequestError | None = None
    size_bytes: int = MIN_ENTRY_BYTES
    is_done: bool = False


class GrammarCompiler:
    """Compiles grammars beside the engine, and keeps the latest.

    One thread, the engine's, calls the methods.

    Args:
        place: ``module:function`` of the provider.
        read_vocabulary: Called when the first grammar comes, in another thread.
        limits: For each grammar.
        cache_bytes: What the kept grammars may take together.
        command: Starts the process that compiles.
    """

    def __init__(
        self,
        place: str,
        read_vocabulary: Callable[[], Vocabulary],
        limits: CompileLimits,
        *,
        cache_bytes: int,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.place = place
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[tuple[str, str], Ticket] = OrderedDict()
        self._pending: dict[tuple[str, str], Ticket] = {}
        self._bench = _Bench(place, read_vocabulary, limits, command)

    def start(self, grammar: Grammar) -> Ticket:
        """Return the ticket of ``grammar``, which may be done already."""
        key = grammar.key
        self._keep_done()
        ticket = self._kept.get(key)
        if ticket is not None:
            self._kept.move_to_end(key)
            return ticket
        ticket = self._pending.get(key)
        if ticket is None:
            ticket = self._pending[key] = Ticket(grammar)
            self._bench.put(ticket)
        return ticket

    @property
    def eos_ids(self) -> list[int]:
        """Ids that a grammar takes for the end of the output; none before the first grammar."""
        return self._bench.eos_ids

    def masks(self, matchers: Sequence[Matcher]) -> list[bytearray]:
        """Return which ids may come next; see :meth:`GrammarProvider.masks`.

        Raises:
            ProviderError: The provider failed, or returned something else.
        """
        provider = self._bench.provider
        assert provider is not None, "there are matchers and no provider"
        try:
            masks = provider.masks(matchers)
        except Exception as error:  # the boundary to foreign code
            raise ProviderError(f"the grammar provider raised {error!r}") from error
        sizes = {len(mask) for mask in masks}
        if len(masks) != len(matchers) or sizes != {self._bench.mask_bytes}:
            wanted = f"{len(matchers)} of {self._bench.mask_bytes} bytes"
            raise ProviderError(f"the grammar provider made masks of {sizes} bytes, not {wanted}")
        return masks

    @property
    def kept_bytes(self) -> int:
        """What the kept grammars take. Bytes."""
        self._keep_done()
        return sum(ticket.size_bytes for ticket in self._kept.values())

    def close(self) -> None:
        """End the process and the threads. May be called twice."""
        self._bench.close()

    def _keep_done(self) -> None:
        """Move what is done to what is kept, within the bound; refusals are kept, too."""
        for key, ticket in list(self._pending.items()):
            if ticket.is_done:
                del self._pending[key]
                if ticket.error is None or ticket.error.code != "engine_unavailable":
                    self._kept[key] = ticket
        total = sum(ticket.size_bytes for ticket in self._kept.values())
        while total > self._cache_bytes:
            _, oldest = self._kept.popitem(last=False)
            total -= oldest.size_bytes


class _Bench:
    """The thread that opens the provider and its process, and sends tickets there."""

    def __init__(
        self,
        place: str,
        read_vocabulary: Callable[[], Vocabulary],
        limits: CompileLimits,
        command: Sequence[str],
    ) -> None:
        self._place = place
        self._read_vocabulary = read_vocabulary
        self._limits = limits
        self._command = command
        self._orders: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._flying: dict[int, Ticket] = {}
        self._setup: Setup | None = None
        self._link: CompileLink | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self.provider: GrammarProvider | None = None
        self.eos_ids: list[int] = []
        self.mask_bytes = 0

    def put(self, ticket: Ticket) -> None:
        """Have ``ticket`` compiled."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)
            self._thread.start()
        self._orders.put(ticket)

    def close(self) -> None:
        """End the process and the thread."""
        if self._thread is not None and not self._is_closed:
            self._is_closed = True
            self._orders.put(None)
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        call = 0
        while (ticket := self._orders.get()) is not None:
            call += 1
            self._flying[call] = ticket
            try:
                self._opened_link().send(call, ticket.grammar)
            except (HeadstockError, OSError) as error:
                log.warning("No grammar can be compiled: %s", error)
                self._fail(call, _unavailable(error))
            except Exception as error:  # the boundary to foreign code: a tokenizer, a provider
                log.exception("No grammar can be compiled: the grammar provider failed")
                self._fail(call, _unavailable(f"the grammar provider raised {error!r}"))
        if self._link is not None:
            self._link.close()

    def _opened_link(self) -> CompileLink:
        """Return the way to the process, started (again) if need be."""
        if self._setup is None:
            vocabulary = self._read_vocabulary()
            self.provider = open_provider(self._place, vocabulary)
            self.eos_ids = vocabulary.eos_ids
            self.mask_bytes = vocabulary.mask_bytes
            self._setup = Setup(
                self._place,
                vocabulary.tokens,
                vocabulary.special_ids,
                vocabulary.eos_ids,
                self._limits,
            )
        if self._link is not None and self._link.is_lost:
            self._link.close()
            self._link = None
        if self._link is None:
            self._link = CompileLink(self._setup, self._take, self._lose, self._command)
        return self._link

    def _take(self, answer: Compiled) -> None:
        """Finish a ticket. In the link's thread."""
        ticket = self._flying.pop(answer.call, None)
        if ticket is None:
            return
        if answer.problem:
            ticket.error = RequestError(answer.problem, remedy=answer.remedy, code=answer.code)
        else:
            assert self.provider is not None, "an answer came before the provider"
            try:
                ticket.compiled = self.provider.compile(answer.text)
            except RequestError as error:
                ticket.error = error
            except Exception as error:  # the boundary to foreign code
                log.exception("The grammar provider failed at a grammar that it had tried")
                ticket.error = _unavailable(f"the grammar provider raised {error!r}")
            ticket.size_bytes = max(MIN_ENTRY_BYTES, answer.size_bytes)
        ticket.is_done = True

    def _lose(self) -> None:
        """Fail what the process took with it. In the link's thread."""
        for call in list(self._flying):
            self._fail(call, _unavailable("its process ended"))

    def _fail(self, call: int, error: RequestError) -> None:
        ticket = self._flying.pop(call, None)
        if ticket is not None:
            ticket.error = error
            ticket.is_done = True


def _unavailable(reason: object) -> RequestError:
    problem = reason.problem if isinstance(reason, HeadstockError) else reason
    return RequestError(
        f"The grammar could not be compiled now: {problem}.",
        remedy="Send the request again.",
        code="engine_unavailable",
    )
