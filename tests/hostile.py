"""A real server on a loopback port that does to its clients what a test asks for.

Owns sockets, threads and what was seen; what is sent is up to the test's *play*, a function that is called with a
`Wire` for each request that came in whole. Returning keeps the connection open for the next request.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Self
from urllib.parse import parse_qs, urlsplit


class Wire:
    """One request, and the connection on which to answer it, or not.

    Attributes:
        head: The request as it came.
        target: What stands in its first line.
        number: How many requests the server had seen before.
    """

    def __init__(self, server: Hostile, connection: socket.socket, head: bytes = b"", number: int = 0) -> None:
        self.server = server
        self.connection = connection
        self.head = head
        self.target = head.split(b" ", 2)[1].decode("latin-1") if head else ""
        self.number = number

    @property
    def jid(self) -> str:
        """The jid asked for."""
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)["jid"][0]

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def reply(self, body: bytes | str, code: str = "200 OK", *headers: str) -> None:
        """Answer as a decent server does, with *headers* added."""
        data = body.encode() if isinstance(body, str) else body
        self.send(http(data, code, f"Content-Length: {len(data)}", *headers))

    def answer(self, status: str = "waiting", *headers: str) -> None:
        """Answer what was asked."""
        self.reply(json.dumps({"jid": self.jid, "status": status}), "200 OK", *headers)

    def drip(self, data: bytes | Iterable[bytes], every: float = 0.03) -> None:
        """Send *data* in pieces of one byte until the client or the test has had enough."""
        for piece in data:
            self.send(bytes([piece]) if isinstance(piece, int) else piece)
            if self.server.ending.wait(every):
                return

    def stall(self) -> None:
        """Send nothing until the test is over."""
        self.server.ending.wait(10)

    def close(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def reset(self) -> None:
        """End the connection with RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def tunnel(self, port: int) -> None:
        """Connect to *port*, and pass on bytes both ways, noting them, until one side ends."""
        self.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port)) as other:
            ways = ((self.connection, other), (other, self.connection))
            while not self.server.ending.is_set():
                for source, sink in ways:
                    source.settimeout(0.005)
                    try:
                        data = source.recv(65536)
                    except TimeoutError:
                        continue
                    if not data:
                        return
                    self.server.passed.append(data)
                    sink.settimeout(5)
                    sink.sendall(data)


def http(body: bytes, code: str = "200 OK", *headers: str) -> bytes:
    """Return a whole response; its length is up to *headers*."""
    return "\r\n".join([f"HTTP/1.1 {code}", *headers, "", ""]).encode("latin-1") + body


class Hostile:
    """The server. A context manager; at its end nothing is left running.

    Attributes:
        requests: The requests as they came, in order.
        connections: How many there were.
        passed: What `Wire.tunnel` passed on.
        greet: If set, it is called for each connection, in place of reading requests or speaking TLS.
    """

    def __init__(
        self,
        play: Callable[[Wire], object] = Wire.answer,
        *,
        tls: ssl.SSLContext | None = None,
        greet: Callable[[Wire], object] | None = None,
        port: int = 0,
    ) -> None:
        self.play = play
        self.greet = greet
        self.requests: list[bytes] = []
        self.passed: list[bytes] = []
        self.connections = 0
        self.ending = threading.Event()
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://{'localhost' if self._tls else '127.0.0.1'}:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.ending.set()
        socket.create_connection(("127.0.0.1", self.port)).close()  # wakes the thread that accepts
        self._threads[0].join()
        self._listener.close()
        for connection in list(self._open):
            Wire(self, connection).close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self.ending.is_set():
                connection.close()
                return
            connection.settimeout(5)
            self.connections += 1
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        # Whatever the client does to the connection is its right.
        with suppress(OSError, ValueError):
            if self.greet is not None:
                self.greet(Wire(self, connection))
            else:
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.add(connection)
                self._converse(connection)
        self._open.discard(connection)
        connection.close()

    def _converse(self, connection: socket.socket) -> None:
        seen = b""
        while not self.ending.is_set():
            data = connection.recv(65536)
            if not data:
                return
            seen += data
            while b"\r\n\r\n" in seen:
                head, _, seen = seen.partition(b"\r\n\r\n")
                self.requests.append(head)
                self.play(Wire(self, connection, head, len(self.requests) - 1))


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
