"""SQL computes the deadlines that `deadline` does, in any time zone, on both databases."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from tests.history import selected, source
from tracker.clusters import utc_offsets
from tracker.deadline import deadline_of, start_of_day
from tracker.models import CLUSTERS, JOBS, TRANSITIONS, facts_of, legal_zones
from tracker.reports.as_of import legal_days, replay
from tracker.reports.tables import read
from tracker.status import Facts, Kind

MICROSECOND, DAY = timedelta(microseconds=1), timedelta(days=1)
SKIPPED = ("America/Havana", "America/Santiago", "Africa/Cairo", "Asia/Beirut", "Asia/Gaza", "America/Asuncion")
"""Some of their days began at 01:00: midnight was skipped when the clocks were changed."""
ZONES = ("Europe/Stockholm", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Australia/Lord_Howe", "Asia/Kolkata", *SKIPPED)
DEFAULT = ZoneInfo("Pacific/Auckland")


def days(r: random.Random) -> Iterator[date]:
    """Yield days in which something may go wrong: changes of the clocks, ends of months, leap days."""
    while True:
        first = date(r.randrange(2012, 2026), r.randrange(1, 13), 1)
        yield first + r.choice([-4, -3, -2, -1, 0, r.randrange(28), r.randrange(28)]) * DAY


def test_sql_computes_the_deadlines_of_the_law(engine: sa.Engine) -> None:
    """Changes of the clocks, skipped midnights, ends of months, extensions in time and too late, and another zone."""
    r = random.Random(1)
    day = days(r)
    with engine.connect() as connection, connection.begin() as transaction:
        for number in range(40 * len(ZONES)):
            zone = ZONES[number % len(ZONES)]
            home, cluster = ZoneInfo(zone), f"w{number % len(ZONES)}"

            def instant(home: ZoneInfo = home) -> datetime:
                return start_of_day(next(day), home) + r.choice([0 * DAY, -MICROSECOND, MICROSECOND, r.random() * DAY])

            at = registered_at = instant()
            job_id, extended_on = 0, None
            for seq in range(r.randrange(1, 5)):
                received_at, submitted_at = (r.choice([None, min(registered_at, instant())]) for _ in range(2))
                begun = Facts(received_at=received_at, submitted_at=submitted_at)
                due = deadline_of(begun, registered_at, home, ())
                if r.random() < 0.5:
                    extended_on = r.choice([None, due.on + r.choice([-1, 0, 1, r.randrange(2, 100)]) * DAY])
                facts: dict[str, object] = {"received_at": received_at, "submitted_at": submitted_at}
                facts |= {"kind": Kind.EXPORT, "extended_on": extended_on}
                if seq == 0:
                    values = facts | {"cluster": cluster, "jid": str(number), "registered_at": at}
                    job_id = connection.execute(sa.insert(JOBS).values(values).returning(JOBS.c.id)).scalar_one()
                else:
                    values = facts | {"job_id": job_id, "seq": seq, "action": "amended", "observed_at": at}
                    values |= {"from_state": "open", "to_state": "open", "actor": "alice", "reason": "the mail"}
                    connection.execute(sa.insert(TRANSITIONS).values(values))
                at = max(at, r.choice([at, due.at, due.at - MICROSECOND]))
            if number % 13 == 0 and cluster != "w0":  # w0 has no source: the settings' zone counts
                source(connection, cluster, at, legal_timezone=r.choice([zone, zone, ZONES[1]]))
        zone_of = legal_zones(connection, DEFAULT)
        replayed = sa.table(
            "replayed", *(sa.column(name, JOBS.c[name].type) for name in ("id", "deadline_on", "deadline_at"))
        )
        found = connection.execute(sa.select(replayed).add_cte(*replay(connection, DEFAULT))).all()
        assert len(found) == 40 * len(ZONES)
        for job_id, on, at in found:
            query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id == job_id).order_by(TRANSITIONS.c.seq)
            history = connection.execute(query).all()
            cluster = connection.execute(sa.select(JOBS.c.cluster).where(JOBS.c.id == job_id)).scalar_one()
            declared = ((row.observed_at, row.extended_on) for row in history)
            zone_then = zone_of(cluster, history[-1].observed_at)
            due = deadline_of(facts_of(history[-1]), history[0].observed_at, zone_then, declared)
            assert (on, at) == (due.on, due.at), history
        transaction.rollback()


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
        ("Europe/Berlin", date(2024, 10, 27)),
        ("Asia/Beirut", date(2024, 3, 31)),  # midnight was skipped
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
        due = deadline_of(Facts(), registered_at, home, ())
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
