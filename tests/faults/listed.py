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
from dataclasses import replace
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
from tests.faults.databases import Postgres, Sqlite, addresses
from tests.hostile import Wire, free_port, http


class Skipped(Exception):
    """A fault cannot be made on this machine."""


# What a server does in place of an answer. Each body that looks like an answer says `done`: nobody may believe it.

KEY_REFUSED, RATE_LIMITED = (("key_refused",), ("key_refused", 1)), (("rate_limited",), ("rate_limited", 0))
UNREACHABLE, BAD_ANSWER = (("unreachable",), ("unreachable", 1)), (("bad_answer",), ("bad_answer", 1))
AWAY = (("not_running",), ("database", 69))
"""The causes of gaps, and what `tracker status` says meanwhile."""


def done(wire: Wire, jid: str = "") -> bytes:
    return json.dumps({"jid": jid or wire.jid, "status": "done"}).encode()


def code(words: str, *headers: str) -> Callable[[Wire], object]:
    return lambda wire: wire.reply(done(wire), words, *headers)


def raw(make: Callable[[Wire], bytes], then: Callable[[Wire], object] = Wire.close) -> Callable[[Wire], object]:
    """Send what *make* returns, then end the connection."""

    def play(wire: Wire) -> None:
        wire.send(make(wire))
        then(wire)

    return play


def body(text: str) -> Callable[[Wire], object]:
    return lambda wire: wire.reply(text.replace("JID", wire.jid))


HTTP: dict[str, tuple[Callable[[Wire], object], Any]] = {
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
    "204, nothing": (lambda wire: wire.reply(b"", "204 No Content"), BAD_ANSWER),
    "empty": (body(""), BAD_ANSWER),
    "a page, not JSON": (body("<html>done</html>"), BAD_ANSWER),
    "a list": (body('[{"jid": "JID", "status": "done"}]'), BAD_ANSWER),
    "no status": (body('{"jid": "JID"}'), BAD_ANSWER),
    "two statuses": (body('{"jid": "JID", "status": "done", "status": "waiting"}'), BAD_ANSWER),
    "another job's jid": (lambda wire: wire.reply(done(wire, JIDS[JIDS.index(wire.jid) - 1])), BAD_ANSWER),
    "cut-off body": (raw(lambda wire: http(done(wire)[:-4], "200 OK", "Content-Length: 90")), BAD_ANSWER),
    "cut-off head": (raw(lambda wire: b"HTTP/1.1 200 OK\r\nContent-"), BAD_ANSWER),
    "not HTTP": (raw(lambda wire: b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), BAD_ANSWER),
    "huge body": (raw(lambda wire: http(b" " * 2_000_000 + done(wire), "200 OK", "Content-Length: 2000070")), BAD_ANSWER),
    "dripped body": (lambda wire: wire.drip(http(done(wire), "200 OK", "Content-Length: 67")), UNREACHABLE),
    "dripped head": (lambda wire: wire.drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20), UNREACHABLE),
    "no answer": (Wire.stall, UNREACHABLE),
    "reset": (Wire.reset, UNREACHABLE),
    "reset in mid-answer": (raw(lambda wire: http(done(wire)[:-4], "200 OK", "Content-Length: 90"), Wire.reset), UNREACHABLE),
    "closed": (Wire.close, UNREACHABLE),
}


@contextmanager
def answering(fault: Callable[[Wire], object], share: float, cell: Cell) -> Iterator[None]:
    """Let the server do *fault* to a *share* of the requests."""
    cell.elevate.share, cell.elevate.fault = share, fault
    try:
        yield
    finally:
        cell.elevate.fault = None


def of_http() -> Iterator[Fault]:
    for name, (fault, (gap, shows)) in HTTP.items():
        exits = (78,) if gap == KEY_REFUSED[0] else (69,)
        yield Fault(f"HTTP {name}, 100%", partial(answering, fault, 1.0), gap, shows)
        yield Fault(f"HTTP {name}, 10%", partial(answering, fault, 0.1), gap, share=0.1, within=60, on=BOTH[1:])
        cron = Fault(f"HTTP {name}, cron", partial(answering, fault, 1.0), gap, shows, start=Cron, on=BOTH[:1])
        yield replace(cron, exits=exits, seconds=2)


# The way to the server


def certificate(path: Path, name: str, days: int) -> None:
    """Write a key and a self-signed certificate for the host *name*, valid for so many *days* from now on."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(days=9)).not_valid_after(now + timedelta(days=days))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem + key.private_bytes(*form))


NO_SUCH_HOST = "w1.elevate.invalid"


def tls(folder: Path) -> ssl.SSLContext:
    """Make certificates, and a context with the good one; all but the unknown one are trusted."""
    made = {"good": ("localhost", 1), "expired": ("localhost", -1), "of another host": ("other.invalid", 1)}
    made |= {"unknown": ("localhost", 1), "by name": (NO_SUCH_HOST, 1)}
    for name, (host, days) in made.items():
        certificate(folder / f"{name}.pem", host, days)
    trusted = b"".join((folder / f"{name}.pem").read_bytes() for name in made if name != "unknown")
    (folder / "authorities.pem").write_bytes(trusted)
    return context(folder / "good.pem")


def context(path: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(path)
    return made


@contextmanager
def presenting(name: str, share: float, cell: Cell) -> Iterator[None]:
    """Let the server present the certificate *name* on a *share* of its connections."""
    elevate, bad = cell.elevate, context(cell.folder / f"{name}.pem")

    def choose(connection: ssl.SSLObject, host: str, good: ssl.SSLContext) -> None:
        if elevate.rng.random() < share:
            elevate.faulty.append(datetime.now(UTC))
            connection.context = bad

    assert elevate.tls is not None
    elevate.tls.sni_callback = choose
    try:
        yield
    finally:
        elevate.tls.sni_callback = None


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
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def dying_in_mid_answer(cell: Cell) -> Iterator[None]:
    begun = threading.Event()

    def half(wire: Wire) -> None:
        wire.send(http(done(wire)[:-9], "200 OK", "Content-Length: 67"))
        begun.set()
        wire.stall()

    with answering(half, 1.0, cell):
        assert begun.wait(20)
        cell.elevate.down()
        yield
    cell.elevate.up()


def apart(cell: Cell, env: dict[str, str], *before: str, slow: float = 0.5) -> None:
    """Start a daemon as a process that is no fork, after the words *before*."""
    words = [*before, sys.executable, "-m", "tests.faults.hurry", "run", str(slow), os.devnull, str(cell.log)]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])} | cell.env | env
    cell.running.append(subprocess.Popen(words, env=env, cwd=cell.folder))


def with_hosts(cell: Cell) -> None:
    """Start a daemon with an /etc/hosts of its own, in which the server has a name."""
    hosts = cell.folder / "hosts"
    hosts.write_text(f"127.0.0.1 {NO_SUCH_HOST}\n")
    place = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
    if subprocess.run([*place, "true"], capture_output=True).returncode:
        raise Skipped("needs root and unshare")
    assert cell.elevate.tls is not None
    cell.elevate.tls.load_cert_chain(cell.folder / "by name.pem")
    apart(cell, {"TRACKER_BASE_URL": f"https://{NO_SUCH_HOST}:{cell.elevate.port}"}, *place)


unresolved = lasting(
    lambda cell: (cell.folder / "hosts").write_text(""),
    lambda cell: (cell.folder / "hosts").write_text(f"127.0.0.1 {NO_SUCH_HOST}\n"),
)


def of_the_network() -> Iterator[Fault]:
    yield Fault("server refuses, 100%", lasting(lambda c: c.elevate.down(), lambda c: c.elevate.up()), *UNREACHABLE)
    yield Fault("server refuses, 10%", flapping, UNREACHABLE[0], share=0.1, within=60)
    yield Fault("server dies in mid-answer", dying_in_mid_answer, UNREACHABLE[0] + BAD_ANSWER[0], UNREACHABLE[1])
    for name in ("expired", "of another host", "unknown"):
        for share in (1.0, 0.1):
            inject = partial(presenting, name, share)
            yield Fault(f"certificate {name}, {share:.0%}", inject, *UNREACHABLE, share=share, within=60, server=tls)
    yield Fault("name not resolved", unresolved, *UNREACHABLE, server=tls, start=with_hosts)


# The database


def postgres(cell: Cell) -> Postgres:
    assert isinstance(cell.database, Postgres)
    return cell.database


def sqlite(cell: Cell) -> Path:
    assert isinstance(cell.database, Sqlite)
    return cell.database.path


def start_again(cell: Cell) -> None:
    postgres(cell).start()


def restart(cell: Cell) -> None:
    postgres(cell).stop()
    postgres(cell).start()


@contextmanager
def no_connection_left(cell: Cell) -> Iterator[None]:
    """Take all connections that the server allows, also those of the daemon."""
    engine = sa.create_engine(cell.database.url, poolclass=sa.NullPool, connect_args={"application_name": "greedy"})
    held: list[sa.Connection] = []
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'tracker'"
    while len(held) < 16:
        with suppress(sa.exc.OperationalError):
            held.append(engine.connect())
            continue
        postgres(cell).run(f"{others} AND application_name <> 'greedy'")
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
    database = cell.database
    database.close()
    kept = cell.folder / "kept"
    cell.place.rename(kept)
    cell.place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200M", "none", str(cell.place)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise Skipped("needs root and mount")
    cell.stack.callback(subprocess.run, ["umount", "-l", str(cell.place)], check=True)
    subprocess.run(["cp", "-a", f"{kept}/.", cell.place], check=True)
    if isinstance(database, Postgres):
        cell.stack.callback(database.close)
        database.start()
    cell.start()


def fill(cell: Cell) -> None:
    """Fill the file system, and let PostgreSQL need another file."""
    with (cell.place / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    if isinstance(cell.database, Postgres):
        try:
            while True:
                cell.database.run("SELECT pg_switch_wal()", "CREATE TABLE filler AS SELECT 1", "DROP TABLE filler")
        except sa.exc.OperationalError:
            pass


def empty(cell: Cell) -> None:
    (cell.place / "filler").unlink()
    if isinstance(cell.database, Postgres):
        cell.database.start()


def read_only(cell: Cell, change: str = "SET", value: str = "= on") -> None:
    """Let every transaction be read-only, also those of connections that are open."""
    postgres(cell).run(f"ALTER SYSTEM {change} default_transaction_read_only {value}", "SELECT pg_reload_conf()")


@contextmanager
def failed_over(cell: Cell) -> Iterator[None]:
    """Kill the primary and promote its standby; then make the first one a standby, and go back to it in the same way."""
    first, second = cell.servers
    first.stop(signal.SIGKILL)
    second.promote()
    cell.wait("running")
    cell.elevate.status = "waiting"
    shutil.rmtree(first.folder)
    time.sleep(1)
    first.stop()
    third = second.standby(first.folder.parent, first.port)
    second.stop(signal.SIGKILL)
    third.promote()
    cell.database = third
    yield


def two_servers(cell: Cell) -> None:
    other = cell.folder / "other"
    other.mkdir()
    shutil.chown(other, "nobody")
    shutil.chown(cell.place, "nobody")
    cell.servers = [postgres(cell), postgres(cell).standby(other)]
    for server in cell.servers:
        cell.stack.callback(server.close)
    cell.env["TRACKER_DATABASE_URL"] = addresses(cell.servers)
    cell.start()


def of_the_database() -> Iterator[Fault]:
    lite, server = partial(Fault, on=BOTH[:1], seconds=8.0), partial(Fault, on=BOTH[1:], seconds=8.0)
    silent = (("not_running",), ("none is running", 0))  # it becomes a need when polls are a quarter of an hour late
    yield server("database stopped", lasting(lambda c: postgres(c).stop(), start_again), *AWAY)
    yield server("database killed", lasting(lambda c: postgres(c).stop(signal.SIGKILL), start_again), *AWAY)
    yield Fault("database restarted", lasting(restart, lambda c: None), on=BOTH[1:])
    yield server("no connection left", no_connection_left, *AWAY)
    yield lite("database locked", locked, *silent)
    yield server("database locked", locked, *AWAY)
    yield lite("disk full", lasting(fill, empty), *silent, start=on_tmpfs)
    yield server("disk full", lasting(fill, empty), *AWAY, start=on_tmpfs)
    back = partial(read_only, change="RESET", value="")
    yield server("database read-only", lasting(read_only, back), *silent)
    yield Fault("failed over, and back", failed_over, start=two_servers, on=BOTH[1:], within=20)


# SQLite's file


def refusing(change: Callable[[Path], object], words: str) -> Callable[[Cell], AbstractContextManager[object]]:
    """Return an injection that alters the file under a daemon: all commands refuse it, and make no other."""

    @contextmanager
    def inject(cell: Cell) -> Iterator[None]:
        with answering(Wire.stall, 1.0, cell):
            time.sleep(3)  # nothing is under way and written any more
            path, kept = sqlite(cell), cell.folder / "kept.db"
            cell.rows("SELECT 1 FROM jobs")
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(kept)) as target:
                source.backup(target)
            before = cell.rows("SELECT count(*) FROM transitions")
            change(path)
            said = cell.running.pop().wait()
            assert said == 78, f"the daemon exits {said}"
            assert words in cell.log.read_text(), "the daemon does not say why it ends"
            if words == "was moved":  # the message asks for it: they belong to the other file
                for end in ("-wal", "-shm"):
                    path.with_name(path.name + end).unlink(missing_ok=True)
            content = path.exists() and path.read_bytes()
            for command in (("run",), ("run", "--once"), ("add", "another"), ("status",)):
                said, text = cell.say(*command)
                assert (said, "tracker: error:" in text) == (78, True), f"{command} exits {said}: {text}"
            assert (path.exists() and path.read_bytes()) == content, "a refused file was written to"
        for file in cell.place.iterdir():
            file.unlink()
        shutil.copy(kept, path)
        assert cell.rows("SELECT count(*) FROM transitions") == before
        cell.start()
        yield

    return inject


def corrupt(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(0, path.stat().st_size, 4096):
            file.seek(page)
            file.write(os.urandom(100))


def empty_file(path: Path) -> None:
    os.truncate(path, 0)


def replace_by_another(path: Path) -> None:
    path.with_name("new").write_text("not a database")
    path.with_name("new").replace(path)


@contextmanager
def read_only_medium(cell: Cell) -> Iterator[None]:
    subprocess.run(["mount", "--bind", cell.place, cell.place], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", cell.place], check=True)
    yield
    subprocess.run(["umount", cell.place], check=True)


def of_the_file() -> Iterator[Fault]:
    one = partial(Fault, gap=("unreachable", "not_running"), covers=False, on=BOTH[:1])
    yield one("file moved", refusing(lambda path: path.rename(path.with_name("elsewhere")), "was moved"))
    yield one("file replaced", refusing(replace_by_another, "was moved"))
    yield one("file corrupted", refusing(corrupt, "damaged"))
    yield one("file emptied", refusing(empty_file, "damaged"))
    yield Fault("read-only medium, cron", read_only_medium, ("not_running",), start=Cron, on=BOTH[:1], exits=(75,), seconds=8)


# The process


@contextmanager
def frozen(cell: Cell) -> Iterator[None]:
    """Stop the daemon in the middle of its requests, until its leases are over and it is taken for dead."""
    with answering(lambda wire: time.sleep(1), 1.0, cell):
        time.sleep(1)
        os.kill(cell.running[0].pid, signal.SIGSTOP)
    yield
    os.kill(cell.running[0].pid, signal.SIGCONT)


@contextmanager
def taken_over(cell: Cell) -> Iterator[None]:
    """Freeze the daemon while another runs: it takes the jobs over, and the first leaves them to it."""
    with frozen(cell):
        cell.start()
        cell.wait("running")
        yield


def killed_at(point: str) -> Callable[[Cell], AbstractContextManager[object]]:
    @contextmanager
    def inject(cell: Cell) -> Iterator[None]:
        daemon = cell.running.pop()
        daemon.terminate()
        assert daemon.wait() == 0
        said = cell.process("run", at=point).wait(20)
        assert said == -signal.SIGKILL, f"it exits {said}"
        cell.start()
        yield

    return inject


@contextmanager
def killed_at_random(cell: Cell) -> Iterator[None]:
    """Kill 500 daemons, each after up to half a second; what was there stays as it was."""
    rng, daemon, seen = random.Random(1), cell.running.pop(), set[Any]()
    for turn in range(500):
        cell.elevate.status = ("running", "waiting", "started")[turn // 8 % 3]
        time.sleep(rng.random() / 2)
        daemon.kill()
        assert daemon.wait() == -signal.SIGKILL
        rows = {tuple(row) for row in cell.rows("SELECT * FROM transitions")}
        assert seen <= rows, "a transition was lost or changed"
        seen = rows
        daemon = cell.process("run")
    assert len(seen) > 500, f"only {len(seen)} transitions came meanwhile"
    cell.running.append(daemon)
    yield


def limited(kind: int, room: Callable[[int], int]) -> Callable[[Cell], AbstractContextManager[object]]:
    """Return an injection that leaves a running daemon only so much *room* of a resource."""

    @contextmanager
    def inject(cell: Cell) -> Iterator[None]:
        cell.elevate.headers = ("Connection: close",)
        pid = cell.running[0].pid
        before = resource.prlimit(pid, kind)
        resource.prlimit(pid, kind, (room(pid), before[1]))
        yield
        resource.prlimit(pid, kind, before)

    return inject


@contextmanager
def no_memory(cell: Cell) -> Iterator[None]:
    """Leave a daemon no memory for a while. One that hangs afterwards says so at /healthz, and its supervisor kills it."""
    port = cell.env["TRACKER_HTTP_PORT"] = str(free_port())
    cell.running.pop().kill()
    cell.start()
    time.sleep(2)
    with limited(resource.RLIMIT_AS, memory)(cell):
        yield
    time.sleep(2 * hurry.LEASE.total_seconds() + 5)
    try:
        urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
    except OSError:
        cell.running.pop().kill()
        cell.start()


def memory(pid: int) -> int:
    """Return how much address space a process has, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize() // 2


POINTS = [f"{step}: {when}" for step in hurry.STEPS for when in ("before", "commit", "after")]
POINTS = [point for point in POINTS if point not in ("ask: commit", "decide: commit")]  # these commit nothing


def of_the_process() -> Iterator[Fault]:
    yield Fault("frozen beyond its lease", frozen, ("not_running",), ("none is running", 0), seconds=8)
    yield Fault("frozen, and another takes over", taken_over, seconds=8)
    for point in POINTS:
        yield Fault(f"killed at {point}", killed_at(point))
    yield Fault("killed 500 times", killed_at_random, ("not_running",), covers=False)
    yield Fault("no file descriptor", limited(resource.RLIMIT_NOFILE, lambda pid: 3), *UNREACHABLE)
    gaps = UNREACHABLE[0] + BAD_ANSWER[0]
    yield Fault("no memory", no_memory, (*gaps, "not_running"), seconds=6, covers=False)


# The clock


def faked(cell: Cell) -> dict[str, str]:
    """Return the environment of a process with a clock that a file moves."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        raise Skipped("faketime is not installed (apt-get install faketime)")
    move(cell, 0)
    names = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(cell.folder / "clock")}
    return names | {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def move(cell: Cell, seconds: int) -> None:
    (cell.folder / "clock.new").write_text(f"{seconds:+}\n")
    (cell.folder / "clock.new").replace(cell.folder / "clock")


def with_a_clock(is_idle: bool, cell: Cell) -> None:
    """Start a daemon whose database has a clock that can be moved; it rarely asks, or asks nearly all the time."""
    env, slow = faked(cell), 4.0 if is_idle else 0.5
    cell.elevate.pause = 0.0 if is_idle else 0.4
    if isinstance(cell.database, Postgres):
        cell.database.close()
        cell.database.env |= env
        cell.database.start()
        env = {}
    apart(cell, env, slow=slow)


@contextmanager
def clock_moved(seconds: int, cell: Cell) -> Iterator[None]:
    move(cell, seconds)
    cell.wait("running")
    yield
    move(cell, 0)


def of_the_clock() -> Iterator[Fault]:
    for words, seconds in (("an hour", 3600), ("a day", 86400), ("a year", 365 * 86400)):
        for way, sign in (("ahead", 1), ("back", -1)):
            for when, is_idle in (("idle", True), ("asking", False)):
                start = partial(with_a_clock, is_idle)
                name = f"clock {words} {way}, {when}"
                yield Fault(name, partial(clock_moved, sign * seconds), ("clock_set", "not_running"), start=start, clock=True)


FAULTS = [*of_http(), *of_the_network(), *of_the_database(), *of_the_file(), *of_the_process(), *of_the_clock()]
