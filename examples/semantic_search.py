"""Find the texts that a question is about: vectors without a server.

python examples/semantic_search.py [MODEL]
"""

from __future__ import annotations

import sys

import headstock

TEXTS = [
    "Put the egg into boiling water for eight minutes.",
    "The train to Lyon leaves from platform four.",
    "Our office is closed on public holidays.",
    "Water the plant once a week, and keep it out of the sun.",
]
QUESTION = "How do I cook an egg?"


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "all-minilm-l6-v2"
    with headstock.Engine(model=model) as engine:
        # Vectors have the length 1, so that their product is the cosine of the angle between them.
        question = engine.embed(QUESTION)["embedding"]
        texts = [answer["embedding"] for answer in engine.embed(TEXTS)]
        likeness = [sum(a * b for a, b in zip(question, text, strict=True)) for text in texts]
        best = max(range(len(TEXTS)), key=likeness.__getitem__)
        print(f"{QUESTION!r} -> {TEXTS[best]!r}")

        # The same in one call.
        for text, (score,) in zip(TEXTS, engine.score(QUESTION, TEXTS), strict=True):
            print(f"{score:6.3f}  {text}")


if __name__ == "__main__":
    main()
