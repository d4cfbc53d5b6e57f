"""The way in: who may enter is checked, and what enters is sent and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from headstock.errors import RequestError
from headstock.server.adapters import AdapterBook
from headstock.server.delivery import Delivery
from headstock.server.observer import Observer
from headstock.server.payers import Account, Payer
from headstock.server.places import Names, Places
from headstock.server.records import CallRecord, RecordBook
from headstock.server.replay import Live
from headstock.server.request import GenerateRequest
from headstock.wire.messages import ToEngine


class Intake:
    """Lets completions in.

    Args:
        send: Sends to the engine.
        delivery: Takes over what was sent.
        adapters: Counts the users of each adapter.
        places: How many may be under way, and whose they are.
        names: Names of requests that are in use.
        observer: Hears of each that enters.
        records: Where what became of requests is kept.
    """

    def __init__(
        self,
        send: Callable[[ToEngine], None],
        delivery: Delivery,
        *,
        adapters: AdapterBook,
        places: Places,
        names: Names,
        observer: Observer,
        records: RecordBook,
    ) -> None:
        self._send = send
        self._delivery = delivery
        self._adapters = adapters
        self._places = places
        self._names = names
        self._observer = observer
        self._records = records

    def check(
        self,
        requests: Sequence[GenerateRequest],
        owner: str,
        payer: Payer,
        num_slots: int,
        num_tokens: int | None = None,
    ) -> Account:
        """Return the account that a call counts against.

        Args:
            requests: Of the call.
            owner: Whose names they have.
            payer: Who pays.
            num_slots: Completions that the engine runs at once.
            num_tokens: Of all prompts; None: they are not tokens yet, and it is asked again.

        Raises:
            BusyError: There is no room, or a quota is used up.
            RequestError: A name is in use.
        """
        num_completions = sum(request.params.n for request in requests)
        now_s = asyncio.get_running_loop().time()
        account = self._places.account(payer)
        account.check_quotas(num_completions, num_tokens or 0, now_s)
        self._places.check(
            account,
            num_completions,
            num_slots=num_slots,
            now_s=now_s,
            is_last=num_tokens is not None,
        )
        self._names.check(owner, [each.rid for each in requests if each.rid is not None])
        return account

    def send(self, live: Live, record: CallRecord | None) -> None:
        """Send a completion's request to the engine.

        Raises:
            RequestError: It cannot be sent.
        """
        self._adapters.enter(live.adapter)
        try:
            self._send(live.completion.submit)
        except RequestError:
            self._adapters.leave(live.adapter)
            raise
        if record is not None:
            now_s = asyncio.get_running_loop().time()
            live.record = self._records.add(record, live.completion, live.sent_s, now_s)
        self._delivery.add(live)
        self._count(live)

    def revive(self, lives: Sequence[Live]) -> None:
        """Go on with completions of an earlier process: the engine is sent them by the delivery."""
        for live in lives:
            self._adapters.enter(live.adapter)
            self._count(live)
        self._delivery.revive(lives)

    def _count(self, live: Live) -> None:
        """Give a completion its place."""
        num_tokens = len(live.completion.submit.prompt_ids)
        self._places.begin(live.account, num_tokens, live.sent_s)
        self._observer.accepted(num_tokens)
