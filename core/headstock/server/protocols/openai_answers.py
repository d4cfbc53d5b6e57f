"""Answers of the OpenAI routes, whole and streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from headstock.server.completion import Completion, Delta
from headstock.server.protocols.events import TextEvent, event
from headstock.server.protocols.openai_bodies import OpenAICall
from headstock.text import Tokenizer


class PromptDetails(msgspec.Struct):
    """What the prompt's tokens were."""

    cached_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens of a call."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None


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


class ChatAnswerMessage(msgspec.Struct):
    """What the model said."""

    role: str
    content: str | None


class ChatChoice(msgspec.Struct):
    """One completion of a chat."""

    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    matched_stop: int | str | None = None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatAnswer(msgspec.Struct):
    """Answer of ``/v1/chat/completions``."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None


class ChatDelta(msgspec.Struct, omit_defaults=True):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct):
    """One choice's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    matched_stop: int | str | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatChunk(msgspec.Struct):
    """One event of a streamed chat."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class TextChoice(msgspec.Struct):
    """One text completion, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    matched_stop: int | str | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class TextAnswer(msgspec.Struct):
    """Answer of ``/v1/completions``, and one event of its stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


def usage_of(completions: Sequence[Completion], num_outputs: int | None = None) -> Usage:
    """Return the tokens of a call; a prompt counts once, whatever ``n`` is.

    Args:
        completions: All of the call.
        num_outputs: Tokens generated so far; None: all there are.
    """
    prompts = {id(completion.submit.prompt_ids): completion for completion in completions}
    prompt_tokens = sum(len(first.submit.prompt_ids) for first in prompts.values())
    cached = sum(first.end.cached_tokens for first in prompts.values() if first.end is not None)
    if num_outputs is None:
        num_outputs = sum(len(completion.output_ids) for completion in completions)
    total = prompt_tokens + num_outputs
    return Usage(prompt_tokens, num_outputs, total, PromptDetails(cached))


def finish_of(completion: Completion) -> str | None:
    """Return the finish reason as OpenAI spells it."""
    return None if completion.end is None else completion.end.reason.kind


def matched_of(completion: Completion) -> int | str | None:
    """Return the token id or text that stopped it."""
    return None if completion.end is None else completion.end.reason.matched


class Alternatives:
    """Writes logprobs of one call.

    Args:
        tokenizer: For the tokens' text.
        count: Alternatives wanted at each token.
    """

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        self._tokenizer = tokenizer
        self._count = count

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
        self, completion: Completion, begin: int, end: int, *, echo: bool, offset: int
    ) -> CompletionLogprobs:
        """Return the logprobs of output tokens [begin, end), the prompt's before them if ``echo``.

        Args:
            completion: Whose.
            begin: First output token.
            end: One past the last.
            echo: Whether the prompt comes first.
            offset: Characters of the answer before the first token.
        """
        answer = CompletionLogprobs([], [], [] if self._count else None, [])
        if echo:
            prompt = completion.prompt_logprobs
            ids = completion.submit.prompt_ids
            gap = len(ids) - len(prompt)
            for at, token_id in enumerate(ids):
                known = at - gap
                has_logprob = at > 0 and known >= 0
                offset = self._add(
                    answer,
                    token_id,
                    prompt.chosen[known] if has_logprob else None,
                    self._named(prompt.top_ids[known], prompt.top[known])
                    if has_logprob and self._count
                    else None,
                    offset,
                )
        columns = completion.logprobs
        for at in range(begin, min(end, len(columns))):
            top = self._named(columns.top_ids[at], columns.top[at]) if self._count else None
            offset = self._add(answer, completion.output_ids[at], columns.chosen[at], top, offset)
        return answer

    def _add(
        self,
        answer: CompletionLogprobs,
        token_id: int,
        logprob: float | None,
        top: dict[str, float] | None,
        offset: int,
    ) -> int:
        text = self._tokenizer.token_text(token_id)
        answer.tokens.append(text)
        answer.token_logprobs.append(logprob)
        answer.text_offset.append(offset)
        if answer.top_logprobs is not None:
            answer.top_logprobs.append(top)
        return offset + len(text)

    def _rivals(self, ids: Sequence[int], values: Sequence[float]) -> list[Alternative]:
        pairs = list(zip(ids, values, strict=True))[: self._count]
        return [Alternative(*self._spell(token_id), value) for token_id, value in pairs]

    def _named(self, ids: Sequence[int], values: Sequence[float]) -> dict[str, float]:
        text = self._tokenizer.token_text
        pairs = zip(ids[: self._count], values, strict=False)
        return {text(token_id): value for token_id, value in pairs}

    def _spell(self, token_id: int) -> tuple[str, list[int]]:
        raw = self._tokenizer.token_bytes(token_id)
        return raw.decode("utf-8", "replace"), list(raw)


def chat_answer(
    call: OpenAICall,
    completions: Sequence[Completion],
    alternatives: Alternatives | None,
    created: int,
) -> ChatAnswer:
    """Return the whole answer of a chat whose completions have ended."""
    choices = [
        ChatChoice(
            completion.index,
            ChatAnswerMessage("assistant", completion.text),
            alternatives.chat(completion, 0, len(completion.output_ids)) if alternatives else None,
            finish_of(completion),
            matched_of(completion),
            completion.output_ids if call.wants_ids else msgspec.UNSET,
        )
        for completion in completions
    ]
    usage = usage_of(completions)
    return ChatAnswer(call.id, "chat.completion", created, call.model, choices, usage)


def text_answer(
    call: OpenAICall,
    completions: Sequence[Completion],
    alternatives: Alternatives | None,
    created: int,
    echoes: Sequence[str],
) -> TextAnswer:
    """Return the whole answer of a text call whose completions have ended.

    Args:
        call: What was asked.
        completions: In order.
        alternatives: Writes logprobs, if they were asked for.
        created: Seconds since 1970.
        echoes: What stands before each completion's text.
    """
    choices = [
        TextChoice(
            completion.index,
            echo + completion.text,
            alternatives.text(completion, 0, len(completion.output_ids), echo=call.echo, offset=0)
            if alternatives
            else None,
            finish_of(completion),
            matched_of(completion),
            completion.output_ids if call.wants_ids else msgspec.UNSET,
        )
        for completion, echo in zip(completions, echoes, strict=True)
    ]
    usage = usage_of(completions)
    return TextAnswer(call.id, "text_completion", created, call.model, choices, usage)


class OpenAIStream:
    """Events of one streamed call; subclasses know the shape of a chunk."""

    def __init__(
        self,
        call: OpenAICall,
        completions: Sequence[Completion],
        alternatives: Alternatives | None,
        created: int,
    ) -> None:
        self.call = call
        self.completions = completions
        self.alternatives = alternatives
        self.created = created
        self._num_told = [0] * len(completions)
        is_plain = alternatives is None and not call.wants_ids and not call.continuous_usage
        self._plain = [self.plain(index) for index in range(len(completions))] if is_plain else None
        """Where chunks amid a completion carry its text alone: those."""

    def write(self, delta: Delta) -> bytes:
        """Return the events that ``delta`` makes."""
        index = delta.index
        if self._plain is None or delta.end is not None or not self._num_told[index]:
            return b"".join([event(chunk) for chunk in self.events(delta)])
        if not delta.text:
            return b""
        self._num_told[index] = delta.num_outputs
        return self._plain[index].write(delta.text)

    def events(self, delta: Delta) -> list[Any]:
        """Return the chunks that ``delta`` makes: none while its text is incomplete."""
        is_first = self._num_told[delta.index] == 0
        is_empty = not delta.text and delta.end is None and not is_first
        if is_empty and self.alternatives is None and not self.call.wants_ids:
            return []
        begin, self._num_told[delta.index] = self._num_told[delta.index], delta.num_outputs
        return self.chunks(delta, begin)

    def chunks(self, delta: Delta, begin: int) -> list[Any]:
        """Return the chunks for output tokens from ``begin`` on."""
        raise NotImplementedError

    def plain(self, index: int) -> TextEvent:
        """Return how a chunk is written that carries text of completion ``index`` alone."""
        raise NotImplementedError

    def last(self) -> Any:
        """Return the chunk with the usage of the whole call."""
        raise NotImplementedError

    def usage(self) -> Usage | msgspec.UnsetType | None:
        """Return the usage that a chunk carries."""
        if self.call.continuous_usage:
            return usage_of(self.completions, sum(self._num_told))
        return None if self.call.include_usage else msgspec.UNSET


class ChatStream(OpenAIStream):
    """Events of a streamed chat."""

    def __init__(
        self,
        call: OpenAICall,
        completions: Sequence[Completion],
        alternatives: Alternatives | None,
        created: int,
    ) -> None:
        super().__init__(call, completions, alternatives, created)
        self._has_role = [False] * len(completions)

    def chunks(self, delta: Delta, begin: int) -> list[Any]:
        """Return the chunks for output tokens from ``begin`` on."""
        made: list[Any] = []
        if not self._has_role[delta.index]:
            self._has_role[delta.index] = True
            made.append(self._chunk(ChatChunkChoice(delta.index, ChatDelta("assistant", ""))))
        completion = self.completions[delta.index]
        if delta.text or delta.num_outputs > begin:
            logprobs = None
            if self.alternatives is not None:
                logprobs = self.alternatives.chat(completion, begin, delta.num_outputs)
            choice = ChatChunkChoice(delta.index, ChatDelta(content=delta.text), logprobs)
            if self.call.wants_ids:
                choice.token_ids = completion.output_ids[begin : delta.num_outputs]
            if delta.text or logprobs is not None or self.call.wants_ids:
                made.append(self._chunk(choice))
        if delta.end is not None:
            choice = ChatChunkChoice(
                delta.index,
                ChatDelta(),
                finish_reason=finish_of(completion),
                matched_stop=matched_of(completion),
            )
            made.append(self._chunk(choice))
        return made

    def plain(self, index: int) -> TextEvent:
        """Return how a chunk is written that carries text of completion ``index`` alone."""
        return TextEvent(self._chunk(ChatChunkChoice(index, ChatDelta(content=""))), "content")

    def last(self) -> ChatChunk:
        """Return the chunk with the usage."""
        usage = usage_of(self.completions)
        return ChatChunk(
            self.call.id, "chat.completion.chunk", self.created, self.call.model, [], usage
        )

    def _chunk(self, choice: ChatChunkChoice) -> ChatChunk:
        return ChatChunk(
            self.call.id,
            "chat.completion.chunk",
            self.created,
            self.call.model,
            [choice],
            self.usage(),
        )


class TextStream(OpenAIStream):
    """Events of a streamed text call.

    Args:
        echoes: What stands before each completion's text.
    """

    def __init__(
        self,
        call: OpenAICall,
        completions: Sequence[Completion],
        alternatives: Alternatives | None,
        created: int,
        echoes: Sequence[str],
    ) -> None:
        super().__init__(call, completions, alternatives, created)
        self._echoes = echoes
        self._offsets = [0] * len(completions)
        self._has_begun = [False] * len(completions)

    def chunks(self, delta: Delta, begin: int) -> list[Any]:
        """Return the chunk for output tokens from ``begin`` on."""
        index = delta.index
        completion = self.completions[index]
        text = delta.text
        is_first = not self._has_begun[index]
        self._has_begun[index] = True
        if is_first:
            text = self._echoes[index] + text
        logprobs = None
        if self.alternatives is not None:
            logprobs = self.alternatives.text(
                completion,
                begin,
                delta.num_outputs,
                echo=self.call.echo and is_first,
                offset=self._offsets[index],
            )
        self._offsets[index] += len(text)
        choice = TextChoice(
            index, text, logprobs, finish_of(completion) if delta.end is not None else None
        )
        if delta.end is not None:
            choice.matched_stop = matched_of(completion)
        if self.call.wants_ids:
            choice.token_ids = completion.output_ids[begin : delta.num_outputs]
        if not text and delta.end is None and logprobs is None and not self.call.wants_ids:
            return []
        return [self._chunk(choice)]

    def plain(self, index: int) -> TextEvent:
        """Return how a chunk is written that carries text of completion ``index`` alone."""
        return TextEvent(self._chunk(TextChoice(index, "", None, None)), "text")

    def last(self) -> TextAnswer:
        """Return the chunk with the usage."""
        usage = usage_of(self.completions)
        return TextAnswer(self.call.id, "text_completion", self.created, self.call.model, [], usage)

    def _chunk(self, choice: TextChoice) -> TextAnswer:
        return TextAnswer(
            self.call.id,
            "text_completion",
            self.created,
            self.call.model,
            [choice],
            self.usage(),
        )
