"""What the daemon serves over HTTP, on this machine alone.

Owns the server, which requests it answers, and how old the page may be. What is on the page is ``reports.page``'s. A
process of its own makes it, only when somebody asks for it: at a million jobs that takes most of a minute of one core
and some hundred megabytes, and in the daemon polling would wait for it.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any, Final

from tracker.errors import BadConfiguration
from tracker.logs import event

HOST: Final = "127.0.0.1"
PAGE_SECONDS: Final = 60  # the page may be this old
RETRY_SECONDS: Final = 10  # from a page that could not be made until the next attempt
MAKING_SECONDS: Final = 300  # several times what a page of a million jobs takes
CLIENT_SECONDS: Final = 10  # for a client to send its request, or to take the next piece of the answer

_OURS: Final = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE)  # a tunnel may have another port
_HEADERS: Final = {
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


Routes = Mapping[str, Callable[[], Response]]
"""By path, a function that returns the response; it is called in a thread of its own."""


@contextmanager
def serving(port: int, routes: Routes) -> Iterator[int]:
    """Serve *routes* on 127.0.0.1, each connection in a thread of its own, and yield the port.

    Args:
        port: 0: any that is free.
        routes: Nothing else is found.

    Raises:
        BadConfiguration: The port is in use, or may not be used.
    """

    class Handler(_Handler):
        served = routes

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise BadConfiguration(
            f"TRACKER_HTTP_PORT: cannot listen on {HOST}:{port} ({error.strerror}): "
            "set another port, or stop the program that uses this one"
        ) from error
    server.daemon_threads = True  # a slow client does not delay the end
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    event("serving", url=f"http://{HOST}:{server.server_port}/")
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Routes
    timeout = CLIENT_SECONDS
    server_version = "tracker"
    sys_version = ""

    def do_GET(self) -> None:
        self._send(self._response())

    do_HEAD = do_GET

    def _response(self) -> Response:
        # Another name that leads here (DNS rebinding) gets no answer: its page could read ours.
        if not _OURS.fullmatch(self.headers.get("Host", "")):
            return Response(f"Use {HOST} or localhost.\n", code=HTTPStatus.MISDIRECTED_REQUEST)
        route = self.served.get(self.path.partition("?")[0])
        if route is None:
            return Response(f"Not found. Served are: {', '.join(self.served)}\n", code=HTTPStatus.NOT_FOUND)
        try:
            return route()
        except Exception as error:  # one request that fails ends neither the server nor the daemon
            event("request_failed", logging.ERROR, path=self.path, error=error)
            return Response("This failed. The reason is in the log.\n", code=HTTPStatus.INTERNAL_SERVER_ERROR)

    def _refuse(self) -> None:
        self._send(Response("GET and HEAD only.\n", code=HTTPStatus.METHOD_NOT_ALLOWED))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _send(self, response: Response) -> None:
        body = response.body.encode()
        self.send_response(response.code)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle(self) -> None:
        with suppress(OSError):  # the client has gone
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the log is about jobs."""


class PageProcess:
    """The page, made again by a process when it is asked for and older than `PAGE_SECONDS`.

    Args:
        command: Writes the page to standard output.
        clock: Seconds that only go forward.
    """

    def __init__(self, command: Sequence[str], clock: Callable[[], float] = monotonic) -> None:
        self._command = command
        self._clock = clock
        self._lock = threading.Lock()
        self._response = Response("")
        self._until = float("-inf")
        self._process: subprocess.Popen[str] | None = None
        self._is_closed = False

    def response(self) -> Response:
        """Return the page, or 503 and where the reason is: an old page is never returned."""
        with self._lock:  # other requests wait for the page that is being made
            if self._clock() >= self._until:
                page, problem = self._make()
                self._response = Response(page, "text/html; charset=utf-8")
                if problem:
                    event("page_not_made", logging.WARNING, error=problem)
                    text = "The page cannot be made now. The reason is in the log.\n"
                    self._response = Response(text, code=HTTPStatus.SERVICE_UNAVAILABLE)
                self._until = self._clock() + (RETRY_SECONDS if problem else PAGE_SECONDS)
            return self._response

    def _make(self) -> tuple[str, str]:
        """Return the page and an empty text, or what is wrong."""
        process = subprocess.Popen(  # noqa: S603 - the caller's command, and no shell
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONUTF8": "1"},
            start_new_session=True,  # Ctrl-C goes to the daemon, which ends this process
        )
        self._process = process
        with suppress(OSError):  # polling comes first
            os.setpriority(os.PRIO_PROCESS, process.pid, 10)
        if self._is_closed:
            process.terminate()
        try:
            page, said = process.communicate(timeout=MAKING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return "", f"it took longer than {MAKING_SECONDS} s"
        if process.returncode:
            return "", (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return page, ""

    def close(self) -> None:
        """End the process that makes the page, now and from now on."""
        self._is_closed = True
        if self._process is not None:
            self._process.terminate()
