"""Refuses programs that cannot run, or that are larger than allowed, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from headstock.errors import RequestError, did_you_mean
from headstock.programs.branch import REASONING
from headstock.programs.graph import (
    Condition,
    Fork,
    Gen,
    InnerStep,
    Join,
    Media,
    Program,
    Scope,
    Select,
    Start,
    Text,
    Var,
    When,
    numbered,
)

DEFAULT_TOKENS = 128
"""Tokens of a gen that does not say how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large a program may be.

    Attributes:
        max_steps: Steps, those inside of others and states counted.
        max_depth: Of forks of forks, and of conditions in conditions.
        max_tokens: That all its gens together may generate.
    """

    max_steps: int = 1024
    max_depth: int = 8
    max_tokens: int = 131_072


UNLIMITED = Limits(max_steps=2**31, max_depth=64, max_tokens=2**62)
"""For who runs programs of one's own. The depth is that of the interpreter's stack."""


@dataclass(slots=True)
class _Known:
    """What is known of a state before a step."""

    is_chat: bool
    has_text: bool
    depth: int
    role: str | None
    names: set[str] = field(default_factory=set[str])
    scopes: set[str] = field(default_factory=set[str])
    joined_at: str | None = None


def check(program: Program, limits: Limits) -> None:
    """Refuse ``program`` where it cannot run.

    Raises:
        RequestError: ``field`` names the step, such as ``steps[3].name``.
    """
    _check_size(program, limits)
    states = {name: _begin(name, start) for name, start in program.states.items()}
    for index, step in enumerate(program.steps):
        number = str(index)
        state = _find(states, step.state, f"{number}.state")
        match step:
            case Fork():
                _check_fork(states, state, step, number, limits)
            case Join():
                _check_join(states, state, step, number)
            case Scope():
                _check_scope(state, step, number)
            case _:
                _check_inner(state, step, number, state.depth, limits)


def _check_size(program: Program, limits: Limits) -> None:
    num_steps = len(program.states)
    num_tokens = 0
    for number, step in numbered(program.steps):
        num_steps += 1 + (len(step.into) if isinstance(step, Fork) else 0)
        if isinstance(step, Gen):
            num_tokens += _tokens_of(step, number)
        elif isinstance(step, Select):
            num_tokens += len(step.choices)
    if not program.steps:
        raise RequestError("The program has no steps.", remedy="Give at least one.", field="steps")
    for what, count, limit, setting in (
        ("steps and states", num_steps, limits.max_steps, "max_program_steps"),
        ("tokens to generate", num_tokens, limits.max_tokens, "max_program_tokens"),
    ):
        if count > limit:
            raise RequestError(
                f"The program has {count} {what}; {limit} are allowed.",
                remedy=f"Send it in parts, or raise {setting}.",
                field="steps",
                code="program_too_large",
            )


def _tokens_of(step: Gen, number: str) -> int:
    counts: list[int] = []
    for name, default in (("max_new_tokens", DEFAULT_TOKENS), ("n", 1)):
        value = step.sampling_params.get(name)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _refused(number, name, f"{name} is {value!r}", "Give a whole number.")
        counts.append(value)
    return counts[0] * counts[1]


def _begin(name: str, start: Start) -> _Known:
    if start.messages and start.text:
        raise RequestError(
            f"The state {name!r} has both messages and text.",
            remedy="Give one of them.",
            field=f"states.{name}",
        )
    role = start.messages[-1].role if start.messages else None
    return _Known(bool(start.messages), bool(start.text), 1, role, set(start.variables))


def _find(states: dict[str, _Known], name: str, where: str) -> _Known:
    state = states.get(name)
    number, _, part = where.partition(".")
    if state is None:
        raise _refused(
            number,
            part,
            f"there is no state {name!r} yet.{did_you_mean(name, states)}",
            "Fork it first, or name it in states.",
        )
    if state.joined_at is not None:
        raise _refused(
            number,
            part,
            f"the state {name!r} was joined by steps[{state.joined_at}]",
            "Put this step before the join.",
        )
    return state


def _check_fork(
    states: dict[str, _Known], state: _Known, step: Fork, number: str, limits: Limits
) -> None:
    if state.depth >= limits.max_depth:
        raise _too_deep(number, "into", limits)
    for name in step.into:
        if name in states:
            raise _refused(number, "into", f"there is a state {name!r} already", "Use a new name.")
        states[name] = _Known(
            state.is_chat, state.has_text, state.depth + 1, state.role, set(state.names)
        )


def _check_join(states: dict[str, _Known], state: _Known, step: Join, number: str) -> None:
    for name in step.states:
        other = _find(states, name, f"{number}.states")
        if other is state:
            raise _refused(number, "states", f"{name!r} cannot join itself", "Name its forks.")
        other.joined_at = number
        state.names |= other.names
        state.is_chat |= other.is_chat
        state.has_text |= other.has_text
        if step.mode == "concatenate":
            state.role = other.role


def _check_scope(state: _Known, step: Scope, number: str) -> None:
    if step.is_end != (step.name in state.scopes):
        what = "has not begun" if step.is_end else "has begun already"
        raise _refused(number, "name", f"the scope {step.name!r} {what}", "Begin, then end it.")
    if step.is_end:
        state.scopes.remove(step.name)
        state.names.add(step.name)
    else:
        state.scopes.add(step.name)


def _check_inner(state: _Known, step: InnerStep, number: str, depth: int, limits: Limits) -> None:
    match step:
        case When():
            if depth >= limits.max_depth:
                raise _too_deep(number, "then", limits)
            _check_condition(step.condition, state, number, 0)
            before = state.role
            for side, steps in (("then", step.then), ("else", step.other)):
                state.role = before
                _check_side(state, steps, f"{number}.{side}", depth + 1, limits)
        case Text():
            _open(state, step.role, number, is_text=True)
            for part in step.text if isinstance(step.text, list) else ():
                if isinstance(part, Var):
                    _check_name(state, part.var, number, "text")
        case Media():
            _open(state, step.role, number, is_text=False)
            if step.num_frames is not None and step.kind != "video":
                raise _refused(
                    number,
                    "num_frames",
                    "an image has one frame; num_frames is of videos",
                    'Leave it out, or set the kind to "video".',
                )
        case Gen() | Select():
            _open(state, step.role, number, is_text=True)
            if state.is_chat and state.role != "assistant":
                raise _refused(
                    number,
                    "role",
                    f"the turn is the {state.role}'s; only the assistant's is generated",
                    'Begin one with role "assistant".',
                )
            state.names.add(step.name)
            if isinstance(step, Gen):
                _check_logprobs(step, number)
            if isinstance(step, Gen) and step.reasoning is not None:
                state.names.add(f"{step.name}{REASONING}")


def _check_side(
    state: _Known, steps: Sequence[InnerStep], prefix: str, depth: int, limits: Limits
) -> None:
    for index, inner in enumerate(steps):
        _check_inner(state, inner, f"{prefix}.{index}", depth, limits)


def _open(state: _Known, role: str | None, number: str, *, is_text: bool) -> None:
    """Note what a step does to the turns of its state."""
    if role is not None:
        if state.has_text:
            raise _refused(
                number,
                "role",
                "the state is a plain text, and this begins a turn",
                "Begin every text of a conversation with a role.",
            )
        state.is_chat, state.role = True, role
    elif not state.is_chat:
        if not is_text:
            raise _refused(number, "role", "an image stands in no turn", 'Give role "user".')
        state.has_text = True


def _check_condition(condition: Condition, state: _Known, number: str, level: int) -> None:
    tests = (
        condition.equals, condition.contains, condition.one_of, condition.is_set,
        condition.all_of, condition.any_of, condition.none_of,
    )  # fmt: skip
    if sum(test is not None for test in tests) != 1:
        raise _refused(number, "if", "a condition has not exactly one test", "Give one.")
    inner = condition.all_of or condition.any_of or condition.none_of
    if level >= 8:
        raise _refused(number, "if", "conditions are nested more than 8 deep", "Flatten them.")
    if inner is not None:
        for part in inner:
            _check_condition(part, state, number, level + 1)
        return
    is_test_of_value = any(test is not None for test in tests[:4])
    if is_test_of_value != (condition.var is not None):
        raise _refused(number, "if", "a test and its var do not come together", "Give both.")
    if condition.var is not None:
        _check_name(state, condition.var, number, "if")


def _check_name(state: _Known, name: str, number: str, part: str) -> None:
    if name not in state.names:
        raise _refused(
            number,
            part,
            f"no earlier step of this state sets {name!r}.{did_you_mean(name, state.names)}",
            "Generate it first, or give it in states.",
        )


def _too_deep(number: str, part: str, limits: Limits) -> RequestError:
    return _refused(
        number,
        part,
        f"forks and conditions are nested more than {limits.max_depth} deep",
        "Flatten the program, or raise max_program_depth.",
        code="program_too_large",
    )


def _check_logprobs(step: Gen, number: str) -> None:
    if step.logprob_start_len is not None and not step.return_logprob:
        raise _refused(
            number,
            "logprob_start_len",
            "logprob_start_len says where log probabilities begin, and none are asked for",
            "Set return_logprob, too.",
        )


def _refused(
    number: str, part: str, problem: str, remedy: str, *, code: str = "invalid_program"
) -> RequestError:
    where = f"steps[{number}].{part}"
    end = "" if problem.endswith("?") else "."
    return RequestError(f"{where}: {problem}{end}", remedy=remedy, field=where, code=code)


def step_of(error: RequestError) -> str | None:
    """Return the number of the step that ``error`` names, or None."""
    return next(_numbers(error.field or ""), None)


def _numbers(text: str) -> Iterator[str]:
    if text.startswith("steps[") and "]" in text:
        yield text[len("steps[") : text.index("]")]
