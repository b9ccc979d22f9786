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

from tests.history import LOST_RULE, ZONE, record, register
from tracker import database, status
from tracker.deadline import add_months, deadline
from tracker.models import (
    CLUSTERS,
    JOBS,
    TRANSITIONS,
    Gap,
    facts_values,
    observed_values,
    transition_of,
)
from tracker.reports.about import Filters
from tracker.reports.as_of import shadows
from tracker.status import Answer, Facts, Kind, State, replay

BEGAN = datetime(2025, 1, 7, 9, 0, 0, 123_456, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
GAPS = sa.inspect(Gap).local_table
WORDS = ["created", "waiting", "waiting", "running", "running", "done", "done", "error", "not_found", "a new word"]


class World:
    """Jobs, operators and outages on one database; `live` lets something happen, chosen by a seed, later each time."""

    def __init__(self, engine: sa.Engine, seed: int) -> None:
        self.engine = engine
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
        if self.random.random() < 0.3:  # by plain SQL
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
