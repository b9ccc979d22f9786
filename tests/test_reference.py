"""Every figure, wherever it comes out, on both databases, is the reference's (`tests.reference`), to the microsecond.

The histories are drawn by a seed, and have a case for every boundary (`tests.lives`).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

import tracker
from tests import lives, reference
from tests.history import ZONE, answer, register, selected, source
from tests.lives import BEGAN, DAY, END, HOUR, MICROSECOND
from tests.reference import SHARES as EXACT_SHARES
from tests.reference import Row, Tables, quantile
from tracker import database
from tracker.clusters import utc_offsets
from tracker.deadline import deadline_of, start_of_day
from tracker.errors import InvalidField
from tracker.models import CLUSTERS, GAPS, JOBS, SEALS, SOURCES, TRANSITIONS, facts_of, legal_zones
from tracker.reports import views
from tracker.reports.about import Filters
from tracker.reports.as_of import legal_days, replay, shadows
from tracker.reports.durations import SHARES, Bounds, durations
from tracker.reports.survival import Curve
from tracker.reports.tables import NAMES, Table, read
from tracker.reports.views import comments
from tracker.status import Anomaly, Facts, Kind, State

KEYS = {
    "report_transitions": "id",
    "report_anomalies": "id",
    "report_statuses": "cluster jid entered_by left_by status",
    "report_monthly": "cluster kind month",
    "report_requests": "reference",
    "report_gaps": "cluster began_at ended_at cause",
    "report_clusters": "cluster",
}
"""By view: the columns that identify a row; of the others cluster and jid."""
INSTANT = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d\.\d{6})(\+00:00)?")
THEN = datetime(2025, 4, 30, 22, 0, tzinfo=UTC)


@dataclass(frozen=True)
class World:
    """A database with a history, and its tables as the reference takes them."""

    engine: sa.Engine

    @cached_property
    def tables(self) -> Tables:
        with database.reading(self.engine) as connection:

            def rows(table: Any) -> list[Row]:
                return [dict(row) for row in connection.execute(sa.select(table)).mappings()]

            found = map(rows, (JOBS, TRANSITIONS, GAPS, CLUSTERS, SOURCES, SEALS))
            return Tables(ZONE, *found)


@pytest.fixture(scope="module")
def world(module_engine: sa.Engine) -> World:
    """A database in which the boundaries are, and 90 lives drawn by a seed; no test changes it."""
    lives.write(module_engine, 1, [*lives.on_boundaries(), *lives.drawn(1, 90)])
    return World(module_engine)


# -- one spelling for what the databases, JSON and Python say ------------------------------------------------------


def spelled(column: str, value: Any) -> Any:
    """Return *value* as all of them can say it: instants as UTC text, seconds as whole microseconds."""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str):
        match = INSTANT.fullmatch(value)
        return f"{match[1]} {match[2]}" if match else str(value)
    if value is not None and "seconds" in column:
        assert isinstance(value, int | float)  # no Decimal: SQL that divides it would go on with another type
        return round(value * 1_000_000)
    if value is not None and column == "covered_share":
        assert isinstance(value, int | float)
        return float(value)
    return int(value) if isinstance(value, bool) else value


def alike(rows: Iterable[Row]) -> list[Row]:
    """Return *rows* with their values spelled alike."""
    return [{column: spelled(column, value) for column, value in row.items()} for row in rows]


def plain(view: str, rows: Iterable[Row]) -> list[Row]:
    """Return rows of *view* spelled alike and in one order."""
    keys = KEYS.get(view, "cluster jid").split()
    return sorted(alike(rows), key=lambda row: [(row[key] is None, row[key]) for key in keys])


def expected(tables: Tables, view: str, now: datetime) -> list[Row]:
    """Return the reference's rows of *view*."""
    return plain(view, reference.VIEWS[view](tables, now))


def same(found: list[Row], right: list[Row]) -> None:
    """Assert that the rows are equal, in the order of their columns too."""
    assert [list(row) for row in found] == [list(row) for row in right]
    for ours, theirs in zip(found, right, strict=True):
        assert ours == theirs


# -- the views -----------------------------------------------------------------------------------------------------


def test_the_histories_hold_what_they_are_for(world: World) -> None:
    """Each state, verdict, anomaly, action and cause is there, and amended and unknown submissions in each place."""
    jobs = [reference.replayed(world.tables, row) for row in world.tables.jobs]
    assert {job["state"] for job in jobs} == set(State)
    assert {reference.verdict(job, END) for job in jobs} == {*reference.WORST_FIRST}
    assert {t["anomaly"] for t in world.tables.transitions} >= set(Anomaly) - {Anomaly.BACKWARDS}
    per_job = Counter((t["job_id"], t["action"]) for t in world.tables.transitions)
    assert {n for (_, action), n in per_job.items() if action == "reopened"} >= {1, 2}
    assert {n for (_, action), n in per_job.items() if action == "amended"} >= {1, 2}
    assert {job["submitted_at"] is None for job in jobs if job["state"] == "done"} == {True, False}
    assert any(job["submitted_at"] and job["done_by"] and job["submitted_at"] > job["done_by"] for job in jobs)
    assert any(job["deadline_at"] is None for job in jobs)


def test_each_view(world: World) -> None:
    """Its rows are the reference's, all columns in their order, by a clock around midnight and one far ahead."""
    with database.reading(world.engine) as connection:
        for view in reference.VIEWS:
            for now in (END - MICROSECOND, END, END + MICROSECOND, END + 60 * DAY + MICROSECOND):
                found = plain(view, selected(connection, view, now))
                same(found, expected(world.tables, view, now))
                assert found


def test_every_view_and_column_has_its_comment(world: World) -> None:
    """PostgreSQL says what each means, in the words of `comments`, which have no word on anything else."""
    assert set(comments.ROWS) == set(views.VIEWS)
    with database.reading(world.engine) as connection:
        inspector = sa.inspect(connection)
        reflected = {view: inspector.get_columns(view) for view in views.VIEWS}
        columns = {(view, str(c["name"])): c.get("comment") for view in views.VIEWS for c in reflected[view]}
        used = {f"{view}.{name}" if f"{view}.{name}" in comments.COLUMNS else name for view, name in columns}
        assert used == set(comments.COLUMNS)
        if connection.dialect.name == "postgresql":
            assert columns == {(view, name): comments.of_column(view, name) for view, name in columns}
            found = {view: inspector.get_table_comment(view)["text"] for view in views.VIEWS}
            assert found == {view: comments.of_view(view) for view in views.VIEWS}


# -- the reports ---------------------------------------------------------------------------------------------------


def rows_of(table: Table) -> list[Row]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


@pytest.mark.parametrize("at", [BEGAN, THEN, END])
def test_each_report_as_of_a_time(world: World, at: datetime) -> None:
    """It is the reference's, given what can be known of that time; all views, those that are no report too."""
    then = reference.known_at(world.tables, at)
    with database.reading(world.engine) as connection:
        for name in NAMES:
            table = read(connection, name, as_of=at, zone=ZONE)
            found = plain(f"report_{name}", rows_of(table))
            same(found, expected(then, f"report_{name}", at))
            assert table.about.jobs == len(then.jobs)
        for name in ("report_jobs", "report_transitions"):
            ctes = shadows(connection, Filters(), at, ZONE, name)
            query = sa.select(sa.text("*")).select_from(sa.table(name)).add_cte(*ctes)
            same(plain(name, map(dict, connection.execute(query).mappings())), expected(then, name, at))


def test_a_change_counts_from_the_very_microsecond(world: World) -> None:
    """As of the time of a transition it is known, a microsecond before it is not."""
    changes = [t["observed_at"] for t in world.tables.transitions if t["action"] != "registered"]
    for changed_at in changes[len(changes) // 3 :: len(changes) // 3]:
        for at in (changed_at, changed_at - MICROSECOND):
            then = reference.known_at(world.tables, at)
            with database.reading(world.engine) as connection:
                for name in ("statuses", "deadlines", "gaps"):
                    table = read(connection, name, as_of=at, zone=ZONE)
                    found = plain(f"report_{name}", rows_of(table))
                    same(found, expected(then, f"report_{name}", at))


SINCE, UNTIL = BEGAN + 10 * DAY, BEGAN + 150 * DAY
SOME = Filters(SINCE, UNTIL, clusters=("w1", "W3"), kinds=(Kind.EXPORT, Kind.REMOVAL))


def of_those(job: Row) -> bool:
    return job["cluster"] in SOME.clusters and job["kind"] in SOME.kinds


def asked_for(job: Row) -> bool:
    return of_those(job) and SINCE <= job["began_at"] < UNTIL


def test_filters_leave_nothing_else_over(world: World) -> None:
    """A filtered report is the reference's of a database in which there are no other jobs."""
    then = reference.known_at(world.tables, END)
    for name in NAMES:
        view = f"report_{name}"
        with database.reading(world.engine) as connection:
            table = read(connection, name, SOME, as_of=END, zone=ZONE)
            found = plain(view, rows_of(table))
        if name != "gaps":
            same(found, expected(reference.only(then, asked_for), view, END))
            continue
        gaps = reference.report_gaps(reference.only(then, of_those), END)
        gaps = [gap for gap in gaps if gap["cluster"] in SOME.clusters and gap["began_at"] < UNTIL]
        same(found, plain(view, [gap for gap in gaps if gap["ended_at"] is None or gap["ended_at"] >= SINCE]))


def flat(rows: Iterable[Any]) -> list[Row]:
    """Return rows of Python's durations as the commands name their columns."""
    found: list[Row] = []
    for row in map(asdict, rows):
        del row["month"], row["week"]
        found.append({})
        for name, value in row.items():
            pair = isinstance(value, dict)
            found[-1] |= {f"{name}_{bound}": its for bound, its in value.items()} if pair else {name: value}
    return found


def same_quantiles(found: list[Row], tables: Tables, now: datetime) -> None:
    """Assert that the rows of durations have the reference's figures, whichever of them they have."""
    right = alike(reference.quantiles(tables, now))
    assert {column for row in right for column in row} >= set(found[0]) >= {"cluster", "jobs", "median_seconds_min"}
    assert alike(found) == [{column: row[column] for column in found[0]} for row in right]


def test_quantiles(world: World) -> None:
    """Python's are those of Kaplan and Meier's definition in exact fractions: now, as of a time, and filtered."""
    with database.reading(world.engine) as connection:
        now = tracker.durations(connection)
        same_quantiles(flat([*now.rows, now.total]), world.tables, END)
        for at in (THEN, END):
            made = durations(connection, as_of=at)
            same_quantiles(flat([*made.rows, made.total]), reference.known_at(world.tables, at), at)
        some = durations(connection, since=SINCE, until=UNTIL, cluster=SOME.clusters, kind=SOME.kinds)
        same_quantiles(flat([*some.rows, some.total]), reference.only(world.tables, asked_for), END)


@pytest.mark.parametrize("at", [datetime(2998, 1, 1, tzinfo=UTC), datetime(2025, 1, 1)])  # noqa: DTZ001 - refused
def test_a_time_that_cannot_be_is_refused(world: World, at: datetime) -> None:
    """Nobody knows the future, or which instant a time without offset is."""
    with database.reading(world.engine) as connection:
        for name in NAMES:
            with pytest.raises(InvalidField, match=r"^as_of: "):
                read(connection, name, as_of=at)
        with pytest.raises(InvalidField, match=r"^as_of: "):
            durations(connection, as_of=at)
        if at.tzinfo is None:
            with pytest.raises(InvalidField, match=r"^since: .* has no offset"):
                durations(connection, since=at)


# -- the estimator and its groups ------------------------------------------------------------------------------------

AGES = st.lists(st.integers(0, 12), max_size=25)


@given(AGES, AGES)
@settings(deadline=None, max_examples=300)
def test_the_estimator_is_the_definition(ended: list[int], unended: list[int]) -> None:
    """On any data with ties the quantiles are those of the definition in exact fractions."""
    assert Curve(ended, unended).quantiles(SHARES) == [
        quantile(ended, unended, share) for share in EXACT_SHARES.values()
    ]


def test_the_bounds_are_in_order_where_the_curves_cross(engine: sa.Engine) -> None:
    """Where a job was last seen open between the bounds of a done one, only the upper curve comes down to the p90."""
    done = register(engine, "a", at=BEGAN, submitted_at=BEGAN)
    answer(engine, done, ("waiting", BEGAN + HOUR), ("done", BEGAN + 3 * HOUR))
    answer(engine, register(engine, "b", at=BEGAN, submitted_at=BEGAN), ("waiting", BEGAN + 2 * HOUR))
    with database.reading(engine) as connection:
        made = durations(connection).total
    assert (made.median, made.p90) == (Bounds(3600.0, 10_801.0), Bounds(10_801.0, None))


def first_day(row: Any) -> date:
    if row.month:
        return datetime.strptime(f"{row.month}-01", "%Y-%m-%d").date()  # noqa: DTZ007 - a day
    return date.fromisoformat(f"{row.week}-1")


def test_a_group_is_the_report_of_its_jobs(world: World) -> None:
    """By cluster, kind, month or week, or several: each row equals the total of a report of those jobs only."""
    with database.reading(world.engine) as connection:
        for by in (("month",), ("week", "kind"), ("kind", "cluster", "month"), ("cluster",)):
            made = durations(connection, by=by)
            assert made.by == by
            assert sum(row.jobs + row.withdrawn for row in made.rows) == made.about.jobs > 90
            assert [[getattr(row, name) for name in by] for row in made.rows] == sorted(
                [getattr(row, name) for name in by] for row in made.rows
            )
            for row in made.rows[:: max(1, len(made.rows) // 5)]:
                assert {name for name in ("cluster", "kind", "month", "week") if getattr(row, name)} == set(by)
                filters: dict[str, Any] = {name: getattr(row, name) for name in by if name in ("cluster", "kind")}
                if row.month or row.week:
                    day = first_day(row)
                    end = (day + timedelta(days=32)).replace(day=1) if row.month else day + timedelta(days=7)
                    filters["since"], filters["until"] = (
                        datetime(one.year, one.month, one.day, tzinfo=UTC) for one in (day, end)
                    )
                alone = durations(connection, **filters).total
                assert replace(row, cluster=None, kind=None, month=None, week=None) == alone


# -- deadlines in any time zone ----------------------------------------------------------------------------------------


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
