"""A server of its own process over the echo engine: ``echo_server.py STEP_S DRAIN_S [STATE]``."""

import sys

from headstock.config.schema import ServerSettings
from headstock.server.http.event_loop import run
from tests.server.conftest import Served


def main(step_s, drain_s, state_dir=None):
    settings = ServerSettings(port=0, drain_timeout_s=float(drain_s), state_dir=state_dir)
    server = Served(engine={"step_s": float(step_s)}, settings=settings)
    server.on_url = lambda url: (sys.stdout.write(url + "\n"), sys.stdout.flush())
    run(server.main())
