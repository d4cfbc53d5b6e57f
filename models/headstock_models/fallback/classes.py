"""Finds the class of transformers for a configuration, and refuses what cannot be served by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from headstock.errors import CheckpointError, UnsupportedError

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
CHANGING = ("dynamic", "longrope", "su")
"""Rotary scalings whose angles change with the longest request of a step."""
REMEDY = "Serve another model, or add a file for its architecture: docs/adding-a-model.md."


def find_config(config: Mapping[str, Any]) -> Any:
    """Return the configuration as transformers has it.

    Raises:
        UnsupportedError: transformers does not know its ``model_type``.
        CheckpointError: transformers refuses it.
    """
    kind = str(config.get("model_type"))
    if kind not in transformers.CONFIG_MAPPING:
        raise UnsupportedError(
            f"The model's model_type is {kind!r}: no installed package has a file for it, nor does"
            f" transformers {transformers.__version__} have a class.",
            remedy="Install a package that brings the architecture, or a newer transformers.",
        )
    try:
        found = transformers.AutoConfig.for_model(**{"model_type": kind, **config})
        # A class that knows of padding looks for it in every step.
        found.pad_token_id = None
        return found
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"transformers refuses the model's configuration: {reason or type(error).__name__}",
            remedy="Compare its config.json with the model's original.",
        ) from error


def find_class(architecture: str) -> Any:
    """Return transformers' class of that name.

    Raises:
        UnsupportedError: It has none, or its class cannot call our attention.
    """
    # By name: asking for the classes would import every model that transformers has.
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    names = {name for value in known for name in ((value,) if isinstance(value, str) else value)}
    found = getattr(transformers, architecture, None) if architecture in names else None
    if found is None:
        raise UnsupportedError(
            f"The model's architecture is {architecture}: no installed package has a file for it,"
            f" nor does transformers {transformers.__version__} have a class that generates text.",
            remedy="Install a package that brings the architecture, or a newer transformers.",
        )
    if not found._supports_attention_backend:
        _refuse(architecture, "it computes attention by itself")
    return found


def check_states(found: Any, config: Any) -> None:
    """Refuse a class that keeps more of a request than keys and values.

    Raises:
        UnsupportedError: Naming the layers' kinds, where the configuration has them.
    """
    if not found._is_stateful:
        return
    kinds = dict.fromkeys(getattr(config, "layer_types", None) or ())
    odd = ", ".join(kind for kind in kinds if kind not in (FULL, SLIDING))
    where = f" ({odd})" if odd else ""
    reason = f"its layers keep states of their own{where}, not keys and values alone"
    _refuse(found.__name__, reason)


def check_config(architecture: str, config: Any, max_length: int) -> None:
    """Refuse what a step of many requests, or our pages, would compute otherwise.

    Raises:
        UnsupportedError: Naming the key and the value.
    """
    if getattr(config, "is_encoder_decoder", False):
        _refuse(architecture, "is_encoder_decoder = True: it reads an encoder's output")
    for kind in dict.fromkeys(getattr(config, "layer_types", None) or ()):
        size = getattr(config, "attention_chunk_size", None) or 0
        is_idle = kind == CHUNKED and size >= max_length
        if kind not in (FULL, SLIDING) and not is_idle:
            _refuse(architecture, f"layer_types has {kind!r}, of which the cache keeps nothing")
    for rope in _rotary_parameters(config):
        kind = rope.get("rope_type") or rope.get("type")
        if kind in CHANGING:
            _refuse(architecture, f"rope_type = {kind!r}: its angles change with the length")


def _refuse(architecture: str, reason: str) -> None:
    raise UnsupportedError(
        f"No installed package has a file for {architecture}, and transformers' class of it cannot"
        f" be served: {reason}.",
        remedy=REMEDY,
    )


def _rotary_parameters(config: Any) -> list[Mapping[str, Any]]:
    """Return the parameters, of every kind of layer where they differ."""
    given = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    return nested or [given]
