"""What was known at an earlier time: the tables as they were then, put before a query that reads the views.

Owns the common table expressions (CTEs) that replace the tables under the same names, so that the SELECTs of the views
run on them unchanged, on both databases. Each is a file in ``replay/``. They use rows that never change: transitions,
gaps, sources and seals up to that time or checkpoint, and of jobs only id, cluster and jid. So a report as of a time
stays the same, whatever is observed later.

- **A job** is the replay of its transitions up to that time. Polls after its last transition are not in any row, so
  ``seen_at`` is when the status before that transition was last seen (NULL if there was none): an open job counts as at
  least that old, and one past its deadline is ``overdue`` only if a transition shows it, else ``undecidable``. Working
  columns, daemons, pauses, and when a cluster last answered are missing.
- **A deadline** uses the facts and the legal time zone that were recorded at that time. An extension counts as recorded
  with the transition that first has it.
- **A gap** was open if it began by that time and ended later, or has not ended.

Rows that are recorded late appear late here, too: answers are written within a second, many registrations when they
commit, a gap when enough requests have failed. Wait a few minutes before you expect a report to stay the same. A
registration by plain SQL with an invented earlier time is believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database
from tracker.errors import InvalidField
from tracker.models import JOBS
from tracker.reports import render, views
from tracker.reports.about import Filters
from tracker.reports.render import Mode
from tracker.reports.zone import ZoneDay, as_parameter, zone_days

LEGAL_ZONE: Final = ZoneInfo("Europe/Stockholm")
"""The default of the setting ``timezone``."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a checkpoint and those before it close: the rows up to these ids, whatever their times are.

    An open gap is in no checkpoint, so it is in no report as of a checkpoint.

    Attributes:
        number: Of the checkpoint.
        at: Its time (aware): *now* in reports as of it.
        transition_id: The last id; the others are those of gaps and sources.
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
    """Return the CTEs with which a query (``add_cte``) sees only the jobs of *filters*, as they were at *as_of*.

    There are none for all jobs, now.

    Args:
        connection: In a transaction of `database.reading`.
        filters: Which jobs; all rows of the other tables are kept.
        as_of: The time, or the checkpoint; None: now.
        zone: The legal time zone of clusters that have no source.
        names: The views that the query reads.
        is_kept: The jobs as they were then are in the table of `kept`.

    Raises:
        InvalidField: *as_of* has no offset, or is in the future by the database's clock.
        DatabaseUnavailable: The database did not answer.
    """
    dialect = connection.dialect.name
    if as_of is None and filters == Filters():
        return ()
    needed = _needed(names, dialect)
    found: list[sa.CTE] = []
    jobs: sa.FromClause = _jobs("jobs", "main" if dialect == "sqlite" else None)
    if as_of is not None:
        _check(connection, as_of)
        read = ["clock", "clusters", "transitions", "gaps", "sources", "seals"]
        if not is_kept:
            read += ["zone", "names", "replayed"]
        elif "report_deadlines" in needed:
            read.append("zone")
        found += _relations(connection, as_of, zone, *read)
        jobs = _KEPT if is_kept else _jobs("replayed")
    asked = sa.select(*jobs.c).where(*filters.conditions(jobs.c)).cte("jobs")
    # A replay must run only once; a mere filter must not hide the indexes from a view.
    found.append(asked.prefix_with("NOT MATERIALIZED" if as_of is None or is_kept else "MATERIALIZED"))
    return (*found, *(text(views.sql(name, dialect, _mode(as_of))).cte(name) for name in needed))


@contextmanager
def kept(connection: sa.Connection, as_of: AsOf, zone: ZoneInfo = LEGAL_ZONE) -> Iterator[bool]:
    """Keep the jobs as they were at *as_of* in a temporary table during the block, and yield whether they are there.

    Otherwise each query of `shadows` replays all histories. Not for now, nor without the right to make such a table.
    """
    dialect = connection.dialect.name
    if as_of is None or (dialect == "postgresql" and not connection.exec_driver_sql(_MAY_KEEP).scalar_one()):
        yield False
        return
    _check(connection, as_of)
    _KEPT.create(connection)
    transitions = render.sql("reports/replay/transitions", dialect, _mode(as_of))
    known = _relations(connection, as_of, zone, "clock", "gaps", "sources", "zone")
    replayed = _relations(connection, as_of, zone, "names", "replayed")
    last = connection.execute(sa.select(sa.func.max(JOBS.c.id))).scalar_one() or 0
    for after in range(0, last, _KEPT_AT_ONCE):
        some = text(f"{transitions} AND t.job_id > {after} AND t.job_id <= {after + _KEPT_AT_ONCE}").cte("transitions")
        query = sa.select(_jobs("replayed")).add_cte(*known, some, *replayed)
        connection.execute(sa.insert(_KEPT).from_select(_KEPT.c.keys(), query))
    connection.exec_driver_sql(f"ANALYZE {_KEPT.name}")
    yield True
    _KEPT.drop(connection)  # after an error the rollback removes it


def replay(connection: sa.Connection, zone: ZoneInfo) -> tuple[sa.CTE, ...]:
    """Return ``replayed``, what `jobs` should be by all transitions, with the CTEs that it reads."""
    return _relations(connection, None, zone, "zone", "names", "replayed")


def legal_days(connection: sa.Connection, as_of: AsOf, zone: ZoneInfo) -> list[ZoneDay]:
    """Return the rows of ``zone`` for the deadlines known at *as_of*.

    Args:
        connection: In a transaction of `database.reading`.
        as_of: The time, or the checkpoint; None: now.
        zone: The legal time zone of clusters that have no source.
    """
    dialect, mode = connection.dialect.name, _mode(as_of)
    known = () if as_of is None else _relations(connection, as_of, zone, "clock", "transitions", "sources")
    days, zones = (text(render.sql(f"reports/replay/{name}", dialect, mode)) for name in ("days", "zones"))
    named = _relations(connection, as_of, zone, "names")
    names = connection.execute(zones.add_cte(*known, *named)).scalars().all()
    return zone_days(names, zone, connection.execute(days.add_cte(*known)), instant(as_of))


def _mode(as_of: AsOf) -> Mode:
    if as_of is None:
        return Mode.NOW
    return Mode.CHECKPOINT if isinstance(as_of, Sealed) else Mode.TIME


def _jobs(name: str, schema: str | None = None) -> sa.TableClause:
    """Return a relation with the columns of jobs under another name, or in another schema."""
    return sa.table(name, *(sa.column(column.name, column.type) for column in JOBS.c), schema=schema)


_KEPT: Final = sa.Table(
    "as_of_kept",
    sa.MetaData(),
    *(sa.Column(column.name, column.type) for column in JOBS.c),
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)

_KEPT_AT_ONCE: Final = 50_000
"""Jobs that are replayed together: SQLite needs some ten MB for them."""

_MAY_KEEP: Final = (
    "SELECT has_database_privilege(current_database(), 'TEMPORARY')"
    " AND current_setting('transaction_read_only') = 'off'"
)


def _relations(connection: sa.Connection, as_of: AsOf, zone: ZoneInfo, *names: str) -> tuple[sa.CTE, ...]:
    """Return the relations *names*; each reads only those before it, and ``clock`` has the time that all go by."""

    def relation(name: str) -> sa.CTE:
        if name == "clock" and as_of is not None:
            return text(_clock(connection.dialect.name, as_of)).cte(name)
        file = "jobs" if name == "replayed" else name
        query = text(render.sql(f"reports/replay/{file}", connection.dialect.name, _mode(as_of)))
        if name == "zone":  # kept, since SQLite would parse it again for each job
            given = as_parameter(legal_days(connection, as_of, zone))
            return query.bindparams(zone=given).cte(name).prefix_with("MATERIALIZED")
        # A table's rows must not hide the indexes from a query.
        return query.cte(name) if name == "replayed" else query.cte(name).prefix_with("NOT MATERIALIZED")

    return tuple(map(relation, names))


def _clock(dialect: str, as_of: datetime | Sealed) -> str:
    """Return the query for the time of *as_of*, and for the ids that a checkpoint closes."""
    at = f"'{(as_of.at if isinstance(as_of, Sealed) else as_of).astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}'"
    if dialect != "sqlite":
        at = f"CAST({at} AS timestamp) AT TIME ZONE 'UTC'"
    ids = ("transition_id", "gap_id", "source_id") if isinstance(as_of, Sealed) else ()
    return f"SELECT {at} AS at" + "".join(f", {int(getattr(as_of, name))} AS {name}" for name in ids)


def text(sql: str) -> sa.TextualSelect:
    """Return *sql* as a query; `:zone` in it is a parameter."""
    return sa.text(sql).columns()


def _check(connection: sa.Connection, as_of: datetime | Sealed) -> None:
    if isinstance(as_of, Sealed):
        return
    if as_of.tzinfo is None:
        raise InvalidField("as_of", f"{as_of} has no offset, so the instant is unclear: add one, such as +01:00")
    now = database.now(connection)
    if as_of > now:
        raise InvalidField("as_of", f"{as_of} is in the future; the database's time is {now.isoformat(' ', 'seconds')}")


def _needed(names: tuple[str, ...], dialect: str) -> list[str]:
    """Return *names* and the views that they read, each after those that it reads."""
    needed = set(names)
    for name in reversed(views.VIEWS):
        if name in needed:
            needed.update(re.findall(r"\breport_\w+", views.sql(name, dialect)))
    return [name for name in views.VIEWS if name in needed]
