"""The demo: fake Elevates, a new database, the real client and the real pollers, through one week, on one machine.

Owns the scene: a company with two clusters that submits its customers' requests and registers each jid, an outage of
one cluster, and the clock that makes a week pass in seconds. Leaves alone: how any of it is shown (``cli.demo``).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from itertools import count
from math import ceil
from pathlib import Path
from threading import Event
from time import monotonic
from urllib.parse import quote, urlsplit

import sqlalchemy as sa

import tracker
from tracker import clusters, database
from tracker.audit.seal import seal
from tracker.demo.simulator import CREATE_PATHS, DEFAULT_KEY, Fault, Simulator
from tracker.errors import BadConfiguration
from tracker.models import JOBS
from tracker.poller import Poller, Tally
from tracker.reports import page
from tracker.reports.overview import overview
from tracker.settings import Settings
from tracker.status import Kind, State

NORTH, SOUTH = CLUSTERS = ("demo-north", "demo-south")
OUTAGE = (0.55, 0.75)
"""When the second cluster answers 503 only, as shares of the simulated time."""
REGISTERED_BY = "tracker demo"
STEP = timedelta(minutes=1)
"""The shortest leap of the simulated clock: a poll is late by at most this, and a week takes a few thousand leaps."""
FAILING = 0.03
"""The share of jobs that end in `error`."""
EARLY = timedelta(days=28)
"""Some requests were received this long before they were submitted, so that their deadlines fall within the demo."""


class LaggingClock:
    """A clock that runs as the real one does, some time behind it, and leaps towards it: shared by all in the demo.

    Between two leaps it runs, so that a request takes time; no request is sent during a leap. *lag* is how far it is
    behind.
    """

    def __init__(self, lag: timedelta) -> None:
        self.lag = lag
        self._began = datetime.now(UTC)
        self._tick = monotonic()

    def __call__(self) -> datetime:
        return self._real() - self.lag

    def leap(self, at: datetime) -> None:
        """Go on from *at*, if that is ahead and not in the real future."""
        self.lag = min(self.lag, max(timedelta(), self._real() - at))

    def _real(self) -> datetime:
        return self._began + timedelta(seconds=monotonic() - self._tick)


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that the company submits *at* a time to a cluster.

    Attributes:
        reference: The ticket of the person's request; an export and a removal may share it.
        received_at: The request reached the company.
        vanishes_after: Elevate forgets the job this long after its creation; None: it does not.
        mistyped: The jid is registered with a typing error.
    """

    at: datetime
    cluster: str
    kind: Kind
    reference: str
    received_at: datetime
    vanishes_after: timedelta | None = None
    mistyped: bool = False


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        elevates: The fake Elevates by cluster, which know the truth.
        began_at, now: The simulated time at the beginning and at the end.
        states: Jobs by state.
        polls: Requests.
        seconds: How long it took.
        interrupted: It was stopped before its end.
        example: A jid worth looking at.
    """

    elevates: dict[str, Simulator]
    began_at: datetime
    now: datetime
    states: dict[State, int] = field(default_factory=dict)
    polls: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    example: str | None = None


def plan(rng: random.Random, jobs: int, began_at: datetime, span: timedelta) -> list[Submission]:
    """Return *jobs* submissions within *span*, in order: most early, so that there is time for them to end.

    The company submits on the hour. Where a person wants a copy and to be forgotten, the removal follows the export a
    day later, so that the export can be downloaded in between (ELEVATE.md).
    """
    planned: list[Submission] = []
    hours = int(span.total_seconds() // 3600)
    for number in count(1001):
        if len(planned) >= jobs:
            break
        cluster = SOUTH if number % 3 == 0 else NORTH
        kinds = rng.choice(((Kind.EXPORT,), (Kind.REMOVAL,), (Kind.EXPORT, Kind.REMOVAL)))
        latest = max(0, hours - 1 - 24 * (len(kinds) - 1))
        first = ceil(rng.random() ** 2 * latest)
        before = EARLY if number % 12 == 0 else timedelta(hours=rng.uniform(1, 72))
        received_at = began_at + timedelta(hours=first) - before
        for kind, later in zip(kinds, (0, 24), strict=False):
            at = began_at + timedelta(hours=min(first + later, hours - 1))
            planned.append(Submission(at, cluster, kind, f"DSR-{number}", received_at))
    planned = sorted(planned[:jobs], key=lambda one: one.at)
    for i in range(1, jobs, 100):
        planned[i] = replace(planned[i], vanishes_after=timedelta(hours=rng.uniform(20, 40)))
    planned[0] = replace(planned[0], mistyped=True)
    return planned


def write_page(path: Path) -> Path:
    """Write the reports on the database at *path* as a page beside it, and return where."""
    engine = database.open_database(url_of(path))
    with database.reading(engine) as connection:
        made = page.render(connection, overview=overview(connection, CLUSTERS, timedelta(hours=1)))
    engine.dispose()
    path.with_suffix(".html").write_text(made, encoding="utf-8")
    return path.with_suffix(".html")


def url_of(path: Path) -> str:
    """Return the database URL of the SQLite file at *path*."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


def run(
    path: Path,
    *,
    jobs: int = 300,
    days: float = 7,
    seed: int = 1,
    stop: Event | None = None,
    report_progress: Callable[[float, float | None, str], None] = lambda done, total, what: None,
) -> Outcome:
    """Let *jobs* jobs go through *days* simulated days that end now, and return what came of it.

    Args:
        path: Where the database is made, and the page beside it.
        jobs: How many.
        days: How long, in simulated time.
        seed: The same seed makes the same scene, at another time.
        stop: Set to end it early; what was recorded is kept.
        report_progress: Gets the simulated hours that have passed, and all of them, after each step.

    Raises:
        BadConfiguration: One of the two files is there already, or cannot be made. Nothing was changed.
    """
    began = monotonic()
    stop = stop or Event()
    for file in (path, path.with_suffix(".html")):
        if file.exists():
            raise BadConfiguration(f"{file} is there already: move it away, or name another file with --database")
    url = url_of(path)
    database.upgrade(url)
    span = timedelta(days=days)
    clock = LaggingClock(span)
    began_at = clock()
    outage_at, answers_at = (began_at + share * span for share in OUTAGE)
    rng = random.Random(seed)  # noqa: S311 - a scene, not a secret
    submissions = plan(rng, jobs, began_at, span)
    elevates = {name: Simulator(clock, seed=seed + i, failing=FAILING) for i, name in enumerate(CLUSTERS)}
    outcome = Outcome(elevates, began_at, began_at)
    with ExitStack() as stack:
        engine = database.create_engine(url)
        stack.callback(engine.dispose)
        served = {name: {"name": name, "base_url": stack.enter_context(elevates[name].serve())} for name in CLUSTERS}
        common = {"api_key": DEFAULT_KEY, "max_requests_per_second": 1e6}
        settings = Settings.model_validate(
            {"clusters": {name: its | common for name, its in served.items()}, "database_url": url}
        )
        pollers = {
            name: stack.enter_context(Poller(engine, one, settings, REGISTERED_BY, clock=clock, rng=rng.random))
            for name, one in settings.clusters.items()
        }
        tally = Tally()
        while not stop.is_set():
            elevates[SOUTH].faults = (Fault("503", 1),) if outage_at <= clock() < answers_at else ()
            while submissions and submissions[0].at <= clock():
                _submit(engine, settings, elevates, submissions.pop(0))
            for name, at in _next_polls(engine).items():
                if at <= clock():
                    tally += pollers[name].run(stop)
            outcome.now = clock()
            report_progress((span - clock.lag) / timedelta(hours=1), span / timedelta(hours=1), "simulated time")
            if not clock.lag:
                break
            coming = [*_next_polls(engine).values(), *(one.at for one in submissions[:1])]
            clock.leap(max(min(coming, default=clock() + clock.lag), clock() + STEP))
        outcome.interrupted = bool(clock.lag)
        outcome.polls = tally.asked
        seal(engine, None)  # so that it can be verified and handed over, too
        with database.reading(engine) as connection:
            jobs_made = connection.execute(sa.select(JOBS.c.state, JOBS.c.jid)).all()
            outcome.states = {state: n for state in State if (n := sum(job.state is state for job in jobs_made))}
            outcome.example = next((job.jid for job in jobs_made if job.state is State.LOST), None)
    outcome.seconds = monotonic() - began
    return outcome


def _next_polls(engine: sa.Engine) -> dict[str, datetime]:
    """Return when each cluster is to be asked next, if it has open jobs."""
    _, found = clusters.look(engine, clusters.ClockWatch())
    return {name: max(due_at, health.paused_until or due_at) for name, (health, due_at) in found.items() if due_at}


def _submit(engine: sa.Engine, settings: Settings, elevates: dict[str, Simulator], one: Submission) -> None:
    """Submit a job as the company does, by the vendor's own call, and register the jid that comes back."""
    fake, submitted_at = elevates[one.cluster], elevates[one.cluster].now()
    path = next(path for path, kind in CREATE_PATHS.items() if kind is one.kind)
    target = f"{path}?customerKey={quote(f'customer of {one.reference}')}"
    with closing(HTTPConnection(urlsplit(settings.clusters[one.cluster].base_url).netloc, timeout=10)) as http:
        http.request("POST", target, headers={"Api-Key": DEFAULT_KEY})
        jid = str(json.loads(http.getresponse().read())["jid"])
    if one.vanishes_after is not None:
        fake.forget(jid, submitted_at + one.vanishes_after)
    if one.mistyped:
        jid = jid[:-2] + jid[-1] + ("0" if jid[-2] == jid[-1] else jid[-2])
    with database.writing(engine) as connection:
        tracker.register(
            connection,
            jid,
            cluster=one.cluster,
            kind=one.kind,
            submitted_at=submitted_at,
            received_at=one.received_at,
            reference=one.reference,
            registered_by=REGISTERED_BY,
            settings=settings,
            now=fake.now(),
        )
