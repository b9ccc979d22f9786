"""How long jobs take from submission to ``done``: quantiles at both bounds, by cluster, kind, month or week.

Owns which jobs enter the two curves and where; the estimator is ``survival``'s, a done job's bounds are those of the
view ``report_durations``. How each job enters, in seconds since its submission (else its registration), never below 0:

- **done**: on the lower curve it ended at ``seconds_min``, on the upper one at ``seconds_max``.
- **done, its submission unknown**: on the lower curve it ended at ``seconds_min``, which counts from the registration.
  Nothing bounds it from above, so on the upper curve it took at least that long, as if it were open.
- **open**: on both curves it takes at least as long as until it was last seen not done: when the request of its last
  valid answer was sent. While Elevate says ``not_found`` it is the last sight before that. Never seen: 0.
- **failed, lost, attested**: as open ones; what an attesting operator claims is no observation. So where many fail, the
  quantiles are those of jobs that do not.
- **withdrawn**: left out of the curves, and counted separately.

So the pair of a quantile shows how uncertain the observed times are. It is not a confidence interval, and does not
predict later jobs. If an open job was last seen between the two bounds of a done one, the two curves may cross. Then
the pair is sorted, so that the lower bound is never above the upper one.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from itertools import chain
from typing import Any, Final

import sqlalchemy as sa

from tracker import database
from tracker.errors import InvalidField
from tracker.reports.about import About, Filters
from tracker.reports.as_of import LEGAL_ZONE, shadows
from tracker.reports.catalog import BY
from tracker.reports.survival import Curve
from tracker.reports.tables import in_turn, typed
from tracker.status import Kind, State, Status

SHARES: Final = (0.5, 0.9, 0.95, 1.0)
"""Of the median, p90, p95 and max."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """A quantile, exact to the microsecond.

    Attributes:
        seconds_min: That share took at least this long; None: too few are done to say (not reached).
        seconds_max: It took at most this long; None: not reached, though the lower bound may be.
    """

    seconds_min: float | None
    seconds_max: float | None


@dataclass(frozen=True, slots=True)
class Quantiles:
    """The jobs of one group, or all.

    Attributes:
        cluster: None: all; likewise kind, month (as ``2026-11``) and week (as ``2026-W48``).
        jobs: How many count: the sum of done, open, failed, lost and attested.
        withdrawn: Left out, and not among *jobs*.
        median: By this time half of the jobs are done; likewise p90, p95 and max (all).
    """

    cluster: str | None
    kind: Kind | None
    month: str | None
    week: str | None
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


@dataclass(frozen=True, slots=True)
class Durations:
    """The report.

    Attributes:
        about: When, with which filters and over how many jobs it was made.
        by: What the rows are grouped by.
        rows: One for each group that has a job, in the order of their names; empty if no jobs match.
        total: All of them.
    """

    about: About
    by: tuple[str, ...]
    rows: tuple[Quantiles, ...]
    total: Quantiles


def durations(
    connection: sa.Connection,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    cluster: str | Collection[str] = (),
    kind: str | Collection[str] = (),
    by: str | Collection[str] = ("cluster", "kind"),
    as_of: datetime | None = None,
) -> Durations:
    """Return how long jobs took to reach ``done``, with open jobs as "at least this old" (Kaplan–Meier).

    The jobs are streamed, and three numbers of each are kept.

    Args:
        connection: In a transaction; one of `tracker.database.reading` gives figures that belong together.
        since: Only jobs submitted (else registered) at this instant or later; aware.
        until: Only jobs submitted (else registered) before this instant; aware.
        cluster: Only of this one, or of these. One that has no job is no error.
        kind: Only of this one, or of these (``export``, ``removal``, ``unknown``).
        by: What to group by, of `BY`.
        as_of: What could be known at this time (aware; `tracker.reports.as_of`); None: what is known now.

    Raises:
        InvalidField: What was asked for cannot be.
        DatabaseUnavailable: The database did not answer.
    """
    clusters = (cluster,) if isinstance(cluster, str) else tuple(cluster)
    filters = Filters(since, until, clusters, tuple(map(Kind, _several("kind", kind, Kind))))
    names = tuple(dict.fromkeys(_several("by", by, BY)))
    made_at = as_of or database.now(connection)
    then = shadows(connection, Filters(), as_of, LEGAL_ZONE, "report_durations", "report_jobs")  # no deadline matters
    cohorts = cohorts_of(connection, filters, then, names)
    rows = tuple(row_of(cohorts[key], dict(zip(names, key, strict=True))) for key in sorted(cohorts))
    everything = Cohort()
    while cohorts:
        everything.take(cohorts.popitem()[1])
    total = row_of(everything, {})
    about = About(made_at, version("tracker"), filters, total.jobs + total.withdrawn)
    return Durations(about, names, rows, total)


def _several(field: str, names: str | Collection[str], known: Iterable[str]) -> tuple[str, ...]:
    found = (names,) if isinstance(names, str) else tuple(names)
    if unknown := [name for name in found if name not in set(known)]:
        raise InvalidField(field, f"{unknown[0][:80]!r} is not one of {', '.join(known)}")
    return found


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
    """

    states: Counter[str] = field(default_factory=Counter)
    done_min: array[float] = field(default_factory=_seconds)
    done_max: array[float] = field(default_factory=_seconds)
    unbounded: array[float] = field(default_factory=_seconds)
    unended: array[float] = field(default_factory=_seconds)

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


def cohorts_of(
    connection: sa.Connection, filters: Filters, then: tuple[sa.CTE, ...], by: Sequence[str] = ("cluster", "kind")
) -> dict[tuple[str, ...], Cohort]:
    """Return the jobs by the names in *by*; *then*: ``report_durations`` and ``report_jobs`` as they were."""
    cohorts: defaultdict[tuple[str, ...], Cohort] = defaultdict(Cohort)

    def rows(view: sa.TableClause, columns: str, *wanted: sa.ColumnElement[bool]) -> Iterator[Any]:
        """Yield each row's cohort, when the job began, and *columns*."""
        c = view.c
        query = sa.select(*(c[name] for name in f"cluster kind submitted_at registered_at {columns}".split()))
        query = query.where(*filters.conditions(c), *wanted).add_cte(*then)
        for row in in_turn(connection, query, [(sa.true(), ())]):
            cluster, kind, submitted_at, registered_at = tuple(row)[:4]
            began_at = submitted_at or registered_at
            cohort = cohorts[tuple(_group(name, cluster, kind, began_at) for name in by)]
            yield cohort, began_at, *row[4:]

    for cohort, _, least, most in rows(typed(connection, "report_durations"), "seconds_min seconds_max"):
        cohort.states[State.DONE] += 1
        cohort.done_min.append(least)
        if most is None:
            cohort.unbounded.append(least)
        else:
            cohort.done_max.append(most)
    view = typed(connection, "report_jobs")
    others = rows(view, "state status status_after seen_at", view.c.state != State.DONE)
    for cohort, began_at, state, status, status_after, seen_at in others:
        cohort.states[state] += 1
        if state != State.WITHDRAWN:
            not_done_at = status_after if status == Status.NOT_FOUND else seen_at
            cohort.unended.append(max(0.0, ((not_done_at or began_at) - began_at).total_seconds()))
    return dict(cohorts)


def _group(name: str, cluster: str, kind: str, began_at: datetime) -> str:
    match name:
        case "cluster":
            return cluster
        case "kind":
            return kind
        case "month":
            return f"{began_at:%Y-%m}"
        case _:
            return f"{began_at:%G-W%V}"


def row_of(cohort: Cohort, of: Mapping[str, str], curves: tuple[Curve, Curve] | None = None) -> Quantiles:
    """Return the figures of *cohort*, the jobs of one group, *of* what `BY` names; *curves*: its own, if known."""
    lower, upper = (curve.quantiles(SHARES) for curve in curves or cohort.curves())
    median, p90, p95, longest = (Bounds(*sorted(pair, key=_or_infinity)) for pair in zip(lower, upper, strict=True))
    count = cohort.states
    return Quantiles(
        cluster=of.get("cluster"),
        kind=Kind(of["kind"]) if "kind" in of else None,
        month=of.get("month"),
        week=of.get("week"),
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
    )


def _or_infinity(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
