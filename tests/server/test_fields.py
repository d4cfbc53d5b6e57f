"""What clients of other servers send is honoured, refused by its name, or told back as ignored."""

import httpx
import pytest

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
TEXT = {"prompt": "hello", "max_tokens": 2}
NATIVE = {"text": "hello", "sampling_params": {"max_new_tokens": 2}}
ROUTES = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT, "/generate": NATIVE}
CHANGES = {
    "use_beam_search": True,
    "documents": [{"text": "x"}],
    "chat_template": "{{ 1 }}",
    "kv_transfer_params": {"a": 1},
    "return_tokens_as_token_ids": True,
}


GRAMMARS = {
    "guided_json": {"type": "object"},
    "guided_regex": "a+",
    "guided_choice": ["yes", "no"],
    "guided_grammar": "root ::= a",
    "structured_outputs": {"json": {}},
    "json_schema": "{}",
    "regex": "a+",
    "ebnf": "root ::= a",
    "response_format": {"type": "json_object"},
}


def error(answer):
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def last_submit(served):
    return [m for m in served.engine.seen if type(m).__name__ == "Submit"][-1]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("field", CHANGES)
def test_what_would_change_the_answer_is_refused_unless_it_asks_for_nothing(served, path, field):
    refusal = error(served.post(path, {**ROUTES[path], field: CHANGES[field]}))
    assert (refusal["param"], refusal["code"]) == (field, "not_supported")
    for nothing in (None, False, [], "", {}):
        assert served.post(path, {**ROUTES[path], field: nothing}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_lists_of_ids_and_words_reach_the_engine(served, path):
    lists = {"allowed_token_ids": [42, 7], "bad_words": ["ab", "c"]}
    assert served.post(path, {**ROUTES[path], **lists}).status_code == 200
    submit = last_submit(served)
    assert submit.allowed_ids == [42, 7]
    encode = served.tokenizer.encode
    assert submit.banned[0] == encode("ab", add_special_tokens=False)
    assert encode("c", add_special_tokens=False) in submit.banned
    for nothing in ({"allowed_token_ids": []}, {"bad_words": None}):
        assert served.post(path, {**ROUTES[path], **nothing}).status_code == 200
        assert not last_submit(served).is_masked
    for field, value in (
        ("allowed_token_ids", [10**7]),
        ("allowed_token_ids", [-1]),
        ("allowed_token_ids", "x"),
        ("bad_words", [""]),
        ("bad_words", ["x" * 300]),
        ("bad_words", ["x"] * 300),
    ):
        assert error(served.post(path, {**ROUTES[path], field: value}))["param"] == field
    for field in lists:
        refusal = error(served.post("/generate", {**NATIVE, field: lists[field]}))
        assert (refusal["param"], refusal["code"]) == (field, "not_supported")


@pytest.mark.parametrize("field", GRAMMARS)
def test_names_of_grammars_are_honoured_where_they_are_known(served, field):
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert served.post(path, {**ROUTES[path], field: GRAMMARS[field]}).status_code == 200
        assert last_submit(served).grammar.field.startswith(field)
    refusal = error(served.post("/generate", {**NATIVE, field: GRAMMARS[field]}))
    assert (refusal["param"], refusal["code"]) == (field, "not_supported")


@pytest.mark.parametrize("path", ROUTES)
def test_other_unknown_fields_are_told_back(served, path):
    answer = served.post(path, {**ROUTES[path], "metadata": {"a": 1}, "store": True, "a\nb": 1})
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == "metadata, store"
    assert "x-ignored-fields" not in served.post(path, ROUTES[path]).headers
    streamed = served.post(path, {**ROUTES[path], "stream": True, "metadata": None})
    assert streamed.headers["x-ignored-fields"] == "metadata"


@pytest.mark.parametrize(
    "more",
    [
        {"modalities": ["text"]},
        {"thinking": {"type": "disabled"}},
        {"function_call": "none"},
        {"function_call": "auto"},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"session_id": "abc"},
        {"max_tokens": -1},
        {"max_tokens": None, "max_completion_tokens": -1},
        {"stop_token_ids": [119690]},
        {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]},
        {"add_special_tokens": False},
    ],
)
def test_harmless_values_are_taken(served, more):
    answer = served.post("/v1/chat/completions", {**CHAT, **more})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].startswith("user:"[:1])


def test_a_limit_of_minus_one_is_the_whole_context(served):
    answer = served.post("/v1/completions", {"prompt": "x" * 500, "max_tokens": -1}).json()
    assert answer["usage"]["completion_tokens"] == 12


def test_stop_ids_beyond_the_vocabulary_reach_no_engine(served):
    served.post("/generate", {"text": "a", "sampling_params": {"stop_token_ids": [119690, 5]}})
    assert last_submit(served).params.stop_token_ids == [5]
    assert 119690 not in last_submit(served).stop_ids


@pytest.mark.parametrize("path", ROUTES)
def test_a_top_p_of_0_takes_the_likeliest_and_a_top_k_of_0_all(served, path):
    for name in ("top_p", "top_k"):
        body = dict(ROUTES[path])
        if path == "/generate":
            body["sampling_params"] = {"max_new_tokens": 1, name: 0}
        else:
            body[name] = 0
        assert served.post(path, body).status_code == 200
        params = last_submit(served).params
        assert params.is_greedy == (name == "top_p")


@pytest.mark.parametrize("name", ["include_stop_str_in_output", "no_stop_trim"])
def test_the_stop_string_is_kept_under_both_names(served, name):
    body = {"prompt": "abcdef", "stop": "cd", name: True}
    assert served.post("/v1/completions", body).json()["choices"][0]["text"] == "abcd"
    native = {"text": "abcdef", "sampling_params": {"stop": "cd", name: True}}
    assert served.post("/generate", native).json()["text"] == "abcd"


def test_a_prompt_is_truncated_to_its_last_tokens(served):
    body = {"prompt": "abcdef", "max_tokens": 3, "truncate_prompt_tokens": 2}
    answer = served.post("/v1/completions", body).json()
    assert (answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]) == ("efe", 2)
    longer = {"prompt": "x" * 600, "max_tokens": 12, "truncate_prompt_tokens": -1}
    assert served.post("/v1/completions", longer).json()["usage"]["prompt_tokens"] == 500
    assert error(served.post("/v1/completions", {**body, "truncate_prompt_tokens": 0}))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_prompt_logprobs_are_told_by_id(served, path):
    answer = served.post(path, {**ROUTES[path], "prompt_logprobs": 2}).json()
    prompt_ids = last_submit(served).prompt_ids
    where = answer if "chat" in path else answer["choices"][0]
    found = where["prompt_logprobs"]
    assert found[0] is None
    assert len(found) == len(prompt_ids) == answer["usage"]["prompt_tokens"]
    for token_id, entry in zip(prompt_ids[1:], found[1:], strict=True):
        assert entry[str(token_id)]["rank"] in (1, 2, None)
        assert len(entry) >= 2
    refusal = error(served.post(path, {**ROUTES[path], "prompt_logprobs": 2, "stream": True}))
    assert refusal["param"] == "prompt_logprobs"


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/v1/completions", {"prompt": [9999]}, "prompt", "prompt names token 9999"),
        ("/generate", {"input_ids": [9999]}, "input_ids", "input_ids names token 9999"),
        ("/v1/completions", {**TEXT, "min_tokens": 4}, "min_tokens", "above max_tokens, 2"),
        (
            "/v1/completions",
            {"prompt": "a", "min_tokens": 20},
            "min_tokens",
            "above max_tokens, 16",
        ),
        (
            "/v1/chat/completions",
            {**CHAT, "max_tokens": None, "max_completion_tokens": 2, "min_tokens": 4},
            "min_tokens",
            "above max_completion_tokens, 2",
        ),
        ("/v1/completions", {**TEXT, "logit_bias": {"-1": 1}}, "logit_bias", "logit_bias"),
        ("/v1/completions", {**TEXT, "logit_bias": {"x": 1}}, "logit_bias", "logit_bias"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "messages[0].content[0] of type 'image_url'",
        ),
        ("/v1/completions", {"prompt": "x" * 512}, "prompt", "no room is left for an output"),
        ("/generate", {"input_ids": [5] * 512}, "input_ids", "no room is left for an output"),
    ],
)
def test_param_names_what_the_caller_sent(served, path, body, param, words):
    refusal = error(served.post(path, body))
    assert refusal["param"] == param
    assert words in refusal["message"]
    assert "$" not in refusal["message"]
    assert "longer" not in refusal["message"]


def test_the_byte_that_is_no_utf8_is_counted_from_the_body_s_beginning(served):
    body = b'{"max_tokens": 1, "prompt": "caf' + b"\xe9" + b'"}'
    headers = {"content-type": "application/json"}
    answer = httpx.post(served.url + "/v1/completions", content=body, headers=headers)
    assert f"byte {body.index(0xE9)} is not UTF-8" in error(answer)["message"]


def test_a_prompt_that_fills_the_context_can_be_scored(served):
    body = {"prompt": "x" * 512, "max_tokens": 0, "echo": True, "logprobs": 1}
    choice = served.post("/v1/completions", body).json()["choices"][0]
    assert len(choice["logprobs"]["token_logprobs"]) == 512


def test_namespaces_of_other_parts_never_agree(served):
    pairs = [
        ("ab", "c"), ("a", "bc"), ("abc", None), (None, "abc"), ("1:a", "b"), ("", "ab"),
        ("a1:b", None), ("-", "-"), (None, None),
    ]  # fmt: skip
    seen = set()
    for path, body in ROUTES.items():
        found = []
        for extra_key, cache_salt in pairs:
            served.post(path, {**body, "extra_key": extra_key, "cache_salt": cache_salt})
            found.append(last_submit(served).namespace)
        assert len(set(found)) == len(pairs)
        seen.add(tuple(found))
    assert len(seen) == 1, "routes name the same parts differently"


def test_cached_tokens_are_known_from_the_first_event_on(served):
    import json

    def events(path, body):
        lines = served.post(path, body).text.split("\n\n")[:-2]
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    native = events("/generate", {**NATIVE, "stream": True})
    assert {event["meta_info"]["cached_tokens"] for event in native} == {3}
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path in ("/v1/completions", "/v1/chat/completions"):
        body = {**ROUTES[path], "stream": True, "stream_options": options}
        told = [event["usage"]["prompt_tokens_details"] for event in events(path, body)]
        assert told == [{"cached_tokens": 3}] * len(told)
