"""``tracker db upgrade`` and ``db check`` as an operator meets them, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from tracker import cli, database, guards


@pytest.fixture
def on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands go to the test's database."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)


def test_upgrade_makes_what_check_finds_good(
    empty_url: str, dialect: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a schema `check` names the command that makes it; that command does, says so, and may be repeated."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", empty_url)
    assert cli.main(["db", "check"]) == (78 if dialect == "sqlite" else 1)
    out, err = capsys.readouterr()
    assert "`tracker db upgrade`" in (err if dialect == "sqlite" else out)
    assert not Path("empty.db").exists()
    for said in ("upgraded from empty", "has this version's schema"):
        assert cli.main(["db", "upgrade"]) == 0
        assert said in capsys.readouterr().out
    assert cli.main(["db", "check"]) == 0
    assert "schema, guards and views are as version" in capsys.readouterr().out


@pytest.mark.usefixtures("on")
def test_check_names_each_problem(engine: sa.Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables, columns, guards and views: a line for each that is missing or altered, and exit code 1."""
    sqlite = engine.dialect.name == "sqlite"
    with database.writing(engine) as connection:
        on_table = "" if sqlite else " ON jobs"
        for statement in (
            "DROP TABLE deliveries",
            "ALTER TABLE workers RENAME COLUMN version TO release",
            "ALTER TABLE workers ADD COLUMN password VARCHAR",
            "DROP INDEX ix_jobs_reference",
            f"DROP TRIGGER guard_jobs_delete{on_table}",
            "DROP VIEW report_durations",
            "DROP VIEW report_jobs",
            "CREATE VIEW report_jobs AS SELECT 1 AS cluster",
        ):
            connection.exec_driver_sql(statement)
    assert cli.main(["db", "check"]) == 1
    out, err = capsys.readouterr()
    expected = (
        "table deliveries is missing",
        "index ix_jobs_reference of table jobs is missing or changed",
        "guard guard_jobs_delete is missing",
        "view report_jobs is changed",
        "view report_durations is missing",
        "table workers: missing or changed: version ",
        "table workers: not tracker's: release ",
    )
    assert "password" in out  # on SQLite it follows a CHECK in the same line
    for line in expected:
        assert any(one.startswith(line) for one in out.splitlines()), (line, out)
    others = [one for one in out.splitlines() if not one.startswith(expected)]
    assert all("deliveries" in one or "workers" in one for one in others), "their guards and CHECKs change with them"
    assert "tracker db upgrade" in err


@pytest.mark.usefixtures("on")
def test_check_leaves_alone_what_is_not_trackers(engine: sa.Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """A company's own tables beside ours, and its own indexes on ours, are no problem; nothing is left behind."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE submissions (jid VARCHAR)")
        connection.exec_driver_sql("CREATE INDEX our_own ON jobs (kind)")
    with database.reading(engine) as connection:
        before = sorted(sa.inspect(connection).get_view_names())
    for _ in range(2):
        assert cli.main(["db", "check"]) == 0, capsys.readouterr().out
    with database.reading(engine) as connection:
        assert sorted(sa.inspect(connection).get_view_names()) == before
        assert guards.problems(connection) == []


@pytest.mark.usefixtures("on")
def test_another_versions_schema_is_one_problem(engine: sa.Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """All else would follow from it, so only the version is named, with the way out."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql("UPDATE tracker_alembic_version SET version_num = '9999'")
        connection.exec_driver_sql("DROP VIEW report_jobs")
    assert cli.main(["db", "check"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "install a newer tracker" in line


def test_the_password_is_not_shown(
    url: str, dialect: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither command repeats a password in the database's URL."""
    if dialect == "postgresql":
        url = sa.make_url(url).set(password="secret-word").render_as_string(hide_password=False)  # noqa: S106
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)
    assert (cli.main(["db", "upgrade"]), cli.main(["db", "check"])) == (0, 0)
    out, err = capsys.readouterr()
    assert "secret-word" not in out + err
    assert str(sa.make_url(url).database) in out
