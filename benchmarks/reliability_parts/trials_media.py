"""The trial of images that are made to hurt: R5."""

from __future__ import annotations

import base64
import io
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from headstock.config.schema import MediaSettings
from headstock.multimodal.decoder import BASE_BYTES, BYTES_A_PIXEL
from reliability_parts.memory import anon_mb, family
from reliability_parts.outcome import Outcome
from tests.e2e.served import Served, served

FLAGS = ("--backend", "reference", "--dtype", "float32", "--cache-tokens", "2048")
FLAGS += ("--max-model-len", "384", "--encoder-tokens", "512")
REFUSED_S = 6.0
BESIDE_MB = 64.0
"""What may be held beside what a decoder may take."""
ENGINE = "assemble.engine_process"
SIDE, FULL_SIDE = 30_000, 4_898
"""Pixels of a side: far over the limit, and just under it."""


class Peak:
    """Looks at a server's processes but for its engine while the block runs, and keeps the most."""

    def __init__(self, server: Served) -> None:
        self._pid = server.process.pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.begin_mb = self.most_mb = self._sum_mb()

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            self.most_mb = max(self.most_mb, self._sum_mb())

    def _sum_mb(self) -> float:
        found_mb = 0.0
        for pid, name in family(self._pid).items():
            if name == ENGINE:
                continue
            try:
                found_mb += anon_mb(pid)
            except OSError:
                continue  # it has ended meanwhile
        return found_mb


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _zeros(count: int) -> bytes:
    """Return so many zeros, compressed a part at a time."""
    packer, part = zlib.compressobj(6), bytes(1 << 24)
    parts = [packer.compress(part) for _ in range(count // len(part))]
    parts.append(packer.compress(part[: count % len(part)]))
    return b"".join([*parts, packer.flush()])


def _png(side: int, *more: bytes) -> bytes:
    """Return a black square, with other chunks before its pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = _zeros(side * (1 + 3 * side))
    chunks = [_chunk(b"IHDR", head), *more, _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _gif(count: int) -> bytes:
    """Return a film of so many frames."""
    from PIL import Image

    frames = [Image.new("P", (64, 64), number % 7) for number in range(count)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], optimize=False)
    return stream.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "30,000 x 30,000 pixels": lambda: _png(SIDE),
    "as many pixels as are allowed": lambda: _png(FULL_SIDE),
    "a film of 10,000 frames": lambda: _gif(10_000),
    "words of 1 GB": lambda: _png(64, _chunk(b"zTXt", b"x\0\0" + _zeros(10**9))),
    "a profile of 1 GB": lambda: _png(64, _chunk(b"iCCP", b"x\0\0" + _zeros(10**9))),
}


def _send(server: Served, data: bytes) -> tuple[int, float]:
    """Send a chat with an image; return its status, and how long it took. Seconds."""
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    parts: list[dict[str, Any]] = [{"type": "text", "text": "What is this?"}]
    parts.append({"type": "image_url", "image_url": {"url": url}})
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 2}
    begin_s = time.monotonic()
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    return answer.status_code, time.monotonic() - begin_s


def _announced(server: Served) -> tuple[int, float]:
    """Announce a body of 10 GB; return the status, and how long the answer took. Seconds."""
    port = int(server.url.rpartition(":")[2])
    begin_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 10000000000\r\n\r\n"
        )
        head = connection.recv(4096)
    return int(head.split()[1]), time.monotonic() - begin_s


def bombs(model: str) -> Outcome:
    """R5: what images that are made to hurt take of memory, on a small model that sees.

    ``model`` is not used: it sees nothing.
    """
    from tests.vision.conftest import data_url, make_model, picture

    allowed_mb = (BASE_BYTES + BYTES_A_PIXEL * MediaSettings().max_image_pixels) / 1e6 + BESIDE_MB
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_model("Qwen3VL", Path(folder) / "tiny-vl")
        with served(str(Path(folder) / "tiny-vl"), *FLAGS) as server:
            honest = base64.b64decode(data_url(picture(24, 32, 3)).partition(",")[2])
            assert _send(server, honest)[0] == 200  # the decoder has begun
            for name, make in BOMBS.items():
                data = make()
                with Peak(server) as peak:
                    status, took_s = _send(server, data)
                rows[name] = [status, took_s, peak.most_mb - peak.begin_mb]
                assert _send(server, honest)[0] == 200, f"after {name}"
            with Peak(server) as peak:
                status, took_s = _announced(server)
            rows["a body of 10 GB, as announced"] = [status, took_s, peak.most_mb - peak.begin_mb]
    refused = {name: row for name, row in rows.items() if row[0] != 200}
    most_mb = max(row[2] for row in rows.values())
    slowest_s = max(row[1] for row in rows.values())
    return Outcome(
        f"{len(rows)} bombs, {len(refused)} refused, the slowest in {slowest_s:.1f} s; memory of"
        f" the API process and its decoders grew by {most_mb:.0f} MB at most, {allowed_mb:.0f} are"
        " allowed",
        len(refused) >= len(rows) - 1
        and all(400 <= row[0] < 500 for row in refused.values())
        and slowest_s <= REFUSED_S
        and most_mb <= allowed_mb,
        rows,
    )
