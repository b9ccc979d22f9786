"""Jobs in any state, made as they come about: registered with SQL, then answered by way of the pure decisions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tests.replay import replay, transition_of
from tracker import database
from tracker.deadline import deadline_of
from tracker.models import (
    CLUSTERS,
    JOBS,
    SOURCES,
    TRANSITIONS,
    WORKERS,
    job_of,
    observed_values,
    transition_values,
)
from tracker.reports import views
from tracker.status import Action, Answer, Decision, Facts, Job, LostRule, Past, State, decide

ZONE = ZoneInfo("Europe/Stockholm")
LOST_RULE = LostRule(polls=2, duration=timedelta())


def daemon(engine: sa.Engine, worker: str, beat_at: datetime, **values: Any) -> None:
    """Enter a daemon that beat last at this time."""
    row = {"started_at": beat_at, "host": f"host-{worker}", "pid": 1, "version": "1"} | values
    with database.writing(engine) as connection:
        connection.execute(sa.insert(WORKERS).values(worker=worker, beat_at=beat_at, **row))


def register(engine: sa.Engine, jid: str, cluster: str = "w1", *, at: datetime | None = None, **declared: Any) -> int:
    """Register a job *at* a time, now by default, its deadline computed, and return its id."""
    with database.writing(engine) as connection:
        at = at or database.now(connection)
        facts = Facts(received_at=declared.get("received_at"), submitted_at=declared.get("submitted_at"))
        due = deadline_of(facts, at, ZONE, ())
        values = {"cluster": cluster, "jid": jid, "registered_at": at, "registered_by": "alice", "due_at": at}
        values |= {"deadline_on": due.on, "deadline_at": due.at} | declared
        return int(connection.execute(sa.insert(JOBS).values(values).returning(JOBS.c.id)).scalar_one())


def record(engine: sa.Engine, job_id: int, decide_: Callable[[Job, Past], Decision], **working: Any) -> None:
    """Write a decision, as the poller and an operator do."""
    with database.writing(engine) as connection:
        row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one()
        decision = decide_(job_of(row), replay(map(transition_of, _history(connection, job_id))).past)
        if (made := decision.transition) is not None:
            is_answer = made.action is Action.OBSERVED
            source_id = source(connection, row.cluster, made.observed_at) if is_answer else None
            connection.execute(sa.insert(TRANSITIONS).values(transition_values(job_id, made, source_id)))
        values = observed_values(decision.job) | working
        if decision.job.state is not State.OPEN:
            values["due_at"] = None
        connection.execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(values))


def source(connection: sa.Connection, cluster: str, at: datetime, **other: Any) -> int:
    """Return the id of the cluster's source, made *at* this time if it has none yet."""
    query = sa.select(SOURCES.c.id).where(SOURCES.c.cluster == cluster).order_by(SOURCES.c.id)
    found: int | None = None if other else connection.execute(query).scalars().first()
    values: dict[str, Any] = {
        "cluster": cluster,
        "base_url": f"https://{cluster}.example",
        "path": "/x",
        "timezone": "UTC",
    }
    values |= {"archive_days": 5, "lost_after_polls": 2, "lost_after_seconds": 0, "version": "1", "recorded_at": at}
    values |= {"legal_timezone": ZONE.key} | other
    return found or connection.execute(sa.insert(SOURCES).values(values).returning(SOURCES.c.id)).scalar_one()


def answer(engine: sa.Engine, job_id: int, *answers: tuple[str, datetime], due_at: datetime | None = None) -> None:
    """Record each (status, when the request was sent); an answer takes a second. *due_at*: the poll after the last."""
    for status, sent_at in answers:
        said = Answer(status, sent_at, sent_at + timedelta(seconds=1))
        record(engine, job_id, partial(_decided, said), due_at=due_at or sent_at + timedelta(hours=6))


def _decided(said: Answer, job: Job, past: Past) -> Decision:
    return decide(job, said, LOST_RULE, past)


def _history(connection: sa.Connection, job_id: int) -> list[sa.Row[Any]]:
    query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id == job_id).order_by(TRANSITIONS.c.seq)
    return list(connection.execute(query))


def change(engine: sa.Engine, job_id: int, **values: Any) -> None:
    """Change working columns of a job."""
    with database.writing(engine) as connection:
        connection.execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(values))


def stand(engine: sa.Engine, cluster: str, **values: Any) -> None:
    """Give *cluster* a row with these values."""
    with database.writing(engine) as connection:
        connection.execute(sa.insert(CLUSTERS).values(cluster=cluster, **values))


def job(engine: sa.Engine, job_id: int) -> sa.Row[Any]:
    """Return the job's row, checked to be the replay of its transitions."""
    with database.reading(engine) as connection:
        row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one()
        replayed = replay(map(transition_of, _history(connection, job_id))).job
    names = ("state", "status", "status_after", "status_by", "ended_after", "ended_by", "seq")
    assert [getattr(row, name) for name in names] == [getattr(replayed, name) for name in names]
    return row


def selected(connection: sa.Connection, view: str, now: datetime | None = None) -> list[dict[str, Any]]:
    """Return the rows of *view*, with *now* instead of the database's clock; views that it reads keep the clock."""
    dialect, query = connection.dialect.name, f"SELECT * FROM {view}"
    if now is not None:
        clock = {"sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')", "postgresql": "statement_timestamp()"}[dialect]
        at = f"'{now.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}'"
        at = at if dialect == "sqlite" else f"CAST({at} || '+00' AS timestamptz)"
        query = views.sql(view, dialect).replace(clock, at)
    rows = connection.exec_driver_sql(query.replace("%", "%%") if dialect == "postgresql" else query)
    return [dict(row) for row in rows.mappings()]


def last(engine: sa.Engine, job_id: int) -> sa.Row[Any]:
    """Return the job's newest transition."""
    with database.reading(engine) as connection:
        return _history(connection, job_id)[-1]
