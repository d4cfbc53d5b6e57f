"""Routers of plugins are served beside our own; one that is wrong is logged, and others stay."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient

from headstock.assemble import api_plugins
from headstock.config.schema import ServeSettings
from headstock.observe.metrics import Metrics
from headstock.plugins.hooks import hookimpl
from headstock.plugins.loader import REFERENCE, discover
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.app import create_app
from headstock.server.model_card import ModelCard
from headstock.server.prompter import Prompter


class NoLink:
    """A link to no engine."""

    unheard_s = 0.0

    def send(self, message: Any) -> None:
        raise AssertionError(f"nothing is asked here, but {message}")

    async def receive(self) -> list[Any]:
        return []

    def close(self) -> None:
        pass


def router(*paths: str) -> APIRouter:
    made = APIRouter()
    for path in paths:
        made.add_api_route(path, lambda: {"path": "mine"}, methods=["GET"])
    return made


def fails(_: Any) -> APIRouter:
    raise ValueError("no such table")


def test_a_router_that_raises_or_clashes_is_passed_over_with_all_its_routes(caplog) -> None:
    settings, metrics = ServeSettings(), Metrics("toy", lambda: None)
    card = ModelCard(name="toy", model_path="/toy", max_length=8, vocab_size=8, eos_ids=[])
    door = Frontdoor(NoLink(), card, Prompter(None, None))
    makers: dict[str, Any] = {
        "broken": fails,
        "clash": lambda _: router("/mine/first", "/health"),
        "good": lambda _: router("/mine/second"),
    }
    with caplog.at_level(logging.WARNING):
        app = create_app(door, settings, metrics, routers=makers)
    assert "Router 'broken' of a plugin is passed over" in caplog.text
    assert "ValueError: no such table" in caplog.text
    assert "GET /health, which there is already" in caplog.text
    client = TestClient(app, base_url="http://127.0.0.1")
    assert client.get("/mine/second").json() == {"path": "mine"}
    assert client.get("/mine/first").status_code == 404
    assert client.get("/v1/models").status_code == 200


def test_a_router_that_does_not_import_is_passed_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Brought:
        HOOK_API = (2, 2)

        @staticmethod
        @hookimpl
        def headstock_register_routes(registry: Any) -> None:
            registry.add("absent", "no_such_module:make")

    def found(*, backend: str, disabled: Any) -> Any:
        assert backend == REFERENCE
        return discover(backend="brought", disabled=disabled, extra={"brought": Brought()})

    monkeypatch.setattr(api_plugins, "discover", found)
    with caplog.at_level(logging.WARNING):
        routers = api_plugins.load_api_plugins(()).load_routers()
    assert list(routers) == ["page"]
    assert "router 'absent' at no_such_module:make does not import" in caplog.text
