"""What SGLang's bench_serving asks over HTTP; the package itself needs all of SGLang."""

import json
import urllib.request

from steps import MODEL, URL, attempt


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def facts():
    assert json.loads(ask("/v1/models"))["data"][0]["id"] == MODEL
    info = json.loads(ask("/get_model_info"))
    assert info["model_path"]
    server = json.loads(ask("/get_server_info"))
    assert "max_total_num_tokens" in server
    assert isinstance(server["internal_states"], list)


def native():
    body = {
        "text": "One, two,",
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 6, "ignore_eos": True},
        "stream": True,
        "lora_path": None,
        "return_logprob": False,
        "logprob_start_len": -1,
    }
    lines = [line for line in ask("/generate", body).splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    assert last["meta_info"]["completion_tokens"] == 6


def openai(path, body):
    def run():
        more = {
            "model": MODEL,
            "temperature": 0.0,
            "max_tokens": 6,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        lines = ask(path, {**body, **more}).splitlines()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["usage"]["completion_tokens"] == 6

    return run


def flush():
    ask("/flush_cache", {})


def profile():
    ask("/start_profile", {"num_steps": 1})
    native()
    ask("/stop_profile", {})


attempt("/v1/models, /get_model_info, /get_server_info", facts)
attempt("backend sglang: /generate", native)
attempt("backend sglang-oai: /v1/completions", openai("/v1/completions", {"prompt": "One,"}))
chat_body = {"messages": [{"role": "user", "content": "Hi."}]}
attempt("backend sglang-oai-chat", openai("/v1/chat/completions", chat_body))
attempt("/flush_cache", flush)
attempt("/start_profile, /stop_profile", profile)
