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
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from time import monotonic
from types import FrameType
from typing import Any, Final

import sqlalchemy as sa
from apscheduler.executors.pool import ThreadPoolExecutor as PoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from tracker import database, guards, operate
from tracker.cadence import doubled
from tracker.clusters import Watch, look, take_up
from tracker.errors import DatabaseMoved, DatabaseUnavailable, Refused
from tracker.health import Health
from tracker.logs import DATABASE, event
from tracker.models import CLUSTERS, JOBS, WORKERS
from tracker.poller import Poller, Tally
from tracker.settings import Settings, mask_url
from tracker.status import Cause, State

LOOK_SECONDS: Final = 1  # how often all clusters are looked at for due jobs
BEAT_SECONDS: Final = 10  # a daemon whose last beat is older than a minute is taken for dead
SAME_SIGNAL_SECONDS: Final = 0.5  # a wrapper that signals us and our group sends one signal twice
CLOSING_SECONDS: Final = 20  # beyond the time for one request: to write what came of the last ones
FORGOTTEN: Final = timedelta(days=30)  # how long a daemon that stopped is listed
AWAY_SECONDS: Final = 5  # between looks while the database is away
LONGEST_WAIT: Final = timedelta(seconds=30)  # between tries to poll a cluster while that fails
SECOND: Final = timedelta(seconds=1)

Beside = Callable[[sa.Engine], AbstractContextManager[object]]
"""What runs beside the polling: a context around it, with threads of its own, that must not disturb it."""


class Stop(threading.Event):
    """Set by SIGTERM and SIGINT while `listening`; a second signal, a moment later, ends the process at once.

    Attributes:
        failure: Why the daemon stopped by itself; `run` raises it.
    """

    failure: DatabaseMoved | None = None

    def because(self, failure: DatabaseMoved) -> None:
        """Stop: nothing can be written any more."""
        if self.failure is None:
            event("database_moved", logging.ERROR, error=failure)
            self.failure = failure
        self.set()

    @contextmanager
    def handling_outages(self, wait: float = 0.0) -> Iterator[None]:
        """Log that the database is away, *wait* so many seconds, and go on; stop if its file was moved."""
        try:
            yield
        except DatabaseMoved as error:
            self.because(error)
        except DatabaseUnavailable as error:
            DATABASE.went_away(error)
            self.wait(wait)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals, in the main thread, and restore the handlers before at the end."""
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
        settings: With at least one cluster.
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
        with stop.listening(), _worker(engine, settings, once, stop) as worker, ExitStack() as stack:
            for other in beside:
                stack.enter_context(other(engine))
            watch = Watch()
            tasks = {
                name: _Task(name, stack.enter_context(Poller(engine, cluster, settings, worker, watch=watch)), stop)
                for name, cluster in settings.clusters.items()
            }
            with database.writing(engine) as connection:
                take_up(connection, tasks, worker)
            daemon = _Daemon(engine, worker, tasks, watch, stop)
            if once:
                daemon.run_once()
            else:
                daemon.keep_running(2 * settings.request_timeout.total_seconds())
            if stop.failure:
                raise stop.failure
            if failure := next((task.failure for task in tasks.values() if once and task.failure), None):
                raise failure
            return sum((task.tally for task in tasks.values()), Tally())
    finally:
        engine.dispose()


def poll_now(
    settings: Settings, jids: Iterable[str], cluster: str | None = None
) -> list[tuple[sa.Row[Any], sa.Row[Any]]]:
    """Ask about open jobs now, within their clusters' rates, and return each one's row of ``jobs`` before and after.

    One whose `polls` stayed the same was not asked about: another daemon was asking just then.

    Raises:
        Refused: A jid is unknown, ambiguous, of an ended job, or of a cluster that an operator paused; none was asked.
        BadConfiguration, DatabaseUnavailable: As `run`.
    """
    engine = database.open_database(settings.database_url)
    try:
        with database.reading(engine) as connection:
            guards.check(connection)
            found = [operate.find(connection, jid, cluster) for jid in dict.fromkeys(jids)]
            query = sa.select(JOBS).where(JOBS.c.id.in_([job.job_id for job in found])).order_by(JOBS.c.id)
            before = connection.execute(query).all()
            paused = sa.select(CLUSTERS.c.cluster).where(CLUSTERS.c.pause_cause == Cause.PAUSED)
            by_operator = set(connection.execute(paused).scalars())
        for job in before:
            settings.cluster(job.cluster)
            if job.state is not State.OPEN:
                raise Refused(f"job {job.jid} is {job.state}, and only open jobs are polled: tracker show {job.jid}")
            if job.cluster in by_operator:
                raise Refused(f"cluster {job.cluster} was paused by an operator: tracker resume {job.cluster}")
        for name in {job.cluster for job in before}:
            with Poller(engine, settings.cluster(name), settings, database.worker_name()) as poller:
                poller.poll([job.id for job in before if job.cluster == name], threading.Event())
        with database.reading(engine) as connection:
            after = connection.execute(query).all()
    finally:
        engine.dispose()
    return list(zip(before, after, strict=True))


class _Task:
    """One cluster's polling: a thread of its own while there is something to do, so that no cluster waits for another.

    Attributes:
        failure: What went wrong in the last run, if anything did.
    """

    def __init__(self, cluster: str, poller: Poller, stop: Stop) -> None:
        self.tally = Tally()
        self.failure: Exception | None = None
        self._cluster = cluster
        self._poller = poller
        self._stop = stop
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._not_before = 0.0

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, *, patient: bool = False) -> None:
        """Poll until nothing is due; *patient*: wait for a place in the rate however long."""
        name = f"poll-{self._cluster}"
        self._thread = threading.Thread(target=self._run, args=(patient,), name=name, daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait until it has ended, but no longer than *seconds*."""
        if self._thread is not None:
            self._thread.join(max(0.0, seconds))

    def look(self, now: datetime, cluster: Health, due_at: datetime | None) -> None:
        """Start if there is something to do, unless it runs already or has just failed."""
        is_free = not self.is_running and not self._stop.is_set() and monotonic() >= self._not_before
        if is_free and self._poller.wants(now, cluster, due_at):
            self.start()

    def _run(self, patient: bool) -> None:
        with self._stop.handling_outages():
            try:
                while (tally := self._poller.run(self._stop, patient=patient)).asked:
                    self.tally += tally
                self.failure, self._failures = None, 0
            except Exception as error:
                self.failure, self._failures = error, self._failures + 1
                self._not_before = monotonic() + doubled(SECOND, self._failures - 1, LONGEST_WAIT).total_seconds()
                if patient:
                    return  # `run` raises it
                if isinstance(error, DatabaseMoved | DatabaseUnavailable):
                    raise
                event("polling_failed", logging.ERROR, cluster=self._cluster, error=f"{type(error).__name__}: {error}")
                logging.getLogger("tracker").debug("polling_failed", exc_info=error)


@contextmanager
def _worker(engine: sa.Engine, settings: Settings, once: bool, stop: Stop) -> Iterator[str]:
    """Enter this daemon into ``workers`` and yield its name; note at the end that it stopped."""
    worker, release = database.worker_name(), version("tracker")
    with database.writing(engine) as connection:
        now = database.now(connection)
        # Each run of cron has a row. Old ones are deleted; the last sign of life says since when none ran.
        last_sign = sa.func.coalesce(WORKERS.c.stopped_at, WORKERS.c.beat_at)
        last = sa.select(sa.func.max(last_sign)).scalar_subquery()
        connection.execute(sa.delete(WORKERS).where(last_sign < now - FORGOTTEN, last_sign < last))
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "version": release}
        connection.execute(sa.insert(WORKERS).values(worker=worker, started_at=now, beat_at=now, once=once, **facts))
    shown = mask_url(settings.database_url)
    event("started", worker=worker, version=release, database=shown, clusters=",".join(settings.clusters))
    try:
        yield worker
    finally:
        with stop.handling_outages(), database.writing(engine) as connection:
            gone = sa.update(WORKERS).where(WORKERS.c.worker == worker)
            connection.execute(gone.values(stopped_at=database.now(connection)))
        event("stopped", worker=worker)


class _Every(BaseTrigger):  # type: ignore[misc]  # APScheduler is untyped
    """Fires every so many seconds from now on.

    APScheduler's own interval lists all missed runs, which takes seconds and much memory after a clock was set.
    """

    def __init__(self, seconds: float) -> None:
        self._interval = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return now if previous is None else now + self._interval


class _Daemon:
    """The tasks of all clusters, and the heartbeat, until the stop."""

    def __init__(self, engine: sa.Engine, worker: str, tasks: dict[str, _Task], watch: Watch, stop: Stop) -> None:
        self._engine = engine
        self._worker = worker
        self._tasks = tasks
        self._watch = watch
        self._stop = stop

    def run_once(self) -> None:
        """Poll all that is due, of all clusters at once."""
        for task in self._tasks.values():
            task.start(patient=True)
        beat_at = monotonic() + BEAT_SECONDS
        while running := [task for task in self._tasks.values() if task.is_running]:
            running[0].join(0.5)  # so that signals are handled meanwhile
            if monotonic() >= beat_at:
                self._beat()
                beat_at = monotonic() + BEAT_SECONDS

    def keep_running(self, longest_request: float) -> None:
        """Run the scheduler until the stop, and then until the last requests have ended and are recorded."""
        scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": PoolExecutor(2)},
            # One busy worker must not make another's run vanish (by default a run one second late is dropped).
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a look that takes longer than a second is no warning
        scheduler.add_job(self._look, _Every(LOOK_SECONDS))
        scheduler.add_job(self._beat, _Every(BEAT_SECONDS))
        scheduler.start()
        while not self._stop.wait(LOOK_SECONDS):
            now = datetime.now(UTC)
            for job in scheduler.get_jobs():
                if job.next_run_time > now + timedelta(seconds=2 * BEAT_SECONDS):  # the clock was set back
                    job.modify(next_run_time=now)
        event("stopping")
        end = monotonic() + longest_request + CLOSING_SECONDS
        closing = threading.Thread(target=scheduler.shutdown, daemon=True)  # it has no time-out of its own
        closing.start()
        closing.join(end - monotonic())
        for task in self._tasks.values():
            task.join(end - monotonic())
        if closing.is_alive() or any(task.is_running for task in self._tasks.values()):
            event("stop_timed_out", logging.ERROR, note="a poll did not end in time; its lease ends by itself")
            os._exit(1)

    def _look(self) -> None:
        """Start what there is to do."""
        with self._stop.handling_outages(AWAY_SECONDS):
            now, found = look(self._engine, self._watch)
            for name, (cluster, due_at) in found.items():
                if name in self._tasks:
                    self._tasks[name].look(now, cluster, due_at)

    def _beat(self) -> None:
        with self._stop.handling_outages():
            with database.writing(self._engine) as connection:
                now, _ = self._watch.read(connection, writing=True)
                connection.execute(sa.update(WORKERS).where(WORKERS.c.worker == self._worker).values(beat_at=now))
            DATABASE.came_back()
