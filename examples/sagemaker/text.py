"""Go on from a prompt, on a SageMaker endpoint.

python examples/sagemaker/text.py ENDPOINT
"""

from __future__ import annotations

import json
import sys

import boto3

PROMPT = "The capital of France is"


def main() -> None:
    runtime = boto3.client("sagemaker-runtime")
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    answer = runtime.invoke_endpoint(
        EndpointName=sys.argv[1], ContentType="application/json", Body=json.dumps(body)
    )
    (choice,) = json.load(answer["Body"])["choices"]
    print(PROMPT + choice["text"])


if __name__ == "__main__":
    main()
