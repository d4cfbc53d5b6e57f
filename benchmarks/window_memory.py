#!/usr/bin/env python3
"""Fill the cache of a model with windows; say how many requests run at once, and could.

    python benchmarks/window_memory.py --memory-fraction 0.56     Gemma 3 27B's shape, on a card
    python benchmarks/window_memory.py --small --lengths 512,2048  a small one, anywhere

More requests than fit are handed over at once, for each length. What the windows make possible is
the arena's bytes over what one request must hold at its end: full layers every token, layers with
a window the window and no more. Random weights; one JSON line a length.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import headstock

GEMMA3_27B = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": 262208,
    "hidden_size": 5376,
    "intermediate_size": 21504,
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "sliding_window": 1024,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 168,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "bos_token_id": 2,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}
SMALL = GEMMA3_27B | {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 64,
}
NUM_OUTPUTS = 192


def request_bytes(config: dict[str, Any], length: int) -> tuple[int, int]:
    """Return bytes that one request of ``length`` tokens must hold: full layers, windows."""
    layers, pattern = config["num_hidden_layers"], config["sliding_window_pattern"]
    num_full = layers // pattern
    token = 2 * config["num_key_value_heads"] * config["head_dim"] * 2
    window = min(length, config["sliding_window"])
    return num_full * length * token, (layers - num_full) * window * token


def arena_bytes(config: dict[str, Any], engine: Any, page_size: int) -> int:
    """Return the bytes that all groups share: what the full layers' pages would take of them."""
    full = next(g for g in engine.state().groups if "window" not in g.kind)
    return full.total * request_bytes(config, page_size)[0]


def peak_running(engine: Any, work: threading.Thread) -> int:
    """Return the most requests that ran at once until ``work`` ended."""
    most = 0
    work.start()
    while work.is_alive():
        most = max(most, engine.scheduler.num_running)
        time.sleep(0.002)
    work.join()
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--lengths", default="8192,32768")
    parser.add_argument("--memory-fraction", type=float)
    parser.add_argument("--cache-tokens", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = SMALL if options.small else GEMMA3_27B
    lengths = [int(length) for length in options.lengths.split(",")]
    settings: dict[str, Any] = {"max_model_len": max(lengths) + 64}
    for name in ("memory_fraction", "cache_tokens"):
        if getattr(options, name):
            settings[name] = getattr(options, name)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        begin = time.monotonic()
        whole = headstock.Engine(
            folder,
            load_format="dummy",
            dtype="bfloat16",
            skip_tokenizer_init=True,
            prefix_cache=False,
            **settings,
        )
        with whole:
            print(json.dumps({"ready_s": time.monotonic() - begin}), flush=True)
            for length in lengths:
                line = json.dumps(fill(config, whole, length))
                print(line, flush=True)
                if options.out:
                    with options.out.open("a") as file:
                        file.write(line + "\n")


def fill(config: dict[str, Any], whole: headstock.Engine, length: int) -> dict[str, Any]:
    """Run more requests of ``length`` tokens than fit; return what ran and what could."""
    engine = whole._loop._loop._engine
    page_size = engine.scheduler.cache.page_tokens
    full, window = request_bytes(config, length)
    unbounded = window * length / min(length, config["sliding_window"])
    room = arena_bytes(config, engine, page_size)
    possible = room / (full + window)
    draw = random.Random(length)
    count = int(possible) + 4
    top = config["vocab_size"] - 10
    prompts = [[draw.randrange(10, top) for _ in range(length - NUM_OUTPUTS)] for _ in range(count)]
    sampling = {"temperature": 0.0, "max_new_tokens": NUM_OUTPUTS, "ignore_eos": True}
    retractions = engine.state().totals.get("retractions", 0.0)

    def work() -> None:
        whole.generate(input_ids=prompts, sampling_params=sampling)

    begin = time.monotonic()
    most = peak_running(engine, threading.Thread(target=work))
    return {
        "length": length,
        "requests": count,
        "arena_gib": round(room / 2**30, 3),
        "possible": round(possible, 2),
        "without_windows": round(room / (full + unbounded), 2),
        "ran_at_once": most,
        "share": round(most / int(possible), 3),
        "retractions": engine.state().totals.get("retractions", 0.0) - retractions,
        "wall_s": round(time.monotonic() - begin, 1),
    }


if __name__ == "__main__":
    main()
