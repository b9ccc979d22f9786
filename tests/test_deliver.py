"""Checkpoints leave the database: each way gets all of them, in order, whatever fails for how long."""

from __future__ import annotations

import errno
import logging
import os
import socket
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
from tests.test_checkpoint import KEY
from tracker import database
from tracker.audit import deliver
from tracker.audit.checkpoint import Signed, parse, split
from tracker.audit.deliver import Courier
from tracker.audit.seal import chain, seal
from tracker.models import DELIVERIES


class Receiver:
    """A real server on loopback that takes checkpoints.

    Attributes:
        codes: What it answers, in turn; 200 when there is none left.
        got: (path, number, body) of what came, with the code that was answered.
    """

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.always: int | None = None
        self.got: list[tuple[str, str, str, str, int]] = []
        self.url = ""

    @property
    def taken(self) -> list[str]:
        """The texts that it said it took."""
        return [body for *_, body, code in self.got if 200 <= code < 300]

    def __enter__(self) -> Receiver:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                code = receiver.always or (receiver.codes.pop(0) if receiver.codes else 200)
                kind, number = self.headers["Content-Type"], self.headers["Tracker-Checkpoint"]
                receiver.got.append((self.path, kind, number, body, code))
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                receiver.got.append((self.path, "", "", "", 200))
                self.send_error(404)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/take/s3cret-path"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def engine_(sqlite_template: Path, tmp_path: Path) -> Iterator[sa.Engine]:
    """A SQLite database, for what has nothing to do with the database."""
    (tmp_path / "own.db").write_bytes(sqlite_template.read_bytes())
    engine = database.open_database(f"sqlite:///{tmp_path / 'own.db'}")
    yield engine
    engine.dispose()


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.at = 1000.0

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


def noted(engine: sa.Engine) -> dict[str, Any]:
    with database.reading(engine) as connection:
        return {row.destination: row for row in connection.execute(sa.select(DELIVERIES))}


def of_url(engine: sa.Engine) -> Any:
    (row,) = [row for name, row in noted(engine).items() if name.startswith("http")]
    return row


def of_file(engine: sa.Engine) -> Any:
    (row,) = [row for name, row in noted(engine).items() if name.startswith("file")]
    return row


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    return [record.__dict__["fields"] for record in caplog.records if record.message == name]


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tracker")


def test_each_way_gets_all_in_order(
    engine: sa.Engine, receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Log, file and URL get every checkpoint from the first on, once, and `deliveries` holds no secret."""
    all_ = sealed(engine, "a b")
    path = tmp_path / "checkpoints.txt"
    courier = Courier(engine, path, receiver.url)
    assert courier.deliver() is None
    all_ = sealed(engine, "c")
    assert courier.deliver() is None
    assert courier.deliver() is None
    assert len(all_) == 3
    assert path.read_text() == "".join(f"{text}\n" for text in all_)
    assert split(path.read_text()) == all_
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    kind = "text/plain; charset=utf-8"
    assert receiver.got == [("/take/s3cret-path", kind, str(n), text, 200) for n, text in enumerate(all_, 1)]
    assert [(one["number"], one["sha256"], one["key"]) for one in events(caplog, "checkpoint")] == [
        (n, parse(text).sha256, KEY.public.id) for n, text in enumerate(all_, 1)
    ]
    rows = noted(engine)
    assert {(row.last_number, row.failing_since, row.last_error) for row in rows.values()} == {(3, None, None)}
    assert all(row.delivered_at is not None for row in rows.values())
    assert "s3cret" not in str(rows) + caplog.text


def test_an_unsigned_one_is_called_so_in_the_log(engine_: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody takes it for signed."""
    register(engine_, "a")
    seal(engine_, None)
    Courier(engine_).deliver()
    (one,) = events(caplog, "checkpoint")
    assert (one["number"], one["key"], one["rows"]) == (1, "unsigned", 1)


def test_a_url_that_fails_gets_them_later_in_order(
    engine: sa.Engine, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """What a server did not take is noted with class and code, tried again with backoff, and arrives in order."""
    clock = Clock()
    courier = Courier(engine, url=receiver.url, clock=clock)
    sealed(engine, "a")
    courier.deliver()
    receiver.always = 503
    sealed(engine, "b c")
    assert courier.deliver() == 15
    first = of_url(engine)
    assert (first.last_number, first.last_error) == (1, "Unavailable http_503")
    assert first.failing_since is not None
    clock.at += 14
    assert courier.deliver() == 1  # not asked before its time
    pauses = []
    for _ in range(6):
        clock.at += 10_000
        pauses.append(courier.deliver())
    assert pauses == [30, 60, 120, 240, 240, 240]
    assert of_url(engine).failing_since == first.failing_since
    receiver.always = None
    clock.at += 240
    assert courier.deliver() is None
    row = of_url(engine)
    assert (row.last_number, row.failing_since, row.last_error) == (3, None, None)
    assert receiver.taken == texts(engine)
    assert [one["error"] for one in events(caplog, "delivery_failed")] == ["Unavailable http_503"] * 7
    assert len(events(caplog, "delivery_resumed")) == 1


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (302, "WrongTarget http_302"),
        (400, "BadAnswer http_400"),
        (403, "KeyRefused http_403"),
        (404, "WrongTarget http_404"),
        (429, "RateLimited http_429"),
        (500, "Unavailable http_500"),
    ],
)
def test_only_2xx_is_taken_for_delivered(engine_: sa.Engine, receiver: Receiver, code: int, told: str) -> None:
    """Neither a refusal nor a redirect counts, and none is followed."""
    sealed(engine_, "a")
    receiver.codes = [code]
    Courier(engine_, url=receiver.url).deliver()
    assert (of_url(engine_).last_number, of_url(engine_).last_error) == (0, told)
    assert len(receiver.got) == 1


def test_any_2xx_is_enough(engine_: sa.Engine, receiver: Receiver) -> None:
    """201, 202 and 204 say that it was taken, too."""
    sealed(engine_, "a b c")
    receiver.codes = [201, 202, 204]
    assert Courier(engine_, url=receiver.url).deliver() is None
    assert of_url(engine_).last_number == 3


def test_the_environments_proxy_gets_nothing(
    engine_: sa.Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints go where the setting says, and by no variable's way."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    sealed(engine_, "a")
    assert Courier(engine_, url=receiver.url).deliver() is None


def test_a_server_that_never_ends_its_answer_is_left(engine_: sa.Engine) -> None:
    """The deadline is for the whole of a request: headers that drip do not hold the others up."""
    sealed(engine_, "a")
    stop = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        Courier(engine_, url=url, timeout=timedelta(seconds=0.4)).deliver()
        stop.set()
        thread.join()
    assert of_url(engine_).last_error == "Unavailable timeout"


def test_nobody_listens(engine_: sa.Engine, tmp_path: Path) -> None:
    """A refused connection is noted, and the file gets its own all the same."""
    all_ = sealed(engine_, "a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
    assert Courier(engine_, tmp_path / "c.txt", url).deliver() == pytest.approx(15, abs=1)
    assert of_url(engine_).last_error == "Unavailable refused"
    assert split((tmp_path / "c.txt").read_text()) == all_


def test_two_daemons_deliver_each_number_after_the_one_below(engine: sa.Engine, receiver: Receiver) -> None:
    """Two at the same moment may deliver one twice, and never one before another that is below it."""
    all_ = sealed(engine, "a b c d e f g h")
    couriers = [Courier(engine, url=receiver.url) for _ in range(2)]
    while any([courier.deliver() is not None for courier in couriers]):  # noqa: C419 - each has its turn
        pass
    again = [Courier(engine, url=receiver.url) for _ in range(2)]
    assert [courier.deliver() for courier in again] == [None, None]
    threads = [threading.Thread(target=courier.deliver) for courier in (*couriers, *again)]
    all_ = sealed(engine, "i j k l")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    couriers[0].deliver(seconds=5)
    first_came = list(dict.fromkeys(receiver.taken))
    assert first_came == all_[: len(first_came)]
    assert len(first_came) > 8


def test_a_stop_ends_it_after_the_one_under_way(engine_: sa.Engine, receiver: Receiver) -> None:
    """Who stops does not wait for a long chain to be delivered; the next call goes on."""
    all_ = sealed(engine_, "a b c")
    stop = threading.Event()
    stop.set()
    courier = Courier(engine_, url=receiver.url)
    assert courier.deliver(stop) is not None
    assert receiver.taken == []
    clock = Clock()
    courier = Courier(engine_, url=receiver.url, clock=clock)
    assert courier.deliver(seconds=0) == 1
    clock.at += 1
    assert courier.deliver() is None
    assert receiver.taken == all_


def test_a_file_that_was_deleted_is_made_again(engine_: sa.Engine, tmp_path: Path) -> None:
    """What is in the file counts, not what is noted; nothing new is needed to see that it is gone."""
    all_ = sealed(engine_, "a b c")
    path = tmp_path / "c.txt"
    courier = Courier(engine_, path)
    courier.deliver()
    path.unlink()
    courier.deliver()
    assert split(path.read_text()) == all_


def test_a_file_that_a_crash_cut_off_is_completed(engine_: sa.Engine, tmp_path: Path) -> None:
    """Wherever the crash was, the rest is appended: no byte that is there is touched, nothing is there twice."""
    all_ = sealed(engine_, "a b c")
    path = tmp_path / "c.txt"
    whole = "".join(f"{text}\n" for text in all_).encode()
    length = len(whole)
    cuts = {0, 1, 22, len(all_[0]) - 1, len(all_[0]), len(all_[0]) + 1, len(all_[0]) + 30, length - 1, length - 2}
    for cut in sorted({*cuts, *range(0, length, 97)}):
        path.write_bytes(whole[:cut])
        assert Courier(engine_, path).deliver() is None
        assert path.read_bytes() == whole, cut
    assert of_file(engine_).last_number == 3


def test_a_file_of_another_host_is_completed(engine_: sa.Engine, tmp_path: Path) -> None:
    """Two hosts, each with a file of its own: both get all, whoever delivered what."""
    one, other = tmp_path / "one" / "c.txt", tmp_path / "other" / "c.txt"
    for path in (one, other):
        path.parent.mkdir()
    first = Courier(engine_, one)
    sealed(engine_, "a b")
    first.deliver()
    all_ = sealed(engine_, "c")
    for path in (other, one):
        Courier(engine_, path).deliver()
        assert split(path.read_text()) == all_


def test_a_file_with_more_than_a_page(engine_: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, and the last is found where the file is longer than what is read first."""
    monkeypatch.setattr(deliver, "PAGE", 2)
    all_ = sealed(engine_, "a b c d e")
    path = tmp_path / "c.txt"
    Courier(engine_, path).deliver()
    assert split(path.read_text()) == all_


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("hello\n", "garbage"),
        ("hello\n\n", "garbage"),
        ("tracker checkpoint v2\norigin 00\n\n", "garbage"),
        ("x" * 70_000 + "\n\n" + "y" * 70_000, "garbage"),
        ("{1}\nand more", "garbage"),
        ("{other}\n", "other_chain"),
    ],
)
def test_a_file_with_something_else_in_it_is_left_alone(
    engine_: sa.Engine, tmp_path: Path, content: str, code: str, sqlite_template: Path, caplog: Any
) -> None:
    """Nothing is appended to what is no file of this database's; status has the code, the log the way out."""
    all_ = sealed(engine_, "a")
    other = tmp_path / "other.db"
    other.write_bytes(sqlite_template.read_bytes())
    another = database.open_database(f"sqlite:///{other}")
    (foreign,) = sealed(another, "z")
    another.dispose()
    path = tmp_path / "c.txt"
    path.write_text(content.replace("{1}", all_[0]).replace("{other}", foreign))
    before = path.read_bytes()
    assert Courier(engine_, path).deliver() is not None
    assert path.read_bytes() == before
    assert of_file(engine_).last_error == f"CheckpointFile {code}"
    (told,) = events(caplog, "delivery_failed")
    assert "move it away" in told["note"]


def test_a_file_that_is_ahead_of_the_database_is_reported(
    engine_: sa.Engine, tmp_path: Path, sqlite_template: Path
) -> None:
    """An old copy of the database in its place does not go unnoticed where the file is."""
    sealed(engine_, "a")
    engine_.dispose()
    old = (tmp_path / "own.db").read_bytes()
    sealed(engine_, "b")
    path = tmp_path / "c.txt"
    Courier(engine_, path).deliver()
    engine_.dispose()
    for leftover in tmp_path.glob("own.db-*"):
        leftover.unlink()
    (tmp_path / "own.db").write_bytes(old)
    before = path.read_bytes()
    Courier(engine_, path).deliver()
    assert of_file(engine_).last_error == "CheckpointFile other_chain"
    assert path.read_bytes() == before


def test_places_that_cannot_be_written(engine_: sa.Engine, tmp_path: Path) -> None:
    """A folder that is missing, a pipe, a folder in its place: noted with class and code, and nothing hangs."""
    sealed(engine_, "a")
    os.mkfifo(tmp_path / "pipe")
    for path, code in (
        (tmp_path / "missing" / "c.txt", "FileNotFoundError ENOENT"),
        (tmp_path / "pipe", "CheckpointFile not_a_file"),
        (tmp_path, "IsADirectoryError EISDIR"),
    ):
        Courier(engine_, path).deliver()
        assert noted(engine_)[f"file {path}"].last_error == code


def test_a_full_disk_leaves_a_file_that_is_completed(
    engine_: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits is written, the failure is noted, and the rest follows when there is room."""
    all_ = sealed(engine_, "a b")
    write, room = os.write, 100

    def full(descriptor: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, data[:room])
        room -= written
        return written

    path, clock = tmp_path / "c.txt", Clock()
    courier = Courier(engine_, path, clock=clock)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert courier.deliver() == 15
    assert (of_file(engine_).last_error, path.stat().st_size) == ("OSError ENOSPC", 100)
    clock.at += 15
    assert courier.deliver() is None
    assert split(path.read_text()) == all_
    assert of_file(engine_).failing_since is None


def test_what_another_daemon_fails_at_is_its_own_to_clear(engine_: sa.Engine, tmp_path: Path) -> None:
    """Of two hosts with the same path, the one that works does not hide that the other fails."""
    sealed(engine_, "a")
    path = tmp_path / "c.txt"
    works = Courier(engine_, path)
    works.deliver()
    path.chmod(0o644)
    fails, clock = None, Clock()
    fails = Courier(engine_, path, clock=clock)
    content = path.read_text()
    path.write_text("garbage\n")  # stands for the other host's file
    fails.deliver()
    path.write_text(content)
    sealed(engine_, "b")
    works.deliver()
    assert of_file(engine_).last_error == "CheckpointFile garbage"
    clock.at += 15
    fails.deliver()
    assert of_file(engine_).last_error is None


def test_a_destination_that_is_given_up_does_not_fail_permanently(engine_: sa.Engine, tmp_path: Path) -> None:
    """A setting that was changed because it failed ends the alarm with the restart; how far it came stays."""
    sealed(engine_, "a")
    Courier(engine_, tmp_path / "missing" / "c.txt").deliver()
    assert of_file(engine_).failing_since is not None
    Courier(engine_).deliver()
    assert (of_file(engine_).failing_since, of_file(engine_).last_error) == (None, None)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE seals SET checkpoint = replace(checkpoint, 'rows 1', 'rows one') WHERE id = 3",
        "DELETE FROM seals WHERE id = 3",
    ],
)
def test_a_damaged_chain_is_handed_on_up_to_there(
    engine_: sa.Engine, receiver: Receiver, tmp_path: Path, change: str
) -> None:
    """What somebody changed in the database stays there, and is noted; what is before it still leaves, each way."""
    all_ = sealed(engine_, "a b c d")
    with database.writing(engine_) as connection:
        for name in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all():
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.exec_driver_sql("DELETE FROM segments")
        connection.exec_driver_sql(change)
    Courier(engine_, tmp_path / "c.txt", receiver.url).deliver()
    assert receiver.taken == split((tmp_path / "c.txt").read_text()) == all_[:2]
    assert {(row.last_number, row.last_error) for row in noted(engine_).values()} == {(2, "Chain damaged")}


def test_an_emptied_table_is_filled_again(engine_: sa.Engine, receiver: Receiver) -> None:
    """If what was noted is deleted, everything arrives again, and delivery goes on."""
    all_ = sealed(engine_, "a b")
    clock = Clock()
    courier = Courier(engine_, url=receiver.url, clock=clock)
    courier.deliver()
    with database.writing(engine_) as connection:
        connection.execute(sa.delete(DELIVERIES))
    while courier.deliver() is not None:
        clock.at += 1
    assert receiver.taken == all_ * 2
    assert of_url(engine_).last_number == 2


def test_no_request_is_made_in_a_transaction(
    engine: sa.Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While a server takes its time, nobody waits for a lock of ours: no connection is in use then."""
    sealed(engine, "a b")
    in_use: list[object] = []
    send: Callable[[Any, Any], None] = deliver._Url.send

    def watched(way: Any, signed: Signed) -> None:
        in_use.append(engine.pool.checkedout())  # type: ignore[attr-defined]
        send(way, signed)

    monkeypatch.setattr(deliver._Url, "send", watched)
    assert Courier(engine, tmp_path / "c.txt", receiver.url).deliver() is None
    assert in_use == [0, 0]
