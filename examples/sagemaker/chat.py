"""Stream a chat from a SageMaker endpoint.

python examples/sagemaker/chat.py ENDPOINT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import boto3


def events(parts: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the server's events. A part may end anywhere, also within a character."""
    rest = b""
    for part in parts:
        *whole, rest = (rest + part["PayloadPart"]["Bytes"]).split(b"\n\n")
        for event in whole:
            data = event.removeprefix(b"data: ")
            if event != data and data != b"[DONE]":
                yield json.loads(data)


def main() -> None:
    runtime = boto3.client("sagemaker-runtime")
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 64,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = runtime.invoke_endpoint_with_response_stream(
        EndpointName=sys.argv[1], ContentType="application/json", Body=json.dumps(body)
    )
    for event in events(answer["Body"]):
        for choice in event["choices"]:
            print(choice["delta"].get("content") or "", end="", flush=True)
        if usage := event.get("usage"):
            print(f"\n({usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out)")


if __name__ == "__main__":
    main()
