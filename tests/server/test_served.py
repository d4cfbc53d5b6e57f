"""How tests and trials that start a server wait for answers: as long as it makes progress."""

import pytest

from headstock.config.schema import ServerSettings
from tests.e2e import served as library
from tests.server.conftest import Served

SETTINGS = ServerSettings(port=0, drain_timeout_s=1.0)


class Process:
    """Stands for the server's process; what waits for it ends when it is killed."""

    def __init__(self, server):
        self.server = server
        self.is_killed = False

    def kill(self):
        self.is_killed = True
        vars(self.server.engine).pop("step", None)
        self.server.call(self.server.frontdoor.abort_all)


def asking(server):
    """Return the library's view of a server that runs in this process."""
    served = object.__new__(library.Served)
    served.url, served.process, served._lines = server.url, Process(server), []
    return served


def test_an_answer_is_waited_for_as_long_as_steps_are_computed(monkeypatch):
    monkeypatch.setattr(library, "STUCK_S", 2.0)
    with Served(engine={"step_s": 0.05}, settings=SETTINGS) as server:
        served = asking(server)
        answer = served.post("/generate", text="ab", sampling_params={"max_new_tokens": 100})
        assert answer.json()["meta_info"]["completion_tokens"] == 100
        assert answer.json()["meta_info"]["e2e_latency"] > 2.0
        assert not served.process.is_killed


def test_a_server_without_a_step_is_given_up(monkeypatch):
    monkeypatch.setattr(library, "STUCK_S", 1.0)
    with Served(engine={"step_s": 0.05}, settings=SETTINGS) as server:
        served = asking(server)
        server.engine.step = list  # it draws nothing
        with pytest.raises(TimeoutError, match="no step in 1 s"):
            served.post("/generate", text="ab", sampling_params={"max_new_tokens": 4})
        assert served.process.is_killed
