"""The checks find what no honest history says, and nothing in honest ones, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from tests import lives
from tests.history import ZONE, change, job, record, register
from tests.lives import DAY, HOUR, SECOND, Life
from tracker import database, guards, status
from tracker.audit.checks import findings
from tracker.audit.findings import AuditFinding
from tracker.status import Facts, Kind

AT = datetime(2025, 3, 31, 8, 30, 0, 1, tzinfo=UTC)


def found(engine: sa.Engine) -> list[AuditFinding]:
    with database.reading(engine) as connection:
        return list(findings(connection, ZONE))


def problems(connection: sa.Connection) -> set[str]:
    """Return what the checks find, notes aside: the kind, the job, the message."""
    return {f"{one.what} {one.jid}: {one.message}" for one in findings(connection, ZONE) if not one.is_note}


@contextmanager
def unguarded(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection on which nothing refuses a change, as the owner of the tables can have it."""
    pragmas = {"ignore_check_constraints": 1, "foreign_keys": 0} if engine.dialect.name == "sqlite" else {}
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        for name, value in pragmas.items():
            raw.execute(f"PRAGMA {name} = {value}")
        with connection.begin():
            if engine.dialect.name == "postgresql":
                for table in (*guards.APPEND_ONLY, "jobs"):
                    for check in sa.inspect(connection).get_check_constraints(table):
                        connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {check['name']}")
                for name in (
                    "fk_transitions_source_id_sources",
                    "fk_transitions_job_id_jobs",
                    "uq_transitions_job_id_seq",
                ):
                    connection.exec_driver_sql(f"ALTER TABLE transitions DROP CONSTRAINT IF EXISTS {name}")
            guards.drop(connection)
            yield connection
        for name, value in pragmas.items():
            raw.execute(f"PRAGMA {name} = {1 - value}")


def test_honest_histories_have_no_findings(engine: sa.Engine) -> None:
    """Of whole lives of jobs none is a finding; nor is a correction of the clock by seconds, or a job asked in vain."""
    lives.write(engine, 1, [*lives.on_boundaries(), *lives.drawn(1, 60)])
    job_id = register(engine, "corrected")
    at = job(engine, job_id).registered_at
    record(engine, job_id, lambda one, _: status.withdraw(one, at + 5 * SECOND, "bob", "no"))
    record(engine, job_id, lambda one, _: status.reopen(one, at + 3 * SECOND, "bob", "yes"), due_at=at)
    with database.writing(engine) as connection:
        insert = "INSERT INTO jobs (cluster, jid) VALUES ('w1', 'plain') RETURNING id"
        plain = connection.exec_driver_sql(insert).scalar_one()
    change(engine, plain, polls=1, failures=1)  # the first answer brings the deadline; a request that failed is a poll
    record(engine, plain, lambda one, _: status.withdraw(one, one.registered_at, "bob", "no"))
    assert {one.is_note and "server_date" in one.message for one in found(engine)} <= {True}


def written(engine: sa.Engine) -> None:
    """Write four jobs: done, attested, amended, and open in another cluster; sealed at a third and a half."""
    facts = Facts(Kind.EXPORT, "R-1", AT, AT)
    done, attested, amended = (Life("w1", jid, facts, AT + HOUR) for jid in ("done", "attested", "amended"))
    done.answer("waiting", AT + 2 * HOUR).answer("running", AT + 9 * HOUR).answer("done", AT + 10 * HOUR)
    attested.answer("waiting", AT + 2 * HOUR).attest(AT + DAY, AT + HOUR)
    amended.amend(AT + 2 * HOUR, reference="R-2").answer("waiting", AT + 3 * HOUR).answer("not_found", AT + 4 * HOUR)
    other = Life("w2", "open", Facts(), AT + HOUR).answer("waiting", AT + 2 * HOUR)
    lives.write(engine, 1, [done, attested, amended, other])


ROW = "job_id = (SELECT id FROM jobs WHERE jid = '{}') AND seq = {}"
DELETED = (  # a row of transitions that is deleted, and what is found
    ("done", 1, "history", "seq 2 follows 0"),
    ("done", 0, "history", "the registration is missing"),
    ("done", 0, "job", "its registration is missing"),
)
EDITED = (  # a row of transitions, how it is changed, and what is found
    ("open", 1, "job_id = 999", "id 999 is missing"),
    ("done", 2, "from_status = 'created'", "from_status is created, but the status was waiting"),
    ("attested", 2, "from_state = 'lost'", "from_state is lost, but the state was open"),
    ("done", 3, "polls = 1", "polls is 1, but was 2"),
    ("done", 3, "last_seen_at = {long_ago}", "last_seen_at is"),
    ("done", 3, "last_seen_at = {later}", "after observed_at"),
    ("done", 3, "observed_at = {earlier}", "observed_at is"),
    ("done", 3, "source_id = NULL", "source is missing"),
    ("done", 3, "source_id = (SELECT max(id) FROM sources WHERE cluster = 'w2')", "belongs to cluster w2"),
    ("attested", 2, "actor = NULL", "attested, but actor is empty"),
    ("attested", 2, "claimed_at = NULL", "attested, but claimed_at is empty"),
    ("attested", 2, "claimed_at = {later}", "claimed_at is"),
    ("amended", 1, "claimed_at = observed_at", "amended, but has a claimed_at"),
    ("amended", 1, "received_at = {future}", "received_at is"),
    ("open", 0, "submitted_at = {future}", "submitted_at is"),
    ("amended", 1, "reason = NULL", "reason is missing"),
    ("open", 0, "reason = 'x'", "the reason is x"),
    ("done", 1, "reason = 'x'", "has an actor, a claim"),
    ("done", 1, "reference = 'R-9'", "declared facts"),
    ("done", 3, "to_status = 'running'", "observed with status running, from_state open and to_state done"),
    ("done", 3, "to_state = 'open'", "observed with status done, from_state open and to_state open"),
    ("amended", 1, "to_status = 'done'", "the status changes to done"),
    ("amended", 3, "anomaly = NULL", "anomaly is empty, but should be vanished"),
    ("done", 1, "anomaly = 'backwards'", "anomaly is backwards, but should be empty"),
    ("attested", 2, "observed_at = {future}", "but its checkpoint closes"),
)
OF_JOBS = (
    ("done", "reference = 'X'", "reference is X"),
    ("done", "state = 'failed'", "state is failed"),
    ("done", "ended_by = NULL", "ended_by is empty"),
    ("done", "polls = 2", "polls is 2"),
    ("done", "deadline_on = '2029-01-01'", "deadline_on"),
    ("open", "due_at = NULL", "it is never polled"),
)
OLD = "INSERT INTO jobs (cluster, jid, registered_at, due_at) VALUES ('w1', 'old', {long_ago}, {long_ago})"


def attacks() -> Iterator[tuple[str, str, str]]:
    """Yield a change of the database, and the beginning and some words of what is found."""
    for jid, seq, what, words in DELETED:
        yield f"DELETE FROM transitions WHERE {ROW.format(jid, seq)}", f"{what} {jid}: ", words
    for jid, seq, values, words in EDITED:
        who = "None" if "999" in values else jid
        yield f"UPDATE transitions SET {values} WHERE {ROW.format(jid, seq)}", f"history {who}: ", words
    for jid, values, words in OF_JOBS:
        yield f"UPDATE jobs SET {values} WHERE jid = '{jid}'", f"job {jid}: ", words
    yield "UPDATE gaps SET began_at = {gap_later} WHERE id = 1", "history None: ", "but began_at is"
    yield OLD, "history old: ", "but its checkpoint closes"


def test_an_impossible_history_is_found(engine: sa.Engine) -> None:
    """A finding names the table and the job, and says what it saw; nothing is said of other jobs."""
    written(engine)

    def shift(column: str, seconds: int) -> str:
        if engine.dialect.name == "postgresql":
            return f"{column} + interval '{seconds} seconds'"
        return f"strftime('%Y-%m-%d %H:%M:%S', substr({column}, 1, 19), '{seconds} seconds') || substr({column}, 20)"

    times = {"later": shift("observed_at", 60), "earlier": shift("observed_at", -7200)}
    times |= {"gap_later": shift("ended_at", 60), "long_ago": "'2024-12-31 08:30:00.000001'"}
    times |= {"future": "'2099-01-01 00:00:00.000000'"}
    with unguarded(engine) as connection:
        before = problems(connection)
        for change_, beginning, words in attacks():
            with connection.begin_nested() as savepoint:
                if change_ is OLD:
                    guards.create(connection)  # none of them refuses it
                connection.exec_driver_sql(change_.format(**times))
                new = problems(connection) - before
                savepoint.rollback()
            assert any(one.startswith(beginning) and words in one for one in new), (change_, new)
            assert len({one.split(":")[0].split()[1] for one in new} - {"None"}) <= 1, (change_, new)
