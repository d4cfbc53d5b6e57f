"""What an adapter may be called."""

from __future__ import annotations

import re

from headstock.errors import RequestError

FIELD = "lora_name"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@+-]{0,127}")


def check_name(name: str) -> None:
    """Refuse what is no name of an adapter.

    Raises:
        RequestError: Saying what a name may be.
    """
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{name[:128]!r} is no name of an adapter.",
            remedy="Use 1 to 128 letters, digits and . _ / @ + -, a letter or digit first.",
            field=FIELD,
        )
