"""What no honest history says: the checks of ``checks/*.sql``, on the live tables.

Owns running them and naming what they find. Each is a SELECT that an auditor can read, and most are in ``checks.sql``,
too, which does the same on an evidence pack; only here are those that need the live `jobs`, and ``status.decide``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker.models import JOBS, TRANSITIONS
from tracker.reports import as_of, render
from tracker.status import Answer, Facts, Job, LostRule, Past, State, decide

CHECKS: Final = ("histories", "actions", "gaps", "seals", "times", "server_dates")
"""On sealed rows as on live ones."""
LIVE: Final = (*CHECKS, "jobs")
"""Also on the live `jobs`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a check found.

    Attributes:
        is_note: It may well be honest; a person should look.
        table: Of the row.
        row_id: Its id.
        cluster: Its cluster, if it is known.
        jid: The job's, if it is about one.
        seq: The transition's, if it is one.
        message: What is wrong, in a sentence.
    """

    is_note: bool
    table: str
    row_id: int | None
    cluster: str | None
    jid: str | None
    seq: int | None
    message: str


def findings(connection: sa.Connection, zone: ZoneInfo) -> Iterator[Problem]:
    """Yield what the checks find in the live tables, one check after the other.

    Args:
        connection: In a transaction of `database.reading`.
        zone: The setting's legal time zone: it counts where a cluster has no source.

    Raises:
        DatabaseUnavailable: The database did not answer.
    """
    dialect = connection.dialect.name
    replayed = as_of.replay(connection, zone)
    names = tuple(cte for cte in replayed if cte.name == "names")
    for name in LIVE:
        check = as_of.text(f"SELECT * FROM (\n{render.sql(f'audit/checks/{name}', dialect)}\n) found")
        for row in connection.execute(check.add_cte(*(replayed if name == "jobs" else names))):
            yield Problem(bool(row.is_note), row.name, row.id, row.cluster, row.jid, row.seq, row.message)
    yield from _anomalies(connection)


def _anomalies(connection: sa.Connection) -> Iterator[Problem]:
    """Yield each combination of statuses whose anomaly is not what `status.decide` says, with its first row."""
    combinations = as_of.text(render.sql("audit/checks/anomalies", connection.dialect.name))
    for row in connection.execute(combinations).all():
        right = _anomaly(row.from_status, row.to_status, row.to_state, is_found=bool(row.found_before))
        if row.anomaly == right:
            continue
        first = (
            sa.select(JOBS.c.cluster, JOBS.c.jid, TRANSITIONS.c.seq)
            .join_from(TRANSITIONS, JOBS, JOBS.c.id == TRANSITIONS.c.job_id, isouter=True)
            .where(TRANSITIONS.c.id == row.id)
        )
        cluster, jid, seq = connection.execute(first).one()
        others = f" (as in {row.rows - 1} more rows)" if row.rows > 1 else ""
        message = f"anomaly is {row.anomaly or 'empty'}, but should be {right or 'empty'}{others}"
        yield Problem(False, "transitions", row.id, cluster, jid, seq, message)


def _anomaly(from_status: str | None, to_status: str | None, to_state: str, *, is_found: bool) -> str | None:
    """Return the anomaly that `status.decide` gives an observed transition."""
    at = datetime(2000, 1, 1, tzinfo=UTC)
    seen_at = None if from_status is None else at
    job = Job(Facts(), at, "", status=from_status, status_by=seen_at, seen_at=seen_at)
    rule = LostRule(polls=0 if to_state == State.LOST else 1 << 62, duration=timedelta())
    made = decide(job, Answer(to_status or "", at, at), rule, Past(found_before=is_found)).transition
    return None if made is None else made.anomaly
