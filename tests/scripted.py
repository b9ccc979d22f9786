"""A real HTTP server on loopback that answers about each jid as a test's script says, and a clock that a test sets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import sqlalchemy as sa
from pydantic import SecretStr

from tracker.poller import Poller
from tracker.settings import ClusterSettings, Settings

START = datetime(2026, 1, 5, 10, 0, tzinfo=UTC)


class SetClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **time: float) -> None:
        self.now += timedelta(**time)


class Script:
    """What the server says: a status (a str), an HTTP code (an int), or (code, headers), by jid or for all.

    Attributes:
        answers: By jid; overrides *default*.
        default: For every other jid.
        asked: The jids asked about, in order.
        hold: When set, is called before each answer: a test can block there.
    """

    def __init__(self) -> None:
        self.answers: dict[str, str | int | tuple[int, dict[str, str]]] = {}
        self.default: str | int | tuple[int, dict[str, str]] = "waiting"
        self.asked: list[str] = []
        self.hold: Callable[[str], object] | None = None
        self.url = ""
        self.date: str | None = None  # the Date header; None: the server's own

    @contextmanager
    def serve(self) -> Iterator[Script]:
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                jid = parse_qs(urlsplit(self.path).query)["jid"][0]
                script.asked.append(jid)
                if script.hold:
                    script.hold(jid)
                said = script.answers.get(jid, script.default)
                code, headers = said if isinstance(said, tuple) else (200 if isinstance(said, str) else said, {})
                body = json.dumps({"jid": jid, "status": said}).encode() if isinstance(said, str) else b""
                self.send_response(code) if script.date is None else self.send_response_only(code)
                if script.date is not None:
                    self.send_header("Date", script.date)
                for name, value in ({"Content-Type": "application/json"} | headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                with suppress(ConnectionError):  # a test may have killed who asked
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


def cluster_settings(url: str, name: str = "w1", **settings: object) -> ClusterSettings:
    fast = {"max_requests_per_second": 1e6, "api_key": SecretStr("hush"), "base_url": url, "name": name}
    return ClusterSettings.model_validate(fast | settings)


@contextmanager
def polling(engine: sa.Engine, url: str, clock: SetClock, worker: str = "test", **cluster: Any) -> Iterator[Poller]:
    """Yield a poller of a cluster at *url*, as the daemon makes one, without jitter."""
    settings = Settings(request_timeout=timedelta(seconds=2))
    configured = cluster_settings(url, **cluster)
    with Poller(engine, configured, settings, worker, clock=clock, rng=lambda: 0.5) as made:
        yield made
