#!/usr/bin/env python3
"""Time the offline engine with a drafter and without; one JSON line per load.

    python benchmarks/speculation.py smollm2                       what a real model accepts
    python benchmarks/speculation.py qwen3-0.6b --streams 1,16,64  a shape with random weights

Loads: `copies` asks for text that stands in the prompt (a model with random weights gets random
ids, and repeats whatever it repeats); `prose` draws at temperature 1, where hardly anything is
found: what a drafter costs that is of no use. Best of --runs runs after one warm-up run; both
engines draw the same ids up to rounding, and how many requests do is told. Each engine has a
process of its own: on a card a second one in a process is slower by a tenth.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

from own_process import in_own_process
from workloads import MODELS, write_model

import headstock

DOCUMENT = '''def area(width, height):
    """Return the area of a rectangle."""
    return width * height


def perimeter(width, height):
    """Return the perimeter of a rectangle."""
    return 2 * (width + height)


def volume(width, height, depth):
    """Return the volume of a box."""
    return area(width, height) * depth


def surface(width, height, depth):
    """Return the surface of a box."""
    return 2 * (area(width, height) + area(height, depth) + area(width, depth))
'''
NAMES = ("area", "perimeter", "volume", "surface", "width", "height", "depth", "box")
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def texts(count: int) -> list[str]:
    """Return prompts that ask for an edit of one document, each for another one."""
    prompts: list[str] = []
    for number in range(count):
        old = NAMES[number % len(NAMES)]
        edit = f"Rename {old} to {old}_{number} in this code, and write all of it again:"
        prompts.append(CHAT.format(f"{edit}\n```python\n{DOCUMENT}```"))
    return prompts


def ids(count: int) -> list[list[int]]:
    """Return prompts of random ids for models without a tokenizer."""
    draw = random.Random(5)
    return [[draw.randrange(1000, 30000) for _ in range(256)] for _ in range(count)]


def run(engine: headstock.Engine, prompts: dict[str, Any], params: dict[str, Any]) -> Any:
    """Return the seconds of a batch, its figures and its ids."""
    begin = time.perf_counter()
    results = engine.generate(**prompts, sampling_params=params)
    wall_s = time.perf_counter() - begin
    metas = [result["meta_info"] for result in results]
    return (
        wall_s,
        sum(meta["completion_tokens"] for meta in metas),
        sum(meta.get("spec_draft_token_num", 0) for meta in metas),
        sum(meta.get("spec_accept_token_num", 0) for meta in metas),
        [result["output_ids"] for result in results],
    )


def measure(
    options: argparse.Namespace, model: str, speculation: str, settings: dict[str, Any]
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the figures of every load, by its name and number of streams."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    drafter = {"speculation": speculation, "num_drafts": options.num_drafts}
    with headstock.Engine(model=model, **settings, **drafter) as engine:
        for load in options.loads.split(","):
            for streams in map(int, options.streams.split(",")):
                is_text = "skip_tokenizer_init" not in settings
                key = "prompt" if is_text else "input_ids"
                prompts = {key: texts(streams) if is_text else ids(streams)}
                params = {"max_new_tokens": options.tokens, "ignore_eos": True}
                params |= {"temperature": 0.0 if load == "copies" else 1.0, "sampling_seed": 7}
                runs = [run(engine, prompts, params) for _ in range(options.runs + 1)][1:]
                wall_s, tokens, drafted, accepted, output_ids = min(runs)
                found[load, streams] = {
                    "tokens_per_s": round(tokens / wall_s, 1),
                    "drafted": drafted,
                    "accepted": accepted,
                    "ids": output_ids,
                }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=f"a model, or a shape: {', '.join(MODELS)}")
    parser.add_argument("--drafter", default="ngram")
    parser.add_argument("--num-drafts", type=int, default=4)
    parser.add_argument("--streams", default="1,4")
    parser.add_argument("--loads", default="copies,prose")
    parser.add_argument("--tokens", type=int, default=192, help="output tokens of a request")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--backend")
    parser.add_argument("--out", type=Path, help="append the lines to this file, too")
    options = parser.parse_args()
    settings: dict[str, Any] = {"max_model_len": 2048, "backend": options.backend}
    model = options.model
    if model in MODELS:
        model = str(write_model(model))
        settings |= {"load_format": "dummy", "skip_tokenizer_init": True}
    plain = in_own_process(measure, options, model, "none", settings)
    drafting = in_own_process(measure, options, model, options.drafter, settings)
    for (load, streams), off in plain.items():
        on = drafting[load, streams]
        pairs = zip(off.pop("ids"), on.pop("ids"), strict=True)
        record = {
            "model": options.model,
            "load": load,
            "streams": streams,
            "off_tokens_per_s": off["tokens_per_s"],
            "on_tokens_per_s": on["tokens_per_s"],
            "speedup": round(on["tokens_per_s"] / off["tokens_per_s"], 3),
            "acceptance": round(on["accepted"] / max(1, on["drafted"]), 3),
            "drafted": on["drafted"],
            "equal_requests": sum(mine == theirs for mine, theirs in pairs),
        }
        line = json.dumps(record)
        print(line, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
