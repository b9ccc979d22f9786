"""People who own the database falsify it, and `audit verify` finds it: each way on both databases, and where.

The table of `CASES` is in TAMPERING.md, which a test compares. A superuser does it, who takes the guards away and puts
them back. Segments have four rows here, so that there are many.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import sqlalchemy as sa

from tests.history import ZONE, source
from tests.lives import HOUR, MINUTE, SECOND, Life
from tests.replay import replay
from tracker import database, guards
from tracker.audit import keys as keys_module
from tracker.audit import lines
from tracker.audit.checkpoint import Segment, Signed, parse, sign
from tracker.audit.findings import Finding, Report, What
from tracker.audit.keys import SigningKey
from tracker.audit.seal import seal
from tracker.audit.verify import verify
from tracker.models import JOBS, TRANSITIONS, Base, facts_values, observed_values, transition_of, transition_values
from tracker.reports import views
from tracker.status import Facts, Kind, State

TABLES = Base.metadata.tables
GAPS, SOURCES, SEALS, SEGMENTS = (TABLES[name] for name in ("gaps", "sources", "seals", "segments"))
DAY = 24 * HOUR


@dataclass(frozen=True)
class Record:
    """A record that was sealed three times, after the first with a new key, to be falsified.

    Attributes:
        engine: A superuser's, on a copy of it.
        old_key: It signed the first checkpoint, which announced *key*; it is withdrawn since.
        key: The sealer's.
        other_key: Somebody else's.
        trusted: Its checkpoints, as they left the database.
    """

    engine: sa.Engine
    old_key: SigningKey
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


def build(url: str, keys: tuple[SigningKey, ...], copy: Callable[[], object]) -> tuple[str, ...]:
    """Make the record, as the daemon would have, and return its checkpoints; *copy* is called after the second."""
    engine = database.open_database(url)
    with database.writing(engine) as connection:
        now = database.now(connection)
        began = now - 40 * MINUTE
        sources = {cluster: source(connection, cluster, began, version="2") for cluster in ("w1", "w2")}
    told = lives(now)
    events = [(step[1].observed_at, n, i) for n, life in enumerate(told) for i, step in enumerate(life.steps)]
    gaps = [("w1", 3, 4), ("w1", 8.2, 9.2), ("w2", 8.3, 9.3), ("w1", 12, 13), ("w1", 16, 17)]
    events += ((began + end * MINUTE, -1, n) for n, (_, _, end) in enumerate(gaps))
    ids: dict[int, int] = {}
    cuts = [began + minute * MINUTE for minute in (5, 10, 15)]
    made: list[Signed] = []
    for at, n, i in sorted(events):
        if cuts and at > cuts[0]:
            del cuts[0]
            made += seal(engine, keys[bool(made)], next_key=None if made else keys[1].public)
            if len(made) == 2:
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
                ids[n] = connection.execute(sa.insert(JOBS).values(columns).returning(JOBS.c.id)).scalar_one()
                continue
            source_id = None if transition.actor else sources[life.cluster]
            connection.execute(sa.insert(TRANSITIONS).values(transition_values(ids[n], transition, source_id)))
            connection.execute(sa.update(JOBS).where(JOBS.c.id == ids[n]).values(columns | observed_values(job)))
    engine.dispose()
    assert len(made) == 3
    return tuple(one.text for one in made)


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

    def id(self, jid: str, seq: int) -> int:
        return int(self.connection.execute(sa.select(TRANSITIONS.c.id).where(self.transition(jid, seq))).scalar_one())

    def edit(self, table: sa.Table, where: sa.ColumnElement[bool], **values: Any) -> None:
        """Change a row; a value that is callable is given the old one."""
        row = self.connection.execute(sa.select(table).where(where)).one()
        new = {name: value(getattr(row, name)) if callable(value) else value for name, value in values.items()}
        assert any(getattr(row, name) != value for name, value in new.items()), "this changes nothing"
        with self._any_id(table):
            assert self.connection.execute(sa.update(table).where(where).values(new)).rowcount == 1

    def insert(self, table: sa.Table, like: sa.ColumnElement[bool], **values: Any) -> None:
        """Insert a copy of a row with other values; with an id of its own choice if one is given."""
        row = dict(self.connection.execute(sa.select(table).where(like)).one()._mapping)
        row.pop("id", None)
        with self._any_id(table):
            self.connection.execute(sa.insert(table).values(row | values))

    @contextmanager
    def _any_id(self, table: sa.Table) -> Iterator[None]:
        change = f"ALTER TABLE {table.name} ALTER COLUMN id SET GENERATED "
        has_one = not self.record.is_sqlite and "id" in table.c
        self.sql(*[change + "BY DEFAULT"] * has_one)
        yield
        self.sql(*[change + "ALWAYS"] * has_one)

    def delete(self, table: sa.Table, where: sa.ColumnElement[bool], rows: int = 1) -> None:
        assert self.connection.execute(sa.delete(table).where(where)).rowcount == rows

    def swap(self, table: sa.Table, one: int, two: int) -> None:
        """Exchange the ids of two rows."""
        for old, new in ((one, -1), (two, one), (-1, two)):
            self.edit(table, table.c.id == old, id=new)

    def texts(self) -> list[str]:
        return list(self.connection.execute(sa.select(SEALS.c.checkpoint).order_by(SEALS.c.id)).scalars())

    def write(self, number: int, text: str) -> None:
        """Put a checkpoint in the place of another, with its columns and segments, as the sealer writes them."""
        signed = parse(text)
        one = signed.checkpoint
        values: dict[str, Any] = {"checkpoint": text, "checkpoint_sha256": signed.sha256, "sealed_at": one.sealed_at}
        values["key_id"] = one.key.id if one.key else None
        self.connection.execute(sa.update(SEALS).where(SEALS.c.id == number).values(values))
        for segment in one.segments:
            where = sa.and_(segment_of(number, segment.name, segment.part))
            self.connection.execute(sa.update(SEGMENTS).where(where).values(sha256=segment.sha256))

    def resign(self, first: int, key: SigningKey | None, **changes: Any) -> None:
        """Sign the checkpoints from number *first* on with *key*, each following on the one before."""
        texts = self.texts()
        for number in range(first, len(texts) + 1):
            previous = parse(texts[number - 2]).sha256 if number > 1 else None
            one = replace(parse(texts[number - 1]).checkpoint, previous_sha256=previous, next_key=None)
            texts[number - 1] = sign(replace(one, **changes), key).text
            self.write(number, texts[number - 1])

    def reseal(self, key: SigningKey | None) -> None:
        """Seal everything anew in the same places: only what is outside can show it."""
        for number, text in enumerate(self.texts(), 1):
            one, segments, rows = parse(text).checkpoint, [], 0
            for segment in one.segments:
                where = segment_of(number, segment.name, segment.part)
                row = self.connection.execute(sa.select(SEGMENTS).where(where)).one()
                there = list(lines.stream(self.connection, segment.name, row.first_id - 1, row.last_id))
                content = lines.header(segment.name) + b"".join(line for _, line in there)
                segments.append(replace(segment, sha256=sha256(content).hexdigest()))
                values = {"rows": len(there), "first_id": there[0][0], "last_id": there[-1][0]}
                self.connection.execute(sa.update(SEGMENTS).where(where).values(values))
                rows += len(there)
            self.connection.execute(sa.update(SEALS).where(SEALS.c.id == number).values(rows=rows))
            self.write(number, sign(replace(one, segments=tuple(segments), rows=rows, next_key=None), key).text)
        self.resign(1, key)


Do: TypeAlias = Callable[[Hand], object]


def segment_of(number: int, name: str, part: int) -> sa.ColumnElement[bool]:
    return sa.and_(SEGMENTS.c.seal_id == number, SEGMENTS.c.name == name, SEGMENTS.c.part == part)


def later(value: datetime) -> datetime:
    return value + SECOND


def transition(jid: str, seq: int, /, **values: Any) -> Do:
    return lambda hand: hand.edit(TRANSITIONS, hand.transition(jid, seq), **values)


def row(table: sa.Table, row_id: int, /, **values: Any) -> Do:
    return lambda hand: hand.edit(table, table.c.id == row_id, **values)


def job(jid: str, /, **values: Any) -> Do:
    return lambda hand: hand.edit(JOBS, JOBS.c.jid == jid, **values)


def segment(number: int, name: str, part: int, /, **values: Any) -> Do:
    return lambda hand: hand.edit(SEGMENTS, segment_of(number, name, part), **values)


def sql(*statements: str) -> Do:
    return lambda hand: hand.sql(*statements)


def both(*todo: Do) -> Do:
    def do(hand: Hand) -> None:
        for one in todo:
            one(hand)

    return do


def damaged(hand: Hand, number: int = 2, *, rehash: bool = False) -> None:
    """Change one digit of a segment's hash in the text of a checkpoint; with *rehash* also the hash beside it."""
    text = hand.texts()[number - 1]
    digest = parse(text).checkpoint.segments[0].sha256
    text = text.replace(digest, digest.translate(str.maketrans("0123456789abcdef", "123456789abcdef0")))
    beside = {"checkpoint_sha256": sha256(text.encode()).hexdigest()} if rehash else {}
    hand.edit(SEALS, SEALS.c.id == number, checkpoint=text, **beside)


def false_signature(hand: Hand) -> None:
    """Change the signature of the last checkpoint, and the hash beside it to fit."""
    body, word, signature = hand.texts()[2].rpartition("\nsignature ")
    hand.write(3, f"{body}{word}{'B' if signature[0] == 'A' else 'A'}{signature[1:]}")


def announced(hand: Hand) -> None:
    """Let checkpoint 1 announce another key, signed with the stolen old one, and sign the others with that."""
    first = replace(parse(hand.texts()[0]).checkpoint, next_key=hand.record.other_key.public)
    hand.write(1, sign(first, hand.record.old_key).text)
    hand.resign(2, hand.record.other_key)


def consistent(hand: Hand) -> None:
    """Let a1 have been done earlier: its last transition, and its row to fit."""
    transition("a1", 3, observed_at=lambda at: at - SECOND)(hand)
    job("a1", status_by=lambda at: at - SECOND, ended_by=lambda at: at - SECOND)(hand)


def unmade(hand: Hand) -> None:
    """Take job a5 out, with its history."""
    hand.delete(TRANSITIONS, TRANSITIONS.c.job_id == hand.job("a5"), 2)
    hand.sql("DELETE FROM jobs WHERE jid = 'a5'")


def cut_to(number: int) -> Do:
    """Take away all after a checkpoint, and bring the jobs back to what is left."""

    def do(hand: Hand) -> None:
        hand.sql(f"DELETE FROM segments WHERE seal_id > {number}", f"DELETE FROM seals WHERE id > {number}")
        for table, (_, upto) in parse(hand.texts()[-1]).checkpoint.ids.items():
            hand.sql(f"DELETE FROM {table} WHERE id > {upto}")
        hand.sql("DELETE FROM jobs WHERE jid = 'late'")
        for job_id in hand.connection.execute(sa.select(JOBS.c.id)).scalars().all():
            query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id == job_id).order_by(TRANSITIONS.c.seq)
            replayed = replay(map(transition_of, hand.connection.execute(query))).job
            values = {**observed_values(replayed), **facts_values(replayed.facts), "due_at": replayed.registered_at}
            values["seen_at"] = replayed.seen_at or replayed.status_by
            hand.connection.execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(values))

    return do


def observed(jid: str, at: Callable[[datetime], datetime], /, **values: Any) -> Do:
    """Add a transition of an open job to done, seen at some time (given now), and change the job to fit."""

    def do(hand: Hand) -> None:
        seq = hand.connection.execute(sa.select(JOBS.c.seq).where(JOBS.c.jid == jid)).scalar_one()
        when = at(database.now(hand.connection))
        done = {"to_status": "done", "to_state": "done", "last_seen_at": when - SECOND, "observed_at": when}
        done |= {"seq": seq + 1, "polls": seq + 1, "from_status": "waiting", "server_date": when} | values
        hand.insert(TRANSITIONS, hand.transition(jid, seq), **done)
        job = {"state": done["to_state"], "status": done["to_status"], "status_by": when, "ended_by": when}
        job |= {"status_after": when - SECOND, "ended_after": when - SECOND, "seen_at": when, "due_at": None}
        hand.edit(JOBS, JOBS.c.jid == jid, **job, seq=seq + 1, polls=seq + 1)

    return do


def registered(hand: Hand) -> None:
    """Register a job with plain SQL, 90 days back."""
    guards.create(hand.connection)
    long_ago = database.now(hand.connection) - 90 * DAY
    hand.connection.execute(sa.insert(JOBS).values(cluster="w1", jid="old", registered_at=long_ago))
    guards.drop(hand.connection)


def rubbish(hand: Hand) -> None:
    """Put a row after the last seal that has no checkpoint in it."""
    hand.insert(SEALS, SEALS.c.id == 3, checkpoint="garbage", checkpoint_sha256="0" * 64, key_id=None)


def other_guard(hand: Hand) -> None:
    """Let a guard stand, and refuse nothing."""
    guards.create(hand.connection)
    if hand.record.is_sqlite:
        hand.sql("DROP TRIGGER guard_gaps_delete")
        hand.sql("CREATE TRIGGER guard_gaps_delete BEFORE DELETE ON gaps WHEN 0 BEGIN SELECT RAISE(ABORT, 'no'); END")
    else:
        hand.sql("ALTER TABLE gaps DISABLE TRIGGER guard_gaps_change")


def other_check(hand: Hand) -> None:
    """Let a CHECK stand under its own name, and refuse nothing."""
    if not hand.record.is_sqlite:
        hand.sql("ALTER TABLE jobs DROP CONSTRAINT ck_jobs_polls, ADD CONSTRAINT ck_jobs_polls CHECK (true)")
        return
    hand.sql(
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'polls >= 0', '1') WHERE name = 'jobs'",
        "PRAGMA writable_schema = OFF",
    )


def other_view(hand: Hand) -> None:
    """Let report_gaps leave a cause out."""
    hand.sql("DROP VIEW report_gaps")
    shown = views.sql("report_gaps", hand.connection.dialect.name)
    database.execute(hand.connection, f"CREATE VIEW report_gaps AS SELECT * FROM ({shown}) g WHERE cause <> 'paused'")


def hiding_index(hand: Hand) -> None:
    """Build an index without some rows, and put its old text back."""
    name, text = "ix_jobs_jid", "CREATE INDEX ix_jobs_jid ON jobs (jid)"
    hand.sql(
        f"DROP INDEX {name}",
        f"CREATE INDEX {name} ON jobs (jid) WHERE jid <> 'a1'",
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_master SET sql = '{text}' WHERE name = '{name}'",
        "PRAGMA writable_schema = RESET",
    )


def working_tables(hand: Hand) -> None:
    """Change what the daemons keep for themselves."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    worker = {"worker": "eve", "host": "eve", "pid": 1, "version": "1", "started_at": at, "beat_at": at}
    hand.connection.execute(sa.insert(TABLES["clusters"]).values(cluster="w1", answered_at=at))
    hand.connection.execute(sa.insert(TABLES["workers"]).values(worker))
    hand.connection.execute(sa.insert(TABLES["deliveries"]).values(destination="eve", last_number=9))
    hand.connection.execute(sa.insert(TABLES["alerts"]).values(kind="eve", subject="w1", since=at, level="urgent"))
    hand.edit(JOBS, JOBS.c.jid == "a5", due_at=later, failures=9, last_error="x", leased_by="eve", polls=99)


def nothing(hand: Hand) -> None:
    """Leave it as it is."""


@dataclass(frozen=True)
class Case:
    """One way to falsify.

    Attributes:
        name: What is done, in words.
        do: Does it.
        found: Where `audit verify --public-key` finds it, as `place` has it, with commas between.
        outside: What it finds besides with the checkpoints that were kept outside.
        without_checks: It needs the CHECKs taken away, which is found, too.
        with_guards: It is about the guards, and leaves them as they are.
        is_old: It is a copy from after the second seal.
        only: The database on which alone it can be done.
    """

    name: str
    do: Do
    found: str
    outside: str = ""
    without_checks: bool = False
    with_guards: bool = False
    is_old: bool = False
    only: str | None = None


def place(finding: Finding) -> str:
    """Return where something was found, in short."""
    where = finding.jid or finding.cluster or ""
    if finding.segment is not None:
        where = finding.segment.removeprefix("segments/00000").removesuffix(".csv")
    elif finding.checkpoint is not None:
        where = str(finding.checkpoint)
    return f"{finding.what.value} {where}".strip()


# fmt: off
CASES = [
    # rows
    Case("edit a transition", transition("a1", 2, server_date=later), "rows 2-transitions-1"),
    Case("edit a gap", row(GAPS, 2, detail=None), "rows 2-gaps-1"),
    Case("edit a source", row(SOURCES, 2, base_url="https://w2.elevate.example"), "rows 1-sources-1"),
    Case("edit a job's jid, which is in its transitions' lines", job("a1", jid="a9"),
         "rows 1-transitions-1, rows 1-transitions-2, rows 2-transitions-1, rows 3-transitions-1"),
    Case("delete a transition", lambda h: h.delete(TRANSITIONS, h.transition("a1", 1)),
         "history a1, rows 1-transitions-2"),
    Case("delete a gap", sql("DELETE FROM gaps WHERE id = 2"), "rows 2-gaps-1"),
    Case("delete a source", sql("DELETE FROM sources WHERE id = 1"),
         "history a1, history a2, history a3, history a5, history late, rows 1-sources-1"),
    Case("delete a job, and leave its history", sql("DELETE FROM jobs WHERE jid = 'a5'"),
         "history, rows 1-transitions-2, rows 1-transitions-3"),
    Case("delete a job with its history", unmade, "rows 1-transitions-2, rows 1-transitions-3"),
    Case("delete a row that is not sealed yet", lambda h: h.delete(TRANSITIONS, h.transition("b1", 3)), "job b1"),
    Case("add a gap below all ids", lambda h: h.insert(GAPS, GAPS.c.id == 2, id=0), "rows"),
    Case("replace a gap by another",
         both(sql("DELETE FROM gaps WHERE id = 2"), lambda h: h.insert(GAPS, GAPS.c.id == 3, id=2)), "rows 2-gaps-1"),
    Case("swap two transitions", lambda h: h.swap(TRANSITIONS, h.id("a1", 2), h.id("a2", 2)), "rows 2-transitions-1"),
    Case("edit a job and its last transition to fit", consistent, "rows 3-transitions-1"),
    # jobs
    Case("edit a declared column of a job", job("a1", reference=None), "job a1"),
    Case("edit an observed column of a job", job("a1", ended_by=later), "job a1"),
    Case("edit a deadline", job("a1", deadline_at=later), "job a1"),
    Case("remove the next poll of an open job", job("a5", due_at=None), "job a5"),
    Case("edit working columns of a job, `clusters`, `workers`, `deliveries`, `alerts`", working_tables, ""),
    # impossible rows
    Case("a job attested without an actor", transition("b2", 2, actor=None), "history b2, rows 2-transitions-2",
         without_checks=True),
    Case("a job done with status running", observed("a5", lambda now: now, to_status="running"), "history a5",
         without_checks=True),
    Case("a wrong `from_status`", observed("a5", lambda now: now, from_status="created"), "history a5"),
    Case("a wrong anomaly", observed("a5", lambda now: now, anomaly="backwards"), "history a5"),
    Case("an observation without a source", observed("a5", lambda now: now, source_id=None), "history a5",
         without_checks=True),
    Case("an observation with another cluster's source", observed("a5", lambda now: now, source_id=2), "history a5"),
    Case("a gap that ends before it begins", row(GAPS, 5, ended_at=lambda at: at - HOUR), "history w1",
         without_checks=True),
    Case("an observation with a future time", observed("a5", lambda now: now + 200 * DAY), "history a5"),
    Case("a backdated observation", observed("a5", lambda now: now - 2 * HOUR), "history a5"),
    Case("a registration that plain SQL backdates", registered, "history old, unsealed"),
    Case("an invented observation with a plausible time", observed("a5", lambda now: now), ""),
    # checkpoints and segments
    Case("edit a column of `seals`", row(SEALS, 2, last_gap_id=9), "checkpoint, checkpoint 2"),
    Case("edit the text of a checkpoint", damaged, "checkpoint 2, checkpoint 3, key 2", "trusted 2"),
    Case("edit the text of a checkpoint, and the hash beside it", lambda h: damaged(h, rehash=True),
         "checkpoint 2, checkpoint 3, key 2", "trusted 2"),
    Case("edit the text of the last checkpoint, and the hash beside it", lambda h: damaged(h, 3, rehash=True),
         "checkpoint 3, key 3", "trusted 3"),
    Case("replace a checkpoint by garbage", row(SEALS, 2, checkpoint="nothing"), "checkpoint 2",
         "trusted 2"),
    Case("add a row of garbage to `seals`", rubbish, "checkpoint 4"),
    Case("delete the first checkpoint", sql("DELETE FROM segments WHERE seal_id = 1", "DELETE FROM seals WHERE id = 1"),
         "checkpoint 1", "trusted 1"),
    Case("delete a checkpoint", sql("DELETE FROM segments WHERE seal_id = 2", "DELETE FROM seals WHERE id = 2"),
         "checkpoint 2", "trusted 2"),
    Case("delete a checkpoint, and leave its segments", sql("DELETE FROM seals WHERE id = 2"), "checkpoint 2, segments",
         "trusted 2"),
    Case("swap two checkpoints", lambda h: h.swap(SEALS, 2, 3),
         "checkpoint, checkpoint 2, segments 2-gaps-1, segments 2-transitions-1, segments 2-transitions-2,"
         " segments 3, segments 3-gaps-1, segments 3-transitions-1"),
    Case("edit a hash in `segments`", segment(2, "transitions", 1, sha256="0" * 64), "segments 2-transitions-1"),
    Case("edit the ids in `segments`", segment(2, "transitions", 1, last_id=lambda id_: id_ - 1),
         "rows 2-transitions-1"),
    Case("delete a row of `segments`", sql("DELETE FROM segments WHERE seal_id = 2 AND name = 'gaps'"),
         "segments 2-gaps-1"),
    Case("add a row to `segments`", lambda h: h.insert(SEGMENTS, segment_of(2, "gaps", 1), part=3), "segments 2"),
    # sealed again
    Case("edit both to fit, and seal everything again without a key", both(consistent, lambda h: h.reseal(None)), "key",
         "trusted 1"),
    Case("edit both to fit, and seal everything again with another key",
         both(consistent, lambda h: h.reseal(h.record.other_key)), "key", "trusted 1"),
    Case("edit both to fit, and seal everything again with the withdrawn key",
         both(consistent, lambda h: h.reseal(h.record.old_key)), "key", "trusted 1"),
    Case("edit both to fit, and seal everything again with the stolen key",
         both(consistent, lambda h: h.reseal(h.record.key)), "", "trusted 1"),
    Case("remove a job, and seal everything again with the stolen key", both(unmade, lambda h: h.reseal(h.record.key)),
         "", "trusted 1"),
    Case("sign the last checkpoint with the withdrawn key", lambda h: h.resign(3, h.record.old_key), "key 3",
         "trusted 3"),
    Case("sign the last checkpoint with another key", lambda h: h.resign(3, h.record.other_key), "key 3", "trusted 3"),
    Case("let the withdrawn key announce another, and continue with it", announced, "key", "trusted 1"),
    Case("remove the last signature", lambda h: h.resign(3, None), "key 3", "trusted 3"),
    Case("edit the last signature, and the hash beside it", false_signature, "checkpoint 3, key 3", "trusted 3"),
    Case("let `sealed_at` run backwards, and sign it with the stolen key",
         lambda h: h.resign(3, h.record.key, sealed_at=datetime(2026, 1, 1, tzinfo=UTC)),
         "checkpoint, checkpoint 3, history a1, history a2, history a3, history b2, history w1", "trusted 3"),
    Case("cut off the end", cut_to(2), "", "trusted 3"),
    Case("restore an old copy of the database", nothing, "", "trusted 3", is_old=True),
    # guards and the like
    Case("drop the guards", nothing, "guard", with_guards=True),
    Case("let a guard refuse nothing", other_guard, "guard", with_guards=True),
    Case("let a CHECK refuse nothing", other_check, "guard"),
    Case("let a view show something else", other_view, "view"),
    Case("give a right to everybody", sql("GRANT UPDATE ON transitions TO PUBLIC"), "right", only="postgresql"),
    Case("build an index that hides rows", hiding_index, "index", only="sqlite"),
    Case("leave an index that is not valid",
         sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_jobs_jid'::regclass"), "index",
         only="postgresql"),
]
# fmt: on


FOUND_BY = {
    What.GUARD: "the guard or CHECK",
    What.VIEW: "the view",
    What.RIGHT: "the role and its right",
    What.INDEX: "the index",
    What.CHECKPOINT: "the checkpoint",
    What.KEY: "the signature or the key",
    What.SEGMENTS: "the segment in table `segments`",
    What.ROWS: "the segment's rows",
    What.HISTORY: "an impossible row",
    What.JOB: "the job",
    What.TRUSTED: "the trusted checkpoint that is missing",
    What.UNSEALED: "rows that are unsealed for too long",
}


def table() -> str:
    """Return the table in TAMPERING.md: what was done, and what finds it."""

    def found_by(places: str) -> str:
        return ", ".join(dict.fromkeys(FOUND_BY[What(place.split()[0])] for place in places.split(", ") if place))

    rows = ["| done to the record | found without `--trusted` | and with it |", "|---|---|---|"]
    for case in CASES:
        only = {"sqlite": " (SQLite)", "postgresql": " (PostgreSQL)", None: ""}[case.only]
        found, outside = found_by(case.found) or "**nothing**", found_by(case.outside) or "—"
        rows.append(f"| {case.name}{only} | {found} | {outside} |")
    return "\n".join(rows)


def test_the_table_is_what_these_tests_show() -> None:
    """TAMPERING.md says what is found, and what is not."""
    text = Path(__file__).with_name("TAMPERING.md").read_text(encoding="utf-8")
    assert table() in text, "put what `python -m tests.test_tamper` prints into TAMPERING.md"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[SigningKey, SigningKey, SigningKey]:
    folder = tmp_path_factory.mktemp("keys")
    for name in "012":
        keys_module.keygen(folder / name)
    old, new, other = (SigningKey.load(folder / name) for name in "012")
    return old, new, other


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def records(
    request: pytest.FixtureRequest,
    keys: tuple[SigningKey, SigningKey, SigningKey],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Record, Record]]:
    """The record, and a copy from after its second seal, on each of the two databases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracker.audit.seal.SEGMENT_ROWS", 4)
        if request.param == "sqlite":
            folder = tmp_path_factory.mktemp("record")
            shutil.copy(request.getfixturevalue("sqlite_template"), folder / "new.db")
            urls = [f"sqlite:///{folder / name}" for name in ("new.db", "old.db")]
            trusted = build(urls[0], keys, lambda: shutil.copy(folder / "new.db", folder / "old.db"))
        else:
            make: Callable[..., str] = request.getfixturevalue("make_postgres")
            urls = [make(request.getfixturevalue("postgres_template"))]
            trusted = build(urls[0], keys, lambda: urls.append(make(sa.make_url(urls[0]).database)))
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
            connection.exec_driver_sql(f"PRAGMA ignore_check_constraints = {int(case.without_checks)}")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            for name in ("transitions", "gaps") if case.without_checks else ():
                for check in sa.inspect(connection).get_check_constraints(name):
                    connection.exec_driver_sql(f"ALTER TABLE {name} DROP CONSTRAINT {check['name']}")
        guards.drop(connection)
        case.do(Hand(record, connection))
        if not case.with_guards:
            guards.create(connection)
        if record.is_sqlite:
            connection.exec_driver_sql("PRAGMA ignore_check_constraints = 0")
        yield connection
        connection.rollback()


def checked(record: Record, connection: sa.Connection, *, outside: bool) -> Report:
    trusted = [parse(text) for text in record.trusted] if outside else []
    return verify(connection, public_key=record.key.public, trusted=trusted, zone=ZONE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_falsified_is_found_where_it_was(case: Case, records: tuple[Record, Record]) -> None:
    """Each kind of change is found in its place, and nowhere else."""
    record = records[case.is_old]
    if case.only not in (None, record.engine.dialect.name):
        pytest.skip(f"on {case.only} only")
    ignored = {What.GUARD, What.INDEX} if case.without_checks else set()
    with falsified(record, case) as connection:
        for outside in (False, True):
            report = checked(record, connection, outside=outside)
            found = {place(finding) for finding in report.findings if finding.what not in ignored}
            expected = {*case.found.split(", "), *(case.outside.split(", ") if outside else ())} - {""}
            assert found == expected, [finding.message for finding in report.findings]
            assert not case.without_checks or any(finding.what in ignored for finding in report.findings)


# Changes drawn at random


class Drawn:
    """Changes of one record, and what they touched: jobs, rows of `segments`, checkpoints."""

    def __init__(self, hand: Hand, r: random.Random) -> None:
        self.hand = hand
        self.r = r
        self.jobs: set[str] = set()
        self.own: set[str] = set()
        self.checkpoints: set[int] = set()
        query = sa.select(SEGMENTS.c.seal_id, SEGMENTS.c.name, SEGMENTS.c.part, SEGMENTS.c.first_id, SEGMENTS.c.last_id)
        self.sealed = hand.connection.execute(query).all()
        self.before = self.contents()

    def contents(self) -> dict[str, bytes]:
        """Return each segment's rows, by the ids that it was sealed with."""
        return {
            Segment(one.name, one.part, "").path(one.seal_id): b"".join(
                line for _, line in lines.stream(self.hand.connection, one.name, one.first_id - 1, one.last_id)
            )
            for one in self.sealed
        }

    def _any(self, table: sa.Table) -> int:
        ids = self.hand.connection.execute(sa.select(table.c.id).order_by(table.c.id)).scalars().all()
        return int(self.r.choice(ids))

    def _transition(self) -> sa.ColumnElement[bool]:
        id_ = self._any(TRANSITIONS)
        query = (
            sa.select(JOBS.c.jid).join(TRANSITIONS, TRANSITIONS.c.job_id == JOBS.c.id).where(TRANSITIONS.c.id == id_)
        )
        self.jobs.add(self.hand.connection.execute(query).scalar_one())
        return TRANSITIONS.c.id == id_

    def edit_transition(self) -> None:
        changes: list[dict[str, Any]] = [{"observed_at": later}, {"polls": 77}]
        self.hand.edit(TRANSITIONS, self._transition(), **self.r.choice(changes))

    def delete_transition(self) -> None:
        self.hand.delete(TRANSITIONS, self._transition())

    def swap_transitions(self) -> None:
        one, two = (self.hand.connection.execute(sa.select(TRANSITIONS.c.id).where(self._transition())) for _ in "12")
        first, second = one.scalar_one(), two.scalar_one()
        self.hand.swap(TRANSITIONS, first, second) if first != second else None

    def edit_gap(self) -> None:
        self.hand.edit(GAPS, GAPS.c.id == self._any(GAPS), detail=lambda old: f"{old}!")

    def delete_gap(self) -> None:
        self.hand.delete(GAPS, GAPS.c.id == self._any(GAPS))

    def edit_source(self) -> None:
        self.hand.edit(SOURCES, SOURCES.c.id == self._any(SOURCES), version=lambda old: f"{old}.1")

    def edit_job(self) -> None:
        where = JOBS.c.id == self._any(JOBS)
        jid = self.hand.connection.execute(sa.select(JOBS.c.jid).where(where)).scalar_one()
        self.jobs |= {jid, f"{jid}!"}
        changes: list[dict[str, Any]] = [{"reference": lambda old: f"{old}!"}, {"jid": f"{jid}!"}]
        self.hand.edit(JOBS, where, **self.r.choice(changes))

    def edit_segments(self) -> None:
        one = self.r.choice(self.sealed)
        self.own.add(Segment(one.name, one.part, "").path(one.seal_id))
        changes: list[dict[str, Any]] = [{"sha256": "0" * 64}, {"rows": 9}, {"first_id": lambda old: max(0, old - 1)}]
        self.hand.edit(SEGMENTS, segment_of(one.seal_id, one.name, one.part), **self.r.choice(changes))

    def edit_checkpoint(self) -> None:
        number = self.r.choice([n for n in (1, 2, 3) if n not in self.checkpoints] or [0])
        if number:
            self.checkpoints.add(number)
            damaged(self.hand, number, rehash=self.r.random() < 0.5)

    def do(self, count: int) -> None:
        kinds = [
            getattr(self, name) for name in sorted(vars(Drawn)) if name.partition("_")[0] in ("edit", "delete", "swap")
        ]
        for kind in self.r.sample(kinds, count):
            kind()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_unchanged_segment_or_job_is_accused(records: tuple[Record, Record], count: int) -> None:
    """Whichever changes are made together, each is found, and nothing else is accused."""
    record = records[0]
    for seed in range(20):
        drawn: list[Drawn] = []

        def do(hand: Hand, seed: int = seed, drawn: list[Drawn] = drawn) -> None:
            drawn.append(Drawn(hand, random.Random(f"{count} {seed}")))
            drawn[0].do(count)

        with falsified(record, Case("", do, "")) as connection:
            made = drawn[0]
            after = made.contents()
            changed = {path for path, content in made.before.items() if after[path] != content}
            report = checked(record, connection, outside=False)
            told = [finding.message for finding in report.findings]
            accused: dict[What, set[object]] = {what: set() for what in What}
            for finding in report.findings:
                where = {What.HISTORY: finding.jid, What.JOB: finding.jid, What.CHECKPOINT: finding.checkpoint}
                accused[finding.what].add(where.get(finding.what, finding.segment))
            uncertain = tuple(f"segments/{number:06}-" for number in made.checkpoints)
            for path in changed | made.own:
                is_found = path in accused[What.ROWS] | accused[What.SEGMENTS]
                assert is_found or path.startswith(uncertain), (seed, path, told)
            assert accused[What.ROWS] <= changed | made.own, (seed, told)
            assert accused[What.SEGMENTS] <= made.own, (seed, told)
            assert accused[What.HISTORY] | accused[What.JOB] <= made.jobs, (seed, told)
            near = {number + 1 for number in made.checkpoints}
            assert made.checkpoints <= accused[What.CHECKPOINT] <= made.checkpoints | near, (seed, told)


if __name__ == "__main__":
    print(table())
