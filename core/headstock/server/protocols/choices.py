"""Whether and which functions a model calls: every protocol's ``tool_choice`` as one type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from headstock.errors import RequestError

_FIELD = "tool_choice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the caller wants of calls.

    Attributes:
        is_off: No function is shown to the model.
        must_call: The answer is calls and nothing else.
        only: Names of those that may be called; None: all.
    """

    is_off: bool = False
    must_call: bool = False
    only: frozenset[str] | None = None

    @property
    def is_named(self) -> bool:
        """Whether one function must be called."""
        return self.must_call and self.only is not None and len(self.only) == 1

    def check(self, names: Sequence[str]) -> None:
        """Refuse a choice that ``names``, the functions there are, leave without an answer.

        Raises:
            RequestError: There is none, or not the one that is chosen.
        """
        if self.must_call and not names:
            raise _wrong("asks for a call, and tools has no function", "Send functions.")
        missing = sorted((self.only or frozenset()) - set(names))
        if missing:
            raise _wrong(f"names {missing[0][:64]!r}, which is not in tools", "Name one of tools.")


AUTO = Choice()
OFF = Choice(is_off=True)
ANY = Choice(must_call=True)


def read_choice(given: Any) -> Choice:
    """Return the choice that an OpenAI route was sent.

    A function stands in it as ``{"type": "function", "function": {"name": …}}`` or with ``name``
    beside ``type``; ``allowed_tools`` names several.

    Raises:
        RequestError: It is of another form.
    """
    match given:
        case None | "auto":
            return AUTO
        case "none":
            return OFF
        case "required":
            return ANY
        case {"type": "function"}:
            return Choice(must_call=True, only=frozenset([_name(given)]))
        case {"type": "allowed_tools"}:
            return _allowed(cast("Mapping[str, Any]", given.get("allowed_tools", given)))
        case _:
            raise _wrong(
                "is of a form that is not known",
                "Use none, auto, required, a function, or allowed_tools.",
            )


def _allowed(fields: Mapping[str, Any]) -> Choice:
    match fields:
        case {"mode": "auto" | "required" as mode, "tools": [_, *_] as tools}:
            names = frozenset(_name(tool) for tool in tools)
            return Choice(must_call=mode == "required", only=names)
        case _:
            raise _wrong("has no mode auto or required, or no tools", "Give both.")


def _name(given: Any) -> str:
    match given:
        case {"function": {"name": str() as name}} | {"name": str() as name}:
            return name
        case _:
            raise _wrong("names no function", "Give its name.")


def _wrong(what: str, remedy: str) -> RequestError:
    return RequestError(f"{_FIELD} {what}.", remedy=remedy, field=_FIELD)
