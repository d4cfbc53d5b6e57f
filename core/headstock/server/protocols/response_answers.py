"""OpenAI's responses: answers in parts as output items and events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from headstock.server.completion import Completion, Delta
from headstock.server.protocols.events import named_event
from headstock.server.protocols.messages import (
    ChatMessage,
    FunctionCall,
    ToolCall,
)
from headstock.server.protocols.response_store import Stored
from headstock.server.protocols.responses import ResponsesCall
from headstock.server.protocols.text_options import shown_format
from headstock.server.speech import Answer, NamedCall, count
from headstock.text import Tokenizer
from headstock.text.parsers import Part


def response_of(
    call: ResponsesCall,
    completion: Completion,
    output: list[dict[str, Any]],
    answer: Answer,
    *,
    is_begun: bool = False,
) -> dict[str, Any]:
    """Return the response as it is now.

    Args:
        call: What was asked.
        completion: Of it.
        output: Items so far.
        answer: For how it ended.
        is_begun: Return it as it begins, whatever has come of it since.
    """
    body, finish = call.body, None if is_begun else answer.finish
    end = None if is_begun else completion.end
    failure = end.reason if end is not None and end.reason.kind == "error" else None
    if failure is not None and failure.code == "aborted":
        finish, failure = "abort", None
    status = {
        None: "in_progress", "length": "incomplete", "abort": "cancelled", "error": "failed",
    }  # fmt: skip
    tokens = count([completion])
    usage = {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached},
        "output_tokens": tokens.output,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": tokens.prompt + tokens.output,
    }
    return {
        "id": call.id,
        "object": "response",
        "created_at": call.created,
        "background": bool(body.background),
        "status": status.get(finish, "completed"),
        "error": None if failure is None else {"code": "server_error", "message": failure.message},
        "incomplete_details": {"reason": "max_output_tokens"} if finish == "length" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": call.model,
        "output": output,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None}
        if body.reasoning is None
        else msgspec.to_builtins(body.reasoning),
        "store": body.is_stored,
        "temperature": call.request.params.temperature,
        "text": {"format": shown_format(body.text)},
        "tool_choice": body.tool_choice or "auto",
        "tools": msgspec.to_builtins(body.tools or []),
        "top_p": call.request.params.top_p,
        "truncation": "disabled",
        "usage": usage if finish is not None else None,
    }


def items_of(call: ResponsesCall, answer: Answer) -> list[dict[str, Any]]:
    """Return the output items of an answer that is complete."""
    output: list[dict[str, Any]] = []
    if answer.reasoning:
        output.append(_reasoning_item(call, "".join(answer.reasoning)))
    text = "".join(answer.text)
    if text or not answer.calls:
        output.append(_message_item(call, text))
    return output + [_call_item(named) for named in answer.calls]


def _reasoning_item(call: ResponsesCall, text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    name = call.id.replace("resp_", "rs_")
    return {"id": name, "type": "reasoning", "summary": [], "content": content}


def _message_item(call: ResponsesCall, text: str, status: str = "completed") -> dict[str, Any]:
    return {
        "id": call.id.replace("resp_", "msg_"),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [_text_part(text)],
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(named: NamedCall, *, is_done: bool = True) -> dict[str, Any]:
    ended = "completed" if named.is_whole else "incomplete"
    return {
        "id": named.id.replace("call_", "fc_"),
        "type": "function_call",
        "call_id": named.id,
        "name": named.name,
        "arguments": named.call.arguments if is_done else "",
        "status": ended if is_done else "in_progress",
    }


def stored_of(call: ResponsesCall, response: dict[str, Any], answer: Answer) -> Stored:
    """Return what is kept of a response: itself, and the conversation that a next one follows."""
    calls = [
        ToolCall(FunctionCall(named.name, named.call.arguments), named.id)
        for named in answer.calls
        if named.is_whole
    ]
    said = ChatMessage("assistant", "".join(answer.text), tool_calls=calls or None)
    return Stored(response, [*call.messages, said])


class ResponseStream:
    """Events of one streamed response: items of one kind after another."""

    def __init__(self, call: ResponsesCall, completion: Completion, tokenizer: Tokenizer) -> None:
        self._call = call
        self._completion = completion
        self.answer = Answer(completion, call.speech, tokenizer)
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._open: str | None = None
        self._text: list[str] = []
        self._num_calls = 0

    def write(self, deltas: Sequence[Delta]) -> bytes:
        """Return the events that ``deltas`` make."""
        made: list[bytes] = []
        for delta in deltas:
            if self._number == 0:
                begun = response_of(self._call, self._completion, [], self.answer, is_begun=True)
                made += [
                    self._event("response.created", response=begun),
                    self._event("response.in_progress", response=begun),
                ]
            for part in self.answer.read(delta):
                made += self._part(part)
            if delta.end is not None:
                made += self._end()
        return b"".join(made)

    def _event(self, kind: str, **fields: Any) -> bytes:
        value = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return named_event(value)

    def _response(self) -> dict[str, Any]:
        return response_of(self._call, self._completion, self._output, self.answer)

    def _part(self, part: Part) -> list[bytes]:
        if part.call is not None:
            return self._begin_call(part)
        if part.kind == "arguments":
            return [self._more_of_call(part.text), *(self._close() if part.is_last else [])]
        made: list[bytes] = []
        if self._open != part.kind:
            made += self._close()
            made += self._begin(part.kind)
        self._text.append(part.text)
        kind = "response.output_text" if part.kind == "text" else "response.reasoning_text"
        more: dict[str, Any] = {"logprobs": []} if part.kind == "text" else {}
        return [*made, self._event(f"{kind}.delta", **self._place(), delta=part.text, **more)]

    def _place(self) -> dict[str, Any]:
        item = self._output[-1]
        return {"item_id": item["id"], "output_index": len(self._output) - 1, "content_index": 0}

    def _begin(self, kind: str) -> list[bytes]:
        self._open = kind
        if kind == "text":
            item = _message_item(self._call, "", "in_progress")
        else:
            item = _reasoning_item(self._call, "")
        part = item["content"][0]
        self._output.append(item)
        added: dict[str, Any] = {**item, "content": []}
        index = len(self._output) - 1
        return [
            self._event("response.output_item.added", output_index=index, item=added),
            self._event("response.content_part.added", **self._place(), part=part),
        ]

    def _close(self) -> list[bytes]:
        """Return the events that end the open item."""
        kind, self._open = self._open, None
        if kind is None:
            return []
        if kind == "call":
            return self._close_call()
        text = "".join(self._text)
        self._text = []
        if kind == "text":
            item = _message_item(self._call, text)
            done = self._event("response.output_text.done", **self._place(), text=text, logprobs=[])
        else:
            item = _reasoning_item(self._call, text)
            done = self._event("response.reasoning_text.done", **self._place(), text=text)
        part = cast("list[dict[str, Any]]", item["content"])[0]
        place = self._place()
        self._output[-1] = item
        index = len(self._output) - 1
        return [
            done,
            self._event("response.content_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _begin_call(self, part: Part) -> list[bytes]:
        made = self._close()
        named = self.answer.calls[self._num_calls]
        self._num_calls += 1
        self._open = "call"
        self._output.append(_call_item(named, is_done=False))
        index = len(self._output) - 1
        made.append(
            self._event("response.output_item.added", output_index=index, item=self._output[-1])
        )
        if part.is_open or part.call is None:
            return made
        return [*made, self._more_of_call(part.call.arguments), *self._close()]

    def _more_of_call(self, text: str) -> bytes:
        index = len(self._output) - 1
        place = {"item_id": self._output[-1]["id"], "output_index": index}
        return self._event("response.function_call_arguments.delta", **place, delta=text)

    def _close_call(self) -> list[bytes]:
        """Return the events that end the open call, whole or cut short."""
        named = self.answer.calls[self._num_calls - 1]
        self._output[-1] = _call_item(named)
        index = len(self._output) - 1
        done = self._event(
            "response.function_call_arguments.done",
            item_id=self._output[-1]["id"],
            output_index=index,
            name=named.name,
            arguments=named.call.arguments,
        )
        item = self._event("response.output_item.done", output_index=index, item=self._output[-1])
        return [done, item]

    def _end(self) -> list[bytes]:
        made = self._begin("text") if not self._output else []
        made += self._close()
        is_cut = self.answer.finish == "length"
        kind = "response.incomplete" if is_cut else "response.completed"
        return [*made, self._event(kind, response=self._response())]

    @property
    def response(self) -> dict[str, Any]:
        """The response as it ended."""
        return self._response()
