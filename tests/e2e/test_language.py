"""The language over a real model: what is shared, what is chosen, and one result everywhere."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import pydantic
import pytest

import headstock as hs
from headstock.frontend import ProgramState
from tests.e2e.served import Served

GREEDY = {"temperature": 0.0}
LONG = "You are a careful assistant who answers in one short sentence. " * 20


@pytest.fixture(scope="module")
def engine(model: str) -> Iterator[hs.Engine]:
    with hs.Runtime(model_path=model, max_model_len=2048, cache_tokens=16384) as engine:
        yield engine


@hs.function
def capital(s: ProgramState, country: str) -> None:
    s += hs.system("Answer with one word.")
    s += hs.user(f"What is the capital of {country}?")
    s += hs.assistant(hs.gen("city", max_tokens=8, stop=[".", "\n"]))


def test_an_engine_and_a_server_say_the_same(server: Served, engine: hs.Engine) -> None:
    openai = hs.OpenAI("default", base_url=server.url + "/v1")
    found = [
        capital.run(country="France", backend=backend, **GREEDY)["city"]
        for backend in (engine, server.url, openai)
    ]
    assert "Paris" in found[0]
    assert found == [found[0]] * 3


@pytest.mark.parametrize("country", ["France", "Italy"])
def test_select_finds_what_is_true(server: Served, country: str) -> None:
    @hs.function
    def program(s: ProgramState) -> None:
        s += f"The capital of {country} is"
        s += hs.select("city", [" Rome", " Paris", " Berlin"])

    state = program.run(backend=server.url)
    assert state["city"] == {"France": " Paris", "Italy": " Rome"}[country]


def test_scores_are_those_of_generate(server: Served) -> None:
    """The same choices, scored one by one by the native route."""
    choices = [" New York City", " Paris, the capital of France", " blue"]
    prefix = "The city of love is"

    @hs.function
    def program(s: ProgramState) -> None:
        s += prefix + hs.select("city", choices)

    scores = program.run(backend=server.url).get_meta_info("city")["normalized_prompt_logprobs"]
    begin = server.post("/tokenize", prompt=prefix).json()["count"]
    for choice, score in zip(choices, scores, strict=True):
        answer = server.post(
            "/generate",
            text=prefix + choice,
            sampling_params={"max_new_tokens": 1},
            return_logprob=True,
            logprob_start_len=begin - 1,
        ).json()
        row = [item[0] for item in answer["meta_info"]["input_token_logprobs"]][1:]
        assert score == pytest.approx(sum(row) / len(row), abs=0.02)


def test_single_tokens_score_as_longer_ones_do(server: Served) -> None:
    """One token each is one request; with a longer choice beside them each is a prompt."""

    def scores(choices: list[str]) -> list[float]:
        @hs.function
        def program(s: ProgramState) -> None:
            s += "The capital of France is" + hs.select("city", choices)

        meta = program.run(backend=server.url).get_meta_info("city")
        return meta["normalized_prompt_logprobs"][:2]

    one = scores([" Rome", " Paris"])
    assert one == pytest.approx(scores([" Rome", " Paris", " the city of light"]), abs=0.02)


def test_a_fork_costs_no_prefill(server: Served) -> None:
    """What forks have in common is computed once, up to the last page."""
    server.post("/flush_cache")

    @hs.function
    def program(s: ProgramState) -> None:
        s += hs.user(LONG)
        s += hs.assistant_begin()
        forks = s.fork(4)
        for index, fork in enumerate(forks):
            fork += f"{index}." + hs.gen("x", max_tokens=4)
        forks.join()

    trace = program.run(backend=server.url, **GREEDY).trace()
    rows = sorted(
        (step for step in trace.steps if step.kind == "gen"), key=lambda s: s.cached_tokens
    )
    assert rows[0].cached_tokens < 64
    page = server.get("/server_info").json()["page_size"]
    for row in rows[1:]:
        assert row.cached_tokens >= row.prompt_tokens - page - 4


def test_a_later_step_finds_what_earlier_ones_computed(server: Served) -> None:
    server.post("/flush_cache")

    @hs.function
    def program(s: ProgramState) -> None:
        s += LONG + hs.gen("x", max_tokens=40, ignore_eos=True)
        s += " And so " + hs.gen("y", max_tokens=4)

    state = program.run(backend=server.url, **GREEDY)
    page = server.get("/server_info").json()["page_size"]
    first, second = (state.get_meta_info(name) for name in "xy")
    known = first["prompt_tokens"] + first["completion_tokens"]
    assert second["cached_tokens"] >= known - 2 * page


def test_a_conversation_with_python_in_between(engine: hs.Engine) -> None:
    @hs.function
    def program(s: ProgramState) -> str:
        s += hs.user("Name a primary colour. One word.")
        s += hs.assistant(hs.gen("colour", max_tokens=6))
        s += hs.user(f"Is {s['colour']} a colour?")
        s += hs.assistant(hs.select("answer", ["Yes", "No"]))
        return s["answer"]

    assert program.run(backend=engine, **GREEDY).ret_value in ("Yes", "No")


@dataclasses.dataclass
class Flag:
    is_old: bool
    colour: Literal["red", "blue"]


class FlagStruct(msgspec.Struct):
    is_old: bool
    colour: Literal["red", "blue"]


class FlagModel(pydantic.BaseModel):
    is_old: bool
    colour: Literal["red", "blue"]


@pytest.mark.parametrize(
    "kind",
    [int, float, bool, Literal["red", 3], re.compile("[a-c]{2}"), Flag, FlagStruct, FlagModel],
)
def test_a_result_is_of_its_type(server: Served, kind: Any) -> None:
    """The model is held to it: text that it would never say is read back as a value."""

    @hs.function
    def program(s: ProgramState) -> None:
        s += hs.user("Tell me about flags.")
        s += hs.assistant(hs.gen("x", type=kind, max_tokens=64 if kind not in (int, float) else 4))

    value = program.run(backend=server.url, **GREEDY)["x"]
    if kind in (int, float, bool, Flag, FlagStruct, FlagModel):
        assert type(value) is kind
    elif isinstance(kind, re.Pattern):
        assert kind.fullmatch(value)
    else:
        assert value in ("red", 3)
    if kind in (Flag, FlagStruct, FlagModel):
        assert value.colour in ("red", "blue")


def test_a_batch_on_an_engine(engine: hs.Engine) -> None:
    states = capital.run_batch(
        [{"country": "France"}, {"country": "Italy"}] * 4, backend=engine, **GREEDY
    )
    assert all("Paris" in state["city"] for state in states[::2])
    assert all("Rome" in state["city"] for state in states[1::2])
