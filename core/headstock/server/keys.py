"""API keys: kept as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path

from headstock.config.schema import ServerSettings
from headstock.errors import ConfigError

MIN_KEY_LENGTH = 8


class KeyRing:
    """The keys that open the server; none: it is open.

    Args:
        keys: In the clear; only digests are kept.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]
        secret = secrets.token_bytes(16)
        self._tenants = [
            hmac.new(secret, digest, hashlib.sha256).hexdigest()[:16] + "/"
            for digest in self._digests
        ]

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._digests

    def tenant(self, authorization: str) -> str | None:
        """Return the cache namespace prefix of a caller, or None if its key is not one of ours.

        With one key or none all callers share their cached prefixes; with several, the holder of
        one cannot time what the holder of another has cached.

        Args:
            authorization: The header: ``Bearer KEY``.
        """
        if self.is_open:
            return ""
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip())
        found: str | None = None
        for known, tenant in zip(self._digests, self._tenants, strict=True):
            if hmac.compare_digest(known, digest):  # all are compared, whatever matched
                found = tenant
        if found is None or scheme.lower() != "bearer":
            return None
        return found if len(self._digests) > 1 else ""


def read_keys(settings: ServerSettings) -> KeyRing:
    """Return the keys that are set, in the environment or in a file.

    Raises:
        ConfigError: The file cannot be read, or a key is too short to be one.
    """
    keys = [key.strip() for key in settings.api_keys if key.strip()]
    if settings.api_key_file is not None:
        try:
            lines = Path(settings.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The API key file {settings.api_key_file} cannot be read: {error}.",
                remedy="Check --api-key-file.",
            ) from error
        keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(
                f"The API key file {settings.api_key_file} holds no key.",
                remedy="Write one key a line, or leave --api-key-file out.",
            )
    for key in keys:
        if len(key) < MIN_KEY_LENGTH:
            raise ConfigError(
                f"An API key has {len(key)} characters; at least {MIN_KEY_LENGTH} are needed.",
                remedy="Use longer keys, such as 32 random hexadecimal digits.",
            )
    return KeyRing(list(dict.fromkeys(keys)))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
