"""Generate without a server: the engine of `headstock serve` in this process.

python examples/offline_batch.py [MODEL]
"""

from __future__ import annotations

import math
import sys

import headstock

PROMPTS = ["The capital of France is", "The capital of Italy is", "1, 2, 3, 4,"]


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
    # Settings are the flags of `headstock serve`.
    with headstock.Engine(model=model, max_model_len=1024, cache_tokens=4096) as engine:
        greedy = {"temperature": 0, "max_new_tokens": 8}

        # A list is computed as one batch.
        for prompt, result in zip(
            PROMPTS, engine.generate(prompt=PROMPTS, sampling_params=greedy), strict=True
        ):
            print(f"{prompt!r} -> {result['text']!r}")

        # A stream gives the text so far, again and again.
        shown = 0
        for event in engine.generate(prompt=PROMPTS[0], sampling_params=greedy, stream=True):
            print(event["text"][shown:], end="|", flush=True)
            shown = len(event["text"])

        # A chat goes through the model's template; the answer says how likely each token was.
        ids = engine.encode_chat([{"role": "user", "content": "Say hello."}])
        result = engine.generate(input_ids=ids, sampling_params=greedy, return_logprob=True)
        logprobs = [chosen for chosen, _, _ in result["meta_info"]["output_token_logprobs"]]
        print(f"\n{result['text']!r}, at {math.exp(sum(logprobs)):.0%}")


if __name__ == "__main__":
    main()
