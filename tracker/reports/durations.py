"""How long jobs take from submission to ``done``: quantiles at both bounds, by cluster and kind.

Owns which jobs enter the two curves and where; the estimator is ``survival``'s, a done job's bounds are those of the
view ``report_durations``. How each job enters, in seconds since its submission (else its registration), never below 0:

- **done**: on the lower curve it ended at ``seconds_min``, on the upper one at ``seconds_max``.
- **done, its submission unknown**: on the lower curve it ended at ``seconds_min``, which counts from the registration.
  Nothing bounds it from above, so on the upper curve it took at least that long, as if it were open.
- **open**: on both curves it takes at least as long as until it was last seen not done: when the request of its last
  valid answer was sent, not now. While Elevate says ``not_found`` it was perhaps done and forgotten, so what counts is
  the last sight before that (as for the verdicts, ``deadline.verdict``). One that was never seen counts with 0.
- **failed, lost, attested**: as open ones: not seen done, and last seen not done then. Nobody saw how long they would
  have taken or took; what an attesting operator claims is no observation. They are counted, so that nobody overlooks
  them: where many fail, the quantiles are those of jobs that do not.
- **withdrawn**: left out, and counted: nobody waits for it.

Beside the curves stands how late the registrations came: only from then on is a job followed, and what Elevate did with
it before that, nobody saw.

So the pair of a quantile is what the observations leave open about *when*; it is not a confidence interval, and says
nothing about jobs to come. Where an open job was last seen between the two bounds of a done one, nobody knows which was
at risk when the other ended: the two curves may cross, and the curve of the true times may leave them by about the
weight of one job. The pair is put in order, so that the lower bound is never above the upper one.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from itertools import chain
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database
from tracker.errors import InvalidField
from tracker.models import JOBS, UtcDateTime
from tracker.reports.about import About, Filters
from tracker.reports.as_of import LEGAL_ZONE, shadows
from tracker.reports.survival import Curve
from tracker.status import Kind, State, Status

SHARES: Final = (0.5, 0.9, 0.95, 1.0)
"""Of the median, p90, p95 and max."""
LATE: Final = 86_400.0
"""Seconds after its submission from which on a registration is counted as late; ours: a job runs on the next day at the
earliest, so what is registered within a day misses nothing."""
_RANKS: Final = (0.5, 0.95, 1.0)
"""Of the median, p95 and max of `Lateness`."""
_BATCH: Final = 10_000
"""Rows fetched at a time; ours: a few MB."""

_REPORT_DURATIONS: Final = sa.table(
    "report_durations",
    sa.column("cluster", sa.String()),
    sa.column("kind", sa.String()),
    sa.column("submitted_at", UtcDateTime()),
    sa.column("registered_at", UtcDateTime()),
    sa.column("seconds_min", sa.Double()),
    sa.column("seconds_max", sa.Double()),
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """A quantile, exact to the microsecond.

    Attributes:
        seconds_min: So large a share took at least so long; None: the curve does not come down that far (not reached).
        seconds_max: It took at most so long; None: not reached, though the lower bound may be.
    """

    seconds_min: float | None
    seconds_max: float | None


@dataclass(frozen=True, slots=True)
class Lateness:
    """How long after their declared submission jobs were registered; nearest rank, in seconds.

    Attributes:
        jobs: Those with a declared submission, withdrawn ones included.
        median: None where there is no such job.
        p95: As *median*.
        max: As *median*.
        over_a_day: How many were registered more than a day after it.
        unknown: Those of unknown submission: nobody can say how late they came.
    """

    jobs: int
    median: float | None
    p95: float | None
    max: float | None
    over_a_day: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Row:
    """The jobs of one cluster and kind, or all.

    Attributes:
        cluster: None: all.
        kind: None: all.
        jobs: How many count: the sum of the five that follow.
        done: Elevate said so.
        open: Still followed.
        failed: Elevate said ``error``.
        lost: Elevate does not know them.
        attested: Done unseen, as an operator says.
        withdrawn: Left out, and not among *jobs*.
        median: By this time half of the jobs are done.
        p90: By this time nine tenths are.
        p95: By this time nineteen twentieths are.
        max: By this time all are.
        registered: How late their registrations came; withdrawn jobs count here.
    """

    cluster: str | None
    kind: Kind | None
    jobs: int
    done: int
    open: int
    failed: int
    lost: int
    attested: int
    withdrawn: int
    median: Bounds
    p90: Bounds
    p95: Bounds
    max: Bounds
    registered: Lateness


@dataclass(frozen=True, slots=True)
class Durations:
    """The report.

    Attributes:
        about: When, with which filters and over how many jobs it was made.
        rows: One for each cluster and kind that has a job, in the order of their names; empty if no job is like that.
        total: All of them.
    """

    about: About
    rows: tuple[Row, ...]
    total: Row


def durations(
    connection: sa.Connection,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    cluster: str | Collection[str] = (),
    kind: str | Collection[str] = (),
    as_of: datetime | None = None,
    zone: ZoneInfo = LEGAL_ZONE,
) -> Durations:
    """Return how long jobs took to reach ``done``, with open jobs as "at least this old" (Kaplan–Meier).

    The jobs are streamed, and three numbers of each are kept.

    Args:
        connection: In a transaction; what it sees is reported. One that sees a single state of the database throughout
            (`tracker.database.reading`) gives figures that belong together.
        since: Only jobs submitted (else registered) at this instant or later; aware.
        until: Only jobs submitted (else registered) before this instant; aware.
        cluster: Only of this one, or of these. One that has no job is no error.
        kind: Only of this one, or of these (``export``, ``removal``, ``unknown``).
        as_of: What could be known at this time (aware; `tracker.reports.as_of`); None: what is known now.
        zone: The legal time zone; it matters to no figure here.

    Raises:
        InvalidField: A time without offset, *since* not before *until*, *as_of* in the future, or a kind that is none.
        DatabaseUnavailable: The database did not answer.
    """
    filters = Filters(since, until, _several(cluster), tuple(map(_kind, _several(kind))))
    told_at = as_of or database.now(connection)
    cohorts = cohorts_of(connection, filters, shadows(connection, Filters(), as_of, zone, _REPORT_DURATIONS.name))
    rows = tuple(row_of(*key, cohorts[key]) for key in sorted(cohorts))
    everything = Cohort()
    while cohorts:
        everything.take(cohorts.popitem()[1])
    total = row_of(None, None, everything)
    about = About(told_at, version("tracker"), filters, total.jobs + total.withdrawn)
    return Durations(about, rows, total)


def _several(names: str | Collection[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _kind(name: str) -> Kind:
    try:
        return Kind(name)
    except ValueError:
        raise InvalidField("kind", f"{name[:80]!r} is none of {', '.join(Kind)}") from None


def _seconds() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Cohort:
    """The jobs of one row, as the curves need them: seconds, 8 bytes each, where a list would take 32.

    Attributes:
        states: How many jobs are in each state.
        done_min: The lower bounds of all that are done.
        done_max: The upper bounds, where there is one.
        unbounded: The lower bounds of those that are done and have no upper one.
        unended: How old each other job was when last seen not done.
        late: How long after its submission each was registered.
        unknown: How many have no declared submission.
    """

    states: Counter[str] = field(default_factory=Counter)
    done_min: array[float] = field(default_factory=_seconds)
    done_max: array[float] = field(default_factory=_seconds)
    unbounded: array[float] = field(default_factory=_seconds)
    unended: array[float] = field(default_factory=_seconds)
    late: array[float] = field(default_factory=_seconds)
    unknown: int = 0

    def register(self, late: float | None) -> None:
        """Count a job that was registered *late* seconds after its submission (None: unknown)."""
        if late is None:
            self.unknown += 1
        else:
            self.late.append(max(0.0, late))  # a clock can be ahead

    def curves(self) -> tuple[Curve, Curve]:
        """Return the curves at the lower and at the upper bounds."""
        unended = chain(self.unended, self.unbounded)
        return Curve(self.done_min, self.unended), Curve(self.done_max, unended)

    def take(self, other: Cohort) -> None:
        """Add the jobs of *other*."""
        self.states += other.states
        self.done_min += other.done_min
        self.done_max += other.done_max
        self.unbounded += other.unbounded
        self.unended += other.unended
        self.late += other.late
        self.unknown += other.unknown


def cohorts_of(connection: sa.Connection, filters: Filters, then: tuple[sa.CTE, ...]) -> dict[tuple[str, Kind], Cohort]:
    """Return the jobs by cluster and kind; *then*: as they were (`tracker.reports.as_of.shadows`)."""
    cohorts: defaultdict[tuple[str, str], Cohort] = defaultdict(Cohort)
    d, dialect = _REPORT_DURATIONS.c, connection.dialect.name
    late = seconds_between(d.submitted_at, d.registered_at, dialect)
    done = sa.select(d.cluster, d.kind, d.seconds_min, d.seconds_max, late).where(*filters.conditions(d))
    for cluster, kind, seconds_min, seconds_max, late_by in _stream(connection, done.add_cte(*then)):
        cohort = cohorts[cluster, kind]
        cohort.register(late_by)
        cohort.done_min.append(seconds_min)
        if seconds_max is None:
            cohort.unbounded.append(seconds_min)
        else:
            cohort.done_max.append(seconds_max)
    for cohort in cohorts.values():
        cohort.states[State.DONE] = len(cohort.done_min)
    j = JOBS.c
    began_at = sa.func.coalesce(j.submitted_at, j.registered_at)
    not_done_at = sa.case((j.status == Status.NOT_FOUND, j.status_after), else_=j.seen_at)
    others = (
        sa.select(j.cluster, sa.type_coerce(j.kind, sa.String()), sa.type_coerce(j.state, sa.String()))
        .add_columns(seconds_between(began_at, not_done_at, dialect))
        .add_columns(seconds_between(j.submitted_at, j.registered_at, dialect))
        .where(j.state != State.DONE, *filters.conditions(JOBS.c))
    )
    for cluster, kind, state, age, late_by in _stream(connection, others.add_cte(*then)):
        cohort = cohorts[cluster, kind]
        cohort.states[state] += 1
        cohort.register(late_by)
        if state != State.WITHDRAWN:
            cohort.unended.append(max(0.0, age or 0.0))
    return {(cluster, Kind(kind)): cohort for (cluster, kind), cohort in cohorts.items()}


def seconds_between(since: sa.ColumnElement[Any], until: sa.ColumnElement[Any], dialect: str) -> sa.ColumnElement[Any]:
    """Return the seconds from *since* to *until*, to the microsecond, computed by the database; NULL if either is."""
    if dialect != "sqlite":
        return sa.cast(sa.extract("epoch", until - since), sa.Double())

    def microseconds(at: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        whole: sa.ColumnElement[int] = sa.func.unixepoch(sa.func.substr(at, 1, 19), type_=sa.Integer())
        return whole * 1_000_000 + sa.cast(sa.func.substr(at, 21, 6), sa.Integer())

    return (microseconds(until) - microseconds(since)) / sa.literal(1e6)


def _stream(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[Sequence[Any]]:
    """Yield the rows of *query*; PostgreSQL's driver would otherwise fetch them all at once."""
    with connection.execute(query, execution_options={"yield_per": _BATCH}) as result:
        yield from result


def row_of(cluster: str | None, kind: Kind | None, cohort: Cohort, curves: tuple[Curve, Curve] | None = None) -> Row:
    """Return the figures of *cohort*, the jobs of one *cluster* and *kind* (None: of all); *curves*: its own."""
    lower, upper = (curve.quantiles(SHARES) for curve in curves or cohort.curves())
    median, p90, p95, longest = (Bounds(*sorted(pair, key=_or_infinity)) for pair in zip(lower, upper, strict=True))
    count = cohort.states
    return Row(
        cluster=cluster,
        kind=kind,
        jobs=count.total() - count[State.WITHDRAWN],
        done=count[State.DONE],
        open=count[State.OPEN],
        failed=count[State.FAILED],
        lost=count[State.LOST],
        attested=count[State.ATTESTED],
        withdrawn=count[State.WITHDRAWN],
        median=median,
        p90=p90,
        p95=p95,
        max=longest,
        registered=_lateness(cohort),
    )


def _lateness(cohort: Cohort) -> Lateness:
    ordered = sorted(cohort.late)
    median, p95, longest = (ordered[math.ceil(share * len(ordered)) - 1] if ordered else None for share in _RANKS)
    over_a_day = len(ordered) - bisect_right(ordered, LATE)
    return Lateness(len(ordered), median, p95, longest, over_a_day, cohort.unknown)


def _or_infinity(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
