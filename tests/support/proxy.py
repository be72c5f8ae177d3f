"""A proxy on 127.0.0.1 in front of a server, which can cut the connections."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path


class Proxy:
    """Passes bytes on to a port; cut, it refuses, hangs or answers garbage instead."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.mode: str | None = None
        self.database = Path()
        self.open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, mode: str) -> None:
        """Drop every connection and treat new ones so: `refuses`, `hangs` or `garbage`."""
        self.mode = mode
        for one in list(self.open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        """Pass bytes on again."""
        self.mode = None

    def close(self) -> None:
        """Listen no more."""
        self.cut("refuses")
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self.open.add(client)
            if self.mode == "hangs":
                while self.mode == "hangs":
                    time.sleep(0.1)
            elif self.mode == "garbage":
                client.recv(65536)
                client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + os.urandom(5000))
            elif self.mode is None:
                with socket.create_connection(("127.0.0.1", self.target)) as server:
                    self.open.add(server)
                    back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                    back.start()
                    _pump(client, server)
                    back.join()
                    self.open.discard(server)
        self.open.discard(client)


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes until one end closes."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
