"""What clouds ask their containers, and every native route that SGLang's clients ask."""

from headstock.config.schema import ServerSettings
from headstock.server.http.app import flat_routes
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


NATIVE = {
    "GET": """
        /ready /health /health_generate /model_info /get_model_info /server_info /get_server_info
        /v1/loads /metrics / /openapi.json /docs /ping /v1/models /v1/models/{name:path}
        /v1/responses/{response_id} /api/tags /v1/realtime /remote_instance_transfer_engine_info
        /hicache/storage-backend /get_hicache_l3_cache_layout /list_external_corpora
    """,
    "POST": """
        /generate /encode /classify /set_internal_state /abort_request /pause_generation
        /continue_generation /pd_role_switch /load_lora_adapter /load_lora_adapter_from_tensors
        /unload_lora_adapter /update_weights_from_disk /init_weights_update_group
        /destroy_weights_update_group /update_weights_from_distributed /update_weights_from_tensor
        /update_weights_from_ipc /begin_weight_update /end_weight_update /update_weight_version
        /init_weights_send_group_for_remote_instance /send_weights_to_remote_instance
        /hicache/storage-backend/clear /add_external_corpus /remove_external_corpus
        /parse_function_call /separate_reasoning /v1/completions /v1/chat/completions
        /v1/embeddings /v1/classify /v1/score /v1/rerank /v1/decisions /v1/systemone /v1/tokenize
        /tokenize /v1/detokenize /detokenize /v1/responses /v1/responses/{response_id}/cancel
        /v1/audio/transcriptions /v1/messages /v1/messages/count_tokens /api/chat /api/generate
        /api/show /invocations /vertex_generate
    """,
    "PUT": "/generate /encode /classify /set_internal_state /hicache/storage-backend /v1/rerank",
    "DELETE": "/hicache/storage-backend",
    "GET POST": """
        /flush_cache /start_profile /stop_profile /set_trace_level /freeze_gc /configure_logging
        /slow_down /start_expert_distribution_record /stop_expert_distribution_record
        /dump_expert_distribution_record /open_session /close_session /get_weights_by_name
        /weights_checker /release_memory_occupation /resume_memory_occupation
    """,
}
"""SGLang's routes, by the methods that it takes for them."""


ASKED_BY_POST = frozenset({
    "/flush_cache", "/start_profile", "/stop_profile", "/open_session", "/close_session",
    "/release_memory_occupation", "/resume_memory_occupation",
})  # fmt: skip
"""They change something: a GET, which a page in a browser can send to any server, does not."""


def test_every_route_of_sglang_is_there_and_what_changes_something_takes_no_get():
    with Served() as server:
        served = {(each, r.path) for r in flat_routes(server.app.routes) for each in r.methods}
        for path in sorted(ASKED_BY_POST):
            answer = server.get(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
            assert answer.json()["error"]["message"].endswith("Use POST.")
    asked = {
        (method, path)
        for methods, paths in NATIVE.items()
        for method in methods.split()
        for path in paths.split()
    }
    assert asked - served == {("GET", path) for path in ASKED_BY_POST}
