"""What could be known at a time: the same for ever, and what the views said then, on both databases."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa

from tests.history import LOST_RULE, ZONE, answer, record, register, stand
from tracker import database, status
from tracker.deadline import add_months, deadline
from tracker.errors import InvalidField
from tracker.models import (
    CLUSTERS,
    JOBS,
    TRANSITIONS,
    Gap,
    facts_values,
    observed_values,
    transition_of,
)
from tracker.reports import as_of as room
from tracker.reports import tables, views
from tracker.reports.about import Filters
from tracker.reports.as_of import shadows
from tracker.reports.durations import Durations, durations
from tracker.reports.render import Mode
from tracker.reports.tables import NAMES, read
from tracker.status import Answer, Facts, Kind, State, replay

BEGAN = datetime(2025, 1, 7, 9, 0, 0, 123_456, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
WORDS = ["created", "waiting", "waiting", "running", "running", "done", "done", "error", "not_found", "a new word"]


class World:
    """Jobs, operators and outages on one database; `live` lets something happen, chosen by a seed, later each time."""

    def __init__(self, engine: sa.Engine, seed: int, *, plain_sql: float = 0.3) -> None:
        """Of the jobs, the share *plain_sql* has no deadline until it is first answered."""
        self.engine = engine
        self.plain_sql = plain_sql
        self.random = random.Random(seed)
        self.clock = BEGAN
        self.jobs: list[int] = []
        self.numbers = count()

    def live(self, events: int) -> datetime:
        """Let so many things happen, and return a time at which all of them were known."""
        happenings = [self.register] * 2 + [self.answer] * 6 + [self.decide] * 2 + [self.amend] * 2 + [self.gap]
        for _ in range(events):
            self.clock += self.random.choice([HOUR, 9 * HOUR, 2 * DAY])
            self.clock += timedelta(microseconds=self.random.randrange(10**6))
            self.random.choice(happenings)()
        self.clock += HOUR
        return self.clock

    def facts(self) -> Facts:
        r, clock = self.random, self.clock
        submitted = r.choice([None, clock - HOUR, clock - 3 * DAY])
        received = r.choice([None, clock - 20 * DAY - HOUR, clock - 40 * DAY])
        extended = r.choice([None, None, add_months((received or clock).date(), 3)])
        return Facts(r.choice(list(Kind)), r.choice([None, "R-1", "R-2"]), received, submitted, extended)

    def due(self, facts: Facts, registered_at: datetime, recorded_at: datetime) -> dict[str, Any]:
        made = deadline(
            facts.received_at,
            facts.submitted_at,
            registered_at,
            ZONE,
            extended_on=facts.extended_on,
            extension_recorded_at=recorded_at,
        )
        return {"deadline_on": made.on, "deadline_at": made.at}

    def register(self) -> None:
        facts = self.facts()
        due = self.due(facts, self.clock, self.clock)
        if self.random.random() < self.plain_sql:
            due = dict.fromkeys(due)
        values = facts_values(facts) | due
        jid, cluster = f"j{next(self.numbers)}", self.random.choice(["w1", "w2"])
        self.jobs.append(register(self.engine, jid, cluster, at=self.clock, **values))

    def row(self, *states: State) -> sa.Row[Any] | None:
        with database.reading(self.engine) as connection:
            rows = connection.execute(sa.select(JOBS).where(JOBS.c.state.in_(states)).order_by(JOBS.c.id)).all()
        return self.random.choice(rows) if rows else None

    def answer(self) -> None:
        if row := self.row(State.OPEN):
            word = self.random.choice([*WORDS, *[row.status or "not_found"] * 5])
            said = Answer(word, self.clock, self.clock + SECOND)
            due = {}
            if row.deadline_at is None:
                facts = Facts(**{name: getattr(row, name) for name in Facts.__dataclass_fields__})
                due = self.due(facts, row.registered_at, self.recorded_at(row))
            record(self.engine, row.id, lambda job, past: status.decide(job, said, LOST_RULE, past), **due)
            self.clock += SECOND

    def recorded_at(self, row: sa.Row[Any]) -> datetime:
        """Return since when the extension of *row* has stood."""
        found: datetime | None = None
        with database.reading(self.engine) as connection:
            told = [t for t in history(connection, row.id) if t.facts is not None]
        for transition in reversed(told):
            if transition.facts is None or transition.facts.extended_on != row.extended_on:
                break
            found = transition.observed_at
        assert found is not None
        return found

    def decide(self) -> None:
        if row := self.row(*State):
            if row.state in (State.OPEN, State.FAILED, State.LOST):
                done_by = self.clock - HOUR
                decisions = [
                    lambda job, past: status.withdraw(job, self.clock, "alice", "a mistake"),
                    lambda job, past: status.attest(job, done_by, self.clock, "alice", "a file"),
                ]
                record(self.engine, row.id, self.random.choice(decisions))
            elif row.state is not State.DONE:
                at = self.clock
                record(self.engine, row.id, lambda job, past: status.reopen(job, at, "bob", "try again"), due_at=at)

    def amend(self) -> None:
        if row := self.row(*State):
            old = Facts(**{name: getattr(row, name) for name in Facts.__dataclass_fields__})
            facts = self.random.choice([self.facts(), replace(old, extended_on=self.facts().extended_on)])
            if facts != old:
                recorded_at = self.clock if facts.extended_on != old.extended_on else self.recorded_at(row)
                values = facts_values(facts) | self.due(facts, row.registered_at, recorded_at)
                record(
                    self.engine,
                    row.id,
                    lambda job, past: status.amend(job, facts, self.clock, "alice", "the mail"),
                    **values,
                )

    def gap(self) -> None:
        """Close the gap of a cluster, or open one."""
        name = self.random.choice(["w1", "w2"])
        with database.writing(self.engine) as connection:
            row = connection.execute(sa.select(CLUSTERS).where(CLUSTERS.c.cluster == name)).one_or_none()
            if row is None:
                connection.execute(sa.insert(CLUSTERS).values(cluster=name))
            if row is not None and row.gap_began_at is not None:
                gap = {"cluster": name, "began_at": row.gap_began_at, "ended_at": self.clock}
                connection.execute(sa.insert(Gap).values(gap | {"cause": row.gap_cause, "detail": "resumed"}))
                values: Mapping[str, Any] = dict.fromkeys(("gap_began_at", "gap_cause", "gap_detail"))
            else:
                values = {"gap_began_at": self.clock, "gap_cause": "unreachable", "gap_detail": "timeout"}
            connection.execute(sa.update(CLUSTERS).where(CLUSTERS.c.cluster == name).values(values))


def history(connection: sa.Connection, job_id: int) -> list[status.Transition]:
    query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id == job_id).order_by(TRANSITIONS.c.seq)
    return [transition_of(row) for row in connection.execute(query)]


def everything(engine: sa.Engine, as_of: datetime | None, filters: Filters = Filters()) -> dict[str, object]:  # noqa: B008
    """Return all reports as of a time, as they come out."""
    with database.reading(engine) as connection:
        found: dict[str, object] = {}
        for name in NAMES:
            table = read(connection, name, filters, as_of=as_of)
            found[name] = (repr(table.about), table.columns, [repr(tuple(row)) for row in table.rows])
        found["quantiles"] = repr(quantiles(connection, as_of, filters))
    return found


def quantiles(connection: sa.Connection, as_of: datetime | None, filters: Filters) -> Durations:
    return durations(
        connection,
        since=filters.since,
        until=filters.until,
        cluster=filters.clusters,
        kind=filters.kinds,
        as_of=as_of,
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_it_says_the_same_whatever_is_observed_since(engine: sa.Engine, seed: int) -> None:
    """All reports, with and without filters, are the same bytes when history has gone on, deadlines included."""
    world = World(engine, seed)
    some = Filters(since=BEGAN + DAY, until=BEGAN + 60 * DAY, clusters=("w1",), kinds=(Kind.EXPORT, Kind.REMOVAL))
    told: dict[datetime, tuple[object, object]] = {}
    for events in (0, 25, 30):
        at = world.live(events)
        told[at] = everything(engine, at), everything(engine, at, some)
    world.live(30)
    for at, then in told.items():
        assert (everything(engine, at), everything(engine, at, some)) == then
    assert len({str(then) for then in told.values()}) == len(told)  # it did change in between


@pytest.mark.parametrize("seed", [5, 6])
def test_a_job_is_the_replay_of_its_transitions_then(engine: sa.Engine, seed: int) -> None:
    """Every declared, derived and observed column is what the decisions' own replay and the legal clock say."""
    world = World(engine, seed)
    times = [world.live(20), world.live(40), world.live(40)]
    states = set()
    for at in times:
        with database.reading(engine) as connection:
            rows = connection.execute(sa.select(JOBS).add_cte(*shadows(connection, Filters(), at, ZONE))).all()
            ids = set()
            for row in rows:
                past = [t for t in history(connection, row.id) if t.observed_at <= at]
                job = replay(past).job
                ids.add(row.id)
                states.add(job.state)
                expected = observed_values(job) | facts_values(job.facts)
                recorded = job.registered_at
                extended_on: date | None = None
                for transition in past:
                    if transition.facts is not None and transition.facts.extended_on != extended_on:
                        recorded, extended_on = transition.observed_at, transition.facts.extended_on
                expected |= world.due(job.facts, job.registered_at, recorded)
                expected |= {"registered_at": job.registered_at, "registered_by": job.registered_by}
                assert {name: getattr(row, name) for name in expected} == expected
                working = ("due_at", "last_error", "leased_by", "leased_until")
                assert [getattr(row, name) for name in working] == [None] * 4
            registered = connection.scalars(sa.select(JOBS.c.id).where(JOBS.c.registered_at <= at))
            assert ids == set(registered)
    assert states == set(State)


UNSEEN = {"overdue", "undecidable"}
"""Verdicts on an open job past its deadline: which one it is depends on the last sight, which no row keeps."""


def known(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return what of a row as the live view has it can be known later; the rest is None."""
    unknown: set[str] = set()
    if name == "statuses" and row["left_by"] is None:
        unknown = {"left_after", "seconds_min"}
    elif name == "monthly":
        row = row | {"overdue": row["overdue"] + row["undecidable"]}
        unknown = {"undecidable"}
    elif (name == "deadlines" and row["state"] == "open") or name == "requests":
        unknown = {"verdict"} if row["verdict"] in UNSEEN else set()
    elif name == "gaps" and row["is_open"]:
        unknown = {"detail"}
    elif name == "coverage":
        unknown = {"covered_share", "longest_unobserved_seconds"}
    return row | dict.fromkeys(unknown)


def rows_of(connection: sa.Connection, name: str, at: datetime) -> list[dict[str, Any]]:
    table = read(connection, name, as_of=at)
    return [known(name, dict(zip(table.columns, row, strict=True))) for row in table.rows]


@pytest.mark.parametrize("seed", [7])
def test_it_says_what_the_views_said_then(engine: sa.Engine, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last sights do not matter, all columns are those of the live views, their clock showing that time."""
    world = World(engine, seed, plain_sql=0)
    told: dict[tuple[datetime, str], list[dict[str, Any]]] = {}

    def clock_only(
        connection: sa.Connection, filters: Filters, as_of: datetime, zone: object, *names: str, is_kept: bool
    ) -> tuple[sa.CTE, ...]:
        dialect = connection.dialect.name
        clock = room._known(dialect, as_of)
        return (*clock, *(room.text(views.sql(v, dialect, Mode.TIME)).cte(v) for v in room._needed(names, dialect)))

    for events in (20, 40, 30):
        at = world.live(events)
        with monkeypatch.context() as patch, database.reading(engine) as connection:
            patch.setattr(tables, "shadows", clock_only)
            told |= {(at, name): rows_of(connection, name, at) for name in NAMES}
    world.live(20)
    for (at, name), then in told.items():
        with database.reading(engine) as connection:
            assert rows_of(connection, name, at) == then, name
    assert all(any(rows for (_, report), rows in told.items() if report == name) for name in NAMES)


def test_a_gap_is_open_until_its_end_is_known(engine: sa.Engine) -> None:
    """It is open from its beginning to its end, the same while it is and afterwards, but for one nobody saw begin."""
    gap = {"cluster": "w1", "began_at": BEGAN, "ended_at": BEGAN + 2 * HOUR, "cause": "paused", "detail": "a; resumed"}
    stand(engine, "w1", gap_began_at=BEGAN, gap_cause="paused", gap_detail="a")

    def seen(at: datetime, *columns: str) -> list[list[Any]]:
        with database.reading(engine) as connection:
            table = read(connection, "gaps", as_of=at)
            return [[row[table.columns.index(column)] for column in columns] for row in table.rows]

    shown = ("began_at", "ended_at", "is_open", "cause", "detail", "seconds")
    still_open = [[BEGAN, None, True, "paused", None, 3600.0]]
    assert seen(BEGAN + HOUR, "is_open")[0][0] is True  # on both databases, not 1
    assert seen(BEGAN - HOUR, *shown) == []
    assert seen(BEGAN + HOUR, *shown) == still_open
    with database.writing(engine) as connection:
        connection.execute(sa.update(CLUSTERS).values(gap_began_at=None, gap_cause=None, gap_detail=None))
        connection.execute(sa.insert(Gap).values(gap))
        absent = {"began_at": BEGAN + 3 * HOUR, "ended_at": BEGAN + 5 * HOUR, "cause": "not_running", "detail": None}
        connection.execute(sa.insert(Gap).values(gap | absent))
    assert seen(BEGAN - HOUR, *shown) == []
    assert seen(BEGAN + HOUR, *shown) == still_open
    ended = [BEGAN, BEGAN + 2 * HOUR, False, "paused", "a; resumed", 7200.0]
    assert seen(BEGAN + 2 * HOUR, *shown) == [ended]
    assert seen(BEGAN + 4 * HOUR, *shown) == [ended]  # no daemon ran to say so
    assert seen(BEGAN + 5 * HOUR, "cause", "is_open") == [["paused", False], ["not_running", False]]


def test_a_later_amendment_does_not_move_the_deadline(engine: sa.Engine) -> None:
    """Before it the deadline is as it was, whether the row holds it, the poller filled it in late, or none is there."""
    due = deadline(None, None, BEGAN, ZONE)
    plain: dict[str, dict[str, Any]] = {"filled": {}, "plain": {"deadline_on": None, "deadline_at": None}}
    for jid, given in plain.items():
        job_id = register(engine, jid, at=BEGAN, **given)
        facts = Facts(received_at=BEGAN - 20 * DAY)
        moved = deadline(facts.received_at, None, BEGAN, ZONE)
        record(
            engine,
            job_id,
            lambda job, past: status.amend(job, facts, BEGAN + DAY, "alice", "the mail"),  # noqa: B023 - called here
            **facts_values(facts),
            deadline_on=moved.on,
            deadline_at=moved.at,
        )
    register(engine, "wrong", at=BEGAN, deadline_on=BEGAN.date(), deadline_at=BEGAN)  # plain SQL knows no law

    def deadlines(at: datetime) -> dict[str, date]:
        with database.reading(engine) as connection:
            table = read(connection, "deadlines", as_of=at)
            jid, on = table.columns.index("jid"), table.columns.index("deadline_on")
            return {row[jid]: row[on] for row in table.rows}

    assert deadlines(BEGAN) == dict.fromkeys(("filled", "plain", "wrong"), due.on)
    assert deadlines(BEGAN + DAY) == {"filled": moved.on, "plain": moved.on, "wrong": due.on}


def test_an_open_job_is_as_old_as_its_transitions_show(engine: sa.Engine) -> None:
    """Sights after the last transition are left out: it is censored where the status before was last seen."""
    job_id = register(engine, "a", at=BEGAN, submitted_at=BEGAN)
    answer(engine, job_id, ("waiting", BEGAN + HOUR), ("waiting", BEGAN + 5 * HOUR), ("running", BEGAN + 9 * HOUR))
    answer(engine, job_id, ("running", BEGAN + 20 * HOUR))
    with database.reading(engine) as connection:
        for at, seen in ((8 * HOUR, None), (10 * HOUR, BEGAN + 5 * HOUR), (30 * HOUR, BEGAN + 5 * HOUR)):
            ctes = shadows(connection, Filters(), BEGAN + at, ZONE)
            assert connection.scalars(sa.select(JOBS.c.seen_at).add_cte(*ctes)).all() == [seen]


@pytest.mark.parametrize("at", [datetime(2998, 1, 1, tzinfo=UTC), datetime(2025, 1, 1)])  # noqa: DTZ001 - refused
def test_a_time_that_cannot_be_is_refused(engine: sa.Engine, at: datetime) -> None:
    """Nobody knows the future, or which instant a time without offset is; and there is a list of the reports."""
    with database.reading(engine) as connection:
        for name in NAMES:
            with pytest.raises(InvalidField, match=r"^as_of: "):
                read(connection, name, as_of=at)
        with pytest.raises(InvalidField, match=r"^as_of: "):
            durations(connection, as_of=at)
        with pytest.raises(InvalidField, match=f"there is no report 'duration'; there are: {', '.join(NAMES)}"):
            read(connection, "duration")
