"""Tokenizers of folders as transformers reads them, whichever files hold them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from headstock.errors import CheckpointError, UnsupportedError
from headstock.text import Tokenizer
from headstock.text.pieces import byte_characters
from headstock.text.sentencepiece import read_model
from tests.server.toy_tokenizer import toy_backend

transformers = pytest.importorskip("transformers")

TEXTS = [
    "What is the capital of France?",
    " leading, two  spaces and trailing ",
    "été 漢字 🎉 \n\n  x='s\t1234",
    "<|im_start|>user\nhello<|im_end|>\n",
    "a<s>b </s> c",
    "",
]
WORDS = ["the quick brown fox jumps over the lazy dog", "what is the capital of france", "abc abc"]


def same(ours: Tokenizer, theirs) -> None:
    for text in TEXTS:
        for special in (True, False):
            want = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, add_special_tokens=special) == want, text
        for skip in (True, False):
            token_ids = theirs(text)["input_ids"]
            want = theirs.decode(
                token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert ours.decode(token_ids, skip_special_tokens=skip) == want


def write(folder: Path, **files: object) -> None:
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / f"{name}.json").write_text(text)


def token(text: str, *, special: bool = True) -> dict[str, object]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": text, "special": special, **flags}


def test_tokens_that_only_the_configuration_adds_are_known(tmp_path: Path) -> None:
    backend = toy_backend()
    size = backend.get_vocab_size()
    backend.save(str(tmp_path / "tokenizer.json"))
    added = {
        str(size): token("<|im_start|>"),
        str(size + 1): token("<|im_end|>"),
        str(size + 2): token("<tool>", special=False),
    }
    config = {"added_tokens_decoder": added, "eos_token": "<|im_end|>", "pad_token": "<pad>"}
    write(
        tmp_path,
        tokenizer_config={**config, "tokenizer_class": "PreTrainedTokenizerFast"},
        config={"model_type": "llama"},
    )
    ours = Tokenizer.from_folder(tmp_path)
    same(ours, transformers.AutoTokenizer.from_pretrained(tmp_path))
    assert ours.encode("<|im_start|>") == [size]
    assert ours.decode([size, *ours.encode("a<tool>")]) == "a<tool>"
    assert ours.end_ids == (size + 1,)
    assert size in ours.special_ids


@pytest.mark.parametrize("adds", [(True, False), (False, True), (False, False), (True, True)])
def test_the_configuration_says_what_stands_round_a_text(tmp_path: Path, adds) -> None:
    toy_backend().save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    config |= {"add_bos_token": adds[0], "add_eos_token": adds[1]}
    write(
        tmp_path,
        tokenizer_config={**config, "tokenizer_class": "PreTrainedTokenizerFast"},
        config={"model_type": "llama"},
    )
    same(Tokenizer.from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer", None])
@pytest.mark.parametrize("is_declared", [True, False])
def test_vocabulary_and_merges_make_a_byte_level_tokenizer(tmp_path, kind, is_declared) -> None:
    vocab = {text: index for index, text in enumerate([*byte_characters(), "th", "the", "Ġthe"])}
    size = len(vocab)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n")
    added = {"<|endoftext|>": size, "<|im_start|>": size + 1, "<|im_end|>": size + 2}
    config: dict[str, object] = {"eos_token": "<|im_end|>"}
    if kind is not None:
        config["tokenizer_class"] = kind
    if is_declared:
        config["added_tokens_decoder"] = {str(i): token(text) for text, i in added.items()}
    else:
        config["additional_special_tokens"] = ["<|im_start|>"]
        write(tmp_path, added_tokens=added)
    write(tmp_path, vocab=vocab, tokenizer_config=config, config={"model_type": "qwen2"})
    ours = Tokenizer.from_folder(tmp_path)
    same(ours, transformers.AutoTokenizer.from_pretrained(tmp_path))
    assert ours.end_ids == (size + 2,)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory):
    """Return a function that trains a SentencePiece model: its file."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer

    def train(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        (folder / "words.txt").write_text("\n".join(WORDS * 40))
        trainer.train(
            input=str(folder / "words.txt"),
            model_prefix=str(folder / "tokenizer"),
            vocab_size=320,
            model_type=kind,
            byte_fallback=True,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
        return folder / "tokenizer.model"

    return train


@pytest.mark.parametrize("adds", [None, True, False])
def test_a_sentencepiece_model_makes_a_llama_tokenizer(tmp_path: Path, pieces, adds) -> None:
    (tmp_path / "tokenizer.model").write_bytes(pieces("bpe").read_bytes())
    config: dict[str, object] = {"tokenizer_class": "LlamaTokenizer"}
    if adds is not None:
        config |= {"add_bos_token": adds, "add_eos_token": True}
    write(tmp_path, tokenizer_config=config, config={"model_type": "llama"})
    ours = Tokenizer.from_folder(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    same(ours, theirs)
    assert ours.end_ids == (2,)
    assert ours.special["bos_token"] == "<s>"


def test_a_gguf_vocabulary_of_sentencepiece_encodes_as_sentencepiece(pieces) -> None:
    path = pieces("bpe")
    found = read_model(path.read_bytes())
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(path))
    vocabulary = SimpleNamespace(
        model="llama",
        pre="default",
        tokens=found.texts,
        scores=found.scores,
        types=found.kinds,
        merges=[],
        chat_template=None,
        special_ids={"bos": 1, "eos": 2, "unknown": 0},
        flags={},
    )
    ours = Tokenizer.from_gguf(vocabulary)
    assert found.adds_prefix
    assert not found.is_unigram
    for text in [t for t in TEXTS if "<s>" not in t]:
        want = processor.encode(text)
        assert ours.encode(text) == [1, *want]
        assert ours.decode(want) == processor.decode(want)
    assert ours.encode("the</s>", add_special_tokens=False)[-1] == 2
    plain = SimpleNamespace(**{**vars(vocabulary), "flags": {"add_bos_token": False}})
    assert Tokenizer.from_gguf(plain).encode("the") == processor.encode("the")


def test_a_unigram_model_takes_the_likeliest_pieces(tmp_path: Path, pieces) -> None:
    path = pieces("unigram")
    (tmp_path / "tokenizer.model").write_bytes(path.read_bytes())
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(path))
    write(tmp_path, tokenizer_config={"tokenizer_class": "LlamaTokenizer", "add_bos_token": False})
    ours = Tokenizer.from_folder(tmp_path)
    for text in WORDS:
        assert ours.encode(text) == processor.encode(text)


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json, nor vocab\.json and merges\.txt"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        Tokenizer.from_folder(tmp_path)
    write(tmp_path, vocab={"a": 0}, tokenizer_config={"tokenizer_class": "BartTokenizer"})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UnsupportedError, match="BartTokenizer"):
        Tokenizer.from_folder(tmp_path)
