"""What the API process says of a model."""

from __future__ import annotations

from pathlib import Path

from headstock.assemble.served_model import model_card
from headstock.checkpoint import ModelFiles
from headstock.config import ModelSettings
from headstock.server.prompter import Prompter
from headstock.text import Tokenizer
from tests.server.toy_tokenizer import toy_backend


def card(eos_ids, generation, **tokenizer):
    files = ModelFiles(
        kind="folder",
        path=Path("m"),
        name="m",
        config={
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 259,
            "max_position_embeddings": 64,
            "eos_token_id": eos_ids,
        },
        generation_config={"eos_token_id": generation},
        index={},
    )
    prompter = Prompter(Tokenizer(toy_backend(), **tokenizer), None)
    return model_card(files, ModelSettings(model="m"), prompter)


def test_the_tokens_of_every_source_end_a_generation():
    made = card(2, [5, 2], special={"eos_token": "<|end|>"}, end_ids=[7])
    assert made.eos_ids == [5, 2, 1, 7]
    assert card(None, None, special={"eos_token": "<|end|>"}).eos_ids == [1]
    assert card(3, None).eos_ids == [3]


def test_a_token_that_the_model_has_no_row_for_ends_nothing():
    assert card(3, None, end_ids=[259, 258]).eos_ids == [3, 258]
