"""One state of a program while it runs: its conversation or text, and its variables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headstock.errors import RequestError
from headstock.programs.graph import (
    Begun,
    Condition,
    MediaPart,
    Start,
    StartMessage,
    Text,
    Value,
    Var,
)

REASONING = "_reasoning_content"
"""Ends the name of the variable that a gen's reasoning goes to."""
Content = tuple[str | MediaPart, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; texts of ``content`` never stand beside each other."""

    role: str
    content: Content = ()

    @property
    def text(self) -> str:
        """Its texts."""
        return "".join(part for part in self.content if isinstance(part, str))

    @property
    def has_media(self) -> bool:
        """Whether there is more than text."""
        return any(isinstance(part, MediaPart) for part in self.content)

    def plus(self, part: str | MediaPart) -> Message:
        """Return it with ``part`` at its end."""
        content = self.content
        if isinstance(part, str) and content and isinstance(content[-1], str):
            return Message(self.role, (*content[:-1], content[-1] + part))
        return Message(self.role, (*content, part))


@dataclass(slots=True)
class Branch:
    """A state: messages of a conversation, or one text; never both.

    Attributes:
        messages: Its turns; the last one may still grow.
        text: What stands there, where there are no turns.
        variables: By name.
        begun: What it had when it was forked, so that a join knows what is new.
        fresh: Variables that were set since, in order.
        scopes: Where scopes began. Characters of :attr:`all_text`.
    """

    messages: list[Message] = field(default_factory=list[Message])
    text: str = ""
    variables: dict[str, Value] = field(default_factory=dict[str, Value])
    begun: Begun | None = None
    fresh: dict[str, None] = field(default_factory=dict[str, None])
    scopes: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def all_text(self) -> str:
        """The plain text, or what stands in all turns."""
        return self.text or "".join(message.text for message in self.messages)

    @classmethod
    def of(cls, start: Start) -> Branch:
        """Return what a program begins with."""
        messages = [Message(item.role, _content(item)) for item in start.messages]
        known = [name for name in start.fresh if name in start.variables]
        variables = dict(start.variables)
        return cls(messages, start.text, variables, start.begun, dict.fromkeys(known))

    def start(self) -> Start:
        """Return it as what another program begins with."""
        messages = [
            StartMessage(role=m.role, content=list(m.content) if m.has_media else m.text)
            for m in self.messages
        ]
        return Start(
            messages=messages,
            text=self.text,
            variables=dict(self.variables),
            begun=self.begun,
            fresh=list(self.fresh),
        )

    def fork(self) -> Branch:
        """Return another state that begins as this one is."""
        last = self.messages[-1].content if self.messages else ()
        end = last[-1] if last else ""
        begun = Begun(
            text=len(self.text),
            messages=len(self.messages),
            parts=len(last),
            characters=len(end) if isinstance(end, str) else 0,
        )
        return Branch(list(self.messages), self.text, dict(self.variables), begun)

    def open(self, role: str | None) -> None:
        """Begin a turn; None: go on with what there is."""
        if role is not None:
            self.messages.append(Message(role))

    def add(self, part: str | MediaPart) -> None:
        """Add to the turn, or to the plain text."""
        if self.messages:
            self.messages[-1] = self.messages[-1].plus(part)
        elif isinstance(part, str):
            self.text += part
        else:
            raise RequestError(
                f"The {part.kind} stands outside of a turn.",
                remedy="Put it into a turn of the user.",
                field="role",
            )

    def render(self, step: Text) -> str:
        """Return the text of ``step`` with the values of its variables.

        Raises:
            RequestError: A variable is not set.
        """
        if isinstance(step.text, str):
            return step.text
        return "".join(p if isinstance(p, str) else self.value_text(p) for p in step.text)

    def value_text(self, part: Var) -> str:
        """Return the value of a variable as text.

        Raises:
            RequestError: It is not set, or has no such item.
        """
        value = self.variables.get(part.var)
        if value is None:
            raise RequestError(
                f"The variable {part.var!r} has no value here.",
                remedy="Test it with is_set first.",
                field="text",
            )
        if part.index is not None:
            if isinstance(value, str) or part.index >= len(value):
                raise RequestError(
                    f"The variable {part.var!r} has no item {part.index}.",
                    remedy="Name an item that is there.",
                    field="text",
                )
            value = value[part.index]
        return value if isinstance(value, str) else "\n".join(map(_flat, value))

    def holds(self, condition: Condition) -> bool:
        """Return whether ``condition`` holds."""
        if condition.all_of is not None:
            return all(self.holds(inner) for inner in condition.all_of)
        if condition.any_of is not None:
            return any(self.holds(inner) for inner in condition.any_of)
        if condition.none_of is not None:
            return not any(self.holds(inner) for inner in condition.none_of)
        value = self.variables.get(condition.var or "")
        if condition.is_set is not None:
            return (value is not None) == condition.is_set
        if value is None:
            return False
        if condition.one_of is not None:
            return _flat(value).strip() in [item.strip() for item in condition.one_of]
        if condition.contains is not None:
            return condition.contains in (value if isinstance(value, list) else _flat(value))
        return _flat(value).strip() == (condition.equals or "").strip()

    def set(self, name: str, value: Value) -> None:
        """Give a variable its value."""
        self.variables[name] = value
        self.fresh[name] = None

    def take(self, name: str, texts: Sequence[str], reasoning: Sequence[str] | None) -> None:
        """Take what a gen or a select brought: add the first text, keep all."""
        self.set(name, texts[0] if len(texts) == 1 else list(texts))
        if reasoning is not None:
            kept = reasoning[0] if len(reasoning) == 1 else list(reasoning)
            self.set(f"{name}{REASONING}", kept)
        self.add(texts[0])

    def scope(self, name: str, *, is_end: bool) -> None:
        """Begin a scope, or keep in a variable what was added since it began."""
        text = self.all_text
        if is_end:
            self.set(name, text[self.scopes.pop(name) :])
        else:
            self.scopes[name] = len(text)

    def gather(self, others: Sequence[Branch]) -> None:
        """Take the variables that ``others`` have set since they were forked, as lists."""
        found: dict[str, list[Value]] = {}
        for other in others:
            for name in other.fresh:
                found.setdefault(name, []).append(other.variables[name])
        for name, values in found.items():
            self.set(name, values)

    def concatenate(self, others: Sequence[Branch]) -> None:
        """Add what ``others`` have added since they were forked, one after another."""
        for other in others:
            begun = other.begun or Begun()
            self.text += other.text[begun.text :]
            if begun.messages and self.messages:
                for index, part in enumerate(other.messages[begun.messages - 1].content):
                    if index >= begun.parts:
                        self.add(part)
                    elif index == begun.parts - 1 and isinstance(part, str):
                        self.add(part[begun.characters :])
            self.messages += other.messages[begun.messages :]


def _content(message: StartMessage) -> Content:
    content = message.content
    return (content,) if isinstance(content, str) else tuple(content)


def _flat(value: Value) -> str:
    return value if isinstance(value, str) else "\n".join(map(_flat, value))
