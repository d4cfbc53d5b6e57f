"""The engine process dies; the server does not."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from headstock.config.schema import ServerSettings
from headstock.server.supervisor import Supervisor
from headstock.wire.messages import AskState, Crashed, Rested, Started
from tests.server.conftest import Served

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]


def command(*fault):
    def make(address):
        return [
            sys.executable, "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
            "from tests.server.echo_process import main; main(*sys.argv[1:])",
            address, str(os.getpid()), *fault,
        ]  # fmt: skip

    return make


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


async def until(check, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it does not come true"
        await asyncio.sleep(0.01)


class SupervisedServer(Served):
    """A server whose engine is a process."""

    def make_link(self):
        self.supervisor = Supervisor(command(), restart_limit=5)
        self.supervisor.start()
        return self.supervisor

    async def end_link(self):
        await self.supervisor.stop()


@pytest.fixture
def supervised():
    settings = ServerSettings(port=0, drain_timeout_s=5.0)
    with SupervisedServer(settings=settings) as server:
        yield server


def stream(server, lines):
    body = {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": 400}}
    with (
        contextlib.suppress(httpx.TransportError),
        httpx.stream("POST", server.url + "/generate", json=body, timeout=20) as answer,
    ):
        lines += [line for line in answer.iter_lines() if line]


def last_event(lines):
    assert lines[-1] == "data: [DONE]"
    return json.loads(lines[-2].removeprefix("data: "))


def test_streams_go_on_through_a_killed_engine_and_nothing_is_emitted_twice(supervised):
    streams = [[] for _ in range(8)]
    threads = [threading.Thread(target=stream, args=(supervised, lines)) for lines in streams]
    for thread in threads:
        thread.start()
    while supervised.call(lambda: supervised.frontdoor.num_live) < 8:
        time.sleep(0.01)
    time.sleep(0.3)
    pid = supervised.supervisor.pid
    os.kill(pid, signal.SIGKILL)
    died = time.monotonic()
    while supervised.get("/ready").status_code != 503:
        assert time.monotonic() - died < 1
    refused = supervised.post("/generate", {"text": "x"})
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    for thread in threads:
        thread.join(40)
        assert not thread.is_alive()
    for lines in streams:
        event = last_event(lines)
        assert event["output_ids"] == event["output_ids"][:1] * 400
        assert event["meta_info"]["finish_reason"] == {"type": "length", "length": 400}
        counts = [
            json.loads(line.removeprefix("data: "))["meta_info"]["completion_tokens"]
            for line in lines[:-1]
            if line.startswith("data: ")
        ]
        assert counts == sorted(counts)
        assert not any('"error"' in line for line in lines)
    assert supervised.post("/generate", {"text": "ab"}).json()["text"].startswith("abab")
    assert not is_alive(pid)


def test_what_comes_around_a_kill_is_served_whole_or_refused_at_once(supervised, monkeypatch):
    """Never taken and left to hang, before, at and after the kill of the engine."""
    monkeypatch.setattr("headstock.server.supervisor.FIRST_BACKOFF_S", 1.5)
    seen = []
    client = httpx.Client(base_url=supervised.url, timeout=30)

    def ask(delay_s):
        time.sleep(delay_s)
        begun = time.monotonic()
        body = {"text": "ab", "sampling_params": {"max_new_tokens": 6}}
        answer = client.post("/generate", json=body)
        seen.append((answer, time.monotonic() - begun))

    threads = [threading.Thread(target=ask, args=(0.01 * index,)) for index in range(30)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    os.kill(supervised.supervisor.pid, signal.SIGKILL)
    while supervised.get("/ready").status_code == 200:
        time.sleep(0.001)
    threads += [threading.Thread(target=ask, args=(0,)) for _ in range(10)]
    for thread in threads[30:]:
        thread.start()
    for thread in threads:
        thread.join(40)
    served = [answer for answer, _ in seen if answer.status_code == 200]
    refused = [(answer, took_s) for answer, took_s in seen if answer.status_code != 200]
    assert len(served) + len(refused) == 40
    assert served
    assert refused
    assert {answer.json()["text"] for answer in served} == {"ababab"}
    for answer, took_s in refused:
        assert answer.json()["error"]["code"] == "engine_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
        assert took_s < 5
    client.close()
    assert supervised.call(lambda: supervised.frontdoor.num_live) == 0


class PoisonedServer(SupervisedServer):
    """A server whose engine dies of one kind of request."""

    def make_link(self):
        self.supervisor = Supervisor(command("poison"), restart_limit=20)
        self.supervisor.start()
        return self.supervisor


def test_only_the_request_that_kills_the_engine_ends_with_an_error(monkeypatch):
    monkeypatch.setattr("headstock.server.supervisor.MAX_BACKOFF_S", 0.2)
    with PoisonedServer(settings=ServerSettings(port=0, drain_timeout_s=5.0)) as server:
        answers = {}

        def generate(index):
            ids = [77] if index == 3 else [60 + index]
            body = {"input_ids": ids, "sampling_params": {"max_new_tokens": 200}}
            answers[index] = httpx.post(server.url + "/generate", json=body, timeout=120)

        threads = [threading.Thread(target=generate, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert answers.pop(3).status_code == 500
        for index, answer in answers.items():
            assert answer.status_code == 200, answer.text
            assert answer.json()["output_ids"] == [60 + index] * 200


def test_an_engine_that_does_not_come_back_ends_its_streams_with_an_error(monkeypatch):
    monkeypatch.setattr("headstock.server.replay.RESUME_LIMIT_S", 0.5)
    monkeypatch.setattr("headstock.server.supervisor.FIRST_BACKOFF_S", 5.0)
    with SupervisedServer(settings=ServerSettings(port=0, drain_timeout_s=5.0)) as server:
        lines = []
        thread = threading.Thread(target=stream, args=(server, lines))
        thread.start()
        while not server.call(lambda: server.frontdoor.num_live):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(server.supervisor.pid, signal.SIGKILL)
        thread.join(10)
        assert lines[-1] == "data: [DONE]"
        assert '"code":"engine_lost"' in lines[-2]
        assert lines[-2].count("Try again") == 1


@pytest.mark.parametrize("tags", [["kv_cache", "weights"], ["weights"]])
def test_streams_go_on_after_the_engine_was_ended_to_sleep(supervised, tags):
    lines = []
    thread = threading.Thread(target=stream, args=(supervised, lines))
    thread.start()
    while len(lines) < 5:
        time.sleep(0.01)
    pid = supervised.supervisor.pid
    if len(tags) == 1:
        supervised.post("/release_memory_occupation", {"tags": ["kv_cache"]})
    slept = supervised.post("/release_memory_occupation", {"tags": tags})
    assert slept.status_code == 200, slept.text
    assert not is_alive(pid)
    assert supervised.supervisor.pid is None
    count = len(lines)
    time.sleep(0.3)
    assert len(lines) == count
    assert supervised.get("/server_info").json()["engine"]["phase"] == "resting"
    assert supervised.post("/wake_up").status_code == 200
    thread.join(40)
    event = last_event(lines)
    assert event["output_ids"] == event["output_ids"][:1] * 400
    live = supervised.call(lambda: list(supervised.frontdoor._delivery.live.values()))
    assert not live


def test_the_server_ends_while_it_sleeps():
    with SupervisedServer() as server:
        assert server.post("/sleep").status_code == 200
    assert server.supervisor.ended.is_set()


def test_the_engine_ends_with_the_server():
    with SupervisedServer() as server:
        pid = server.supervisor.pid
        assert is_alive(pid)
    assert not is_alive(pid)


def supervise(check, fault="", **options):
    """Run ``check(supervisor)`` over an engine process with a fault."""

    async def run():
        supervisor = Supervisor(command(fault), **{"restart_limit": 2, **options})
        supervisor.start()
        try:
            await check(supervisor)
        finally:
            await supervisor.stop()

    asyncio.run(run())


async def next_of(supervisor, kind):
    while True:
        for message in await asyncio.wait_for(supervisor.receive(), 20):
            if isinstance(message, kind):
                return message


@pytest.mark.parametrize(
    ("fault", "words"), [("config", "No such model."), ("start", "exited with status 4")]
)
def test_an_engine_that_cannot_start_is_given_up_with_its_reason(fault, words):
    async def check(supervisor):
        crashed = await next_of(supervisor, Crashed)
        assert words in crashed.problem
        assert crashed.is_config
        await asyncio.wait_for(supervisor.ended.wait(), 5)
        assert supervisor.gave_up == crashed

    supervise(check, fault)


def test_an_engine_that_dies_too_often_is_given_up():
    async def check(supervisor):
        for is_last in (False, True):
            await next_of(supervisor, Started)
            os.kill(supervisor.pid, signal.SIGKILL)
            crashed = await next_of(supervisor, Crashed)
            assert crashed.is_config is is_last
        assert "died 2 times" in crashed.problem

    supervise(check, restart_limit=1)


def test_an_engine_that_says_nothing_is_killed_and_started_again():
    async def check(supervisor):
        await next_of(supervisor, Started)
        assert "said nothing" in (await next_of(supervisor, Crashed)).problem
        await next_of(supervisor, Started)

    supervise(check, "mute", hang_limit_s=1.0)


def test_an_engine_that_speaks_and_does_not_hear_is_killed_and_started_again():
    async def check(supervisor):
        await next_of(supervisor, Started)
        supervisor.send(AskState(call=1))
        crashed = await next_of(supervisor, Crashed)
        assert "nothing that was sent reached it" in crashed.problem
        await next_of(supervisor, Started)

    supervise(check, "deaf", wedge_limit_s=1.0)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
def test_a_start_that_fails_for_want_of_something_is_tried_again(monkeypatch, caplog, code):
    real = asyncio.create_subprocess_exec
    tries = []

    async def start(*args, **more):
        tries.append(args)
        if len(tries) <= 2:
            raise OSError(code, os.strerror(code))
        return await real(*args, **more)

    async def check(supervisor):
        crashed = await next_of(supervisor, Crashed)
        assert "cannot be started now" in crashed.problem
        assert not crashed.is_config
        await next_of(supervisor, Started)
        assert len(tries) == 3

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    supervise(check, restart_limit=0)
    assert sum("Trying again" in record.getMessage() for record in caplog.records) == 2


def test_an_engine_that_dies_while_no_file_can_be_opened_comes_back_when_one_can():
    program = (
        f"import sys, asyncio, os, resource, signal; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.server.test_supervisor import *\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "async def main():\n"
        "    supervisor = Supervisor(command(), restart_limit=1)\n"
        "    supervisor.start()\n"
        "    await next_of(supervisor, Started)\n"
        "    held = []\n"
        "    try:\n"
        "        while True: held.append(os.open('/dev/null', os.O_RDONLY))\n"
        "    except OSError: pass\n"
        "    os.kill(supervisor.pid, signal.SIGKILL)\n"
        "    await next_of(supervisor, Crashed)\n"
        "    told = await next_of(supervisor, Crashed)\n"
        "    assert 'cannot be started now' in told.problem, told\n"
        "    for descriptor in held: os.close(descriptor)\n"
        "    await next_of(supervisor, Started)\n"
        "    await supervisor.stop()\n"
        "    print('back')\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.endswith("back\n"), done.stderr


def test_what_the_engine_started_dies_with_it(capfd):
    async def check(supervisor):
        await next_of(supervisor, Started)
        child = int(capfd.readouterr().out.split()[1])
        assert is_alive(child)
        os.kill(supervisor.pid, signal.SIGKILL)
        await until(lambda: not is_alive(child))

    supervise(check, "child")


def test_progress_is_told_as_it_comes():
    told = []

    async def check(supervisor):
        await next_of(supervisor, Started)
        assert [loading.phase for loading in told] == ["weights"]

    supervise(check, on_progress=told.append)


def test_an_engine_does_not_outlive_a_killed_server():
    program = (
        f"import sys, asyncio; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.server.test_supervisor import command, next_of, Started, Supervisor\n"
        "async def main():\n"
        "    supervisor = Supervisor(command(), restart_limit=0)\n"
        "    supervisor.start()\n"
        "    await next_of(supervisor, Started)\n"
        "    print(supervisor.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )

    async def check():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout
        pid = int(await process.stdout.readline())
        assert is_alive(pid)
        process.kill()
        await process.wait()
        await until(lambda: not is_alive(pid), 5)

    asyncio.run(check())


def test_an_engine_that_does_not_wake_rests_again_and_says_why():
    async def check(supervisor):
        await next_of(supervisor, Started)
        supervisor.rest()
        assert not (await next_of(supervisor, Rested)).problem
        supervisor._command = command("config")
        supervisor.rouse()
        assert (await next_of(supervisor, Rested)).problem == "No such model."
        assert supervisor.gave_up is None
        supervisor._command = command()
        supervisor.rouse()
        await next_of(supervisor, Started)

    supervise(check)


def test_an_engine_that_lingers_is_killed_before_the_server_sleeps(monkeypatch):
    monkeypatch.setattr("headstock.server.supervisor._EXIT_GRACE_S", 0.5)

    async def check(supervisor):
        await next_of(supervisor, Started)
        pid = supervisor.pid
        os.kill(pid, signal.SIGSTOP)  # it takes no SIGTERM
        supervisor.rest()
        await next_of(supervisor, Rested)
        assert not is_alive(pid)

    supervise(check)


def test_an_engine_that_is_woken_while_it_ends_is_followed_by_another():
    async def check(supervisor):
        await next_of(supervisor, Started)
        supervisor.rest()
        supervisor.rouse()
        await next_of(supervisor, Rested)
        await next_of(supervisor, Started)
        assert not supervisor._restarts

    supervise(check)
