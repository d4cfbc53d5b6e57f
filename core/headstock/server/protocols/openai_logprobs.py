"""Logprobs as the OpenAI routes spell them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headstock.server.completion import Completion, LogprobColumns
from headstock.text import Detokenizer, Tokenizer, make_detokenizer


class Alternative(msgspec.Struct):
    """A token that could have been drawn."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(Alternative):
    """A drawn token and its rivals."""

    top_logprobs: list[Alternative] = []


class ChatLogprobs(msgspec.Struct):
    """Logprobs of a chat choice."""

    content: list[TokenLogprob]


class CompletionLogprobs(msgspec.Struct):
    """Logprobs of a text choice; columns over its tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class PromptLogprob(msgspec.Struct):
    """A prompt token, or one that could have stood there."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By position: token id to its logprob; null at the first."""


class Alternatives:
    """Writes logprobs of one call.

    Args:
        tokenizer: For the tokens' text.
        count: Alternatives wanted at each token.
        prompt_count: Likewise, at each token of the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, count: int, prompt_count: int = 0) -> None:
        self._tokenizer = tokenizer
        self._count = count
        self._prompt_count = prompt_count

    def chat(self, completion: Completion, begin: int, end: int) -> ChatLogprobs:
        """Return the logprobs of output tokens [begin, end)."""
        columns = completion.logprobs
        end = min(end, len(columns))
        return ChatLogprobs(
            [
                TokenLogprob(
                    *self._spell(completion.output_ids[at]),
                    columns.chosen[at],
                    self._rivals(columns.top_ids[at], columns.top[at]) if self._count else [],
                )
                for at in range(begin, end)
            ]
        )

    def text(
        self, completion: Completion, begin: int, end: int, *, echo: str | None, offset: int
    ) -> CompletionLogprobs:
        """Return the logprobs of output tokens [begin, end), with ``echo`` the prompt's before.

        Args:
            completion: Whose.
            begin: First output token.
            end: One past the last.
            echo: The prompt as the answer begins with it; None: without the prompt.
            offset: Characters of the answer before the first output token.
        """
        answer = CompletionLogprobs([], [], [] if self._count else None, [])
        if echo is not None:
            self._add_prompt(answer, completion, echo)
        columns, ends = completion.logprobs, completion.ends or []
        for at in range(begin, min(end, len(columns))):
            token_id = completion.output_ids[at]
            before = ends[at - 1] if 0 < at <= len(ends) else 0
            after = ends[at] if at < len(ends) else before
            self._add(answer, token_id, columns, at, offset + self._begin(token_id, before, after))
        return answer

    def prompt(self, completion: Completion) -> PromptLogprobs:
        """Return the logprobs of the prompt's tokens, as vLLM's clients read them."""
        columns, ids = completion.prompt_logprobs, completion.submit.prompt_ids
        gap = len(ids) - len(columns)
        found: PromptLogprobs = [None] * gap
        for at in range(len(columns)):
            pairs = zip(columns.top_ids[at], columns.top[at], strict=True)
            best = [*pairs][: self._prompt_count]
            ranks: dict[int, tuple[float, int | None]] = {
                token_id: (value, rank) for rank, (token_id, value) in enumerate(best, 1)
            }
            ranks.setdefault(ids[gap + at], (columns.chosen[at], None))
            found.append(
                {
                    str(token_id): PromptLogprob(value, rank, self._tokenizer.token_text(token_id))
                    for token_id, (value, rank) in ranks.items()
                }
            )
        return [None, *found[1:]]

    def _add_prompt(self, answer: CompletionLogprobs, completion: Completion, echo: str) -> None:
        columns, ids = completion.prompt_logprobs, completion.submit.prompt_ids
        gap = len(ids) - len(columns)
        detokenizer = make_detokenizer(self._tokenizer, skip_special_tokens=False)
        done = 0
        for at, token_id in enumerate(ids):
            before, done = done, self._pushed(detokenizer, token_id, echo, done)
            known = at - gap if at > 0 and at >= gap else None
            self._add(answer, token_id, columns, known, self._begin(token_id, before, done))

    def _pushed(self, detokenizer: Detokenizer, token_id: int, echo: str, done: int) -> int:
        """Return how many characters of ``echo`` are complete after a prompt token.

        A special token that the tokenizer has added is none of them.
        """
        if token_id in self._tokenizer.special_ids:
            name = self._tokenizer.token_text(token_id)
            if not echo.startswith(name, done):
                return done
        return done + len(detokenizer.push(token_id))

    def _begin(self, token_id: int, before: int, after: int) -> int:
        """Return where a token begins, by the characters that are complete before and after it.

        What an earlier token left incomplete becomes a character when a whole one follows.
        """
        piece = self._tokenizer.pieces[token_id]
        is_whole = isinstance(piece, str) and len(piece) <= after - before
        return after - len(piece) if is_whole else before

    def _add(
        self,
        answer: CompletionLogprobs,
        token_id: int,
        columns: LogprobColumns,
        at: int | None,
        offset: int,
    ) -> None:
        """Add a token; ``at``: its place in the columns, None where it has no logprob."""
        answer.tokens.append(self._word(token_id))
        answer.token_logprobs.append(None if at is None else columns.chosen[at])
        answer.text_offset.append(offset)
        if answer.top_logprobs is not None:
            top = None
            if at is not None:
                top = self._named(
                    token_id, columns.chosen[at], columns.top_ids[at], columns.top[at]
                )
            answer.top_logprobs.append(top)

    def _rivals(self, ids: Sequence[int], values: Sequence[float]) -> list[Alternative]:
        pairs = list(zip(ids, values, strict=True))[: self._count]
        return [Alternative(*self._spell(token_id), value) for token_id, value in pairs]

    def _named(
        self, drawn_id: int, logprob: float, ids: Sequence[int], values: Sequence[float]
    ) -> dict[str, float]:
        """Return the likeliest tokens and the drawn one, each under a name of its own.

        The drawn one has the name that it has among the tokens. Others of the same text are named
        by their bytes, or by their id.
        """
        pairs = list(zip(ids, values, strict=True))[: self._count]
        if drawn_id not in ids[: self._count]:
            pairs.append((drawn_id, logprob))
        drawn = self._word(drawn_id)
        named: dict[str, float] = {}
        for token_id, value in pairs:
            word = self._word(token_id)
            names = [
                word,
                _bytes_word(self._tokenizer.token_bytes(token_id)),
                f"token_id:{token_id}",
            ]
            is_free = (n for n in names if n not in named and (n != drawn or token_id == drawn_id))
            named[next(is_free)] = value
        return named

    def _word(self, token_id: int) -> str:
        """Return a token's text; where it is no text, its bytes as OpenAI spells them."""
        piece = self._tokenizer.pieces[token_id]
        return piece if isinstance(piece, str) else _bytes_word(piece)

    def _spell(self, token_id: int) -> tuple[str, list[int]]:
        raw = self._tokenizer.token_bytes(token_id)
        return raw.decode("utf-8", "replace"), list(raw)


def _bytes_word(raw: bytes) -> str:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
