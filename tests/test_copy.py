"""``tracker db copy``: the copy is the source, row by row and view by view; else there is none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests import lives
from tests.conftest import Run, refused, run_sql
from tests.history import daemon, register
from tests.processes import Process
from tests.scripted import Script
from tests.test_daemon import Start, start, until
from tests.test_export import KEY
from tests.test_verify import unguarded, verified
from tracker import cli, database
from tracker.audit import copy as copying
from tracker.audit.copy import copy
from tracker.audit.seal import seal
from tracker.errors import BadConfiguration, Refused
from tracker.models import ALERTS, DELIVERIES, JOBS, METADATA, SEALS, TRANSITIONS
from tracker.reports import views
from tracker.reports.tables import typed

__all__ = ["start"]  # a fixture
NOW = datetime(2026, 11, 1, tzinfo=UTC)
CLOCKS = {"sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')", "postgresql": "statement_timestamp()"}
New = Callable[[str], str]
on_sqlite = pytest.mark.parametrize("dialect", ["sqlite"])


def fill(engine: sa.Engine) -> None:
    """Write rows of each kind: whole lives of jobs, two real checkpoints, and what is not sealed."""
    lives.write(engine, 7, [*lives.on_boundaries(), *lives.drawn(7, 30)])
    with unguarded(engine) as connection:
        connection.execute(sa.delete(SEALS))  # they hold no real checkpoints
    seal(engine, KEY)
    register(engine, "j ,\"'\\é😀%s:x", reference="=1+1")
    seal(engine, KEY)
    register(engine, "unsealed")
    daemon(engine, "w", NOW, once=True)
    with database.writing(engine) as connection:
        connection.execute(sa.insert(DELIVERIES).values(destination="file /x", last_number=2, delivered_at=NOW))
        connection.execute(sa.insert(ALERTS).values(kind="lost", subject="w1", since=NOW, level="urgent"))


@pytest.fixture
def new(postgres_of_its_own: Callable[..., str], tmp_path: Path) -> New:
    """Return a function that returns the URL of an empty database of a dialect."""
    return lambda dialect: postgres_of_its_own() if dialect == "postgresql" else f"sqlite:///{tmp_path}/to me 100%25.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, new: New) -> str:
    return new(str(request.param))


@pytest.fixture
def opened() -> Iterator[Callable[[str], sa.Engine]]:
    """Return a function that opens a database until the end of the test."""
    engines: list[sa.Engine] = []

    def opened(url: str) -> sa.Engine:
        engines.append(database.open_database(url))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.dispose()


def everything(engine: sa.Engine) -> dict[str, list[str]]:
    """Return the rows of each table and view, in a form that both databases share; it is NOW in the views."""
    dialect = engine.dialect.name
    at = f"'{NOW:%Y-%m-%d %H:%M:%S.%f}'" if dialect == "sqlite" else f"CAST('{NOW}' AS timestamptz)"
    found = {}
    with engine.connect() as connection, connection.begin() as transaction:
        views.drop(connection)
        for name in views.VIEWS:
            query = views.sql(name, dialect).replace(CLOCKS[dialect], at)
            database.execute(connection, f"CREATE VIEW {name} AS {query}")
        for name in (*METADATA.tables, *views.VIEWS):
            table = METADATA.tables[name] if name in METADATA.tables else typed(connection, name)
            rows = connection.execute(sa.select(table))
            found[name] = sorted(str([plain(value) for value in row]) for row in rows)
        transaction.rollback()
    return found


def plain(value: Any) -> str:
    """Return a value as text: a number is an int, a float or a Decimal, depending on the database."""
    return str(value) if value is None or isinstance(value, (str, datetime)) or hasattr(value, "day") else f"{value:.6f}"


def is_empty(url: str) -> bool:
    """Return whether there is nothing at *url*, not even a part of a file beside it."""
    if url.startswith("sqlite"):
        path = Path(str(sa.make_url(url).database))
        return not path.exists() and not list(path.parent.glob("tracker-copy-*"))
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
    engine.dispose()
    return not tables


def test_the_copy_is_the_source(engine: sa.Engine, target: str, run: Run, opened: Callable[[str], sa.Engine]) -> None:
    """Each row of each table and view, with its id; both verify; guards and ids go on in the copy as in the source."""
    fill(engine)
    gone = register(engine, "gone")
    with unguarded(engine) as connection:  # as after a prune: the newest ids must not be given again
        gone_row = connection.execute(sa.select(sa.func.max(TRANSITIONS.c.id))).scalar_one()
        connection.execute(sa.delete(TRANSITIONS).where(TRANSITIONS.c.id == gone_row))
        connection.execute(sa.delete(JOBS).where(JOBS.c.id == gone))
    source = everything(engine)
    assert all(source.values()), "a table or a view shows nothing"
    code, out, err = run("db", "copy", target)
    assert (code, err) == (0, "")
    assert f"{len(source['jobs'])} jobs, {len(source['transitions'])} transitions, 2 seals" in out
    with database.reading(engine) as connection:
        head = connection.execute(sa.select(SEALS.c.checkpoint_sha256).order_by(SEALS.c.id.desc())).scalars().first()
    assert f"number 2, SHA-256 {head}." in out
    made = opened(target)
    assert everything(made) == source
    for one in (engine, made):
        report = verified(one)
        assert (report.sha256, report.is_good or [str(finding) for finding in report.findings]) == (head, True)
    with made.connect() as connection, connection.begin():
        for table in ("transitions", "sources", "gaps", "seals", "segments"):
            with refused(connection):
                connection.exec_driver_sql(f"DELETE FROM {table}")
    assert register(made, "next") == gone + 1
    with database.reading(made) as connection:
        assert connection.execute(sa.select(sa.func.max(TRANSITIONS.c.id))).scalar_one() == gone_row + 1
    if target.startswith("sqlite"):
        assert {path.name for path in Path().glob("to me*")} == {"to me 100%.db"}, "one file, that can be sent away"
