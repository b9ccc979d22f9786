"""A fake Elevate on loopback, with a clock of its own.

Owns the simulated jobs (`SimulatedJob`: all times are drawn at creation, so that bounds can be checked against the
truth), the faults (`Fault`), and a small HTTP server for the calls of Elevate 3: the job status, and the two that
create jobs. Leaves alone everything of the real tracker.
"""

from __future__ import annotations

import json
import logging
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil
from urllib.parse import parse_qs
from zoneinfo import ZoneInfo

from tracker.deadline import start_of_day
from tracker.errors import TrackerError
from tracker.status import Kind, Status

log = logging.getLogger(__name__)

DEFAULT_KEY = "simulated-key"
DEFAULT_TIMEZONE = ZoneInfo("Europe/Stockholm")
RUNNING = (timedelta(minutes=2), timedelta(hours=8))
"""The shortest and the longest time that a job runs."""
KEPT = timedelta(days=7)
"""An export is forgotten this long after it was done: it was downloaded, or its data has expired."""

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
FASTEST = 1_000_000  # at that speed the calendar ends (year 9999) after some three days


class CannotListen(TrackerError):
    """The port is taken, or not ours to take."""

    exit_code = 69


@dataclass(frozen=True, slots=True)
class SimulatedJob:
    """The true times of one job, against which observations are checked.

    Attributes:
        jid: The job's id, a UUID.
        created_at: From here the job exists (all instants are aware UTC), as ``created`` or ``started``.
        waits_at, runs_at, ends_at: From here ``waiting``, ``running``, and *end*: ``done`` or ``error``.
        gone_at: From here ``not_found`` again: an export that was downloaded, or a lost job. None: never.
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
    def entered(self) -> dict[Status, datetime]:
        """From when on the job truly has each status, in order."""
        first = Status.CREATED if self.kind is Kind.EXPORT else Status.STARTED
        known = {first: self.created_at, Status.WAITING: self.waits_at, Status.RUNNING: self.runs_at}
        known |= {self.end: self.ends_at}
        return known if self.gone_at is None else known | {Status.NOT_FOUND: self.gone_at}

    def status_at(self, at: datetime) -> Status:
        """Return the status that Elevate gives at the instant *at* (aware)."""
        return next((status for status, since in reversed(self.entered.items()) if since <= at), Status.NOT_FOUND)


FAULT_KINDS = {
    "CODE": "that HTTP code, 201 to 599; 3xx redirects to another host; Retry-After: 30 for 429, SECONDS for others",
    "hang": "no answer for 30 s, then the connection closes",
    "slow": "the answer comes after 1 s",
    "garbage": "200 with a body that is not an answer",
    "unknown": "a status that is not documented",
}
"""What each fault does, for `--help` and for error messages."""
_FAULT_SECONDS = {"hang": 30.0, "slow": 1.0, "429": 30.0}

_GARBAGE = [b"", b"<!doctype html><title>Gateway</title>", b'{"jid": "', b'["done"]', b'{"status": null}']
_GARBAGE += [b'{"jid": "\xff\xfe", "status": "done"}', b"[" * 5_000]


@dataclass(frozen=True, slots=True)
class Fault:
    """A way to misbehave, and how often.

    Attributes:
        kind: One of `FAULT_KINDS`, an HTTP code for ``CODE``.
        share: The share of status requests that meet it, 0 to 1.
        seconds: How long it lasts in real seconds (``hang``, ``slow``), or the Retry-After of a code. None: the kind's
            default.

    Raises:
        ValueError: One of them is wrong; the message lists the kinds.
    """

    kind: str
    share: float
    seconds: float | None = None

    def __post_init__(self) -> None:
        is_known = self.code is not None or (self.kind in FAULT_KINDS and self.kind != "CODE")
        has_seconds = self.code is not None or self.kind in _FAULT_SECONDS
        is_right = self.seconds is None or (has_seconds and 0 <= self.seconds <= 86_400)
        if not (is_known and 0 <= self.share <= 1 and is_right):
            raise _wrong_fault(
                f"{self.kind}={self.share:g}" + (f":{self.seconds:g}" if self.seconds is not None else "")
            )

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Return the fault that *text* asks for: ``KIND=SHARE`` or ``KIND=SHARE:SECONDS``.

        Raises:
            ValueError: It is not a fault; the message lists the kinds.
        """
        match = re.fullmatch(r"(\w+)=(\d*\.?\d+)(?::(\d*\.?\d+))?", text, re.ASCII)
        if match is None:
            raise _wrong_fault(text)
        return cls(match[1], float(match[2]), None if match[3] is None else float(match[3]))

    @property
    def code(self) -> int | None:
        """The HTTP code that this fault answers with, or None if it is of another kind."""
        return int(self.kind) if re.fullmatch("[2-5][0-9][0-9]", self.kind) and self.kind != "200" else None

    @property
    def pause(self) -> float | None:
        """The seconds, the kind's default where none were given; None where the kind has none."""
        return _FAULT_SECONDS.get(self.kind) if self.seconds is None else self.seconds


def _wrong_fault(text: str) -> ValueError:
    return ValueError(
        f"fault {text!r}: write KIND=SHARE or KIND=SHARE:SECONDS, as in 503=0.1 or hang=0.05:12. The share is 0 to 1; "
        f"CODE, {', '.join(kind for kind in _FAULT_SECONDS if kind.isalpha())} take 0 to 86400 seconds. "
        f"Kinds: {', '.join(FAULT_KINDS)} (CODE: 201 to 599)"
    )


def fast_clock(speed: float, start: datetime, tick: Callable[[], float] = time.monotonic) -> Callable[[], datetime]:
    """Return a clock that begins at *start* and runs *speed* times as fast as *tick* (seconds).

    Raises:
        ValueError: *speed* is not above 0 and at most `FASTEST`.
    """
    if not 0 < speed <= FASTEST:
        raise ValueError(f"speed {speed:g}: it must be above 0 and at most {FASTEST}; 86400 makes a day a second")
    began = tick()
    return lambda: start + timedelta(seconds=(tick() - began) * speed)


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer; *delivery* is the fault, if any, with which it is sent."""

    code: int
    body: bytes
    headers: str = ""
    delivery: Fault | None = None


class Simulator:
    """The fake Elevate: its jobs, its clock, its faults. Thread-safe.

    Attributes:
        now: The clock (aware); replies carry its time in ``Date``.
        faults: How status requests with the right key misbehave; may be assigned while it serves. Creation never
            misbehaves, so that a scene can be set.

    Args:
        api_key: The only key that is accepted.
        timezone: Where its days begin.
        archive_days: A job runs this many days after its creation, the next day (1) at the earliest.
        seed: Same seed, same calls in the same order: same jids, fates and faults. None: different each time.
        faults: As above.
        failing: The share of jobs that end in ``error``, 0 to 1.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        *,
        api_key: str = DEFAULT_KEY,
        timezone: ZoneInfo = DEFAULT_TIMEZONE,
        archive_days: int = 5,
        seed: int | None = None,
        faults: Sequence[Fault] = (),
        failing: float = 0.0,
    ) -> None:
        if not (api_key and api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ValueError("the key goes into a header: it must be printable ASCII without blanks, and not empty")
        if not (1 <= archive_days <= 365 and 0 <= failing <= 1):
            raise ValueError(f"archive days {archive_days}, failing {failing:g}: give 1 to 365, and a share of 0 to 1")
        total = sum(fault.share for fault in faults)
        if total > 1 + 1e-9:  # 0.56 + 0.34 + 0.1 is a little more than 1
            raise ValueError(f"the shares of all faults make {total:g}; together they must be at most 1")
        self.now = now
        self.faults = faults
        self._key = api_key
        self._timezone = timezone
        self._archive_days = archive_days
        self._failing = failing
        # Two sources, so that faults do not change the jobs.
        self._fates = random.Random(None if seed is None else f"fates {seed}")  # noqa: S311
        self._luck = random.Random(None if seed is None else f"faults {seed}")  # noqa: S311
        self._jobs: dict[str, SimulatedJob] = {}
        self._lock = threading.Lock()

    def create(self, kind: Kind, at: datetime | None = None) -> str:
        """Create an export or a removal at the instant *at* (aware; default: now) and return its jid."""
        with self._lock:
            fate = self._draw(kind, (at or self.now()).astimezone(UTC))
            self._jobs[fate.jid] = fate
        times = [at.isoformat(" ", "seconds") for at in (fate.created_at, fate.runs_at, fate.ends_at)]
        log.info("%s created %s %s, runs from %s, %s at %s", times[0], kind, fate.jid, times[1], fate.end, times[2])
        return fate.jid

    def _draw(self, kind: Kind, created_at: datetime) -> SimulatedJob:
        """Return what becomes of a job.

        The job begins within an hour of the midnight that starts the archive day (ELEVATE.md, "waiting takes days").
        It runs for a time drawn evenly on a logarithmic scale: the chance of an end then falls as 1/age, which is what
        the cadence assumes.
        """
        # Always the same draws in the same order: a change of one setting then leaves the other jobs as they were.
        jid = str(uuid.UUID(int=self._fates.getrandbits(128), version=4))
        settling, starting, lasting, failure = (self._fates.random() for _ in range(4))
        archive_day = created_at.astimezone(self._timezone).date() + timedelta(days=self._archive_days)
        runs_at = start_of_day(archive_day, self._timezone) + starting * _STARTS_WITHIN
        shortest, longest = RUNNING
        ends_at = runs_at + min(longest, shortest * (longest / shortest) ** lasting)
        end = Status.ERROR if failure < self._failing else Status.DONE
        waits_at = created_at + settling * min(_SETTLES_WITHIN, runs_at - created_at)
        gone_at = ends_at + KEPT if kind is Kind.EXPORT and end is Status.DONE else None
        return SimulatedJob(jid, kind, created_at, waits_at, runs_at, ends_at, end, gone_at)

    def forget(self, jid: str, at: datetime) -> None:
        """Lose the job at the instant *at* (aware), as the real Elevate should not."""
        with self._lock:
            self._jobs[jid] = replace(self._jobs[jid], gone_at=at)

    def truth(self, jid: str) -> SimulatedJob:
        """Return what becomes of a job that was created here."""
        return self._jobs[jid]

    def status_at(self, jid: str, at: datetime) -> Status:
        """Return the true status of any jid at the instant *at* (aware), faults aside."""
        fate = self._jobs.get(jid)
        return Status.NOT_FOUND if fate is None else fate.status_at(at)

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[str]:
        """Serve on 127.0.0.1 at *port* (0: a free one) and yield the base URL; on leaving, all threads have ended.

        Raises:
            CannotListen: The port is taken, or may not be taken.
        """
        try:
            server = _Server(port, self)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CannotListen(f"cannot listen on 127.0.0.1 port {port}: {reason}; choose another port") from error
        # It looks every 0.05 s whether it is to stop.
        acceptor = threading.Thread(target=server.serve_forever, args=(0.05,), name="simulator", daemon=True)
        acceptor.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.stop()
            acceptor.join()

    def reply(self, method: str, target: str, key: str | None, now: datetime) -> _Reply:
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
        values = parse_qs(query).get(name, [])
        if len(values) != 1:
            return _error(400, f"exactly one {name} is needed")
        if kind is None:
            return self._status_reply(values[0], now)
        jid = self.create(kind, now)
        return _answer(jid, self.status_at(jid, now))

    def _status_reply(self, jid: str, now: datetime) -> _Reply:
        good = _answer(jid, self.status_at(jid, now))
        shares = [fault.share for fault in self.faults]
        (fault,) = self._luck.choices((*self.faults, None), (*shares, max(0.0, 1 - sum(shares))))
        if fault is None:
            return good
        if fault.code is not None:
            location = "Location: https://elsewhere.invalid/\r\n" if 300 <= fault.code < 400 else ""
            wait = "" if fault.pause is None else f"Retry-After: {ceil(fault.pause)}\r\n"
            return _error(fault.code, "as asked for by --fault", location + wait)
        match fault.kind:
            case "garbage":
                return _Reply(200, self._luck.choice(_GARBAGE))
            case "unknown":
                return _answer(jid, "postponed")
            case _:
                return _Reply(good.code, good.body, delivery=fault)


def _answer(jid: str, status: str) -> _Reply:
    return _Reply(200, json.dumps({"jid": jid, "status": status}).encode("ascii"))


def _error(code: int, message: str, headers: str = "") -> _Reply:
    return _Reply(code, json.dumps({"error": message}).encode("ascii"), headers)


class _Server(ThreadingHTTPServer):
    """A thread for each connection; `stop` ends them all."""

    request_queue_size = 128  # a pool of clients connects at once; 5, the default, makes some wait a second
    daemon_threads = False  # server_close joins only such

    def __init__(self, port: int, simulator: Simulator) -> None:
        self.simulator = simulator
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Connection)

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        self.connections.add(connection)  # here, not in the connection's thread: when accepting ends, all are known
        return connection, address

    def stop(self) -> None:
        """Accept no more, end what is open, and return when all threads have ended."""
        self.shutdown()
        for connection in list(self.connections):
            with suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)  # a thread that waits for it wakes
        self.server_close()


class _Connection(BaseHTTPRequestHandler):
    """One client: its requests in turn, until one side ends the connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client went away
            super().handle()

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a request's query may name a person."""

    def do_GET(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not re.fullmatch("[0-9]{1,6}", length):
            self.send_error(400, "send a Content-Length of at most 999999, and no Transfer-Encoding")
            return
        self.rfile.read(int(length))  # and not looked at
        now = self.server.simulator.now()
        self._send(self.server.simulator.reply(self.command, self.path, self.headers.get("Api-Key"), now), now)

    do_POST = do_GET

    def _send(self, reply: _Reply, now: datetime) -> None:
        """Send the reply; a fault delays it, or keeps it back."""
        fault = reply.delivery
        if fault is not None:
            is_there = self._client_waits(fault.pause or 0.0)
            if fault.kind == "hang" or not is_there:
                self.close_connection = True
                return
        phrase = self.responses.get(reply.code, ("",))[0]
        date = format_datetime(now.astimezone(UTC), usegmt=True)
        head = f"HTTP/1.1 {reply.code} {phrase}\r\nDate: {date}\r\n"
        body = b"" if reply.code in (204, 304) else reply.body  # those have no body (RFC 9110, 6.4.1)
        if body or reply.code == 200:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.connection.sendall(f"{head}{reply.headers}\r\n".encode("latin-1") + body)

    def _client_waits(self, seconds: float) -> bool:
        """Wait this many real seconds; return early, with False, if the client hangs up or the server stops."""
        self.connection.settimeout(seconds)
        try:
            return len(self.connection.recv(1, socket.MSG_PEEK)) > 0
        except (TimeoutError, BlockingIOError):  # the latter for 0 seconds
            return True
        finally:
            self.connection.settimeout(None)
