"""HTTP: who is answered, that a slow client delays nobody, and how old the page may be."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from tests.history import register
from tests.hostile import free_port
from tests.scripted import Script
from tests.test_daemon import TRACKER, environment, until
from tracker import database, web
from tracker.errors import BadConfiguration
from tracker.web import Response


def get(port: int, path: str = "/", method: str = "GET", **headers: str) -> tuple[HTTPResponse, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response, body


@pytest.fixture
def port() -> Iterator[int]:
    routes = {
        "/": lambda: Response("<p>page</p>", "text/html; charset=utf-8"),
        "/away": lambda: Response("not now\n", code=HTTPStatus.SERVICE_UNAVAILABLE),
        "/broken": lambda: Response(str(1 // 0)),
    }
    with web.serving(0, routes) as port:
        yield port


def test_a_page_is_served_with_a_policy_that_allows_nothing_else(port: int) -> None:
    """Its headers allow no script and no request, and keep it out of caches and frames; a HEAD has them, too."""
    for method, body in (("GET", "<p>page</p>"), ("HEAD", "")):
        response, text = get(port, "/?x=1", method)
        assert (response.status, text) == (200, body)
        assert response.headers["Content-Length"] == "11"
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
        assert "frame-ancestors 'none'" in policy
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Server"].strip() == "tracker"
    assert get(port, "/away")[0].status == 503
    assert get(port, "/broken")[0].status == 500


def test_nothing_else_is_found_and_nothing_can_be_changed(port: int) -> None:
    """Other paths are 404, other methods 405."""
    for path in ("/index.html", "/..", "http://127.0.0.1/x"):
        assert get(port, path)[0].status == 404
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        response, _ = get(port, method=method)
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


def test_only_a_name_of_this_machine_is_answered(port: int) -> None:
    """DNS rebinding: a page elsewhere whose name leads here must not read this one; a tunnel may have any port."""
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "a@localhost", "[", ""):
        response, body = get(port, Host=host)
        assert (response.status, "<p>" in body) == (421, False)
    for host in ("127.0.0.1", "localhost:9999", "LOCALHOST"):
        assert get(port, Host=host)[0].status == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=1)


def test_a_slow_or_malformed_client_delays_nobody(port: int) -> None:
    """Fifty clients that send half a request, and one that sends rubbish, do not keep others from being answered."""
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    for client in slow:
        client.sendall(b"GET / HTTP/1.1\r\nHost: loc")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as malformed:
        malformed.sendall(b"\x16\x03\x01\x00\xff\r\n\r\n")
        assert b"400" in malformed.recv(1000)
    assert get(port)[0].status == 200
    for client in slow:
        client.close()


def test_a_port_in_use_is_a_clear_error(port: int) -> None:
    """The message names the setting and says what to do."""
    again = web.serving(port, {})
    with pytest.raises(BadConfiguration, match=r"TRACKER_HTTP_PORT.*in use.*set another port"):
        again.__enter__()


def made_by(tmp_path: Path, code: str) -> list[str]:
    """Return a command that runs Python *code*, in which n counts the runs."""
    counter = f"f = open({str(tmp_path / 'runs')!r}, 'a+b'); f.write(b'x'); n = f.tell(); import sys; "
    return [sys.executable, "-c", counter + code]


def test_a_page_is_made_at_most_once_a_minute(tmp_path: Path) -> None:
    """For a minute every request gets the same page; the next request after it gets a new one."""
    now = 0.0
    page = web.PageProcess(made_by(tmp_path, "print('page', n, '\\xe5')"), lambda: now)
    assert page.response() == page.response() == Response("page 1 å\n", "text/html; charset=utf-8")
    now = 59.9
    assert page.response().body == "page 1 å\n"
    now = 60.0
    assert page.response().body == "page 2 å\n"


def test_no_old_page_is_served(tmp_path: Path) -> None:
    """While none can be made the answer is 503 without a detail, the log has the reason; a later request retries."""
    now = 0.0
    fails = "sys.exit('database is away: secret') if n == 2 else print('page', n)"
    page = web.PageProcess(made_by(tmp_path, fails), lambda: now)
    page.response()
    now = 61.0
    refused = page.response()
    assert (refused.code, "secret" in refused.body) == (503, False)
    now = 65.0
    assert page.response() == refused
    now = 71.0
    assert page.response().body == "page 3\n"
    page.close()
    now = 200.0
    assert page.response().code == 503


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_daemon_serves_the_page_until_it_ends(url: str, tmp_path: Path) -> None:
    """With TRACKER_HTTP_PORT the page is at /; a second daemon at that port is refused; SIGTERM ends it."""
    port = free_port()
    engine = database.open_database(url)
    register(engine, "jid-1")
    engine.dispose()
    with Script().serve() as script:
        env = environment(url, script.url, TRACKER_HTTP_PORT=str(port))
        log = tmp_path / "log"
        with log.open("wb") as stderr:
            daemon = subprocess.Popen([TRACKER, "run"], env=env, stderr=stderr)
        try:
            until(lambda: b'"serving"' in log.read_bytes())
            response, body = get(port)
            assert (response.status, "A daemon runs: " in body, "1 job: 1 open" in body) == (200, True, True)
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
