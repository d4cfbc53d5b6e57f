"""Tokenizers from GGUF vocabularies."""

from types import SimpleNamespace

import pytest

from headstock.errors import CheckpointError, UnsupportedError
from headstock.text import Tokenizer
from headstock.text.pieces import byte_characters


def vocabulary(**more):
    tokens = ["<|end|>", "<tool>", *byte_characters(), "ab", "12"]
    facts = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "types": [3, 4] + [1] * (len(tokens) - 2),
        "merges": ["a b", "1 2"],
        "chat_template": "{{ messages }}",
        "special_ids": {"eos": 0, "bos": 0},
        "flags": {},
    }
    return SimpleNamespace(**{**facts, **more})


def spell(tokenizer, text, **more):
    return [tokenizer.token_text(token_id) for token_id in tokenizer.encode(text, **more)]


def test_digits_split_as_the_pre_tokenizer_says():
    assert spell(Tokenizer.from_gguf(vocabulary()), "ab12") == ["ab", "1", "2"]
    assert spell(Tokenizer.from_gguf(vocabulary(pre="llama-bpe")), "ab12") == ["ab", "12"]
    assert spell(Tokenizer.from_gguf(vocabulary(pre="qwen2")), "ab12") == ["ab", "1", "2"]
    assert spell(Tokenizer.from_gguf(vocabulary(pre="default")), "ab12") == ["ab", "12"]


def test_control_tokens_are_special_and_user_defined_ones_are_not():
    tokenizer = Tokenizer.from_gguf(vocabulary())
    token_ids = tokenizer.encode("ab<|end|><tool>")
    assert token_ids[1:] == [0, 1]
    assert tokenizer.decode(token_ids) == "ab<tool>"
    assert tokenizer.special == {"bos_token": "<|end|>", "eos_token": "<|end|>"}


def test_a_beginning_of_sequence_token_is_added_where_the_file_says_so():
    tokenizer = Tokenizer.from_gguf(vocabulary(flags={"add_bos_token": True}))
    assert tokenizer.encode("ab")[0] == 0
    assert tokenizer.encode("ab", add_special_tokens=False)[0] != 0


def test_unknown_kinds_are_refused_by_name():
    with pytest.raises(UnsupportedError, match="'llama'"):
        Tokenizer.from_gguf(vocabulary(model="llama"))
    with pytest.raises(UnsupportedError, match="'bloom'"):
        Tokenizer.from_gguf(vocabulary(pre="bloom"))
    with pytest.raises(CheckpointError):
        Tokenizer.from_gguf(vocabulary(merges=[]))
