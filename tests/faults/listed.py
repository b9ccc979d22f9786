"""The faults: each with what it does, and what must come of it."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.faults import hurry
from tests.faults.cell import BOTH, JIDS, Cell, Fault
from tests.faults.certificates import NAME, present
from tests.faults.databases import PASSWORD, Postgres
from tests.hostile import Wire, http
from tests.test_real_databases import damage, move
from tracker import database

Inject = Callable[[Cell], AbstractContextManager[object]]
Play = Callable[[Wire], object]
SQLITE, POSTGRESQL = BOTH[:1], BOTH[1:]


# The causes of gaps, and what `tracker status` says meanwhile, with its exit code.
KEY_REFUSED, RATE_LIMITED = (("key_refused",), ("key_refused", 1)), (("rate_limited",), ("rate_limited", 0))
UNREACHABLE, BAD_ANSWER = (("unreachable",), ("unreachable", 1)), (("bad_answer",), ("bad_answer", 1))
AWAY = (("not_running",), ("the database", 69))
SILENT = (("not_running",), ("none is running", 0))  # a need begins only when polls are late by a quarter of an hour


def lasting(begin: Callable[[Cell], object], end: Callable[[Cell], object]) -> Inject:
    """Return an injection from what begins it and what ends it."""

    @contextmanager
    def inject(cell: Cell) -> Iterator[None]:
        begin(cell)
        yield
        end(cell)

    return inject


def command(*words: object) -> None:
    """Run a command that may need root, and more than some containers allow."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, f"{words[0]}: {done.stderr}"


# What the server does in place of an answer. Each body that looks like an answer says `done`: it must not be recorded.


def done(wire: Wire, jid: str = "") -> bytes:
    return json.dumps({"jid": jid or wire.jid, "status": "done"}).encode()


def code(words: str, *headers: str) -> Play:
    return lambda wire: wire.reply(done(wire), words, *headers)


def body(text: str) -> Play:
    return lambda wire: wire.reply(text.replace("JID", wire.jid))


def raw(make: Callable[[Wire], bytes], then: Play = Wire.close) -> Play:
    """Send what *make* returns, then end the connection."""

    def play(wire: Wire) -> None:
        wire.send(make(wire))
        then(wire)

    return play


def cut_off(wire: Wire) -> bytes:
    return http(done(wire)[:-4], "200 OK", "Content-Length: 67")


HTTP: dict[str, tuple[Play, Any]] = {
    "401": (code("401 Unauthorized"), KEY_REFUSED),
    "403": (code("403 Forbidden"), KEY_REFUSED),
    "404": (code("404 Not Found"), UNREACHABLE),
    "redirect": (code("302 Found", "Location: https://localhost/login"), UNREACHABLE),
    "429": (code("429 Too Many Requests"), RATE_LIMITED),
    "429, Retry-After": (code("429 Too Many Requests", "Retry-After: 2"), RATE_LIMITED),
    "429, rubbish in Retry-After": (code("429 Too Many Requests", "Retry-After: soon"), RATE_LIMITED),
    "503, Retry-After": (code("503 Service Unavailable", "Retry-After: 2"), RATE_LIMITED),
    "503": (code("503 Service Unavailable"), UNREACHABLE),
    "500": (code("500 Internal Server Error"), UNREACHABLE),
    "408": (code("408 Request Timeout"), UNREACHABLE),
    "400": (code("400 Bad Request"), BAD_ANSWER),
    "204": (lambda wire: wire.reply(b"", "204 No Content"), BAD_ANSWER),
    "empty": (body(""), BAD_ANSWER),
    "a page, not JSON": (body("<html>done</html>"), BAD_ANSWER),
    "a list": (body('[{"jid": "JID", "status": "done"}]'), BAD_ANSWER),
    "no status": (body('{"jid": "JID"}'), BAD_ANSWER),
    "two statuses": (body('{"jid": "JID", "status": "done", "status": "waiting"}'), BAD_ANSWER),
    "another job's jid": (lambda wire: wire.reply(done(wire, JIDS[JIDS.index(wire.jid) - 1])), BAD_ANSWER),
    "cut-off body": (raw(cut_off), BAD_ANSWER),
    "cut-off head": (raw(lambda wire: b"HTTP/1.1 200 OK\r\nContent-"), BAD_ANSWER),
    "not HTTP": (raw(lambda wire: b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), BAD_ANSWER),
    "huge body": (raw(lambda wire: http(b" " * 2_000_000 + done(wire), "200 OK")), BAD_ANSWER),
    "dripped body": (lambda wire: wire.drip(http(done(wire), "200 OK", "Content-Length: 67")), UNREACHABLE),
    "dripped head": (lambda wire: wire.drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20), UNREACHABLE),
    "no answer": (Wire.stall, UNREACHABLE),
    "reset": (Wire.reset, UNREACHABLE),
    "reset in mid-answer": (raw(cut_off, Wire.reset), UNREACHABLE),
    "closed": (Wire.close, UNREACHABLE),
}


@contextmanager
def answering(fault: Play, share: float, cell: Cell) -> Iterator[None]:
    """Let the server answer a *share* of the requests with *fault*."""
    cell.elevate.share, cell.elevate.fault = share, fault
    try:
        yield
    finally:
        cell.elevate.fault = None


@contextmanager
def dying_in_mid_answer(cell: Cell) -> Iterator[None]:
    begun = threading.Event()

    def half(wire: Wire) -> None:
        wire.send(cut_off(wire))
        begun.set()
        wire.stall()

    with answering(half, 1.0, cell):
        assert begun.wait(20)
        cell.elevate.down()
        yield
    cell.elevate.up()


@contextmanager
def refusing_connections(share: float, cell: Cell) -> Iterator[None]:
    """Let nothing listen for a *share* of each second."""
    over = threading.Event()

    def flap() -> None:
        while not over.is_set():
            cell.elevate.down()
            over.wait(share if share < 1 else None)
            cell.elevate.up()
            over.wait(1 - share)

    thread = threading.Thread(target=flap)
    thread.start()
    yield
    over.set()
    thread.join()


# TLS and names


@contextmanager
def presenting(name: str, share: float, cell: Cell) -> Iterator[None]:
    """Let the server present the certificate *name* on a *share* of its connections."""
    elevate, bad = cell.elevate, present(cell.folder, name)

    def choose(connection: ssl.SSLObject, host: str, good: ssl.SSLContext) -> None:
        if elevate.rng.random() < share:
            elevate.faulty.append(datetime.now(UTC))
            connection.context = bad

    assert elevate.tls is not None
    elevate.tls.sni_callback = choose
    yield
    elevate.tls.sni_callback = None


def apart(cell: Cell, env: dict[str, str], *before: str, slow: float = 0.0) -> None:
    """Start a daemon as a process that is no fork, after the words *before*."""
    words = [*before, sys.executable, "-m", "tests.faults.hurry", str(slow), str(cell.log)]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])} | cell.env | env
    cell.running.append(subprocess.Popen(words, env=env, cwd=cell.folder))


def name_resolves(does: bool, cell: Cell) -> None:
    (cell.folder / "hosts").write_text(f"127.0.0.1 {NAME}\n" if does else "")


def with_a_name(cell: Cell) -> None:
    """Start a daemon with an /etc/hosts of its own, in which the server has a name."""
    name_resolves(True, cell)
    place = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(cell.folder / "hosts")]
    apart(cell, {"TRACKER_BASE_URL": f"https://{NAME}:{cell.elevate.port}"}, *place)


def at_both_shares(name: str, inject: Callable[..., Any], effect: Any, tls: bool = False) -> Iterator[Fault]:
    """Yield the fault that *inject* makes of all requests, and of a tenth of them."""
    gap, shows = effect
    yield Fault(f"{name}, 100%", partial(inject, 1.0), gap, shows, tls=tls)
    yield Fault(f"{name}, 10%", partial(inject, 0.1), gap, share=0.1, within=60, on=POSTGRESQL, tls=tls)


def of_the_server() -> Iterator[Fault]:
    for name, (fault, effect) in HTTP.items():
        yield from at_both_shares(f"HTTP {name}", partial(answering, fault), effect)
    yield from at_both_shares("server refuses", refusing_connections, UNREACHABLE)
    yield Fault("server dies in mid-answer", dying_in_mid_answer, UNREACHABLE[0] + BAD_ANSWER[0], UNREACHABLE[1])
    for name in ("expired", "of another host", "self-signed"):
        yield from at_both_shares(f"certificate {name}", partial(presenting, name), UNREACHABLE, tls=True)
    unresolved = lasting(partial(name_resolves, False), partial(name_resolves, True))
    yield Fault("name not resolved", unresolved, *UNREACHABLE, start=with_a_name, tls=True)


# The database. `server` is a PostgreSQL server.


def server(cell: Cell) -> Postgres:
    assert isinstance(cell.database, Postgres)
    return cell.database


@contextmanager
def no_connection_left(cell: Cell) -> Iterator[None]:
    """Let the server have no connection for tracker, and end those that it has."""
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'tracker'"
    server(cell).run("ALTER ROLE tracker CONNECTION LIMIT 0", end)
    yield
    server(cell).run("ALTER ROLE tracker CONNECTION LIMIT -1")


@contextmanager
def locked(cell: Cell) -> Iterator[None]:
    """Hold a lock that every writer needs (on PostgreSQL every reader, too).

    Eight seconds stand for a minute: what waits for a lock gives up after 2 s here, and after 30 s in earnest.
    """
    engine = sa.create_engine(cell.database.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        is_sqlite = engine.dialect.name == "sqlite"
        connection.exec_driver_sql("BEGIN EXCLUSIVE" if is_sqlite else "BEGIN; LOCK TABLE jobs, clusters, workers")
        yield
        connection.exec_driver_sql("ROLLBACK")


def on_tmpfs(cell: Cell) -> None:
    """Move the database to a small file system in memory, and start a daemon."""
    cell.database.close()
    kept = cell.place.rename(cell.folder / "kept")
    cell.place.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=200M", "none", cell.place)
    cell.stack.callback(command, "umount", "-l", cell.place)
    cell.stack.callback(cell.database.close)
    command("cp", "-a", f"{kept}/.", cell.place)
    cell.database.start()
    cell.start()


@contextmanager
def full(cell: Cell) -> Iterator[None]:
    """Fill the file system, also with what a failed transaction gives back, and let PostgreSQL need another file."""
    filler = cell.place / "filler"
    for _ in range(3):
        fill = ["dd", "if=/dev/zero", f"of={filler}", "bs=4k", "oflag=append", "conv=notrunc"]
        subprocess.run(fill, capture_output=True)
        time.sleep(0.5)
    with suppress(sa.exc.OperationalError):
        while isinstance(cell.database, Postgres):
            cell.database.run("SELECT pg_logical_emit_message(true, 'fill', 'it')", "SELECT pg_switch_wal()")
    yield
    filler.unlink()
    cell.database.start()


def read_only(value: str, cell: Cell) -> None:
    """Let every transaction be read-only or not, also those of connections that are open."""
    server(cell).run(f"ALTER SYSTEM SET default_transaction_read_only = {value}", "SELECT pg_reload_conf()")


@contextmanager
def read_only_medium(cell: Cell) -> Iterator[None]:
    """Let the file system of the database be read-only: a daemon says so and does not start."""
    cell.stop()
    command("mount", "--bind", cell.place, cell.place)
    try:
        command("mount", "-o", "remount,ro,bind", cell.place)
        exits, said = cell.say("run")
        assert (exits, "cannot be written" in said) == (69, True), f"the daemon exits {exits}: {said}"
        yield
    finally:
        command("umount", cell.place)
    cell.start()


def two_servers(cell: Cell) -> None:
    """Make a standby, and start a daemon that goes to whichever server can be written."""
    cell.standby = server(cell).standby(cell.folder / "other")
    cell.stack.callback(cell.standby.close)
    hosts = f"host=127.0.0.1:{server(cell).port}&host=127.0.0.1:{cell.standby.port}"
    url = f"postgresql+psycopg://tracker:{PASSWORD}@/tracker?{hosts}&target_session_attrs=read-write"
    cell.env["TRACKER_DATABASE_URL"] = url
    cell.start()


@contextmanager
def failed_over(cell: Cell) -> Iterator[None]:
    """Kill the primary and promote its standby; make the first one a standby, and go back to it in the same way."""
    first, second = server(cell), cell.standby
    assert second is not None
    first.close(signal.SIGKILL)
    second.run("SELECT pg_promote()")
    cell.database = second
    cell.wait("running")
    time.sleep(1)  # for the processes of the first to end
    shutil.rmtree(first.folder)
    third = second.standby(first.folder.parent, first.port)
    cell.stack.callback(third.close)
    second.close(signal.SIGKILL)
    third.run("SELECT pg_promote()")
    cell.database = third
    yield


def replace(path: Path) -> None:
    path.with_name("new").write_text("not a database")
    path.with_name("new").replace(path)


@contextmanager
def altered(change: Callable[[Path], object], words: str, cell: Cell) -> Iterator[None]:
    """Alter a SQLite file under a daemon: it says so in *words* and ends; all commands refuse it, and make no other."""
    path, kept = cell.place / "tracker.db", cell.folder / "kept.db"
    with answering(Wire.stall, 1.0, cell):
        time.sleep(3)  # what was under way is recorded, and no history is written any more
        cell.tracker("db", "copy", f"sqlite:///{kept}")
        change(path)
        exits = cell.running.pop().wait()
        assert (exits, words in cell.log.read_text()) == (78, True), f"the daemon exits {exits}, and does not say why"
        if words == "was moved":  # then these belong to the other file, as the message says
            for end in ("-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
        content = path.exists() and path.read_bytes()
        for command in (("run",), ("run", "--once"), ("add", "another"), ("status",)):
            exits, said = cell.say(*command)
            assert (exits, "tracker: error:" in said) == (78, True), f"{command} exits {exits}: {said}"
        assert (path.exists() and path.read_bytes()) == content, "a refused file was written to"
    for file in cell.place.iterdir():
        file.unlink()
    shutil.copy(kept, path)
    cell.start()
    yield


def of_the_database() -> Iterator[Fault]:
    lite, post = partial(Fault, on=SQLITE, seconds=8.0), partial(Fault, on=POSTGRESQL, seconds=8.0)
    start = lambda cell: cell.database.start()  # noqa: E731
    stopped, killed = lambda cell: cell.database.close(), lambda cell: cell.database.close(signal.SIGKILL)
    yield post("database stopped", lasting(stopped, start), *AWAY)
    yield post("database killed", lasting(killed, start), *AWAY)
    yield Fault("database restarted", lasting(stopped, start), on=POSTGRESQL)
    yield post("no connection left", no_connection_left, *AWAY)
    yield lite("database locked", locked, *SILENT)
    yield post("database locked", locked, *AWAY)
    yield lite("disk full", full, *SILENT, start=on_tmpfs)
    yield post("disk full", full, *AWAY, start=on_tmpfs)
    yield post("database read-only", lasting(partial(read_only, "on"), partial(read_only, "off")), *SILENT)
    yield lite("database read-only", read_only_medium, *SILENT)
    yield Fault("failed over, and back", failed_over, ("not_running",), on=POSTGRESQL, covers=False, start=two_servers)
    file = partial(Fault, gap=("unreachable", "not_running"), covers=False, on=SQLITE)
    yield file("file moved", partial(altered, move, "was moved"))
    yield file("file replaced", partial(altered, replace, "was moved"))
    yield file("file corrupted", partial(altered, damage, "damaged"))
    yield file("file emptied", partial(altered, lambda path: os.truncate(path, 0), "damaged"))


# The process


@contextmanager
def frozen(cell: Cell) -> Iterator[None]:
    """Stop the daemon in the middle of its requests, until its leases are over and it counts as dead."""
    cell.elevate.pause = 0.9
    time.sleep(1)
    os.kill(cell.running[0].pid, signal.SIGSTOP)
    cell.elevate.pause = 0.0
    yield
    os.kill(cell.running[0].pid, signal.SIGCONT)


@contextmanager
def taken_over(cell: Cell) -> Iterator[None]:
    """Freeze the daemon while another runs: it takes the jobs over, and the first leaves them to it."""
    with frozen(cell):
        cell.start()
        cell.wait("running")
        yield


@contextmanager
def killed_at(point: str, cell: Cell) -> Iterator[None]:
    cell.stop()
    exits = cell.daemon(point).wait(30)
    assert exits == -signal.SIGKILL, f"it exits {exits}"
    cell.start()
    yield


@contextmanager
def killed_at_random(cell: Cell) -> Iterator[None]:
    """Kill 500 daemons, most of them after the first request; recorded rows do not change."""
    rng, daemon, seen = random.Random(1), cell.running.pop(), set[Any]()
    engine = database.create_engine(cell.database.admin)
    for turn in range(500):
        cell.elevate.status = ("running", "waiting", "started")[turn % 3]
        asked, end = len(cell.elevate.said) + (rng.random() < 0.9), time.monotonic() + rng.random()
        while len(cell.elevate.said) < asked and time.monotonic() < end + 20:
            time.sleep(0.01)
        time.sleep(rng.random() / 5)
        daemon.kill()
        assert daemon.wait() == -signal.SIGKILL, "it ended by itself"
        with database.writing(engine) as connection:  # its leases and waits last longer than the next daemon lives
            connection.execute(sa.text("UPDATE jobs SET leased_by = NULL, leased_until = NULL, due_at = registered_at"))
            rows = {tuple(row) for row in connection.execute(sa.text("SELECT * FROM transitions"))}
        assert seen <= rows, "a transition was lost or changed"
        seen, daemon = rows, cell.daemon()
    engine.dispose()
    assert len(seen) > 500, f"only {len(seen)} transitions came meanwhile"
    cell.running.append(daemon)
    yield


@contextmanager
def limited(kind: int, room: Callable[[int], int], cell: Cell) -> Iterator[None]:
    """Limit a resource of a running daemon to *room*."""
    cell.elevate.headers = ("Connection: close",)
    pid = cell.running[0].pid
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (room(pid), before[1]))
    yield
    resource.prlimit(pid, kind, before)


def half_its_memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize() // 2


@contextmanager
def no_memory(cell: Cell) -> Iterator[None]:
    """Leave a daemon no memory for a while. CPython may hang afterwards (`Poller.is_stuck`), so it is replaced."""
    with limited(resource.RLIMIT_AS, half_its_memory, cell):
        yield
    cell.running.pop().kill()
    cell.start()


def of_the_process() -> Iterator[Fault]:
    yield Fault("killed 500 times", killed_at_random, ("not_running",), covers=False)  # the longest begins first
    yield Fault("frozen beyond its lease", frozen, *SILENT, seconds=8)
    yield Fault("frozen, and another takes over", taken_over, seconds=8)
    for point in hurry.POINTS:  # on a busy machine a start takes so long that it leaves a gap
        yield Fault(f"killed at {point}", partial(killed_at, point), ("not_running",), covers=False)
    yield Fault("no file descriptor", partial(limited, resource.RLIMIT_NOFILE, lambda pid: 3), *UNREACHABLE)
    gaps = ("unreachable", "bad_answer", "not_running")
    yield Fault("no memory", no_memory, gaps, seconds=6, covers=False)


# The clock


def set_clock(seconds: int, cell: Cell) -> None:
    (cell.folder / "clock.new").write_text(f"{seconds:+}\n")
    (cell.folder / "clock.new").replace(cell.folder / "clock")


def with_a_clock(slow: float, pause: float, cell: Cell) -> None:
    """Start a daemon that asks every *slow* seconds; a file sets the clock of its database."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    assert library is not None, "faketime is not installed: apt-get install faketime"
    set_clock(0, cell)
    env = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(cell.folder / "clock")}
    env |= {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    cell.elevate.pause = pause
    if isinstance(cell.database, Postgres):
        cell.database.close()
        cell.database.env |= env
        cell.database.start()
        env = {}
    apart(cell, env, slow=slow)


@contextmanager
def clock_set(seconds: int, cell: Cell) -> Iterator[None]:
    """Set the clock, and set it right when all jobs were seen."""
    set_clock(seconds, cell)
    cell.wait("running")
    yield
    set_clock(0, cell)


def of_the_clock() -> Iterator[Fault]:
    starts = {"idle": partial(with_a_clock, 4.0, 0.0), "asking": partial(with_a_clock, 0.5, 0.2)}
    for words, seconds in (("an hour", 3600), ("a day", 86400), ("a year", 365 * 86400)):
        for way, by in (("forward", seconds), ("back", -seconds)):
            for when, start in starts.items():
                name, gaps = f"clock {way} by {words}, {when}", ("clock_set", "not_running")
                yield Fault(name, partial(clock_set, by), gaps, start=start, clock=True)


FAULTS = [*of_the_process(), *of_the_server(), *of_the_database(), *of_the_clock()]
