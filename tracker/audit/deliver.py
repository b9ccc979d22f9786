"""Delivery: checkpoints leave the database. Only a copy elsewhere proves anything against a person who can write to it.

Owns the three destinations (the log, a file, a URL) and the table ``deliveries``: how far each is, and since when it
fails. Leaves alone: what a checkpoint is (``checkpoint``) and when one is made (``seal``, ``sealing``).

Each destination gets every checkpoint from number 1 on, in order and at least once. It is noted after it is sent, so a
crash in between, or another daemon at the same moment, makes one arrive twice. A destination that fails is tried again
and does not hold up the others. For the file, its content counts, not the note: a file that another host began, that
was deleted, or that a crash cut off in the middle of a write is completed. No request is made inside a transaction.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Final

import sqlalchemy as sa

from tracker import database, elevate
from tracker.audit.checkpoint import Signed, parse
from tracker.audit.keys import sync_folder
from tracker.errors import AskError, BadCheckpoint, BadConfiguration
from tracker.logs import event
from tracker.models import DELIVERIES, SEALS, UtcDateTime
from tracker.settings import mask_hook

PAGE: Final = 100  # checkpoints read at once, some 100 kB
FIRST_PAUSE: Final = 15.0  # seconds until a destination that failed is tried again; then doubling
LONGEST_PAUSE: Final = 240.0
BUSY_PAUSE: Final = 1.0  # after a full round, or while another daemon delivers there
ROUND_SECONDS: Final = 60.0  # a round ends then, even if more is left, so that sealing goes on
TAIL: Final = 1 << 21  # bytes read from the end of the file; a CHECK holds a checkpoint's text below half of that
TIMEOUT: Final = timedelta(seconds=10)  # for the whole of one request


class Courier:
    """Delivers to the log, and to a file and a URL where they are set. For one thread.

    Args:
        engine: The database.
        file: Is made if it is missing; an empty line follows each checkpoint.
        url: Gets each checkpoint as the body of a POST. It may hold a secret, which is neither stored nor logged.
        timeout: For the whole of one request.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        engine: sa.Engine,
        file: Path | None = None,
        url: str | None = None,
        *,
        timeout: timedelta = TIMEOUT,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._ways: list[_Way] = [_Log()]
        self._ways += [_File(file)] if file is not None else []
        self._ways += [_Url(url, timeout)] if url is not None else []
        self._troubles: dict[str, _Trouble] = {}
        self._has_begun = False
        self._has_worked: set[str] = set()

    def deliver(self, stop: Event | None = None, seconds: float = ROUND_SECONDS) -> float | None:
        """Deliver what is pending, and return in how many seconds there is more to do; None: all is delivered.

        A failure at a destination is logged (event ``delivery_failed``) and noted; a later call tries again.

        Args:
            stop: Ends it after the current checkpoint.
            seconds: Ends it after this time.

        Raises:
            DatabaseUnavailable, BadConfiguration: What was delivered may be delivered again.
        """
        until = self._clock() + seconds
        if not self._has_begun:
            self._begin()
            self._has_begun = True
        for way in self._ways:
            trouble = self._troubles.get(way.name)
            if trouble and self._clock() < trouble.not_before:
                continue
            try:
                is_all = self._hand_over(way, lambda: self._clock() >= until or (stop is not None and stop.is_set()))
            except (AskError, OSError, _Problem) as error:
                self._failed(way, error)
                continue
            self._worked(way, trouble)
            if not is_all:  # out of time, or another daemon is delivering
                self._troubles[way.name] = _Trouble(None, 0.0, self._clock() + BUSY_PAUSE)
        return min((max(0.0, one.not_before - self._clock()) for one in self._troubles.values()), default=None)

    def _begin(self) -> None:
        """Enter our destinations, and forget that others fail: a daemon that still uses one notes it again."""
        names = [way.name for way in self._ways]
        with database.writing(self._engine) as connection:
            for name in names:
                new = "INSERT INTO deliveries (destination) VALUES (:name) ON CONFLICT DO NOTHING"
                connection.execute(sa.text(new), {"name": name})
            stale = sa.update(DELIVERIES).where(
                DELIVERIES.c.failing_since.is_not(None), DELIVERIES.c.destination.not_in(names)
            )
            connection.execute(stale.values(failing_since=None, last_error=None))

    def _hand_over(self, way: _Way, is_enough: Callable[[], bool]) -> bool:
        """Deliver all that *way* lacks, and return whether that was done."""
        with database.reading(self._engine) as connection:
            noted = sa.select(DELIVERIES.c.last_number).where(DELIVERIES.c.destination == way.name)
            last = connection.execute(noted).scalar_one_or_none()
        if last is None:  # somebody emptied the table: begin again
            self._has_begun = False
            return False
        with way.opened(last, self._after) as last:
            if last is None:
                return False
            while page := self._after(last, PAGE):
                for signed in page:
                    if is_enough():
                        return False
                    way.send(signed)
                    last = signed.checkpoint.number
                    if not self._note(way, last):
                        return False
        return True

    def _after(self, number: int, most: int) -> list[Signed]:
        """Return at most *most* checkpoints from the one after *number* on, as they are in the database.

        Those before a damaged one are still delivered: the error comes when it is the next.
        """
        query = sa.select(SEALS.c.checkpoint).order_by(SEALS.c.id).offset(number).limit(most)  # numbers have no hole
        with database.reading(self._engine) as connection:
            texts = connection.execute(query).scalars().all()
        page: list[Signed] = []
        for expected, text in enumerate(texts, number + 1):
            try:
                signed = parse(text)
                if signed.checkpoint.number != expected:
                    raise BadCheckpoint(f"its number is {signed.checkpoint.number}")
            except BadCheckpoint as error:
                if page:
                    break
                words = f"checkpoint {expected} is damaged or missing in the database: {error}"
                raise _Problem("Chain", "damaged", words) from None
            page.append(signed)
        return page

    def _note(self, way: _Way, number: int) -> bool:
        """Note that *way* has all up to *number*; return False if another daemon is delivering there.

        Then each looks again, so that no number is sent before the one below it has arrived.
        """
        update = sa.update(DELIVERIES).where(DELIVERIES.c.destination == way.name)
        if not way.knows_itself:
            update = update.where(DELIVERIES.c.last_number == number - 1)
        with database.writing(self._engine) as connection:
            noted = update.values(last_number=number, delivered_at=database.now(connection))
            return bool(connection.execute(noted.returning(DELIVERIES.c.destination)).all())

    def _failed(self, way: _Way, error: AskError | OSError | _Problem) -> None:
        if isinstance(error, OSError):
            code = errno.errorcode.get(error.errno or 0, "unknown")
            short, words = f"{type(error).__name__} {code}", error.strerror or ""
        else:
            short = f"{getattr(error, 'where', type(error).__name__)} {error.code}"
            words = str(error) if isinstance(error, _Problem) else ""  # elevate's words are about Elevate
        trouble = self._troubles.get(way.name)
        with database.writing(self._engine) as connection:
            since = (trouble and trouble.since) or database.now(connection)
            first = sa.func.coalesce(DELIVERIES.c.failing_since, sa.literal(since, UtcDateTime()))
            update = sa.update(DELIVERIES).where(DELIVERIES.c.destination == way.name)
            connection.execute(update.values(failing_since=first, last_error=short))
        pause = min(max(2 * trouble.pause if trouble else 0.0, FIRST_PAUSE), LONGEST_PAUSE)
        self._troubles[way.name] = _Trouble(since, pause, self._clock() + pause)
        facts = {"destination": way.name, "error": short, "note": words or None, "again_in_seconds": pause}
        event("delivery_failed", logging.WARNING, **facts)

    def _worked(self, way: _Way, trouble: _Trouble | None) -> None:
        """Note that *way* works again if it failed here or before our start. Another daemon clears its own failures."""
        self._troubles.pop(way.name, None)
        if way.name in self._has_worked and not (trouble and trouble.since):
            return
        with database.writing(self._engine) as connection:
            failing = sa.update(DELIVERIES).where(
                DELIVERIES.c.destination == way.name, DELIVERIES.c.failing_since.is_not(None)
            )
            connection.execute(failing.values(failing_since=None, last_error=None))
        self._has_worked.add(way.name)
        if trouble and trouble.since:
            event("delivery_resumed", destination=way.name, failing_since=trouble.since)


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why a destination is tried again before there is anything new."""

    since: datetime | None  # of its first failure; None: out of time, or another daemon was there
    pause: float  # seconds
    not_before: float  # by the courier's clock


class _Problem(Exception):
    """What is wrong with a destination or the chain; *where* and *code* are what is stored of it."""

    def __init__(self, where: str, code: str, words: str) -> None:
        super().__init__(words)
        self.where = where
        self.code = code


class _Way:
    """A destination; this base class is one whose progress only ``deliveries`` knows."""

    name: str  # in ``deliveries``: without a secret
    knows_itself = False  # its progress is read there, not in ``deliveries``

    @contextmanager
    def opened(self, noted: int, after: Callable[[int, int], list[Signed]]) -> Iterator[int | None]:
        """Yield the number of the last checkpoint there; None: another daemon is writing to it."""
        yield noted

    def send(self, signed: Signed) -> None:
        """Deliver the checkpoint after the last one there."""
        raise NotImplementedError


class _Log(_Way):
    """The daemon's log, which gets the SHA-256 instead of the text."""

    name = "log"

    def send(self, signed: Signed) -> None:
        one = signed.checkpoint
        facts = {"number": one.number, "sha256": signed.sha256, "rows": one.rows, "sealed_at": one.sealed_at}
        event("checkpoint", logging.INFO, **facts, key=one.key.id if one.key else "unsigned")


class _Url(_Way):
    """A server that gets each as the body of a POST."""

    def __init__(self, url: str, timeout: timedelta) -> None:
        # The hash distinguishes two URLs on one host, and is too short to find a secret by.
        self.name = f"{mask_hook(url)} ({hashlib.sha256(url.encode()).hexdigest()[:8]})"
        self._url = url
        self._timeout = timeout

    def send(self, signed: Signed) -> None:
        headers = {"Content-Type": "text/plain; charset=utf-8", "Tracker-Checkpoint": str(signed.checkpoint.number)}
        try:
            elevate.post(self._url, signed.text.encode(), headers, self._timeout)
        except BadConfiguration as error:
            raise _Problem("Url", "unusable", str(error)) from None


class _File(_Way):
    """A file that only grows: it may have the append-only attribute, and other programs may read it."""

    knows_itself = True

    def __init__(self, path: Path) -> None:
        self.name = "file " + re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "?", str(path))[:4000]
        self._path = path
        self._descriptor = -1
        self._torn = b""  # the part of a checkpoint that a crash left at the end

    @contextmanager
    def opened(self, noted: int, after: Callable[[int, int], list[Signed]]) -> Iterator[int | None]:
        is_new = not self._path.exists()
        # O_NONBLOCK: do not wait on a pipe.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(self._path, flags, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise self._problem("not_a_file", "it is not a regular file")
            if is_new:
                sync_folder(self._path.parent)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two that append at once would mix
                last = self._last(after)
            except BlockingIOError:
                last = None
            yield last
        finally:
            os.close(self._descriptor)  # ends the lock

    def send(self, signed: Signed) -> None:
        data = f"{signed.text}\n".encode()[len(self._torn) :]
        self._torn = b""
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)

    def _problem(self, code: str, words: str) -> _Problem:
        return _Problem("CheckpointFile", code, f"{words}: move it away if you know why, or name another file")

    def _last(self, after: Callable[[int, int], list[Signed]]) -> int:
        """Return the number of the last whole checkpoint in the file, which must be one of this database."""
        whole, torn = self._tail()
        number = 0
        if whole is not None:
            text = whole.decode("ascii", "replace")
            try:
                number = parse(text).checkpoint.number
            except BadCheckpoint as error:
                raise self._problem("garbage", f"it does not end with a checkpoint: {error}") from None
            if [signed.text for signed in after(number - 1, 1)] != [text]:
                raise self._problem("other_chain", f"it ends with a checkpoint {number} that this database lacks")
        if torn and not any(f"{signed.text}\n".encode().startswith(torn) for signed in after(number, 1)):
            raise self._problem("garbage", f"what follows checkpoint {number} in it is not checkpoint {number + 1}")
        self._torn = torn
        return number

    def _tail(self) -> tuple[bytes | None, bytes]:
        """Return the last whole checkpoint in the file (None: nothing is whole) and what follows its empty line."""
        size = os.fstat(self._descriptor).st_size
        begin = max(0, size - TAIL)
        complete, end, torn = os.pread(self._descriptor, size - begin, begin).rpartition(b"\n\n")
        last = complete.rpartition(b"\n\n")[2].strip(b"\n")
        return (last + b"\n" if end else None), torn.lstrip(b"\n")
