"""The reports that are tables: the rows of a view, of the jobs that were asked for, now or as of an earlier time.

Owns which reports there are, the types and the order of their rows, and how filters reach the views: a view is read as
if there were no other jobs than those asked for, so that its counts and verdicts are theirs. What a column means is the
views'. ``durations`` here is a row for each done job; its quantiles are `durations.durations`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database
from tracker.errors import InvalidField
from tracker.models import JOBS, UtcDateTime
from tracker.reports.about import About, Filters
from tracker.reports.as_of import LEGAL_ZONE, shadows
from tracker.status import UNSETTLED

_ORDERS: Final = {
    "durations": "done_by cluster jid",
    "statuses": "cluster jid entered_by status",
    "monthly": "cluster kind month",
    "deadlines": "deadline_at cluster jid",
    "requests": "deadline_on reference",
    "anomalies": "id",
    "gaps": "began_at cluster ended_at",
    "coverage": "covered_share cluster jid",
}
"""By report: what its rows are sorted by, to the last tie, so that the same data come out as the same bytes."""

NAMES: Final = tuple(_ORDERS)
"""The reports there are."""

_BATCH: Final = 10_000
"""Rows fetched at a time; ours: a few MB."""


@dataclass(frozen=True, slots=True)
class Table:
    """A report.

    Attributes:
        about: When, with which filters and over how many jobs it was made.
        columns: Those of the view, in its order.
        rows: As long as *columns*: text, numbers, bools, dates, aware datetimes or None. To be read once, while the
            transaction lasts: they come from the database as they are read, so that any number fits into memory.
        left_out: How many more there are.
    """

    about: About
    columns: tuple[str, ...]
    rows: Iterator[Sequence[Any]]
    left_out: int = 0


def read(
    connection: sa.Connection,
    name: str,
    filters: Filters = Filters(),  # noqa: B008 - it is frozen
    *,
    as_of: datetime | None = None,
    zone: ZoneInfo = LEGAL_ZONE,
    most: int | None = None,
) -> Table:
    """Return the report *name*.

    Of ``gaps`` the filters *since* and *until* choose those that overlap that stretch of time, and the cluster whose
    they are; the cluster and the kind choose which jobs are counted as open meanwhile.

    Args:
        connection: In a transaction of `database.reading`; what it sees is reported.
        name: One of `NAMES`.
        filters: Which jobs.
        as_of: What could be known at this time (aware; see `tracker.reports.as_of`); None: what is known now.
        zone: The legal time zone (setting ``timezone``), by which *as_of* computes deadlines.
        most: So many rows, those first that a person looks for: what is not settled, and what is new. None: all, in an
            order that stays as it is.

    Raises:
        InvalidField: There is no such report, or *as_of* has no offset or is in the future.
        DatabaseUnavailable: The database did not answer.
    """
    if name not in NAMES:
        raise InvalidField("report", f"there is none {name[:80]!r}; there are: {', '.join(NAMES)}")
    counted = filters if name != "gaps" else replace(filters, since=None, until=None)
    view = typed(connection, f"report_{name}")
    told_at = as_of or database.now(connection)
    ctes = shadows(connection, counted, as_of, zone, view.name)
    wanted = list(_overlapping(view, filters, told_at)) if name == "gaps" else []
    first = [] if most is None else _urgent(view, name)
    query = sa.select(*view.c).where(*wanted).order_by(*first, *_order(view, name, connection.dialect.name))
    query = query.limit(most).add_cte(*ctes)
    jobs = connection.execute(sa.select(sa.func.count()).select_from(JOBS).add_cte(*ctes)).scalar_one()
    about = About(told_at, version("tracker"), filters, jobs)
    columns = tuple(view.c.keys())
    if most is None:
        return Table(about, columns, _stream(connection, query))
    rows = connection.execute(query).all()
    count = sa.select(sa.func.count()).select_from(view).where(*wanted).add_cte(*ctes)
    left_out = connection.execute(count).scalar_one() - most if len(rows) == most else 0
    return Table(about, columns, iter(rows), left_out)


def typed(connection: sa.Connection, view: str) -> sa.TableClause:
    """Return *view* with the types that its columns have; on SQLite their names tell it."""
    names = connection.execute(sa.text(f"SELECT * FROM {view} LIMIT 0")).keys()
    return sa.table(view, *(sa.column(name, _type(name)) for name in names))


class _Flag(sa.TypeDecorator[bool]):
    """A bool that a view says as 0 or 1, since SQLite has no other."""

    impl = sa.Integer
    cache_ok = True

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> bool | None:
        return None if value is None else bool(value)


def _type(name: str) -> sa.types.TypeEngine[Any]:
    if name == "registered_by":
        return sa.String()
    if name.endswith("_on"):
        return sa.Date()
    if name.startswith("is_"):
        return _Flag()
    if name.endswith(("_at", "_at_first", "_after", "_by", "_date")):
        return UtcDateTime()
    if name in _TEXTS:
        return sa.String()
    return sa.types.NullType()


_TEXTS: Final = frozenset(("cluster", "jid", "kind", "reference", "status", "month"))
"""Those that rows are sorted by."""


def _order(view: sa.TableClause, name: str, dialect: str) -> list[sa.ColumnElement[Any]]:
    """Return what to sort by: NULLs last and text by its code points, so that both databases agree."""
    columns: list[sa.ColumnElement[Any]] = [view.c[column] for column in _ORDERS[name].split()]
    if dialect == "postgresql":
        columns = [sa.collate(c, "C") if isinstance(c.type, sa.String) else c for c in columns]
    return [column.asc().nulls_last() for column in columns]


def _urgent(view: sa.TableClause, name: str) -> list[sa.ColumnElement[Any]]:
    """Return what to sort by before all else where not all rows are seen."""
    c = view.c
    match name:
        case "monthly":
            return [c.month.desc()]
        case "deadlines":
            return _waiting(c.state.in_(UNSETTLED), c.deadline_at)
        case "requests":
            return _waiting(sa.and_(c.done_by.is_(None), c.verdict.not_in(("attested", "withdrawn"))), c.deadline_on)
        case "anomalies":
            return [c.id.desc()]
        case "gaps":
            return [c.is_open.desc(), c.began_at.desc()]
    return []


def _waiting(waits: sa.ColumnElement[bool], deadline: sa.ColumnElement[Any]) -> list[sa.ColumnElement[Any]]:
    """Return what puts first whom somebody waits for, by the nearest deadline, and then the others, the last first."""
    return [sa.case((waits, 0), else_=1), sa.case((waits, deadline)).nulls_last(), deadline.desc().nulls_last()]


def _overlapping(gaps: sa.TableClause, filters: Filters, now: datetime) -> Iterator[sa.ColumnElement[bool]]:
    if filters.clusters:
        yield gaps.c.cluster.in_(filters.clusters)
    if filters.since is not None:
        yield sa.func.coalesce(gaps.c.ended_at, sa.literal(now, UtcDateTime())) >= filters.since
    if filters.until is not None:
        yield gaps.c.began_at < filters.until


def _stream(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[Sequence[Any]]:
    """Yield the rows of *query*; PostgreSQL's driver would otherwise fetch them all at once."""
    with connection.execute(query, execution_options={"yield_per": _BATCH}) as result:
        yield from result
