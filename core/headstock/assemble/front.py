"""What the API process needs of a model: tokenizer, chat template, card. No torch."""

from __future__ import annotations

import time
from pathlib import Path

from headstock.assemble.length import length_bound
from headstock.checkpoint import ModelFiles
from headstock.config import ModelSettings
from headstock.errors import ConfigError
from headstock.server.model_card import ModelCard
from headstock.server.prompter import Prompter
from headstock.server.speech import find_dialect
from headstock.text import ChatTemplate, Tokenizer


def load_prompter(files: ModelFiles, settings: ModelSettings) -> Prompter:
    """Return what turns prompts into token ids.

    Raises:
        CheckpointError: The tokenizer is missing or damaged.
        ConfigError: The chat template does not compile, or a parser is not known.
    """
    if settings.skip_tokenizer_init:
        return Prompter(None, None)
    tokenizer = load_tokenizer(files, settings.tokenizer)
    source = tokenizer.chat_template
    if settings.chat_template is not None:
        source = _read_template(settings.chat_template)
    template = None if source is None else ChatTemplate(source, tokenizer.special)
    dialect = find_dialect(
        source, tokenizer, reasoning=settings.reasoning_parser, calls=settings.tool_call_parser
    )
    return Prompter(tokenizer, template, dialect)


def load_tokenizer(files: ModelFiles, path: str | None) -> Tokenizer:
    """Return the model's tokenizer, or the one at ``path``: a folder or a ``tokenizer.json``.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    if path is not None:
        is_folder = Path(path).is_dir()
        return Tokenizer.from_folder(path) if is_folder else Tokenizer.from_file(path)
    if files.read_tokenizer is not None:
        return Tokenizer.from_gguf(files.read_tokenizer())
    return Tokenizer.from_folder(files.path)


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template {path} cannot be read: {error}.",
            remedy="Give a file with a Jinja template.",
        ) from error


def model_card(
    files: ModelFiles, settings: ModelSettings, prompter: Prompter, *, path: str | None = None
) -> ModelCard:
    """Return what the server says of the model.

    Args:
        files: The model's.
        settings: What the operator set of it.
        prompter: With its tokenizer.
        path: From where a client can open the tokenizer; None: as the operator named the model.

    Raises:
        CheckpointError: The configuration does not say how many ids there are.
    """
    has_config = settings.generation_config == "auto"
    tokenizer = prompter.tokenizer
    vocab_size = files.size("vocab_size")
    own_ends: tuple[int, ...] = () if tokenizer is None else tokenizer.end_ids
    eos_ids = [*files.eos_ids, *(index for index in own_ends if index < vocab_size)]
    return ModelCard(
        name=settings.served_model_name or _name(files, settings.model),
        model_path=path or settings.model,
        tokenizer_path=settings.tokenizer or path or settings.model,
        max_length=length_bound(files, settings),
        vocab_size=vocab_size,
        eos_ids=list(dict.fromkeys(eos_ids)),
        sampling_defaults=files.default_sampling if has_config else {},
        model_type=str(files.config.get("model_type", "")),
        architectures=list(files.config.get("architectures") or []),
        dtype=settings.dtype if settings.dtype != "auto" else files.dtype,
        quantization=settings.quantization or "",
        created=int(time.time()),
    )


def _name(files: ModelFiles, model: str) -> str:
    """Return what clients call the model: as the operator did, unless that was a path."""
    return files.name if Path(model).expanduser().exists() else model
