"""A cluster's row in ``clusters``, as the daemons on one database share it, and its rows in ``sources`` and ``gaps``.

Owns reading, locking and writing them, what a daemon that starts finds, and the watch over the database's clock. Leaves
alone what becomes of a cluster (``health``), and asking it (``poller``). Lock order: clusters by name, then jobs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from threading import Lock
from time import monotonic
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import cadence, database, deadline, health
from tracker.health import MISSED, ClockStep, EndedGap, Health
from tracker.logs import event
from tracker.models import CLUSTERS, GAPS, JOBS, SOURCES, WORKERS
from tracker.settings import ClusterSettings, Settings
from tracker.status import CLOCK_STEP

_INSTANT: Final = "%Y-%m-%d %H:%M:%S.%f"
"""The format of an instant in SQLite."""
LEASE: Final = timedelta(minutes=2)
"""A worker keeps a claimed job for at least this long: a crash delays its jobs by no more."""

_HEALTH: Final = [one.name for one in fields(Health)]


class ClockWatch:
    """The database's clock against the time that passes: one for all clusters of a process.

    Attributes:
        steps: What was found; each poller puts it on its cluster's record once.

    Args:
        has_heartbeat: The process writes now and then; if it does not for a minute, it stood still.
    """

    def __init__(self, *, has_heartbeat: bool = True) -> None:
        self.steps: list[ClockStep] = []
        self._has_heartbeat = has_heartbeat
        self._last: tuple[datetime, float] | None = None
        self._lock = Lock()

    def read(self, connection: sa.Connection) -> tuple[datetime, float]:
        """Return the database's time and the monotonic time that belongs to it, compared with the last that `wrote`."""
        while True:
            began = monotonic()
            now = database.now(connection)
            ended = monotonic()
            if ended - began < CLOCK_STEP.total_seconds() / 5:
                break  # otherwise the database or this process was stopped: it may have read its clock at any moment
        tick = (began + ended) / 2
        with self._lock:
            if self._last is not None and tick <= self._last[1]:
                return now, tick
            found = self._last and health.step(self._last[0], now, timedelta(seconds=tick - self._last[1]))
            if found is not None and not self._has_heartbeat and abs(found.by) <= CLOCK_STEP:
                found = None
            if found is not None:
                self.steps.append(found)
                name = "clock_stepped" if abs(found.by) > CLOCK_STEP else "stood_still"
                by = round(found.by.total_seconds(), 1)
                event(name, logging.WARNING, before=found.before, now=now, by_seconds=by)
            if found is not None or self._last is None:
                self._last = now, tick
        return now, tick

    def wrote(self, now: datetime, tick: float) -> None:
        """Take note of a committed transaction: only a database that can be written counts as a sign of life."""
        with self._lock:
            if self._last is None or tick > self._last[1]:
                self._last = now, tick


def made(connection: sa.Connection, cluster: str) -> sa.Row[Any]:
    """Return the cluster's row, locked; it is made if it is missing."""
    make = sa.text("INSERT INTO clusters (cluster) VALUES (:cluster) ON CONFLICT DO NOTHING")
    connection.execute(make, {"cluster": cluster})
    return connection.execute(sa.select(CLUSTERS).where(CLUSTERS.c.cluster == cluster).with_for_update()).one()


def first_contact(connection: sa.Connection, cluster: ClusterSettings, settings: Settings) -> int:
    """Make the cluster's row if it is missing, and return the id of the row in ``sources`` for this configuration.

    The cluster's row gets the UTC offsets of the legal time zone, from which the views know which day it is there.
    A row is written when the configuration differs from the last one's: pointing tracker at a fake server leaves a
    trace.
    """
    offsets = utc_offsets(settings.timezone, database.now(connection))
    if made(connection, cluster.name).utc_offsets != offsets:
        connection.execute(sa.update(CLUSTERS).where(CLUSTERS.c.cluster == cluster.name).values(utc_offsets=offsets))
    values = {
        "cluster": cluster.name,
        "base_url": cluster.base_url,
        "path": cluster.path,
        "timezone": cluster.timezone,
        "archive_days": cluster.archive_days,
        "lost_after_polls": settings.lost_after_polls,
        "lost_after_seconds": int(settings.lost_after.total_seconds()),
        "legal_timezone": settings.timezone,
        "version": version("tracker"),
    }
    of_cluster = sa.select(SOURCES).where(SOURCES.c.cluster == cluster.name)
    last = connection.execute(of_cluster.order_by(SOURCES.c.id.desc()).limit(1)).one_or_none()
    if last is not None and all(getattr(last, name) == value for name, value in values.items()):
        return int(last.id)
    row = sa.insert(SOURCES).values(**values, recorded_at=database.now(connection)).returning(SOURCES.c.id)
    return int(connection.execute(row).scalar_one())


def utc_offsets(zone: str, now: datetime) -> str:
    """Return the UTC offsets of the legal time zone from last year on, for ten years: no daemon runs longer."""
    since = datetime(now.year - 1, 1, 1, tzinfo=UTC)
    found = deadline.utc_offsets(ZoneInfo(zone), since, since.replace(year=since.year + 10))
    return json.dumps([(f"{a:{_INSTANT}}", f"{b:{_INSTANT}}", round(by.total_seconds())) for a, b, by in found])


def take_up(connection: sa.Connection, clusters: Iterable[str], worker: str) -> None:
    """Put on record what a daemon that starts finds: that none ran while polls were missed, or that a clock was ahead.

    Called once, before the first claim, in a transaction of its own.
    """
    now = database.now(connection)
    w, instant = WORKERS.c, JOBS.c.due_at.type
    # A daemon that started when we did, perhaps after a reboot, proves nothing about the time before its first answer.
    is_new = sa.and_(w.stopped_at.is_(None), w.started_at > now - MISSED)
    life = sa.func.coalesce(w.stopped_at, w.beat_at)
    lives = sa.select(
        sa.func.max(life, type_=instant),
        sa.func.max(sa.case((is_new, None), else_=life), type_=instant),
        sa.func.min(sa.case((is_new, w.started_at)), type_=instant),
    )
    last, last_before, began_at = connection.execute(lives.where(w.worker != worker)).one()
    for name in sorted(clusters):
        before = after = lock(connection, name)
        seen = max((at for at in (last, before.answered_at) if at is not None), default=now)
        if seen > now + CLOCK_STEP:
            after = catch_up(connection, name, worker, before, [ClockStep(seen, now, now - seen)])
        elif (ran := last if _is_after(before.answered_at, began_at) else last_before) and now - ran >= MISSED:
            missed = sa.select(JOBS.c.id).where(JOBS.c.cluster == name, JOBS.c.due_at < now - MISSED).limit(1)
            if connection.execute(missed).first() is not None:
                after = health.absent(before, ran)
        put(connection, name, before, after)
        late = sa.update(JOBS).where(JOBS.c.cluster == name, JOBS.c.due_at > now + cadence.LONGEST_NIGHT)
        connection.execute(late.values(due_at=now))


def _is_after(at: datetime | None, began_at: datetime | None) -> bool:
    return at is not None and began_at is not None and at >= began_at


def catch_up(
    connection: sa.Connection, cluster: str, worker: str, current: Health, steps: Iterable[ClockStep]
) -> Health:
    """Record steps of the clock, and return the cluster after them; the caller has locked its row."""
    for step in steps:
        if step.by < -CLOCK_STEP:
            set_right(connection, cluster, step.now)
        else:
            alive = sa.select(WORKERS.c.worker).where(WORKERS.c.worker != worker, WORKERS.c.stopped_at.is_(None))
            alive = alive.where(WORKERS.c.beat_at.between(step.now - MISSED, step.now + CLOCK_STEP)).limit(1)
            open_job = sa.select(JOBS.c.id).where(JOBS.c.cluster == cluster, JOBS.c.due_at.is_not(None)).limit(1)
            if connection.execute(alive).first() is not None or connection.execute(open_job).first() is None:
                continue  # another daemon was polling, or there was nothing to poll
        change = health.stepped(current, step)
        put_gap(connection, cluster, change.gap)
        current = change.health
    return current


def look(engine: sa.Engine, watch: ClockWatch) -> tuple[datetime, dict[str, tuple[Health, datetime | None]]]:
    """Return the database's time, and for each cluster its health and when its next poll is due: one query."""
    due_at = sa.select(sa.func.min(JOBS.c.due_at)).where(JOBS.c.cluster == CLUSTERS.c.cluster).scalar_subquery()
    with database.reading(engine) as connection:
        now, _ = watch.read(connection)
        rows = connection.execute(sa.select(CLUSTERS, due_at.label("due_at"))).all()
    return now, {row.cluster: (_health_of(row), row.due_at) for row in rows}


def _health_of(row: sa.Row[Any]) -> Health:
    return Health(**{name: getattr(row, name) for name in _HEALTH})


def lock(connection: sa.Connection, cluster: str) -> Health:
    """Return the health of a cluster, its row locked until the transaction ends."""
    query = sa.select(CLUSTERS).where(CLUSTERS.c.cluster == cluster).with_for_update()
    return _health_of(connection.execute(query).one())


def put(connection: sa.Connection, cluster: str, before: Health, after: Health) -> None:
    """Write the changes of a cluster since its row was locked."""
    values = {name: getattr(after, name) for name in _HEALTH if getattr(after, name) != getattr(before, name)}
    if values:
        connection.execute(sa.update(CLUSTERS).where(CLUSTERS.c.cluster == cluster).values(values))


def put_gap(connection: sa.Connection, cluster: str, gap: EndedGap | None) -> None:
    """Write a gap that has ended, if there is one."""
    if gap is not None:
        connection.execute(sa.insert(GAPS).values(cluster=cluster, **asdict(gap)))


def set_right(connection: sa.Connection, cluster: str, now: datetime) -> None:
    """After a clock was ahead: make its polls due at once, end its leases, and leave no heartbeat in the future."""
    j = JOBS.c
    failed = sa.and_(j.failures > 0, j.due_at > now + cadence.LONGEST * 1.1)
    ahead = sa.or_(j.seen_at > now, j.due_at > now + cadence.LONGEST_NIGHT, failed)
    open_jobs = sa.update(JOBS).where(j.cluster == cluster, j.due_at > now)
    connection.execute(open_jobs.where(ahead).values(due_at=now))
    leased = sa.update(JOBS).where(j.cluster == cluster, j.due_at.is_not(None), j.leased_until > now + LEASE)
    connection.execute(leased.values(leased_by=None, leased_until=None))
    for beat in (WORKERS.c.beat_at, WORKERS.c.stopped_at):
        connection.execute(sa.update(WORKERS).where(beat > now).values({beat: now}))
