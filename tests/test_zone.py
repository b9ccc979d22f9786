"""SQL computes the deadlines that `deadline` does, in any time zone, on both databases."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.history import selected, source
from tracker.clusters import utc_offsets
from tracker.deadline import deadline, extension_recorded_at, start_of_day
from tracker.models import CLUSTERS, JOBS, TRANSITIONS, facts_of, legal_zones
from tracker.reports.as_of import legal_days, replay
from tracker.reports.tables import read
from tracker.reports.zone import ZoneDay
from tracker.status import Kind

MICROSECOND, DAY = timedelta(microseconds=1), timedelta(days=1)
SKIPPED = ("America/Havana", "America/Santiago", "Africa/Cairo", "Asia/Beirut", "Asia/Gaza", "America/Asuncion")
"""Some of their days began at 01:00: midnight was skipped when the clocks were changed."""
ZONES = ("Europe/Stockholm", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Australia/Lord_Howe", "Asia/Kolkata", *SKIPPED)
DEFAULT = ZoneInfo("Pacific/Auckland")

days = st.dates(date(2012, 1, 1), date(2025, 12, 31)) | st.builds(
    lambda year, month, back: date(year, month, 1) - back * DAY,
    st.integers(2012, 2025),
    st.integers(1, 12),
    st.integers(0, 4),
)
moments = st.sampled_from([timedelta(), -MICROSECOND, MICROSECOND]) | st.timedeltas(timedelta(), DAY)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[ZoneInfo, list[tuple[str, list[dict[str, Any]]]], list[tuple[str, datetime, str]]]:
    """A time zone, jobs with what was declared of each, and sources (cluster, recorded_at, legal_timezone).

    Most of it happens where a day of that time zone begins, and most sources have that zone.
    """
    home = ZoneInfo(draw(st.sampled_from(ZONES)))

    def instant() -> datetime:
        day = draw(days)
        return datetime(day.year, day.month, day.day, tzinfo=home).astimezone(UTC) + draw(moments)

    jobs = []
    for _ in range(draw(st.integers(1, 15))):
        at = registered_at = instant()
        made: list[dict[str, Any]] = []
        extended_on: date | None = None
        for _ in range(draw(st.integers(1, 4))):
            received_at = min(registered_at, instant()) if draw(st.booleans()) else None
            submitted_at = min(registered_at, instant()) if draw(st.booleans()) else None
            due = deadline(received_at, submitted_at, registered_at, home)
            if draw(st.booleans()):
                more = draw(st.none() | st.integers(-1, 1) | st.integers(2, 100))
                extended_on = None if more is None else due.on + more * DAY
            facts = {"received_at": received_at, "submitted_at": submitted_at, "extended_on": extended_on}
            made.append(facts | {"observed_at": at, "kind": Kind.EXPORT})
            at = max(at, draw(st.sampled_from([at, due.at, due.at - MICROSECOND])))
        jobs.append((draw(st.sampled_from(["w1", "w2", "none"])), made))
    times = [declared["observed_at"] for _, its in jobs for declared in its]
    zones = st.sampled_from([home.key, *ZONES[1:3]])
    sources = st.tuples(st.sampled_from(["w1", "w2"]), st.sampled_from(times), zones)
    return home, jobs, draw(st.lists(sources, max_size=6))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds())
def test_sql_computes_the_deadlines_of_the_law(
    engine: sa.Engine,
    world: tuple[ZoneInfo, list[tuple[str, list[dict[str, Any]]]], list[tuple[str, datetime, str]]],
) -> None:
    """Changes of the clocks, skipped midnights, ends of months, extensions in time and too late, and another zone."""
    home, jobs, sources = world
    with engine.connect() as connection, connection.begin() as transaction:
        for cluster, at, zone in sources:
            source(connection, cluster, at, legal_timezone=zone)
        for number, (cluster, facts) in enumerate(jobs):
            values = {"cluster": cluster, "jid": str(number), "registered_at": facts[0]["observed_at"]}
            values |= {name: facts[0][name] for name in facts[0] if name != "observed_at"}
            job_id = connection.execute(sa.insert(JOBS).values(values).returning(JOBS.c.id)).scalar_one()
            for seq, amended in enumerate(facts[1:], 1):
                row = {"job_id": job_id, "seq": seq, "action": "amended", "from_state": "open", "to_state": "open"}
                row |= {"actor": "alice", "reason": "the mail"} | amended
                connection.execute(sa.insert(TRANSITIONS).values(row))
        zone_of = legal_zones(connection, home)
        wanted = (JOBS.c.id, JOBS.c.deadline_on, JOBS.c.deadline_at)
        replayed = sa.table("replayed", *(sa.column(column.name, column.type) for column in wanted))
        found = connection.execute(sa.select(replayed).add_cte(*replay(connection, home))).all()
        assert len(found) == len(jobs)
        for job_id, on, at in found:
            query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id == job_id).order_by(TRANSITIONS.c.seq)
            history = connection.execute(query).all()
            cluster = connection.execute(sa.select(JOBS.c.cluster).where(JOBS.c.id == job_id)).scalar_one()
            last = facts_of(history[-1])
            due = deadline(
                last.received_at,
                last.submitted_at,
                history[0].observed_at,
                zone_of(cluster, history[-1].observed_at),
                extended_on=last.extended_on,
                extension_recorded_at=extension_recorded_at((row.observed_at, row.extended_on) for row in history),
            )
            assert (on, at) == (due.on, due.at), history
        transaction.rollback()


def test_only_days_that_are_needed_are_there(engine: sa.Engine) -> None:
    """Of each time zone on record, and of the setting's where a cluster has no source."""
    at = datetime(2025, 1, 31, 12, tzinfo=UTC)
    with engine.connect() as connection, connection.begin() as transaction:
        source(connection, "w1", at, legal_timezone="Asia/Kolkata")
        for cluster in ("w1", "w2"):
            connection.execute(sa.insert(JOBS).values(cluster=cluster, jid="a", registered_at=at))
        rows = legal_days(connection, None, DEFAULT)
        transaction.rollback()
    assert {row.timezone for row in rows} == {"", "Asia/Kolkata"}
    months = ((1, (30, 31)), (2, (1, 28)), (3, (1,)), (4, (30,)), (5, (1,)))
    needed = [date(2025, month, day) for month, days in months for day in days]
    assert [row.day for row in rows if row.timezone] == needed
    begins = datetime(2025, 1, 29, 18, 30, tzinfo=UTC)
    assert rows[len(needed)] == ZoneDay("Asia/Kolkata", date(2025, 1, 30), begins, begins + DAY)


@pytest.mark.parametrize("name", ["Europe/Nowhere", "europe/../x", "é"])
def test_a_time_zone_that_is_none_has_no_days(engine: sa.Engine, name: str) -> None:
    """A source of plain SQL may name any: there are no deadlines of it, and the others' stay."""
    at = datetime(2025, 1, 31, 12, tzinfo=UTC)
    with engine.connect() as connection, connection.begin() as transaction:
        for cluster, zone in (("w1", name), ("w2", "Asia/Kolkata")):
            source(connection, cluster, at, legal_timezone=zone)
            connection.execute(sa.insert(JOBS).values(cluster=cluster, jid="a", registered_at=at))
        assert {row.timezone for row in legal_days(connection, None, DEFAULT)} == {"Asia/Kolkata"}
        transaction.rollback()


@pytest.mark.parametrize(
    ("zone", "changed_on"),
    [
        ("Europe/Berlin", date(2024, 3, 31)),
        ("Europe/Berlin", date(2024, 10, 27)),
        ("Asia/Beirut", date(2024, 3, 31)),  # midnight was skipped
        ("America/Santiago", date(2024, 9, 8)),  # and here
    ],
)
def test_days_left_are_days_of_the_legal_calendar(engine: sa.Engine, zone: str, changed_on: date) -> None:
    """Across a change of the clocks they change at local midnight: in the view, and in reports as of a time."""
    home, wanted = ZoneInfo(zone), []
    with engine.connect() as connection, connection.begin() as transaction:
        source(connection, "w1", datetime(2024, 1, 1, tzinfo=UTC), legal_timezone=zone)
        offsets = utc_offsets(zone, datetime(2024, 1, 1, tzinfo=UTC))
        connection.execute(sa.insert(CLUSTERS).values(cluster="w1", utc_offsets=offsets))
        registered_at = start_of_day(changed_on, home) - 20 * DAY
        due = deadline(None, None, registered_at, home)
        values = {"cluster": "w1", "jid": "a", "registered_at": registered_at}
        values |= {"deadline_on": due.on, "deadline_at": due.at}
        connection.execute(sa.insert(JOBS).values(values))
        for back in (2, 1, 0, -1, -2):
            day = changed_on - back * DAY
            for now in (start_of_day(day, home), start_of_day(day + DAY, home) - MICROSECOND):
                left = (due.on - day).days
                assert [row["days_left"] for row in selected(connection, "report_deadlines", now)] == [left]
                table = read(connection, "deadlines", as_of=now)
                assert [row[table.columns.index("days_left")] for row in table.rows] == [left]
                wanted.append(left)
        transaction.rollback()
    assert sorted(set(wanted)) == list(range(wanted[-1], wanted[-1] + 5))
