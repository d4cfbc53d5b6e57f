"""What the engine process does: builds the engine, says so, and serves until it is stopped."""

from __future__ import annotations

import logging
import signal
from types import FrameType

from headstock.assemble.engine_loop import build_engine_loop
from headstock.assemble.memory_hygiene import give_back_heap, give_back_memory, spare_what_lasts
from headstock.assemble.model_files import find_model
from headstock.assemble.settings_text import decode_settings
from headstock.engine.guard import crash_report
from headstock.errors import HeadstockError
from headstock.observe.log import set_up_logging
from headstock.observe.watchdog import Watchdog
from headstock.server.orphans import die_with_parent
from headstock.wire.messages import Loading
from headstock.wire.transport import ZmqMailbox


def run(address: str, parent: int, text: str) -> None:
    """Build the engine, say so, and serve until it is stopped.

    Args:
        address: Of the API process's socket.
        parent: Id of that process, without which this one ends.
        text: Settings, as the other process encoded them.

    Raises:
        SystemExit: The engine cannot start; the other process knows why.
    """
    die_with_parent(parent)
    loaded = decode_settings(text)
    log = loaded.settings.log
    set_up_logging(log.log_level, log.log_format)
    mailbox = ZmqMailbox(address)

    def report(progress: Loading) -> None:
        mailbox.send([progress])

    try:
        files = find_model(loaded.settings)
        loop = build_engine_loop(loaded, files, mailbox, report)
    except Exception as error:
        # The process boundary. What we raise on purpose says all in its words, which the API
        # process tells the operator; of anything else the traceback is what there is.
        is_ours = isinstance(error, HeadstockError)
        level = logging.DEBUG if is_ours else logging.ERROR
        logging.getLogger("headstock.engine").log(level, "The engine cannot start", exc_info=True)
        mailbox.send([crash_report(error)])
        mailbox.close()
        raise SystemExit(1) from error

    def stop(_number: int, _frame: FrameType | None) -> None:
        loop.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C: the parent drains first
    spare_what_lasts()
    mailbox.send([loop.started])
    give_back_memory()
    loop.when_idle(give_back_heap)  # What the largest steps took: the next ones may not.
    try:
        with Watchdog("The engine's loop", lambda: loop.turns):
            loop.run()
    finally:
        loop.close()
        mailbox.close()
