"""How everything stands now: gathers what `tracker.needs` judges, `tracker status` and `tracker clusters` show.

Owns these queries and when a daemon is taken for alive. Each reads by an index what may need a person, and no other
job: at a million open jobs these are few. What a verdict is, which days are left and what is late is the views'; how it
is shown is the reader's (``cli``, ``page``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from tracker import database
from tracker.models import CLUSTERS, TRANSITIONS, Delivery, Gap, Seal, Source, UtcDateTime, Worker
from tracker.needs import NEAR, Cluster, Daemon, Group, Overview, Seals, Undelivered
from tracker.status import Anomaly, State

ALIVE: Final = timedelta(seconds=60)
"""A daemon that has not beaten for longer than this is dead."""

_FAR: Final = timedelta(days=NEAR[-1] + 1)
"""No deadline that is farther ahead is near, whatever day it is in the legal zone."""

# The states are literals, as in the indexes: no bound parameter finds a partial index.
_CLUSTERS: Final = """
    SELECT
        v.cluster, v.open, v.polls_behind, v.next_deadline_on,
        CASE WHEN v.polls_behind > 0 THEN (SELECT min(j.due_at) FROM jobs j WHERE j.cluster = v.cluster) END AS since
    FROM report_clusters v"""
_PAST: Final = """
    SELECT v.state, v.verdict, count(*) AS total, min(v.deadline_at) AS since
    FROM report_deadlines v
    WHERE v.state IN ('open', 'failed', 'lost') AND v.deadline_on <= :last_day AND v.verdict <> 'pending'
    GROUP BY v.state, v.verdict"""
_STUCK: Final = """
    SELECT v.state, count(*) AS total, min(v.ended_by) AS since
    FROM report_jobs v
    WHERE v.state IN ('failed', 'lost')
    GROUP BY v.state"""
_AHEAD: Final = """
    SELECT v.days_left, count(*) AS total
    FROM report_deadlines v
    WHERE v.state IN ('open', 'failed', 'lost') AND v.deadline_on BETWEEN :first_day AND :last_day
        AND v.deadline_at > :now
    GROUP BY v.days_left"""
_ANOMALIES: Final = """
    SELECT t.anomaly, count(*) AS total, min(t.observed_at) AS since
    FROM transitions t
    WHERE t.anomaly IS NOT NULL AND t.observed_at >= :now
    GROUP BY t.anomaly
    ORDER BY t.anomaly"""
_CLOSING: Final = """
    SELECT count(*) AS total, min(v.download_by) AS since
    FROM report_durations v
    WHERE v.kind = 'export' AND v.done_by > :week_ago AND v.download_by > :now AND v.download_by <= :tomorrow"""


def overview(connection: sa.Connection, configured: Collection[str], seal_after: timedelta) -> Overview:
    """Return how everything stands at the database's time.

    Args:
        connection: In a transaction of `database.reading`.
        configured: The clusters in the settings of this command.
        seal_after: The setting.
    """
    now, day = database.now(connection), timedelta(days=1)
    today = now.date()  # in UTC; in the legal zone it may be the day before or after
    past = {(row.state, row.verdict): row for row in _rows(connection, _PAST, last_day=today + day)}
    overdue = [row for (_, verdict), row in past.items() if verdict == "overdue"]
    unseen = past.get((State.OPEN, "undecidable"))
    stuck = {row.state: Group(row.total, row.since) for row in _rows(connection, _STUCK)}
    ahead = _rows(connection, _AHEAD, first_day=today - day, last_day=today + _FAR, now=now)
    anomalies = _rows(connection, _ANOMALIES, now=now - day)
    [closing] = _rows(connection, _CLOSING, week_ago=now - 7 * day, now=now, tomorrow=now + day)
    w = Worker
    alive = sa.select(w.worker, w.host, w.pid, w.version, w.started_at, w.beat_at)
    alive = alive.where(w.stopped_at.is_(None), w.beat_at >= now - ALIVE).order_by(w.started_at)
    return Overview(
        now=now,
        seal_after=seal_after,
        daemons=tuple(Daemon(*row) for row in connection.execute(alive)),
        last_beat_at=connection.execute(sa.select(sa.func.max(w.beat_at, type_=UtcDateTime()))).scalar_one(),
        clusters=clusters(connection, configured),
        overdue=Group(sum(row.total for row in overdue), min((row.since for row in overdue), default=None)),
        undecidable=Group(unseen.total, unseen.since) if unseen else Group(),
        lost=stuck.get(State.LOST, Group()),
        failed=stuck.get(State.FAILED, Group()),
        due_within={row.days_left: row.total for row in ahead},
        anomalies={Anomaly(row.anomaly): Group(row.total, row.since) for row in anomalies},
        downloads=Group(closing.total, closing.since),
        seals=seals(connection),
    )


def clusters(connection: sa.Connection, configured: Collection[str]) -> tuple[Cluster, ...]:
    """Return each cluster that is configured or in the database, by name."""
    counted = {row.cluster: row for row in _rows(connection, _CLUSTERS)}
    stored = {row.cluster: row for row in connection.execute(sa.select(CLUSTERS))}
    found = []
    for name in sorted({*configured, *counted}):
        one = Cluster(name, is_configured=name in configured)
        if (row := counted.get(name)) is not None:
            one = replace(
                one,
                open=row.open,
                polls_behind=row.polls_behind,
                behind_since=row.since,
                next_deadline_on=row.next_deadline_on,
            )
        if (row := stored.get(name)) is not None:
            one = replace(
                one,
                asked_at=row.next_request_at,
                answered_at=row.answered_at,
                paused_until=row.paused_until,
                pause_cause=row.pause_cause,
                gap_began_at=row.gap_began_at,
                gap_cause=row.gap_cause,
                gap_detail=row.gap_detail,
            )
        found.append(one)
    return tuple(found)


def seals(connection: sa.Connection) -> Seals:
    """Return how the history is sealed. Whether it is as it was sealed is for `tracker.audit.verify` to say."""
    last = connection.execute(sa.select(Seal.__table__).order_by(Seal.id.desc()).limit(1)).one_or_none()
    after = (last.last_transition_id, last.last_gap_id, last.last_source_id) if last else (0, 0, 0)
    unsealed = 0
    for id_, sealed in zip((TRANSITIONS.c.id, Gap.id, Source.id), after, strict=True):
        unsealed += connection.execute(sa.select(sa.func.count()).where(id_ > sealed)).scalar_one()
    t = TRANSITIONS.c
    oldest = sa.select(t.observed_at).where(t.id > after[0]).order_by(t.id).limit(1)
    found = re.search(r"^number (\d{1,18})$", last.checkpoint, re.MULTILINE) if last else None
    number = int(found[1]) if found else None
    failing = sa.select(Delivery.__table__).where(Delivery.failing_since.is_not(None)).order_by(Delivery.destination)
    return Seals(
        number=number,
        sealed_at=last.sealed_at if last else None,
        key_id=last.key_id if last else None,
        unsealed=unsealed,
        unsealed_since=connection.execute(oldest).scalar_one_or_none(),
        undelivered=tuple(
            Undelivered(
                row.destination, row.failing_since, row.last_error or "", max(0, (number or 0) - row.last_number)
            )
            for row in connection.execute(failing)
        ),
    )


def _rows(connection: sa.Connection, query: str, **values: date | datetime) -> Sequence[sa.Row[Any]]:
    """Return the rows of *query*; on both databases ``since`` is a time and ``next_deadline_on`` a day."""
    bound = [
        sa.bindparam(name, value, UtcDateTime() if isinstance(value, datetime) else sa.Date())
        for name, value in values.items()
    ]
    statement = sa.text(query).bindparams(*bound).columns(since=UtcDateTime(), next_deadline_on=sa.Date())
    return connection.execute(statement).all()
