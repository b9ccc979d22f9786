"""The present state: gathers what `tracker.needs` judges, and what `tracker status` and `tracker clusters` show.

Owns these queries and when a daemon is taken for alive. Each reads by an index what may need a person, and no other
job: at a million open jobs these are few. What a verdict is, which days are left and what is late is the views'; how it
is shown is the reader's (``cli``, ``page``). The tables' declarations are not imported: they take longer than this.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import sqlalchemy as sa

from tracker import database
from tracker.needs import NEAR, Alerted, ClusterOverview, Daemon, Group, Overview, Seals, Undelivered
from tracker.status import Anomaly, Cause, State
from tracker.utc import UtcDateTime

ALIVE: Final = timedelta(seconds=60)
"""A daemon that has not beaten for longer than this is dead."""
_DAY: Final = timedelta(days=1)

# The states are literals, as in the indexes: no bound parameter finds a partial index. Lost jobs are counted apart.
_DAEMONS: Final = """
    SELECT worker, host, pid, version, started_at, beat_at
    FROM workers
    WHERE stopped_at IS NULL AND beat_at >= :since
    ORDER BY started_at, worker"""
_CLUSTERS: Final = """
    SELECT
        v.cluster, v.open, v.polls_behind, v.answered_at, v.paused_until, v.pause_cause, v.next_deadline_on,
        (SELECT min(j.due_at) FROM jobs j WHERE j.cluster = v.cluster) AS behind_since,
        c.next_request_at AS asked_at, c.gap_began_at, c.gap_cause, c.gap_detail
    FROM report_clusters v
    LEFT JOIN clusters c ON c.cluster = v.cluster"""
_PAST: Final = """
    SELECT v.state, v.verdict, count(*) AS total, min(v.deadline_at) AS since
    FROM report_deadlines v
    WHERE v.state IN ('open', 'failed', 'lost') AND v.deadline_on <= :last_day
        AND v.state <> 'lost' AND v.verdict <> 'pending'
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
    SELECT anomaly, count(*) AS total, min(observed_at) AS since
    FROM transitions
    WHERE anomaly IS NOT NULL AND observed_at >= :since
    GROUP BY anomaly
    ORDER BY anomaly"""
_CLOSING: Final = """
    SELECT count(*) AS total, min(v.download_by) AS since
    FROM report_durations v
    WHERE v.kind = 'export' AND v.done_by > :week_ago AND v.download_by > :now AND v.download_by <= :tomorrow"""
_RETAINED: Final = "SELECT count(*) AS total, min(ended_by) AS since FROM jobs WHERE ended_by < :day"
_SEAL: Final = """
    SELECT last_transition_id, last_gap_id, last_source_id, checkpoint, sealed_at, key_id
    FROM seals
    ORDER BY id DESC
    LIMIT 1"""
_UNSEALED: Final = """
    SELECT
        (SELECT count(*) FROM transitions WHERE id > :transition_id)
            + (SELECT count(*) FROM gaps WHERE id > :gap_id)
            + (SELECT count(*) FROM sources WHERE id > :source_id) AS total,
        (SELECT observed_at FROM transitions WHERE id > :transition_id ORDER BY id LIMIT 1) AS since"""
_FAILING: Final = """
    SELECT destination, failing_since, last_error, last_number
    FROM deliveries
    WHERE failing_since IS NOT NULL
    ORDER BY destination"""
_ALERTS: Final = """
    SELECT kind, subject, since, level, told_at, ended_at, acked_by, acked_until, ack_reason
    FROM alerts
    WHERE ended_at IS NULL OR told_at IS NULL OR told_at < ended_at
    ORDER BY since, kind, subject"""
_INSTANTS: Final = (
    *("since", "started_at", "beat_at", "answered_at", "paused_until", "behind_since", "asked_at", "gap_began_at"),
    *("sealed_at", "failing_since", "told_at", "ended_at", "acked_until"),
)
"""The columns of these queries that are times; SQLite does not say so."""


def overview(
    connection: sa.Connection, configured: Collection[str], seal_after: timedelta, retention: timedelta | None = None
) -> Overview:
    """Return the state at the database's time.

    Args:
        connection: In a transaction of `database.reading`.
        configured: The clusters in the settings of this command.
        seal_after, retention: The settings.
    """
    now = database.now(connection)
    today = now.date()  # in UTC; in the legal zone it may be the day before or after
    first_day, last_day = today - _DAY, today + (NEAR[-1] + 1) * _DAY
    past = {(row.state, row.verdict): row for row in _rows(connection, _PAST, last_day=today + _DAY)}
    overdue = [row for (_, verdict), row in past.items() if verdict == "overdue"]
    unseen = past.get((State.OPEN, "undecidable"))
    stuck = {row.state: Group(row.total, row.since) for row in _rows(connection, _STUCK)}
    ahead = _rows(connection, _AHEAD, first_day=first_day, last_day=last_day, now=now)
    anomalies = _rows(connection, _ANOMALIES, since=now - _DAY)
    [closing] = _rows(connection, _CLOSING, week_ago=now - 7 * _DAY, now=now, tomorrow=now + _DAY)
    [last] = _rows(connection, "SELECT max(beat_at) AS since FROM workers")
    kept = retention or 36_500 * _DAY  # no job is older
    oldest = datetime.combine(now - kept, time(), UTC)
    [old] = _rows(connection, _RETAINED, day=oldest)
    return Overview(
        now=now,
        seal_after=seal_after,
        retained_to=oldest.date(),
        retained=Group(old.total, old.since and old.since + kept),
        daemons=tuple(Daemon(**row._asdict()) for row in _rows(connection, _DAEMONS, since=now - ALIVE)),
        last_beat_at=last.since,
        clusters=clusters(connection, configured),
        overdue=Group(sum(row.total for row in overdue), min((row.since for row in overdue), default=None)),
        undecidable=Group(unseen.total, unseen.since) if unseen else Group(),
        lost=stuck.get(State.LOST, Group()),
        failed=stuck.get(State.FAILED, Group()),
        due_within={row.days_left: row.total for row in ahead},
        anomalies={Anomaly(row.anomaly): Group(row.total, row.since) for row in anomalies},
        downloads=Group(closing.total, closing.since),
        seals=seals(connection),
        alerts=tuple(Alerted(**row._asdict()) for row in _rows(connection, _ALERTS)),
    )


def clusters(connection: sa.Connection, configured: Collection[str]) -> tuple[ClusterOverview, ...]:
    """Return each cluster that is configured or in the database, by name."""
    found = {name: ClusterOverview(name, is_configured=True) for name in configured}
    for row in _rows(connection, _CLUSTERS):
        one = ClusterOverview(is_configured=row.cluster in found, **row._asdict())
        pause, gap = (None if cause is None else Cause(cause) for cause in (one.pause_cause, one.gap_cause))
        since = one.behind_since if one.polls_behind else None  # else its oldest poll is not late
        found[one.cluster] = replace(one, pause_cause=pause, gap_cause=gap, behind_since=since)
    return tuple(found[name] for name in sorted(found))


def seals(connection: sa.Connection) -> Seals:
    """Return how the history is sealed. Whether it is as it was sealed is for `tracker.audit.verify` to say."""
    last = next(iter(_rows(connection, _SEAL)), None)
    after = (last.last_transition_id, last.last_gap_id, last.last_source_id) if last else (0, 0, 0)
    ids = dict(zip(("transition_id", "gap_id", "source_id"), after, strict=True))
    [unsealed] = _rows(connection, _UNSEALED, **ids)
    written = re.search(r"^number (\d{1,18})$", last.checkpoint, re.MULTILINE) if last else None
    number = int(written[1]) if written else None
    return Seals(
        number=number,
        sealed_at=last.sealed_at if last else None,
        key_id=last.key_id if last else None,
        unsealed=unsealed.total,
        unsealed_since=unsealed.since,
        undelivered=tuple(
            Undelivered(
                row.destination, row.failing_since, row.last_error or "", max(0, (number or 0) - row.last_number)
            )
            for row in _rows(connection, _FAILING)
        ),
    )


def _rows(connection: sa.Connection, query: str, **values: date | datetime | int | str) -> Sequence[sa.Row[Any]]:
    """Return the rows of *query*, with times and days as Python has them."""
    kinds: dict[type, Any] = {datetime: UtcDateTime(), date: sa.Date(), int: sa.BigInteger(), str: sa.String()}
    bound = [sa.bindparam(name, value, kinds[type(value)]) for name, value in values.items()]
    typed = dict.fromkeys(_INSTANTS, UtcDateTime()) | {"next_deadline_on": sa.Date()}
    return connection.execute(sa.text(query).bindparams(*bound).columns(**typed)).all()
