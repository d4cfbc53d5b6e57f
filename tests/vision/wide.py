"""What each family that sees images does beside: ranks, drafts, weights in 8 bits, adapters.

`python -m tests.vision.wide` tries every family and writes what it found beside this file, from
which docs/models.md has its columns. A family either does a thing right or refuses it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.gemma4 import image_processing_pil_gemma4

import headstock
from tests.models.adapters import ALL, adapt
from tests.models.wide import LEAST_AGREEMENT, outcome_of
from tests.vision.claims import CASES, COUNT, SETTINGS, ask, ask_all
from tests.vision.conftest import FAMILIES, VisionModel, make_model
from tests.vision.still import StillModel
from tests.vision.still_families import MAKERS
from tests.vision.test_gemma3 import make_gemma3
from tests.vision.test_gemma4 import FRAME_TOKENS, TOKENS, make_gemma4

REPORT = Path(__file__).with_name("wide.json")
Seeing = StillModel | VisionModel
ASKED = [CASES[name] for name in ("text alone", "one image", "two images")]
OF_TEXT = ("language_model.", "text_model.")
"""What modules of the text have in their names."""


@contextmanager
def small_images() -> Iterator[None]:
    """Let Gemma 4 have images of fewer tokens than its processor otherwise allows."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = (TOKENS, FRAME_TOKENS)
        patch.setattr(image_processing_pil_gemma4, "_SUPPORTED_SOFT_TOKENS", sizes)
        yield


def make_large_gemma4(path: Path) -> StillModel:
    """Return Gemma 4 with experts."""
    with small_images():
        model = make_gemma4(path, "large")

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        with small_images():
            return model.prepare(ids, images)

    return replace(model, prepare=prepare)


BY_ARCHITECTURE: dict[str, Callable[[Path], Seeing]] = {
    "Gemma3ForConditionalGeneration": make_gemma3,
    "Gemma4ForConditionalGeneration": make_large_gemma4,
    "Glm46VForConditionalGeneration": MAKERS["glm46v"],
    "Glm4vForConditionalGeneration": MAKERS["glm4v"],
    "Glm4vMoeForConditionalGeneration": MAKERS["glm4v-moe"],
    "GlmOcrForConditionalGeneration": MAKERS["glm-ocr"],
    "Idefics3ForConditionalGeneration": MAKERS["idefics3"],
    "InternVLForConditionalGeneration": MAKERS["internvl"],
    "Llama4ForConditionalGeneration": MAKERS["llama4"],
    "LlavaForConditionalGeneration": MAKERS["llava"],
    "LlavaNextForConditionalGeneration": MAKERS["llava-next"],
    "LlavaOnevisionForConditionalGeneration": MAKERS["llava-onevision"],
    "Mistral3ForConditionalGeneration": MAKERS["mistral3"],
    "Qwen2VLForConditionalGeneration": MAKERS["qwen2-vl"],
    "Qwen2_5_VLForConditionalGeneration": MAKERS["qwen2.5-vl"],
    "SmolVLMForConditionalGeneration": MAKERS["smolvlm"],
    **{f"{name}ForConditionalGeneration": partial(make_model, name) for name in FAMILIES},
}


def ranks(model: Seeing) -> None:
    """Two ranks draw what transformers draws."""
    with headstock.Engine(model=str(model.path), tp_size=2, **SETTINGS) as engine:
        assert ask_all(engine, ASKED) == [model.generate(*case, COUNT) for case in ASKED]


def drafts(model: Seeing) -> None:
    """Drafts change no greedy token."""
    settings = SETTINGS | {"speculation": "ngram", "num_drafts": 3}
    with headstock.Engine(model=str(model.path), **settings) as engine:
        assert ask_all(engine, ASKED) == [model.generate(*case, COUNT) for case in ASKED]


def eight_bits(model: Seeing) -> None:
    """Weights in 8 bits say nearly what they say in float32."""
    found: list[float] = []
    with headstock.Engine(model=str(model.path), quantization="int8", **SETTINGS) as engine:
        for case in ASKED:
            result = ask(engine, case, return_logprob=True, logprob_start_len=0)
            found += [entry[0] for entry in result["meta_info"]["input_token_logprobs"][1:]]
    want = torch.cat([model.logprobs(*case) for case in ASKED])
    agreement = torch.cosine_similarity(torch.tensor(found), want, dim=0).item()
    assert agreement > LEAST_AGREEMENT, f"cosine {agreement:.4f}"


def adapters(model: Seeing) -> None:
    """An adapter of the text's linear layers, but for experts, gives PEFT's greedy ids."""
    linear = [n for n, m in model.oracle.named_modules() if isinstance(m, torch.nn.Linear)]
    of_text = [name for name in linear if any(part in name for part in OF_TEXT)]
    has_experts = any(".experts" in name for name, _ in model.oracle.named_parameters())
    usual = ALL[:4] if has_experts else ALL
    targets = [name for name in of_text if name.rpartition(".")[2] in usual]
    assert targets, "the text has no linear layer of the usual names"
    with tempfile.TemporaryDirectory() as folder:
        adapter = adapt(model.oracle, Path(folder) / "a", seed=1, target_modules=targets)
        tuned = copy(model)
        tuned.oracle = adapter.oracle
        loras = {"a": str(adapter.path)}
        with headstock.Engine(model=str(model.path), loras=loras, **SETTINGS) as engine:
            got = [ask(engine, case, lora_name="a")["output_ids"] for case in ASKED]
        assert got == [tuned.generate(*case, COUNT) for case in ASKED]


CLAIMS: dict[str, Callable[[Seeing], None]] = {
    "ranks": ranks,
    "drafts": drafts,
    "int8": eight_bits,
    "adapters": adapters,
}


def outcome(model: Seeing, claim: str) -> str:
    """Try one thing, as :func:`tests.models.wide.outcome` does."""
    return outcome_of(partial(CLAIMS[claim], model))


def main() -> None:
    report: dict[str, dict[str, str]] = {}
    for name, make in BY_ARCHITECTURE.items():
        with tempfile.TemporaryDirectory() as folder:
            model = make(Path(folder) / "model")
            report[name] = {claim: outcome(model, claim) for claim in CLAIMS}
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
