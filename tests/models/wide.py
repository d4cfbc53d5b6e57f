"""What each family does beside plain text: vectors, drafts, weights in 8 bits, adapters.

`python -m tests.models.wide` tries every family and writes what it found beside this file, from
which docs/models.md has its columns. A family either does a thing right or refuses it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import headstock
from headstock.errors import HeadstockError
from headstock.testing.oracle.case import ModelCase, Saved, prompt
from tests.models.adapters import ALL, adapt
from tests.models.cases import CASES
from tests.models.harness import REGISTRY
from tests.vision.kimi import Settings

REPORT = Path(__file__).with_name("wide.json")
PROMPTS = [[5, 9, 1, 77, 31] * 5, prompt(19, seed=1)]
COUNT = 16
LEAST_AGREEMENT = 0.99
"""Cosine of log probabilities in 8 bits with those in float32."""
LARGEST_DIFFERENCE = 1e-4
"""Length of the difference of two vectors of length 1."""
ENCODER = ".vision_"
"""In the names of an encoder's modules, which take no adapters."""
WITH_IMAGES = ("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration")
"""Architectures that are not served without the settings of an image processor."""
YES, REFUSED, UNTRIED = "yes", "refused", "untried"


def save(case: ModelCase, folder: Path) -> Saved:
    """Write a checkpoint that names our class, as the engine looks for it."""
    saved, file = case.save(folder), folder / "config.json"
    name = next(name for name in REGISTRY.names if REGISTRY.load(name) is case.model)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": [name]}))
    if name in WITH_IMAGES:
        Settings().save_pretrained(folder)
    return saved


def engine(saved: Saved, **settings: Any) -> headstock.Engine:
    return headstock.Engine(
        model=str(saved.folder),
        backend="reference",
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=saved.case.max_length,
        max_running_requests=4,
        **settings,
    )


def greedy(saved: Saved, *, lora: str | None = None, **settings: Any) -> list[list[int]]:
    """Return what follows the prompts."""
    sampling = {"temperature": 0, "max_new_tokens": COUNT, "ignore_eos": True}
    with engine(saved, **settings) as served:
        results = served.generate(input_ids=PROMPTS, sampling_params=sampling, lora_name=lora)
    return [result["output_ids"] for result in results]


def log_probabilities(saved: Saved, **settings: Any) -> torch.Tensor:
    """Return the log probabilities of the prompts' own tokens."""
    sampling = {"temperature": 0, "max_new_tokens": 1, "ignore_eos": True}
    found: list[float] = []
    with engine(saved, **settings) as served:
        for ids in PROMPTS:
            result = served.generate(
                input_ids=ids, sampling_params=sampling, return_logprob=True, logprob_start_len=0
            )
            entries = result["meta_info"]["input_token_logprobs"]
            found += [value for value, *_ in entries if value is not None]
    return torch.tensor(found)


def pooling(saved: Saved) -> None:
    """A text's vector is the last token's hidden state in transformers, of length 1."""
    with engine(saved, task="embed", pooling="last") as served:
        results = served.embed(input_ids=PROMPTS)
    for result, ids in zip(results, PROMPTS, strict=True):
        got = torch.tensor(result["embedding"])
        assert (got - _last_state(saved.oracle, ids)).norm() < LARGEST_DIFFERENCE


def _last_state(oracle: Any, ids: list[int]) -> torch.Tensor:
    """Return what a model without its head makes of the last token, of length 1. [D]"""
    base = getattr(oracle, "model", oracle.base_model)
    with torch.no_grad():
        hidden_D = base(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(hidden_D, dim=0)


def drafts(saved: Saved) -> None:
    """Drafts change no greedy token."""
    assert greedy(saved, speculation="ngram", num_drafts=3) == greedy(saved)


def eight_bits(saved: Saved) -> None:
    """Weights in 8 bits say nearly what they say in float32."""
    got, want = log_probabilities(saved, quantization="int8"), log_probabilities(saved)
    agreement = torch.cosine_similarity(got, want, dim=0).item()
    assert agreement > LEAST_AGREEMENT, f"cosine {agreement:.4f}"


def adapters(saved: Saved) -> None:
    """An adapter of the linear layers of text, but for experts, gives PEFT's greedy ids."""
    linear = [
        name
        for name, module in saved.oracle.named_modules()
        if isinstance(module, torch.nn.Linear) and ENCODER not in name
    ]
    has_experts = any(".experts" in name for name, _ in saved.oracle.named_parameters())
    usual = ALL[:4] if has_experts else ALL  # PEFT adapts experts of the same names, too
    targets = sorted({name.rpartition(".")[2] for name in linear}.intersection(usual))
    if not targets:
        pytest.skip("no linear layer of the usual names")
    with tempfile.TemporaryDirectory() as folder:
        oracle: transformers.PreTrainedModel = saved.oracle
        pattern = rf"(?!.*{ENCODER}).*\.({'|'.join(targets)})"
        adapter = adapt(oracle, Path(folder) / "a", seed=1, target_modules=pattern)
        got = greedy(saved, lora="a", loras={"a": str(adapter.path)}, max_lora_rank=8)
        assert got == [adapter.greedy(ids, COUNT) for ids in PROMPTS]


CLAIMS: dict[str, Callable[[Saved], None]] = {
    "pooling": pooling,
    "drafts": drafts,
    "int8": eight_bits,
    "adapters": adapters,
}


def outcome(saved: Saved, claim: str) -> str:
    """Try one thing; see :func:`outcome_of`."""
    return outcome_of(partial(CLAIMS[claim], saved))


def outcome_of(trial: Callable[[], None]) -> str:
    """Try something.

    Returns:
        "yes", "refused: why" or "untried: why".

    Raises:
        AssertionError: It is done wrong.
    """
    try:
        trial()
    except HeadstockError as error:
        return f"{REFUSED}: {re.sub(r' in /[^ ]*', '', error.problem)}"
    except pytest.skip.Exception as why:
        return f"{UNTRIED}: {why}"
    return YES


def families() -> list[ModelCase]:
    """Return the first case of each of our classes."""
    return list({case.model: case for case in reversed(CASES)}.values())[::-1]


def main() -> None:
    report: dict[str, dict[str, str]] = {}
    for case in families():
        with tempfile.TemporaryDirectory() as folder:
            saved = save(case, Path(folder))
            report[case.name] = {claim: outcome(saved, claim) for claim in CLAIMS}
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
