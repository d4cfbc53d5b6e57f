"""Reads a model's configuration: typed, by Hugging Face's names, nothing that matters ignored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import NoneType
from typing import Any, TypeVar, cast, get_args

import msgspec

from headstock.errors import CheckpointError, UnsupportedError


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Base of a model file's configuration: the keys it reads, with transformers' defaults.

    Other keys are left alone: configurations are full of what only training needs. Those that
    would change results go through :func:`require`.
    """


C = TypeVar("C", bound=ModelConfig)


def read_config(kind: type[C], config: Mapping[str, Any]) -> C:
    """Return ``config`` as the struct ``kind``.

    A null is kept where the field's type has None, which may mean "off" there; other fields take
    their default.

    Raises:
        CheckpointError: A key is missing or of the wrong type.
    """
    may_be_none = {
        field.name for field in msgspec.structs.fields(kind) if NoneType in get_args(field.type)
    }
    given = {n: value for n, value in config.items() if value is not None or n in may_be_none}
    try:
        return msgspec.convert(given, kind, strict=True)
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"The model's configuration does not fit {kind.__name__}: {error}",
            remedy="Compare its config.json with the model's original.",
        ) from error


def section(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a configuration inside another: that of a model's text, say.

    Raises:
        CheckpointError: There is none.
    """
    inside = config.get(key)
    if not isinstance(inside, Mapping):
        raise CheckpointError(
            f"The model's configuration has {key} = {inside!r}; it must hold a configuration.",
            remedy="Compare its config.json with the model's original.",
        )
    return dict(cast("Mapping[str, Any]", inside))


def require(config: Mapping[str, Any], **accepted: Collection[Any]) -> None:
    """Refuse a configuration that asks for what the model file does not compute.

    Args:
        config: In Hugging Face keys.
        accepted: Key to the values that are fine; a key that is absent or null is.

    Raises:
        UnsupportedError: Naming key, value and what is accepted.
    """
    for key, values in accepted.items():
        value = config.get(key)
        if value is not None and value not in values:
            served = " or ".join(repr(v) for v in values) or "none"
            raise UnsupportedError(
                f"The model's configuration has {key} = {value!r}; its architecture is served with"
                f" {served} only.",
                remedy="Serve another model.",
            )
