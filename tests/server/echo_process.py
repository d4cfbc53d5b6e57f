"""An engine process without a model: ``echo_process.py ADDRESS PARENT_PID [WAY TO FAIL]``."""

import os
import subprocess
import sys
import time

from headstock.server.orphans import die_with_parent
from headstock.wire.messages import Crashed, Loading, Started
from headstock.wire.transport import ZmqMailbox
from tests.server.fakes import EchoCore

STEP_S = 0.02
POISON = 77


def main(address, parent_pid, fault=""):
    die_with_parent(int(parent_pid))
    mailbox = ZmqMailbox(address)
    mailbox.send([Loading(phase="weights", done=1, total=2, unit="bytes")])
    if fault == "config":
        mailbox.send([Crashed(problem="No such model.", remedy="Name another.", is_config=True)])
        mailbox.close()
        sys.exit(3)
    if fault == "start":
        sys.exit(4)
    if fault == "child":
        child = subprocess.Popen(["sleep", "600"])
        sys.stdout.write(f"child {child.pid}\n")
        sys.stdout.flush()
    core = EchoCore()
    mailbox.send([Started(limits=core.limits), core.state()])
    begun = time.monotonic()
    while True:
        answers = []
        for message in mailbox.receive(STEP_S) if fault != "deaf" else []:
            answers += core.take(message)
        time.sleep(STEP_S if core.running or fault == "deaf" else 0)
        if fault == "poison" and any(POISON in r.submit.prompt_ids for r in core.running.values()):
            os._exit(9)
        answers += core.step() if core.running else []
        if fault == "mute" and time.monotonic() - begun > 0.5:
            time.sleep(600)
        mailbox.send([*answers, core.state()])


if __name__ == "__main__":
    main(*sys.argv[1:])
