"""Draws, penalties, biases and log probabilities."""

import itertools
from functools import partial

import torch

from cuda_parts.timing import DEVICE, Here, Report, randn
from headstock.ops.sampling import add_bias, apply_penalties, draw_tokens, token_logprobs
from headstock_triton.sampling.draw import Draws
from headstock_triton.sampling.logprobs import Logprobs
from headstock_triton.sampling.shaping import Shaping
from headstock_triton.target import Target

VOCABULARY = 151936
FILTERS = {
    "off": (1.0, -1, 1.0, 0.0),
    "greedy": (0.0, -1, 1.0, 0.0),
    "top-p 0.9, top-k 50": (1.0, 50, 0.9, 0.0),
    "top-p 0.9": (1.0, -1, 0.9, 0.0),
    "min-p 0.05": (1.0, -1, 1.0, 0.05),
}


def part_sampling(report: Report) -> None:
    """Time the sampling ops beside their references, on logits as hot as the head leaves them."""
    target = Target.of(Here())
    for rows in (1, 32, 256):
        time_draws(report, Draws(target), rows)
        time_penalties(report, Shaping(target), rows)
        logits = randn(rows, VOCABULARY, dtype=torch.float32)
        ids = torch.zeros((rows, 1024), dtype=torch.int64, device=DEVICE)
        biases = torch.zeros((rows, 1024), device=DEVICE)
        ids[:, :8], biases[:, :8] = torch.arange(8, device=DEVICE) * 1000, 1.0
        ways = {"triton": Shaping(target).add_bias, "reference": add_bias.reference}
        for way, run in ways.items():
            many = [partial(run, logits, ids, biases)] * 4
            report.time("add_bias", many, case=f"S={rows}", way=way)
        ways = {"triton": Logprobs(target).token_logprobs, "reference": token_logprobs.reference}
        for (way, run), k in itertools.product(ways.items(), (0, 5, 20, 128)):
            many = [partial(run, logits, ids[:, 0], ids[:, :1], k=k)] * 2
            report.time("token_logprobs", many, case=f"S={rows} k={k}", way=way)


def time_draws(report: Report, draws: Draws, rows: int) -> None:
    """Time draws from peaked rows, and from flat ones, whose filters leave many ids open."""
    indexes = torch.arange(rows, device=DEVICE)
    ways = {"triton": draws.draw_tokens, "reference": draw_tokens.reference}
    for scale, (filters, (temperature, top_k, top_p, min_p)) in itertools.product(
        (4.0, 0.5), FILTERS.items()
    ):
        logits = randn(rows, VOCABULARY, dtype=torch.float32) * scale
        settings = (
            torch.full((rows,), temperature, device=DEVICE),
            torch.full((rows,), top_k, dtype=torch.int32, device=DEVICE),
            torch.full((rows,), top_p, device=DEVICE),
            torch.full((rows,), min_p, device=DEVICE),
        )
        args = (logits, *settings, indexes * 7919, indexes)
        facts = {"case": f"S={rows} deviation {scale:g}, {filters}"}
        if report.shard is None:
            ours, theirs = (run(*args) for run in ways.values())
            report.add("draw_tokens", equal_ids=float((ours == theirs).float().mean()), **facts)
        for way, run in ways.items():
            num_bytes = rows * VOCABULARY * 4
            many = [partial(run, *args)] * 2
            report.time("draw_tokens", many, num_bytes=num_bytes, way=way, **facts)


def time_penalties(report: Report, shaping: Shaping, rows: int) -> None:
    """Time penalties of every row, of the first only, and of none."""
    logits = randn(rows, VOCABULARY, dtype=torch.float32)
    counts = (torch.rand(rows, VOCABULARY, device=DEVICE) < 0.01).int()
    in_prompt = torch.rand(rows, VOCABULARY, device=DEVICE) < 0.02
    every, first = torch.ones(rows, device=DEVICE), torch.zeros(rows, device=DEVICE)
    first[0] = 1.0
    ways = {"triton": shaping.apply_penalties, "reference": apply_penalties.reference}
    for (way, run), (who, is_on) in itertools.product(
        ways.items(), {"every row": every, "first row": first, "no row": first * 0}.items()
    ):
        many = [
            partial(run, logits, counts, in_prompt, 1 + is_on * 0.1, is_on * 0.2, is_on * 0.1)
        ] * 4
        report.time("apply_penalties", many, case=f"S={rows}, {who}", way=way)
