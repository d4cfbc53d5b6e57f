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

Steps that the engine took are counted beside the time. Where all ways take equally many, they cost
the engine the same, and what is gained is round trips: much where a step is short (a fast device, a
far client), little where it is long (a small CPU). --count 1 shows a program alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
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


def num_steps(url: str) -> int:
    """Return how many steps the engine has taken, by its heartbeat, which comes once a second."""
    time.sleep(1.1)
    state = httpx.get(url + "/server_info", timeout=30).json()["internal_states"][0]
    return int(state["steps"])


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
    """Return the times and steps of one kind of programs, each way."""
    ways: dict[str, Callable[[], float]] = {
        "language": lambda: time_programs(url, kind, count),
        "gathered": lambda: time_plain(url, kind, count, ids, is_wide=True),
        "in_turn": lambda: time_plain(url, kind, count, ids, is_wide=False),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    steps: dict[str, list[int]] = {name: [] for name in ways}
    for run in range(runs + 1):  # in turn, so that a busy minute hits all; 1 warm-up
        for name, way in ways.items():
            before = num_steps(url)
            seconds = way()
            if run:
                times[name].append(seconds)
                steps[name].append(num_steps(url) - before)
    return {
        "kind": kind,
        "median_s": {name: statistics.median(values) for name, values in times.items()},
        "steps": {name: statistics.median(values) for name, values in steps.items()},
        "all_s": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--count", type=int, default=16, help="programs at once")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kinds", nargs="*", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    info = httpx.get(options.url + "/server_info", timeout=30).json()
    ids = choice_ids(options.url)
    rows: list[dict[str, Any]] = []
    print(
        f"{'kind':<10}{'language':>10}{'gathered':>10}{'in turn':>10}{'gain':>8}{'gain':>8}  steps"
    )
    for kind in options.kinds:
        row = time_kind(options.url, kind, options.count, options.runs, ids)
        median, steps = row["median_s"], row["steps"]
        gains = [median[name] / median["language"] for name in ("gathered", "in_turn")]
        print(
            f"{kind:<10}{median['language']:>9.3f}s{median['gathered']:>9.3f}s"
            f"{median['in_turn']:>9.3f}s{gains[0]:>7.2f}x{gains[1]:>7.2f}x  "
            + " ".join(f"{count:g}" for count in steps.values())
        )
        rows.append(row)
    if options.out:
        facts = {"model": info["model_path"], "facts": info["model_facts"]}
        result = {**facts, "count": options.count, "programs": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
