"""aiperf."""

import tempfile

from commands import run
from steps import MODEL, TOKENIZER, URL, attempt


def profile():
    found = run(
        "aiperf", "profile", "--model", MODEL, "--url", URL, "--endpoint-type", "chat",
        "--streaming", "--tokenizer", TOKENIZER, "--concurrency", "2", "--request-count", "6",
        "--synthetic-input-tokens-mean", "16", "--output-tokens-mean", "8", "--ui", "none",
        "--no-gpu-telemetry",
        cwd=tempfile.mkdtemp(),
    )  # fmt: skip
    assert "Time to First Token" in found


attempt("profile of 6 streamed chats", profile)
