"""A server whose standard error cannot be written to starts, serves, and ends as any other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from tests.e2e.served import wait_for
from tests.e2e.tiny import DUMMY

pytestmark = pytest.mark.chaos
ASK = {"input_ids": [3, 4], "sampling_params": {"max_new_tokens": 2, "ignore_eos": True}}


@pytest.mark.parametrize("why", ["the disk is full", "its reader is gone"])
def test_a_log_that_cannot_be_written_stops_nothing(folder: str, why: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    if why == "the disk is full":
        error = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, error = os.pipe()
        os.close(reader)
    command = [sys.executable, "-m", "headstock.cli", "serve", folder, *DUMMY]
    process = subprocess.Popen([*command, "--port", str(port)], stderr=error)
    os.close(error)
    try:
        url = f"http://127.0.0.1:{port}"

        def is_ready() -> bool:
            assert process.poll() is None, "the server ended"
            try:
                return httpx.get(f"{url}/ready").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(is_ready, 90, "readiness")
        answer = httpx.post(f"{url}/generate", json=ASK, timeout=60)
        assert len(answer.json()["output_ids"]) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
