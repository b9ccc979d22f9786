"""The page over HTTP: to this machine alone, fresh, and still there while the database is away."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.history import register
from tests.scripted import Script
from tests.test_daemon import TRACKER, environment, until
from tracker import database, web
from tracker.errors import BadConfiguration, DatabaseUnavailable


def get(port: int, path: str = "/", method: str = "GET", **headers: str) -> tuple[HTTPResponse, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response, body


class Maker:
    """Makes pages that are numbered, or fails."""

    def __init__(self) -> None:
        self.made = 0
        self.fails = False

    def __call__(self) -> str:
        if self.fails:
            raise DatabaseUnavailable("the database is away: secret detail")
        self.made += 1
        return f"<p>page {self.made}</p><!--note-->"


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def port(maker: Maker) -> Iterator[int]:
    with web.serving(0, maker) as port:
        yield port


def test_the_page_is_served_with_a_policy_that_allows_nothing_else(port: int) -> None:
    """GET / is the page; its headers allow no script and no request, and keep it out of caches and frames."""
    response, body = get(port)
    assert (response.status, body) == (200, "<p>page 1</p><!--note-->")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Server"].strip() == "tracker"


def test_head_is_get_without_a_body(port: int) -> None:
    response, body = get(port, method="HEAD")
    assert (response.status, body) == (200, "")
    assert response.headers["Content-Length"] == str(len("<p>page 1</p><!--note-->"))


@pytest.mark.parametrize("path", ["/index.html", "/..", "/metrics", "http://127.0.0.1/x"])
def test_any_other_path_is_not_found(port: int, path: str) -> None:
    assert get(port, path)[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(port: int, method: str) -> None:
    response, _ = get(port, method=method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "a@localhost", "[", ""])
def test_a_name_that_is_not_this_machine_is_not_answered(port: int, maker: Maker, host: str) -> None:
    """DNS rebinding: a page elsewhere whose name leads here must not read this one."""
    response, body = get(port, Host=host)
    assert response.status == 421
    assert "page" not in body
    assert maker.made == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9999", "LOCALHOST"])
def test_this_machine_is_answered_at_any_port(port: int, host: str) -> None:
    assert get(port, Host=host)[0].status == 200


def test_it_listens_on_loopback_only(port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=1)


def test_a_port_in_use_is_a_clear_error(port: int, maker: Maker) -> None:
    """The message names the setting and the way out."""
    again = web.serving(port, maker)
    with pytest.raises(BadConfiguration, match=r"TRACKER_HTTP_PORT.*in use.*set another port"):
        again.__enter__()


def test_a_page_is_made_at_most_once_a_minute(maker: Maker) -> None:
    """For a minute everybody gets the same one; then the next who asks gets a new one."""
    now = 0.0
    fresh = web.Fresh(maker, lambda: now)
    assert fresh.get() == fresh.get() == "<p>page 1</p><!--note-->"
    now = 59.9
    assert "page 1" in fresh.get()
    now = 60.0
    assert "page 2" in fresh.get()
    assert maker.made == 2


def test_the_last_page_is_shown_while_the_database_is_away(maker: Maker) -> None:
    """It says that it is old, tells no detail, and a new one is tried for at intervals."""
    now = 0.0
    fresh = web.Fresh(maker, lambda: now)
    fresh.get()
    maker.fails = True
    now = 61.0
    stale = fresh.get()
    assert stale.startswith('<p>page 1</p><p class="note" role="status">This page is old')
    assert "secret" not in stale
    maker.fails = False
    now = 65.0
    assert "page 1" in fresh.get()
    now = 71.0
    assert fresh.get() == "<p>page 2</p><!--note-->"


def test_without_any_page_the_service_is_unavailable(port: int, maker: Maker) -> None:
    maker.fails = True
    response, body = get(port)
    assert response.status == 503
    assert "secret" not in body


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_process_of_its_own_makes_the_page(url: str, tmp_path: Path) -> None:
    """It reads the database, and what is wrong with that is an error, not a page."""
    assert "0 jobs, as of" in web.Maker(url, ZoneInfo("Europe/Stockholm"))()
    with pytest.raises(DatabaseUnavailable, match="there is no database"):
        web.Maker(f"sqlite:///{tmp_path}/none.db", ZoneInfo("UTC"))()


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_daemon_serves_the_page_until_it_ends(url: str, tmp_path: Path) -> None:
    """With TRACKER_HTTP_PORT the page is at /; a second daemon at that port is refused; SIGTERM ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = database.open_database(url)
    register(engine, "jid-1")
    engine.dispose()
    with Script().serve() as script:
        env = environment(url, script.url, TRACKER_HTTP_PORT=str(port))
        with (tmp_path / "log").open("wb") as log:
            daemon = subprocess.Popen([TRACKER, "run"], env=env, stderr=log)
        try:
            until(lambda: b'"serving"' in (tmp_path / "log").read_bytes())
            response, body = get(port)
            assert response.status == 200
            assert "1 job, as of" in body
            second = subprocess.run([TRACKER, "run"], env=env, capture_output=True, text=True, timeout=30)
            assert second.returncode == 78
            assert "TRACKER_HTTP_PORT" in second.stderr.splitlines()[-1]
            once = subprocess.run([TRACKER, "run", "--once"], env=env, capture_output=True, timeout=30)
            assert once.returncode == 0
            daemon.terminate()
            assert daemon.wait(20) == 0
        finally:
            daemon.kill()
            daemon.wait()
