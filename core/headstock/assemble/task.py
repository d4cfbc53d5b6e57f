"""What a model is served for: generating, embedding or classifying. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from headstock.checkpoint import ModelFiles
from headstock.checkpoint.sentence import SCORES, Pooling, PoolKind
from headstock.config import EngineSettings, ModelSettings
from headstock.errors import ConfigError, UnsupportedError, did_you_mean
from headstock.plugins.models import ModelRegistry

Kind = Literal["generate", "embed", "classify"]
CLASSIFIER = "ForSequenceClassification"
REWARD, STEP_REWARDS = "ForRewardModel", "ForProcessRewardModel"
CLASSIFIERS = (CLASSIFIER, REWARD, STEP_REWARDS)
DECODER = "ForCausalLM"
BASE = "Model"
MASKED = "ForMaskedLM"
OLD_DECODER = "LMHeadModel"
"""What GPT-2 ends in."""
SEEING = "ForConditionalGeneration"
"""What decoders that see images end in."""
_HEADS = (*CLASSIFIERS, DECODER, MASKED, OLD_DECODER, BASE)


@dataclass(frozen=True, slots=True)
class Task:
    """What a model is served for, and which class does it.

    Attributes:
        kind: ``generate`` text, ``embed`` texts as vectors, or ``classify`` them: scores of labels.
        architecture: Of the registry.
        is_converted: Whether that is a decoder, whose output layer is replaced.
        pooling: How hidden states become a vector, of models that embed.
        is_causal: Whether tokens see only what is before them; False: the configuration has a
            decoder's tokens see all of their text.
        of_tokens: What it yields of each token of a text: ``token_embed``, ``token_classify``.
        scores_steps: Whether that is all that it yields, and scores of the steps of an answer.
    """

    kind: Kind
    architecture: str
    is_converted: bool = False
    pooling: Pooling | None = None
    is_causal: bool = True
    of_tokens: tuple[str, ...] = ()
    scores_steps: bool = False


def find_task(files: ModelFiles, settings: ModelSettings, registry: ModelRegistry) -> Task:
    """Return what the model is served for: as set, else as its files say.

    Raises:
        ConfigError: What is set does not go with the model, or with each other.
        UnsupportedError: No package has the architecture.
    """
    names = [str(name) for name in files.config.get("architectures") or []]
    kind = _kind(files, settings, names)
    both_ways = _both_ways(files.text_config)
    if kind == "generate":
        if both_ways:
            raise UnsupportedError(
                f"The configuration of {files.name} has {both_ways}: its tokens see those behind"
                " them, so it generates nothing.",
                remedy="Set --task to embed.",
            )
        if settings.pooling != "auto":
            raise ConfigError(
                f"pooling is {settings.pooling!r}, and {files.name} is served to generate.",
                remedy="Drop --pooling, or set --task to embed.",
            )
        return Task(kind, registry.choose(names).architecture)
    heads = [head for name in names for head in CLASSIFIERS if name.endswith(head)]
    wanted = (heads or [CLASSIFIER])[0] if kind == "classify" else BASE
    known = frozenset(registry.names)
    stems = [stem for name in names for stem in _stems(name)]
    own = [name for stem in stems if (name := stem + wanted) in known]
    tails = (DECODER, OLD_DECODER) if wanted in (CLASSIFIER, BASE) else ()
    decoders = [name for name in names if name.endswith(SEEING) and name in known]
    decoders += [name for stem in stems for tail in tails if (name := stem + tail) in known]
    if not own and not decoders:
        asked = ", ".join(names) or "none"
        raise UnsupportedError(
            f"The model's architecture is {asked}; no installed package has a class of it that"
            f" serves {kind}.{did_you_mean(stems[0] + wanted, known) if stems else ''}",
            remedy="`headstock serve --task generate` may serve it as what it was trained for;"
            " docs/adding-a-model.md tells how to add a class.",
        )
    if kind == "classify" and settings.pooling != "auto":
        raise ConfigError(
            f"pooling is {settings.pooling!r}, and {files.name} classifies: its class says what is"
            " scored.",
            remedy="Drop --pooling.",
        )
    pooling = _pooling(files, settings, "mean" if own else "last") if kind == "embed" else None
    of_tokens: tuple[str, ...] = () if pooling is None else tuple(h.kind for h in pooling.tokens)
    if own:
        is_steps = wanted == STEP_REWARDS
        of_tokens = (SCORES,) if is_steps else of_tokens
        return Task(kind, own[0], pooling=pooling, of_tokens=of_tokens, scores_steps=is_steps)
    return Task(
        kind,
        decoders[0],
        is_converted=True,
        pooling=pooling,
        is_causal=not both_ways,
        of_tokens=of_tokens,
    )


def check_settings(task: Task, settings: EngineSettings) -> None:
    """Refuse what goes with generating alone, of a model that does not.

    Raises:
        ConfigError: Naming the setting.
    """
    if task.kind == "generate":
        return
    speculation = settings.speculation.speculation
    if speculation != "none":
        raise ConfigError(
            f"speculation is {speculation!r}, and the model is served to {task.kind}: it draws no"
            " tokens.",
            remedy="Drop --speculation.",
        )
    if settings.lora.lora or settings.lora.max_loras:
        raise ConfigError(
            f"LoRA adapters are set, and the model is served to {task.kind}: its requests name"
            " none.",
            remedy="Drop --lora and --max-loras, or serve a checkpoint with the adapter merged in.",
        )


def _kind(files: ModelFiles, settings: ModelSettings, names: Sequence[str]) -> Kind:
    if settings.task != "auto":
        is_classifier = any(name.endswith(CLASSIFIERS) for name in names)
        if settings.task == "classify" and not is_classifier:
            raise ConfigError(
                f"task is classify, and {files.name} is a {', '.join(names) or 'model'}: it has no"
                " layer that scores labels.",
                remedy=f"Serve a checkpoint whose architecture ends in {CLASSIFIER}, or drop"
                " --task.",
            )
        return settings.task
    if any(name.endswith(CLASSIFIERS) for name in names):
        return "classify"
    if files.sentence is not None and files.sentence.verdict_ids:
        return "generate"
    is_bare = bool(names) and names[0].endswith(BASE) and not names[0].endswith(OLD_DECODER)
    if files.sentence is not None or is_bare:
        return "embed"
    return "generate"


def _stems(name: str) -> list[str]:
    """Return an architecture's name without what its head is called.

    The part that reads text of a model with a decoder's name has "Text" in its own.
    """
    stem = next((name.removesuffix(head) for head in _HEADS if name.endswith(head)), name)
    return list(dict.fromkeys((stem, stem.removesuffix("Text"))))


def _both_ways(config: Mapping[str, Any]) -> str:
    """Return what of a decoder's configuration has tokens see those behind them; "": nothing."""
    if config.get("is_causal") is False:
        return "is_causal false"
    is_set = config.get("use_bidirectional_attention") is True
    return "use_bidirectional_attention true" if is_set else ""


def _pooling(files: ModelFiles, settings: ModelSettings, default: PoolKind) -> Pooling:
    """Return how vectors are made: as set, as the files say, else as is usual for the model."""
    usual = Pooling(default, is_normalized=True)
    sentence = files.sentence
    own = usual if sentence is None else sentence.pooling
    if settings.pooling != "auto":
        return replace(own or usual, kind=settings.pooling)
    if own is None:
        assert sentence is not None, "a model without such files has the usual pooling"
        raise UnsupportedError(
            sentence.problem,
            remedy="Serve another model, or set --pooling to last, mean or cls, or --task to"
            " generate.",
        )
    return own


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """Return the names of a classifier's labels, in their order; [] where there are none."""
    given = config.get("id2label")
    if not isinstance(given, Mapping):
        return []
    named = cast("Mapping[Any, Any]", given)
    return [str(named[key]) for key in sorted(named, key=lambda key: int(key))]
