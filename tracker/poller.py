"""The poll: claim, ask, decide, record.

Owns what one daemon does about one cluster: leasing due jobs, asking within the rate, writing answers and transitions
in one transaction, backing off and pausing on errors, the cluster's gaps and its row in ``sources``. Leaves alone: when
it is called (``daemon``), the request (``elevate``), the decisions (``status``, ``cadence``, ``deadline``).

A crash anywhere costs at most a repeated poll: what is recorded is recorded whole, guarded by the lease, and a lease
that is not given back ends by itself. Lock order: the cluster's row, then jobs by id.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib.metadata import version
from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import cadence, database
from tracker.deadline import deadline, extension_recorded_at
from tracker.elevate import Elevate
from tracker.errors import AskError, BadAnswer, DatabaseUnavailable, KeyRefused, RateLimited, Unavailable, WrongTarget
from tracker.logs import event
from tracker.models import (
    CLUSTERS,
    JOBS,
    TRANSITIONS,
    Gap,
    Source,
    Worker,
    extensions,
    facts_of,
    job_of,
    legal_zones,
    observed_values,
    transition_of,
    transition_values,
)
from tracker.settings import ClusterSettings, Settings
from tracker.status import Answer, Cause, LostRule, Past, State, Status, Transition, decide, replay

BATCH = 500  # jobs claimed, and answers written, at once: beyond that a transaction gains nothing (measured)
FLUSH_SECONDS = 0.25  # an answer is written at the latest this long after it came (the promise is 0.5 s)
AHEAD = timedelta(seconds=10)  # how far ahead requests are reserved in the cluster's rate
LEASE = timedelta(minutes=2)  # how long a claimed job is ours; whoever crashes delays its jobs by no more
MISSED = timedelta(seconds=60)  # a poll that comes later than this was missed; a beat that does is a dead daemon's
MEASURE_SECONDS = 60  # how often the backlog is counted while there is one
THREE = 3  # different jobs have to fail before an error is held against the cluster

PAUSES = {  # first pause of a cluster, doubling up to the second
    KeyRefused: (timedelta(minutes=15), timedelta(hours=6)),
    WrongTarget: (timedelta(minutes=15), timedelta(hours=6)),
    RateLimited: (timedelta(seconds=60), timedelta(hours=6)),  # where the server does not say how long
    Unavailable: (timedelta(seconds=30), timedelta(minutes=15)),
    BadAnswer: (timedelta(seconds=30), timedelta(minutes=15)),
}
CAUSES = {
    KeyRefused: Cause.KEY_REFUSED,
    WrongTarget: Cause.UNREACHABLE,
    RateLimited: Cause.RATE_LIMITED,
    Unavailable: Cause.UNREACHABLE,
    BadAnswer: Cause.BAD_ANSWER,
}
_FREE = {"leased_by": None, "leased_until": None}
AT_ONCE = (KeyRefused, WrongTarget, RateLimited)  # these speak of the cluster, whichever job was asked about


class Clock(Protocol):
    """Where due times and observed times come from."""

    def anchored(self, database_now: datetime) -> Callable[[], datetime]:
        """Return a clock (aware UTC) that does not step, for the polls of one claim made at *database_now*."""
        ...


class DatabaseClock:
    """The database's time at the claim plus monotonic time since: daemons with skewed clocks agree."""

    def anchored(self, database_now: datetime) -> Callable[[], datetime]:
        began = monotonic()
        return lambda: database_now + timedelta(seconds=monotonic() - began)


@dataclass(frozen=True, slots=True)
class Tally:
    """What a run did.

    Attributes:
        asked: Requests that were answered or failed.
        failed: Those that failed.
        transitions: Transitions recorded.
        lost: Answers left alone, since the lease was lost.
    """

    asked: int = 0
    failed: int = 0
    transitions: int = 0
    lost: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.asked + other.asked,
            self.failed + other.failed,
            self.transitions + other.transitions,
            self.lost + other.lost,
        )


@dataclass(frozen=True, slots=True)
class _Claimed:
    """A job that is leased to us.

    Attributes:
        start: Monotonic time of its place in the rate.
        end: Monotonic time after which it must not be asked about: the lease could end before the answer.
        now: The clock of its claim.
    """

    job_id: int
    jid: str
    start: float
    end: float
    now: Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a claimed job: an answer, an error, or None if it was not asked about after all."""

    claimed: _Claimed
    result: Answer | AskError | None


def first_contact(connection: sa.Connection, cluster: ClusterSettings, settings: Settings, release: str) -> int:
    """Make the cluster's row if there is none, and return the id of the row in ``sources`` for this configuration.

    A row is written when the configuration differs from the last one's: whoever points tracker at a fake server leaves
    a trace. Called once by whatever is about to poll.
    """
    make = sa.text("INSERT INTO clusters (cluster) VALUES (:cluster) ON CONFLICT DO NOTHING")
    connection.execute(make, {"cluster": cluster.name})
    connection.execute(sa.select(CLUSTERS.c.cluster).where(CLUSTERS.c.cluster == cluster.name).with_for_update())
    values = {
        "cluster": cluster.name,
        "base_url": cluster.base_url,
        "path": cluster.path,
        "timezone": cluster.timezone,
        "archive_days": cluster.archive_days,
        "lost_after_polls": settings.lost_after_polls,
        "lost_after_seconds": int(settings.lost_after.total_seconds()),
        "legal_timezone": settings.timezone,
        "version": release,
    }
    last = connection.execute(
        sa.select(Source.__table__).where(Source.cluster == cluster.name).order_by(Source.id.desc()).limit(1)
    ).one_or_none()
    if last is not None and all(getattr(last, name) == value for name, value in values.items()):
        return int(last.id)
    row = sa.insert(Source).values(**values, recorded_at=database.now(connection)).returning(Source.id)
    return connection.execute(row).scalar_one()


def note_absence(connection: sa.Connection, cluster: str, worker: str) -> None:
    """Open a gap ``not_running`` if no daemon was alive for a while in which polls of *cluster* were missed.

    Called by a daemon that starts, before its first claim. It begins at the last sign of life of any daemon.
    """
    now = database.now(connection)
    row = connection.execute(sa.select(CLUSTERS).where(CLUSTERS.c.cluster == cluster).with_for_update()).one()
    last = connection.execute(
        sa.select(sa.func.max(sa.func.coalesce(Worker.stopped_at, Worker.beat_at), type_=JOBS.c.due_at.type)).where(
            Worker.worker != worker
        )
    ).scalar()
    if row.gap_began_at is not None or last is None or now - last < MISSED:
        return
    missed = sa.select(JOBS.c.id).where(JOBS.c.cluster == cluster, JOBS.c.due_at < now - MISSED).limit(1)
    if connection.execute(missed).first() is not None:
        connection.execute(
            sa.update(CLUSTERS)
            .where(CLUSTERS.c.cluster == cluster)
            .values(gap_began_at=last, gap_cause=Cause.NOT_RUNNING, gap_detail=None)
        )


@contextmanager
def polling(
    engine: sa.Engine,
    cluster: ClusterSettings,
    settings: Settings,
    worker: str,
    *,
    clock: Clock | None = None,
    rng: Callable[[], float] = random.random,
) -> Iterator[Poller]:
    """Yield a poller of *cluster* with a client of its own; the configuration it starts with is on record."""
    with database.writing(engine) as connection:
        source_id = first_contact(connection, cluster, settings, version("tracker"))
    client = Elevate(
        cluster.base_url,
        cluster.path,
        cluster.api_key,
        timeout=settings.request_timeout,
        ca_bundle=cluster.ca_bundle,
        proxy=cluster.proxy,
        pool_size=cluster.max_concurrency,
    )
    with client:
        poller = Poller(engine, cluster, settings, client, source_id, worker, clock=clock, rng=rng)
        try:
            yield poller
        finally:
            poller.close()


class Poller:
    """Polls the due jobs of one cluster. One thread calls it; it asks with threads of its own.

    Args:
        engine: The database.
        cluster: The cluster's settings.
        settings: The global ones.
        client: Asks Elevate; closed by whoever made it.
        source_id: From `first_contact`.
        worker: This daemon's name, the leases' owner.
        clock: Where due and observed times come from.
        rng: Uniform random numbers in [0, 1), for jitter.
    """

    def __init__(
        self,
        engine: sa.Engine,
        cluster: ClusterSettings,
        settings: Settings,
        client: Elevate,
        source_id: int,
        worker: str,
        *,
        clock: Clock | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._engine = engine
        self._cluster = cluster
        self._legal_zone = settings.zone
        self._lost_rule = LostRule(settings.lost_after_polls, settings.lost_after)
        self._rhythm = cadence.Rhythm(cluster.zone, cluster.archive_days, settings.delay_per_poll)
        self._delay_per_poll = settings.delay_per_poll
        self._timeout = settings.request_timeout.total_seconds()
        self._client = client
        self._source_id = source_id
        self._worker = worker
        self._clock = clock or DatabaseClock()
        self._rng = rng
        self._threads = ThreadPoolExecutor(cluster.max_concurrency, thread_name_prefix=f"ask-{cluster.name}")
        self._measured = monotonic()  # when the overload was
        self._halt = Event()  # the cluster was paused: what is claimed and not asked yet is given back
        self._failing: dict[Cause, dict[int, datetime]] = {}  # jobs that failed since the last valid answer
        self._fails_in_row = 0
        self._pauses = 0  # pauses in a row
        self._suspects: set[int] = set()  # jobs whose error paused the cluster
        self._poisonous: set[int] = set()  # suspects after which another job was answered: the error is theirs

    def close(self) -> None:
        """End the threads; none is asking any more when `run` has returned."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def run(self, stop: Event) -> Tally:
        """Poll what is due until nothing is, or *stop* is set; then what is under way still ends and is recorded.

        Raises:
            DatabaseUnavailable: Answers that could not be written before their leases ended are asked again later.
        """
        if not self._is_due():
            return Tally()
        return self._work(stop, lambda room: self._claim(room))

    def poll(self, job_ids: Sequence[int], stop: Event) -> Tally:
        """Ask about these open jobs now, out of turn but within the rate; those that another daemon asks are left."""
        left = set(job_ids)

        def claim(room: int) -> list[_Claimed]:
            claimed = self._claim(room, sorted(left)[:BATCH]) if left else []
            left.difference_update(one.job_id for one in claimed)
            return claimed

        tally = Tally()
        while left and (asked := self._work(stop, claim)).asked:
            tally += asked
        return tally

    def _work(self, stop: Event, claim: Callable[[int], list[_Claimed]]) -> Tally:
        """Keep claimed jobs flying until *claim* has no more, and record what comes of them as it comes."""
        results: SimpleQueue[_Outcome] = SimpleQueue()
        low_water = max(4 * self._cluster.max_concurrency, 64)
        flying, landed, flush_at, more = 0, list[_Outcome](), 0.0, True
        tally, failure = Tally(), None
        self._halt.clear()
        while True:
            if more and flying < low_water and not stop.is_set() and not self._halt.is_set():
                try:
                    claimed = claim(BATCH - flying)
                except DatabaseUnavailable as error:  # first what is under way, then the error
                    claimed, failure = [], error
                more = bool(claimed)
                for one in claimed:
                    self._threads.submit(self._ask, one, stop, results)
                flying += len(claimed)
            if not flying and not landed:
                if failure is not None:
                    raise failure
                return tally
            try:
                landed_before = len(landed)
                wait = max(0.0, flush_at - monotonic()) if landed else None
                if flying:
                    landed.append(results.get(timeout=wait))
                    flying -= 1
                if not landed_before:
                    flush_at = monotonic() + FLUSH_SECONDS
                while flying and len(landed) < BATCH:  # what else is there already
                    landed.append(results.get_nowait())
                    flying -= 1
            except Empty:
                pass
            if landed and (len(landed) >= BATCH or not flying or monotonic() >= flush_at):
                tally += self._record(landed, stop)
                landed = []

    def _ask(self, claimed: _Claimed, stop: Event, results: SimpleQueue[_Outcome]) -> None:
        """Ask about one job in its turn; runs in a thread of the pool."""
        result: Answer | AskError | None = None
        try:
            wait = claimed.start - monotonic()
            if wait > 0:
                stop.wait(wait)
            if not stop.is_set() and not self._halt.is_set() and monotonic() < claimed.end:
                result = self._client.ask(claimed.jid, claimed.now)
        except AskError as error:
            result = error
            if isinstance(error, AT_ONCE) and claimed.job_id not in self._poisonous:
                self._halt.set()  # at once, and not when it is recorded
        except Exception as error:  # a fault of ours: the job backs off, and the others go on
            told = {"cluster": self._cluster.name, "jid": claimed.jid, "error": repr(error)}
            event("poll_crashed", logging.ERROR, **told)
            result = BadAnswer("internal", "a fault of tracker's own", sent_at=claimed.now())
        results.put(_Outcome(claimed, result))

    def _is_due(self) -> bool:
        """Return whether any job is due, without a lock; also measure the overload."""
        with database.reading(self._engine) as connection:
            now = self._clock.anchored(database.now(connection))()
            due = self._due(now)
            shared = connection.execute(sa.select(CLUSTERS).where(CLUSTERS.c.cluster == self._cluster.name)).one()
            if shared.pause_cause is not None:
                return shared.paused_until is not None and shared.paused_until <= now
            if connection.execute(due.limit(1)).first() is None:
                return False
            self._measure_overload(connection, due)
            return True

    def _due(self, now: datetime) -> sa.Select[Any]:
        return sa.select(sa.literal(1)).where(JOBS.c.cluster == self._cluster.name, JOBS.c.due_at <= now)

    def _measure_overload(self, connection: sa.Connection, due: sa.Select[Any]) -> None:
        """Let `delay_per_poll` grow by the backlog, in minutes of the cluster's rate, so that polls become fewer."""
        a_minute = 60 * self._cluster.max_requests_per_second
        most = math.ceil(min(100 * a_minute, 1_000_000))
        count = connection.execute(sa.select(sa.func.count()).select_from(due.limit(most).subquery())).scalar_one()
        self._rhythm = replace(self._rhythm, delay_per_poll=self._delay_per_poll * max(1.0, count / a_minute))
        self._measured = monotonic()

    def _claim(self, room: int, job_ids: Sequence[int] | None = None) -> list[_Claimed]:
        """Lease up to *room* due jobs, oldest first, and reserve their requests in the cluster's rate.

        After a pause one job is claimed, due or not, of those that failed least: does the cluster answer again? Nobody
        else claims while that is being found out.
        """
        with database.writing(self._engine) as connection:
            database_now = database.now(connection)
            clock = self._clock.anchored(database_now)
            began, now = monotonic(), clock()
            shared = self._lock_cluster(connection)
            probing = False
            if shared.pause_cause is not None and job_ids is None:
                if shared.paused_until is None or shared.paused_until > now:
                    return []
                probing, room = True, 1
            per_second = self._cluster.max_requests_per_second
            start = max(shared.next_request_at or database_now, database_now)
            # Nobody reserves so far ahead: the database's clock was set back, and must not stop the cluster.
            if start > database_now + AHEAD + timedelta(seconds=BATCH / per_second):
                start = database_now
            room = min(room, 1 + int((database_now + AHEAD - start).total_seconds() * per_second))
            if room <= 0:
                return []
            if monotonic() - self._measured > MEASURE_SECONDS:
                self._measure_overload(connection, self._due(now))
            jobs = self._choice(now, database_now, room, probing, job_ids)
            if connection.dialect.name == "postgresql":
                jobs = jobs.with_for_update(skip_locked=True)
            lease = (
                sa.update(JOBS)
                .where(JOBS.c.id.in_(jobs))
                .values(leased_by=self._worker, leased_until=database_now + LEASE)
                .returning(JOBS.c.id, JOBS.c.jid, JOBS.c.due_at)
            )
            rows = sorted(connection.execute(lease).all(), key=lambda row: (row.due_at, row.id))
            if rows:
                next_at = start + timedelta(seconds=len(rows) / per_second)
                values = {"paused_until": now + timedelta(seconds=self._timeout + 5)} if probing else {}
                self._update_cluster(connection, next_request_at=next_at, **values)
        first = began + (start - database_now).total_seconds()
        end = began + LEASE.total_seconds() - self._timeout - 2 * FLUSH_SECONDS
        return [_Claimed(row.id, row.jid, first + i / per_second, end, clock) for i, row in enumerate(rows)]

    def _choice(
        self, now: datetime, database_now: datetime, room: int, probing: bool, job_ids: Sequence[int] | None
    ) -> sa.Select[tuple[int]]:
        """Return the query of the ids to claim."""
        # A lease that ends later than any that is made now is of a clock that has been set back since.
        free = sa.or_(
            JOBS.c.leased_until.is_(None),
            JOBS.c.leased_until < database_now,
            JOBS.c.leased_until > database_now + LEASE + timedelta(seconds=1),
        )
        ours = sa.select(JOBS.c.id).where(JOBS.c.cluster == self._cluster.name, free)
        if job_ids is not None:
            return ours.where(JOBS.c.id.in_(job_ids), JOBS.c.due_at.is_not(None)).order_by(JOBS.c.id).limit(room)
        if probing:
            near = ours.where(JOBS.c.due_at.is_not(None)).order_by(JOBS.c.due_at).limit(2 * BATCH).scalar_subquery()
            return sa.select(JOBS.c.id).where(JOBS.c.id.in_(near)).order_by(JOBS.c.failures, JOBS.c.due_at).limit(1)
        return ours.where(JOBS.c.due_at <= now).order_by(JOBS.c.due_at).limit(room)

    def _lock_cluster(self, connection: sa.Connection) -> sa.Row[Any]:
        row = sa.select(CLUSTERS).where(CLUSTERS.c.cluster == self._cluster.name).with_for_update()
        return connection.execute(row).one()

    def _update_cluster(self, connection: sa.Connection, **values: object) -> None:
        connection.execute(sa.update(CLUSTERS).where(CLUSTERS.c.cluster == self._cluster.name).values(**values))

    def _record(self, outcomes: Sequence[_Outcome], stop: Event) -> Tally:
        """Write what came of claimed jobs, and try again while the database is away and the leases last."""
        last = min(outcome.claimed.end for outcome in outcomes) + self._timeout
        wait = 0.5
        while True:
            try:
                recording = _Recording(self, outcomes)
                with database.writing(self._engine) as connection:
                    recording.write(connection)
                break
            except DatabaseUnavailable as error:
                if monotonic() + wait > last or stop.is_set():
                    self._halt.set()
                    raise
                told = {"cluster": self._cluster.name, "error": error, "answers": len(outcomes)}
                event("database_unavailable", logging.WARNING, **told)
                stop.wait(wait)
                wait = min(2 * wait, 15)
            except (sa.exc.SQLAlchemyError, ValueError) as error:
                # Something about one job cannot be written. The others must not suffer from it.
                if len(outcomes) > 1:
                    return sum((self._record([outcome], stop) for outcome in outcomes), Tally())
                return self._set_aside(outcomes[0], error)
        recording.committed()
        return recording.tally

    def _set_aside(self, outcome: _Outcome, error: Exception) -> Tally:
        """Let a job whose answer the database refuses back off, and tell of it: it takes a person."""
        told = {"cluster": self._cluster.name, "jid": outcome.claimed.jid, "error": _short(error)}
        event("record_failed", logging.ERROR, **told)
        ours = sa.and_(JOBS.c.id == outcome.claimed.job_id, JOBS.c.leased_by == self._worker)
        with database.writing(self._engine) as connection:
            failures = connection.execute(sa.select(JOBS.c.failures).where(ours)).scalar_one_or_none()
            if failures is not None:
                plan = cadence.retry_poll(failures + 1, None, outcome.claimed.now(), self._rng())
                values = {"failures": failures + 1, "last_error": type(error).__name__, "due_at": plan.due_at}
                connection.execute(sa.update(JOBS).where(ours).values(values | _FREE))
        return Tally(asked=1, failed=1)


def _short(error: Exception) -> str:
    """Return what the database said, without the statement and its values."""
    said = str(getattr(error, "orig", error)).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else ''}"


def _past(history: list[Transition]) -> Past:
    try:
        return replay(history).past
    except ValueError:  # somebody meddled with it: `tracker audit verify` says how, and polling goes on
        return Past()


class _Recording:
    """The transaction that writes a batch of outcomes; nothing of the poller changes until it has committed."""

    def __init__(self, poller: Poller, outcomes: Sequence[_Outcome]) -> None:
        self._poller = poller
        self._outcomes = outcomes
        self._failing = {cause: dict(jobs) for cause, jobs in poller._failing.items()}
        self._fails_in_row = poller._fails_in_row
        self._pauses = poller._pauses
        self._suspects = set(poller._suspects)
        self._poisonous = set(poller._poisonous)
        self._updates: list[dict[str, Any]] = []
        self._failures: list[dict[str, Any]] = []
        self._transitions: list[tuple[str, int, Transition]] = []
        self._cluster: dict[str, Any] = {}  # the cluster's row, as it is becoming
        self._zone_of: Callable[[str, datetime], ZoneInfo] = lambda cluster, at: poller._legal_zone
        self._events: list[tuple[str, int, dict[str, object]]] = []
        self.tally = Tally()

    def write(self, connection: sa.Connection) -> None:
        poller = self._poller
        shared = dict(poller._lock_cluster(connection)._mapping)
        self._cluster = dict(shared)
        rows = self._locked_rows(connection)
        pasts = self._pasts(connection, [row.id for row in rows.values() if row.status == Status.NOT_FOUND])
        self._zone_of = legal_zones(connection, poller._legal_zone)
        not_asked: list[int] = []
        lost = 0
        for outcome in self._outcomes:
            row = rows.pop(outcome.claimed.job_id, None)
            if outcome.result is None:
                not_asked.append(outcome.claimed.job_id)
            elif row is None or row.state is not State.OPEN:
                lost += 1
                self._event("lease_lost", logging.WARNING, jid=outcome.claimed.jid)
            elif isinstance(outcome.result, Answer):
                self._answer(connection, row, outcome, outcome.result, pasts.get(row.id, Past()))
            else:
                self._error(connection, row, outcome, outcome.result)
        self._execute(connection, not_asked)
        changed = {name: value for name, value in self._cluster.items() if value != shared[name]}
        if changed:
            poller._update_cluster(connection, **changed)
        asked = len(self._outcomes) - len(not_asked)
        failed = sum(isinstance(outcome.result, AskError) for outcome in self._outcomes)
        self.tally = Tally(asked, failed, len(self._transitions), lost)

    def committed(self) -> None:
        """Take over what the transaction taught, and log it."""
        poller = self._poller
        poller._failing, poller._fails_in_row, poller._pauses = self._failing, self._fails_in_row, self._pauses
        poller._suspects, poller._poisonous = self._suspects, self._poisonous
        for name, level, fields in self._events:
            event(name, level, cluster=poller._cluster.name, **fields)

    def _locked_rows(self, connection: sa.Connection) -> dict[int, sa.Row[Any]]:
        """Return the rows that are still leased to us, locked."""
        ids = [outcome.claimed.job_id for outcome in self._outcomes if outcome.result is not None]
        query = (
            sa.select(JOBS)
            .where(JOBS.c.id.in_(ids), JOBS.c.leased_by == self._poller._worker)
            .order_by(JOBS.c.id)
            .with_for_update()
        )
        return {row.id: row for row in connection.execute(query)} if ids else {}

    @staticmethod
    def _pasts(connection: sa.Connection, job_ids: Iterable[int]) -> dict[int, Past]:
        """Return the past of jobs whose status is not_found: few, and only they need it."""
        histories: dict[int, list[Transition]] = {job_id: [] for job_id in job_ids}
        if histories:
            query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id.in_(histories)).order_by(TRANSITIONS.c.seq)
            for row in connection.execute(query):
                histories[row.job_id].append(transition_of(row))
        return {job_id: _past(history) for job_id, history in histories.items()}

    def _answer(
        self, connection: sa.Connection, row: sa.Row[Any], outcome: _Outcome, answer: Answer, past: Past
    ) -> None:
        poller = self._poller
        self._observed(connection, row.id, answer)
        decision = decide(job_of(row), answer, poller._lost_rule, past)
        job, transition = decision.job, decision.transition
        now = max(outcome.claimed.now(), answer.completed_at)
        update = observed_values(job)
        # Computed with the first answer, whatever plain SQL put there; afterwards only an amendment moves it.
        if row.polls == 0 or row.deadline_at is None:
            facts, declared = facts_of(row), [(row.registered_at, row.extended_on)]
            if row.seq:  # an amendment may have recorded an extension, perhaps too late
                declared = extensions(connection, row.id)
            due = deadline(
                facts.received_at,
                facts.submitted_at,
                row.registered_at,
                self._zone_of(row.cluster, declared[-1][0]),
                extended_on=facts.extended_on,
                extension_recorded_at=extension_recorded_at(declared),
            )
            update |= {"deadline_on": due.on, "deadline_at": due.at}
        else:
            update |= {"deadline_on": row.deadline_on, "deadline_at": row.deadline_at}
        plan = None
        if job.state is State.OPEN:
            plan = cadence.next_poll(job, update["deadline_at"], now, poller._rng(), poller._rhythm)
        update |= {"due_at": plan.due_at if plan else None, "failures": 0, "last_error": None}
        self._updates.append({"id": row.id, **update, **_FREE})
        if transition is not None:
            self._transitions.append((row.jid, row.id, transition))
            self._event(
                "transition",
                logging.WARNING if transition.anomaly else logging.INFO,
                jid=row.jid,
                from_status=transition.from_status,
                to_status=transition.to_status,
                from_state=transition.from_state,
                to_state=transition.to_state,
                after=transition.last_seen_at,
                by=transition.observed_at,
                anomaly=transition.anomaly,
                next_poll_at=plan.due_at if plan else None,
            )

    def _observed(self, connection: sa.Connection, job_id: int, answer: Answer) -> None:
        """Note that the cluster answers: what failed before failed for its own reasons, and the gap has ended."""
        cluster = self._cluster
        self._failing.clear()
        self._fails_in_row = self._pauses = 0
        self._suspects.discard(job_id)
        self._poisonous.discard(job_id)
        if cluster["answered_at"] is None or cluster["answered_at"] < answer.completed_at:
            cluster["answered_at"] = answer.completed_at
        began_at = cluster["gap_began_at"]
        if cluster["pause_cause"] is Cause.PAUSED or (began_at is not None and answer.sent_at < began_at):
            return  # it was under way when the gap began, and says nothing of its end
        if cluster["pause_cause"] is not None:
            self._event("resumed", after=cluster["pause_cause"])
        cluster |= {"paused_until": None, "pause_cause": None}
        if began_at is None:
            return
        gap = {
            "cluster": cluster["cluster"],
            "began_at": began_at,
            "ended_at": max(answer.completed_at, began_at),
            "cause": cluster["gap_cause"],
            "detail": cluster["gap_detail"],
            "actor": cluster["gap_actor"],
        }
        connection.execute(sa.insert(Gap).values(gap))
        cluster |= {"gap_began_at": None, "gap_cause": None, "gap_detail": None, "gap_actor": None}
        self._event("gap", logging.WARNING, began_at=began_at, ended_at=gap["ended_at"], cause=gap["cause"])
        # Others failed because of the gap, and need not sit out their backoff; suspects may have caused it.
        self._poisonous |= self._suspects
        self._suspects.clear()
        waiting = sa.update(JOBS).where(
            JOBS.c.cluster == cluster["cluster"],
            JOBS.c.failures > 0,
            JOBS.c.due_at > answer.completed_at,
            JOBS.c.id.not_in(self._poisonous),
        )
        connection.execute(waiting.values(due_at=answer.completed_at))

    def _error(self, connection: sa.Connection, row: sa.Row[Any], outcome: _Outcome, error: AskError) -> None:
        poller = self._poller
        kind = next(kind for kind in CAUSES if isinstance(error, kind))
        cause = CAUSES[kind]
        now = outcome.claimed.now()
        failures = row.failures + 1
        told = {"jid": row.jid, "error": kind.__name__, "code": error.code, "failures": failures}
        self._event("poll_failed", logging.WARNING, **told)
        due_at = row.due_at
        if kind in AT_ONCE and (row.id not in self._poisonous or self._cluster["gap_began_at"] is not None):
            self._suspects.add(row.id)
            asked_for = error.retry_after if isinstance(error, RateLimited) else None
            self._pause(kind, cause, error.sent_at, now, error.code, asked_for)
        else:
            due_at = cadence.retry_poll(failures, row.deadline_at, now, poller._rng()).due_at
            failing = self._failing.setdefault(cause, {})
            failing.setdefault(row.id, error.sent_at)
            self._fails_in_row += 1
            if len(failing) >= THREE or (self._fails_in_row >= THREE and self._few_open(connection)):
                self._pause(kind, cause, min(failing.values()), now, error.code, None)
        self._failures.append(
            {
                "id": row.id,
                "polls": row.polls + 1,
                "failures": failures,
                "last_error": f"{kind.__name__} {error.code}",
                "due_at": due_at,
                **_FREE,
            }
        )

    def _few_open(self, connection: sa.Connection) -> bool:
        """Whether so few jobs are open that three different ones can never fail."""
        query = sa.select(JOBS.c.id).where(JOBS.c.cluster == self._cluster["cluster"], JOBS.c.due_at.is_not(None))
        return len(connection.execute(query.limit(THREE)).all()) < THREE

    def _pause(
        self,
        kind: type[AskError],
        cause: Cause,
        began_at: datetime,
        now: datetime,
        code: str,
        asked_for: timedelta | None,
    ) -> None:
        """Pause the cluster, and open a gap if none is open. Pauses double until there is a valid answer."""
        cluster = self._cluster
        if cluster["gap_began_at"] is None:
            cluster |= {"gap_began_at": began_at, "gap_cause": cause, "gap_detail": code}
        if cluster["pause_cause"] is Cause.PAUSED:
            return  # an operator's pause ends when the operator says so
        first, longest = PAUSES[kind]
        pause = asked_for if asked_for is not None else first * 2 ** min(self._poller._pauses, 10)
        until = now + max(min(pause, longest), timedelta(seconds=1))
        self._pauses = self._poller._pauses + 1  # once a batch: requests under way fail together
        if cluster["pause_cause"] is not cause or cluster["paused_until"] is None or cluster["paused_until"] < until:
            self._event("paused", logging.ERROR, cause=cause, code=code, until=until)
        if cluster["paused_until"] is None or cluster["paused_until"] < until:
            cluster |= {"pause_cause": cause, "paused_until": until}
        self._poller._halt.set()

    def _execute(self, connection: sa.Connection, not_asked: list[int]) -> None:
        """Write the transitions, then the jobs: a transition whose job was not changed rolls back with it."""
        poller = self._poller
        rows = [transition_values(job_id, t, poller._source_id) for _, job_id, t in self._transitions]
        database.insert_rows(connection, TRANSITIONS, rows)
        database.update_rows(connection, JOBS, self._updates)
        database.update_rows(connection, JOBS, self._failures)
        if not_asked:
            release = sa.update(JOBS).where(JOBS.c.id.in_(not_asked), JOBS.c.leased_by == poller._worker)
            connection.execute(release.values(_FREE))

    def _event(self, name: str, level: int = logging.INFO, **fields: object) -> None:
        self._events.append((name, level, fields))
