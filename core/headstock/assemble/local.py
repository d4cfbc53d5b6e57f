"""Runs a model without a checkpoint to the end of some prompts: for the conformance kit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstock.assemble.offline import Engine


def run_greedy(
    model_config: Mapping[str, Any],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    **settings: Any,
) -> list[list[int]]:
    """Return the greedy output ids of ``prompts``, handed over at once.

    Weights are random, and the same on every backend.

    Args:
        model_config: In Hugging Face keys.
        prompts: Token ids of each.
        max_new_tokens: That each generates; EOS ids are ignored.
        settings: As for :class:`headstock.Engine`, such as ``backend`` or ``page_size``.
    """
    with tempfile.TemporaryDirectory(prefix="headstock-model-") as folder:
        Path(folder, "config.json").write_text(json.dumps(dict(model_config)))
        fixed: dict[str, Any] = {"load_format": "dummy", "skip_tokenizer_init": True}
        with Engine(model=folder, **(fixed | settings)) as engine:
            results = engine.generate(
                input_ids=[list(prompt) for prompt in prompts],
                sampling_params={
                    "temperature": 0.0,
                    "max_new_tokens": max_new_tokens,
                    "ignore_eos": True,
                },
            )
    return [result["output_ids"] for result in results]
