#!/usr/bin/env python3
"""Compare greedy outputs with `transformers` on the same weights, before anything is timed.

    python benchmarks/check_outputs.py --out check.json

Random weights are saved once; the engine generates from prompts that are short, long, in chunks,
in a batch and under shared prefixes, with the tree and without. Then `transformers` reads prompt
and output at once (teacher-forced) in float32 and in bfloat16. An output id may differ from the
float32 top only where its logit is no further below than twice the largest error that bfloat16
made in `transformers` itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from workloads import MODELS

import headstock

OUTPUTS = 24
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}


def save(name: str, folder: Path) -> None:
    """Save the model ``name`` with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = dict(MODELS["qwen3-0.6b"]) | (SMALL if name == "small" else {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), torch_dtype=torch.bfloat16
        )
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))


def prompts_of(vocab_size: int) -> list[list[int]]:
    """Return prompts of many lengths, some in families that share a prefix."""
    draw = random.Random(7)

    def some(length: int) -> list[int]:
        return [draw.randrange(10, vocab_size) for _ in range(length)]

    alone = [some(n) for n in (1, 2, 17, 63, 64, 65, 128, 333, 1025, 3000)]
    trunk = some(512)
    branches = [trunk + some(256) for _ in range(3)]
    family = [branches[i % 3] + some(8 + 5 * i) for i in range(24)]
    return [*alone, *family, trunk, [*trunk, 5]]


def generate(folder: Path, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    engine = headstock.Engine(
        model=str(folder), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=4096,
        chunked_prefill_size=1024, memory_fraction=0.5, **settings,
    )  # fmt: skip
    sampling = {"temperature": 0.0, "max_new_tokens": OUTPUTS, "ignore_eos": True}
    first = engine.generate(input_ids=prompts, sampling_params=sampling)
    again = engine.generate(input_ids=prompts, sampling_params=sampling)
    cached = sum(each["meta_info"]["cached_tokens"] for each in again)
    engine.shutdown()
    gc.collect()
    torch.cuda.empty_cache()
    found = [each["output_ids"] for each in first] + [each["output_ids"] for each in again]
    print(json.dumps({"settings": settings, "cached_tokens": cached}), flush=True)
    return found


def teacher(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype).to("cuda").eval()


@torch.inference_mode()
def logits_of(model: Any, prompt: list[int], output: list[int]) -> torch.Tensor:
    """Return the logits of each output position. float32. [outputs, V]"""
    ids = torch.tensor([[*prompt, *output[:-1]]], device="cuda")
    return model(ids, logits_to_keep=len(output)).logits[0].float()


def judge(folder: Path, name: str, prompts: list[list[int]], runs: dict[str, Any]) -> dict:
    """Return how many ids differ, how far, and what is allowed."""
    exact, narrow = teacher(folder, torch.float32), teacher(folder, torch.bfloat16)
    seen: dict[tuple[int, ...], tuple[torch.Tensor, float]] = {}
    error, records = 0.0, {}
    for run, outputs in runs.items():
        differ, worst, count = 0, 0.0, 0
        for prompt, output in zip(prompts * 2, outputs, strict=True):
            key = (len(prompt), *prompt[-8:], *output)
            if key not in seen:
                right = logits_of(exact, prompt, output)
                off = (logits_of(narrow, prompt, output) - right).abs().max()
                chosen = right.gather(1, torch.tensor(output, device="cuda")[:, None])[:, 0]
                seen[key] = (right.max(dim=1).values - chosen, float(off))
            below, off = seen[key]
            error = max(error, off)
            differ += int((below > 0).sum())
            worst = max(worst, float(below.max()))
            count += len(output)
        records[run] = {"ids": count, "differ": differ, "furthest_below": worst}
    same = {
        run: sum(a == b for a, b in zip(outputs, next(iter(runs.values())), strict=True))
        for run, outputs in runs.items()
    }
    allowed = 2 * error
    passed = all(record["furthest_below"] <= allowed for record in records.values())
    return {
        "model": name, "bf16_error": error, "allowed": allowed, "runs": records,
        "same_outputs_as_first": same, "of": len(prompts) * 2, "passed": passed,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="small,qwen3-0.6b")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = []
    for name in args.models.split(","):
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            save(name, folder)
            prompts = prompts_of(SMALL["vocab_size"])
            runs = {
                "tree": generate(folder, prompts),
                "no tree": generate(folder, prompts, prefix_cache=False),
                "eager": generate(folder, prompts, graphs=False),
            }
            found.append(judge(folder, name, prompts, runs))
            gc.collect()
            torch.cuda.empty_cache()
        print(json.dumps(found[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    sys.exit(0 if all(record["passed"] for record in found) else 1)


if __name__ == "__main__":
    main()
