"""Ask a SageMaker endpoint about an image; its model must read images.

python examples/sagemaker/vision.py ENDPOINT IMAGE
"""

from __future__ import annotations

import base64
import json
import mimetypes
import sys
from pathlib import Path

import boto3


def data_url(path: Path) -> str:
    """Return the image as part of a request: an endpoint cannot fetch addresses."""
    kind, _ = mimetypes.guess_type(path.name)
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def main() -> None:
    runtime = boto3.client("sagemaker-runtime")
    content = [
        {"type": "image_url", "image_url": {"url": data_url(Path(sys.argv[2]))}},
        {"type": "text", "text": "What is in this image?"},
    ]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 64}
    answer = runtime.invoke_endpoint(
        EndpointName=sys.argv[1], ContentType="application/json", Body=json.dumps(body)
    )
    (choice,) = json.load(answer["Body"])["choices"]
    print(choice["message"]["content"])


if __name__ == "__main__":
    main()
