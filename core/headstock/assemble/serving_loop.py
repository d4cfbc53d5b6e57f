"""A loop that serves, put together from an opened backend and a model that is ready to run."""

from __future__ import annotations

from collections.abc import Callable

from headstock.assemble.backend import Opened
from headstock.assemble.model import LoadedModel
from headstock.assemble.profiler import TorchProfiler
from headstock.assemble.serving_runner import Built
from headstock.config import EngineSettings
from headstock.config.exclusions import SLEEP, WHOLE_STEPS, reason_of
from headstock.engine import Engine, EngineLoop, Pages, Shelf, Weights, build_engine
from headstock.errors import ConfigError, did_you_mean
from headstock.graph.lora import AdapterSpace
from headstock.observe.units import GIB
from headstock.plugins.models import ChosenModel
from headstock.structured.compiler import GrammarCompiler
from headstock.structured.messages import CompileLimits
from headstock.structured.provider import GrammarRegistry, Vocabulary
from headstock.wire.messages import Started
from headstock.wire.steps import Runner
from headstock.wire.transport import Mailbox

OFF = "none"


class ServingLoop:
    """An engine loop with its runner, ready to serve.

    Attributes:
        started: What to tell the API process.
    """

    def __init__(self, loop: EngineLoop, engine: Engine, runner: Runner, started: Started) -> None:
        self._loop = loop
        self._engine = engine
        self._runner = runner
        self.started = started

    @property
    def turns(self) -> int:
        """How often the loop has gone round."""
        return self._loop.turns

    def when_idle(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once after the last work is done, a second later at most."""
        self._loop.when_idle(call)

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self._loop.run()

    def stop(self) -> None:
        """Make :meth:`run` return soon. Any thread."""
        self._loop.stop()

    def close(self) -> None:
        """Free the device and end what compiles; after :meth:`run` has returned."""
        self._engine.close()
        self._runner.close()


def serving_loop(
    opened: Opened,
    built: Built,
    runner: Runner,
    shelf: Shelf | None,
    mailbox: Mailbox,
    weights: Weights | str,
    pages: Pages | str,
) -> ServingLoop:
    settings = opened.settings
    compiler, why_not = grammar_compiler(opened)
    engine = build_engine(
        runner,
        settings.scheduler,
        settings.cache,
        compiler=compiler,
        why_no_compiler=why_not,
        shelf=shelf,
        weights=weights,
        profiler=TorchProfiler(),
        pages=pages,
    )
    facts = describe(opened, built)
    if settings.parallel.tp_size > 1:
        facts["ranks"] = f"{settings.parallel.tp_size}, each with a slice of every layer"
    started = Started(limits=runner.limits, model_facts=facts)
    return ServingLoop(EngineLoop(engine, mailbox), engine, runner, started)


def grammar_compiler(opened: Opened) -> tuple[GrammarCompiler | None, str]:
    """Return what compiles grammars, or None and why there is nothing that does.

    Raises:
        ConfigError: The provider asked for is not registered.
    """
    settings = opened.settings.grammar
    wanted = opened.settings.model
    registry = GrammarRegistry()
    opened.chosen.name_grammars(registry)
    name = settings.grammar_backend
    if name is not None and name != OFF and registry.place(name) is None:
        known = ", ".join([*registry.names, OFF])
        raise ConfigError(
            f"grammar_backend is {name!r}; there are {known}.{did_you_mean(name, registry.names)}",
            remedy="Choose one of these, or install the plugin that brings it.",
        )
    if wanted.skip_tokenizer_init:
        return None, "This engine was started without a tokenizer, which grammars need."
    if name == OFF:
        return None, "This engine was started without grammars."
    if not registry.names:
        return None, "No grammar provider is installed with this engine."
    place = registry.place(name or registry.names[0])
    assert place is not None, f"grammar provider {name} has gone"
    limits = CompileLimits(
        settings.grammar_timeout_s, settings.grammar_memory_bytes, settings.grammar_workers
    )
    return GrammarCompiler(
        place,
        lambda: _vocabulary(opened.settings),
        limits,
        cache_bytes=settings.grammar_cache_bytes,
    ), ""


def _vocabulary(settings: EngineSettings) -> Vocabulary:
    # Tokenizers are imported when the first grammar comes: most engines never have one.
    from headstock.assemble.tokenizer import read_vocabulary

    return read_vocabulary(settings)


def describe(opened: Opened, built: Built) -> dict[str, str]:
    """Return name and text of each line."""
    limits = built.runner.limits
    dtype = str(built.loaded.ctx.dtype).removeprefix("torch.")
    facts = {
        "task": describe_task(built.loaded),
        "architecture": _architecture(built.loaded.chosen),
        "device": f"{opened.chosen.name}: {opened.device.name}",
        "compute": f"{dtype}, {_steps(limits.depth)}",
        "ops": f"{built.resolved.summary} (plan {built.resolved.fingerprint})",
        "attention": ", ".join(
            sorted({op.provider for op in built.resolved.ops if op.op == "attention"})
        ),
        "limits": (
            f"{limits.num_slots} requests at once, {limits.max_length:,} tokens each,"
            f" {limits.max_step_tokens:,} tokens a step"
        ),
    }
    if built.step:
        facts["whole steps"] = built.step
    adapters = built.loaded.ctx.adapters
    if adapters is not None:
        facts["adapters"] = _room(adapters.space)
    for name, size in built.memory.table():
        facts[f"memory: {name}"] = f"{size / GIB:.2f} GiB"
    for number, note in enumerate((*opened.chosen.notes, *opened.chosen.failures), 1):
        facts[f"note {number}"] = note
    return facts


def _room(space: AdapterSpace) -> str:
    """Return how much room for LoRA adapters there is, in words."""
    targets = "every linear layer" if space.targets is None else ", ".join(sorted(space.targets))
    return f"{space.num_places} at once, of rank {space.max_rank} at most, on {targets}"


def describe_task(loaded: LoadedModel) -> str:
    """Return what the model is served for, and what follows from that for steps."""
    model = loaded.model
    if "draw" in model.yields:
        return loaded.task.kind
    pooling = loaded.task.pooling
    how = "" if pooling is None else f", {pooling.kind} of hidden states"
    if pooling is not None and pooling.dense:
        how += f", {len(pooling.dense)} dense layers"
    if pooling is not None and pooling.is_normalized:
        how += ", normalised"
    parts = "in chunks, prefixes cached" if model.takes_chunks else "whole texts in one step"
    return f"{loaded.task.kind}{how}; {parts}; no output layer"


def _architecture(chosen: ChosenModel) -> str:
    if chosen.is_fallback:
        return f"{chosen.architecture}, by transformers' own class: no package has a file for it"
    return chosen.architecture


def _steps(depth: int) -> str:
    return "steps overlap with planning" if depth > 1 else "one step at a time"


def why_pages_stay(opened: Opened, built: Built) -> str:
    """Return why the pages of a served model cannot be given back; "": they can."""
    if not opened.device.facts.gives_memory_back:
        return f"The device {opened.device.name} keeps the memory that it has taken."
    return reason_of(SLEEP, WHOLE_STEPS) if built.is_taken else ""
