"""Where commands are: named by plugins, imported when they are typed."""

from __future__ import annotations

from dataclasses import dataclass, field

from headstock.errors import PluginError
from headstock.plugins.places import Places


@dataclass(slots=True)
class CommandRegistry(Places):
    """The commands that plugins named, beside those of ``headstock`` itself.

    A command is a module with ``add_parser(parser)``, which adds its arguments to an
    ``argparse.ArgumentParser``, and ``run(arguments)``, which does it and returns the exit code. A
    ``HeadstockError`` is shown as problem and remedy.
    """

    kind = "command"

    _helps: dict[str, str] = field(default_factory=dict[str, str])

    def add_command(self, name: str, module: str, help_text: str) -> None:
        """Name one. Imports nothing.

        Args:
            name: What is typed after ``headstock``: one word, or two.
            module: Where it is.
            help_text: What it does, in one line.

        Raises:
            PluginError: The name is taken, or is no word.
        """
        words = name.split()
        if not 1 <= len(words) <= 2 or name.startswith("-") or " ".join(words) != name:
            raise PluginError(
                f"A plugin registers a command {name!r}.", remedy="Its name must be a word or two."
            )
        self.add(name, f"{module}:run")
        self._helps[name] = help_text

    def help_of(self, name: str) -> str:
        """Return what a command does, in one line."""
        return self._helps[name]
