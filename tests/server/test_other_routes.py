"""What clouds ask their containers."""

from headstock.config.schema import ServerSettings
from tests.server.conftest import Served


def test_sagemaker_asks_for_chats(served):
    assert served.get("/ping").status_code == 200
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    answer = served.post("/invocations", body)
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    streamed = served.post("/invocations", {**body, "stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")


def test_the_probe_of_sagemaker_needs_no_key_and_the_rest_does():
    with Served(settings=ServerSettings(port=0, api_keys=["a-long-enough-key"])) as locked:
        assert locked.get("/ping").status_code == 200
        for path in ("/invocations", "/v1/responses", "/v1/messages", "/api/chat", "/rerank"):
            assert locked.post(path, {}).status_code == 401


def test_sagemaker_asks_for_prompts_and_vectors_by_the_key_of_the_body(served):
    answer = served.post("/invocations", {"prompt": "Hi", "max_tokens": 2})
    assert answer.json()["choices"][0]["text"] == "Hi"
    refused = served.post("/invocations", {"input": "Hi"})
    assert refused.json()["error"]["param"] == "model"
    for body in ({"text": "Hi"}, {"prompt": "Hi", "messages": []}):
        answer = served.post("/invocations", body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "missing_prompt"
    assert served.post("/invocations", [1]).json()["error"]["code"] == "invalid_type"


def test_vertex_asks_with_instances_and_parameters(served):
    body = {"instances": [{"text": "ab"}, {"input_ids": [100, 101]}, {"text": "cd"}]}
    body["instances"][2]["sampling_params"] = {"max_new_tokens": 1}
    answer = served.post("/predict", {**body, "parameters": {"max_new_tokens": 2}}).json()
    assert [one["text"] for one in answer["predictions"]] == ["ab", "ab", "c"]


def test_an_instance_at_fault_is_named(served):
    answer = served.post("/predict", {"instances": [{"text": "a"}, {"text": "b", "rid": 5}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "instances[1]"
    wrong = {"instances": [{"text": "a"}], "parameters": {"top_p": 7}}
    assert served.post("/predict", wrong).json()["error"]["param"] == "instances[0].top_p"
    assert served.post("/predict", {"instances": []}).status_code == 400
