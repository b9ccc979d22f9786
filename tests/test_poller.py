"""Claim, ask, decide, record: against a real HTTP server, on both databases."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
import sqlalchemy as sa

from tests.history import daemon
from tests.replay import replay, transition_of
from tests.scripted import START, Script, SetClock, cluster_settings, polling
from tracker import database
from tracker.clusters import LEASE, first_contact, take_up
from tracker.errors import DatabaseUnavailable
from tracker.models import CLUSTERS, GAPS, JOBS, SOURCES, TRANSITIONS, job_of, observed_values, transition_values
from tracker.poller import Poller, Tally
from tracker.settings import Settings
from tracker.status import Action, Anomaly, Cause, State, reopen

on_sqlite = pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
"""The statements are those that other tests run on both databases."""


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def poller(engine: sa.Engine, script: Script, clock: SetClock) -> Iterator[Poller]:
    with polling(engine, script.url, clock) as poller:
        yield poller


def add(engine: sa.Engine, *jids: str, cluster: str = "w1", **values: object) -> None:
    """Register jobs as an intake does, an hour before the tests' clock starts."""
    at = START - timedelta(hours=1)
    with database.writing(engine) as connection:
        for jid in jids:
            row = {"cluster": cluster, "jid": jid, "registered_at": at, "submitted_at": at, "due_at": at} | values
            connection.execute(sa.insert(JOBS).values(row))


def job(engine: sa.Engine, jid: str) -> sa.Row[Any]:
    with database.reading(engine) as connection:
        return connection.execute(sa.select(JOBS).where(JOBS.c.jid == jid)).one()


def cluster(engine: sa.Engine) -> sa.Row[Any]:
    with database.reading(engine) as connection:
        return connection.execute(sa.select(CLUSTERS).where(CLUSTERS.c.cluster == "w1")).one()


def gaps(engine: sa.Engine) -> list[tuple[Any, ...]]:
    with database.reading(engine) as connection:
        rows = connection.execute(sa.select(GAPS).order_by(GAPS.c.id))
        return [(row.began_at, row.ended_at, row.cause, row.detail) for row in rows]


def histories_are_whole(engine: sa.Engine) -> None:
    """Assert that each job is the replay of its transitions, but for what they do not hold."""
    with database.reading(engine) as connection:
        for row in connection.execute(sa.select(JOBS)).all():
            query = sa.select(TRANSITIONS).where(TRANSITIONS.c.job_id == row.id).order_by(TRANSITIONS.c.seq)
            replayed = replay(transition_of(t) for t in connection.execute(query)).job
            kept: dict[str, Any] = {"seen_at": None, "status_polls": 0, "polls": 0}
            assert dataclasses.replace(job_of(row), **kept) == dataclasses.replace(replayed, **kept)


def change(engine: sa.Engine, **values: object) -> None:
    """Change columns of all jobs."""
    with database.writing(engine) as connection:
        connection.execute(sa.update(JOBS).values(values))


def stand(engine: sa.Engine, **values: object) -> None:
    """Change columns of the cluster."""
    with database.writing(engine) as connection:
        connection.execute(sa.update(CLUSTERS).values(values))


def run(poller: Poller) -> Tally:
    return poller.run(threading.Event())


def test_a_job_from_registration_to_done(engine: sa.Engine, poller: Poller, script: Script, clock: SetClock) -> None:
    """Each change is bounded by the request that last saw the old status and the answer that first showed the new."""
    add(engine, "a")
    assert run(poller) == Tally(asked=1, transitions=1)
    first = job(engine, "a")
    assert (first.status, first.status_after, first.status_by, first.seen_at) == ("waiting", None, START, START)
    assert first.deadline_on.isoformat() == "2026-02-05"
    assert first.due_at == START.replace(hour=23, minute=10)  # local midnight in Stockholm, and ten minutes
    assert run(poller) == Tally()  # nothing is due
    clock.now = first.due_at
    assert run(poller) == Tally(asked=1)  # the same status is no transition
    script.default = "done"
    clock.now = job(engine, "a").due_at
    assert run(poller) == Tally(asked=1, transitions=1)
    done = job(engine, "a")
    assert (done.state, done.ended_after, done.ended_by, done.due_at) == ("done", first.due_at, clock.now, None)
    assert (done.polls, done.seq, done.leased_by) == (3, 2, None)
    clock.pass_(days=400)
    assert run(poller) == Tally()
    assert script.asked == ["a", "a", "a"]
    histories_are_whole(engine)


def test_a_job_from_plain_sql_is_followed(engine: sa.Engine, poller: Poller, clock: SetClock) -> None:
    """A row with cluster and jid only is polled, gets its deadline and has its registration."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'sql')")
        clock.now = database.now(connection) + timedelta(seconds=1)
    assert run(poller) == Tally(asked=1, transitions=1)
    row = job(engine, "sql")
    assert (row.status, row.deadline_on is None, row.deadline_at is None) == ("waiting", False, False)
    histories_are_whole(engine)


def test_not_found_ends_a_job_only_after_polls_and_days(
    engine: sa.Engine, poller: Poller, script: Script, clock: SetClock
) -> None:
    """`lost` takes five valid answers in a row over two days; a reopened job is counted from its reopening."""
    script.default = "not_found"
    add(engine, "a")

    def lose() -> Any:
        while (row := job(engine, "a")).state is State.OPEN:
            clock.now = max(clock.now, row.due_at)
            run(poller)
        return row

    row = lose()
    assert row.status_polls >= 5
    assert timedelta(days=2) <= row.ended_by - row.status_by < timedelta(days=2, hours=8)
    reopened_at = clock.now + timedelta(days=3)
    decision = reopen(job_of(row), reopened_at, "ann", "asked the vendor")
    assert decision.transition is not None
    with database.writing(engine) as connection:
        last = connection.execute(sa.select(TRANSITIONS).order_by(TRANSITIONS.c.id.desc()).limit(1)).one()
        connection.execute(sa.insert(TRANSITIONS).values(transition_values(row.id, decision.transition)))
        connection.execute(sa.update(JOBS).values(observed_values(decision.job) | {"due_at": reopened_at}))
    assert (last.anomaly, last.to_state, last.source_id is None) == (Anomaly.NEVER_FOUND, State.LOST, False)
    assert timedelta(days=2) <= lose().ended_by - reopened_at < timedelta(days=2, hours=8)
    histories_are_whole(engine)


def test_an_anomaly_is_kept_with_its_transition(
    engine: sa.Engine, poller: Poller, script: Script, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that vanishes and comes back, or says a word that nobody knows, stays open, is marked and is a warning."""
    add(engine, "a")
    caplog.set_level("INFO")
    for status in ("waiting", "not_found", "waiting", "on_holiday", "error"):
        script.default = status
        clock.now = max(clock.now, job(engine, "a").due_at)
        run(poller)
    with database.reading(engine) as connection:
        rows = connection.execute(sa.select(TRANSITIONS).order_by(TRANSITIONS.c.seq)).all()
    assert [row.anomaly for row in rows] == [None, None, "vanished", "reappeared", "unknown_status", None]
    assert [row.to_state for row in rows] == [State.OPEN] * 5 + [State.FAILED]
    levels = [record.levelname for record in caplog.records if record.getMessage() == "transition"]
    assert levels == ["INFO", "WARNING", "WARNING", "WARNING", "WARNING"]
    histories_are_whole(engine)


def test_an_error_of_the_cluster_pauses_it_at_once(engine: sa.Engine, script: Script, clock: SetClock) -> None:
    """The cluster pauses, a gap opens when the request was sent, jobs stay due, and another one is asked first."""
    add(engine, *"abcdefgh")
    script.default, cause = 403, Cause.KEY_REFUSED
    with polling(engine, script.url, clock, max_concurrency=1) as poller:
        tally = run(poller)
        assert 1 <= tally.asked <= 2  # what was under way ends; nothing more is sent
        failed = job(engine, script.asked[0])
        assert (failed.status, failed.failures, failed.due_at < START) == (None, 1, True)
        assert failed.last_error == "KeyRefused http_403"
        shared = cluster(engine)
        assert (shared.pause_cause, shared.paused_until) == (cause, START + timedelta(minutes=15))
        assert (shared.gap_began_at, shared.gap_cause) == (START, cause)
        asked = list(script.asked)
        assert run(poller) == Tally()  # paused
        clock.now = shared.paused_until
        assert run(poller).asked == 1  # one job is asked first, another than the one that failed
        assert script.asked[len(asked)] not in asked
        assert cluster(engine).paused_until > clock.now
        clock.now = cluster(engine).paused_until
        script.default = "waiting"
        ended_at = clock.now
        assert run(poller).failed == 0
    assert gaps(engine) == [(START, ended_at, cause, shared.gap_detail)]
    assert (cluster(engine).pause_cause, cluster(engine).gap_began_at) == (None, None)
    with database.reading(engine) as connection:
        left = connection.execute(sa.select(JOBS.c.jid).where(JOBS.c.status.is_(None))).scalars().all()
    assert left == []
    histories_are_whole(engine)


@on_sqlite
def test_after_a_gap_nobody_sits_out_a_backoff(
    engine: sa.Engine, poller: Poller, script: Script, clock: SetClock
) -> None:
    """The first valid answer makes jobs that failed during the gap due again."""
    add(engine, *"abcd")
    script.default = 500
    for _ in range(12):
        run(poller)
        clock.now = max(clock.now + timedelta(seconds=1), cluster(engine).paused_until or clock.now)
    script.default = "waiting"
    clock.now = max(clock.now, cluster(engine).paused_until)
    run(poller)
    run(poller)
    assert all(job(engine, jid).status == "waiting" for jid in "abcd")


@on_sqlite
def test_an_error_is_not_a_status(engine: sa.Engine, poller: Poller, script: Script, clock: SetClock) -> None:
    """An error leaves status, bounds and seen_at as they were; the next answer counts from the last valid one."""
    add(engine, "a")
    run(poller)
    before = job(engine, "a")
    script.default = 500
    clock.now = before.due_at
    run(poller)
    after = job(engine, "a")
    assert job_of(after) == dataclasses.replace(job_of(before), polls=2)
    assert (after.failures, after.polls, after.last_error) == (1, 2, "Unavailable http_500")
    script.default = "running"
    clock.now = after.due_at
    run(poller)
    healed = job(engine, "a")
    assert (healed.status_after, healed.status_by, healed.failures, healed.last_error) == (START, clock.now, 0, None)


def test_a_lost_lease_leaves_the_job_alone(engine: sa.Engine, poller: Poller, script: Script) -> None:
    """An answer to a job that meanwhile belongs to another worker, or was withdrawn, is not recorded."""
    add(engine, "a", "b")

    def taken(jid: str) -> None:
        with database.writing(engine) as connection:
            other = "another" if jid == "a" else None
            connection.execute(sa.update(JOBS).where(JOBS.c.jid == jid).values(leased_by=other))

    script.hold = taken
    assert run(poller) == Tally(asked=2, lost=2)
    assert (job(engine, "a").status, job(engine, "a").leased_by) == (None, "another")
    assert (job(engine, "b").status, job(engine, "b").polls) == (None, 0)


def test_an_amendment_under_way_is_kept(engine: sa.Engine, poller: Poller, script: Script) -> None:
    """The answer is decided on the job as it is when it is recorded, not as it was when it was asked about."""
    add(engine, "a")

    def amended(jid: str) -> None:
        with database.writing(engine) as connection:
            values = {"job_id": job(engine, "a").id, "seq": 1, "action": Action.AMENDED, "from_state": State.OPEN}
            facts = {"kind": "export", "submitted_at": START - timedelta(hours=1)}
            row = values | facts | {"to_state": State.OPEN, "observed_at": START, "actor": "x", "reason": "y"}
            connection.execute(sa.insert(TRANSITIONS).values(row))
            connection.execute(sa.update(JOBS).values(seq=1, **facts))

    script.hold = amended
    assert run(poller) == Tally(asked=1, transitions=1)
    assert (job(engine, "a").kind, job(engine, "a").seq, job(engine, "a").status) == ("export", 2, "waiting")
    histories_are_whole(engine)


def test_a_lease_that_ended_is_claimed_again(engine: sa.Engine, poller: Poller, script: Script) -> None:
    """Jobs of a daemon that was killed are polled by another once the lease is over; one from the future is void."""
    add(engine, "a")
    with database.reading(engine) as connection:
        now = database.now(connection)
    change(engine, leased_by="dead", leased_until=now + LEASE)
    assert run(poller) == Tally()
    change(engine, leased_until=now - timedelta(seconds=1))
    assert run(poller) == Tally(asked=1, transitions=1)
    stand(engine, next_request_at=now + timedelta(days=1))
    change(engine, leased_by="dead", leased_until=now + timedelta(days=1), due_at=START)
    assert run(poller) == Tally(asked=1)


def test_pollers_share_the_work_and_the_rate(engine: sa.Engine, script: Script, clock: SetClock) -> None:
    """Each job is asked once and has one transition for its answer; together they keep the cluster's rate."""
    jids = [f"j{i}" for i in range(120)]
    add(engine, *jids)
    tallies: list[Tally] = []
    begin = threading.Event()

    def work(name: str) -> None:
        with polling(engine, script.url, clock, worker=name, max_requests_per_second=200) as poller:
            begin.wait()
            tallies.append(poller.run(threading.Event(), patient=True))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    began = monotonic()
    begin.set()
    for thread in threads:
        thread.join()
    assert monotonic() - began >= 119 / 200 - 0.05
    assert sum(tallies, Tally()) == Tally(asked=120, transitions=120)
    assert sorted(script.asked) == sorted(jids)
    histories_are_whole(engine)


def test_a_job_the_database_refuses_does_not_stop_the_others(
    engine: sa.Engine, poller: Poller, script: Script, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be written about one job is that job's trouble only, and is logged without its values."""
    add(engine, "a", "b", "odd")
    script.answers["odd"] = "running"
    with database.writing(engine) as connection:  # a transition that is in the way of the next one
        values = {"job_id": job(engine, "odd").id, "seq": 1, "action": "amended", "to_state": "open"}
        values |= {"from_state": "open", "actor": "x", "reason": "y", "kind": "export"}
        connection.execute(sa.insert(TRANSITIONS).values(values | {"observed_at": START}))
    assert run(poller) == Tally(asked=3, failed=1, transitions=2)
    assert (job(engine, "a").status, job(engine, "odd").status, job(engine, "odd").failures) == ("waiting", None, 1)
    assert job(engine, "odd").due_at > clock.now
    assert "INSERT" not in caplog.text


def test_answers_that_are_there_are_kept_when_the_next_claim_fails(
    engine: sa.Engine, script: Script, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database going away at a claim costs none of what is under way."""
    add(engine, *[f"j{i}" for i in range(100)])
    with polling(engine, script.url, clock, max_requests_per_second=1000, max_concurrency=2) as poller:
        claim, claims = poller._claim, 0

        def failing(room: int, wanted: set[int] | None) -> Any:
            nonlocal claims
            claims += 1
            if claims > 1:
                raise DatabaseUnavailable("gone")
            return claim(80, wanted)

        monkeypatch.setattr(poller, "_claim", failing)
        with pytest.raises(DatabaseUnavailable):
            run(poller)
    with database.reading(engine) as connection:
        query = sa.select(sa.func.count()).select_from(JOBS)
        assert connection.execute(query.where(JOBS.c.status == "waiting")).scalar_one() == 80
        assert connection.execute(query.where(JOBS.c.leased_by.is_not(None))).scalar_one() == 0


def test_a_configuration_that_differs_leaves_a_trace(engine: sa.Engine) -> None:
    """`sources` has one row for each change of configuration, and none for a restart without one."""
    settings = Settings()

    def start(url: str) -> int:
        with database.writing(engine) as connection:
            return first_contact(connection, cluster_settings(url), settings)

    first = start("http://127.0.0.1:1")
    assert start("http://127.0.0.1:1") == first
    assert start("http://127.0.0.1:2") != first
    third = start("http://127.0.0.1:1")
    with database.reading(engine) as connection:
        rows = connection.execute(sa.select(SOURCES).order_by(SOURCES.c.id)).all()
    assert [row.base_url[-1] for row in rows] == ["1", "2", "1"]
    assert rows[-1].id == third
    assert (rows[0].lost_after_polls, rows[0].lost_after_seconds, rows[0].archive_days) == (5, 172800, 5)


def test_an_absence_ends_with_the_first_request(engine: sa.Engine, poller: Poller, clock: SetClock) -> None:
    """A daemon that starts after nobody ran records the gap `not_running`, until it asks."""
    with database.writing(engine) as connection:
        clock.now = database.now(connection)
        gone = clock.now - timedelta(hours=2)
    daemon(engine, "gone", gone)
    add(engine, "a", due_at=clock.now - timedelta(hours=1))
    with database.writing(engine) as connection:
        take_up(connection, ["w1"], "test")
    run(poller)
    assert gaps(engine) == [(gone, clock.now, Cause.NOT_RUNNING, None)]


@pytest.mark.parametrize("has_polled", [False, True])
def test_daemons_that_start_together_record_their_absence(engine: sa.Engine, poller: Poller, has_polled: bool) -> None:
    """After a reboot, another daemon that has just started is no sign that jobs were polled, until it was answered."""
    with database.reading(engine) as connection:
        returned = database.now(connection)
    gone = returned - timedelta(hours=2)
    daemon(engine, "gone", gone)
    daemon(engine, "other", returned)
    add(engine, "a", due_at=returned - timedelta(hours=1))
    stand(engine, answered_at=returned if has_polled else gone)
    with database.writing(engine) as connection:
        take_up(connection, ["w1"], "test")
    expected = (None, None) if has_polled else (Cause.NOT_RUNNING, gone)
    assert (cluster(engine).gap_cause, cluster(engine).gap_began_at) == expected


@on_sqlite
def test_jobs_that_hang_delay_no_other(engine: sa.Engine, script: Script) -> None:
    """A tenth of the jobs hang: the others are asked as the rate has it, nothing pauses, and no gap is on record."""
    go_on, stop = threading.Event(), threading.Event()
    script.hold = lambda jid: go_on.wait(20) if jid.endswith("7") else None
    jids = [f"j{i}" for i in range(80)]
    add(engine, *jids)
    configured = cluster_settings(script.url, max_concurrency=20, max_requests_per_second=40)
    with Poller(engine, configured, Settings(request_timeout=timedelta(seconds=1)), "test") as poller:
        began = monotonic()
        timer = threading.Timer(3, stop.set)
        timer.start()
        tally = poller.run(stop)
        assert monotonic() - began < 6
        go_on.set()
        timer.cancel()
    assert tally.asked - tally.failed == sum(not jid.endswith("7") for jid in jids)
    assert (cluster(engine).pauses, cluster(engine).gap_began_at, gaps(engine)) == (0, None, [])
