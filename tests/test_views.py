"""The views beyond jobs, durations and transitions: one small history, reckoned by hand, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.scripted import Script, SetClock, polling
from tracker import database
from tracker.models import CLUSTERS, JOBS, Gap
from tracker.reports import views
from tracker.reports.views import comments
from tracker.status import Cause

T0 = datetime(2026, 1, 5, 10, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def story(engine: sa.Engine) -> sa.Engine:
    """Three jobs: `a` done in time, `b` of the same request open past its deadline, `c` done late and in doubt."""
    clock = SetClock(T0)
    with (
        Script().serve() as script,
        polling(engine, script.url, clock) as poller,
        database.writing(engine) as connection,
    ):
        connection.commit()
        from threading import Event

        def add(jid: str, **facts: Any) -> None:
            with database.writing(engine) as writer:
                row = {"cluster": "w1", "jid": jid, "registered_at": clock.now, "submitted_at": clock.now - HOUR}
                writer.execute(sa.insert(JOBS).values(row | {"due_at": clock.now} | facts))

        def poll(**said: str) -> None:
            script.answers |= said
            with database.writing(engine) as writer:
                writer.execute(sa.update(JOBS).where(JOBS.c.state == "open").values(due_at=clock.now))
            poller.run(Event())

        add("a", kind="export", reference="R1", received_at=T0 - 2 * HOUR)
        add("b", kind="removal", reference="R1", received_at=T0 - 2 * HOUR)
        poll(a="waiting", b="waiting")
        clock.now = T0 + 2 * HOUR
        poll(a="running", b="weird")
        clock.now = T0 + 3 * HOUR
        poll(a="done")
        add("c", kind="export", submitted_at=None)
        poll(c="waiting")
        clock.now = T0 + timedelta(days=60)
        poll(c="done", b="waiting")
        with database.writing(engine) as writer:
            for began, ended in ((4, 6), (5, 7), (10, 11)):
                gap = {"began_at": T0 + began * HOUR, "ended_at": T0 + ended * HOUR, "cause": Cause.UNREACHABLE}
                writer.execute(sa.insert(Gap).values(cluster="w1", **gap))
    return engine


def rows(engine: sa.Engine, view: str, order: str, columns: str = "*") -> list[tuple[Any, ...]]:
    with database.reading(engine) as connection:
        query = connection.exec_driver_sql(f"SELECT {columns} FROM {view} ORDER BY {order}")
        return [tuple(row) for row in query]


def stored(engine: sa.Engine, at: datetime) -> Any:
    """Return *at* as a driver gives it: SQLite's views give text."""
    return f"{at:%Y-%m-%d %H:%M:%S.%f}" if engine.dialect.name == "sqlite" else at


def test_statuses_last_between_their_bounds(story: sa.Engine) -> None:
    """A status that was never seen has no row; one that was lasts from its latest entry to its earliest leaving."""
    columns = "status, entered_after, entered_by, left_after, left_by, seconds_min, seconds_max"
    found = rows(story, "report_statuses WHERE jid = 'a'", "entered_by", columns)
    at = [None if hours is None else stored(story, T0 + hours * HOUR) for hours in (-1, 0, 0, 2, 2, 3)]
    assert found == [
        ("waiting", at[0], at[1], at[2], at[3], 0.0, 3 * 3600.0),
        ("running", at[2], at[3], at[4], at[5], 0.0, 3 * 3600.0),
        ("done", at[4], at[5], None, None, 0.0, None),
    ]
    open_one = rows(story, "report_statuses WHERE jid = 'b'", "entered_by", "status, seconds_min, seconds_max")
    assert [row[:2] for row in open_one] == [("waiting", 0.0), ("weird", 3600.0), ("waiting", 0.0)]
    assert open_one[2][2] > 300 * 86400


def test_months_count_every_job(story: sa.Engine) -> None:
    """What became of the jobs of a month; one without a submission is never done within a time."""
    columns = "kind, month, submitted, open, done, done_within_1d, met, undecidable, overdue"
    assert rows(story, "report_monthly", "kind", columns) == [
        ("export", "2026-01", 2, 0, 2, 1, 1, 1, 0),
        ("removal", "2026-01", 1, 1, 0, 0, 0, 0, 1),
    ]


def test_deadlines_and_requests(story: sa.Engine) -> None:
    """Each job has its deadline with its basis; a request has the worst verdict of its jobs."""
    columns = "jid, basis, deadline_on, amendments, verdict, days_left IS NULL, done_by IS NULL"
    found = rows(story, "report_deadlines", "jid", columns)
    assert [(row[0], row[1], str(row[2]), row[3], row[4], bool(row[5]), bool(row[6])) for row in found] == [
        ("a", "received", "2026-02-05", 0, "met", True, False),
        ("b", "received", "2026-02-05", 0, "overdue", False, True),
        ("c", "registered", "2026-02-05", 0, "undecidable", True, False),
    ]
    assert rows(story, "report_deadlines WHERE jid = 'b'", "jid", "days_left")[0][0] < -100
    request = rows(story, "report_requests", "reference", "reference, jobs, open, done, not_done, done_by, verdict")
    assert request == [("R1", 2, 1, 1, 0, None, "overdue")]


def test_anomalies_are_the_transitions_with_one(story: sa.Engine) -> None:
    """An undocumented word is an anomaly."""
    assert rows(story, "report_anomalies", "id", "jid, to_status, anomaly") == [("b", "weird", "unknown_status")]


def test_gaps_and_coverage(story: sa.Engine) -> None:
    """Overlapping gaps are one stretch of a job's life; an open gap counts until now."""
    found = rows(story, "report_gaps", "began_at", "is_open, seconds, open_jobs")
    assert found == [(0, 7200.0, 2), (0, 7200.0, 2), (0, 3600.0, 2)]
    columns = "covered_share, longest_unobserved_seconds"
    coverage = {jid: values for jid, *values in rows(story, "report_coverage", "jid", f"jid, {columns}")}
    assert coverage["a"] == [1.0, 0.0]
    assert coverage["c"] == [pytest.approx(1 - 4 * 3600 / (60 * 86400 - 3 * 3600)), 3 * 3600.0]
    with database.writing(story) as connection:
        connection.execute(sa.update(CLUSTERS).values(gap_began_at=T0 + timedelta(days=70), gap_cause=Cause.PAUSED))
    is_open, seconds, open_jobs = rows(story, "report_gaps", "began_at DESC", "is_open, seconds, open_jobs")[0]
    assert (is_open, seconds > 200 * 86400, open_jobs) == (1, True, 1)
    (share, longest) = rows(
        story, "report_coverage WHERE jid = 'b'", "jid", "covered_share, longest_unobserved_seconds"
    )[0]
    assert longest == pytest.approx(seconds, rel=1e-3)
    assert 0 < share < 0.5


def test_clusters(story: sa.Engine) -> None:
    """A row a cluster: what is open, what is late."""
    found = rows(story, "report_clusters", "cluster", "cluster, open, polls_behind, pause_cause, next_deadline_on")
    assert found == [("w1", 1, 1, None, None)]


def test_the_promised_columns(engine: sa.Engine) -> None:
    """A view has the columns of DESIGN.md in their order on both databases, also when it is empty."""
    with database.reading(engine) as connection:
        for view in views.VIEWS:
            cursor = connection.exec_driver_sql(f"SELECT * FROM {view}")
            assert list(cursor.keys()) == [column["name"] for column in sa.inspect(connection).get_columns(view)]


def test_every_view_and_column_has_its_comment(engine: sa.Engine) -> None:
    """PostgreSQL tells what each means, in the words of `comments`, which tell of nothing that is not there."""
    assert set(comments.ROWS) == set(views.VIEWS)
    with database.reading(engine) as connection:
        inspector = sa.inspect(connection)
        reflected = {view: inspector.get_columns(view) for view in views.VIEWS}
        columns = {(view, str(c["name"])): c.get("comment") for view in views.VIEWS for c in reflected[view]}
        used = {f"{view}.{name}" if f"{view}.{name}" in comments.COLUMNS else name for view, name in columns}
        assert used == set(comments.COLUMNS)
        if engine.dialect.name == "postgresql":
            assert columns == {(view, name): comments.of_column(view, name) for view, name in columns}
            for view in views.VIEWS:
                assert inspector.get_table_comment(view)["text"] == comments.of_view(view)
