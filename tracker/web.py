"""The page over HTTP, on this machine alone.

Owns the server on 127.0.0.1, whom it answers, and how fresh the page is. What is on the page is ``reports.page``'s; it
is made by a process of its own, at low priority and only when somebody asks, so that polling never waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any, Final
from zoneinfo import ZoneInfo

from tracker.errors import BadConfiguration, DatabaseUnavailable, TrackerError
from tracker.logs import event
from tracker.reports.words import NOTE
from tracker.settings import Settings

HOST: Final = "127.0.0.1"
FRESH_SECONDS: Final = 60  # a page is shown for so long before another is made
RETRY_SECONDS: Final = 10  # after a page that could not be made
MAKING_SECONDS: Final = 300  # a page of a million jobs takes less than a tenth of that
REQUEST_SECONDS: Final = 10  # for a client to send its request, or to take the next piece of the answer

_OURS: Final = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE)
"""Names in a request by which this machine means itself, with any port: a tunnel may have another."""
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # it is about people, if only by their tickets
}


class Fresh:
    """The page, made anew when it is asked for and older than `FRESH_SECONDS`.

    Args:
        make: Returns a page; raises TrackerError where none can be made.
        clock: Seconds that only go forward.
    """

    def __init__(self, make: Callable[[], str], clock: Callable[[], float] = monotonic) -> None:
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._page: str | None = None
        self._note = ""
        self._next_at = -1.0

    def get(self) -> str:
        """Return the page; while none can be made the last one, which then says so.

        Raises:
            DatabaseUnavailable: There is none yet, and none can be made; the message says why.
        """
        with self._lock:  # who comes while it is made waits for it
            if self._next_at < 0 or self._clock() >= self._next_at:
                try:
                    self._page, self._note = self._make(), ""
                    self._next_at = self._clock() + FRESH_SECONDS
                except TrackerError as error:
                    event("page_not_made", logging.WARNING, error=error)
                    self._note = "This page is old: no newer one can be made just now, for reasons that are in the log."
                    self._next_at = self._clock() + RETRY_SECONDS
            if self._page is None:
                raise DatabaseUnavailable("the page cannot be made just now, for reasons that are in the log")
            if not self._note:
                return self._page
            return self._page.replace(NOTE, f'<p class="note" role="status">{self._note}</p>', 1)


@contextmanager
def serving(port: int, make: Callable[[], str]) -> Iterator[int]:
    """Serve what *make* returns at ``/`` on 127.0.0.1, and yield the port.

    Args:
        port: 0: any that is free.
        make: As `Fresh` has it.

    Raises:
        BadConfiguration: The port is in use, or not to be had.
    """
    fresh = Fresh(make)

    class Handler(_Handler):
        page = fresh

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise BadConfiguration(
            f"TRACKER_HTTP_PORT: nothing can be served on {HOST}:{port} ({error.strerror}): "
            "set another port, or end what has this one"
        ) from error
    server.daemon_threads = True  # a client that dawdles does not hold up the end
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    event("serving", url=f"http://{HOST}:{server.server_port}/")
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def page(settings: Settings) -> Iterator[None]:
    """Serve the page of a database, if a port is set.

    Raises:
        BadConfiguration: The port is in use.
    """
    if settings.http_port is None:
        yield
        return
    maker = Maker(settings.database_url, settings.zone)
    with serving(settings.http_port, maker):
        try:
            yield
        finally:
            maker.close()


class _Handler(BaseHTTPRequestHandler):
    page: Fresh
    timeout = REQUEST_SECONDS
    server_version = "tracker"
    sys_version = ""

    def do_GET(self) -> None:
        # A name of somebody else's that leads here (DNS rebinding) is not answered: its page could read ours.
        if not _OURS.fullmatch(self.headers.get("Host", "")):
            self._say(HTTPStatus.MISDIRECTED_REQUEST, f"This is served as {HOST} and localhost only.\n")
        elif self.path.partition("?")[0] != "/":
            self._say(HTTPStatus.NOT_FOUND, "There is a page at / and nothing else.\n")
        else:
            try:
                self._say(HTTPStatus.OK, self.page.get(), "text/html")
            except TrackerError as error:
                self._say(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n")

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only: this page changes nothing.\n")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _say(self, code: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if code is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle(self) -> None:
        with suppress(OSError):  # the client has gone
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the log tells what became of jobs."""


class Maker:
    """Makes the page of a database in a process of its own, one at a time."""

    def __init__(self, database_url: str, zone: ZoneInfo) -> None:
        self._given = json.dumps([database_url, zone.key])
        self._process: subprocess.Popen[str] | None = None
        self._is_closed = False

    def __call__(self) -> str:
        """Return the page.

        Raises:
            DatabaseUnavailable: It could not be made; the message says why.
        """
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tracker.web"],  # -P: no module of the folder it happens to be in
            stdin=pipe,  # the URL may hold a password: no argument, which all can see
            stdout=pipe,
            stderr=pipe,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the daemon, which ends it
        )
        self._process = process
        if self._is_closed:
            process.terminate()
        try:
            page, said = process.communicate(self._given, MAKING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise DatabaseUnavailable(f"the page took longer than {MAKING_SECONDS} s") from None
        if process.returncode:
            last = said.strip().splitlines()[-1:] or [f"it ended with {process.returncode}"]
            raise DatabaseUnavailable(f"the page could not be made: {last[0]}")
        return page

    def close(self) -> None:
        """End what is under way; no page is made any more."""
        self._is_closed = True
        if self._process is not None:
            self._process.terminate()


def main() -> int:
    """Write the page of the database named on standard input to standard output: what a `Maker` starts."""
    from tracker import database
    from tracker.reports.page import render

    with suppress(OSError):
        os.nice(10)
    url, zone = json.loads(sys.stdin.read())
    try:
        engine = database.open_database(url)
        with database.reading(engine) as connection:
            page = render(connection, zone=ZoneInfo(zone))
        engine.dispose()
    except TrackerError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # it is a pipe of ours
    sys.stdout.write(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
