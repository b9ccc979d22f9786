"""The daemon: runs the pollers until it is stopped.

Owns the scheduler (nothing else knows APScheduler), the signals, the reload, this daemon's row in ``workers``, its
heartbeat and its pulse. Leaves alone: what a poll is (``poller``), and what runs beside the polling, which
``cli/run.py`` hands over.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from time import monotonic
from types import FrameType
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from apscheduler.executors.pool import ThreadPoolExecutor as PoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from tracker import database, guards, operate
from tracker.cadence import doubled
from tracker.clusters import ClockWatch, look, take_up
from tracker.errors import (
    BadConfiguration,
    DatabaseUnavailable,
    DatabaseUnusable,
    KeyRefused,
    Refused,
    TrackerError,
    name_of,
)
from tracker.health import MISSED, Health
from tracker.logs import DATABASE, event
from tracker.models import CLUSTERS, JOBS, WORKERS
from tracker.poller import Poller, Tally
from tracker.settings import Settings, mask_url
from tracker.status import Cause, State

LOOK_SECONDS: Final = 1  # how often to look for due jobs of all clusters
BEAT_SECONDS: Final = 10  # a daemon whose last beat is older than a minute is taken for dead
SAME_SIGNAL_SECONDS: Final = 0.5  # a wrapper that signals the process and its group sends one signal twice
CLOSING_SECONDS: Final = 20  # beyond the time for one request: to write what came of the last ones
FORGOTTEN: Final = timedelta(days=30)  # how long a daemon that stopped is listed
AWAY_SECONDS: Final = 5  # between looks while the database is away
LONGEST_WAIT: Final = timedelta(seconds=30)  # between tries to poll a cluster while that fails
SECOND: Final = timedelta(seconds=1)

Beside = Callable[[sa.Engine], AbstractContextManager[object]]
"""What runs beside the polling: a context around it, with threads of its own, that must not disturb it."""


class Pulse:
    """Knows when the daemon last looked at its clusters. A class that counts what a daemon does extends it."""

    def __init__(self) -> None:
        self._ticked_at = monotonic()

    def tick(self, seconds: float) -> None:
        """A look at all clusters is complete and took *seconds*; also if the database was away: that is handled."""
        self._ticked_at = monotonic()

    def age(self) -> float:
        """Return the seconds since the last look was complete; before the first one, since the start."""
        return monotonic() - self._ticked_at

    def asked(self, cluster: str, outcome: str, seconds: float) -> None:
        """A request brought an ``answer``, or an error of the class *outcome*, such as ``key_refused``."""


class UnpolledCluster(NamedTuple):
    """Why `run` *once* did not poll a cluster, and the exit code for that; 0: an operator paused it."""

    cluster: str
    exit_code: int
    why: str


class Stop(threading.Event):
    """Set by SIGTERM and SIGINT while `listening`; a second signal, a moment later, ends the process at once.

    Attributes:
        failure: Why the daemon stopped by itself; `run` raises it.
        wants_reload: A signal asked for it.
    """

    failure: DatabaseUnusable | None = None
    wants_reload = False

    def because(self, failure: DatabaseUnusable) -> None:
        """Stop: nothing can be written any more."""
        if self.failure is None:
            event(name_of(failure), logging.ERROR, error=failure)
            self.failure = failure
        self.set()

    @contextmanager
    def handling_outages(self, wait: float = 0.0) -> Iterator[None]:
        """Log that the database is away, *wait* this many seconds, and go on; stop if it cannot be used any more."""
        try:
            yield
        except DatabaseUnusable as error:
            self.because(error)
        except DatabaseUnavailable as error:
            DATABASE.went_away(error)
            self.wait(wait)

    @contextmanager
    def listening(self, reloads: bool) -> Iterator[None]:
        """Handle the signals, in the main thread, and restore the handlers before at the end.

        SIGHUP asks for a reload if *reloads*, but on a terminal it says that the terminal is gone, and stops.
        """
        first = 0.0
        reloads = reloads and not os.isatty(2)  # checked now: a terminal that has closed is no longer a terminal

        def hang_up(number: int, frame: FrameType | None) -> None:
            nonlocal first
            if reloads:
                self.wants_reload = True
            elif not self.is_set():  # a shell and the system both send it, so a second one is ignored
                first = monotonic()
                self.set()

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal first
            if not self.is_set():
                first = monotonic()
                self.set()
            elif monotonic() - first > SAME_SIGNAL_SECONDS:
                os._exit(128 + number)  # leases end by themselves

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: hang_up}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(
    settings: Settings,
    *,
    once: bool = False,
    stop: Stop | None = None,
    beside: Callable[[Settings], Iterable[Beside]] = lambda settings: (),
    pulse: Pulse | None = None,
    reload: Callable[[], Settings] | None = None,
) -> tuple[Tally, list[UnpolledCluster]]:
    """Poll all configured clusters until *stop*, or *once* all that is due; then return what was done and what was not.

    Args:
        settings: With at least one cluster.
        once: Do not wait for more to become due.
        stop: Set it to end the polling; signals set it, too.
        beside: Returns what runs from before the first poll until after the last. A reload calls it again, before
            anything ends: it refuses settings that cannot be used.
        pulse: Gets each look and each request.
        reload: Reads the settings again.

    Raises:
        BadConfiguration: No cluster is configured, or the database is missing, of another version or without its
            guards; each with the way out.
        DatabaseUnusable: The SQLite file is another one now, or damaged, and nothing was written to it; or PostgreSQL
            refuses a right.
        DatabaseUnavailable: At the start, and at the end of a run *once*; else it is waited for.
    """
    stop = stop or Stop()
    settings.cluster(next(iter(settings.clusters), None))  # raises with what to set if there is none
    first = beside(settings)
    engine = database.open_database(settings.database_url)
    try:
        with database.reading(engine) as connection:
            guards.check(connection)
        can_reload = reload is not None and not once
        with stop.listening(can_reload), _worker(engine, settings, once, stop) as worker:
            daemon = _Daemon(engine, worker, stop, beside, pulse or Pulse())
            daemon.begin(settings, first)
            try:
                with database.writing(engine) as connection:
                    take_up(connection, settings.clusters, worker)
                if once:
                    daemon.run_once()
                else:
                    daemon.keep_running(reload)
            finally:
                daemon.close()
            if stop.failure:
                raise stop.failure
            return daemon.tally, daemon.troubles
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
    """The polling of one cluster, in its own thread while something is due, so that no cluster waits for another.

    Attributes:
        failure: What went wrong in the last run, if anything did.
    """

    def __init__(self, cluster: str, poller: Poller, stop: Stop, over: threading.Event) -> None:
        self.tally = Tally()
        self.failure: Exception | None = None
        self._cluster = cluster
        self._poller = poller
        self._stop = stop
        self._over = over
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._not_before = 0.0

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, *, patient: bool = False) -> None:
        """Poll until nothing is due; *patient*: wait for a place in the rate, however long that takes."""
        name = f"poll-{self._cluster}"
        thread = threading.Thread(target=self._run, args=(patient,), name=name, daemon=True)
        thread.start()
        self._thread = thread  # not before: a thread that could not be started cannot be joined

    @property
    def is_stuck(self) -> bool:
        return self.is_running and self._poller.is_stuck()

    @property
    def has_news(self) -> bool:
        return self._poller.has_news

    def join(self, seconds: float) -> None:
        """Wait until it has ended, but no longer than *seconds*."""
        if self._thread is not None:
            self._thread.join(max(0.0, seconds))

    def note_clock(self) -> None:
        """Record what the clock did until now; otherwise the daemon that polls next counts this time as observed."""
        self._poller.note_clock()

    def look(self, now: datetime, cluster: Health, due_at: datetime | None) -> None:
        """Start if a poll is due, unless the polling runs already or has just failed."""
        is_free = not self.is_running and not self._over.is_set() and monotonic() >= self._not_before
        if is_free and self._poller.wants(now, cluster, due_at):
            self.start()

    def trouble(self, cluster: Health, due_at: datetime | None) -> UnpolledCluster | None:
        """Return why the cluster was not polled, if it was not. The arguments are results of `look` after the run."""
        name, cause, error = self._cluster, cluster.pause_cause, self._poller.error
        if isinstance(self.failure, DatabaseUnavailable):
            return UnpolledCluster(name, 75, str(self.failure))
        if self.failure is not None:  # a fault of tracker's own
            raise self.failure
        if due_at is None:  # no job is open
            return None
        if cluster.is_paused_by_hand:
            return UnpolledCluster(name, 0, f"an operator paused it: tracker resume {name}")
        # A job that always fails does not count against its cluster, even if no other was due.
        is_unanswered = self.tally.failed > 0 and self.tally.asked == self.tally.failed + self.tally.lost
        if cause is None and not (is_unanswered and cluster.failures):
            return None
        why = str(error or f"no request was sent ({cause})")
        if cluster.paused_until is not None:
            why += f"; paused until {cluster.paused_until:%Y-%m-%d %H:%M:%S} UTC"
        return UnpolledCluster(name, 78 if cause is Cause.KEY_REFUSED or isinstance(error, KeyRefused) else 69, why)

    def _run(self, patient: bool) -> None:
        with self._stop.handling_outages():
            try:
                while (tally := self._poller.run(self._over, patient=patient)).asked:
                    self.tally += tally
                self.failure, self._failures = None, 0
            except Exception as error:
                self.failure, self._failures = error, self._failures + 1
                self._not_before = monotonic() + doubled(SECOND, self._failures - 1, LONGEST_WAIT).total_seconds()
                if patient:
                    return  # `trouble` reports it
                if isinstance(error, DatabaseUnusable | DatabaseUnavailable):
                    raise
                event("polling_failed", logging.ERROR, cluster=self._cluster, error=f"{type(error).__name__}: {error}")
                logging.getLogger("tracker").debug("polling_failed", exc_info=error)


@contextmanager
def _worker(engine: sa.Engine, settings: Settings, once: bool, stop: Stop) -> Iterator[str]:
    """Insert this daemon into ``workers`` and yield its name; at the end record that it stopped."""
    worker, release = database.worker_name(), version("tracker")
    with database.writing(engine) as connection:
        now = database.now(connection)
        # Each run of cron has a row. Old ones are deleted; the last sign of life says since when none ran.
        last_sign = sa.func.coalesce(WORKERS.c.stopped_at, WORKERS.c.beat_at)
        last = sa.select(sa.func.max(last_sign)).scalar_subquery()
        connection.execute(sa.delete(WORKERS).where(last_sign < now - FORGOTTEN, last_sign < last))
        others = sa.select(WORKERS.c.worker).where(WORKERS.c.stopped_at.is_(None), ~WORKERS.c.once)
        shares = connection.execute(others.where(WORKERS.c.beat_at > now - MISSED)).scalars().all()
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "version": release}
        connection.execute(sa.insert(WORKERS).values(worker=worker, started_at=now, beat_at=now, once=once, **facts))
    shown = mask_url(settings.database_url)
    event("started", worker=worker, version=release, database=shown, clusters=",".join(settings.clusters))
    if shares and engine.dialect.name == "sqlite" and not once:
        note = "another daemon uses this SQLite file, or was killed within the last minute. Daemons on one SQLite file "
        note += "wait for each other's writes: use PostgreSQL for more than one daemon"
        event("sqlite_shared", logging.WARNING, others=",".join(shares), note=note)
    try:
        yield worker
    finally:
        with stop.handling_outages(), database.writing(engine) as connection:
            gone = sa.update(WORKERS).where(WORKERS.c.worker == worker)
            connection.execute(gone.values(stopped_at=database.now(connection)))
        event("stopped", worker=worker)


class _EverySeconds(BaseTrigger):  # type: ignore[misc]  # APScheduler is untyped
    """Fires every so many seconds from now on.

    APScheduler's own interval lists all missed runs, which takes seconds and much memory after a clock was set.
    """

    def __init__(self, seconds: float) -> None:
        self._interval = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return now if previous is None else now + self._interval


@dataclass
class _Daemon:
    """The tasks of all clusters, what runs beside them, and the heartbeat, until the stop.

    Attributes:
        watch: One for all settings that it serves.
        settings, tasks, over, close: Of the settings that are in force. *over*: no task asks any more; *close* ends
            what runs beside.
    """

    engine: sa.Engine
    worker: str
    stop: Stop
    beside: Callable[[Settings], Iterable[Beside]]
    pulse: Pulse
    watch: ClockWatch = field(default_factory=ClockWatch)
    tally: Tally = field(default_factory=Tally)
    troubles: list[UnpolledCluster] = field(default_factory=list)
    settings: Settings = field(init=False)
    tasks: dict[str, _Task] = field(init=False)
    over: threading.Event = field(init=False)
    close: Callable[[], None] = field(init=False)

    def begin(self, settings: Settings, beside: Iterable[Beside]) -> None:
        """Start what runs beside the polling, and make a task for each cluster; if that fails, stop all of it."""
        tasks, over = dict[str, _Task](), threading.Event()
        with ExitStack() as stack:
            for other in beside:
                stack.enter_context(other(self.engine))
            for name, cluster in settings.clusters.items():
                poller = Poller(self.engine, cluster, settings, self.worker, watch=self.watch, asked=self.pulse.asked)
                tasks[name] = _Task(name, stack.enter_context(poller), self.stop, over)
            self.close = stack.pop_all().close
        self.settings, self.tasks, self.over = settings, tasks, over

    def finish(self, also: threading.Thread | None = None) -> bool:
        """Wait until requests in progress are recorded and *also* has ended; return whether both did in time."""
        self.over.set()
        end = monotonic() + 2 * self.settings.request_timeout.total_seconds() + CLOSING_SECONDS
        for task in self.tasks.values():
            task.join(end - monotonic())
        if also is not None:
            also.join(max(0.0, end - monotonic()))
        if any(task.is_running for task in self.tasks.values()) or (also and also.is_alive()):
            return False
        with self.stop.handling_outages():
            look(self.engine, self.watch)
            for task in self.tasks.values():
                task.note_clock()
        return True

    def run_once(self) -> None:
        """Poll all that is due, of all clusters at once."""
        for task in self.tasks.values():
            task.start(patient=True)
        beat_at = monotonic() + BEAT_SECONDS
        while running := [task for task in self.tasks.values() if task.is_running]:
            running[0].join(0.5)  # so that signals are handled meanwhile
            if self.stop.is_set():
                self.finish()
            if monotonic() >= beat_at:
                self._beat()
                beat_at = monotonic() + BEAT_SECONDS
        _, found = look(self.engine, self.watch)
        self.tally = sum((task.tally for task in self.tasks.values()), Tally())
        troubles = [task.trouble(*found[name]) for name, task in self.tasks.items()]
        self.troubles = [one for one in troubles if one is not None]

    def keep_running(self, reload: Callable[[], Settings] | None) -> None:
        """Run the scheduler until the stop, and then until the last requests have ended and are recorded."""
        scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": PoolExecutor(2)},
            # One busy worker must not make another's run vanish (by default a run one second late is dropped).
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a look that takes longer than a second is no warning
        scheduler.add_job(self._look, _EverySeconds(LOOK_SECONDS))
        scheduler.add_job(self._beat, _EverySeconds(BEAT_SECONDS))
        scheduler.start()
        while not self.stop.wait(LOOK_SECONDS):
            now = datetime.now(UTC)
            for job in scheduler.get_jobs():
                if job.next_run_time > now + timedelta(seconds=2 * BEAT_SECONDS):  # the clock was set back
                    job.modify(next_run_time=now)
            if self.stop.wants_reload and reload is not None:
                with self.stop.handling_outages(AWAY_SECONDS):
                    look(self.engine, self.watch)  # while the database is away, what runs beside goes on
                    self.stop.wants_reload = False
                    self._reload(reload)
        event("stopping")
        closing = threading.Thread(target=scheduler.shutdown, daemon=True)  # it has no time-out of its own
        closing.start()
        if not self.finish(closing):
            event("stop_timed_out", logging.ERROR, note="a poll did not end in time; its job is polled again later")
            os._exit(1)

    def _reload(self, read: Callable[[], Settings]) -> None:
        """Serve other settings from now on; those that cannot be used are logged, and the old ones stay."""
        old = self.settings
        try:
            new = read()
            new.cluster(next(iter(new.clusters), None))
            if new.database_url != old.database_url:
                raise BadConfiguration("TRACKER_DATABASE_URL has changed: restart the daemon")
            beside = self.beside(new)
        except (TrackerError, OSError) as error:
            event("settings_refused", logging.ERROR, error=error)
            return
        # Looks and heartbeats go on meanwhile, and find no task that would start.
        if not self.finish():
            event("reload_timed_out", logging.ERROR, note="a poll did not end in time; its job is polled again later")
        self.close()
        while not self.stop.is_set():
            with self.stop.handling_outages(AWAY_SECONDS):
                try:
                    self.begin(new, beside)
                    if new is not old:
                        event("reloaded", clusters=",".join(new.clusters))
                    break
                except DatabaseUnusable:
                    raise
                except BadConfiguration as error:  # a port in use, for instance
                    event("settings_refused", logging.ERROR, error=error)
                    if new is old:
                        raise
                    new, beside = old, self.beside(old)

    def _look(self) -> None:
        """Start the tasks of all clusters with due polls."""
        began = monotonic()
        with self.stop.handling_outages(AWAY_SECONDS):
            now, found = look(self.engine, self.watch)
            for name, task in self.tasks.items():
                if name in found:
                    task.look(now, *found[name])
        if not any(task.is_stuck for task in self.tasks.values()):  # else the watchdog is to restart this process
            self.pulse.tick(monotonic() - began)

    def _beat(self) -> None:
        with self.stop.handling_outages():
            with database.writing(self.engine) as connection:
                now, tick = self.watch.read(connection)
                if any(task.has_news for task in self.tasks.values()):
                    return  # for another daemon that stood still, too, our beat would say that we polled meanwhile
                connection.execute(sa.update(WORKERS).where(WORKERS.c.worker == self.worker).values(beat_at=now))
            self.watch.wrote(now, tick)
            DATABASE.came_back()
