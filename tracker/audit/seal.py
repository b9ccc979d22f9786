"""The sealer: closes the rows since the last checkpoint with a new one.

Owns what goes into a checkpoint and how the chain grows; ``checkpoint`` owns its text, ``deliver`` takes it out of the
database. Many daemons may seal, but there is one chain. It has every row, even one whose transaction commits late:

1. The newest ids are read while no transaction is open that took an id. On PostgreSQL ids commit out of order, so every
   writer holds SEAL_LOCK shared (a trigger of ``guards`` takes it before the id), and the sealer asks for it alone, for
   150 ms at a time: the next writers wait behind its request.
2. The rows up to those ids cannot change any more: they are read in short transactions.
3. The seal is written in a short transaction, if the newest checkpoint is still the one it was built on.

The sealer refuses no row; the verifiers judge.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from tracker import database, models
from tracker.audit import lines
from tracker.audit.checkpoint import SEGMENT_ROWS, Checkpoint, Segment, Signed, parse, sign
from tracker.audit.keys import PublicKey, SigningKey
from tracker.audit.lines import TABLES
from tracker.errors import BadCheckpoint, BadConfiguration, DatabaseUnavailable
from tracker.guards import SEAL_LOCK
from tracker.logs import event

SEALER_LOCK: Final = 0x7472616C  # PostgreSQL: only one seal is written at a time ("tral")
LOCK_MS: Final = 150  # how long writers may wait behind the sealer
TRIES: Final = 12  # to get the lock, so about 5 s
PAUSE_SECONDS: Final = 0.25  # between tries, while the writers go on
REBUILDS: Final = 10  # tries when other sealers were faster

_LOCK_NOT_AVAILABLE: Final = "55P03"
_WRITTEN: Final = {  # by table: the id, and when the row says it was written
    "transitions": (models.TransitionRow.id, models.TransitionRow.observed_at),
    "gaps": (models.Gap.id, models.Gap.ended_at),
    "sources": (models.Source.id, models.Source.recorded_at),
}

Ids = dict[str, int]  # by table


def seal(
    engine: sa.Engine,
    key: SigningKey | None,
    *,
    seal_after: timedelta | None = None,
    next_key: PublicKey | None = None,
    obeys: bool = False,
    wait: Callable[[float], object] = time.sleep,
) -> list[Signed]:
    """Seal what is new, and return the checkpoints made; they are not delivered yet.

    Without new rows there is no checkpoint, unless a key is announced. While a transaction that wrote history stays
    open on PostgreSQL, this gives up after some seconds with the event ``seal_postponed``; the next call seals it.

    Args:
        engine: A database with this version's schema.
        key: Signs the checkpoints; None: they are unsigned.
        seal_after: Wait until 1,000 rows are new or one is this old; None or zero: seal everything new.
        next_key: The checkpoint made now announces this key for those that follow.
        obeys: Refuse to seal without a key once a key has signed, or with a key that announced another. Such a process
            has old settings, and its checkpoint would be a permanent finding.
        wait: Sleeps for this number of seconds.

    Raises:
        BadCheckpoint: The newest checkpoint in the database is damaged, so none can follow it.
        BadConfiguration: *obeys* forbids sealing; the message says which key is missing.
        DatabaseUnavailable: Some of the checkpoints may have been made: they are in the chain.
        ValueError: A key is announced, but there is no key to sign it.
    """
    with database.reading(engine) as connection:
        before = head(connection)
        if next_key is None and not _is_due(connection, before, seal_after):
            return []
    newest = _settled(engine, wait)
    made: list[Signed] = []
    rebuilt = 0
    while next_key or any(newest[table] > id_ for table, id_ in _sealed(before).items()):
        if obeys and before is not None:
            _obey(engine, key, before)
        signed, segments = _build(engine, before, newest, key, next_key)
        if _write(engine, before, signed, segments):
            made.append(signed)
            _warn(before, signed)
            if signed.checkpoint.next_key is not None:
                next_key = None
        elif (rebuilt := rebuilt + 1) > REBUILDS:
            raise DatabaseUnavailable("other sealers were faster each time: try again")
        with database.reading(engine) as connection:
            before = head(connection)
    return made


def head(connection: sa.Connection) -> Signed | None:
    """Return the newest checkpoint; None: nothing is sealed yet.

    Raises:
        BadCheckpoint: Its text is damaged.
    """
    text = connection.execute(sa.select(models.Seal.checkpoint).order_by(models.Seal.id.desc()).limit(1)).scalar()
    return None if text is None else _parsed(text)


def chain(connection: sa.Connection, after: int = 0) -> Generator[Signed, None, None]:
    """Yield the checkpoints with a number above *after*, oldest first, in bounded memory.

    Raises:
        BadCheckpoint: The text of one is damaged.
    """
    query = sa.select(models.Seal.checkpoint).order_by(models.Seal.id).offset(after)  # no number is missing
    with closing(connection.execute(query, execution_options={"yield_per": 100})) as rows:
        yield from map(_parsed, rows.scalars())


def _parsed(text: str) -> Signed:
    try:
        return parse(text)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"a checkpoint in the database is damaged: {error}: run tracker audit verify") from error


def _sealed(before: Signed | None) -> Ids:
    """Return the last ids that the chain holds."""
    return {table: before.checkpoint.ids[table][1] if before else 0 for table in TABLES}


def _is_due(connection: sa.Connection, before: Signed | None, seal_after: timedelta | None) -> bool:
    """Return whether enough rows are new, or one is old enough, to seal now."""
    sealed, enough = _sealed(before), SEGMENT_ROWS if seal_after else 1
    new = (
        sa.select(at.label("at")).where(id_ > sealed[table]).limit(enough).subquery()
        for table, (id_, at) in _WRITTEN.items()
    )
    waiting = sa.union_all(*(sa.select(rows.c.at) for rows in new)).subquery()
    # The oldest, not the first: a row with a future time must not hold up the others.
    is_old = sa.func.min(waiting.c.at) <= database.now(connection) - (seal_after or timedelta())
    return bool(connection.execute(sa.select(sa.or_(sa.func.count() >= enough, is_old))).scalar())


def _newest(connection: sa.Connection) -> Ids:
    """Return the highest id of each table."""
    selected = ", ".join(f"(SELECT coalesce(max(id), 0) FROM {table})" for table in TABLES)
    return dict(zip(TABLES, connection.exec_driver_sql(f"SELECT {selected}").one(), strict=True))


def _settled(engine: sa.Engine, wait: Callable[[float], object]) -> Ids:
    """Return the highest ids once no open transaction has taken a lower one; zeros if one stays open."""
    if engine.dialect.name == "sqlite":  # it has one writer at a time, so ids commit in order
        with database.reading(engine) as connection:
            return _newest(connection)
    for attempt in range(TRIES):
        if attempt:
            wait(PAUSE_SECONDS)
        try:
            # `writing` is READ COMMITTED: the last statement sees what was committed while the one before waited.
            with database.writing(engine) as connection:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_MS}ms'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({SEAL_LOCK})")
                return _newest(connection)
        except DatabaseUnavailable as error:
            if getattr(error.__cause__, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
    event("seal_postponed", logging.WARNING, why="a transaction that wrote history stays open")
    return dict.fromkeys(TABLES, 0)


def _build(
    engine: sa.Engine, before: Signed | None, newest: Ids, key: SigningKey | None, next_key: PublicKey | None
) -> tuple[Signed, list[dict[str, Any]]]:
    """Return the checkpoint that follows *before*, up to *newest*, and its segments."""
    sealed = _sealed(before)
    wanted = {table: max(id_, newest[table]) for table, id_ in sealed.items()}  # verify finds ids that fell
    segments: list[dict[str, Any]] = []
    for table in TABLES:
        segments += _segments(engine, table, sealed[table], wanted[table])
    with database.reading(engine) as connection:
        now = database.now(connection)
    checkpoint = Checkpoint(
        origin=before.checkpoint.origin if before else os.urandom(16).hex(),
        number=before.checkpoint.number + 1 if before else 1,
        previous_sha256=before.sha256 if before else None,
        sealed_at=max(now, before.checkpoint.sealed_at) if before else now,
        ids={table: (sealed[table], wanted[table]) for table in TABLES},
        rows=sum(segment["rows"] for segment in segments),
        segments=tuple(Segment(segment["name"], segment["part"], segment["sha256"]) for segment in segments),
        next_key=next_key,
    )
    return sign(checkpoint, key), segments


def _segments(engine: sa.Engine, table: str, after: int, upto: int) -> Iterator[dict[str, Any]]:
    """Yield the segments of the rows with after < id <= upto.

    Each is read in a short transaction of its own: in SQLite's DELETE mode a reader holds up a COMMIT.
    """
    part = 0
    while after < upto:
        with database.reading(engine) as connection:
            rows = list(lines.stream(connection, table, after, upto, SEGMENT_ROWS))
        if not rows:  # they were deleted past the guards: verify finds that
            return
        content = lines.header(table) + b"".join(line for _, line in rows)
        part += 1
        segment = {"name": table, "part": part, "first_id": rows[0][0], "last_id": rows[-1][0], "rows": len(rows)}
        yield segment | {"sha256": hashlib.sha256(content).hexdigest()}
        after = rows[-1][0]


def _write(engine: sa.Engine, before: Signed | None, signed: Signed, segments: list[dict[str, Any]]) -> bool:
    """Append *signed* to the chain if it still ends with *before*, and return whether it did."""
    checkpoint = signed.checkpoint
    with database.writing(engine) as connection:  # READ COMMITTED: `head` sees what another sealer committed
        if engine.dialect.name != "sqlite":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({SEALER_LOCK})")
        newest = head(connection)
        if (newest and newest.text) != (before and before.text):
            return False
        values = {
            **{f"last_{table.removesuffix('s')}_id": last for table, (_, last) in checkpoint.ids.items()},
            "rows": checkpoint.rows,
            "checkpoint": signed.text,
            "checkpoint_sha256": signed.sha256,
            "sealed_at": checkpoint.sealed_at,
            "key_id": checkpoint.key.id if checkpoint.key else None,
        }
        seal_id = connection.execute(sa.insert(models.Seal).values(values).returning(models.Seal.id)).scalar_one()
        if segments:
            connection.execute(sa.insert(models.Segment), [{"seal_id": seal_id} | segment for segment in segments])
    return True


def _obey(engine: sa.Engine, key: SigningKey | None, before: Signed) -> None:
    """Raise BadConfiguration if the chain expects another key than *key*, and *key* is not new."""
    if key is not None and (before.checkpoint.next_key or before.checkpoint.key) == key.public:
        return
    its = models.Seal.key_id.is_not(None) if key is None else models.Seal.key_id == key.public.id
    query = sa.select(models.Seal.checkpoint).where(its).order_by(models.Seal.id.desc()).limit(1)
    with database.reading(engine) as connection:
        text = connection.execute(query).scalar()
    if text is None:
        return
    if key is None:
        raise BadConfiguration("sealing has stopped: a key signs the chain. Set TRACKER_SIGNING_KEY_FILE to its file")
    if _parsed(text).checkpoint.next_key not in (None, key.public):
        raise BadConfiguration(
            f"sealing has stopped: key {key.public.id} announced another key. Set TRACKER_SIGNING_KEY_FILE to its file"
        )


def _warn(before: Signed | None, signed: Signed) -> None:
    """Log a key that the checkpoint before did not announce; ``audit verify`` reports it too."""
    expected = None if before is None else before.checkpoint.next_key or before.checkpoint.key
    found = signed.checkpoint.key
    if expected is not None and found != expected:
        facts = {"checkpoint": signed.checkpoint.number, "expected": expected.id}
        event("signing_key_unexpected", logging.WARNING, **facts, key=found.id if found else "unsigned")
