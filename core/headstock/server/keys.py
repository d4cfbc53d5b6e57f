"""API keys: who holds them, and what their holders may do.

They are kept as digests and compared in constant time. A key is written as ``KEY``, or as
``NAME:ROLE:KEY`` with the role ``user`` or ``admin``.
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

MIN_KEY_LENGTH = 8
Role = Literal["user", "admin"]
_NAMED = re.compile(r"(?P<name>[\w.-]{1,64}):(?P<role>user|admin):(?P<key>.*)")
_SENDABLE = re.compile(r"[\x21-\x7e]+")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        name: What logs call its holder.
        role: What its holder may do.
        digest: Of the key itself, which is not kept.
    """

    name: str
    role: Role
    digest: bytes


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request.

    Attributes:
        name: For logs.
        is_admin: Whether admin routes are open to it.
        tenant: Prefix of its cache namespaces; its request names are its own, too.
    """

    name: str
    is_admin: bool
    tenant: str


ANYONE = Caller("anyone", True, "")
"""Who sends a request to a server without keys."""


class KeyRing:
    """The keys that open the server; none: it is open.

    Args:
        keys: All of them.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self._secret = secrets.token_bytes(16)
        self._keys = list(keys)

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._keys

    def replace(self, other: KeyRing) -> None:
        """Take the keys of ``other``; those that both have keep their cache namespaces."""
        self._keys = list(other._keys)

    def caller(self, authorization: str) -> Caller | None:
        """Return who sends a request, or None if its key is not one of ours.

        With one key or none all callers share their cached prefixes; with several, the holder of
        one cannot time what the holder of another has cached.

        Args:
            authorization: The header: ``Bearer KEY``.
        """
        if self.is_open:
            return ANYONE
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip())
        found: Key | None = None
        for known in self._keys:
            if hmac.compare_digest(known.digest, digest):  # all are compared, whatever matched
                found = known
        if found is None or scheme.lower() != "bearer":
            return None
        tenant = self._tenant(found) if len(self._keys) > 1 else ""
        return Caller(found.name, found.role == "admin", tenant)

    def _tenant(self, key: Key) -> str:
        return hmac.new(self._secret, key.digest, hashlib.sha256).hexdigest()[:16] + "/"


def read_keys(settings: ServerSettings) -> KeyRing:
    """Return the keys that are set, in the environment or in a file.

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
    return KeyRing(list(keys.values()))


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
    return Key(name, role, _digest(key))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
