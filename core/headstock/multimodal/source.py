"""Where an image or a video comes from: bytes in the request itself."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Literal

from headstock.errors import RequestError

MAX_SHOWN = 40
"""Characters of a URL that an error shows; its path and query may be secret."""


@dataclass(frozen=True, slots=True)
class Source:
    """An image or a video as a client named it.

    Attributes:
        where: The part of the request, such as ``messages[0].content[1].image_url``.
        url: A data URL or an address; for ``/generate`` also bare base64.
        is_bare: Whether ``url`` may be base64 without a head.
        kind: Whether it is to be one picture, or several in time.
        num_frames: Of a video, that are looked at; None: as many as the model's settings say.
    """

    where: str
    url: str
    is_bare: bool = False
    kind: Literal["image", "video"] = "image"
    num_frames: int | None = None


def is_address(source: Source) -> bool:
    """Whether the image lies elsewhere and must be fetched."""
    return source.url[:8].lower().startswith(("http:", "https:"))


def read_data(source: Source, max_bytes: int) -> bytes:
    """Return the bytes that a data URL holds.

    Raises:
        RequestError: It holds none, or too many.
    """
    url = source.url
    if url[:5].lower() == "data:":
        head, comma, data = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise wrong(source, "is a data URL without base64", "Write data:image/png;base64,….")
    elif source.is_bare and "://" not in url[:16] and not url.startswith("/"):
        data = url
    else:
        scheme = url.split(":", 1)[0][:MAX_SHOWN] if ":" in url[:MAX_SHOWN] else "no scheme"
        raise wrong(source, f"is of {scheme!r}", "Give a data URL such as data:image/png;base64,….")
    if len(data) * 3 // 4 > max_bytes + 3:
        raise too_many_bytes(source, len(data) * 3 // 4, max_bytes)
    try:
        found = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong(source, "holds what is not base64", "Encode the file's bytes.") from error
    if not found:
        raise wrong(source, "holds no bytes", "Give the bytes of an image file.")
    return found


def too_many_bytes(source: Source, count: int, limit: int) -> RequestError:
    """Return the error for a file that is too large."""
    return wrong(source, f"has {count:,} bytes; {limit:,} are allowed", "Send a smaller file.")


def wrong(source: Source, problem: str, remedy: str, code: str = "invalid_image") -> RequestError:
    """Return the error that names the part at fault."""
    return RequestError(f"{source.where} {problem}.", remedy=remedy, field=source.where, code=code)
