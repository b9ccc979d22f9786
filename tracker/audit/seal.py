"""The sealer: closes what was written since the last checkpoint with a new one.

Owns what goes into a checkpoint and how the chain grows; ``checkpoint`` owns its text, ``deliver`` takes it out of the
database. One chain, however many daemons seal, and no row left out, however late its transaction commits:

1. The newest ids are read while no transaction that took an id is open. On PostgreSQL ids commit out of order, so every
   writer holds SEAL_LOCK shared (a trigger of ``guards`` takes it before the id), and the sealer asks for it alone, for
   150 ms at a time: behind its request the next writers queue.
2. What lies between the last checkpoint and those ids cannot change any more: it is read at leisure, in short pieces.
3. The seal is written in a short transaction, if the newest checkpoint is still the one it was built on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from tracker import database, models
from tracker.audit import lines
from tracker.audit.checkpoint import (
    SEGMENT_ROWS,
    TABLES,
    Checkpoint,
    PublicKey,
    Segment,
    Signed,
    SigningKey,
    parse,
    sign,
)
from tracker.errors import BadCheckpoint, BadConfiguration, DatabaseUnavailable, Refused
from tracker.guards import SEAL_LOCK
from tracker.logs import event

SEALER_LOCK: Final = 0x7472616C  # PostgreSQL: one seal is written at a time ("tral")
MOST: Final = 100_000  # rows of each table in one checkpoint: what one that is damaged leaves unproven
PIECE: Final = 10_000  # rows read in one transaction, some 100 ms: in SQLite's DELETE mode a reader holds up a COMMIT
LOCK_MS: Final = 150  # how long writers may queue behind the sealer
TRIES: Final = 12  # to get the lock, so about 5 s
PAUSE_SECONDS: Final = 0.25  # between them, in which the writers go on
REBUILDS: Final = 10  # when other sealers were first

_LOCK_NOT_AVAILABLE: Final = "55P03"

Ids = dict[str, int]  # by table


def seal(
    engine: sa.Engine,
    key: SigningKey | None,
    *,
    due: timedelta | None = timedelta(days=1),
    next_key: PublicKey | None = None,
    obeys: bool = False,
    wait: Callable[[float], object] = time.sleep,
) -> list[Signed]:
    """Seal what is new, and return the checkpoints made, oldest first; they are still to be delivered.

    Nothing new makes no checkpoint, unless the last is older than *due*, there is none yet, or a key is announced.
    While a transaction that wrote history stays open on PostgreSQL, this gives up after some seconds with the event
    ``seal_postponed``: nothing is lost, the next call seals it.

    Args:
        engine: A database with this version's schema.
        key: Signs; None: the checkpoints are unsigned.
        due: How old the last checkpoint may get when nothing is new; None: any age.
        next_key: Is announced as the key from the next checkpoint on, in the last one made now.
        obeys: Seal nothing without a key once one has signed, nor with a *key* that has announced another, however many
            checkpoints other daemons have made with that since: whoever made or changed keys has not come to this
            process yet, and what it seals is a finding for ever.
        wait: Waits for so many seconds.

    Raises:
        BadCheckpoint: The newest checkpoint in the database is damaged: none can be built on it.
        BadConfiguration: A key is announced, and none is there to sign that; or it *obeys*, and seals nothing more.
        Refused: The key announced is the one that signs already.
        DatabaseUnavailable: Some of the checkpoints may have been made: they are in the chain.
    """
    if next_key is not None and key is None:
        raise BadConfiguration("only the present key can announce the next: set TRACKER_SIGNING_KEY_FILE to it")
    if next_key is not None and key is not None and next_key == key.public:
        raise Refused(f"the key {next_key.id} signs already: make another with `tracker audit keygen FILE`")
    made: list[Signed] = []
    with database.reading(engine) as connection:
        before, newest, now = head(connection), _newest(connection), database.now(connection)
    if _reason(before, newest, now, due, next_key):
        if engine.dialect.name != "sqlite":  # whose one writer at a time makes ids commit in order
            newest = _settled(engine, wait) or {}
        rebuilt = 0
        while (newest or next_key) and _reason(before, newest, now, due, next_key):
            if obeys and before is not None:
                _obey(engine, key, before)
            signed = _build(engine, before, newest, now, key, next_key)
            if _write(engine, before, signed):
                made.append(signed)
                due = None  # done
                _warn(before, signed)
                if signed.checkpoint.next_key is not None:
                    next_key = None
            elif (rebuilt := rebuilt + 1) > REBUILDS:
                raise DatabaseUnavailable("other sealers were faster each time: try again")
            with database.reading(engine) as connection:
                before, now = head(connection), database.now(connection)
    return made


def head(connection: sa.Connection) -> Signed | None:
    """Return the newest checkpoint, or None where nothing is sealed yet.

    Raises:
        BadCheckpoint: Its text is damaged.
    """
    text = connection.execute(sa.select(models.Seal.checkpoint).order_by(models.Seal.id.desc()).limit(1)).scalar()
    return None if text is None else _parsed(text)


def chain(connection: sa.Connection, after: int = 0) -> Iterator[Signed]:
    """Yield the checkpoints with a number above *after*, oldest first, in bounded memory.

    Raises:
        BadCheckpoint: The text of one is damaged.
    """
    last = 0
    if after:  # from the newest back: the number is in the text only, and few are wanted
        query = sa.select(models.Seal.id, models.Seal.checkpoint).order_by(models.Seal.id.desc())
        with closing(connection.execute(query.execution_options(yield_per=100))) as rows:
            last = next((id_ for id_, text in rows if _parsed(text).checkpoint.number <= after), 0)
    while True:
        query = sa.select(models.Seal.id, models.Seal.checkpoint).where(models.Seal.id > last).order_by(models.Seal.id)
        page = connection.execute(query.limit(100)).all()
        if not page:
            return
        last = page[-1].id
        yield from (_parsed(row.checkpoint) for row in page)


def _parsed(text: str) -> Signed:
    try:
        return parse(text)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"a checkpoint in the database is damaged: {error}: run tracker audit verify") from error


def _newest(connection: sa.Connection) -> Ids:
    """Return the highest id of each table."""
    selected = ", ".join(f"(SELECT coalesce(max(id), 0) FROM {table})" for table in TABLES)
    return dict(zip(TABLES, connection.exec_driver_sql(f"SELECT {selected}").one(), strict=True))


def _settled(engine: sa.Engine, wait: Callable[[float], object]) -> Ids | None:
    """Return ids below which no transaction is open, on PostgreSQL; None if one stays open."""
    for attempt in range(TRIES):
        if attempt:
            wait(PAUSE_SECONDS)
        try:
            # READ COMMITTED: the second statement must see what was committed while the first waited.
            with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_MS}ms'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({SEAL_LOCK})")
                return _newest(connection)
        except DatabaseUnavailable as error:
            if getattr(error.__cause__, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
    event("seal_postponed", logging.WARNING, why="a transaction that wrote history stays open")
    return None


def _sealed(before: Signed | None) -> Ids:
    """Return up to which ids the chain goes."""
    return {table: 0 if before is None else getattr(before.checkpoint, table)[1] for table in TABLES}


def _reason(before: Signed | None, newest: Ids, now: datetime, due: timedelta | None, next_key: object) -> bool:
    """Return whether there is a reason for a checkpoint."""
    sealed = _sealed(before)
    if next_key is not None or any(id_ > sealed[table] for table, id_ in newest.items()):
        return True
    return due is not None and (before is None or now - before.checkpoint.sealed_at >= due)


def _build(
    engine: sa.Engine,
    before: Signed | None,
    newest: Ids,
    now: datetime,
    key: SigningKey | None,
    next_key: PublicKey | None,
) -> Signed:
    """Return the checkpoint that follows *before*, up to the *newest* ids or as many rows as one takes."""
    after = _sealed(before)
    wanted = {table: max(id_, newest.get(table, 0)) for table, id_ in after.items()}  # an id that fell is for verify
    segments, reached = _segments(engine, after, wanted)
    ranges = {table: (after[table], reached[table]) for table in TABLES}
    checkpoint = Checkpoint(
        origin=os.urandom(16).hex() if before is None else before.checkpoint.origin,
        number=1 if before is None else before.checkpoint.number + 1,
        previous_sha256=None if before is None else before.sha256,
        sealed_at=now if before is None else max(now, before.checkpoint.sealed_at),
        transitions=ranges["transitions"],
        gaps=ranges["gaps"],
        sources=ranges["sources"],
        rows=sum(segment.rows for segment in segments),
        segments=tuple(segments),
        next_key=next_key if reached == wanted else None,
    )
    return sign(checkpoint, key)


@dataclass(slots=True)
class _Part:
    """A segment in the making."""

    rows: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    ids: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, table: str, id_: int, line: str) -> None:
        self.rows += 1
        self.digest.update(line.encode())
        first, _ = self.ids.get(table, (id_, id_))
        self.ids[table] = first, id_


def _segments(engine: sa.Engine, after: Ids, upto: Ids) -> tuple[list[Segment], Ids]:
    """Return the segments of the rows in these ranges, and up to which ids they go: at most MOST rows a table."""
    parts: dict[str, list[_Part]] = {}
    reached = dict(upto)
    for kind in lines.KINDS:
        table, at, left = f"{kind}s", after[f"{kind}s"], MOST
        while at < upto[table]:
            if not left:
                reached[table] = at
                break
            piece = _piece(engine, kind, at, upto[table], left)
            if not piece:  # deleted past the guards: for verify to find
                break
            left -= len(piece)
            at = piece[-1][0]
            for id_, cluster, line in piece:
                _add(parts, table, id_, cluster, line)
    numbered = [(cluster, part) for cluster in sorted(parts) for part in parts[cluster]]
    segments = [
        Segment(number, cluster, part.rows, part.digest.hexdigest(), **{table: part.ids.get(table) for table in TABLES})
        for number, (cluster, part) in enumerate(numbered, 1)
    ]
    return segments, reached


def _piece(engine: sa.Engine, kind: str, after: int, upto: int, most: int) -> list[tuple[int, str, str]]:
    with database.reading(engine) as connection:
        return list(lines.stream(connection, kind, after, upto, min(PIECE, most)))


def _add(parts: dict[str, list[_Part]], table: str, id_: int, cluster: str, line: str) -> None:
    if not cluster:  # only past the guards can a job go: nobody knows whose row this is
        event("row_without_job", logging.ERROR, table=table, id=id_)
        return
    own = parts.setdefault(cluster, [])
    if not own or own[-1].rows == SEGMENT_ROWS:
        own.append(_Part())
    own[-1].add(table, id_, line)


def _write(engine: sa.Engine, before: Signed | None, signed: Signed) -> bool:
    """Append *signed* to the chain if that still ends with *before*, and return whether it did."""
    checkpoint = signed.checkpoint
    if engine.dialect.name != "sqlite":  # the second statement must see what the sealer before committed
        engine = engine.execution_options(isolation_level="READ COMMITTED")
    with database.writing(engine) as connection:
        if engine.dialect.name != "sqlite":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({SEALER_LOCK})")
        newest = head(connection)
        if (newest and newest.text) != (before and before.text):
            return False
        values = {
            **{f"last_{table.removesuffix('s')}_id": getattr(checkpoint, table)[1] for table in TABLES},
            "rows": checkpoint.rows,
            "previous_sha256": checkpoint.previous_sha256,
            "checkpoint": signed.text,
            "checkpoint_sha256": signed.sha256,
            "sealed_at": checkpoint.sealed_at,
            "key_id": checkpoint.key.id if checkpoint.key else None,
        }
        seal_id = connection.execute(sa.insert(models.Seal).values(values).returning(models.Seal.id)).scalar_one()
        segments = [
            {"seal_id": seal_id} | {name: getattr(segment, name) for name in ("part", "cluster", "rows", "sha256")}
            for segment in checkpoint.segments
        ]
        if segments:
            connection.execute(sa.insert(models.Segment), segments)
    return True


def _obey(engine: sa.Engine, key: SigningKey | None, before: Signed) -> None:
    """Raise BadConfiguration if another key than *key*, which is not the right one after *before*, has to seal."""
    if key is not None and (before.checkpoint.next_key or before.checkpoint.key) == key.public:
        return
    its = models.Seal.key_id.is_not(None) if key is None else models.Seal.key_id == key.public.id
    query = sa.select(models.Seal.checkpoint).where(its).order_by(models.Seal.id.desc()).limit(1)
    with database.reading(engine) as connection:
        text = connection.execute(query).scalar()
    if text is None:
        return
    last = _parsed(text).checkpoint
    right = last.next_key or last.key
    if key is None:
        signs = f"key {right.id} signs" if right else "a key signs"
        raise BadConfiguration(f"nothing is sealed: {signs} the chain, and TRACKER_SIGNING_KEY_FILE is not set: set it")
    if right not in (None, key.public):
        raise BadConfiguration(
            f"nothing is sealed: key {key.public.id} announced another: set TRACKER_SIGNING_KEY_FILE to its file"
        )


def _warn(before: Signed | None, signed: Signed) -> None:
    """Log a key that the checkpoint before did not lead to expect; ``audit verify`` reports it too."""
    if before is None or before.checkpoint.key is None:
        return
    expected, found = before.checkpoint.next_key or before.checkpoint.key, signed.checkpoint.key
    if found != expected:
        event(
            "signing_key_unexpected",
            logging.WARNING,
            checkpoint=signed.checkpoint.number,
            expected=expected.id,
            key=found.id if found else "none: it is unsigned",
        )
