"""The openai client against a server on loopback: what users' code does."""

import openai
import pytest

CHAT = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_the_model_is_listed_and_found_by_name(client):
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").id == "echo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_chat_is_answered_with_usage(client):
    answer = client.chat.completions.create(model="echo", messages=CHAT, max_tokens=7)
    assert answer.choices[0].message.content == "user:h"  # the turn token before it is special
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_a_streamed_chat_says_what_the_whole_one_does(client):
    chunks = list(
        client.chat.completions.create(
            model="echo",
            messages=[{"role": "user", "content": "é漢字 🎉 ok"}],
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith("user:é漢字 🎉 ok")
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [reason for reason in reasons if reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 30


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_stop_string_ends_the_answer_before_it(client, is_streamed):
    answer = client.completions.create(
        model="echo", prompt="one two three", max_tokens=40, stop=["two"], stream=is_streamed
    )
    if is_streamed:
        chunks = list(answer)
        assert "".join(chunk.choices[0].text for chunk in chunks) == "one "
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert chunks[-1].choices[0].matched_stop == "two"
    else:
        assert answer.choices[0].text == "one "
        assert answer.choices[0].matched_stop == "two"
        assert answer.usage.completion_tokens == len("one two")


def test_n_gives_so_many_choices_with_seeds_of_their_own(client, served):
    answer = client.completions.create(
        model="echo", prompt=["ab", "cd"], max_tokens=2, n=3, seed=7, temperature=0.5
    )
    assert [choice.text for choice in answer.choices] == ["ab"] * 3 + ["cd"] * 3
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert answer.usage.prompt_tokens == 4
    submits = [m for m in served.engine.seen if type(m).__name__ == "Submit"][-6:]
    assert [m.params.sampling_seed for m in submits] == [7, 8, 9, 7, 8, 9]
    assert all(m.params.n == 1 for m in submits)


def test_chat_logprobs_carry_tokens_bytes_and_rivals(client):
    answer = client.chat.completions.create(
        model="echo", messages=CHAT, max_tokens=3, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert [item.token for item in content] == ["<|turn|>", "u", "s"]
    assert content[1].bytes == [ord("u")]
    assert all(len(item.top_logprobs) == 2 for item in content)
    assert content[1].top_logprobs[0].token == "u"


def test_echo_with_logprobs_scores_the_prompt(client):
    answer = client.completions.create(
        model="echo", prompt="abc", max_tokens=0, echo=True, logprobs=1
    )
    choice = answer.choices[0]
    assert choice.text == "abc"
    assert choice.logprobs.tokens == ["a", "b", "c"]
    assert choice.logprobs.text_offset == [0, 1, 2]
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])
    assert choice.finish_reason == "length"


def test_prompts_of_token_ids_are_taken(client):
    ids = [3 + ord(c) for c in "xyz"]
    assert (
        client.completions.create(model="echo", prompt=ids, max_tokens=3).choices[0].text == "xyz"
    )
    answer = client.completions.create(model="echo", prompt=[ids, ids[:1]], max_tokens=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["xyzxy", "xxx"]


def test_an_end_token_of_the_model_is_not_shown(client):
    answer = client.completions.create(model="echo", prompt="ab<|end|>cd", max_tokens=9)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("ab", "stop")
    assert answer.choices[0].matched_stop == 1
    answer = client.completions.create(
        model="echo", prompt="ab<|end|>cd", max_tokens=9, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].text == "abcdabcd"[: len("abcdabc")]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"max_completion_tokens": 100_000}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logit_bias": {"99999": 1.0}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"extra_body": {"regex": "a{9999999}"}}, "regex"),
        ({"extra_body": {"stop_regex": "("}}, "stop_regex"),
        ({"extra_body": {"chat_template_kwargs": {"messages": []}}}, "chat_template_kwargs"),
        ({"stop": ["x"] * 99}, "stop"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=CHAT, **more)
    assert caught.value.param == param
    assert caught.value.code


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "wizard", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}],
    ],
)
def test_messages_that_cannot_be_read_are_refused(client, messages):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="echo", messages=messages)


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="this server has 'echo'"):
        client.chat.completions.create(model="gpt-9", messages=CHAT)


def test_an_overlong_prompt_is_refused_in_the_words_clients_know(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="echo", prompt="x" * 600, max_tokens=1)
    words = "The input (600 tokens) is longer than the model's context length (512 tokens)."
    assert words in caught.value.message
    assert caught.value.code == "context_length_exceeded"


def test_a_default_length_ends_where_the_context_does(client):
    answer = client.completions.create(model="echo", prompt="x" * 510)
    assert answer.usage.completion_tokens == 2


def test_an_assistant_turn_can_be_gone_on_with(client, served):
    client.chat.completions.create(
        model="echo",
        messages=[*CHAT, {"role": "assistant", "content": "I am"}],
        max_tokens=1,
        extra_body={"continue_final_message": True},
    )
    submit = [m for m in served.engine.seen if type(m).__name__ == "Submit"][-1]
    text = served.tokenizer.decode(submit.prompt_ids, skip_special_tokens=False)
    assert text == "<|turn|>user:hello there<|turn|>assistant:I am"
