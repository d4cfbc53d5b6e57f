"""``/v1/decisions``: how likely each answer to a question is, from one token, without generating.

Every question is a chat of its own over the same input, which the cache holds once.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from headstock.errors import RequestError
from headstock.requests import SamplingParams
from headstock.server.completion import Completion
from headstock.server.model_card import ModelCard
from headstock.server.prompter import Prompter
from headstock.server.protocols.messages import (
    ChatMessage,
    ContentPart,
    ImageUrl,
    flat_messages,
    thinking_variables,
)
from headstock.server.protocols.parameters import check_model
from headstock.server.request import ChatPrompt, GenerateRequest
from headstock.server.vectors import softmax
from headstock.text import Tokenizer

MAX_QUESTIONS = 64
MAX_IMAGES = 8
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TAIL = 200
"""Characters of a rendered chat that decide how a label after it is tokenised."""
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Option(msgspec.Struct, forbid_unknown_fields=True):
    """One answer to choose."""

    name: Name
    description: Any = None


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """One question.

    Attributes:
        options: Of ``choice``: 2 to 26.
        levels: Of ``score``: 2 to 10 descriptions, from the lowest up.
        yes: Of ``yes_no``: when that is the answer.
        no: Likewise.
    """

    id: Name
    type: Literal["choice", "score", "yes_no"]
    question: Any
    options: Annotated[list[Option], msgspec.Meta(min_length=2, max_length=26)] | None = None
    levels: Annotated[list[Any], msgspec.Meta(min_length=2, max_length=10)] | None = None
    yes: Any = None
    no: Any = None


class DecisionsBody(msgspec.Struct, kw_only=True):
    """Body of ``/v1/decisions``."""

    input: Any
    questions: Annotated[list[Question], msgspec.Meta(min_length=1, max_length=MAX_QUESTIONS)]
    images: Annotated[list[ImageUrl], msgspec.Meta(max_length=MAX_IMAGES)] = []
    model: str | None = None
    temperature: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1.0
    chat_template_kwargs: dict[str, Any] = {}


class DecisionsCall(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body.

    Attributes:
        requests: One a question.
        names: Of each question's answers, in the order of the asked ids.
    """

    model: str
    questions: list[Question]
    requests: list[GenerateRequest]
    names: list[list[str]]
    temperature: float


def read_decisions(
    body: DecisionsBody, card: ModelCard, prompter: Prompter, tokenizer: Tokenizer, tenant: str
) -> DecisionsCall:
    """Turn a body into a request for each question.

    Renders a chat: not for the event loop.

    Raises:
        RequestError: Naming the field at fault.
    """
    check_model(body.model, card)
    _check_ids(body.questions)
    extra = {**thinking_variables(False), **body.chat_template_kwargs}
    text = _text("input", body.input)
    empty = ChatPrompt(flat_messages([ChatMessage("user", "?")], prompter.dialect), extra=extra)
    tail = prompter.render(empty)[-TAIL:]
    reasoning = prompter.dialect.reasoning
    if reasoning is not None and tail.rfind(reasoning.begin) > tail.rfind(reasoning.end):
        raise RequestError(
            "The model's chat template begins every answer with thoughts.",
            remedy="Turn them off with chat_template_kwargs, or serve another model.",
            field="chat_template_kwargs",
            code="not_supported",
        )
    requests: list[GenerateRequest] = []
    names: list[list[str]] = []
    for place, question in enumerate(body.questions):
        labels, answers = _answers(f"questions[{place}]", question)
        asked = [_label_id(tokenizer, tail, label) for label in labels]
        prompt = _prompt(body, f"{text}\n\n{_ask(question, labels)}", prompter, extra)
        requests.append(_request(prompt, asked, tenant, card))
        names.append(answers)
    return DecisionsCall(
        model=body.model or card.name,
        questions=body.questions,
        requests=requests,
        names=names,
        temperature=body.temperature,
    )


def decisions_answer(call: DecisionsCall, completions: Sequence[Completion]) -> dict[str, Any]:
    """Return the answers once all completions have ended."""
    answers: dict[str, Any] = {}
    columns = zip(call.questions, call.names, completions, strict=True)
    for question, names, completion in columns:
        logprobs = completion.logprobs.asked[0]
        shares = softmax([value / call.temperature for value in logprobs])
        answer: dict[str, Any] = {
            "type": question.type,
            "probabilities": dict(zip(names, shares, strict=True)),
            "label_mass": math.fsum(math.exp(value) for value in logprobs),
        }
        if question.type == "choice":
            answer["choice"] = names[shares.index(max(shares))]
        elif question.type == "score":
            answer["score"] = math.fsum(level * share for level, share in enumerate(shares))
        answers[question.id] = answer
    prompt_tokens = sum(len(completion.submit.prompt_ids) for completion in completions)
    cached = sum(completion.cached_tokens for completion in completions)
    return {
        "id": f"decision-{uuid.uuid4().hex}",
        "object": "decisions",
        "model": call.model,
        "answers": answers,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def _request(prompt: ChatPrompt, asked: list[int], tenant: str, card: ModelCard) -> GenerateRequest:
    return GenerateRequest(
        prompt=prompt,
        params=SamplingParams(temperature=0.0, max_new_tokens=1, ignore_eos=True),
        rid=uuid.uuid4().hex,
        logprobs=0,
        asked_ids=asked,
        namespace=tenant,
        names={"input_ids": "input"},
        adapter=card.adapter,
    )


def _prompt(
    body: DecisionsBody, text: str, prompter: Prompter, extra: Mapping[str, Any]
) -> ChatPrompt:
    content: str | list[ContentPart] = text
    if body.images:
        content = [ContentPart("image_url", image_url=image) for image in body.images]
        content.append(ContentPart("text", text))
    images: list[Any] = []
    messages = flat_messages([ChatMessage("user", content)], prompter.dialect, images)
    return ChatPrompt(messages, images=images, extra=dict(extra))


def _answers(where: str, question: Question) -> tuple[list[str], list[str]]:
    """Return the labels that the model chooses among, and what they are called in the answer."""
    needed = {"choice": "options", "score": "levels"}.get(question.type)
    for name in ("options", "levels", "yes", "no"):
        is_wanted = name == needed or (needed is None and name in ("yes", "no"))
        if getattr(question, name) is not None and not is_wanted:
            raise RequestError(
                f"{where}.{name} is set, and the type is {question.type!r}.",
                remedy="Leave it out, or use the type that it belongs to.",
                field=f"{where}.{name}",
            )
    if needed is not None and getattr(question, needed) is None:
        raise RequestError(
            f"{where}.{needed} is missing; a question of type {question.type!r} needs it.",
            remedy="Send it.",
            field=f"{where}.{needed}",
        )
    if question.options is not None:
        names = [option.name for option in question.options]
        if len({name.strip().casefold() for name in names}) < len(names):
            raise RequestError(
                f"{where}.options has a name twice.",
                remedy="Use names that differ.",
                field=f"{where}.options",
            )
        return list(LETTERS[: len(names)]), names
    if question.levels is not None:
        names = [str(level) for level in range(len(question.levels))]
        return names, names
    return ["yes", "no"], ["yes", "no"]


def _ask(question: Question, labels: list[str]) -> str:
    """Return the question as the model reads it."""
    asked = _text("question", question.question)
    if question.options is not None:
        lines = [
            f"{label}. {_described(option.name, option.description)}"
            for label, option in zip(labels, question.options, strict=True)
        ]
        return "\n".join([asked, *lines, "Answer with one letter, and nothing else."])
    if question.levels is not None:
        lines = [
            f"{label}. {_text('levels', level)}"
            for label, level in zip(labels, question.levels, strict=True)
        ]
        return "\n".join([asked, *lines, "Answer with one number, and nothing else."])
    lines = [
        _described(label, detail)
        for label, detail in (("yes", question.yes), ("no", question.no))
        if detail is not None
    ]
    return "\n".join([asked, *lines, "Answer yes or no, and nothing else."])


def _described(name: str, detail: Any) -> str:
    return name if detail is None else f"{name}: {_text('description', detail)}"


def _text(field: str, value: Any) -> str:
    """Return a text, or JSON, as text.

    Raises:
        RequestError: It says nothing.
    """
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if value is None or not text.strip():
        raise RequestError(f"{field} is empty.", remedy="Send a text or JSON.", field=field)
    return text


def _check_ids(questions: Sequence[Question]) -> None:
    ids = [question.id for question in questions]
    twice = next((name for place, name in enumerate(ids) if name in ids[:place]), None)
    if twice is not None:
        raise RequestError(
            f"Two questions have the id {twice!r}.",
            remedy="Give each its own.",
            field="questions",
        )


def _label_id(tokenizer: Tokenizer, tail: str, label: str) -> int:
    """Return the one token that ``label`` is after a chat.

    Raises:
        RequestError: It is several, or joins what is before.
    """
    before = tokenizer.encode(tail, add_special_tokens=False)
    after = tokenizer.encode(tail + label, add_special_tokens=False)
    if len(after) != len(before) + 1 or after[:-1] != before:
        raise RequestError(
            f"The answer {label!r} is not a single token of this model's after a chat.",
            remedy="Use /v1/chat/completions with response_format, or another model.",
            field="questions",
            code="not_supported",
        )
    return after[-1]
