"""Who answers in `headstock chat`: a server, or an engine in this process."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from headstock.cli.offline import open_engine
from headstock.cli.remote import RemoteServer
from headstock.config import EngineSettings, Loaded

if TYPE_CHECKING:
    from headstock import Engine

Message = dict[str, Any]
OPENAI_NAMES = {"max_new_tokens": "max_tokens", "sampling_seed": "seed"}


class Talker(Protocol):
    """What answers chats.

    Attributes:
        name: Of the model, and where it is.
    """

    name: str

    def reply(self, messages: Sequence[Message]) -> Generator[str]:
        """Yield the answer's text as it comes; closing the iterator ends it.

        Raises:
            RequestError: This chat cannot be answered.
        """
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class RemoteTalker:
    """A model behind the OpenAI API.

    Args:
        server: Where it is.
        model: Its name there.
        sampling: Fields of ``SamplingParams``.
    """

    def __init__(self, server: RemoteServer, model: str, sampling: Mapping[str, Any]) -> None:
        self.name = f"{model} at {server.url}"
        self._server = server
        self._model = model
        self._options = {OPENAI_NAMES.get(name, name): sampling[name] for name in sampling}

    def reply(self, messages: Sequence[Message]) -> Generator[str]:
        """Stream from the server."""
        return self._server.stream_chat(self._model, messages, self._options)

    def close(self) -> None:
        """Hang up."""
        self._server.close()


class LocalTalker:
    """A model in this process.

    Args:
        loaded: The engine's settings.
        sampling: Fields of ``SamplingParams``.

    Raises:
        HeadstockError: The model cannot be served here with these settings.
    """

    def __init__(self, loaded: Loaded[EngineSettings], sampling: Mapping[str, Any]) -> None:
        self._engine: Engine = open_engine(loaded)
        self.name = self._engine.card.name
        unlimited = {"max_new_tokens": None}
        self._sampling = {**unlimited, **self._engine.card.sampling_defaults, **sampling}

    def reply(self, messages: Sequence[Message]) -> Generator[str]:
        """Stream from the engine; earlier turns are in its cache."""
        events = self._engine.generate(
            input_ids=self._engine.encode_chat(list(messages)),
            sampling_params=self._sampling,
            stream=True,
        )
        said = ""
        for event in events:
            yield event["text"][len(said) :]
            said = event["text"]

    def close(self) -> None:
        """Shut the engine down."""
        self._engine.shutdown()
