"""``tracker demo``: a week in seconds, checked against what the simulator knows to be true."""

from __future__ import annotations

import os
import random
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest
import sqlalchemy as sa

from tracker import cli, database
from tracker.demo import demo
from tracker.errors import BadConfiguration
from tracker.models import JOBS, TRANSITIONS, job_of, transition_of
from tracker.status import Anomaly, Kind, State, replay

START = datetime(2026, 1, 5, 10, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, demo.Outcome]:
    path = tmp_path_factory.mktemp("demo") / "tracker-demo.db"
    return path, demo.run(path, jobs=20)


@pytest.fixture
def connection(played: tuple[Path, demo.Outcome]) -> Iterator[sa.Connection]:
    engine = database.open_database(demo.url_of(played[0]))
    with database.reading(engine) as connection:
        yield connection
    engine.dispose()


def test_every_recorded_bound_holds_the_truth(played: tuple[Path, demo.Outcome], connection: sa.Connection) -> None:
    """What was seen was so when it was seen, and the true instant of each job's last change is within (after, by]."""
    elevate = played[1].elevate
    rows = connection.execute(sa.select(TRANSITIONS, JOBS.c.jid).join(JOBS, JOBS.c.id == TRANSITIONS.c.job_id)).all()
    seen = [row for row in rows if row.to_status is not None]
    assert len(seen) > 40
    for row in seen:
        assert elevate.status_at(row.jid, row.observed_at) == row.to_status
        if row.last_seen_at is not None:
            assert elevate.status_at(row.jid, row.last_seen_at) == row.from_status
            assert row.last_seen_at < row.observed_at
    checked = Counter[str]()
    for row in connection.execute(sa.select(JOBS)):
        entries = {"created": "created_at", "started": "created_at", "waiting": "waits_at", "running": "runs_at"}
        if row.status == "not_found":
            continue
        truth = getattr(elevate.truth(row.jid), entries.get(row.status, "ends_at"))
        assert (row.status_after or row.submitted_at) < truth <= row.status_by
        assert row.submitted_at < elevate.truth(row.jid).created_at
        checked[row.state] += 1
    assert checked[State.DONE] >= 5
    assert checked[State.OPEN] >= 5
    assert played[1].bounds >= 40
    assert played[1].wrong == []


def test_the_scene_has_something_of_each(played: tuple[Path, demo.Outcome], connection: sa.Connection) -> None:
    """Done and open jobs, a vanished one, a jid typed wrong, and requests with both an export and a removal."""
    outcome = played[1]
    rows = connection.execute(sa.select(JOBS)).all()
    assert len(rows) == 20
    assert outcome.progress.states == Counter(row.state for row in rows)
    assert {Kind.EXPORT, Kind.REMOVAL} == {row.kind for row in rows}
    anomalies = sa.select(TRANSITIONS.c.anomaly, TRANSITIONS.c.to_state).where(TRANSITIONS.c.anomaly.is_not(None))
    assert {(row.anomaly, row.to_state) for row in connection.execute(anomalies)} == {
        (Anomaly.VANISHED, State.OPEN),
        (Anomaly.NEVER_FOUND, State.LOST),
    }
    example = next(row for row in rows if row.jid == outcome.example)
    assert example.state is State.LOST
    by_reference = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.submitted_at):
        by_reference[row.reference].append(row.kind)
    assert [Kind.EXPORT, Kind.REMOVAL] in by_reference.values()
    assert connection.exec_driver_sql("SELECT count(*) FROM report_durations").scalar_one() >= 5


def test_the_week_ends_now(played: tuple[Path, demo.Outcome], connection: sa.Connection) -> None:
    """All times lie within the seven days that end now, registrations too, and no poll is behind."""
    now = datetime.now(UTC)
    outcome = played[1]
    assert now - timedelta(minutes=2) < outcome.progress.now < now
    passed = outcome.progress.now - outcome.began_at
    assert timedelta(days=7) < passed < timedelta(days=7, seconds=outcome.seconds)
    for row in connection.execute(sa.select(JOBS)):
        assert outcome.began_at < row.submitted_at < row.registered_at <= row.status_by < now
        assert row.due_at is None or row.due_at > outcome.progress.now
        assert (row.leased_by, row.failures) == (None, 0)
    assert outcome.progress.share == 1


def test_the_history_is_whole(played: tuple[Path, demo.Outcome], connection: sa.Connection) -> None:
    """Each job is the replay of its transitions."""
    histories = defaultdict(list)
    for row in connection.execute(sa.select(TRANSITIONS).order_by(TRANSITIONS.c.seq)):
        histories[row.job_id].append(transition_of(row))
    for row in connection.execute(sa.select(JOBS)):
        job, again = job_of(row), replay(histories[row.id]).job
        assert (again.facts, again.state, again.status, again.seq) == (job.facts, job.state, job.status, job.seq)
        assert (again.status_after, again.status_by) == (job.status_after, job.status_by)
        assert (again.ended_after, again.ended_by) == (job.ended_after, job.ended_by)


def test_its_figures_are_those_of_the_database(played: tuple[Path, demo.Outcome], connection: sa.Connection) -> None:
    """Polls, the mean delay after the true end and the fixed interval's polls, computed here anew."""
    outcome = played[1]
    assert outcome.progress.polls == connection.execute(sa.select(sa.func.sum(JOBS.c.polls))).scalar_one()
    rows = connection.execute(sa.select(JOBS).where(JOBS.c.state.in_(("done", "failed")))).all()
    delays = [(row.ended_by - outcome.elevate.truth(row.jid).ends_at).total_seconds() for row in rows]
    followed = [(row.ended_by - row.registered_at).total_seconds() for row in rows]
    assert outcome.ended == len(rows)
    assert outcome.delay_seconds == pytest.approx(sum(delays) / len(rows))
    assert outcome.fixed_polls == pytest.approx(sum(followed) / (sum(delays) / len(rows) * 2) / len(rows))
    assert outcome.ended_polls == pytest.approx(sum(row.polls for row in rows) / len(rows))
    assert outcome.fixed_polls is not None
    assert outcome.fixed_polls > 3 * sum(row.polls for row in rows) / len(rows)
    assert min(delays) > 0


def test_a_plan_has_as_many_as_asked_for_in_order_and_a_day_between_copy_and_removal() -> None:
    """Whatever the numbers: exactly so many, within the span, received before; the removal a day after its export."""
    for jobs, days in ((1, 1), (2, 1), (20, 7), (301, 7), (50, 30)):
        planned = demo.plan(random.Random(jobs), jobs, START, timedelta(days=days))
        assert len(planned) == jobs
        assert [one.at for one in planned] == sorted(one.at for one in planned)
        assert all(START <= one.at < START + timedelta(days=days) for one in planned)
        assert all(one.received_at < one.at for one in planned)
        assert sum(one.mistyped for one in planned) == 1
    exports = {one.reference: one.at for one in planned if one.kind is Kind.EXPORT}
    removals = [one for one in planned if one.kind is Kind.REMOVAL and one.reference in exports]
    assert len(removals) > 5
    assert {one.at - exports[one.reference] for one in removals} == {timedelta(days=1)}


def test_the_clock_leaps_ahead_only_and_never_past_the_present() -> None:
    """A leap back changes nothing, one into the future ends now."""
    clock = demo.LaggingClock(timedelta(days=1))
    clock.leap(datetime.now(UTC) - timedelta(days=2))
    assert clock.lag == timedelta(days=1)
    before = clock()
    clock.leap(before + timedelta(hours=1))
    assert timedelta(hours=1) <= clock() - before < timedelta(hours=1, seconds=30)
    clock.leap(datetime.now(UTC) + timedelta(days=1))
    assert clock.lag == timedelta()


def test_stopped_before_it_begins_it_leaves_an_empty_database(tmp_path: Path) -> None:
    """The schema is there, no job is, and the next demo takes its place."""
    stop = Event()
    stop.set()
    outcome = demo.run(tmp_path / "a.db", stop=stop)
    assert outcome.interrupted
    assert (outcome.progress.states, outcome.bounds, outcome.fixed_polls) == ({}, 0, None)
    database.open_database(demo.url_of(tmp_path / "a.db")).dispose()
    demo.make_way(tmp_path / "a.db")
    assert (tmp_path / "a.db").stat().st_size < 10_000


def write_text(path: Path) -> None:
    path.write_text("my notes")


def write_nothing(path: Path) -> None:
    path.touch()


def write_another_database(path: Path) -> None:
    database.upgrade(demo.url_of(path))


def write_own_job(path: Path) -> None:
    demo.make_way(path)
    database.upgrade(demo.url_of(path))
    engine = database.open_database(demo.url_of(path))
    with database.writing(engine) as connection:
        connection.execute(sa.insert(JOBS).values(cluster="demo", jid="mine"))
    engine.dispose()


@pytest.mark.parametrize("write", [write_text, write_nothing, write_another_database, write_own_job])
def test_no_file_but_a_demos_own_is_replaced(write: Callable[[Path], None], tmp_path: Path) -> None:
    """What somebody else made or put jobs into is refused with the way out, and stays as it is."""
    path = tmp_path / "precious.db"
    write(path)
    before = path.read_bytes()
    with pytest.raises(BadConfiguration, match=r"precious\.db .*name another file with --database"):
        demo.run(path)
    assert path.read_bytes() == before


def test_a_database_that_is_open_elsewhere_is_not_replaced(tmp_path: Path) -> None:
    """A demo that runs in another window keeps its database: SQLite would mix the two up."""
    path = tmp_path / "a.db"
    demo.make_way(path)
    database.upgrade(demo.url_of(path))
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT * FROM jobs")
        with pytest.raises(BadConfiguration, match=r"locked.* --database"):
            demo.make_way(path)
    database.open_database(demo.url_of(path)).dispose()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The place and the way out, not a traceback."""
    with pytest.raises(BadConfiguration, match=r"nowhere.*--database"):
        demo.run(tmp_path / "nowhere" / "a.db")


def test_it_ends_with_the_report_and_commands_that_work(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is on standard output, all else on standard error, and each command can be pasted as it is printed."""
    path = Path("it's a demo.db").absolute()
    assert cli.main(["demo", "--jobs", "6", "--days", "1", "--database", path.name]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[0].startswith("cluster,kind,jobs,")
    place, *commands, page = err.splitlines()[-6:]
    assert place == f"The database is {path}. Try on it:"
    assert page == f"All reports as a page, for a browser: {path.with_suffix('.html').as_uri()}"
    assert " UTC. 6 jobs: " in path.with_suffix(".html").read_text(encoding="utf-8")
    for command in commands:
        variable, program, *arguments = shlex.split(command)
        assert program == "tracker"
        monkeypatch.setenv(*variable.split("=", 1))
        assert cli.main(arguments) == 0, command
        out, err = capfd.readouterr()
        assert "seq" in out or "cluster" in out


def test_the_commands_name_the_program_as_it_was_started(tmp_path: Path) -> None:
    """Without a tracker on the PATH the commands must still work as they are printed."""
    program = Path(sys.executable).with_name("tracker")
    command: list[str | Path] = [program, "demo", "--jobs", "2", "--days", "1", "--database", "a.db"]
    env = {"PATH": "/nowhere"}
    done = subprocess.run(command, env=env, cwd=tmp_path, text=True, capture_output=True, timeout=60, check=True)
    printed = [line.strip() for line in done.stderr.splitlines() if line.startswith("  TRACKER_DATABASE_URL=")]
    assert len(printed) == 4
    for line in printed:
        subprocess.run(["/bin/sh", "-c", line], env=env, cwd=tmp_path, capture_output=True, timeout=60, check=True)


def test_the_page_of_an_earlier_demo_is_replaced_and_no_other_file(tmp_path: Path) -> None:
    """What stands where the page goes is refused before anything is made, unless it is a page of ours."""
    page = tmp_path / "demo.html"
    page.write_text("<title>my own</title>", encoding="utf-8")
    with pytest.raises(BadConfiguration, match=r"demo\.html, where the demo writes its page, is none of tracker's"):
        demo.make_way(tmp_path / "demo.db")
    assert not (tmp_path / "demo.db").exists()
    page.unlink()
    database.upgrade(demo.url_of(tmp_path / "demo.db"))
    assert demo.write_page(tmp_path / "demo.db") == page
    (tmp_path / "demo.db").unlink()
    demo.make_way(tmp_path / "demo.db")


def test_a_bound_without_the_truth_fails_it(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 1, and the job, the bounds and the truth are told: the check can fail."""
    right = demo.ForgetfulElevate.entered_at

    def wrong(self: demo.ForgetfulElevate, jid: str, status: str) -> datetime | None:
        at = right(self, jid, status)
        return at and at + timedelta(hours=9)

    monkeypatch.setattr(demo.ForgetfulElevate, "entered_at", wrong)
    assert cli.main(["demo", "--jobs", "4", "--days", "1"]) == 1
    assert "recorded changes were not between their bounds" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_says_where_things_are(number: signal.Signals, tmp_path: Path) -> None:
    """Exit 128 and the signal's number; the database is whole, no job is leased, and the way to look at it is told."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from tracker.cli import main; sys.exit(main())", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stderr is not None
        while " open; " not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 128 + number
    assert out == ""
    told = err.splitlines()
    assert "Interrupted; nothing is left running." in told
    assert f"The database is {tmp_path / 'tracker-demo.db'}. Try on it:" in told
    with closing(sqlite3.connect(tmp_path / "tracker-demo.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM jobs WHERE leased_by IS NOT NULL").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() > (0,)
