"""Clients that send a byte a second: ``slow_clients.py PORT COUNT SECONDS`` prints who was cut off.

Four in five never end their headers, one in five its body. Who is cut off comes back. They are a
process of their own, so that what they cost is not the server's.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time

HEADERS = b"GET /live HTTP/1.1\r\nHost: localhost\r\nx: "
BODY = (
    b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
SLICES = 20
"""Parts in which all connections have their turn, so that their bytes do not come at once."""


class SlowClient:
    """One connection at a time.

    Args:
        port: Of the server, on loopback.
        has_body: Whether it is the body that does not end.
    """

    def __init__(self, port: int, *, has_body: bool) -> None:
        self._port = port
        self._has_body = has_body
        self.num_cut_off = 0
        self._connection = self._connect()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        connection.sendall(BODY if self._has_body else HEADERS)
        connection.setblocking(False)
        return connection

    def drip(self) -> None:
        """Send a byte; come back if the server has closed the connection."""
        try:
            self._connection.send(b"1\r\n \r\n" if self._has_body else b"x")
            is_cut_off = self._connection.recv(4096) == b""
        except BlockingIOError:
            return
        except OSError:
            is_cut_off = True
        if is_cut_off:
            self.num_cut_off += 1
            self._connection.close()
            self._connection = self._connect()


def main(port: int, count: int, seconds: float) -> int:
    """Drip for some seconds; return how often a connection was cut off."""
    clients = [SlowClient(port, has_body=number % 5 == 0) for number in range(count)]
    end_s = time.monotonic() + seconds
    turn = 0
    while time.monotonic() < end_s:
        for client in clients[turn % SLICES :: SLICES]:
            client.drip()
        turn += 1
        time.sleep(1.0 / SLICES)
    return sum(client.num_cut_off for client in clients)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        print(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
