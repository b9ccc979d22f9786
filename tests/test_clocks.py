"""Clocks that are set, processes that are frozen, machines that are suspended: what is recorded then, and what is not.

In this process the database's clock is moved by a test, on both databases; with real daemons it is libfaketime that
moves the clock, of SQLite too, but leaves alone the one that counts elapsed time, as a suspended machine does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.scripted import Script, cluster_settings
from tests.test_checks import found
from tests.test_daemon import TRACKER, add, environment, tracker, until
from tests.test_poller import cluster, gaps, histories_are_whole, job
from tracker import clusters, database, poller
from tracker.audit.seal import seal
from tracker.daemon import _Every
from tracker.models import CLUSTERS, JOBS, TRANSITIONS, Gap, Worker
from tracker.poller import Poller, Tally
from tracker.settings import Settings
from tracker.status import Cause

HOURS = timedelta(hours=8)
DAYS = timedelta(days=3)


@pytest.fixture
def script() -> Iterator[Script]:
    with Script().serve() as script:
        yield script


class Moved:
    """The database's clock, moved by so much."""

    def __init__(self) -> None:
        self.by = timedelta()

    def __call__(self, connection: sa.Connection) -> datetime:
        return self.real(connection) + self.by

    real = staticmethod(database.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Moved:
    moved = Moved()
    monkeypatch.setattr(database, "now", moved)
    return moved


@pytest.fixture
def polling(engine: sa.Engine, script: Script) -> Iterator[Poller]:
    with poller.polling(engine, cluster_settings(script.url), Settings(), "test") as made:
        yield made


def run(polling: Poller) -> Tally:
    return polling.run(threading.Event())


def coverage(engine: sa.Engine, jid: str) -> float:
    with database.reading(engine) as connection:
        query = sa.text("SELECT covered_share FROM report_coverage WHERE jid = :jid")
        return float(connection.execute(query, {"jid": jid}).scalar_one())


def test_an_answer_of_a_suspended_machine_is_asked_again(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller
) -> None:
    """It has no time that can be relied on: nothing of it is recorded, and a gap covers the time that is missing."""
    add(engine, "a")
    script.default = "done"

    def suspend(jid: str) -> None:
        clock.by = HOURS
        script.hold = None

    script.hold = suspend
    with database.reading(engine) as connection:
        began_at = Moved.real(connection)
    assert run(polling) + run(polling) == Tally(asked=1, transitions=1)
    assert script.asked == ["a", "a"]
    assert job(engine, "a").ended_by > began_at + HOURS
    ((began, ended, cause, _),) = gaps(engine)
    assert (cause, began < began_at + timedelta(seconds=5), ended > began_at + HOURS) == (Cause.NOT_RUNNING, True, True)
    histories_are_whole(engine)


def test_an_answer_over_a_clock_set_back_is_asked_again(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller
) -> None:
    """A gap without a length says so."""
    clock.by = HOURS
    add(engine, "a")

    def set_back(jid: str) -> None:
        clock.by = timedelta()
        script.hold = None

    script.hold = set_back
    assert run(polling) + run(polling) == Tally(asked=1, transitions=1)
    ((began, ended, cause, detail),) = gaps(engine)
    assert (cause, began == ended, detail) == (Cause.CLOCK_SET, True, "the clock was ahead by 8:00:00")
    nothing_lies_ahead(engine)


def nothing_lies_ahead(engine: sa.Engine, since: tuple[int, int] = (0, 0)) -> None:
    """Assert that no transition and gap after *since* lies in the future, and no plan farther than plans do."""
    with database.reading(engine) as connection:
        now = Moved.real(connection)
        for row in connection.execute(sa.select(TRANSITIONS).where(TRANSITIONS.c.id > since[0])):
            assert row.observed_at <= now
            assert row.last_seen_at is None or row.last_seen_at <= row.observed_at
        for row in connection.execute(sa.select(Gap.__table__).where(Gap.id > since[1])):
            assert row.ended_at <= now
        for row in connection.execute(sa.select(JOBS)):
            assert max(at for at in (row.seen_at, row.status_by, row.registered_at) if at) <= now
            assert row.due_at is None or row.due_at <= now + timedelta(hours=26)
        for row in connection.execute(sa.select(CLUSTERS)):
            assert all(at is None or at <= now for at in (row.answered_at, row.gap_began_at, row.failing_since))


@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_was_ahead_and_is_set_right_stops_nothing(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller, restarted: bool
) -> None:
    """Polls resume at once, no later row lies in the future, and a gap explains the step."""
    add(engine, *"abcd")
    run(polling)
    clock.by = DAYS
    script.answers = {"a": "running", "b": 500}
    with database.writing(engine) as connection:
        connection.execute(sa.update(JOBS).values(due_at=database.now(connection)))
    run(polling)
    assert job(engine, "a").seen_at > datetime.now(UTC) + timedelta(days=2)
    with database.writing(engine) as connection:
        ahead = database.now(connection) + timedelta(minutes=1)
        connection.execute(sa.update(JOBS).where(JOBS.c.jid == "d").values(leased_by="gone", leased_until=ahead))
        connection.execute(sa.update(CLUSTERS).values(next_request_at=ahead))
        facts = {"host": "h", "pid": 1, "version": "1", "started_at": ahead, "beat_at": ahead, "once": False}
        connection.execute(sa.insert(Worker).values(worker="gone", **facts))
        last = connection.execute(sa.select(sa.func.max(TRANSITIONS.c.id))).scalar_one()
    script.answers, script.default = {}, "started"
    clock.by = timedelta()
    if restarted:
        with poller.polling(engine, cluster_settings(script.url), Settings(), "test") as again:
            with database.writing(engine) as connection:
                clusters.take_up(connection, ["w1"], "test")
            assert run(again).transitions == 4
        with database.writing(engine) as connection:
            clusters.take_up(connection, ["w1"], "another")  # it is on record once
    else:
        now, found = clusters.look(engine, polling._watch)
        assert polling.wants(now, *found["w1"])
        assert run(polling).transitions == 4
    steps = [gap for gap in gaps(engine) if gap[2] is Cause.CLOCK_SET]
    assert len(steps) == 1
    assert steps[0][0] == steps[0][1]
    assert steps[0][3].startswith("the clock was ahead by 3 days")
    nothing_lies_ahead(engine, (last, len(gaps(engine)) - 1))


def test_two_daemons_put_a_step_on_record_once(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller
) -> None:
    """Each finds it, on its own."""
    clock.by = DAYS
    with poller.polling(engine, cluster_settings(script.url), Settings(), "other") as other:
        for by, jid in ((DAYS, "a"), (timedelta(), "b")):
            clock.by = by
            add(engine, jid)
            for one in (polling, other):
                clusters.look(engine, one._watch)
                run(one)
    assert [(cause, detail) for _, _, cause, detail in gaps(engine)] == [
        (Cause.CLOCK_SET, "the clock was ahead by 3 days, 0:00:00")
    ]


def test_what_was_sealed_by_a_clock_that_was_ahead_is_a_note(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller
) -> None:
    """Checkpoints lie in the future until the time has come; without the gap that explains it, that is a finding."""
    clock.by = DAYS
    add(engine, "a")
    run(polling)
    seal(engine, None)
    problems = found(engine)
    assert "sealed_at" in " ".join(problem.message for problem in problems if not problem.is_note)
    clock.by = timedelta()
    add(engine, "b")
    clusters.look(engine, polling._watch)
    run(polling)
    seal(engine, None)
    problems = found(engine)
    assert len([problem for problem in problems if "sealed_at" in problem.message and "future" in problem.message]) == 2
    assert [problem for problem in problems if not problem.is_note] == []


def test_a_process_that_stood_still_leaves_a_gap(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller
) -> None:
    """Nobody looked for more than a minute, although nothing was due: the next request ends the gap."""
    add(engine, "a")
    run(polling)
    clusters.look(engine, polling._watch)
    assert polling._watch._last is not None
    now, tick = polling._watch._last
    polling._watch._last = now - timedelta(seconds=75), tick - 75
    with database.writing(engine) as connection:  # it was registered long ago
        connection.execute(sa.update(CLUSTERS).values(answered_at=now - timedelta(seconds=80)))
    looked_at, found = clusters.look(engine, polling._watch)
    assert polling.wants(looked_at, *found["w1"])
    assert run(polling).asked == 1
    ((began, ended, cause, _),) = gaps(engine)
    assert (began, cause) == (now - timedelta(seconds=75), Cause.NOT_RUNNING)
    assert ended >= looked_at


def test_a_request_that_fails_while_we_stand_still_says_nothing(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller
) -> None:
    """It is asked again, and the gap is `not_running`: the server did nothing wrong."""
    add(engine, "a")
    run(polling)
    with database.writing(engine) as connection:
        now = database.now(connection)
        connection.execute(sa.update(JOBS).values(due_at=now))
        connection.execute(sa.update(CLUSTERS).values(answered_at=now - timedelta(seconds=80)))

    def freeze(jid: str) -> None:
        assert polling._watch._last is not None
        now, tick = polling._watch._last
        polling._watch._last = now - timedelta(seconds=75), tick - 75
        script.default, script.hold = "running", None
        polling._halt.set()  # so that nothing is claimed before this answer is recorded

    script.hold, script.answers = freeze, {"a": 500}
    assert run(polling) == Tally()
    assert (job(engine, "a").failures, cluster(engine).gap_cause) == (0, Cause.NOT_RUNNING)
    script.answers.clear()
    run(polling)
    assert [(cause, detail) for _, _, cause, detail in gaps(engine)] == [(Cause.NOT_RUNNING, None)]
    assert (job(engine, "a").status, cluster(engine).gap_began_at) == ("running", None)


def test_a_database_that_is_slow_to_tell_the_time_has_not_set_its_clock(
    engine: sa.Engine, clock: Moved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time that took long to come is asked for again: it may be of any moment in between."""
    read, takes = database.now, [0, 12, 0, 0]

    def stalls(connection: sa.Connection) -> datetime:
        now = read(connection)
        ticks.append(ticks[-1] + takes.pop(0))
        clock.by += timedelta(seconds=ticks[-1] - ticks[-2])
        return now

    ticks = [1000.0]
    watch = clusters.Watch()
    monkeypatch.setattr(clusters, "monotonic", lambda: ticks[-1])
    monkeypatch.setattr(database, "now", stalls)
    with database.reading(engine) as connection:
        for _ in range(3):
            watch.read(connection)
    assert watch.steps == []


def test_a_database_that_nobody_can_write_to_leaves_a_gap(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller
) -> None:
    """It can be read all the time, as SQLite can while another process holds its lock; but nothing can be claimed."""
    add(engine, "a")
    run(polling)
    clusters.look(engine, polling._watch)
    wrote_at = polling._watch._wrote_at
    assert wrote_at is not None
    polling._watch._wrote_at = wrote_at = wrote_at - timedelta(seconds=75)
    with database.writing(engine) as connection:
        values = {"answered_at": wrote_at - timedelta(seconds=1)}
        connection.execute(sa.update(CLUSTERS).values(values))
        connection.execute(sa.update(JOBS).values(due_at=database.now(connection)))
    clusters.look(engine, polling._watch)
    assert (run(polling) + run(polling)).asked == 1
    ((began, _, cause, _),) = gaps(engine)
    assert (began, cause) == (wrote_at, Cause.NOT_RUNNING)


def test_a_cluster_without_open_jobs_has_no_gap_then(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller
) -> None:
    """There was nothing to observe; and a job that is registered later does not bring the gap back."""
    clusters.look(engine, polling._watch)
    now, tick = polling._watch._last or (datetime.now(UTC), 0.0)
    polling._watch._last = now - timedelta(seconds=75), tick - 75
    looked_at, found = clusters.look(engine, polling._watch)
    assert polling.wants(looked_at, *found["w1"])
    run(polling)
    add(engine, "a")
    looked_at, found = clusters.look(engine, polling._watch)
    assert polling.wants(looked_at, *found["w1"])
    assert run(polling).asked == 1
    assert (gaps(engine), cluster(engine).gap_began_at) == ([], None)


def test_another_daemon_that_polled_meanwhile_leaves_no_gap(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller
) -> None:
    """Only where nobody ran was nothing observed."""
    add(engine, "a")
    run(polling)
    with database.writing(engine) as connection:
        now = database.now(connection)
        facts = {"host": "h", "pid": 1, "version": "1", "started_at": now, "beat_at": now, "once": False}
        connection.execute(sa.insert(Worker).values(worker="other", **facts))
    now, tick = polling._watch._last or (now, 0.0)
    polling._watch._last = now - timedelta(seconds=75), tick - 75
    clusters.look(engine, polling._watch)
    run(polling)
    assert (gaps(engine), cluster(engine).gap_began_at) == ([], None)


def test_a_clock_that_jumps_costs_the_scheduler_nothing() -> None:
    """It lists no run that was missed: one is due, and the next is an interval later."""
    now = datetime(2026, 11, 27, tzinfo=UTC)
    every = _Every(1)
    assert every.get_next_fire_time(None, now) == now
    assert every.get_next_fire_time(now - timedelta(days=60), now) == now + timedelta(seconds=1)


# --- real processes ---------------------------------------------------------------------------------------------------

FAKETIME = next(iter(Path("/usr").glob("lib*/**/faketime/libfaketimeMT.so.1")), None)
needs_faketime = [
    pytest.mark.skipif(FAKETIME is None, reason="libfaketime is missing (Debian: faketime)"),
    pytest.mark.parametrize("dialect", ["sqlite"], indirect=True),
]


class Daemon:
    """A daemon whose clock a test sets."""

    def __init__(self, url: str, script: Script, folder: Path) -> None:
        self._env = environment(url, script.url)
        self._clock = folder / "clock"
        self._log = folder / "daemon.log"
        self.set("+0")

    def set(self, moved: str) -> None:
        """Move its clock by so much against the real one."""
        new = self._clock.with_suffix(".new")
        new.write_text(f"{moved}\n")
        new.replace(self._clock)

    def start(self) -> None:
        faked = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }
        with self._log.open("ab") as log:
            self.process = subprocess.Popen([TRACKER, "run"], env=self._env | faked, stderr=log)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0

    def told(self, name: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self._log.read_text().splitlines()) if line["event"] == name]

    def memory(self) -> int:
        """Return the most that it ever used, in megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) // 1024


@pytest.fixture
def daemon(url: str, script: Script, tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(url, script, tmp_path)
    daemon.start()
    yield daemon
    daemon.process.kill()
    daemon.process.wait()


def answered(engine: sa.Engine, jid: str) -> Callable[[], bool]:
    return lambda: bool(job(engine, jid).status)


@pytest.mark.skipif(needs_faketime[0].args[0], reason=needs_faketime[0].kwargs["reason"])
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_machine_that_is_suspended_while_requests_wait_records_nothing_too_early(
    engine: sa.Engine, script: Script, daemon: Daemon
) -> None:
    """Claimed, then eight hours of sleep, then the answer `done`: it was not seen before it came."""
    add(engine, "first")
    until(answered(engine, "first"))
    woken_at = datetime.now(UTC) + HOURS

    def suspend(jid: str) -> None:
        daemon.set("+8h")
        script.hold = None
        time.sleep(0.3)

    script.hold, script.default = suspend, "done"
    add(engine, "a")
    until(answered(engine, "a"))
    assert job(engine, "a").ended_by >= woken_at
    until(lambda: bool(daemon.told("discarded")))
    ((_, ended, cause, _),) = gaps(engine)
    assert (cause, ended >= woken_at) == (Cause.NOT_RUNNING, True)
    assert coverage(engine, "first") < 1
    daemon.stop()
    histories_are_whole(engine)


@pytest.mark.skipif(needs_faketime[0].args[0], reason=needs_faketime[0].kwargs["reason"])
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_clock_that_jumps_while_idle_leaves_a_gap_and_costs_nothing(
    engine: sa.Engine, script: Script, daemon: Daemon
) -> None:
    """Eight hours, then sixty days: a gap each, at once, without seconds and megabytes of runs that were missed."""
    add(engine, "a")
    until(answered(engine, "a"))
    time.sleep(2)
    before = daemon.memory()
    for moved, number in (("+8h", 1), ("+60d", 2)):
        daemon.set(moved)
        until(lambda number=number: len(gaps(engine)) == number, 6)  # type: ignore[misc]
    assert daemon.memory() - before < 30
    assert [gap[2] for gap in gaps(engine)] == [Cause.NOT_RUNNING] * 2
    add(engine, "b")
    until(answered(engine, "b"), 4)
    daemon.stop()


@pytest.mark.skipif(needs_faketime[0].args[0], reason=needs_faketime[0].kwargs["reason"])
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("restarted", [False, True])
def test_a_daemon_whose_clock_was_three_days_ahead_goes_on(
    engine: sa.Engine, script: Script, daemon: Daemon, url: str, restarted: bool
) -> None:
    """Polls resume at once when it is set right, nothing later lies in the future, and `tracker status` tells of it."""
    add(engine, "a")
    until(answered(engine, "a"))
    daemon.set("+3d")
    until(lambda: len(gaps(engine)) == 1, 6)
    until(lambda: job(engine, "a").seen_at > datetime.now(UTC) + timedelta(days=2))
    with database.reading(engine) as connection:
        last = connection.execute(sa.select(sa.func.max(TRANSITIONS.c.id))).scalar_one()
    if restarted:
        daemon.process.kill()
        daemon.process.wait()
    daemon.set("+0")
    script.default = "running"
    add(engine, "b")
    if restarted:
        daemon.start()
    until(lambda: {job(engine, jid).status for jid in "ab"} == {"running"}, 15)
    daemon.stop()
    assert [gap[2] for gap in gaps(engine)] == [Cause.NOT_RUNNING, Cause.CLOCK_SET]
    with database.reading(engine) as connection:
        for row in connection.execute(sa.select(TRANSITIONS).where(TRANSITIONS.c.id > last)):
            assert row.observed_at <= datetime.now(UTC)
    env = environment(url, script.url)
    assert "ahead by 3 days" in tracker("status", env=env).stdout
    verified = tracker("audit", "verify", env=env)
    assert verified.returncode == 0, verified.stdout


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_daemon_that_was_stopped_for_75_seconds_leaves_a_gap(
    engine: sa.Engine, script: Script, url: str, tmp_path: Path
) -> None:
    """SIGSTOP: the clocks agree, and nobody ran all the same."""
    add(engine, "a")
    with (tmp_path / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen([TRACKER, "run"], env=environment(url, script.url), stderr=log)
    try:
        until(answered(engine, "a"))
        time.sleep(2)
        stopped_at = datetime.now(UTC)
        os.kill(daemon.pid, signal.SIGSTOP)
        time.sleep(75)
        os.kill(daemon.pid, signal.SIGCONT)
        until(lambda: bool(gaps(engine)), 10)
        ((began, ended, cause, _),) = gaps(engine)
        assert cause is Cause.NOT_RUNNING
        assert abs(began - stopped_at) < timedelta(seconds=3)
        assert timedelta(seconds=74) < ended - began < timedelta(seconds=85)
        assert coverage(engine, "a") < 1
    finally:
        daemon.kill()
        daemon.wait()
