"""Events made from what is already encoded are those that encoding each anew gives."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from headstock.requests import SamplingParams, TokenIds
from headstock.server.completion import Completion, Delta
from headstock.server.protocols.events import TextEvent, event
from headstock.server.protocols.native_answers import NativeStream
from headstock.server.protocols.native_bodies import NativeCall
from headstock.server.protocols.openai_answers import ChatShape, OpenAIStream, TextShape
from headstock.server.protocols.openai_bodies import OpenAICall
from headstock.text import Tokenizer
from headstock.wire.messages import Submit
from tests.server.toy_tokenizer import toy_backend

TOKENIZER = Tokenizer(toy_backend())
FORGED = '"text":"","output_ids":[],"content":"","completion_tokens":0'
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


def completion(index=0):
    submit = Submit(id="a", prompt_ids=TokenIds([5, 6]), params=SamplingParams())
    return Completion(submit, index, TOKENIZER)


def drawn(one, text, size):
    """Give the tokens of ``text`` in portions of ``size``; yield each portion's last delta."""
    token_ids = TOKENIZER.encode(text)
    for at in range(0, len(token_ids), size):
        deltas = one.take(at, token_ids[at : at + size], None)
        joined = "".join(delta.text for delta in deltas)
        yield Delta(one.index, joined, deltas[-1].num_outputs)


@given(TEXTS, TEXTS)
@example("a", FORGED)
def test_a_text_event_is_the_whole_value_encoded(text, name):
    value = {"name": name, "deep": [{"text": ""}], "after": name}
    written = TextEvent(value, "text").write(text)
    value["deep"][0]["text"] = text
    assert written == event(value)


@given(TEXTS, TEXTS, st.booleans(), st.integers(1, 4))
@example("a", FORGED, True, 1)
def test_a_growing_event_is_the_snapshot_encoded(text, rid, is_batch, size):
    call = NativeCall([], is_batch, True, False, True)
    one = completion()
    written = NativeStream(call, [one], [rid], TOKENIZER)
    encoded = NativeStream(call, [one], [rid], TOKENIZER)
    for delta in drawn(one, text, size):
        assert written.write(delta, float) == event(encoded.event(delta, 0.0))


@given(TEXTS, TEXTS, st.booleans(), st.sampled_from([ChatShape, TextShape]))
@example("a", FORGED, True, ChatShape)
@example("a", FORGED, True, TextShape)
def test_a_chunk_of_text_is_the_chunk_encoded(text, model, include_usage, kind):
    call = OpenAICall(
        id="x", model=model, requests=[], is_streamed=True, include_usage=include_usage
    )
    ones = [completion(0), completion(1)]
    shape = TextShape(None, ["", ""]) if kind is TextShape else ChatShape(None)
    written, encoded = (OpenAIStream(call, ones, shape, TOKENIZER, 7) for _ in range(2))
    for delta in drawn(ones[1], text, 1):
        assert written.write(delta) == b"".join(map(event, encoded.events(delta)))


def test_an_event_is_one_line_of_json():
    body = event({"text": "a\nb\u2028"})
    assert body.startswith(b"data: ")
    assert body.count(b"\n") == 2
    assert json.loads(body[6:]) == {"text": "a\nb\u2028"}
