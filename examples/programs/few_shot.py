"""Classify many texts with the same examples before each: they are computed once.

python examples/programs/few_shot.py [URL]
"""

from __future__ import annotations

import sys

import headstock as hs

EXAMPLES = [
    ("The food was cold and the waiter rude.", "bad"),
    ("What a lovely evening, we will come back.", "good"),
    ("I want my money back.", "bad"),
    ("The best film of the year.", "good"),
]
TEXTS = [
    "I slept badly and the room smelled.",
    "Our guide was wonderful.",
    "It broke on the second day.",
    "My children loved every minute.",
]


@hs.function
def classify(s, text):
    for review, label in EXAMPLES:
        s += f"Review: {review}\nLabel: {label}\n\n"
    s += f"Review: {text}\nLabel: " + hs.select("label", ["good", "bad"])


def main() -> None:
    hs.set_default_backend(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000")
    states = classify.run_batch([{"text": text} for text in TEXTS], progress_bar=True)
    for text, state in zip(TEXTS, states, strict=True):
        meta = state.get_meta_info("label")
        shared = meta["cached_tokens"] / meta["prompt_tokens"]
        print(f"{state['label']:<4}  {text}  ({shared:.0%} of the prompt was shared)")


if __name__ == "__main__":
    main()
