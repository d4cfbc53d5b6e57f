"""Prompts and patterns are read here, in threads where that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from headstock.server.prompter import Prompter
from headstock.server.request import Prompt
from headstock.text import StopPattern, compile_patterns
from headstock.wire.media import MediaItem

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
