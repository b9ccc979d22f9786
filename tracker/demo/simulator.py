"""A fake Elevate on loopback, with a clock of its own.

Owns: what becomes of a simulated job (`Fate`: drawn once, at its creation, so that the truth is known to whoever
checks bounds against it), the faults that can be asked for (`Fault`), and a small threaded HTTP server that speaks the
calls of Elevate 3: the job status, and the two that create jobs. Leaves alone: everything of the real tracker.

The server parses requests itself: ``http.server`` spends more on the headers than all the rest takes, and the demo
pushes hundreds of requests a second through one process that is client, poller and server.
"""

from __future__ import annotations

import json
import logging
import random
import socket
import socketserver
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as wall_time
from email.utils import format_datetime
from http import HTTPStatus
from math import ceil
from typing import ClassVar
from urllib.parse import parse_qs
from zoneinfo import ZoneInfo

from tracker.errors import TrackerError
from tracker.status import Kind, Status

log = logging.getLogger(__name__)

DEFAULT_KEY = "simulated-key"
DEFAULT_TIMEZONE = ZoneInfo("Europe/Stockholm")
DEFAULT_RUNNING = (timedelta(minutes=2), timedelta(hours=8))

STATUS_PATHS = frozenset(
    f"/api/{version}/event-data/job-status"
    for version in ("v2", "admin/v3", "admin/v4")  # the Elevate 3 path and its successors
)
CREATE_PATHS = {
    "/api/v2/event-data/create-export-customer-job": Kind.EXPORT,
    "/api/v2/event-data/create-remove-customer-job": Kind.REMOVAL,
}

_SETTLES_WITHIN = timedelta(minutes=10)  # from `created` to `waiting`; ours, undocumented
_STARTS_WITHIN = timedelta(hours=1)  # a night's jobs do not all begin at midnight; ours, undocumented
MOST_ARCHIVE_DAYS = 365
FASTEST = 1_000_000  # at that, the calendar ends (year 9999) after some three days


class CannotListen(TrackerError):
    """The port is taken, or not ours to take."""

    exit_code = 69


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one job: the truth that observations are checked against.

    Attributes:
        jid: The job's id, a UUID.
        kind: Export or removal.
        created_at: From here the job exists (all instants are aware UTC); its status is that of the creating answer.
        waits_at: From here ``waiting``.
        runs_at: From here ``running``.
        ends_at: From here *end*.
        end: `Status.DONE` or `Status.ERROR`.
        gone_at: From here ``not_found`` again: an export that was downloaded. None: never.
    """

    jid: str
    kind: Kind
    created_at: datetime
    waits_at: datetime
    runs_at: datetime
    ends_at: datetime
    end: Status
    gone_at: datetime | None

    @property
    def done_at(self) -> datetime | None:
        """The instant at which the job was done, or None if it ends otherwise."""
        return self.ends_at if self.end is Status.DONE else None

    def status_at(self, at: datetime) -> Status:
        """Return the status that Elevate gives at the instant *at* (aware)."""
        if at < self.created_at or (self.gone_at is not None and at >= self.gone_at):
            return Status.NOT_FOUND
        if at >= self.ends_at:
            return self.end
        if at >= self.runs_at:
            return Status.RUNNING
        if at >= self.waits_at:
            return Status.WAITING
        return Status.CREATED if self.kind is Kind.EXPORT else Status.STARTED


def draw_fate(
    rng: random.Random,
    kind: Kind,
    created_at: datetime,
    *,
    timezone: ZoneInfo,
    archive_days: int,
    running: tuple[timedelta, timedelta],
    failing: float,
    kept: timedelta,
) -> Fate:
    """Return what becomes of a job created at *created_at*, drawn from *rng*; the arguments are those of `Simulator`.

    The job begins within an hour of the midnight that starts the archive day (ELEVATE.md, "waiting takes days"). It
    runs for a time drawn evenly on a logarithmic scale: the chance of an end then falls as 1/age, which is what the
    cadence assumes.
    """
    # Always the same draws in the same order: a change of one setting then leaves the other jobs as they were.
    jid = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    settling, starting, lasting, failure = (rng.random() for _ in range(4))

    created_at = created_at.astimezone(UTC)
    archive_day = created_at.astimezone(timezone).date() + timedelta(days=archive_days)
    # A midnight that a change to summer time skips comes out as the instant of the change: the day's first.
    midnight = datetime.combine(archive_day, wall_time(), timezone).astimezone(UTC)
    runs_at = midnight + starting * _STARTS_WITHIN
    shortest, longest = running
    ends_at = runs_at + min(longest, shortest * (longest / shortest) ** lasting)
    end = Status.ERROR if failure < failing else Status.DONE
    return Fate(
        jid=jid,
        kind=kind,
        created_at=created_at,
        waits_at=created_at + settling * min(_SETTLES_WITHIN, runs_at - created_at),
        runs_at=runs_at,
        ends_at=ends_at,
        end=end,
        gone_at=ends_at + kept if kind is Kind.EXPORT and end is Status.DONE else None,
    )


# What each fault does, for `--help` and for whoever misspells one.
FAULT_KINDS = {
    "CODE": "that HTTP code, 201 to 599; a 3xx leads elsewhere; 429 has a Retry-After (30 s), others if given",
    "hang": "no answer for 30 s, then the end of the connection; also called timeout",
    "slow": "the answer comes after 1 s",
    "drip": "the answer comes byte by byte, one each 0.5 s",
    "reset": "the connection is reset",
    "truncate": "half of the body, then the end of the connection",
    "garbage": "200 with a body that is no answer",
    "wrong_jid": "an answer about another job",
    "redirect": "302 to another host",
    "unknown": "a status that nobody documented",
}
_FAULT_SECONDS = {"hang": 30.0, "timeout": 30.0, "slow": 1.0, "drip": 0.5, "429": 30.0}
_MOST_FAULT_SECONDS = 86_400
_FAULT_HELP = "KIND=SHARE or KIND=SHARE:SECONDS, as in 503=0.1 or hang=0.05:12"

_GARBAGE = (
    b"",
    b"<!doctype html><title>Gateway</title><p>Please wait",
    b'{"jid": "',
    b'["done"]',
    b'{"status": null}',
    b'{"jid": "\xff\xfe", "status": "done"}',
    b"[" * 5_000,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A way to misbehave, and how often.

    Attributes:
        kind: One of `FAULT_KINDS`, an HTTP code for ``CODE``.
        share: The share of status requests that meet it, 0 to 1.
        seconds: How long it lasts (``hang``, ``slow``), the time between bytes (``drip``), both in real seconds, or the
            Retry-After of a code. None: the kind's default.

    Raises:
        ValueError: One of them is wrong; the message lists the kinds.
    """

    kind: str
    share: float
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.code is None and (self.kind not in FAULT_KINDS or self.kind == "CODE") and self.kind != "timeout":
            raise self._wrong(self.kind, "there is no such kind")
        if not 0 <= self.share <= 1:
            raise self._wrong(self.kind, f"the share {self.share:g} is not between 0 and 1")
        if self.seconds is not None:
            if self.code is None and self.kind not in _FAULT_SECONDS:
                raise self._wrong(self.kind, "this kind takes no seconds")
            if not 0 <= self.seconds <= _MOST_FAULT_SECONDS:
                raise self._wrong(self.kind, f"{self.seconds:g} seconds are not between 0 and {_MOST_FAULT_SECONDS}")

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Return the fault that *text* asks for: ``KIND=SHARE`` or ``KIND=SHARE:SECONDS``.

        Raises:
            ValueError: It asks for none; the message lists the kinds.
        """
        kind, equals, numbers = text.partition("=")
        share_text, colon, seconds_text = numbers.partition(":")
        if not equals:
            raise cls._wrong(text, "the share is missing")
        try:
            share, seconds = float(share_text), float(seconds_text) if colon else None
        except ValueError as error:
            raise cls._wrong(text, "that is no number") from error
        return cls(kind, share, seconds)

    @staticmethod
    def _wrong(what: str, problem: str) -> ValueError:
        kinds = ", ".join(FAULT_KINDS)
        return ValueError(f"fault {what!r}: {problem}; write {_FAULT_HELP}; kinds: {kinds} (CODE: 201 to 599)")

    @property
    def code(self) -> int | None:
        """The HTTP code that this fault answers with, or None if it is of another kind."""
        if self.kind == "redirect":
            return 302
        plain = len(self.kind) == 3 and self.kind.isascii() and self.kind.isdigit()
        return int(self.kind) if plain and 201 <= int(self.kind) <= 599 else None

    @property
    def pause(self) -> float | None:
        """The seconds, the kind's default where none were given; None where the kind has none."""
        return _FAULT_SECONDS.get(self.kind) if self.seconds is None else self.seconds


def check_faults(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """Return *faults* as a tuple.

    Raises:
        ValueError: Their shares make more than 1.
    """
    total = sum(fault.share for fault in faults)
    if total > 1 + 1e-9:  # 0.56 + 0.34 + 0.1 is a little more than 1
        raise ValueError(f"the shares of all faults make {total:g}; together they must be at most 1")
    return tuple(faults)


def fast_clock(speed: float, start: datetime, tick: Callable[[], float] = time.monotonic) -> Callable[[], datetime]:
    """Return a clock that begins at *start* and runs *speed* times as fast as *tick* (seconds).

    Raises:
        ValueError: *speed* is not above 0 and at most `FASTEST`.
    """
    if not 0 < speed <= FASTEST:
        raise ValueError(f"speed: {speed:g} is not above 0 and at most {FASTEST}; 86400 makes a day a second")
    began = tick()

    def now() -> datetime:
        return start + timedelta(seconds=(tick() - began) * speed)

    return now


@dataclass(frozen=True, slots=True)
class _Reply:
    """What goes back: *delivery* is the fault, if any, that the way there suffers from."""

    code: int
    body: bytes
    headers: str = ""
    delivery: Fault | None = None


class Simulator:
    """The fake Elevate: its jobs, its clock, its faults. Thread-safe.

    Attributes:
        now: The clock in force; replies carry its time in ``Date``.
        faults: The faults in force; assign (`check_faults`) to change them while it serves.

    Args:
        now: The clock, aware. Default: the real one.
        api_key: The only key that is accepted.
        timezone: Where its days begin.
        archive_days: A job runs so many days after its creation, the next day (1) at the earliest; at most 365.
        seed: Same seed, same calls in the same order: same jids, fates and faults. None: another each time.
        faults: How status requests with the right key misbehave. Creation never does, so that a scene can be set.
        running: The shortest and the longest time that a job runs.
        failing: The share of jobs that end in ``error``, 0 to 1.
        kept: An export is forgotten so long after it was done (downloaded; its data lasts about a week).

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        now: Callable[[], datetime] | None = None,
        *,
        api_key: str = DEFAULT_KEY,
        timezone: ZoneInfo = DEFAULT_TIMEZONE,
        archive_days: int = 5,
        seed: int | None = None,
        faults: Sequence[Fault] = (),
        running: tuple[timedelta, timedelta] = DEFAULT_RUNNING,
        failing: float = 0.0,
        kept: timedelta = timedelta(days=7),
    ) -> None:
        if not (api_key and api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ValueError("the key goes into a header: it must be printable ASCII without blanks, and not empty")
        if not 1 <= archive_days <= MOST_ARCHIVE_DAYS:
            raise ValueError(f"archive days: {archive_days} is not between 1 and {MOST_ARCHIVE_DAYS}")
        if not timedelta() < running[0] <= running[1]:
            raise ValueError("running: give the shortest and the longest time, the shortest more than zero")
        if not 0 <= failing <= 1:
            raise ValueError(f"failing: {failing:g} is not a share between 0 and 1")
        self.now = now or (lambda: datetime.now(UTC))
        self.faults = check_faults(faults)
        self._key = api_key.encode("ascii")
        self._timezone = timezone
        self._archive_days = archive_days
        self._running = running
        self._failing = failing
        self._kept = kept
        # Two sources, so that faults do not change the jobs.
        self._fates = random.Random(None if seed is None else f"fates {seed}")  # noqa: S311
        self._luck = random.Random(None if seed is None else f"faults {seed}")  # noqa: S311
        self._jobs: dict[str, Fate] = {}
        self._lock = threading.Lock()

    def create(self, kind: Kind, at: datetime | None = None) -> str:
        """Create a job at the instant *at* (aware; default: now) and return its jid.

        Raises:
            ValueError: *kind* is neither export nor removal, or *at* has no offset.
        """
        if kind is Kind.UNKNOWN:
            raise ValueError("a job is an export or a removal")
        created_at = self.now() if at is None else at
        if created_at.tzinfo is None:
            raise ValueError(f"{created_at} has no offset")
        with self._lock:
            fate = draw_fate(
                self._fates,
                kind,
                created_at,
                timezone=self._timezone,
                archive_days=self._archive_days,
                running=self._running,
                failing=self._failing,
                kept=self._kept,
            )
            self._jobs[fate.jid] = fate
        log.info(
            "%s created %s %s, runs from %s, %s at %s",
            *(_seconds(fate.created_at), kind, fate.jid, _seconds(fate.runs_at), fate.end, _seconds(fate.ends_at)),
        )
        return fate.jid

    def truth(self, jid: str) -> Fate:
        """Return what becomes of the job.

        Raises:
            KeyError: It was not created here.
        """
        return self._jobs[jid]

    def status_at(self, jid: str, at: datetime) -> Status:
        """Return the true status of any jid at the instant *at* (aware), faults aside."""
        fate = self._jobs.get(jid)
        return Status.NOT_FOUND if fate is None else fate.status_at(at)

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[str]:
        """Serve on 127.0.0.1 at *port* (0: a free one) and yield the base URL; on leaving, nothing runs any more.

        Raises:
            CannotListen: The port is taken, or may not be taken.
        """
        try:
            server = _Server(port, self)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CannotListen(f"cannot listen on 127.0.0.1 port {port}: {reason}; choose another port") from error
        # serve_forever looks up this often (seconds) for the request to stop.
        acceptor = threading.Thread(target=server.serve_forever, args=(0.05,), name="simulator", daemon=True)
        acceptor.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.stop()
            acceptor.join()

    def _reply(self, method: str, target: str, key: bytes | None, now: datetime) -> _Reply:
        """Return the answer to one request. The query is looked at and forgotten: a customerKey is a person's."""
        path, _, query = target.partition("?")
        kind = CREATE_PATHS.get(path)
        if kind is None and path not in STATUS_PATHS:
            return _error(404, "no such path")
        wanted = "GET" if kind is None else "POST"
        if method != wanted:
            return _error(405, f"use {wanted}", f"Allow: {wanted}\r\n")
        if key != self._key:
            return _error(403, "the Api-Key is missing or wrong")
        name = "jid" if kind is None else "customerKey"
        try:
            values = parse_qs(query, max_num_fields=20).get(name, [])
        except ValueError:  # more fields than that
            values = []
        if len(values) != 1:
            return _error(400, f"exactly one {name} is needed")
        if kind is None:
            return self._status_reply(values[0], now)
        jid = self.create(kind, now)
        return _answer(jid, self.status_at(jid, now))

    def _status_reply(self, jid: str, now: datetime) -> _Reply:
        good = _answer(jid, self.status_at(jid, now))
        fault = self._draw_fault()
        if fault is None:
            return good
        if fault.code is not None:
            location = "Location: https://elsewhere.invalid/\r\n" if 300 <= fault.code < 400 else ""
            wait = "" if fault.pause is None else f"Retry-After: {ceil(fault.pause)}\r\n"
            return _error(fault.code, "as asked for by --fault", location + wait)
        match fault.kind:
            case "garbage":
                return _Reply(200, self._luck.choice(_GARBAGE))
            case "wrong_jid":
                return _answer(str(uuid.UUID(int=self._luck.getrandbits(128), version=4)), Status.DONE)
            case "unknown":
                return _answer(jid, "postponed")
            case _:
                return _Reply(good.code, good.body, delivery=fault)

    def _draw_fault(self) -> Fault | None:
        faults = self.faults
        if not faults:
            return None
        u = self._luck.random()
        for fault in faults:
            u -= fault.share
            if u < 0:
                return fault
        return None


def _answer(jid: str, status: str) -> _Reply:
    return _Reply(200, json.dumps({"jid": jid, "status": status}).encode("ascii"))


def _error(code: int, message: str, headers: str = "") -> _Reply:
    return _Reply(code, json.dumps({"error": message}).encode("ascii"), headers)


def _seconds(at: datetime) -> str:
    return at.isoformat(" ", "seconds")


_PHRASES = {code.value: code.phrase for code in HTTPStatus}
_LONGEST_LINE = 65_536  # bytes of a request or header line
_MOST_HEADERS = 100
_LONGEST_BODY = 1 << 20  # bytes; a body is read past and not looked at


class _Malformed(Exception):
    """What came is no HTTP/1 request that this server knows how to read."""


class _Server(socketserver.ThreadingTCPServer):
    """A thread a connection; `stop` ends them all."""

    allow_reuse_address = True  # a restart need not wait for the last run's connections to be forgotten
    request_queue_size = 128  # a pool of clients connects at once; 5, the default, makes some wait a second
    daemon_threads = False  # server_close joins only such

    def __init__(self, port: int, simulator: Simulator) -> None:
        self.simulator = simulator
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Connection)

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        self.connections.add(connection)  # here, not in the connection's thread: when accepting ends, none is missing
        return connection, address

    def stop(self) -> None:
        """Accept no more, end what is open, and return when all threads have ended."""
        self.shutdown()
        for connection in list(self.connections):
            with suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)  # whoever waits for it wakes
        self.server_close()


class _Connection(socketserver.StreamRequestHandler):
    """One client: its requests in turn, until one side has enough."""

    disable_nagle_algorithm: ClassVar[bool] = True
    server: _Server

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client went away
            while self._serve_one():
                pass

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def _serve_one(self) -> bool:
        """Answer one request; return whether the connection goes on."""
        simulator = self.server.simulator
        try:
            request = self._read()
        except _Malformed as error:
            return self._send(_error(400, str(error)), simulator.now(), lasting=False)
        if request is None:
            return False
        method, target, key, lasting = request
        now = simulator.now()
        return self._send(simulator._reply(method, target, key, now), now, lasting)

    def _read(self) -> tuple[str, str, bytes | None, bool] | None:
        """Return method, target, Api-Key and whether the client will go on; None at the end of the connection."""
        line = self.rfile.readline(_LONGEST_LINE)
        if not line:
            return None
        words = line.decode("latin-1").split()
        if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise _Malformed("no HTTP/1.1 request line")
        headers: dict[bytes, bytes] = {}
        while (line := self.rfile.readline(_LONGEST_LINE)) not in (b"\r\n", b"\n"):
            name, colon, value = line.partition(b":")
            if not colon or not line.endswith(b"\n") or len(headers) >= _MOST_HEADERS:
                raise _Malformed("a header is cut, too long, or one too many")
            headers[name.lower()] = value.strip()
        if b"transfer-encoding" in headers:
            raise _Malformed("send a Content-Length, not a Transfer-Encoding")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 9 or int(length) > _LONGEST_BODY:
            raise _Malformed(f"Content-Length must be 0 to {_LONGEST_BODY}")
        self.rfile.read(int(length))
        # After a HEAD no body may follow, and every answer of ours has one: end it rather than confuse the client.
        lasting = words[2] == "HTTP/1.1" and headers.get(b"connection", b"").lower() != b"close" and words[0] != "HEAD"
        return words[0], words[1], headers.get(b"api-key"), lasting

    def _send(self, reply: _Reply, now: datetime, lasting: bool) -> bool:
        """Send the reply, in one piece unless a fault says otherwise; return whether the connection goes on."""
        fault = reply.delivery
        kind = "" if fault is None else fault.kind
        lasting = lasting and kind != "truncate"
        date = format_datetime(now.astimezone(UTC), usegmt=True)
        head = f"HTTP/1.1 {reply.code} {_PHRASES.get(reply.code, '')}\r\nDate: {date}\r\n"
        if not lasting:
            head += "Connection: close\r\n"
        body = reply.body
        if reply.code in (204, 304):  # they have none (RFC 9110, 6.4.1)
            body = b""
        else:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        data = f"{head}{reply.headers}\r\n".encode("latin-1") + body

        pause = (fault and fault.pause) or 0.0
        match kind:
            case "hang" | "timeout":
                self._client_waits(pause)
                return False
            case "reset":
                # Lingering for no time makes close() send RST; the reader holds the socket open until it is closed too.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.rfile.close()
                self.connection.close()
                return False
            case "truncate":
                self.connection.sendall(data[: -len(body) // 2])
            case "drip":
                for byte in data:
                    self.connection.sendall(bytes((byte,)))
                    if not self._client_waits(pause):
                        return False
            case "slow":
                if not self._client_waits(pause):
                    return False
                self.connection.sendall(data)
            case _:
                self.connection.sendall(data)
        return lasting

    def _client_waits(self, seconds: float) -> bool:
        """Wait so many real seconds; return early, with False, if the client hangs up or the server stops."""
        self.connection.settimeout(seconds)
        try:
            return len(self.connection.recv(1, socket.MSG_PEEK)) > 0
        except (TimeoutError, BlockingIOError):  # the latter for 0 seconds
            return True
        finally:
            self.connection.settimeout(None)
