"""The checks find what no honest history says, and nothing in honest ones, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from tests import lives
from tests.history import ZONE, change, job, record, register
from tests.lives import DAY, HOUR, SECOND, Life
from tracker import database, guards, status
from tracker.audit.checks import Problem, findings
from tracker.status import Facts, Kind

AT = datetime(2025, 3, 31, 8, 30, 0, 1, tzinfo=UTC)


def found(engine: sa.Engine) -> list[Problem]:
    with database.reading(engine) as connection:
        return list(findings(connection, ZONE))


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
                connection.exec_driver_sql(
                    "ALTER TABLE transitions DROP CONSTRAINT fk_transitions_source_id_sources,"
                    " DROP CONSTRAINT fk_transitions_job_id_jobs, DROP CONSTRAINT uq_transitions_job_id_seq"
                )
            guards.drop(connection)
            yield connection
        for name, value in pragmas.items():
            raw.execute(f"PRAGMA {name} = {1 - value}")


def shift(dialect: str, column: str, seconds: int) -> str:
    """Return SQL for the instant in *column* and so many seconds."""
    if dialect == "sqlite":
        return f"strftime('%Y-%m-%d %H:%M:%S', substr({column}, 1, 19), '{seconds} seconds') || substr({column}, 20)"
    return f"{column} + interval '{seconds} seconds'"


def test_honest_histories_have_no_findings(engine: sa.Engine) -> None:
    """Of hundreds of lives of jobs none is a finding; the notes are about server dates only."""
    lives.write(engine, 1, [*lives.told(), *lives.drawn(1, 100)])
    assert [problem for problem in found(engine) if "server said" not in problem.message] == []


def test_a_clock_that_is_corrected_by_seconds_makes_no_finding(engine: sa.Engine) -> None:
    """An action is recorded by the database's clock, which may be set back by less than what is worth a gap."""
    job_id = register(engine, "a")
    at = job(engine, job_id).registered_at
    record(engine, job_id, lambda one, _: status.withdraw(one, at + 5 * SECOND, "bob", "no"))
    record(engine, job_id, lambda one, _: status.reopen(one, at + 3 * SECOND, "bob", "yes"), due_at=at)
    assert found(engine) == []


def test_a_job_that_was_asked_for_in_vain_has_no_deadline_yet(engine: sa.Engine) -> None:
    """Plain SQL registers without one, and the first answer brings it; a request that failed is a poll, too."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')")
    change(engine, 1, polls=1, failures=1)
    record(engine, 1, lambda one, _: status.withdraw(one, one.registered_at, "bob", "no"))
    assert found(engine) == []


def written(engine: sa.Engine) -> None:
    """Write jobs 1 to 4: done, attested, amended, and open of another cluster; sealed at a third and a half."""
    facts = Facts(Kind.EXPORT, "R-1", AT, AT)
    lives.write(
        engine,
        1,
        [
            Life("w1", "done", facts, AT + HOUR)
            .answer("waiting", AT + 2 * HOUR)
            .answer("running", AT + 9 * HOUR)
            .answer("done", AT + 10 * HOUR),
            Life("w1", "attested", facts, AT + HOUR).answer("waiting", AT + 2 * HOUR).attest(AT + DAY, AT + HOUR),
            Life("w1", "amended", facts, AT + HOUR)
            .amend(AT + 2 * HOUR, reference="R-2")
            .answer("waiting", AT + 3 * HOUR)
            .answer("not_found", AT + 4 * HOUR),
            Life("w2", "open", Facts(), AT + HOUR).answer("waiting", AT + 2 * HOUR),
        ],
    )


@dataclass(frozen=True)
class Attack:
    """A change of the database, and what is found of it: in which table, and some words of the message."""

    sql: str
    table: str
    words: str


OF = "(SELECT id FROM jobs WHERE jid = '{}')"
DONE, ATTESTED, AMENDED, OPEN = (OF.format(jid) for jid in ("done", "attested", "amended", "open"))
ATTACKS = {
    "a hole": Attack(f"DELETE FROM transitions WHERE job_id = {DONE} AND seq = 1", "transitions", "seq 2 follows 0"),
    "no registration": Attack(
        f"DELETE FROM transitions WHERE job_id = {DONE} AND seq = 0", "transitions", "the registration is missing"
    ),
    "a double": Attack(
        f"UPDATE transitions SET seq = 2 WHERE job_id = {DONE} AND seq = 3", "transitions", "seq 2 follows 2"
    ),
    "no job": Attack(
        f"UPDATE transitions SET job_id = 999 WHERE job_id = {OPEN} AND seq = 1", "transitions", "id 999 is missing"
    ),
    "another status before": Attack(
        f"UPDATE transitions SET from_status = 'created' WHERE job_id = {DONE} AND seq = 2",
        "transitions",
        "from_status is created, but the status was waiting",
    ),
    "another state before": Attack(
        f"UPDATE transitions SET from_state = 'lost' WHERE job_id = {ATTESTED} AND seq = 2",
        "transitions",
        "from_state is lost, but the state was open",
    ),
    "fewer polls": Attack(
        f"UPDATE transitions SET polls = 1 WHERE job_id = {DONE} AND seq = 3", "transitions", "polls is 1, but was 2"
    ),
    "an earlier sight": Attack(
        f"UPDATE transitions SET last_seen_at = '2025-03-31 09:00:00.000000'{{utc}} WHERE job_id = {DONE} AND seq = 3",
        "transitions",
        "last_seen_at is 2025-03-31 09:00:00",
    ),
    "a sight after the answer": Attack(
        f"UPDATE transitions SET last_seen_at = {{later}} WHERE job_id = {DONE} AND seq = 3",
        "transitions",
        "after observed_at",
    ),
    "times that run backwards": Attack(
        f"UPDATE transitions SET observed_at = {{earlier}} WHERE job_id = {DONE} AND seq = 3",
        "transitions",
        "observed_at is",
    ),
    "no source": Attack(
        f"UPDATE transitions SET source_id = NULL WHERE job_id = {DONE} AND seq = 3", "transitions", "source is missing"
    ),
    "another cluster's source": Attack(
        "UPDATE transitions SET source_id = (SELECT max(id) FROM sources WHERE cluster = 'w2')"
        f" WHERE job_id = {DONE} AND seq = 3",
        "transitions",
        "belongs to cluster w2",
    ),
    "attested by nobody": Attack(
        f"UPDATE transitions SET actor = NULL WHERE job_id = {ATTESTED} AND seq = 2",
        "transitions",
        "attested, but actor is empty",
    ),
    "attested without a claim": Attack(
        f"UPDATE transitions SET claimed_at = NULL WHERE job_id = {ATTESTED} AND seq = 2",
        "transitions",
        "claimed_at is empty",
    ),
    "attested in the future": Attack(
        f"UPDATE transitions SET claimed_at = {{later}} WHERE job_id = {ATTESTED} AND seq = 2",
        "transitions",
        "claimed_at is",
    ),
    "received in the future": Attack(
        f"UPDATE transitions SET received_at = {{future}} WHERE job_id = {AMENDED} AND seq = 1",
        "transitions",
        "received_at is",
    ),
    "submitted in the future": Attack(
        f"UPDATE transitions SET submitted_at = {{future}} WHERE job_id = {OPEN} AND seq = 0",
        "transitions",
        "submitted_at is",
    ),
    "no reason": Attack(
        f"UPDATE transitions SET reason = NULL WHERE job_id = {AMENDED} AND seq = 1", "transitions", "reason is missing"
    ),
    "an answer with a reason": Attack(
        f"UPDATE transitions SET reason = 'x' WHERE job_id = {DONE} AND seq = 1", "transitions", "has an actor, a claim"
    ),
    "an answer with facts": Attack(
        f"UPDATE transitions SET reference = 'R-9' WHERE job_id = {DONE} AND seq = 1", "transitions", "declared facts"
    ),
    "done with status running": Attack(
        f"UPDATE transitions SET to_status = 'running' WHERE job_id = {DONE} AND seq = 3",
        "transitions",
        "observed with status running, from_state open and to_state done",
    ),
    "an end without its status": Attack(
        f"UPDATE transitions SET to_state = 'open' WHERE job_id = {DONE} AND seq = 3",
        "transitions",
        "observed with status done, from_state open and to_state open",
    ),
    "an amendment that changes the status": Attack(
        f"UPDATE transitions SET to_status = 'done' WHERE job_id = {AMENDED} AND seq = 1",
        "transitions",
        "the status changes to done",
    ),
    "another anomaly": Attack(
        f"UPDATE transitions SET anomaly = NULL WHERE job_id = {AMENDED} AND seq = 3",
        "transitions",
        "anomaly is empty, but should be vanished",
    ),
    "an invented anomaly": Attack(
        f"UPDATE transitions SET anomaly = 'backwards' WHERE job_id = {DONE} AND seq = 1",
        "transitions",
        "anomaly is backwards, but should be empty",
    ),
    "a gap that ends before it begins": Attack(
        "UPDATE gaps SET began_at = {later} WHERE id = 1".replace("{later}", "{gap_later}"), "gaps", "but began_at is"
    ),
    "a row of the future": Attack(
        f"UPDATE transitions SET observed_at = {{future}} WHERE job_id = {ATTESTED} AND seq = 2",
        "transitions",
        "but its checkpoint closes",
    ),
    "a registration backdated": Attack(
        "INSERT INTO jobs (cluster, jid, registered_at, due_at) VALUES ('w1', 'old', {backdated}, {backdated})",
        "transitions",
        "but its checkpoint closes",
    ),
    "another fact in jobs": Attack("UPDATE jobs SET reference = 'X' WHERE jid = 'done'", "jobs", "reference is X"),
    "another state in jobs": Attack("UPDATE jobs SET state = 'failed' WHERE jid = 'done'", "jobs", "state is failed"),
    "an end in jobs": Attack("UPDATE jobs SET ended_by = NULL WHERE jid = 'done'", "jobs", "ended_by is empty"),
    "fewer polls in jobs": Attack("UPDATE jobs SET polls = 2 WHERE jid = 'done'", "jobs", "polls is 2"),
    "another deadline": Attack("UPDATE jobs SET deadline_on = '2029-01-01' WHERE jid = 'done'", "jobs", "deadline_on"),
    "a job that is never polled": Attack("UPDATE jobs SET due_at = NULL WHERE jid = 'open'", "jobs", "nobody polls it"),
    "no transitions": Attack(f"DELETE FROM transitions WHERE job_id = {OPEN}", "jobs", "registration is missing"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_impossible_history_is_found(engine: sa.Engine, name: str) -> None:
    """A finding names the table and the job, and says what it saw; nothing is said of other jobs."""
    attack, dialect = ATTACKS[name], engine.dialect.name
    written(engine)
    before = set(found(engine))
    now = "clock_timestamp()" if dialect == "postgresql" else "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
    sql = attack.sql.format(
        utc="" if dialect == "sqlite" else "::timestamptz",
        later=shift(dialect, "observed_at", 60),
        earlier=shift(dialect, "observed_at", -7200),
        gap_later=shift(dialect, "ended_at", 60),
        future=shift(dialect, now, 200 * 86400),
        backdated=f"'{AT - 90 * DAY:%Y-%m-%d %H:%M:%S.%f}'" + ("" if dialect == "sqlite" else "::timestamptz"),
    )
    with unguarded(engine) as connection:
        if name == "a registration backdated":
            guards.create(connection)  # none of them refuses it
        if dialect == "sqlite" and name == "a double":
            pytest.skip("the unique index refuses it, and its absence is found by integrity_check")
        connection.exec_driver_sql(sql)
    new = [problem for problem in found(engine) if problem not in before and not problem.is_note]
    assert any(problem.table == attack.table and attack.words in problem.message for problem in new), new
    assert len({problem.jid for problem in new} - {None}) <= 1
