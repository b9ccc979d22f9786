"""Sockets, TLS, the deadline of a whole request and the largest answer: the layer below ``elevate``.

Owns every byte that goes to Elevate and comes back; the other side may be slow, wrong or hostile. Leaves alone what is
asked and what an answer means (``elevate``).

It uses the adapter of requests and the pool of urllib3, with three differences. There is no Session, hence no redirect
(it would take ``Api-Key`` to another host), cookie, ``.netrc`` or proxy variable. Each socket obeys the deadline of the
whole request, since ``timeout=`` bounds only the wait for the next byte. No error of a library leaves this room, since
those of requests hold the request with its key.
"""

from __future__ import annotations

import http.client
import logging
import queue
import re
import socket
import ssl
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection, HTTPSConnection

from tracker.errors import BadAnswer, BadConfiguration, Unavailable, WrongTarget

# urllib3 warns of a header that it cannot read, and logs the whole URL. The path of a webhook is a secret.
logging.getLogger("urllib3").setLevel(logging.ERROR)

CAP = 64 * 1024
"""Bytes that are read of one response, headers included; an answer has about 100, and its headers a few hundred."""

IDLE_SECONDS = 2.0
"""A connection that was idle for longer may be dead without notice: a router forgot it."""


class RequestInFlight(threading.local):
    """The time and bytes that are left for this thread's request; every socket of ours obeys them.

    Not an argument: between `Adapter.send` and a socket's `recv` are requests, urllib3 and http.client.
    """

    deadline = 0.0  # on the monotonic clock
    room = 0  # bytes that may still come
    reused = False  # the connection was open before, so the server may have closed it just as we wrote
    idle = 0.0  # seconds that the connection had not been used for
    sent_at: datetime  # goes into each error


flight = RequestInFlight()


def unavailable(code: str, words: str) -> Unavailable:
    """Return an error of the current request."""
    return Unavailable(code, words, sent_at=flight.sent_at)


def bad_answer(code: str, words: str) -> BadAnswer:
    """Return an error of the current request."""
    return BadAnswer(code, words, sent_at=flight.sent_at)


def _left() -> float:
    """Return the seconds until the deadline; TimeoutError after it."""
    left = flight.deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Socket(socket.socket):
    """A socket that waits for its peer no longer than until the deadline of the calling thread's request.

    http.client receives as often as it needs: with a timeout for each receive a server could drip bytes without end.
    (Sending needs no more than the timeout that urllib3 sets: a request fits into any socket's buffer.)
    """

    def recv(self, *args: Any) -> bytes:
        self.settimeout(_left())
        data = super().recv(*args)
        self._take(len(data))
        return data

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_left())
        count = super().recv_into(*args)
        self._take(count)
        return count

    def _take(self, count: int) -> None:
        # Counted here, not at the body: headers, interim responses, chunk sizes and trailers can be endless, too.
        flight.room -= count
        if flight.room < 0:
            raise bad_answer("too_large", f"the answer is longer than {CAP} bytes")


class _TLSSocket(_Socket, ssl.SSLSocket):
    """The same under TLS."""

    def do_handshake(self, *args: Any) -> None:
        self.settimeout(_left())
        super().do_handshake(*args)


def _look_up(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return what getaddrinfo says; TimeoutError at the deadline, which getaddrinfo cannot obey."""
    found: queue.SimpleQueue[list[tuple[Any, ...]] | OSError] = queue.SimpleQueue()

    def look() -> None:
        try:
            found.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except OSError as error:
            found.put(error)

    # One thread a connection costs little compared with the handshake. It ends when the resolver gives up.
    threading.Thread(target=look, name="tracker-lookup", daemon=True).start()
    try:
        addresses = found.get(timeout=_left())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(addresses, OSError):
        raise addresses
    return addresses


def _open(host: str, port: int, options: list[tuple[int, int, int | bytes]]) -> _Socket:
    """Return a socket connected to *host*, or raise the last address's OSError."""
    addresses = _look_up(host, port)
    failure = OSError("the name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = None
        try:
            sock = _Socket(family, kind, protocol)
            for option in options:
                sock.setsockopt(*option)
            # An equal share for each address, so that a dead IPv6 route does not use up the time for IPv4.
            sock.settimeout(_left() / (len(addresses) - number))
            sock.connect(address)
            return sock
        except OSError as error:
            if sock is not None:
                sock.close()
            failure = error
    raise failure


class _PlainConnection(HTTPConnection):
    """urllib3's connection over our sockets. Each problem becomes an `AskError` here: all layers above let it pass."""

    used_at = 0.0  # monotonic time
    debuglevel = 0  # http.client would print the request with its key to stdout, if someone set it for all connections

    def _new_conn(self) -> socket.socket:
        return _open(self._dns_host, self.port, self.socket_options or [])

    def connect(self) -> None:
        flight.reused = False
        at = self.host  # the proxy's, where there is one
        try:
            super().connect()
        except TimeoutError:
            raise unavailable("timeout", f"{at}: no connection within the time limit") from None
        except socket.gaierror as error:
            raise unavailable("dns", f"{at}: the name was not resolved ({error.strerror})") from None
        except ConnectionRefusedError:
            raise unavailable("refused", f"{at}: the connection was refused") from None
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError):
            raise unavailable("reset", f"{at}: the connection was closed while it was opened") from None
        except ssl.SSLCertVerificationError as error:
            words = f"{at}: the certificate is not trusted ({error.verify_message}): check base_url and ca_bundle"
            raise WrongTarget("tls_unverified", words, sent_at=flight.sent_at) from None
        except ssl.SSLError as error:
            words = f"{at}: what answers does not speak TLS with us ({error.reason})"
            raise WrongTarget("tls", words, sent_at=flight.sent_at) from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.strerror:
                raise unavailable("unreachable", f"{at}: no connection ({error.strerror})") from None
            code = re.search(r"\b[1-5]\d\d\b", str(error))  # the rest is text of the proxy
            words = f"{at}: the proxy made no connection ({code[0] if code else 'no HTTP'}): check proxy"
            raise unavailable("proxy", words) from None

    def request(self, *args: Any, **kwargs: Any) -> None:
        flight.idle = monotonic() - self.used_at if self.sock is not None and self.used_at else 0.0
        super().request(*args, **kwargs)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # urllib3's own differs so from http.client's
        try:
            response = super().getresponse()
            self.used_at = monotonic()
            return response
        except TimeoutError:
            raise unavailable("timeout", "no answer within the time limit") from None
        except OSError:
            raise unavailable("reset", "the connection was closed before an answer") from None
        except (http.client.HTTPException, urllib3.exceptions.HTTPError):
            raise bad_answer("not_http", "the server does not speak HTTP") from None


class _TLSConnection(_PlainConnection, HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class Adapter(HTTPAdapter):
    """Requests' adapter for one origin: every request goes through one pool of our connections."""

    def __init__(self, url: str, context: ssl.SSLContext | None, proxy: str | None, pool_size: int) -> None:
        # Retry(False) raises the error itself; a stale connection is the only thing worth a repetition, see `Elevate`.
        super().__init__(pool_connections=1, pool_maxsize=pool_size, max_retries=urllib3.Retry(False))
        manager = self.proxy_manager_for(proxy, proxy_ssl_context=context) if proxy else self.poolmanager
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        parts = urlsplit(url)
        tls = {"ssl_context": context} if context else {}
        self._pool: urllib3.HTTPConnectionPool = manager.connection_from_host(
            parts.hostname, parts.port, parts.scheme, pool_kwargs=tls
        )

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> urllib3.HTTPConnectionPool:
        return self._pool

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the pool's own context verifies, and nothing given with a request changes that."""

    def close(self) -> None:
        self._pool.close()  # the managers only forget it
        super().close()

    def drop(self) -> None:
        """Close the connections that are kept and not in use, so that the next request opens one."""
        kept = self._pool.pool
        if kept is None:
            return
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(kept.get(block=False))
        for connection in found:
            if connection is not None:
                connection.close()
            with suppress(queue.Full):
                kept.put(None, block=False)


def tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """Return how TLS is made: always verified, by *ca_bundle* or the authorities that requests brings."""
    # Not by ssl's or urllib3's helpers, which also obey SSLKEYLOGFILE and so can write down what decrypts the key.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _TLSSocket
    try:
        context.load_verify_locations(cafile=str(ca_bundle or DEFAULT_CA_BUNDLE_PATH))
    except OSError as error:  # ssl.SSLError is one
        problem = "is not a PEM file of certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise BadConfiguration(f"ca_bundle: {ca_bundle}: {problem}") from None
    return context
