"""Chat templates: messages to the text that a model was trained on.

A template comes from the model or the operator, never from a request. It runs in jinja2's
immutable sandbox with what ``transformers`` gives templates, in a process of its own
(:mod:`headstock.text.render_process`): whatever it does, it ends within half a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headstock.errors import ConfigError, RequestError
from headstock.sandbox import LostError
from headstock.text.render_pool import CPU_LIMIT_S, MEMORY_LIMIT, RenderPool

RESERVED = frozenset(
    {
        "messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token",
        "unk_token", "sep_token", "pad_token", "cls_token", "raise_exception", "strftime_now",
        "chat_template",
    }
)  # fmt: skip
"""Names that a request's ``chat_template_kwargs`` may not set."""


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
        self._pool = RenderPool(source)
        try:
            answer = self._pool.compile()
        except LostError:
            answer = {"error": "exhausted"}
        except OSError as error:
            raise ConfigError(
                f"No process for the chat template can be started: {error}.",
                remedy="Raise the limits on processes, open files and memory.",
            ) from error
        if "error" in answer:
            problem = "does not compile" if answer["error"] == "syntax" else _EXHAUSTED
            where = f": {answer['message']} (line {answer['line']})" if "line" in answer else ""
            raise ConfigError(
                f"The chat template {problem}{where}.",
                remedy="Give another one with --chat-template.",
            )

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
        variables = {
            **(extra or {}),
            **self._special,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            answer = self._pool.render(variables)
        except LostError:
            answer = {"error": "exhausted"}
        except OSError as error:
            raise RequestError(
                f"No process for the chat template can be started: {error.strerror}.",
                remedy="Try again.",
                code="template_unavailable",
            ) from error
        except (TypeError, ValueError, RecursionError) as error:
            answer = {"error": "failed", "message": str(error)}
        return answer["text"] if "text" in answer else _raise(answer)

    def close(self) -> None:
        """End the processes that render."""
        self._pool.close()


_EXHAUSTED = f"takes over {CPU_LIMIT_S:g} s, or over {MEMORY_LIMIT // 2**20} MiB"


def _raise(answer: Mapping[str, Any]) -> str:
    """Raise the caller's error for a rendering that gave no text."""
    match answer["error"]:
        case "refused":
            raise RequestError(
                f"The model's chat template refuses these messages: {answer['message']}.",
                remedy="Change the roles or their order.",
                field="messages",
                code="template_refused",
            )
        case "exhausted":
            raise RequestError(
                f"The model's chat template {_EXHAUSTED} on these messages.",
                remedy="Send fewer or shorter messages, or use another template.",
                field="messages",
                code="template_exhausted",
            )
        case _:
            raise RequestError(
                f"The model's chat template fails on these messages: {answer['message']}.",
                remedy="Check that each message has the fields that the template reads.",
                field="messages",
                code="template_failed",
            )
