"""Any endpoint of OpenAI's API: chats for turns, completions for plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from headstock.config.environment import variable
from headstock.errors import RequestError
from headstock.frontend import reading
from headstock.frontend.backends import constraints
from headstock.frontend.backends.endpoint import Endpoint
from headstock.frontend.backends.steps import StepBackend, refuse_logprobs, refuse_method
from headstock.programs import Branch, Chosen, Gen, Generated, Select
from headstock.programs.choices import score
from headstock.programs.model import OnText, Usage

HOME = "https://api.openai.com/v1"
_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Cached | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Logprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    text_offset: list[int]


class _Choice(msgspec.Struct):
    index: int = 0
    text: str = ""
    message: _Message | None = None
    delta: _Message | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None

    @property
    def said(self) -> str:
        """Its text, or what it adds."""
        message = self.message or self.delta
        return self.text if message is None else message.content or ""


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


class OpenAI(StepBackend):
    """Runs programs on an endpoint of OpenAI's API.

    Args:
        model: Its name there.
        api_key: None: ``OPENAI_API_KEY``.
        base_url: With ``/v1``.
        can_continue: Whether an assistant's turn that has text may be continued, by
            ``continue_final_message``; None: everywhere but at OpenAI itself.
        timeout_s: For an answer, or the next event of one; None: as long as it takes.
        client: Sends the requests; None: one of its own.
    """

    def __init__(
        self,
        model: str,
        api_key: str | None = None,
        *,
        base_url: str = HOME,
        can_continue: bool | None = None,
        timeout_s: float | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        key = api_key or variable("OPENAI_API_KEY")
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        super().__init__(
            f"{model} at {base_url}",
            Endpoint(base_url, headers, timeout_s=timeout_s, client=client),
        )
        self._model = model
        is_home = urlsplit(base_url).hostname == urlsplit(HOME).hostname
        self._can_continue = not is_home if can_continue is None else can_continue
        self._limit = "max_completion_tokens" if is_home else "max_tokens"

    async def generate(self, state: Branch, step: Gen, on_text: OnText | None) -> Generated:
        """Go on from ``state``; see :class:`headstock.programs.Model`."""
        refuse_logprobs(step, self.name)
        params = dict(step.sampling_params)
        schema, is_wrapped = constraints.of_params(params)
        body = self._body(state) | _named(params)
        if schema is not None:
            body["response_format"] = _format(schema)
        if state.messages and "max_tokens" in body:
            body[self._limit] = body.pop("max_tokens")
        if on_text is not None and not is_wrapped:
            return await self._stream(self._path(state), body, on_text)
        answer = await self._ask(self._path(state), body)
        texts = [choice.said for choice in sorted(answer.choices, key=lambda c: c.index)]
        if not texts:
            raise RequestError("The endpoint answered without a text.", remedy="Try again.")
        if is_wrapped:
            texts = [constraints.unwrap(text) for text in texts]
        return Generated(texts, _usage([answer], answer.choices[0].finish_reason))

    async def select(self, state: Branch, step: Select) -> Chosen:
        """Return which choice goes on best; see :class:`headstock.programs.Model`.

        A plain text's choices are scored, in one request; a chat's model is asked to name one.
        """
        if not state.messages:
            return await self._score(state.text, step)
        refuse_method(step, self.name)
        body = self._body(state) | {
            "response_format": _format(constraints.of_choices(step.choices)),
            "temperature": 0,
        }
        answer = await self._ask("/chat/completions", body)
        said = answer.choices[0].said if answer.choices else ""
        index = constraints.chosen(said, step.choices)
        return Chosen(index, _usage([answer], answer.choices[0].finish_reason))

    async def _score(self, text: str, step: Select) -> Chosen:
        rows, answer = await self._echoes([text + choice for choice in step.choices])
        # Where a choice joins the text's last letters to another token, all are scored from there.
        begin = min(_first_after(row, len(text)) for row in rows)
        logprobs = [_values(row, begin) for row in rows]
        base: list[list[float]] = []
        answers = [answer]
        if step.method == "unconditional_likelihood_normalized":
            alone, more = await self._echoes(list(step.choices))
            answers.append(more)
            base = [_values(row, 0) for row in alone]
        # Tokens are compared by their text: this API tells no ids.
        words: dict[str, int] = {}
        ids = [[words.setdefault(t, len(words)) for t in row.tokens[begin:]] for row in rows]
        scores = score(step.method, logprobs, ids, base)
        best = max(range(len(scores)), key=scores.__getitem__)
        return Chosen(best, _usage(answers, "length"), scores, logprobs)

    async def _echoes(self, prompts: Sequence[str]) -> tuple[list[_Logprobs], _Answer]:
        body = {
            "model": self._model, "prompt": list(prompts), "max_tokens": 0, "echo": True,
            "logprobs": 1, "temperature": 0,
        }  # fmt: skip
        answer = await self._ask("/completions", body)
        rows = [c.logprobs for c in sorted(answer.choices, key=lambda c: c.index)]
        found = [row for row in rows if row is not None]
        if len(found) != len(prompts):
            raise RequestError(
                f"{self.name} tells no log probabilities of a prompt (echo with logprobs).",
                remedy="Use turns: then its model is asked to name a choice.",
                field="choices",
                code="not_supported",
            )
        return found, answer

    def _path(self, state: Branch) -> str:
        return "/chat/completions" if state.messages else "/completions"

    def _body(self, state: Branch) -> dict[str, Any]:
        if not state.messages:
            return {"model": self._model, "prompt": state.text}
        self._check_media(state)
        last = state.messages[-1]
        messages = reading.messages(state)
        if last.role != "assistant" or not last.content:
            begun = messages[:-1] if last.role == "assistant" else messages
            return {"model": self._model, "messages": begun}
        if not self._can_continue:
            raise RequestError(
                f"{self.name} cannot continue an assistant's turn that has text already.",
                remedy="Make the turn one gen, or set can_continue where the server can.",
                field="role",
                code="not_supported",
            )
        more = {"continue_final_message": True, "add_generation_prompt": False}
        return {"model": self._model, "messages": messages, **more}

    def _check_media(self, state: Branch) -> None:
        """Refuse what the API has no field for.

        Raises:
            RequestError: A number of frames is wished.
        """
        for message in state.messages:
            for part in message.content:
                if not isinstance(part, str) and part.num_frames is not None:
                    raise RequestError(
                        f"{self.name} takes no number of frames of a video.",
                        remedy="Leave num_frames out: the model's own number is looked at.",
                        field="num_frames",
                        code="not_supported",
                    )

    async def _ask(self, path: str, body: Mapping[str, Any]) -> _Answer:
        return _read(await self._endpoint.post(path, body))

    async def _stream(self, path: str, body: dict[str, Any], on_text: OnText) -> Generated:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        texts: dict[int, list[str]] = {}
        reason: str | None = None
        last = _Answer()
        async for data in self._endpoint.events(path, body):
            part = _read(msgspec.json.decode(data))
            if part.usage is not None:
                last = part
            for choice in part.choices:
                reason = choice.finish_reason or reason
                texts.setdefault(choice.index, []).append(choice.said)
                on_text(choice.index, choice.said)
        return Generated(["".join(texts[index]) for index in sorted(texts)], _usage([last], reason))


def _named(params: Mapping[str, Any]) -> dict[str, Any]:
    return {_NAMES.get(name, name): value for name, value in params.items() if value is not None}


def _format(schema: Mapping[str, Any]) -> dict[str, Any]:
    strict = constraints.is_strict(schema)
    inner = {"name": "answer", "schema": schema, "strict": strict}
    return {"type": "json_schema", "json_schema": inner}


def _read(value: Any) -> _Answer:
    try:
        return msgspec.convert(value, _Answer)
    except msgspec.ValidationError as error:
        raise RequestError(
            f"The endpoint's answer is none of this API: {error}.",
            remedy="Check base_url.",
            code="bad_answer",
        ) from error


def _first_after(row: _Logprobs, length: int) -> int:
    """Return the first token that ends after so many characters; at least the second one."""
    ends = [at + len(token) for at, token in zip(row.text_offset, row.tokens, strict=True)]
    return max(1, next(index for index, end in enumerate(ends) if end > length))


def _values(row: _Logprobs, begin: int) -> list[float]:
    return [value for value in row.token_logprobs[begin:] if value is not None]


def _usage(answers: Sequence[_Answer], reason: str | None) -> Usage:
    usages = [answer.usage for answer in answers if answer.usage is not None]
    details = [usage.prompt_tokens_details for usage in usages]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(detail.cached_tokens or 0 for detail in details if detail is not None),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        finish_reason=reason,
    )
