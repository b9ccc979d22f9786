"""``tracker demo``: a week in seconds, checked against what the simulators know to be true."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.history import selected
from tracker import database
from tracker.demo import demo
from tracker.errors import BadConfiguration
from tracker.models import JOBS, TRANSITIONS


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, demo.Outcome]:
    path = tmp_path_factory.mktemp("demo") / "tracker-demo.db"
    return path, demo.run(path, jobs=40)


@pytest.fixture
def connection(played: tuple[Path, demo.Outcome]) -> Iterator[sa.Connection]:
    engine = database.open_database(demo.url_of(played[0]))
    with database.reading(engine) as connection:
        yield connection
    engine.dispose()


def test_every_recorded_bound_holds_the_truth(played: tuple[Path, demo.Outcome], connection: sa.Connection) -> None:
    """What was seen was so when it was seen, and the true duration of each done job is between its bounds."""
    elevates = played[1].elevates
    query = sa.select(TRANSITIONS, JOBS.c.cluster, JOBS.c.jid).join(JOBS, JOBS.c.id == TRANSITIONS.c.job_id)
    seen = [row for row in connection.execute(query) if row.to_status is not None]
    assert len(seen) > 80
    for row in seen:
        elevate = elevates[row.cluster]
        assert elevate.status_at(row.jid, row.observed_at) == row.to_status
        if row.last_seen_at is not None:
            assert elevate.status_at(row.jid, row.last_seen_at) == row.from_status
    done = selected(connection, "report_durations")
    assert len(done) >= 10
    for job in done:
        fate = elevates[job["cluster"]].truth(job["jid"])
        took = (fate.ends_at - datetime.fromisoformat(f"{job['submitted_at']}+00:00")).total_seconds()
        assert job["seconds_min"] < took <= job["seconds_max"]


def test_no_file_is_replaced(tmp_path: Path) -> None:
    """A database or a page that is there, and a folder that is not, are refused; nothing is changed."""
    for name, there in (("a.db", "a.db"), ("b.db", "b.html")):
        (tmp_path / there).write_text("my own")
        with pytest.raises(BadConfiguration, match=rf"{there} is there already: .* --database"):
            demo.run(tmp_path / name)
        assert (tmp_path / there).read_text() == "my own"
    with pytest.raises(BadConfiguration, match="nowhere"):
        demo.run(tmp_path / "nowhere" / "a.db")


def test_it_ends_with_the_report_and_commands_that_work(tmp_path: Path) -> None:
    """The report is on standard output, all else on standard error; each command works as printed, on any PATH."""
    program = Path(sys.executable).with_name("tracker")
    command: list[str | Path] = [program, "demo", "--jobs", "6", "--days", "1", "--database", "it's a demo.db"]
    env, path = {"PATH": "/nowhere"}, tmp_path / "it's a demo.db"
    done = subprocess.run(command, env=env, cwd=tmp_path, text=True, capture_output=True, timeout=60, check=True)
    assert "cluster" in done.stdout
    place, *commands, page = done.stderr.splitlines()[-7:]
    assert place == f"The database is {path}. Commands to try:"
    assert page == f"All reports on one page, for a browser: {path.with_suffix('.html').as_uri()}"
    assert "6 jobs" in path.with_suffix(".html").read_text(encoding="utf-8")
    for line in commands:
        assert str(program) in shlex.split(line)
        subprocess.run(["/bin/sh", "-c", line], env=env, cwd=tmp_path, capture_output=True, timeout=60, check=True)
