"""What serving by transformers' own class costs: a decode step of a Llama, natively and forced so.

    python benchmarks/fallback.py [--backend xeon] [--rows 1 8] [--dtype bfloat16]

Two models of SmolLM2's size with random weights, one of our file and one of the fallback, are built
on one device. A decode step of each (embedding, layers, logits) is captured and replayed, the two
in turn, so that both meet the same load; the best of each counts. Beside the times stand the
PyTorch calls that a captured step still holds, where the device says: they are the same on a busy
machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headstock.assemble.backend import Opened, open_backend
from headstock.assemble.model import load_model
from headstock.assemble.model_files import find_model
from headstock.config import EngineSettings, settings_from_call
from headstock.plugins.device import GraphKey
from headstock.plugins.models import ModelRegistry
from headstock.testing.oracle.sequences import Sequences
from headstock_models.fallback.model import TransformersForCausalLM

ARCHITECTURE = "LlamaForCausalLM"
CONFIG = {
    "architectures": [ARCHITECTURE],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
FORCED = {ARCHITECTURE: TransformersForCausalLM}


def build(opened: Opened, registry: ModelRegistry | None) -> Sequences:
    """Return a model with random weights; None: of the installed packages' files."""
    files = find_model(opened.settings)
    loaded = load_model(opened, files, lambda *_: None, registry=registry)
    sequences = Sequences(loaded.model, loaded.ctx)
    for layer in loaded.ctx.attention_layers:
        layer.kv = torch.zeros_like(layer.kv, device=opened.device.torch_device)
    return sequences


def on_device(batch: Any, where: torch.device) -> Any:
    """Return a step with its tensors on a device, and so in the view of each page group."""
    views = [replace(view, **tensors_on(view, where)) for view in batch.groups]
    for view in views:
        view.groups = tuple(views)
    return views[0]


def tensors_on(view: Any, where: torch.device) -> dict[str, torch.Tensor]:
    fields = {name: getattr(view, name) for name in view.__dataclass_fields__}
    return {n: value.to(where) for n, value in fields.items() if isinstance(value, torch.Tensor)}


def captured_step(
    opened: Opened, sequences: Sequences, num_rows: int, length: int
) -> tuple[Callable[[], None], int | None]:
    """Return what computes one decode step, and how many PyTorch calls it makes, where known."""
    where = opened.device.torch_device
    for name in list(sequences.tables):
        sequences.drop(name)
    names = [f"{num_rows} rows, {row}" for row in range(num_rows)]
    sequences.batch(dict.fromkeys(names, length))  # pages, whose keys may be anything
    batch = on_device(sequences.batch(dict.fromkeys(names, 1)), where)
    ids_T = torch.arange(num_rows, device=where)
    key: tuple[int, ...] = ()
    for layer in sequences.ctx.attention_layers:
        layer.provider.plan(batch.groups[layer.group])
        key = layer.provider.graph_key

    @torch.inference_mode()
    def step() -> None:
        sequences.model.scores(sequences.model.forward(ids_T, batch))

    step()
    graph = opened.device.capture(GraphKey("uniform", num_rows, num_rows, 1, key), step)
    calls = getattr(graph, "torch_calls", None)
    return graph.replay, None if calls is None else len(calls)


@torch.inference_mode()
def best_of_turns(
    steps: list[Callable[[], None]], synchronize: Callable[[], None], turns: int, repeats: int
) -> list[float]:
    """Return the least seconds that each step takes; they run in turn."""
    best = [float("inf")] * len(steps)
    for _ in range(turns):
        for number, step in enumerate(steps):
            begin = time.perf_counter()
            for _ in range(repeats):
                step()
            synchronize()
            best[number] = min(best[number], (time.perf_counter() - begin) / repeats)
    return best


def compare(
    opened: Opened, models: dict[str, Sequences], rows: int, options: Any
) -> dict[str, Any]:
    """Return the times of both models' steps, in microseconds, and their ratio."""
    made = [captured_step(opened, each, rows, options.length) for each in models.values()]
    times = best_of_turns(
        [step for step, _ in made], opened.device.synchronize, options.turns, options.repeats
    )
    report: dict[str, Any] = {"rows": rows, "ratio": round(times[1] / times[0], 3)}
    for name, seconds, (_, calls) in zip(models, times, made, strict=True):
        report |= {f"{name}_us": round(seconds * 1e6, 1), f"{name}_torch_calls": calls}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="up to 16")
    parser.add_argument("--length", type=int, default=32, help="tokens of each row before the step")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    given = {"backend": options.backend, "dtype": options.dtype, "load_format": "dummy"}
    given |= {"quantization": options.quantization}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(CONFIG))
        settings = settings_from_call(EngineSettings, given | {"model": folder})
        opened = open_backend(settings)
        models = {"native": build(opened, None)}
        models["fallback"] = build(opened, ModelRegistry([], extra=FORCED))
    print(opened.device.name)
    for rows in options.rows:
        print(json.dumps(compare(opened, models, rows, options)))


if __name__ == "__main__":
    main()
