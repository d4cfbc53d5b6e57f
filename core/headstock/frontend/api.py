"""The words of the language: ``gen``, ``select``, turns, media; their names are SGLang's."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from headstock.errors import did_you_mean
from headstock.frontend.expressions import (
    Branching,
    Choose,
    Expression,
    Generate,
    Joined,
    Picture,
    Ref,
    Turn,
    refuse,
    to_expression,
)
from headstock.frontend.shapes import Shape, pattern_shape, schema_shape, shape_of
from headstock.programs import Condition, ReasoningMarks
from headstock.programs.graph import SelectMethod
from headstock.requests import SamplingParams

token_length_normalized: SelectMethod = "token_length_normalized"
greedy_token_selection: SelectMethod = "greedy_token_selection"
unconditional_likelihood_normalized: SelectMethod = "unconditional_likelihood_normalized"

SHORT = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "seed": "sampling_seed"}
"""What the language calls some sampling parameters."""
SAMPLING = frozenset(SamplingParams.__struct_fields__) | {"regex", "json_schema", "ebnf"}
_REASONING = {
    "deepseek-r1": ReasoningMarks(is_open=True),
    "deepseek-v3": ReasoningMarks(),
    "qwen3": ReasoningMarks(),
    "qwen3-thinking": ReasoningMarks(is_open=True),
    "glm45": ReasoningMarks(),
    "minimax": ReasoningMarks(is_open=True),
    "nemotron": ReasoningMarks(),
    "kimi": ReasoningMarks(begin="◁think▷", end="◁/think▷"),
}


def sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return sampling parameters by their names in ``SamplingParams``; None is not given.

    Raises:
        ProgramError: There is no such parameter.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        known = SHORT.get(name, name)
        if known not in SAMPLING:
            raise refuse(
                f"There is no sampling parameter {name!r}.{did_you_mean(name, SAMPLING)}",
                "Leave it out.",
                name,
            )
        if value is not None:
            found[known] = value
    return found


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    type: Any = None,
    dtype: type[Any] | None = None,
    choices: Iterable[str] | None = None,
    choices_method: SelectMethod = token_length_normalized,
    regex: str | None = None,
    json_schema: Any = None,
    return_logprob: bool = False,
    top_logprobs_num: int = 0,
    logprob_start_len: int | None = None,
    return_text_in_logprobs: bool = True,
    **params: Any,
) -> Expression:
    """Generate from here, and keep what came in a variable.

    Args:
        name: Of the variable.
        max_tokens: At most so many; 128 when neither this nor the run says.
        type: Of the variable's value: int, float, bool, a Literal, an Enum, a compiled pattern, a
            dataclass, a msgspec struct or a pydantic model. The text is constrained to it.
        dtype: As SGLang's: int, float, bool or str; the value stays text.
        choices: As :func:`select`.
        choices_method: As :func:`select`.
        regex: The text matches this pattern.
        json_schema: The text is JSON by this schema.
        return_logprob: Have log probabilities in ``s.get_meta_info(name)``.
        top_logprobs_num: Of the likeliest tokens too.
        logprob_start_len: And of the prompt's tokens from this position on; None, -1: of none.
        return_text_in_logprobs: They always have their text here.
        params: Of sampling, such as ``temperature``, ``stop``, ``n``, ``top_p``, ``seed``.

    Raises:
        ProgramError: Arguments contradict each other, or do not exist.
    """
    given = [("type", type), ("dtype", dtype), ("choices", choices), ("regex", regex),
             ("json_schema", json_schema)]  # fmt: skip
    names = [word for word, value in given if value is not None]
    if len(names) > 1:
        raise refuse(f"{names[0]} and {names[1]} are both given.", "Give one.", names[1])
    if choices is not None:
        return select(name, choices, choices_method=choices_method)
    shape = _shape(type, dtype, regex, json_schema)
    found = sampling({"max_tokens": max_tokens, **params})
    if shape is not None and shape.choices is not None:
        return Choose(name, shape.choices, choices_method, shape)
    if shape is not None:
        found |= shape.params
    start = None if logprob_start_len == -1 else logprob_start_len
    return Generate(name, found, shape, return_logprob, top_logprobs_num, start)


def _shape(kind: Any, dtype: Any, regex: str | None, json_schema: Any) -> Shape | None:
    try:
        if kind is not None:
            return shape_of(kind)
        if dtype is not None:
            shape = shape_of(dtype)
            return Shape(name=shape.name, params=shape.params, choices=shape.choices)
        if regex is not None:
            return pattern_shape(regex)
        return schema_shape(json_schema) if json_schema is not None else None
    except (TypeError, ValueError) as error:
        raise refuse(f"{error}.", "Give another type.", "type") from error


def gen_int(name: str | None = None, max_tokens: int | None = None, **params: Any) -> Expression:
    """Generate the text of a whole number."""
    return gen(name, max_tokens, dtype=int, **params)


def gen_string(name: str | None = None, max_tokens: int | None = None, **params: Any) -> Expression:
    """Generate text."""
    return gen(name, max_tokens, dtype=str, **params)


def select(
    name: str | None = None,
    choices: Iterable[str] | None = None,
    temperature: float = 0.0,
    choices_method: SelectMethod = token_length_normalized,
) -> Expression:
    """Add the choice that the model finds likeliest here, and keep it in a variable.

    Args:
        name: Of the variable.
        choices: Texts.
        temperature: 0: the likeliest is taken.
        choices_method: How likelihoods of different lengths compare.

    Raises:
        ProgramError: There is no choice, or an argument is not allowed.
    """
    found = list(choices or ())
    if not found:
        raise refuse("select has no choices.", "Give some texts.", "choices")
    if temperature > 1e-5:
        raise refuse(
            f"temperature is {temperature}; a select takes the likeliest.",
            "Leave it out.",
            "temperature",
        )
    if choices_method not in get_args(SelectMethod):
        raise refuse(
            f"choices_method is {choices_method!r}.",
            f"Use one of {', '.join(get_args(SelectMethod))}.",
            "choices_method",
        )
    return Choose(name, found, choices_method)


def _turn(role: str, parts: tuple[Any, ...]) -> Turn:
    return Turn(role, Joined([to_expression(part) for part in parts]))


def system(*parts: Any) -> Turn:
    """Return a turn of the system."""
    return _turn("system", parts)


def user(*parts: Any) -> Turn:
    """Return a turn of the user."""
    return _turn("user", parts)


def assistant(*parts: Any) -> Turn:
    """Return a turn of the assistant."""
    return _turn("assistant", parts)


def role_begin(role: str) -> Turn:
    """Return the beginning of a turn; ``role_end`` ends it."""
    return Turn(role, None, ends=False)


def role_end(role: str) -> Turn:
    """Return the end of a turn."""
    return Turn(role, None, begins=False)


def system_begin() -> Turn:
    """Return the beginning of a turn of the system."""
    return role_begin("system")


def system_end() -> Turn:
    """Return the end of a turn of the system."""
    return role_end("system")


def user_begin() -> Turn:
    """Return the beginning of a turn of the user."""
    return role_begin("user")


def user_end() -> Turn:
    """Return the end of a turn of the user."""
    return role_end("user")


def assistant_begin() -> Turn:
    """Return the beginning of a turn of the assistant."""
    return role_begin("assistant")


def assistant_end() -> Turn:
    """Return the end of a turn of the assistant."""
    return role_end("assistant")


def image(source: str | Path | bytes) -> Picture:
    """Return an image: a path, a URL, or the bytes of a file."""
    return Picture("image", to_url(source, "image/png"), None)


def video(source: str | Path | bytes, num_frames: int | None = None) -> Picture:
    """Return a video, of which a model looks at ``num_frames`` frames."""
    return Picture("video", to_url(source, "video/mp4"), num_frames)


def to_url(source: str | Path | bytes, default: str) -> str:
    """Return a URL of a file's content, or the URL that ``source`` is.

    Raises:
        ProgramError: The file cannot be read.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        return source
    kind = default
    if not isinstance(source, bytes):
        kind = mimetypes.guess_type(str(source))[0] or default
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise refuse(
                f"{source} cannot be read: {error.strerror}.", "Check the path."
            ) from error
    return f"data:{kind};base64,{base64.b64encode(source).decode()}"


def separate_reasoning(expression: Expression, model_type: str = "qwen3") -> Expression:
    """Cut reasoning out of what gens in ``expression`` bring, into ``<name>_reasoning_content``.

    Args:
        expression: With one or more gens.
        model_type: Which marks the model writes: deepseek-r1, qwen3, glm45 and others.

    Raises:
        ProgramError: ``model_type`` is not known.
    """
    marks = _REASONING.get(model_type)
    if marks is None:
        raise refuse(
            f"model_type is {model_type!r}.", f"Use one of {', '.join(_REASONING)}.", "model_type"
        )
    return _with_reasoning(to_expression(expression), marks)


def _with_reasoning(expression: Expression, marks: ReasoningMarks) -> Expression:
    match expression:
        case Joined():
            return Joined([_with_reasoning(part, marks) for part in expression.parts])
        case Turn(inner=Expression() as inner):
            return Turn(expression.role, _with_reasoning(inner, marks))
        case Generate():
            return replace(expression, reasoning=marks)
        case _:
            return expression


def ref(name: str, index: int | None = None) -> Ref:
    """Return the value of a variable without waiting for it: it is inserted where it is known."""
    return Ref(name, index)


def when(condition: Condition, then: Any, otherwise: Any = None) -> Branching:
    """Return one expression or another, decided where the program runs.

    Args:
        condition: Of :func:`ref`, such as ``ref("x").equals("yes")``.
        then: Added when it holds.
        otherwise: Added when it does not.
    """
    other = None if otherwise is None else to_expression(otherwise)
    return Branching(condition, to_expression(then), other)
