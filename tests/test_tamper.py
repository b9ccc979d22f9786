"""Whoever owns the database falsifies it, and `audit verify` finds it: each way on both databases, and where.

The table `CASES` is the one in README.md, which a test compares. What is done is done by a superuser, who takes the
guards away and puts them back; ids are the database's, so rows are named by job and seq.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import sqlalchemy as sa

from tests.history import ZONE
from tests.lives import MINUTE, SECOND, Life
from tracker import database, guards
from tracker.audit import checkpoint, lines
from tracker.audit.checkpoint import Checkpoint, SigningKey, parse, sign
from tracker.audit.findings import Finding, What
from tracker.audit.seal import seal
from tracker.audit.verify import verify
from tracker.cli import audit_verify
from tracker.models import JOBS, TRANSITIONS, Base, facts_values, observed_values, transition_of, transition_values
from tracker.reports import views
from tracker.status import Facts, Kind, State, replay

TABLES = Base.metadata.tables
GAPS, SOURCES, SEALS, SEGMENTS = (TABLES[name] for name in ("gaps", "sources", "seals", "segments"))


@dataclass(frozen=True)
class Record:
    """A record that was sealed three times, to be falsified.

    Attributes:
        engine: A superuser's, on a copy of it.
        key: The sealer's.
        other_key: Somebody else's.
        trusted: Its checkpoints, as they left the database.
    """

    engine: sa.Engine
    key: SigningKey
    other_key: SigningKey
    trusted: tuple[str, ...]

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"


def lives(now: datetime) -> list[Life]:
    """Return the jobs: each has its history over the three seals, after minutes 5, 10 and 15, and after the last."""
    began = now - 40 * MINUTE

    def at(minute: float) -> datetime:
        return began + minute * MINUTE

    facts = Facts(Kind.EXPORT, "R-1", at(-3000), at(-10))
    a1 = Life("w1", "a1", facts, at(0)).answer("waiting", at(1)).answer("running", at(6)).answer("done", at(12))
    a2 = Life("w1", "a2", replace(facts, kind=Kind.REMOVAL), at(0)).answer("waiting", at(2)).answer("not_found", at(7))
    a2.withdraw(at(13))
    a3 = Life("w1", "a3", replace(facts, reference="R-3"), at(0.5)).amend(at(8), received_at=at(-2000))
    a3.answer("error", at(11))
    b1 = Life("w2", "b1", facts, at(1)).answer("waiting", at(2.5)).answer("running", at(9)).answer("done", at(17))
    b2 = Life("w2", "b2", Facts(), at(1.5)).answer("not_found", at(3)).attest(at(9.5), at(8)).reopen(at(14))
    a5 = Life("w1", "a5", Facts(), at(2)).answer("waiting", at(4.5))
    late = Life("w1", "late", Facts(), at(16)).answer("created", at(16.5))
    return [a1, a2, a3, b1, b2, a5, late]


def build(url: str, key: SigningKey, copy: Callable[[], object]) -> tuple[str, ...]:
    """Make the record, as the daemon would have, and return its checkpoints; *copy* is called after the second."""
    engine = database.open_database(url)
    with database.reading(engine) as connection:
        now = database.now(connection)
    began = now - 40 * MINUTE
    told = lives(now)
    events: list[tuple[datetime, int, int]] = []
    events += ((step[1].observed_at, n, i) for n, life in enumerate(told) for i, step in enumerate(life.steps))
    gaps = [("w1", 3, 4), ("w1", 8.2, 9.2), ("w2", 8.3, 9.3), ("w1", 12, 13), ("w1", 16, 17)]
    events += ((began + end * MINUTE, -1, n) for n, (_, _, end) in enumerate(gaps))
    ids: dict[int, int] = {}
    cuts = [began + minute * MINUTE for minute in (5, 10, 15)]
    signed = []
    try:
        with database.writing(engine) as connection:
            for cluster, base_url in (("w1", "https://w1.example"), ("w2", "http://127.0.0.1:8080")):
                values: dict[str, Any] = {
                    "cluster": cluster,
                    "base_url": base_url,
                    "path": "/status",
                    "timezone": "UTC",
                }
                values |= {"archive_days": 5, "lost_after_polls": 5, "lost_after_seconds": 172800, "version": "1"}
                connection.execute(sa.insert(SOURCES).values(values | {"recorded_at": began}))
        for at, n, i in sorted(events):
            if cuts and at > cuts[0]:
                del cuts[0]
                signed += seal(engine, key)
                if len(signed) == 2:
                    engine.dispose()  # nobody may be connected
                    copy()
            with database.writing(engine) as connection:
                if n < 0:
                    cluster, start, _ = gaps[i]
                    values = {"cluster": cluster, "began_at": began + start * MINUTE, "ended_at": at}
                    connection.execute(sa.insert(GAPS).values(values | {"cause": "unreachable", "detail": "timeout"}))
                    continue
                life = told[n]
                job, transition, due = life.steps[i]
                assert due is not None
                columns: dict[str, Any] = {"deadline_on": due.on, "deadline_at": due.at, **facts_values(job.facts)}
                columns["due_at"] = at if job.state is State.OPEN else None
                if i == 0:
                    columns |= {"cluster": life.cluster, "jid": life.jid, "registered_at": at, "registered_by": "alice"}
                    insert = sa.insert(JOBS).values(columns).returning(JOBS.c.id)
                    ids[n] = connection.execute(insert).scalar_one()
                    continue
                source_id = None if transition.actor else {"w1": 1, "w2": 2}[life.cluster]
                row = transition_values(ids[n], transition, source_id)
                connection.execute(sa.insert(TRANSITIONS).values(row))
                columns |= observed_values(job)
                connection.execute(sa.update(JOBS).where(JOBS.c.id == ids[n]).values(columns))
    finally:
        engine.dispose()
    assert len(signed) == 3
    return tuple(one.text for one in signed)


# The hand that falsifies


class Hand:
    """A superuser's, on a connection with the guards away; values are the models', so both databases take them."""

    def __init__(self, record: Record, connection: sa.Connection) -> None:
        self.record = record
        self.connection = connection

    def sql(self, *statements: str) -> None:
        for statement in statements:
            self.connection.exec_driver_sql(statement)

    def job(self, jid: str) -> int:
        return int(self.connection.execute(sa.select(JOBS.c.id).where(JOBS.c.jid == jid)).scalar_one())

    def transition(self, jid: str, seq: int) -> sa.ColumnElement[bool]:
        return sa.and_(TRANSITIONS.c.job_id == self.job(jid), TRANSITIONS.c.seq == seq)

    def edit(self, table: sa.Table, where: sa.ColumnElement[bool], **values: Any) -> None:
        row = self.connection.execute(sa.select(table).where(where)).one()
        new = {name: value(getattr(row, name)) if callable(value) else value for name, value in values.items()}
        assert any(getattr(row, name) != value for name, value in new.items()), "this changes nothing"
        assert self.connection.execute(sa.update(table).where(where).values(new)).rowcount == 1

    def insert(self, table: sa.Table, like: sa.ColumnElement[bool], **values: Any) -> None:
        """Insert a copy of a row with other values; with an id of its own choice if one is given."""
        row = dict(self.connection.execute(sa.select(table).where(like)).one()._mapping)
        row.pop("id", None)
        row |= values
        statement = sa.insert(table).values(row)
        if "id" in values and not self.record.is_sqlite:
            self.connection.exec_driver_sql(f"ALTER TABLE {table.name} ALTER COLUMN id SET GENERATED BY DEFAULT")
        self.connection.execute(statement)
        if "id" in values and not self.record.is_sqlite:
            self.connection.exec_driver_sql(f"ALTER TABLE {table.name} ALTER COLUMN id SET GENERATED ALWAYS")

    def move(self, table: sa.Table, where: sa.ColumnElement[bool], new: int) -> None:
        """Give a row another id."""
        if not self.record.is_sqlite:
            self.connection.exec_driver_sql(f"ALTER TABLE {table.name} ALTER COLUMN id SET GENERATED BY DEFAULT")
        assert self.connection.execute(sa.update(table).where(where).values(id=new)).rowcount == 1
        if not self.record.is_sqlite:
            self.connection.exec_driver_sql(f"ALTER TABLE {table.name} ALTER COLUMN id SET GENERATED ALWAYS")

    def delete(self, table: sa.Table, where: sa.ColumnElement[bool], rows: int = 1) -> None:
        assert self.connection.execute(sa.delete(table).where(where)).rowcount == rows

    def write(self, number: int, text: str) -> None:
        """Put a checkpoint in the place of another, with its columns and segments, as the sealer writes them."""
        signed = parse(text)
        one = signed.checkpoint
        values: dict[str, Any] = {
            "checkpoint": text,
            "checkpoint_sha256": signed.sha256,
            "previous_sha256": one.previous_sha256,
        }
        values |= {"key_id": one.key.id if one.key else None, "rows": one.rows, "sealed_at": one.sealed_at}
        self.connection.execute(sa.update(SEALS).where(SEALS.c.id == number).values(values))
        for segment in one.segments:
            where = sa.and_(SEGMENTS.c.seal_id == number, SEGMENTS.c.part == segment.part)
            columns = {"cluster": segment.cluster, "rows": segment.rows, "sha256": segment.sha256}
            self.connection.execute(sa.update(SEGMENTS).where(where).values(columns))

    def texts(self) -> list[str]:
        return list(self.connection.execute(sa.select(SEALS.c.checkpoint).order_by(SEALS.c.id)).scalars())

    def resign(self, first: int, key: SigningKey | None) -> None:
        """Sign the checkpoints from number *first* on with *key*, each following on the one before."""
        texts = self.texts()
        for number in range(first, len(texts) + 1):
            one = parse(texts[number - 1]).checkpoint
            previous = parse(texts[number - 2]).sha256 if number > 1 else None
            texts[number - 1] = sign(replace(one, previous_sha256=previous, key=None), key).text
            self.write(number, texts[number - 1])


Do: TypeAlias = Callable[[Hand], None]


def later(value: datetime) -> datetime:
    return value + SECOND


def earlier(value: datetime) -> datetime:
    return value - SECOND


def transition(jid: str, seq: int, /, **values: Any) -> Do:
    return lambda hand: hand.edit(TRANSITIONS, hand.transition(jid, seq), **values)


def row(table: sa.Table, row_id: int, /, **values: Any) -> Do:
    return lambda hand: hand.edit(table, table.c.id == row_id, **values)


def job(jid: str, /, **values: Any) -> Do:
    return lambda hand: hand.edit(JOBS, JOBS.c.jid == jid, **values)


def segment(seal_id: int, part: int, /, **values: Any) -> Do:
    where = sa.and_(SEGMENTS.c.seal_id == seal_id, SEGMENTS.c.part == part)
    return lambda hand: hand.edit(SEGMENTS, where, **values)


def sql(*statements: str) -> Do:
    return lambda hand: hand.sql(*statements)


def both(*todo: Do) -> Do:
    def do(hand: Hand) -> None:
        for one in todo:
            one(hand)

    return do


def text_of_2(old: str, new: str, *, rehash: bool = False) -> Do:
    """Change the text of checkpoint 2; with *rehash* also the hash beside it."""

    def do(hand: Hand) -> None:
        text = hand.texts()[1]
        assert old in text
        changed = text.replace(old, new, 1)
        values = {"checkpoint": changed}
        if rehash:
            values["checkpoint_sha256"] = sha256(changed.encode()).hexdigest()
        hand.edit(SEALS, SEALS.c.id == 2, **values)

    return do


def cut_tail(hand: Hand) -> None:
    """Take away the last seal and all after the one before, and bring the jobs back to what is left."""
    hand.sql("DELETE FROM segments WHERE seal_id = 3", "DELETE FROM seals WHERE id = 3")
    upto = parse(hand.texts()[1]).checkpoint
    hand.sql(f"DELETE FROM transitions WHERE id > {upto.transitions[1]}", f"DELETE FROM gaps WHERE id > {upto.gaps[1]}")
    hand.sql("DELETE FROM jobs WHERE jid = 'late'")
    rewind(hand)


def rewind(hand: Hand, *, counters: bool = True) -> None:
    """Make the jobs, and the counters of ids, what the rest of the history says."""
    for job_id in hand.connection.execute(sa.select(JOBS.c.id)).scalars().all():
        query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id == job_id).order_by(TRANSITIONS.c.seq)
        replayed = replay(map(transition_of, hand.connection.execute(query))).job
        values = {**observed_values(replayed), **facts_values(replayed.facts), "due_at": replayed.registered_at}
        values["seen_at"] = replayed.seen_at or replayed.status_by
        hand.connection.execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(values))
    for table in ("transitions", "gaps", "seals") if counters else ():
        newest = hand.connection.exec_driver_sql(f"SELECT max(id) FROM {table}").scalar_one()
        if hand.record.is_sqlite:
            hand.sql(f"UPDATE sqlite_sequence SET seq = {newest} WHERE name = '{table}'")
        else:
            hand.sql(f"ALTER TABLE {table} ALTER COLUMN id RESTART WITH {newest + 1}")  # rolls back, unlike setval()


def unmake(hand: Hand) -> None:
    """Take job a5 out, with its history, and seal all of it anew with the stolen key."""
    hand.delete(TRANSITIONS, TRANSITIONS.c.job_id == hand.job("a5"), 2)
    hand.sql("DELETE FROM jobs WHERE jid = 'a5'")
    reseal(hand, hand.record.key)


def sealed_again(hand: Hand, one: Checkpoint) -> Checkpoint:
    """Return the checkpoint as the sealer would make it of the rows that are there now."""
    segments = []
    for part in one.segments:
        text = "".join(
            line
            for kind, ids in (("source", part.sources), ("gap", part.gaps), ("transition", part.transitions))
            if ids
            for _, cluster, line in lines.stream(hand.connection, kind, ids[0] - 1, ids[1])
            if cluster == part.cluster
        )
        segments.append(replace(part, rows=text.count("\n"), sha256=sha256(text.encode()).hexdigest()))
    return replace(one, segments=tuple(segments), rows=sum(part.rows for part in segments))


def reseal(hand: Hand, key: SigningKey | None) -> None:
    """Seal everything anew in the same places: only what is outside can tell."""
    previous = None
    for number, text in enumerate(hand.texts(), 1):
        made = replace(sealed_again(hand, parse(text).checkpoint), previous_sha256=previous, key=None)
        signed = sign(made, key)
        hand.write(number, signed.text)
        previous = signed.sha256


def consistent(hand: Hand) -> None:
    """Let a1 have been done earlier: its last transition, its row, and the hash in segments."""
    transition("a1", 3, observed_at=earlier)(hand)
    job("a1", status_by=earlier, ended_by=earlier)(hand)
    part = sealed_again(hand, parse(hand.texts()[2]).checkpoint).segments[0]
    segment(3, 1, sha256=part.sha256)(hand)


def damage(hand: Hand) -> None:
    """Change one digit of a segment's hash in the text of checkpoint 2."""
    text = hand.texts()[1]
    digest = parse(text).checkpoint.segments[0].sha256
    other = digest.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    hand.edit(SEALS, SEALS.c.id == 2, checkpoint=text.replace(digest, other))


def sign_one(hand: Hand) -> None:
    """Sign checkpoint 2 alone with another key."""
    one = parse(hand.texts()[1]).checkpoint
    hand.write(2, sign(replace(one, key=None), hand.record.other_key).text)


def damage_signature(hand: Hand) -> None:
    """Change the signature of the last checkpoint, and the hash beside it to fit."""
    body, word, signature = hand.texts()[2].rpartition("\nsignature ")
    hand.write(3, f"{body}{word}{'B' if signature[0] == 'A' else 'A'}{signature[1:]}")


def announce(hand: Hand) -> None:
    """Let checkpoint 2 name another key with the stolen one, and sign the next with that."""
    texts = hand.texts()
    two = replace(parse(texts[1]).checkpoint, key=None, next_key=hand.record.other_key.public)
    hand.write(2, sign(two, hand.record.key).text)
    hand.resign(3, hand.record.other_key)


def leave_counters(hand: Hand) -> None:
    """Delete what was not sealed yet, bring the jobs back to what is left, and forget the counters of ids."""
    upto = parse(hand.texts()[2]).checkpoint
    hand.sql(f"DELETE FROM transitions WHERE id > {upto.transitions[1]}", f"DELETE FROM gaps WHERE id > {upto.gaps[1]}")
    hand.sql("DELETE FROM jobs WHERE jid = 'late'")
    rewind(hand, counters=False)


def rubbish(hand: Hand) -> None:
    """Put a row after the last seal that has no checkpoint in it, and follows on nothing."""
    values = {"checkpoint": "garbage", "checkpoint_sha256": "y", "previous_sha256": "x", "key_id": None}
    hand.insert(SEALS, SEALS.c.id == 3, **values)


def switch_off(hand: Hand) -> None:
    """Let a guard stand, and refuse nothing."""
    guards.create(hand.connection)
    if hand.record.is_sqlite:
        hand.sql("DROP TRIGGER guard_gaps_delete")
        hand.sql("CREATE TRIGGER guard_gaps_delete BEFORE DELETE ON gaps WHEN 0 BEGIN SELECT RAISE(ABORT, 'no'); END")
    else:
        hand.sql("ALTER TABLE gaps DISABLE TRIGGER guard_gaps_change")


def drop_guard(hand: Hand) -> None:
    guards.create(hand.connection)
    sqlite, postgresql = "guard_transitions_delete", "guard_transitions_change ON transitions"
    hand.sql(f"DROP TRIGGER {sqlite if hand.record.is_sqlite else postgresql}")


def extra_trigger(hand: Hand) -> None:
    """Let the database do something of somebody else's with each new gap."""
    if hand.record.is_sqlite:
        hand.sql("CREATE TRIGGER eve AFTER INSERT ON gaps BEGIN SELECT 1; END")
    else:
        hand.sql("CREATE FUNCTION eve() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        hand.sql("CREATE TRIGGER eve AFTER INSERT ON gaps FOR EACH ROW EXECUTE FUNCTION eve()")


def other_view(hand: Hand) -> None:
    """Let report_gaps leave a cause out."""
    hand.sql("DROP VIEW report_gaps")
    shown = views.sql("report_gaps", hand.connection.dialect.name)
    made = f"CREATE VIEW report_gaps AS SELECT * FROM ({shown}) g WHERE cause <> 'unreachable'"
    database.execute(hand.connection, made)


def set_back(hand: Hand) -> None:
    if hand.record.is_sqlite:
        hand.sql("UPDATE sqlite_sequence SET seq = 1 WHERE name = 'gaps'")
    else:
        hand.sql("ALTER TABLE gaps ALTER COLUMN id RESTART WITH 2")


def swap(table: sa.Table, one: Callable[[Hand], int], two: Callable[[Hand], int]) -> Do:
    """Exchange the ids of two rows."""

    def do(hand: Hand) -> None:
        first, second = one(hand), two(hand)
        for old, new in ((first, -1), (second, first), (-1, second)):
            hand.move(table, table.c.id == old, new)

    return do


def id_of(jid: str, seq: int) -> Callable[[Hand], int]:
    return lambda hand: int(
        hand.connection.execute(sa.select(TRANSITIONS.c.id).where(hand.transition(jid, seq))).scalar_one()
    )


def moved(table: sa.Table, old: int, new: int) -> Do:
    return lambda hand: hand.move(table, table.c.id == old, new)


def working_tables(hand: Hand) -> None:
    """Change what the daemons keep for themselves."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    worker = {"worker": "eve", "host": "eve", "pid": 1, "version": "1", "started_at": at, "beat_at": at}
    hand.connection.execute(sa.insert(TABLES["clusters"]).values(cluster="w1", answered_at=at))
    hand.connection.execute(sa.insert(TABLES["workers"]).values(worker))
    hand.connection.execute(sa.insert(TABLES["deliveries"]).values(destination="eve", last_number=9))


def retold(table: str, constraint: str, sqlite: tuple[str, str], postgresql: str) -> Do:
    """Alter a constraint: in the schema's text on SQLite, from and to; by ALTER TABLE on PostgreSQL."""

    def do(hand: Hand) -> None:
        if not hand.record.is_sqlite:
            hand.sql(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}{postgresql}")
            return
        hand.sql("PRAGMA writable_schema = ON")
        where = f"WHERE name = '{table}'"
        text = hand.connection.exec_driver_sql(f"SELECT sql FROM sqlite_master {where}").scalar_one()
        assert sqlite[0] in text
        hand.connection.exec_driver_sql(f"UPDATE sqlite_master SET sql = ? {where}", (text.replace(*sqlite),))
        hand.sql("PRAGMA writable_schema = OFF")

    return do


def stand_in(hand: Hand) -> None:
    """Change a row, and let a function tell verify the old one: it fits the types better than PostgreSQL's own."""
    row_id = id_of("a2", 3)(hand)
    (_, _, old), *_ = lines.stream(hand.connection, "transition", row_id - 1, row_id)
    count = len(lines.COLUMNS["transition"]) + 3
    given = ", ".join(f"${n}" for n in range(1, count + 1))
    text = old[:-1].replace("\\", "\\\\").replace("'", "''")
    body = f"SELECT CASE WHEN $6 = '{row_id}' THEN E'{text}' ELSE pg_catalog.concat_ws({given}) END"
    types = ", ".join(["text"] * count)
    database.execute(
        hand.connection, f"CREATE FUNCTION concat_ws({types}) RETURNS text LANGUAGE sql AS $stand${body}$stand$"
    )
    transition("a2", 3, actor="eve")(hand)


def swap_jids(one: str, two: str) -> Do:
    return lambda hand: hand.sql(
        f"UPDATE jobs SET jid = 'x' WHERE jid = '{one}'",
        f"UPDATE jobs SET jid = '{one}' WHERE jid = '{two}'",
        f"UPDATE jobs SET jid = '{two}' WHERE jid = 'x'",
    )


def fake_done(minute: float) -> Do:
    """Add a transition to done for a5, as if it had been seen at that minute, and change the job to fit."""

    def do(hand: Hand) -> None:
        last = hand.connection.execute(sa.select(TRANSITIONS).where(hand.transition("a5", 1))).one()
        at = last.observed_at + minute * MINUTE
        values = {
            "seq": 2,
            "from_status": "waiting",
            "to_status": "done",
            "to_state": "done",
            "last_seen_at": at - SECOND,
        }
        hand.insert(TRANSITIONS, hand.transition("a5", 1), **values, observed_at=at, polls=2)
        done = {"state": "done", "status": "done", "status_after": at - SECOND, "status_by": at, "due_at": None}
        hand.edit(JOBS, JOBS.c.jid == "a5", **done, ended_after=at - SECOND, ended_by=at, seq=2, polls=2, seen_at=at)

    return do


@dataclass(frozen=True)
class Case:
    """One way to falsify.

    Attributes:
        name: What is done, in words.
        do: Does it.
        found: Where `audit verify --public-key` finds it, as `place` has it.
        outside: Where it does with the checkpoints that were kept outside; None: nowhere else.
        with_guards: It is about the guards, and leaves them as they are.
        is_old: It is a copy from after the second seal.
        only: The database on which alone it is so.
    """

    name: str
    do: Do
    found: tuple[str, ...]
    outside: tuple[str, ...] | None = None
    with_guards: bool = False
    is_old: bool = False
    only: str | None = None


def place(finding: Finding) -> str:
    """Return where something was found, in short."""
    where: list[str] = [finding.what.value]
    if finding.checkpoint is not None and finding.what.value != "history":
        where.append(f"{finding.checkpoint}/{finding.segment}" if finding.segment else str(finding.checkpoint))
    if finding.jid is not None:
        where.append(finding.jid if finding.seq is None else f"{finding.jid}/{finding.seq}")
    elif finding.cluster is not None:
        where.append(finding.cluster)
    elif finding.table is not None and len(where) == 1:
        where.append(finding.table)
    return " ".join(where)


A1_2 = ("history a1/2",)
A1_3 = ("history a1/3",)
S2W1 = ("rows 2/1 w1",)
OF_A1 = ("job a1",)
SEAL_2 = ("checkpoint 2",)
COUNTERS = ("sequence gaps", "sequence transitions")


def nothing(hand: Hand) -> None:
    """Leave it as it is."""


CASES = [
    # transitions, column by column
    Case("transitions.action", transition("a1", 2, action="amended"), A1_2),
    Case("transitions.from_status", transition("a1", 2, from_status="created"), A1_2),
    Case("transitions.to_status", transition("a1", 2, to_status="started"), A1_2),
    Case("transitions.from_state", transition("a1", 2, from_state="failed"), A1_2),
    Case("transitions.to_state", transition("a1", 2, to_state="failed"), A1_2),
    Case("transitions.last_seen_at", transition("a1", 3, last_seen_at=later), A1_3),
    Case("transitions.last_seen_at (not of the last)", transition("a1", 2, last_seen_at=later), S2W1),
    Case("transitions.observed_at", transition("a1", 3, observed_at=later), A1_3),
    Case(
        "transitions.observed_at (before the sight before it)",
        transition("a1", 2, observed_at=lambda at: at - MINUTE * 8),
        A1_2,
    ),
    Case("transitions.server_date", transition("a1", 2, server_date=later), S2W1),
    Case("transitions.server_date (of what was attested)", transition("b2", 2, server_date=None), ("history b2/2",)),
    Case("transitions.source_id", transition("a1", 2, source_id=2), S2W1),
    Case("transitions.source_id (one that is not there)", transition("a1", 2, source_id=9), ("source 2/1 w1",)),
    Case("transitions.polls", transition("a1", 2, polls=9), A1_2),
    Case("transitions.actor", transition("a2", 3, actor="eve"), ("rows 3/1 w1",)),
    Case("transitions.actor (of a registration)", transition("a1", 0, actor="eve"), ("history a1/0",)),
    Case("transitions.anomaly", transition("a2", 2, anomaly=None), S2W1),
    Case(
        "transitions.reason (bytes that are no UTF-8)",
        sql("UPDATE transitions SET reason = CAST(x'41ff' AS TEXT) WHERE reason IS NOT NULL AND action = 'withdrawn'"),
        ("rows 3/1 w1",),
        only="sqlite",
    ),
    Case("transitions.reason", transition("a2", 3, reason="as it should be"), ("rows 3/1 w1",)),
    Case("transitions.kind", transition("a1", 0, kind="removal"), ("history a1/0",)),
    Case("transitions.reference", transition("a1", 0, reference="R-9"), ("history a1/0",)),
    Case("transitions.received_at", transition("a3", 1, received_at=later), ("history a3/1",)),
    Case("transitions.submitted_at", transition("a1", 0, submitted_at=None), ("history a1/0",)),
    Case("transitions.extended_on", transition("a1", 0, extended_on=date(2031, 1, 1)), ("history a1/0",)),
    Case("transitions.seq", transition("a1", 2, seq=9), A1_2),
    Case(
        "transitions.job_id (another job's now)",
        lambda hand: hand.edit(TRANSITIONS, hand.transition("a1", 2), job_id=hand.job("a5")),
        ("history a1/2", "history a5/2"),
    ),
    Case("transitions.id", lambda hand: hand.move(TRANSITIONS, hand.transition("a1", 2), 1000), S2W1),
    Case(
        "transitions.id (one that no database gives)",
        lambda hand: hand.move(TRANSITIONS, hand.transition("a1", 2), 0),
        ("rows 1 a1",),
    ),
    # gaps and sources, column by column
    Case("gaps.cluster", row(GAPS, 2, cluster="w2"), ("rows 2 w2",)),
    Case("gaps.began_at", row(GAPS, 2, began_at=later), S2W1),
    Case("gaps.ended_at", row(GAPS, 2, ended_at=later), S2W1),
    Case("gaps.cause", row(GAPS, 2, cause="not_running"), S2W1),
    Case("gaps.detail", row(GAPS, 2, detail=None), S2W1),
    Case("gaps.id", lambda hand: hand.move(GAPS, GAPS.c.id == 2, 1000), S2W1),
    Case("gaps.id (one that no database gives)", moved(GAPS, 2, -1), ("rows 1 w1",)),
    Case("sources.cluster", row(SOURCES, 1, cluster="w2"), ("rows 1 w2",)),
    Case("sources.base_url", row(SOURCES, 2, base_url="https://w2.example"), ("rows 1/2 w2",)),
    Case("sources.path", row(SOURCES, 1, path="/other"), ("rows 1/1 w1",)),
    Case("sources.timezone", row(SOURCES, 1, timezone="Asia/Tokyo"), ("rows 1/1 w1",)),
    Case("sources.archive_days", row(SOURCES, 1, archive_days=9), ("rows 1/1 w1",)),
    Case("sources.lost_after_polls", row(SOURCES, 1, lost_after_polls=9), ("rows 1/1 w1",)),
    Case("sources.lost_after_seconds", row(SOURCES, 1, lost_after_seconds=9), ("rows 1/1 w1",)),
    Case("sources.version", row(SOURCES, 1, version="2"), ("rows 1/1 w1",)),
    Case("sources.recorded_at", row(SOURCES, 1, recorded_at=later), ("rows 1/1 w1",)),
    Case("sources.id", lambda hand: hand.move(SOURCES, SOURCES.c.id == 1, 1000), ("source 1/1 w1",)),
    Case("sources.id (one that no database gives)", moved(SOURCES, 1, 0), ("rows 1 w1",)),
    # seals and segments, column by column
    *(
        Case(f"seals.{name}", row(SEALS, 2, **{name: value}), SEAL_2)
        for name, value in {
            **dict.fromkeys(("last_transition_id", "last_gap_id", "last_source_id", "rows"), lambda old: old + 1),
            **dict.fromkeys(("previous_sha256", "checkpoint_sha256"), "0" * 64),
            "sealed_at": earlier,
            "key_id": None,
        }.items()
    ),
    Case("seals.checkpoint (a digit of a segment's hash)", damage, SEAL_2),
    Case("seals.checkpoint (no checkpoint any more)", row(SEALS, 2, checkpoint="nothing"), SEAL_2),
    Case("seals.checkpoint (another number)", text_of_2("\nnumber 2\n", "\nnumber 7\n"), SEAL_2),
    Case("seals.checkpoint (and the hash beside it)", text_of_2("\nnumber 2\n", "\nnumber 7\n", rehash=True), SEAL_2),
    Case("seals.id (out of order)", lambda hand: hand.move(SEALS, SEALS.c.id == 2, 9), ("chain 2",)),
    Case("seals.id (before the first)", lambda hand: hand.move(SEALS, SEALS.c.id == 3, 0), ("chain 3",)),
    Case("segments.part", segment(2, 2, part=7), ("segments 2",)),
    Case("segments.cluster", segment(2, 2, cluster="w9"), ("segments 2",)),
    Case("segments.rows", segment(2, 2, rows=9), ("segments 2",)),
    Case("segments.sha256", segment(2, 2, sha256="0" * 64), ("segments 2",)),
    Case(
        "segments.seal_id",
        lambda hand: hand.sql("UPDATE segments SET seal_id = 3, part = 9 WHERE seal_id = 2 AND part = 2"),
        ("segments 2", "segments 3"),
    ),
    Case("segments.seal_id (one that is not there)", segment(2, 2, seal_id=9), ("segments 2",)),
    # jobs: declared and observed columns
    Case("jobs.cluster", job("a1", cluster="w3"), ("rows 1 a1",)),
    Case("jobs.jid", job("a1", jid="a9"), ("rows 1/1 w1",)),
    Case("jobs.kind", job("a1", kind="removal"), OF_A1),
    Case("jobs.reference", job("a1", reference=None), OF_A1),
    Case("jobs.received_at", job("a1", received_at=later), OF_A1),
    Case("jobs.submitted_at", job("a1", submitted_at=later), OF_A1),
    Case("jobs.extended_on", job("a1", extended_on=date(2031, 1, 1)), OF_A1),
    Case("jobs.registered_at", job("a1", registered_at=earlier), OF_A1),
    Case("jobs.registered_by", job("a1", registered_by="eve"), OF_A1),
    Case("jobs.deadline_on", job("a1", deadline_on=lambda on: on + timedelta(days=1)), OF_A1),
    Case("jobs.deadline_at", job("a1", deadline_at=later), OF_A1),
    Case("jobs.state", job("a1", state="attested"), OF_A1),
    Case("jobs.status", job("a1", status="error"), OF_A1),
    Case("jobs.status_after", job("a1", status_after=None), OF_A1),
    Case("jobs.status_by", job("a1", status_by=later), OF_A1),
    Case("jobs.ended_after", job("a1", ended_after=earlier), OF_A1),
    Case("jobs.ended_by", job("a1", ended_by=earlier), OF_A1),
    Case("jobs.seq", job("a1", seq=4), OF_A1),
    Case("jobs.polls (fewer than are on record)", job("a1", polls=1), OF_A1),
    Case("jobs.polls (more)", job("a1", polls=99), ()),
    Case("jobs.seen_at (before what is on record)", job("a1", seen_at=lambda at: at - 30 * MINUTE), OF_A1),
    Case("jobs.seen_at (later)", job("b2", seen_at=lambda at: at + MINUTE), ()),
    Case("jobs.status_polls", job("b2", status_polls=9), ()),
    Case("jobs.due_at (of an open job: none)", job("a5", due_at=None), ("job a5",)),
    Case("jobs.due_at", job("a5", due_at=later), ()),
    Case("jobs.failures", job("a5", failures=9), ()),
    Case("jobs.last_error", job("a5", last_error="x"), ()),
    Case("jobs.leased_by", job("a5", leased_by="eve"), ()),
    Case("jobs.leased_until", job("a5", leased_until=lambda at: datetime(2031, 1, 1, tzinfo=UTC)), ()),
    Case("all of `clusters`, `workers` and `deliveries`", working_tables, ()),
    # rows that go, come and change places
    Case(
        "delete a job's registration",
        lambda hand: hand.delete(TRANSITIONS, hand.transition("a1", 0)),
        ("history a1/0",),
    ),
    Case(
        "delete a job's transition in the middle",
        lambda hand: hand.delete(TRANSITIONS, hand.transition("a1", 1)),
        ("history a1/1",),
    ),
    Case("delete a job's last transition", lambda hand: hand.delete(TRANSITIONS, hand.transition("a1", 3)), A1_3),
    Case(
        "delete the first row of all", lambda hand: hand.delete(TRANSITIONS, TRANSITIONS.c.id == 1), ("history a1/0",)
    ),
    Case(
        "delete the last sealed row", lambda hand: hand.delete(TRANSITIONS, hand.transition("b2", 3)), ("history b2/3",)
    ),
    Case(
        "delete the last row, not sealed yet",
        lambda hand: hand.delete(TRANSITIONS, hand.transition("b1", 3)),
        ("job b1",),
    ),
    Case("delete a job, its history stays", sql("DELETE FROM jobs WHERE jid = 'a5'"), ("history jobs",)),
    Case(
        "delete a job's history, the job stays",
        lambda hand: hand.delete(TRANSITIONS, TRANSITIONS.c.job_id == hand.job("a5"), 2),
        ("history a5/0",),
    ),
    Case(
        "delete a job with its history",
        both(
            lambda hand: hand.delete(TRANSITIONS, TRANSITIONS.c.job_id == hand.job("a5"), 2),
            sql("DELETE FROM jobs WHERE jid = 'a5'"),
        ),
        ("rows 1/1 w1",),
    ),
    Case("delete a gap", sql("DELETE FROM gaps WHERE id = 2"), S2W1),
    Case("delete a source", sql("DELETE FROM sources WHERE id = 1"), ("source 1/1 w1",)),
    Case(
        "delete the first seal",
        sql("DELETE FROM segments WHERE seal_id = 1", "DELETE FROM seals WHERE id = 1"),
        ("chain 1",),
    ),
    Case(
        "delete a seal in the middle",
        sql("DELETE FROM segments WHERE seal_id = 2", "DELETE FROM seals WHERE id = 2"),
        ("chain 2",),
    ),
    Case(
        "delete a seal, its segments stay",
        sql("DELETE FROM seals WHERE id = 3"),
        ("chain segments",),
        ("chain segments", "trusted 3"),
    ),
    Case("delete a row of segments", sql("DELETE FROM segments WHERE seal_id = 2 AND part = 1"), ("segments 2",)),
    Case(
        "add a row to segments",
        lambda hand: hand.insert(SEGMENTS, sa.and_(SEGMENTS.c.seal_id == 2, SEGMENTS.c.part == 1), part=3),
        ("segments 2",),
    ),
    Case("add a row to `seals` that is no checkpoint", rubbish, ("checkpoint 4",)),
    Case("swap two transitions of a job", swap(TRANSITIONS, id_of("a1", 0), id_of("a1", 1)), ("rows 1/1 w1",)),
    Case("swap two transitions of two jobs", swap(TRANSITIONS, id_of("a1", 2), id_of("a2", 2)), S2W1),
    Case("swap two gaps", swap(GAPS, lambda hand: 2, lambda hand: 4), ("rows 2/1 w1", "rows 3/1 w1")),
    Case("swap the jids of two jobs", swap_jids("a1", "a2"), ("rows 1/1 w1",)),
    Case("swap the jids of two clusters' jobs", swap_jids("a1", "b1"), ("rows 1/1 w1", "rows 1/2 a1")),
    Case(
        "double a transition", lambda hand: hand.insert(TRANSITIONS, hand.transition("a1", 3), seq=4), ("history a1/4",)
    ),
    Case("double a gap, in its seal", lambda hand: hand.insert(GAPS, GAPS.c.id == 2, id=0), ("rows 1 w1",)),
    Case(
        "add a row below all ids",
        lambda hand: hand.insert(TRANSITIONS, hand.transition("a5", 1), id=-5, seq=2),
        ("history a5/2",),
    ),
    Case("add a gap after the last seal", lambda hand: hand.insert(GAPS, GAPS.c.id == 2), ()),
    Case("add an observation after the last seal, as of now", fake_done(20), ()),
    Case("add an observation after the last seal, backdated", fake_done(-60), ("backdated a5/2",)),
    # what goes together
    Case(
        "edit a job and its last transition to fit",
        both(transition("a1", 3, observed_at=earlier), job("a1", status_by=earlier, ended_by=earlier)),
        ("rows 3/1 w1",),
    ),
    Case("edit a job and its last transition to fit, and the hash in `segments`", consistent, ("rows 3/1 w1",)),
    Case(
        "edit both, and seal all anew without a key",
        both(consistent, lambda hand: reseal(hand, None)),
        ("key",),
        ("key", "trusted 1"),
    ),
    Case(
        "edit both, and seal all anew with another key",
        both(consistent, lambda hand: reseal(hand, hand.record.other_key)),
        ("key",),
        ("key", "trusted 1"),
    ),
    Case(
        "edit both, and seal all anew with the stolen key",
        both(consistent, lambda hand: reseal(hand, hand.record.key)),
        (),
        ("trusted 3",),
    ),
    Case("take a job out with its history, and seal all anew with the stolen key", unmake, (), ("trusted 1",)),
    Case("cut off the tail", cut_tail, (), ("trusted 3",)),
    Case("restore an old copy of the database", nothing, (), ("trusted 3",), is_old=True),
    Case("delete what is not sealed yet, but forget the counters of ids", leave_counters, COUNTERS, only="sqlite"),
    Case("delete what is not sealed yet", both(leave_counters, rewind), ()),
    # signatures and keys
    Case("sign one checkpoint with another key", sign_one, SEAL_2),
    Case(
        "sign the last one with another key",
        lambda hand: hand.resign(3, hand.record.other_key),
        ("key 3",),
        ("key 3", "trusted 3"),
    ),
    Case(
        "sign those from the second on with another key",
        lambda hand: hand.resign(2, hand.record.other_key),
        ("key 2",),
        ("key 2", "trusted 2"),
    ),
    Case(
        "sign all with another key",
        lambda hand: hand.resign(1, hand.record.other_key),
        ("key",),
        ("key", "trusted 1"),
    ),
    Case("name another key with the stolen one, and go on with it", announce, (), ("trusted 2",)),
    Case(
        "take the last signature away",
        lambda hand: hand.resign(3, None),
        ("signature 3",),
        ("signature 3", "trusted 3"),
    ),
    Case("take all signatures away", lambda hand: hand.resign(1, None), ("key",), ("key", "trusted 1")),
    Case("damage the last signature", damage_signature, ("signature 3",), ("signature 3", "trusted 3")),
    # guards, views and counters
    Case("drop a guard", drop_guard, ("guard",), with_guards=True),
    Case("let a guard refuse nothing", switch_off, ("guard",), with_guards=True),
    Case("drop the guards, change a row, put them back", transition("a2", 3, actor="eve"), ("rows 3/1 w1",)),
    Case("add a trigger", extra_trigger, ("guard",)),
    Case(
        "let a CHECK refuse nothing",
        retold("jobs", "ck_jobs_polls", ("polls >= 0", "1"), ", ADD CONSTRAINT ck_jobs_polls CHECK (true)"),
        ("guard",),
    ),
    Case(
        "drop a unique key",
        retold("transitions", "uq_transitions_job_id_seq", ("UNIQUE (job_id, seq)", "CHECK (1)"), ""),
        ("guard",),
    ),
    Case("change a row, and let a function tell the old one", stand_in, ("guard", "rows 3/1 w1"), only="postgresql"),
    Case("let a view show something else", other_view, ("view",)),
    Case("set a counter of ids back", set_back, ("sequence gaps",)),
]


TOLD = {
    "history": "the transition",
    "rows": "the segment, or the row in none",
    "job": "the row of `jobs`",
    "source": "the source",
    "checkpoint": "the checkpoint",
    "chain": "where the chain breaks",
    "segments": "the checkpoint whose `segments` differ",
    "signature": "the signature",
    "key": "the key",
    "guard": "the guard",
    "view": "the view",
    "sequence": "the counter",
    "backdated": "the transition and the checkpoint before it",
    "trusted": "the trusted checkpoint that is not there",
}


def table() -> str:
    """Return the table in README.md: what is found, by what was done."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for case in CASES:
        places = [case.found, case.found if case.outside is None else case.outside]
        # More in one kind is the same kind: two jobs, two segments.
        cells = [
            " · ".join(dict.fromkeys(TOLD[place.split()[0]] for place in found)) or "**nothing**" for found in places
        ]
        if case.outside is None and case.found:
            cells[1] = "the same"
        name = case.name + {"sqlite": " (SQLite)", "postgresql": " (PostgreSQL)", None: ""}[case.only]
        grouped.setdefault((cells[0], cells[1]), []).append(name)
    lines = ["| found | with `--trusted` | what was done |", "|---|---|---|"]
    lines += (f"| {alone} | {outside} | {_listed(names)} |" for (alone, outside), names in grouped.items())
    return "\n".join(lines)


def _listed(names: list[str]) -> str:
    """Return *names* with those of columns together, by table."""
    columns: dict[str, list[str]] = {}
    others = []
    for name in names:
        if found := re.fullmatch(r"(transitions|gaps|sources|seals|segments|jobs)\.(.*)", name):
            columns.setdefault(found[1], []).append(found[2])
        else:
            others.append(name)
    edited = [f"edit `{of}`: {', '.join(names)}" for of, names in columns.items()]
    return "; ".join([*edited, *others])


def test_the_table_in_the_readme_is_what_these_tests_show() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert table() in readme, "put what `python -m tests.test_tamper` prints into README.md"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[SigningKey, SigningKey]:
    folder = tmp_path_factory.mktemp("keys")
    made = []
    for name in ("ours", "other"):
        checkpoint.keygen(folder / name)
        made.append(SigningKey.load(folder / name))
    return made[0], made[1]


@dataclass(frozen=True)
class Template:
    """A record that cases are copies of: a SQLite file or a PostgreSQL database, and one as it was after two seals."""

    new: str
    old: str
    trusted: tuple[str, ...]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def records(
    request: pytest.FixtureRequest, keys: tuple[SigningKey, SigningKey], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Record, Record]]:
    """The record, and a copy from after its second seal, on each of the two databases."""
    if request.param == "sqlite":
        folder = tmp_path_factory.mktemp("record")
        shutil.copy(request.getfixturevalue("sqlite_template"), folder / "new.db")
        urls = [f"sqlite:///{folder / name}" for name in ("new.db", "old.db")]
        trusted = build(urls[0], keys[0], lambda: shutil.copy(folder / "new.db", folder / "old.db"))
    else:
        make: Callable[..., str] = request.getfixturevalue("make_postgres")
        urls = [make(request.getfixturevalue("postgres_template"))]
        trusted = build(urls[0], keys[0], lambda: urls.append(make(sa.make_url(urls[0]).database)))
    new, old = (database.open_database(url) for url in urls)
    yield Record(new, *keys, trusted), Record(old, *keys, trusted)
    for engine in (new, old):
        engine.dispose()


@contextmanager
def falsified(record: Record, case: Case) -> Iterator[sa.Connection]:
    """Yield a connection on which the guards went away, it was done, and the guards came back; roll back afterwards."""
    with record.engine.connect() as connection:
        if record.is_sqlite:
            connection.exec_driver_sql("COMMIT")  # foreign keys are switched outside of a transaction
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        guards.drop(connection)
        case.do(Hand(record, connection))
        if not case.with_guards:
            guards.create(connection)
        yield connection
        connection.rollback()


def checked(record: Record, connection: sa.Connection, *, outside: bool) -> tuple[str, ...]:
    """Return the places of the findings."""
    trusted = [parse(text) for text in record.trusted] if outside else []
    report = verify(connection, public_key=record.key.public, trusted=trusted, zone=ZONE)
    assert report.more == 0
    assert report.is_good is not bool(report.findings)
    return tuple(sorted(map(place, report.findings)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_falsified_is_found_once_and_where_it_was(case: Case, records: tuple[Record, Record]) -> None:
    record = records[case.is_old]
    if case.only not in (None, record.engine.dialect.name):
        pytest.skip(f"so on {case.only} alone")
    with falsified(record, case) as connection:
        if case.outside is None:  # what is found with more to compare, and not by it, is found without
            assert checked(record, connection, outside=True) == case.found
        else:
            assert checked(record, connection, outside=False) == case.found
            assert checked(record, connection, outside=True) == case.outside


@pytest.mark.parametrize("outside", [False, True])
def test_in_an_honest_record_nothing_is_found(records: tuple[Record, Record], outside: bool) -> None:
    with database.reading(records[0].engine) as connection:
        assert checked(records[0], connection, outside=outside) == ()


# Values that no honest program stores

STRANGE = {  # SQL of what a column cannot hold, by the type of the column on PostgreSQL
    "instant": ["'infinity'", "'-infinity'", "'20000-01-01 00:00:00+00'", "'0044-03-15 00:00:00+00 BC'"],
    "date": ["'infinity'", "'-infinity'", "'20000-01-01'", "'0044-03-15 BC'"],
    "sqlite": ["x'6131'", "x''", "CAST(x'41ff' AS TEXT)", "'a' || char(0)", "CAST({column} AS BLOB)"],
}
OTHER = {  # and of what it should not
    "instant": ["NULL"],
    "date": ["NULL"],
    "integer": ["-1", "2147483647", "NULL"],
    "text": ["''", "NULL"],
    "sqlite": [
        *("'zz'", "''", "-1", "0", "1", "1.5", "4611686018427387904", "-4611686018427387904", "9e999", "NULL"),
        *("'2026-01-05T10:00:00.000000'", "'0000-00-00 00:00:00.000000'", "'9999-12-31 23:59:59.999999'"),
        *("replace({column}, ' ', 'T')", "{column} || ' '"),
    ],
}
SILENT = {
    **{key: {"0", "1", "2147483647", "4611686018427387904"} for key in ("jobs.status_polls", "jobs.failures")},
    "jobs.polls": {"2147483647", "4611686018427387904"},
    "jobs.seen_at": {"'9999-12-31 23:59:59.999999'"},
    **{key: {"'9999-12-31 23:59:59.999999'", "NULL"} for key in ("jobs.due_at", "jobs.leased_until")},
    **{
        key: {*OTHER["sqlite"], *OTHER["text"], "CAST(x'41ff' AS TEXT)"}
        for key in ("jobs.last_error", "jobs.leased_by")
    },
}
"""Where nothing on record tells a value of the right type: SQLite makes numbers in a column of text into text."""
TWO = {"jobs.id", "transitions.job_id", "seals.id"}
"""What breaks two things: a job without a history and a history without a job, a checkpoint in another's place."""


def targets(hand: Hand) -> Iterator[tuple[str, str, bool]]:
    """Yield the rows to change: table, condition, and whether all of the row is sealed or told by what is."""
    for jid in ("a1", "a5"):
        yield "jobs", f"id = {hand.job(jid)}", True
    for jid, seq in (("a1", 2), ("late", 1)):
        yield "transitions", f"job_id = {hand.job(jid)} AND seq = {seq}", jid != "late"
    for table, row_id in (("sources", 1), ("gaps", 2), ("gaps", 5), ("seals", 2), ("seals", 3)):
        yield table, f"id = {row_id}", (table, row_id) != ("gaps", 5)
    yield "segments", "seal_id = 2 AND part = 2", True


def loosen(hand: Hand) -> None:
    """Let every column hold what it should not, NULL too."""
    if hand.record.is_sqlite:
        hand.sql(
            "PRAGMA ignore_check_constraints = ON",
            "PRAGMA writable_schema = ON",
            "UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE type = 'table'",
            "PRAGMA writable_schema = RESET",
        )
        return
    for table in (*guards.APPEND_ONLY, "jobs"):
        inspector = sa.inspect(hand.connection)
        for check in inspector.get_check_constraints(table):
            hand.sql(f"ALTER TABLE {table} DROP CONSTRAINT {check['name']}")
        for column in TABLES[table].columns:
            if not column.primary_key:
                hand.sql(f"ALTER TABLE {table} ALTER COLUMN {column.name} DROP NOT NULL")
            if column.identity:
                hand.sql(f"ALTER TABLE {table} ALTER COLUMN {column.name} SET GENERATED BY DEFAULT")


def type_of(column: sa.Column[Any], dialect: str) -> str:
    if dialect == "sqlite":
        return "sqlite"
    types = {datetime: "instant", date: "date", int: "integer"}
    return types.get(column.type.python_type, "text")


def test_a_value_of_another_type_or_range_is_one_finding(records: tuple[Record, Record]) -> None:
    """Whatever stands in whichever column, past the CHECKs: a finding, never an error, and no other for it."""
    record = records[0]
    with falsified(record, Case("", loosen, (), with_guards=True)) as connection:
        try:
            for table, where, is_told in targets(Hand(record, connection)):
                for column in TABLES[table].columns:
                    type_ = type_of(column, connection.dialect.name)
                    for value in (*STRANGE.get(type_, []), *(OTHER[type_] if is_told else [])):
                        found = after(connection, record, table, column.name, value, where)
                        told = f"{table}.{column.name} = {value} where {where}: {found}"
                        name = f"{table}.{column.name}"
                        assert found is None or found or value in SILENT.get(name, ()), told
                        assert found is None or len(found) <= (2 if name in TWO else 1), told
        finally:
            if record.is_sqlite:
                connection.rollback()
                connection.exec_driver_sql("PRAGMA ignore_check_constraints = OFF")
                connection.exec_driver_sql("PRAGMA writable_schema = RESET")


def after(
    connection: sa.Connection, record: Record, table: str, column: str, value: str, where: str
) -> list[str] | None:
    """Return what is found after a column was set to *value*, but for the guards; None: that changes nothing."""
    held = f"typeof({column}) || hex({column})" if record.is_sqlite else f"{column}::text"
    before = connection.exec_driver_sql(f"SELECT {held} FROM {table} WHERE {where}").scalar_one()
    with connection.begin_nested() as point:
        change = f"UPDATE {table} SET {column} = {value.format(column=column)} WHERE {where} RETURNING {held}"
        try:
            if connection.exec_driver_sql(change).scalar_one() == before:
                point.rollback()
                return None
        except sa.exc.DBAPIError:  # an id is a number
            point.rollback()
            return None
        report = verify(connection, public_key=record.key.public, zone=ZONE)
        point.rollback()
    json.dumps(audit_verify._json(report)).encode()
    return [finding.message for finding in report.findings if finding.what is not What.GUARD]


if __name__ == "__main__":
    print(table())
