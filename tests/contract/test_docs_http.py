"""The HTTP reference names every route, error code and metric that there is, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Route

from headstock.config.schema import ServeSettings
from headstock.observe.metrics import Metrics
from headstock.scheduler.counters import Counters
from headstock.server.errors import status_of
from headstock.server.frontdoor import Frontdoor
from headstock.server.http import routes_page
from headstock.server.http.app import create_app
from headstock.server.model_card import ModelCard
from headstock.server.prompter import Prompter
from headstock.text.parsers import CALL_FORMATS, REASONING_FORMATS
from headstock.text.parsers.formats import ALIASES, find_format
from headstock.wire.messages import FromEngine, State, ToEngine

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "headstock"
PAGE = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
CODE = re.compile(r'code="([a-z_]+)"')
ROOMS = ("server", "text", "scheduler", "requests", "structured", "engine")


class Nobody:
    """A link without an engine."""

    unheard_s = 0.0

    def send(self, message: ToEngine) -> None:
        raise AssertionError("nothing is asked here")

    async def receive(self) -> list[FromEngine]:
        return []

    def close(self) -> None:
        pass


@pytest.fixture
def app() -> FastAPI:
    settings = ServeSettings()
    metrics = Metrics("toy", lambda: None)
    card = ModelCard(name="toy", model_path="/toy", max_length=8, vocab_size=8, eos_ids=[])
    door = Frontdoor(Nobody(), card, Prompter(None, None))
    return create_app(door, settings, metrics, routers={"page": routes_page.make_router})


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.split(f"## {title}\n", 1)[1], flags=re.MULTILINE)[0]


def flat(routes: Iterable[Any]) -> Iterator[Route]:
    """Yield routes, those of included routers too, which newer versions of FastAPI keep apart."""
    for route in routes:
        if isinstance(route, Route):
            yield route
        else:
            yield from flat(route.original_router.routes)


def test_every_route_is_documented_and_no_other(app: FastAPI) -> None:
    served: set[str] = set()
    for route in flat(app.routes):
        path = route.path.replace(":path", "")
        served |= {f"{method} {path}" for method in (route.methods or set()) - {"HEAD"}}
    documented = set(
        re.findall(r"`((?:GET|POST|PUT|DELETE) /[^`]*)`", section("Routes") + section("Errors"))
    )
    assert documented == served


def test_routes_without_a_key_are_those_that_the_page_says(app: FastAPI) -> None:
    from headstock.server.http.gate import KEYLESS_PATHS

    rows = [line for line in section("Routes").splitlines() if line.endswith("| no |")]
    page = {path for path in KEYLESS_PATHS if path.startswith("/page/")}
    named = set(re.findall(r"`GET (/[^`]*)`", "".join(rows)))
    assert named == (KEYLESS_PATHS - page) | {"/page/{name}"}


def test_every_error_code_is_documented_with_its_status() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (.+?) \|", section("Errors"), re.MULTILINE)
    documented = {
        code: {int(status) for status in statuses.split(",")}
        for statuses, codes in rows
        for code in re.findall(r"`([a-z_]+)`", codes)
    }
    sources = [path.read_text() for room in ROOMS for path in (CORE / room).rglob("*.py")]
    used = {code for source in sources for code in CODE.findall(source)}
    assert used - {"aborted"} <= set(documented)
    for code, statuses in documented.items():
        assert code == "headers_too_large" or status_of(code) in statuses, code


def test_every_metric_is_documented_and_no_other() -> None:
    totals = {**asdict(Counters()), "evicted_pages": 0}
    state = State(
        steps=0, running=0, waiting=0, free_pages=1, cached_pages=0, total_pages=1, totals=totals
    )
    metrics = Metrics("toy", lambda: state)
    metrics.refused("queue_full")
    metrics.ended("stop", 2, 1.0, 1.0)
    types = re.findall(r"^# TYPE (\w+) (\w+)", metrics.render().decode(), re.MULTILINE)
    exported = {name for name, _ in types if not name.endswith("_created")}
    assert set(re.findall(r"`(headstock_\w+)(?:\{\w+\})?`", section("Metrics"))) == exported


def test_the_fields_of_bodies_are_documented() -> None:
    from headstock.server.protocols import openai_bodies as bodies
    from headstock.server.protocols.openai_calls import _CHAT_REFUSED

    refused = {*_CHAT_REFUSED, "suffix", "best_of", "tool_choice"}
    fields = {*bodies.ChatBody.__struct_fields__, *bodies.CompletionBody.__struct_fields__}
    silent = {"model", "user", "parallel_tool_calls"}
    table = section("Chats and completions")
    for field in sorted(fields - refused - silent):
        assert f"`{field}`" in table or f"`{field}." in table, field


def test_every_format_of_calls_and_thoughts_and_its_names_are_documented() -> None:
    page = (ROOT / "docs" / "structured-outputs.md").read_text(encoding="utf-8")
    tables = re.split(r"^\| `--(?:tool-call|reasoning)-parser`.*\n", page, flags=re.MULTILINE)[1:]
    every: list[tuple[Any, ...]] = [CALL_FORMATS, REASONING_FORMATS]
    for table, formats in zip(tables, every, strict=True):
        rows = re.findall(r"^\| (`.+?) \| .+ \| (.*?) ?\|$", table, re.MULTILINE)
        listed = {name for names, _ in rows for name in re.findall(r"`([^`]+)`", names)}
        assert listed == {known.name for known in formats}
        for names, others in rows:
            stands_for = re.findall(r"`([^`]+)`", names)
            for other in re.findall(r"`([^`]+)`", others):
                found = find_format(other, formats)
                assert found is not None, other
                assert found.name in stands_for, other
    assert all(f"`{name}`" in page for name in ALIASES)
