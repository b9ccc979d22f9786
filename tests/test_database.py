"""The schema's ways up and down, the two kinds of transaction, the clock and the types, on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from tests.conftest import run_sql
from tracker import cli, database, guards
from tracker.errors import BadConfiguration, DatabaseMissing, DatabaseUnavailable, SchemaMismatch
from tracker.models import Base, JobRow, UtcDateTime
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
        found |= {("trigger", name) for name, _ in guards._present(connection)}
    engine.dispose()
    return found


def test_plain_alembic_goes_up_checks_and_goes_down(empty_url: str) -> None:
    """`alembic upgrade head`, `check` and `downgrade base` work at the root, and leave nothing behind."""
    alembic(empty_url, "upgrade", "head")
    names = objects(empty_url)
    assert {table for kind, table in names if kind == "table"} == {*Base.metadata.tables, database.VERSION_TABLE}
    assert {view for kind, view in names if kind == "view"} == set(views.VIEWS)
    assert "No new upgrade operations detected" in alembic(empty_url, "check").stdout
    assert objects(empty_url) == names
    alembic(empty_url, "downgrade", "base")
    assert objects(empty_url) == {("table", database.VERSION_TABLE)}
    alembic(empty_url, "upgrade", "head")
    assert objects(empty_url) == names


def test_head_is_the_newest_revision() -> None:
    """The revision that the program asks for is the one that the migrations end with."""
    config = Config()
    config.set_main_option("script_location", str(database.migrations()))
    assert ScriptDirectory.from_config(config).get_current_head() == database.HEAD


def test_upgrade_again_mends_guards_and_views(url: str, engine: sa.Engine) -> None:
    """`db upgrade` on an upgraded database keeps the data and makes dropped or altered guards and views anew."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')")
        guards.drop(connection)
        connection.exec_driver_sql("DROP VIEW report_durations")
        connection.exec_driver_sql("CREATE VIEW report_old AS SELECT 1 AS one")
    told: list[str] = []
    database.upgrade(url, told.append)
    with database.reading(engine) as connection:
        assert guards.problems(connection) == []
        assert connection.exec_driver_sql("SELECT count(*) FROM transitions").scalar_one() == 1
        assert "report_old" in sa.inspect(connection).get_view_names(), "somebody else's"
    assert "guards and views were made again" in told[0]


def test_views_are_checked(engine: sa.Engine) -> None:
    """A view that is missing or says something else is named."""
    with engine.connect() as connection:
        assert views.problems(connection) == []
        connection.rollback()
    with database.writing(engine) as connection:
        connection.exec_driver_sql("DROP VIEW report_jobs")
        connection.exec_driver_sql("DROP VIEW report_durations")
        connection.exec_driver_sql("CREATE VIEW report_durations AS SELECT 1 AS id")
    with engine.connect() as connection:
        assert views.problems(connection) == ["view report_jobs is missing", "view report_durations is changed"]
        connection.rollback()


def test_a_failed_upgrade_leaves_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema comes whole or not at all, on SQLite too."""

    def broken(connection: sa.Connection) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(guards, "create", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        database.upgrade(empty_url)
    assert objects(empty_url) == set()


def test_opening_says_what_is_missing(empty_url: str, dialect: str) -> None:
    """A missing file, an empty database and another version's schema are refused with the command that mends it."""
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


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("tracker.db", "must begin with"),
        ("mysql://u:hush@x/y", "must begin with"),
        ("postgresql://app:hush/db", "must be like"),
        ("postgresql://app:hush@db:/app", "must be like"),
        ("postgresql://app:hush@db:54a/app", "must be like"),
        ("postgresql://app:hu@hush@db/app", "write @ as %40"),
        ("postgresql://a/p:hush@db/app", "must be like"),
        ("postgresql://app:hush@d b/app", "must be like"),
        ("postgresql://app:hush@one:5432,two:5433/app", "host=one:5432&host=two:5432"),
        ("sqlite://", "in memory keeps nothing"),
        ("sqlite:///:memory:", "in memory keeps nothing"),
    ],
)
def test_urls_that_cannot_be_are_refused(url: str, problem: str) -> None:
    """A URL that is none, of another database, or in memory is refused, and its password is not repeated."""
    with pytest.raises(BadConfiguration, match=problem) as caught:
        database.create_engine(url)
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """`db upgrade` makes a file, not a folder that somebody mistyped."""
    with pytest.raises(DatabaseMissing, match=r"the folder .* is missing"):
        database.upgrade(f"sqlite:///{tmp_path}/nowhere/tracker.db")


def test_a_server_that_does_not_answer_is_unavailable() -> None:
    """A refused connection is DatabaseUnavailable, without the password."""
    with pytest.raises(DatabaseUnavailable) as caught:
        database.open_database("postgresql+psycopg://u:hush@127.0.0.1:1/none")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("words", [("db", "check"), ("db", "upgrade"), ("jobs",), ("status",), ("add", "a"), ("run",)])
def test_a_file_that_is_no_database_is_told_in_a_line(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged file is no traceback."""
    (tmp_path / "g.db").write_bytes(os.urandom(5000))
    for name, value in (("DATABASE_URL", "sqlite:///g.db"), ("CLUSTER", "w1"), ("API_KEY", "k")):
        monkeypatch.setenv(f"TRACKER_{name}", value)
    assert cli.main(words) == 78
    assert "not a SQLite database, or damaged" in capsys.readouterr().err


def test_a_role_without_rights_is_told_in_a_line(
    postgres_of_its_own: Callable[..., str],
    postgres_template: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the role may not do is told, without the statement, and the password in the URL is not."""
    url = sa.make_url(postgres_of_its_own(postgres_template))
    role = f"r{os.urandom(4).hex()}"
    run_sql(url, f"CREATE ROLE {role} LOGIN PASSWORD 'hush'")
    run_sql(url, f"GRANT SELECT ON tracker_alembic_version TO {role}")
    try:
        text = url.set(username=role).render_as_string(hide_password=False)
        monkeypatch.setenv("TRACKER_DATABASE_URL", f"{text}&password=hush")
        assert cli.main(["jobs"]) == 78
        told = capsys.readouterr()
        assert "permission denied" in told.err
        assert "SELECT" not in told.err
        cli.main(["db", "check"])
        told = capsys.readouterr()
        assert "hush" not in told.out + told.err
    finally:
        run_sql(url, f"DROP OWNED BY {role}")
        run_sql(url, f"DROP ROLE {role}")


def test_times_are_aware_utc(engine: sa.Engine) -> None:
    """An instant comes back as it was stored, to the microsecond and in UTC; a naive one is refused."""
    east = datetime(2026, 1, 5, 2, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    with database.writing(engine) as connection:
        connection.execute(sa.insert(JobRow).values(cluster="w1", jid="a", submitted_at=east))
    with database.reading(engine) as connection:
        back = connection.execute(sa.select(JobRow.submitted_at)).scalar_one()
    assert back == east
    assert back is not None
    assert back.tzinfo is UTC
    with pytest.raises(ValueError, match="without offset"):
        UtcDateTime().process_bind_param(datetime(2026, 1, 5), engine.dialect)  # noqa: DTZ001
    with database.reading(engine) as connection:
        assert abs(database.now(connection) - datetime.now(UTC)) < timedelta(seconds=5)


def test_what_a_database_sets_by_default_changes_nothing(
    postgres_of_its_own: Callable[..., str], postgres_template: str
) -> None:
    """Dates and figures come as they are, whatever the database's way of writing them is."""
    url = sa.make_url(postgres_of_its_own(postgres_template))
    for setting in ("datestyle = 'SQL, DMY'", "extra_float_digits = 0", "timezone = 'Asia/Tokyo'"):
        run_sql(url, f"ALTER DATABASE {url.database} SET {setting}")
    engine = database.open_database(url.render_as_string(hide_password=False))
    with database.reading(engine) as connection:
        assert abs(database.now(connection) - datetime.now(UTC)) < timedelta(seconds=5)
        assert connection.exec_driver_sql("SELECT CAST(0.1 AS float8) + CAST(0.2 AS float8)").scalar_one() == 0.1 + 0.2
    engine.dispose()


def test_no_update_is_lost_between_threads(engine: sa.Engine) -> None:
    """A read and a write in one `writing` transaction are one step for all others."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')")

    def count() -> None:
        for _ in range(20):
            with database.writing(engine) as connection:
                polls = connection.execute(sa.select(JobRow.polls).with_for_update()).scalar_one()
                connection.execute(sa.update(JobRow).values(polls=polls + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading(engine) as connection:
        assert connection.execute(sa.select(JobRow.polls)).scalar_one() == 80


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


def test_sqlite_is_opened_so_that_nothing_is_lost(engine: sa.Engine) -> None:
    """A mended SQLite writes WAL, another one DELETE, each with every commit on the disk."""
    if engine.dialect.name != "sqlite":
        pytest.skip("a setting of SQLite")
    safe = database.sqlite_library()[1]
    with database.writing(engine) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == ("wal" if safe else "delete")
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 3  # EXTRA
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1


def test_an_old_sqlite_is_refused_before_a_view_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "OLDEST_SQLITE", (99, 0))
    with pytest.raises(BadConfiguration, match="or newer is needed"):
        database.create_engine("sqlite:///tracker.db")
