"""The views, the SQL interface: one ``.sql`` file each, the same names and columns on both databases.

Owns the files, the macros in which the two databases differ (``macros.sql``), what their columns mean (``comments``),
and making and dropping the views. They hold no data, so ``env.py`` of the migrations drops them before the revisions
run and makes today's after.
"""

from __future__ import annotations

import sqlalchemy as sa

from tracker import database, guards
from tracker.reports import render
from tracker.reports.render import Mode
from tracker.reports.views import comments

VIEWS = (  # a view may use those before it
    "report_jobs",
    "report_durations",
    "report_transitions",
    "report_statuses",
    "report_monthly",
    "report_deadlines",
    "report_requests",
    "report_anomalies",
    "report_gaps",
    "report_coverage",
    "report_clusters",
)


def sql(name: str, dialect: str, mode: Mode = Mode.NOW) -> str:
    """Return the SELECT behind the view *name*, one of `VIEWS`; the arguments are those of `render.sql`."""
    return render.sql(f"reports/views/{name}", dialect, mode)


def create(connection: sa.Connection) -> None:
    """Make the views; they must not exist. On PostgreSQL they and their columns get comments; SQLite has none."""
    for name in VIEWS:
        database.execute(connection, f"CREATE VIEW {name} AS\n{sql(name, connection.dialect.name)}")
        if connection.dialect.name == "postgresql":
            _comment(connection, "VIEW", name, comments.of_view(name))
            columns = connection.execute(sa.text(f"SELECT * FROM {name} LIMIT 0")).keys()
            for column in columns:
                _comment(connection, "COLUMN", f"{name}.{column}", comments.of_column(name, column))


def _comment(connection: sa.Connection, what: str, name: str, text: str) -> None:
    quoted = text.replace("'", "''")
    database.execute(connection, f"COMMENT ON {what} {name} IS '{quoted}'")


def drop(connection: sa.Connection) -> None:
    """Drop each view that is there, and no other view."""
    present = _present(connection)
    for name in reversed(VIEWS):
        if name in present:
            connection.exec_driver_sql(f"DROP VIEW {name}")


def _present(connection: sa.Connection) -> list[str]:
    """Return the views in the schema that tracker's tables are in, not in others of the search path."""
    return sa.inspect(connection).get_view_names(schema=connection.dialect.default_schema_name)


def problems(connection: sa.Connection) -> list[str]:
    """Return a line for each view that is missing or changed."""
    present = _present(connection)
    found = [f"view {name} is missing" for name in VIEWS if name not in present]
    for name in (n for n in VIEWS if n in present):
        ours = sql(name, connection.dialect.name)
        if connection.dialect.name == "sqlite":
            row = connection.execute(sa.text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": name})
            same = row.scalar_one() == f"CREATE VIEW {name} AS\n{ours}"
        else:  # the text that PostgreSQL prints is another one after a dump and a restore; what it does is the same
            same = _plan(connection, name) == _plan(connection, f"({ours}) {name}")
        if not same:
            found.append(f"view {name} is changed")
    return found


def _plan(connection: sa.Connection, relation: str) -> list[str]:
    """Return how PostgreSQL would read *relation*, without casts, which it prints where a restored view has them."""
    rows = connection.exec_driver_sql(f"EXPLAIN (VERBOSE, COSTS OFF) SELECT * FROM {relation}".replace("%", "%%"))
    return [guards.normal(line) for line in rows.scalars() if not line.startswith("Query Identifier")]
