"""A model of random weights that any machine runs at once."""

from __future__ import annotations

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 500,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
DUMMY = ["--load-format", "dummy", "--skip-tokenizer-init", "--backend", "reference"]
DUMMY += ["--dtype", "float32", "--cache-tokens", "1024"]
