"""Answers of the OpenAI routes, whole and streamed: one writer, and a shape for each route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from headstock.server.completion import Completion, Delta
from headstock.server.protocols.events import TextEvent, event
from headstock.server.protocols.openai_bodies import OpenAICall
from headstock.server.protocols.openai_logprobs import (
    Alternatives,
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprobs,
)
from headstock.server.speech import Answer, NamedCall, count
from headstock.text import Tokenizer
from headstock.text.parsers import Part


class PromptDetails(msgspec.Struct):
    """What the prompt's tokens were."""

    cached_tokens: int = 0


class OutputDetails(msgspec.Struct):
    """What the output's tokens were."""

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int | msgspec.UnsetType = msgspec.UNSET
    rejected_prediction_tokens: int | msgspec.UnsetType = msgspec.UNSET


class Usage(msgspec.Struct):
    """Tokens of a call."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: OutputDetails | msgspec.UnsetType = msgspec.UNSET


class FunctionAnswer(msgspec.Struct):
    """A function to call; in streams, more of its arguments."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    arguments: str = ""


class CallAnswer(msgspec.Struct, omit_defaults=True):
    """A call that the model wants made, or more of one; ``index`` in streams."""

    id: str | msgspec.UnsetType = msgspec.UNSET
    type: str | msgspec.UnsetType = msgspec.UNSET
    function: FunctionAnswer | msgspec.UnsetType = msgspec.UNSET
    index: int | msgspec.UnsetType = msgspec.UNSET


class ChatAnswerMessage(msgspec.Struct):
    """What the model said."""

    role: str
    content: str | None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[CallAnswer] | msgspec.UnsetType = msgspec.UNSET


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
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class ChatDelta(msgspec.Struct, omit_defaults=True):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallAnswer] | None = None


class ChatChunkChoice(msgspec.Struct):
    """One choice's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    matched_stop: int | str | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class TextChoice(msgspec.Struct):
    """One text completion, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    matched_stop: int | str | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class TextAnswer(msgspec.Struct):
    """Answer of ``/v1/completions``, and one event of its stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class Chunk(msgspec.Struct):
    """One event of a stream, of either route."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


def usage_of(answers: Sequence[Answer], num_outputs: int | None = None) -> Usage:
    """Return the tokens of a call, as the OpenAI routes tell them."""
    tokens = count([answer.completion for answer in answers], num_outputs)
    total = tokens.prompt + tokens.output
    usage = Usage(tokens.prompt, tokens.output, total, PromptDetails(tokens.cached))
    thought = sum(answer.reasoning_tokens for answer in answers)
    ends = [answer.completion.end for answer in answers]
    drafted = sum(end.num_drafted for end in ends if end is not None)
    if thought or drafted:
        details = usage.completion_tokens_details = OutputDetails(thought)
        if drafted:
            accepted = sum(end.num_accepted for end in ends if end is not None)
            details.accepted_prediction_tokens = accepted
            details.rejected_prediction_tokens = drafted - accepted
    return usage


class Span(msgspec.Struct):
    """What is new of an answer.

    Attributes:
        answer: Whose.
        parts: Its new parts.
        begin: Output tokens before them.
        end: Output tokens with them.
        is_first: Whether nothing of it was written before.
        is_last: Whether it has ended.
    """

    answer: Answer
    parts: list[Part]
    begin: int
    end: int
    is_first: bool
    is_last: bool


class Shape(Protocol):
    """How a route writes an answer in parts."""

    chunk_object: str

    def whole(self, call: OpenAICall, answers: Sequence[Answer], created: int) -> Any:
        """Return the whole answer of a call whose completions have ended."""
        ...

    def choices(self, call: OpenAICall, span: Span) -> list[Any]:
        """Return the choices of a stream's chunks, one a chunk, that tell ``span``."""
        ...

    def plain(self, index: int) -> tuple[Any, str]:
        """Return a choice that carries an empty text of completion ``index`` alone, and where."""
        ...


class ChatShape:
    """The shape of a chat.

    Args:
        alternatives: Writes logprobs, if they were asked for.
    """

    chunk_object = "chat.completion.chunk"

    def __init__(self, alternatives: Alternatives | None) -> None:
        self._alternatives = alternatives

    def whole(self, call: OpenAICall, answers: Sequence[Answer], created: int) -> ChatAnswer:
        """Return the whole answer."""
        usage = usage_of(answers)
        choices = [self._choice(call, answer) for answer in answers]
        whole = ChatAnswer(call.id, "chat.completion", created, call.model, choices, usage)
        if call.prompt_logprobs is not None and self._alternatives is not None:
            whole.prompt_logprobs = self._alternatives.prompt(answers[0].completion)
        return whole

    def choices(self, call: OpenAICall, span: Span) -> list[Any]:
        """Return the choices that tell ``span``: the role, each kind of part, the end."""
        answer, completion = span.answer, span.answer.completion
        index = completion.index
        made: list[Any] = []
        if span.is_first:
            made.append(ChatChunkChoice(index, ChatDelta("assistant", "")))
        deltas = _deltas(span)
        has_tokens = span.end > span.begin and (call.logprobs is not None or call.wants_ids)
        if has_tokens and not deltas:
            deltas = [ChatDelta(content="")]
        for at, delta in enumerate(deltas):
            choice = ChatChunkChoice(index, delta)
            if at == 0 and call.logprobs is not None and self._alternatives is not None:
                choice.logprobs = self._alternatives.chat(completion, span.begin, span.end)
            if at == 0 and call.wants_ids:
                choice.token_ids = completion.output_ids[span.begin : span.end]
            made.append(choice)
        if span.is_last:
            end = ChatChunkChoice(index, ChatDelta(), finish_reason=answer.finish)
            end.matched_stop = answer.matched
            made.append(end)
        return made

    def plain(self, index: int) -> tuple[Any, str]:
        """Return a choice whose ``content`` is empty."""
        return ChatChunkChoice(index, ChatDelta(content="")), "content"

    def _choice(self, call: OpenAICall, answer: Answer) -> ChatChoice:
        completion = answer.completion
        text = "".join(answer.text)
        has_calls = bool(answer.calls)
        message = ChatAnswerMessage("assistant", None if has_calls and not text else text)
        if answer.reasoning:
            message.reasoning_content = "".join(answer.reasoning)
        if has_calls:
            message.tool_calls = [_call(named) for named in answer.calls]
        logprobs = None
        if call.logprobs is not None and self._alternatives is not None:
            logprobs = self._alternatives.chat(completion, 0, len(completion.output_ids))
        ids = completion.output_ids if call.wants_ids else msgspec.UNSET
        return ChatChoice(completion.index, message, logprobs, answer.finish, answer.matched, ids)


def _deltas(span: Span) -> list[ChatDelta]:
    """Return one delta for each run of parts of a kind."""
    deltas: list[ChatDelta] = []
    at = len(span.answer.calls) - sum(part.call is not None for part in span.parts)
    for part in span.parts:
        if part.call is not None:
            function = FunctionAnswer(part.call.name, part.call.arguments)
            call = CallAnswer(span.answer.calls[at].id, "function", function, index=at)
            at += 1
            deltas.append(ChatDelta(tool_calls=[call]))
        elif part.kind == "arguments":
            more = CallAnswer(function=FunctionAnswer(arguments=part.text), index=at - 1)
            deltas.append(ChatDelta(tool_calls=[more]))
        elif part.kind == "reasoning":
            deltas.append(ChatDelta(reasoning_content=part.text))
        else:
            deltas.append(ChatDelta(content=part.text))
    return deltas


def _call(named: NamedCall) -> CallAnswer:
    function = FunctionAnswer(named.call.name, named.call.arguments)
    return CallAnswer(named.id, "function", function)


class TextShape:
    """The shape of a text completion.

    Args:
        alternatives: Writes logprobs, if they were asked for.
        echoes: What stands before each completion's text.
    """

    chunk_object = "text_completion"

    def __init__(self, alternatives: Alternatives | None, echoes: Sequence[str]) -> None:
        self._alternatives = alternatives
        self._echoes = echoes

    def whole(self, call: OpenAICall, answers: Sequence[Answer], created: int) -> TextAnswer:
        """Return the whole answer."""
        spans = [
            Span(answer, [], 0, len(answer.completion.output_ids), True, True) for answer in answers
        ]
        choices = [self._choice(call, span, "".join(span.answer.text)) for span in spans]
        usage = usage_of(answers)
        return TextAnswer(call.id, "text_completion", created, call.model, choices, usage)

    def choices(self, call: OpenAICall, span: Span) -> list[Any]:
        """Return the one choice that tells ``span``; none where it has nothing to tell."""
        text = "".join([part.text for part in span.parts])
        choice = self._choice(call, span, text)
        has_tokens = call.wants_ids or call.logprobs is not None
        return [choice] if choice.text or span.is_last or has_tokens else []

    def plain(self, index: int) -> tuple[Any, str]:
        """Return a choice whose ``text`` is empty."""
        return TextChoice(index, "", None, None), "text"

    def _choice(self, call: OpenAICall, span: Span, text: str) -> TextChoice:
        completion = span.answer.completion
        echo = self._echoes[completion.index]
        logprobs = None
        if call.logprobs is not None and self._alternatives is not None:
            logprobs = self._alternatives.text(
                completion,
                span.begin,
                span.end,
                echo=echo if call.echo and span.is_first else None,
                offset=len(echo),
            )
        finish = span.answer.finish if span.is_last else None
        choice = TextChoice(
            completion.index, echo + text if span.is_first else text, logprobs, finish
        )
        if span.is_last:
            choice.matched_stop = span.answer.matched
        if call.wants_ids:
            choice.token_ids = completion.output_ids[span.begin : span.end]
        has_prompt = span.is_first and call.prompt_logprobs is not None
        if has_prompt and self._alternatives is not None:
            choice.prompt_logprobs = self._alternatives.prompt(completion)
        return choice


class OpenAIStream:
    """Events of one streamed call.

    Args:
        call: What was asked.
        completions: In order.
        shape: How its route writes.
        tokenizer: For reading answers in parts.
        created: Seconds since 1970.
    """

    def __init__(
        self,
        call: OpenAICall,
        completions: Sequence[Completion],
        shape: Shape,
        tokenizer: Tokenizer,
        created: int,
    ) -> None:
        self.call = call
        self.completions = completions
        self._shape = shape
        self._created = created
        self._answers = [Answer(one, call.speech, tokenizer) for one in completions]
        self._num_told = [0] * len(completions)
        self._has_begun = [False] * len(completions)
        is_plain = call.logprobs is None and not call.wants_ids and not call.continuous_usage
        self._plain: list[TextEvent] | None = None
        """Where chunks amid a completion carry its text alone: those."""
        if is_plain and call.speech is None:
            self._plain = [self._plain_event(index) for index in range(len(completions))]

    def write(self, delta: Delta) -> bytes:
        """Return the events that ``delta`` makes."""
        index = delta.index
        if self._plain is None or delta.end is not None or not self._num_told[index]:
            return b"".join([event(chunk) for chunk in self.events(delta)])
        if not delta.text:
            return b""
        self._num_told[index] = delta.num_outputs
        return self._plain[index].write(delta.text)

    def events(self, delta: Delta) -> list[Chunk]:
        """Return the chunks that ``delta`` makes: none while its text is incomplete."""
        index = delta.index
        parts = self._answers[index].read(delta)
        has_tokens = self.call.logprobs is not None or self.call.wants_ids
        if not parts and delta.end is None and self._num_told[index] and not has_tokens:
            return []
        begin, self._num_told[index] = self._num_told[index], delta.num_outputs
        is_first, self._has_begun[index] = not self._has_begun[index], True
        span = Span(
            self._answers[index], parts, begin, delta.num_outputs, is_first, delta.end is not None
        )
        choices = self._shape.choices(self.call, span)
        if is_first and not choices:
            self._has_begun[index] = False
        return [self._chunk([choice]) for choice in choices]

    def last(self) -> Chunk:
        """Return the chunk with the usage of the whole call."""
        chunk = self._chunk([])
        chunk.usage = usage_of(self._answers)
        return chunk

    def _plain_event(self, index: int) -> TextEvent:
        choice, field = self._shape.plain(index)
        return TextEvent(self._chunk([choice]), field)

    def _chunk(self, choices: list[Any]) -> Chunk:
        call = self.call
        usage: Usage | msgspec.UnsetType | None = None if call.include_usage else msgspec.UNSET
        if call.continuous_usage:
            usage = usage_of(self._answers, sum(self._num_told))
        return Chunk(call.id, self._shape.chunk_object, self._created, call.model, choices, usage)
