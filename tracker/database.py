"""Engines, transactions, the schema's version.

Owns how each database is opened so that nothing is lost (pragmas, locks, time-outs), the two kinds of transaction
(`reading`, `writing`), the database's clock, and the translation of its errors. Other rooms own what is in it:
``models`` the tables, ``guards`` the guards, ``reports.views`` the views.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event

from tracker.errors import (
    BadConfiguration,
    DatabaseDamaged,
    DatabaseMissing,
    DatabaseMoved,
    DatabaseRefused,
    DatabaseUnavailable,
    SchemaMismatch,
)
from tracker.settings import checked_database_url, mask_url

# SQLAlchemy logs each cursor that it cannot close after an error, which is reported anyway.
logging.getLogger("sqlalchemy.pool").addHandler(logging.NullHandler())

HEAD = "0001"  # the revision this version needs; a test compares it with the migrations
VERSION_TABLE = "tracker_alembic_version"  # of our own: another application's Alembic may be in the same database

# Python's own sqlite3 is often a SQLite whose WAL can lose commits when several connections write (3.7.0 to 3.51.2):
# https://sqlite.org/wal.html#walreset
try:
    import pysqlite3 as _pysqlite3

    _sqlite: ModuleType = _pysqlite3
except ImportError:
    _sqlite = sqlite3

OLDEST_SQLITE = (3, 38)  # of 2022; the views need unixepoch()
BUSY_SECONDS = 30  # how long a writer waits for SQLite's one write lock

# A role or a database can have other defaults, so each transaction sets these, in one message to the server.
_POSTGRESQL_SETTINGS = """
    SET LOCAL timezone = 'UTC';
    SET LOCAL datestyle = 'ISO';
    SET LOCAL extra_float_digits = 1;
    SET LOCAL standard_conforming_strings = on;
    SET LOCAL quote_all_identifiers = off;
    SET LOCAL cursor_tuple_fraction = 1;  -- our cursors fetch all that they ask for
    SET LOCAL lock_timeout = '30s';
    SET LOCAL idle_in_transaction_session_timeout = '60s'  -- an idle transaction holds up the sealer
"""
_ENDING = ("57P01", "57P02", "57P03")  # PostgreSQL's codes: the server ends the connection, crashes, or is starting


def sqlite_library() -> tuple[str, bool]:
    """Return SQLite's version and whether its WAL is safe with several connections."""
    version = tuple(int(part) for part in _sqlite.sqlite_version.split("."))
    return _sqlite.sqlite_version, version >= (3, 51, 3) or version in ((3, 44, 6), (3, 50, 7))


def create_engine(url: str, *, make: bool = False) -> sa.Engine:
    """Return an engine for *url*; nothing is opened yet.

    Args:
        url: ``sqlite:///file`` or ``postgresql+psycopg://…``.
        make: Whether a missing SQLite file is made; else opening it raises DatabaseMissing.

    Raises:
        BadConfiguration: It is not a URL, or names another kind of database, or the driver is not installed.
    """
    try:
        parsed = sa.make_url(checked_database_url(url))
    except ValueError as error:
        raise BadConfiguration(f"TRACKER_DATABASE_URL: {error}") from None
    engine = _sqlite_engine(parsed, make) if parsed.get_backend_name() == "sqlite" else _postgresql_engine(parsed)
    event.listen(engine, "handle_error", _translate)
    return engine


def _sqlite_engine(url: sa.URL, make: bool) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise BadConfiguration(
            "TRACKER_DATABASE_URL: a database in memory keeps nothing: name a file, such as sqlite:///tracker.db"
        )
    if _sqlite.sqlite_version_info < OLDEST_SQLITE:
        raise BadConfiguration(
            f"Python's SQLite is {_sqlite.sqlite_version}, but 3.38 or newer is needed: install a newer Python, or use"
            " PostgreSQL (TRACKER_DATABASE_URL)"
        )
    path = Path(url.database)
    first: list[tuple[int, int] | None] = []  # the file that this engine opened first

    def require_same_file() -> None:
        if first and _identity(path) != first[0]:
            raise DatabaseMoved(
                f"the database file {path} was moved, replaced or deleted while it was open; nothing more is written."
                f" Put it back, or move {path.name}-wal and {path.name}-shm away before you put another file there"
            )

    def connect() -> sqlite3.Connection:
        require_same_file()
        if not make and not path.is_file():
            raise DatabaseMissing(f"there is no database at {path}: make it with `tracker db upgrade`")
        connection = _open_file(path, make)
        first[:] = first or [_identity(path)]
        return connection

    engine = sa.create_engine(url, module=_sqlite, creator=connect)

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        require_same_file()
        reading = connection.get_execution_options().get("tracker_reading", False)
        if not reading and "tracker_journal" not in connection.info:
            # Not when the file is opened: a reader may have no right to write, and the file may be another program's.
            mode = "WAL" if sqlite_library()[1] else "DELETE"
            mode = connection.get_execution_options().get("tracker_journal", mode)
            connection.exec_driver_sql(f"PRAGMA journal_mode = {mode}")
            connection.info["tracker_journal"] = mode
        # Not the driver's own BEGIN: it comes after the first SELECT, and updates based on that read are lost.
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what identifies the file at *path*; None: it is missing."""
    with suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


def _open_file(path: Path, make: bool) -> sqlite3.Connection:
    """Return a connection to a SQLite file, also where its folder is read-only.

    SQLite cannot make the ``-shm`` there that it needs to read a WAL, unless we say that the file never changes.
    """

    def opened(how: str) -> sqlite3.Connection:
        uri = f"file:{quote(str(path.absolute()))}?{how}"
        connection: sqlite3.Connection = _sqlite.connect(
            uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
        )
        try:
            # EXTRA: FULL, and in DELETE mode the folder is synced, too.
            connection.executescript(
                "PRAGMA foreign_keys = ON; PRAGMA synchronous = EXTRA; SELECT 1 FROM sqlite_master"
            )
        except BaseException:
            connection.close()
            raise
        return connection

    try:
        return opened("mode=rwc" if make else "mode=rw")
    except _sqlite.OperationalError as error:
        if make or "locked" in str(error) or os.access(path.absolute().parent, os.W_OK):
            raise
    beside = [Path(f"{path}{end}") for end in ("-wal", "-shm", "-journal")]
    if in_use := [file.name for file in beside if file.exists() and file.stat().st_size]:
        raise BadConfiguration(
            f"{path} cannot be read without {' and '.join(in_use)} beside it, in a read-only folder: let this account"
            " read them, or copy all of them to a folder where it may write"
        )
    return opened("mode=ro&immutable=1")


def _postgresql_engine(url: sa.URL) -> sa.Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    # As arguments, since the repr of an engine masks only the password before the host.
    secret = {name: url.query[name] for name in ("password", "sslpassword") if name in url.query}
    url = url.difference_update_query(secret)
    # A server that does not answer any more is noticed within a minute.
    alive = {"keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
    # PgBouncer gives the connection to others after each transaction: no prepared statements, and SET LOCAL only.
    arguments = {"connect_timeout": 10, "client_encoding": "utf8", "prepare_threshold": None} | alive | secret
    try:
        engine = sa.create_engine(url, pool_pre_ping=True, connect_args=arguments)
    except ModuleNotFoundError:
        raise BadConfiguration(
            "TRACKER_DATABASE_URL names PostgreSQL, but its driver is not installed: pip install 'tracker[postgres]'"
        ) from None

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: object) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":  # a status is stored verbatim and may be in any script
            connection.close()
            raise BadConfiguration(
                f"the database's encoding is {encoding}, but tracker needs UTF8: make another one with CREATE DATABASE"
                " name ENCODING 'UTF8' TEMPLATE template0"
            )

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        kind = connection.get_execution_options().get("tracker_reading", "READ COMMITTED")
        connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {kind}; {_POSTGRESQL_SETTINGS}")

    return engine


def _translate(context: sa.engine.ExceptionContext) -> None:
    """Turn errors of the network, the disk, an administrator or another process into errors of ours.

    Errors of our own statements stay SQLAlchemy's: a constraint or a value.
    """
    original, error = context.original_exception, context.sqlalchemy_exception
    if context.is_pre_ping:  # the pool makes another connection
        return
    if not isinstance(error, sa.exc.DBAPIError) or isinstance(error, (sa.exc.IntegrityError, sa.exc.DataError)):
        return
    lines = str(original).strip().splitlines()
    text = lines[0] if lines else type(original).__name__
    if isinstance(error, (sa.exc.ProgrammingError, sa.exc.NotSupportedError)):
        hint = "Check the URL, the rights of its role and, with `tracker db check`, the schema"
        raise DatabaseRefused(f"the database refused: {text}. {hint}") from original
    if "not a database" in text or "image is malformed" in text:
        raise DatabaseDamaged(
            f"the file is not a SQLite database, or is damaged ({text}): restore a backup"
        ) from original
    if text == "unable to open database file":
        text += ": may this user read and write it and its folder?"
    state = getattr(original, "sqlstate", None)
    problem = f"the database is not available: {text}"
    if state == "25006" or "readonly database" in text:
        problem = f"the database cannot be written now: {text} (a standby, a read-only role, or a file of another user)"
        context.is_disconnect = True  # after a failover every connection of the pool may lead to the old primary
    if state in _ENDING:
        context.is_disconnect = True
    raise DatabaseUnavailable(problem) from original


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection in a transaction that may write; it commits at the end and rolls back on an error.

    Raises:
        DatabaseUnavailable: The database did not answer, is locked or full. After a lost COMMIT it is unknown whether
            the rows were written: callers write so that they can do it again.
    """
    with engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: sa.Engine, *, temporary: bool = False) -> Iterator[sa.Connection]:
    """Yield a connection that sees one state of the database, writes nothing and holds up no writer.

    Args:
        engine: The database.
        temporary: Allow temporary tables, which PostgreSQL refuses in a read-only transaction.
    """
    kind = "REPEATABLE READ" if temporary else "REPEATABLE READ, READ ONLY"
    with engine.connect().execution_options(tracker_reading=kind) as connection:
        yield connection


def now(connection: sa.Connection) -> datetime:
    """Return the database's time (aware UTC): one clock for all daemons on it.

    SQLite is a library on this machine, so its clock is this machine's; Python gives it with microseconds.
    """
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    value: datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
    return value.astimezone(UTC)


def execute(connection: sa.Connection, statement: str) -> None:
    """Execute DDL unchanged: psycopg would read a `%` as a placeholder, and sa.text() a `:` as a bind."""
    connection.exec_driver_sql(statement if connection.dialect.name == "sqlite" else statement.replace("%", "%%"))


def open_database(url: str) -> sa.Engine:
    """Return an engine on a database that exists, answers and has this version's schema.

    Raises:
        DatabaseMissing, SchemaMismatch, DatabaseUnavailable: The message says what to do.
    """
    engine = create_engine(url)
    try:
        with reading(engine) as connection:
            require_schema(connection)
    except BaseException:
        engine.dispose()
        raise
    return engine


def revision(connection: sa.Connection) -> str | None:
    """Return the schema's revision; None: there is no schema of ours."""
    # By name: on PostgreSQL the search path may continue to another schema that has a tracker of its own.
    if not sa.inspect(connection).has_table(VERSION_TABLE, schema=connection.dialect.default_schema_name):
        return None
    value: str | None = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()
    return value


def require_schema(connection: sa.Connection) -> None:
    """Raise SchemaMismatch unless the schema is this version's."""
    found = revision(connection)
    if found == HEAD:
        return
    if found is None:
        _refuse_taken_names(connection)
        raise SchemaMismatch("the database is empty: run `tracker db upgrade`")
    way_out = "run `tracker db upgrade`" if found < HEAD else "install a newer tracker"
    raise SchemaMismatch(f"the database has revision {found}, this version needs {HEAD}: {way_out}")


def _refuse_taken_names(connection: sa.Connection) -> None:
    """Raise SchemaMismatch if a schema without a revision has tables with the names of ours."""
    from tracker.models import METADATA

    schema = connection.dialect.default_schema_name
    if schema is None:
        raise SchemaMismatch("no schema of the search_path exists, or this role may not use it: run CREATE SCHEMA")
    inspector = sa.inspect(connection)
    there = [*inspector.get_table_names(schema=schema), *inspector.get_view_names(schema=schema)]
    taken = sorted(set(there) & set(METADATA.tables))
    if "seals" in taken and "previous_sha256" in [one["name"] for one in inspector.get_columns("seals", schema)]:
        raise SchemaMismatch(
            "the database is of tracker's first edition, which this version cannot read: set TRACKER_DATABASE_URL to"
            " a new database and register the open jobs there"
        )
    if taken:
        where, way_out = f"the schema {schema}", ", or a schema of its own (search_path)"
        if connection.dialect.name == "sqlite":
            where, way_out = "the database", ""
        raise SchemaMismatch(
            f"{where} has {', '.join(taken)} but no {VERSION_TABLE}, so they are not tracker's: use another"
            f" database{way_out}"
        )


def is_lock_timeout(error: DatabaseUnavailable) -> bool:
    """Return whether PostgreSQL ended a statement because it waited too long for a lock (``lock_timeout``)."""
    return getattr(error.__cause__, "sqlstate", None) == "55P03"  # lock_not_available


def migrations() -> Path:
    """Return the folder of the migrations: the repository's, or the one in the wheel."""
    here = Path(__file__).parent
    for folder in (here / "_migrations", here.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise BadConfiguration("the migrations are missing from this installation: install tracker again")


def upgrade(url: str, fill: Callable[[sa.Connection], None] | None = None) -> str:
    """Bring the schema at *url* to this version, guards and views included, and return a line about it.

    A missing SQLite file is made. With *fill* there must be no schema before: it fills the tables in the same
    transaction, before the guards are made, and SQLite keeps no ``-wal`` beside its file.

    Raises:
        BadConfiguration, SchemaMismatch, DatabaseUnavailable: Nothing was changed.
    """
    from alembic import command
    from alembic.config import Config

    engine = create_engine(url, make=True)
    parent = Path(engine.url.database or "").parent
    if engine.dialect.name == "sqlite" and not parent.is_dir():
        raise DatabaseMissing(f"the folder {parent} is missing: make it, or change TRACKER_DATABASE_URL")
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    if fill is not None:
        engine = engine.execution_options(tracker_journal="DELETE")
    config.attributes.update(engine=engine, fill=fill)
    try:
        with reading(engine) as connection:
            before = revision(connection)
            if fill is not None and before is not None:
                raise SchemaMismatch(f"{mask_url(url)} has tracker's tables already: name an empty database or schema")
            if before is None:
                _refuse_taken_names(connection)
            elif before > HEAD:
                require_schema(connection)
        command.upgrade(config, "head")
    finally:
        engine.dispose()
    if before == HEAD:
        return f"{mask_url(url)} has this version's schema ({HEAD}); guards and views were made again"
    return f"{mask_url(url)} upgraded from {before or 'empty'} to {HEAD}"


def worker_name() -> str:
    """Return a unique name for this process: host, process id and a random part."""
    import socket

    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(3).hex()}"
