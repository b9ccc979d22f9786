"""What could be known at an earlier time: tables as they were then, put before a query that reads the views.

Owns the common table expressions (CTEs) that stand in for the tables, under the same names, so that the very same
SELECTs of the views run on them, on both databases. Each is a file in ``replay/``. They come from rows that never
change: transitions, gaps, sources and seals up to that time or checkpoint, and of jobs only id, cluster and jid. So a
report as of a time stays the same, whatever has been observed since.

**A job** is the replay of its transitions up to then (``replay/jobs.sql``). What no row keeps is left out:

- valid answers since its last transition: ``seen_at`` is that transition's ``last_seen_at``, when the status before it
  was last seen, NULL if there was none. An open job counts as at least that old, and no older (it is censored there):
  the answer that made the transition was complete at ``observed_at``, but nobody recorded when it was asked for, and a
  bound must not say more than was observed. So a job past its deadline is ``overdue`` only if a transition shows it,
  else ``undecidable``;
- polls since then (``polls`` are the transition's, ``status_polls`` at most 1), failures, errors, leases and the next
  poll;
- the daemons (``workers``), pauses, and when a cluster last answered.

**A deadline** follows the facts of then, in the legal time zone on record then. An extension counts as recorded with
the transition from which on it stood.

**A gap** that began by then and ended later, or has not ended, was open (``replay/clusters.sql``).

What is recorded after it happened comes late here, too: answers are written within a second, a bulk of registrations
when it commits, a gap when enough requests have failed. Let a few minutes pass before a report is to stay as it is.
Plain SQL that registers a job at a made-up earlier time is believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database
from tracker.errors import InvalidField
from tracker.models import JOBS, UtcDateTime
from tracker.reports import render, views
from tracker.reports.about import Filters
from tracker.reports.render import Mode
from tracker.reports.zone import ZoneDay, as_parameter, zone_days

LEGAL_ZONE: Final = ZoneInfo("Europe/Stockholm")
"""The default of the setting ``timezone``."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a checkpoint and those before it closed: the rows up to these ids, whenever they say that they came about.

    A gap that is open is in no checkpoint, and so in no report of what was sealed.

    Attributes:
        number: The checkpoint's.
        at: When it was made (aware): what is *now* in reports as of it.
        transition_id: The last one; likewise the others.
    """

    number: int
    at: datetime
    transition_id: int
    gap_id: int
    source_id: int


AsOf = datetime | Sealed | None
"""A time (aware), a checkpoint, or now."""


def instant(as_of: AsOf) -> datetime | None:
    """Return the time of *as_of*; None: now."""
    return as_of.at if isinstance(as_of, Sealed) else as_of


def shadows(
    connection: sa.Connection,
    filters: Filters,
    as_of: AsOf = None,
    zone: ZoneInfo = LEGAL_ZONE,
    *names: str,
    is_kept: bool = False,
) -> tuple[sa.CTE, ...]:
    """Return what to add to a query (``add_cte``), so that it sees only the jobs asked for, as they were then.

    Nothing at all, if that is all of them, now.

    Args:
        connection: In a transaction of `database.reading`.
        filters: Which jobs; of the other tables nothing is left out.
        as_of: The time, or the checkpoint; None: now.
        zone: The legal time zone of clusters that have no source.
        names: The views that the query reads.
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
        found += _known(dialect, as_of, "clusters", *_ROWS)
        if is_kept:
            jobs = _KEPT
            found.append(sa.select(_KEPT_SEALS).cte("seals").prefix_with("NOT MATERIALIZED"))
        else:
            found += (_relation("seals", dialect, _mode(as_of)), *_replay(connection, as_of, zone))
            jobs = _jobs("replayed")
    asked = sa.select(*jobs.c).where(*filters.conditions(jobs.c)).cte("jobs")
    # Replayed once; but only filtered it must not stand between a view and the indexes.
    found.append(asked.prefix_with("NOT MATERIALIZED" if as_of is None or is_kept else "MATERIALIZED"))
    mode = _mode(as_of)
    return (*found, *(text(views.sql(name, dialect, mode)).cte(name) for name in _needed(names, dialect)))


@contextmanager
def kept(connection: sa.Connection, as_of: AsOf, zone: ZoneInfo = LEGAL_ZONE) -> Iterator[bool]:
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
    dialect = connection.dialect.name
    transitions = render.sql("reports/replay/transitions", dialect, _mode(as_of))
    known = _known(dialect, as_of, "gaps", "sources"), _replay(connection, as_of, zone)
    last = connection.execute(sa.select(sa.func.max(JOBS.c.id))).scalar_one() or 0
    for after in range(0, last, _KEPT_AT_ONCE):
        some = text(f"{transitions} AND t.job_id > {after} AND t.job_id <= {after + _KEPT_AT_ONCE}").cte("transitions")
        replayed = sa.select(_jobs("replayed")).add_cte(*known[0], some, *known[1])
        connection.execute(sa.insert(_KEPT).from_select(_KEPT.c.keys(), replayed))
    connection.exec_driver_sql(f"ANALYZE {_KEPT.name}")
    _KEPT_SEALS.create(connection)
    names = _KEPT_SEALS.c.keys()
    columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in names]
    seals = sa.select(*columns).select_from(sa.table("seals")).add_cte(*_known(dialect, as_of, "seals"))
    connection.execute(sa.insert(_KEPT_SEALS).from_select(names, seals))
    yield True
    for table in (_KEPT, _KEPT_SEALS):
        table.drop(connection)  # after an error the transaction takes it back


def replay(connection: sa.Connection, zone: ZoneInfo) -> tuple[sa.CTE, ...]:
    """Return ``replayed``, what `jobs` should be by all transitions there are now, with what it reads."""
    return tuple(_replay(connection, None, zone))


def legal_days(connection: sa.Connection, as_of: AsOf, zone: ZoneInfo) -> list[ZoneDay]:
    """Return the rows of ``zone`` that the deadlines known at *as_of* need.

    Args:
        connection: In a transaction of `database.reading`.
        as_of: The time, or the checkpoint; None: now.
        zone: The legal time zone of clusters that have no source.
    """
    dialect, mode = connection.dialect.name, _mode(as_of)
    known = () if as_of is None else _known(dialect, as_of, "transitions", "sources")
    names = _relation("names", dialect, mode)
    days, zones = (text(render.sql(f"reports/replay/{name}", dialect, mode)) for name in ("days", "zones"))
    return zone_days(connection, zone, days.add_cte(*known), zones.add_cte(*known, names))


_ROWS: Final = ("transitions", "gaps", "sources")


def _mode(as_of: AsOf) -> Mode:
    if as_of is None:
        return Mode.NOW
    return Mode.CHECKPOINT if isinstance(as_of, Sealed) else Mode.TIME


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


_KEPT_SEALS: Final = sa.Table(
    "as_of_kept_seals",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger),  # of a checkpoint its number, which is in a text that may be long
    sa.Column("last_transition_id", sa.BigInteger, index=True),
    sa.Column("last_gap_id", sa.BigInteger),
    sa.Column("last_source_id", sa.BigInteger),
    sa.Column("sealed_at", UtcDateTime),
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)


_KEPT_AT_ONCE: Final = 50_000
"""Jobs that are replayed together: SQLite keeps what it needs meanwhile in memory, some ten MB."""


def _replay(connection: sa.Connection, as_of: AsOf, zone: ZoneInfo) -> list[sa.CTE]:
    """Return ``replayed``, the rows of jobs as they were then; the rows known then come before it."""
    dialect, mode = connection.dialect.name, _mode(as_of)
    given = as_parameter(legal_days(connection, as_of, zone))
    days = text(render.sql("reports/replay/zone", dialect, mode)).bindparams(zone=given).cte("zone")
    return [
        days.prefix_with("MATERIALIZED"),  # or else SQLite parses it again for each job
        _relation("names", dialect, mode),
        _relation("jobs", dialect, mode, name="replayed"),
    ]


def _known(dialect: str, as_of: datetime | Sealed, *names: str) -> list[sa.CTE]:
    """Return ``clock``, and the relations *names*: the rows of each table that were known then."""
    at = f"'{(as_of.at if isinstance(as_of, Sealed) else as_of).astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}'"
    if dialect != "sqlite":
        at = f"CAST({at} AS timestamp) AT TIME ZONE 'UTC'"
    clock = f"SELECT {at} AS at"
    if isinstance(as_of, Sealed):
        ids = ("number", "transition_id", "gap_id", "source_id")
        clock += "".join(f", {int(getattr(as_of, name))} AS {name}" for name in ids)
    return [text(clock).cte("clock"), *(_relation(name, dialect, _mode(as_of)) for name in names)]


def _relation(file: str, dialect: str, mode: Mode, name: str | None = None) -> sa.CTE:
    cte = text(render.sql(f"reports/replay/{file}", dialect, mode)).cte(name or file)
    return cte if name else cte.prefix_with("NOT MATERIALIZED")  # it must not stand between a query and the indexes


def text(sql: str) -> sa.TextualSelect:
    # What looks like a parameter (`:word`) is none: it is in a text; only :zone is.
    return sa.text(re.sub(r"(?<![:\w\\]):(?!zone\b)(?=\w)", r"\\:", sql)).columns()


def _check(connection: sa.Connection, as_of: datetime | Sealed) -> None:
    if isinstance(as_of, Sealed):
        return
    if as_of.tzinfo is None:
        raise InvalidField("as_of", f"{as_of} has no offset, so nobody knows which instant it is")
    now = database.now(connection)
    if as_of > now:
        raise InvalidField("as_of", f"{as_of} is in the future; the database's time is {now.isoformat(' ', 'seconds')}")


def _needed(names: tuple[str, ...], dialect: str) -> list[str]:
    """Return *names* and the views that these read, each after those that it reads."""
    needed = set(names)
    for name in reversed(views.VIEWS):
        if name in needed:
            needed.update(re.findall(r"\breport_\w+", views.sql(name, dialect)))
    return [name for name in views.VIEWS if name in needed]
