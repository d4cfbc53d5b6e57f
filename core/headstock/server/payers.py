"""Payers: what the account that a request counts against may use, holds and has used."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass

from headstock.errors import ConfigError
from headstock.server.errors import BusyError

LARGEST = 2**31 - 1
OPTIONS = ("share", "requests_per_minute", "tokens_per_minute", "concurrent")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the holder of a key may use.

    Attributes:
        share: Weight of its requests and tokens where several want more than there is.
        requests_per_minute: Completions that may begin in a minute; None: any number.
        tokens_per_minute: Prompt and output tokens in a minute; None: any number.
        concurrent: Completions that may wait or run at once; None: any number.
    """

    share: int = 1
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Payer:
    """Who requests count against: the holder of a key, or where there are none an address.

    Attributes:
        id: Unique.
        limits: What it may use.
        user: Who of the holder's sends the request, where it does not say: its address.
    """

    id: str
    limits: Limits = NO_LIMITS
    user: str = ""


NAMELESS = Payer("")
"""What requests of this process itself count against."""


def payer_at(address: str | None) -> Payer:
    """Return the payer that requests without a key count against.

    Of an IPv6 address the first 64 bits count: a client that has one address there has all of them.
    """
    if not address:
        return NAMELESS
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return Payer(f"at {address}")
    if parsed.version == 6:
        return Payer(f"at {ipaddress.ip_network((parsed, 64), strict=False)}")
    return Payer(f"at {parsed}")


def read_limits(text: str, holder: str) -> Limits:
    """Return the limits written after a key, such as ``share=2 concurrent=8``.

    Args:
        text: Words of the form ``OPTION=NUMBER``.
        holder: Whose key it is, for messages.

    Raises:
        ConfigError: A word is no option, or its number is none that is allowed.
    """
    given: dict[str, int] = {}
    for word in text.split():
        name, equals, number = word.partition("=")
        if not equals or name not in OPTIONS or name in given:
            raise ConfigError(
                f"The API key of {holder!r} is followed by {word!r}.",
                remedy=f"Write each of {', '.join(OPTIONS)} once at most, as OPTION=NUMBER.",
            )
        if not (number.isascii() and number.isdigit() and 1 <= int(number) <= LARGEST):
            raise ConfigError(
                f"The API key of {holder!r} has {name}={number}.",
                remedy=f"Set {name} to a whole number from 1 to {LARGEST}.",
            )
        given[name] = int(number)
    return Limits(**given)


MEMORY_S = 60.0
"""What was used longer ago than this hardly counts for fairness. Seconds."""
MINUTE_S = 60.0


class Bucket:
    """Something of which so much may be used a minute; a minute's worth may be used at once."""

    def __init__(self) -> None:
        self._used = 0.0
        self._at_s = 0.0

    def wait_s(self, count: float, limit: int, now_s: float) -> float:
        """Return when ``count`` more may be used; 0: now. Seconds.

        More than a minute's worth may be used when nothing has been.
        """
        over = self._left(limit, now_s) + min(count, limit) - limit
        return 0.0 if over <= 1e-6 else over * MINUTE_S / limit

    def use(self, count: float, limit: int, now_s: float) -> None:
        """Note that ``count`` were used."""
        self._used = self._left(limit, now_s) + count
        self._at_s = now_s

    def _left(self, limit: int, now_s: float) -> float:
        """Return how much of what was used still counts."""
        return max(0.0, self._used - (now_s - self._at_s) * limit / MINUTE_S)


class Account:
    """What one payer holds and has used.

    Attributes:
        held: Completions of its that wait or run.
    """

    def __init__(self, payer: Payer) -> None:
        self.id = payer.id
        self.limits: Limits = payer.limits
        self.held = 0
        self._requests = Bucket()
        self._tokens = Bucket()
        self._used = 0.0
        self._used_at_s = 0.0

    def used(self, now_s: float) -> float:
        """Return the tokens that it used lately, less those longer ago. Tokens a share."""
        age_s = max(0.0, now_s - self._used_at_s)
        return self._used * math.exp(-age_s / MEMORY_S) / self.limits.share

    @property
    def has_quotas(self) -> bool:
        """Whether its key has any: what it used must not be forgotten."""
        limits = self.limits
        return limits.requests_per_minute is not None or limits.tokens_per_minute is not None

    def check_quotas(self, count: int, num_tokens: int, now_s: float) -> None:
        """Refuse ``count`` completions that are past what its key may use.

        Args:
            count: Completions.
            num_tokens: Prompt tokens of all of them, as far as they are known.
            now_s: Clock reading. Seconds.

        Raises:
            BusyError: Code ``rate_limit_exceeded``; says which quota, and when to try again.
        """
        limits = self.limits
        most = limits.concurrent
        if most is not None and self.held + count > most:
            raise _exceeded(f"{most} completions at once", f"{self.held} wait or run", 1.0)
        most = limits.requests_per_minute
        if most is not None:
            wait_s = self._requests.wait_s(count, most, now_s)
            if wait_s:
                raise _exceeded(f"{most} requests a minute", "so many were sent", wait_s)
        most = limits.tokens_per_minute
        if most is not None:
            wait_s = self._tokens.wait_s(num_tokens, most, now_s)
            if wait_s:
                raise _exceeded(f"{most} tokens a minute", "so many were used", wait_s)

    def begin(self, num_tokens: int, now_s: float) -> None:
        """Note that a completion of a prompt of ``num_tokens`` begins."""
        self.held += 1
        if self.limits.requests_per_minute is not None:
            self._requests.use(1, self.limits.requests_per_minute, now_s)
        self._use(num_tokens, now_s)

    def end(self, num_tokens: int, now_s: float) -> None:
        """Note that a completion is over, for which ``num_tokens`` were generated."""
        self.held -= 1
        self._use(num_tokens, now_s)

    def _use(self, num_tokens: int, now_s: float) -> None:
        if self.limits.tokens_per_minute is not None:
            self._tokens.use(num_tokens, self.limits.tokens_per_minute, now_s)
        self._used = self.used(now_s) * self.limits.share + num_tokens
        self._used_at_s = now_s


def _exceeded(allowed: str, but: str, wait_s: float) -> BusyError:
    return BusyError(
        f"The key allows {allowed}; {but}.",
        code="rate_limit_exceeded",
        retry_after_s=max(1.0, wait_s),
    )
