"""``tracker db copy``: writes all rows of a database to another one, which is empty, while daemons run.

Owns what is copied, and the check that all of it arrived. Only reads the source, in one state. The target gets schema,
rows, guards and views in one transaction (`database.upgrade`), and a SQLite file gets its name when it is complete. So
a copy is complete or not there, even if the process is killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import sqlalchemy as sa

from tracker import database
from tracker.audit.keys import sync_folder
from tracker.audit.lines import TABLES
from tracker.audit.verify import Progress
from tracker.errors import BadConfiguration, DatabaseUnavailable, Refused
from tracker.models import METADATA, SEALS
from tracker.settings import mask_url

_AT_ONCE: Final = 1000  # rows: some hundred kB


class Contents(NamedTuple):
    """The facts about a database by which a copy is compared with its source."""

    rows: dict[str, int]  # how many, by table
    last: dict[str, int]  # by table with ids: the largest id that it has, or that is sealed
    checkpoint: str | None  # the text of the newest one


def copy(source: sa.Engine, url: str, progress: Progress = lambda done, total, what: None) -> Contents:
    """Copy all rows of *source* to the empty database at *url*, and return the facts about them.

    Args:
        source: Has this version's schema. It is only read, in one transaction.
        url: A SQLite file that does not exist, or a PostgreSQL database or schema without tracker's tables.

    Raises:
        Refused: The target is not empty or cannot be written, or the source has a row that its CHECKs should refuse.
        BadConfiguration, DatabaseUnavailable: The message says which of the two it is about. Nothing is left at *url*.
    """
    copied: list[Contents] = []
    try:
        with _naming("target"), _place(source, url) as place:
            database.upgrade(place, lambda target: copied.append(_fill(source, target, progress)))
    except OSError as error:
        raise Refused(f"the target: {error.strerror or error}; nothing was copied to {mask_url(url)}") from error
    except (sa.exc.StatementError, ArithmeticError, LookupError, ValueError) as error:
        why = str(getattr(error, "orig", error)).splitlines()[0]
        raise Refused(f"the source has a row that is not valid ({why}): run `tracker audit verify`") from error
    return copied[0]


@contextmanager
def _naming(which: str) -> Iterator[None]:
    """Say in an error which of the two databases it is about."""
    try:
        yield
    except (BadConfiguration, DatabaseUnavailable) as error:
        if isinstance(error.__cause__, type(error)):  # it names the database already
            raise
        why = str(error).replace("TRACKER_DATABASE_URL", "its URL")
        raise type(error)(f"nothing was copied; the {which}: {why}") from error


@contextmanager
def _place(source: sa.Engine, url: str) -> Iterator[str]:
    """Yield the URL to write to: *url*, or on SQLite that of a temporary file, renamed to *url* at the end."""
    if not url.startswith("sqlite"):
        yield url
        return
    if "?" in url:  # SQLAlchemy would cut the name off there
        raise Refused("the target: write ? in the name of a file as %3F")
    path = Path(str(database.create_engine(url).url.database))
    if source.dialect.name == "sqlite" and path.exists() and path.samefile(str(source.url.database)):
        raise Refused(f"{path} is the database itself: name a new file")
    for end in ("", "-wal", "-journal"):  # SQLite takes a -wal that is left there for the copy's own
        if os.path.lexists(f"{path}{end}"):
            raise Refused(f"{path}{end} exists: name a new file")
    # A folder, since SQLite writes a journal beside the file. On the target's disk, so that the file can be renamed.
    with TemporaryDirectory(prefix="tracker-copy-", dir=path.parent) as folder:
        file = Path(folder, "copy.db")
        yield f"sqlite:///{quote(str(file))}"
        file.rename(path)
        sync_folder(path.parent)


def _fill(source: sa.Engine, target: sa.Connection, progress: Progress) -> Contents:
    """Copy all rows, and return the facts about the source. The target has its tables, but no guards yet."""
    if target.dialect.name == "postgresql":  # it ends a transaction that waits for a minute, as for a long sort
        target.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
    with _naming("source"), database.reading(source) as connection:
        if source.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL row_security = off")  # an error in place of missing rows
        contents = _contents(connection)
        done, total = 0, sum(contents.rows.values())
        for table in METADATA.sorted_tables:
            query = sa.select(table).order_by(*table.primary_key)
            with closing(connection.execute(query, execution_options={"yield_per": _AT_ONCE})) as result:
                for rows in result.partitions():
                    with _naming("target"):
                        _insert(target, table, [row._asdict() for row in rows])
                    done += len(rows)
                    progress(done, total, table.name)
    for name, last in contents.last.items():
        _continue(target, name, last)
    if _contents(target) != contents:
        raise Refused("the target did not get all rows of the source, so nothing was copied: try again")
    return contents


def _contents(connection: sa.Connection) -> Contents:
    rows, last = {}, {}
    for name, table in METADATA.tables.items():
        rows[name] = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        if "id" in table.c:
            # A sealed id is never given again, even if its row is gone.
            ids = [table.c.id, *([SEALS.c[f"last_{name.removesuffix('s')}_id"]] if name in TABLES else [])]
            last[name] = max(connection.execute(sa.select(sa.func.max(id_))).scalar() or 0 for id_ in ids)
    newest = sa.select(SEALS.c.checkpoint).order_by(SEALS.c.id.desc()).limit(1)
    return Contents(rows, last, connection.execute(newest).scalar())


def _insert(target: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if target.dialect.name == "sqlite":
        target.execute(sa.insert(table), rows)
        return
    # One statement for all rows is five times as fast, and SQLAlchemy cannot write OVERRIDING, which keeps the ids.
    columns = ", ".join(table.c.keys())
    target.exec_driver_sql(
        f"INSERT INTO {table.name} ({columns}) OVERRIDING SYSTEM VALUE"
        f" SELECT {columns} FROM json_populate_recordset(CAST(NULL AS {table.name}), CAST(%s AS json))",
        (json.dumps(rows, default=str),),
    )


def _continue(target: sa.Connection, table: str, last: int) -> None:
    """Let new rows of *table* get ids above *last*."""
    statement = "SELECT setval(CAST(pg_get_serial_sequence(:table, 'id') AS regclass), :last) WHERE :last > 0"
    if target.dialect.name == "sqlite":
        target.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :table"), {"table": table})
        statement = "INSERT INTO sqlite_sequence (name, seq) VALUES (:table, :last)"
    target.execute(sa.text(statement), {"table": table, "last": last})
