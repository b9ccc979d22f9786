"""``tracker db copy``: the copy equals the source, row by row and view by view; or nothing is copied."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests import lives
from tests.conftest import Run, refused, run_sql
from tests.history import daemon, register
from tests.processes import Process
from tests.scripted import Script
from tests.test_checks import unguarded as unchecked
from tests.test_daemon import TRACKER, Start, start, until
from tests.test_export import KEY
from tests.test_verify import unguarded, verified
from tracker import cli, database
from tracker.audit.copy import copy
from tracker.audit.seal import seal
from tracker.cli import db as cli_db
from tracker.models import ALERTS, DELIVERIES, JOBS, METADATA, SEALS, TRANSITIONS
from tracker.reports import views
from tracker.reports.tables import typed

__all__ = ["start"]  # a fixture
NOW = datetime(2026, 11, 1, tzinfo=UTC)
CLOCKS = {"sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')", "postgresql": "statement_timestamp()"}
on_sqlite = pytest.mark.parametrize("dialect", ["sqlite"])


def fill(engine: sa.Engine) -> None:
    """Write rows of each kind: complete histories of jobs, two real checkpoints, and rows that are not sealed."""
    lives.write(engine, 7, [*lives.on_boundaries(), *lives.drawn(7, 30)])
    with unguarded(engine) as connection:
        connection.execute(sa.delete(SEALS))  # they hold no real checkpoints
    seal(engine, KEY)
    register(engine, "j,\"'\\é😀%s:x", reference="=1+1")
    seal(engine, KEY)
    register(engine, "unsealed")
    daemon(engine, "w", NOW, once=True)
    with database.writing(engine) as connection:
        connection.execute(sa.insert(DELIVERIES).values(destination="file /x", last_number=2, delivered_at=NOW))
        connection.execute(sa.insert(ALERTS).values(kind="lost", subject="w1", since=NOW, level="urgent"))


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path, postgres_of_its_own: Callable[..., str]) -> str:
    """The URL of an empty place: a file that is missing, a database, or a schema of the search path."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/to me 100%25.db"
    url = sa.make_url(postgres_of_its_own())
    if request.param == "schema":
        run_sql(url, "CREATE SCHEMA other")
        url = url.update_query_dict({"options": "-csearch_path=other"})
    return url.render_as_string(hide_password=False)


@contextmanager
def opened(url: str) -> Iterator[sa.Engine]:
    engine = database.open_database(url)
    yield engine
    engine.dispose()


def everything(engine: sa.Engine) -> dict[str, list[str]]:
    """Return the rows of each table and view, in a form that both databases share; the time in the views is NOW."""
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
    """Return a value as text: a number is an int, a bool, a float or a Decimal, depending on the database."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S.%f}"
    return f"{value:.6f}" if isinstance(value, (int, float, Decimal)) else str(value)


def is_empty(url: str) -> bool:
    """Return whether there is nothing at *url*, not even a part of a file beside it."""
    if url.startswith("sqlite"):
        return not [*Path().glob("to me*"), *Path().glob("tracker-copy-*")]
    with closing(sa.create_engine(url, poolclass=sa.NullPool).connect()) as connection:
        return not sa.inspect(connection).get_table_names()


@pytest.mark.parametrize("target", ["sqlite", "postgresql", "schema"], indirect=True)
def test_the_copy_is_the_source(engine: sa.Engine, target: str, run: Run) -> None:
    """All rows of tables and views agree, ids included; both verify; the copy's guards work and its ids continue."""
    fill(engine)
    source = everything(engine)
    assert all(source.values()), "a table or a view shows nothing"
    code, out, err = run("db", "copy", target)
    assert (code, err) == (0, "")
    assert f"{len(source['jobs'])} jobs, {len(source['transitions'])} transitions, 2 checkpoints" in out
    if target.startswith("sqlite"):
        assert {path.name for path in Path().glob("to me*")} == {"to me 100%.db"}, "one file, that can be sent away"
    with opened(target) as made:
        assert everything(made) == source
        of_source, of_copy = verified(engine), verified(made)
        assert (of_source.findings, of_copy.findings) == ([], [])
        assert f"number 2, SHA-256 {of_source.sha256 or '?'}." in out
        with made.connect() as connection, connection.begin(), refused(connection):
            connection.exec_driver_sql("UPDATE transitions SET actor = 'eve'")
        assert register(made, "next") == register(engine, "next")


@on_sqlite
def test_a_sealed_id_is_not_given_again(engine: sa.Engine, target: str) -> None:
    """Where the newest sealed rows are gone, ids continue above them: otherwise new rows count as sealed."""
    register(engine, "a")
    seal(engine, KEY)
    with unguarded(engine) as connection:
        connection.execute(sa.delete(TRANSITIONS))
        connection.execute(sa.delete(JOBS))
    copy(engine, target)
    with opened(target) as made, database.writing(made) as connection:
        connection.execute(sa.insert(JOBS).values(cluster="w1", jid="c"))
        assert connection.execute(sa.select(TRANSITIONS.c.id)).scalar_one() == 2


def test_a_daemon_goes_on_while_it_is_copied(engine: sa.Engine, target: str, script: Script, start: Start) -> None:
    """A copy that is made while jobs are polled and sealed verifies, and the daemon has no trouble."""
    with database.writing(engine) as connection:
        connection.execute(sa.insert(JOBS), [{"cluster": "w1", "jid": f"j{number}"} for number in range(300)])
    script.default = "waiting"
    process = start(TRACKER_SEAL_AFTER="0 s", TRACKER_MAX_REQUESTS_PER_SECOND="50")
    until(lambda: len(script.asked) > 50)
    rows = copy(engine, target).rows
    process.terminate()
    assert process.wait() == 0
    with opened(target) as made:
        report = verified(made)
    assert report.is_good, report.findings
    assert (report.transitions, report.checkpoints) == (rows["transitions"], rows["seals"])
    assert report.transitions > 300


def _stopping(source: str, target: str, reached: Path) -> None:
    """Run the command, which stops when the first transitions are written."""

    def stop(done: float, total: float | None, what: str) -> None:
        if what == "transitions":
            reached.touch()
            time.sleep(60)

    vars(cli_db)["progress"] = lambda unit: nullcontext(stop)
    os.environ["TRACKER_DATABASE_URL"] = source
    sys.exit(cli.main(["db", "copy", target]))


@on_sqlite
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_copy_leaves_nothing(
    engine: sa.Engine, url: str, target: str, number: int, tmp_path: Path
) -> None:
    """The target is as it was, and a second run makes the copy; only a kill leaves its folder beside a SQLite file."""
    fill(engine)
    process = Process(_stopping, url, target, tmp_path / "reached")
    until((tmp_path / "reached").exists)
    process.send_signal(number)
    assert process.wait() == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    for folder in Path().glob("tracker-copy-*"):
        assert number == signal.SIGKILL
        shutil.rmtree(folder)
    until(lambda: is_empty(target))
    copy(engine, target)
    assert not is_empty(target)


@on_sqlite
@pytest.mark.parametrize("target", ["sqlite"], indirect=True)
def test_a_full_disk_is_said_in_a_line(engine: sa.Engine, url: str, target: str) -> None:
    """The exit code is 69, and no part of a file stays."""
    fill(engine)
    env = os.environ | {"TRACKER_DATABASE_URL": url}
    limited = f"ulimit -f 200; exec {TRACKER} db copy '{target}'"
    done = subprocess.run(["bash", "-c", limited], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (69, "")
    (line,) = done.stderr.splitlines()
    assert "nothing was copied; the target: the database is not available" in line
    assert is_empty(target)


@on_sqlite
def test_a_target_that_cannot_be_is_refused(run: Run, postgres_of_its_own: Callable[..., str], tmp_path: Path) -> None:
    """Existing files and tables stay as they are; one line says what is wrong and what to do, without the password."""
    (tmp_path / "link.db").symlink_to(tmp_path / "tracker.db")
    (tmp_path / "nowhere.db").symlink_to(tmp_path / "missing.db")
    (tmp_path / "left.db-wal").touch()
    foreign, ours = postgres_of_its_own(), postgres_of_its_own()
    run_sql(sa.make_url(foreign), "CREATE TABLE jobs (id int)")
    database.upgrade(ours)
    before = sorted(path.name for path in tmp_path.iterdir())
    for target, code, words in (
        (f"sqlite:///{tmp_path}/../{tmp_path.name}/tracker.db", 1, "is the database itself"),
        ("sqlite:///link.db", 1, "is the database itself"),
        ("sqlite:///nowhere.db", 1, "exists: name a new file"),
        ("sqlite:///left.db", 1, "left.db-wal exists"),
        ("sqlite:///what?.db", 1, "write ? in the name of a file as %3F"),
        ("sqlite:///no/such/folder.db", 1, "No such file or directory"),
        ("sqlite://", 78, "the target: its URL: a database in memory"),
        ("mysql://u:hush@x/y", 78, "the target: its URL: must begin with sqlite"),
        ("postgresql://u:hush@127.0.0.1:1/none", 69, "the target: the database is not available"),
        (foreign, 78, "has jobs but no tracker_alembic_version"),
        (ours, 78, "has tracker's tables already: name an empty"),
    ):
        found, out, err = run("db", "copy", target)
        assert (found, out, len(err.splitlines())) == (code, "", 1), (target, err)
        assert words in err
        assert "hush" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_source_that_cannot_be_is_refused(engine: sa.Engine, url: str, target: str, run: Run) -> None:
    """With a newer schema, a row past the CHECKs or a damaged file, a line names the source, and nothing is copied."""

    def refusal(code: int) -> str:
        found, out, err = run("db", "copy", target)
        assert (found, out, len(err.splitlines()), is_empty(target)) == (code, "", 1, True)
        return err

    register(engine, "a")
    with database.writing(engine) as connection:
        connection.exec_driver_sql("UPDATE tracker_alembic_version SET version_num = '9999'")
    assert "install a newer tracker" in refusal(78)
    with unchecked(engine) as connection:
        connection.exec_driver_sql("UPDATE tracker_alembic_version SET version_num = '0001'")
        connection.exec_driver_sql("UPDATE jobs SET status = ' '")
    engine.dispose()
    assert "run `tracker audit verify`" in refusal(1)
    if url.startswith("sqlite"):
        file = Path("tracker.db")
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2].ljust(len(content), b"\xff"))
        assert "is not a SQLite database, or is damaged" in refusal(78)
