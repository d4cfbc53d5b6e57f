"""Prompts to token ids: templates, tokenising, the checks that need the text, and the threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from headstock.errors import RequestError
from headstock.multimodal import MediaReader, place_media, row_mark_ids
from headstock.server.request import ChatPrompt, PairPrompt, Prompt, TextPrompt, TokensPrompt
from headstock.server.speech import PLAIN, Dialect
from headstock.text import (
    ChatTemplate,
    StopPattern,
    Tokenizer,
    compile_patterns,
    forms_of,
    render_chat,
)
from headstock.wire.media import MediaItem

INLINE_CHARACTERS = 2000
"""Shorter prompts are tokenised on the spot: a thread would cost more."""


class Prompter:
    """Turns prompts into token ids; safe to use from several threads.

    Args:
        tokenizer: None when the server takes and gives token ids only.
        template: None when the model has none.
        dialect: How the model writes thoughts and calls.
        media: Reads images; None: the model takes text only.

    Raises:
        CheckpointError: The tokenizer lacks a token that stands in images.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        dialect: Dialect = PLAIN,
        media: MediaReader | None = None,
    ) -> None:
        self.media = media
        self.tokenizer = tokenizer
        self.template = template
        self.dialect = dialect
        self._forms = None if template is None else forms_of(template)
        self._written = _written(media, tokenizer)
        if media is not None and tokenizer is not None:
            row_mark_ids(media.family, self._encode_words)

    def is_quick(self, prompt: Prompt) -> bool:
        """Whether :meth:`encode` takes next to no time."""
        if prompt.images:
            return False
        match prompt:
            case TokensPrompt():
                return True
            case TextPrompt():
                return len(prompt.text) < INLINE_CHARACTERS
            case PairPrompt():
                return len(prompt.text) + len(prompt.pair) < INLINE_CHARACTERS
            case ChatPrompt():
                return False  # its template is rendered by another process

    def encode(self, prompt: Prompt, max_length: int) -> list[int]:
        """Return the token ids of ``prompt``, as many for each image as it takes; see :meth:`read`.

        Raises:
            RequestError: As there.
        """
        return self.read(prompt, max_length)[0]

    def read(self, prompt: Prompt, max_length: int) -> tuple[list[int], list[MediaItem]]:
        """Return the token ids of ``prompt``, and its images.

        Args:
            prompt: Of any kind.
            max_length: Tokens the model can hold: text that is surely longer is not tokenised.

        Raises:
            RequestError: There is no tokenizer or no template, or the template refuses; an image
                cannot be read, or has no place.
        """
        images = prompt.images
        if images and self.media is None:
            raise RequestError(
                f"{images[0].where}: this model takes text only, no {images[0].kind}s.",
                remedy="Send the text alone, or serve a model that takes images.",
                field=images[0].where,
                code="not_supported",
            )
        token_ids = self._encode_text(prompt, max_length)
        if not images or self.media is None:
            return token_ids, []
        return place_media(
            token_ids, self.media.read(images), self.media.family, self._encode_words
        )

    def _encode_words(self, text: str) -> list[int]:
        """Return the token ids of text that is put between others."""
        return self._tokenize(text, False, len(text))

    def _encode_text(self, prompt: Prompt, max_length: int) -> list[int]:
        """Return the token ids of ``prompt``, one for each image.

        Args:
            prompt: Of any kind.
            max_length: Tokens the model can hold: text that is surely longer is not tokenised.

        Raises:
            RequestError: There is no tokenizer or no template, or the template refuses.
        """
        match prompt:
            case TokensPrompt():
                return prompt.token_ids
            case TextPrompt(keep_first=None):
                text = self._with_images(prompt, prompt.text)
                return self._tokenize(text, prompt.add_special_tokens, max_length)
            case TextPrompt(text=text, keep_first=kept):
                return self._tokenizer().encode_parts([text], keep_first=kept)
            case PairPrompt():
                return self._tokenize_pair(prompt, max_length)
            case ChatPrompt():
                text = self._with_images(prompt, self.render(prompt))
                return self._tokenize(text, False, max_length)

    def _with_images(self, prompt: Prompt, text: str) -> str:
        """Return ``text`` with its images as the model was trained to see them written."""
        if not prompt.images or self._written is None:
            return text
        return text.replace(*self._written)

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
                remedy="End messages with the assistant's turn that is to be continued.",
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
        """End the processes that render the template and decode images."""
        if self.template is not None:
            self.template.close()
        if self.media is not None:
            self.media.close()

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(
                "This server was started without a tokenizer.",
                remedy="Send input_ids.",
                field="text",
                code="no_tokenizer",
            )
        return self.tokenizer

    def _tokenize_pair(self, prompt: PairPrompt, max_length: int) -> list[int]:
        tokenizer, texts = self._tokenizer(), [prompt.text, prompt.pair]
        if prompt.keep_first is None:
            _check_characters(sum(map(len, texts)), tokenizer, max_length)
        return tokenizer.encode_parts(
            texts, keep_first=prompt.keep_first, type_stride=prompt.type_stride
        )

    def _tokenize(self, text: str, add_special_tokens: bool, max_length: int) -> list[int]:
        tokenizer = self._tokenizer()
        _check_characters(len(text), tokenizer, max_length)
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)


def _written(media: MediaReader | None, tokenizer: Tokenizer | None) -> tuple[str, str] | None:
    """Return what stands for an image in text, and what is tokenised for it; None: the same."""
    if media is None or media.family.written is None or tokenizer is None:
        return None
    written = media.family.written
    mark, *names = (tokenizer.token_text(token) for token in (written.mark_id, *written.ids))
    return mark, f"{written.around}{''.join(names)}{written.around}"


def _check_characters(count: int, tokenizer: Tokenizer, max_length: int) -> None:
    """Refuse so many characters if they are surely more tokens than the model holds."""
    at_least = count // tokenizer.longest_token
    if at_least > max_length:
        raise too_long(f"at least {at_least}", max_length)


def too_long(num_tokens: int | str, max_length: int) -> RequestError:
    """Return the error for a prompt that the context cannot hold; clients match on its words."""
    return RequestError(
        f"The input ({num_tokens} tokens) is longer than the model's context length"
        f" ({max_length} tokens).",
        remedy="Shorten the prompt.",
        code="context_length_exceeded",
    )


TOKENIZER_THREADS = 2
MEDIA_THREADS = 4


class Reading:
    """Threads that read what callers send.

    Args:
        prompter: Makes token ids of prompts.
        max_length: Returns the longest request that can be served. Tokens.
    """

    def __init__(self, prompter: Prompter, max_length: Callable[[], int]) -> None:
        self._prompter = prompter
        self._max_length = max_length
        self._threads = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenize")
        self._media_threads = ThreadPoolExecutor(MEDIA_THREADS, thread_name_prefix="media")

    async def read(self, prompt: Prompt) -> tuple[list[int], list[MediaItem]]:
        """Return the token ids of ``prompt``, and its images.

        Raises:
            RequestError: It cannot be turned into tokens.
        """
        if self._prompter.is_quick(prompt):
            return self._prompter.read(prompt, self._max_length())
        # Images wait for other machines, perhaps: text does not wait for them.
        threads = self._media_threads if prompt.images else self._threads
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, self._prompter.read, prompt, self._max_length())

    async def compile(self, patterns: list[str]) -> tuple[StopPattern, ...]:
        """Return regular expressions that end an output, compiled.

        Raises:
            RequestError: One is not of the language, or too large.
        """
        if not patterns:
            return ()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, compile_patterns, patterns)

    def close(self) -> None:
        """Free the threads, and the processes that render templates."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._media_threads.shutdown(wait=False, cancel_futures=True)
        self._prompter.close()
