"""The API process is killed under full load: its streams go on in the next one, over a folder."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.served import Served, wait_for
from tests.e2e.test_chaos import OUTPUTS, QUEUED, RUNNING, Told, bodies, check, under_load
from tests.e2e.tiny import DUMMY

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


class Following:
    """A client that comes back to whichever server there is, until its stream is whole."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.told = Told()
        self.names: list[str] = []

    async def follow(self, servers: list[Served]) -> None:
        while not self.told.finish:
            try:
                await self.read_from(servers[-1])
            except httpx.TransportError:
                await asyncio.sleep(0.1)

    async def read_from(self, server: Served) -> None:
        headers = {"Last-Event-ID": self.names[-1]} if self.names else {}
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=120) as client,
            client.stream("POST", "/generate", json=self.body, headers=headers) as answer,
        ):
            if answer.status_code == 503:
                await asyncio.sleep(0.2)
                return
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    self.names.append(line[4:])
                elif line.startswith("data: {"):
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    self.told.events.append(event["output_ids"])
                    self.told.finish = event["meta_info"]["finish_reason"]


@pytest.mark.parametrize("num_kills", [1, 2])
def test_a_kill_of_the_api_process_under_full_load_loses_nothing(
    folder: str, tmp_path: Path, num_kills: int
) -> None:
    flags = [*DUMMY, "--cache-tokens", "32768", "--max-running-requests", str(RUNNING)]
    flags += ["--state-dir", str(tmp_path / "state")]
    servers = [Served(folder, *flags)]
    try:
        undisturbed = [told.ids for told in asyncio.run(under_load(servers[0]))]
        assert all(len(ids) == OUTPUTS for ids in undisturbed)
        clients = [Following(body) for body in bodies()]

        def num_begun(count: int) -> int:
            return sum(len(client.told.events) >= count for client in clients)

        async def trial() -> None:
            tasks = [asyncio.create_task(client.follow(servers)) for client in clients]
            for kill in range(1, num_kills + 1):
                while num_begun(3 * kill) < RUNNING // 2:
                    await asyncio.sleep(0.02)
                servers[-1].process.kill()
                servers[-1].process.wait()
                servers.append(await asyncio.to_thread(Served, folder, *flags))
            await asyncio.gather(*tasks)

        asyncio.run(trial())
        check([client.told for client in clients], undisturbed)
        for client in clients:
            numbers = [int(name.rpartition("/")[2]) for name in client.names]
            assert numbers == list(range(len(numbers)))
        assert len(clients) == RUNNING + QUEUED
        state = servers[-1].idle_state()
        assert state["free_pages"] + state["cached_pages"] == state["total_pages"]
        wait_for(lambda: "Going on with" in servers[1].log, 5, "a word on what goes on")
    finally:
        for server in servers:
            server.close()
