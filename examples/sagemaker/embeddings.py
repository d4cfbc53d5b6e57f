"""Order texts by how near they are to a question, with an endpoint that serves an embedding model.

python examples/sagemaker/embeddings.py ENDPOINT
"""

from __future__ import annotations

import json
import sys

import boto3

QUESTION = "How do I boil an egg?"
TEXTS = [
    "The train leaves at noon.",
    "Put the egg into boiling water for eight minutes.",
    "A cat sleeps for most of the day.",
]


def main() -> None:
    runtime = boto3.client("sagemaker-runtime")
    answer = runtime.invoke_endpoint(
        EndpointName=sys.argv[1],
        ContentType="application/json",
        Body=json.dumps({"input": [QUESTION, *TEXTS]}),
    )
    asked, *vectors = (row["embedding"] for row in json.load(answer["Body"])["data"])
    # Vectors have the length 1: their product is the cosine of the angle between them.
    near = [sum(a * b for a, b in zip(asked, vector, strict=True)) for vector in vectors]
    for score, text in sorted(zip(near, TEXTS, strict=True), reverse=True):
        print(f"{score:.2f} {text}")


if __name__ == "__main__":
    main()
