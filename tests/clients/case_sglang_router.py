"""sglang-router in front of the server."""

import json
import socket
import subprocess
import sys
import time
import urllib.request

from steps import MODEL, URL, attempt


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


PORT, METRICS = free_port(), free_port()
ROUTER = f"http://127.0.0.1:{PORT}"
command = [
    sys.executable, "-m", "sglang_router.launch_router", "--worker-urls", URL,
    "--host", "127.0.0.1", "--port", str(PORT), "--prometheus-port", str(METRICS),
]  # fmt: skip


def post(path, body):
    request = urllib.request.Request(
        ROUTER + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def ready():
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(ROUTER + "/readiness", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert router.poll() is None, "the router ended"
            assert time.monotonic() < deadline, "the router found no worker"
            time.sleep(0.2)


def chat():
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 4}
    assert json.loads(post("/v1/chat/completions", body))["choices"]
    assert post("/v1/chat/completions", {**body, "stream": True}).endswith("data: [DONE]\n\n")


def generate():
    body = {"text": "One, two,", "sampling_params": {"max_new_tokens": 4}}
    assert json.loads(post("/generate", body))["text"]


router = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
try:
    attempt("the worker is found", ready)
    attempt("chat, whole and streamed", chat)
    attempt("/generate", generate)
finally:
    router.terminate()
    router.wait(20)
