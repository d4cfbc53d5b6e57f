"""Decodes images and videos in processes of their own, each within bounds of time and memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headstock.errors import RequestError
from headstock.multimodal.source import Source, wrong
from headstock.sandbox import LostError, Pool, Process
from headstock.wire.media import View

CPU_LIMIT_S = 10.0
"""Processor time that one image may take. Seconds."""
WALL_LIMIT_S = 60.0
"""A process that does not answer by then is killed. Seconds."""
BYTES_A_PIXEL = 16
"""Memory that decoding, turning and resizing a pixel takes at most, with room to spare."""
BASE_BYTES = 256 * 2**20
MAX_IDLE = 2
SEVERAL = "one of several"
"""What the process is given for an image that is not alone in its request."""
TOO_MUCH = "Send a smaller image."


@dataclass(frozen=True, slots=True)
class Piece:
    """What the encoder takes by itself: an image, a part of one, or a moment of a video.

    Attributes:
        grid: Patches in time, height and width.
        digest: Of what the encoder is given.
        pixels: Patch after patch. uint8.
        view: What its tokens show of them; None: all.
        lead: Text before its tokens.
        trail: Text behind them.
        time: Of a moment, in positions from the first one.
    """

    grid: tuple[int, int, int]
    digest: bytes
    pixels: bytes
    view: View | None = None
    lead: str = ""
    trail: str = ""
    time: int = 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image, or a video, as the encoder takes it.

    Attributes:
        pieces: One or more, in the order of their tokens.
        times: When each moment of a video is, in the middle of its frames; of an image none.
            Seconds.
    """

    pieces: list[Piece]
    times: list[float]


class _Worker:
    """One process; used by one thread at a time."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._process = Process(["-m", "headstock.multimodal.process"])
        self._setup: dict[str, Any] | None = setup

    @property
    def is_alive(self) -> bool:
        """Whether it may still answer."""
        return self._process.is_alive

    @property
    def close(self) -> Callable[[], object | None]:
        """Ends it."""
        return self._process.close

    def decode(
        self, kind: str, num_frames: int | None, data: bytes
    ) -> tuple[dict[str, Any], bytes]:
        """Return what it answers to a file.

        Raises:
            LostError: It did not answer.
        """
        if self._setup is not None:
            self._ask(self._setup)
            self._setup = None
        return self._ask({"kind": kind, "num_frames": num_frames}, data)

    def _ask(self, value: object, data: bytes = b"") -> tuple[dict[str, Any], bytes]:
        head = json.dumps(value).encode()
        frame = len(head).to_bytes(4, "big") + head + data
        answer = self._process.ask(frame, WALL_LIMIT_S)
        size = 4 + int.from_bytes(answer[:4], "big")
        return json.loads(answer[4:size]), answer[size:]


class Decoder:
    """Decodes from any thread; a process that was lost is replaced.

    Args:
        family: What images become, with ``max_tokens`` of one.
        max_pixels: Of an image as it was sent.
        max_frames: Of a video, that are looked at.
    """

    def __init__(self, family: dict[str, Any], max_pixels: int, max_frames: int) -> None:
        setup = {
            "family": family,
            "max_pixels": max_pixels,
            "max_frames": max_frames,
            "cpu_s": CPU_LIMIT_S,
            "memory_bytes": BASE_BYTES + BYTES_A_PIXEL * max_pixels,
        }
        self._pool = Pool(lambda: _Worker(setup), MAX_IDLE)

    def decode(self, data: bytes, source: Source, *, is_alone: bool = True) -> Decoded:
        """Return the image in ``data``.

        Args:
            data: A file.
            source: Where it comes from.
            is_alone: Whether it is the only image of its request.

        Raises:
            RequestError: Naming the part of the request, what is wrong and what is allowed.
        """
        try:
            kind = SEVERAL if source.kind == "image" and not is_alone else source.kind
            answer, pixels = self._pool.call(
                lambda worker: worker.decode(kind, source.num_frames, data)
            )
        except LostError as error:
            raise _refusal({"error": "exhausted"}, source) from error
        if "error" in answer:
            raise _refusal(answer, source)
        pieces: list[Piece] = []
        begin = 0
        for fields in answer["pieces"]:
            end = begin + fields["size"]
            frames, height, width = fields["grid"]
            view = View(*fields["view"]) if fields.get("view") else None
            piece = Piece(
                grid=(frames, height, width),
                digest=bytes.fromhex(fields["digest"]),
                pixels=pixels[begin:end],
                view=view,
                lead=fields.get("lead", ""),
                trail=fields.get("trail", ""),
                time=fields.get("time", 0),
            )
            pieces.append(piece)
            begin = end
        return Decoded(pieces, answer["times"])

    def close(self) -> None:
        """End the processes that are idle."""
        self._pool.close()


def _refusal(answer: dict[str, Any], source: Source) -> RequestError:
    """Return the error for what the process answered."""
    kind = answer["error"]
    size = f"is {answer.get('width')} x {answer.get('height')} pixels"
    match kind:
        case "type":
            return wrong(source, "is not a PNG, JPEG, WebP or GIF", "Send one of these.")
        case "pixels":
            return wrong(source, f"{size}; {answer['limit']:,} pixels are allowed", TOO_MUCH)
        case "aspect":
            ratio = f"one side may be {answer['limit']} times the other"
            return wrong(source, f"{size}; {ratio}", "Cut it into parts.")
        case "animated":
            return wrong(source, f"has {answer['frames']} frames", "Send it as a video.")
        case "frames":
            many = f"has {answer['frames']} frames to look at; {answer['limit']} are allowed"
            return wrong(source, many, "Send a shorter video.")
        case "thin":
            return wrong(source, f"{size}, too thin for a row of patches", "Cut it into parts.")
        case "slow":
            shown = f"shows {answer['frames']} frames in {answer['seconds']:g} s"
            return wrong(source, f"{shown}, too few for its positions", "Send more frames.")
        case "still":
            return wrong(source, "has one frame", "Send it as an image.")
        case "tokens":
            made = f"becomes {answer['tokens']:,} tokens; {answer['limit']:,} are allowed"
            return wrong(source, made, "Send a smaller image, or raise --encoder-tokens.")
        case "exhausted":
            taken = f"takes more than {CPU_LIMIT_S:g} s or too much memory to decode"
            return wrong(source, taken, TOO_MUCH)
        case _:
            return wrong(source, "is damaged", "Send a file that image viewers open.")
