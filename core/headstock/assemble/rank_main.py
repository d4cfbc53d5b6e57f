"""What a rank's process does: builds its slice of the model, and runs the plans of rank 0."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import msgspec

from headstock.assemble.backend import Opened, open_backend
from headstock.assemble.memory_hygiene import give_back_memory
from headstock.assemble.model_files import find_model
from headstock.assemble.progress import silent
from headstock.assemble.serving_runner import build_serving_runner
from headstock.assemble.settings_text import decode_settings, encode_settings
from headstock.config import EngineSettings, Loaded
from headstock.errors import HeadstockError
from headstock.observe.log import set_up_logging
from headstock.ops.communication import Group
from headstock.parallel import RankAddress, join_ranks, serve_rank
from headstock.parallel.host_group import HostGroup


def rank_argument(loaded: Loaded[EngineSettings], address: RankAddress) -> str:
    """Return the one argument of the process of the rank at ``address``."""
    return msgspec.json.encode((address, encode_settings(loaded))).decode()


def run(argument: str) -> int:
    """Build this rank's slice of the model and run the plans of rank 0.

    Args:
        argument: As :func:`rank_argument` makes it.

    Returns:
        The process's exit status.
    """
    address, text = msgspec.json.decode(argument, type=tuple[RankAddress, str])
    loaded = decode_settings(text)
    log = loaded.settings.log
    set_up_logging(log.log_level, log.log_format)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _run(loaded, address)
    except HeadstockError:
        return 1  # rank 0 knows why, and says it
    return 0


def _run(loaded: Loaded[EngineSettings], address: RankAddress) -> None:
    with join_ranks(address):
        opened = open_backend(loaded, rank=address.rank, size=address.size)
        with ExitStack() as on_failure:
            on_failure.callback(opened.device.close)
            group = join_group(opened, address)
            on_failure.callback(group.close)
            files = find_model(loaded.settings)
            built = build_serving_runner(opened, files, silent, group=group)
            on_failure.pop_all()
        give_back_memory()
        try:
            serve_rank(built.runner, address, built.shelf, built.runner)
        finally:
            built.runner.close()


def join_group(opened: Opened, address: RankAddress) -> Group:
    """Join the ranks that share every layer, by the backend's own means where it has some."""
    info = address.group()
    return opened.chosen.join_group(info, opened.device) or HostGroup(info)
