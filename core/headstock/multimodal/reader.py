"""Reads the images of a request: bounded, fetched where that is allowed, decoded elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headstock.errors import RequestError
from headstock.multimodal.decoder import Decoded, Decoder
from headstock.multimodal.family import Family
from headstock.multimodal.fetch import fetch
from headstock.multimodal.source import Source, is_address, read_data, wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaRules:
    """What a request may bring.

    Attributes:
        max_items: Images of a request.
        max_bytes: Of a file.
        max_pixels: Of an image as it was sent.
        max_tokens: Of an image in the prompt.
        max_frames: Of a video, that are looked at.
        allows_urls: Whether images are fetched from public addresses.
        fetch_timeout_s: For one of those. Seconds.
    """

    max_items: int
    max_bytes: int
    max_pixels: int
    max_tokens: int
    max_frames: int
    allows_urls: bool
    fetch_timeout_s: float


class MediaReader:
    """Reads images for one model; safe to use from several threads.

    Args:
        family: What the model makes of them.
        rules: What requests may bring.
    """

    def __init__(self, family: Family, rules: MediaRules) -> None:
        self.family = family
        self._rules = rules
        settings = family.as_dict() | {"max_tokens": rules.max_tokens}
        self._decoder = Decoder(settings, rules.max_pixels, rules.max_frames)

    def read(self, sources: Sequence[Source]) -> list[Decoded]:
        """Return the images of a request, in order.

        Raises:
            RequestError: Naming the part at fault.
        """
        rules = self._rules
        if len(sources) > rules.max_items:
            raise RequestError(
                f"The request has {len(sources)} images; {rules.max_items} are allowed.",
                remedy="Send fewer images.",
                field=sources[rules.max_items].where,
                code="too_many_images",
            )
        for source in sources:
            if source.kind == "video" and self.family.video is None:
                raise wrong(
                    source,
                    "is a video, and this model takes images only",
                    "Send images.",
                    "not_supported",
                )
        is_alone = sum(source.kind == "image" for source in sources) == 1
        return [
            self._decoder.decode(self._bytes_of(source), source, is_alone=is_alone)
            for source in sources
        ]

    def close(self) -> None:
        """End the processes that decode."""
        self._decoder.close()

    def _bytes_of(self, source: Source) -> bytes:
        rules = self._rules
        if not is_address(source):
            return read_data(source, rules.max_bytes)
        if not rules.allows_urls:
            raise wrong(
                source,
                "is an address, and this server fetches nothing",
                "Send the image as a data URL, or start the server with --allow-media-urls.",
                "image_not_allowed",
            )
        return fetch(source, max_bytes=rules.max_bytes, timeout_s=rules.fetch_timeout_s)
