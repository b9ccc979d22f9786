"""``tracker demo``: a week in seconds, checked against what the simulators know to be true."""

from __future__ import annotations

import os
import random
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest
import sqlalchemy as sa

from tests import history
from tests.history import selected
from tracker import cli, database
from tracker.demo import demo
from tracker.demo.simulator import Fate
from tracker.errors import BadConfiguration
from tracker.models import JOBS, TRANSITIONS
from tracker.status import Anomaly, Cause, Kind, State, Status

START = datetime(2026, 1, 5, 10, 0, tzinfo=UTC)


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
    assert played[1].bounds >= 80
    assert played[1].wrong == []


def test_the_scene_has_something_of_each(played: tuple[Path, demo.Outcome], connection: sa.Connection) -> None:
    """Two clusters, an outage of one, jobs done, open and vanished, a jid typed wrong, requests with two jobs."""
    outcome = played[1]
    rows = connection.execute(sa.select(JOBS)).all()
    assert outcome.states == Counter(row.state for row in rows)
    assert sum(outcome.states.values()) == 40
    assert {row.cluster for row in rows} == {*demo.CLUSTERS}
    anomalies = {(row["anomaly"], row["to_state"]) for row in selected(connection, "report_anomalies")}
    assert anomalies == {(Anomaly.VANISHED, State.OPEN), (Anomaly.NEVER_FOUND, State.LOST)}
    assert [row.state for row in rows if row.jid == outcome.example] == [State.LOST]
    references = [row["reference"] for row in selected(connection, "report_requests") if row["jobs"] == 2]
    assert references
    (gap,) = selected(connection, "report_gaps")
    assert (gap["cluster"], gap["cause"], gap["is_open"]) == (demo.SOUTH, Cause.UNREACHABLE, 0)
    assert gap["seconds"] == played[1].gap_seconds
    assert 3600 < gap["seconds"] < 40 * 3600  # from the first failed poll to the next good one
    assert {row["cluster"] for row in selected(connection, "report_coverage") if row["covered_share"] < 1} == {
        demo.SOUTH
    }


def test_the_week_ends_now(played: tuple[Path, demo.Outcome], connection: sa.Connection) -> None:
    """All times are within the seven days that end now, no poll is behind, and each job is its history's replay."""
    now, outcome = datetime.now(UTC), played[1]
    assert now - timedelta(minutes=2) < outcome.now < now
    assert timedelta(days=7) < outcome.now - outcome.began_at < timedelta(days=7, seconds=outcome.seconds)
    engine = connection.engine
    for row in connection.execute(sa.select(JOBS)).all():
        assert outcome.began_at < row.submitted_at < row.registered_at <= row.status_by < now
        assert row.due_at is None or row.due_at > outcome.now
        assert (row.leased_by, row.failures) == (None, 0)
        history.job(engine, row.id)


def test_its_figures(played: tuple[Path, demo.Outcome], connection: sa.Connection) -> None:
    """Polls are those of the database, ends are seen soon, and a fixed interval would have taken far more polls."""
    outcome = played[1]
    assert outcome.polls == connection.execute(sa.select(sa.func.sum(JOBS.c.polls))).scalar_one()
    assert outcome.ended_polls
    assert outcome.fixed_polls
    assert outcome.delay_seconds
    assert 0 < outcome.delay_seconds < 3600
    assert outcome.fixed_polls > 3 * outcome.ended_polls


def test_a_plan_has_as_many_as_asked_for_in_order_and_a_day_between_copy_and_removal() -> None:
    """Whatever the numbers: exactly as many, within the span, received before; the removal a day after its export."""
    for jobs, days in ((1, 1), (2, 1), (301, 7), (50, 30)):
        planned = demo.plan(random.Random(jobs), jobs, START, timedelta(days=days))
        assert len(planned) == jobs
        assert [one.at for one in planned] == sorted(one.at for one in planned)
        assert all(one.received_at < one.at < START + timedelta(days=days) for one in planned)
    exports = {one.reference: one.at for one in planned if one.kind is Kind.EXPORT}
    removals = [one for one in planned if one.kind is Kind.REMOVAL and one.reference in exports]
    assert {one.at - exports[one.reference] for one in removals} == {timedelta(days=1)}


def test_no_file_but_a_demos_own_is_replaced(tmp_path: Path) -> None:
    """A file of somebody else's, a database with other jobs or in use, or another page is refused with the way out."""
    stop = Event()
    stop.set()
    own, page = tmp_path / "own.db", tmp_path / "own.html"
    assert demo.run(own, stop=stop).interrupted
    demo.run(own, stop=stop)  # its own is replaced
    assert demo.write_page(own) == page
    demo.make_way(own)

    def refused(path: Path, reason: str) -> None:
        before = path.read_bytes() if path.exists() else b""
        with pytest.raises(BadConfiguration, match=rf"{reason}.*name another file with --database"):
            demo.run(path)
        assert (path.read_bytes() if path.exists() else b"") == before

    (tmp_path / "notes.db").write_text("my notes")
    database.upgrade(demo.url_of(tmp_path / "another.db"))
    for name in ("notes.db", "another.db"):
        refused(tmp_path / name, "is not a demo's")
    refused(tmp_path / "nowhere" / "a.db", "nowhere")
    page.write_text("<title>my own</title>", encoding="utf-8")
    refused(own, "was not written by tracker")
    page.unlink()
    database.upgrade(demo.url_of(own))
    with closing(sqlite3.connect(own)) as other:
        other.execute("SELECT * FROM jobs")
        with pytest.raises(BadConfiguration, match=r"locked.* --database"):
            demo.make_way(own)
        other.execute("INSERT INTO jobs (cluster, jid) VALUES ('demo', 'mine')")
        other.commit()
    refused(own, "has jobs that no demo registered")


def test_it_ends_with_the_report_and_commands_that_work(tmp_path: Path) -> None:
    """The report is on standard output, all else on standard error; each command works as printed, on any PATH."""
    program = Path(sys.executable).with_name("tracker")
    command: list[str | Path] = [program, "demo", "--jobs", "6", "--days", "1", "--database", "it's a demo.db"]
    env, path = {"PATH": "/nowhere"}, tmp_path / "it's a demo.db"
    done = subprocess.run(command, env=env, cwd=tmp_path, text=True, capture_output=True, timeout=60, check=True)
    assert "cluster" in done.stdout
    assert "truly happened between their two bounds" in " ".join(done.stderr.split())
    place, *commands, page = done.stderr.splitlines()[-7:]
    assert place == f"The database is {path}. Try on it:"
    assert page == f"All reports as a page, for a browser: {path.with_suffix('.html').as_uri()}"
    assert "6 jobs" in path.with_suffix(".html").read_text(encoding="utf-8")
    for line in commands:
        assert str(program) in shlex.split(line)
        subprocess.run(["/bin/sh", "-c", line], env=env, cwd=tmp_path, capture_output=True, timeout=60, check=True)


def test_a_bound_without_the_truth_fails_it(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 1, and the job, the bounds and the truth are printed: the check can fail."""

    def wrong(fate: Fate) -> dict[Status, datetime]:
        return dict.fromkeys(Status, fate.gone_at or fate.ends_at)

    monkeypatch.setattr(Fate, "entered", property(wrong))
    monkeypatch.setattr(Fate, "status_at", lambda fate, at: Status.WAITING)
    assert cli.main(["demo", "--jobs", "4", "--days", "1"]) == 1
    assert "recorded changes of status were not between their bounds" in " ".join(capfd.readouterr().err.split())


def is_under_way(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("SELECT count(*) > 20 FROM jobs").fetchone()[0])
    except sqlite3.Error:  # not made yet
        return False


def test_a_signal_ends_it_and_says_where_things_are(tmp_path: Path) -> None:
    """Exit 128 and the signal's number; the database is whole, no job is leased, and commands to try are printed."""
    program, path = Path(sys.executable).with_name("tracker"), tmp_path / "tracker-demo.db"
    process = subprocess.Popen(
        [program, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ}
    )
    try:
        while not is_under_way(path):
            assert process.poll() is None, "it ended by itself"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (128 + signal.SIGINT, "")
    assert "Interrupted; nothing is left running." in err.splitlines()
    assert f"The database is {path}. Try on it:" in err.splitlines()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM jobs WHERE leased_by IS NOT NULL").fetchone() == (0,)
