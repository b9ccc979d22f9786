"""How long `tracker status` and `tracker clusters` take to gather what they show, at a million open jobs.

    .venv/bin/python -m tests.benchmarks.screens [--jobs N] [--only sqlite|postgresql]

All jobs are open, in three clusters; of one in a hundred the deadline is past, of another one a poll is late. Prints
seconds, and each step of a query plan that reads all jobs. Exit status 1: a screen took longer than a second, or a plan
has such a step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import timedelta
from time import monotonic
from typing import Any

import sqlalchemy as sa

from tests.conftest import serve_postgres
from tracker import database
from tracker.reports import overview

SECONDS = 1.0
"""What a person waits for."""


def fill(engine: sa.Engine, jobs: int) -> None:
    """Make *jobs* open jobs, as they stand now."""
    is_sqlite = engine.dialect.name == "sqlite"
    now = "unixepoch('now')" if is_sqlite else "CAST(extract(epoch FROM now()) AS bigint)"

    def instant(seconds: str) -> str:
        at = f"{now} + {seconds}"
        if is_sqlite:
            return f"(strftime('%Y-%m-%d %H:%M:%S', {at}, 'unixepoch') || printf('.%06d', i % 1000000))"
        return f"(to_timestamp({at}) + (i % 1000000) * interval '1 microsecond')"

    # One in a hundred is a day past its deadline, the others are 10 to 30 days before it.
    ahead = "86400 * CASE WHEN i % 100 = 1 THEN -1 ELSE 10 + i % 20 END"
    day = f"strftime('%Y-%m-%d', {now} + {ahead}, 'unixepoch')"
    if not is_sqlite:
        day = f"CAST(to_timestamp({now} + {ahead}) AS date)"
    due_in = "CASE WHEN i % 100 = 0 THEN -7200 ELSE 3600 END"
    answered = f"UPDATE jobs SET status = 'waiting', polls = 1, seen_at = {instant('-60')}, due_at = {instant(due_in)}"
    made = (
        "INSERT INTO jobs (cluster, jid, kind, registered_at, deadline_on, deadline_at)"
        f" WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {jobs})"
        f" SELECT 'w' || (i % 3), 'job-' || i, 'export', {instant('-86400')}, {day}, {instant(ahead)} FROM n"
    )
    with database.writing(engine) as connection:
        for statement in (made, answered.replace("i %", "id %")):
            connection.exec_driver_sql(statement if is_sqlite else statement.replace("%", "%%"))
    if not is_sqlite:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def plans(engine: sa.Engine) -> list[str]:
    """Return each step of a plan of the overview's queries that reads all jobs, by a table or an index."""
    found: list[str] = []
    seen: set[str] = set()

    def explain(
        connection: sa.Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if statement in seen or not statement.lstrip().startswith("SELECT"):
            return
        seen.add(statement)
        word = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        cursor.execute(f"{word} {statement}", parameters)
        steps = [" ".join(map(str, row)) for row in cursor.fetchall()]
        found.extend(
            step for step in steps if any(word in step for word in ("SCAN j", "SCAN jobs", "Seq Scan on jobs"))
        )

    sa.event.listen(engine, "before_cursor_execute", explain)
    try:
        with database.reading(engine) as connection:
            overview.overview(connection, (), timedelta(hours=1))
    finally:
        sa.event.remove(engine, "before_cursor_execute", explain)
    return found


def measure(url: str, jobs: int) -> bool:
    """Print what the screens take on the database at *url*; return whether it is good."""
    database.upgrade(url)
    engine = database.open_database(url)
    began = monotonic()
    fill(engine, jobs)
    print(f"{engine.dialect.name}: {jobs} jobs made in {monotonic() - began:.0f} s")
    times: dict[str, float] = {}
    for name in ("clusters", "overview"):
        with database.reading(engine) as connection:
            for _ in range(3):
                began = monotonic()
                if name == "clusters":
                    overview.clusters(connection, ())
                else:
                    overview.overview(connection, (), timedelta(hours=1))
                times[name] = min(times.get(name, 99.0), monotonic() - began)
    steps = plans(engine)
    engine.dispose()
    print(f"  clusters {times['clusters']:.2f} s, status {times['overview']:.2f} s")
    print(*(f"  reads all jobs: {step}" for step in steps), sep="\n")
    return not steps and max(times.values()) <= SECONDS


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    given = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder, serve_postgres() as make:
        if given.only != "postgresql":
            good &= measure(f"sqlite:///{folder}/tracker.db", given.jobs)
        if given.only != "sqlite":
            good &= measure(make(), given.jobs)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
