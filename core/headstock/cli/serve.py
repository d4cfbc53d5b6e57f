"""Serve a model over HTTP: OpenAI-compatible routes under /v1, and the native /generate.

MODEL is a Hugging Face folder, a GGUF file, a name that `headstock pull` knows, or a hub id such as
owner/name. Without one, a small instruct model is fetched once and served.
"""

from __future__ import annotations

import argparse

from headstock.cli.banner import Banner
from headstock.config import ServeSettings, add_flags, read_settings
from headstock.config.environment import forget_secrets
from headstock.observe.log import set_up_logging


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the settings of the server."""
    add_flags(parser, ServeSettings)


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped."""
    loaded = read_settings(arguments, ServeSettings)
    forget_secrets()
    log = loaded.settings.log
    set_up_logging(log.log_level, log.log_format)
    from headstock.assemble.serve import serve_model

    return serve_model(loaded, Banner())
