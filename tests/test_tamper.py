"""People who own the database falsify it, and `audit verify` finds it: each way on both databases, and where.

The table of `CASES` is in TAMPERING.md, which a test compares. Segments have four rows here, so that there are many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import sqlalchemy as sa

from tests.history import ZONE, answer, record, register
from tests.lives import HOUR, MINUTE
from tests.replay import replay, transition_of
from tracker import database, guards, status
from tracker.audit import keys as keys_module
from tracker.audit import lines
from tracker.audit.checkpoint import Signed, parse, sign
from tracker.audit.findings import AuditFinding, FindingKind
from tracker.audit.keys import SigningKey
from tracker.audit.seal import columns, seal
from tracker.audit.verify import verify
from tracker.models import GAPS, JOBS, METADATA, TRANSITIONS, facts_values, observed_values
from tracker.reports import views
from tracker.status import Decision, Facts, Job, Kind, Past

TABLES = METADATA.tables
SEALS, SEGMENTS = TABLES["seals"], TABLES["segments"]


@dataclass(frozen=True)
class Record:
    """A record that was sealed three times, after the first with a new key, to be falsified by a superuser.

    Attributes:
        old_key: It signed the first checkpoint, which announced *key*; it is withdrawn since.
        key: The sealer's.
        other_key: Somebody else's.
        trusted: Its checkpoints, as they left the database.
    """

    engine: sa.Engine
    old_key: SigningKey
    key: SigningKey
    other_key: SigningKey
    trusted: list[Signed]

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"


# What happens to which job, in which minute: a status that is seen, or what an operator does. Seals come between.
PARTS: tuple[tuple[tuple[float, str, str], ...], ...] = (
    (
        *((0, "a1", "registered"), (0, "a2", "registered"), (0.5, "a3", "registered"), (1, "b1", "registered")),
        *((1, "a1", "waiting"), (1.5, "b2", "registered"), (2, "a5", "registered"), (2, "a2", "waiting")),
        *((2.5, "b1", "waiting"), (3, "b2", "not_found"), (3, "w1", "gap"), (4.5, "a5", "waiting")),
    ),
    (
        *((6, "a1", "running"), (7, "a2", "not_found"), (8, "a3", "amend"), (8.2, "w1", "gap"), (8.3, "w2", "gap")),
        *((9, "b1", "running"), (9.5, "b2", "attest")),
    ),
    ((11, "a3", "error"), (12, "a1", "done"), (12, "w1", "gap"), (13, "a2", "withdraw"), (14, "b2", "reopen")),
    ((16, "late", "registered"), (16, "w1", "gap"), (16.5, "late", "created"), (17, "b1", "done")),
)


def build(engine: sa.Engine, old: SigningKey, new: SigningKey) -> list[Signed]:
    """Make the record, as the daemon would have, and return its checkpoints."""
    with database.reading(engine) as connection:
        began = database.now(connection) - 40 * MINUTE
    facts = Facts(Kind.EXPORT, "R-1", began - 3000 * MINUTE, began - 10 * MINUTE)
    ids: dict[str, int] = {}
    made: list[Signed | None] = []

    def decided(what: str, at: datetime, job: Job, _: Past) -> Decision:
        if what == "amend":
            return status.amend(job, replace(job.facts, reference="R-4"), at, "bob", "the mail says so")
        if what == "attest":
            return status.attest(job, at - MINUTE, at, "bob", "the file is here")
        return (status.withdraw if what == "withdraw" else status.reopen)(job, at, "bob", "a mistake")

    for number, part in enumerate(PARTS):
        for minute, name, what in part:
            at = began + minute * MINUTE
            if what == "gap":
                values = {
                    "cluster": name,
                    "began_at": at,
                    "ended_at": at + MINUTE,
                    "cause": "unreachable",
                    "detail": "x",
                }
                with database.writing(engine) as connection:
                    connection.execute(sa.insert(GAPS).values(values))
            elif what == "registered":
                declared = facts_values(facts if name in ("a1", "a2", "a3", "b1") else Facts())
                ids[name] = register(engine, name, "w2" if name[0] == "b" else "w1", at=at, **declared)
            elif what in ("amend", "attest", "withdraw", "reopen"):
                working: dict[str, Any] = {"due_at": at} if what == "reopen" else {}
                working |= {"reference": "R-4"} if what == "amend" else {}
                record(engine, ids[name], partial(decided, what, at), **working)
            else:
                answer(engine, ids[name], (what, at))
        if number < 3:
            made.append(seal(engine, new if number else old, next_key=None if number else new.public))
    return [one for one in made if one]


# The hand that falsifies


class Hand:
    """A superuser's, on a connection with the guards away."""

    def __init__(self, record: Record, connection: sa.Connection) -> None:
        self.record = record
        self.connection = connection

    def sql(self, statements: str) -> None:
        """Run statements, with times and what the databases write differently in braces."""
        now = database.now(self.connection)
        times = {"now": now, "future": now + timedelta(days=200), "past": now - 2 * HOUR}
        words = {
            name: f"'{at:%Y-%m-%d %H:%M:%S.%f}{'' if self.record.is_sqlite else '+00'}'" for name, at in times.items()
        }
        words["any_id"] = "" if self.record.is_sqlite else "OVERRIDING SYSTEM VALUE"
        for statement in statements.split("; "):
            done = self.connection.exec_driver_sql(statement.format(**words))
            assert done.rowcount or not statement.startswith(("UPDATE", "DELETE")), f"it changes nothing: {statement}"

    def id(self, jid: str, seq: int) -> int:
        query = sa.select(TRANSITIONS.c.id).join(JOBS, JOBS.c.id == TRANSITIONS.c.job_id)
        found = self.connection.execute(query.where(JOBS.c.jid == jid, TRANSITIONS.c.seq == seq))
        return int(found.scalar_one())

    def swap(self, table: str, one: int, two: int) -> None:
        """Exchange the ids of two rows."""
        change = f"ALTER TABLE {table} ALTER COLUMN id SET GENERATED "
        moves = "; ".join(
            f"UPDATE {table} SET id = {new} WHERE id = {old}" for old, new in ((one, -1), (two, one), (-1, two))
        )
        self.sql(moves if self.record.is_sqlite else f"{change} BY DEFAULT; {moves}; {change} ALWAYS")

    def checkpoints(self) -> list[Signed]:
        return list(map(parse, self.connection.execute(sa.select(SEALS.c.checkpoint).order_by(SEALS.c.id)).scalars()))

    def write(self, number: int, signed: Signed) -> None:
        """Put a checkpoint in the place of another, with its columns and segments, as the sealer writes them."""
        values = columns(signed) | {"checkpoint": signed.text}
        self.connection.execute(sa.update(SEALS).where(SEALS.c.id == number).values(values))
        for segment in signed.checkpoint.segments:
            where = segment_of(number, segment.name, segment.part)
            self.connection.execute(sa.update(SEGMENTS).where(where).values(sha256=segment.sha256))

    def resign(self, first: int, key: SigningKey | None, **changes: Any) -> None:
        """Sign the checkpoints from number *first* on with *key*, each following on the one before."""
        chain = self.checkpoints()
        for number in range(first, len(chain) + 1):
            previous = chain[number - 2].sha256 if number > 1 else None
            one = replace(chain[number - 1].checkpoint, previous_sha256=previous, next_key=None)
            chain[number - 1] = sign(replace(one, **changes), key)
            self.write(number, chain[number - 1])

    def reseal(self, key: SigningKey | None) -> None:
        """Seal everything again in the same places: only what is outside can show it."""
        for number, signed in enumerate(self.checkpoints(), 1):
            one, segments, rows = signed.checkpoint, [], 0
            for segment in one.segments:
                where = segment_of(number, segment.name, segment.part)
                row = self.connection.execute(sa.select(SEGMENTS).where(where)).one()
                there = list(lines.stream(self.connection, segment.name, row.first_id - 1, row.last_id))
                content = lines.header(segment.name) + b"".join(line for _, line in there)
                segments.append(replace(segment, sha256=sha256(content).hexdigest()))
                values = {"rows": len(there), "first_id": there[0][0], "last_id": there[-1][0]}
                self.connection.execute(sa.update(SEGMENTS).where(where).values(values))
                rows += len(there)
            self.write(number, sign(replace(one, segments=tuple(segments), rows=rows, next_key=None), key))
        self.resign(1, key)

    def damage(self, number: int = 2, *, rehash: bool = False) -> None:
        """Change one digit of a segment's hash in the text of a checkpoint; with *rehash* also the hash beside it."""
        signed = self.checkpoints()[number - 1]
        digest = signed.checkpoint.segments[0].sha256
        text = signed.text.replace(digest, digest.translate(str.maketrans("0123456789abcdef", "123456789abcdef0")))
        values = {"checkpoint": text} | ({"checkpoint_sha256": sha256(text.encode()).hexdigest()} if rehash else {})
        self.connection.execute(sa.update(SEALS).where(SEALS.c.id == number).values(values))


Do: TypeAlias = str | Callable[[Hand], object]


def segment_of(number: int, name: str, part: int) -> sa.ColumnElement[bool]:
    return sa.and_(SEGMENTS.c.seal_id == number, SEGMENTS.c.name == name, SEGMENTS.c.part == part)


def false_signature(hand: Hand) -> None:
    """Change the signature of the last checkpoint, and the hash beside it to fit."""
    last = hand.checkpoints()[2]
    assert last.signature is not None
    hand.write(3, replace(last, signature=bytes([last.signature[0] ^ 1]) + last.signature[1:]))


def announced(hand: Hand) -> None:
    """Let checkpoint 1 announce another key, signed with the stolen old one, and sign the others with that."""
    first = replace(hand.checkpoints()[0].checkpoint, next_key=hand.record.other_key.public)
    hand.write(1, sign(first, hand.record.old_key))
    hand.resign(2, hand.record.other_key)


def resealed(change: str, key: Callable[[Record], SigningKey | None]) -> Do:
    def do(hand: Hand) -> None:
        hand.sql(change)
        hand.reseal(key(hand.record))

    return do


def cut_off(hand: Hand) -> None:
    """Take away all after checkpoint 2, and bring the jobs back to what is left: as an old copy has them."""
    hand.sql("DELETE FROM segments WHERE seal_id > 2; DELETE FROM seals WHERE id > 2")
    for table, (_, upto) in hand.checkpoints()[-1].checkpoint.ids.items():
        hand.connection.exec_driver_sql(f"DELETE FROM {table} WHERE id > {upto}")
    hand.sql("DELETE FROM jobs WHERE jid = 'late'")
    for job_id in hand.connection.execute(sa.select(JOBS.c.id)).scalars().all():
        query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id == job_id).order_by(TRANSITIONS.c.seq)
        replayed = replay(map(transition_of, hand.connection.execute(query))).job
        values = {**observed_values(replayed), **facts_values(replayed.facts), "due_at": replayed.registered_at}
        values["seen_at"] = replayed.seen_at or replayed.status_by
        hand.connection.execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(values))


def observed(at: str) -> str:
    """Return SQL that adds the transition of job a5 to done, seen at some time, and changes the job to fit."""
    row = {"action": "'observed'", "from_status": "'waiting'", "to_status": "'done'", "from_state": "'open'"}
    row |= {"to_state": "'done'", "last_seen_at": at, "observed_at": at, "source_id": "1"}
    return (
        f"INSERT INTO transitions (job_id, seq, polls, {', '.join(row)})"
        f" SELECT id, seq + 1, polls + 1, {', '.join(row.values())} FROM jobs WHERE jid = 'a5'; "
        f"UPDATE jobs SET state = 'done', status = 'done', status_after = {at}, status_by = {at},"
        f" ended_after = {at}, ended_by = {at}, seen_at = {at}, due_at = NULL, seq = seq + 1, polls = polls + 1"
        " WHERE jid = 'a5'"
    )


def registered(hand: Hand) -> None:
    """Register a job with plain SQL, 90 days back: no guard refuses it."""
    guards.create(hand.connection)
    long_ago = database.now(hand.connection) - timedelta(days=90)
    hand.connection.execute(sa.insert(JOBS).values(cluster="w1", jid="old", registered_at=long_ago))
    guards.drop(hand.connection)


def other_guard(hand: Hand) -> None:
    """Let a guard stand, and refuse nothing."""
    guards.create(hand.connection)
    changed = "CREATE TRIGGER guard_gaps_delete BEFORE DELETE ON gaps WHEN 0 BEGIN SELECT RAISE(ABORT, 'no'); END"
    for statement in (
        ("DROP TRIGGER guard_gaps_delete", changed)
        if hand.record.is_sqlite
        else ("ALTER TABLE gaps DISABLE TRIGGER guard_gaps_change",)
    ):
        hand.connection.exec_driver_sql(statement)


def other_check(hand: Hand) -> None:
    """Let a CHECK stand under its own name, and refuse nothing."""
    if hand.record.is_sqlite:
        hand.sql(
            "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = replace(sql, 'polls >= 0', '1')"
            " WHERE name = 'jobs'; PRAGMA writable_schema = OFF"
        )
    else:
        hand.sql("ALTER TABLE jobs DROP CONSTRAINT ck_jobs_polls, ADD CONSTRAINT ck_jobs_polls CHECK (true)")


def other_view(hand: Hand) -> None:
    """Let report_gaps leave a cause out."""
    hand.sql("DROP VIEW report_gaps")
    shown = views.sql("report_gaps", hand.connection.dialect.name)
    database.execute(hand.connection, f"CREATE VIEW report_gaps AS SELECT * FROM ({shown}) g WHERE cause <> 'paused'")


ROW = "job_id = (SELECT id FROM jobs WHERE jid = '{}') AND seq = {}"
A1_0, A1_1, A1_2, B1_3 = (ROW.format(*row) for row in (("a1", 0), ("a1", 1), ("a1", 2), ("b1", 3)))
NO_A5 = f"DELETE FROM transitions WHERE {ROW.format('a5', 'seq')}; DELETE FROM jobs WHERE jid = 'a5'"
FIT = f"UPDATE transitions SET reference = 'X' WHERE {A1_0}; UPDATE jobs SET reference = 'X' WHERE jid = 'a1'"
COPIED = "cluster, began_at, ended_at, cause"
GAP = f"INSERT INTO gaps (id, {COPIED}) {{{{any_id}}}} SELECT {{}}, {COPIED} FROM gaps WHERE id = 3"
COPIED = "last_transition_id, last_gap_id, last_source_id, rows, sealed_at"
GARBAGE = f"INSERT INTO seals (checkpoint, checkpoint_sha256, {COPIED})"
GARBAGE += f" SELECT 'garbage', '{'0' * 64}', {COPIED} FROM seals WHERE id = 3"
HIDING = (
    "DROP INDEX ix_jobs_jid; CREATE INDEX ix_jobs_jid ON jobs (jid) WHERE jid <> 'a1'; PRAGMA writable_schema = ON;"
    " UPDATE sqlite_master SET sql = 'CREATE INDEX ix_jobs_jid ON jobs (jid)' WHERE name = 'ix_jobs_jid';"
    " PRAGMA writable_schema = RESET"
)
WORKING = (
    "INSERT INTO clusters (cluster, answered_at) VALUES ('w1', {now});"
    " INSERT INTO deliveries (destination) VALUES ('eve');"
    " INSERT INTO workers (worker, host, pid, version, started_at, beat_at) VALUES ('e', 'e', 1, '1', {now}, {now});"
    " INSERT INTO alerts (kind, subject, since, level) VALUES ('eve', 'w1', {now}, 'urgent');"
    " UPDATE jobs SET due_at = {now}, failures = 9, last_error = 'x', leased_by = 'eve', polls = 99 WHERE jid = 'a5'"
)


@dataclass(frozen=True)
class Case:
    """One way to falsify."""

    name: str  # what is done, in words
    do: Do
    found: str  # where `audit verify --public-key` finds it, as `place` has it, with commas between
    outside: str = ""  # what it finds besides with the checkpoints that were kept outside
    with_guards: bool = False  # it is about the guards, and leaves them as they are
    only: str | None = None  # the database on which alone it can be done


def place(finding: AuditFinding) -> str:
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
    Case("edit a transition", f"UPDATE transitions SET server_date = {{past}} WHERE {A1_2}", "rows 2-transitions-1"),
    Case("edit a gap", "UPDATE gaps SET detail = NULL WHERE id = 2", "rows 2-gaps-1"),
    Case("edit a source", "UPDATE sources SET base_url = 'https://x.example' WHERE id = 2", "rows 1-sources-1"),
    Case("edit a job's jid, which is in its transitions' lines", "UPDATE jobs SET jid = 'a9' WHERE jid = 'a1'",
         "rows 1-transitions-1, rows 1-transitions-2, rows 2-transitions-1, rows 3-transitions-1"),
    Case("delete a transition", f"DELETE FROM transitions WHERE {A1_1}", "history a1, rows 1-transitions-2"),
    Case("delete a gap", "DELETE FROM gaps WHERE id = 2", "rows 2-gaps-1"),
    Case("delete a source", "DELETE FROM sources WHERE id = 1",
         "history a1, history a2, history a3, history a5, history late, rows 1-sources-1"),
    Case("delete a job, and leave its history", "DELETE FROM jobs WHERE jid = 'a5'",
         "history, rows 1-transitions-2, rows 1-transitions-3"),
    Case("delete a job with its history", NO_A5, "rows 1-transitions-2, rows 1-transitions-3"),
    Case("delete a row that is not sealed yet", f"DELETE FROM transitions WHERE {B1_3}", "job b1"),
    Case("add a gap below all ids", GAP.format(0), "rows"),
    Case("replace a gap by another", f"DELETE FROM gaps WHERE id = 2; {GAP.format(2)}", "rows 2-gaps-1"),
    Case("swap two transitions", lambda h: h.swap("transitions", h.id("a1", 2), h.id("a2", 2)), "rows 2-transitions-1"),
    Case("edit a job and its registration to fit", FIT, "rows 1-transitions-1"),
    # jobs
    Case("edit a declared column of a job", "UPDATE jobs SET reference = NULL WHERE jid = 'a1'", "job a1"),
    Case("edit an observed column of a job", "UPDATE jobs SET ended_by = {now} WHERE jid = 'a1'", "job a1"),
    Case("edit a deadline", "UPDATE jobs SET deadline_at = {future} WHERE jid = 'a1'", "job a1"),
    Case("remove the next poll of an open job", "UPDATE jobs SET due_at = NULL WHERE jid = 'a5'", "job a5"),
    Case("edit working columns of a job, `clusters`, `workers`, `deliveries`, `alerts`", WORKING, ""),
    # rows that contradict the others (each that does is in test_checks)
    Case("a backdated observation", observed("{past}"), "history a5"),
    Case("a registration that plain SQL backdates", registered, "history old, unsealed"),
    Case("an invented observation with a plausible time", observed("{now}"), ""),
    # checkpoints and segments
    Case("edit a column of `seals`", "UPDATE seals SET last_gap_id = 9 WHERE id = 2", "checkpoint, checkpoint 2"),
    Case("edit the text of a checkpoint", lambda h: h.damage(), "checkpoint 2, checkpoint 3, key 2", "trusted 2"),
    Case("edit the text of a checkpoint, and the hash beside it", lambda h: h.damage(rehash=True),
         "checkpoint 2, checkpoint 3, key 2", "trusted 2"),
    Case("edit the text of the last checkpoint, and the hash beside it", lambda h: h.damage(3, rehash=True),
         "checkpoint 3, key 3", "trusted 3"),
    Case("replace a checkpoint by garbage", "UPDATE seals SET checkpoint = 'nothing' WHERE id = 2", "checkpoint 2",
         "trusted 2"),
    Case("add a row of garbage to `seals`", GARBAGE, "checkpoint 4"),
    Case("delete the first checkpoint", "DELETE FROM segments WHERE seal_id = 1; DELETE FROM seals WHERE id = 1",
         "checkpoint 1", "trusted 1"),
    Case("delete a checkpoint", "DELETE FROM segments WHERE seal_id = 2; DELETE FROM seals WHERE id = 2",
         "checkpoint 2", "trusted 2"),
    Case("delete a checkpoint, and leave its segments", "DELETE FROM seals WHERE id = 2", "checkpoint 2, segments",
         "trusted 2"),
    Case("swap two checkpoints", lambda h: h.swap("seals", 2, 3),
         "checkpoint, checkpoint 2, segments 2-gaps-1, segments 2-transitions-1, segments 2-transitions-2,"
         " segments 3, segments 3-gaps-1, segments 3-transitions-1"),
    Case("edit a hash in `segments`", f"UPDATE segments SET sha256 = '{'0' * 64}' WHERE seal_id = 2 AND name = 'gaps'",
         "segments 2-gaps-1"),
    Case("edit the ids in `segments`", "UPDATE segments SET last_id = last_id - 1 WHERE seal_id = 2 AND name = 'gaps'",
         "rows 2-gaps-1"),
    Case("delete a row of `segments`", "DELETE FROM segments WHERE seal_id = 2 AND name = 'gaps'", "segments 2-gaps-1"),
    Case("add a row to `segments`",
         f"INSERT INTO segments VALUES (2, 'gaps', 3, 2, 2, 1, '{'0' * 64}')", "segments 2"),
    # sealed again
    Case("edit both to fit, and seal everything again without a key", resealed(FIT, lambda r: None), "key",
         "trusted 1"),
    Case("edit both to fit, and seal everything again with another key", resealed(FIT, lambda r: r.other_key),
         "key", "trusted 1"),
    Case("edit both to fit, and seal everything again with the withdrawn key", resealed(FIT, lambda r: r.old_key),
         "key", "trusted 1"),
    Case("edit both to fit, and seal everything again with the stolen key", resealed(FIT, lambda r: r.key), "",
         "trusted 1"),
    Case("remove a job, and seal everything again with the stolen key", resealed(NO_A5, lambda r: r.key), "",
         "trusted 1"),
    Case("sign the last checkpoint with the withdrawn key", lambda h: h.resign(3, h.record.old_key), "key 3",
         "trusted 3"),
    Case("sign the last checkpoint with another key", lambda h: h.resign(3, h.record.other_key), "key 3", "trusted 3"),
    Case("let the withdrawn key announce another, and continue with it", announced, "key", "trusted 1"),
    Case("remove the last signature", lambda h: h.resign(3, None), "key 3", "trusted 3"),
    Case("edit the last signature, and the hash beside it", false_signature, "checkpoint 3, key 3", "trusted 3"),
    Case("let `sealed_at` run backwards, and sign it with the stolen key",
         lambda h: h.resign(3, h.record.key, sealed_at=datetime(2026, 1, 1, tzinfo=UTC)),
         "checkpoint, checkpoint 3, history a1, history a2, history a3, history b2, history w1", "trusted 3"),
    Case("cut off the end, or restore an old copy of the database", cut_off, "", "trusted 3"),
    # guards and the like
    Case("drop the guards", "SELECT 1", "guard", with_guards=True),
    Case("let a guard refuse nothing", other_guard, "guard", with_guards=True),
    Case("let a CHECK refuse nothing", other_check, "guard"),
    Case("let a view show something else", other_view, "view"),
    Case("give a right to everybody", "GRANT UPDATE ON transitions TO PUBLIC", "right", only="postgresql"),
    Case("build an index that hides rows", HIDING, "index", only="sqlite"),
    Case("leave an index that is not valid",
         "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_jobs_jid'::regclass", "index",
         only="postgresql"),
]
# fmt: on


def table() -> str:
    """Return the table in TAMPERING.md: what was done, and what finds it."""

    def found_by(places: str) -> str:
        return ", ".join(dict.fromkeys(f"`{FindingKind(place.split()[0])}`" for place in places.split(", ") if place))

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
def sealed(module_engine: sa.Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Record]:
    """The record, on each of the two databases."""
    folder = tmp_path_factory.mktemp("record")
    for name in "012":
        keys_module.keygen(folder / name)
    old, new, other = (SigningKey.load(folder / name) for name in "012")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracker.audit.seal.SEGMENT_ROWS", 4)
        yield Record(module_engine, old, new, other, build(module_engine, old, new))


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
        hand = Hand(record, connection)
        hand.sql(case.do) if isinstance(case.do, str) else case.do(hand)
        if not case.with_guards:
            guards.create(connection)
        yield connection
        connection.rollback()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_falsified_is_found_where_it_was(case: Case, sealed: Record) -> None:
    """Each kind of change is found in its place, and nowhere else."""
    if case.only not in (None, sealed.engine.dialect.name):
        pytest.skip(f"on {case.only} only")
    with falsified(sealed, case) as connection:
        report = verify(connection, public_key=sealed.key.public, trusted=sealed.trusted, zone=ZONE)
    found = {place(finding) for finding in report.findings}
    expected = {*case.found.split(", "), *case.outside.split(", ")} - {""}
    assert found == expected, [finding.message for finding in report.findings]


if __name__ == "__main__":
    print(table())
