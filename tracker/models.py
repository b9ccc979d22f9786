"""The tables, as SQLAlchemy sees them, and the way between their rows and the values that decisions take.

Owns the columns and what each means. The CHECKs live with the migrations, the guards in ``guards`` and the views in
``reports/views``: one definition each. Only ``intake``, ``poller`` and ``operate`` write jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from enum import StrEnum
from typing import Any, ClassVar, TypeVar
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tracker import status
from tracker.status import Action, Anomaly, Cause, Kind, State
from tracker.utc import UtcDateTime as UtcDateTime  # models' readers find it here, too

E = TypeVar("E", bound=StrEnum)


def _word(enum: type[E]) -> sa.Enum:
    """An enum stored by its value as text; the database's CHECK refuses every other word."""
    return sa.Enum(enum, native_enum=False, length=None, values_callable=lambda e: [str(member.value) for member in e])


BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite's AUTOINCREMENT wants the type INTEGER


def _partial(name: str, rows: str, *columns: str) -> sa.Index:
    """An index of the few rows that *rows* names, in literals: no bound parameter finds it.

    The migration makes it so. Here it is a note: SQLAlchemy would import the other database's dialect for it.
    """
    return sa.Index(name, *columns, info={"rows": rows})


class Base(DeclarativeBase):
    """The registry of the tables."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        date: sa.Date(),
        str: sa.String(),
        Kind: _word(Kind),
        State: _word(State),
        Action: _word(Action),
        Anomaly: _word(Anomaly),
        Cause: _word(Cause),
    }


def _id() -> Mapped[int]:
    """An id that the database gives and never gives again."""
    return mapped_column(BigId, sa.Identity(always=True), primary_key=True)


class JobRow(Base):
    """A job: in its declared and observed columns the replay of its transitions (but for seen_at and status_polls)."""

    __tablename__ = "jobs"
    __table_args__: Any = (
        sa.UniqueConstraint("cluster", "jid"),
        sa.Index(None, "cluster", "due_at"),  # the claim: due jobs of a cluster, oldest first; ended jobs hold NULL
        sa.Index(None, "jid"),  # `tracker show JID` without a cluster
        sa.Index(None, "reference"),  # `tracker jobs --reference` and the jobs of one person's request
        # `tracker jobs`: what somebody waits for, the nearest deadline first; `tracker status`: deadlines past and near
        _partial("ix_jobs_unsettled", "state IN ('open', 'failed', 'lost')", "deadline_on", "id"),
        # report_clusters: a cluster's next deadline; its open jobs are counted in the index alone
        _partial("ix_jobs_unsettled_cluster", "state IN ('open', 'failed', 'lost')", "cluster", "deadline_at", "state"),
        _partial("ix_jobs_stuck", "state IN ('failed', 'lost')", "state"),  # `tracker status` counts them
        # `tracker jobs`: the settled ones, the last to end first; what ended since; download windows that close
        _partial("ix_jobs_ended", "ended_by IS NOT NULL", "ended_by", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = _id()
    # declared by people
    cluster: Mapped[str]
    jid: Mapped[str]
    kind: Mapped[Kind] = mapped_column(server_default="unknown")
    reference: Mapped[str | None]  # the request's ticket: groups the jobs of one person's request
    received_at: Mapped[datetime | None]  # the request reached the company
    submitted_at: Mapped[datetime | None]  # the job was submitted to Elevate
    extended_on: Mapped[date | None]  # the last day, if the deadline was extended (Article 12(3))
    registered_at: Mapped[datetime]  # the database fills it
    registered_by: Mapped[str]  # the database fills it
    # derived from what is declared; the poller fills it for jobs that came by plain SQL
    deadline_on: Mapped[date | None]  # the last day, in the legal time zone
    deadline_at: Mapped[datetime | None]  # the instant that day ends
    # observed
    state: Mapped[State] = mapped_column(server_default="open")
    status: Mapped[str | None]  # what Elevate said last, verbatim
    status_after: Mapped[datetime | None]  # it began not before this: NULL if no other status had been seen
    status_by: Mapped[datetime | None]  # it began no later than this
    status_polls: Mapped[int] = mapped_column(server_default="0")  # valid answers in a row that said so
    seen_at: Mapped[datetime | None]  # the last valid answer's request was sent
    ended_after: Mapped[datetime | None]
    ended_by: Mapped[datetime | None]
    seq: Mapped[int] = mapped_column(server_default="0")  # of its newest transition
    # working
    due_at: Mapped[datetime | None]  # next poll; NULL once ended
    polls: Mapped[int] = mapped_column(server_default="0")
    failures: Mapped[int] = mapped_column(server_default="0")  # in a row
    last_error: Mapped[str | None]  # class and code, never a body
    leased_by: Mapped[str | None]  # the worker that is asking
    leased_until: Mapped[datetime | None]  # on the database's clock


class TransitionRow(Base):
    """A change of a job's status, state or declared facts. Append-only; seq 0 is written by a trigger."""

    __tablename__ = "transitions"
    __table_args__: Any = (
        sa.UniqueConstraint("job_id", "seq"),  # each transition exactly once; also a job's timeline
        _partial("ix_transitions_amended", "action = 'amended'", "job_id"),  # first dates of receipt, corrections
        _partial("ix_transitions_anomalous", "anomaly IS NOT NULL", "id"),  # report_anomalies
        # report_gaps: when a job was no longer open whose end is somebody's word
        _partial("ix_transitions_attested", "action = 'attested'", "job_id", "observed_at"),
        # report_gaps, report_statuses: the few that changed state once more after their end, as by reopening
        _partial("ix_transitions_restated", "from_state <> 'open' AND from_state <> to_state", "job_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = _id()
    job_id: Mapped[int] = mapped_column(sa.ForeignKey("jobs.id"))
    seq: Mapped[int]
    action: Mapped[Action]
    from_status: Mapped[str | None]
    to_status: Mapped[str | None]
    from_state: Mapped[State | None]
    to_state: Mapped[State]
    last_seen_at: Mapped[datetime | None]  # the request that last saw the old status was sent
    observed_at: Mapped[datetime]  # the answer that first showed the new one was complete, or the action was taken
    server_date: Mapped[datetime | None]  # the answer's HTTP Date: a clock that is not ours
    claimed_at: Mapped[datetime | None]  # on attested rows: done by then, says the operator
    source_id: Mapped[int | None] = mapped_column(sa.ForeignKey("sources.id"))
    polls: Mapped[int] = mapped_column(server_default="0")  # so far
    actor: Mapped[str | None]
    anomaly: Mapped[Anomaly | None]
    reason: Mapped[str | None]  # an operator's words
    # the declared facts, on rows `registered` and `amended`
    kind: Mapped[Kind | None]
    reference: Mapped[str | None]
    received_at: Mapped[datetime | None]
    submitted_at: Mapped[datetime | None]
    extended_on: Mapped[date | None]


class Source(Base):
    """Where answers came from: a row whenever a daemon starts with another configuration. Append-only."""

    __tablename__ = "sources"
    __table_args__: Any = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = _id()
    cluster: Mapped[str]
    base_url: Mapped[str]
    path: Mapped[str]
    timezone: Mapped[str]
    archive_days: Mapped[int]
    lost_after_polls: Mapped[int]
    lost_after_seconds: Mapped[int]
    legal_timezone: Mapped[str]  # deadlines first computed, or amended, from here on are of this time zone
    version: Mapped[str]  # tracker's
    recorded_at: Mapped[datetime]


class Gap(Base):
    """A stretch in which nothing could be observed of a cluster, written when observation resumes. Append-only."""

    __tablename__ = "gaps"
    __table_args__: Any = (
        sa.Index(None, "cluster", "began_at"),  # the gaps that explain a job's wide bounds
        sa.Index(None, "cluster", "ended_at"),  # report_gaps: the first that ends after a job was registered
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = _id()
    cluster: Mapped[str]
    began_at: Mapped[datetime]
    ended_at: Mapped[datetime]
    cause: Mapped[Cause]
    detail: Mapped[str | None]
    actor: Mapped[str | None]  # who paused the cluster


class Cluster(Base):
    """What the daemons on one database share about a cluster: its health, and its place in the rate."""

    __tablename__ = "clusters"

    cluster: Mapped[str] = mapped_column(primary_key=True)
    answered_at: Mapped[datetime | None]  # the last valid answer was complete
    failures: Mapped[int] = mapped_column(server_default="0")  # since the last valid answer, that count (health)
    failing_since: Mapped[datetime | None]
    pauses: Mapped[int] = mapped_column(server_default="0")  # in a row
    paused_until: Mapped[datetime | None]
    pause_cause: Mapped[Cause | None]
    gap_began_at: Mapped[datetime | None]  # the gap that is still open
    gap_cause: Mapped[Cause | None]
    gap_detail: Mapped[str | None]
    gap_actor: Mapped[str | None]
    next_request_at: Mapped[datetime | None]  # the next free place in the rate, on the database's clock
    utc_offsets: Mapped[str | None]  # of the legal time zone, as JSON: [from, until, seconds]; SQLite has no time zones


class Worker(Base):
    """A daemon, alive or stopped; beats go by the database's clock."""

    __tablename__ = "workers"

    worker: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    version: Mapped[str]
    started_at: Mapped[datetime]
    beat_at: Mapped[datetime]
    stopped_at: Mapped[datetime | None]
    once: Mapped[bool] = mapped_column(server_default=sa.false())  # started by `run --once`


class Seal(Base):
    """A checkpoint over everything up to some ids. Append-only."""

    __tablename__ = "seals"
    __table_args__: Any = (
        sa.Index(None, "last_transition_id"),  # which seal closed a transition (report_transitions.seal_id)
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = _id()
    last_transition_id: Mapped[int] = mapped_column(BigId)
    last_gap_id: Mapped[int] = mapped_column(BigId)
    last_source_id: Mapped[int] = mapped_column(BigId)
    rows: Mapped[int] = mapped_column(BigId)
    checkpoint: Mapped[str]  # its whole text, signature included
    checkpoint_sha256: Mapped[str] = mapped_column(unique=True)
    sealed_at: Mapped[datetime]
    key_id: Mapped[str | None]


class Segment(Base):
    """At most 1,000 sealed rows of one table, as the SHA-256 of their CSV file. Append-only."""

    __tablename__ = "segments"

    seal_id: Mapped[int] = mapped_column(sa.ForeignKey("seals.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)  # the table
    part: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    first_id: Mapped[int] = mapped_column(BigId)
    last_id: Mapped[int] = mapped_column(BigId)
    rows: Mapped[int]
    sha256: Mapped[str]


class Delivery(Base):
    """How far the checkpoints have come to one destination outside the database."""

    __tablename__ = "deliveries"

    destination: Mapped[str] = mapped_column(primary_key=True)
    last_number: Mapped[int] = mapped_column(BigId, server_default="0")  # of the newest checkpoint delivered there
    delivered_at: Mapped[datetime | None]
    failing_since: Mapped[datetime | None]  # NULL while deliveries succeed
    last_error: Mapped[str | None]  # why the last attempt failed


class Alert(Base):
    """What people were told about a need, and who has taken it in hand."""

    __tablename__ = "alerts"

    kind: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)  # a cluster, a destination, a group of jobs
    since: Mapped[datetime] = mapped_column(primary_key=True)
    level: Mapped[str]  # how urgent it was when it was told
    told_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    acked_by: Mapped[str | None]
    acked_until: Mapped[datetime | None]
    ack_reason: Mapped[str | None]


def _table(model: type[Base]) -> sa.Table:
    table = model.__table__
    assert isinstance(table, sa.Table)  # noqa: S101 - declared above; SQLAlchemy's type is wider
    return table


JOBS = _table(JobRow)
TRANSITIONS = _table(TransitionRow)
CLUSTERS = _table(Cluster)
"""The tables for SQLAlchemy Core, which the poller's and the intake's speed needs."""


def facts_of(row: sa.Row[Any]) -> status.Facts:
    """Return the declared facts in a row of jobs, or of a ``registered`` or ``amended`` transition."""
    return status.Facts(row.kind, row.reference, row.received_at, row.submitted_at, row.extended_on)


def extensions(connection: sa.Connection, job_id: int) -> list[tuple[datetime, date | None]]:
    """Return when a job's facts were declared and the extension in them, oldest first."""
    t = TRANSITIONS.c
    declared = t.action.in_((Action.REGISTERED, Action.AMENDED))
    query = sa.select(t.observed_at, t.extended_on).where(t.job_id == job_id, declared).order_by(t.seq)
    return [(row.observed_at, row.extended_on) for row in connection.execute(query)]


def job_of(row: sa.Row[Any]) -> status.Job:
    """Return what decisions need of a row of jobs that holds at least the declared and observed columns."""
    return status.Job(
        facts=facts_of(row),
        registered_at=row.registered_at,
        registered_by=row.registered_by,
        state=row.state,
        status=row.status,
        status_after=row.status_after,
        status_by=row.status_by,
        status_polls=row.status_polls,
        seen_at=row.seen_at,
        ended_after=row.ended_after,
        ended_by=row.ended_by,
        seq=row.seq,
        polls=row.polls,
    )


def legal_zones(connection: sa.Connection, default: ZoneInfo) -> Callable[[str, datetime], ZoneInfo]:
    """Return which legal time zone a deadline of a cluster is of that was first computed, or amended, at some time.

    It is the zone on record then, in ``sources``; before the cluster's first source, the zone of that; where there is
    none yet, *default*. So a setting that changes moves no deadline that stands, and an auditor can compute each again.
    """
    query = sa.select(Source.cluster, Source.recorded_at, Source.legal_timezone).order_by(Source.id)
    zones: dict[str, list[tuple[datetime, ZoneInfo]]] = {}
    for cluster, recorded_at, name in connection.execute(query):
        zones.setdefault(cluster, []).append((recorded_at, ZoneInfo(name)))

    def zone(cluster: str, at: datetime) -> ZoneInfo:
        own = zones.get(cluster)
        return next((zone for since, zone in reversed(own) if since <= at), own[0][1]) if own else default

    return zone


def observed_values(job: status.Job) -> dict[str, Any]:
    """Return the observed columns of jobs, as *job* has them; declared ones change by an amendment only."""
    return {
        "state": job.state,
        "status": job.status,
        "status_after": job.status_after,
        "status_by": job.status_by,
        "status_polls": job.status_polls,
        "seen_at": job.seen_at,
        "ended_after": job.ended_after,
        "ended_by": job.ended_by,
        "seq": job.seq,
        "polls": job.polls,
    }


def facts_values(facts: status.Facts | None) -> dict[str, Any]:
    """Return the columns of the declared facts, NULL where there are none."""
    columns = ("kind", "reference", "received_at", "submitted_at", "extended_on")
    return {column: None if facts is None else getattr(facts, column) for column in columns}


def transition_of(row: sa.Row[Any]) -> status.Transition:
    """Return the transition in a row of transitions."""
    return status.Transition(
        seq=row.seq,
        action=row.action,
        from_status=row.from_status,
        to_status=row.to_status,
        from_state=row.from_state,
        to_state=row.to_state,
        last_seen_at=row.last_seen_at,
        observed_at=row.observed_at,
        server_date=row.server_date,
        claimed_at=row.claimed_at,
        polls=row.polls,
        actor=row.actor,
        anomaly=row.anomaly,
        reason=row.reason,
        facts=facts_of(row) if row.action in (Action.REGISTERED, Action.AMENDED) else None,
    )


def transition_values(job_id: int, transition: status.Transition, source_id: int | None = None) -> dict[str, Any]:
    """Return the row of transitions for *transition*, without its id."""
    return {
        "job_id": job_id,
        "seq": transition.seq,
        "action": transition.action,
        "from_status": transition.from_status,
        "to_status": transition.to_status,
        "from_state": transition.from_state,
        "to_state": transition.to_state,
        "last_seen_at": transition.last_seen_at,
        "observed_at": transition.observed_at,
        "server_date": transition.server_date,
        "claimed_at": transition.claimed_at,
        "source_id": source_id,
        "polls": transition.polls,
        "actor": transition.actor,
        "anomaly": transition.anomaly,
        "reason": transition.reason,
        **facts_values(transition.facts),
    }
