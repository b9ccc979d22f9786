"""One cell of the matrix: an Elevate, a database and a daemon for one fault, and what must be true at the end."""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from tests.faults import hurry
from tests.faults.databases import PASSWORD, Postgres, Sqlite
from tests.hostile import Hostile, Wire
from tests.processes import Process
from tracker import database
from tracker.errors import DatabaseUnavailable

KEY = "api-key-mark"  # no output or file may hold it
JIDS = [f"ca24b4e2-34ab-406a-a4db-b30b0247{number:04}" for number in range(10)]
BOTH = ("SQLite", "PostgreSQL")
SETTINGS = {
    "TRACKER_CLUSTER": "w1",
    "TRACKER_API_KEY": KEY,
    "TRACKER_MAX_REQUESTS_PER_SECOND": "200",
    "TRACKER_REQUEST_TIMEOUT": "1 s",
    "TRACKER_SEAL_AFTER": "0 s",
    "TRACKER_SIGNING_KEY_FILE": "signing.pem",
    "TRACKER_CHECKPOINT_FILE": "checkpoints.txt",
}
SLACK = timedelta(seconds=1)  # between what the server and the daemon see, on a busy machine


@dataclass(frozen=True)
class Fault:
    """A fault, and what must come of it.

    Attributes:
        inject: The fault lasts as long as this context.
        gap: The causes that its gaps may have.
        shows: What `tracker status` says meanwhile (the kind of a need, or an error), and its exit code.
        seconds: How long it lasts at least.
        within: Seconds in which all jobs are seen done after it.
        share: Which part of the requests it affects. If it is below 1, jobs are followed all the time.
        on: The databases on which it is tried.
        start: Starts the daemon.
        covers: Whether the gaps must cover the fault.
        clock: Clocks are wrong, so times are not compared with the server's.
        once: The exit code of `run --once` meanwhile.
        tls: Makes the server's certificates, in a folder.
    """

    name: str
    inject: Callable[[Cell], AbstractContextManager[object]]
    gap: tuple[str, ...] = ()
    shows: tuple[str, int] | None = None
    seconds: float = 0.0
    within: float = 10.0
    share: float = 1.0
    on: tuple[str, ...] = BOTH
    start: Callable[[Cell], object] = field(default=lambda cell: cell.start())
    covers: bool = True
    clock: bool = False
    once: int = 0
    tls: Callable[[Path], ssl.SSLContext | None] = lambda folder: None


class Elevate:
    """A server in Elevate's place: all jobs have one status; a *share* of the requests gets *fault*.

    Attributes:
        said: Every complete valid answer: when, the jid, the status.
        faulty: When it did the fault instead.
        pause: How long it thinks before an answer, in seconds.
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.tls, self.port, self.rng = tls, 0, random.Random(1)
        self.status, self.pause, self.share = "waiting", 0.0, 1.0
        self.headers = ("Connection: close",) if tls else ()
        self.said: list[tuple[datetime, str, str]] = []
        self.faulty: list[datetime] = []
        self.fault: Callable[[Wire], object] | None = None
        self.up()

    def up(self) -> None:
        self.server = Hostile(self.play, tls=self.tls, port=self.port).__enter__()
        self.port = self.server.port

    def down(self) -> None:
        self.server.__exit__()

    def play(self, wire: Wire) -> None:
        if (fault := self.fault) is not None and self.rng.random() < self.share:
            self.faulty.append(datetime.now(UTC))
            fault(wire)
        else:
            self.server.ending.wait(self.pause)
            status = self.status
            self.said.append((datetime.now(UTC), wire.jid, status))
            wire.answer(status, *self.headers)


class Cell:
    """The world of one fault, in *folder*; a context manager, at whose end nothing is left running."""

    def __init__(self, fault: Fault, kind: str, folder: Path, template: Path) -> None:
        self.fault, self.folder, self.place = fault, folder, folder / "database"
        self.place.mkdir(parents=True)
        self.log = folder / "daemon.log"
        self.stack = ExitStack()
        self.elevate = Elevate(fault.tls(folder))
        self.stack.callback(self.elevate.down)
        self.database = (Sqlite if kind == "SQLite" else Postgres)(self.place, template)
        self.servers: list[Postgres] = []  # where there are two
        self.stack.callback(lambda: self.database.close())
        self.running: list[Any] = []
        self.env = SETTINGS | {"TRACKER_BASE_URL": self.elevate.server.url, "TRACKER_DATABASE_URL": self.database.url}
        if self.elevate.tls:
            self.env["TRACKER_CA_BUNDLE"] = "authorities.pem"

    def __enter__(self) -> Self:
        submitted_on = f"{datetime.now(UTC) - timedelta(days=20):%Y-%m-%d}"  # it is archived, and not due yet
        self.tracker("audit", "keygen", "signing.pem")
        self.tracker("add", *JIDS, "--submitted-at", submitted_on, "--kind", "removal")
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.running:
            process.kill()
            with suppress(AssertionError):
                process.wait()
        self.stack.close()

    def process(self, *words: str, out: Path | None = None, at: str = "") -> Process:
        """Start ``tracker`` with *words*; see `hurry.child`."""
        files = (self.folder / "daemon.out", self.log) if out is None else (out, out)
        return Process(hurry.child, words, self.env, self.folder, *files, at, 0.0)

    def start(self) -> None:
        """Start a daemon, which must run until it is stopped at the end, and stop cleanly."""
        self.running.append(self.process("run"))

    def say(self, *words: str) -> tuple[int, str]:
        """Run a command, and return its exit code and all that it printed."""
        out = self.folder / f"output-{len(list(self.folder.glob('output-*')))}"
        return self.process(*words, out=out).wait(), out.read_text()

    def tracker(self, *words: str) -> None:
        """Run a command that must succeed."""
        code, said = self.say(*words)
        assert code == 0, f"`tracker {' '.join(words[:2])}` exits {code}: {said[-300:]}"

    def rows(self, query: str) -> Sequence[sa.Row[Any]]:
        """Read the database past tracker's own role."""
        engine = database.create_engine(self.database.admin)
        try:
            with database.reading(engine) as connection:
                return connection.execute(sa.text(query)).all()
        finally:
            engine.dispose()

    def wait(self, status: str, seconds: float = 30) -> float:
        """Wait until every job was seen in *status*, and return how long that took."""
        began, left = time.monotonic(), len(JIDS)
        while left:
            with suppress(DatabaseUnavailable, sa.exc.DBAPIError):
                left = self.rows(f"SELECT count(*) FROM jobs WHERE coalesce(status, '') <> '{status}'")[0][0]
            assert time.monotonic() < began + seconds, f"{left} jobs were not seen {status} within {seconds} s"
            time.sleep(0.05)
        return time.monotonic() - began

    def shows(self, words: str, code: int, seconds: float = 30) -> str:
        """Wait until `tracker status` says *words* and exits with *code*; return all that it says."""
        end = time.monotonic() + seconds
        while (said := self.say("status"))[0] != code or words not in said[1]:
            assert time.monotonic() < end, f"`tracker status` exits {said[0]}, not {code} with {words}: {said[1][:200]}"
            time.sleep(0.2)
        return said[1]


class Cron:
    """`tracker run --once` again and again, in place of a daemon: its exit codes are those promised."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.over, self.codes = cell, threading.Event(), set[int]()
        cell.running.append(self)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.over.wait(0.2):
            self.codes.add(self.cell.process("run", "--once").wait())

    def terminate(self) -> None:
        self.over.set()

    kill = terminate

    def wait(self) -> int:
        self.thread.join()
        assert self.codes == {0, self.cell.fault.once}, f"`run --once` exits {self.codes}"
        return 0


def play(fault: Fault, kind: str, folder: Path, template: Path) -> float:
    """All jobs wait; the fault begins, and they run; it ends, and they are done. Return the seconds until that is seen.

    Raises:
        AssertionError: It is not as promised.
    """
    with Cell(fault, kind, folder, template) as cell:
        fault.start(cell)
        cell.wait("waiting")
        began = datetime.now(UTC)
        cell.elevate.status = "running"
        with fault.inject(cell):
            until = time.monotonic() + fault.seconds
            if fault.share < 1:
                cell.wait("running")
                cell.elevate.status = "done"
                took = cell.wait("done", fault.within)
            elif fault.shows:
                cell.shows(*fault.shows)
            time.sleep(max(0.0, until - time.monotonic()))
            ended = datetime.now(UTC)
        cell.elevate.status = "done"
        if fault.share == 1:
            took = cell.wait("done", fault.within)
        for process in cell.running:
            process.terminate()
            assert process.wait() == 0, "the daemon did not stop cleanly"
        said = cell.shows("", 0, 5)
        assert fault.shows is None or f"[{fault.shows[0]}]" not in said, f"the need is not over: {said[:200]}"
        nothing_is_lost_or_invented(cell)
        gaps_explain(cell, began, ended)
        cell.tracker("audit", "verify", "--trusted", "checkpoints.txt")
        cell.tracker("audit", "export", "pack")
        cell.tracker("report", "--format", "html", "-o", "page.html")
        cell.tracker("config", "check")
    no_secret_is_seen(folder)
    return took


def nothing_is_lost_or_invented(cell: Cell) -> None:
    """Assert that every job is done, and that every change is an answer of the server, within its bounds."""
    query = "SELECT jid, seq, action, to_status, last_seen_at, observed_at FROM report_transitions ORDER BY jid, seq"
    histories = {jid: list(rows) for jid, rows in groupby(cell.rows(query), lambda row: row.jid)}
    assert sorted(histories) == JIDS, "a job is missing"
    for jid, rows in histories.items():
        assert [row.seq for row in rows] == list(range(len(rows))), f"{jid} has a hole in its history"
        assert rows[-1].to_status == "done", f"{jid} ends as {rows[-1].to_status}"
        answers = iter([(at, status) for at, its, status in cell.elevate.said if its == jid])
        for row in rows[1:]:
            after, by = instant(row.last_seen_at or "2000-01-01") - SLACK, instant(row.observed_at) + SLACK
            is_said = any(said == row.to_status and (cell.fault.clock or after <= at <= by) for at, said in answers)
            assert is_said, f"{jid}: the server did not say {row.to_status} between {after} and {by}"


def instant(value: str | datetime) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value).replace(tzinfo=UTC)


def gaps_explain(cell: Cell, began: datetime, ended: datetime) -> None:
    """Assert that all gaps have a cause that the fault explains, and that they cover it."""
    fault, found = cell.fault, cell.rows("SELECT began_at, ended_at, cause, is_open FROM report_gaps")
    causes = {row.cause for row in found}
    assert causes <= set(fault.gap), f"there is a gap {', '.join(causes - set(fault.gap))}: {found}"
    assert not any(row.is_open for row in found), "a gap is still open"
    assert causes or not fault.clock, "no gap explains the clock"
    if fault.gap and fault.covers and fault.share == 1 and not fault.clock:
        upto = next((at for at in cell.elevate.faulty if at >= began), began + 2 * SLACK) + SLACK
        for since, until in sorted((instant(row.began_at), instant(row.ended_at)) for row in found):
            upto = max(upto, until) if since <= upto else upto
        assert upto >= ended, f"no gap covers {upto} to {ended}: {found}"


def no_secret_is_seen(folder: Path) -> None:
    """Assert that no file of the cell (logs, output, database, pack, page) holds the key or the password."""
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(mark.encode() in content for mark in (KEY, PASSWORD)), f"a secret is in {path.name}"
        assert path.parent != folder or b"Traceback" not in content, f"a traceback is in {path.name}"


def lasting(begin: Callable[[Cell], object], end: Callable[[Cell], object]) -> Callable[[Cell], Any]:
    """Return an injection from what begins it and what ends it."""

    def inject(cell: Cell) -> AbstractContextManager[object]:
        begin(cell)
        stack = ExitStack()
        stack.callback(end, cell)
        return stack

    return inject
