"""A server that speaks the OpenAI API, as the commands that talk to one see it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from headstock.config import ServerSettings
from headstock.errors import ConfigError, RequestError
from headstock.server.keys import bare_key

CONNECT_TIMEOUT_S = 5.0
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # nosec B104
"""Where a server that listens everywhere is found from its own machine."""
_DATA = "data: "


def default_url(settings: ServerSettings) -> str:
    """Return where `headstock serve` with these settings listens."""
    host = ANY_ADDRESS.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def own_key(settings: ServerSettings) -> str | None:
    """Return the first API key of the settings, or None where none is set.

    Raises:
        ConfigError: The file of keys cannot be read.
    """
    if settings.api_keys:
        return bare_key(settings.api_keys[0])
    if settings.api_key_file is None:
        return None
    try:
        lines = Path(settings.api_key_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The API key file {settings.api_key_file} cannot be read: {error}.",
            remedy="Check api_key_file.",
        ) from error
    return next((bare_key(line.strip()) for line in lines if line.strip() and line[0] != "#"), None)


class UnreachableError(ConfigError):
    """No server answers at a URL."""


class RemoteServer:
    """A connection to a server.

    Args:
        url: With or without the ``/v1``.
        key: The API key, or None.

    Attributes:
        url: Without the ``/v1``.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.headers = {} if key is None else {"authorization": f"Bearer {key}"}
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        # The environment's proxies are left out: most servers here are on this very machine.
        self._client = httpx.Client(headers=self.headers, timeout=timeout, trust_env=False)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def model(self) -> str:
        """Return the name of the first model that is served.

        Raises:
            UnreachableError: Nothing answers, or not as a server would.
            ConfigError: The server wants a key, or another one.
        """
        try:
            answer = self._client.get(f"{self.url}/v1/models", timeout=CONNECT_TIMEOUT_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnreachableError(
                f"No server answers at {self.url}: {error}.",
                remedy="Start one with `headstock serve`, or check --url.",
            ) from error
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise ConfigError(
                f"The server at {self.url} wants an API key.",
                remedy="Set HEADSTOCK_API_KEYS to it.",
            )
        try:
            return msgspec.json.decode(answer.content, type=_Models).data[0].id
        except (msgspec.DecodeError, IndexError) as error:
            raise UnreachableError(
                f"{self.url}/v1/models answers with status {answer.status_code} and no model.",
                remedy="Check that --url names an OpenAI-compatible server.",
            ) from error

    def stream_chat(
        self, model: str, messages: Sequence[dict[str, Any]], options: dict[str, Any]
    ) -> Generator[str]:
        """Yield the text of an answer as it comes.

        Raises:
            RequestError: The server refuses, or breaks off.
        """
        body = {"model": model, "messages": list(messages), "stream": True, **options}
        url = f"{self.url}/v1/chat/completions"
        try:
            with self._client.stream("POST", url, json=body) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise _refused(answer.status_code, answer.read())
                for line in answer.iter_lines():
                    if line.startswith(_DATA) and line != f"{_DATA}[DONE]":
                        yield _text_of(line[len(_DATA) :])
        except httpx.HTTPError as error:
            raise RequestError(
                f"The connection to {self.url} broke off: {error}.", remedy="Try again."
            ) from error


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()


class _Error(msgspec.Struct, frozen=True):
    message: str = "The server failed."
    code: str | int | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    error: _Error | None = None


def _text_of(data: str) -> str:
    """Return what an event adds to the answer.

    Raises:
        RequestError: It says that the answer ends in an error, or is none of the API's events.
    """
    try:
        chunk = msgspec.json.decode(data, type=_Chunk)
    except msgspec.DecodeError as error:
        raise RequestError(
            f"The server sent an event that is none of a chat: {error}.", remedy="Check --url."
        ) from error
    if chunk.error is not None:
        raise RequestError(chunk.error.message, remedy="Try again.", code=str(chunk.error.code))
    return "".join(choice.delta.content or "" for choice in chunk.choices)


def _refused(status: int, body: bytes) -> RequestError:
    try:
        refusal = msgspec.json.decode(body, type=_Chunk).error or _Error()
    except msgspec.DecodeError:
        refusal = _Error()
    return RequestError(
        f"The server answers with status {status}: {refusal.message}",
        remedy="Change the request, or see the server's log.",
        code=str(refusal.code),
    )
