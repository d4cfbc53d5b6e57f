"""Incremental text equals decoding everything at once, however the ids arrive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from headstock.text import Tokenizer, make_detokenizer
from headstock.text.detokenizer import ByteDetokenizer, PrefixDetokenizer
from tests.server.toy_tokenizer import toy_backend

BYTES = Tokenizer(toy_backend())
ids = st.lists(st.integers(0, 258), max_size=60)
text = st.text(max_size=40)


def metaspace():
    """A SentencePiece-like tokenizer: words with a leading mark, byte fall-back."""
    words = ["<unk>", "\u2581", "\u2581a", "b", "\u2581hello", "é"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Backend(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend)


SPACED = metaspace()


def run(detokenizer, token_ids):
    pieces = [detokenizer.push(token_id) for token_id in token_ids]
    return pieces, "".join(pieces) + detokenizer.flush()


@given(ids, st.booleans())
def test_byte_level_pieces_join_to_one_shot_decoding(token_ids, skip):
    detokenizer = make_detokenizer(BYTES, skip_special_tokens=skip)
    assert isinstance(detokenizer, ByteDetokenizer)
    assert run(detokenizer, token_ids)[1] == BYTES.decode(token_ids, skip_special_tokens=skip)


@given(text)
def test_a_character_is_never_broken(words):
    pieces, whole = run(make_detokenizer(BYTES), BYTES.encode(words))
    assert whole == words
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in words


@given(ids)
def test_prefix_differences_agree_with_the_table_on_byte_level(token_ids):
    assert run(PrefixDetokenizer(BYTES), token_ids)[1] == BYTES.decode(token_ids)


@given(st.lists(st.one_of(st.integers(1, 5).map(lambda i: [i]), st.text(max_size=3).map(
    lambda word: [6 + byte for byte in word.encode()])), max_size=15))  # fmt: skip
def test_sentencepiece_pieces_join_to_one_shot_decoding(parts):
    token_ids = [token_id for part in parts for token_id in part]
    detokenizer = make_detokenizer(SPACED)
    assert isinstance(detokenizer, PrefixDetokenizer)
    assert run(detokenizer, token_ids)[1] == SPACED.decode(token_ids)


def test_bytes_that_never_become_a_character_come_out_at_the_end():
    pieces, whole = run(make_detokenizer(BYTES), [0xE2 + 3, 0x82 + 3])
    assert pieces == ["", ""]
    assert whole == "\ufffd"


def test_special_tokens_show_only_when_asked():
    token_ids = BYTES.encode("a<|end|>b")
    assert run(make_detokenizer(BYTES), token_ids)[1] == "ab"
    assert run(make_detokenizer(BYTES, skip_special_tokens=False), token_ids)[1] == "a<|end|>b"


def test_an_id_without_an_entry_has_no_text():
    assert BYTES.token_text(100_000) == ""


@pytest.mark.parametrize(
    ("token_id", "raw"), [(3 + 0xE2, b"\xe2"), (3 + 97, b"a"), (1, b"<|end|>")]
)
def test_token_bytes_are_the_bytes_it_stands_for(token_id, raw):
    assert BYTES.token_bytes(token_id) == raw


def spaced_words(decoder):
    """A tokenizer whose words carry the mark of the space before them."""
    words = ["<unk>", "<s>", "</s>", "\u2581", *"abc", "\u2581a", "\u2581b", "\u2581c", "é"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Backend(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    backend.decoder = decoder
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend)


DECODERS = {
    "strip": SPACED.backend.decoder,
    "metaspace": decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace("\u2581", prepend_scheme="always")]
    ),
    "word pieces": decoders.WordPiece(prefix="##"),
}


@pytest.mark.parametrize("kind", DECODERS)
@given(data=st.data(), skip=st.booleans())
def test_text_is_what_the_output_adds_to_the_prompt(kind, data, skip):
    tokenizer = spaced_words(DECODERS[kind])
    words = st.lists(st.integers(1, 10), max_size=12)
    prompt_ids, output_ids = data.draw(words), data.draw(words)
    detokenizer = make_detokenizer(tokenizer, prompt_ids=prompt_ids, skip_special_tokens=skip)
    whole = tokenizer.decode([*prompt_ids, *output_ids], skip_special_tokens=skip)
    told = tokenizer.decode(prompt_ids, skip_special_tokens=skip)
    assert run(detokenizer, output_ids)[1] == whole[len(told) :]


def test_the_space_before_the_first_generated_word_stays():
    tokenizer = spaced_words(DECODERS["strip"])
    prompt_ids = [7, 5, 6]  # "abc"
    pieces, whole = run(make_detokenizer(tokenizer, prompt_ids=prompt_ids), [8, 8])
    assert pieces == [" b", " b"]
    assert whole == " b b"
    assert run(make_detokenizer(tokenizer, prompt_ids=[1]), [8, 8])[1] == "b b"
    assert run(make_detokenizer(tokenizer, prompt_ids=[*prompt_ids, *[2] * 9]), [8])[1] == " b"
