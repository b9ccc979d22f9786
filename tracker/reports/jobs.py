"""Jobs one by one: the list of them, and the timeline of one.

Owns these queries. How they are shown is the reader's (``cli.look``); what the columns mean is the views'.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from tracker import database
from tracker.models import JOBS, TRANSITIONS, facts_of
from tracker.reports.tables import in_turn, typed, urgent
from tracker.status import UNSETTLED, Action, Facts, State

_DAY: Final = timedelta(days=1)


def jobs(
    connection: sa.Connection,
    wanted: Mapping[str, Collection[str]],
    *,
    past_deadline: bool = False,
    due_within: timedelta | None = None,
    limit: int | None = None,
) -> Generator[sa.Row[Any]]:
    """Yield rows of ``report_jobs``, the most urgent first, as they come from the database: any number fits.

    First the unsettled jobs (open, failed, lost), the nearest deadline first; then those that are
    settled, the last to end first. The row of ``jobs`` gives the order, by an index for each part; the view gives the
    figures.

    Args:
        connection: In any transaction; it must last until all are read.
        wanted: By column of the view, the values that are wanted; an empty collection wants all.
        past_deadline: Only those whose deadline is past and the verdict missed, overdue or undecidable.
        due_within: Only those that are not settled, and whose deadline is ahead by no more than this.
        limit: At most this many.
    """
    now, view = database.now(connection), typed(connection, "report_jobs")
    j, r = JOBS.c, view.c
    query = sa.select(*r).join_from(JOBS, view, sa.and_(r.cluster == j.cluster, r.jid == j.jid))
    for column, values in wanted.items():
        if values:
            query = query.where((r if column == "verdict" else j)[column].in_(values))
    if past_deadline:
        query = query.where(j.deadline_at <= now, r.verdict.in_(("missed", "overdue", "undecidable")))
    if due_within is not None:
        query = query.where(j.deadline_at > now, j.deadline_at <= now + due_within)
        # The same by day, for the index; a day of the legal time zone may be the one before or after.
        query = query.where(j.deadline_on.between((now - _DAY).date(), (now + due_within + _DAY).date()))
    settled = sa.and_(_in([state for state in State if state not in UNSETTLED]), j.ended_by.is_not(None))
    parts = urgent(_in(UNSETTLED), settled, (j.deadline_on, j.id), (j.ended_by.desc(), j.id.desc()))
    return in_turn(connection, query, parts if due_within is None else parts[:1], limit)


def _in(states: Collection[State]) -> sa.ColumnElement[bool]:
    """Return the condition in literals: SQLite finds a partial index by no bound value."""
    return JOBS.c.state.in_(sa.bindparam(None, list(states), expanding=True, literal_execute=True))


def columns(connection: sa.Connection) -> list[str]:
    """Return the columns of what `jobs` yields."""
    return typed(connection, "report_jobs").c.keys()


def timeline(connection: sa.Connection, cluster: str, jid: str) -> list[sa.Row[Any]]:
    """Return a job's rows of ``report_transitions``, oldest first."""
    view = typed(connection, "report_transitions")
    t = view.c
    return list(connection.execute(sa.select(*t).where(t.cluster == cluster, t.jid == jid).order_by(t.seq)))


def declared(connection: sa.Connection, job_id: int) -> dict[int, Facts]:
    """Return what was declared about a job with its registration and each amendment, by ``seq``, oldest first."""
    t = TRANSITIONS.c
    query = sa.select(TRANSITIONS).where(t.job_id == job_id, t.action.in_((Action.REGISTERED, Action.AMENDED)))
    return {row.seq: facts_of(row) for row in connection.execute(query.order_by(t.seq))}
