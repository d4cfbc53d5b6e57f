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
        "scores": [],
        "chat_template": "{{ messages }}",
        "special_ids": {"eos": 0, "bos": 0},
        "flags": {},
    }
    return SimpleNamespace(**{**facts, **more})


def spell(tokenizer, text, **more):
    return [tokenizer.token_text(token_id) for token_id in tokenizer.encode(text, **more)]


def test_digits_split_as_the_pre_tokenizer_says():
    assert spell(Tokenizer.from_gguf(vocabulary()), "ab12") == ["ab", "1", "2"]
    assert spell(Tokenizer.from_gguf(vocabulary(pre="smaug-bpe")), "ab12") == ["ab", "12"]
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


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"])
def test_groups_that_begin_with_bos_do_so_without_the_key(pre):
    assert Tokenizer.from_gguf(vocabulary(pre=pre)).encode("ab")[0] == 0
    off = vocabulary(pre=pre, flags={"add_bos_token": False})
    assert Tokenizer.from_gguf(off).encode("ab")[0] != 0


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "deepseek-r1-qwen", "smaug-bpe", "gpt-2", ""])
def test_other_groups_begin_with_bos_only_where_the_file_says_so(pre):
    assert Tokenizer.from_gguf(vocabulary(pre=pre)).encode("ab")[0] != 0
    on = vocabulary(pre=pre, flags={"add_bos_token": True, "add_eos_token": True})
    token_ids = Tokenizer.from_gguf(on).encode("ab")
    assert (token_ids[0], token_ids[-1]) == (0, 0)


def test_the_cased_splits_part_words_where_their_tokenizers_do():
    text = "HTTPServer's café/x 1234"
    for pre, words in {
        "tekken": ["HTTPServer", "'s", " café", "/x", " ", "1", "2", "3", "4"],
        "gpt-4o": ["HTTPServer's", " café", "/x", " ", "123", "4"],
        "llama-bpe": ["HTTPServer", "'s", " café", "/x", " ", "123", "4"],
    }.items():
        split = Tokenizer.from_gguf(vocabulary(pre=pre)).backend.pre_tokenizer
        spans = [span for _, span in split.pre_tokenize_str(text)]
        assert [text[begin:end] for begin, end in spans] == words, pre


def test_control_tokens_known_by_their_text_end_a_generation():
    tokens = ["<s>", "</s>", "<|eot_id|>", "<|im_end|>", "<|end|>", "[EOS]", *byte_characters()]
    types = [3, 3, 3, 4, 3, 1] + [1] * 256
    more = {
        "special_ids": {"bos": 0, "eos": 5},
        "tokens": tokens,
        "types": types,
        "merges": ["! !"],
    }
    tokens.append("!!")
    types.append(1)
    assert sorted(Tokenizer.from_gguf(vocabulary(**more)).end_ids) == [1, 2, 3, 4, 5]
    tokens += ["<|return|>", "<|call|>"]
    types += [3, 3]
    ends = Tokenizer.from_gguf(vocabulary(**more)).end_ids
    assert 4 not in ends
    assert {tokens.index("<|return|>"), tokens.index("<|call|>")} < set(ends)


def test_unknown_kinds_are_refused_by_name():
    with pytest.raises(UnsupportedError, match="'bert'"):
        Tokenizer.from_gguf(vocabulary(model="bert"))
    with pytest.raises(UnsupportedError, match="'bloom'"):
        Tokenizer.from_gguf(vocabulary(pre="bloom"))
    with pytest.raises(CheckpointError):
        Tokenizer.from_gguf(vocabulary(merges=[]))
    with pytest.raises(CheckpointError, match="0 scores"):
        Tokenizer.from_gguf(vocabulary(model="llama"))


def test_the_unknown_piece_may_be_known_by_its_role_alone():
    """Files of Gemma have every special token as a control token, the unknown one too."""
    tokens = ["<bos>", "<unk>", "▁", "a", "▁a"]
    more = {
        "model": "llama",
        "tokens": tokens,
        "types": [3, 3, 1, 1, 1],
        "scores": [-1000.0, -1000.0, -2.0, -2.0, -1.0],
        "special_ids": {"bos": 0, "unknown": 1},
        "flags": {"add_space_prefix": False},
    }
    tokenizer = Tokenizer.from_gguf(vocabulary(**more))
    assert tokenizer.encode("a a?") == [0, 3, 4, 1]
    with pytest.raises(CheckpointError, match="0 of them for what is unknown"):
        Tokenizer.from_gguf(vocabulary(**{**more, "special_ids": {"bos": 0}}))
