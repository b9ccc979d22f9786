"""``tracker status`` and ``tracker clusters``: real rows on both databases, what is shown, the exit code, the cost."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

import pytest
import sqlalchemy as sa

from tests import history
from tests.conftest import Run
from tests.history import answer, change, daemon, register, stand
from tracker import database, status
from tracker.audit.seal import seal
from tracker.models import DELIVERIES, SEALS
from tracker.reports import overview
from tracker.status import Cause

DAY, HOUR, MINUTE, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
HOSTILE = "=cmd|' /C calc'!A0 <b>"  # what the CHECKs let through


def screen(run: Run) -> tuple[int, list[str], str]:
    """Return the exit code of ``tracker status``, what needs a person, and the rest of the screen."""
    code, out, err = run("status")
    assert err == ""
    first, _, rest = out.partition("\n\n")
    assert max(map(len, rest.splitlines())) <= 80
    return code, [] if first == "Nothing needs a person." else first.splitlines(), rest


def kinds(run: Run) -> tuple[int, list[str]]:
    code, found, _ = screen(run)
    return code, [line.partition("]")[0].replace("[", "").strip() for line in found]


def test_someone_who_has_just_begun_reads_what_to_do_next(
    engine: sa.Engine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First a cluster, then a job, then a daemon; nothing is wrong yet."""
    code, found, shown = screen(run)
    assert (code, found) == (0, [])
    assert "set TRACKER_CLUSTER and TRACKER_API_KEY" in shown
    assert run("clusters", "--format", "table") == (0, "", "No cluster is configured, and none is in the database.\n")
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    assert "`tracker add JID`" in screen(run)[2]
    register(engine, "a")
    code, found, shown = screen(run)
    assert (code, found) == (0, [])
    assert "none is running: `tracker run` starts one" in shown
    assert "1 open, 0 failed" in shown


def test_nothing_needs_a_person_when_all_is_well(engine: sa.Engine, run: Run, now: datetime) -> None:
    """Daemons that stopped or died are no longer listed, and what cannot be changed any more is no need."""
    daemon(engine, "a", now)
    daemon(engine, "dead", now - HOUR)
    daemon(engine, "stopped", now, stopped_at=now)
    long_ago = now - 60 * DAY
    answer(engine, register(engine, "a", at=now - 5 * DAY), ("running", now), due_at=now + HOUR)
    answer(engine, register(engine, "met", at=long_ago), ("done", now - 50 * DAY))
    answer(engine, register(engine, "missed", at=long_ago), ("running", now - DAY), ("done", now - HOUR))
    answer(engine, register(engine, "between", at=long_ago), ("waiting", now - 59 * DAY), ("done", now - HOUR))
    lost = register(engine, "lost", at=now - 3 * DAY)
    answer(engine, lost, ("not_found", now - 2 * DAY), ("not_found", now - 2 * DAY + HOUR))
    history.record(engine, lost, lambda job, past: status.withdraw(job, now, "eve", "x"))
    seal(engine, None)
    code, found, shown = screen(run)
    assert (code, found) == (0, [])
    assert "host-a:1" in shown
    assert "host-dead" not in shown
    assert "host-stopped" not in shown
    assert "1 open, 0 failed, 0 lost; past the deadline: 0 overdue, 0 not seen since" in " ".join(shown.split())
    assert "NOT SIGNED" in shown


def test_each_need_comes_from_its_rows(engine: sa.Engine, run: Run, now: datetime) -> None:
    """All kinds that can stand at once, the urgent ones first; the figures are those of the views, read whole."""
    daemon(engine, "a", now, started_at=now - 2 * DAY)
    stand(engine, "w0", gap_began_at=now - HOUR, gap_cause=Cause.PAUSED, gap_detail="OPS-1")
    shown = " ".join(run("clusters", "--format", "table")[1].split())
    assert f"resumed, no answer yet; was paused by hand since {now - HOUR:%Y-%m-%d %H:%M}: OPS-1" in shown
    causes = {"w1": Cause.KEY_REFUSED, "w3": Cause.UNREACHABLE, "w4": Cause.PAUSED, "w5": Cause.BAD_ANSWER}
    for name, cause in causes.items():
        pause = {"pause_cause": cause, "paused_until": None if cause is Cause.PAUSED else now}
        stand(engine, name, gap_began_at=now - HOUR, gap_cause=cause, gap_detail="a detail", **pause)
    stand(engine, "w6", pause_cause=Cause.RATE_LIMITED, paused_until=now + HOUR)
    stand(engine, "w7", next_request_at=now)
    for name in ("w2", "w6", "w7"):
        register(engine, f"late-{name}", name, at=now - DAY)
    near = {"w1": 1, "w2": 3, "w4": 7}
    for name, left in near.items():
        day = {"deadline_on": (now + left * DAY).date(), "deadline_at": now + left * DAY + MINUTE}
        change(engine, register(engine, f"near-{name}", name, at=now - HOUR, **day), due_at=now + HOUR)
    ended = now - 2 * DAY
    long_ago = now - 40 * DAY
    answer(engine, register(engine, "overdue", at=long_ago), ("running", now - DAY), due_at=now + HOUR)
    answer(engine, register(engine, "unseen", at=long_ago), ("waiting", long_ago + DAY), due_at=now + HOUR)
    answer(engine, register(engine, "lost", at=now - 3 * DAY), ("not_found", ended), ("not_found", ended + HOUR))
    answer(engine, register(engine, "failed", at=long_ago), ("error", ended))
    answer(engine, register(engine, "odd", "w2", at=now - DAY), ("pondering", now - HOUR), due_at=now + HOUR)
    done = now - 6 * DAY - HOUR
    answer(engine, register(engine, "export", kind="export", at=done - DAY), ("waiting", done), ("done", done + HOUR))
    rows = [
        {"destination": "file /c.txt", "last_number": 0, "failing_since": now - HOUR, "last_error": "OSError ENOSPC"},
        {"destination": "log", "last_number": 0, "failing_since": None, "last_error": None},
    ]
    with database.writing(engine) as connection:
        connection.execute(sa.insert(DELIVERIES), rows)
    assert kinds(run) == (
        1,
        [
            *("URGENT key_refused", "URGENT unreachable", "URGENT bad_answer", "URGENT not_polled"),
            *("URGENT polls_late", "URGENT overdue", "URGENT undecidable", "URGENT deadline_near"),
            *("need   deadline_near", "need   deadline_near", "need   rate_limited", "need   paused", "need   lost"),
            *("need   failed", "need   anomaly", "need   undelivered", "need   unsealed", "need   download_closing"),
        ],
    )
    [line] = [line for line in screen(run)[1] if line.startswith("URGENT [not_polled] w2: 1 late poll (since ")]
    assert line.endswith(" Add w2 to the settings of a `tracker run` and restart it.")
    with database.reading(engine) as connection:
        seen = overview.overview(connection, (), HOUR)
        verdicts = connection.execute(sa.text("SELECT verdict FROM report_jobs WHERE state <> 'lost'")).scalars().all()
        days = connection.execute(sa.text("SELECT days_left FROM report_deadlines")).scalars().all()
    assert (seen.overdue.count, seen.undecidable.count) == (verdicts.count("overdue"), verdicts.count("undecidable"))
    assert (seen.failed.count, seen.lost.count) == (1, 1)
    assert {left: seen.due_within[left] for left in near.values()} == {left: days.count(left) for left in near.values()}


def test_a_newest_seal_that_is_no_checkpoint_is_urgent(engine: sa.Engine, run: Run, now: datetime) -> None:
    """Nothing is sealed any more."""
    with database.writing(engine) as connection:
        values = {"last_transition_id": 0, "last_gap_id": 0, "last_source_id": 0, "rows": 0, "sealed_at": now}
        text = {"checkpoint": "tracker checkpoint v2\n", "checkpoint_sha256": "0" * 64}
        connection.execute(sa.insert(SEALS).values(values | text))
    assert kinds(run) == (1, ["URGENT seal_damaged"])
    assert "DAMAGED" in screen(run)[2]


def test_clusters_has_a_row_for_each_that_is_configured_or_in_the_database(
    engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKER_CLUSTER", "w0")
    for jid, since, due_at in (("a", 40, now - 2 * HOUR), ("b", 20, now - 61 * SECOND), ("c", 10, now)):
        change(engine, register(engine, jid, at=now - since * DAY), due_at=due_at, leased_by="w", leased_until=now)
    answer(engine, register(engine, "d", at=now - 30 * DAY), ("done", now))
    register(engine, "only", "w3", at=now)
    gap = {"gap_began_at": now - HOUR, "gap_cause": Cause.UNREACHABLE, "gap_detail": HOSTILE}
    stand(engine, "w1", answered_at=now - DAY, pause_cause=Cause.UNREACHABLE, paused_until=now, **gap)
    stand(engine, "w2", next_request_at=now)
    rows = json.loads(run("clusters", "--format", "json")[1])
    found = [(row["cluster"], row["is_configured"], row["open"]) for row in rows]
    assert found == [("w0", True, 0), ("w1", False, 3), ("w2", False, 0), ("w3", False, 1)]
    iso = {"sep": "T", "timespec": "microseconds"}
    with database.reading(engine) as connection:
        next_deadline_on = connection.execute(sa.text("SELECT deadline_on FROM jobs WHERE jid = 'b'")).scalar_one()
    assert rows[1] == {
        "cluster": "w1",
        "is_configured": False,
        "open": 3,
        "polls_behind": 2,
        "behind_since": (now - 2 * HOUR).isoformat(**iso),
        "asked_at": None,
        "answered_at": (now - DAY).isoformat(**iso),
        "paused_until": now.isoformat(**iso),
        "pause_cause": "unreachable",
        "gap_began_at": (now - HOUR).isoformat(**iso),
        "gap_cause": "unreachable",
        "gap_detail": HOSTILE,
        "next_deadline_on": str(next_deadline_on),
    }
    assert rows[2]["asked_at"] == now.isoformat(**iso)
    out = run("clusters", "--format", "table")[1]
    assert " ".join(out.splitlines()[0].split()) == "cluster open late last answer next deadline state"
    assert "not in these settings" in " ".join(out.split())


def fill(engine: sa.Engine, jobs: int) -> None:
    """Make *jobs* open jobs, as they stand now."""
    is_sqlite = engine.dialect.name == "sqlite"
    now = "unixepoch('now')" if is_sqlite else "CAST(extract(epoch FROM now()) AS bigint)"

    def instant(seconds: str) -> str:
        at = f"{now} + {seconds}"
        if is_sqlite:
            return f"(strftime('%Y-%m-%d %H:%M:%S', {at}, 'unixepoch') || printf('.%06d', i % 1000000))"
        return f"(to_timestamp({at}) + (i % 1000000) * interval '1 microsecond')"

    # One in a hundred is a day past its deadline, the others are 10 to 30 days before it.
    ahead = "86400 * CASE WHEN i % 100 = 1 THEN -1 ELSE 10 + i % 20 END"
    day = f"strftime('%Y-%m-%d', {now} + {ahead}, 'unixepoch')"
    if not is_sqlite:
        day = f"CAST(to_timestamp({now} + {ahead}) AS date)"
    due_in = "CASE WHEN i % 100 = 0 THEN -7200 ELSE 3600 END"
    answered = f"UPDATE jobs SET status = 'waiting', polls = 1, seen_at = {instant('-60')}, due_at = {instant(due_in)}"
    made = (
        "INSERT INTO jobs (cluster, jid, kind, registered_at, deadline_on, deadline_at)"
        f" WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {jobs})"
        f" SELECT 'w' || (i % 3), 'job-' || i, 'export', {instant('-86400')}, {day}, {instant(ahead)} FROM n"
    )
    with database.writing(engine) as connection:
        for statement in (made, answered.replace("i %", "id %")):
            connection.exec_driver_sql(statement if is_sqlite else statement.replace("%", "%%"))
    if not is_sqlite:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def plans(engine: sa.Engine) -> list[str]:
    """Return each step of a plan of the overview's queries that reads all jobs, by a table or an index."""
    found: list[str] = []
    seen: set[str] = set()

    def explain(
        connection: sa.Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if statement in seen or not statement.lstrip().startswith("SELECT"):
            return
        seen.add(statement)
        word = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        cursor.execute(f"{word} {statement}", parameters)
        steps = [" ".join(map(str, row)) for row in cursor.fetchall()]
        found.extend(
            step for step in steps if any(word in step for word in ("SCAN j", "SCAN jobs", "Seq Scan on jobs"))
        )

    sa.event.listen(engine, "before_cursor_execute", explain)
    try:
        with database.reading(engine) as connection:
            overview.overview(connection, (), timedelta(hours=1))
    finally:
        sa.event.remove(engine, "before_cursor_execute", explain)
    return found


@pytest.mark.parametrize("jobs", [5_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_no_screen_reads_all_jobs(engine: sa.Engine, jobs: int) -> None:
    """No step of a plan of ``status`` or ``clusters`` scans ``jobs`` or an index of it: a million take a second."""
    fill(engine, jobs)
    assert plans(engine) == []
    began = monotonic()
    with database.reading(engine) as connection:
        overview.overview(connection, (), HOUR)
    assert monotonic() - began <= 1
