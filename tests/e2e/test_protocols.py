"""The default model through the clients of other protocols, and what their users count on."""

from __future__ import annotations

import json

import anthropic
import httpx
import ollama
import openai
import pytest

from tests.e2e.served import Served

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = list(range(100, 228))


def test_every_protocol_gives_the_same_greedy_answer(server: Served) -> None:
    o = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    a = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    k = ollama.Client(host=server.url)
    model = o.models.list().data[0].id
    chat = o.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, temperature=0)
    answers = {str(chat.choices[0].message.content)}
    response = o.responses.create(
        model=model, input=QUESTION[0]["content"], max_output_tokens=16, temperature=0
    )
    answers.add(response.output_text)
    with a.messages.stream(
        model=model, messages=QUESTION, max_tokens=16, extra_body={"temperature": 0}
    ) as stream:
        answers.add("".join(stream.text_stream))
    lines = k.chat(
        model=model, messages=QUESTION, stream=True, options={"num_predict": 16, "temperature": 0}
    )
    answers.add("".join(line.message.content or "" for line in lines))
    assert len(answers) == 1
    assert "Paris" in answers.pop()


def test_second_turns_of_simultaneous_samples_find_what_each_wrote(server: Served) -> None:
    """A prompt of 8 pages, 96 tokens drawn for each of 4 samples: 13 pages of 16 are cached."""
    post = httpx.Client(base_url=server.url, timeout=120).post
    sampling = {"n": 4, "max_new_tokens": 96, "sampling_seed": 5, "ignore_eos": True}
    samples = post("/generate", json={"input_ids": PROMPT, "sampling_params": sampling}).json()
    found = []
    for sample in samples:
        again = {"input_ids": [*PROMPT, *sample["output_ids"], *range(16)]}
        again["sampling_params"] = {"max_new_tokens": 1}
        found.append(post("/generate", json=again).json()["meta_info"]["cached_tokens"])
    assert found == [208] * 4


@pytest.mark.parametrize("echo", [False, True])
def test_offsets_of_emoji_point_at_their_tokens(server: Served, echo: bool) -> None:
    body = {"prompt": "Once 🍕 😊", "max_tokens": 9, "temperature": 0, "logprobs": 2, "echo": echo}
    whole = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"][0]
    text, found = whole["text"], whole["logprobs"]
    for token, offset, top in zip(
        found["tokens"], found["text_offset"], found["top_logprobs"], strict=True
    ):
        assert token.startswith("bytes:") or text[offset : offset + len(token)] == token
        assert top is None or token in top
    streamed = httpx.post(
        f"{server.url}/v1/completions", json={**body, "stream": True}, timeout=60
    ).text.split("\n\n")[:-2]
    choices = [json.loads(line[6:])["choices"][0] for line in streamed]
    assert "".join(choice["text"] for choice in choices) == text
    offsets = [at for choice in choices for at in (choice["logprobs"] or {}).get("text_offset", [])]
    assert offsets == found["text_offset"]


def test_the_model_s_tokenizer_opens_from_its_path(server: Served) -> None:
    from transformers import AutoTokenizer

    path = httpx.get(f"{server.url}/server_info").json()["model_path"]
    body = {"messages": QUESTION}
    tokens = httpx.post(f"{server.url}/tokenize", json=body).json()["tokens"]
    opened = AutoTokenizer.from_pretrained(path)
    assert opened.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"] == tokens
