"""Calls that continue: for another reader, or in another process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from headstock.errors import RequestError
from headstock.server.adapters import AdapterBook
from headstock.server.completion import Completion, Delta
from headstock.server.delivery import Delivery
from headstock.server.errors import BusyError
from headstock.server.generation import Generation
from headstock.server.intake import Intake
from headstock.server.journal import Journal, Retelling
from headstock.server.journals import Journals
from headstock.server.model_card import ModelCard
from headstock.server.payers import Limits, Payer
from headstock.server.places import Places
from headstock.server.replay import Live


class Resumption:
    """Gives calls that have a journal readers, the first one and those that come after it.

    Args:
        journals: Where calls are written down.
        delivery: Gives readers their deltas.
        intake: Takes in what an earlier process left.
        adapters: Those that are served.
        places: Whose completions they are.
        card: The served model.
        unavailable: Returns why a call cannot continue now.
    """

    def __init__(
        self,
        journals: Journals,
        delivery: Delivery,
        intake: Intake,
        *,
        adapters: AdapterBook,
        places: Places,
        card: ModelCard,
        unavailable: Callable[[], BusyError],
    ) -> None:
        self._journals = journals
        self._delivery = delivery
        self._intake = intake
        self._adapters = adapters
        self._places = places
        self._card = card
        self._unavailable = unavailable

    @property
    def model(self) -> str:
        """What tells whether token ids of an earlier process mean the same."""
        return f"{self._card.name} {self._card.model_path} {self._card.vocab_size}"

    def read(
        self, completions: Sequence[Completion], journal: Journal, *, is_streamed: bool
    ) -> Generation:
        """Return the one that waits for ``completions``, of the call that ``journal`` is of."""
        generation = Generation(
            completions,
            is_streamed=is_streamed,
            abort=lambda gone: self._journals.left(journal, gone),
            merges=False,
        )
        self._journals.attach(journal, generation)
        return generation

    def reattach(self, journal: Journal, retelling: Retelling, seen: Sequence[Delta]) -> Generation:
        """Give a call another reader, in place of the one that it had.

        Args:
            journal: Of the call.
            retelling: Of it, up to ``seen``.
            seen: What the reader has already; it gets what came since.

        Raises:
            RequestError: It cannot continue any more.
        """
        parts = journal.parts()
        if not parts or (journal.num_open and not self._runs(journal)):
            raise self._unavailable()
        since = retelling.feed(parts)
        generation = self.read(retelling.completions, journal, is_streamed=True)
        generation.put(seen)
        generation.take()
        generation.put(since)
        self._delivery.swap(retelling.completions, generation)
        if journal.num_open:
            journal.completions = retelling.completions
        return generation

    async def revive(self) -> int:
        """Go on with what an earlier process left, once the engine is up; return how many calls."""
        return await self._journals.revive(self._revive)

    def _runs(self, journal: Journal) -> bool:
        return any(c.submit.id in self._delivery.live for c in journal.completions)

    def _revive(self, journal: Journal, retelling: Retelling) -> None:
        """Go on with a call.

        Raises:
            RequestError: Another model is served, or one of its adapters is not there any more.
        """
        head = journal.head
        if head.model != self.model:
            raise RequestError(
                f"The request was for another model than {self._card.name!r}, which is served now.",
                remedy="Send it again.",
                field="model",
                code="model_not_found",
            )
        now_s = asyncio.get_running_loop().time()
        adapters = [self._adapters.find(name) for name in head.adapters]
        account = self._places.account(Payer(head.payer, Limits(share=head.submits[0].share)))
        unread = Generation(
            retelling.completions, is_streamed=False, abort=lambda _: None, merges=False
        )
        lives: list[Live] = []
        for completion, rid, adapter in zip(
            retelling.completions, head.names, adapters, strict=True
        ):
            if completion.end is not None:
                continue
            adapter_id = "" if adapter is None else adapter.id
            completion.submit = msgspec.structs.replace(completion.submit, adapter=adapter_id)
            name = None if rid is None else (head.tenant, rid)
            lives.append(
                Live(completion, unread, account, name, now_s, now_s, adapter, journal=journal)
            )
        self._intake.revive(lives)
