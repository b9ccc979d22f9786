"""``tracker jobs`` and ``show`` as a person and a program read them, on both databases."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import subprocess
import sys
import tracemalloc
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests import history
from tests.conftest import Run
from tests.history import answer, register
from tracker import cli, database, deadline, status
from tracker.models import JOBS
from tracker.reports import jobs as queries
from tracker.reports import words
from tracker.status import Anomaly, State

JID = "ca24b4e2-34ab-406a-a4db-b30b0247837a"
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)


def table(run: Run, *args: str) -> list[dict[str, str]]:
    code, out, _ = run(*args, "--format", "csv")
    assert code == 0
    return list(csv.DictReader(io.StringIO(out)))


def jids(run: Run, *args: str) -> list[str]:
    return [row["jid"] for row in table(run, "jobs", *args)]


def records(text: str) -> dict[str, str]:
    """Return a table of one record, a line a cell, as heading -> text, folded lines put together again."""
    found: dict[str, str] = {}
    lines = text.splitlines()
    left = next(len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines if "  " in line)
    for line in lines:
        if line[:left].strip():
            heading = line[:left].strip()
            found[heading] = line[left:].strip()
        elif line.strip():
            found[heading] += " " + line.strip()
    return found


def at(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(" ", "seconds")


@pytest.fixture
def many(engine: sa.Engine, now: datetime) -> None:
    """A job in each state and with each verdict; the jid says which."""
    long_ago = now - 40 * DAY
    answer(engine, register(engine, "met", at=long_ago), ("done", long_ago + DAY))
    answer(engine, register(engine, "missed", at=long_ago), ("running", now - DAY), ("done", now - HOUR))
    answer(engine, register(engine, "between", at=long_ago), ("waiting", long_ago + DAY), ("done", now - 2 * HOUR))
    answer(engine, register(engine, "overdue", at=long_ago), ("running", now - DAY))
    answer(engine, register(engine, "unseen", at=long_ago + DAY), ("waiting", long_ago + 2 * DAY))
    answer(engine, register(engine, "lost", at=now - 3 * DAY), ("not_found", now - DAY), ("not_found", now - HOUR))
    answer(engine, register(engine, "failed", "w2", at=now - 4 * DAY, kind="export"), ("error", now - DAY))
    register(engine, "new", "w2", at=now - HOUR, kind="removal", reference="DSR-1")
    closed = register(engine, "closed", at=now - 2 * DAY, reference="DSR-1")
    history.record(engine, closed, lambda job, past: status.withdraw(job, now - 3 * HOUR, "eve", "a test"))


# jobs


@pytest.mark.usefixtures("many")
def test_jobs_come_most_urgent_first(run: Run) -> None:
    unsettled = ["overdue", "unseen", "failed", "lost", "new"]  # the nearest deadline first
    assert jids(run) == [*unsettled, "missed", "between", "closed", "met"]  # the last to end first
    assert "overdue  open: " in run("jobs", "--format", "table")[1]


@pytest.mark.usefixtures("many")
def test_each_filter_of_jobs_narrows(run: Run) -> None:
    assert jids(run, "--state", "lost", "--state", "failed") == ["failed", "lost"]
    assert jids(run, "--status", "waiting") == ["unseen"]
    assert jids(run, "--cluster", "w2") == ["failed", "new"]
    assert jids(run, "--kind", "export") == ["failed"]
    assert jids(run, "--reference", "DSR-1") == ["new", "closed"]
    assert set(jids(run, "--past-deadline")) == {"overdue", "unseen", "missed", "between"}
    assert jids(run, "--limit", "2") == ["overdue", "unseen"]
    assert jids(run, "--verdict", "met", "--verdict", "overdue") == ["overdue", "met"]
    assert jids(run, "--verdict", "undecidable", "--state", "done") == ["between"]
    assert jids(run, "--due-within", "28d") == ["failed", "lost"]
    assert jids(run, "--due-within", "8 weeks", "--kind", "removal") == ["new"]
    for args, problem in (
        (["--due-within", "soon"], "'--due-within': 'soon' is not a duration up to ten years: write 7d, 36h"),
        (["--due-within", "7d", "--past-deadline"], "use either --due-within or --past-deadline"),
        (["--reference", "\udcff"], "--reference contains an invisible character, or bytes that are not UTF-8"),
        (["--format", "json", "--for-spreadsheet"], "--for-spreadsheet has no effect on json: add --format csv"),
    ):
        code, out, err = run("jobs", *args)
        assert (code, out) == (2, "")
        assert problem in err


def test_csv_and_json_have_every_column_of_the_view_and_plain_values(
    engine: sa.Engine, run: Run, now: datetime
) -> None:
    submitted_at = now - 2 * DAY
    job_id = register(engine, JID, at=now - DAY, submitted_at=submitted_at, reference="=1+1")
    answer(engine, job_id, ("waiting", now - HOUR))
    [row] = table(run, "jobs")
    with database.reading(engine) as connection:
        assert list(row) == list(connection.execute(sa.text("SELECT * FROM report_jobs")).keys())
    assert row["submitted_at"] == submitted_at.isoformat(timespec="microseconds")
    assert row["reference"] == "=1+1"
    assert table(run, "jobs", "--for-spreadsheet")[0]["reference"] == "'=1+1"
    assert 2 * 86400 <= float(row["age_seconds"]) < 2 * 86400 + 3600
    [read] = json.loads(run("jobs", "--format", "json")[1])
    assert (read["reference"], read["status_by"], read["polls"]) == ("=1+1", row["status_by"], 1)
    assert read["ended_by"] is None


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_table_stops_at_its_limit_and_says_so_and_csv_does_not(engine: sa.Engine, run: Run) -> None:
    with database.writing(engine) as connection:
        connection.execute(sa.insert(JOBS), [{"cluster": "w1", "jid": f"j{n}"} for n in range(51)])
    _, out, err = run("jobs", "--format", "table")
    assert len(out.splitlines()) == 1 + 50
    assert "There are more than 50 jobs" in err
    _, out, err = run("jobs", "--format", "table", "--limit", "51")
    assert (len(out.splitlines()), err.count("more")) == (1 + 51, 0)
    _, out, err = run("jobs", "--format", "csv")
    assert (len(out.splitlines()), err) == (1 + 51, "")
    assert len(json.loads(run("jobs", "--format", "json", "--limit", "7")[1])) == 7


def test_any_number_of_jobs_is_streamed(
    engine: sa.Engine, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Memory does not grow with the rows."""
    jobs = 8_000
    with database.writing(engine) as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (cluster, jid, registered_at)"
            f" WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {jobs})"
            " SELECT 'w1', 'many' || CAST(n AS VARCHAR), '2026-11-02 09:00:00.000000' FROM s"
        )
    monkeypatch.setattr("tracker.reports.tables.BATCH", 20)
    run("jobs", "--format", "csv", "--limit", "1")  # what is imported and cached
    with (tmp_path / "many").open("w") as file, redirect_stdout(file):
        tracemalloc.start()
        try:
            assert cli.main(["jobs", "--format", "csv"]) == 0
            assert tracemalloc.get_traced_memory()[1] < 100 * jobs
        finally:
            tracemalloc.stop()
    assert (tmp_path / "many").read_text().count("many") == jobs


def test_the_listing_reads_no_more_than_it_shows(engine: sa.Engine, run: Run) -> None:
    """Each part of it, with a limit, walks an index in order: no database reads or sorts the whole of jobs."""
    with database.writing(engine) as connection:
        for state in ("NULL", "'2026-11-20 09:00:00.000000'"):
            connection.exec_driver_sql(
                "INSERT INTO jobs (cluster, jid, registered_at, deadline_at, deadline_on)"
                " WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 4000)"
                f" SELECT 'w1', 'j' || CAST(n AS VARCHAR) || replace(CAST(coalesce({state}, '') AS VARCHAR), ' ', 'T'),"
                " '2026-11-02 09:00:00.000000', '2026-12-02 23:00:00.000000', '2026-12-02' FROM s"
            )
        connection.exec_driver_sql(
            "UPDATE jobs SET state = 'withdrawn', seq = 1, ended_by = '2026-11-20 09:00:00.000000', due_at = NULL"
            " WHERE length(jid) > 10"
        )
    with engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
        connection.commit()
    plans: list[str] = []

    def explain(connection: sa.Connection, cursor: Any, statement: str, values: Any, *_: object) -> None:
        if "LIMIT" in statement and "report_jobs" in statement and "LIMIT 0" not in statement:
            how = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
            with engine.connect() as other:
                rows = other.exec_driver_sql(how + statement, values)
                plans.append("\n".join(str(row[-1]) for row in rows))

    with database.reading(engine) as connection:
        sa.event.listen(connection, "before_cursor_execute", explain)
        for wanted in ({}, {"state": ["withdrawn"]}):
            assert len(list(queries.jobs(connection, wanted, limit=51))) == 51
        assert len(list(queries.jobs(connection, {}, due_within=365 * DAY, limit=51))) == 51
    assert len(plans) == 4
    for plan in plans:
        assert "ix_jobs_unsettled" in plan or "ix_jobs_ended" in plan
        assert not re.search(r"SCAN (jobs|j)$|Seq Scan|TEMP B-TREE FOR ORDER BY|^ *-> +Sort", plan, re.MULTILINE), plan
    assert "ix_jobs_ended" in plans[2]


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_full_disk_is_an_error_in_one_line(url: str, engine: sa.Engine, tmp_path: Path) -> None:
    """Where the rows wait in a temporary file; half a table never comes out."""
    with database.writing(engine) as connection:
        connection.execute(sa.insert(JOBS), [{"cluster": "w1", "jid": f"j{n}"} for n in range(500)])
    done = subprocess.run(
        [Path(sys.executable).with_name("tracker"), "jobs", "--format", "csv"],
        env=os.environ | {"TRACKER_DATABASE_URL": url},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "tracker: error: cannot keep the rows in a temporary file: File too large; make room, or name another folder "
        "in TMPDIR\n"
    )


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_no_job_is_said_to_be_none(engine: sa.Engine, run: Run) -> None:
    assert run("jobs", "--format", "table") == (0, "", "No jobs match.\n")
    assert run("jobs", "--format", "json") == (0, "[]\n", "")


# show


def test_show_tells_all_of_a_job(engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    began = (now - 20 * DAY).replace(microsecond=0)
    job_id = register(
        engine, JID, at=began, submitted_at=began - HOUR, received_at=began - DAY, kind="export", reference="DSR-1"
    )
    seen = [began + HOUR, began + DAY, began + 2 * DAY, began + 3 * DAY]
    due_at = now + 2 * HOUR + MINUTE
    answer(engine, job_id, *zip(["waiting", "running", "waiting", "waiting"], seen, strict=True), due_at=due_at)
    code, out, err = run("show", JID, "--format", "table")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    title, _, rest = out.partition("\n")
    facts, _, timeline = rest.partition("\nTimeline\n")
    read = records(facts)
    assert title == f"Job {JID}"
    assert read["kind"] == "export (declared)"
    assert read["reference"] == "DSR-1 (declared)"
    assert read["request received"] == f"{at(began - DAY)} (declared)"
    assert read["submitted"] == f"{at(began - HOUR)} (declared)"
    assert read["registered"] == f"{at(began)} by alice, 1h after its submission"
    second = timedelta(seconds=1)
    assert read["status"] == f"waiting; began between {at(seen[1])} and {at(seen[2] + second)}; 2 answers in a row"
    assert read["last answer"] == at(seen[3])
    assert read["verdict"] == "pending: it is not done, and the deadline is in the future"
    assert read["next poll"].startswith(f"{at(due_at)}, in 2h")
    assert read["polls"] == "4"
    assert [line.split() for line in timeline.splitlines()][:2] == [
        ["#", "not", "before", "no", "later", "than", "change", "note"],
        f"0 {began:%Y-%m-%d} registered by alice".split(),
    ]
    monkeypatch.setenv("COLUMNS", "200")
    timeline = run("show", JID, "--format", "table")[1].partition("\nTimeline\n")[2]
    assert [line.split("  ", 1)[1].strip() for line in timeline.splitlines()[2:]] == [
        f"{at(began - HOUR)} (declared)  {at(seen[0] + second)}  waiting",
        f"{at(seen[0])}             {at(seen[1] + second)}  waiting -> running",
        f"{at(seen[1])}             {at(seen[2] + second)}  running -> waiting  backwards: an earlier status after a "
        "later one",
    ]


def test_the_bounds_of_each_change_are_in_csv_and_json(engine: sa.Engine, run: Run, now: datetime) -> None:
    sent = [now - 3 * HOUR, now - HOUR]
    job_id = register(engine, JID, at=now - DAY)
    answer(engine, job_id, ("waiting", sent[0]), ("done", sent[1]))
    _, first, second = table(run, "show", JID)
    assert (first["last_seen_at"], first["to_status"]) == ("", "waiting")
    assert second["last_seen_at"] == sent[0].isoformat(timespec="microseconds")
    assert second["observed_at"] == (sent[1] + timedelta(seconds=1)).isoformat(timespec="microseconds")
    read = json.loads(run("show", JID, "--format", "json")[1])
    assert [change["observed_at"] for change in read["timeline"][1:]] == [first["observed_at"], second["observed_at"]]
    assert read["job"]["ended_after"] == second["last_seen_at"]
    assert read["job"]["verdict_meaning"] == (
        "Elevate reported the job done in time; this does not show that the person was informed"
    )


@pytest.mark.usefixtures("many")
def test_show_says_no_more_than_the_verdict_does(run: Run) -> None:
    meanings = {
        "met": "met: Elevate reported the job done in time; this does not show that the person was informed",
        "missed": "missed: it was seen not done at or after the deadline, and done later",
        "between": "undecidable: the deadline lies between the bounds of its end",
        "overdue": "overdue: it was seen not done at or after the deadline",
        "unseen": "undecidable: the deadline is past, and the job was not seen since",
        "lost": "undecidable: the job is lost, so it is unknown whether it was done",
        "failed": "pending: it is not done, and the deadline is in the future",
        "closed": "withdrawn: an operator closed it",
    }
    for jid, meaning in meanings.items():
        assert records(run("show", jid, "--format", "table")[1].partition("\n")[2])["verdict"] == meaning


def test_every_verdict_and_anomaly_has_its_words() -> None:
    assert {words.verdict_meaning(verdict, state) for verdict in deadline.Verdict for state in State}
    assert set(words.ANOMALIES) == set(Anomaly)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_show_marks_the_row_that_proves_a_job_overdue(
    engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing changed: it was seen, still not done, after its deadline; and what the last poll failed with."""
    job_id = register(engine, "a", at=now - 3 * DAY)
    answer(engine, job_id, ("waiting", now - 2 * DAY))
    said = status.Answer("waiting", now - HOUR, now - HOUR)
    rule = status.LostRule()
    history.record(engine, job_id, lambda job, past: status.decide(job, said, rule, past, now - DAY))
    history.change(engine, job_id, failures=1, last_error="Unavailable http_503")
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(run("show", "a", "--format", "table")[1].split())
    assert "Unavailable http_503" in shown
    assert shown.endswith("still waiting first seen not done after its deadline")
