"""Times many requests at once in this process, for cpu_peers.py: one JSON line a run.

    python peer_offline.py openvino|headstock MODEL THREADS ROUNDS STREAMS INPUT OUTPUT

Runs in the environment of either engine, so it imports nothing of the other.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable

Run = Callable[[list[list[int]], int], int]
"""Generates so many tokens from all prompts at once; returns how many tokens that made."""


def open_headstock(model: str, threads: int, streams: int) -> Run:
    import headstock

    engine = headstock.Engine(
        model=model, threads=threads, cache_tokens=16_384, max_model_len=1024,
        max_running_requests=streams,
    )  # fmt: skip

    def run(prompts: list[list[int]], num_outputs: int) -> int:
        sampling = {"temperature": 0.0, "max_new_tokens": num_outputs, "ignore_eos": True}
        found = engine.generate(input_ids=prompts, sampling_params=sampling)
        return sum(answer["meta_info"]["completion_tokens"] for answer in found)

    return run


def open_openvino(model: str, threads: int, streams: int) -> Run:
    import numpy
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 0
    scheduler.cache_size = 1
    scheduler.max_num_seqs = streams
    scheduler.max_num_batched_tokens = 512
    pipe = openvino_genai.ContinuousBatchingPipeline(
        model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
    )

    def run(prompts: list[list[int]], num_outputs: int) -> int:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = num_outputs, True, False
        config.apply_chat_template = False
        tensors = [openvino.Tensor(numpy.array([ids], dtype=numpy.int64)) for ids in prompts]
        found = pipe.generate(tensors, [config] * len(tensors))
        return sum(len(answer.m_generation_ids[0]) for answer in found)

    return run


def main() -> None:
    engine, model, *numbers = sys.argv[1:]
    threads, rounds, streams, num_inputs, num_outputs = map(int, numbers)
    run = (open_openvino if engine == "openvino" else open_headstock)(model, threads, streams)
    for number in range(-1, rounds):
        draw = random.Random(number)
        prompts = [[draw.randrange(100, 30_000) for _ in range(num_inputs)] for _ in range(streams)]
        begin = time.perf_counter()
        made = run(prompts, num_outputs)
        wall = time.perf_counter() - begin
        if made != streams * num_outputs:
            raise SystemExit(f"{engine} generated {made} tokens, not {streams * num_outputs}.")
        if number >= 0:
            print(json.dumps({"many_tok_s": made / wall}), flush=True)


if __name__ == "__main__":
    main()
