"""What every command shares: its parser, how its errors are shown, and the table of commands."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, cast

from headstock.config.environment import is_debug
from headstock.errors import ConfigError, HeadstockError, did_you_mean

USAGE_ERROR = 2
INTERRUPTED = 130


class Command(Protocol):
    """A module of this room that is one command."""

    def add_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to its own, empty parser."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; return the exit code.

        Raises:
            HeadstockError: Shown as problem and remedy; the exit code is 2.
        """
        ...


@dataclass(frozen=True, slots=True)
class CommandRow:
    """One line of ``headstock --help``.

    Attributes:
        name: What is typed.
        module: Where it is; imported only when it is typed.
        help: What it does, in one line.
    """

    name: str
    module: str
    help: str

    def load(self) -> Command:
        """Import the command's module."""
        return cast("Command", importlib.import_module(self.module))


class CommandParser(argparse.ArgumentParser):
    """A parser that raises what argparse would print, so that all errors look alike."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"{message[:1].upper()}{message[1:]}.", remedy=f"See `{self.prog} --help`."
        )

    def parse_command(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse ``argv``; an unknown flag gets a suggestion.

        Raises:
            ConfigError: The command line is not understood.
        """
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            flag = unknown[0].partition("=")[0]
            known = [name for name in self._option_string_actions if name.startswith("--")]
            guess = did_you_mean(flag, known)
            raise ConfigError(
                f"`{self.prog}` does not know {flag!r}.{guess}", remedy=f"See `{self.prog} --help`."
            )
        return arguments


def run_command(row: CommandRow, argv: Sequence[str]) -> int:
    """Run one command on its arguments; return the exit code. Errors are printed, not raised."""
    wants_traceback = "--debug" in argv or is_debug()
    try:
        command = row.load()
        parser = CommandParser(
            prog=f"headstock {row.name}",
            description=(sys.modules[row.module].__doc__ or "").strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_parser(parser)
        parser.add_argument(
            "--debug", action="store_true", help="show the traceback when something goes wrong"
        )
        return command.run(parser.parse_command(argv))
    except HeadstockError as error:
        show_error(error, wants_traceback=wants_traceback)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; the interpreter must not complain when it flushes.
        sys.stdout = None
        return 0


def show_error(error: HeadstockError, *, wants_traceback: bool) -> None:
    """Print problem and remedy to standard error, after the traceback when it is wanted."""
    if wants_traceback:
        traceback.print_exception(error)
        return
    print(f"headstock: {error.problem}\n  -> {error.remedy}", file=sys.stderr)
