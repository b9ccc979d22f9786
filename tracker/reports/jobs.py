"""Jobs one by one: the list of them, and the timeline of one with the gaps that explain its bounds.

Owns these queries. How they are shown is the reader's (``cli.look``); what the columns mean is the views'.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from tracker import database
from tracker.models import CLUSTERS, JOBS, TRANSITIONS, Gap, facts_of
from tracker.reports.tables import typed
from tracker.status import UNSETTLED, Action, Cause, Facts

_BATCH: Final = 10_000
"""Rows fetched at a time; ours: a few MB."""


def jobs(
    connection: sa.Connection,
    wanted: Mapping[str, Collection[str]],
    *,
    past_deadline: bool = False,
    limit: int | None = None,
) -> Generator[sa.Row[Any]]:
    """Yield rows of ``report_jobs``, the most urgent first, as they come from the database: any number fits.

    First those that somebody still waits for (open, failed, lost), the nearest deadline first; then those that are
    settled, the last to end first.

    Args:
        connection: In any transaction; it must last until all are read.
        wanted: By column of the view, the values that are wanted; an empty collection wants all.
        past_deadline: Only those whose deadline is past and the verdict missed, overdue or undecidable.
        limit: At most so many.
    """
    view = typed(connection, "report_jobs")
    j = view.c
    unsettled = j.state.in_(UNSETTLED)
    query = sa.select(*view.c).where(*(j[column].in_(values) for column, values in wanted.items() if values))
    if past_deadline:
        # A lost job is undecidable from the start: the view does not tell whether its deadline is past.
        past = sa.select(JOBS.c.id).where(
            JOBS.c.cluster == j.cluster, JOBS.c.jid == j.jid, JOBS.c.deadline_at <= database.now(connection)
        )
        query = query.where(j.verdict.in_(("missed", "overdue", "undecidable")), past.exists())
    query = query.order_by(
        sa.case((unsettled, 0), else_=1),
        sa.case((unsettled, j.deadline_on)).nulls_last(),
        j.ended_by.desc().nulls_last(),
        j.registered_at.desc(),
        j.cluster,
        j.jid,
    )
    with connection.execute(query.limit(limit), execution_options={"yield_per": _BATCH}) as rows:
        yield from rows


def declared(connection: sa.Connection, job_id: int) -> dict[int, Facts]:
    """Return what was declared about a job with its registration and each amendment, by ``seq``, oldest first."""
    t = TRANSITIONS.c
    query = sa.select(TRANSITIONS).where(t.job_id == job_id, t.action.in_((Action.REGISTERED, Action.AMENDED)))
    return {row.seq: facts_of(row) for row in connection.execute(query.order_by(t.seq))}


def timeline(connection: sa.Connection, cluster: str, jid: str) -> list[sa.Row[Any]]:
    """Return a job's rows of ``report_transitions``, oldest first."""
    view = typed(connection, "report_transitions")
    t = view.c
    query = sa.select(*view.c).where(t.cluster == cluster, t.jid == jid).order_by(t.seq)
    return list(connection.execute(query))


@dataclass(frozen=True, slots=True)
class AnyGap:
    """A stretch of time in which nothing could be observed of a cluster.

    Attributes:
        began_at: Of the whole gap, whatever part of it matters here.
        ended_at: None: it is open.
        cause: Why.
        detail: An operator's reason, or the code of an error.
    """

    began_at: datetime
    ended_at: datetime | None
    cause: Cause
    detail: str | None

    def within(self, after: datetime, by: datetime) -> timedelta:
        """Return how much of it lies between two instants."""
        end = by if self.ended_at is None else min(self.ended_at, by)
        return max(end - max(self.began_at, after), timedelta())


@dataclass(frozen=True, slots=True)
class Explained:
    """What gaps have to do with the bounds of a transition.

    Attributes:
        after: The lower bound.
        by: The upper one.
        unobserved: How much of it no request could have observed; gaps that overlap count once.
        gaps: Those that lie in it, oldest first.
    """

    after: datetime
    by: datetime
    unobserved: timedelta
    gaps: tuple[AnyGap, ...]


def gaps(connection: sa.Connection, cluster: str, since: datetime) -> list[AnyGap]:
    """Return the gaps of *cluster* that ended after *since*, oldest first, the open one last."""
    closed = (
        sa.select(Gap.began_at, Gap.ended_at, Gap.cause, Gap.detail)
        .where(Gap.cluster == cluster, Gap.ended_at > since)
        .order_by(Gap.began_at, Gap.id)
    )
    found = [AnyGap(*row) for row in connection.execute(closed)]
    c = CLUSTERS.c
    standing = sa.select(c.gap_began_at, c.gap_cause, c.gap_detail)
    standing = standing.where(c.cluster == cluster, c.gap_began_at.is_not(None))
    for began_at, cause, detail in connection.execute(standing):
        found.append(AnyGap(began_at, None, cause, detail))
    return found


def explain(change: sa.Row[Any], began_at: datetime, gaps: Iterable[AnyGap]) -> Explained | None:
    """Return which of *gaps* explain how wide the bounds of *change* are; None: none does.

    Args:
        change: A row of `timeline`. What an operator did has no bounds.
        began_at: The job's submission, else its registration: the lower bound where no status had been seen before.
        gaps: Of the job's cluster, oldest first.
    """
    if change.action != Action.OBSERVED:
        return None
    after, by = change.last_seen_at or began_at, change.observed_at
    within = [gap for gap in gaps if gap.within(after, by)]
    if not within:
        return None
    unobserved, reached = timedelta(), after
    for gap in within:
        unobserved += gap.within(reached, by)
        reached = max(reached, gap.ended_at or by)
    return Explained(after, by, unobserved, tuple(within))
