"""Collectives through the host's memory: slow, right, there for every device.

What a backend gets that offers no ``headstock_communication`` of its own. Ranks meet at Unix
sockets in a folder that only their user can enter, so that no other process can take part; each is
connected with each. Sums are taken in the ranks' order: they are the same on every rank, always.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstock.errors import DeviceError
from headstock.plugins.hooks import GroupInfo

TIMEOUT_S = 600.0
"""How long a rank waits for the others: loading is included. Seconds."""
RETRY_S = 0.02
_ALIGNMENT = 64
_RANK = struct.Struct("<I")
_GONE = select.POLLHUP | select.POLLERR
_IN, _OUT = select.POLLIN | _GONE, select.POLLOUT


class HostGroup:
    """Ranks on one host.

    Args:
        info: The ranks; the address is a ``file://`` in a directory that they share.
        timeout_s: How long a collective waits for the other ranks. Seconds.

    Raises:
        DeviceError: The others did not come in time.
    """

    is_capturable = False

    def __init__(self, info: GroupInfo, *, timeout_s: float = TIMEOUT_S) -> None:
        self.rank = info.rank
        self.size = info.size
        self._timeout_s = timeout_s
        self._inputs = torch.empty(0, dtype=torch.uint8)
        """Where the others' bytes go; it grows to the largest transfer."""
        self._peers: dict[int, socket.socket] = {}
        try:
            self._meet(info.address.removeprefix("file://"))
        except OSError as error:
            self.close()
            raise DeviceError(
                f"Rank {info.rank} could not join the {info.size} ranks of group {info.name!r}:"
                f" {error}.",
                remedy="See the other ranks' output above for what kept them.",
            ) from error

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks, rounded once."""
        parts = self._parts(x.contiguous())
        is_small = x.dtype in (torch.bfloat16, torch.float16)
        added = parts[0].to(torch.float32) if is_small else parts[0].clone()
        for part in parts[1:]:
            added += part
        return added.to(x.dtype).to(x.device)

    def all_gather(self, x_TC: Tensor) -> Tensor:
        """Return the ranks' tensors side by side, rank 0 first. [T, size * C]"""
        own_TC = x_TC.contiguous()
        return torch.cat(self._parts(own_TC), dim=-1).to(x_TC.device)

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's tensor, in ``x``, which must be contiguous."""
        assert x.is_contiguous(), f"broadcast of a strided tensor of shape {tuple(x.shape)}"
        host = x.cpu()  # itself, where the host has it
        if self.rank == 0:
            self._exchange({peer: _bytes(host) for peer in self._peers}, {})
            return x
        self._exchange({}, {0: _bytes(host)})
        return x if host is x else x.copy_(host)

    def close(self) -> None:
        """Leave: the other ranks' next collective fails."""
        for peer in self._peers.values():
            peer.close()
        self._peers = {}

    def _parts(self, own: Tensor) -> list[Tensor]:
        """Return every rank's tensor, rank 0 first, on the host; valid until the next call."""
        host = own.cpu()
        if not host.numel():
            return [host] * self.size
        count = host.numel() * host.element_size()
        stride = -(-count // _ALIGNMENT) * _ALIGNMENT
        if self._inputs.numel() < self.size * stride:
            self._inputs = torch.empty(self.size * stride, dtype=torch.uint8)
        inputs = self._inputs[: self.size * stride].view(self.size, stride)[:, :count]
        mine = _bytes(host)
        self._exchange(
            dict.fromkeys(self._peers, mine), {peer: _bytes(inputs[peer]) for peer in self._peers}
        )
        return [
            host if rank == self.rank else inputs[rank].view(host.dtype).view(host.shape)
            for rank in range(self.size)
        ]

    def _exchange(self, outputs: dict[int, memoryview], inputs: dict[int, memoryview]) -> None:
        """Send and receive all of it, whichever peer is ready first.

        Raises:
            DeviceError: A rank is gone, or did not come in time.
        """
        left = {self._peers[peer].fileno(): (peer, view) for peer, view in outputs.items() if view}
        expected = {
            self._peers[peer].fileno(): (peer, view) for peer, view in inputs.items() if view
        }
        poll = select.poll()
        for file in {*left, *expected}:
            poll.register(file, (_OUT if file in left else 0) | (_IN if file in expected else 0))
        try:
            while left or expected:
                ready = poll.poll(1000 * self._timeout_s)
                if not ready:
                    raise TimeoutError(f"they did not come within {self._timeout_s:.0f} s")
                for file, events in ready:
                    if events & _IN and file in expected:
                        self._receive(file, expected)
                    elif events & _GONE:
                        raise ConnectionResetError("one is gone")
                    if events & _OUT and file in left:
                        self._send(file, left)
                    self._watch(poll, file, is_out=file in left, is_in=file in expected)
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"Rank {self.rank} lost the other ranks: {error}.",
                remedy="See their output above; the engine starts all of them again.",
            ) from error

    def _send(self, file: int, left: dict[int, tuple[int, memoryview]]) -> None:
        peer, view = left[file]
        try:
            view = view[self._peers[peer].send(view) :]
        except BlockingIOError:
            return
        if view:
            left[file] = (peer, view)
        else:
            del left[file]

    def _receive(self, file: int, expected: dict[int, tuple[int, memoryview]]) -> None:
        peer, view = expected[file]
        try:
            count = self._peers[peer].recv_into(view)
        except BlockingIOError:
            return
        if count == 0:
            raise ConnectionResetError(f"rank {peer} is gone")
        if view := view[count:]:
            expected[file] = (peer, view)
        else:
            del expected[file]

    def _watch(self, poll: select.poll, file: int, *, is_out: bool, is_in: bool) -> None:
        if is_out or is_in:
            poll.modify(file, (_OUT if is_out else 0) | (_IN if is_in else 0))
        else:
            poll.unregister(file)

    def _meet(self, address: str) -> None:
        """Connect with every other rank: the higher one calls, the lower one listens.

        Raises:
            OSError: The others did not come in time.
        """
        deadline_s = time.monotonic() + self._timeout_s
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{address}-{self.rank}")
            listener.listen(self.size)
            for rank in range(self.rank):
                self._peers[rank] = self._call(f"{address}-{rank}", deadline_s)
            for _ in range(self.rank + 1, self.size):
                listener.settimeout(max(0.001, deadline_s - time.monotonic()))
                peer, _ = listener.accept()
                peer.settimeout(max(0.001, deadline_s - time.monotonic()))
                self._peers[_RANK.unpack(peer.recv(_RANK.size, socket.MSG_WAITALL))[0]] = peer
        Path(f"{address}-{self.rank}").unlink(missing_ok=True)
        for peer in self._peers.values():
            peer.setblocking(False)

    def _call(self, address: str, deadline_s: float) -> socket.socket:
        """Return a connection with a rank that listens, or will."""
        while True:
            peer = socket.socket(socket.AF_UNIX)
            try:
                peer.connect(address)
                peer.sendall(_RANK.pack(self.rank))
            except OSError:
                peer.close()
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(RETRY_S)
            else:
                return peer


def _bytes(x: Tensor) -> memoryview:
    """Return the bytes of a contiguous host tensor, without a copy."""
    flat: Any = x.view(-1).view(torch.uint8).numpy()  # whose stubs know no buffers
    return memoryview(flat)
