"""Retention: removes ended jobs with all their rows, after it has written a pack that holds all of them.

Owns which jobs may be removed, and the one transaction that removes them and seals the rest again (`seal.write_base`).
A crash leaves all or nothing; a pack that is complete by then stays.

Only jobs whose newest row is in the pack are removed: a job that was reopened or amended meanwhile stays. The base
follows the last checkpoint of the pack, so an auditor can put both together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database, guards
from tracker.audit import pack, seal
from tracker.audit.checkpoint import SEGMENT_ROWS, Base
from tracker.audit.deliver import Courier
from tracker.audit.keys import SigningKey
from tracker.audit.verify import Progress, verify
from tracker.errors import DatabaseUnavailable, Refused, TryAgain
from tracker.models import JOBS, TRANSITIONS
from tracker.status import State

_TABLES: Final = ("jobs", "transitions", "gaps", "sources", "seals", "segments")
_LOCK_MS: Final = 900  # below PostgreSQL's deadlock_timeout (1 s): the server ends our transaction, not a daemon's
_OWNS: Final = """
    SELECT bool_and(pg_has_role(relowner, 'USAGE')) FROM pg_class
    WHERE relname = ANY (:tables) AND relnamespace = quote_ident(current_schema())\\:\\:regnamespace"""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which ended jobs to remove: those that ended before a time or, without a time, those with these ids."""

    ended_before: datetime | None
    ids: tuple[int, ...] = ()

    @property
    def conditions(self) -> tuple[sa.ColumnElement[bool], ...]:
        its = JOBS.c.ended_by < self.ended_before if self.ended_before else JOBS.c.id.in_(self.ids)
        return JOBS.c.state != State.OPEN, its

    def count(self, connection: sa.Connection) -> tuple[int, int]:
        """Return how many jobs and transitions these are.

        Raises:
            Refused: The time is in the future, or a named job is open.
        """
        if self.ended_before is not None and self.ended_before > database.now(connection):
            raise Refused(f"--ended-before: {self.ended_before.date()} is in the future")
        named = sa.select(JOBS.c.jid).where(JOBS.c.id.in_(self.ids), JOBS.c.state == State.OPEN).limit(1)
        if (jid := connection.execute(named).scalar()) is not None:
            raise Refused(f"job {jid} is open: withdraw it first (`tracker withdraw`)")
        chosen = sa.select(JOBS.c.id).where(*self.conditions)
        rows = sa.select(TRANSITIONS.c.job_id).where(TRANSITIONS.c.job_id.in_(chosen)).subquery()
        counts = sa.select(sa.func.count(rows.c.job_id.distinct()), sa.func.count())
        jobs, transitions = connection.execute(counts.select_from(rows)).one()
        return jobs, transitions


def require_owner(connection: sa.Connection) -> None:
    """Raise Refused if the role of *connection* cannot switch the guards off, and GuardsMissing if one is missing."""
    if connection.dialect.name != "sqlite" and not connection.scalar(sa.text(_OWNS), {"tables": [*_TABLES]}):
        raise Refused("only the owner of the tables may remove jobs (tracker/audit/ROLES.md): log in as that role")
    guards.check(connection)


def prune(
    courier: Courier, choice: Choice, folder: Path, zone: ZoneInfo, key: SigningKey | None, progress: Progress
) -> Base:
    """Write and verify a pack of all data, remove the jobs of *choice*, seal the rest, and return what was removed.

    Args:
        courier: Of the database. If a destination is ahead, this is an older copy, and nothing is sealed.
        folder: The new folder of the pack. It stays if a later step fails.
        key: Signs the pack and the base.

    Raises:
        Refused, TryAgain, BadConfiguration: Nothing was removed, unless the message says that traces are left.
        DatabaseUnavailable: After a lost COMMIT it is unknown whether the jobs were removed.
    """
    engine = courier.engine
    with database.reading(engine) as connection:
        require_owner(connection)
    courier.refuse_older_copy()
    with database.reading(engine) as connection:
        before = seal.head(connection)
    if before is not None:
        seal.require_key(engine, key, before)
    seal.seal(engine, key)
    made = pack.export(engine, folder, zone=zone, key=key, progress=progress)
    with database.reading(engine) as connection:
        if made.last.sealed_at > (now := database.now(connection)):
            raise Refused(f"the newest checkpoint is from {made.last.sealed_at}, after now ({now}): try again later")
        report = verify(connection, zone=zone, progress=progress)
    if not report.is_good:
        raise Refused(f"{report.findings[0].message}: run `tracker audit verify`; nothing was removed")
    _reread(made)
    try:
        with database.writing(engine) as connection:
            _lock(connection)
            removed = _remove(connection, choice, made, key, progress)
    except DatabaseUnavailable as error:
        if not database.is_lock_timeout(error):
            raise
        raise _again("other transactions kept a table locked", made) from error
    if engine.dialect.name == "sqlite":
        _vacuum(engine)
    return removed


def _vacuum(engine: sa.Engine) -> None:
    """Write the SQLite file again, without what earlier changes of a removed row left in its pages and in its ``-wal``.

    `secure_delete` reaches only what it deletes itself: a row that grew was copied elsewhere, and the old bytes stay.
    """
    try:
        raw: Any = engine.raw_connection()
        with closing(raw):
            raw.cursor().execute("VACUUM")
            is_busy, *_ = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            why = "another process reads it" if is_busy else ""
    except Exception as error:
        why = str(error)
    if why:
        file = engine.url.database
        raise Refused(
            f"the jobs were removed, but traces of their rows are still in the file ({why}). Stop what uses it, make"
            f" room, and run: sqlite3 {file} 'VACUUM; PRAGMA wal_checkpoint(TRUNCATE)'"
        )


def _again(why: str, made: pack.Pack) -> TryAgain:
    return TryAgain(f"{why}: nothing was removed. Delete {made.folder}, or keep it as evidence, and try again")


def _reread(made: pack.Pack) -> None:
    """Raise Refused unless each file of the pack is on the disk as it was written."""
    sums = (made.folder / pack.SUMS).read_text()
    for line in f"{made.sha256}  {pack.SUMS}\n{sums}".splitlines():
        digest, _, name = line.partition("  ")
        with (made.folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise Refused(f"{made.folder / name} was damaged after it was written; nothing was removed")


def _lock(connection: sa.Connection) -> None:
    """Let nobody else write until the transaction ends; others can read. On SQLite BEGIN has done that already."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA secure_delete = ON")  # overwrites what is deleted with zeroes
        return
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_MS}ms'")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({seal.SEALER_LOCK})")
    connection.exec_driver_sql(f"LOCK TABLE {', '.join(_TABLES)} IN EXCLUSIVE MODE")  # not even SELECT FOR UPDATE


def _remove(
    connection: sa.Connection, choice: Choice, made: pack.Pack, key: SigningKey | None, progress: Progress
) -> Base:
    """Remove the jobs, and write the base; `_lock` comes before it in the same transaction."""
    head, parts = seal.head(connection), count()
    if head is None or head.checkpoint != made.last:
        raise _again("something was sealed while the pack was written", made)

    @contextmanager
    def reading() -> Iterator[sa.Connection]:
        progress(next(parts) * SEGMENT_ROWS, made.rows, "rows sealed again")
        yield connection

    is_newer = sa.select(TRANSITIONS.c.job_id).where(TRANSITIONS.c.id > made.last.ids["transitions"][1])
    chosen = sa.select(JOBS.c.id).where(*choice.conditions, JOBS.c.id.not_in(is_newer))
    progress(0, None, "removing")
    with guards.off(connection):
        connection.execute(sa.delete(TRANSITIONS).where(TRANSITIONS.c.job_id.in_(chosen)))
        is_empty = ~sa.exists().where(TRANSITIONS.c.job_id == JOBS.c.id)  # each job has its registration
        jobs = connection.execute(sa.delete(JOBS).where(*choice.conditions, is_empty)).rowcount
        if not jobs or jobs < len(choice.ids):
            raise _again("the jobs were changed while the pack was written", made)
        day = choice.ended_before.date() if choice.ended_before else None
        removed = Base(day, jobs, made.sha256)
        seal.write_base(reading, head, key, removed)
    guards.check(connection)
    return removed
