"""What the daemon serves over HTTP: the page, whether it is healthy, what is urgent, and metrics.

Owns the server, which requests it answers, and how old the page may be. What is on the page is ``reports.page``'s, what
is counted ``metrics``'. A process of its own makes the page, only when it is requested: at a million jobs that
takes most of a minute of one core and some hundred megabytes, and in the daemon polling would wait for it.

One thread reads all requests and writes all answers, so a slow client holds a buffer and no thread. Each path has at
most one thread, which makes the response for everyone who asks meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import socket
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from time import monotonic
from typing import Final

import sqlalchemy as sa

from tracker.errors import BadConfiguration, TrackerError
from tracker.logs import event
from tracker.metrics import CONTENT_TYPE, Metrics, StoredMetrics
from tracker.needs import needs
from tracker.notify import STALE_SECONDS
from tracker.settings import Settings, is_loopback

PAGE_SECONDS: Final = 60  # the page may be this old
RETRY_SECONDS: Final = 10  # from a page that could not be made until the next attempt
MAKING_SECONDS: Final = 300  # several times what a page of a million jobs takes
CLIENT_SECONDS: Final = 10.0  # for a client to send its whole request, and again to take the whole answer
HEAD_BYTES: Final = 16_384  # of a request: no browser and no proxy sends more
MOST_CONNECTIONS: Final = 100  # with one more, the oldest is closed

_REQUEST: Final = re.compile(rb"([A-Z]{1,20}) ([!-~]{1,4000}) HTTP/1\.[01]\r\n(.*)", re.DOTALL)
_HOST: Final = re.compile(rb"^host:[ \t]*(.*?)[ \t]*\r$", re.IGNORECASE | re.MULTILINE)
_OURS: Final = re.compile(
    rb"(127(\.\d{1,3}){3}|\[::1\]|localhost)(:\d{1,5})?", re.IGNORECASE
)  # a tunnel has its own port
_HEADERS: Final = {
    "Server": "tracker",
    "Connection": "close",
    "Allow": "GET, HEAD",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # it is about people, if only by their tickets
}


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered to a request."""

    body: str
    content_type: str = "text/plain; charset=utf-8"
    code: HTTPStatus = HTTPStatus.OK


_PAGE_IS_OFF: Final = Response("The page is off. TRACKER_HTTP_PAGE=on turns it on.\n", code=HTTPStatus.NOT_FOUND)
_NO_PAGE: Final = Response(
    "The page cannot be made now. The reason is in the log.\n", code=HTTPStatus.SERVICE_UNAVAILABLE
)

Routes = Mapping[str, Callable[[], Response]]
"""By path, a function that returns the response; it is called in a thread."""


class Web:
    """The HTTP port of a daemon. It stays open over a reload that does not change it.

    Args:
        page_command: Writes the page to standard output.
        age: Returns the seconds since the daemon completed a look at its clusters.
        metrics: What it counts.
    """

    def __init__(self, page_command: Sequence[str], age: Callable[[], float], metrics: Metrics) -> None:
        self._page_command = page_command
        self._age = age
        self._metrics = metrics
        self._sockets: dict[tuple[str, int], socket.socket] = {}

    def beside(self, settings: Settings) -> Callable[[sa.Engine], AbstractContextManager[None]]:
        """Listen, if there is an `http_port`, and return what serves beside the polling.

        Raises:
            BadConfiguration: The port is in use, or the address is not ours. What was served before still is.
        """
        place = None if settings.http_port is None else (settings.http_bind, settings.http_port)
        if place is not None and place not in self._sockets:
            self._sockets[place] = listen(*place)

        @contextmanager
        def beside(engine: sa.Engine) -> Iterator[None]:
            for other in self._sockets.keys() - {place}:
                self._sockets.pop(other).close()
            stored, page = StoredMetrics(engine, settings), PageProcess(self._page_command)
            self._metrics.expect(settings.clusters)
            routes: Routes = {
                "/": page.response if settings.http_page else lambda: _PAGE_IS_OFF,
                "/healthz": lambda: healthz(self._age()),
                "/readyz": lambda: readyz(stored),
                "/metrics": lambda: Response(self._metrics.text(stored), CONTENT_TYPE),
            }
            with nullcontext() if place is None else serving(self._sockets[place], routes):
                yield

        return beside


def healthz(age: float) -> Response:
    """Return 200 while the daemon looks at its clusters, whatever their state: a restart would not help."""
    if age < STALE_SECONDS:
        return Response("ok\n")
    text = f"The last look at the clusters was completed {age:.0f} s ago.\n"
    return Response(text, code=HTTPStatus.SERVICE_UNAVAILABLE)


def readyz(stored: StoredMetrics) -> Response:
    """Return 503 and the urgent needs, or 200 and an empty list. Neither names a job."""
    try:
        found = [need for need in needs(stored.overview()) if need.is_urgent]
        urgent = [{"kind": need.kind, "subject": need.subject, "count": need.count} for need in found]
    except TrackerError:  # it is away, or its file is
        urgent = [{"kind": "database_unavailable", "subject": "", "count": 1}]
    code = HTTPStatus.SERVICE_UNAVAILABLE if urgent else HTTPStatus.OK
    return Response(json.dumps(urgent) + "\n", "application/json", code)


def listen(bind: str, port: int) -> socket.socket:
    """Return a socket that listens at the address *bind*; port 0 is any that is free.

    Raises:
        BadConfiguration: It cannot; the message names the setting to change.
    """
    family, shown = (socket.AF_INET6, f"[{bind}]") if ":" in bind else (socket.AF_INET, bind)
    try:
        return socket.create_server((bind, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        name, action = "TRACKER_HTTP_BIND", "set an address of this machine; 0.0.0.0 is all of them"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            name, action = "TRACKER_HTTP_PORT", "set another port, or stop the program that uses this one"
        why = os.strerror(error.errno or 0)
        raise BadConfiguration(f"{name}: cannot listen on {shown}:{port} ({why}): {action}") from error


@contextmanager
def serving(listening: socket.socket, routes: Routes) -> Iterator[None]:
    """Serve *routes*, and nothing else; *listening* stays open afterwards, so that a reload refuses no client."""
    over: Future[None] = Future()
    host, port = listening.getsockname()[:2]
    connections = _Connections(routes, is_loopback(host))

    async def serve() -> None:
        server = await asyncio.start_server(connections.take, sock=listening.dup(), limit=HEAD_BYTES)
        await asyncio.wrap_future(over)
        server.close()
        await asyncio.sleep(0.05)  # for answers that are ready, and for what was accepted just now
        connections.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="http", daemon=True)
    thread.start()
    event("serving", address=host, port=port)
    try:
        yield
    finally:
        over.set_result(None)
        thread.join()


class _Connections:
    """The connections of a server: everything but `_make` runs in the thread of its event loop."""

    def __init__(self, routes: Routes, is_local: bool) -> None:
        self._routes = routes
        self._is_local = is_local
        self._open: OrderedDict[asyncio.StreamWriter, asyncio.Task[None]] = OrderedDict()
        self._making: dict[str, asyncio.Future[Response]] = {}

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Begin to serve a connection."""
        if len(self._open) >= MOST_CONNECTIONS:
            oldest, _ = self._open.popitem(last=False)
            oldest.transport.abort()
        self._open[writer] = asyncio.get_running_loop().create_task(self._serve(reader, writer))

    def close(self) -> None:
        """Close all connections."""
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                try:
                    request = _REQUEST.fullmatch(await reader.readuntil(b"\r\n\r\n"))
                except asyncio.LimitOverrunError:
                    request = None
            if request is None:
                response = Response("This is no request, or too long a one.\n", code=HTTPStatus.BAD_REQUEST)
            else:
                response = await self._response(*request.groups())
            async with asyncio.timeout(CLIENT_SECONDS):
                await _send(writer, response, with_body=request is None or request[1] != b"HEAD")
                while await reader.read(HEAD_BYTES):  # closed before that, the client may lose the answer
                    pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError):  # the client has gone, or is too slow
            pass
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    async def _response(self, method: bytes, target: bytes, headers: bytes) -> Response:
        path, hosts = target.partition(b"?")[0].decode(), _HOST.findall(headers)
        if method not in (b"GET", b"HEAD"):
            return Response("GET and HEAD only.\n", code=HTTPStatus.METHOD_NOT_ALLOWED)
        if path not in self._routes:
            return Response(f"Not found. Served are: {', '.join(self._routes)}\n", code=HTTPStatus.NOT_FOUND)
        # Another name that leads here (DNS rebinding) gets no page: its own page could read ours.
        if path == "/" and self._is_local and not (len(hosts) == 1 and _OURS.fullmatch(hosts[0])):
            return Response("Use 127.0.0.1 or localhost.\n", code=HTTPStatus.MISDIRECTED_REQUEST)
        if path not in self._making:
            self._making[path] = made = asyncio.get_running_loop().create_future()
            made.add_done_callback(lambda _: self._making.pop(path))
            threading.Thread(target=self._make, args=(path, made), name=f"http {path}", daemon=True).start()
        return await asyncio.shield(self._making[path])

    def _make(self, path: str, made: asyncio.Future[Response]) -> None:
        """Make the response, in a thread of its own."""
        try:
            response = self._routes[path]()
        except Exception as error:  # one request that fails ends neither the server nor the daemon
            event("request_failed", logging.ERROR, path=path, error=error)
            text = "The request failed. The reason is in the log of the daemon.\n"
            response = Response(text, code=HTTPStatus.INTERNAL_SERVER_ERROR)
        with suppress(RuntimeError):  # the server has ended
            made.get_loop().call_soon_threadsafe(made.set_result, response)


async def _send(writer: asyncio.StreamWriter, response: Response, *, with_body: bool) -> None:
    """Send the response, and wait until the system has taken all of it."""
    body = response.body.encode()
    headers = {"Date": formatdate(usegmt=True), "Content-Type": response.content_type, "Content-Length": len(body)}
    lines = [f"{name}: {value}\r\n" for name, value in (headers | _HEADERS).items()]
    head = f"HTTP/1.1 {response.code.value} {response.code.phrase}\r\n{''.join(lines)}\r\n".encode()
    writer.transport.set_write_buffer_limits(high=0)
    writer.write(head + body if with_body else head)
    await writer.drain()
    writer.write_eof()


class PageProcess:
    """The page; a process makes it again when it is requested and older than `PAGE_SECONDS`.

    Args:
        command: Writes the page to standard output.
        clock: Seconds that only go forward.
    """

    def __init__(self, command: Sequence[str], clock: Callable[[], float] = monotonic) -> None:
        self._command = command
        self._clock = clock
        self._response = Response("")
        self._until = float("-inf")

    def response(self) -> Response:
        """Return the page, or 503 and where the reason is: an old page is never returned. Not for two threads."""
        if self._clock() >= self._until:
            page, problem = self._make()
            if problem:
                event("page_not_made", logging.WARNING, error=problem)
            self._response = _NO_PAGE if problem else Response(page, "text/html; charset=utf-8")
            self._until = self._clock() + (RETRY_SECONDS if problem else PAGE_SECONDS)
        return self._response

    def _make(self) -> tuple[str, str]:
        """Return the page and an empty text, or what is wrong. At the daemon's end the process ends by itself."""
        try:
            done = subprocess.run(  # noqa: S603 - the caller's command, and no shell
                self._command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                env=os.environ | {"PYTHONUTF8": "1"},
                timeout=MAKING_SECONDS,
                start_new_session=True,  # Ctrl-C goes to the daemon alone
            )
        except subprocess.TimeoutExpired:
            return "", f"it took longer than {MAKING_SECONDS} s"
        if done.returncode:
            return "", (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return done.stdout, ""
