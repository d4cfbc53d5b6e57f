"""API keys: who holds them, and what their holders may do.

They are kept as digests and compared in constant time. A key is written as ``KEY``, or as
``NAME:ROLE:KEY`` with the role ``user`` or ``admin``; after it, and a space, may come what its
holder may use, as in ``NAME:ROLE:KEY share=2 concurrent=8``.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headstock.config.schema import ServerSettings
from headstock.errors import ConfigError
from headstock.server.payers import NAMELESS, NO_LIMITS, Limits, Payer, payer_at, read_limits

MIN_KEY_LENGTH = 8
Role = Literal["user", "admin"]
_NAMED = re.compile(r"(?P<name>[\w.-]{1,64}):(?P<role>user|admin):(?P<key>.*)")
_OPTIONS = re.compile(r"(?: +[a-z_]+=\S*)+ *$")
_SENDABLE = re.compile(r"[\x21-\x7e]+")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        name: What logs call its holder.
        role: What its holder may do.
        digest: Of the key itself, which is not kept.
        limits: What its holder may use.
    """

    name: str
    role: Role
    digest: bytes
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request.

    Attributes:
        name: For logs.
        is_admin: Whether admin routes are open to it.
        tenant: Prefix of its cache namespaces; its request names are its own, too.
        payer: Whose account its requests count against.
        owner: Whose what it stores is: the same after a restart with --state-dir, and with other
            keys beside it. "": anybody's, where no key is needed.
    """

    name: str
    is_admin: bool
    tenant: str
    payer: Payer = NAMELESS
    owner: str = ""


class KeyRing:
    """The keys that open the server; none: it is open.

    Args:
        keys: All of them.
        secret: Random bytes, of which the names of owners are made; None: new ones.
    """

    def __init__(self, keys: Sequence[Key], secret: bytes | None = None) -> None:
        self._secret = secrets.token_bytes(16) if secret is None else secret
        self._keys = list(keys)

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._keys

    def replace(self, other: KeyRing) -> None:
        """Take the keys of ``other``; those that both have keep their cache namespaces."""
        self._keys = list(other._keys)

    def holder(self, owner: str) -> Caller | None:
        """Return whose an owner's name is; None: its key is not one of ours any more."""
        if self.is_open:
            return self.caller("") if owner == "" else None
        found = [self._caller(key) for key in self._keys]
        return next((caller for caller in found if caller.owner == owner), None)

    def caller(self, authorization: str, address: str | None = None) -> Caller | None:
        """Return who sends a request, or None if its key is not one of ours.

        With one key or none all callers share their cached prefixes; with several, the holder of
        one cannot time what the holder of another has cached.

        Args:
            authorization: The header: ``Bearer KEY``.
            address: Where it comes from; None: not known.
        """
        if self.is_open:
            return Caller("anyone", True, "", payer_at(address))
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip())
        found: Key | None = None
        for known in self._keys:
            if hmac.compare_digest(known.digest, digest):  # all are compared, whatever matched
                found = known
        if found is None or scheme.lower() != "bearer":
            return None
        return self._caller(found, address or "")

    def _caller(self, found: Key, address: str = "") -> Caller:
        owner = hmac.new(self._secret, found.digest, hashlib.sha256).hexdigest()[:32]
        tenant = owner[:16] + "/" if len(self._keys) > 1 else ""
        payer = Payer(f"{found.name} {found.digest.hex()[:16]}", found.limits, address)
        return Caller(found.name, found.role == "admin", tenant, payer, owner)


def read_keys(settings: ServerSettings, secret: bytes | None = None) -> KeyRing:
    """Return the keys that are set, in the environment or in a file.

    Args:
        settings: Where they are.
        secret: Of which the names of owners are made; None: a new one.

    Raises:
        ConfigError: The file cannot be read, or a key is too short or cannot be sent.
    """
    lines = [key.strip() for key in settings.api_keys if key.strip()]
    if settings.api_key_file is not None:
        lines += _read_file(Path(settings.api_key_file))
    keys: dict[bytes, Key] = {}
    for line in lines:
        key = _read_key(line, len(keys) + 1)
        keys.setdefault(key.digest, key)
    return KeyRing(list(keys.values()), secret)


def key_reader(settings: ServerSettings, ring: KeyRing) -> Callable[[], None]:
    """Return what reads the keys again into ``ring``; keys that cannot be read change nothing."""

    def reload() -> None:
        try:
            ring.replace(read_keys(settings))
        except ConfigError as error:
            log.error("The API keys stay as they are: %s", error.problem)
            return
        log.info("The API keys were read again")

    return reload


def bare_key(line: str) -> str:
    """Return the key of a line that may name its holder: what a client sends."""
    line = _OPTIONS.sub("", line)
    named = _NAMED.fullmatch(line)
    return named["key"] if named else line


def _read_file(path: Path) -> list[str]:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The API key file {path} cannot be read: {error}.", remedy="Check --api-key-file."
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("The API key file %s is open to other users: `chmod 600` it.", path)
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise ConfigError(
            f"The API key file {path} holds no key.",
            remedy="Write one key a line, or leave --api-key-file out.",
        )
    return lines


def _read_key(line: str, number: int) -> Key:
    """Return the key that ``line`` gives; messages never show it."""
    options = _OPTIONS.search(line)
    if options is not None:
        line = line[: options.start()]
    named = _NAMED.fullmatch(line)
    name = named["name"] if named else f"key {number}"
    role: Role = "admin" if named and named["role"] == "admin" else "user"
    key = named["key"] if named else line
    if len(key) < MIN_KEY_LENGTH:
        raise ConfigError(
            f"An API key has {len(key)} characters; at least {MIN_KEY_LENGTH} are needed.",
            remedy="Use longer keys, such as 32 random hexadecimal digits.",
        )
    if not _SENDABLE.fullmatch(key):
        raise ConfigError(
            f"The API key of {name!r} has characters that no HTTP header can carry.",
            remedy="Use letters, digits and signs of ASCII, without spaces.",
        )
    return Key(name, role, _digest(key), read_limits(options[0] if options else "", name))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
