"""GPT-2 by its other names: without a head, and with one that scores labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import headstock
from headstock.testing.oracle.case import prompt, randomize

SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 128}
ENGINE = {"backend": "reference", "dtype": "float32", "skip_tokenizer_init": True}
IDS = [token or 1 for token in prompt(21)]


@pytest.mark.parametrize("stem", ["GPT2", "GPTBigCode"])
@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification"])
def test_a_decoder_of_ids_yields_vectors_and_scores(tmp_path: Path, stem: str, head: str) -> None:
    options = {"initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": None}
    config = getattr(transformers, f"{stem}Config")(**SIZES, **options)
    torch.manual_seed(0)
    oracle = getattr(transformers, f"{stem}{head}")(config).eval()
    randomize(oracle)
    oracle.save_pretrained(tmp_path)
    with torch.no_grad():
        found = oracle(torch.tensor([IDS]))
    want = found.logits[0] if head != "Model" else found.last_hidden_state[0, -1]
    if head == "Model":
        want = torch.nn.functional.normalize(want, dim=0)
    with headstock.Engine(model=str(tmp_path), **ENGINE) as engine:
        assert engine.card.task == ("embed" if head == "Model" else "classify")
        (answer,) = engine.embed(input_ids=[IDS])
    got = torch.tensor(answer["embedding"])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
