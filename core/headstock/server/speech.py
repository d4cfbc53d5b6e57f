"""How the served model writes thoughts and calls, and one answer read by it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headstock.errors import ConfigError, RequestError, did_you_mean
from headstock.requests import Grammar
from headstock.server.completion import Completion, Delta
from headstock.structured.calls import Function, Shape, content_lark, shape_grammar
from headstock.text import Tokenizer
from headstock.text.parsers import (
    Call,
    CallFormat,
    Part,
    PartReader,
    ReasoningFormat,
    Tools,
    detect,
)
from headstock.text.parsers.formats import Format, find_format
from headstock.text.parsers.registry import FormatRegistry, own_formats

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
        special: Names of those of the two whose marks are special tokens, which the text must
            then have.
        tokens: Ids of special tokens by text.
        formats: All that are known, those of plugins too.
    """

    reasoning: ReasoningFormat | None = None
    calls: CallFormat | None = None
    takes_tools: bool = False
    takes_calls: bool = False
    special: frozenset[str] = frozenset()
    tokens: Mapping[str, int] = field(default_factory=dict[str, int])
    formats: FormatRegistry = field(default_factory=own_formats)


PLAIN = Dialect()


def find_dialect(
    template: str | None,
    tokenizer: Tokenizer,
    *,
    reasoning: str = "auto",
    calls: str = "auto",
    formats: FormatRegistry | None = None,
) -> Dialect:
    """Return the dialect of a chat template.

    Args:
        template: Its source; None: the model has none.
        tokenizer: Tells which marks are special tokens.
        reasoning: ``auto``, ``none``, or a format's name.
        calls: Likewise.
        formats: What there is to choose from; None: Headstock's own.

    Raises:
        ConfigError: A name is not known.
    """
    source, formats = template or "", formats or own_formats()
    thinks = _choose("reasoning_parser", reasoning, source, formats.reasoning)
    writes = _choose("tool_call_parser", calls, source, formats.calls)
    marks = {
        "reasoning": () if thinks is None else (thinks.begin, thinks.end, *thinks.drops),
        "calls": () if writes is None else (writes.begin, writes.end),
    }
    tokens = {text: i for i in sorted(tokenizer.special_ids) if (text := tokenizer.token_text(i))}
    return Dialect(
        reasoning=thinks,
        calls=writes,
        takes_tools="tools" in source,
        takes_calls="tool_calls" in source,
        special=frozenset(
            name
            for name, of in marks.items()
            if any(text in mark for text in tokens for mark in of)
        ),
        tokens=tokens,
        formats=formats,
    )


def _choose(setting: str, name: str, template: str, formats: tuple[Format, ...]) -> Format | None:
    if name == "none":
        return None
    if name == "auto":
        return detect(template, formats)
    found = find_format(name, formats)
    if found is None:
        names = ["auto", "none", *(known.name for known in formats)]
        raise ConfigError(
            f"{setting} is {name!r}; allowed: {', '.join(names)}.{did_you_mean(name, names)}",
            remedy="Change it, or leave it out: auto asks the model's chat template.",
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """Which parts of its answers a call wants to have separated.

    Attributes:
        reasoning: Part thoughts written so from words; None: leave them in the text.
        calls: Read calls written so; None: leave them in the text.
        tools: Functions that may be called.
        max_calls: Calls after which an answer is over; None: no bound.
        is_continued: Whether the prompt ends with the beginning of the answer.
        must_call: Whether the answer is calls and nothing else, thoughts aside.
        strict: Functions whose arguments obey their schemas whole.
        tokens: Ids of special tokens by text.
    """

    reasoning: ReasoningFormat | None
    calls: CallFormat | None
    tools: Tools
    max_calls: int | None = None
    is_continued: bool = False
    must_call: bool = False
    strict: frozenset[str] = frozenset()
    tokens: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def is_bound(self) -> bool:
        """Whether a grammar makes calls be written as their format describes."""
        return self.must_call or bool(self.strict)

    def grammar(
        self,
        wanted: Grammar | None,
        prompt_ids: Sequence[int],
        tokenizer: Tokenizer,
        end_ids: Sequence[int],
    ) -> Grammar | None:
        """Return what the whole answer must look like, its thoughts and calls with it.

        Args:
            wanted: What its words must look like; None: anything.
            prompt_ids: They may have begun the thoughts.
            tokenizer: For the end of the prompt.
            end_ids: Ids that end an answer.

        Raises:
            RequestError: A function's name or schema is not possible.
        """
        content = "" if wanted is None else content_lark(wanted)
        is_alone = self.calls is None and self.reasoning is None
        if self.is_bound and wanted is not None and content is None:
            asked_for = "tool_choice" if self.must_call else "tools"
            raise RequestError(
                f"{wanted.field} and {asked_for} both bind the answer.",
                remedy="Leave one out, or describe the words by a JSON schema or by choices.",
                field=asked_for,
            )
        if content is None or is_alone or (wanted is None and not self.is_bound):
            return wanted
        shape = Shape(
            calls=self.calls,
            functions=[
                Function(name=name, schema=schema, is_strict=name in self.strict)
                for name, schema in self.tools.items()
            ],
            must_call=self.must_call,
            is_single=self.max_calls == 1,
            content=content,
            reasoning=self.reasoning,
            is_thinking=self._is_thinking(prompt_ids, tokenizer),
        )
        named = wanted.field if wanted is not None else ""
        asked_for = "tool_choice" if self.must_call else "tools"
        return shape_grammar(shape, self.tokens, end_ids, asked_for if self.is_bound else named)

    def reader(self, completion: Completion, tokenizer: Tokenizer) -> PartReader:
        """Return what reads the answer of ``completion``."""
        return PartReader(
            self.reasoning,
            self.calls,
            self.tools,
            is_thinking=self._is_thinking(completion.submit.prompt_ids, tokenizer),
            max_calls=self.max_calls,
            is_bound=self.is_bound,
        )

    def _is_thinking(self, prompt_ids: Sequence[int], tokenizer: Tokenizer) -> bool:
        return self.reasoning is not None and has_begun(
            self.reasoning, prompt_ids, tokenizer, is_continued=self.is_continued
        )


def has_begun(
    reasoning: ReasoningFormat,
    prompt_ids: Sequence[int],
    tokenizer: Tokenizer,
    *,
    is_continued: bool,
) -> bool:
    """Return whether a prompt has begun thoughts that it does not end.

    Args:
        reasoning: How they are marked.
        prompt_ids: The prompt.
        tokenizer: For its text.
        is_continued: Whether it ends with the beginning of the answer.
    """
    tail = prompt_ids if is_continued else prompt_ids[-_TAIL:]
    text = tokenizer.decode(tail, skip_special_tokens=False)
    if is_continued:
        return text.rfind(reasoning.begin) > text.rfind(reasoning.end)
    return text.rstrip().endswith(reasoning.begin)


@dataclass(slots=True)
class NamedCall:
    """A call, and the id by which its result will refer to it.

    Attributes:
        name: Of the function.
        pieces: Its arguments, as they came.
        is_whole: Whether they are all there.
        id: The same each time that the answer is read.
    """

    name: str
    pieces: list[str]
    is_whole: bool
    id: str

    @property
    def call(self) -> Call:
        """The call, as far as it has come."""
        return Call(self.name, "".join(self.pieces))


class Answer:
    """One completion's answer in parts, while it is made: what every protocol writes from.

    Args:
        completion: Whose.
        speech: Which parts are separated; None: all is text.
        tokenizer: For the end of the prompt.
    """

    __slots__ = ("_reader", "calls", "completion", "reasoning", "reasoning_tokens", "text")

    def __init__(self, completion: Completion, speech: Speech | None, tokenizer: Tokenizer) -> None:
        self.completion = completion
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[NamedCall] = []
        self.reasoning_tokens = 0
        """Output tokens up to the end of the thoughts."""
        self._reader = None if speech is None else speech.reader(completion, tokenizer)

    @classmethod
    def whole(cls, completion: Completion, speech: Speech | None, tokenizer: Tokenizer) -> Answer:
        """Return the answer of a completion that has ended."""
        answer = cls(completion, speech, tokenizer)
        answer.read_all()
        return answer

    def read_all(self) -> None:
        """Take all that a completion that has ended has brought, token by token if it thinks."""
        completion = self.completion
        count = len(completion.output_ids)
        if self._reader is not None:
            for at, text in enumerate(completion.parts[:count], 1):
                self.read(Delta(completion.index, text, at))
        rest = completion.parts[count:] if self._reader is not None else completion.parts
        self.read(Delta(completion.index, "".join(rest), count, completion.end))

    def read(self, delta: Delta) -> list[Part]:
        """Take what ``delta`` brought; return the parts that are certain now."""
        if self._reader is None:
            parts = [Part("text", delta.text)] if delta.text else []
        else:
            was_thinking = self._reader.is_thinking
            parts = self._reader.push(delta.text)
            if was_thinking or self._reader.is_thinking:
                self.reasoning_tokens = delta.num_outputs
            if delta.end is not None:
                parts += self._reader.flush()
        for part in parts:
            if part.call is not None:
                call = part.call
                seed = f"{self.completion.submit.id}/{len(self.calls)}".encode()
                named = f"call_{hashlib.blake2b(seed, digest_size=12).hexdigest()}"
                self.calls.append(NamedCall(call.name, [call.arguments], not part.is_open, named))
            elif part.kind == "arguments":
                self.calls[-1].pieces.append(part.text)
                self.calls[-1].is_whole = part.is_last
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


def whole_calls(answer: Answer, parts: Sequence[Part]) -> list[Part]:
    """Return ``parts``, the last that ``answer`` read, with each call where it is complete."""
    finished: list[Part] = []
    at = len(answer.calls) - sum(part.call is not None for part in parts)
    for part in parts:
        at += part.call is not None
        if part.is_last:
            finished.append(Part("call", call=answer.calls[at - 1].call))
        elif part.kind != "arguments" and not part.is_open:
            finished.append(part)
    return finished


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


def parted(
    text: str,
    reasoning: ReasoningFormat | None,
    calls: CallFormat | None,
    tools: Tools,
    *,
    is_thinking: bool = False,
) -> tuple[str, str, list[Call]]:
    """Return the words, thoughts and calls of a whole text."""
    reader = PartReader(reasoning, calls, tools, is_thinking=is_thinking)
    parts = [*reader.push(text), *reader.flush()]
    words = "".join(part.text for part in parts if part.kind == "text")
    thoughts = "".join(part.text for part in parts if part.kind == "reasoning")
    return words, thoughts, [part.call for part in parts if part.call is not None]
