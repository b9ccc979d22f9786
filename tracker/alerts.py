"""Alerts: a message when something begins to need a person, becomes urgent or is over; and a dead man's switch.

Owns what is sent when (`decide`), the messages, and the table ``alerts``. Leaves alone what a need is (``needs``).

Each need is sent at least once. It is noted afterwards, so a crash in between makes it arrive twice. Nothing is claimed
beforehand: the daemon that began first sends, and each other waits a minute longer for every one before it, so that it
sends only what those could not. `run --once` does not wait.

A need is noted as sent when one destination has it. A destination that fails gets a row of its own (kind
``alert_undelivered``); it gets what it missed as soon as it works again, also after a restart.

Apprise runs in a child process for each message. So it ends in time however slowly a server answers, uses the proxy and
the authorities of our settings, and logs no secret.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

import sqlalchemy as sa
from pydantic import SecretStr

from tracker import cadence, database, elevate, text
from tracker.errors import AskError, BadConfiguration, DatabaseUnavailable, InvalidField
from tracker.logs import DATABASE, event
from tracker.models import ALERTS
from tracker.needs import NORMAL, URGENT, Alerted, Daemon, Need, needs
from tracker.notify import STALE_SECONDS
from tracker.reports import overview
from tracker.reports.words import plain
from tracker.settings import Settings
from tracker.utc import UtcDateTime

LOOK_SECONDS: Final = 5.0  # between looks for what has changed
AWAY_SECONDS: Final = 30.0  # after a failed one
SETTLED_SECONDS: Final = 10.0  # a message is sent when it has not grown for this long …
LONGEST_SECONDS: Final = 60.0  # … or after this
MINUTE: Final = 60.0  # between pings; and a daemon waits longer by this for each that began before it
SEND_SECONDS: Final = 15.0  # for one message to one destination
CLOSING_SECONDS: Final = 20.0  # how long the end waits for what is being sent
FIRST_PAUSE: Final = timedelta(seconds=15)  # until a destination that failed is tried again; then doubling
LONGEST_PAUSE: Final = timedelta(minutes=5)
AGAIN: Final = timedelta(days=1)  # after this time an urgent need is sent again
PING_TIMEOUT: Final = timedelta(seconds=10)
UNDELIVERED: Final = "alert_undelivered"
PASSING: Final = ("deadline_near", "download_closing", "anomaly")  # time ends these, whether or not anything was done
MOST_LINES: Final = 20

_APPRISE: Final = """
import json, logging, sys
from apprise import Apprise
logging.basicConfig(level=logging.DEBUG)
url, message = json.load(sys.stdin)
sender = Apprise()
sys.exit(3 if not sender.add(url) else 0 if message is None or sender.notify(**message, body_format="text") else 1)
"""
"""The program of the child process: it sends a message, or only checks the URL. Exit code 3: no valid Apprise URL.

Only its debug log says that a certificate is not trusted. The log has the URL in it, so nobody sees it.
"""


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be sent about a need."""

    row: Alerted
    need: Need | None  # None: it is over
    is_new: bool = False  # the row is not in the table yet
    is_again: bool = False  # the same was sent before

    @property
    def key(self) -> tuple[bool, str, str]:
        """Whether the need has ended, its kind and its subject."""
        return self.need is None, self.row.kind, self.row.subject

    @property
    def is_urgent(self) -> bool:
        """Whether the need still exists and is urgent."""
        return self.need is not None and self.need.is_urgent


def decide(found: Iterable[Need], rows: Iterable[Alerted], now: datetime, after: timedelta) -> list[Notice]:
    """Return what to send: needs that are new, became urgent, are urgent a day later, are no longer handled, or ended.

    Args:
        found: All needs.
        rows: `Overview.alerts`.
        now: The database's time.
        after: How long an `unreachable` need must exist before it is sent.
    """
    current = {need.key: need for need in found}
    known: dict[tuple[str, str], Alerted] = {}
    due: list[Notice] = []
    for row in sorted(rows, key=lambda row: row.told_at is not None):  # two daemons may each have made one
        key = row.kind, row.subject
        if row.ended_at is not None or (key not in current and row.kind != UNDELIVERED):
            due.append(Notice(row, None))
        else:
            known[key] = row
    for key, need in current.items():
        level = URGENT if need.is_urgent else NORMAL
        row = known.get(key) or Alerted(*key, need.since or now, level)
        if need.is_acked:
            continue
        if row.told_at is None:
            if need.kind != "unreachable" or need.since is None or need.since + after <= now:
                due.append(Notice(row, need, is_new=key not in known))
        elif need.is_urgent and row.level != URGENT:
            due.append(Notice(row, need))
        elif (row.acked_until and row.told_at < row.acked_until) or (need.is_urgent and row.told_at + AGAIN <= now):
            due.append(Notice(row, need, is_again=True))
    return due


@dataclass(frozen=True, slots=True)
class PendingMessage:
    """The needs that wait for a message: since when, when they last grew (monotonic seconds), and their counts."""

    first_at: float
    grown_at: float
    counts: Mapping[tuple[bool, str, str], int]

    def is_ripe(self, at: float, standby: float) -> bool:
        """Whether to send the message now; this daemon waits *standby* seconds longer than the first."""
        return at >= min(self.grown_at + SETTLED_SECONDS, self.first_at + LONGEST_SECONDS) + standby


def gathered(before: PendingMessage | None, due: Iterable[Notice], at: float) -> PendingMessage | None:
    """Return the needs that wait now; None: there are none."""
    counts = {one.key: one.need.count if one.need else 1 for one in due}
    if before is None:
        return PendingMessage(at, at, counts) if counts else None
    has_grown = any(count > before.counts.get(key, 0) for key, count in counts.items())
    return PendingMessage(before.first_at, at if has_grown else before.grown_at, counts) if counts else None


def standby(daemons: Sequence[Daemon], host: str, pid: int) -> float:
    """Return how many seconds the daemon *pid* on *host* leaves to those that began before it."""
    places = [place for place, one in enumerate(daemons) if (one.host, one.pid) == (host, pid)]
    return MINUTE * (places[0] if places else len(daemons))


def message(notices: Iterable[Notice]) -> dict[str, str]:
    """Return what Apprise sends: a line for each need, which says how to list its jobs."""
    ordered = sorted(notices, key=lambda one: (not one.is_urgent, one.need is None))
    lines = [plain(_line(one)) for one in ordered[:MOST_LINES]]
    if len(ordered) > MOST_LINES:
        lines.append(f"{len(ordered) - MOST_LINES} more: `tracker status`")
    urgent, over = sum(one.is_urgent for one in ordered), sum(one.need is None for one in ordered)
    numbers = {"urgent": urgent, "not urgent": len(ordered) - urgent - over, "over": over}
    title = "tracker: " + ", ".join(f"{number} {what}" for what, number in numbers.items() if number)
    kind = "failure" if urgent else "success" if over == len(ordered) else "warning"
    return {"title": title, "body": "\n".join(lines), "notify_type": kind}


def _line(one: Notice) -> str:
    if one.need is None:
        word = "OVER" if one.row.kind in PASSING else "RESOLVED"
        subject = "" if one.row.subject == "-" else f" {one.row.subject}"
        return f"{word} [{one.row.kind}]{subject} (since {one.row.since:%Y-%m-%d %H:%M} UTC)"
    head = f"{'URGENT ' * one.need.is_urgent}{'still ' * one.is_again}[{one.need.kind}]"
    return f"{head} {one.need.what}. {one.need.action}"


class Destination:
    """Where messages go: one Apprise URL. Its name has the schema, and a hash that is too short to find a secret by."""

    def __init__(self, url: SecretStr, ca_bundle: Path | None, proxy: str | None) -> None:
        self._url = url.get_secret_value()
        schema = re.match(r"[A-Za-z0-9]{1,30}(?=://)", self._url)
        self.name = f"{schema[0] if schema else 'alert'} ({hashlib.sha256(self._url.encode()).hexdigest()[:8]})"
        self._failures, self._retry_at = 0, 0.0  # in a row; not before (monotonic seconds)
        foreign = re.compile("TRACKER_|.*_PROXY$", re.IGNORECASE)
        self._environment = {name: value for name, value in os.environ.items() if not foreign.match(name)}
        if proxy is not None:
            self._environment |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "localhost,127.0.0.1,::1"}
        if ca_bundle is not None:
            self._environment |= {"REQUESTS_CA_BUNDLE": str(ca_bundle), "SSL_CERT_FILE": str(ca_bundle)}

    def is_ready(self, is_failing: bool, standby: float) -> bool:
        """Whether to send now; *is_failing* is what the database says."""
        if not is_failing:
            self._failures, self._retry_at = 0, 0.0
        elif not self._retry_at:
            self._retry_at = monotonic() + standby
        return monotonic() >= self._retry_at

    def deliver(self, message: dict[str, str], standby: float) -> str:
        """Send it, log the result, and return the result as `send` does."""
        problem = self.send(message)
        if problem:
            pause = cadence.doubled(FIRST_PAUSE, self._failures, LONGEST_PAUSE).total_seconds() + standby
            self._failures, self._retry_at = self._failures + 1, monotonic() + pause
            event("alert_failed", logging.WARNING, destination=self.name, error=problem, again_in_seconds=pause)
        else:
            event("alert_sent", destination=self.name, title=message["title"])
        return problem

    def send(self, message: dict[str, str] | None) -> str:
        """Send it (None: only check the URL). Return "", or one word about the error, such as ``http_500``."""
        try:
            done = subprocess.run(  # noqa: S603 - a constant program
                [sys.executable, "-P", "-c", _APPRISE],
                input=json.dumps([self._url, message]),
                capture_output=True,
                text=True,
                env=self._environment,
                timeout=SEND_SECONDS,
                start_new_session=True,  # Ctrl-C must reach only the daemon
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        except OSError as error:
            return type(error).__name__
        if done.returncode in (0, 3):
            return "bad_url" if done.returncode else ""
        if "CERTIFICATE_VERIFY_FAILED" in done.stderr:
            return "tls_unverified"
        code = re.search(r"\berror=(\d{3})\b", done.stderr)
        return f"http_{code[1]}" if code else "no_connection" if "onnection error" in done.stderr else "not_sent"


def destinations(settings: Settings) -> list[Destination]:
    """Return where alerts go.

    Raises:
        BadConfiguration: Apprise is missing, or cannot use a URL; the message says which one, and never the URL.
    """
    made = [Destination(url, settings.receiver_ca_bundle, settings.receiver_proxy) for url in settings.alert_urls]
    if made and find_spec("apprise") is None:
        raise BadConfiguration("TRACKER_ALERT_URLS needs Apprise: pip install 'tracker[alerts]'")
    for number, one in enumerate(made, 1):
        if problem := one.send(None):
            what = f"cannot be checked ({problem}): try again"
            if problem == "bad_url":
                what = "is not a valid Apprise URL, such as json://HOST/PATH, or needs a library that is missing"
            raise BadConfiguration(f"TRACKER_ALERT_URLS: URL {number} of {len(made)} {what}")
    return made


class Alerts:
    """Sends alerts and pings from a thread while ``with alerts(engine):`` runs; if it fails, polling goes on.

    For ``run --once`` it does so once, at the end. Without URLs it only pings, and ends what `tracker ack` began.

    Args:
        settings: Where to, and what `needs` judges by.
        once: For ``run --once``.
        age: Seconds since the daemon last completed a look at its clusters.

    Raises:
        BadConfiguration: As `destinations`.
    """

    def __init__(self, settings: Settings, *, once: bool = False, age: Callable[[], float] = lambda: 0.0) -> None:
        self._settings, self._once, self._age = settings, once, age
        self._destinations = destinations(settings)
        self._waiting: PendingMessage | None = None
        self._is_first = True
        self._pinged: tuple[bool, float] | None = None  # whether something was urgent, and when

    @contextmanager
    def __call__(self, engine: sa.Engine) -> Iterator[None]:
        """Run in a thread during the block."""
        over, is_good = threading.Event(), False
        thread = threading.Thread(target=self._rounds, args=(engine, over), name="tracker-alerts", daemon=True)
        if not self._once:
            thread.start()
        try:
            yield
            is_good = True
        finally:
            over.set()
            if self._once:
                self._round(engine, is_good)
            else:
                thread.join(CLOSING_SECONDS)

    def _rounds(self, engine: sa.Engine, over: threading.Event) -> None:
        while not over.is_set():
            over.wait(self._round(engine))

    def _round(self, engine: sa.Engine, is_good: bool = True) -> float:
        """Look, ping, log what fails, and return in how many seconds to do it again."""
        try:
            self._ping(self.look(engine) or not is_good)
            return LOOK_SECONDS
        except Exception as error:
            if isinstance(error, DatabaseUnavailable):
                DATABASE.went_away(error, work="alerts")
            else:
                event("alerts_failed", logging.ERROR, error=f"{type(error).__name__}: {error}")
            if self._once:
                self._ping(is_urgent=True)
            return AWAY_SECONDS

    def look(self, engine: sa.Engine) -> bool:
        """Send what is due, record it, and return whether something is urgent."""
        given = self._settings
        with database.reading(engine) as connection:
            seen = overview.overview(connection, given.clusters, given.seal_after, given.retention)
        found, at = needs(seen), monotonic()
        due = decide(found, seen.alerts, seen.now, given.alert_after)
        if not self._destinations:
            due = [one for one in due if one.need is None]
        if changed := [one for one in due if one.is_new or (one.need is None and one.row.ended_at is None)]:
            with database.writing(engine) as connection:
                for one in changed:
                    if one.is_new:
                        _open(connection, one.row)
                    else:
                        _change(connection, one.row, ended_at=seen.now)
        wait = 0.0 if self._once else standby(seen.daemons, socket.gethostname(), os.getpid())
        self._waiting = gathered(self._waiting, due, at)
        if self._waiting is None or not (self._once or self._waiting.is_ripe(at, wait)):
            due = []
        failing = {row.subject: row for row in seen.alerts if row.kind == UNDELIVERED and row.ended_at is None}
        problems: dict[str, str] = {}  # by destination; "": it works
        if self._is_first:  # another daemon that still uses such a destination notes it again
            problems = dict.fromkeys(failing.keys() - {place.name for place in self._destinations}, "")
        is_sent = not self._destinations
        for place in self._destinations:
            row = failing.get(place.name)
            if not place.is_ready(row is not None, wait) or not (due or row):
                continue
            with database.reading(engine) as connection:
                its = {each.key: each for each in [*(_missed(connection, row, found) if row else ()), *due]}
            if its:
                problem = problems[place.name] = place.deliver(message(its.values()), wait)
                is_sent = is_sent or not problem
        if problems or (due and is_sent):
            with database.writing(engine) as connection:
                _note(connection, due if is_sent else [], problems, failing, seen.now)
                self._waiting = None if due and is_sent else self._waiting
        self._is_first = False
        return any(need.is_urgent for need in found)

    def _ping(self, is_urgent: bool) -> None:
        """Ping once a minute, and when the result changes; do not ping while polling has stopped."""
        ours = self._settings
        is_due = self._pinged is None or self._pinged[0] != is_urgent or monotonic() >= self._pinged[1] + MINUTE
        if ours.ping_url is None or not is_due or self._age() > STALE_SECONDS:
            return
        self._pinged = is_urgent, monotonic()
        parts = urlsplit(ours.ping_url.get_secret_value())
        url = parts._replace(path=parts.path.rstrip("/") + "/fail").geturl() if is_urgent else parts.geturl()
        try:
            authorities, proxy = ours.receiver_ca_bundle, ours.receiver_proxy
            elevate.post(url, b"", {}, PING_TIMEOUT, method="GET", ca_bundle=authorities, proxy=proxy)
        except (AskError, BadConfiguration) as error:
            event("ping_failed", logging.WARNING, error=f"{type(error).__name__} {getattr(error, 'code', error)}")


def ack(connection: sa.Connection, need: Need, actor: str, reason: str, until: datetime | None, now: datetime) -> None:
    """Record that *actor* is handling *need*, until it ends or *until*.

    Raises:
        InvalidField: A text is not valid, or *until* is not in the future.
    """
    if until is not None and until <= now:
        raise InvalidField("until", f"{until:%Y-%m-%d %H:%M} UTC is not in the future")
    values: dict[str, object] = {"acked_by": text.check("actor", actor), "acked_until": until}
    values["ack_reason"] = text.check_reason(reason)
    if not need.is_acked:  # else it is shown as not urgent, and only its row says whether it is
        values["level"] = URGENT if need.is_urgent else NORMAL
    row = Alerted(*need.key, need.since or now, NORMAL)
    if not _change(connection, row, **values):
        _open(connection, row)
        _change(connection, row, **values)


def _note(
    connection: sa.Connection,
    sent_notices: Sequence[Notice],
    problems: Mapping[str, str],
    failing: Mapping[str, Alerted],
    began_at: datetime,
) -> None:
    """Note what was sent, and which destinations fail or work again."""
    now = database.now(connection)
    sent = {one.row.subject for one in sent_notices if one.row.kind == UNDELIVERED}
    for name, problem in problems.items():
        if problem and name not in failing:
            _open(connection, Alerted(UNDELIVERED, name, began_at, URGENT))
        elif not problem and name in failing:  # its end is worth a message only if its beginning was
            told_at = failing[name].told_at or (None if name in sent else now)
            _change(connection, failing[name], ended_at=now, told_at=told_at)
    for one in sent_notices:
        if one.need is not None:
            _change(connection, one.row, told_at=now, level=URGENT if one.is_urgent else one.row.level)
        else:
            its = (ALERTS.c.kind == one.row.kind, ALERTS.c.subject == one.row.subject, ALERTS.c.since == one.row.since)
            at = max(now, one.row.ended_at or now)  # where a clock was set back, its end is later than now
            connection.execute(sa.update(ALERTS).where(*its, ALERTS.c.ended_at.is_not(None)).values(told_at=at))


def _open(connection: sa.Connection, row: Alerted) -> None:
    """Insert a need. One that ended, and exists again since the same time, gets its old row."""
    statement = """
        INSERT INTO alerts (kind, subject, since, level) VALUES (:kind, :subject, :since, :level)
        ON CONFLICT (kind, subject, since) DO UPDATE SET level = excluded.level, told_at = NULL, ended_at = NULL,
            acked_by = NULL, acked_until = NULL, ack_reason = NULL
        WHERE alerts.ended_at IS NOT NULL"""
    values = {"kind": row.kind, "subject": row.subject, "since": row.since, "level": row.level}
    connection.execute(sa.text(statement).bindparams(sa.bindparam("since", type_=UtcDateTime())), values)


def _change(connection: sa.Connection, row: Alerted, **values: object) -> bool:
    """Update the row of a need that exists; False: there is no such row."""
    its = (ALERTS.c.kind == row.kind, ALERTS.c.subject == row.subject, ALERTS.c.ended_at.is_(None))
    return bool(connection.execute(sa.update(ALERTS).where(*its).values(values).returning(ALERTS.c.since)).all())


def _missed(connection: sa.Connection, failing: Alerted, found: Iterable[Need]) -> Iterator[Notice]:
    """Yield what other destinations got while this one failed, except its own failure."""
    current = {need.key: need for need in found}
    for values in connection.execute(sa.select(ALERTS).where(ALERTS.c.told_at >= failing.since)):
        row = Alerted(**values._asdict())
        key = row.kind, row.subject
        if key != (failing.kind, failing.subject) and (row.ended_at or key in current):
            yield Notice(row, None if row.ended_at else current[key])
