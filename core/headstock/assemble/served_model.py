"""What the API process needs of a model: tokenizer, chat template, card. No torch."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from headstock.assemble.model_files import length_bound
from headstock.assemble.task import Task, find_task, labels_of
from headstock.assemble.tokenizer import load_tokenizer
from headstock.checkpoint import ModelFiles
from headstock.config import MediaSettings, ModelSettings
from headstock.errors import ConfigError
from headstock.multimodal import MediaReader, MediaRules, find_family
from headstock.plugins.models import ModelRegistry, installed_models
from headstock.server.model_card import ModelCard
from headstock.server.prompter import Prompter
from headstock.server.speech import find_dialect
from headstock.text import ChatTemplate
from headstock.text.parsers.registry import FormatRegistry

STEP_END = "<extra_0>"
"""What ends each step of an answer whose steps are scored."""
VERDICTS = ("yes", "no")
"""What a reranker that generates says of a document that answers a query, and of another."""


def load_prompter(
    files: ModelFiles,
    settings: ModelSettings,
    media: MediaSettings,
    formats: FormatRegistry | None = None,
) -> Prompter:
    """Return what turns prompts into token ids.

    Args:
        files: The model's.
        settings: What the operator set of it.
        media: Likewise of images.
        formats: Of thoughts and calls; those of the installed plugins when not given.

    Raises:
        CheckpointError: The tokenizer is missing or damaged, or so are the settings for images.
        ConfigError: The chat template does not compile, or a parser is not known.
    """
    reader = media_reader(files, media)
    if settings.skip_tokenizer_init:
        return Prompter(None, None, media=reader)
    tokenizer = load_tokenizer(files, settings.tokenizer)
    source = tokenizer.chat_template
    if settings.chat_template is not None:
        source = _read_template(settings.chat_template)
    template = None if source is None else ChatTemplate(source, tokenizer.special)
    dialect = find_dialect(
        source,
        tokenizer,
        reasoning=settings.reasoning_parser,
        calls=settings.tool_call_parser,
        formats=formats,
    )
    return Prompter(tokenizer, template, dialect, reader)


def media_reader(files: ModelFiles, settings: MediaSettings) -> MediaReader | None:
    """Return what reads images for the model; None: it takes none.

    Raises:
        CheckpointError: The settings of its image processor are missing or not supported.
    """
    family = find_family(files.config, files.path)
    if family is None:
        return None
    rules = MediaRules(
        max_items=settings.max_images,
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_tokens=settings.encoder_tokens,
        max_frames=settings.max_video_frames,
        allows_urls=settings.allow_media_urls,
        fetch_timeout_s=settings.media_timeout_s,
    )
    return MediaReader(family, rules)


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template {path} cannot be read: {error}.",
            remedy="Give a file with a Jinja template.",
        ) from error


def model_card(
    files: ModelFiles,
    settings: ModelSettings,
    prompter: Prompter,
    *,
    path: str | None = None,
    registry: ModelRegistry | None = None,
) -> ModelCard:
    """Return what the server says of the model.

    Args:
        files: The model's.
        settings: What the operator set of it.
        prompter: With its tokenizer.
        path: From where a client can open the tokenizer; None: as the operator named the model.
        registry: Architectures; the installed ones when not given.

    Raises:
        CheckpointError: The configuration does not say how many ids there are.
        ConfigError: The model cannot be served for the task that is set.
        UnsupportedError: No package has the architecture.
    """
    has_config = settings.generation_config == "auto"
    tokenizer = prompter.tokenizer
    vocab_size = files.size("vocab_size")
    own_ends: tuple[int, ...] = () if tokenizer is None else tokenizer.end_ids
    task = find_task(files, settings, registry or installed_models())
    sentence = files.sentence
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
        task=task.kind,
        embedding_size=_embedding_size(files, task) if task.kind == "embed" else 0,
        is_normalized=task.pooling is not None and task.pooling.is_normalized,
        dimensions=_dimensions(files),
        prompts=dict(sentence.prompts) if sentence is not None else {},
        default_prompt=sentence.default_prompt if sentence is not None else "",
        labels=labels_of(files.config) if task.kind == "classify" else [],
        is_bounded=_is_bounded(files),
        verdict_ids=_verdict_ids(files, prompter) if task.kind == "generate" else [],
        token_tasks=list(task.of_tokens),
        scores_steps=task.scores_steps,
        step_id=tokenizer.token_id(STEP_END)
        if tokenizer is not None and task.scores_steps
        else None,
        first_id=_id(files, "bos_token_id"),
        last_id=_id(files, "reward_token_id") if task.kind == "classify" else None,
    )


def _id(files: ModelFiles, key: str) -> int | None:
    """Return the id that the configuration has under ``key``."""
    given = files.text_config.get(key)
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def _verdict_ids(files: ModelFiles, prompter: Prompter) -> list[int]:
    """Return the ids that say yes and no, of a reranker that generates; [] of others.

    It is one where its files say so, or its chat template speaks of query and document, yes and no.
    """
    if prompter.template is None or prompter.tokenizer is None:
        return []
    if files.sentence is not None and files.sentence.verdict_ids:
        return list(files.sentence.verdict_ids)
    words = set(re.findall(r"\w+", prompter.template.source))
    ids = [prompter.tokenizer.token_id(word) for word in VERDICTS]
    is_judge = words.issuperset((*VERDICTS, "query", "document"))
    return [index for index in ids if index is not None] if is_judge and None not in ids else []


def _embedding_size(files: ModelFiles, task: Task) -> int:
    """Return the elements of a vector: of the last product that it goes through, if any."""
    dense = () if task.pooling is None else task.pooling.dense
    return dense[-1].out_features if dense else files.size("hidden_size")


def _dimensions(files: ModelFiles) -> list[int]:
    """Return the sizes that vectors were trained to be cut to, where the configuration says."""
    given: Any = files.config.get("matryoshka_dimensions") or []
    return [size for size in given if isinstance(size, int)] if isinstance(given, list) else []


def _is_bounded(files: ModelFiles) -> bool:
    """Whether a reranker's scores are made probabilities: unless it is saved with none."""
    config = files.config
    given: Any = config.get("sentence_transformers")
    function = given.get("activation_fn") if isinstance(given, dict) else None
    function = function or config.get("sbert_ce_default_activation_function")
    if files.sentence is not None:
        function = files.sentence.activation or function
    return not str(function).endswith("Identity")


def _name(files: ModelFiles, model: str) -> str:
    """Return what clients call the model: as the operator did, unless that was a path."""
    return files.name if Path(model).expanduser().exists() else model
