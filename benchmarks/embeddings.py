"""Embedding models: texts a second, on the CPU beside sentence-transformers, on a GPU.

    python benchmarks/embeddings.py cpu                      all-MiniLM-L6-v2; a minute
    python benchmarks/embeddings.py cpu --texts 512 --rounds 5 --threads 2 --quantization int8
    python benchmarks/embeddings.py gpu                      Qwen3-Embedding-0.6B's shape; a minute
    python benchmarks/embeddings.py gpu --length 512 --texts 512
    python benchmarks/embeddings.py gpu --callers 4          calls that overlap
    python benchmarks/embeddings.py gpu-peer                 the same beside sentence-transformers

`cpu` needs sentence-transformers and `headstock pull all-minilm-l6-v2`. Both sides get the same
texts and the same number of threads, in turn; the figure is the best of the rounds, since other
work on a machine only ever takes time away. Vectors are compared before anything is timed.

`gpu` has random weights and random ids. Its share is that of the operations that the matrices take
in what the card is measured to do in one large product. `gpu-peer` gives both sides one folder
with random weights, a tokenizer of words and texts of --length words; sentence-transformers
computes in bfloat16 with batches of --rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WORDS = [
    *("the", "of", "and", "in", "to", "it", "was", "on", "for", "with", "river", "market"),
    *("engine", "light", "paper", "winter", "green", "story", "station", "music", "garden"),
]
QWEN3_EMBEDDING = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151669,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


def make_texts(count: int) -> list[str]:
    """Return sentences of 4 to 48 words, the same on every run."""
    draw = random.Random(0)
    lengths = [draw.choice((4, 8, 12, 16, 24, 48)) for _ in range(count)]
    return [" ".join(draw.choice(WORDS) for _ in range(length)) + "." for length in lengths]


def best_of(rounds: int, runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the least seconds that each of ``runs`` took; they take turns."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            least[name] = min(least[name], time.perf_counter() - begun)
    return least


def measure_cpu(options: argparse.Namespace) -> None:
    """Compare with sentence-transformers on the real model."""
    import torch
    from sentence_transformers import SentenceTransformer

    import headstock
    from headstock.checkpoint.pull import ensure

    threads = options.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    path = ensure("all-minilm-l6-v2")
    texts = make_texts(options.texts)
    peer = SentenceTransformer(str(path), device="cpu")
    slots: dict[str, Any] = {
        "max_running_requests": options.rows,
        "chunked_prefill_size": options.step_tokens,
    }
    slots["quantization"] = options.quantization
    with headstock.Engine(model=str(path), threads=threads, **slots) as engine:
        answers = engine.embed(texts)
        ours = torch.tensor([answer["embedding"] for answer in answers])
        theirs = torch.from_numpy(peer.encode(texts))
        cosine = (ours * theirs).sum(1).min().item()
        least = best_of(
            options.rounds,
            {
                "headstock": lambda: engine.embed(texts),
                "sentence-transformers": lambda: peer.encode(texts),
            },
        )
    tokens = sum(answer["meta_info"]["prompt_tokens"] for answer in answers)
    print(f"{len(texts)} texts, {tokens} tokens, {threads} threads; least cosine {cosine:.6f}")
    report(least, len(texts), tokens)
    ratio = least["sentence-transformers"] / least["headstock"]
    print(f"headstock / sentence-transformers: {ratio:.2f} x")


def report(least: dict[str, float], num_texts: int, num_tokens: int) -> None:
    """Print texts and tokens a second."""
    for name, seconds in least.items():
        rates = f"{num_texts / seconds:>9.0f} texts/s {num_tokens / seconds:>9.0f} tokens/s"
        print(f"{name:<24} {rates}")


def matrix_rate() -> float:
    """Return the operations a second that the card does in one large product, at its best."""
    import torch

    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(30):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        left @ right
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1000)
    return 2 * size**3 / best


def num_operations(config: dict[str, Any], texts: Sequence[Sequence[int]]) -> int:
    """Return the operations of the matrices, and of attention over what each token sees."""
    size, inner = config["hidden_size"], config["intermediate_size"]
    heads, head_dim = config["num_attention_heads"], config["head_dim"]
    queries = heads * head_dim
    weights = size * (queries + 2 * config["num_key_value_heads"] * head_dim) + queries * size
    weights += 3 * size * inner
    tokens = sum(map(len, texts))
    seen = sum(len(text) * (len(text) + 1) // 2 for text in texts)
    whole = config["num_hidden_layers"] * (2 * tokens * weights + 4 * seen * queries)
    # Past the last attention the texts' last tokens alone go on.
    return whole - 2 * tokens * (queries * size + 3 * size * inner)


def measure_gpu(options: argparse.Namespace) -> None:
    """Time random texts on a card, and compare with what its matrix units reach."""
    import headstock

    draw = random.Random(0)
    vocab = QWEN3_EMBEDDING["vocab_size"]

    def texts() -> list[list[int]]:  # other ones each time: nothing is cached
        return [
            [draw.randrange(vocab) for _ in range(options.length)] for _ in range(options.texts)
        ]

    rate = matrix_rate()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(QWEN3_EMBEDDING))
        settings: dict[str, Any] = {
            "task": "embed",
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "max_model_len": max(1024, options.length),
            # The next step is launched while the texts of the last one still run.
            "max_running_requests": 2 * options.rows,
            "chunked_prefill_size": options.step_tokens,
            "memory_fraction": 0.6,
        }
        with headstock.Engine(model=folder, backend="cuda", **settings) as engine:
            engine.embed(input_ids=texts())
            least, work = float("inf"), 0
            for _ in range(options.rounds):
                given = texts()
                begun = time.perf_counter()
                engine.embed(input_ids=given)
                seconds = time.perf_counter() - begun
                if seconds < least:
                    least, work = seconds, num_operations(QWEN3_EMBEDDING, given)
            if options.callers > 1:
                least, work = sustained(engine, options, texts)
    report({"headstock": least}, options.texts, options.texts * options.length)
    print(
        f"{work / least / 1e12:.0f} TFLOP/s of {rate / 1e12:.0f} that one large product reaches:"
        f" {work / least / rate:.0%}"
    )


def sustained(
    engine: Any, options: argparse.Namespace, texts: Callable[[], list[list[int]]]
) -> tuple[float, int]:
    """Return seconds and operations of --texts texts when --callers always have a call under way.

    Each sends its next call of texts / callers once the last is answered, --rounds x callers calls
    in all: what a server under load does, where no device waits for a call to begin.
    """
    draws = options.rounds * options.callers
    whole = [text for _ in range(options.rounds) for text in texts()]
    size = options.texts // options.callers
    calls = [whole[n * size : (n + 1) * size] for n in range(draws)]
    with ThreadPoolExecutor(options.callers) as pool:
        begun = time.perf_counter()
        list(pool.map(lambda call: engine.embed(input_ids=call), calls))
        seconds = time.perf_counter() - begun
    used = [text for call in calls for text in call]
    share = options.texts / len(used)
    return seconds * share, int(num_operations(QWEN3_EMBEDDING, used) * share)


def write_peer_model(folder: Path, config: dict[str, Any]) -> None:
    """Write a model of random weights as sentence-transformers saves it, with a word a token."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import (  # pyright: ignore[reportMissingImports]
        Normalize,
        Pooling,
        Transformer,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    inner = folder / "transformer"
    words = {f"w{n}": n for n in range(config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    known = {
        name: value for name, value in config.items() if name not in ("architectures", "dtype")
    }
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(**known), dtype=torch.bfloat16)
    model.save_pretrained(inner)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", pad_token="w0", model_max_length=2048
    ).save_pretrained(inner)
    parts = [Transformer(str(inner)), Pooling(config["hidden_size"], "lasttoken"), Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "whole"))


def measure_gpu_peer(options: argparse.Namespace, config: dict[str, Any], backend: str) -> None:
    """Time random texts on a card beside sentence-transformers, with the same files."""
    import torch
    from sentence_transformers import SentenceTransformer

    import headstock

    draw = random.Random(0)
    vocab = config["vocab_size"]

    def texts() -> list[str]:
        return [
            " ".join(f"w{draw.randrange(1, vocab)}" for _ in range(options.length))
            for _ in range(options.texts)
        ]

    with tempfile.TemporaryDirectory() as folder:
        write_peer_model(Path(folder), config)
        path = str(Path(folder, "whole"))
        device = "cuda" if backend == "cuda" else "cpu"
        settings: dict[str, Any] = {
            "task": "embed",
            "max_model_len": max(1024, options.length),
            "max_running_requests": 2 * options.rows,
            "chunked_prefill_size": options.step_tokens,
        }
        if backend == "cuda":
            settings["memory_fraction"] = 0.5
        with headstock.Engine(model=path, backend=backend, **settings) as engine:
            given = texts()
            ours = torch.tensor([answer["embedding"] for answer in engine.embed(given)])
            least = {"headstock": float("inf"), "sentence-transformers": float("inf")}
            for _ in range(options.rounds):
                batch = texts()  # other ones each time: nothing is cached
                begun = time.perf_counter()
                engine.embed(batch)
                least["headstock"] = min(least["headstock"], time.perf_counter() - begun)
        # After ours is gone: each side has the card to itself.
        peer = SentenceTransformer(path, device=device, model_kwargs={"dtype": torch.bfloat16})
        theirs = torch.from_numpy(peer.encode(given, batch_size=options.rows)).float()
        for _ in range(options.rounds):
            batch = texts()
            begun = time.perf_counter()
            peer.encode(batch, batch_size=options.rows)
            name = "sentence-transformers"
            least[name] = min(least[name], time.perf_counter() - begun)
    print(f"least cosine {torch.cosine_similarity(ours, theirs).min().item():.5f}")
    report(least, options.texts, options.texts * options.length)
    ratio = least["sentence-transformers"] / least["headstock"]
    print(f"headstock / sentence-transformers: {ratio:.2f} x")


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("where", choices=("cpu", "gpu", "gpu-peer"))
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rows", type=int, default=64, help="texts of a step")
    parser.add_argument("--step-tokens", type=int, help="tokens of a step")
    parser.add_argument("--callers", type=int, default=1, help="calls at once, on a GPU")
    parser.add_argument("--quantization", choices=("int8", "int4"), help="of ours, on the CPU")
    parser.add_argument("--length", type=int, default=512, help="tokens of a text, on a GPU")
    options = parser.parse_args()
    if options.step_tokens is None:
        options.step_tokens = 1024 if options.where == "cpu" else 16384
    if options.where == "cpu":
        measure_cpu(options)
    elif options.where == "gpu":
        measure_gpu(options)
    else:
        measure_gpu_peer(options, QWEN3_EMBEDDING, "cuda")
    return 0


if __name__ == "__main__":
    sys.exit(main())
