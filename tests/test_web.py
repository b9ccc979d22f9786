"""HTTP: who is answered, that a slow client delays nobody, how old the page may be, health and what is urgent."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from time import monotonic, sleep

import pytest
import sqlalchemy as sa

from tests.history import register, stand
from tests.hostile import free_port
from tests.scripted import Script
from tests.test_daemon import TRACKER, environment, until
from tracker import database, web
from tracker.errors import BadConfiguration
from tracker.metrics import Metrics, StoredMetrics
from tracker.settings import Settings
from tracker.status import Cause
from tracker.web import Response, Routes, Web


def get(port: int, path: str = "/", method: str = "GET", **headers: str) -> tuple[HTTPResponse, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response, body


@contextmanager
def served(routes: Routes) -> Iterator[int]:
    with web.listen("127.0.0.1", 0) as listening, web.serving(listening, routes):
        yield listening.getsockname()[1]


@pytest.fixture
def port() -> Iterator[int]:
    routes = {
        "/": lambda: Response("<p>page</p>", "text/html; charset=utf-8"),
        "/away": lambda: Response("not now\n", code=HTTPStatus.SERVICE_UNAVAILABLE),
        "/broken": lambda: Response(str(1 // 0)),
    }
    with served(routes) as port:
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


def raw(port: int, *pieces: bytes) -> bytes:
    """Send *pieces*, and return what comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        for piece in pieces:
            client.sendall(piece)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_what_is_no_request_is_refused(port: int) -> None:
    """Rubbish, another protocol and a head that is too long get 400; a body is not read, and two Hosts are none."""
    for rubbish in (b"\x16\x03\x01\x00\xff", b"GET /", b"PRI * HTTP/2.0"):
        assert raw(port, rubbish, b"\r\n\r\n").startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b" 400 " in raw(port, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + 65536 * b"x" + b"\r\n\r\n")
    assert b" 405 " in raw(port, b"POST / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", 100_000 * b"x")
    assert b" 421 " in raw(port, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
    assert b" 200 OK" in raw(port, b"GET / HT", b"TP/1.0\r\nhost:\tlocalhost \r\n\r", b"\n")


def test_a_slow_client_delays_nobody(port: int) -> None:
    """Three hundred clients that send half a request hold no thread, and do not keep others from being answered."""
    threads = threading.active_count()
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    for client in slow:
        client.sendall(b"GET / HTTP/1.1\r\nHost: loc")
    began = monotonic()
    assert get(port)[0].status == 200
    assert monotonic() - began < web.CLIENT_SECONDS / 2
    assert threading.active_count() <= threads + 1
    for client in slow:
        client.close()


def test_a_slow_client_has_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it dribbles its request or does not take its answer, its connection is closed in time."""
    monkeypatch.setattr(web, "CLIENT_SECONDS", 0.5)
    size = 50_000_000
    with (
        served({"/": lambda: Response("x" * size)}) as port,
        socket.create_connection(("127.0.0.1", port)) as taker,
        socket.create_connection(("127.0.0.1", port)) as dribbler,
    ):
        taker.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with pytest.raises(ConnectionError):
            until(lambda: dribbler.send(b"G") != 1, 5)
        assert len(b"".join(iter(lambda: taker.recv(1_000_000), b""))) < size


def test_a_slow_response_is_made_once_and_holds_up_no_other() -> None:
    """Those who ask meanwhile get the same one; it holds up no other path, and not the server's end."""
    go, made, answers = threading.Event(), list[int](), list[str]()

    def slow() -> Response:
        made.append(1)
        go.wait(20)
        return Response("slow")

    with served({"/slow": slow, "/quick": lambda: Response("quick")}) as port:
        clients = [threading.Thread(target=lambda: answers.append(get(port, "/slow")[1])) for _ in range(5)]
        for client in clients:
            client.start()
        until(lambda: bool(made))
        assert get(port, "/quick")[1] == "quick"
        sleep(0.2)
        go.set()
        for client in clients:
            client.join(20)
        assert (answers, len(made)) == (["slow"] * 5, 1)
        go.clear()
        with socket.create_connection(("127.0.0.1", port)) as left:
            left.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
            until(lambda: len(made) > 1)
        began = monotonic()
    assert monotonic() - began < 5
    go.set()


Serve = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def serve(engine: sa.Engine) -> Iterator[Serve]:
    """Return a function that serves what a daemon does, with these settings."""
    made = Web([sys.executable, "-c", "print('page')"], lambda: 0.0, Metrics())

    def serve(port: int, **more: object) -> AbstractContextManager[None]:
        return made.beside(Settings.model_validate({"http_port": port} | more))(engine)

    yield serve
    with made.beside(Settings())(engine):
        pass


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_what_cannot_be_listened_at_is_a_clear_error(serve: Serve) -> None:
    """The message names the setting and says what to do; what is served already is not disturbed."""
    held, free = free_port(), free_port()
    with socket.create_server(("127.0.0.1", held)), serve(free):
        with pytest.raises(BadConfiguration, match=rf"^TRACKER_HTTP_PORT: .*:{held} \(.* in use\): set another port"):
            serve(held)
        for bind in ("192.0.2.1", "2001:db8::1"):
            with pytest.raises(BadConfiguration, match=rf"^TRACKER_HTTP_BIND: .*{bind}.*: set an address of this"):
                serve(free, http_bind=bind)
        assert get(free, "/healthz")[0].status == 200


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_reload_refuses_nobody(serve: Serve) -> None:
    """A port that stays is never closed, and a new one replaces the old one."""
    one, two = free_port(), free_port()
    with serve(one):
        again = serve(one)
    with socket.create_connection(("127.0.0.1", one), timeout=10) as between:
        between.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        with again:
            assert b" 200 OK" in between.recv(1000)
            other = serve(two)
    with other:
        assert get(two, "/healthz")[0].status == 200
        with pytest.raises(ConnectionRefusedError):
            get(one)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_page_can_be_off(serve: Serve) -> None:
    """On, it is served at loopback to a name of this machine, else to any name; the rest is always to any name."""
    beyond = {"http_bind": "0.0.0.0"}  # noqa: S104 - the case
    for more, host, code in (
        ({}, "localhost", 200),
        ({}, "tracker.example", 421),
        (beyond, "localhost", 404),
        (beyond | {"http_page": True}, "tracker.example", 200),
    ):
        port = free_port()
        with serve(port, **more):
            response, body = get(port, Host=host)
            assert (response.status, "TRACKER_HTTP_PAGE" in body) == (code, code == 404)
            for path in ("/healthz", "/readyz", "/metrics"):
                assert get(port, path, Host="tracker.example")[0].status == 200


def test_healthy_is_a_daemon_that_looks_at_its_clusters() -> None:
    """It is unhealthy when no look was completed for a minute, and nothing else matters."""
    assert web.healthz(59.9).code == 200
    refused = web.healthz(75.4)
    assert (refused.code, refused.body) == (503, "The last look at the clusters was completed 75 s ago.\n")


def test_ready_is_a_database_where_nothing_is_urgent(engine: sa.Engine, url: str) -> None:
    """What is urgent is listed with its kind, subject and count, and no jid; so is a database that is away."""
    register(engine, "jid-secret", reference="T-1")
    ready = web.readyz(StoredMetrics(engine, Settings()))
    assert (ready.code, ready.content_type, json.loads(ready.body)) == (200, "application/json", [])
    with database.reading(engine) as connection:
        now = database.now(connection)
    stand(engine, "w1", gap_cause=Cause.KEY_REFUSED, gap_began_at=now)
    stand(engine, "w2", pause_cause=Cause.PAUSED)
    refused = web.readyz(StoredMetrics(engine, Settings()))
    assert refused.code == 503
    assert json.loads(refused.body) == [{"kind": "key_refused", "subject": "w1", "count": 1}]
    away = sa.make_url(url).set(database="/nowhere/x.db" if url.startswith("sqlite") else "nowhere")
    gone = web.readyz(StoredMetrics(database.create_engine(away.render_as_string(hide_password=False)), Settings()))
    assert (gone.code, json.loads(gone.body)[0]["kind"]) == (503, "database_unavailable")


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
            assert (response.status, "A daemon is running: " in body, "1 job: 1 open" in body) == (200, True, True)
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
