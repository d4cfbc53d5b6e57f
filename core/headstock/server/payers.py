"""Whom a request counts against, and what that one may use."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from headstock.errors import ConfigError

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
    """Whom requests count against: the holder of a key, or where there are none an address.

    Attributes:
        id: Unique.
        limits: What it may use.
        user: Who of the holder's sends the request, where it does not say: its address.
    """

    id: str
    limits: Limits = NO_LIMITS
    user: str = ""


NAMELESS = Payer("")
"""Whom requests of this process itself count against."""


def payer_at(address: str | None) -> Payer:
    """Return whom requests without a key count against.

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
