"""What an operator looks at: the clusters, and what needs a person.

Owns these queries, and what counts as behind, alive, near and in need of a person. How it is shown is the reader's
(``cli``); what the columns mean is the views' and ``models``'.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from tracker import database
from tracker.models import CLUSTERS, JOBS, TRANSITIONS, Delivery, Gap, Seal, Source, UtcDateTime, Worker
from tracker.reports.jobs import AnyGap
from tracker.reports.tables import typed
from tracker.status import UNSETTLED, Anomaly, Cause, State

BEHIND: Final = timedelta(seconds=60)
"""A poll that is due for longer than this is behind."""
FAR_BEHIND: Final = timedelta(minutes=15)
"""One that is behind for longer than this needs a person: no short outage or burst of registrations explains it."""
ALIVE: Final = timedelta(seconds=60)
"""A daemon that has not beaten for longer than this is dead."""
NEAR: Final = timedelta(days=7)
"""A deadline that is no farther ahead than this is near."""
RECENT: Final = timedelta(hours=24)
"""How long anomalies are reported."""
SEALED_WITHIN: Final = timedelta(hours=24)
"""A row that waits for its seal for this much longer than `seal_after` needs a person: cron may run once a day."""
SEALED_BY_DAEMON: Final = timedelta(minutes=15)
"""The same while a daemon runs."""


@dataclass(frozen=True, slots=True)
class ClusterRow:
    """A cluster, as an operator sees it.

    Attributes:
        cluster: Its name.
        configured: It is in the settings of this command.
        open: Open jobs.
        polls_behind: Polls that are due for longer than `BEHIND`, whether a daemon has claimed them or not.
        behind_since: When the oldest of them was due.
        answered_at: The last valid answer was complete.
        paused_until: None while paused: until an operator resumes it.
        pause_cause: None: it is not paused.
        gap_began_at: None: no gap is open.
        gap_cause: Why nothing could be observed since.
        gap_detail: An operator's reason, or the code of an error.
        next_deadline_on: The nearest day that is a deadline still ahead of an unsettled job.
    """

    cluster: str
    configured: bool
    open: int = 0
    polls_behind: int = 0
    behind_since: datetime | None = None
    answered_at: datetime | None = None
    paused_until: datetime | None = None
    pause_cause: Cause | None = None
    gap_began_at: datetime | None = None
    gap_cause: Cause | None = None
    gap_detail: str | None = None
    next_deadline_on: date | None = None


def clusters(connection: sa.Connection, configured: Collection[str]) -> list[ClusterRow]:
    """Return a row for each cluster that is configured or in the database, by name."""
    now = database.now(connection)
    j = JOBS.c
    behind = j.due_at < now - BEHIND
    query = sa.select(
        j.cluster,
        sa.func.count().filter(j.state == State.OPEN).label("open"),
        sa.func.count().filter(behind).label("polls_behind"),
        sa.func.min(j.due_at).filter(behind).label("behind_since"),
        sa.func.min(j.deadline_on).filter(j.state.in_(UNSETTLED), j.deadline_at > now).label("next_deadline_on"),
    ).group_by(j.cluster)
    counted = {row.cluster: row._asdict() for row in connection.execute(query)}
    shown = ("cluster", "answered_at", "paused_until", "pause_cause", "gap_began_at", "gap_cause", "gap_detail")
    query = sa.select(*(CLUSTERS.c[name] for name in shown))
    standing = {row.cluster: row._asdict() for row in connection.execute(query)}
    rows = []
    for name in sorted({*configured, *counted, *standing}):
        row: dict[str, Any] = {"cluster": name, "configured": name in configured}
        row |= counted.get(name, {}) | standing.get(name, {})
        rows.append(ClusterRow(**row))
    return rows


@dataclass(frozen=True, slots=True)
class Undelivered:
    """Where checkpoints cannot be delivered to.

    Attributes:
        destination: Without secrets.
        failing_since: It fails since then.
        last_error: Class and code.
        waiting: How many checkpoints it lacks.
    """

    destination: str
    failing_since: datetime
    last_error: str
    waiting: int


@dataclass(frozen=True, slots=True)
class Sealing:
    """How the record is sealed.

    Attributes:
        number: Of the last checkpoint; None: it is missing or damaged.
        sealed_at: When it was made; None: nothing is sealed.
        key_id: Whose signature it says to have; None: it is unsigned.
        unsealed: Rows of history since.
        unsealed_since: When the oldest transition of them was recorded.
        undelivered: By destination.
    """

    number: int | None
    sealed_at: datetime | None
    key_id: str | None
    unsealed: int
    unsealed_since: datetime | None
    undelivered: tuple[Undelivered, ...]


def sealing(connection: sa.Connection) -> Sealing:
    """Return how the record is sealed. Whether it is as it was sealed, `tracker.audit.verify` tells."""
    last = connection.execute(sa.select(Seal.__table__).order_by(Seal.id.desc()).limit(1)).one_or_none()
    after = (last.last_transition_id, last.last_gap_id, last.last_source_id) if last else (0, 0, 0)
    unsealed = 0
    for id_, sealed in zip((TRANSITIONS.c.id, Gap.id, Source.id), after, strict=True):
        unsealed += connection.execute(sa.select(sa.func.count()).where(id_ > sealed)).scalar_one()
    t = TRANSITIONS.c
    oldest = sa.select(t.observed_at).where(t.id > after[0]).order_by(t.id).limit(1)
    found = re.search(r"^number (\d{1,18})$", last.checkpoint, re.MULTILINE) if last else None
    number = int(found[1]) if found else None
    made = number or 0
    failing = sa.select(Delivery.__table__).where(Delivery.failing_since.is_not(None)).order_by(Delivery.destination)
    return Sealing(
        number=number,
        sealed_at=last.sealed_at if last else None,
        key_id=last.key_id if last else None,
        unsealed=unsealed,
        unsealed_since=connection.execute(oldest).scalar_one_or_none(),
        undelivered=tuple(
            Undelivered(one.destination, one.failing_since, one.last_error or "", max(0, made - one.last_number))
            for one in connection.execute(failing)
        ),
    )


@dataclass(frozen=True, slots=True)
class Overview:
    """How everything stands at once.

    Attributes:
        now: The database's time.
        alive: Rows of ``workers`` that beat within `ALIVE` and were not stopped.
        last_beat_at: The newest beat of any daemon, None if there never was one.
        clusters: From `clusters`.
        unsettled: Unsettled jobs by (state, verdict).
        near: Unsettled jobs whose deadline is near.
        anomalies: By word, those of the last `RECENT`.
        sealing: How it is sealed.
        clock_set: How the clock was set in the last `RECENT`: once, although each cluster has a gap for it.
    """

    now: datetime
    alive: list[sa.Row[Any]]
    last_beat_at: datetime | None
    clusters: list[ClusterRow]
    unsettled: dict[tuple[State, str], int]
    near: int
    anomalies: dict[Anomaly, int]
    sealing: Sealing
    clock_set: tuple[AnyGap, ...] = ()

    def count(self, *states: State, verdict: str | None = None) -> int:
        """Return how many jobs are in one of these unsettled states, with *verdict* if one is given."""
        return sum(n for (state, its), n in self.unsettled.items() if state in states and verdict in (None, its))


def overview(connection: sa.Connection, configured: Collection[str]) -> Overview:
    """Return how everything stands at the database's time."""
    now = database.now(connection)
    j, r, t = JOBS.c, typed(connection, "report_jobs").c, TRANSITIONS.c
    alive = (
        sa.select(sa.inspect(Worker).local_table)
        .where(Worker.stopped_at.is_(None), Worker.beat_at >= now - ALIVE)
        .order_by(Worker.started_at)
    )
    unsettled = (
        sa.select(r.state, r.verdict, sa.func.count()).where(r.state.in_(UNSETTLED)).group_by(r.state, r.verdict)
    )
    near = sa.select(sa.func.count()).where(j.state.in_(UNSETTLED), j.deadline_at > now, j.deadline_at <= now + NEAR)
    recent = (
        sa.select(t.anomaly, sa.func.count())
        .where(t.anomaly.is_not(None), t.observed_at >= now - RECENT)
        .group_by(t.anomaly)
        .order_by(t.anomaly)
    )
    return Overview(
        now=now,
        alive=list(connection.execute(alive)),
        last_beat_at=connection.execute(sa.select(sa.func.max(Worker.beat_at))).scalar_one(),
        clusters=clusters(connection, configured),
        unsettled={(State(row[0]), row[1]): row[2] for row in connection.execute(unsettled)},
        near=connection.execute(near).scalar_one(),
        anomalies={row[0]: row[1] for row in connection.execute(recent)},
        sealing=sealing(connection),
        clock_set=_clock_set(connection, now - RECENT),
    )


def _clock_set(connection: sa.Connection, since: datetime) -> tuple[AnyGap, ...]:
    query = (
        sa.select(
            sa.func.min(Gap.began_at, type_=UtcDateTime()), sa.func.max(Gap.ended_at, type_=UtcDateTime()), Gap.detail
        )
        .where(Gap.cause == Cause.CLOCK_SET, Gap.ended_at >= since)
        .group_by(Gap.detail)
    )
    return tuple(AnyGap(began, ended, Cause.CLOCK_SET, detail) for began, ended, detail in connection.execute(query))


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that needs a person: what it is, and what to do about it."""

    what: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.what}; {self.way_out}"


def needs(seen: Overview, seal_after: timedelta) -> list[Need]:
    """Return what needs a person, the gravest first; *seal_after*: as set.

    A done job whose verdict is missed or undecidable is not among it: nothing that anyone does changes that any more.
    """
    found: list[Need] = []
    if (open_jobs := seen.count(State.OPEN)) and not seen.alive:
        beat = f" (last beat {_told(seen.last_beat_at)})" if seen.last_beat_at else ""
        found.append(Need(f"No daemon is alive{beat}, and {_jobs(open_jobs)} open", "start one: `tracker run`."))
    for cluster in seen.clusters:
        name = cluster.cluster
        since = ""
        if cluster.gap_cause is cluster.pause_cause:  # else the gap began before, and tells of something else
            since = f" since {_told(cluster.gap_began_at)} ({cluster.gap_detail or 'no detail'})"
        resume = f"`tracker resume {name}`"
        match cluster.pause_cause:
            case Cause.KEY_REFUSED:
                way_out = f"put a valid key in place and restart `tracker run`; {resume} then asks at once."
                found.append(Need(f"The key of cluster {name} is refused{since}", way_out))
            case Cause.UNREACHABLE:
                way_out = f"check base_url, path and the network; {resume} then asks at once."
                found.append(Need(f"Cluster {name} cannot be reached{since}", way_out))
            case Cause.PAUSED:
                found.append(Need(f"Cluster {name} is paused by hand{since}", f"{resume} when it may be asked again."))
            case _:
                if cluster.behind_since is not None and cluster.behind_since < seen.now - FAR_BEHIND:
                    what = (
                        f"Cluster {name} has {cluster.polls_behind} polls behind, the oldest since "
                        f"{_told(cluster.behind_since)}"
                    )
                    found.append(Need(what, _catch_up(cluster)))
    found += _unproven(seen, seal_after)
    if overdue := seen.count(State.OPEN, State.FAILED, verdict="overdue"):
        way_out = "see `tracker jobs --past-deadline`; tell the colleague who answers the person."
        found.append(Need(f"{_jobs(overdue)} overdue: not done at the deadline", way_out))
    if unseen := seen.count(State.OPEN, verdict="undecidable"):
        way_out = "see `tracker jobs --past-deadline`; `tracker poll JID` asks now."
        found.append(Need(f"{_jobs(unseen)} undecidable: not seen since the deadline", way_out))
    if lost := seen.count(State.LOST):
        way_out = "see `tracker jobs --state lost`; check jid and cluster, then reopen or withdraw."
        found.append(Need(f"{_jobs(lost)} lost: Elevate knows no such jid", way_out))
    if failed := seen.count(State.FAILED):
        way_out = "see `tracker jobs --state failed`; submit it again, add the new jid, withdraw the old."
        found.append(Need(f"{_jobs(failed)} in state failed: Elevate said error", way_out))
    return found


def _unproven(seen: Overview, seal_after: timedelta) -> Iterable[Need]:
    """Yield what keeps checkpoints from being made, or from leaving the database."""
    its = seen.sealing
    if its.sealed_at is not None and its.number is None:
        way_out = "run `tracker audit verify`; tracker/audit/ROLES.md says what the owner can do."
        yield Need("The newest row in `seals` is not a valid checkpoint; sealing has stopped", way_out)
    elif its.unsealed_since is not None:
        # A job may be registered as of long ago, and a daemon may have begun just now.
        waited_since = max([its.unsealed_since, *([its.sealed_at] if its.sealed_at else [])])
        run_since = min((row.started_at for row in seen.alive), default=seen.now)
        due_at = seen.now - seal_after
        if its.unsealed_since < due_at - SEALED_WITHIN or max(waited_since, run_since) < due_at - SEALED_BY_DAEMON:
            what = f"unsealed rows of history: {its.unsealed}, the oldest since {_told(its.unsealed_since)}"
            way_out = "`tracker run --once` seals them or says why it cannot; so does a daemon's log (sealing, seal)."
            yield Need(what, way_out)
    for one in its.undelivered:
        match one.last_error.split(" ")[0]:
            case "CheckpointFile":
                way_out = "find out what is in that file and why before you move it away; the daemon's log says more."
            case "Chain":
                way_out = "the chain is damaged: run `tracker audit verify`."
            case _:
                way_out = "see that it is there and can be written to; it is tried every few minutes, in order."
        waiting = "1 checkpoint waits" if one.waiting == 1 else f"{one.waiting} checkpoints wait"
        since = f"since {_told(one.failing_since)} ({one.last_error})"
        yield Need(f"No checkpoint can be delivered to {one.destination} {since}, {waiting}", way_out)


def _catch_up(cluster: ClusterRow) -> str:
    if not cluster.configured:
        return "it is not configured here; see that some `tracker run` has it in its settings."
    if cluster.pause_cause is not None:
        return f"it is paused ({cluster.pause_cause}) until {_told(cluster.paused_until)}; see `tracker clusters`."
    return "see that `tracker run` has it in its settings; if it has, raise max_requests_per_second, or start another."


def _jobs(count: int) -> str:
    return "1 job is" if count == 1 else f"{count} jobs are"


def _told(at: datetime | None) -> str:
    return "an operator resumes it" if at is None else at.isoformat(" ", "seconds")
