"""Checkpoints leave the database: each destination gets all of them, in order, whatever fails for how long."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.history import register
from tests.hostile import Hostile
from tests.test_checkpoint import KEY
from tests.test_checks import unguarded
from tracker import database
from tracker.audit import deliver
from tracker.audit.checkpoint import parse, split
from tracker.audit.deliver import Courier
from tracker.audit.seal import chain, seal
from tracker.models import DELIVERIES
from tracker.settings import Settings


class Receiver:
    """A real server on loopback that takes checkpoints, alerts and pings.

    Attributes:
        codes, always, by_path: What it answers, in turn, to all, or on a path; else 200.
        got: The path, the headers and the body of what came, and what was answered.
        watch: Is called during each request.
        judge: Returns code and body of the answer to a body, where it is set.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.codes: list[int] = []
        self.always: int | None = None
        self.by_path: dict[str, int] = {}
        self.got: list[tuple[str, str, str, str, int]] = []
        self.watch: Callable[[], object] = lambda: None
        self.judge: Callable[[str], tuple[int, str]] | None = None
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
                code = (
                    receiver.by_path.get(self.path)
                    or receiver.always
                    or (receiver.codes.pop(0) if receiver.codes else 200)
                )
                code, said = receiver.judge(body) if receiver.judge else (code, "")
                kind, number = self.headers["Content-Type"], self.headers["Tracker-Checkpoint"]
                receiver.got.append((self.path, kind, number, body, code))
                receiver.watch()
                self.send_response(code)
                self.send_header("Location", f"{receiver.url}/elsewhere")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said.encode())

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/take/s3cret-path"
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
            self.url = f"https://localhost:{self.port}/take/s3cret-path"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def taken(self) -> list[str]:
        return [body for *_, body, code in self.got if 200 <= code < 300]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def dialect() -> str:
    """SQLite, where a test does not ask for both: what leaves is the same."""
    return "sqlite"


both = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])


class Clock:
    """Monotonic seconds that a test sets."""

    at = 1000.0

    def __call__(self) -> float:
        return self.at


def sealed(engine: sa.Engine, jids: str) -> list[str]:
    """Register each jid, seal after each, and return the whole chain's texts."""
    for jid in jids.split():
        register(engine, jid)
        seal(engine, KEY)
    return texts(engine)


def texts(engine: sa.Engine) -> list[str]:
    with database.reading(engine) as connection:
        return [signed.text for signed in chain(connection)]


def noted(engine: sa.Engine, beginning: str = "") -> Any:
    """Return the row of the destination whose name begins so."""
    with database.reading(engine) as connection:
        query = sa.select(DELIVERIES).where(DELIVERIES.c.destination.startswith(beginning))
        return connection.execute(query).one()


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    return [record.__dict__["fields"] for record in caplog.records if record.message == name]


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tracker")


@both
def test_each_destination_gets_all_in_order(
    engine: sa.Engine, receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Log, file and URL get every checkpoint once, outside of a transaction, and `deliveries` holds no secret."""
    receiver.watch = lambda: in_use.append(engine.pool.checkedout())  # type: ignore[attr-defined]
    in_use: list[int] = []
    register(engine, "first")
    seal(engine, None)
    sealed(engine, "b")
    path = tmp_path / "checkpoints.txt"
    courier = Courier(engine, path, receiver.url)
    assert courier.deliver() is None
    all_ = sealed(engine, "c")
    assert courier.deliver() is None
    assert courier.deliver() is None
    assert path.read_text() == "".join(f"{text}\n" for text in all_)
    assert (split(path.read_text()), stat.S_IMODE(path.stat().st_mode)) == (all_, 0o644)
    kind = "text/plain; charset=utf-8"
    assert receiver.got == [("/take/s3cret-path", kind, str(n), text, 200) for n, text in enumerate(all_, 1)]
    assert in_use == [0, 0, 0]
    keys = ("unsigned", KEY.public.id, KEY.public.id)
    assert [(one["number"], one["sha256"], one["key"]) for one in events(caplog, "checkpoint")] == [
        (n, parse(text).sha256, key) for n, (text, key) in enumerate(zip(all_, keys, strict=True), 1)
    ]
    for name in ("log", "file", "http"):
        row = noted(engine, name)
        assert (row.last_number, row.failing_since, row.last_error) == (3, None, None)
        assert row.delivered_at is not None
        assert "s3cret" not in str(row) + caplog.text


@both
def test_a_url_that_fails_gets_them_later_in_order(
    engine: sa.Engine, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """What a server did not take is noted with class and code, tried again with backoff, and arrives in order."""
    clock = Clock()
    courier = Courier(engine, url=receiver.url, clock=clock)
    sealed(engine, "a")
    courier.deliver()
    receiver.codes = [503] * 7
    sealed(engine, "b c")
    assert courier.deliver() == 15
    first = noted(engine, "http")
    assert (first.last_number, first.last_error) == (1, "Unavailable http_503")
    assert first.failing_since is not None
    clock.at += 14
    assert courier.deliver() == 1  # not asked before its time
    pauses = []
    for _ in range(6):
        clock.at += 10_000
        pauses.append(courier.deliver())
    assert pauses == [30, 60, 120, 240, 240, 240]
    assert noted(engine, "http").failing_since == first.failing_since
    clock.at += 240
    assert courier.deliver() is None
    row = noted(engine, "http")
    assert (row.last_number, row.failing_since, row.last_error) == (3, None, None)
    assert receiver.taken == texts(engine)
    assert [one["error"] for one in events(caplog, "delivery_failed")] == ["Unavailable http_503"] * 7
    assert len(events(caplog, "delivery_resumed")) == 1


def test_only_2xx_means_delivered(
    engine: sa.Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No refusal or redirect counts, and none is followed; any 2xx does. The environment's proxy gets nothing."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    all_ = sealed(engine, "a b c")
    refusals = {302: "WrongTarget", 400: "BadAnswer", 403: "KeyRefused", 404: "WrongTarget", 429: "RateLimited"}
    for code, name in (refusals | {500: "Unavailable"}).items():
        receiver.codes = [code]
        Courier(engine, url=receiver.url).deliver()
        row = noted(engine, "http")
        assert (row.last_number, row.last_error) == (0, f"{name} http_{code}")
    assert len(receiver.got) == 6
    receiver.codes = [201, 202, 204]
    assert Courier(engine, url=receiver.url).deliver() is None
    assert receiver.taken == all_


def test_a_receiver_of_a_company_with_its_own_authority(
    engine: sa.Engine, tls: ssl.SSLContext, certificate: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its certificate is trusted by `receiver_ca_bundle`; the way to it leads through `receiver_proxy`, encrypted."""
    all_ = sealed(engine, "a b")
    with Receiver(tls) as receiver, Hostile(lambda wire: wire.tunnel(receiver.port)) as proxy:
        Courier.of(engine, Settings(checkpoint_url=receiver.url)).deliver()
        assert noted(engine, "http").last_error == "WrongTarget tls_unverified"
        assert "TRACKER_RECEIVER_CA_BUNDLE" in events(caplog, "delivery_failed")[-1]["note"]
        trusting = Settings(checkpoint_url=receiver.url, receiver_ca_bundle=certificate)
        assert Courier.of(engine, trusting).deliver() is None
        assert receiver.taken == all_
        by_proxy = trusting.model_copy(update={"receiver_proxy": proxy.url.replace("//", "//user:pass@")})
        all_ = sealed(engine, "c")
        assert Courier.of(engine, by_proxy).deliver() is None
        assert receiver.taken == [*all_[:2], *all_[1:]]  # the last one again
        assert proxy.requests[0].startswith(f"CONNECT localhost:{receiver.port} ".encode())
        assert b"Proxy-Authorization: Basic dXNlcjpwYXNz" in proxy.requests[0]
        assert b"s3cret" not in b"".join(proxy.passed + proxy.requests)
        proxy.play = lambda wire: wire.reply("", "403 no")
        all_ = sealed(engine, "d")
        Courier.of(engine, by_proxy).deliver()
        assert noted(engine, "http").last_error == "Unavailable proxy"
        assert "TRACKER_RECEIVER_PROXY" in events(caplog, "delivery_failed")[-1]["note"]
    with Receiver() as receiver:  # this machine is reached without it
        Courier.of(engine, by_proxy.model_copy(update={"checkpoint_url": receiver.url})).deliver()
        assert receiver.taken == all_


def test_authorities_that_went_away_are_named(engine: sa.Engine, certificate: Path, tmp_path: Path) -> None:
    """Their file was good when the settings were read; the other destinations get theirs."""
    all_ = sealed(engine, "a")
    authorities = Path(shutil.copy(certificate, tmp_path))
    courier = Courier(engine, tmp_path / "c.txt", "https://localhost:9/", ca_bundle=authorities)
    authorities.unlink()
    assert courier.deliver() == pytest.approx(15, abs=1)
    assert noted(engine, "http").last_error == "BadConfiguration ca_bundle"
    assert split((tmp_path / "c.txt").read_text()) == all_


def test_a_server_that_does_not_answer_holds_nobody_up(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request has a deadline, and nobody may listen at all; the file gets its own all the same."""
    all_ = sealed(engine, "a")
    monkeypatch.setattr(deliver, "TIMEOUT", timedelta(seconds=0.2))
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts connections, and is silent
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        Courier(engine, url=url).deliver()
    assert noted(engine, "http").last_error == "Unavailable timeout"
    assert Courier(engine, tmp_path / "c.txt", url).deliver() == pytest.approx(15, abs=1)
    assert noted(engine, "http").last_error == "Unavailable refused"
    assert split((tmp_path / "c.txt").read_text()) == all_


@both
def test_two_daemons_deliver_each_number_after_the_one_below(engine: sa.Engine, receiver: Receiver) -> None:
    """Two at the same moment may deliver one twice, and never one before another that is below it."""
    couriers = [Courier(engine, url=receiver.url) for _ in range(4)]
    all_ = sealed(engine, "a b c d e f g h")
    threads = [threading.Thread(target=courier.deliver) for courier in couriers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while couriers[0].deliver() is not None:
        pass
    assert list(dict.fromkeys(receiver.taken)) == all_


def test_a_file_is_completed(engine: sa.Engine, tmp_path: Path) -> None:
    """Another host's, a deleted one, one that a crash cut off anywhere: all is in it, and nothing twice."""
    path = tmp_path / "c.txt"
    courier = Courier(engine, path)
    sealed(engine, "a b")
    courier.deliver()
    Courier(engine, tmp_path / "other").deliver()
    all_ = sealed(engine, "c")
    courier.deliver()
    path.unlink()
    courier.deliver()  # nothing new is needed to see that it is gone
    whole = path.read_bytes()
    assert split(whole.decode()) == all_
    length = len(whole)
    cuts = {0, 1, 22, len(all_[0]) - 1, len(all_[0]), len(all_[0]) + 1, len(all_[0]) + 30, length - 1, length - 2}
    for cut in sorted({*cuts, *range(0, length, 197)}):
        path.write_bytes(whole[:cut])
        assert courier.deliver() is None
        assert path.read_bytes() == whole, cut
    assert noted(engine, f"file {path}").last_number == 3


def test_a_file_with_something_else_in_it_is_left_alone(
    engine: sa.Engine, tmp_path: Path, sqlite_template: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Garbage, or a checkpoint of another database: status has the code."""
    all_ = sealed(engine, "a")
    another = database.open_database(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'other.db')}")
    (foreign,) = sealed(another, "z")
    another.dispose()
    path = tmp_path / "c.txt"
    for content, code in (
        ("hello\n", "garbage"),
        ("tracker checkpoint v2\norigin 00\n\n", "garbage"),
        ("x" * 70_000 + "\n\n" + "y" * 70_000, "garbage"),
        (f"{all_[0]}\nand more", "garbage"),
        (f"{foreign}\n", "other_chain"),
    ):
        path.write_text(content)
        caplog.clear()
        assert Courier(engine, path).deliver() is not None
        assert path.read_text() == content
        assert noted(engine, "file").last_error == f"CheckpointFile {code}"
        (failed,) = events(caplog, "delivery_failed")
        assert "move it away" in failed["note"]


def test_a_damaged_chain_is_delivered_up_to_there(engine: sa.Engine, receiver: Receiver, tmp_path: Path) -> None:
    """What somebody removed from the database is noted; what is before it still leaves."""
    all_ = sealed(engine, "a b c d")
    with unguarded(engine) as connection:
        connection.exec_driver_sql("DELETE FROM seals WHERE id = 3")
    Courier(engine, tmp_path / "c.txt", receiver.url).deliver()
    assert receiver.taken == split((tmp_path / "c.txt").read_text()) == all_[:2]
    for name in ("log", "file", "http"):
        assert (noted(engine, name).last_number, noted(engine, name).last_error) == (2, "Chain damaged")
