"""One cell of the matrix: an Elevate, a database and a daemon of its own, and what must be true at its end.

Owns the course of a cell: all jobs wait; the fault begins, and they run; the fault ends, and they are done. Leaves
alone what the faults are (``listed``).
"""

from __future__ import annotations

import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
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

KEY = "api-key-mark"
JIDS = [f"ca24b4e2-34ab-406a-a4db-b30b0247{number:04}" for number in range(10)]
BOTH = ("SQLite", "PostgreSQL")
HURRIED = {
    "TRACKER_CLUSTER": "w1",
    "TRACKER_API_KEY": KEY,
    "TRACKER_MAX_REQUESTS_PER_SECOND": "200",
    "TRACKER_REQUEST_TIMEOUT": "1 s",
    "TRACKER_SEAL_AFTER": "0 s",
    "TRACKER_SIGNING_KEY_FILE": "signing.pem",
    "TRACKER_CHECKPOINT_FILE": "outside/checkpoints.txt",
    "PYTHONWARNINGS": "ignore",
    "COLUMNS": "80",
}
SLACK = timedelta(seconds=0.5)  # between what the server and the daemon see, on a busy machine


@dataclass(frozen=True)
class Fault:
    """A fault, and what must come of it.

    Attributes:
        name: As in the table.
        inject: The fault lasts as long as this context.
        gap: The causes of gaps that it may leave; together they must cover it, if it can last.
        shows: What `tracker status` says meanwhile (the kind of a need, or an error), and its exit code.
        seconds: How long it lasts at least.
        within: Seconds in which all jobs are seen done after it.
        share: How many of the requests it is about. Where it is not all, jobs are followed all the time.
        on: The databases on which it is tried.
        start: How the daemon is started.
        covers: Whether the gaps must cover the fault.
        clock: Clocks are wrong, so times are not compared with the server's.
        exits: The exit codes of `run --once` meanwhile.
        server: Makes the server's TLS, in a folder.
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
    exits: tuple[int, ...] = ()
    server: Callable[[Path], ssl.SSLContext | None] = lambda folder: None


class Elevate:
    """A server in Elevate's place: it says one status of all jobs, and keeps what it said, and when.

    Attributes:
        said: Every complete valid answer: when, the jid, the status.
        faulty: When it did something else.
        pause: How long it thinks before an answer, in seconds.
        fault: What it does in place of an answer, to so many of the requests as *share* says.
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.tls = tls
        self.status = "waiting"
        self.said: list[tuple[datetime, str, str]] = []
        self.faulty: list[datetime] = []
        self.fault: Callable[[Wire], object] | None = None
        self.share = 1.0
        self.rng = random.Random(1)
        self.pause = 0.0
        self.headers = ("Connection: close",) if tls else ()
        self.lock = threading.Lock()
        self.up()

    def up(self) -> None:
        self.server = Hostile(self.play, tls=self.tls, port=getattr(self, "port", 0)).__enter__()
        self.port = self.server.port

    def down(self) -> None:
        self.server.__exit__()

    def play(self, wire: Wire) -> None:
        fault = self.fault
        if fault is not None and self.rng.random() < self.share:
            self.faulty.append(datetime.now(UTC))
            fault(wire)
        else:
            self.server.ending.wait(self.pause)
            with self.lock:
                status = self.status
                self.said.append((datetime.now(UTC), wire.jid, status))
            wire.answer(status, *self.headers)


class Cell:
    """The world of one cell, in *folder*; a context manager, at whose end nothing is left running."""

    def __init__(self, fault: Fault, kind: str, folder: Path, template: Path) -> None:
        self.fault, self.folder = fault, folder
        (folder / "outside").mkdir(parents=True)
        folder.chmod(0o755)
        self.place = folder / "database"
        self.place.mkdir()
        self.stack = ExitStack()
        self.elevate = Elevate(fault.server(folder))
        self.stack.callback(self.elevate.down)
        self.kind, self.template = kind, template
        self.running: list[Any] = []
        self.servers: list[Postgres] = []
        self.env = HURRIED | {"TRACKER_BASE_URL": self.elevate.server.url}
        if self.elevate.tls:
            self.env["TRACKER_CA_BUNDLE"] = "authorities.pem"
        self.outputs = 0

    def __enter__(self) -> Self:
        self.database: Sqlite | Postgres = (Sqlite if self.kind == "SQLite" else Postgres)(self.place, self.template)
        self.stack.callback(lambda: self.database.close())
        self.env["TRACKER_DATABASE_URL"] = self.database.url
        self.tracker("audit", "keygen", "signing.pem")
        submitted_on = f"{datetime.now(UTC) - timedelta(days=20):%Y-%m-%d}"  # it is archived, and not due yet
        self.tracker("add", *JIDS, "--submitted-at", submitted_on, "--kind", "removal")
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.running[::-1]:
            with suppress(OSError):
                process.kill()
            process.wait()
        self.stack.close()

    @property
    def log(self) -> Path:
        return self.folder / "daemon.log"

    def process(self, *words: str, at: str = "") -> Process:
        """Start ``tracker`` with *words*; see `hurry.child`."""
        return Process(hurry.child, words, self.env, self.folder, self.folder / "daemon.out", self.log, {}, at)

    def start(self) -> None:
        """Start a daemon, which must run well until it is stopped at the end."""
        self.running.append(self.process("run"))

    def say(self, *words: str) -> tuple[int, str]:
        """Run a command, and return its exit code and all that it printed."""
        self.outputs += 1
        out = self.folder / f"output-{self.outputs:03}"
        code = Process(hurry.child, words, self.env, self.folder, out, out, {}, "").wait()
        return code, out.read_text()

    def tracker(self, *words: str) -> str:
        """Run a command that must succeed, and return what it printed."""
        code, said = self.say(*words)
        assert code == 0, f"`tracker {' '.join(words[:2])}` exits {code}: {said[-300:]}"
        return said

    def rows(self, query: str) -> Sequence[sa.Row[Any]]:
        """Read the database past tracker's own role."""
        engine = database.create_engine(self.database.admin)
        try:
            with database.reading(engine) as connection:
                return connection.execute(sa.text(query)).all()
        finally:
            engine.dispose()

    def wait(self, status: str, seconds: float = 20) -> float:
        """Wait until every job was seen in *status*, and return how long that took."""
        began, left = time.monotonic(), len(JIDS)
        while left:
            with suppress(DatabaseUnavailable, sa.exc.DBAPIError):
                left = self.rows(f"SELECT count(*) FROM jobs WHERE coalesce(status, '') <> '{status}'")[0][0]
            assert time.monotonic() < began + seconds, f"{left} jobs were not seen {status} within {seconds} s"
            time.sleep(0.05)
        return time.monotonic() - began

    def shows(self, words: str, code: int, seconds: float = 20) -> str:
        """Wait until `tracker status` says *words* and exits with *code*; return all that it says."""
        end = time.monotonic() + seconds
        while (said := self.say("status"))[0] != code or words not in said[1]:
            assert time.monotonic() < end, f"`tracker status` exits {said[0]}, not {code} with {words}: {said[1][:200]}"
            time.sleep(0.2)
        return said[1]

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]


class Cron:
    """`tracker run --once` again and again, in place of a daemon: its exit codes are those promised."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.over, self.codes = cell, threading.Event(), set[int]()
        self.thread = threading.Thread(target=self.run)
        cell.running.append(self)
        self.thread.start()

    def run(self) -> None:
        while not self.over.wait(0.2):
            self.codes.add(self.cell.process("run", "--once").wait())

    def terminate(self) -> None:
        self.over.set()

    kill = terminate

    def wait(self) -> int:
        self.thread.join()
        assert self.codes - {0} == set(self.cell.fault.exits), f"`run --once` exits {self.codes}"
        return 0


def play(fault: Fault, kind: str, folder: Path, template: Path) -> float:
    """Let a fault happen, and return the seconds until all was well again; AssertionError: it is not as promised."""
    with Cell(fault, kind, folder, template) as cell:
        fault.start(cell)
        cell.wait("waiting")
        began, seen_at = datetime.now(UTC), time.monotonic()
        cell.elevate.status = "running"
        with fault.inject(cell):
            if fault.share < 1:
                cell.wait("running", 30)
            elif fault.shows:
                cell.shows(*fault.shows)
            time.sleep(max(0.0, fault.seconds - (time.monotonic() - seen_at)))
            if fault.share < 1:
                cell.elevate.status = "done"
                took = cell.wait("done", fault.within)
            ended = datetime.now(UTC)
        cell.elevate.status = "done"
        if fault.share == 1:
            took = cell.wait("done", fault.within)
        for process in cell.running:
            process.terminate()
            assert process.wait() == 0, "the daemon did not stop well"
        said = cell.shows("", 0, 5)
        assert fault.shows is None or f"[{fault.shows[0]}]" not in said, f"the need is not over: {said[:200]}"
        nothing_is_lost_or_invented(cell)
        gaps_cover(cell, began, ended)
        cell.tracker("audit", "verify", "--trusted", "outside/checkpoints.txt")
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
        said = [(at, status) for at, its, status in cell.elevate.said if its == jid]
        assert [row.seq for row in rows] == list(range(len(rows))), f"{jid} has a hole in its history"
        assert rows[-1].to_status == "done", f"{jid} ends as {rows[-1].to_status}"
        answers = iter(said)
        for row in rows[1:]:
            assert row.action == "observed"
            after, by = (at and _instant(at) for at in (row.last_seen_at, row.observed_at))
            is_said = any(
                status == row.to_status
                and (cell.fault.clock or ((after is None or after - SLACK <= at) and at <= by + SLACK))
                for at, status in answers
            )
            assert is_said, f"{jid}: nobody said {row.to_status} between {after} and {by}"


def _instant(value: str | datetime) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value).replace(tzinfo=UTC)


def gaps_cover(cell: Cell, began: datetime, ended: datetime) -> None:
    """Assert that all gaps have a cause that the fault explains, and that they cover it."""
    fault, found = cell.fault, cell.rows("SELECT began_at, ended_at, cause, detail, is_open FROM report_gaps")
    causes = {row.cause for row in found}
    assert causes <= set(fault.gap), f"there is a gap {', '.join(causes - set(fault.gap))}: {found}"
    assert not any(row.is_open for row in found), "a gap is still open"
    assert causes or not fault.clock, "no gap tells of the clock"
    if not fault.gap or fault.share < 1 or fault.clock or not fault.covers:
        return
    first = next((at for at in cell.elevate.faulty if at >= began), began + 4 * SLACK) + 2 * SLACK
    for since, until in sorted((_instant(row.began_at), _instant(row.ended_at)) for row in found):
        if since <= first:
            first = max(first, until)
    assert first >= ended, f"no gap covers {first} to {ended}: {found}"


def no_secret_is_seen(folder: Path) -> None:
    """Assert that no file of the cell (logs, output, database, pack, page) holds the key or the password."""
    files: Iterable[Path] = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    for path in files:
        content = path.read_bytes()
        assert not any(mark.encode() in content for mark in (KEY, PASSWORD)), f"a secret is in {path.name}"
        assert path.suffix not in (".log", ".out") or b"Traceback" not in content, f"a traceback is in {path.name}"


def lasting(change: Callable[[Cell], object], back: Callable[[Cell], object]) -> Callable[[Cell], Any]:
    """Return an injection from what begins it and what ends it."""

    def inject(cell: Cell) -> AbstractContextManager[object]:
        change(cell)
        stack = ExitStack()
        stack.callback(back, cell)
        return stack

    return inject
