"""How the tokens of one request are chosen: the one type that every route ends in.

Fields and defaults follow SGLang's native API, so that its clients port unchanged. Ranges are in
the types; :func:`SamplingParams.check` adds what types cannot say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import msgspec

from headstock.errors import RequestError

TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer that the wire can carry; its reader checks its true range."""
Priority = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
"""Larger is served first, where the policy looks at it."""
StopString = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]

NO_NAMES: Mapping[str, str] = {}
MAX_STOPS = 32
MAX_STOP_PATTERNS = 8
MAX_LOGIT_BIAS = 1024
MAX_COMPLETIONS = 64
# Penalty and bias are bounded so that no logit leaves float32, whatever else is set.
GREEDY_BELOW = 1e-6
"""Temperatures under this are greedy. Dimensionless."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to choose the next token, and when to stop."""

    max_new_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = 128
    """None: as many as the context holds."""
    min_new_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 1.0
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """0: the likeliest token."""
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] = -1
    """-1 and 0: every token."""
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(ge=1e-6, le=2)] = 1.0
    stop: Annotated[list[StopString], msgspec.Meta(max_length=MAX_STOPS)] = []
    stop_token_ids: Annotated[list[TokenId], msgspec.Meta(max_length=MAX_STOPS)] = []
    stop_regex: Annotated[list[StopString], msgspec.Meta(max_length=MAX_STOP_PATTERNS)] = []
    """In RE2's syntax."""
    ignore_eos: bool = False
    no_stop_trim: bool = False
    """Keep the text that stopped the request."""
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_COMPLETIONS)] = 1
    logit_bias: dict[TokenId, Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]] = {}
    """Token id to what is added to its logit before sampling."""
    sampling_seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    """None: the API process assigns one, so that a replay draws the same numbers."""

    @property
    def is_greedy(self) -> bool:
        """Whether the highest logit wins, whatever the seed."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1 or self.top_p == 0

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the logits."""
        return (
            self.frequency_penalty != 0
            or self.presence_penalty != 0
            or self.repetition_penalty != 1
        )

    def check(self, vocab_size: int, names: Mapping[str, str] = NO_NAMES) -> None:
        """Refuse combinations that the field types let through.

        Args:
            vocab_size: Number of token ids of the model.
            names: What the caller calls a field, where that differs.

        Raises:
            RequestError: Naming the field, its value and what is allowed.
        """
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            low, high = (names.get(name, name) for name in ("min_new_tokens", "max_new_tokens"))
            raise RequestError(
                f"{low} is {self.min_new_tokens}, above {high}, {self.max_new_tokens}.",
                remedy=f"Lower {low} or raise {high}.",
                field=low,
            )
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias has {len(self.logit_bias)} entries; at most {MAX_LOGIT_BIAS}.",
                remedy="Bias fewer tokens.",
                field="logit_bias",
            )
        if not math.isfinite(self.temperature + self.top_p + self.min_p + self.repetition_penalty):
            _check_finite("temperature", self.temperature)
            _check_finite("top_p", self.top_p)
            _check_finite("min_p", self.min_p)
            _check_finite("repetition_penalty", self.repetition_penalty)
        for token_id, bias in self.logit_bias.items():
            _check_finite("logit_bias", bias)
            check_token_id("logit_bias", token_id, vocab_size)
        for token_id in self.stop_token_ids:
            check_token_id("stop_token_ids", token_id, vocab_size)


def check_token_id(field: str, token_id: int, vocab_size: int) -> None:
    """Refuse an id that the model does not have.

    Raises:
        RequestError: ``token_id`` is not in [0, ``vocab_size``).
    """
    if not 0 <= token_id < vocab_size:
        raise RequestError(
            f"{field} names token {token_id}; this model has ids 0 to {vocab_size - 1}.",
            remedy="Use the served model's own tokenizer.",
            field=field,
        )


def _check_finite(field: str, value: float) -> None:
    if not math.isfinite(value):
        raise RequestError(f"{field} is {value}.", remedy="Give a finite number.", field=field)
