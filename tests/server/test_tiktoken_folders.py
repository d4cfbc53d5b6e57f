"""Folders with tiktoken's vocabularies give tiktoken's ids."""

from __future__ import annotations

import base64
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from headstock.errors import CheckpointError, UnsupportedError
from headstock.text import Tokenizer
from headstock.text.splits import KIMI, LLAMA3, QWEN2

tiktoken = pytest.importorskip("tiktoken")

WORDS = "the quick brown fox jumps over lazy dogs while newlines don't 漢字 語 été 1234 aaaa"
TEXTS = [
    "The quick brown fox, 12345 DON'T jump!\n\n  over   the\tdog's 漢字abc語 ÉTÉ e\u0301te\u0301",
    "a aa aaa aaaa aaaaa newlines thethe foxfox",
    "\r\n \n x='s\t🎉 Ünïcode naïve",
    "",
    "   ",
]


def vocabulary(seed: int) -> dict[bytes, int]:
    """Return bytes, and tokens each of which is two others, as training would make them."""
    draw = random.Random(seed)
    tokens = [bytes([value]) for value in range(256)]
    draw.shuffle(tokens)
    known = set(tokens)
    sources = [word.encode() for word in f"{WORDS} {WORDS.upper()} {WORDS.title()}".split()]
    sources += [b" " + word for word in sources] + [b"\n\n", b"  ", b"   "]
    while len(tokens) < 700:
        word = draw.choice(sources)
        begin = draw.randrange(len(word))
        token = word[begin : begin + draw.randint(2, 6)]
        is_whole = any(token[:n] in known and token[n:] in known for n in range(1, len(token)))
        if len(token) > 1 and token not in known and is_whole:
            known.add(token)
            tokens.append(token)
    return {token: rank for rank, token in enumerate(tokens)}


def write(folder: Path, name: str, ranks: dict[bytes, int], **config: object) -> None:
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items()]
    (folder / name).write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def oracle(pattern: str, ranks: dict[bytes, int], special: dict[str, int]) -> Any:
    return tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def same(ours: Tokenizer, theirs: Any, *, composes: bool = False) -> None:
    draw = random.Random(1)
    mixed = ["".join(draw.choices(WORDS + "\n ", k=60)) for _ in range(40)]
    for text in TEXTS + mixed:
        given = unicodedata.normalize("NFC", text) if composes else text
        want = theirs.encode(given, allowed_special="all")
        assert ours.encode(text) == want, text
        assert ours.decode(want) == given
        for token in want:
            assert ours.token_bytes(token) == theirs.decode_single_token_bytes(token)


@pytest.mark.parametrize("seed", range(3))
def test_a_qwen_folder_has_its_marks_behind_the_vocabulary(tmp_path: Path, seed: int) -> None:
    ranks = vocabulary(seed)
    write(tmp_path, "qwen.tiktoken", ranks, tokenizer_class="QWenTokenizer")
    ours = Tokenizer.from_folder(tmp_path)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205))]
    special = {name: len(ranks) + n for n, name in enumerate(names)}
    same(ours, oracle(QWEN2, ranks, special), composes=True)
    assert ours.vocab_size == len(ranks) + 208
    assert ours.end_ids == (special["<|endoftext|>"],)
    text = "<|im_start|>user\nthe fox<|im_end|>"
    assert ours.encode(text) == oracle(QWEN2, ranks, special).encode(text, allowed_special="all")


@pytest.mark.parametrize("seed", range(3))
def test_a_kimi_folder_parts_han_from_letters_and_names_what_it_reserves(
    tmp_path: Path, seed: int
) -> None:
    ranks = vocabulary(seed)
    begin = len(ranks)
    added = {begin: "[BOS]", begin + 1: "[EOS]", begin + 5: "<|im_end|>", begin + 255: "[PAD]"}
    write(
        tmp_path,
        "tiktoken.model",
        ranks,
        tokenizer_class="TikTokenTokenizer",
        added_tokens_decoder={str(n): {"content": text} for n, text in added.items()},
        bos_token="[BOS]",
        eos_token="[EOS]",
    )
    ours = Tokenizer.from_folder(tmp_path)
    special = {
        added.get(index, f"<|reserved_token_{index}|>"): index
        for index in range(begin, begin + 256)
    }
    same(ours, oracle(KIMI, ranks, special))
    assert ours.vocab_size == begin + 256
    assert {ours.token_id(name) for name in special} == set(special.values())
    assert ours.special_id("eos_token") == begin + 1
    assert [ours.token_id(text) for text in added.values()] == list(added)


def test_the_pattern_of_kimi_is_the_authors() -> None:
    """As their code has it, put together otherwise here."""
    upper, lower = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
    ends = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    assert KIMI.split("|[^\\r\\n\\p{L}\\p{N}]?") == [
        r"[\p{Han}]+",
        rf"[{upper}&&[^\p{{Han}}]]*[{lower}&&[^\p{{Han}}]]+{ends}",
        rf"[{upper}&&[^\p{{Han}}]]+[{lower}&&[^\p{{Han}}]]*{ends}"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]


def test_a_folder_of_transformers_own_class_is_as_transformers_reads_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ranks = vocabulary(5)
    extra = {str(len(ranks) + n): {"content": f"<{n}>"} for n in (0, 2)}
    write(
        tmp_path,
        "tiktoken.model",
        ranks,
        tokenizer_class="PreTrainedTokenizerFast",
        added_tokens_decoder=extra,
    )
    ours = Tokenizer.from_folder(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    special = {f"<{n}>": len(ranks) + n for n in (0, 2)}
    same(ours, oracle(LLAMA3, ranks, special))
    for text in [*TEXTS, "a<0>b<2>c"]:
        assert ours.encode(text) == theirs(text)["input_ids"], text


def test_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, "x.tiktoken", vocabulary(0), tokenizer_class="OtherTokenizer")
    with pytest.raises(UnsupportedError, match="OtherTokenizer"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("spoil", ["no base64", "a gap", "no byte", "two files"])
def test_damaged_vocabularies_are_refused(tmp_path: Path, spoil: str) -> None:
    ranks = vocabulary(0)
    if spoil == "a gap":
        ranks[b"the quick"] = len(ranks) + 1
    if spoil == "no byte":
        ranks = {t: n for n, t in enumerate(t for t in ranks if t != b"a")}
    write(tmp_path, "q.tiktoken", ranks, tokenizer_class="QWenTokenizer")
    if spoil == "no base64":
        (tmp_path / "q.tiktoken").write_text("?? 0\n")
    if spoil == "two files":
        write(tmp_path, "r.tiktoken", ranks, tokenizer_class="QWenTokenizer")
    with pytest.raises(CheckpointError, match="tiktoken"):
        Tokenizer.from_folder(tmp_path)
