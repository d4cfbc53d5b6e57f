"""The native routes: shapes as SGLang's clients read them."""

import json

import pytest


def events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_one_prompt_gives_one_object_with_meta_info(served):
    answer = served.post("/generate", {"text": "hey", "rid": "mine"}).json()
    assert answer["text"] == ("hey" * 50)[:128]
    meta = answer["meta_info"]
    assert meta["id"] == "mine"
    assert meta["finish_reason"] == {"type": "length", "length": 128}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (3, 128)
    assert meta["cached_tokens"] == 3
    assert len(answer["output_ids"]) == 128


def test_a_list_gives_a_list_in_order(served):
    body = {
        "input_ids": [[100], [101, 102]],
        "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 2}],
        "rid": "batch",
    }
    answers = served.post("/generate", body).json()
    assert [answer["output_ids"] for answer in answers] == [[100], [101, 102]]
    assert [answer["meta_info"]["id"] for answer in answers] == ["batch_0", "batch_1"]


def test_n_expands_each_prompt(served):
    body = {"text": "ab", "sampling_params": {"n": 2, "max_new_tokens": 1}}
    assert [answer["text"] for answer in served.post("/generate", body).json()] == ["a", "a"]


def test_a_stream_is_cumulative_and_ends_once(served):
    body = {"text": "abc", "stream": True, "sampling_params": {"max_new_tokens": 4}}
    seen = events(served.post("/generate", body))
    assert [event["text"] for event in seen] == ["a", "ab", "abc", "abca", "abca"]
    assert [event["meta_info"]["finish_reason"] is None for event in seen] == [True] * 4 + [False]


def test_a_streamed_batch_carries_indexes(served):
    body = {"text": ["a", "b"], "stream": True, "sampling_params": {"max_new_tokens": 2}}
    seen = events(served.post("/generate", body))
    assert {event["index"]: event["text"] for event in seen} == {0: "aa", 1: "bb"}


def test_logprobs_are_triples_and_the_first_has_none(served):
    body = {
        "text": "abcd",
        "return_logprob": True,
        "logprob_start_len": 1,
        "top_logprobs_num": 2,
        "token_ids_logprob": [5, 6],
        "return_text_in_logprobs": True,
        "sampling_params": {"max_new_tokens": 2},
    }
    meta = served.post("/generate", body).json()["meta_info"]
    assert [item[1:] for item in meta["input_token_logprobs"]] == [
        [101, "b"], [102, "c"], [103, "d"],
    ]  # fmt: skip
    assert meta["input_token_logprobs"][0][0] is None
    assert all(item[0] < 0 for item in meta["input_token_logprobs"][1:])
    assert [item[2] for item in meta["output_token_logprobs"]] == ["a", "b"]
    assert [len(row) for row in meta["output_top_logprobs"]] == [2, 2]
    assert meta["input_top_logprobs"][0] is None
    assert [item[1] for item in meta["output_token_ids_logprobs"][0]] == [5, 6]


@pytest.mark.parametrize(
    ("sampling", "finish"),
    [
        ({"stop": "d"}, {"type": "stop", "matched": "d"}),
        ({"stop_token_ids": [103]}, {"type": "stop", "matched": 103}),
        ({"stop_regex": "[c-e]d"}, {"type": "stop", "matched": "[c-e]d"}),
    ],
)
def test_stops_are_named_and_trimmed(served, sampling, finish):
    answer = served.post("/generate", {"text": "abcdef", "sampling_params": sampling}).json()
    assert answer["meta_info"]["finish_reason"] == finish
    assert answer["text"] == ("ab" if "stop_regex" in sampling else "abc")
    kept = served.post(
        "/generate", {"text": "abcdef", "sampling_params": {**sampling, "no_stop_trim": True}}
    )
    assert kept.json()["text"] == "abcd"


def test_unknown_keys_at_the_top_are_ignored_and_in_sampling_params_refused(served):
    body = {"text": "a", "unheard_of": 1, "sampling_params": {"max_new_tokens": 1}}
    assert served.post("/generate", body).status_code == 200
    body["sampling_params"]["temprature"] = 1
    answer = served.post("/generate", body)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith("unknown field `temprature`, expected one of `max_new_tokens`")


def test_null_means_default(served):
    body = {
        "text": "ab",
        "sampling_params": {"max_new_tokens": 1, "temperature": None, "stop": None},
    }
    assert served.post("/generate", body).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"input_ids": []}, None),
        ({"input_ids": [5000]}, "input_ids"),
        ({"input_ids": [1, [2]]}, "input_ids"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
        ({"text": "a", "image_data": "x"}, "image_data"),
        ({"text": "a", "sampling_params": {"json_schema": "{"}}, "json_schema"),
        ({"text": "a", "sampling_params": {"top_p": 2}}, "top_p"),
        ({"text": "a", "sampling_params": {"max_new_tokens": 600}}, "max_new_tokens"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": 999}, "top_logprobs_num"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": 9}, "logprob_start_len"),
    ],
)
def test_what_is_wrong_is_named(served, body, field):
    answer = served.post("/generate", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_an_error_names_field_value_and_limit(served):
    body = {"text": "a", "sampling_params": {"temperature": -3}}
    message = served.post("/generate", body).json()["error"]["message"]
    assert "temperature is -3" in message
    assert "expected `float` >= 0.0" in message


def test_text_and_tokens_convert_both_ways(served):
    tokens = served.post("/tokenize", {"prompt": "né"}).json()
    assert tokens == {"tokens": [113, 198, 172], "count": 3, "max_model_len": 512}
    assert served.post("/v1/detokenize", {"tokens": tokens["tokens"]}).json() == {"text": "né"}
    chat = served.post("/v1/tokenize", {"messages": [{"role": "user", "content": "x"}]}).json()
    assert chat["count"] == len("user:x") + len("assistant:") + 2


def test_probes_and_information_answer_without_the_engine(served):
    asked = len(served.engine.seen)
    for path in ("/live", "/ready", "/health", "/health_generate", "/version", "/openapi.json"):
        assert served.get(path).status_code == 200
    info = served.get("/get_model_info").json()
    assert (info["model_path"], info["is_generation"]) == ("/nowhere", True)
    server = served.get("/server_info").json()
    assert server["max_total_num_tokens"] == 16 * 99
    assert server["disable_radix_cache"] is False
    assert (server["context_length"], server["dp_size"]) == (512, 1)
    assert (server["schedule_policy"], server["mem_fraction_static"]) == ("fair", 0.9)
    assert {"tokenizer_path", "attention_backend"} <= set(server)
    assert server["internal_states"][0]["total_pages"] == 99
    assert "api_keys" not in json.dumps(server)
    assert len(served.engine.seen) == asked


def test_metrics_have_both_names(served):
    text = served.get("/metrics").text
    assert "headstock_time_to_first_token_seconds_bucket" in text
    assert "sglang:" in text


def test_the_cache_is_flushed_when_idle(served):
    assert served.post("/flush_cache").json()["freed_pages"] == 7
    assert served.get("/flush_cache").status_code == 405  # a look changes nothing


def test_a_query_that_cannot_be_read_is_refused_in_the_envelope(served):
    answer = served.post("/flush_cache?timeout=false")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("timeout", "invalid_type")
    assert "timeout is 'false'" in error["message"]


def test_the_document_says_what_the_validator_says(served):
    document = served.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    needs = [choice["required"] for choice in schemas["GenerateBody"]["oneOf"]]
    assert needs == [["text"], ["input_ids"]]
    assert [choice["required"] for choice in schemas["TokenizeBody"]["oneOf"]]
    assert schemas["ChatBody"]["properties"]["messages"]["minItems"] == 1
    prompts = schemas["CompletionBody"]["properties"]["prompt"]["anyOf"]
    assert {"type": "string", "minLength": 1} in prompts
    tokens = schemas["DetokenizeBody"]["properties"]["tokens"]["items"]["anyOf"]
    assert {option.get("items", option)["maximum"] for option in tokens} == {258}
    metrics = document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert list(metrics) == ["text/plain"]


def test_request_ids_are_echoed_when_sane(served):
    named = served.get("/live", headers={"X-Request-Id": "abc-1"})
    assert named.headers["x-request-id"] == "abc-1"
    odd = served.get("/live", headers={"X-Request-Id": "x" * 200})
    assert len(odd.headers["x-request-id"]) == 32


def test_every_body_has_a_schema(served):
    document = served.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for operations in document["paths"].values():
        for method, operation in operations.items():
            if method == "post" and "requestBody" in operation:
                ((kind, content),) = operation["requestBody"]["content"].items()
                if kind == "multipart/form-data":
                    assert content["schema"]["required"]
                    continue
                assert content["schema"]["$ref"].rsplit("/", 1)[1] in schemas
    assert schemas["ChatBody"]["required"] == ["messages"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"5": 1e39}),
        ("logit_bias", {"5": 1e308}),
        ("logit_bias", {"5": -1e30}),
        ("repetition_penalty", 1e-45),
        ("repetition_penalty", 1e-193),
    ],
)
def test_numbers_that_would_leave_float32_are_refused(served, field, value):
    for route, body in (
        ("/generate", {"text": "a", "sampling_params": {field: value}}),
        ("/v1/completions", {"prompt": "a", field: value}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], field: value}),
    ):
        answer = served.post(route, body)
        assert answer.status_code == 400, route
        assert answer.json()["error"]["param"] == field
