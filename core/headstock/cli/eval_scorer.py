"""What evaluations ask of a model: how likely a text is after another, and how it goes on.

Over `/generate` and `/tokenize`, of a server or of an engine in this process, so that models
without a tokenizer of Hugging Face's are scored, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headstock.cli.progress import Advance
from headstock.errors import ConfigError

Ask = Callable[[str, Any], Any]
"""Path and body to the answer; raises where there is none."""
BATCH = 64
"""Prompts of one call."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a continuation is.

    Attributes:
        logprob: The sum over its tokens.
        is_greedy: Whether each of them is the likeliest at its place.
    """

    logprob: float
    is_greedy: bool


class Scorer:
    """Scores texts and goes on from them.

    Args:
        ask: The way to the model.
        max_length: Longest prompt and output. Tokens.
        bos_id: What stands before a text that nothing stands before; None: the tokenizer's own
            first token, where it has one.
        adds_special: Whether the tokenizer adds what it puts before a text: not before templates.
    """

    def __init__(
        self, ask: Ask, max_length: int, *, bos_id: int | None = None, adds_special: bool = True
    ) -> None:
        self._ask = ask
        self._max_length = max_length
        self._bos_id = bos_id
        self._adds_special = adds_special

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of ``texts``."""
        ids: list[list[int]] = []
        for begin in range(0, len(texts), BATCH):
            body = {
                "prompt": list(texts[begin : begin + BATCH]),
                "add_special_tokens": self._adds_special,
            }
            ids += self._ask("/tokenize", body)["tokens"]
        return ids

    def render(self, messages: Sequence[Mapping[str, Any]], *, is_open: bool) -> str:
        """Return a chat as the model's template writes it.

        Args:
            messages: The chat.
            is_open: Whether it ends where the model is to answer.
        """
        body = {"messages": list(messages), "add_generation_prompt": is_open}
        ids = self._ask("/tokenize", body)["tokens"]
        return self._ask("/detokenize", {"tokens": ids, "skip_special_tokens": False})["text"]

    def likelihoods(
        self, pairs: Sequence[tuple[str, str]], advance: Advance | None = None
    ) -> list[Likelihood]:
        """Return how likely each continuation is after its context."""
        rows = self._encode_pairs(pairs)
        found: list[Likelihood] = []
        for begin in range(0, len(rows), BATCH):
            found += self._score(rows[begin : begin + BATCH])
            if advance is not None:
                advance(len(rows[begin : begin + BATCH]))
        return found

    def whole(self, texts: Sequence[str]) -> list[float]:
        """Return the logprob of each text; one longer than the model's length, by parts.

        Each token is scored once, the first of a part after the last of the part before.
        """
        sums: list[float] = []
        for ids in self.encode(texts):
            known = self._with_first(ids)
            windows: list[tuple[list[int], int]] = []
            begin = 1
            while begin < len(known):
                end = min(len(known), begin + self._max_length - 1)
                windows.append((known[begin - 1 : end], 1))
                begin = end
            sums.append(sum(one.logprob for one in self._score(windows)))
        return sums

    def go_on(
        self,
        contexts: Sequence[str],
        params: Sequence[Mapping[str, Any]],
        advance: Advance | None = None,
    ) -> list[str]:
        """Return what the model says after each context.

        Args:
            contexts: Texts.
            params: Sampling parameters of each, as ``/generate`` has them.
            advance: Called with the progress.
        """
        rows = self.encode(contexts)
        texts: list[str] = []
        for begin in range(0, len(rows), BATCH):
            some, how = rows[begin : begin + BATCH], params[begin : begin + BATCH]
            room = [self._max_length - one.get("max_new_tokens", 0) for one in how]
            body = {
                "input_ids": [ids[-max(1, left) :] for ids, left in zip(some, room, strict=True)],
                "sampling_params": [dict(one) for one in how],
            }
            texts += [one["text"] for one in self._ask("/generate", body)]
            if advance is not None:
                advance(len(some))
        return texts

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
        """Return ids of context and continuation together, and where the continuation begins.

        Spaces at a context's end go to the continuation: there they join its first word.
        """
        moved: list[tuple[str, str]] = []
        for context, continuation in pairs:
            bare = context.rstrip(" ")
            moved.append(
                (bare, context[len(bare) :] + continuation) if bare else ("", continuation)
            )
        wholes = self.encode([context + continuation for context, continuation in moved])
        begins = self.encode([context for context, _ in moved])
        rows: list[tuple[list[int], int]] = []
        for (context, _), ids, before in zip(moved, wholes, begins, strict=True):
            known, begin = ids, len(before)
            if not context:
                known = self._with_first(ids)
                begin = 1
            excess = max(0, len(known) - self._max_length)
            rows.append((known[excess:], max(1, begin - excess)))
        return rows

    def _with_first(self, ids: list[int]) -> list[int]:
        """Return ids with one before them that the first is scored after."""
        if self._bos_id is None or ids[:1] == [self._bos_id]:
            return ids
        return [self._bos_id, *ids]

    def _score(self, rows: Sequence[tuple[list[int], int]]) -> list[Likelihood]:
        """Return how likely the ids from ``begin`` on are, of each row."""
        if not rows:
            return []
        body = {
            "input_ids": [ids for ids, _ in rows],
            "sampling_params": {"max_new_tokens": 0, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": [begin - 1 for _, begin in rows],
            "top_logprobs_num": 1,
        }
        found: list[Likelihood] = []
        for answer in self._ask("/generate", body):
            meta = answer["meta_info"]
            # The first place is that of the token before: nothing is scored there.
            chosen, tops = meta["input_token_logprobs"][1:], meta["input_top_logprobs"][1:]
            likeliest = [top[0][1] for top in tops]
            is_greedy = all(one[1] == best for one, best in zip(chosen, likeliest, strict=True))
            found.append(Likelihood(sum(one[0] for one in chosen), is_greedy))
        return found


def to_params(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return sampling parameters of what an evaluation calls its own.

    Raises:
        ConfigError: It asks for what would be left out.
    """
    known = {
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repetition_penalty",
        "seed": "sampling_seed",
    }
    lengths = ("max_gen_toks", "max_new_tokens", "max_tokens")
    silent = {"do_sample", "until", *lengths}
    params: dict[str, Any] = {"temperature": 0.0}
    for name, value in asked.items():
        if name in known:
            params[known[name]] = value
        elif name not in silent:
            raise ConfigError(
                f"The task's generation_kwargs have {name!r}, which is not known here.",
                remedy=f"Known: {', '.join(sorted({*known, *silent}))}.",
            )
    if asked.get("do_sample") is False:
        params["temperature"] = 0.0
    length = next((asked[name] for name in lengths if name in asked), 256)
    params["max_new_tokens"] = length
    until = asked.get("until")
    if until:
        params["stop"] = [until] if isinstance(until, str) else [one for one in until if one]
    return params
