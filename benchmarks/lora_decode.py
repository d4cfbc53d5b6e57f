"""What LoRA adapters cost: a decode step and a prompt's token, on random weights of a 0.6B model.

    python benchmarks/lora_decode.py --backend cuda [--rows 64] [--rank 16] [--adapters 8]

Loads: a server without adapters, first and once more at the end; one with room for them and no row
that has any; all rows with one adapter; rows with all adapters in turn. A step's time is what more
tokens a row take, over their number; the best of some runs. Each engine has a process of its own:
on a card a second one in a process is slower by a tenth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from own_process import in_own_process

import headstock

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
SHORT, PROMPTS = 32, 8


def modules(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of a layer's modules."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    return {
        "self_attn.q_proj": (hidden, heads),
        "self_attn.k_proj": (hidden, kv),
        "self_attn.v_proj": (hidden, kv),
        "self_attn.o_proj": (heads, hidden),
        "mlp.gate_proj": (hidden, wide),
        "mlp.up_proj": (hidden, wide),
        "mlp.down_proj": (wide, hidden),
    }


def write_adapter(folder: Path, config: dict[str, Any], rank: int, seed: int) -> None:
    """Write an adapter of random numbers as PEFT would."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (size_in, size_out) in modules(config).items():
            at = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{at}.lora_A.weight"] = draw.standard_normal((rank, size_in), np.float32) / 32
            tensors[f"{at}.lora_B.weight"] = draw.standard_normal((size_out, rank), np.float32) / 64
    header, begin = {}, 0
    for name, values in tensors.items():
        end = begin + values.nbytes
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(values.tobytes())
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
    settings["target_modules"] = [name.partition(".")[2] for name in modules(config)]
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def seconds(
    engine: headstock.Engine, prompts: list[list[int]], count: int, names: Any, runs: int
) -> float:
    """Return how long ``count`` tokens of each prompt take, at best."""
    params = {"temperature": 0, "max_new_tokens": count, "ignore_eos": True}
    best = float("inf")
    for _ in range(runs):
        engine.flush_cache()
        begin = time.perf_counter()
        engine.generate(input_ids=prompts, sampling_params=params, lora_name=names)
        best = min(best, time.perf_counter() - begin)
    return best


def measure_all(
    options: argparse.Namespace, settings: dict[str, Any], loads: dict[str, list[str | None]]
) -> dict[str, dict[str, float]]:
    """Return the figures of each of ``loads``, which are names of adapters, with one engine."""
    with headstock.Engine(**settings) as engine:
        return {label: measure(engine, names, options) for label, names in loads.items()}


def measure(
    engine: headstock.Engine, names: list[str | None], options: argparse.Namespace
) -> dict[str, float]:
    """Return the time of a decode step and of a prompt's token. Microseconds."""
    prompts = [[5 + row] * 16 for row in range(options.rows)]
    given = [names[row % len(names)] for row in range(options.rows)]
    counts = (SHORT + options.steps, SHORT)
    long, short = (seconds(engine, prompts, count, given, options.runs) for count in counts)
    texts = [[100 + row] * options.prompt for row in range(PROMPTS)]
    given = [names[row % len(names)] for row in range(PROMPTS)]
    first = seconds(engine, texts, 1, given, options.runs)
    return {
        "decode_step_us": (long - short) / options.steps * 1e6,
        "prefill_token_us": first / (options.prompt * PROMPTS) * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=None)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--steps", type=int, default=192, help="decode steps that are timed")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of each long prompt")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"])
    options = parser.parse_args()
    config = CONFIG | {"num_hidden_layers": options.layers}
    given: dict[str, Any] = {
        "backend": options.backend,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_running_requests": options.rows,
        "cache_tokens": 65536,
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "config.json").write_text(json.dumps(config))
        loras: dict[str, str] = {}
        for number in range(options.adapters):
            loras[f"a{number}"] = str(root / f"a{number}")
            write_adapter(Path(loras[f"a{number}"]), config, options.rank, number)
        report: dict[str, Any] = {"rows": options.rows, "rank": options.rank}
        given["model"] = folder
        adapted: dict[str, list[str | None]] = {
            "room, none used": [None],
            "one adapter": ["a0"],
            f"{len(loras)} adapters": list(loras),
            f"{len(loras)} adapters, every other row": [x for n in loras for x in (n, None)],
        }
        for settings, loads in (
            (given, {"without adapters": [None]}),
            ({**given, "loras": loras}, adapted),
            (given, {"without adapters, again": [None]}),
        ):
            report |= in_own_process(measure_all, options, settings, loads)
    base = report["without adapters"]["decode_step_us"]
    for label, figures in report.items():
        if isinstance(figures, dict):
            step, token = figures["decode_step_us"], figures["prefill_token_us"]
            print(f"{label:32} {step:8.0f} us a step ({step / base:5.2f})  {token:6.2f} us a token")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
