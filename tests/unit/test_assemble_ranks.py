"""How many ranks there may be, before any is started."""

from __future__ import annotations

import pytest

from headstock.assemble import backend, engine_loop, ranked_loop
from headstock.config import EngineSettings, settings_from_call
from headstock.errors import ConfigError

ASKED = {"model": "none", "backend": "reference"}


def test_more_ranks_than_cores_are_refused_before_one_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(*_: object) -> None:
        raise AssertionError("ranks are started")

    monkeypatch.setattr(backend, "_available_cores", lambda: 2)
    monkeypatch.setattr(ranked_loop, "spawn_ranks", start)
    loaded = settings_from_call(
        EngineSettings, {"model": "none", "backend": "reference", "tp_size": 64}
    )
    with pytest.raises(ConfigError, match="tp_size is 64; this machine has 2 cores") as error:
        engine_loop.build_engine_loop(loaded, None, None, lambda _: None)  # type: ignore[arg-type]
    assert error.value.remedy == "Lower --tp-size."


def test_as_many_ranks_as_cores_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_available_cores", lambda: 8)
    loaded = settings_from_call(
        EngineSettings, {"model": "none", "backend": "reference", "tp_size": 8}
    )
    backend.check_ranks(loaded.settings)


@pytest.mark.parametrize(("size", "wanted"), [(1, []), (2, [(1, 2)])])
def test_a_rank_takes_its_cores_before_its_device_is_opened(
    monkeypatch: pytest.MonkeyPatch, size: int, wanted: list[tuple[int, int]]
) -> None:
    taken: list[tuple[int, int]] = []

    class OpeningError(Exception):
        """The device is opened."""

    def open_device(*_: object) -> None:
        raise OpeningError

    monkeypatch.setattr(backend, "take_share", lambda *share: taken.append(share))
    monkeypatch.setattr(backend.Chosen, "open_device", open_device)
    loaded = settings_from_call(EngineSettings, {**ASKED, "tp_size": size})
    with pytest.raises(OpeningError):
        backend.open_backend(loaded, rank=size - 1, size=size)
    assert taken == wanted
