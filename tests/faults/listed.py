"""The faults: each with what it does, and what must come of it."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.faults import hurry
from tests.faults.cell import BOTH, JIDS, Cell, Cron, Fault, lasting
from tests.faults.databases import PASSWORD, Postgres
from tests.hostile import Wire, free_port, http
from tracker import database

Inject = Callable[[Cell], AbstractContextManager[object]]
Play = Callable[[Wire], object]


class Skipped(Exception):
    """A fault cannot be made on this machine."""


# The causes of gaps, and what `tracker status` says meanwhile.
KEY_REFUSED, RATE_LIMITED = (("key_refused",), ("key_refused", 1)), (("rate_limited",), ("rate_limited", 0))
UNREACHABLE, BAD_ANSWER = (("unreachable",), ("unreachable", 1)), (("bad_answer",), ("bad_answer", 1))
AWAY = (("not_running",), ("the database", 69))
SILENT = (("not_running",), ("none is running", 0))  # a need begins only when polls are late by a quarter of an hour

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


def cut_off(wire: Wire, length: int = 67) -> bytes:
    return http(done(wire)[:-4], "200 OK", f"Content-Length: {length}")


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
def flapping(cell: Cell) -> Iterator[None]:
    """Let nothing listen for a tenth of the time."""
    over = threading.Event()

    def flap() -> None:
        while not over.wait(0.9):
            cell.elevate.down()
            over.wait(0.1)
            cell.elevate.up()

    thread = threading.Thread(target=flap)
    thread.start()
    yield
    over.set()
    thread.join()


# TLS and names

HOST = "w1.elevate.invalid"
CERTIFICATES = {"good": ("localhost", 1), "expired": ("localhost", -1), "of another host": ("other.invalid", 1)}
CERTIFICATES |= {"unknown": ("localhost", 1), "by name": (HOST, 1)}
"""The host of each, and for how many days it is valid; all but the unknown one are trusted."""


def certificate(path: Path, host: str, days: int) -> None:
    """Write a key and a self-signed certificate."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(days=9)).not_valid_after(now + timedelta(days=days))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private = key.private_bytes(pem, form, serialization.NoEncryption())
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem) + private)


def tls(folder: Path, name: str = "good") -> ssl.SSLContext:
    """Return a server's TLS with the certificate *name*; the first call makes all."""
    for other, facts in CERTIFICATES.items() if name == "good" else ():
        certificate(folder / f"{other}.pem", *facts)
        with (folder / "authorities.pem").open("ab") as trusted:
            trusted.write((folder / f"{other}.pem").read_bytes() if other != "unknown" else b"")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(folder / f"{name}.pem")
    return made


@contextmanager
def presenting(name: str, share: float, cell: Cell) -> Iterator[None]:
    """Let the server present the certificate *name* on a *share* of its connections."""
    elevate, bad = cell.elevate, tls(cell.folder, name)

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
    (cell.folder / "hosts").write_text(f"127.0.0.1 {HOST}\n" if does else "")


def with_a_name(cell: Cell) -> None:
    """Start a daemon with an /etc/hosts of its own, in which the server has a name."""
    name_resolves(True, cell)
    place = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(cell.folder / "hosts")]
    if subprocess.run([*place, "true"], capture_output=True).returncode or cell.elevate.tls is None:
        raise Skipped("needs root and unshare")
    cell.elevate.tls.load_cert_chain(cell.folder / "by name.pem")
    apart(cell, {"TRACKER_BASE_URL": f"https://{HOST}:{cell.elevate.port}"}, *place)


def of_the_server() -> Iterator[Fault]:
    for name, (fault, (gap, shows)) in HTTP.items():
        whole, exits = partial(answering, fault, 1.0), 78 if gap == KEY_REFUSED[0] else 69
        yield Fault(f"HTTP {name}, 100%", whole, gap, shows)
        yield Fault(f"HTTP {name}, 10%", partial(answering, fault, 0.1), gap, share=0.1, within=60, on=BOTH[1:])
        yield Fault(f"HTTP {name}, cron", whole, gap, shows, seconds=2, start=Cron, on=BOTH[:1], once=exits)
    yield Fault("server refuses, 100%", lasting(lambda c: c.elevate.down(), lambda c: c.elevate.up()), *UNREACHABLE)
    yield Fault("server refuses, 10%", flapping, UNREACHABLE[0], share=0.1, within=60)
    yield Fault("server dies in mid-answer", dying_in_mid_answer, UNREACHABLE[0] + BAD_ANSWER[0], UNREACHABLE[1])
    for name in ("expired", "of another host", "unknown"):
        for share in (1.0, 0.1):
            inject = partial(presenting, name, share)
            shows = UNREACHABLE[1] if share == 1 else None
            yield Fault(f"certificate {name}, {share:.0%}", inject, UNREACHABLE[0], shows, 0, 60, share, tls=tls)
    unresolved = lasting(partial(name_resolves, False), partial(name_resolves, True))
    yield Fault("name not resolved", unresolved, *UNREACHABLE, start=with_a_name, tls=tls)


# The database. `server` is a PostgreSQL server.


def server(cell: Cell) -> Postgres:
    assert isinstance(cell.database, Postgres)
    return cell.database


@contextmanager
def no_connection_left(cell: Cell) -> Iterator[None]:
    """Take all connections that the server allows, also those of the daemon."""
    engine = sa.create_engine(server(cell).url, poolclass=sa.NullPool, connect_args={"application_name": "greedy"})
    held: list[sa.Connection] = []
    while len(held) < 17:  # the server keeps a few for superusers
        with suppress(sa.exc.OperationalError):
            held.append(engine.connect())
            continue
        others = "usename = 'tracker' AND application_name <> 'greedy'"
        server(cell).run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    yield
    for connection in held:
        connection.close()


@contextmanager
def locked(cell: Cell) -> Iterator[None]:
    """Hold a lock that every writer needs (on PostgreSQL every reader, too)."""
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
    mount = ["mount", "-t", "tmpfs", "-o", "size=200M", "none", str(cell.place)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise Skipped("needs root and mount")
    cell.stack.callback(subprocess.run, ["umount", "-l", str(cell.place)], check=True)
    cell.stack.callback(cell.database.close)
    subprocess.run(["cp", "-a", f"{kept}/.", cell.place], check=True)
    if isinstance(cell.database, Postgres):
        cell.database.start()
    cell.start()


def fill(cell: Cell) -> None:
    """Fill the file system, and let PostgreSQL need another file."""
    with (cell.place / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    with suppress(sa.exc.OperationalError):
        while isinstance(cell.database, Postgres):
            cell.database.run("SELECT pg_logical_emit_message(true, 'fill', 'it')", "SELECT pg_switch_wal()")


def make_room(cell: Cell) -> None:
    (cell.place / "filler").unlink()
    if isinstance(cell.database, Postgres):
        cell.database.start()


def read_only(change: str, cell: Cell) -> None:
    """Let every transaction be read-only, also those of connections that are open."""
    server(cell).run(f"ALTER SYSTEM {change}", "SELECT pg_reload_conf()")


def two_servers(cell: Cell) -> None:
    """Make a standby, and start a daemon that goes to whichever server can be written."""
    standby = server(cell).standby(cell.folder / "other")
    cell.stack.callback(standby.close)
    hosts = f"host=127.0.0.1:{server(cell).port}&host=127.0.0.1:{standby.port}"
    url = f"postgresql+psycopg://tracker:{PASSWORD}@/tracker?{hosts}&target_session_attrs=read-write"
    cell.env["TRACKER_DATABASE_URL"] = url
    cell.servers = [server(cell), standby]
    cell.start()


@contextmanager
def failed_over(cell: Cell) -> Iterator[None]:
    """Kill the primary and promote its standby; make the first one a standby, and go back to it in the same way."""
    first, second = cell.servers
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


def refusing(change: Callable[[Path], object], words: str) -> Inject:
    """Return an injection that changes a SQLite file under a daemon: all commands refuse it, and make no new file."""

    @contextmanager
    def inject(cell: Cell) -> Iterator[None]:
        path, kept = cell.place / "tracker.db", cell.folder / "kept.db"
        with answering(Wire.stall, 1.0, cell):
            time.sleep(3)  # what was under way is recorded, and no history is written any more
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(kept)) as target:
                source.backup(target)
            change(path)
            exits = cell.running.pop().wait()
            assert exits == 78, f"the daemon exits {exits}"
            assert words in cell.log.read_text(), "the daemon does not say why it ends"
            for end in (
                ("-wal", "-shm") if words == "was moved" else ()
            ):  # they belong to the other file, as the message says
                path.with_name(path.name + end).unlink(missing_ok=True)
            content = path.exists() and path.read_bytes()
            for command in (("run",), ("run", "--once"), ("add", "another"), ("status",)):
                exits, text = cell.say(*command)
                assert (exits, "tracker: error:" in text) == (78, True), f"{command} exits {exits}: {text}"
            assert (path.exists() and path.read_bytes()) == content, "a refused file was written to"
        for file in cell.place.iterdir():
            file.unlink()
        shutil.copy(kept, path)
        cell.start()
        yield

    return inject


def corrupt(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(0, path.stat().st_size, 4096):
            file.seek(page)
            file.write(os.urandom(100))


def replace(path: Path) -> None:
    path.with_name("new").write_text("not a database")
    path.with_name("new").replace(path)


@contextmanager
def read_only_medium(cell: Cell) -> Iterator[None]:
    for words in ("--bind {0} {0}", "-o remount,ro,bind {0}"):
        if subprocess.run(["mount", *words.format(cell.place).split()], capture_output=True).returncode:
            raise Skipped("needs root and mount")
    yield
    subprocess.run(["umount", cell.place], check=True)


def of_the_database() -> Iterator[Fault]:
    lite, post = partial(Fault, on=BOTH[:1], seconds=8.0), partial(Fault, on=BOTH[1:], seconds=8.0)
    yield post("database stopped", lasting(lambda c: c.database.close(), lambda c: server(c).start()), *AWAY)
    killed = lasting(lambda c: server(c).close(signal.SIGKILL), lambda c: server(c).start())
    yield post("database killed", killed, *AWAY)
    restarted = lasting(lambda c: c.database.close(), lambda c: server(c).start())
    yield Fault("database restarted", restarted, on=BOTH[1:])
    yield post("no connection left", no_connection_left, *AWAY)
    yield lite("database locked", locked, *SILENT)
    yield post("database locked", locked, *AWAY)
    yield lite("disk full", lasting(fill, make_room), *SILENT, start=on_tmpfs)
    yield post("disk full", lasting(fill, make_room), *AWAY, start=on_tmpfs)
    name = "default_transaction_read_only"
    on, off = partial(read_only, f"SET {name} = on"), partial(read_only, f"RESET {name}")
    yield post("database read-only", lasting(on, off), *SILENT)
    yield lite("read-only medium, cron", read_only_medium, ("not_running",), start=Cron, once=75)
    yield Fault("failed over, and back", failed_over, ("not_running",), on=BOTH[1:], covers=False, start=two_servers)
    file = partial(Fault, gap=("unreachable", "not_running"), covers=False, on=BOTH[:1])
    yield file("file moved", refusing(lambda path: path.rename(path.with_name("elsewhere")), "was moved"))
    yield file("file replaced", refusing(replace, "was moved"))
    yield file("file corrupted", refusing(corrupt, "damaged"))
    yield file("file emptied", refusing(lambda path: os.truncate(path, 0), "damaged"))


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


def killed_at(point: str) -> Inject:
    @contextmanager
    def inject(cell: Cell) -> Iterator[None]:
        cell.running[0].terminate()
        assert cell.running.pop().wait() == 0
        exits = cell.process("run", at=point).wait(30)
        assert exits == -signal.SIGKILL, f"it exits {exits}"
        cell.start()
        yield

    return inject


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
        seen, daemon = rows, cell.process("run")
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
    """Leave a daemon no memory for a while. If it hangs afterwards, /healthz says so, and a supervisor kills it."""
    port = cell.env["TRACKER_HTTP_PORT"] = str(free_port())
    cell.running.pop().kill()
    cell.start()
    time.sleep(2)
    with limited(resource.RLIMIT_AS, half_its_memory, cell):
        yield
    time.sleep(2 * hurry.LEASE.total_seconds() + 5)
    try:
        urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
    except OSError:
        cell.running.pop().kill()
        cell.start()


def of_the_process() -> Iterator[Fault]:
    yield Fault("killed 500 times", killed_at_random, ("not_running",), covers=False)  # the longest begins first
    yield Fault("frozen beyond its lease", frozen, *SILENT, seconds=8)
    yield Fault("frozen, and another takes over", taken_over, seconds=8)
    for step in hurry.STEPS:
        for when in ("before", "commit", "after") if step in ("claim", "record") else ("before", "after"):
            yield Fault(f"killed at {step}: {when}", killed_at(f"{step}: {when}"))
    yield Fault("no file descriptor", partial(limited, resource.RLIMIT_NOFILE, lambda pid: 3), *UNREACHABLE)
    gaps = ("unreachable", "bad_answer", "not_running")
    yield Fault("no memory", no_memory, gaps, seconds=6, covers=False)


# The clock


def move(seconds: int, cell: Cell) -> None:
    (cell.folder / "clock.new").write_text(f"{seconds:+}\n")
    (cell.folder / "clock.new").replace(cell.folder / "clock")


def with_a_clock(is_idle: bool, cell: Cell) -> None:
    """Start a daemon whose database has a clock that a file moves; it rarely asks, or asks almost all the time."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        raise Skipped("faketime is not installed (apt-get install faketime)")
    move(0, cell)
    env = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(cell.folder / "clock")}
    env |= {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    cell.elevate.pause = 0.0 if is_idle else 0.4
    if isinstance(cell.database, Postgres):
        cell.database.close()
        cell.database.env |= env
        cell.database.start()
        env = {}
    apart(cell, env, slow=4.0 if is_idle else 0.5)


@contextmanager
def clock_moved(seconds: int, cell: Cell) -> Iterator[None]:
    """Set the clock, and set it right when all jobs were seen."""
    move(seconds, cell)
    cell.wait("running")
    yield
    move(0, cell)


def of_the_clock() -> Iterator[Fault]:
    for words, seconds in (("an hour", 3600), ("a day", 86400), ("a year", 365 * 86400)):
        for way, sign in (("ahead", 1), ("back", -1)):
            for when, is_idle in (("idle", True), ("asking", False)):
                inject, start = partial(clock_moved, sign * seconds), partial(with_a_clock, is_idle)
                gaps = ("clock_set", "not_running")
                yield Fault(f"clock {words} {way}, {when}", inject, gaps, start=start, clock=True)


FAULTS = [*of_the_process(), *of_the_server(), *of_the_database(), *of_the_clock()]
