"""The tables, as SQLAlchemy sees them, and the way between their rows and the values that decisions take.

Owns the columns and what each means. The CHECKs live with the migrations, the guards in ``guards`` and the views in
``reports/views``: one definition each. Only ``intake``, ``poller`` and ``operate`` write jobs.

Tables of SQLAlchemy Core, without mapped classes: importing ``sqlalchemy.orm`` would double a command's start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import date, datetime
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import status
from tracker.errors import BadConfiguration
from tracker.status import Action, Anomaly, Cause, Kind, State
from tracker.utc import UtcDateTime as UtcDateTime  # models' readers find it here, too


def _word(enum: type[StrEnum]) -> sa.Enum:
    """An enum stored by its value as text; the database's CHECK refuses every other word."""
    return sa.Enum(enum, native_enum=False, length=None, values_callable=lambda e: [str(member.value) for member in e])


BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite's AUTOINCREMENT wants the type INTEGER
NUMBER, TEXT, DAY, INSTANT = sa.Integer(), sa.String(), sa.Date(), UtcDateTime()
KIND, STATE, ACTION, ANOMALY, CAUSE = (_word(enum) for enum in (Kind, State, Action, Anomaly, Cause))

METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id() -> sa.Column[int]:
    """An id that the database assigns and never reuses."""
    return sa.Column("id", BIG, sa.Identity(always=True), primary_key=True)


def _key(name: str, type_: sa.types.TypeEngine[Any], *more: Any) -> sa.Column[Any]:
    return sa.Column(name, type_, *more, primary_key=True, autoincrement=False)


def _not_null(name: str, type_: sa.types.TypeEngine[Any], *more: Any, default: Any = None) -> sa.Column[Any]:
    return sa.Column(name, type_, *more, nullable=False, server_default=default)


def _some(name: str, rows: str, *columns: str) -> sa.Index:
    """An index of the few rows that meet a condition, in literals: no bound parameter finds it.

    The migration makes it so. Here it is a note: SQLAlchemy would import the other database's dialect for it.
    """
    return sa.Index(name, *columns, info={"rows": rows})


# A job: in its declared and observed columns the replay of its transitions (but for seen_at and status_polls).
JOBS = sa.Table(
    "jobs",
    METADATA,
    _id(),
    # declared by people
    _not_null("cluster", TEXT),
    _not_null("jid", TEXT),
    _not_null("kind", KIND, default="unknown"),
    sa.Column("reference", TEXT),  # the request's ticket: groups the jobs of one person's request
    sa.Column("received_at", INSTANT),  # the request reached the company
    sa.Column("submitted_at", INSTANT),  # the job was submitted to Elevate
    sa.Column("extended_on", DAY),  # the last day, if the deadline was extended (Article 12(3))
    _not_null("registered_at", INSTANT),  # the database fills it
    _not_null("registered_by", TEXT),  # the database fills it
    # derived from what is declared; the poller fills it for jobs that came by plain SQL
    sa.Column("deadline_on", DAY),  # the last day, in the legal time zone
    sa.Column("deadline_at", INSTANT),  # the instant that day ends
    # observed
    _not_null("state", STATE, default="open"),
    sa.Column("status", TEXT),  # what Elevate said last, verbatim
    sa.Column("status_after", INSTANT),  # it began not before this: NULL if no other status had been seen
    sa.Column("status_by", INSTANT),  # it began no later than this
    _not_null("status_polls", NUMBER, default="0"),  # valid answers in a row that said so
    sa.Column("seen_at", INSTANT),  # the last valid answer's request was sent
    sa.Column("ended_after", INSTANT),
    sa.Column("ended_by", INSTANT),
    _not_null("seq", NUMBER, default="0"),  # of its newest transition
    # working
    sa.Column("due_at", INSTANT),  # next poll; NULL once ended
    _not_null("polls", NUMBER, default="0"),
    _not_null("failures", NUMBER, default="0"),  # in a row
    sa.Column("last_error", TEXT),  # class and code, never a body
    sa.Column("leased_by", TEXT),  # the worker that is asking
    sa.Column("leased_until", INSTANT),  # on the database's clock
    sa.UniqueConstraint("cluster", "jid"),
    sa.Index(None, "cluster", "due_at"),  # the claim: due jobs of a cluster, oldest first; ended jobs hold NULL
    sa.Index(None, "jid"),  # `tracker show JID` without a cluster
    sa.Index(None, "reference"),  # `tracker jobs --reference` and the jobs of one person's request
    # `tracker jobs`: unsettled jobs, the nearest deadline first; `tracker status`: deadlines past and near
    _some("ix_jobs_unsettled", "state IN ('open', 'failed', 'lost')", "deadline_on", "id"),
    # report_clusters: a cluster's next deadline; its open jobs are counted in the index alone
    _some("ix_jobs_unsettled_cluster", "state IN ('open', 'failed', 'lost')", "cluster", "deadline_at", "state"),
    _some("ix_jobs_stuck", "state IN ('failed', 'lost')", "state"),  # `tracker status` counts them
    # `tracker jobs`: the settled ones, the last to end first; what ended since; download windows that close
    _some("ix_jobs_ended", "ended_by IS NOT NULL", "ended_by", "id"),
    sqlite_autoincrement=True,
)

# Where answers came from: a row when a daemon starts with another configuration. Append-only.
SOURCES = sa.Table(
    "sources",
    METADATA,
    _id(),
    *(_not_null(name, TEXT) for name in ("cluster", "base_url", "path", "timezone")),
    *(_not_null(name, NUMBER) for name in ("archive_days", "lost_after_polls", "lost_after_seconds")),
    _not_null("legal_timezone", TEXT),  # of the deadlines that are first computed, or amended, from here on
    _not_null("version", TEXT),  # tracker's
    _not_null("recorded_at", INSTANT),
    sqlite_autoincrement=True,
)

# A change of a job's status, state or declared facts. Append-only; seq 0 is written by a trigger.
TRANSITIONS = sa.Table(
    "transitions",
    METADATA,
    _id(),
    _not_null("job_id", BIG, sa.ForeignKey("jobs.id")),
    _not_null("seq", NUMBER),
    _not_null("action", ACTION),
    sa.Column("from_status", TEXT),
    sa.Column("to_status", TEXT),
    sa.Column("from_state", STATE),
    _not_null("to_state", STATE),
    sa.Column("last_seen_at", INSTANT),  # the request that last saw the old status was sent
    _not_null("observed_at", INSTANT),  # the answer that first showed the new one was complete, or the action was taken
    sa.Column("server_date", INSTANT),  # the answer's HTTP Date: a clock that is not ours
    sa.Column("claimed_at", INSTANT),  # on attested rows: done by then, says the operator
    sa.Column("source_id", BIG, sa.ForeignKey("sources.id")),
    _not_null("polls", NUMBER, default="0"),  # so far
    sa.Column("actor", TEXT),
    sa.Column("anomaly", ANOMALY),
    sa.Column("reason", TEXT),  # an operator's words
    # the declared facts, on rows `registered` and `amended`
    sa.Column("kind", KIND),
    sa.Column("reference", TEXT),
    sa.Column("received_at", INSTANT),
    sa.Column("submitted_at", INSTANT),
    sa.Column("extended_on", DAY),
    sa.UniqueConstraint("job_id", "seq"),  # each transition exactly once; also a job's timeline
    _some("ix_transitions_amended", "action = 'amended'", "job_id"),  # first dates of receipt, corrections
    _some("ix_transitions_anomalous", "anomaly IS NOT NULL", "id"),  # report_anomalies
    # report_gaps: when an attested job was no longer open
    _some("ix_transitions_attested", "action = 'attested'", "job_id", "observed_at"),
    # report_gaps, report_statuses: the few that changed state once more after their end, as by reopening
    _some("ix_transitions_restated", "from_state <> 'open' AND from_state <> to_state", "job_id"),
    sqlite_autoincrement=True,
)

# A stretch in which nothing could be observed of a cluster, written when observation resumes. Append-only.
GAPS = sa.Table(
    "gaps",
    METADATA,
    _id(),
    _not_null("cluster", TEXT),
    _not_null("began_at", INSTANT),
    _not_null("ended_at", INSTANT),
    _not_null("cause", CAUSE),
    sa.Column("detail", TEXT),
    sa.Column("actor", TEXT),  # who paused the cluster
    sa.Index(None, "cluster", "began_at"),  # the gaps that explain a job's wide bounds
    sa.Index(None, "cluster", "ended_at"),  # report_gaps: the first that ends after a job was registered
    sqlite_autoincrement=True,
)

# What the daemons on one database share about a cluster: its health, and its place in the rate.
CLUSTERS = sa.Table(
    "clusters",
    METADATA,
    _key("cluster", TEXT),
    sa.Column("answered_at", INSTANT),  # the last valid answer was complete
    _not_null("failures", NUMBER, default="0"),  # since the last valid answer, that count (health)
    sa.Column("failing_since", INSTANT),
    _not_null("pauses", NUMBER, default="0"),  # in a row
    sa.Column("paused_until", INSTANT),
    sa.Column("pause_cause", CAUSE),
    sa.Column("gap_began_at", INSTANT),  # the gap that is still open
    sa.Column("gap_cause", CAUSE),
    sa.Column("gap_detail", TEXT),
    sa.Column("gap_actor", TEXT),
    sa.Column("next_request_at", INSTANT),  # the next free place in the rate, on the database's clock
    sa.Column("utc_offsets", TEXT),  # of the legal time zone, as JSON: [from, until, seconds]; SQLite has no time zones
)

# A daemon, alive or stopped; heartbeats go by the database's clock.
WORKERS = sa.Table(
    "workers",
    METADATA,
    _key("worker", TEXT),
    _not_null("host", TEXT),
    _not_null("pid", NUMBER),
    _not_null("version", TEXT),
    _not_null("started_at", INSTANT),
    _not_null("beat_at", INSTANT),
    sa.Column("stopped_at", INSTANT),
    _not_null("once", sa.Boolean(), default=sa.false()),  # started by `run --once`
)

# A checkpoint over everything up to some ids. Append-only.
SEALS = sa.Table(
    "seals",
    METADATA,
    _id(),
    *(_not_null(name, BIG) for name in ("last_transition_id", "last_gap_id", "last_source_id", "rows")),
    _not_null("checkpoint", TEXT),  # its whole text, signature included
    sa.Column("checkpoint_sha256", TEXT, nullable=False, unique=True),
    _not_null("sealed_at", INSTANT),
    sa.Column("key_id", TEXT),
    sa.Index(None, "last_transition_id"),  # which seal closed a transition (report_transitions.seal_id)
    sqlite_autoincrement=True,
)

# At most 1,000 sealed rows of one table, as the SHA-256 of their CSV file. Append-only.
SEGMENTS = sa.Table(
    "segments",
    METADATA,
    _key("seal_id", BIG, sa.ForeignKey("seals.id")),
    _key("name", TEXT),  # the table
    _key("part", NUMBER),
    _not_null("first_id", BIG),
    _not_null("last_id", BIG),
    _not_null("rows", NUMBER),
    _not_null("sha256", TEXT),
)

# How far the checkpoints have come to one destination outside the database.
DELIVERIES = sa.Table(
    "deliveries",
    METADATA,
    _key("destination", TEXT),
    _not_null("last_number", BIG, default="0"),  # of the newest checkpoint delivered there
    sa.Column("delivered_at", INSTANT),
    sa.Column("failing_since", INSTANT),  # NULL while deliveries succeed
    sa.Column("last_error", TEXT),  # why the last attempt failed
)

# Which needs were sent to people, and who is handling them.
ALERTS = sa.Table(
    "alerts",
    METADATA,
    _key("kind", TEXT),
    _key("subject", TEXT),  # a cluster, a destination, a group of jobs; a hyphen where there is none
    _key("since", INSTANT),
    _not_null("level", TEXT),  # how urgent it was when it was sent or acknowledged
    sa.Column("told_at", INSTANT),  # last sent; not before ended_at: its end was sent, too
    sa.Column("ended_at", INSTANT),
    sa.Column("acked_by", TEXT),
    sa.Column("acked_until", INSTANT),
    sa.Column("ack_reason", TEXT),
)


FACTS = tuple(field.name for field in fields(status.Facts))
"""The columns of jobs that people declare and an amendment may change."""
OBSERVED = tuple(field.name for field in fields(status.Job) if not field.name.startswith(("facts", "registered")))
"""The columns of jobs that answers and actions change."""
_OF_TRANSITION = tuple(field.name for field in fields(status.Transition) if field.name != "facts")


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
    observed = {name: getattr(row, name) for name in OBSERVED}
    return status.Job(facts_of(row), row.registered_at, row.registered_by, **observed)


def zone_on_record(name: str) -> ZoneInfo:
    """Return the time zone that a row of sources names; raise BadConfiguration if this machine does not know it."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise BadConfiguration(
            f"table sources names the time zone {name[:60]!r}, which this machine does not know: update the Python"
            " package tzdata, and run `tracker audit verify`"
        ) from None


def legal_zones(connection: sa.Connection, default: ZoneInfo) -> Callable[[str, datetime], ZoneInfo]:
    """Return a function that says in which legal time zone a deadline of a cluster is computed, or amended, at a time.

    It is the zone on record then, in ``sources``; before the cluster's first source, the zone of that; without any,
    *default*. So a changed setting moves no existing deadline, and an auditor can compute each again.
    """
    query = sa.select(SOURCES.c.cluster, SOURCES.c.recorded_at, SOURCES.c.legal_timezone).order_by(SOURCES.c.id)
    zones: dict[str, list[tuple[datetime, ZoneInfo]]] = {}
    for cluster, recorded_at, name in connection.execute(query):
        zones.setdefault(cluster, []).append((recorded_at, zone_on_record(name)))

    def zone(cluster: str, at: datetime) -> ZoneInfo:
        own = zones.get(cluster)
        return next((zone for since, zone in reversed(own) if since <= at), own[0][1]) if own else default

    return zone


def observed_values(job: status.Job) -> dict[str, Any]:
    """Return the observed columns of jobs, as *job* has them; declared ones change by an amendment only."""
    return {name: getattr(job, name) for name in OBSERVED}


def facts_values(facts: status.Facts | None) -> dict[str, Any]:
    """Return the columns of the declared facts, NULL where there are none."""
    return {name: getattr(facts, name, None) for name in FACTS}


def transition_values(job_id: int, transition: status.Transition, source_id: int | None = None) -> dict[str, Any]:
    """Return the row of transitions for *transition*, without its id."""
    values = {name: getattr(transition, name) for name in _OF_TRANSITION}
    return {"job_id": job_id, "source_id": source_id} | values | facts_values(transition.facts)
