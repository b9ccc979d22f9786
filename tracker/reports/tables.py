"""The rows of the reports that are tables: a view's, of the jobs that were asked for, now or as of an earlier time.

Owns the types and the order of the rows, and how filters reach the views: a view is read as if the selected jobs were
the only ones, so that counts and verdicts cover them alone. The views define the columns; ``catalog`` lists the
reports. ``durations`` here has a row for each done job; `durations.durations` has the quantiles.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database
from tracker.models import JOBS, UtcDateTime
from tracker.reports.about import About, Filters
from tracker.reports.as_of import LEGAL_ZONE, AsOf, instant, shadows
from tracker.reports.catalog import ALL, CHANGES, COUNTED, REPORTS
from tracker.status import UNSETTLED, Action, State

NAMES: Final = tuple(REPORTS)
"""The reports there are; `read` knows ``changes``, too."""

BATCH: Final = 10_000
"""Rows fetched at a time; ours: a few MB."""

Part = tuple[sa.ColumnElement[bool], Sequence[sa.ColumnElement[Any]]]
"""Which rows, and their order."""


@dataclass(frozen=True, slots=True)
class Table:
    """A report.

    Attributes:
        about: When, with which filters and over how many jobs it was made.
        columns: Those of the view, in its order.
        rows: As long as *columns*: text, numbers, dates, aware datetimes or None. To be read once, while the
            transaction lasts: they come from the database as they are read, so that any number fits into memory.
        has_more: There are more rows than were asked for.
    """

    about: About
    columns: tuple[str, ...]
    rows: Iterator[Sequence[Any]]
    has_more: bool = False


def read(
    connection: sa.Connection,
    name: str,
    filters: Filters = Filters(),  # noqa: B008 - it is frozen
    *,
    as_of: AsOf = None,
    zone: ZoneInfo = LEGAL_ZONE,
    most: int | None = None,
    is_kept: bool = False,
) -> Table:
    """Return the report *name*.

    Of ``gaps`` the filters *since* and *until* choose those that overlap that stretch of time, of ``changes`` the
    transitions of that time; the other filters choose the jobs that are counted.

    Args:
        connection: In a transaction of `database.reading`; what it sees is reported.
        name: One of `NAMES`, or ``changes``.
        filters: Which jobs.
        as_of: What could be known at this time, or what a checkpoint closes (see `tracker.reports.as_of`); None: now.
        zone: The legal time zone (setting ``timezone``), by which *as_of* computes deadlines.
        most: At most this many rows, unsettled and new ones first. None: all, in a fixed order.
        is_kept: The jobs as they were then are in the table of `as_of.kept`.

    Raises:
        InvalidField: *as_of* has no offset or is in the future.
        DatabaseUnavailable: The database did not answer.
    """
    view = typed(connection, "report_transitions" if name == CHANGES.name else f"report_{name}")
    made_at = instant(as_of) or database.now(connection)
    counted, wanted = _wanted(view, name, filters, made_at)
    ctes = shadows(connection, counted, as_of, zone, view.name, is_kept=is_kept)
    jobs = connection.execute(sa.select(sa.func.count()).select_from(JOBS).add_cte(*ctes)).scalar_one()
    about = About(made_at, version("tracker"), filters, jobs)
    order = _order(view, ALL[name].order, connection.dialect.name)
    query = sa.select(*view.c).where(*wanted).add_cte(*ctes)
    columns = tuple(view.c.keys())
    if most is None:
        return Table(about, columns, in_turn(connection, query, [(sa.true(), order)]))
    parts = [(which, [*first, *order]) for which, first in _urgent(view, name)]
    rows = list(in_turn(connection, query, parts, most + 1))
    return Table(about, columns, iter(rows[:most]), len(rows) > most)


def changes(
    connection: sa.Connection, filters: Filters, *, as_of: AsOf = None, zone: ZoneInfo = LEGAL_ZONE
) -> list[Sequence[Any]]:
    """Return cluster, kind and the counts of `COUNTED` of the transitions that ``read`` returns as ``changes``."""
    view = typed(connection, "report_transitions")
    jobs, wanted = _wanted(view, CHANGES.name, filters, None)
    t = view.c
    is_change = sa.or_(t.from_state.is_(None), t.from_state != t.to_state)
    conditions: dict[str, sa.ColumnElement[bool]] = {
        **{state: sa.and_(is_change, t.to_state == state) for state in State if state is not State.OPEN},
        "registered": t.action == Action.REGISTERED,
        "reopened": t.action == Action.REOPENED,
        # The first sight of a job after its deadline is a row although nothing changed.
        "overdue": sa.and_(t.action == Action.OBSERVED, t.from_status == t.to_status, t.from_state == t.to_state),
    }
    counts = [sa.func.count().filter(conditions[name]).label(name) for name in COUNTED]
    query = sa.select(t.cluster, t.kind, *counts).where(*wanted).group_by(t.cluster, t.kind)
    query = query.order_by(*_order(view, "cluster kind", connection.dialect.name))
    return list(connection.execute(query.add_cte(*shadows(connection, jobs, as_of, zone, view.name))))


def typed(connection: sa.Connection, view: str) -> sa.TableClause:
    """Return *view* with the types that its columns have; SQLite has none, and their names say it."""
    names = connection.execute(sa.text(f"SELECT * FROM {view} LIMIT 0")).keys()
    return sa.table(view, *(sa.column(name, _TYPES.get(column_type(name), sa.types.NullType())) for name in names))


def column_type(name: str) -> str:
    """Return the type of a view's column, by its name: text, date, instant, double or integer."""
    if name in _TEXTS:
        return "text"
    if name.endswith("_on"):
        return "date"
    if name.endswith(("_at", "_at_first", "_after", "_by", "_date")):
        return "instant"
    return "double" if name.endswith(("seconds", "seconds_min", "seconds_max", "_share")) else "integer"


_TEXTS: Final = frozenset(
    (
        *("cluster", "jid", "kind", "reference", "state", "status", "registered_by", "last_error", "verdict", "basis"),
        *("month", "action", "from_status", "to_status", "from_state", "to_state", "base_url", "actor", "anomaly"),
        *("reason", "cause", "detail", "pause_cause"),
    )
)
_TYPES: Final[dict[str, sa.types.TypeEngine[Any]]] = {"text": sa.String(), "date": sa.Date(), "instant": UtcDateTime()}
"""SQLAlchemy's types, where the database's own do not do."""


def _order(view: sa.TableClause, names: str, dialect: str) -> list[sa.ColumnElement[Any]]:
    """Return what to sort by: NULLs last and text by its code points, so that both databases agree."""
    columns: list[sa.ColumnElement[Any]] = [view.c[column] for column in names.split()]
    if dialect == "postgresql":
        columns = [sa.collate(c, "C") if isinstance(c.type, sa.String) else c for c in columns]
    return [column.asc().nulls_last() for column in columns]


def urgent(
    waiting: sa.ColumnElement[bool],
    settled: sa.ColumnElement[bool],
    deadline: Sequence[sa.ColumnElement[Any]],
    newest: Sequence[sa.ColumnElement[Any]],
) -> tuple[Part, Part]:
    """Return the urgent order: unsettled rows by *deadline*, then the settled ones, the *newest* first.

    Args:
        waiting: The condition of unsettled rows.
        settled: The condition of the others.
        deadline: What unsettled rows are sorted by.
        newest: What settled rows are sorted by.
    """
    first, *ties = deadline
    return (waiting, [first.asc().nulls_last(), *ties]), (settled, newest)


def in_turn(
    connection: sa.Connection, query: sa.Select[Any], parts: Sequence[Part], limit: int | None = None
) -> Generator[sa.Row[Any]]:
    """Yield at most *limit* rows of *query*, part by part, as they come from the database.

    So each part can use an index, and a part that is not needed is not read. PostgreSQL's driver would otherwise fetch
    all rows at once.
    """
    for which, order in parts:
        part = query.where(which).order_by(*order).limit(limit)
        with connection.execute(part, execution_options={"yield_per": BATCH}) as rows:
            for row in rows:
                yield row
                limit = None if limit is None else limit - 1
        if limit == 0:
            return


def _urgent(view: sa.TableClause, name: str) -> Sequence[Part]:
    """Return what to sort by before all else where not all rows are seen."""
    c = view.c
    match name:
        case "deadlines":
            waiting = c.state.in_(UNSETTLED)
            return urgent(waiting, sa.not_(waiting), [c.deadline_at], [c.deadline_at.desc().nulls_last()])
        case "requests":
            unanswered = sa.and_(c.done_by.is_(None), c.verdict.not_in(("attested", "withdrawn")))
            return urgent(unanswered, sa.not_(unanswered), [c.deadline_on], [c.deadline_on.desc().nulls_last()])
    newest = {"durations": "done_by", "statuses": "entered_by", "monthly": "month", "anomalies": "id"}
    newest |= {"changes": "id", "gaps": "is_open began_at"}
    return [(sa.true(), [c[column].desc() for column in newest.get(name, "").split()])]


def _wanted(
    view: sa.TableClause, name: str, filters: Filters, now: datetime | None
) -> tuple[Filters, list[sa.ColumnElement[bool]]]:
    """Return which jobs are counted for *filters*, and which rows are wanted."""
    c, since, until = view.c, filters.since, filters.until
    found: list[sa.ColumnElement[bool]] = []
    match name:
        case "gaps":
            if filters.clusters:
                found.append(c.cluster.in_(filters.clusters))
            began: sa.ColumnElement[Any] = c.began_at
            ended: sa.ColumnElement[Any] = sa.func.coalesce(c.ended_at, sa.literal(now, UtcDateTime()))
        case "changes":
            began = ended = c.observed_at
        case _:
            return filters, found
    if since is not None:
        found.append(ended >= since)
    if until is not None:
        found.append(began < until)
    return replace(filters, since=None, until=None), found
