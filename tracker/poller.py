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
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from importlib.metadata import version
from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import cadence, database, health
from tracker.clusters import LEASE, Watch, catch_up, first_contact, lock, put, put_gap
from tracker.deadline import deadline_of
from tracker.elevate import Elevate
from tracker.errors import AskError, BadAnswer, DatabaseUnavailable
from tracker.health import THREE, Change, Health, May, Turn
from tracker.logs import event
from tracker.models import (
    JOBS,
    TRANSITIONS,
    extensions,
    facts_of,
    job_of,
    legal_zones,
    observed_values,
    transition_of,
    transition_values,
)
from tracker.settings import ClusterSettings, Settings
from tracker.status import CLOCK_STEP, Answer, Cause, LostRule, Past, State, Status, Transition, decide, replay

BATCH = 500  # jobs claimed, and answers written, at once: beyond that a transaction gains nothing (measured)
FLUSH_SECONDS = 0.25  # an answer is written at the latest this long after it came (the promise is 0.5 s)
PIECE_SECONDS = 0.2  # of the cluster's rate, reserved in one claim: so small that daemons share the rate evenly
AHEAD_SECONDS = 1.0  # how far ahead the daemons together reserve, so that no place is lost
SPARE_SECONDS = 0.25  # work that is claimed beyond what the threads have in hand, so that none of them waits
MEASURE_SECONDS = 60  # how often the backlog is counted while there is one

_FREE = {"leased_by": None, "leased_until": None}


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
class _Claim:
    """A transaction that leased jobs.

    Attributes:
        database_now: The database's time.
        tick: The monotonic time then.
        end: Monotonic time after which nothing of it must be sent: the lease could end before the answer.
        now: The clock of its polls.
        turn: Why it asks.
    """

    database_now: datetime
    tick: float
    end: float
    now: Callable[[], datetime]
    turn: Turn

    def is_off(self, database_now: datetime, tick: float) -> bool:
        """Whether the database's clock was set since, or the machine stood still: its times mean nothing then."""
        moved = (database_now - self.database_now) - timedelta(seconds=tick - self.tick)
        return abs(moved) > CLOCK_STEP


@dataclass(frozen=True, slots=True)
class _Claimed:
    """A job that is leased to us.

    Attributes:
        failures: Its failures in a row.
        start: Monotonic time of its place in the rate.
    """

    job_id: int
    jid: str
    failures: int
    start: float
    claim: _Claim


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a claimed job: an answer, an error, or None if it was not asked about after all."""

    claimed: _Claimed
    result: Answer | AskError | None
    seconds: float = 0.0


@contextmanager
def polling(
    engine: sa.Engine,
    cluster: ClusterSettings,
    settings: Settings,
    worker: str,
    *,
    watch: Watch | None = None,
    clock: Callable[[], datetime] | None = None,
    rng: Callable[[], float] = random.random,
) -> Iterator[Poller]:
    """Yield a poller of *cluster* with a client of its own; the configuration it starts with is on record."""
    with database.writing(engine) as connection:
        source_id = first_contact(connection, cluster, settings, version("tracker"))
    with Elevate(cluster, settings.request_timeout) as client:
        yield Poller(engine, cluster, settings, client, source_id, worker, watch=watch, clock=clock, rng=rng)


class Poller:
    """Polls the due jobs of one cluster. One thread at a time calls it; it asks with threads that end with the call.

    Args:
        engine: The database.
        cluster: The cluster's settings.
        settings: The global ones.
        client: Asks Elevate; closed by its maker.
        source_id: From `first_contact`.
        worker: This daemon's name, the leases' owner.
        watch: The process's.
        clock: Where due and observed times come from, if not from the database: aware UTC.
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
        watch: Watch | None = None,
        clock: Callable[[], datetime] | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._engine = engine
        self._cluster = cluster
        self._legal_zone = settings.zone
        self._lost_rule = LostRule(settings.lost_after_polls, settings.lost_after)
        self._rhythm = cadence.Rhythm(cluster.zone, cluster.archive_days, settings.delay_per_poll)
        self._delay_per_poll = settings.delay_per_poll
        # A request that finds its connection dead is sent once more.
        self._longest_request = 2 * settings.request_timeout
        self._lease = max(LEASE, 2 * self._longest_request)
        self._client = client
        self._source_id = source_id
        self._worker = worker
        self._watch = watch or Watch()
        self._clock = clock
        self._rng = rng
        self._is_new = True  # nothing was asked yet: what failed may be mended
        self._steps = len(self._watch.steps)  # how many of them are on the cluster's record
        self._stepped_at = -math.inf  # monotonic time of the last
        self._seconds: float | None = None  # that a request takes, on average
        self._measured = -math.inf  # when the overload was
        self._halt = Event()  # the cluster was paused: what is claimed and not asked yet is given back

    def wants(self, now: datetime, standing: Health, due_at: datetime | None) -> bool:
        """Return whether there is something to do, from what `look` found; the first look may ask through a pause."""
        if self._steps < len(self._watch.steps):  # they go on record now: later they would not be of now any more
            return True
        may = health.restarted(standing, now)[1] if self._is_new else standing.may_ask(now)
        ahead, at = timedelta(seconds=AHEAD_SECONDS), standing.next_request_at
        is_full = at is not None and now + ahead < at <= now + ahead + self._longest_piece
        is_due = due_at is not None and (may is May.PROBE or (may is May.DUE and due_at <= now))
        self._is_new &= is_due
        return is_due and not is_full

    def run(self, stop: Event, *, patient: bool = False) -> Tally:
        """Poll what is due until nothing is, or *stop* is set; then what is under way still ends and is recorded.

        Args:
            stop: Ends it early.
            patient: Wait for a place in the rate, however long; else only for moments, and then the next look does.

        Raises:
            DatabaseUnavailable: Answers that could not be written before their leases ended are asked again later.
        """
        return self._work(stop, self._claim, patient)

    def poll(self, job_ids: Sequence[int], stop: Event) -> Tally:
        """Ask about these open jobs now, out of turn but within the rate; those that another daemon asks are left."""
        left = set(job_ids)

        def claim(room: int) -> tuple[list[_Claimed], float]:
            claimed, again_at = self._claim(room, sorted(left)[:BATCH]) if left else ([], math.inf)
            left.difference_update(one.job_id for one in claimed)
            return claimed, again_at

        return self._work(stop, claim, True)

    def _work(self, stop: Event, claim: Callable[[int], tuple[list[_Claimed], float]], patient: bool) -> Tally:
        """Keep claimed jobs flying until *claim* has no more, and record what comes of them as it comes.

        It is given how many at most, and returns them, and at what monotonic time to claim again.
        """
        results: SimpleQueue[_Outcome] = SimpleQueue()
        flying, landed, flush_at, again_at = 0, list[_Outcome](), math.inf, 0.0
        tally, failure = Tally(), None
        self._halt.clear()
        with ThreadPoolExecutor(self._cluster.max_concurrency, f"ask-{self._cluster.name}") as threads:
            while True:
                if stop.is_set() or self._halt.is_set():
                    again_at = math.inf
                low, high = self._water()
                if flying <= low and monotonic() >= again_at:
                    try:
                        claimed, again_at = claim(high - flying)
                    except DatabaseUnavailable as error:  # first what is under way, then the error
                        claimed, again_at, failure = [], math.inf, error
                    for one in claimed:
                        threads.submit(self._ask, one, stop, results)
                    flying += len(claimed)
                wait = max(0.0, min(flush_at, again_at if flying <= low else math.inf) - monotonic())
                if not flying and not landed:
                    if again_at < math.inf and (patient or wait <= AHEAD_SECONDS):
                        stop.wait(wait)
                        continue
                    if failure is not None:
                        raise failure
                    return tally
                try:
                    if flying:
                        outcome = results.get(timeout=wait if wait < math.inf else None)
                        flush_at = min(flush_at, monotonic() + FLUSH_SECONDS)
                        while True:
                            landed.append(outcome)
                            flying -= 1
                            if outcome.result is not None:
                                self._seconds = 0.9 * (self._seconds or outcome.seconds) + 0.1 * outcome.seconds
                            if not flying or len(landed) >= BATCH:
                                break
                            outcome = results.get_nowait()
                except Empty:
                    pass
                if landed and (len(landed) >= BATCH or not flying or self._halt.is_set() or monotonic() >= flush_at):
                    tally += self._record(landed, stop)
                    if landed[0].claimed.claim.turn is Turn.PROBE:
                        again_at = 0.0
                    landed, flush_at = [], math.inf

    def _water(self) -> tuple[int, int]:
        """Return at how few jobs under way more are claimed, and how many are then to be under way."""
        threads = self._cluster.max_concurrency
        spare = math.ceil(threads * SPARE_SECONDS / self._seconds) if self._seconds else 0
        spare = min(spare, BATCH)
        return threads + spare // 2 - 1, threads + spare

    def _ask(self, claimed: _Claimed, stop: Event, results: SimpleQueue[_Outcome]) -> None:
        """Ask about one job in its turn; runs in a thread of the pool."""
        result: Answer | AskError | None = None
        wait, claim = claimed.start - monotonic(), claimed.claim
        if wait > 0:
            stop.wait(wait)
        began = monotonic()
        try:
            if not stop.is_set() and not self._halt.is_set() and began < claim.end:
                result = self._client.ask(claimed.jid, claim.now)
        except AskError as error:
            result = error
            if isinstance(error, health.AT_ONCE) and claimed.failures == 0:
                self._halt.set()  # at once, and not when it is recorded
        except Exception as error:  # a fault of ours: the job backs off, and the others go on
            told = {"cluster": self._cluster.name, "jid": claimed.jid, "error": repr(error)}
            event("poll_crashed", logging.ERROR, **told)
            result = BadAnswer("internal", "a fault of tracker's own", sent_at=claim.now())
        results.put(_Outcome(claimed, result, monotonic() - began))

    @property
    def _longest_piece(self) -> timedelta:
        """The longest stretch of the rate that one claim reserves, and a moment for clocks that differ."""
        return timedelta(seconds=max(PIECE_SECONDS, 1 / self._cluster.max_requests_per_second) + 1)

    @contextmanager
    def _transaction(self) -> Iterator[_Row]:
        """Yield the cluster's row, locked, what the watch found since the last time on record; write it at the end."""
        with database.writing(self._engine) as connection:
            before = lock(connection, self._cluster.name)
            database_now, tick = self._watch.read(connection, writing=True)
            number, since = len(self._watch.steps), self._stepped_at
            steps = self._watch.steps[self._steps : number]
            standing = catch_up(connection, self._cluster.name, self._worker, before, steps)
            row = _Row(connection, database_now, tick, standing, tick if steps else since)
            yield row
            put(connection, self._cluster.name, before, row.standing)
        self._steps, self._stepped_at = number, row.stepped_at

    def _claim(self, room: int, job_ids: Sequence[int] | None = None) -> tuple[list[_Claimed], float]:
        """Lease up to *room* due jobs, oldest first, and reserve their requests in the cluster's rate.

        After a pause, or in a gap, one job is claimed, due or not, of those that failed least: does the cluster answer
        again? Nobody else claims while that is being found out.
        """
        with self._transaction() as row:
            # The database's time at the claim plus elapsed time: daemons with skewed clocks agree.
            clock = self._clock or (lambda: row.database_now + timedelta(seconds=monotonic() - row.tick))
            now, may, turn = clock(), May.DUE, Turn.BY_HAND
            if job_ids is None:
                may, turn = row.standing.may_ask(now), Turn.DUE
                if self._is_new:
                    row.standing, may = health.restarted(row.standing, now)
            if may is May.NOTHING:
                return [], math.inf
            if may is May.PROBE:
                room = 1
                turn = Turn.PROBE if row.standing.pause_cause or row.standing.gap_began_at else Turn.DUE
            per_second, ahead = self._cluster.max_requests_per_second, timedelta(seconds=AHEAD_SECONDS)
            start = max(row.standing.next_request_at or row.database_now, row.database_now)
            if start > row.database_now + ahead + self._longest_piece:
                start = row.database_now  # nobody reserves so far ahead: it is of a clock that was
            first = row.tick + (start - row.database_now).total_seconds()
            if start > row.database_now + ahead:
                return [], first - AHEAD_SECONDS
            if monotonic() - self._measured > MEASURE_SECONDS:
                self._measure_overload(row.connection, now)
            room = min(room, BATCH, max(1, int(PIECE_SECONDS * per_second)))
            jobs = self._choice(now, row.database_now, room, may is May.PROBE, job_ids)
            if row.connection.dialect.name == "postgresql":
                jobs = jobs.with_for_update(skip_locked=True)
            lease = (
                sa.update(JOBS)
                .where(JOBS.c.id.in_(jobs))
                .values(leased_by=self._worker, leased_until=row.database_now + self._lease)
                .returning(JOBS.c.id, JOBS.c.jid, JOBS.c.failures, JOBS.c.due_at)
            )
            leased = sorted(row.connection.execute(lease).all(), key=lambda job: (job.due_at, job.id))
            if leased:
                next_at = start + timedelta(seconds=len(leased) / per_second)
                row.standing = replace(row.standing, next_request_at=next_at)
                if turn is Turn.PROBE:
                    row.standing = health.probing(row.standing, now + self._longest_request + timedelta(seconds=5))
        self._is_new &= job_ids is not None
        end = row.tick + (self._lease - self._longest_request).total_seconds() - 2 * FLUSH_SECONDS
        claim = _Claim(row.database_now, row.tick, end, clock, turn)
        claimed = [
            _Claimed(job.id, job.jid, job.failures, first + i / per_second, claim) for i, job in enumerate(leased)
        ]
        return claimed, 0.0 if claimed and turn is not Turn.PROBE else math.inf

    def _choice(
        self, now: datetime, database_now: datetime, room: int, probing: bool, job_ids: Sequence[int] | None
    ) -> sa.Select[tuple[int]]:
        """Return the query of the ids to claim."""
        # A lease that ends later than any that is made now is of a clock that has been set back since.
        free = sa.or_(
            JOBS.c.leased_until.is_(None),
            JOBS.c.leased_until < database_now,
            JOBS.c.leased_until > database_now + self._lease + timedelta(seconds=1),
        )
        ours = sa.select(JOBS.c.id).where(JOBS.c.cluster == self._cluster.name, free)
        if job_ids is not None:
            return ours.where(JOBS.c.id.in_(job_ids), JOBS.c.due_at.is_not(None)).order_by(JOBS.c.id).limit(room)
        if probing:
            near = ours.where(JOBS.c.due_at.is_not(None)).order_by(JOBS.c.due_at).limit(2 * BATCH).scalar_subquery()
            return sa.select(JOBS.c.id).where(JOBS.c.id.in_(near)).order_by(JOBS.c.failures, JOBS.c.due_at).limit(1)
        return ours.where(JOBS.c.due_at <= now).order_by(JOBS.c.due_at).limit(room)

    def _measure_overload(self, connection: sa.Connection, now: datetime) -> None:
        """Let `delay_per_poll` grow by the backlog, in minutes of the cluster's rate, so that polls become fewer."""
        a_minute = 60 * self._cluster.max_requests_per_second
        most = math.ceil(min(100 * a_minute, 1_000_000))
        due = sa.select(sa.literal(1)).where(JOBS.c.cluster == self._cluster.name, JOBS.c.due_at <= now).limit(most)
        count = connection.execute(sa.select(sa.func.count()).select_from(due.subquery())).scalar_one()
        self._rhythm = replace(self._rhythm, delay_per_poll=self._delay_per_poll * max(1.0, count / a_minute))
        self._measured = monotonic()

    def _record(self, outcomes: Sequence[_Outcome], stop: Event) -> Tally:
        """Write what came of claimed jobs, and try again while the database is away and the leases last."""
        last = min(outcome.claimed.claim.end for outcome in outcomes) + self._longest_request.total_seconds()
        wait = 0.5
        while True:
            try:
                with self._transaction() as row:
                    batch = self._write(row, outcomes)
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
        for name, level, told in batch.events:
            event(name, level, cluster=self._cluster.name, **told)
        if row.standing.pause_cause is not None:
            self._halt.set()
        asked = batch.lost + len(batch.answered) + len(batch.failed)
        return Tally(asked, len(batch.failed), len(batch.transitions), batch.lost)

    def _write(self, row: _Row, outcomes: Sequence[_Outcome]) -> _Batch:
        """Decide what became of the cluster and of each job, and write it."""
        connection, batch = row.connection, _Batch()
        ids = [outcome.claimed.job_id for outcome in outcomes if outcome.result is not None]
        query = sa.select(JOBS).where(JOBS.c.id.in_(ids), JOBS.c.leased_by == self._worker).order_by(JOBS.c.id)
        jobs = {job.id: job for job in connection.execute(query.with_for_update())} if ids else {}
        pasts = _pasts(connection, [job.id for job in jobs.values() if job.status == Status.NOT_FOUND])
        for outcome in outcomes:
            claimed, claim, result = outcome.claimed, outcome.claimed.claim, outcome.result
            if result is not None and claim.is_off(row.database_now, row.tick):
                batch.log("discarded", logging.WARNING, jid=claimed.jid, note="the clock was set, or we stood still")
                result = None
            elif isinstance(result, AskError) and claim.tick < row.stepped_at:
                batch.log("discarded", logging.WARNING, jid=claimed.jid, note="it failed while we stood still")
                result = None
            job = None if result is None else jobs.pop(claimed.job_id, None)
            if result is None or job is None or job.state is not State.OPEN:
                if result is None:
                    batch.free.append(claimed.job_id)
                else:
                    batch.lost += 1
                    batch.log("lease_lost", logging.WARNING, jid=claimed.jid)
                if claim.turn is Turn.PROBE:
                    row.standing = health.unasked(row.standing, claim.now())
                continue
            if isinstance(result, Answer):
                change = self._answer(row, batch, job, claim, result, pasts.get(job.id, Past()))
            else:
                change = self._error(row, batch, job, claim, result)
            row.standing = change.health
            if change.gap is not None:
                put_gap(connection, self._cluster.name, change.gap)
                told = {"began_at": change.gap.began_at, "ended_at": change.gap.ended_at, "cause": change.gap.cause}
                batch.log("gap", logging.WARNING, **told)
        # The transitions first: one whose job was not changed is rolled back with it.
        database.insert_rows(connection, TRANSITIONS, batch.transitions)
        database.update_rows(connection, JOBS, batch.answered)
        database.update_rows(connection, JOBS, batch.failed)
        if batch.free:
            ours = sa.update(JOBS).where(JOBS.c.id.in_(batch.free), JOBS.c.leased_by == self._worker)
            connection.execute(ours.values(_FREE))
        if batch.well_at is not None:  # others failed because of the gap, and need not sit out their backoff
            waiting = sa.update(JOBS).where(JOBS.c.cluster == self._cluster.name, JOBS.c.failures > 0)
            connection.execute(waiting.where(JOBS.c.due_at > batch.well_at).values(due_at=batch.well_at))
        return batch

    def _answer(
        self, row: _Row, batch: _Batch, asked: sa.Row[Any], claim: _Claim, answer: Answer, past: Past
    ) -> Change:
        """Take a valid answer about the job *asked*, and return what becomes of the cluster."""
        deadline_on, deadline_at = asked.deadline_on, asked.deadline_at
        if asked.status is None or deadline_at is None:
            deadline_on, deadline_at = self._deadline(row.connection, batch, asked)
        decision = decide(job_of(asked), answer, self._lost_rule, past, deadline_at)
        job, transition, due_at = decision.job, decision.transition, None
        if job.state is State.OPEN:
            now = max(claim.now(), answer.completed_at)
            due_at = cadence.next_poll(job, deadline_at, now, self._rng(), self._rhythm).due_at
        working = {"due_at": due_at, "failures": 0, "last_error": None, **_FREE}
        derived = {"deadline_on": deadline_on, "deadline_at": deadline_at}
        batch.answered.append({"id": asked.id, **observed_values(job), **derived, **working})
        if transition is not None:
            batch.transitions.append(transition_values(asked.id, transition, self._source_id))
            batch.log(
                "transition",
                logging.WARNING if transition.anomaly else logging.INFO,
                jid=asked.jid,
                from_status=transition.from_status,
                to_status=transition.to_status,
                from_state=transition.from_state,
                to_state=transition.to_state,
                after=transition.last_seen_at,
                by=transition.observed_at,
                anomaly=transition.anomaly,
                next_poll_at=due_at,
            )
        if claim.tick < row.stepped_at:  # it was under way while we stood still: it says nothing of the cluster now
            return Change(row.standing)
        change = health.answered(row.standing, answer.sent_at, answer.completed_at, claim.turn)
        if row.standing.pause_cause is not None and change.health.pause_cause is None:
            batch.log("resumed", after=row.standing.pause_cause)
        if change.gap is not None and change.gap.cause is not Cause.NOT_RUNNING:
            batch.well_at = answer.completed_at
        return change

    def _deadline(self, connection: sa.Connection, batch: _Batch, row: sa.Row[Any]) -> tuple[date, datetime]:
        """Return the deadline of a job that is answered for the first time, whatever plain SQL put there.

        Afterwards only an amendment moves it.
        """
        batch.zone_of = batch.zone_of or legal_zones(connection, self._legal_zone)
        # An amendment may have recorded an extension, perhaps too late.
        declared = extensions(connection, row.id) if row.seq else [(row.registered_at, row.extended_on)]
        due = deadline_of(facts_of(row), row.registered_at, batch.zone_of(row.cluster, declared[-1][0]), declared)
        return due.on, due.at

    def _error(self, row: _Row, batch: _Batch, asked: sa.Row[Any], claim: _Claim, error: AskError) -> Change:
        """Take an error: the job *asked* keeps its status. Return what becomes of the cluster."""
        now, failures = claim.now(), asked.failures + 1
        name = next(kind.__name__ for kind in type(error).__mro__ if kind in AskError.__subclasses__())
        batch.log("poll_failed", logging.WARNING, jid=asked.jid, error=name, code=error.code, failures=failures)
        others = {asked.id, *(one["id"] for one in batch.failed)}
        unfailed = self._unfailed(row.connection, others) if asked.failures else THREE
        change = health.failed(
            row.standing, error, now, job_failures=asked.failures, unfailed=unfailed, turn=claim.turn
        )
        if change.health.pauses > row.standing.pauses:
            told = {"cause": change.health.pause_cause, "code": error.code, "until": change.health.paused_until}
            batch.log("paused", logging.ERROR, **told)
        due_at = asked.due_at
        if change.backs_off:
            due_at = cadence.retry_poll(failures, asked.deadline_at, now, self._rng()).due_at
        told = {"polls": asked.polls + 1, "failures": failures, "last_error": f"{name} {error.code}", "due_at": due_at}
        batch.failed.append({"id": asked.id, **told, **_FREE})
        return change

    def _unfailed(self, connection: sa.Connection, but: set[int]) -> int:
        """Return how many open jobs, *but* these, have not failed since their last valid answer; at most three."""
        open_jobs = sa.select(JOBS.c.id).where(JOBS.c.cluster == self._cluster.name, JOBS.c.due_at.is_not(None))
        found = connection.execute(open_jobs.where(JOBS.c.failures == 0).limit(THREE + len(but))).scalars()
        return min(THREE, len(set(found) - but))

    def _set_aside(self, outcome: _Outcome, error: Exception) -> Tally:
        """Let a job whose answer the database refuses back off, and log it: it takes a person."""
        told = {"cluster": self._cluster.name, "jid": outcome.claimed.jid, "error": _short(error)}
        event("record_failed", logging.ERROR, **told)
        ours = sa.and_(JOBS.c.id == outcome.claimed.job_id, JOBS.c.leased_by == self._worker)
        with database.writing(self._engine) as connection:
            failures = connection.execute(sa.select(JOBS.c.failures).where(ours)).scalar_one_or_none()
            if failures is not None:
                plan = cadence.retry_poll(failures + 1, None, outcome.claimed.claim.now(), self._rng())
                values = {"failures": failures + 1, "last_error": type(error).__name__, "due_at": plan.due_at}
                connection.execute(sa.update(JOBS).where(ours).values(values | _FREE))
        return Tally(asked=1, failed=1)


@dataclass(slots=True)
class _Row:
    """A transaction with the cluster's row locked in it.

    Attributes:
        database_now: The database's time.
        tick: The monotonic time then.
        standing: The cluster, as it is becoming.
        stepped_at: Monotonic time of the last step of the clock: claims that are older say nothing of the cluster now.
    """

    connection: sa.Connection
    database_now: datetime
    tick: float
    standing: Health
    stepped_at: float


@dataclass(slots=True)
class _Batch:
    """What a transaction writes, and then logs: rows of jobs by what came of them, and rows of transitions.

    Attributes:
        free: Jobs to give back: they were not asked about.
        well_at: When a gap ended because the cluster answered again.
        zone_of: The legal time zone, read when it is needed.
    """

    answered: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    transitions: list[dict[str, Any]] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    well_at: datetime | None = None
    zone_of: Callable[[str, datetime], ZoneInfo] | None = None
    events: list[tuple[str, int, dict[str, object]]] = field(default_factory=list)
    lost: int = 0

    def log(self, name: str, level: int = logging.INFO, **fields: object) -> None:
        """Log an event after the commit."""
        self.events.append((name, level, fields))


def _pasts(connection: sa.Connection, job_ids: Iterable[int]) -> dict[int, Past]:
    """Return the past of jobs whose status is not_found: few, and only they need it."""
    histories: dict[int, list[Transition]] = {job_id: [] for job_id in job_ids}
    if histories:
        query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id.in_(histories)).order_by(TRANSITIONS.c.seq)
        for row in connection.execute(query):
            histories[row.job_id].append(transition_of(row))
    return {job_id: _past(history) for job_id, history in histories.items()}


def _past(history: list[Transition]) -> Past:
    try:
        return replay(history).past
    except ValueError:  # somebody changed it: `tracker audit verify` says how, and polling goes on
        return Past()


def _short(error: Exception) -> str:
    """Return what the database said, without the statement and its values."""
    said = str(getattr(error, "orig", error)).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else ''}"
