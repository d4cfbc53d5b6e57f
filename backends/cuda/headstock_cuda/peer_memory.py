"""Memory that the GPUs of one host write into each other, through the driver's library.

PyTorch shares tensors between processes by pickling their handles; here the 64 bytes of a handle
are all that travels.
"""

from __future__ import annotations

import ctypes
from typing import Any

from headstock.errors import DeviceError

LIBRARY = "libcuda.so.1"
HANDLE_BYTES = 64
LAZY_PEER_ACCESS = 1


class IpcHandle(ctypes.Structure):
    """``CUipcMemHandle``."""

    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class PeerMemory:
    """A piece of this GPU's memory, zeroed, and the other ranks' pieces.

    The context of this rank's GPU must be the current one.

    Args:
        num_bytes: Of the piece.

    Raises:
        DeviceError: The driver refuses.
    """

    def __init__(self, num_bytes: int) -> None:
        self._driver: Any = ctypes.CDLL(LIBRARY)
        self._opened: list[int] = []
        own = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(own), ctypes.c_size_t(num_bytes))
        self.address = own.value
        self._call(
            "cuMemsetD8_v2",
            ctypes.c_uint64(self.address),
            ctypes.c_ubyte(0),
            ctypes.c_size_t(num_bytes),
        )

    def handle(self) -> bytes:
        """Return what another process opens the piece with."""
        handle = IpcHandle()
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(self.address))
        return ctypes.string_at(ctypes.byref(handle), HANDLE_BYTES)

    def open(self, handle: bytes) -> int:
        """Return the address, in this process, of another rank's piece.

        Raises:
            DeviceError: The GPUs cannot reach each other.
        """
        found = ctypes.c_uint64()
        self._call(
            "cuIpcOpenMemHandle_v2",
            ctypes.byref(found),
            IpcHandle.from_buffer_copy(handle),
            ctypes.c_uint(LAZY_PEER_ACCESS),
        )
        self._opened.append(found.value)
        return found.value

    def close(self) -> None:
        """Give all of it back."""
        for address in self._opened:
            self._call("cuIpcCloseMemHandle", ctypes.c_uint64(address))
        self._opened.clear()
        self._call("cuMemFree_v2", ctypes.c_uint64(self.address))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            what = (text.value or b"unknown error").decode()
            raise DeviceError(
                f"{name} of the NVIDIA driver failed with code {code}: {what}.",
                remedy="Check with `nvidia-smi topo -p2p r` that the GPUs reach each other.",
            )
