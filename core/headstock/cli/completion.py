"""Print a script that completes commands and flags in a shell.

Examples:
  headstock completion bash > ~/.local/share/bash-completion/completions/headstock
  headstock completion zsh > ~/.zfunc/_headstock
  headstock completion fish > ~/.config/fish/completions/headstock.fish
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from headstock.cli.frame import CommandParser

Flags = Mapping[str, tuple[str, list[str]]]
"""Of each command: its help, and its flags."""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the argument of ``headstock completion``."""
    parser.add_argument("shell", choices=sorted(_SHELLS), help="which shell")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    print(_SHELLS[arguments.shell](known_flags()), end="")
    return 0


def known_flags() -> Flags:
    """Return every command with its help and flags; hidden ones stay hidden."""
    from headstock.cli.commands import COMMANDS, plugin_commands  # this command is one of them

    found: dict[str, tuple[str, list[str]]] = {}
    for row in (*COMMANDS, *plugin_commands()):
        parser = CommandParser(prog=row.name, allow_abbrev=False)
        row.load().add_parser(parser)
        flags = ["--debug"]
        for action in parser._actions:
            if action.help != argparse.SUPPRESS:
                flags += [flag for flag in action.option_strings if flag.startswith("--")]
        found[row.name] = (row.help, sorted(flags))
    return found


def _bash(commands: Flags) -> str:
    firsts = sorted({name.split()[0] for name in commands})
    cases: list[str] = []
    for first in firsts:
        seconds = [name.split()[1] for name in commands if name.startswith(f"{first} ")]
        for name, (_, flags) in commands.items():
            if name == first or name.startswith(f"{first} "):
                cases.append(f'    "{name}") flags="{" ".join(flags)}";;')
        if seconds:
            cases.append(f'    "{first} "*|"{first}") flags="{" ".join(seconds)}";;')
    return f"""# bash completion for headstock
_headstock() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" first="${{COMP_WORDS[1]}}" command flags=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(firsts)} --help --version" -- "$word"))
    return
  fi
  command="$first"
  case "$first" in
    {"|".join(sorted({n.split()[0] for n in commands if " " in n}))})
      if [ "$COMP_CWORD" -gt 2 ]; then command="$first ${{COMP_WORDS[2]}}"; fi;;
  esac
  case "$command" in
{chr(10).join(cases)}
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$word"));;
    *)
      case "$flags" in
        --*) COMPREPLY=($(compgen -f -- "$word"));;
        *) COMPREPLY=($(compgen -W "$flags" -- "$word"));;
      esac;;
  esac
}}
complete -o filenames -F _headstock headstock
"""


def _zsh(commands: Flags) -> str:
    return "#compdef headstock\nautoload -U +X bashcompinit && bashcompinit\n" + _bash(commands)


def _fish(commands: Flags) -> str:
    lines = ["# fish completion for headstock"]
    firsts: dict[str, str] = {}
    for name, (text, _) in commands.items():
        firsts.setdefault(name.split()[0], text)
    for first, text in firsts.items():
        lines.append(
            f"complete -c headstock -n __fish_use_subcommand -f -a {first} -d {_quoted(text)}"
        )
    for name, (text, flags) in commands.items():
        first, _, second = name.partition(" ")
        seen = f"__fish_seen_subcommand_from {first}"
        if second:
            lines.append(f"complete -c headstock -n '{seen}' -f -a {second} -d {_quoted(text)}")
            seen = f"{seen}; and __fish_seen_subcommand_from {second}"
        lines += [f"complete -c headstock -n '{seen}' -l {flag[2:]}" for flag in flags]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SHELLS: dict[str, Callable[[Flags], str]] = {"bash": _bash, "fish": _fish, "zsh": _zsh}
