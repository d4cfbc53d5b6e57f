"""How the served model writes thoughts and calls, and one answer read by it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from headstock.errors import ConfigError, did_you_mean
from headstock.server.completion import Completion, Delta
from headstock.text import Tokenizer
from headstock.text.parsers import (
    CALL_FORMATS,
    REASONING_FORMATS,
    Call,
    CallFormat,
    Part,
    PartReader,
    ReasoningFormat,
    Tools,
    detect,
)
from headstock.text.parsers.formats import ALIASES, Format

_TAIL = 32
"""Tokens at a prompt's end among which the mark stands that begins thoughts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What the served model's chat template tells of how it speaks.

    Attributes:
        reasoning: How it marks its thoughts; None: it has none.
        calls: How it writes calls; None: it has not learned to.
        takes_tools: Whether the template shows the model which functions there are.
        takes_calls: Whether it shows earlier calls and their results.
        has_special_marks: Whether marks are special tokens, which the text must then have.
    """

    reasoning: ReasoningFormat | None = None
    calls: CallFormat | None = None
    takes_tools: bool = False
    takes_calls: bool = False
    has_special_marks: bool = False


PLAIN = Dialect()


def find_dialect(
    template: str | None, tokenizer: Tokenizer, *, reasoning: str = "auto", calls: str = "auto"
) -> Dialect:
    """Return the dialect of a chat template.

    Args:
        template: Its source; None: the model has none.
        tokenizer: Tells which marks are special tokens.
        reasoning: ``auto``, ``none``, or a format's name.
        calls: Likewise.

    Raises:
        ConfigError: A name is not known.
    """
    source = template or ""
    thinks = _choose("reasoning_parser", reasoning, source, REASONING_FORMATS)
    writes = _choose("tool_call_parser", calls, source, CALL_FORMATS)
    marks = [] if thinks is None else [thinks.begin, thinks.end, *thinks.drops]
    marks += [] if writes is None else [writes.begin, writes.end]
    special = [tokenizer.token_text(index) for index in sorted(tokenizer.special_ids)]
    return Dialect(
        reasoning=thinks,
        calls=writes,
        takes_tools="tools" in source,
        takes_calls="tool_calls" in source,
        has_special_marks=any(text in mark for text in special if text for mark in marks),
    )


def _choose(setting: str, name: str, template: str, formats: tuple[Format, ...]) -> Format | None:
    if name == "none":
        return None
    if name == "auto":
        return detect(template, formats)
    wanted = ALIASES.get(name, name)
    found = next((known for known in formats if known.name == wanted), None)
    if found is None:
        names = ["auto", "none", *(known.name for known in formats)]
        raise ConfigError(
            f"{setting} is {name!r}; allowed: {', '.join(names)}.{did_you_mean(name, names)}",
            remedy="Change it, or leave it out: auto asks the model's chat template.",
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What a call wants told apart in its answers.

    Attributes:
        reasoning: Part thoughts written so from words; None: leave them in the text.
        calls: Read calls written so; None: leave them in the text.
        tools: Functions that may be called.
        max_calls: Calls after which an answer is over; None: no bound.
        is_continued: Whether the prompt ends with the beginning of the answer.
    """

    reasoning: ReasoningFormat | None
    calls: CallFormat | None
    tools: Tools
    max_calls: int | None = None
    is_continued: bool = False

    def reader(self, completion: Completion, tokenizer: Tokenizer) -> PartReader:
        """Return what reads the answer of ``completion``."""
        return PartReader(
            self.reasoning,
            self.calls,
            self.tools,
            is_thinking=self._is_thinking(completion.submit.prompt_ids, tokenizer),
            max_calls=self.max_calls,
        )

    def _is_thinking(self, prompt_ids: Sequence[int], tokenizer: Tokenizer) -> bool:
        """Whether the prompt has begun thoughts that it does not end."""
        if self.reasoning is None:
            return False
        tail = prompt_ids if self.is_continued else prompt_ids[-_TAIL:]
        text = tokenizer.decode(tail, skip_special_tokens=False)
        if self.is_continued:
            return text.rfind(self.reasoning.begin) > text.rfind(self.reasoning.end)
        return text.rstrip().endswith(self.reasoning.begin)


@dataclass(slots=True)
class NamedCall:
    """A call, and the name by which its result will refer to it."""

    call: Call
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


class Answer:
    """One completion's answer in parts, while it is made: what every protocol writes from.

    Args:
        completion: Whose.
        speech: What is told apart; None: all is text.
        tokenizer: For the end of the prompt.
    """

    __slots__ = ("_reader", "calls", "completion", "reasoning", "text")

    def __init__(self, completion: Completion, speech: Speech | None, tokenizer: Tokenizer) -> None:
        self.completion = completion
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[NamedCall] = []
        self._reader = None if speech is None else speech.reader(completion, tokenizer)

    @classmethod
    def whole(cls, completion: Completion, speech: Speech | None, tokenizer: Tokenizer) -> Answer:
        """Return the answer of a completion that has ended."""
        answer = cls(completion, speech, tokenizer)
        answer.read(Delta(completion.index, completion.text, 0, completion.end))
        return answer

    def read(self, delta: Delta) -> list[Part]:
        """Take what ``delta`` brought; return the parts that are certain now."""
        if self._reader is None:
            parts = [Part("text", delta.text)] if delta.text else []
        else:
            parts = self._reader.push(delta.text)
            if delta.end is not None:
                parts += self._reader.flush()
        for part in parts:
            if part.call is not None:
                self.calls.append(NamedCall(part.call))
            else:
                (self.text if part.kind == "text" else self.reasoning).append(part.text)
        return parts

    @property
    def finish(self) -> str | None:
        """How it ended: ``stop``, ``length``, ``tool_calls``, ``abort``; None: it has not."""
        end = self.completion.end
        if end is None:
            return None
        return "tool_calls" if self.calls and end.reason.kind == "stop" else end.reason.kind

    @property
    def matched(self) -> int | str | None:
        """The token id, string or pattern that stopped it."""
        end = self.completion.end
        return None if end is None else end.reason.matched


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens of a call."""

    prompt: int
    cached: int
    output: int


def count(completions: Sequence[Completion], num_outputs: int | None = None) -> Count:
    """Return the tokens of a call; a prompt counts once, whatever ``n`` is.

    Args:
        completions: All of the call.
        num_outputs: Tokens generated so far; None: all there are.
    """
    prompts = {id(completion.submit.prompt_ids): completion for completion in completions}
    if num_outputs is None:
        num_outputs = sum(len(completion.output_ids) for completion in completions)
    return Count(
        sum(len(first.submit.prompt_ids) for first in prompts.values()),
        sum(first.cached_tokens for first in prompts.values()),
        num_outputs,
    )
