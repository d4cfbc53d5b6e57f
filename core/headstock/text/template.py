"""Chat templates: messages to the text that a model was trained on.

A template comes from the model or the operator, never from a request. It runs in jinja2's
immutable sandbox with what ``transformers`` gives templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headstock.errors import ConfigError, RequestError

RESERVED = frozenset(
    {
        "messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token",
        "unk_token", "sep_token", "pad_token", "cls_token", "raise_exception", "strftime_now",
        "chat_template",
    }
)  # fmt: skip
"""Names that a request's ``chat_template_kwargs`` may not set."""


class TemplateRefusal(jinja2.TemplateError):
    """The template itself refused the messages, by ``raise_exception``."""


class ChatTemplate:
    """A compiled chat template, safe to use from several threads.

    Args:
        source: Jinja source.
        special: Named special tokens, such as ``bos_token``.

    Raises:
        ConfigError: The source does not compile.
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        self.source = source
        self._special = dict(special)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"The chat template does not compile: {error.message} (line {error.lineno}).",
                remedy="Give another one with --chat-template.",
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> str:
        """Return the prompt text.

        Args:
            messages: ``role`` and ``content``, in the conversation's order.
            add_generation_prompt: End with the words that begin an assistant's turn.
            tools: JSON schemas of functions that the model may call.
            extra: More variables for the template, such as ``enable_thinking``.

        Raises:
            RequestError: The template refuses the messages, or fails on them.
        """
        reserved = RESERVED.intersection(extra or {})
        if reserved:
            raise RequestError(
                f"chat_template_kwargs sets {sorted(reserved)[0]!r}, which the server sets.",
                remedy="Leave it out.",
                field="chat_template_kwargs",
            )
        try:
            return self._template.render(
                **(extra or {}),
                **self._special,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateRefusal as error:
            raise RequestError(
                f"The model's chat template refuses these messages: {error.message}.",
                remedy="Change the roles or their order.",
                field="messages",
                code="template_refused",
            ) from error
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise RequestError(
                f"The model's chat template fails on these messages: {error}.",
                remedy="Check that each message has the fields that the template reads.",
                field="messages",
                code="template_failed",
            ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    # jinja2 does not annotate what these two hold.
    environment.filters["tojson"] = _to_json  # pyright: ignore[reportUnknownMemberType]
    environment.globals["raise_exception"] = _refuse  # pyright: ignore[reportUnknownMemberType]
    environment.globals["strftime_now"] = _strftime_now  # pyright: ignore[reportUnknownMemberType]
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %} … {% endgeneration %}`` marks the assistant's words: here, just them."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the tag's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without the HTML escapes of jinja2's own filter, which models never saw."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> str:
    raise TemplateRefusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
