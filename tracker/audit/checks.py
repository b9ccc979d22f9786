"""Impossible histories: the checks of ``checks/*.sql``, on the live tables.

Owns running them and naming what they find. Each is a SELECT that an auditor can read. Most are in ``checks.sql``, too,
which runs them on an evidence pack. Only here are those that need the live `jobs` or ``status.decide``.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker.audit.findings import AuditFinding, FindingKind, printable
from tracker.models import JOBS, TRANSITIONS
from tracker.reports import as_of, render
from tracker.status import Answer, Facts, Job, LostRule, Past, State, decide

CHECKS: Final = ("histories", "actions", "gaps", "seals", "times", "server_dates")
"""For a pack and for the live tables, which also have the check ``jobs``."""


def findings(connection: sa.Connection, zone: ZoneInfo) -> Iterator[AuditFinding]:
    """Yield what the checks find in the live tables, check by check.

    Args:
        connection: In a transaction of `database.reading`.
        zone: The legal time zone of the settings: for a cluster without a source.
    """
    dialect = connection.dialect.name
    replayed = as_of.replay(connection, zone)
    names = tuple(cte for cte in replayed if cte.name == "names")
    for name in (*CHECKS, "jobs"):
        check = as_of.text(f"SELECT * FROM (\n{render.sql(f'audit/checks/{name}', dialect)}\n) found")
        yield from map(_finding, connection.execute(check.add_cte(*(replayed if name == "jobs" else names))))
    yield from _anomalies(connection)


def _finding(row: Any) -> AuditFinding:
    """Return what a row of a check says: is_note, name (of the table), id, cluster, jid, seq, message."""
    what = {"jobs": FindingKind.JOB, "seals": FindingKind.CHECKPOINT}.get(row.name, FindingKind.HISTORY)
    where = f"row {row.id} of {row.name}"
    if row.jid is not None:
        transition = "" if what is FindingKind.JOB else f", transition {row.seq}"
        where = f"job {row.jid} of cluster {row.cluster}{transition}"
    cluster, jid = (None if name is None else printable(name) for name in (row.cluster, row.jid))
    seq = row.seq if isinstance(row.seq, int) else None  # SQLite holds any type in any column
    message = printable(f"{where}: {row.message}")
    return AuditFinding(what, message, cluster=cluster, jid=jid, seq=seq, is_note=bool(row.is_note))


def _anomalies(connection: sa.Connection) -> Iterator[AuditFinding]:
    """Yield each combination of statuses whose anomaly is not what `status.decide` says, with its first row."""
    combinations = as_of.text(render.sql("audit/checks/anomalies", connection.dialect.name))
    for row in connection.execute(combinations).all():
        right = _anomaly(row.from_status, row.to_status, row.to_state, is_found=bool(row.found_before))
        if row.anomaly == right:
            continue
        others = f" (as in {row.rows - 1} more rows)" if row.rows > 1 else ""
        message = f"anomaly is {row.anomaly or 'empty'}, but should be {right or 'empty'}{others}"
        columns = (
            TRANSITIONS.c.id,
            JOBS.c.cluster,
            JOBS.c.jid,
            TRANSITIONS.c.seq,
            sa.literal(message).label("message"),
        )
        first = sa.select(sa.literal("transitions").label("name"), sa.false().label("is_note"), *columns)
        first = first.outerjoin_from(TRANSITIONS, JOBS, JOBS.c.id == TRANSITIONS.c.job_id)
        yield _finding(connection.execute(first.where(TRANSITIONS.c.id == row.id)).one())


def _anomaly(from_status: str | None, to_status: str | None, to_state: str, *, is_found: bool) -> str | None:
    """Return the anomaly that `status.decide` gives an observed transition."""
    at = datetime(2000, 1, 1, tzinfo=UTC)
    seen_at = None if from_status is None else at
    job = Job(Facts(), at, "", status=from_status, status_by=seen_at, seen_at=seen_at)
    rule = LostRule(polls=0 if to_state == State.LOST else 1 << 62, duration=timedelta())
    made = decide(job, Answer(to_status or "", at, at), rule, Past(found_before=is_found)).transition
    return None if made is None else made.anomaly
