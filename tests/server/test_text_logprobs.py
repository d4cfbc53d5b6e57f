"""Logprobs of completions: every token has a name, an offset, and the drawn one is among them."""

import json

import pytest


def choice(served, **body):
    answer = served.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def streamed(served, **body):
    """Return the text and the joined logprobs of a stream."""
    lines = served.post("/v1/completions", {**body, "stream": True}).text.split("\n\n")[:-2]
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    joined = {}
    for chunk in chunks:
        for name, column in (chunk["logprobs"] or {}).items():
            joined[name] = joined.get(name, []) + (column or [])
    return "".join(chunk["text"] for chunk in chunks), joined


def test_tokens_that_are_no_text_are_named_by_their_bytes(served):
    found = choice(served, prompt="a 🍕 b", max_tokens=0, echo=True, logprobs=2)["logprobs"]
    assert found["tokens"] == [
        "a", " ", "bytes:\\xf0", "bytes:\\x9f", "bytes:\\x8d", "bytes:\\x95", " ", "b",
    ]  # fmt: skip
    assert found["text_offset"] == [0, 1, 2, 2, 2, 2, 3, 4]
    for token, top in zip(found["tokens"][1:], found["top_logprobs"][1:], strict=True):
        assert token in top
        assert len(top) == 2


def test_as_many_entries_as_were_asked_for_and_the_drawn_one(served):
    """The echo engine's likeliest are the drawn token and the ids from 0 on, but for one that it
    is told to leave out."""
    found = choice(served, prompt="xyz", max_tokens=3, logprobs=20)["logprobs"]
    assert [len(top) for top in found["top_logprobs"]] == [20] * 3
    served.call(lambda: setattr(served.engine, "hides_drawn", True))
    try:
        found = choice(served, prompt="xyz", max_tokens=3, logprobs=1)["logprobs"]
    finally:
        served.call(lambda: setattr(served.engine, "hides_drawn", False))
    for token, value, top in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert len(top) == 2
        assert top[token] == value


TEXTS = ["🍕 😊 🍕", "Once 🍕", "plain", "é漢", "<|turn|>a<|end|>b", "a<|begin|>🍕"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_offsets_point_at_the_tokens_streamed_as_whole(served, text, echo, skip):
    body = {
        "prompt": text, "max_tokens": 17, "logprobs": 1, "echo": echo, "ignore_eos": True,
        "skip_special_tokens": skip,
    }  # fmt: skip
    whole = choice(served, **body)
    found, said = whole["logprobs"], whole["text"]
    assert len(found["tokens"]) == 17 + (len(served.tokenizer.encode(text)) if echo else 0)
    assert found["text_offset"] == sorted(found["text_offset"])
    for at, (token, offset) in enumerate(zip(found["tokens"], found["text_offset"], strict=True)):
        is_skipped = skip and token.startswith("<|") and at >= len(found["tokens"]) - 17
        if not token.startswith("bytes:") and not is_skipped:
            assert said[offset : offset + len(token)] == token
    assert streamed(served, **body) == (said, found)


def test_a_stop_string_held_back_moves_no_offset(served):
    body = {"prompt": "abcabx", "max_tokens": 9, "logprobs": 1, "stop": ["cabz", "bx"]}
    whole = choice(served, **body)
    assert whole["text"] == "abca"
    assert whole["logprobs"]["text_offset"] == list(range(6))
    assert streamed(served, **body) == (whole["text"], whole["logprobs"])


def test_without_alternatives_there_is_no_column_of_them(served):
    found = choice(served, prompt="ab", max_tokens=2, logprobs=0)["logprobs"]
    assert found["top_logprobs"] is None
    assert found["tokens"] == ["a", "b"]
