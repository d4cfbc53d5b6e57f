"""Accuracy of quantised weights: next-token distributions against transformers in float32.

    python benchmarks/cpu_accuracy.py                  50 prompts; some minutes on two cores
    python benchmarks/cpu_accuracy.py --prompts 6      to see that it runs; nothing is written
    python benchmarks/cpu_accuracy.py --parts int8     some parts

The default model's blocks are dequantised into a folder of float32 weights, which transformers
and this engine both load. The engine's greedy continuation of each prompt is read by transformers
in one pass: the ids are those of its own greedy decoding if each is its likeliest one there. The
distributions of the other parts are compared at every position of prompt and continuation, over
the whole vocabulary. Writes benchmarks/results/cpu-accuracy-DATE.json.

float32   the float32 weights              greedy ids identical on every prompt
int8      the same, --quantization int8    KL divergence of the next token below 0.02
int4      the same, --quantization int4    below 0.05
blocks    the file's own 4-bit blocks      below 0.05
int8-kv   int8, and --kv-dtype int8        below 0.02

A part's figure is the mean over the prompts of the divergence at a prompt's last token, in nats;
the mean and the highest over all positions stand beside it.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cpu
import torch
import transformers
from torch import Tensor

import headstock
from headstock.assemble.backend import open_backend
from headstock.assemble.model import load_model
from headstock.assemble.progress import silent
from headstock.checkpoint import resolve
from headstock.checkpoint.pull import ensure
from headstock.cli.table import format_table
from headstock.config import EngineSettings, settings_from_call
from headstock.ops.cases.batches import make_step
from headstock.text import Tokenizer

OUTPUTS = 32
MAX_LENGTH = 256
ASKED = (
    "What is {}?", "Explain {} to a child in two sentences.", "Write a short poem about {}.",
    "The history of {} begins", "Three facts about {}:\n1.",
)  # fmt: skip
SUBJECTS = (
    "rain", "the Roman empire", "prime numbers", "a violin", "photosynthesis", "the stock market",
    "chess", "bread", "the moon", "Python's list comprehension",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """Weights and pages to judge.

    Attributes:
        limit: Most that the divergence may be. Nats.
        has_blocks: Whether the file is served as it is, in place of its float32 weights.
        settings: Of the engine.
    """

    limit: float
    settings: dict[str, Any]
    has_blocks: bool = False


PARTS = {
    "int8": Part(0.02, {"quantization": "int8"}),
    "int4": Part(0.05, {"quantization": "int4"}),
    "blocks": Part(0.05, {}, has_blocks=True),
    "int8-kv": Part(0.02, {"quantization": "int8", "kv_dtype": "int8"}),
}


def prompts(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Return the ids of prompts, chats and beginnings of texts by turns of subjects."""
    texts = itertools.islice(itertools.product(SUBJECTS, ASKED), count)
    found: list[list[int]] = []
    for subject, asked in texts:
        text = asked.format(subject)
        if not asked.startswith(("The", "Three")):
            text = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        found.append(tokenizer.encode(text))
    return found


def greedy(model: Path, asked: list[list[int]]) -> list[list[int]]:
    """Return the engine's float32 continuations, of all prompts at once."""
    with headstock.Engine(
        model=str(model), dtype="float32", max_model_len=MAX_LENGTH, skip_tokenizer_init=True
    ) as engine:
        sampling = {"temperature": 0, "max_new_tokens": OUTPUTS, "ignore_eos": True}
        answers = engine.generate(input_ids=asked, sampling_params=sampling)
    return [answer["output_ids"] for answer in answers]


@torch.inference_mode()
def expected(folder: Path, sequences: list[list[int]]) -> list[Tensor]:
    """Return transformers' log-probabilities at every position. float32. [T, V] each"""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in sequences]


@torch.inference_mode()
def ours(model: Path, part: Part, sequences: list[list[int]]) -> Iterator[Tensor]:
    """Yield the engine's log-probabilities at every position. float32. [T, V] each"""
    given = {"model": str(model), "max_model_len": MAX_LENGTH, **part.settings}
    opened = open_backend(settings_from_call(EngineSettings, given))
    loaded = load_model(opened, resolve(str(model)), silent)
    num_pages = MAX_LENGTH // loaded.ctx.page_size + 1
    for layer in loaded.ctx.attention_layers:
        provider = layer.provider
        layer.kv = opened.device.empty(provider.kv_shape(num_pages), provider.page_format.dtype)
    for ids in sequences:
        batch = make_step(
            [(len(ids), len(ids))], loaded.ctx.page_size, opened.device.torch_device
        ).batch
        for provider in loaded.ctx.providers.values():
            provider.plan(batch)
        hidden_TD = loaded.model(torch.tensor(ids), batch)
        yield loaded.model.logits(hidden_TD).log_softmax(-1)
    opened.device.close()


def divergence(wanted_TV: Tensor, got_TV: Tensor) -> Tensor:
    """Return KL(wanted || got) of each position. Nats. [T]"""
    return (wanted_TV.exp() * (wanted_TV - got_TV)).sum(-1)


def judge_ids(
    asked: list[list[int]], outputs: list[list[int]], wanted: list[Tensor]
) -> dict[str, Any]:
    """Compare greedy ids with the likeliest ones of transformers."""
    identical, behind = 0, 0.0
    for prompt, output, wanted_TV in zip(asked, outputs, wanted, strict=True):
        at = wanted_TV[len(prompt) - 1 : len(prompt) - 1 + len(output)]
        chosen = at.gather(1, torch.tensor(output)[:, None])[:, 0]
        identical += bool((at.argmax(-1) == torch.tensor(output)).all())
        behind = max(behind, float((at.max(-1).values - chosen).max()))
    return {
        "part": "float32", "prompts": len(asked), "identical": identical,
        "furthest_behind": behind, "goal": f"{len(asked)} of {len(asked)} identical",
        "is_met": identical == len(asked),
    }  # fmt: skip


def judge(
    name: str, model: Path, asked: list[list[int]], sequences: list[list[int]], wanted: list[Tensor]
) -> dict[str, Any]:
    """Compare a part's distributions with those of transformers."""
    part = PARTS[name]
    lasts: list[float] = []
    everywhere: list[float] = []
    agreeing = 0
    got = ours(model, part, sequences)
    for prompt, wanted_TV, got_TV in zip(asked, wanted, got, strict=True):
        kl_T = divergence(wanted_TV, got_TV)
        lasts.append(float(kl_T[len(prompt) - 1]))
        everywhere += kl_T.tolist()
        agreeing += int((wanted_TV.argmax(-1) == got_TV.argmax(-1)).sum())
    value = statistics.mean(lasts)
    return {
        "part": name, "prompts": len(asked), "kl": value, "highest_kl": max(lasts),
        "positions": len(everywhere), "kl_everywhere": statistics.mean(everywhere),
        "highest_kl_everywhere": max(everywhere), "same_likeliest": agreeing / len(everywhere),
        "goal": f"< {part.limit:g}", "is_met": value < part.limit,
    }  # fmt: skip


def measure(parts: list[str], count: int) -> Iterator[dict[str, Any]]:
    """Yield the findings of each part."""
    path = ensure("smollm2")
    folder = cpu.write_float32(path)
    asked = prompts(Tokenizer.from_file(folder / "tokenizer.json"), count)
    outputs = greedy(folder, asked)
    sequences = [prompt + output for prompt, output in zip(asked, outputs, strict=True)]
    wanted = expected(folder, sequences)
    gc.collect()
    if "float32" in parts:
        yield judge_ids(asked, outputs, wanted)
    for name in parts:
        if name in PARTS:
            yield judge(name, path if PARTS[name].has_blocks else folder, asked, sequences, wanted)
            gc.collect()


def shown(finding: dict[str, Any]) -> tuple[str, ...]:
    met = "yes" if finding["is_met"] else "NO"
    if "kl" not in finding:
        text = f"{finding['identical']} of {finding['prompts']} identical"
        return finding["part"], text, finding["goal"], met, ""
    more = f"all positions {finding['kl_everywhere']:.4f}, same likeliest id"
    more += f" {finding['same_likeliest']:.1%}"
    return finding["part"], f"{finding['kl']:.4f}", finding["goal"], met, more


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("float32", *PARTS)
    most = len(SUBJECTS) * len(ASKED)
    parser.add_argument("--parts", default=",".join(names), help="comma separated")
    parser.add_argument("--prompts", type=int, default=most, help=f"{most} at most")
    parser.add_argument("--output-file", type=Path, help="in place of results/cpu-accuracy-DATE")
    options = parser.parse_args()
    parts = options.parts.split(",")
    unknown = sorted(set(parts) - set(names))
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; parts: {', '.join(names)}")
    if not 1 <= options.prompts <= most:
        parser.error(f"--prompts is {options.prompts}; 1 to {most} are allowed")
    findings: list[dict[str, Any]] = []
    for finding in measure(parts, options.prompts):
        findings.append(finding)
        print("  ".join(shown(finding)), file=sys.stderr, flush=True)
    header = ("part", "KL or ids", "goal", "met", "beside")
    print(format_table(header, [shown(finding) for finding in findings]))
    target = options.output_file
    if target is None and options.prompts == most:
        target = cpu.RESULTS / f"cpu-accuracy-{datetime.date.today()}.json"
    if target is not None:
        target.parent.mkdir(exist_ok=True)
        report = {"command": " ".join(sys.argv), "machine": cpu.machine(), "findings": findings}
        target.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written to {target}")
    return 0 if all(finding["is_met"] for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
