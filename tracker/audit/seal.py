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
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from tracker import database, models
from tracker.audit import lines
from tracker.audit.checkpoint import SEGMENT_ROWS, Base, Checkpoint, SealedSegment, Signed, parse, sign
from tracker.audit.keys import PublicKey, SigningKey
from tracker.audit.lines import TABLES
from tracker.errors import BadCheckpoint, BadConfiguration, DatabaseUnavailable
from tracker.guards import SEAL_LOCK
from tracker.logs import event
from tracker.models import SEALS

SEALER_LOCK: Final = 0x7472616C  # PostgreSQL: only one seal is written at a time ("tral")
LOCK_MS: Final = 150  # how long writers may wait behind the sealer
TRIES: Final = 12  # to get the lock, so about 5 s; to be faster than other sealers
PAUSE_SECONDS: Final = 0.25  # between tries, while the writers go on

WRITTEN: Final = {
    "transitions": (models.TRANSITIONS.c.id, models.TRANSITIONS.c.observed_at),
    "gaps": (models.GAPS.c.id, models.GAPS.c.ended_at),
    "sources": (models.SOURCES.c.id, models.SOURCES.c.recorded_at),
}
"""By table: the id of a row, and when it says that it was written."""
Ids = dict[str, int]  # by table
IS_BASE: Final = SEALS.c.checkpoint.contains("\nbase ")
Reading = Callable[[], AbstractContextManager[sa.Connection]]
_NEWEST: Final = "SELECT " + ", ".join(f"(SELECT coalesce(max(id), 0) FROM {table}) AS {table}" for table in TABLES)


def seal(
    engine: sa.Engine,
    key: SigningKey | None,
    *,
    seal_after: timedelta | None = None,
    next_key: PublicKey | None = None,
    restored_after: str | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> Signed | None:
    """Seal what is new, and return the checkpoint; it is not delivered yet. None: there is nothing to seal.

    While a transaction that wrote history stays open on PostgreSQL, this gives up after some seconds with the event
    ``seal_postponed``; the next call seals it.

    Args:
        key: Signs the checkpoint; None: it is unsigned.
        seal_after: Wait until 1,000 rows are new or one is this old; None or zero: seal everything new.
        next_key: The checkpoint announces this key for those that follow; it is made even without new rows.
        restored_after: The SHA-256 of the last lost checkpoint, which this one names, even without new rows.

    Raises:
        BadCheckpoint: The newest checkpoint in the database is damaged, so no other can follow it.
        BadConfiguration: There is no key, but one has signed before, or the key announced another. Such a process has
            old settings, and its checkpoint would be a permanent finding.
        DatabaseUnavailable: The checkpoint may have been made: then it is in the chain.
        ValueError: A key is announced, but there is no key to sign it.
    """
    is_due = next_key is not None or restored_after is not None
    with database.reading(engine) as connection:
        if not is_due and not _is_due(connection, head(connection), seal_after):
            return None
    newest = _settled(engine, wait)
    for _ in range(TRIES):
        with database.reading(engine) as connection:
            before = head(connection)
        if not is_due and all(newest[table] <= id_ for table, id_ in _sealed(before).items()):
            return None
        if before is not None:
            require_key(engine, key, before)
        checkpoint, segments = _build(partial(database.reading, engine), before, newest)
        signed = sign(replace(checkpoint, next_key=next_key, restored_after=restored_after), key)
        if _write(engine, before, signed, segments):
            return signed
    raise DatabaseUnavailable("other daemons sealed first each time: try again")


def head(connection: sa.Connection, which: sa.ColumnElement[bool] | None = None) -> Signed | None:
    """Return the newest checkpoint (of *which*), or None without one. Raise BadCheckpoint if its text is damaged."""
    its = sa.true() if which is None else which
    text = connection.execute(sa.select(SEALS.c.checkpoint).where(its).order_by(SEALS.c.id.desc()).limit(1)).scalar()
    return None if text is None else _parsed(text)


def write_base(reading: Reading, before: Signed, key: SigningKey | None, removed: Base) -> None:
    """Seal all rows again after *before*, the newest checkpoint. Only the transaction of *reading* may write."""
    with reading() as connection:
        newest = connection.exec_driver_sql(_NEWEST).one()._asdict()
        checkpoint, segments = _build(reading, before, newest, removed)
        connection.execute(sa.delete(models.SEGMENTS))
        _append(connection, sign(checkpoint, key), segments)


def chain(connection: sa.Connection, *, whole: bool = True) -> Generator[Signed, None, None]:
    """Yield the checkpoints, oldest first, in bounded memory; if not *whole*, from the newest base on.

    Raise BadCheckpoint if the text of one is damaged.
    """
    query = sa.select(SEALS.c.checkpoint).order_by(SEALS.c.id)
    if not whole:
        base = sa.select(sa.func.max(SEALS.c.id)).where(IS_BASE)
        query = query.where(SEALS.c.id >= sa.func.coalesce(base.scalar_subquery(), 0))
    with closing(connection.execute(query, execution_options={"yield_per": 100})) as rows:
        yield from map(_parsed, rows.scalars())


def find(engine: sa.Engine, sha256: str) -> Signed | None:
    """Return the checkpoint with this SHA-256; None: the chain does not have it."""
    with database.reading(engine) as connection:
        return head(connection, SEALS.c.checkpoint_sha256 == sha256)


def after_loss(engine: sa.Engine, sha256: str = "") -> Signed | None:
    """Return the newest checkpoint that names *sha256* (empty: any) as that of the last lost one."""
    with database.reading(engine) as connection:
        return head(connection, SEALS.c.checkpoint.contains(f"\nrestored_after {sha256}", autoescape=True))


def columns(signed: Signed) -> dict[str, object]:
    """Return the columns of a row of seals, other than the checkpoint's text."""
    one = signed.checkpoint
    return {
        **{f"last_{table.removesuffix('s')}_id": last for table, (_, last) in one.ids.items()},
        "rows": one.rows,
        "checkpoint_sha256": signed.sha256,
        "sealed_at": one.sealed_at,
        "key_id": one.key.id if one.key else None,
    }


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
    new = [sa.select(at.label("at")).where(id_ > sealed[table]).limit(enough) for table, (id_, at) in WRITTEN.items()]
    waiting = sa.union_all(*(sa.select(rows.subquery()) for rows in new)).subquery()
    # The oldest, not the first: a row with a future time must not hold up the others.
    is_old = sa.func.min(waiting.c.at) <= database.now(connection) - (seal_after or timedelta())
    return bool(connection.execute(sa.select(sa.or_(sa.func.count() >= enough, is_old))).scalar())


def _settled(engine: sa.Engine, wait: Callable[[float], object]) -> Ids:
    """Return the highest ids once no open transaction has taken a lower one; zeros if one stays open."""
    if engine.dialect.name == "sqlite":  # it has one writer at a time, so ids commit in order
        with database.reading(engine) as connection:
            return connection.exec_driver_sql(_NEWEST).one()._asdict()
    for attempt in range(TRIES):
        if attempt:
            wait(PAUSE_SECONDS)
        try:
            # `writing` is READ COMMITTED: the last statement sees what was committed while the one before waited.
            with database.writing(engine) as connection:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_MS}ms'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({SEAL_LOCK})")
                return connection.exec_driver_sql(_NEWEST).one()._asdict()
        except DatabaseUnavailable as error:
            if not database.is_lock_timeout(error):
                raise
    event("seal_postponed", logging.WARNING, why="a transaction that wrote history is still open")
    return dict.fromkeys(TABLES, 0)


def _build(
    reading: Reading, before: Signed | None, newest: Ids, removed: Base | None = None
) -> tuple[Checkpoint, list[dict[str, Any]]]:
    """Return the checkpoint that follows *before*, up to *newest*, and its segments; a base has all rows."""
    sealed = _sealed(before)
    wanted = {table: max(id_, newest[table]) for table, id_ in sealed.items()}  # verify finds ids that fell
    if removed is not None:
        sealed = _sealed(None)
    segments: list[dict[str, Any]] = []
    for table in TABLES:
        segments += _segments(reading, table, sealed[table], wanted[table])
    with reading() as connection:
        now = database.now(connection)
    checkpoint = Checkpoint(
        origin=before.checkpoint.origin if before else os.urandom(16).hex(),
        number=before.checkpoint.number + 1 if before else 1,
        previous_sha256=before.sha256 if before else None,
        sealed_at=max(now, before.checkpoint.sealed_at) if before else now,
        ids={table: (sealed[table], wanted[table]) for table in TABLES},
        rows=sum(segment["rows"] for segment in segments),
        segments=tuple(SealedSegment(segment["name"], segment["part"], segment["sha256"]) for segment in segments),
        base=removed,
    )
    return checkpoint, segments


def _segments(reading: Reading, table: str, after: int, upto: int) -> Iterator[dict[str, Any]]:
    """Yield the segments of the rows with after < id <= upto.

    Each is read in a short transaction of its own: in SQLite's DELETE mode a reader holds up a COMMIT.
    """
    part = 0
    while after < upto:
        with reading() as connection:
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
    with database.writing(engine) as connection:  # READ COMMITTED: `head` sees what another sealer committed
        if engine.dialect.name != "sqlite":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({SEALER_LOCK})")
        if head(connection) != before:
            return False
        _append(connection, signed, segments)
    return True


def _append(connection: sa.Connection, signed: Signed, segments: list[dict[str, Any]]) -> None:
    insert = sa.insert(SEALS).values(checkpoint=signed.text, **columns(signed)).returning(SEALS.c.id)
    seal_id = connection.execute(insert).scalar_one()
    if segments:
        connection.execute(sa.insert(models.SEGMENTS), [{"seal_id": seal_id} | segment for segment in segments])


def require_key(engine: sa.Engine, key: SigningKey | None, before: Signed) -> None:
    """Raise BadConfiguration if the chain expects another key than *key*, and *key* is not new."""
    if key is not None and before.checkpoint.signs_next == key.public:
        return
    its = SEALS.c.key_id.is_not(None) if key is None else SEALS.c.key_id == key.public.id
    with database.reading(engine) as connection:
        used = head(connection, its)
    if used is None:
        return
    why = "a key has signed the chain, so each new checkpoint needs a key"
    if key is not None:
        if used.checkpoint.next_key in (None, key.public):
            return
        why = f"key {key.public.id} announced another key"
    raise BadConfiguration(f"sealing has stopped: {why}. Set TRACKER_SIGNING_KEY_FILE to the file of that key")
