"""Talk to a model in the terminal.

Talks to the server at --url. With MODEL or any of the engine's settings given, or when no server
runs at the usual address, an engine is started in this process instead.

Examples:
  headstock chat                                  the running server, or a small model
  headstock chat ./my-model --dtype bfloat16      an engine of its own
  headstock chat --url http://10.0.0.5:30000      a server elsewhere; key in HEADSTOCK_API_KEYS
  echo 'Name three rivers.' | headstock chat      answers each line, without its prompts

in the chat: /system TEXT sets the system prompt, /clear forgets what was said, /exit leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from headstock.cli.remote import RemoteServer, UnreachableError, default_url, own_key
from headstock.cli.sampling import add_sampling_flags, sampling_of
from headstock.cli.talkers import LocalTalker, Message, RemoteTalker, Talker
from headstock.config import (
    EngineSettings,
    Loaded,
    ServeSettings,
    Source,
    add_flags,
    read_settings,
)
from headstock.errors import ConfigError, RequestError, did_you_mean

COMMANDS = {
    "/exit": "leave, as end of file does",
    "/clear": "forget what was said; the system prompt stays",
    "/system": "set the system prompt to the rest of the line; none without one",
    "/help": "list these",
}
PROMPT = "\001\033[1;36m\002> \001\033[0m\002"
"""Readline must not count the colour's bytes: the first and last bytes say so."""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock chat``."""
    parser.add_argument("--url", metavar="URL", help="server to talk to")
    parser.add_argument("--system", metavar="TEXT", default="", help="system prompt")
    add_sampling_flags(parser)
    add_flags(parser, EngineSettings)


def run(arguments: argparse.Namespace) -> int:
    """Talk until the input ends; return 1 when a line of a file or pipe got no answer."""
    loaded = read_settings(arguments, ServeSettings)
    screen = Screen(is_terminal=sys.stdin.isatty() and sys.stdout.isatty())
    talker = choose_talker(loaded, arguments.url, sampling_of(arguments))
    with contextlib.closing(talker):
        screen.hint(f"{talker.name}. /help lists commands, /exit leaves.")
        return Conversation(talker, screen, arguments.system).run()


def choose_talker(
    loaded: Loaded[ServeSettings], url: str | None, sampling: dict[str, Any]
) -> Talker:
    """Return who answers: see the module's first lines.

    Raises:
        ConfigError: No server answers at ``url``, or flags contradict each other.
    """
    flags = [origin.name for origin in loaded.origins.values() if origin.source is Source.FLAG]
    if flags and url is not None:
        raise ConfigError(
            f"--url names a server, and {flags[0]} sets up an engine in this process.",
            remedy=f"Drop --url or {flags[0]}.",
        )
    settings = loaded.settings.server
    if not flags:
        server = RemoteServer(url or default_url(settings), own_key(settings))
        try:
            return RemoteTalker(server, server.model(), sampling)
        except UnreachableError:
            server.close()
            if url is not None:
                raise
    return LocalTalker(engine_settings(loaded), sampling)


def engine_settings(loaded: Loaded[ServeSettings]) -> Loaded[EngineSettings]:
    """Return the engine's part of the settings."""
    parts = {name: getattr(loaded.settings, name) for name in EngineSettings.__struct_fields__}
    engine = EngineSettings(**parts)
    known = Loaded(engine, {}).values
    return Loaded(engine, {path: o for path, o in loaded.origins.items() if path in known})


class Screen:
    """Where lines come from and answers go.

    Args:
        is_terminal: Whether a person is there; a pipe gets answers only, one after another.
    """

    def __init__(self, *, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        if is_terminal:
            with contextlib.suppress(ImportError):  # not on every system; input() works without
                import readline  # noqa: F401  # gives input() its editing and history
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def lines(self) -> Iterator[str]:
        """Yield what is typed; Ctrl-C and end of file end it."""
        if not self.is_terminal:
            yield from sys.stdin
            return
        while True:
            try:
                yield input(PROMPT)
            except (EOFError, KeyboardInterrupt):
                print()
                return

    def say(self, text: str) -> None:
        """Write a piece of an answer."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def hint(self, text: str) -> None:
        """Write a remark to a person."""
        if self.is_terminal:
            self._console.print(text, style="dim", markup=False)

    def complain(self, error: RequestError) -> None:
        """Write why there is no answer."""
        self._console.print(f"{error.problem}\n  -> {error.remedy}", style="red", markup=False)


class Conversation:
    """What was said so far, and who goes on.

    Args:
        talker: Answers.
        screen: Where lines come from and answers go.
        system: The system prompt; "" for none.
    """

    def __init__(self, talker: Talker, screen: Screen, system: str) -> None:
        self._talker = talker
        self._screen = screen
        self._system = system
        self._said: list[Message] = []
        self._num_failures = 0

    def run(self) -> int:
        """Answer line after line; return the exit code."""
        for raw in self._screen.lines():
            line = raw.strip()
            if not line:
                continue
            if line.startswith("//"):
                self._answer(line[1:])
            elif not line.startswith("/"):
                self._answer(line)
            elif line == "/exit":
                break
            else:
                self._obey(*line.partition(" ")[::2])
        return 1 if self._num_failures and not self._screen.is_terminal else 0

    def _obey(self, command: str, text: str) -> None:
        match command:
            case "/clear":
                self._said.clear()
                self._screen.hint("Forgotten.")
            case "/system":
                self._system = text.strip()
                self._screen.hint("Set." if self._system else "There is no system prompt now.")
            case "/help":
                for name, about in COMMANDS.items():
                    self._screen.hint(f"{name:<8} {about}")
                self._screen.hint("A line that begins with // is said with one of them.")
            case _:
                guess = did_you_mean(command, COMMANDS)
                self._screen.hint(f"There is no command {command}.{guess} /help lists them.")

    def _answer(self, line: str) -> None:
        """Say ``line`` and write the answer; a turn that failed is forgotten."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        turn: Message = {"role": "user", "content": line}
        pieces: list[str] = []
        try:
            messages = [*system, *self._said, turn]
            with contextlib.closing(self._talker.reply(messages)) as answer:
                for piece in answer:
                    pieces.append(piece)
                    self._screen.say(piece)
        except KeyboardInterrupt:
            if not self._screen.is_terminal:
                raise
            self._screen.hint(" (interrupted)")
        except RequestError as error:
            self._screen.say("\n" if pieces else "")
            self._screen.complain(error)
            self._num_failures += 1
            if error.code == "context_length_exceeded":
                self._screen.hint("/clear makes room.")
            return
        self._screen.say("\n")
        self._said += [turn, {"role": "assistant", "content": "".join(pieces)}]
