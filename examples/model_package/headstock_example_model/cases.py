"""What the oracle kit compares: the cases of docs/adding-a-model.md, from its text."""

from __future__ import annotations

import transformers

from headstock.testing.oracle.case import ModelCase
from headstock_example_model.tiny import TinyForCausalLM

CASES = [
    ModelCase(
        name="tiny",
        model=TinyForCausalLM,
        config=transformers.LlamaConfig,
        oracle=transformers.LlamaForCausalLM,
        variants={"one-kv-head": {"num_key_value_heads": 1}},
        refused={"hidden_act": "gelu", "tie_word_embeddings": True},
    )
]
