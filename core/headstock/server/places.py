"""Who may enter: places for those that wait and run, turns for the refused, names in use.

Nothing here reads a clock or knows HTTP.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from headstock.errors import RequestError
from headstock.server.errors import BusyError
from headstock.server.payers import Account, Payer

WINDOW = 64
"""Ends that are looked back at."""
RECENT_S = 30.0
"""Older ends say nothing of how fast requests end now. Seconds."""
BOUNDS_S = (1.0, 60.0)
"""What Retry-After may say. Seconds."""


class EndRate:
    """The last ends of requests."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=WINDOW)

    def note(self, now_s: float) -> None:
        """Take note of an end, by the event loop's clock."""
        self._ends.append(now_s)

    def mean_s(self, now_s: float) -> float | None:
        """Return the mean time between two ends, lately; None: not known. Seconds."""
        recent = [end for end in self._ends if end > now_s - RECENT_S]
        return (now_s - recent[0]) / len(recent) if len(recent) > 1 else None

    def retry_after_s(self, num_live: int, now_s: float) -> float:
        """Return when a place is likely to be free. Seconds."""
        low, high = BOUNDS_S
        if len(self._ends) < 2:
            return low
        span = now_s - self._ends[0]
        return min(high, max(low, num_live / 2 * span / len(self._ends)))


EARLY_S = 0.5
"""How much earlier than its Retry-After a client may come back and still have its turn. Seconds."""
GRACE_S = 3.0
"""How long after its Retry-After a client's turn is kept. Seconds."""
HASTE = 0.7
"""Part of the expected wait that Retry-After says: too early costs a refusal, too late a place."""
SWEEP_S = 0.5
"""How often turns of clients that did not come back are dropped. Seconds."""
MAX_TICKETS = 4096


@dataclass(slots=True)
class Ticket:
    """A call that was refused and will be sent again.

    Attributes:
        account: Whose.
        count: Completions it asks for.
        since_s: When it was refused first. Seconds.
        back_s: When it is expected back. Seconds.
    """

    account: Account
    count: int
    since_s: float
    back_s: float

    def is_expected(self, now_s: float) -> bool:
        """Whether a place is kept for it now."""
        return self.back_s - EARLY_S <= now_s


class Places:
    """Hands out the places of those who wait and run, fairly.

    As long as there is a slot free for it, a call is taken. Past that, who was refused first is
    next: places are kept for calls that are expected back. While others are refused a payer has
    its share of the places at most, and who has used less than the others is taken all the same:
    for those some places are reserved.

    Args:
        num_queued: Completions that may wait.
        num_reserved: Places beyond these, for who has used less than others.
    """

    def __init__(self, num_queued: int, num_reserved: int) -> None:
        self.num_live = 0
        """Completions that wait or run."""
        self._num_queued = num_queued
        self._num_reserved = num_reserved
        self._num_places = num_queued
        self._ends = EndRate()
        self._accounts: dict[str, Account] = {}
        self._tickets: list[Ticket] = []
        """In the order of their first refusal."""
        self._swept_s = -math.inf
        self._mean_used = 0.0

    def account(self, payer: Payer) -> Account:
        """Return the account of ``payer``, with the limits that it has now."""
        account = self._accounts.get(payer.id)
        if account is None:
            account = self._accounts[payer.id] = Account(payer)
        account.limits = payer.limits
        return account

    def check(
        self, account: Account, count: int, *, num_slots: int, now_s: float, is_last: bool = True
    ) -> None:
        """Refuse a call for which there is no place now.

        Args:
            account: Whose call.
            count: Completions it asks for.
            num_slots: Completions that run at once.
            now_s: Clock reading. Seconds.
            is_last: Whether the places are taken next; else the call keeps its turn for a while.

        Raises:
            RequestError: It asks for more than there will ever be.
            BusyError: Code ``queue_full``; says when its turn comes.
        """
        self._num_places = num_places = self._num_queued + num_slots
        if count > num_places:
            raise RequestError(
                f"The request asks for {count} completions; the server has {num_places} places.",
                remedy="Send fewer prompts in a request, or a smaller n.",
                field="n",
                code="too_many_completions",
            )
        if now_s >= self._swept_s + SWEEP_S:
            self._sweep(now_s)
        mine = self._ticket_of(account, now_s)
        is_at_once = self.num_live + count <= num_slots
        if is_at_once or self._has_turn(account, count, mine, now_s):
            if mine is not None and is_last:
                self._tickets.remove(mine)
            return
        raise BusyError(
            f"The request queue is full: {self.num_live} of {num_places} places are taken, and"
            f" this request needs {count}.",
            code="queue_full",
            retry_after_s=self._note(account, count, mine, now_s),
        )

    def begin(self, account: Account, num_tokens: int, now_s: float) -> None:
        """Give a completion with a prompt of ``num_tokens`` a place."""
        self.num_live += 1
        account.begin(num_tokens, now_s)

    def end(self, account: Account, num_tokens: int, now_s: float) -> None:
        """Take the place of a completion back, for which ``num_tokens`` were generated."""
        self.num_live -= 1
        account.end(num_tokens, now_s)
        self._ends.note(now_s)

    def retry_after_s(self, now_s: float) -> float:
        """Return when a place is likely to be free, for who has no turn. Seconds."""
        return self._ends.retry_after_s(self.num_live, now_s)

    def _has_turn(self, account: Account, count: int, mine: Ticket | None, now_s: float) -> bool:
        """Return whether there is a place that no other client has more right to."""
        free = self._num_places - self.num_live
        if not self._tickets and count <= free:
            return True
        total = self._total_share(account)
        kept = self._num_kept(mine, total, now_s)
        is_alone = total == account.limits.share
        fits = is_alone or self._fits(account, account.held, count, total)
        if fits and count + kept <= free:
            return True
        if not self._mean_used:
            return False
        # The less it has used, the more of the reserved places it may take.
        unused = 1.0 - account.used(now_s) / self._mean_used
        reserved = int(self._num_reserved * unused)
        return reserved > 0 and count + min(kept, max(0, free)) <= free + reserved

    def _num_kept(self, mine: Ticket | None, total: int, now_s: float) -> int:
        """Return how many places are kept for those who were refused before ``mine``."""
        kept = 0
        held: dict[str, int] = {}
        for ticket in self._tickets:
            if ticket is mine:
                break
            if not ticket.is_expected(now_s):
                continue
            account = ticket.account
            holds = held.get(account.id, account.held)
            if self._fits(account, holds, ticket.count, total):
                held[account.id] = holds + ticket.count
                kept += ticket.count
        return kept

    def _fits(self, account: Account, held: int, count: int, total: int) -> bool:
        """Return whether ``account`` may hold ``count`` places more while others are refused.

        A call larger than its share is served all the same, when it has its turn and no other.
        """
        return held == 0 or held + count <= self._num_places * account.limits.share / total

    def _total_share(self, account: Account) -> int:
        """Return the sum of the shares of ``account`` and all that hold or want places."""
        contenders = {account.id: account.limits.share}
        for ticket in self._tickets:
            contenders[ticket.account.id] = ticket.account.limits.share
        for each in self._accounts.values():
            if each.held:
                contenders[each.id] = each.limits.share
        return sum(contenders.values())

    def _ticket_of(self, account: Account, now_s: float) -> Ticket | None:
        """Return the first call of ``account`` that is expected back: this is taken for it."""
        for ticket in self._tickets:
            if ticket.account is account and ticket.is_expected(now_s):
                return ticket
        return None

    def _note(
        self,
        account: Account,
        count: int,
        mine: Ticket | None,
        now_s: float,
    ) -> float:
        """Note that a call was refused; returns when it should come back. Seconds."""
        own = others = 0
        for ticket in self._tickets:
            if ticket is mine:
                break
            if ticket.account is account:
                own += ticket.count
            else:
                others += ticket.count
        # However many another payer sends, of those that come before this a part is its own.
        total = self._total_share(account)
        ahead = min(own + others, own * total / account.limits.share + total)
        ahead += count - max(0, self._num_places - self.num_live)
        low, high = BOUNDS_S
        end_s = self._ends.mean_s(now_s)
        wait_s = low if end_s is None else HASTE * ahead * end_s
        retry_after_s = float(math.ceil(min(high, max(low, wait_s))))
        if mine is not None:
            mine.back_s, mine.count = now_s + retry_after_s, count
        elif len(self._tickets) < MAX_TICKETS:
            self._tickets.append(Ticket(account, count, now_s, now_s + retry_after_s))
        return retry_after_s

    def _sweep(self, now_s: float) -> None:
        """Forget who did not come back, and accounts of no more use; find the mean use."""
        self._swept_s = now_s
        self._tickets = [each for each in self._tickets if now_s <= each.back_s + GRACE_S]
        waiting = {ticket.account.id for ticket in self._tickets}
        uses: list[float] = []
        for account in list(self._accounts.values()):
            used = account.used(now_s)
            if used >= 1.0:
                uses.append(used)
            elif not account.held and not account.has_quotas and account.id not in waiting:
                del self._accounts[account.id]
        self._mean_used = sum(uses) / len(uses) if uses else 0.0


Name = tuple[str, str]
"""Whose it is, and what its owner calls it."""


class Names:
    """Names in use. One owner uses a name for one request, whose completions all have it."""

    def __init__(self) -> None:
        self._ids: dict[Name, list[str]] = {}

    def check(self, owner: str, rids: Sequence[str]) -> None:
        """Refuse a call that uses a name twice, or one that is in use.

        Raises:
            RequestError: Naming it.
        """
        seen: set[str] = set()
        for rid in rids:
            if (owner, rid) in self._ids or rid in seen:
                raise RequestError(
                    f"rid {rid!r} is in use.", remedy="Give each request its own.", field="rid"
                )
            seen.add(rid)

    def add(self, name: Name, request_id: str) -> None:
        """Note that ``request_id`` has ``name``."""
        self._ids.setdefault(name, []).append(request_id)

    def remove(self, name: Name, request_id: str) -> None:
        """Note that ``request_id`` is over."""
        ids = self._ids[name]
        ids.remove(request_id)
        if not ids:
            del self._ids[name]

    def ids(self, rid: str, owner: str | None) -> list[str]:
        """Return the ids of the requests that ``owner`` named ``rid``, exactly.

        Args:
            rid: The name.
            owner: Whose; None: of all owners.
        """
        if owner is None:
            return [i for (_, name), ids in self._ids.items() if name == rid for i in ids]
        return list(self._ids.get((owner, rid), ()))
