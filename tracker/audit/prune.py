"""Retention: ended jobs leave the database with all their rows, after a pack with all of them was written.

Owns which jobs may be removed, and the one transaction that does it and seals the rest again (`seal.write_base`). A
crash leaves all or nothing; a pack that is complete by then stays.

Only jobs whose newest row is in the pack are removed: one that was reopened or amended meanwhile stays. The base
follows the last checkpoint of the pack, so an auditor can put both together.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database, guards
from tracker.audit import pack, seal
from tracker.audit.checkpoint import Base, Checkpoint
from tracker.audit.keys import SigningKey
from tracker.audit.verify import Progress, verify
from tracker.errors import DatabaseUnavailable, InvalidField, Refused, TryAgain
from tracker.models import JOBS, TRANSITIONS
from tracker.status import State

_TABLES: Final = ("jobs", "transitions", "gaps", "sources", "seals", "segments")
_OWNS: Final = """
    SELECT bool_and(pg_has_role(relowner, 'USAGE')) FROM pg_class
    WHERE relname = ANY (:tables) AND relnamespace = quote_ident(current_schema())\\:\\:regnamespace"""


@dataclass(frozen=True, slots=True)
class Choice:
    """Ended jobs: those that had ended before a day (UTC) or, without one, those with these ids."""

    ended_before: date | None
    ids: tuple[int, ...] = ()

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        if self.ended_before is None:
            return [JOBS.c.state != State.OPEN, JOBS.c.id.in_(self.ids)]
        return [JOBS.c.state != State.OPEN, JOBS.c.ended_by < _begin(self.ended_before)]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, the pack that has it, and the base checkpoint over what is left."""

    jobs: int
    transitions: int
    pack: pack.Pack
    base: Checkpoint


def ended_before(connection: sa.Connection, day: date) -> Choice:
    """Return the choice of all jobs that had ended before *day*, or raise InvalidField if it is in the future."""
    if _begin(day) > database.now(connection):
        raise InvalidField("ended_before", f"{day} is in the future")
    return Choice(day)


def named(connection: sa.Connection, ids: tuple[int, ...]) -> Choice:
    """Return the choice of the jobs with these ids, or raise Refused if one of them is open."""
    query = sa.select(JOBS.c.jid).where(JOBS.c.id.in_(ids), JOBS.c.state == State.OPEN).order_by(JOBS.c.jid).limit(1)
    if (jid := connection.execute(query).scalar()) is not None:
        raise Refused(f"job {jid} is open: withdraw it first (`tracker withdraw`); nothing was removed")
    return Choice(None, ids)


def count(connection: sa.Connection, choice: Choice) -> tuple[int, int]:
    """Return how many jobs *choice* has, and how many transitions."""
    chosen = sa.select(JOBS.c.id).where(*choice.conditions())
    transitions = sa.select(sa.func.count()).where(TRANSITIONS.c.job_id.in_(chosen))
    jobs = sa.select(sa.func.count()).select_from(chosen.subquery())
    return connection.execute(jobs).scalar_one(), connection.execute(transitions).scalar_one()


def require_owner(connection: sa.Connection) -> None:
    """Raise Refused unless the role of *connection* can switch the guards off, and GuardsMissing if one is missing."""
    if connection.dialect.name != "sqlite" and not connection.scalar(sa.text(_OWNS), {"tables": [*_TABLES]}):
        raise Refused("only the owner of the tables may remove jobs (tracker/audit/ROLES.md): log in as that role")
    guards.check(connection)


def prune(
    engine: sa.Engine,
    choice: Choice,
    folder: Path,
    *,
    zone: ZoneInfo,
    key: SigningKey | None,
    progress: Progress = lambda done, total, what: None,
    wait: Callable[[float], object] = time.sleep,
) -> Pruned:
    """Seal, write and verify a pack of everything, remove the jobs of *choice*, and seal the rest again.

    Args:
        folder: The new folder of the pack. It stays if a later step fails.
        zone: The legal time zone of the settings.
        key: Signs the pack and the base.

    Raises:
        Refused: Not the owner, the folder exists, or the record is not as it was sealed.
        TryAgain: Something was sealed meanwhile, or a transaction stays open.
        BadConfiguration: The key is not the chain's.
        DatabaseUnavailable: After a lost COMMIT it is unknown whether the jobs were removed.
    """
    with database.reading(engine) as connection:
        require_owner(connection)
        before = seal.head(connection)
    if before is not None:
        seal.require_key(engine, key, before)
    seal.seal(engine, key)
    made = pack.export(engine, folder, zone=zone, key=key, progress=progress)
    with database.reading(engine) as connection:
        if made.last.sealed_at > (now := database.now(connection)):
            raise Refused(f"the newest checkpoint is of {made.last.sealed_at}, but it is {now}: a clock was ahead")
        report = verify(connection, zone=zone, progress=progress)
    if not report.is_good:
        raise Refused(f"{report.findings[0].message}: run `tracker audit verify`; nothing was removed")
    _reread(made)
    for left in reversed(range(seal.TRIES)):
        try:
            with database.writing(engine) as connection:
                _lock(connection)
                pruned = _remove(connection, choice, made, key, progress)
        except DatabaseUnavailable as error:
            if getattr(error.__cause__, "sqlstate", None) != "55P03":  # lock_not_available
                raise
            if not left:
                raise TryAgain(f"others write all the time; {_NOTHING.format(folder)}") from error
            wait(seal.PAUSE_SECONDS)
        else:
            break
    if engine.dialect.name == "sqlite":
        _empty_wal(engine)
    return pruned


_NOTHING: Final = "nothing was removed. Delete {}, or keep it as evidence, and try again"


def _begin(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _reread(made: pack.Pack) -> None:
    """Raise Refused unless each file of the pack is on the disk as it was written."""
    sums = (made.folder / pack.SUMS).read_bytes()
    for line in [f"{made.sha256}  {pack.SUMS}", *sums.decode().splitlines()]:
        digest, _, name = line.partition("  ")
        with (made.folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise Refused(
                    f"{made.folder / name} is not as it was written: is the disk damaged? Nothing was removed"
                )


def _lock(connection: sa.Connection) -> None:
    """Let nobody else write until the transaction ends; others can read.

    On SQLite its beginning does that. On PostgreSQL a daemon that waits for us could hold what we wait for, so we wait
    for less time than it takes the server to end one of both as a deadlock (1 s), and begin again.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA secure_delete = ON")  # zeroes take the place of what is deleted
        return
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{seal.LOCK_MS}ms'")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({seal.SEALER_LOCK})")
    connection.exec_driver_sql(f"LOCK TABLE {', '.join(_TABLES)} IN EXCLUSIVE MODE")  # ends SELECT FOR UPDATE, too


def _remove(
    connection: sa.Connection, choice: Choice, made: pack.Pack, key: SigningKey | None, progress: Progress
) -> Pruned:
    """Remove the jobs, and write the base. For a transaction that alone writes."""
    head = seal.head(connection)
    if head is None or head.checkpoint != made.last:
        raise TryAgain(f"something was sealed while the pack was written; {_NOTHING.format(made.folder)}")
    progress(0, None, "removing")
    is_newer = sa.select(TRANSITIONS.c.job_id).where(TRANSITIONS.c.id > made.last.ids["transitions"][1])
    chosen = sa.select(JOBS.c.id).where(*choice.conditions(), JOBS.c.id.not_in(is_newer))
    with guards.off(connection):
        transitions = connection.execute(sa.delete(TRANSITIONS).where(TRANSITIONS.c.job_id.in_(chosen))).rowcount
        is_empty = ~sa.exists().where(TRANSITIONS.c.job_id == JOBS.c.id)  # each job has its registration
        jobs = connection.execute(sa.delete(JOBS).where(*choice.conditions(), is_empty)).rowcount
        if not jobs or (choice.ids and jobs < len(choice.ids)):
            raise TryAgain(f"the jobs were changed while the pack was written; {_NOTHING.format(made.folder)}")
        done = 0

        def sealed(rows: int) -> None:
            nonlocal done
            done += rows
            progress(done, made.rows - transitions, "rows sealed again")

        base = seal.write_base(connection, head, key, Base(choice.ended_before, jobs, made.sha256), sealed)
    guards.check(connection)
    return Pruned(jobs, transitions, made, base.checkpoint)


def _empty_wal(engine: sa.Engine) -> None:
    """Let no old page stay in the file beside the database, unless a reader needs it longer than we wait."""
    raw: Any = engine.raw_connection()
    try:
        raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        raw.close()
