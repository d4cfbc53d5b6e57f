"""Texts and pairs of texts with what stands round them, cut as the library itself cuts them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from headstock.text import Tokenizer

WORDS = ["[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
TEXTS = {0: "", 1: "a", 4: "a b c d", 9: "a b c d e f g h i"}


def backend() -> Backend:
    made = Backend(models.WordPiece({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return made


@pytest.mark.parametrize("kept", [3, 4, 7, 8, 11, 40])
@pytest.mark.parametrize("first", TEXTS)
@pytest.mark.parametrize("second", TEXTS)
def test_pairs_are_cut_as_the_library_cuts_them(first: int, second: int, kept: int) -> None:
    oracle = backend()
    oracle.enable_truncation(kept, strategy="longest_first")
    wanted = oracle.encode(TEXTS[first], TEXTS[second])
    got = Tokenizer(backend()).encode_parts([TEXTS[first], TEXTS[second]], keep_first=kept)
    assert got == wanted.ids


@pytest.mark.parametrize("kept", [2, 3, 5, 40])
def test_a_text_keeps_its_first_tokens_and_what_stands_round_it(kept: int) -> None:
    oracle = backend()
    oracle.enable_truncation(kept)
    wanted = oracle.encode(TEXTS[9]).ids
    assert Tokenizer(backend()).encode_parts([TEXTS[9]], keep_first=kept) == wanted


def test_types_of_tokens_are_added_to_their_ids() -> None:
    got = Tokenizer(backend()).encode_parts(["a b", "c"], type_stride=100)
    assert got == [1, 3, 4, 2, 105, 102]
    assert Tokenizer(backend()).encode_parts(["a b", "c"]) == [1, 3, 4, 2, 5, 2]


def test_a_word_of_any_length_may_be_one_unknown_token() -> None:
    tokenizer = Tokenizer(backend())
    assert len(tokenizer.encode("x" * 10_000)) == 3
    assert 10_000 // tokenizer.longest_token == 0
