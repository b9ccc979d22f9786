"""Delivery: checkpoints leave the database. Only a copy elsewhere proves anything against a person who can write to it.

Owns the three destinations (the log, a file, a URL) and the table ``deliveries``: how far each is, and since when it
fails. Leaves alone: what a checkpoint is (``checkpoint``) and when one is made (``seal``, ``sealing``).

Each destination gets every checkpoint from number 1 on, in order and at least once. At each start it gets the last one
again: a receiver that has others answers 409, since this database is an older copy. It is noted after it is sent, so a
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
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Final, Self

import sqlalchemy as sa

from tracker import database, elevate
from tracker.audit.checkpoint import Signed, parse
from tracker.audit.keys import PublicKey, sync_folder
from tracker.audit.seal import after_loss, find, head
from tracker.cadence import doubled
from tracker.errors import AskError, BadCheckpoint, BadConfiguration, ReceiverAhead, Refused
from tracker.logs import event
from tracker.models import DELIVERIES, SEALS, UtcDateTime
from tracker.settings import Settings, mask_hook

FIRST_PAUSE: Final = timedelta(seconds=15)  # until a destination that failed is tried again; then doubling
LONGEST_PAUSE: Final = timedelta(minutes=4)
COMPARE_SECONDS: Final = 5.0  # a round before the first seal ends then
BUSY_SECONDS: Final = 1.0  # while another daemon delivers there
ROUND_SECONDS: Final = 60.0  # a round ends then, even if more is left, so that sealing goes on
TAIL: Final = 1 << 21  # bytes read from the end of the file; a CHECK holds a checkpoint's text below half of that
TIMEOUT: Final = timedelta(seconds=10)  # for the whole of one request


class _CannotDeliver(Exception):
    """A destination or the chain cannot be used; *short* is stored, the message is logged."""

    def __init__(self, short: str, words: str) -> None:
        super().__init__(words)
        self.short = short


class _Lost(_CannotDeliver):
    """The database lacks the last checkpoint of a destination. *sha256*: empty if it does not say which that is."""

    def __init__(self, destination: str, its: str, sha256: str) -> None:
        what = f"ends with {its}, which this database lacks: an older copy was restored, or it is the wrong destination"
        option = f"--restored-after {sha256 or 'SHA256'}"
        action = f"After a restore run `tracker run {option}` once; otherwise correct the setting"
        super().__init__(f"OlderCopy {what}. {action}", f"{destination} {what}. {action}")
        self.sha256 = sha256


class _Destination:
    """Where checkpoints go, and since when that fails."""

    def __init__(self, name: str, send: Callable[[Signed], None]) -> None:
        self.name = name  # in ``deliveries``: without a secret
        self.send = send
        self.has_sent = False  # since this courier began
        self.lost: _Lost | None = None  # while it has checkpoints that the database lacks
        self.until: float | None = None  # it is left alone until then, by the courier's clock
        self.failing_since: datetime | None = None
        self.failures = 0

    @contextmanager
    def opened(self, noted: int, chain: Courier) -> Iterator[int | None]:
        """Yield the number of the last checkpoint there; None: another daemon is writing to it."""
        yield noted if self.has_sent else max(0, noted - 1)


class Courier:
    """Delivers to the log, and to a file and a URL where they are set. For one thread.

    Args:
        engine: The database.
        file: Is made if it is missing; an empty line follows each checkpoint.
        url: Gets each checkpoint as the body of a POST. It may hold a secret, which is neither stored nor logged.
        clock: Monotonic seconds.
        ca_bundle, proxy: For the URL, see `elevate.post`.
    """

    def __init__(
        self,
        engine: sa.Engine,
        file: Path | None = None,
        url: str | None = None,
        clock: Callable[[], float] = monotonic,
        *,
        ca_bundle: Path | None = None,
        proxy: str | None = None,
    ) -> None:
        self.engine = engine
        self._clock = clock
        self._destinations = [_Destination("log", _log)]
        if file is not None:
            self._destinations.append(_File(file))
        if url is not None:
            # The hash distinguishes two URLs on one host, and is too short to find a secret by.
            name = f"{mask_hook(url)} ({hashlib.sha256(url.encode()).hexdigest()[:8]})"
            self._destinations.append(_Destination(name, partial(_post, url, ca_bundle, proxy)))
        self._has_compared = False

    @classmethod
    def of(cls, engine: sa.Engine, settings: Settings) -> Self:
        """Return one for the destinations in *settings*."""
        authorities, proxy = settings.receiver_ca_bundle, settings.receiver_proxy
        return cls(engine, settings.checkpoint_file, settings.checkpoint_url, ca_bundle=authorities, proxy=proxy)

    def deliver(self, stop: Event | None = None, seconds: float = ROUND_SECONDS) -> float | None:
        """Deliver what is pending, and return in how many seconds to try again; None: nothing was refused.

        A failure at a destination is logged (event ``delivery_failed``) and noted; a later call tries again.

        Args:
            stop: Ends it after the current checkpoint.
            seconds: Ends it after this time.

        Raises:
            DatabaseUnavailable, BadConfiguration: What was delivered may be delivered again.
        """
        end = self._clock() + seconds
        if not self._has_compared:
            self._begin()
        for to in self._destinations:
            if to.until is not None and self._clock() < to.until:
                continue
            try:
                is_ours = self._hand_over(to, lambda: self._clock() >= end or (stop is not None and stop.is_set()))
            except (AskError, OSError, _CannotDeliver) as error:
                to.lost = error if isinstance(error, _Lost) else to.lost
                self._failed(to, error)
                continue
            to.lost = None
            self._worked(to)
            to.until = None if is_ours else self._clock() + BUSY_SECONDS
        self._has_compared = True
        waits = [to.until - self._clock() for to in self._destinations if to.until is not None]
        return max(0.0, min(waits)) if waits else None

    def refuse_older_copy(self, restored_after: str | None = None, key: PublicKey | None = None) -> None:
        """Raise BadConfiguration if a destination ends with a checkpoint that this database lacks.

        *restored_after* is the SHA-256 of one that may be missing, since the next checkpoint names it as lost, signed
        by *key*. Raise Refused if the database has it, or if only a lost checkpoint announced the key: each later
        checkpoint would be a permanent finding. A receiver that cannot be asked does not count.
        """
        if not self._has_compared:
            self.deliver(seconds=COMPARE_SECONDS)
        lost = [to.lost for to in self._destinations if to.lost is not None]
        if lost and not any(restored_after and one.sha256 in ("", restored_after) for one in lost):
            raise BadConfiguration(f"sealing has stopped: {lost[0]}")
        ends = [to.last for to in self._destinations if isinstance(to, _File)]
        for end in ends if lost else ():
            if end is not None and key is not None and end.checkpoint.signs_next == key:
                self._require_announced(key)
        for known in (find(self.engine, restored_after), *(() if lost else ends)) if restored_after else ():
            if known is not None:
                its = f"checkpoint {known.checkpoint.number} (SHA-256 {known.sha256})"
                raise Refused(f"--restored-after: nothing was lost: this database has {its}. Leave the option out")
        for to in self._destinations if lost else ():
            to.until = to.lost = None  # the next checkpoint goes there

    def _require_announced(self, key: PublicKey) -> None:
        """Raise Refused if the chain in the database has a key that did not announce *key*."""
        with database.reading(self.engine) as connection:
            newest = head(connection)
        old = newest.checkpoint.signs_next if newest else None
        if old not in (None, key):
            raise Refused(
                f"--restored-after: the key was changed in what was lost. Run it with the old key {old.id}"
                " (TRACKER_SIGNING_KEY_FILE), then change the key again. If nobody has that key, make a new one"
                " (`tracker audit keygen FILE`), and explain the finding to the auditor"
            )

    def _begin(self) -> None:
        """Clear failures of other destinations, which a daemon records again, and notes ahead of an older copy."""
        ours = DELIVERIES.c.destination.in_([to.name for to in self._destinations])
        with database.writing(self.engine) as connection:
            stale = sa.update(DELIVERIES).where(DELIVERIES.c.failing_since.is_not(None), sa.not_(ours))
            connection.execute(stale.values(failing_since=None, last_error=None))
            last = sa.select(sa.func.count()).select_from(SEALS).scalar_subquery()  # no number is missing
            connection.execute(sa.update(DELIVERIES).where(DELIVERIES.c.last_number > last).values(last_number=last))
            since = dict(
                connection.execute(sa.select(DELIVERIES.c.destination, DELIVERIES.c.failing_since).where(ours)).all()
            )
        for to in self._destinations:
            to.failing_since = since.get(to.name)

    def _hand_over(self, to: _Destination, is_enough: Callable[[], bool]) -> bool:
        """Deliver what a destination lacks; return False if another daemon is delivering there."""
        with database.reading(self.engine) as connection:
            query = sa.select(DELIVERIES.c.last_number).where(DELIVERIES.c.destination == to.name)
            noted = connection.execute(query).scalar_one_or_none()
        if noted is None:
            with database.writing(self.engine) as connection:
                new = "INSERT INTO deliveries (destination) VALUES (:name) ON CONFLICT DO NOTHING"
                connection.execute(sa.text(new), {"name": to.name})
        noted = noted or 0
        with to.opened(noted, self) as last:
            while last is not None and not is_enough() and (signed := self.following(last)) is not None:
                number = self._send(to, signed, last + 1 if to.has_sent else 0)
                last, noted = (number, number) if self._note(to, noted, number) else (None, noted)
            return last is not None

    def _send(self, to: _Destination, signed: Signed, lowest: int) -> int:
        """Send a checkpoint, and return the number that the destination continues after, at least *lowest*.

        That is another one if a receiver answers 409 and names a checkpoint that the chain has, or has as lost.
        """
        number = signed.checkpoint.number
        try:
            to.send(signed)
        except ReceiverAhead as error:
            ours, after = find(self.engine, error.newest), after_loss(self.engine, error.newest)
            if ours is not None:
                number = ours.checkpoint.number
            elif after is not None and (error.newest or after.checkpoint.number >= number):
                number = after.checkpoint.number - 1
            else:
                its = f"SHA-256 {error.newest}" if error.newest else "another checkpoint"
                raise _Lost(to.name, its, error.newest) from None
            if number < lowest:
                raise
        to.has_sent = True
        return number

    def following(self, number: int) -> Signed | None:
        """Return the checkpoint after *number* from the database; None: it is not made yet."""
        query = sa.select(SEALS.c.checkpoint).order_by(SEALS.c.id).offset(number).limit(1)  # no number is missing
        with database.reading(self.engine) as connection:
            text = connection.execute(query).scalar()
        if text is None:
            return None
        try:
            signed = parse(text)
            if signed.checkpoint.number != number + 1:
                raise BadCheckpoint(f"its number is {signed.checkpoint.number}")
        except BadCheckpoint as error:
            words = f"checkpoint {number + 1} is damaged or missing in the database: {error}"
            raise _CannotDeliver("Chain damaged", words) from None
        return signed

    def _note(self, to: _Destination, before: int, number: int) -> bool:
        """Record that a destination has all up to *number*; False: another daemon has changed the note since *before*.

        In that case both read the number again, so that no checkpoint is sent before the one below it has arrived.
        """
        update = sa.update(DELIVERIES).where(DELIVERIES.c.destination == to.name)
        if not isinstance(to, _File):
            update = update.where(DELIVERIES.c.last_number == before)
        with database.writing(self.engine) as connection:
            noted = update.values(last_number=number, delivered_at=database.now(connection))
            return bool(connection.execute(noted.returning(DELIVERIES.c.destination)).all())

    def _failed(self, to: _Destination, error: AskError | OSError | _CannotDeliver) -> None:
        if isinstance(error, _CannotDeliver):
            short, words = error.short, str(error)
        elif isinstance(error, OSError):
            short = f"{type(error).__name__} {errno.errorcode.get(error.errno or 0, 'unknown')}"
            words = error.strerror or ""
        else:
            short, words = f"{type(error).__name__} {error.code}", elevate.RECEIVER_HINTS.get(error.code, "")
        with database.writing(self.engine) as connection:
            to.failing_since = to.failing_since or database.now(connection)
            first = sa.func.coalesce(DELIVERIES.c.failing_since, sa.literal(to.failing_since, UtcDateTime()))
            update = sa.update(DELIVERIES).where(DELIVERIES.c.destination == to.name)
            connection.execute(update.values(failing_since=first, last_error=short))
        pause = doubled(FIRST_PAUSE, to.failures, LONGEST_PAUSE).total_seconds()
        to.until, to.failures = self._clock() + pause, to.failures + 1
        facts = {"destination": to.name, "error": short, "note": words or None, "again_in_seconds": pause}
        event("delivery_failed", logging.WARNING, **facts)

    def _worked(self, to: _Destination) -> None:
        """Record that a destination works again, if it failed here or before our start."""
        if to.failing_since is None:
            return
        with database.writing(self.engine) as connection:
            update = sa.update(DELIVERIES).where(DELIVERIES.c.destination == to.name)
            connection.execute(update.values(failing_since=None, last_error=None))
        event("delivery_resumed", destination=to.name, failing_since=to.failing_since)
        to.failing_since, to.failures = None, 0


def _log(signed: Signed) -> None:
    """Send a checkpoint to the daemon's log, which gets the SHA-256 instead of the text."""
    one = signed.checkpoint
    facts = {"number": one.number, "sha256": signed.sha256, "rows": one.rows, "sealed_at": one.sealed_at}
    event("checkpoint", logging.INFO, **facts, key=one.key.id if one.key else "unsigned")


def _post(url: str, ca_bundle: Path | None, proxy: str | None, signed: Signed) -> None:
    """Send a checkpoint to a server, as the body of a POST."""
    headers = {"Content-Type": "text/plain; charset=utf-8", "Tracker-Checkpoint": str(signed.checkpoint.number)}
    try:
        elevate.post(url, signed.text.encode(), headers, TIMEOUT, ca_bundle=ca_bundle, proxy=proxy)
    except BadConfiguration as error:  # the file of authorities was good when the settings were read
        raise _CannotDeliver("BadConfiguration ca_bundle", str(error)) from None


class _File(_Destination):
    """A file that only grows: it may have the append-only attribute, and other programs may read it."""

    def __init__(self, path: Path) -> None:
        super().__init__("file " + re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "?", str(path))[:4000], self._append)
        self._path = path
        self._descriptor = -1
        self.last: Signed | None = None  # its last checkpoint, when it was opened
        self._torn = b""  # the part of a checkpoint that a crash left at the end

    @contextmanager
    def opened(self, noted: int, chain: Courier) -> Iterator[int | None]:
        is_new = not self._path.exists()
        # O_NONBLOCK: do not wait on a pipe.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(self._path, flags, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise self._unusable("not_a_file", "it is not a regular file")
            if is_new:
                sync_folder(self._path.parent)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two that append at once would mix
                is_ours = True
            except BlockingIOError:
                is_ours = False
            last = self._last(chain, is_ours)
            yield last if is_ours else None
        finally:
            os.close(self._descriptor)  # ends the lock

    def _append(self, signed: Signed) -> None:
        data = f"{signed.text}\n".encode()[len(self._torn) :]
        self._torn = b""
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)

    def _unusable(self, code: str, words: str) -> _CannotDeliver:
        return _CannotDeliver(f"CheckpointFile {code}", f"{words}: move it away if you know why, or name another file")

    def _last(self, chain: Courier, is_ours: bool) -> int:
        """Return after which number the file continues: its last checkpoint is of this database, or was lost."""
        size = os.fstat(self._descriptor).st_size
        begin = max(0, size - TAIL)
        whole, has_one, torn = os.pread(self._descriptor, size - begin, begin).rpartition(b"\n\n")
        self._torn = torn.lstrip(b"\n")
        number, self.last = 0, None
        if has_one:
            text = whole.rpartition(b"\n\n")[2].strip(b"\n").decode("ascii", "replace") + "\n"
            try:
                self.last = last = parse(text)
            except BadCheckpoint as error:
                raise self._unusable("garbage", f"it does not end with a checkpoint: {error}") from None
            number = last.checkpoint.number
            if (ours := chain.following(number - 1)) is None or ours.text != text:
                after, first = after_loss(chain.engine, last.sha256), chain.following(0)
                if after is None and first and first.checkpoint.origin != last.checkpoint.origin:
                    raise self._unusable("other_chain", f"it ends with checkpoint {number} of another database")
                if after is None:
                    raise _Lost(self.name, f"checkpoint {number} (SHA-256 {last.sha256})", last.sha256)
                number = after.checkpoint.number - 1
        new = chain.following(number) if self._torn else None
        if is_ours and self._torn and not (new and f"{new.text}\n".encode().startswith(self._torn)):
            raise self._unusable("garbage", f"what follows checkpoint {number} in it is not checkpoint {number + 1}")
        return number
