"""The command line: ``headstock COMMAND``. Importing it loads no tensor library."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headstock import __version__
from headstock.cli.commands import COMMANDS, EXAMPLES, plugin_commands
from headstock.cli.frame import USAGE_ERROR, run_command, show_error
from headstock.config.environment import hold_back_torch_backends
from headstock.errors import ConfigError, did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``headstock`` on ``argv``, the process's own by default; return the exit code."""
    hold_back_torch_backends()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"headstock {__version__}")
        return 0
    for rows in (lambda: COMMANDS, plugin_commands):
        for row in rows():
            name = row.name.split()
            if words[: len(name)] == name:
                return run_command(row, words[len(name) :])
    show_error(_unknown(words), wants_traceback="--debug" in words)
    return USAGE_ERROR


def _unknown(words: Sequence[str]) -> ConfigError:
    """Return the error for words that begin with no command, or with half of one."""
    names = [row.name for row in (*COMMANDS, *plugin_commands())]
    kin = [name for name in names if name.startswith(f"{words[0]} ")]
    typed = " ".join(word for word in words[:2] if not word.startswith("-")) if kin else words[0]
    return ConfigError(
        f"There is no command {typed!r}.{did_you_mean(typed, kin or names)}",
        remedy=f"Commands: {', '.join(kin or names)}.",
    )


def help_text() -> str:
    """Return what ``headstock --help`` prints."""
    commands = [*COMMANDS, *plugin_commands()]
    width = max(len(row.name) for row in commands)
    rows = "\n".join(f"  {row.name:<{width}}  {row.help}" for row in commands)
    return (
        f"Headstock {__version__}: one serving engine for language models, any accelerator.\n\n"
        "usage: headstock COMMAND [options]       `headstock COMMAND --help` tells more\n\n"
        f"commands:\n{rows}\n\n{EXAMPLES}"
    )
