"""What could be known at an earlier time: tables as they were then, put before a query that reads the views.

Owns the common table expressions (CTEs) that stand in for the tables, under the same names, so that the very same
SELECTs of the views run on them, on both databases. They come from rows that never change: transitions, gaps, sources
and seals up to that time, and of jobs the columns that are fixed (id, cluster, jid, registered_at, registered_by). So a
report as of a time says the same for ever, whatever has been observed since.

**A job** is the replay (`status.replay`) of its transitions up to then, in SQL. Left out is what no row keeps:

- the sights since its last transition: ``seen_at`` is that transition's ``last_seen_at``, when the status before it was
  last seen, NULL if there was none. An open job counts as at least that old, and no older (it is censored there): the
  answer that made the transition was complete at ``observed_at``, but nobody recorded when it was asked for, and a
  bound must not say more than was observed. So a job past its deadline is ``overdue`` only if a transition shows it,
  else ``undecidable``;
- polls since then (``polls`` are the transition's, ``status_polls`` at most 1), failures, errors, leases and the next
  poll;
- the daemons (``workers``), pauses, and when a cluster last answered.

**A deadline** follows the facts of then. The columns in jobs are used where nothing can change them any more: the job
has been asked for, has a deadline, and was never amended. Of all others it is computed in Python, as SQL knows neither
time zone alike; so the legal time zone must be the same as then. An extension counts as recorded with the transition
from which on it stood.

**A gap** that began by then and ended later, or has not ended, was open. Its detail is NULL, since an operator may
have added to it later. One of cause ``not_running`` that had not ended is left out: a daemon that starts finds it, and
no row says when that was.

What is recorded after it happened comes late here, too: answers are written within a second, a bulk of registrations
when it commits, a gap when enough requests have failed. Let a few minutes pass before a report is to stay as it is.
Plain SQL that registers a job at a made-up earlier time is believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database
from tracker.deadline import deadline, extension_recorded_at
from tracker.errors import InvalidField
from tracker.models import JOBS, TRANSITIONS
from tracker.reports import views
from tracker.reports.about import Filters
from tracker.status import Action, Facts

LEGAL_ZONE: Final = ZoneInfo("Europe/Stockholm")
"""The default of the setting ``timezone``."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a checkpoint closed: the rows up to these ids, and no others, whenever they say that they came about.

    A gap that is open is in no checkpoint, and so in no report of what was sealed.
    """

    transition_id: int
    gap_id: int
    source_id: int


# In PostgreSQL a CTE sees the tables, but for the names of the CTEs before it; in SQLite it sees all CTEs, its own name
# included, so that a table's name needs its schema. Replay reads the tables, since a CTE has no index: so the deadlines
# are not joined, but sorted in among the transitions.
_TABLES: Final = """
clusters:
    WITH names AS (
        SELECT cluster FROM {schema}sources WHERE {sources}
        UNION SELECT cluster FROM {schema}gaps WHERE {begun}
        UNION SELECT cluster FROM {schema}clusters WHERE {opened}
        UNION SELECT cluster FROM {schema}jobs WHERE registered_at <= {t}
    ), open_gaps AS (
        SELECT cluster, began_at, cause FROM {schema}gaps WHERE {begun} AND NOT ({gaps})
        UNION ALL
        SELECT cluster, gap_began_at, gap_cause FROM {schema}clusters WHERE {opened}
    ), first_gaps AS (
        SELECT cluster, began_at, cause, row_number() OVER (PARTITION BY cluster ORDER BY began_at, cause) AS number
        FROM open_gaps
        WHERE cause <> 'not_running'
    )
    SELECT
        n.cluster, {instant} AS answered_at, {instant} AS paused_until, {text} AS pause_cause,
        g.began_at AS gap_began_at, g.cause AS gap_cause, {text} AS gap_detail, {instant} AS next_request_at
    FROM names n
    LEFT JOIN first_gaps g ON g.cluster = n.cluster AND g.number = 1
as_of_heads:
    SELECT
        job_id,
        max(seq) AS seq,
        max(seq) FILTER (WHERE action IN ('registered', 'amended')) AS facts_seq,
        max(seq) FILTER (
            WHERE action = 'observed' AND coalesce(to_status, '') <> coalesce(from_status, '')
        ) AS status_seq,
        max(seq) FILTER (WHERE action IN ('observed', 'reopened')) AS polled_seq,
        max(seq) FILTER (WHERE action <> 'amended') AS state_seq,
        max(deadline_on) AS deadline_on,
        max(deadline_at) AS deadline_at
    FROM (
        SELECT job_id, seq, action, from_status, to_status, {day} AS deadline_on, {instant} AS deadline_at
        FROM {schema}transitions
        WHERE {transitions}
        UNION ALL
        SELECT job_id, NULL, NULL, NULL, NULL, deadline_on, deadline_at FROM as_of_deadlines
        ORDER BY job_id
    ) known
    GROUP BY job_id
as_of_jobs:
    SELECT
        j.id, j.cluster, j.jid, f.kind, f.reference, f.received_at, f.submitted_at, f.extended_on,
        j.registered_at, j.registered_by,
        coalesce(h.deadline_on, j.deadline_on) AS deadline_on, coalesce(h.deadline_at, j.deadline_at) AS deadline_at,
        l.to_state AS state, l.to_status AS status, s.last_seen_at AS status_after, s.observed_at AS status_by,
        CASE WHEN p.action = 'observed' THEN 1 ELSE 0 END AS status_polls,
        l.last_seen_at AS seen_at,
        CASE
            WHEN e.to_state = 'open' OR e.action = 'attested' THEN NULL
            WHEN e.action = 'withdrawn' THEN e.observed_at
            ELSE e.last_seen_at
        END AS ended_after,
        CASE
            WHEN e.to_state = 'open' THEN NULL
            WHEN e.action = 'attested' THEN e.claimed_at
            ELSE e.observed_at
        END AS ended_by,
        l.seq, {instant} AS due_at, l.polls, 0 AS failures, {text} AS last_error,
        {text} AS leased_by, {instant} AS leased_until
    FROM as_of_heads h
    JOIN {schema}jobs j ON j.id = h.job_id
    JOIN {schema}transitions l ON l.job_id = h.job_id AND l.seq = h.seq
    JOIN {schema}transitions f ON f.job_id = h.job_id AND f.seq = h.facts_seq
    JOIN {schema}transitions e ON e.job_id = h.job_id AND e.seq = h.state_seq
    LEFT JOIN {schema}transitions s ON s.job_id = h.job_id AND s.seq = h.status_seq
    LEFT JOIN {schema}transitions p ON p.job_id = h.job_id AND p.seq = h.polled_seq
transitions:
    SELECT * FROM {schema}transitions WHERE {transitions}
gaps:
    SELECT * FROM {schema}gaps WHERE {gaps}
sources:
    SELECT * FROM {schema}sources WHERE {sources}
seals:
    SELECT * FROM {schema}seals WHERE sealed_at <= {t}
"""

# One parameter, however many there are.
_DEADLINES: Final = {
    "sqlite": (
        "SELECT json_extract(value, '$[0]') AS job_id, json_extract(value, '$[1]') AS deadline_on,"
        " json_extract(value, '$[2]') AS deadline_at FROM json_each(:deadlines)"
    ),
    "postgresql": (
        "SELECT CAST(value->>0 AS bigint) AS job_id, CAST(value->>1 AS date) AS deadline_on,"
        " CAST(value->>2 || '+00' AS timestamptz) AS deadline_at"
        " FROM json_array_elements(CAST(:deadlines AS json)) AS d(value)"
    ),
}


def shadows(
    connection: sa.Connection,
    filters: Filters,
    as_of: datetime | None = None,
    zone: ZoneInfo = LEGAL_ZONE,
    *names: str,
    sealed: Sealed | None = None,
    is_kept: bool = False,
) -> tuple[sa.CTE, ...]:
    """Return what to add to a query (``add_cte``), so that it sees only the jobs asked for, as they were then.

    Nothing at all, if that is all of them, now.

    Args:
        connection: In a transaction of `database.reading`.
        filters: Which jobs; of the other tables nothing is left out.
        as_of: The time (aware); None: now.
        zone: The legal time zone.
        names: The views that the query reads.
        sealed: Only what is in these bounds is known at *as_of*, the time of their checkpoint.
        is_kept: The jobs as they were then are in the table that `kept` made.

    Raises:
        InvalidField: *as_of* has no offset, or is in the future by the database's clock.
        DatabaseUnavailable: The database did not answer.
    """
    dialect = connection.dialect.name
    if as_of is None and filters == Filters():
        return ()
    found: list[sa.CTE] = []
    jobs: sa.FromClause = _jobs("jobs", "main" if dialect == "sqlite" else None)
    if as_of is not None:
        _check(connection, as_of)
        if is_kept:
            jobs = _KEPT
        else:
            found += _replay(connection, as_of, zone, sealed)
            jobs = _jobs("as_of_jobs")
        found += _tables(dialect, as_of, sealed, lambda name: not name.startswith("as_of_"))
    asked = sa.select(*jobs.c).where(*filters.conditions(jobs.c)).cte("jobs")
    # Replayed once; but only filtered it must not stand between a view and the indexes.
    found.append(asked.prefix_with("NOT MATERIALIZED" if as_of is None or is_kept else "MATERIALIZED"))
    return (*found, *(_cte(name, views.sql(name, dialect, as_of=as_of)) for name in _needed(names, dialect)))


def _jobs(name: str, schema: str | None = None) -> sa.TableClause:
    """Return what has the columns of jobs and another name, or stands in another schema."""
    return sa.table(name, *(sa.column(column.name, column.type) for column in JOBS.c), schema=schema)


_KEPT: Final = sa.Table(
    "as_of_kept",
    sa.MetaData(),
    *(sa.Column(column.name, column.type) for column in JOBS.c),
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)


@contextmanager
def kept(
    connection: sa.Connection, as_of: datetime | None, zone: ZoneInfo, sealed: Sealed | None = None
) -> Iterator[bool]:
    """Keep the jobs as they were at *as_of* in a temporary table meanwhile, and yield whether that could be done.

    A page asks for them a dozen times, and each query of `shadows` replays all histories otherwise. It cannot be done
    where nothing may be made at all, as for an auditor on PostgreSQL; nothing is kept of the time that it is now.
    """
    may = as_of is not None
    if may and connection.dialect.name == "postgresql":
        may = connection.exec_driver_sql(
            "SELECT has_database_privilege(current_database(), 'TEMPORARY')"
            " AND current_setting('transaction_read_only') = 'off'"
        ).scalar_one()
    if as_of is None or not may:
        yield False
        return
    _check(connection, as_of)
    _KEPT.create(connection)
    replayed = sa.select(_jobs("as_of_jobs")).add_cte(*_replay(connection, as_of, zone, sealed))
    connection.execute(sa.insert(_KEPT).from_select(_KEPT.c.keys(), replayed))
    connection.exec_driver_sql(f"ANALYZE {_KEPT.name}")
    yield True
    _KEPT.drop(connection)  # after an error the transaction takes it back


def _replay(connection: sa.Connection, as_of: datetime, zone: ZoneInfo, sealed: Sealed | None) -> list[sa.CTE]:
    """Return ``as_of_jobs``, the rows of jobs as they were then, with what it reads."""
    dialect = connection.dialect.name
    given = json.dumps(list(_deadlines(connection, as_of, zone, sealed)))
    deadlines = sa.text(_DEADLINES[dialect]).bindparams(deadlines=given).columns().cte("as_of_deadlines")
    # Materialized, or else SQLite parses it again for each job.
    return [
        deadlines.prefix_with("MATERIALIZED"),
        *_tables(dialect, as_of, sealed, lambda name: name.startswith("as_of_")),
    ]


def _tables(dialect: str, as_of: datetime, sealed: Sealed | None, wanted: Callable[[str], bool]) -> Iterator[sa.CTE]:
    """Yield the CTEs of _TABLES whose names are *wanted*."""
    t = _literal(as_of, dialect)
    values = {"t": t, **_known(t, sealed)} | {
        "schema": "main." if dialect == "sqlite" else "",
        "instant": "NULL" if dialect == "sqlite" else "CAST(NULL AS timestamptz)",
        "day": "NULL" if dialect == "sqlite" else "CAST(NULL AS date)",
        "text": "NULL" if dialect == "sqlite" else "CAST(NULL AS varchar)",
    }
    for name, sql in re.findall(r"^(\w+):\n((?: .*\n)+)", _TABLES, re.MULTILINE):
        if wanted(name):
            cte = _cte(name, sql.format(**values))
            yield cte if name.startswith("as_of_") else cte.prefix_with("NOT MATERIALIZED")


def _check(connection: sa.Connection, as_of: datetime) -> None:
    if as_of.tzinfo is None:
        raise InvalidField("as_of", f"{as_of} has no offset, so nobody knows which instant it is")
    now = database.now(connection)
    if as_of > now:
        raise InvalidField("as_of", f"{as_of} is in the future; the database's time is {now.isoformat(' ', 'seconds')}")


def _known(t: str, sealed: Sealed | None) -> dict[str, str]:
    """Return, by table, which rows were known at *t*; of gaps also which had begun, those still open included."""
    if sealed is None:
        return {
            "transitions": f"observed_at <= {t}",
            "gaps": f"ended_at <= {t}",
            "begun": f"began_at <= {t}",
            "opened": f"gap_began_at <= {t}",
            "sources": f"recorded_at <= {t}",
        }
    return {
        "transitions": f"id <= {sealed.transition_id}",
        "gaps": f"id <= {sealed.gap_id}",
        "begun": f"id <= {sealed.gap_id}",
        "opened": "1 = 0",
        "sources": f"id <= {sealed.source_id}",
    }


def _literal(at: datetime, dialect: str) -> str:
    text = f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"
    return f"'{text}'" if dialect == "sqlite" else f"CAST('{text}+00' AS timestamptz)"


def _cte(name: str, sql: str) -> sa.CTE:
    # What looks like a parameter (`:word`) is none: it is in a text.
    return sa.text(re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", sql)).columns().cte(name)


def _needed(names: tuple[str, ...], dialect: str) -> list[str]:
    """Return *names* and the views that these read, each after those that it reads."""
    needed = set(names)
    for name in reversed(views.VIEWS):
        if name in needed:
            needed.update(re.findall(r"\breport_\w+", views.sql(name, dialect)))
    return [name for name in views.VIEWS if name in needed]


def _deadlines(
    connection: sa.Connection, as_of: datetime, zone: ZoneInfo, sealed: Sealed | None
) -> Iterator[tuple[int, str, str]]:
    """Yield id, deadline_on and deadline_at, as text, of the jobs whose columns may change or have changed."""
    t, j = TRANSITIONS.c, JOBS.c
    amended = sa.select(t.job_id).where(t.action == Action.AMENDED)
    moving = sa.select(j.id).where((j.polls == 0) | j.deadline_at.is_(None) | j.id.in_(amended))
    facts = (
        sa.select(t.job_id, t.observed_at, *(t[name] for name in Facts.__dataclass_fields__), j.registered_at)
        .join_from(TRANSITIONS, JOBS, j.id == t.job_id)
        .where(t.job_id.in_(moving))
        .where(t.action.in_((Action.REGISTERED, Action.AMENDED)))
        .where(t.observed_at <= as_of if sealed is None else t.id <= sealed.transition_id)
        .order_by(t.job_id, t.seq)
    )
    for job_id, its in groupby(connection.execute(facts), key=lambda row: row.job_id):
        rows = list(its)
        last = rows[-1]
        try:
            due = deadline(
                last.received_at,
                last.submitted_at,
                last.registered_at,
                zone,
                extended_on=last.extended_on,
                extension_recorded_at=extension_recorded_at((row.observed_at, row.extended_on) for row in rows),
            )
        except ValueError:  # outside the calendar: the poller finds none either
            continue
        yield job_id, due.on.isoformat(), f"{due.at:%Y-%m-%d %H:%M:%S.%f}"
