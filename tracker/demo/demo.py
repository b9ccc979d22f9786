"""All of it on one machine: a fake Elevate, a fresh database, the real client and the real poller, through a week.

Owns the scene: a company that submits its customers' requests and registers each jid, the clock that makes a week pass
in seconds, and the comparison of what was recorded with what the simulator knows to be true. Leaves alone: how any of
it is shown (``cli.demo``).
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from importlib.metadata import version
from itertools import count
from math import ceil
from pathlib import Path
from statistics import fmean, median
from threading import Event
from time import monotonic
from urllib.parse import quote, urlsplit

import sqlalchemy as sa

from tracker import database
from tracker.audit.seal import seal
from tracker.clusters import first_contact
from tracker.demo.simulator import CREATE_PATHS, DEFAULT_KEY, Simulator
from tracker.elevate import Elevate
from tracker.errors import BadConfiguration
from tracker.intake import register
from tracker.models import JOBS, TRANSITIONS
from tracker.poller import Poller, Tally
from tracker.reports import page
from tracker.reports.overview import overview
from tracker.settings import ClusterSettings, Settings
from tracker.status import Action, Kind, State, Status

CLUSTER = "demo"
REGISTERED_BY = "tracker demo"
MARK = 0x7472_6465  # SQLite's application_id of a database that a demo made: "trde"
STEP = timedelta(minutes=1)
"""The least that the simulated clock leaps: a poll is at most so much late, and a week takes a few thousand leaps."""
FAILING = 0.03  # the share of jobs that end in `error`, so that there are some to be seen
LAIN = timedelta(days=28)  # some requests lay about so long before they were submitted: their month ends in the demo


class LaggingClock:
    """A clock that runs as the real one does, some time behind it, and leaps towards it: shared by all in the demo.

    Between two leaps it runs, so that a request takes time, as it does in life; nobody asks while it leaps.

    Attributes:
        lag: How far it is behind the real time.
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


class ForgetfulElevate(Simulator):
    """A fake Elevate that loses some jobs before they end, as the real one is not supposed to.

    Attributes:
        forgotten: From when on a jid is not found.
    """

    def __init__(self, now: Callable[[], datetime], *, seed: int, failing: float) -> None:
        super().__init__(now, seed=seed, failing=failing)
        self.forgotten: dict[str, datetime] = {}

    def status_at(self, jid: str, at: datetime) -> Status:
        if jid in self.forgotten and at >= self.forgotten[jid]:
            return Status.NOT_FOUND
        return super().status_at(jid, at)

    def entered_at(self, jid: str, status: str) -> datetime | None:
        """Return the instant from which on a job of its own truly has *status*; None if it never has.

        Raises:
            KeyError: *jid* was not created here.
        """
        fate = self.truth(jid)
        entered: dict[str, datetime | None] = {
            Status.CREATED if fate.kind is Kind.EXPORT else Status.STARTED: fate.created_at,
            Status.WAITING: fate.waits_at,
            Status.RUNNING: fate.runs_at,
            fate.end: fate.ends_at,
            Status.NOT_FOUND: self.forgotten.get(jid),
        }
        return entered.get(status)


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that the company submits.

    Attributes:
        at: When.
        kind: What it asks of Elevate.
        reference: The ticket of the person's request; an export and a removal may share it.
        received_at: The request reached the company.
        vanishes_after: Elevate forgets the job so long after its creation; None: it does not.
        mistyped: Whoever registers the jid makes a slip.
    """

    at: datetime
    kind: Kind
    reference: str
    received_at: datetime
    vanishes_after: timedelta | None = None
    mistyped: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is.

    Attributes:
        now: The simulated time.
        share: The share of the simulated time that has passed, 0 to 1.
        states: Jobs by state.
        polls: Requests so far.
    """

    now: datetime
    share: float
    states: dict[State, int]
    polls: int


@dataclass(slots=True)
class Outcome:
    """What came of it; durations in seconds.

    Attributes:
        elevate: The fake Elevate, which knows the truth.
        began_at: Of the simulated time.
        progress: The last of it.
        seconds: What it took.
        interrupted: It was stopped before its end; all below is then about what there was.
        bounds: Recorded changes of status whose bounds were checked against the truth.
        wrong: A line for each whose bounds do not contain it.
        uncertainty_seconds: Median width of the bounds of `done`; None if no job was done.
        ended: Jobs that were done or failed: the next three are about them, and None if there are none.
        ended_polls: Requests for each (mean).
        delay_seconds: From the true end until it was known (mean).
        fixed_polls: Requests for each (mean) at a fixed interval with that same delay: twice the delay, since an end
            falls anywhere between two polls, from the registration until the end was known.
        example: A jid worth looking at.
    """

    elevate: ForgetfulElevate
    began_at: datetime
    progress: Progress
    seconds: float = 0.0
    interrupted: bool = False
    bounds: int = 0
    wrong: list[str] = field(default_factory=list)
    uncertainty_seconds: float | None = None
    ended: int = 0
    ended_polls: float | None = None
    delay_seconds: float | None = None
    fixed_polls: float | None = None
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
        kinds = rng.choice(((Kind.EXPORT,), (Kind.REMOVAL,), (Kind.EXPORT, Kind.REMOVAL)))
        latest = max(0, hours - 1 - 24 * (len(kinds) - 1))
        first = ceil(rng.random() ** 2 * latest)
        lay = LAIN if number % 12 == 0 else timedelta(hours=rng.uniform(1, 72))
        received_at = began_at + timedelta(hours=first) - lay
        for kind, later in zip(kinds, (0, 24), strict=False):
            at = began_at + timedelta(hours=min(first + later, hours - 1))
            planned.append(Submission(at, kind, f"DSR-{number}", received_at))
    planned = sorted(planned[:jobs], key=lambda one: one.at)
    for i in range(1, jobs, 100):
        planned[i] = replace(planned[i], vanishes_after=timedelta(hours=rng.uniform(20, 40)))
    planned[0] = replace(planned[0], mistyped=True)
    return planned


def make_way(path: Path) -> None:
    """Remove the database of an earlier demo at *path*, and mark a new, empty file there as a demo's.

    Raises:
        BadConfiguration: What is there is not a demo's, is in use, or somebody has registered jobs of their own in it;
            or it cannot be made there; or where its page goes there is another file. Nothing was changed.
    """
    way_out = "name another file with --database, or move this one away"
    try:
        beside = page_of(path)
        if beside.exists() and page.MARK.encode() not in beside.read_bytes()[:1000]:
            raise BadConfiguration(f"{beside}, where the demo writes its page, is none of tracker's: {way_out}")
        if path.exists():
            with path.open("rb") as file:
                header = file.read(100)
            if header[:16] != b"SQLite format 3\0" or header[68:72] != MARK.to_bytes(4, "big"):
                raise BadConfiguration(f"{path} is not a demo's: {way_out}")
            with closing(sqlite3.connect(path, timeout=0)) as connection:
                others = "SELECT 1 FROM jobs WHERE registered_by <> ? LIMIT 1"
                is_made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone()
                if is_made and connection.execute(others, (REGISTERED_BY,)).fetchone():
                    raise BadConfiguration(f"{path} has jobs that no demo registered: {way_out}")
                # Fails while anybody else has it open, and folds the WAL into the file, so that one file is all.
                connection.execute("PRAGMA journal_mode = DELETE")
            path.unlink()
        # Before there is a WAL, so that the mark is in the file itself whatever happens next.
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA application_id = {MARK}")
    except (sqlite3.Error, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadConfiguration(f"no database can be made at {path} ({reason}): {way_out}") from error


def page_of(path: Path) -> Path:
    """Return where the page of the database at *path* is written: beside it."""
    return path.with_suffix(".html")


def write_page(path: Path) -> Path:
    """Write the reports on the database at *path* as a page beside it, and return where."""
    engine = database.open_database(url_of(path))
    with database.reading(engine) as connection:
        made = page.render(connection, overview=overview(connection, (), timedelta(hours=1)))
    engine.dispose()
    page_of(path).write_text(made, encoding="utf-8")
    return page_of(path)


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
    told: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Let *jobs* jobs go through *days* simulated days that end now, and return what came of it.

    Args:
        path: Where the database is made; see `make_way`.
        jobs: How many.
        days: How long, in simulated time.
        seed: The same seed makes the same scene, but for the time at which it plays.
        stop: Set to end it early; what was recorded is kept.
        told: Is given the progress after each step.

    Raises:
        BadConfiguration: The database cannot be made; see `make_way`.
    """
    began = monotonic()
    stop = stop or Event()
    make_way(path)
    url = url_of(path)
    database.upgrade(url)
    clock = LaggingClock(timedelta(days=days))
    began_at, span = clock(), timedelta(days=days)
    rng = random.Random(seed)  # noqa: S311 - a scene, not a secret
    submissions = plan(rng, jobs, began_at, span)
    elevate = ForgetfulElevate(clock, seed=seed, failing=FAILING)
    outcome = Outcome(elevate, began_at, Progress(began_at, 0.0, {}, 0))
    with ExitStack() as stack:
        engine = database.create_engine(url)
        stack.callback(engine.dispose)
        base_url = stack.enter_context(elevate.serve())
        cluster = ClusterSettings.model_validate(
            {"name": CLUSTER, "api_key": DEFAULT_KEY, "base_url": base_url, "max_requests_per_second": 1e6}
        )
        settings = Settings(clusters={CLUSTER: cluster}, database_url=url)
        company = _Company(engine, settings, elevate, base_url)
        stack.callback(company.close)
        with database.writing(engine) as connection:
            source_id = first_contact(connection, cluster, settings, version("tracker"))
        client = stack.enter_context(Elevate(cluster, settings.request_timeout))
        poller = Poller(engine, cluster, settings, client, source_id, REGISTERED_BY, clock=clock, rng=rng.random)
        tally = Tally()
        while not stop.is_set():
            now = clock()
            while submissions and submissions[0].at <= now:
                company.submit(submissions.pop(0))
            tally += poller.run(stop)
            states, due_at = _look(engine)
            outcome.progress = Progress(clock(), 1 - clock.lag / span, states, tally.asked)
            told(outcome.progress)
            if not clock.lag:
                break
            coming = [at for at in (due_at, submissions[0].at if submissions else None) if at is not None]
            clock.leap(max(min(coming, default=clock() + clock.lag), clock() + STEP))
        outcome.interrupted = bool(clock.lag)
        seal(engine, None)  # so that it can be verified and handed over, too
        with database.reading(engine) as connection:
            _judge(connection, outcome)
    outcome.seconds = monotonic() - began
    return outcome


class _Company:
    """Whoever runs Elevate: submits jobs by the vendor's own calls, and registers each jid that comes back."""

    def __init__(self, engine: sa.Engine, settings: Settings, elevate: ForgetfulElevate, base_url: str) -> None:
        self._engine = engine
        self._settings = settings
        self._elevate = elevate
        self._http = HTTPConnection(urlsplit(base_url).netloc, timeout=10)
        self._paths = {kind: path for path, kind in CREATE_PATHS.items()}

    def close(self) -> None:
        self._http.close()

    def submit(self, one: Submission) -> None:
        submitted_at = self._elevate.now()
        person = quote(f"customer of {one.reference}")
        self._http.request("POST", f"{self._paths[one.kind]}?customerKey={person}", headers={"Api-Key": DEFAULT_KEY})
        jid = str(json.loads(self._http.getresponse().read())["jid"])
        if one.vanishes_after is not None:
            self._elevate.forgotten[jid] = submitted_at + one.vanishes_after
        if one.mistyped:
            jid = jid[:-2] + jid[-1] + ("0" if jid[-2] == jid[-1] else jid[-2])
        with database.writing(self._engine) as connection:
            register(
                connection,
                jid,
                cluster=CLUSTER,
                kind=one.kind,
                submitted_at=submitted_at,
                received_at=one.received_at,
                reference=one.reference,
                registered_by=REGISTERED_BY,
                settings=self._settings,
                now=self._elevate.now(),
            )


def _look(engine: sa.Engine) -> tuple[dict[State, int], datetime | None]:
    """Return the number of jobs by state, and when the next poll is due."""
    with database.reading(engine) as connection:
        query = sa.select(JOBS.c.state, sa.func.count(), sa.func.min(JOBS.c.due_at)).group_by(JOBS.c.state)
        rows = connection.execute(query).all()
    return {row[0]: row[1] for row in rows}, min((row[2] for row in rows if row[2] is not None), default=None)


def _judge(connection: sa.Connection, outcome: Outcome) -> None:
    """Compare what is recorded with the truth, and fill *outcome* with what that shows."""
    elevate = outcome.elevate
    changed = TRANSITIONS.c.to_status.is_distinct_from(TRANSITIONS.c.from_status)
    changes = (
        sa.select(JOBS.c.jid, JOBS.c.submitted_at, TRANSITIONS)
        .join(JOBS, JOBS.c.id == TRANSITIONS.c.job_id)
        .where(TRANSITIONS.c.action == Action.OBSERVED, changed)
    )
    for row in connection.execute(changes):
        if row.from_status is None and row.to_status == Status.NOT_FOUND:
            continue  # a jid that never was has no instant at which it ceased to be
        outcome.bounds += 1
        truth = elevate.entered_at(row.jid, row.to_status)
        after, by = row.last_seen_at or row.submitted_at, row.observed_at
        if truth is None or not after < truth <= by:
            outcome.wrong.append(f"{row.jid} {row.to_status}: recorded after {after} and by {by}, in truth {truth}")

    ended = connection.execute(sa.select(JOBS).where(JOBS.c.state.in_((State.DONE, State.FAILED)))).all()
    outcome.ended = len(ended)
    if ended:
        outcome.ended_polls = fmean(row.polls for row in ended)
        ends = [(row, elevate.entered_at(row.jid, row.status)) for row in ended]
        outcome.delay_seconds = fmean((row.ended_by - end).total_seconds() for row, end in ends if end)
        followed = fmean((row.ended_by - row.registered_at).total_seconds() for row in ended)
        outcome.fixed_polls = followed / (2 * outcome.delay_seconds)
    widths = connection.exec_driver_sql("SELECT uncertainty_seconds FROM report_durations").scalars().all()
    outcome.uncertainty_seconds = median(widths) if widths else None
    outcome.example = next(iter(elevate.forgotten), None)
