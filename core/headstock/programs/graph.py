"""The steps that a program is made of; the body of ``POST /v1/programs``.

A program works on *states*: each is a conversation, or a text, with variables. Steps of one state
run one after another in the list's order; states run at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec

MAIN = "main"
"""The state that a program begins with, and that a step is about when it names none."""
MAX_CHOICES = 128
MAX_FORK = 256

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Value = str | list[Any]
"""Of a variable: a text; a list where ``n`` texts were generated, or a join gathered several."""
SelectMethod = Literal[
    "token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized"
]
Role = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what steps are made of."""


class Var(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """The value of a variable, inserted as text.

    Attributes:
        var: Its name.
        index: Which item, where the value is a list.
    """

    var: Name
    index: Count | None = None


class Condition(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """What decides a :class:`When`: exactly one test of a variable, or of other conditions.

    Texts are compared without the white space around them.

    Attributes:
        var: The variable that ``equals``, ``contains``, ``one_of`` and ``is_set`` test.
        none_of: True when none of these holds.
    """

    var: Name | None = None
    equals: str | None = None
    contains: str | None = None
    one_of: list[str] | None = None
    is_set: bool | None = None
    all_of: list[Condition] | None = None
    any_of: list[Condition] | None = None
    none_of: list[Condition] | None = None


class ReasoningMarks(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """Where reasoning begins and ends in a generated text.

    Attributes:
        is_open: The text begins with reasoning, whether or not the first mark is there.
    """

    begin: Annotated[str, msgspec.Meta(min_length=1)] = "<think>"
    end: Annotated[str, msgspec.Meta(min_length=1)] = "</think>"
    is_open: bool = False


class Step(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="type",
):
    """Base of every step.

    Attributes:
        state: Which state it is about.
    """

    state: Name = MAIN


class Text(Step, frozen=True, kw_only=True, tag="text"):
    """Adds text, with values of variables in it.

    Attributes:
        text: A text, or texts and variables in turn.
        role: Begins a turn of this role; None: continues the turn, or the plain text.
    """

    text: str | list[str | Var]
    role: Role | None = None


class Media(Step, frozen=True, kw_only=True, tag="media"):
    """Adds an image or a video to the turn.

    Attributes:
        url: An http(s) or ``data:`` URL.
        num_frames: How many frames of a video to look at; None: the model's default.
    """

    kind: Literal["image", "video"] = "image"
    url: str
    role: Role | None = None
    num_frames: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None


class Gen(Step, frozen=True, kw_only=True, tag="gen"):
    """Generates, adds what came to the state, and keeps it in a variable.

    Attributes:
        name: Of the variable.
        sampling_params: As in ``/generate``; with ``n`` over 1 the variable is a list, and the
            state continues with its first item.
        role: ``assistant`` begins a turn of the assistant.
        return_logprob: Tell log probabilities of the output's tokens, and of the
            ``top_logprobs_num`` likeliest at each.
        logprob_start_len: And of the prompt's tokens from this position on; None: of none.
        stream: Whether the text is sent as it comes, where events are wanted.
        reasoning: Cut reasoning out of the text, into the variable ``<name>_reasoning_content``.
    """

    name: Name
    sampling_params: dict[str, Any] = {}
    role: Literal["assistant"] | None = None
    return_logprob: bool = False
    top_logprobs_num: Annotated[int, msgspec.Meta(ge=0, le=128)] = 0
    logprob_start_len: Count | None = None
    stream: bool = False
    reasoning: ReasoningMarks | None = None


class Select(Step, frozen=True, kw_only=True, tag="select"):
    """Adds the likeliest of some texts, and keeps it in a variable."""

    name: Name
    choices: Annotated[
        list[Annotated[str, msgspec.Meta(min_length=1)]],
        msgspec.Meta(min_length=1, max_length=MAX_CHOICES),
    ]
    method: SelectMethod = "token_length_normalized"
    role: Literal["assistant"] | None = None


class Fork(Step, frozen=True, kw_only=True, tag="fork"):
    """Begins states that start as this one is now, and run at the same time."""

    into: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=MAX_FORK)]


class Join(Step, frozen=True, kw_only=True, tag="join"):
    """Waits for states, and takes over what they found.

    Attributes:
        states: Which ones; no later step may be about them.
        mode: ``gather``: each variable that one of them set becomes a list here, an item for each
            that set it. ``concatenate``: what they added is added here too, one after another.
    """

    states: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=MAX_FORK)]
    mode: Literal["gather", "concatenate"] = "gather"


class Scope(Step, frozen=True, kw_only=True, tag="scope"):
    """Keeps in a variable what is added between two such steps.

    Attributes:
        is_end: False: it begins here; True: it ends here.
    """

    name: Name
    is_end: bool = False


_WORDS = {"condition": "if", "other": "else"}


class When(Step, frozen=True, kw_only=True, tag="when", rename=_WORDS):
    """Takes one list of steps or the other; they are about this state, whatever they name."""

    condition: Condition
    then: list[Text | Media | Gen | Select | When] = []
    other: list[Text | Media | Gen | Select | When] = []


AnyStep = Text | Media | Gen | Select | Fork | Join | Scope | When
InnerStep = Text | Media | Gen | Select | When


class MediaPart(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """An image or a video in a message."""

    kind: Literal["image", "video"]
    url: str
    num_frames: Count | None = None


class StartMessage(_Part, frozen=True, kw_only=True):
    """A message that was there before the program."""

    role: Role
    content: str | list[str | MediaPart]


class Begun(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """How much a state had when it was forked: what is more, is its own.

    Attributes:
        text: Characters of the plain text.
        messages: Turns.
        parts: Texts and media of the last of them.
        characters: Of the last of these, where it is a text.
    """

    text: Count = 0
    messages: Count = 0
    parts: Count = 0
    characters: Count = 0


class Start(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """What a state begins with.

    Attributes:
        messages: Of a conversation; or:
        text: Of a plain text.
        variables: By name.
        begun: Of a state that was forked by an earlier program, and is to be joined by this one.
        fresh: Variables that it has set since.
    """

    messages: list[StartMessage] = []
    text: str = ""
    variables: dict[str, Value] = {}
    begun: Begun | None = None
    fresh: list[Name] = []


class Program(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A program.

    Attributes:
        states: The states that it begins with, by name.
    """

    steps: list[AnyStep]
    states: dict[str, Start] = msgspec.field(default_factory=lambda: {MAIN: Start()})


def numbered(steps: Sequence[AnyStep], prefix: str = "") -> Iterator[tuple[str, AnyStep]]:
    """Yield every step with its number: ``3``, or ``3.then.0`` inside of a :class:`When`."""
    for index, step in enumerate(steps):
        number = f"{prefix}{index}"
        yield number, step
        if isinstance(step, When):
            yield from numbered(step.then, f"{number}.then.")
            yield from numbered(step.other, f"{number}.else.")
