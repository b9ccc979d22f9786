"""The poll: claim, ask, decide, record. The way of one answer:

    daemon          one look a second, at all clusters: this one has a job that is due
    _claim          lock the cluster's row; `health` says what may be asked; lease due jobs, reserve places in the rate
    _ask            in a thread, when its place has come: `elevate` sends the request and returns an answer or an error
    _work           collects what came, for a quarter of a second at most
    _record         one transaction: lock the cluster's row, then the jobs that are still leased to us;
                    read the database's clock: if it was set, or we stood still, nothing of this claim counts
    _answer         `status.decide`, `deadline`, `cadence.next_poll`: the job's new row, a transition if there is one
    _error          `health.failed`, `cadence.retry_poll`: the job keeps its status and is asked again
    _record         writes transitions, jobs, the cluster's row, its gap if one has ended; commits; then logs

Owns leases, the rate, the transactions, the row of ``sources``. Leaves alone: when it is called (``daemon``), the
request (``elevate``), every decision (``status``, ``cadence``, ``deadline``, ``health``). No memory of a process
decides anything: what is known of a cluster is in ``clusters`` and ``jobs``. A crash anywhere costs at most a repeated
poll, and a lease that is not given back ends by itself. Lock order: the cluster's row, then jobs by id.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic
from typing import Any, Self
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import cadence, database, health
from tracker.clusters import LEASE, ClockWatch, catch_up, first_contact, lock, put, put_gap
from tracker.deadline import deadline_of
from tracker.elevate import Elevate
from tracker.errors import AskError, BadAnswer, DatabaseUnavailable, name_of
from tracker.health import THREE, ClusterChange, Health, Permission, RequestKind
from tracker.logs import DATABASE, event
from tracker.models import (
    JOBS,
    TRANSITIONS,
    extensions,
    facts_of,
    job_of,
    legal_zones,
    observed_values,
    transition_values,
)
from tracker.settings import ClusterSettings, Settings
from tracker.status import Action, Answer, Cause, LostRule, Past, State, Status, decide

BATCH = 500  # jobs claimed, and answers written, at once: beyond that a transaction gains nothing (measured)
FLUSH_SECONDS = 0.25  # an answer is written at the latest this long after it came (the promise is 0.5 s)
PIECE_SECONDS = 0.2  # of the cluster's rate, reserved in one claim: so small that daemons share the rate evenly
AHEAD_SECONDS = 1.0  # how far ahead the daemons together reserve, so that no place is lost
SPARE_SECONDS = 0.25  # of the cluster's rate, claimed in advance, so that no thread waits

SECOND = timedelta(seconds=1)

_FREE = {"leased_by": None, "leased_until": None}


@dataclass(frozen=True, slots=True)
class Tally:
    """The counts of a run: requests asked, requests failed, transitions recorded, answers whose lease was lost."""

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
class _Claim:
    """A transaction that leased jobs.

    Attributes:
        tick: The monotonic time then.
        leased_until: When its leases end: a later claim of this worker has another end.
        end: Monotonic time after which no request of it may be sent: the lease could end before the answer.
        now: The clock of its polls.
        turn: Why it asks.
    """

    tick: float
    leased_until: datetime
    end: float
    now: Callable[[], datetime]
    turn: RequestKind


@dataclass(slots=True)
class _Request:
    """A job that is leased to us, and the result of the request about it.

    Attributes:
        failures: The job's failures in a row.
        start: Monotonic time of its place in the rate.
        result: None if the request was not sent after all.
    """

    job_id: int
    jid: str
    failures: int
    start: float
    claim: _Claim
    result: Answer | AskError | None = None


class Poller:
    """Polls the due jobs of one cluster. One thread at a time calls it; it asks in threads that end with the call.

    A context manager, which closes its connections. Making one puts the cluster's configuration on record.

    Attributes:
        error: Of the last request that failed.

    Args:
        worker: The name under which it leases jobs.
        watch: Of the process.
        asked: Is called after each request, from several threads, with the cluster, ``answer`` or the error's class,
            and the seconds that it took.
        clock: Where due and observed times come from, if not from the database: aware UTC.
        rng: Uniform random numbers in [0, 1), for jitter.
    """

    def __init__(
        self,
        engine: sa.Engine,
        cluster: ClusterSettings,
        settings: Settings,
        worker: str,
        *,
        watch: ClockWatch | None = None,
        asked: Callable[[str, str, float], None] = lambda cluster, outcome, seconds: None,
        clock: Callable[[], datetime] | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.error: AskError | None = None
        with database.writing(engine) as connection:
            self._source_id = first_contact(connection, cluster, settings)
        self._engine = engine
        self._cluster = cluster
        self._legal_zone = settings.zone
        self._lost_rule = LostRule(settings.lost_after_polls, settings.lost_after)
        self._rhythm = cadence.Rhythm(cluster.zone, cluster.archive_days, settings.delay_per_poll)
        # A request that finds its connection dead is sent once more.
        self._longest_request = 2 * settings.request_timeout
        self._lease = max(LEASE, 2 * self._longest_request)
        self._client = Elevate(cluster, settings.request_timeout)
        self._worker = worker
        self._watch = watch or ClockWatch(has_heartbeat=False)
        self._asked = asked
        self._clock = clock
        self._rng = rng
        self._is_new = True  # nothing was asked yet, and a fault may be repaired
        self._steps = len(self._watch.steps)  # how many of them are on the cluster's record
        self._stepped_at = -math.inf  # monotonic time of the last
        # More is claimed when few requests are under way, so that no thread waits for the database.
        self._spare = min(BATCH, math.ceil(cluster.max_requests_per_second * SPARE_SECONDS))
        self._halt = Event()  # the cluster was paused: what is claimed and not asked yet is given back
        self._step_at = monotonic()  # of the last sign of life of the thread that works

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()

    @property
    def has_news(self) -> bool:
        """Whether a step of the clock is not on the cluster's record yet."""
        return self._steps < len(self._watch.steps)

    def wants(self, now: datetime, cluster: Health, due_at: datetime | None) -> bool:
        """Return whether there is something to do, from what `look` found; the first look may ask through a pause."""
        if self.has_news:  # to be put on record at once
            return True
        may = health.restarted(cluster, now)[1] if self._is_new else cluster.may_ask(now)
        is_due = due_at is not None and (may is Permission.PROBE or (may is Permission.DUE and due_at <= now))
        self._is_new &= is_due
        return is_due

    def is_stuck(self) -> bool:
        """Return whether the thread that works has hung for longer than two leases; then none of its answers counts.

        Each request has a deadline, each statement a limit. But starting a thread can hang without end in CPython (seen
        with 3.11) if the new thread finds no memory.
        """
        return monotonic() - self._step_at > 2 * self._lease.total_seconds()

    def run(self, stop: Event, *, patient: bool = False) -> Tally:
        """Poll what is due until nothing is, or *stop* is set; then requests under way still end and are recorded.

        It waits for a place in the cluster's rate: a second at most, or however long if *patient*.

        Raises:
            DatabaseUnavailable: Answers that could not be written before their leases ended are asked for again later.
        """
        return self._work(stop, None, patient)

    def poll(self, job_ids: Iterable[int], stop: Event) -> Tally:
        """Ask about these open jobs now, out of turn but within the rate; those that another daemon asks are left."""
        return self._work(stop, set(job_ids), patient=True)

    def note_clock(self) -> None:
        """Put on record what the clock did, if that is not done yet: it was set, or the process stood still."""
        if self.has_news:
            with self._transaction():
                pass

    def _work(self, stop: Event, wanted: set[int] | None, patient: bool) -> Tally:
        """Send requests until there is nothing to claim, and record results as they come."""
        results: SimpleQueue[_Request] = SimpleQueue()
        under_way, ended, flush_at, again_at = 0, list[_Request](), math.inf, 0.0
        tally, failure = Tally(), None
        self._halt.clear()
        threads = self._cluster.max_concurrency
        low, high = threads + self._spare // 2 - 1, threads + self._spare
        with ThreadPoolExecutor(threads, f"ask-{self._cluster.name}") as pool:
            while True:
                self._step_at = monotonic()
                if stop.is_set() or self._halt.is_set():
                    again_at = math.inf
                if under_way <= low and monotonic() >= again_at:
                    try:
                        claimed, again_at = self._claim(high - under_way, wanted)
                    except DatabaseUnavailable as error:  # first what is under way, then the error
                        claimed, again_at, failure = [], math.inf, error
                    for request in claimed:
                        pool.submit(self._ask, request, stop, results)
                    under_way += len(claimed)
                wait = max(0.0, min(flush_at, again_at if under_way <= low else math.inf) - monotonic())
                if not under_way and not ended:
                    if again_at < math.inf and (patient or wait <= AHEAD_SECONDS):
                        stop.wait(wait)
                        continue
                    if failure is not None:
                        raise failure
                    return tally
                for request in _collect(results, min(under_way, BATCH - len(ended)), wait):
                    flush_at = min(flush_at, monotonic() + FLUSH_SECONDS)
                    ended.append(request)
                    under_way -= 1
                is_full = len(ended) >= BATCH or not under_way
                if ended and (is_full or self._halt.is_set() or monotonic() >= flush_at):
                    tally += self._record(ended, stop)
                    if ended[0].claim.turn is RequestKind.PROBE:
                        again_at = 0.0
                    ended, flush_at = [], math.inf

    def _ask(self, request: _Request, stop: Event, results: SimpleQueue[_Request]) -> None:
        """Ask about one job when its place has come; runs in a thread of the pool."""
        wait, claim = request.start - monotonic(), request.claim
        if wait > 0:
            stop.wait(wait)
        began = monotonic()
        try:
            if not stop.is_set() and not self._halt.is_set() and began < claim.end:
                request.result = self._client.ask(request.jid, claim.now)
        except AskError as error:
            request.result = error
            if isinstance(error, health.AT_ONCE) and request.failures == 0:
                self._halt.set()  # at once, and not when it is recorded
        except Exception as error:  # a fault of ours: the job backs off, and the others go on
            facts = {"cluster": self._cluster.name, "jid": request.jid, "error": repr(error)}
            event("poll_crashed", logging.ERROR, **facts)
            request.result = BadAnswer("internal", "a fault of tracker's own", sent_at=claim.now())
        result, seconds = request.result, monotonic() - began
        results.put(request)
        if result is not None:
            self._asked(self._cluster.name, "answer" if isinstance(result, Answer) else name_of(result), seconds)

    @contextmanager
    def _transaction(self) -> Iterator[_Transaction]:
        """Yield the cluster's row, locked, with the clock's steps recorded; write it at the end."""
        with database.writing(self._engine) as connection:
            before = lock(connection, self._cluster.name)
            database_now, tick = self._watch.read(connection)
            number, since = len(self._watch.steps), self._stepped_at
            steps = self._watch.steps[self._steps : number]
            cluster = catch_up(connection, self._cluster.name, self._worker, before, steps)
            tx = _Transaction(connection, database_now, tick, cluster, tick if steps else since)
            yield tx
            put(connection, self._cluster.name, before, tx.cluster)
        self._watch.wrote(database_now, tick)
        self._steps, self._stepped_at = number, tx.stepped_at
        DATABASE.came_back()

    def _claim(self, room: int, wanted: set[int] | None = None) -> tuple[list[_Request], float]:
        """Lease up to *room* due jobs, oldest first, and reserve their requests in the cluster's rate.

        After a pause, or in a gap, one job is claimed, due or not, of those that failed least: does the cluster answer
        again? No other daemon claims one until that is known.

        Args:
            room: How many jobs at most.
            wanted: Of these jobs only, due or not; those that are claimed are taken out of it.

        Returns:
            The jobs, and at what monotonic time to claim again.
        """
        with self._transaction() as tx:
            # The database's time at the claim plus elapsed time: daemons with skewed clocks agree.
            began_at, tick = tx.database_now, tx.tick
            clock = self._clock or (lambda: began_at + timedelta(seconds=monotonic() - tick))
            now, may, turn = clock(), Permission.DUE, RequestKind.BY_HAND
            if wanted is None:
                may, turn = tx.cluster.may_ask(now), RequestKind.DUE
                if self._is_new:
                    tx.cluster, may = health.restarted(tx.cluster, now)
            if may is Permission.NOTHING or wanted == set():
                return [], math.inf
            if may is Permission.PROBE:
                room = 1
                turn = RequestKind.PROBE if tx.cluster.pause_cause or tx.cluster.gap_began_at else RequestKind.DUE
            per_second = self._cluster.max_requests_per_second
            ahead = ((tx.cluster.next_request_at or began_at) - began_at).total_seconds()
            if not 0 <= ahead <= AHEAD_SECONDS + max(PIECE_SECONDS, 1 / per_second) + 1:
                ahead = 0.0  # it is over; or no daemon reserves so far ahead, and a clock was
            if ahead > AHEAD_SECONDS:
                return [], tick + ahead - AHEAD_SECONDS
            room = min(room, BATCH, max(1, int(PIECE_SECONDS * per_second)))
            jobs = self._choice(now, began_at, room, may is Permission.PROBE, wanted)
            leased_until = began_at + self._lease
            if tx.connection.dialect.name == "postgresql":
                jobs = jobs.with_for_update(skip_locked=True)
            lease = (
                sa.update(JOBS)
                .where(JOBS.c.id.in_(jobs))
                .values(leased_by=self._worker, leased_until=leased_until)
                .returning(JOBS.c.id, JOBS.c.jid, JOBS.c.failures, JOBS.c.due_at)
            )
            leased = sorted(tx.connection.execute(lease).all(), key=lambda job: (job.due_at, job.id))
            if leased:
                next_at = began_at + timedelta(seconds=ahead + len(leased) / per_second)
                tx.cluster = replace(tx.cluster, next_request_at=next_at)
                if turn is RequestKind.PROBE:
                    tx.cluster = health.probing(tx.cluster, now + self._longest_request + timedelta(seconds=5))
        if wanted is None:
            self._is_new = False
        else:
            wanted.difference_update(job.id for job in leased)
        end = tick + (self._lease - self._longest_request).total_seconds() - 2 * FLUSH_SECONDS
        claim, first = _Claim(tick, leased_until, end, clock, turn), tick + ahead
        claimed = [
            _Request(job.id, job.jid, job.failures, first + i / per_second, claim) for i, job in enumerate(leased)
        ]
        return claimed, 0.0 if claimed and turn is not RequestKind.PROBE else math.inf

    def _choice(
        self, now: datetime, database_now: datetime, room: int, probing: bool, wanted: set[int] | None
    ) -> sa.Select[tuple[int]]:
        """Return the query of the ids to claim."""
        c = JOBS.c
        # A lease that ends later than any made now is from before a clock was set back.
        held = sa.and_(c.leased_until >= database_now, c.leased_until <= database_now + self._lease + SECOND)
        free = sa.select(c.id).where(c.cluster == self._cluster.name, c.due_at.is_not(None))
        free = free.where(sa.or_(c.leased_until.is_(None), sa.not_(held)))
        if wanted is not None:
            return free.where(c.id.in_(sorted(wanted)[:BATCH])).order_by(c.id).limit(room)
        if probing:
            near = free.order_by(c.due_at).limit(2 * BATCH).scalar_subquery()
            return sa.select(c.id).where(c.id.in_(near)).order_by(c.failures, c.due_at).limit(1)
        return free.where(c.due_at <= now).order_by(c.due_at).limit(room)

    def _record(self, requests: Sequence[_Request], stop: Event) -> Tally:
        """Write the results of requests; while the database is away, try again as long as the leases last."""
        last = min(request.claim.end for request in requests) + self._longest_request.total_seconds()
        wait = 0.5
        while True:
            self._step_at = monotonic()
            try:
                with self._transaction() as tx:
                    self._write(tx, requests)
                break
            except DatabaseUnavailable as error:
                if monotonic() + wait > last or stop.is_set():
                    self._halt.set()
                    raise
                DATABASE.went_away(error)
                stop.wait(wait)
                wait = min(2 * wait, 15)
            except (sa.exc.SQLAlchemyError, ValueError) as error:
                # One job cannot be written; the others must be.
                if len(requests) > 1:
                    return sum((self._record([request], stop) for request in requests), Tally())
                request = requests[0]
                if isinstance(request.result, AskError):
                    raise
                lines = str(getattr(error, "orig", error)).strip().splitlines()  # without the statement and its values
                text = f"{type(error).__name__}: {lines[0] if lines else ''}"
                event("record_failed", logging.ERROR, cluster=self._cluster.name, jid=request.jid, error=text)
                request.result = BadAnswer("not_recorded", "the answer cannot be stored", sent_at=request.claim.now())
        for name, level, facts in tx.events:
            event(name, level, cluster=self._cluster.name, **facts)
        if tx.cluster.pause_cause is not None:
            self._halt.set()
        asked = tx.lost + len(tx.answered) + len(tx.failed)
        return Tally(asked, len(tx.failed), len(tx.transitions), tx.lost)

    def _write(self, tx: _Transaction, requests: Sequence[_Request]) -> None:
        """Decide how the cluster and each job change, and write it."""
        connection = tx.connection
        ids = [request.job_id for request in requests if request.result is not None]
        query = sa.select(JOBS).where(JOBS.c.id.in_(ids), JOBS.c.leased_by == self._worker).order_by(JOBS.c.id)
        jobs = {job.id: job for job in connection.execute(query.with_for_update())} if ids else {}
        pasts = _pasts(connection, jobs.values())
        for request in requests:
            claim, result = request.claim, request.result
            if result is not None and claim.tick < tx.stepped_at:
                why = "the clock was set, or the process was stopped"
                tx.log("answer_discarded", logging.WARNING, jid=request.jid, why=why)
                result = None
            job = jobs.get(request.job_id)
            if job is not None and job.leased_until != claim.leased_until:
                job = None
            if result is None or job is None or job.state is not State.OPEN:
                if result is None:
                    leased = sa.update(JOBS).where(JOBS.c.id == request.job_id, JOBS.c.leased_by == self._worker)
                    connection.execute(leased.where(JOBS.c.leased_until == claim.leased_until).values(_FREE))
                else:
                    tx.lost += 1
                    tx.log("lease_lost", logging.WARNING, jid=request.jid)
                if claim.turn is RequestKind.PROBE:
                    tx.cluster = health.unasked(tx.cluster, claim.now())
                continue
            if isinstance(result, Answer):
                change = self._answer(tx, job, claim, result, pasts.get(job.id, Past()))
            else:
                change = self._error(tx, job, claim, result)
            tx.cluster = change.health
            if (gap := change.gap) is not None:
                put_gap(connection, self._cluster.name, gap)
                facts = {"began_at": gap.began_at, "ended_at": gap.ended_at, "cause": gap.cause}
                tx.log("gap_ended", logging.WARNING, **facts)
        # The transitions first: one whose job was not changed is rolled back with it.
        if tx.transitions:
            connection.execute(sa.insert(TRANSITIONS), tx.transitions)
        for rows in filter(None, (tx.answered, tx.failed)):
            columns: dict[str, Any] = {name: sa.bindparam(name) for name in rows[0] if name != "row_id"}
            connection.execute(sa.update(JOBS).where(JOBS.c.id == sa.bindparam("row_id")).values(columns), rows)
        if tx.well_at is not None:  # other jobs failed because of the gap, so their backoff ends
            waiting = sa.update(JOBS).where(JOBS.c.cluster == self._cluster.name, JOBS.c.failures > 0)
            connection.execute(waiting.where(JOBS.c.due_at > tx.well_at).values(due_at=tx.well_at))

    def _answer(self, tx: _Transaction, asked: sa.Row[Any], claim: _Claim, answer: Answer, past: Past) -> ClusterChange:
        """Apply a valid answer to the job *asked*, and return how the cluster changes."""
        deadline_on, deadline_at = asked.deadline_on, asked.deadline_at
        if asked.status is None or deadline_at is None:
            deadline_on, deadline_at = self._deadline(tx, asked)
        decision = decide(job_of(asked), answer, self._lost_rule, past, deadline_at)
        job, transition, due_at = decision.job, decision.transition, None
        if job.state is State.OPEN:
            now = max(claim.now(), answer.completed_at)
            due_at = cadence.next_poll(job, deadline_at, now, self._rng(), self._rhythm)
        working = {"due_at": due_at, "failures": 0, "last_error": None, **_FREE}
        derived = {"deadline_on": deadline_on, "deadline_at": deadline_at}
        tx.answered.append({"row_id": asked.id, **observed_values(job), **derived, **working})
        if transition is not None:
            tx.transitions.append(transition_values(asked.id, transition, self._source_id))
            is_bad = transition.anomaly is not None or job.state in (State.FAILED, State.LOST)
            names = ("from_status", "to_status", "from_state", "to_state", "anomaly")
            facts = {name: getattr(transition, name) for name in names}
            bounds = {"after": transition.last_seen_at, "by": transition.observed_at}
            level = logging.WARNING if is_bad else logging.INFO
            tx.log("transition", level, jid=asked.jid, **facts, **bounds, next_poll_at=due_at)
        change = health.answered(tx.cluster, answer.sent_at, answer.completed_at, claim.turn)
        if tx.cluster.pause_cause is not None and change.health.pause_cause is None:
            tx.log("cluster_resumed", cause=tx.cluster.pause_cause)
        if change.gap is not None and change.gap.cause is not Cause.NOT_RUNNING:
            tx.well_at = answer.completed_at
        return change

    def _deadline(self, tx: _Transaction, row: sa.Row[Any]) -> tuple[date, datetime]:
        """Return the deadline of a job that is answered for the first time, whatever plain SQL put there.

        Afterwards only an amendment moves it.
        """
        tx.zone_of = tx.zone_of or legal_zones(tx.connection, self._legal_zone)
        # An amendment may have recorded an extension, perhaps too late.
        declared = extensions(tx.connection, row.id) if row.seq else [(row.registered_at, row.extended_on)]
        due = deadline_of(facts_of(row), row.registered_at, tx.zone_of(row.cluster, declared[-1][0]), declared)
        return due.on, due.at

    def _error(self, tx: _Transaction, asked: sa.Row[Any], claim: _Claim, error: AskError) -> ClusterChange:
        """Apply an error: the job *asked* keeps its status. Return how the cluster changes."""
        now, failures = claim.now(), asked.failures + 1
        name, self.error = type(error).__name__, error
        tx.log("poll_failed", logging.WARNING, jid=asked.jid, error=name, code=error.code, failures=failures)
        others = {asked.id, *(one["row_id"] for one in tx.failed)}
        unfailed = self._unfailed(tx.connection, others) if asked.failures else THREE
        before, turn = tx.cluster, claim.turn
        # An error of the cluster is news also from a job that failed otherwise before: a refused key after an outage.
        is_news = isinstance(error, health.AT_ONCE) and not (asked.last_error or "").startswith(f"{name} ")
        known = 0 if is_news else asked.failures
        change = health.failed(before, error, now, job_failures=known, unfailed=unfailed, turn=turn)
        if change.health.pauses > before.pauses:
            facts = {"cause": change.health.pause_cause, "code": error.code, "until": change.health.paused_until}
            tx.log("cluster_paused", logging.ERROR, **facts)
        due_at = asked.due_at
        if change.backs_off:
            due_at = cadence.retry_poll(failures, asked.deadline_at, now, self._rng())
        values = {"polls": asked.polls + 1, "failures": failures, "last_error": f"{name} {error.code}"}
        tx.failed.append({"row_id": asked.id, "due_at": due_at, **values, **_FREE})
        return change

    def _unfailed(self, connection: sa.Connection, but: set[int]) -> int:
        """Return how many open jobs, *but* these, have not failed since their last valid answer; at most three."""
        open_jobs = sa.select(JOBS.c.id).where(JOBS.c.cluster == self._cluster.name, JOBS.c.due_at.is_not(None))
        found = connection.execute(open_jobs.where(JOBS.c.failures == 0).limit(THREE + len(but))).scalars()
        return min(THREE, len(set(found) - but))


@dataclass(slots=True)
class _Transaction:
    """A transaction that holds the lock of the cluster's row, what it writes, and what is logged after it.

    Attributes:
        database_now: The database's time.
        tick: The monotonic time then.
        cluster: The cluster, with the changes so far.
        stepped_at: Monotonic time of the last step of the clock: claims that are older say nothing of the cluster now.
        answered, failed: Rows of jobs.
        transitions: Rows of transitions.
        lost: Answers left alone, since their leases were lost.
        well_at: When a gap ended because the cluster answered again.
        zone_of: The legal time zone, read when it is needed.
    """

    connection: sa.Connection
    database_now: datetime
    tick: float
    cluster: Health
    stepped_at: float
    answered: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    transitions: list[dict[str, Any]] = field(default_factory=list)
    lost: int = 0
    well_at: datetime | None = None
    zone_of: Callable[[str, datetime], ZoneInfo] | None = None
    events: list[tuple[str, int, dict[str, object]]] = field(default_factory=list)

    def log(self, name: str, level: int = logging.INFO, **fields: object) -> None:
        """Log an event after the commit."""
        self.events.append((name, level, fields))


def _pasts(connection: sa.Connection, jobs: Iterable[sa.Row[Any]]) -> dict[int, Past]:
    """Return what decisions need of the history of those *jobs* whose status is ``not_found``."""
    entered = {job.id: job.status_by for job in jobs if job.status == Status.NOT_FOUND}
    if not entered:
        return {}
    t = TRANSITIONS.c
    found = sa.func.count().filter(t.to_status != Status.NOT_FOUND)
    reopened_at = sa.func.max(t.observed_at).filter(t.action == Action.REOPENED)
    query = sa.select(t.job_id, found, reopened_at).where(t.job_id.in_(entered)).group_by(t.job_id)
    return {
        job_id: Past(bool(found_before), max(filter(None, (entered[job_id], at)), default=None))
        for job_id, found_before, at in connection.execute(query)
    }


def _collect(results: SimpleQueue[_Request], most: int, wait: float) -> list[_Request]:
    """Return requests that ended, up to *most*: waits for the first, and takes what is there already."""
    found: list[_Request] = []
    with suppress(Empty):
        if most:
            found.append(results.get(timeout=wait if wait < math.inf else None))
        while len(found) < most:
            found.append(results.get_nowait())
    return found
