"""The tokenizer of a Hugging Face folder, whichever files hold it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from headstock.checkpoint.bounded import (
    MAX_TOKENIZER_BYTES,
    MAX_VOCABULARY_BYTES,
    check_regular,
    read_bounded,
    read_json_bounded,
    read_text_bounded,
)
from headstock.errors import CheckpointError, UnsupportedError
from headstock.text import sentencepiece, tiktoken_file
from headstock.text.splits import QWEN2

NAMED_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
FILES = ("tokenizer.json", "vocab.json and merges.txt", "tokenizer.model", "a tiktoken vocabulary")
_LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast")
_QWEN = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_GPT2 = ("GPT2Tokenizer", "GPT2TokenizerFast")


@dataclass(frozen=True, slots=True)
class FolderTokenizer:
    """What a folder holds.

    Attributes:
        backend: The tokenizer.
        special: Named special tokens, such as ``bos_token``.
        chat_template: Jinja source, or None.
    """

    backend: Tokenizer
    special: dict[str, str]
    chat_template: str | None


def read_folder(folder: Path) -> FolderTokenizer:
    """Read the tokenizer files of ``folder``.

    Raises:
        CheckpointError: There are none, or a file does not parse.
        UnsupportedError: They are of a tokenizer that is not known here.
    """
    config = _read_json(folder / "tokenizer_config.json")
    special = _special_tokens(_read_json(folder / "special_tokens_map.json"))
    special |= _special_tokens(config)
    if (folder / FILES[0]).exists():
        backend = read_file(folder / FILES[0])
        _add_tokens(backend, config, {}, special)  # what stands round a text is in the file
    else:
        backend = _build(folder, config)
        special = _default_special(folder, config) | special
        _add_tokens(backend, config, _read_json(folder / "added_tokens.json"), special)
        frame(backend, config, special)
    template_file = folder / "chat_template.jinja"
    if template_file.exists():
        template = read_text_bounded(template_file)
    else:
        template = _template_of(config.get("chat_template"))
    return FolderTokenizer(backend, special, template)


def read_file(path: str | Path) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        CheckpointError: The file is missing or does not parse.
    """
    try:
        # The library raises plain Exception for whatever it cannot parse.
        return Tokenizer.from_str(read_text_bounded(Path(path), MAX_TOKENIZER_BYTES))
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}.",
            remedy="Check the path, or pass --tokenizer.",
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a tokenizer this version can read: {error}.",
            remedy="Download the model again, or pass --tokenizer.",
        ) from error


def frame(backend: Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Put the tokens round a text that the configuration asks for; without a word of it, none."""
    if not any(isinstance(config.get(f"add_{name}"), bool) for name in ("bos_token", "eos_token")):
        return
    texts = {
        name: special[name]
        for name in ("bos_token", "eos_token")
        if config.get(f"add_{name}") and name in special
    }
    ids = {text: backend.token_to_id(text) for text in texts.values()}
    backend.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=[
            *([texts["bos_token"]] if "bos_token" in texts else []),
            "$A",
            *([texts["eos_token"]] if "eos_token" in texts else []),
        ],
        special_tokens=[(text, index) for text, index in ids.items() if index is not None],
    )


def _build(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer of a folder without ``tokenizer.json`` from what is there."""
    kind = _class_of(folder, config)
    model, ranks = folder / "tokenizer.model", tiktoken_file.find_file(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _byte_level(folder, kind, config)
    if ranks is not None:
        return tiktoken_file.build(ranks, config)
    if not model.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer: neither {', nor '.join(FILES)}.",
            remedy="Download the tokenizer's files, or pass --tokenizer.",
        )
    try:
        pieces = sentencepiece.read_model(read_bounded(model, MAX_VOCABULARY_BYTES))
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{model} is not a SentencePiece model: {error}.",
            remedy="Download the file again, or give a tokenizer.json.",
        ) from error
    return sentencepiece.build(pieces, "every chunk" if config.get("legacy") else "first")


def _class_of(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the class of ``transformers`` that the folder is for."""
    named = config.get("tokenizer_class")
    if isinstance(named, str):
        return named
    family = str(_read_json(folder / "config.json").get("model_type", ""))
    return _QWEN[0] if family.startswith("qwen") else _LLAMA[0] if family else _GPT2[0]


def _byte_level(folder: Path, kind: str, config: Mapping[str, Any]) -> Tokenizer:
    """Build byte-level BPE; how text is split before it is its class's business."""
    if kind not in (*_QWEN, *_GPT2):
        raise UnsupportedError(
            f"{folder} has vocab.json and merges.txt of a {kind}; without tokenizer.json those of"
            f" {_QWEN[0]} and {_GPT2[0]} are known.",
            remedy="Save the tokenizer with transformers, which writes a tokenizer.json.",
        )
    for name in ("vocab.json", "merges.txt"):
        check_regular(folder / name, MAX_VOCABULARY_BYTES)
    try:
        # The library's stub does not say what the keywords are.
        model = models.BPE.from_file(  # pyright: ignore[reportUnknownMemberType]
            str(folder / "vocab.json"), str(folder / "merges.txt")
        )
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(
            f"{folder / 'vocab.json'} and merges.txt are no vocabulary: {error}.",
            remedy="Download the files again.",
        ) from error
    backend = Tokenizer(model)
    adds_space = bool(config.get("add_prefix_space"))
    split: pre_tokenizers.PreTokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_space)
    if kind in _QWEN:
        backend.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
        split = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=adds_space, use_regex=False),
            ]
        )
    backend.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def _default_special(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens that a class has when the files do not name them."""
    ranks = tiktoken_file.find_file(folder)
    if ranks is not None:
        return dict(tiktoken_file.find_scheme(ranks, config).special)
    kind = _class_of(folder, config)
    end = "<|endoftext|>"
    if kind in _LLAMA:
        return {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind in _QWEN:
        return {"eos_token": end, "unk_token": end, "pad_token": end}
    return {"bos_token": end, "eos_token": end, "unk_token": end} if kind in _GPT2 else {}


def _add_tokens(
    backend: Tokenizer,
    config: Mapping[str, Any],
    legacy: Mapping[str, Any],
    special: Mapping[str, str],
) -> None:
    """Add the tokens that stand outside of the vocabulary's file, in the order of their ids.

    Named special tokens are special whether the vocabulary says so or not.
    """
    known = backend.get_added_tokens_decoder()
    named = dict.fromkeys([*special.values(), *_extra_special(config)])
    declared = dict(sorted([*_declared(config, legacy, set(named))], key=lambda item: item[0]))
    added = [t for index, t in declared.items() if index not in known or known[index] != t]
    present = {token.content for token in (*known.values(), *added)}
    added += [AddedToken(text, special=True) for text in named if text not in present]
    backend.add_tokens(  # pyright: ignore[reportUnknownMemberType]
        [token for token in added if token.content]
    )


def _declared(
    config: Mapping[str, Any], legacy: Mapping[str, Any], named: set[str]
) -> Iterator[tuple[int, AddedToken]]:
    """Yield id and token of ``added_tokens_decoder``, else of the older ``added_tokens.json``."""
    decoder = config.get("added_tokens_decoder")
    if not isinstance(decoder, Mapping):
        for text, index in legacy.items():
            if isinstance(index, int):
                yield index, AddedToken(text, special=text in named)
        return
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for index, value in cast("Mapping[str, Any]", decoder).items():
        text = _text_of(value)
        if index.isdecimal() and text is not None:
            token = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else None
            given = {flag: bool(token[flag]) for flag in flags if flag in token} if token else {}
            if text in named:
                given["special"] = True
            yield int(index), AddedToken(text, **given)


def _extra_special(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the special tokens without a name, as older and newer files list them."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        values: Any = config.get(key) or []
        if isinstance(values, Mapping):
            values = cast("Mapping[str, Any]", values).values()
        for value in cast("Iterable[Any]", values if not isinstance(values, str) else [values]):
            text = _text_of(value)
            if text is not None:
                yield text


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json_bounded(path)
    except FileNotFoundError:
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _text_of(value: object) -> str | None:
    """Return a token's text, written as such or as an object with ``content``."""
    if isinstance(value, Mapping):
        value = cast("Mapping[str, object]", value).get("content")
    return value if isinstance(value, str) else None


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    found = {name: _text_of(config.get(name)) for name in NAMED_SPECIAL}
    return {name: text for name, text in found.items() if text is not None}


def _template_of(value: object) -> str | None:
    """Return the default template: older files keep a list of named ones."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Iterable):
        return None
    items = [
        cast("Mapping[str, object]", item)
        for item in cast("Iterable[object]", value)
        if isinstance(item, Mapping)
    ]
    named = {item.get("name"): item.get("template") for item in items}
    template = named.get("default")
    return template if isinstance(template, str) else None
