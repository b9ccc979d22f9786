"""The schema's ways up and down, the two kinds of transaction, the clock and the types, on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa

from tracker import cli, database, guards
from tracker.errors import BadConfiguration, DatabaseMissing, SchemaMismatch
from tracker.models import JOBS, METADATA, UtcDateTime
from tracker.reports import views

ROOT = Path(__file__).parent.parent


def alembic(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRACKER_DATABASE_URL": url}
    command = [sys.executable, "-m", "alembic", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=60, check=True)


def objects(url: str) -> set[tuple[str, str]]:
    """Return the tables, views and triggers at *url*."""
    engine = database.create_engine(url)
    with database.reading(engine) as connection:
        inspector = sa.inspect(connection)
        found = {("table", name) for name in inspector.get_table_names()}
        found |= {("view", name) for name in inspector.get_view_names()}
        found |= {("trigger", name) for name in guards._triggers(connection)}
    engine.dispose()
    return found


def test_plain_alembic_goes_up_checks_and_goes_down(empty_url: str) -> None:
    """`alembic upgrade head`, `check` and `downgrade base` work at the root, and leave nothing behind."""
    alembic(empty_url, "upgrade", "head")
    names = objects(empty_url)
    assert {table for kind, table in names if kind == "table"} == {*METADATA.tables, database.VERSION_TABLE}
    assert {view for kind, view in names if kind == "view"} == set(views.VIEWS)
    assert "No new upgrade operations detected" in alembic(empty_url, "check").stdout
    assert objects(empty_url) == names
    alembic(empty_url, "downgrade", "base")
    assert objects(empty_url) == {("table", database.VERSION_TABLE)}
    alembic(empty_url, "upgrade", "head")
    assert objects(empty_url) == names


def test_upgrade_again_repairs_guards_and_views(url: str, engine: sa.Engine) -> None:
    """`db upgrade` on an upgraded database keeps the data and makes dropped or altered guards and views again."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')")
        guards.drop(connection)
        connection.exec_driver_sql("DROP VIEW report_durations")
        connection.exec_driver_sql("CREATE VIEW report_old AS SELECT 1 AS one")
    line = database.upgrade(url)
    with database.reading(engine) as connection:
        assert guards.problems(connection) == []
        assert connection.exec_driver_sql("SELECT count(*) FROM transitions").scalar_one() == 1
        assert "report_old" in sa.inspect(connection).get_view_names(), "somebody else's"
    assert "guards and views were made again" in line


def test_a_failed_upgrade_leaves_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema comes whole or not at all, on SQLite too."""

    def broken(connection: sa.Connection) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(guards, "create", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        database.upgrade(empty_url)
    assert objects(empty_url) == set()


def test_opening_says_what_is_missing(empty_url: str, dialect: str) -> None:
    """A missing file, an empty database and another version's schema are refused with the command that repairs it."""
    if dialect == "sqlite":
        with pytest.raises(DatabaseMissing, match=r"tracker db upgrade"):
            database.open_database(empty_url)
        assert not Path(str(sa.make_url(empty_url).database)).exists()
        Path(str(sa.make_url(empty_url).database)).touch()
    with pytest.raises(SchemaMismatch, match=r"tracker db upgrade"):
        database.open_database(empty_url)
    database.upgrade(empty_url)
    engine = database.open_database(empty_url)
    for found, way_out in (("0000", "tracker db upgrade"), ("9999", "install a newer tracker")):
        with database.writing(engine) as connection:
            connection.exec_driver_sql(f"UPDATE tracker_alembic_version SET version_num = '{found}'")
        with pytest.raises(SchemaMismatch, match=way_out):
            database.open_database(empty_url)
    engine.dispose()
    with pytest.raises(SchemaMismatch, match="install a newer"):
        database.upgrade(empty_url)


def test_urls_that_cannot_be_are_refused() -> None:
    """A URL of another database, in memory, or that is no URL is refused, and its password is not repeated."""
    for url, problem in (
        ("mysql://u:hush@x/y", "must begin with"),
        ("postgresql://app:hush@db:54a/app", "must be like"),
        ("postgresql://app:hu@hush@db/app", "write @ as %40"),
        ("postgresql://app:hush@one:5432,two:5433/app", "host=one:5432&host=two:5432"),
        ("sqlite://", "in memory keeps nothing"),
        ("sqlite:///:memory:", "in memory keeps nothing"),
    ):
        with pytest.raises(BadConfiguration, match=problem) as caught:
            database.create_engine(url)
        assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """`db upgrade` makes a file, not a folder that somebody mistyped."""
    with pytest.raises(DatabaseMissing, match=r"the folder .* is missing"):
        database.upgrade(f"sqlite:///{tmp_path}/nowhere/tracker.db")


def test_a_file_that_is_no_database_is_reported_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged file is no traceback."""
    (tmp_path / "g.db").write_bytes(os.urandom(5000))
    for name, value in (("DATABASE_URL", "sqlite:///g.db"), ("CLUSTER", "w1"), ("API_KEY", "k")):
        monkeypatch.setenv(f"TRACKER_{name}", value)
    for words in (("db", "check"), ("db", "upgrade"), ("jobs",), ("status",), ("add", "a"), ("run",)):
        assert cli.main(words) == 78
        assert "not a SQLite database, or is damaged" in capsys.readouterr().err


def test_times_are_aware_utc(connection: sa.Connection) -> None:
    """An instant comes back as it was stored, to the microsecond and in UTC; a naive one is refused."""
    east = datetime(2026, 1, 5, 2, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    connection.execute(sa.insert(JOBS).values(cluster="w1", jid="a", submitted_at=east))
    back = connection.execute(sa.select(JOBS.c.submitted_at)).scalar_one()
    assert back is not None
    assert (back, back.tzinfo) == (east, UTC)
    with pytest.raises(ValueError, match="without offset"):
        UtcDateTime().process_bind_param(datetime(2026, 1, 5), connection.dialect)  # noqa: DTZ001
    assert abs(database.now(connection) - datetime.now(UTC)) < timedelta(seconds=5)


def test_no_update_is_lost_between_threads(engine: sa.Engine) -> None:
    """A read and a write in one `writing` transaction are one step for all others."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')")

    def count() -> None:
        for _ in range(20):
            with database.writing(engine) as connection:
                polls = connection.execute(sa.select(JOBS.c.polls).with_for_update()).scalar_one()
                connection.execute(sa.update(JOBS).values(polls=polls + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading(engine) as connection:
        assert connection.execute(sa.select(JOBS.c.polls)).scalar_one() == 80


def test_a_reader_sees_one_state_and_stops_no_writer(engine: sa.Engine) -> None:
    """What is committed while a report is read is not in it, and the writer does not wait for the report."""
    query = "SELECT count(*) FROM jobs"
    with database.reading(engine) as reader:
        assert reader.exec_driver_sql(query).scalar_one() == 0
        with database.writing(engine) as writer:
            writer.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')")
        assert reader.exec_driver_sql(query).scalar_one() == 0
    with database.reading(engine) as reader:
        assert reader.exec_driver_sql(query).scalar_one() == 1


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_sqlite_is_opened_so_that_nothing_is_lost(engine: sa.Engine) -> None:
    """A repaired SQLite writes WAL, another one DELETE, each with every commit on the disk."""
    safe = database.sqlite_library()[1]
    with database.writing(engine) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == ("wal" if safe else "delete")
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 3  # EXTRA
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1


def test_an_old_sqlite_is_refused_before_a_view_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the version that is needed."""
    monkeypatch.setattr(database, "OLDEST_SQLITE", (99, 0))
    with pytest.raises(BadConfiguration, match="or newer is needed"):
        database.create_engine("sqlite:///tracker.db")


# Out of a wheel


ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_installed_wheel_upgrades_a_database_from_any_folder(tmp_path: Path) -> None:
    """The migrations, views and all are in the wheel."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True
    )
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = tmp_path.glob("tracker-*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = os.environ | {"TRACKER_DATABASE_URL": "sqlite:///w.db"}
    for words in (("db", "upgrade"), ("db", "check"), ("status",)):
        command = [python.with_name("tracker"), *words]
        done = subprocess.run(command, cwd=elsewhere, env=env, text=True, capture_output=True)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
