"""Every guard, and the ways past it that were thought of, on both databases."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import refused
from tests.definitions import FILE
from tracker import database, guards
from tracker.models import JOBS, TRANSITIONS

NOW = "2026-01-05 10:00:00.000000"
DIGEST = "0" * 64
ROWS = {  # a row for each append-only table
    "sources": "INSERT INTO sources (cluster, base_url, path, timezone, archive_days, lost_after_polls,"
    " lost_after_seconds, legal_timezone, version, recorded_at)"
    f" VALUES ('w1', 'https://x', '/p', 'UTC', 5, 5, 172800, 'UTC', '1', '{NOW}')",
    "gaps": f"INSERT INTO gaps (cluster, began_at, ended_at, cause) VALUES ('w1', '{NOW}', '{NOW}', 'paused')",
    "seals": "INSERT INTO seals (last_transition_id, last_gap_id, last_source_id, rows, checkpoint, checkpoint_sha256,"
    f" sealed_at) VALUES (1, 1, 1, 3, 'tracker checkpoint v2\nx', '{DIGEST}', '{NOW}')",
    "segments": "INSERT INTO segments (seal_id, name, part, first_id, last_id, rows, sha256)"
    f" VALUES (1, 'gaps', 1, 1, 1, 1, '{DIGEST}')",
    "transitions": "INSERT INTO transitions (job_id, seq, action, from_state, to_status, to_state, observed_at,"
    f" source_id, polls) VALUES (1, 1, 'observed', 'open', 'waiting', 'open', '{NOW}', 1, 1)",
}


JOB = "INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')"

only_sqlite = pytest.mark.parametrize("dialect", ["sqlite"])
only_postgresql = pytest.mark.parametrize("dialect", ["postgresql"])


@pytest.fixture
def filled(connection: sa.Connection) -> sa.Connection:
    """A database with a job (its registration row comes by itself) and a row in each append-only table, each id 1."""
    if connection.dialect.name == "postgresql":
        for table in ("jobs", "transitions", "sources", "gaps", "seals"):
            run(connection, f"ALTER TABLE {table} ALTER COLUMN id RESTART WITH 1")
    run(connection, JOB, *ROWS.values())
    return connection


def run(connection: sa.Connection, *statements: str) -> None:
    for statement in statements:
        database.execute(connection, statement)


def refuse(connection: sa.Connection, *statements: str) -> None:
    """Assert that a guard or a CHECK refuses the last statement, after the others; nothing of them stays."""
    with connection.begin_nested() as savepoint:
        run(connection, *statements[:-1])
        with refused(connection):
            run(connection, statements[-1])
        savepoint.rollback()


def test_history_is_neither_updated_nor_deleted(filled: sa.Connection) -> None:
    """UPDATE and DELETE of an append-only row are refused, of all rows and of one; so is DELETE of a job."""
    for table in guards.APPEND_ONLY:
        column = {"sources": "version", "gaps": "cause", "transitions": "actor"}.get(table, "rows")
        refuse(filled, f"UPDATE {table} SET {column} = {column}")
        refuse(filled, f"DELETE FROM {table}")
        refuse(filled, f"DELETE FROM {table} WHERE {'part' if table == 'segments' else 'id'} = 1")
    refuse(filled, "DELETE FROM jobs")


@only_postgresql
def test_truncate_and_the_replica_role_are_refused(filled: sa.Connection) -> None:
    """session_replication_role = replica switches ordinary triggers off, not these; CASCADE helps nobody."""
    replica = "SET LOCAL session_replication_role = replica"
    for table in (*guards.APPEND_ONLY, "jobs"):
        refuse(filled, f"TRUNCATE {table}")
        refuse(filled, f"TRUNCATE {table} CASCADE")
        refuse(filled, replica, f"TRUNCATE {table} CASCADE")
        refuse(filled, replica, f"DELETE FROM {table}")
    for change in ("transitions SET seq = 9", "sources SET archive_days = 9", "gaps SET id = DEFAULT"):
        refuse(filled, replica, f"UPDATE {change}")
    for change in ("seals SET rows = 9", "segments SET rows = 9", "jobs SET jid = 'b'"):
        refuse(filled, replica, f"UPDATE {change}")
    refuse(filled, replica, "INSERT INTO jobs (cluster, jid, state) VALUES ('w1', 'b', 'done')")


def with_id(statement: str, columns: str, values: str) -> str:
    head, tail = statement.split(" VALUES (", 1)
    return f"{head.replace(' (', f' ({columns}, ', 1)} VALUES ({values}, {tail}"


@only_sqlite
@pytest.mark.parametrize("way", ["INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL"])
def test_no_row_is_replaced_by_any_key(filled: sa.Connection, way: str) -> None:
    """SQLite's REPLACE deletes past a DELETE trigger: refused by each unique key, whatever conflict clause is given."""
    for table, insert in (ROWS | {"jobs": "INSERT INTO jobs (cluster, jid) VALUES ('w9', 'z')"}).items():
        if table != "segments":  # by the id
            statement = (
                with_id(insert, "id", "1").replace(DIGEST, "1" * 64).replace("(1, 1, 1, 'obs", "(1, 1, 77, 'obs")
            )
            refuse(filled, statement.replace("INSERT", way, 1))
    for insert in (JOB, ROWS["transitions"], ROWS["seals"], ROWS["segments"]):  # by the other key
        refuse(filled, insert.replace("INSERT", way, 1))
    insert = with_id(ROWS["segments"], "rowid", "1").replace("'gaps', 1", "'gaps', 2")  # by SQLite's hidden one
    refuse(filled, insert.replace("INSERT", way, 1))


@only_sqlite
def test_update_or_replace_is_refused(filled: sa.Connection) -> None:
    """UPDATE OR REPLACE cannot push a job over another one."""
    run(filled, JOB.replace("'a'", "'b'"))
    for change in ("jid = 'a'", "id = 1", "rowid = 1"):
        refuse(filled, f"UPDATE OR REPLACE jobs SET {change} WHERE jid = 'b'")
    refuse(filled, "UPDATE OR REPLACE transitions SET seq = 0 WHERE seq = 1")


def test_upsert_does_not_update(filled: sa.Connection) -> None:
    """INSERT … ON CONFLICT DO UPDATE is an UPDATE, and refused as one."""
    for insert, key, change in (
        (ROWS["transitions"], "job_id, seq", "actor = 'x'"),
        (ROWS["seals"], "checkpoint_sha256", "rows = 9"),
        (ROWS["segments"], "seal_id, name, part", "rows = 9"),
        (JOB, "cluster, jid", "kind = 'export'"),
    ):
        refuse(filled, f"{insert} ON CONFLICT ({key}) DO UPDATE SET {change}")


def next_seal(previous: str = DIGEST, **values: str) -> str:
    """Return an INSERT of a seal that follows the one with *previous*, by default that of `fill`, but for *values*."""
    row = {"last_transition_id": "1", "last_gap_id": "1", "last_source_id": "1", "rows": "0", "sealed_at": f"'{NOW}'"}
    row |= {"checkpoint_sha256": f"'{'b' * 64}'"}
    row |= {"checkpoint": f"'tracker checkpoint v2\nsha256 {previous}  checkpoints/000001.txt'"} | values
    return f"INSERT INTO seals ({', '.join(row)}) VALUES ({', '.join(row.values())})"


def test_a_seal_is_the_next_checkpoint(filled: sa.Connection) -> None:
    """The writer cannot stop the sealer with a row that is not a checkpoint: nobody could remove it."""
    for text in (
        *("garbage", "", "tracker checkpoint v2", "tracker checkpoint v22\n", "tracker checkpoint v2\norigin"),
        f" tracker checkpoint v2\nsha256 {DIGEST}  checkpoints/000001.txt",
    ):
        refuse(filled, next_seal(checkpoint=f"'{text}'"))
    for digest in ("", "b" * 63, "b" * 65, "B" * 64, "b" * 63 + "g"):
        refuse(filled, next_seal(checkpoint_sha256=f"'{digest}'"))
    refuse(filled, next_seal("1" * 64))
    for kind in ("transition", "gap", "source"):
        refuse(filled, next_seal(**{f"last_{kind}_id": "0"}))
    run(filled, next_seal())
    one = next_seal("b" * 64, checkpoint_sha256=f"'{'c' * 64}'")
    two = next_seal("c" * 64, checkpoint_sha256=f"'{'d' * 64}'", last_gap_id="7")
    run(filled, f"{one}, {two.partition(' VALUES ')[2]}")  # each follows the one before, also within a statement


def test_the_first_seal_has_no_seal_before_it(connection: sa.Connection) -> None:
    """A chain that begins with a checkpoint in the middle is refused."""
    refuse(connection, next_seal())


def test_an_observation_has_a_source_of_its_own_cluster(filled: sa.Connection) -> None:
    """An answer that came from nowhere, or from another cluster, is refused."""
    other = ROWS["sources"].replace("'w1'", "'w2'")
    for source in ("NULL", "99", "(SELECT max(id) FROM sources WHERE cluster = 'w2')"):
        insert = ROWS["transitions"].replace("(1, 1,", "(1, 2,").replace(f"'{NOW}', 1, 1)", f"'{NOW}', {source}, 1)")
        refuse(filled, other, insert)


OBSERVED = {"actor": "NULL", "reason": "NULL", "source_id": "1"}


IMPOSSIBLE: tuple[tuple[str, dict[str, str]], ...] = (
    ("withdrawn", {"actor": "NULL"}),  # by nobody
    ("withdrawn", {"reason": "NULL"}),
    ("withdrawn", {"reason": "'mail anna@example.org'"}),
    ("withdrawn", {"to_state": "'open'"}),
    ("withdrawn", {"from_state": "'done'"}),
    ("withdrawn", {"server_date": f"'{NOW}'"}),
    ("withdrawn", {"reference": "'R-1'"}),
    ("attested", {}),  # without a claim
    ("withdrawn", {"claimed_at": f"'{NOW}'"}),
    ("reopened", {"from_state": "'done'", "to_state": "'open'"}),
    ("amended", {"to_state": "'open'"}),  # without facts
    ("registered", {}),
    ("observed", OBSERVED | {"to_state": "'done'"}),  # status waiting
    ("observed", OBSERVED | {"to_status": "'done'", "to_state": "'open'"}),
    ("observed", OBSERVED | {"to_status": "NULL", "to_state": "'open'"}),
    ("withdrawn", {"last_seen_at": "'2026-01-05 10:00:00.000001'"}),
)


def test_a_transition_says_what_its_action_can(filled: sa.Connection) -> None:
    """A row that no honest program writes is refused by a CHECK, for every role."""
    for action, values in IMPOSSIBLE:
        row = {"job_id": "1", "seq": "2", "action": f"'{action}'", "from_status": "'waiting'", "to_status": "'waiting'"}
        row |= {"from_state": "'open'", "to_state": f"'{action}'", "observed_at": f"'{NOW}'", "polls": "1"}
        row |= {"actor": "'anna'", "reason": "'why'"} | values
        refuse(filled, f"INSERT INTO transitions ({', '.join(row)}) VALUES ({', '.join(row.values())})")


def insert_job(column: str, value: str) -> str:
    return f"INSERT INTO jobs (cluster, jid, {column}) VALUES ('w1', 'b', {value})"


def test_a_registration_claims_nothing_observed(filled: sa.Connection) -> None:
    """An INSERT into jobs that claims what only a poll shows, or a time that is still to come, is refused."""
    claims = {"state": ("'done'", "'withdrawn'", "NULL"), "status": ("'waiting'",), "due_at": ("NULL",)}
    claims |= dict.fromkeys(("status_polls", "seq", "polls", "failures"), ("1",)) | {"polls": ("NULL", "1")}
    claims |= dict.fromkeys(("last_error", "leased_by"), ("'x'",))
    times = ("status_after", "status_by", "seen_at", "ended_after", "ended_by", "leased_until")
    claims |= dict.fromkeys(times, (f"'{NOW}'",))
    future = "'2099-01-01 00:00:00.000000'"
    claims |= dict.fromkeys(("registered_at", "submitted_at", "received_at"), (future,))
    for column, values in claims.items():
        for value in values:
            refuse(filled, insert_job(column, value))
    refuse(filled, insert_job("due_at", future))
    refuse(filled, "UPDATE jobs SET due_at = NULL")  # an open job would never be polled again


def test_no_job_is_registered_before_it_was_submitted(connection: sa.Connection) -> None:
    """Registering needs the jid: what was done before the submission would have taken less than no time."""
    given = (
        "INSERT INTO jobs (cluster, jid, registered_at, {0}) VALUES ('w1', '{0}', '2026-01-05 10:00:00.000000', '{1}')"
    )
    for column in ("received_at", "submitted_at"):
        refuse(connection, given.format(column, "2026-01-05 10:01:00.000001"))
        run(connection, given.format(column, "2026-01-05 10:00:59.000000"))  # clocks differ


def test_no_time_of_another_shape(filled: sa.Connection) -> None:
    """A time and a day are real ones that Python can hold; `infinity` and words are not."""
    instants = ["infinity", "-infinity", "1969-12-31 23:59:59.999999", "9999-01-01 00:00:00.000000", "soon", "", "17"]
    days = ["infinity", "2026-02-30", "1969-12-31", "2026-01-05 10:00:00.000000x"]
    if filled.dialect.name == "sqlite":  # text of another shape would compare wrongly without an error
        instants += ["2026-01-05", "2026-01-05 10:00:00", "2026-01-05T10:00:00.000000", "2026-01-05 10:00:00.000000Z"]
        instants += ["2026-01-05 10:00:00.000000+02:00", "2026-02-30 10:00:00.000000", "2026-01-05 24:00:00.000000"]
        instants += ["2026-01-05 10:60:00.000000", "2026-01-05 10:00:00.000", " 2026-01-05 10:00:00.000000"]
        days += ["2026-1-5"]
        for value in ("1767607200", "CAST('2026-01-05 10:00:00.000000' AS BLOB)"):
            refuse(filled, insert_job("submitted_at", value))
    for value in instants:
        for column in ("received_at", "submitted_at", "registered_at", "due_at", "deadline_at"):
            refuse(filled, insert_job(column, f"'{value}'"))
    for value in days:
        refuse(filled, insert_job("extended_on", f"'{value}'"))


def test_no_text_that_is_empty_or_too_long_or_holds_controls(connection: sa.Connection) -> None:
    """So it is with every text that a person declares; at the limits each alphabet goes in."""
    for column in ("jid", "reference", "cluster", "registered_by"):
        for text in ("", " ", "x" * 256, "a\nb", "a\x1bb", "a\x9bb", "\t", "a\x00b", "a\u200bb", "\u202ea"):
            values = {"cluster": "w1", "jid": "b"} | {column: text}
            names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
            with refused(connection):
                connection.execute(sa.text(f"INSERT INTO jobs ({names}) VALUES ({marks})"), values)
    for jid in ("a b", " a", "a ", "\xa0", "a\u2003b", "\u3000"):  # no command could find it again
        with refused(connection):
            connection.execute(sa.text("INSERT INTO jobs (cluster, jid) VALUES ('w1', :jid)"), {"jid": jid})
    for jid in ("x" * 255, "é" * 255, "'\"|\\", "ключ", "😀"):
        connection.execute(sa.text("INSERT INTO jobs (cluster, jid) VALUES ('w1', :jid)"), {"jid": jid})


def test_no_unknown_word(filled: sa.Connection) -> None:
    """A kind or a state that tracker does not know is refused, on UPDATE too."""
    for kind in ("'erasure'", "''", "NULL"):
        refuse(filled, insert_job("kind", kind))
    refuse(filled, "UPDATE jobs SET state = 'finished'")


def test_declared_columns_do_not_change_by_update(filled: sa.Connection) -> None:
    """Facts change by an amendment only: not alone, and not along with a rising seq."""
    given = "id = DEFAULT" if filled.dialect.name == "postgresql" else "id = 9"
    for change in (
        *("kind = 'export'", "reference = 'R-1'", f"received_at = '{NOW}'", f"submitted_at = '{NOW}'", given),
        *("extended_on = '2026-03-01'", "jid = 'b'", "cluster = 'w2'", f"registered_at = '{NOW}'"),
        "registered_by = 'nobody'",
    ):
        refuse(filled, f"UPDATE jobs SET {change}")
        refuse(filled, f"UPDATE jobs SET {change}, seq = seq + 1")


AMENDMENT = (
    "INSERT INTO transitions"
    " (job_id, seq, action, from_state, to_state, observed_at, polls, actor, reason, kind, reference)"
    f" VALUES (1, 2, 'amended', 'open', 'open', '{NOW}', 1, 'anna', 'why', 'export', 'R-1')"
)


def test_an_amendment_that_is_on_record_goes_through(filled: sa.Connection) -> None:
    """The guard lets a change through whose facts the transition of the next seq already holds, and no other."""
    run(filled, "UPDATE jobs SET seq = 1")
    change = "UPDATE jobs SET seq = 2, kind = 'export', reference = "
    refuse(filled, change + "'R-1'")  # no transition
    withdrawal = AMENDMENT.replace("'amended', 'open', 'open'", "'withdrawn', 'open', 'withdrawn'")
    withdrawal = withdrawal.replace(", kind, reference)", ")").replace(", 'export', 'R-1')", ")")
    refuse(filled, withdrawal, change + "'R-1'")  # of another action
    refuse(filled, AMENDMENT, change + "'R-2'")  # with other facts
    refuse(filled, AMENDMENT, change.replace("seq = 2", "seq = 3") + "'R-1'")  # a seq left out
    refuse(filled, AMENDMENT, change + "'R-1', jid = 'b'")  # what no amendment may change
    run(filled, AMENDMENT, change + "'R-1'")
    row = filled.exec_driver_sql("SELECT seq, kind, reference FROM jobs").one()
    assert tuple(row) == (2, "export", "R-1")


def test_a_temporary_table_does_not_stand_in_for_the_history(filled: sa.Connection) -> None:
    """A session's own table named transitions does not satisfy the guard, and does not catch a registration."""
    columns = (
        "job_id integer, seq integer, action text, from_state text, to_state text, reason text,"
        " observed_at text, polls integer, kind text,"
        " reference text, received_at {t}, submitted_at {t}, extended_on {d}, actor text"
    )
    if filled.dialect.name == "postgresql":
        table, columns = "pg_temp.transitions", columns.format(t="timestamptz", d="date")
    else:
        table, columns = "temp.transitions", columns.format(t="text", d="text")
    run(filled, "UPDATE jobs SET seq = 1")
    refuse(
        filled,
        f"CREATE TEMPORARY TABLE transitions ({columns})",
        AMENDMENT.replace("INTO transitions", f"INTO {table}"),
        "UPDATE jobs SET seq = 2, kind = 'export', reference = 'R-1'",
    )


def test_the_deadline_is_settled_by_the_first_answer(filled: sa.Connection) -> None:
    """Plain SQL may leave the deadline out or get it wrong: the poller corrects it, and from then on it stays."""
    run(filled, f"UPDATE jobs SET deadline_on = '2026-02-05', deadline_at = '{NOW}'")
    run(filled, "UPDATE jobs SET polls = 1, failures = 1")
    run(filled, "UPDATE jobs SET polls = 2, status = 'waiting', deadline_on = '2026-02-06'")
    refuse(filled, "UPDATE jobs SET deadline_on = '2027-02-06'")
    refuse(filled, "UPDATE jobs SET deadline_at = NULL")


def test_plain_sql_registers_a_job(connection: sa.Connection) -> None:
    """An INSERT that gives cluster and jid only is a whole registration: open, due now, with its row in the history."""
    before = database.now(connection)
    connection.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a'), ('w1', 'b')")
    jobs = connection.execute(sa.select(JOBS).order_by(JOBS.c.id)).all()
    history = connection.execute(sa.select(TRANSITIONS).order_by(TRANSITIONS.c.id)).all()
    assert [(j.jid, j.kind, j.state, j.status, j.seq, j.polls) for j in jobs] == [
        (jid, "unknown", "open", None, 0, 0) for jid in "ab"
    ]
    for job, row in zip(jobs, history, strict=True):
        assert abs((job.registered_at - before).total_seconds()) < 5
        assert job.due_at is not None
        assert (row.job_id, row.seq, row.action, row.to_state) == (job.id, 0, "registered", "open")
        assert (row.observed_at, row.actor, row.kind) == (job.registered_at, job.registered_by, "unknown")


@only_postgresql
def test_registration_rows_come_under_the_replica_role_and_by_copy(filled: sa.Connection) -> None:
    """No way into jobs leaves the history out: COPY and the replica role write the registration row too."""
    run(filled, "SET LOCAL session_replication_role = replica", JOB.replace("'a'", "'r'"))
    run(filled, "SET LOCAL session_replication_role = DEFAULT")
    cursor: Any = filled.connection.cursor()
    with cursor.copy("COPY jobs (cluster, jid) FROM STDIN") as copy:
        copy.write("w1\tc1\nw1\tc2\n")
    registered = "SELECT count(*) FROM jobs j JOIN transitions t ON t.job_id = j.id WHERE t.seq = 0"
    assert filled.exec_driver_sql(registered).scalar_one() == 4


@only_sqlite
def test_check_names_a_changed_guard(connection: sa.Connection) -> None:
    """A guard that was put back with another body, and a foreign trigger, are found."""
    run(
        connection,
        "DROP TRIGGER guard_gaps_delete",
        "CREATE TRIGGER guard_gaps_delete BEFORE DELETE ON gaps BEGIN SELECT 1; END",
        "CREATE TRIGGER mine AFTER INSERT ON transitions BEGIN SELECT 1; END",
    )
    assert guards.problems(connection) == ["guard guard_gaps_delete is changed", "trigger mine is not tracker's"]


CHANGES = (
    (
        "DROP TRIGGER guard_gaps_change ON gaps;"
        "CREATE TRIGGER guard_gaps_change BEFORE UPDATE OF detail OR DELETE ON gaps FOR EACH ROW"
        " EXECUTE FUNCTION tracker_refuse(); ALTER TABLE gaps ENABLE ALWAYS TRIGGER guard_gaps_change",
        "guard guard_gaps_change is changed",
    ),
    ("ALTER FUNCTION tracker_refuse() SET search_path = public", "function tracker_refuse is changed"),
    ("DROP FUNCTION tracker_refuse() CASCADE", "function tracker_refuse is missing"),
    (
        "ALTER TABLE gaps DROP CONSTRAINT ck_gaps_order, ADD CONSTRAINT ck_gaps_order"
        " CHECK (ended_at >= began_at OR cause = 'paused')",
        "table gaps: missing or changed: CONSTRAINT ck_gaps_order",
    ),
    ("ALTER TABLE gaps ALTER COLUMN id SET GENERATED BY DEFAULT", "table gaps: missing or changed: id bigint"),
    ("ALTER TABLE gaps DISABLE TRIGGER guard_gaps_change", "guard guard_gaps_change is changed"),
    (
        "CREATE OR REPLACE FUNCTION tracker_refuse_claim() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NEW\\; END'",
        "function tracker_refuse_claim is changed",
    ),
)


@only_postgresql
def test_check_names_what_takes_the_place_of_a_guard(connection: sa.Connection) -> None:
    """A guard on some columns only, another function, a CHECK that lets more in under its own name."""
    for statements, problem in CHANGES:
        with connection.begin_nested() as savepoint:
            run(connection, *(statement.replace("\\;", ";") for statement in re.split(r"(?<!\\);", statements)))
            found = guards.problems(connection)
            assert any(line.startswith(problem) for line in found), (problem, found)
            savepoint.rollback()
    assert guards.problems(connection) == []


def test_the_tables_are_those_that_are_kept(connection: sa.Connection) -> None:
    """A migration that changes a table changes ``tables.json``, too: python -m tests.definitions."""
    assert guards.definitions(connection) == json.loads(FILE.read_text(encoding="utf-8"))[connection.dialect.name]
