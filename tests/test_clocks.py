"""Clocks that are set, processes that are frozen, machines that are suspended: what is recorded then, and what is not.

A test moves the database's clock, on both databases, and leaves alone the one that counts elapsed time, as a suspended
machine does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import monotonic

import pytest
import sqlalchemy as sa

from tests.history import daemon
from tests.scripted import Script, cluster_settings
from tests.test_checks import found
from tests.test_daemon import add
from tests.test_poller import change, cluster, gaps, histories_are_whole, job, on_sqlite, run, stand
from tracker import clusters, database
from tracker.audit.seal import seal
from tracker.daemon import Pulse, Stop, _Daemon, _EverySeconds
from tracker.errors import DatabaseUnavailable
from tracker.models import CLUSTERS, GAPS, JOBS, TRANSITIONS
from tracker.poller import Poller, Tally
from tracker.settings import Settings
from tracker.status import Cause

HOURS = timedelta(hours=8)
DAYS = timedelta(days=3)


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
    with Poller(engine, cluster_settings(script.url), Settings(), "test", watch=clusters.ClockWatch()) as made:
        yield made


def freeze(polling: Poller, seconds: float = 75) -> datetime:
    """Make it as if the last look of *polling* was *seconds* ago, by both clocks, and return when that was."""
    assert polling._watch._last is not None
    now, tick = polling._watch._last
    polling._watch._last = now - timedelta(seconds=seconds), tick - seconds
    return now - timedelta(seconds=seconds)


@pytest.mark.parametrize(("before", "after"), [(timedelta(), HOURS), (HOURS, timedelta())])
def test_an_answer_over_a_moved_clock_is_asked_again(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller, before: timedelta, after: timedelta
) -> None:
    """Its times cannot be relied on, so nothing of it is recorded; a gap covers the time, or says that it ran back."""
    clock.by = before
    add(engine, "a")
    script.default = "done"

    def move(jid: str) -> None:
        clock.by = after
        script.hold = None

    script.hold = move
    began_at = datetime.now(UTC)
    assert run(polling) + run(polling) == Tally(asked=1, transitions=1)
    assert script.asked == ["a", "a"]
    ((began, ended, cause, detail),) = gaps(engine)
    if after:
        assert job(engine, "a").ended_by > began_at + HOURS
        assert (cause, began < began_at + timedelta(seconds=5), ended > began_at + HOURS) == ("not_running", True, True)
    else:
        assert (cause, began == ended, detail) == (Cause.CLOCK_SET, True, "the clock was ahead by 8:00:00")
        nothing_lies_ahead(engine)
    histories_are_whole(engine)


def nothing_lies_ahead(engine: sa.Engine, since: tuple[int, int] = (0, 0)) -> None:
    """Assert that no transition and gap after *since* lies in the future, and no plan farther than plans do."""
    with database.reading(engine) as connection:
        now = Moved.real(connection)
        for row in connection.execute(sa.select(TRANSITIONS).where(TRANSITIONS.c.id > since[0])):
            assert row.observed_at <= now
            assert row.last_seen_at is None or row.last_seen_at <= row.observed_at
        for row in connection.execute(sa.select(GAPS).where(GAPS.c.id > since[1])):
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
    change(engine, due_at=datetime.now(UTC) + DAYS)
    run(polling)
    assert job(engine, "a").seen_at > datetime.now(UTC) + timedelta(days=2)
    with database.writing(engine) as connection:
        ahead = database.now(connection) + timedelta(minutes=1)
        connection.execute(sa.update(JOBS).where(JOBS.c.jid == "d").values(leased_by="gone", leased_until=ahead))
        last = connection.execute(sa.select(sa.func.max(TRANSITIONS.c.id))).scalar_one()
    stand(engine, next_request_at=ahead)
    daemon(engine, "other", ahead)
    script.answers, script.default = {}, "started"
    clock.by = timedelta()
    if restarted:
        with Poller(engine, cluster_settings(script.url), Settings(), "test") as again:
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


@on_sqlite
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


@pytest.mark.parametrize("meanwhile", ["nothing", "a look", "a write that fails"])
def test_a_process_that_stood_still_leaves_a_gap(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller, meanwhile: str
) -> None:
    """Nobody wrote for more than a minute, although nothing was due; a look or a failed write is no sign of life."""
    add(engine, "a")
    run(polling)
    clusters.look(engine, polling._watch)
    began_at = freeze(polling, 75 if meanwhile == "nothing" else 50)
    if meanwhile != "nothing":
        if meanwhile == "a look":
            clusters.look(engine, polling._watch)
        else:
            with suppress(DatabaseUnavailable), polling._transaction():
                raise DatabaseUnavailable("the database cannot be written now")
        began_at = freeze(polling, 25) - timedelta(seconds=0)
    stand(engine, answered_at=began_at - timedelta(seconds=5))  # it was registered long ago
    looked_at, found = clusters.look(engine, polling._watch)
    assert polling.wants(looked_at, *found["w1"])
    assert run(polling).asked == 1
    ((began, ended, cause, _),) = gaps(engine)
    assert (began, cause) == (began_at, Cause.NOT_RUNNING)
    assert ended >= looked_at


def test_daemons_that_stood_still_together_leave_a_gap(engine: sa.Engine, script: Script) -> None:
    """Their first beats afterwards, before any of them polls, do not say that one of them polled meanwhile."""
    add(engine, "a")
    settings = Settings(clusters={"w1": cluster_settings(script.url)})
    both = [_Daemon(engine, name, Stop(), lambda new: (), Pulse()) for name in ("one", "two")]
    long_ago = datetime.now(UTC) - timedelta(seconds=75)
    for one in both:
        daemon(engine, one.worker, long_ago)
        one.begin(settings, ())
        run(one.tasks["w1"]._poller)
        one.watch._last = long_ago, monotonic() - 75
    stand(engine, answered_at=long_ago)
    for one in both:
        one._beat()
    for one in both:
        one._look()
        one.tasks["w1"].join(20)
        one.close()
    assert [cause for _, _, cause, _ in gaps(engine)] == [Cause.NOT_RUNNING]


def test_a_process_that_stood_still_and_stops_at_once_leaves_a_gap(engine: sa.Engine, script: Script) -> None:
    """Also if it stops or reloads before its next look; otherwise the next daemon counts the time as observed."""
    add(engine, "a")
    daemon = _Daemon(engine, "test", Stop(), lambda new: [], Pulse())
    daemon.begin(Settings(clusters={"w1": cluster_settings(script.url)}), [])
    daemon._beat()
    assert daemon.watch._last is not None
    now, tick = daemon.watch._last
    daemon.watch._last = began_at, _ = now - timedelta(hours=2), tick - 7200
    assert daemon.finish()
    daemon.close()
    assert (cluster(engine).gap_began_at, cluster(engine).gap_cause) == (began_at, Cause.NOT_RUNNING)


def test_a_request_that_fails_while_we_stand_still_says_nothing(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller
) -> None:
    """It is asked again, and the gap is `not_running`: the server did nothing wrong."""
    add(engine, "a")
    run(polling)
    change(engine, due_at=datetime.now(UTC))
    stand(engine, answered_at=datetime.now(UTC) - timedelta(seconds=80))

    def stop(jid: str) -> None:
        # Nothing is claimed before this answer is recorded, and a claim under way says nothing of the time after it.
        polling._halt.set()
        patch.setattr(polling._watch, "wrote", lambda now, tick: None)
        freeze(polling)
        script.default, script.hold = "running", None

    script.hold, script.answers = stop, {"a": 500}
    with pytest.MonkeyPatch.context() as patch:
        assert run(polling) == Tally()
    assert (job(engine, "a").failures, cluster(engine).gap_cause) == (0, Cause.NOT_RUNNING)
    script.answers.clear()
    run(polling)
    assert [(cause, detail) for _, _, cause, detail in gaps(engine)] == [(Cause.NOT_RUNNING, None)]
    assert (job(engine, "a").status, cluster(engine).gap_began_at) == ("running", None)


@on_sqlite
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
    watch = clusters.ClockWatch()
    monkeypatch.setattr(clusters, "monotonic", lambda: ticks[-1])
    monkeypatch.setattr(database, "now", stalls)
    with database.reading(engine) as connection:
        for _ in range(3):
            watch.read(connection)
    assert watch.steps == []


@on_sqlite
def test_a_command_without_a_heartbeat_may_wait_long(engine: sa.Engine, script: Script) -> None:
    """`tracker poll` with a long time-out: an answer after more than a minute counts."""
    add(engine, "a")
    with Poller(engine, cluster_settings(script.url), Settings(), "test") as polling:

        def wait(jid: str) -> None:
            freeze(polling)

        script.hold = wait
        assert run(polling) == Tally(asked=1, transitions=1)


@on_sqlite
def test_where_nothing_could_be_missed_there_is_no_gap(
    engine: sa.Engine, script: Script, clock: Moved, polling: Poller
) -> None:
    """While no job was open, or while another daemon polled; and a job that is registered later brings no gap back."""
    clusters.look(engine, polling._watch)
    for jid in ("a", "b"):
        freeze(polling)
        looked_at, found = clusters.look(engine, polling._watch)
        assert polling.wants(looked_at, *found["w1"])
        run(polling)
        add(engine, jid)
        looked_at, found = clusters.look(engine, polling._watch)
        assert polling.wants(looked_at, *found["w1"])
        assert run(polling).asked == 1
        daemon(engine, "other", datetime.now(UTC)) if jid == "a" else None
    assert (gaps(engine), cluster(engine).gap_began_at) == ([], None)


def test_a_clock_that_jumps_costs_the_scheduler_nothing() -> None:
    """It lists no run that was missed: one is due, and the next is an interval later."""
    now = datetime(2026, 11, 27, tzinfo=UTC)
    every = _EverySeconds(1)
    assert every.get_next_fire_time(None, now) == now
    assert every.get_next_fire_time(now - timedelta(days=60), now) == now + timedelta(seconds=1)
