"""The daemon: runs the pollers until it is stopped.

Owns the scheduler (nothing else knows APScheduler), the signals, this daemon's row in ``workers`` and its heartbeat.
Leaves alone: what a poll is (``poller``), and what runs beside the polling, which ``cli/run.py`` hands over.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from time import monotonic
from types import FrameType
from typing import Any

import sqlalchemy as sa
from apscheduler.executors.pool import ThreadPoolExecutor as PoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from tracker import database, guards, operate
from tracker.clusters import Watch, look, take_up
from tracker.errors import DatabaseMoved, DatabaseUnavailable, Refused
from tracker.health import Health
from tracker.logs import event
from tracker.models import CLUSTERS, JOBS, Worker
from tracker.poller import Poller, Tally, polling
from tracker.settings import Settings, mask_url
from tracker.status import Cause, State

LOOK_SECONDS = 1  # how often all clusters are looked at for due jobs
BEAT_SECONDS = 10  # a daemon whose last beat is older than a minute is taken for dead
SAME_SIGNAL_SECONDS = 0.5  # a wrapper that signals us and our group sends one signal twice
CLOSING_SECONDS = 20  # beyond the time for one request: to write what came of the last ones
FORGOTTEN = timedelta(days=30)  # how long a daemon that stopped is listed
LONGEST_WAIT = 30  # between tries while the database is away

Beside = Callable[[sa.Engine], AbstractContextManager[object]]
"""What runs beside the polling: a context around it, with threads of its own, that must not disturb it."""


class Stop(threading.Event):
    """Set by SIGTERM and SIGINT while `listening`; a second signal, a moment later, ends the process at once.

    Attributes:
        failure: What made the daemon stop by itself; `run` raises it.
    """

    failure: DatabaseMoved | None = None

    def because(self, failure: DatabaseMoved) -> None:
        """Stop, since nothing can be written any more."""
        if self.failure is None:
            event("database_moved", logging.ERROR, error=failure)
            self.failure = failure
        self.set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals, in the main thread, and give them back."""
        first = 0.0

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal first
            if not self.is_set():
                first = monotonic()
                self.set()
            elif monotonic() - first > SAME_SIGNAL_SECONDS:
                os._exit(128 + number)  # leases end by themselves

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(settings: Settings, *, once: bool = False, stop: Stop | None = None, beside: Iterable[Beside] = ()) -> Tally:
    """Poll all configured clusters until *stop*, or *once* all that is due; return what was done.

    Args:
        settings: At least one cluster.
        once: Do not wait for more to become due.
        stop: Set it to end the polling; signals set it, too.
        beside: Each runs from before the first poll until after the last.

    Raises:
        BadConfiguration: No cluster is configured, or the database is missing, of another version or without its
            guards; each with the way out.
        DatabaseMoved: The SQLite file is another one now; nothing was written to it.
        DatabaseUnavailable: At the start; later it is waited for.
        TrackerError: *once*: what kept a cluster from being polled, else what *beside* raises at its end.
    """
    stop = stop or Stop()
    settings.cluster(next(iter(settings.clusters), None))  # says what to set if there is none
    engine = database.open_database(settings.database_url)
    try:
        with database.reading(engine) as connection:
            guards.check(connection)
        with stop.listening(), _worker(engine, settings, once) as worker, ExitStack() as stack:
            for other in beside:
                stack.enter_context(other(engine))
            watch = Watch()
            tasks = {
                name: _Task(name, stack.enter_context(polling(engine, cluster, settings, worker, watch=watch)), stop)
                for name, cluster in settings.clusters.items()
            }
            with database.writing(engine) as connection:
                take_up(connection, tasks, worker)
            if once:
                for task in tasks.values():
                    task.start(task.once)
                _ended(engine, worker, tasks, watch, stop)
            else:
                _keep_running(engine, worker, tasks, watch, stop, 2 * settings.request_timeout.total_seconds())
            if stop.failure:
                raise stop.failure
            if failure := next((task.failure for task in tasks.values() if once and task.failure), None):
                raise failure
            return sum((task.tally for task in tasks.values()), Tally())
    finally:
        engine.dispose()


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking about a job out of turn.

    Attributes:
        before: The status before.
        was_asked: False: another daemon was asking just then.
        last_error: Class and code, if there was no valid answer.
    """

    cluster: str
    jid: str
    before: str | None
    status: str | None
    state: State
    next_poll_at: datetime | None
    last_error: str | None
    was_asked: bool


def poll_now(settings: Settings, jids: Iterable[str], cluster: str | None = None) -> list[Asked]:
    """Ask about open jobs now, within their clusters' rates, and return what came of it.

    Raises:
        Refused: A jid is unknown, ambiguous, of an ended job, or of a cluster that an operator paused; none was asked.
        BadConfiguration, DatabaseUnavailable: As `run`.
    """
    engine = database.open_database(settings.database_url)
    try:
        with database.reading(engine) as connection:
            guards.check(connection)
            found = [operate.find(connection, jid, cluster) for jid in dict.fromkeys(jids)]
            before = {row.id: row for row in _rows(connection, found)}
            paused = sa.select(CLUSTERS.c.cluster).where(CLUSTERS.c.pause_cause == Cause.PAUSED)
            by_operator = set(connection.execute(paused).scalars())
        for job in found:
            settings.cluster(job.cluster)
            state = before[job.job_id].state
            if state is not State.OPEN:
                raise Refused(f"job {job.jid} is {state}, and only open jobs are polled: tracker show {job.jid}")
            if job.cluster in by_operator:
                raise Refused(f"cluster {job.cluster} was paused by an operator: tracker resume {job.cluster}")
        for name in {job.cluster for job in found}:
            with polling(engine, settings.cluster(name), settings, database.worker_name()) as poller:
                poller.poll([job.job_id for job in found if job.cluster == name], threading.Event())
        with database.reading(engine) as connection:
            after = _rows(connection, found)
    finally:
        engine.dispose()
    return [
        Asked(
            row.cluster,
            row.jid,
            before[row.id].status,
            row.status,
            row.state,
            row.due_at,
            row.last_error,
            row.polls > before[row.id].polls,
        )
        for row in after
    ]


def _rows(connection: sa.Connection, found: list[operate.Found]) -> list[sa.Row[Any]]:
    query = sa.select(JOBS).where(JOBS.c.id.in_([job.job_id for job in found])).order_by(JOBS.c.id)
    return list(connection.execute(query))


class _Task:
    """One cluster's polling: a thread of its own while there is something to do, so that no other waits for it."""

    def __init__(self, cluster: str, poller: Poller, stop: Stop) -> None:
        self.tally = Tally()
        self.failure: Exception | None = None
        self._cluster = cluster
        self._poller = poller
        self._stop = stop
        self._thread: threading.Thread | None = None
        self._wait = 0.0
        self._not_before = 0.0

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name=f"poll-{self._cluster}", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait until it has ended, but no longer than *seconds*."""
        if self._thread is not None:
            self._thread.join(max(0.0, seconds))

    def once(self) -> None:
        """Run until nothing is due, and keep in `failure` what went wrong, if anything did."""
        self._run(patient=True)

    def look(self, now: datetime, standing: Health, due_at: datetime | None) -> None:
        """Start what there is to do, unless it runs already or has just failed."""
        is_free = not self.is_running and not self._stop.is_set() and monotonic() >= self._not_before
        if is_free and self._poller.wants(now, standing, due_at):
            self.start(self._due)

    def _run(self, patient: bool) -> None:
        try:
            while (tally := self._poller.run(self._stop, patient=patient)).asked:
                self.tally += tally
            self.failure = None
        except Exception as error:
            self.failure = error

    def _due(self) -> None:
        self._run(patient=False)
        if self.failure is None:
            self._wait = 0.0
            return
        self._wait = min(2 * self._wait + 1, LONGEST_WAIT)
        self._not_before = monotonic() + self._wait
        if isinstance(self.failure, DatabaseMoved):
            self._stop.because(self.failure)
        elif isinstance(self.failure, DatabaseUnavailable):
            told = {"cluster": self._cluster, "error": self.failure, "again_in_seconds": self._wait}
            event("database_unavailable", logging.ERROR, **told)
        else:
            told = {"cluster": self._cluster, "error": f"{type(self.failure).__name__}: {self.failure}"}
            event("run_failed", logging.ERROR, **told)
            logging.getLogger("tracker").debug("run_failed", exc_info=self.failure)


@contextmanager
def _worker(engine: sa.Engine, settings: Settings, once: bool) -> Iterator[str]:
    """Enter this daemon into ``workers`` and yield its name; note at the end that it stopped."""
    worker = database.worker_name()
    release = version("tracker")
    with database.writing(engine) as connection:
        now = database.now(connection)
        # One run of cron a row: the old ones go, but for the last sign of life, which shows how long nobody ran.
        last_sign = sa.func.coalesce(Worker.stopped_at, Worker.beat_at)
        last = sa.select(sa.func.max(last_sign)).scalar_subquery()
        connection.execute(sa.delete(Worker).where(last_sign < now - FORGOTTEN, last_sign < last))
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "version": release}
        connection.execute(sa.insert(Worker).values(worker=worker, started_at=now, beat_at=now, once=once, **facts))
        counts = sa.select(JOBS.c.cluster, sa.func.count().label("jobs")).where(JOBS.c.due_at.is_not(None))
        open_jobs = {row.cluster: row.jobs for row in connection.execute(counts.group_by(JOBS.c.cluster))}
    shown = mask_url(settings.database_url)
    event("started", worker=worker, version=release, database=shown, clusters=",".join(settings.clusters))
    for cluster in sorted(set(open_jobs) - set(settings.clusters)):
        event("not_configured", logging.WARNING, cluster=cluster, open_jobs=open_jobs[cluster])
    try:
        yield worker
    finally:
        try:
            with database.writing(engine) as connection:
                gone = sa.update(Worker).where(Worker.worker == worker)
                connection.execute(gone.values(stopped_at=database.now(connection)))
        except DatabaseMoved:  # reported already
            pass
        except DatabaseUnavailable as error:
            event("database_unavailable", logging.ERROR, error=error)
        event("stopped", worker=worker)


class _Every(BaseTrigger):  # type: ignore[misc]  # APScheduler is untyped
    """Fires every so many seconds from now on.

    Its own interval lists each run that was missed first, which takes seconds and much memory after a clock was set.
    """

    def __init__(self, seconds: float) -> None:
        self._interval = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return now if previous is None else now + self._interval


def _keep_running(
    engine: sa.Engine, worker: str, tasks: dict[str, _Task], watch: Watch, stop: Stop, timeout: float
) -> None:
    """Run the scheduler until *stop*, and then until the last requests have ended and are recorded."""
    scheduler = BackgroundScheduler(
        timezone=UTC,
        executors={"default": PoolExecutor(2)},
        # One busy worker must not make another's run vanish (by default a run one second late is dropped).
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
    )
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a look that takes longer than a second is no warning
    scheduler.add_job(_look, _Every(LOOK_SECONDS), (engine, tasks, watch, stop))
    scheduler.add_job(_beat, _Every(BEAT_SECONDS), (engine, worker, watch, stop))
    scheduler.start()
    while not stop.wait(LOOK_SECONDS):
        now = datetime.now(UTC)
        for job in scheduler.get_jobs():
            if job.next_run_time > now + timedelta(seconds=2 * BEAT_SECONDS):  # the clock was set back
                job.modify(next_run_time=now)
    event("stopping")
    end = monotonic() + timeout + CLOSING_SECONDS
    closing = threading.Thread(target=scheduler.shutdown, daemon=True)  # it has no time-out of its own
    closing.start()
    closing.join(end - monotonic())
    for task in tasks.values():
        task.join(end - monotonic())
    if closing.is_alive() or any(task.is_running for task in tasks.values()):
        event("stopped_hard", logging.ERROR, note="a poll did not end in time; its lease ends by itself")
        os._exit(1)


def _ended(engine: sa.Engine, worker: str, tasks: dict[str, _Task], watch: Watch, stop: Stop) -> None:
    """Wait for all tasks."""
    beat_at = monotonic() + BEAT_SECONDS
    for task in tasks.values():
        while task.is_running:
            task.join(0.5)  # so that signals are heard meanwhile
            if monotonic() >= beat_at:
                _beat(engine, worker, watch, stop)
                beat_at = monotonic() + BEAT_SECONDS


def _look(engine: sa.Engine, tasks: dict[str, _Task], watch: Watch, stop: Stop) -> None:
    """Start whatever there is to do."""
    try:
        now, found = look(engine, watch)
    except DatabaseMoved as error:
        stop.because(error)
    except DatabaseUnavailable as error:
        event("database_unavailable", logging.ERROR, error=error, again_in_seconds=LONGEST_WAIT / 6)
        stop.wait(LONGEST_WAIT / 6)
    else:
        for name, (standing, due_at) in found.items():
            if name in tasks:
                tasks[name].look(now, standing, due_at)


def _beat(engine: sa.Engine, worker: str, watch: Watch, stop: Stop) -> None:
    try:
        with database.writing(engine) as connection:
            now, _ = watch.read(connection, writing=True)
            connection.execute(sa.update(Worker).where(Worker.worker == worker).values(beat_at=now))
    except DatabaseMoved as error:
        stop.because(error)
    except DatabaseUnavailable as error:
        event("database_unavailable", logging.WARNING, error=error)
