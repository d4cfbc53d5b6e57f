"""Descriptions that are written down as Lark grammars: choices, and tags inside free text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from headstock.structured.provider import invalid

_TEXT = r"TAG_TEXT: /(.|\n)*/"


def choice_to_lark(choices: Sequence[str]) -> str:
    """Return the grammar of "exactly one of ``choices``"."""
    return "start: " + " | ".join(_quoted(choice) for choice in dict.fromkeys(choices))


def tags_to_lark(tags: Mapping[str, Any], special: Mapping[bytes, int]) -> str:
    """Return the grammar of free text with structures in it.

    Args:
        tags: ``structures``, each with ``begin``, ``schema`` and ``end``, and ``triggers``: texts
            that begin a structure.
        special: Ids of the vocabulary's special tokens by name: a trigger that is one is matched as
            the token, so that text which looks like it does not trigger.

    Raises:
        RequestError: The description is not of that form.
    """
    structures = tags.get("structures")
    triggers = tags.get("triggers")
    if not isinstance(structures, list) or not structures or not isinstance(triggers, list):
        raise invalid("structural_tag", "it must have structures and triggers, both lists.")
    names: list[str] = []
    rules: list[str] = []
    for index, item in enumerate(cast("list[Any]", structures)):
        begin, schema, end = _structure(index, item)
        trigger = _trigger_of(begin, cast("list[Any]", triggers))
        body = " ".join(
            part
            for part in (
                _quoted(begin[len(trigger) :]),
                f"%json {json.dumps(schema)}",
                _quoted(end),
            )
            if part
        )
        name = f"tag_{index}"
        names.append(name)
        token_id = special.get(trigger.encode())
        if token_id is not None:
            rules.append(f"{name}: TAG_TEXT <[{token_id}]> {body}")
        else:
            rules.append(f"{name}_begin[lazy]: TAG_TEXT {_quoted(trigger)}")
            rules.append(f"{name}: {name}_begin {body}")
    start = f"start: ({' | '.join(names)})* tag_end\ntag_end: TAG_TEXT"
    return "\n".join(["%llguidance {}", start, _TEXT, *rules])


def _structure(index: int, item: Any) -> tuple[str, Any, str]:
    """Return begin, schema and end of a structure."""
    fields = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
    begin, end, schema = fields.get("begin"), fields.get("end"), fields.get("schema")
    if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(schema, dict):
        raise invalid(
            "structural_tag",
            f"structures[{index}] must have begin and end, both texts, and schema, an object.",
        )
    return begin, cast("Any", schema), end


def _trigger_of(begin: str, triggers: Sequence[Any]) -> str:
    found = [t for t in triggers if isinstance(t, str) and t and begin.startswith(t)]
    if not found:
        raise invalid("structural_tag", f"no trigger begins {begin[:64]!r}.")
    return max(found, key=len)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
