#!/usr/bin/env python3
"""Time programs of the language against the same work through the plain OpenAI client.

    python benchmarks/programs.py --url http://127.0.0.1:30000 --out programs.json

Four kinds: a few-shot batch, a tree of thought with forks, a conversation in turns, and records
(JSON) whose form is given. Each is done three ways on one server: as programs of the language; by
the OpenAI client with every call that can run beside others doing so (`asyncio.gather`); and by the
OpenAI client one call after another within each program, as its synchronous form is written. All
three generate as many tokens for the same prompts, greedily, past any end. Where the language
selects, the client chooses too: of one token by biases of the choices, whose ids it has asked for
before the clock starts. The cache is flushed before each run; the median of --runs counts.

Steps that the engine took, and tokens that it computed, are counted beside the time: they are the
same on a busy machine and on a quiet one. Where all ways compute equally many in equally many
steps, they cost the engine the same, and what is gained is round trips: much where a step is short
(a fast device, a far client), little where it is long (a small CPU). --counts 1 shows a program
alone.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import shlex
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

import headstock as hs

GREEDY = {"temperature": 0.0, "ignore_eos": True}
SHOTS = "".join(
    f"Review {i}: The {thing} was {word}.\nLabel: {label}\n\n"
    for i, (thing, word, label) in enumerate(
        [("soup", "cold", "bad"), ("room", "bright", "good"), ("bus", "late", "bad"),
         ("film", "dull", "bad"), ("walk", "lovely", "good"), ("tea", "perfect", "good")] * 4
    )
)  # fmt: skip
THINGS = ["chair", "lamp", "phone", "coat", "book", "desk", "clock", "bag"]
CHOICES = [" good", " bad"]
BRANCHES = 4
TURNS = 4
Client = AsyncOpenAI


def words(number: int) -> str:
    """A text of its own for each program, so that only the common part is shared."""
    return f"number {number}, the {THINGS[number % len(THINGS)]} from house {number * 7}"


# As programs


@hs.function
def few_shot(s: Any, number: int) -> None:
    s += SHOTS + f"Review: {words(number)} was fine.\nLabel:" + hs.select("x", CHOICES)


@hs.function
def tree(s: Any, number: int) -> None:
    s += SHOTS + f"About {words(number)}. "
    ways = s.fork(BRANCHES)
    for index, way in enumerate(ways):
        way += f"Way {index}:" + hs.gen("way", max_tokens=16)
        looks = way.fork(2)
        for word, look in zip(("Gain", "Risk"), looks, strict=True):
            look += f" {word}:" + hs.gen(word, max_tokens=8)
        looks.join()
    ways.join()
    s += "Best:" + hs.gen("best", max_tokens=8)


@hs.function
def turns(s: Any, number: int) -> None:
    s += hs.system("You are brief.")
    for turn in range(TURNS):
        s += hs.user(f"Question {turn} about {words(number)}?")
        s += hs.assistant(hs.gen(f"x{turn}", max_tokens=16))


@hs.function
def record(s: Any, number: int) -> None:
    s += SHOTS + f"Text: {words(number)}\n" + '{"name": "' + hs.gen("name", max_tokens=6)
    s += '", "place": "' + hs.gen("place", max_tokens=6)
    s += '", "kind": "' + hs.gen("kind", max_tokens=6) + '"}'


# By the plain client


class Plain:
    """The same through the OpenAI client.

    Args:
        client: Of the server.
        choice_ids: The token of each of ``CHOICES``.
        is_wide: Whether calls that can run beside others do.
    """

    def __init__(self, client: Client, choice_ids: Sequence[int], *, is_wide: bool) -> None:
        self._client = client
        self._biases = {str(token): 100 for token in choice_ids}
        self._is_wide = is_wide

    async def choose(self, prompt: str) -> str:
        answer = await self._client.completions.create(
            model="default", prompt=prompt, max_tokens=1, temperature=0.0, logit_bias=self._biases
        )
        assert answer.choices[0].text in CHOICES, answer.choices[0].text
        return answer.choices[0].text

    async def complete(self, prompt: str, max_tokens: int) -> str:
        answer = await self._client.completions.create(
            model="default", prompt=prompt, max_tokens=max_tokens, temperature=0.0,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        return answer.choices[0].text

    async def all(self, work: Sequence[Awaitable[Any]]) -> list[Any]:
        if self._is_wide:
            return list(await asyncio.gather(*work))
        return [await item for item in work]

    async def few_shot(self, number: int) -> None:
        await self.choose(SHOTS + f"Review: {words(number)} was fine.\nLabel:")

    async def tree(self, number: int) -> None:
        prefix = SHOTS + f"About {words(number)}. "

        async def way(index: int) -> None:
            head = f"{prefix}Way {index}:"
            head += await self.complete(head, 16)
            await self.all([self.complete(f"{head} {word}:", 8) for word in ("Gain", "Risk")])

        await self.all([way(index) for index in range(BRANCHES)])
        await self.complete(prefix + "Best:", 8)

    async def turns(self, number: int) -> None:
        messages: list[Any] = [{"role": "system", "content": "You are brief."}]
        for turn in range(TURNS):
            content = f"Question {turn} about {words(number)}?"
            messages.append({"role": "user", "content": content})
            answer = await self._client.chat.completions.create(
                model="default", messages=messages, max_tokens=16, temperature=0.0,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            text = answer.choices[0].message.content or ""
            messages.append({"role": "assistant", "content": text})

    async def record(self, number: int) -> None:
        text = SHOTS + f"Text: {words(number)}\n" + '{"name": "'
        text += await self.complete(text, 6) + '", "place": "'
        text += await self.complete(text, 6) + '", "kind": "'
        await self.complete(text, 6)


WAYS = ("language", "gathered", "in_turn")
PROGRAMS = {"few_shot": few_shot, "tree": tree, "turns": turns, "record": record}


def flush(url: str) -> None:
    """Empty the cache, once nothing runs."""
    for _ in range(100):
        if httpx.post(url + "/flush_cache", timeout=30).status_code == 200:
            return
        time.sleep(0.05)
    raise SystemExit("The server does not come to rest.")


def choice_ids(url: str) -> list[int]:
    """Return the token that each of the choices is."""
    found: list[int] = []
    for choice in CHOICES:
        body = {"prompt": choice, "add_special_tokens": False}
        ids = httpx.post(url + "/tokenize", json=body, timeout=30).json()["tokens"]
        if len(ids) != 1:
            raise SystemExit(f"{choice!r} is {len(ids)} tokens of this model: change CHOICES.")
        found += ids
    return found


def engine_counts(url: str) -> dict[str, int]:
    """Return what the engine has done, by its heartbeat, which comes once a second.

    Computed tokens are those of prompts, where the cache did not have them, and generated ones.
    """
    time.sleep(1.1)
    state = httpx.get(url + "/server_info", timeout=30).json()["internal_states"][0]
    totals = {name: int(count) for name, count in state["totals"].items()}
    computed = totals["prefill_tokens"] + totals["generation_tokens"]
    return {"steps": totals["steps"], "computed_tokens": computed}


def time_programs(url: str, kind: str, count: int) -> float:
    flush(url)
    begun = time.perf_counter()
    states = PROGRAMS[kind].run_batch([(number,) for number in range(count)], backend=url, **GREEDY)
    seconds = time.perf_counter() - begun
    errors = [error for state in states if (error := state.error()) is not None]
    if errors:
        raise errors[0]
    return seconds


def time_plain(url: str, kind: str, count: int, ids: Sequence[int], *, is_wide: bool) -> float:
    async def main() -> float:
        async with Client(base_url=url + "/v1", api_key="none", max_retries=20) as client:
            plain = Plain(client, ids, is_wide=is_wide)
            work: Callable[[int], Awaitable[None]] = getattr(plain, kind)
            begun = time.perf_counter()
            await asyncio.gather(*[work(number) for number in range(count)])
            return time.perf_counter() - begun

    flush(url)
    return asyncio.run(main())


def time_kind(url: str, kind: str, count: int, runs: int, ids: Sequence[int]) -> dict[str, Any]:
    """Return the times and counts of one kind of programs, each way."""
    ways: dict[str, Callable[[], float]] = {
        "language": lambda: time_programs(url, kind, count),
        "gathered": lambda: time_plain(url, kind, count, ids, is_wide=True),
        "in_turn": lambda: time_plain(url, kind, count, ids, is_wide=False),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    counted: dict[str, dict[str, list[int]]] = {name: {} for name in ways}
    for run in range(runs + 1):  # in turn, so that a busy minute hits all; 1 warm-up
        for name, way in ways.items():
            before = engine_counts(url)
            seconds = way()
            if run:
                times[name].append(seconds)
                for what, total in engine_counts(url).items():
                    counted[name].setdefault(what, []).append(total - before[what])
    row: dict[str, Any] = {"kind": kind, "programs_at_once": count}
    row |= {f"{name}_s": statistics.median(values) for name, values in times.items()}
    row |= {f"gain_over_{name}": row[f"{name}_s"] / row["language_s"] for name in WAYS[1:]}
    for what in ("steps", "computed_tokens"):
        row |= {f"{name}_{what}": statistics.median(counted[name][what]) for name in WAYS}
    return {**row, "all_s": times}


WIDTHS = {"language": 10, "gathered": 10, "in turn": 10, "gathered/": 11, "in turn/": 11}
HEAD = f"{'kind':<10}{'at once':>8}" + "".join(f"{word:>{WIDTHS[word]}}" for word in WIDTHS)


def line(row: dict[str, Any]) -> str:
    """Return a row of the table that is printed."""
    seconds = "".join(f"{row[f'{name}_s']:>9.3f}s" for name in WAYS)
    gains = "".join(f"{row[f'gain_over_{name}']:>10.2f}x" for name in WAYS[1:])
    steps = " ".join(f"{row[f'{name}_steps']:g}" for name in WAYS)
    computed = " ".join(f"{row[f'{name}_computed_tokens']:g}" for name in WAYS)
    begin = f"{row['kind']:<10}{row['programs_at_once']:>8}"
    return f"{begin}{seconds}{gains}  {steps} steps, {computed} tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 16], help="programs at once")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kinds", nargs="*", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--machine", default="", help="in words, for --out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    info = httpx.get(options.url + "/server_info", timeout=30).json()
    ids = choice_ids(options.url)
    rows: list[dict[str, Any]] = []
    print(HEAD)
    for kind in options.kinds:
        for count in options.counts:
            rows.append(time_kind(options.url, kind, count, options.runs, ids))
            print(line(rows[-1]), flush=True)
    if options.out:
        result = {
            "machine": options.machine,
            "command": shlex.join(["python", "benchmarks/programs.py", *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "model": Path(info["model_path"]).name,
            "facts": info["model_facts"],
            "programs": rows,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
