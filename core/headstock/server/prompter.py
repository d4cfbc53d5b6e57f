"""Prompts to token ids: templates, tokenising, and the checks that need the text."""

from __future__ import annotations

from headstock.errors import RequestError
from headstock.server.request import ChatPrompt, Prompt, TextPrompt, TokensPrompt
from headstock.server.speech import PLAIN, Dialect
from headstock.text import ChatTemplate, Tokenizer, forms_of, render_chat

INLINE_CHARACTERS = 2000
"""Shorter prompts are tokenised on the spot: a thread would cost more."""


class Prompter:
    """Turns prompts into token ids; safe to use from several threads.

    Args:
        tokenizer: None when the server takes and gives token ids only.
        template: None when the model has none.
        dialect: How the model writes thoughts and calls.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        dialect: Dialect = PLAIN,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.dialect = dialect
        self._forms = None if template is None else forms_of(template)

    def is_quick(self, prompt: Prompt) -> bool:
        """Whether :meth:`encode` takes next to no time."""
        match prompt:
            case TokensPrompt():
                return True
            case TextPrompt():
                return len(prompt.text) < INLINE_CHARACTERS
            case ChatPrompt():
                return False  # its template is rendered by another process

    def encode(self, prompt: Prompt, max_length: int) -> list[int]:
        """Return the token ids of ``prompt``.

        Args:
            prompt: Of any kind.
            max_length: Tokens the model can hold: text that is surely longer is not tokenised.

        Raises:
            RequestError: There is no tokenizer or no template, or the template refuses.
        """
        match prompt:
            case TokensPrompt():
                return prompt.token_ids
            case TextPrompt():
                return self._tokenize(prompt.text, prompt.add_special_tokens, max_length)
            case ChatPrompt():
                return self._tokenize(self.render(prompt), False, max_length)

    def render(self, prompt: ChatPrompt) -> str:
        """Return the text of a chat.

        Raises:
            RequestError: The model has no template, or it refuses the messages.
        """
        if self.template is None or self._forms is None:
            raise RequestError(
                "This model has no chat template.",
                remedy="Use /v1/completions, or start the server with a chat template.",
                field="messages",
                code="no_chat_template",
            )
        last = prompt.messages[-1] if prompt.messages else {}
        if prompt.continue_final and last.get("role") != "assistant":
            raise RequestError(
                f"continue_final_message is set and the last message is a {last.get('role')}'s.",
                remedy="End messages with the assistant's turn to go on with.",
                field="continue_final_message",
            )
        return render_chat(
            self.template,
            self._forms,
            prompt.messages,
            add_generation_prompt=prompt.add_generation_prompt,
            continue_final=prompt.continue_final,
            tools=prompt.tools or None,
            extra=prompt.extra,
        )

    def close(self) -> None:
        """End the processes that render the template."""
        if self.template is not None:
            self.template.close()

    def _tokenize(self, text: str, add_special_tokens: bool, max_length: int) -> list[int]:
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise RequestError(
                "This server was started without a tokenizer.",
                remedy="Send input_ids.",
                field="text",
                code="no_tokenizer",
            )
        at_least = len(text) // tokenizer.longest_token
        if at_least > max_length:
            raise too_long(f"at least {at_least}", max_length)
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)


def too_long(num_tokens: int | str, max_length: int) -> RequestError:
    """Return the error for a prompt that the context cannot hold; clients match on its words."""
    return RequestError(
        f"The input ({num_tokens} tokens) is longer than the model's context length"
        f" ({max_length} tokens).",
        remedy="Shorten the prompt.",
        code="context_length_exceeded",
    )
