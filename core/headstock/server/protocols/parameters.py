"""The model and the sampling parameters that callers name: one place for every protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from headstock.errors import RequestError
from headstock.requests import SamplingParams
from headstock.server.model_card import ModelCard

_FIELDS = SamplingParams.__struct_fields__
NOT_YET = frozenset({"beam_width", "custom_params", "watermark", "stream_interval"})
"""Fields of SGLang's sampling parameters that this version refuses when they are set."""
CHANGE_ANSWERS = frozenset(
    {
        "add_special_tokens", "allowed_token_ids", "background", "bad_words", "beam_width",
        "chat_template", "documents", "dry_multiplier", "ebnf", "grammar", "guided_choice",
        "guided_grammar", "guided_json", "guided_regex", "images", "input_embeds", "input_ids",
        "json_schema", "kv_transfer_params", "logits_processors", "max_thinking_tokens",
        "mirostat", "prompt_embeds", "regex", "repeat_penalty", "response_format",
        "return_bytes", "return_tokens_as_token_ids", "sampling_logprobs_mode",
        "structural_tag", "structured_outputs", "thinking_budget", "thinking_token_budget",
        "typical_p",
        "use_beam_search", "xtc_probability",
    }
)  # fmt: skip
"""Keys of other servers' bodies that change the answer: refused, unless they ask for nothing."""
MAX_NAMESPACE = 256
"""Longest cache salt or extra key. Characters."""
MAX_SHOWN = 64
"""Characters of a refused value that its error repeats."""
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_SYNONYMS = {"include_stop_str_in_output": "no_stop_trim"}
"""Other engines' names of sampling parameters, and ours."""


def to_params(
    given: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> SamplingParams:
    """Return sampling parameters; None stands for the default.

    Args:
        given: Values by ``SamplingParams`` field.
        defaults: Values where nothing is given.
        names: What the caller calls a field, where that differs.

    Raises:
        RequestError: An unknown field, a wrong type, or a value out of range.
    """
    values = {name: value for name, value in (defaults or {}).items() if value is not None}
    values |= {name: value for name, value in given.items() if value is not None}
    for name, ours in _SYNONYMS.items():
        if name in values:
            values.setdefault(ours, values.pop(name))
    for name in values:
        if name in NOT_YET:
            raise not_yet(name)
        if name not in _FIELDS:
            raise RequestError(
                f"unknown field `{name}`, expected one of {', '.join(f'`{f}`' for f in _FIELDS)}.",
                remedy="Remove it.",
                field=name,
                code="unknown_field",
            )
    for name in ("stop", "stop_token_ids", "stop_regex"):
        if isinstance(values.get(name), str | int):
            values[name] = [values[name]]
    if values.get("top_p") == 0:  # the likeliest token, as with a top_k of 1
        values |= {"top_p": 1.0, "top_k": 1}
    try:
        return msgspec.convert(values, SamplingParams, str_keys=True)
    except msgspec.ValidationError as error:
        raise from_validation(error, names, source=values) from error


def from_validation(
    error: msgspec.ValidationError,
    names: Mapping[str, str] | None = None,
    *,
    prefix: str = "",
    source: object = None,
) -> RequestError:
    """Return the caller's error for a value of the wrong type or range.

    Args:
        error: What msgspec said: "Expected `int` >= 0 - at `$.n`".
        names: What the caller calls a field, where that differs.
        prefix: Where the value stands in the body, such as ``sampling_params``.
        source: What was refused, so that the value can be shown.
    """
    text = str(error)
    found = _PATH.search(text)
    path = found.group(1) if found else ""
    if found:
        text = text[: found.start()]
    field = re.split(r"[.\[]", path, maxsplit=1)[0]
    field = (names or {}).get(field, field)
    where = ".".join(part for part in (prefix, path.replace("[...]", "[*]")) if part)
    if names and field and not path.startswith(field):
        where = field
    value = _value_at(source, path)
    if where and value is not None and not isinstance(value, dict):
        problem = f"{where} is {_shown(value)}; {text[:1].lower()}{text[1:]}."
    else:
        problem = f"{where}: {text}." if where else f"{text}."
    return RequestError(
        problem,
        remedy="See /openapi.json for the types and limits.",
        field=field or None,
        code="invalid_type" if text.startswith("Expected") else "invalid_value",
    )


def _value_at(source: object, path: str) -> object:
    """Return what stands at ``path`` such as ``stream_options.include_usage``; None: not found."""
    for name in path.split(".") if path else ():
        if not isinstance(source, Mapping):
            return None
        source = cast("Mapping[str, object]", source).get(name)
    return source if path else None


def _shown(value: object) -> str:
    """Return ``value`` as the caller wrote it, shortened."""
    text = msgspec.json.encode(value, enc_hook=repr).decode()
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def not_yet(field: str, what: str = "") -> RequestError:
    """Return the error for something that is part of the protocol and not of this version.

    Args:
        field: As the caller spelled it.
        what: In words, what of it; "": all.
    """
    return RequestError(
        f"{what or field} is not supported by this version.",
        remedy="Leave it out.",
        field=field,
        code="not_supported",
    )


def refuse_set(body: msgspec.Struct, fields: tuple[str, ...]) -> None:
    """Refuse the fields that this version cannot honour, if the caller set them.

    Raises:
        RequestError: Naming the first one.
    """
    for field in fields:
        if getattr(body, field) not in (None, False, [], {}, "", 0):
            raise not_yet(field)


def join_namespace(tenant: str, *parts: str | None) -> str:
    """Return a cache namespace of ``parts`` that no other parts have.

    Args:
        tenant: Prefix that the caller's key gives.
        parts: What the caller sent; None and "": nothing.

    Raises:
        RequestError: A part is too long.
    """
    if not any(parts):
        return tenant
    for part in parts:
        if part and len(part) > MAX_NAMESPACE:
            raise RequestError(
                f"A cache salt or extra key has {len(part):,} characters; at most"
                f" {MAX_NAMESPACE:,} are taken.",
                remedy="Send a digest of it.",
                field="cache_salt" if part is parts[-1] else "extra_key",
                code="invalid_value",
            )
    return tenant + "".join(f"{len(part)}:{part}" if part else "-" for part in parts)


def check_model(name: str | None, card: ModelCard) -> None:
    """Refuse a model that is not the served one.

    Raises:
        RequestError: ``name`` is another's; "default" and none at all are fine.
    """
    if name not in (None, "", "default", card.name):
        raise unknown_model(name or "", card)


def unknown_model(name: str, card: ModelCard) -> RequestError:
    """Return the error for a model that this server does not have."""
    return RequestError(
        f"The model {name[:128]!r} does not exist; this server has {card.name!r}.",
        remedy="Use its name, or leave model out.",
        field="model",
        code="model_not_found",
    )
