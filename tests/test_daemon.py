"""The daemon as a real process: signalled, killed, restarted, two at once; and what it refuses."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import sqlalchemy as sa

from tests import history
from tests.processes import Tracker
from tests.processes import tracker as tracker
from tests.scripted import Script, cluster_settings
from tests.test_deliver import Receiver, texts
from tests.test_poller import change, histories_are_whole, job, on_sqlite, stand
from tracker import database
from tracker.audit.checkpoint import parse, split
from tracker.audit.keys import keygen
from tracker.daemon import Pulse, Stop, _Daemon
from tracker.models import JOBS, TRANSITIONS, WORKERS
from tracker.settings import Settings
from tracker.status import Cause, State

TRACKER = Path(sys.executable).with_name("tracker")
Start: TypeAlias = Callable[..., Tracker]


def environment(url: str, base_url: str, **more: str) -> dict[str, str]:
    settings = {
        "TRACKER_DATABASE_URL": url,
        "TRACKER_CLUSTER": "w1",
        "TRACKER_API_KEY": "hush-hush",
        "TRACKER_BASE_URL": base_url,
        "TRACKER_MAX_REQUESTS_PER_SECOND": "100000",
    }
    return os.environ | settings | more


@pytest.fixture
def start(url: str, script: Script, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a daemon which logs to daemon.log; what still runs at the end is killed."""
    started: list[Tracker] = []

    def start(**more: str) -> Tracker:
        started.append(Tracker("run", env=environment(url, script.url, **more), log=tmp_path / "daemon.log"))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is true of another process; there is no clock of ours to move in it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def add(engine: sa.Engine, *jids: str, cluster: str = "w1") -> None:
    with database.writing(engine) as connection:
        for jid in jids:
            connection.execute(sa.insert(JOBS).values(cluster=cluster, jid=jid))


@pytest.fixture
def held(script: Script) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Hold each request; yield the events that one was asked, and that they go on."""
    asked, go_on = threading.Event(), threading.Event()

    def hold(jid: str) -> None:
        asked.set()
        go_on.wait(10)

    script.hold = hold
    yield asked, go_on
    go_on.set()


def test_sigterm_in_mid_poll_records_what_is_under_way(
    engine: sa.Engine,
    script: Script,
    start: Start,
    tmp_path: Path,
    held: tuple[threading.Event, threading.Event],
) -> None:
    """The first signal stops claiming; the running request ends, is recorded, and the daemon exits 0."""
    add(engine, "a", "b", "c")
    asked, go_on = held
    daemon = start(TRACKER_MAX_CONCURRENCY="1")
    assert asked.wait(20)
    daemon.send_signal(signal.SIGTERM)
    time.sleep(0.2)  # the signal is to arrive before the answer
    go_on.set()
    assert daemon.wait(20) == 0
    assert script.asked == ["a"]
    with database.reading(engine) as connection:
        rows = connection.execute(sa.select(JOBS).order_by(JOBS.c.id)).all()
        worker = connection.execute(sa.select(WORKERS)).one()
    assert [(row.status, row.leased_by) for row in rows] == [("waiting", None), (None, None), (None, None)]
    assert worker.stopped_at is not None
    assert [len(logged(tmp_path, name)) for name in ("started", "stopping", "stopped")] == [1, 1, 1]
    [transition] = logged(tmp_path, "transition")
    expected = {"cluster": "w1", "jid": "a", "from_status": None, "to_status": "waiting", "after": None}
    assert expected.items() <= transition.items()
    assert transition["by"] == rows[0].status_by.isoformat()


@on_sqlite
def test_a_second_signal_exits_at_once(
    engine: sa.Engine, start: Start, held: tuple[threading.Event, threading.Event]
) -> None:
    """A second signal does not wait for the request under way; its job's lease ends by itself."""
    add(engine, "a")
    daemon = start()
    assert held[0].wait(20)
    daemon.send_signal(signal.SIGINT)
    time.sleep(0.6)  # sooner it would be the same signal, sent twice
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(5) == 128 + signal.SIGINT
    assert (job(engine, "a").status, job(engine, "a").leased_by is None) == (None, False)


@on_sqlite
def test_polling_that_hangs_stops_the_pulse(
    engine: sa.Engine, script: Script, held: tuple[threading.Event, threading.Event]
) -> None:
    """What a supervisor watches does not go on when a thread hangs longer than any request and statement can take."""
    add(engine, "a")
    pulse, settings = Pulse(), Settings(clusters={"w1": cluster_settings(script.url)})
    daemon = _Daemon(engine, "test", Stop(), lambda new: (), pulse)
    daemon.begin(settings, ())
    daemon._look()
    assert held[0].wait(20)
    pulse._ticked_at = 0.0
    daemon._look()
    assert pulse._ticked_at > 0
    daemon.tasks["w1"]._poller._step_at -= 1000
    pulse._ticked_at = 0.0
    daemon._look()
    assert pulse._ticked_at == 0.0
    held[1].set()
    daemon.finish()
    daemon.close()


@on_sqlite
def test_daemons_of_long_ago_are_deleted(engine: sa.Engine, script: Script, url: str) -> None:
    """Each run of cron has a row in `workers`; the last sign of life stays, however old."""
    with database.writing(engine) as connection:
        now = database.now(connection)
    for days in (40, 50, 60):
        at = now - timedelta(days=days)
        history.daemon(engine, f"old{days}", at, stopped_at=at)
    tracker("run", "--once", env=environment(url, script.url))
    with database.reading(engine) as connection:
        left = connection.execute(sa.select(WORKERS.c.worker).where(WORKERS.c.worker.like("old%"))).scalars().all()
    assert left == ["old40"]


@on_sqlite
def test_poll_asks_now(engine: sa.Engine, script: Script, url: str) -> None:
    """`tracker poll JID` asks out of turn and prints what came of it; it refuses what must not be asked."""
    add(engine, "a")
    env = environment(url, script.url)
    done = tracker("poll", "a", "--format", "json", env=env)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["before"], row["status"], row["state"], row["last_error"]) == (None, "waiting", "open", None)
    script.default = 503
    failed = tracker("poll", "a", env=env)
    assert failed.returncode == 69
    assert "Unavailable http_503" in failed.stdout
    stand(engine, pause_cause=Cause.PAUSED)
    assert "tracker resume w1" in tracker("poll", "a", env=env).stderr
    change(engine, state=State.WITHDRAWN, due_at=None)
    assert "is withdrawn, and only open jobs" in tracker("poll", "a", env=env).stderr


@on_sqlite
def test_it_refuses_what_it_must_not_run_on(engine: sa.Engine, url: str, script: Script) -> None:
    """No file, a missing guard, no cluster, no key that signs: each message says what to do."""
    env = environment(url, script.url)
    without = {name: value for name, value in env.items() if not re.match("TRACKER_(CLUSTER|API|BASE|MAX)", name)}
    with database.writing(engine) as connection:
        connection.exec_driver_sql("DROP TRIGGER guard_jobs_claim")
    for given, problem in (
        (env | {"TRACKER_DATABASE_URL": "sqlite:///missing.db"}, "tracker db upgrade"),
        (env, "guard_jobs_claim is missing"),
        (without, "no cluster is configured"),
        (env | {"TRACKER_SIGNING_KEY_FILE": "missing.pem"}, "missing.pem"),
    ):
        done = tracker("run", env=given)
        assert (done.returncode, problem in done.stderr, "Traceback" in done.stderr) == (78, True, False), done.stderr


def transitions(engine: sa.Engine) -> dict[int, tuple[Any, ...]]:
    with database.reading(engine) as connection:
        return {row.id: tuple(row) for row in connection.execute(sa.select(TRANSITIONS))}


def test_kill_and_restart_loses_nothing(engine: sa.Engine, script: Script, start: Start) -> None:
    """kill -9 at random moments: what was committed stays, each job is the replay of its history."""
    random_moment = random.Random(1)
    jids = [f"j{i}" for i in range(200)]
    add(engine, *jids)
    statuses = ["waiting", "running", "waiting", "started"]
    acknowledged: dict[int, tuple[Any, ...]] = {}
    for turn in range(3):  # tests/faults kills 500
        script.default = statuses[turn % len(statuses)]
        with database.reading(engine) as connection:
            now = database.now(connection)
        change(engine, due_at=now, leased_until=None, leased_by=None)  # free of the killed one's leases
        daemon = start()
        until(lambda seen=acknowledged: len(transitions(engine)) > len(seen))  # type: ignore[misc]
        time.sleep(random_moment.random() * 0.3)
        daemon.kill()
        daemon.wait()
        rows = transitions(engine)
        assert acknowledged.items() <= rows.items()  # what was there stays as it was
        acknowledged = rows
    histories_are_whole(engine)


def test_two_daemons_share_one_database(engine: sa.Engine, script: Script, start: Start, tmp_path: Path) -> None:
    """Jobs that come while they run are asked once each, with a transition for each answer; on SQLite one warns."""
    first = start()
    until(lambda: bool(logged(tmp_path, "started")))
    daemons = first, start()

    def count(rows: sa.ColumnElement[bool] | sa.Table) -> int:
        with database.reading(engine) as connection:
            query = sa.select(sa.func.count())
            query = query.select_from(rows) if isinstance(rows, sa.Table) else query.where(rows)
            return int(connection.execute(query).scalar_one())

    until(lambda: count(WORKERS.c.beat_at.is_not(None)) == 2)
    jids = [f"j{i}" for i in range(300)]
    add(engine, *jids)
    until(lambda: count(JOBS.c.status.is_not(None)) == 300)
    with database.reading(engine) as connection:
        beats = connection.execute(sa.select(WORKERS.c.beat_at)).scalars().all()
        assert max(database.now(connection) - beat for beat in beats) < timedelta(seconds=30)
    for daemon in daemons:
        daemon.terminate()
        assert daemon.wait(20) == 0
    assert sorted(script.asked) == sorted(jids)
    histories_are_whole(engine)
    notes = [line["note"] for line in logged(tmp_path, "sqlite_shared")]
    assert len(notes) == (engine.dialect.name == "sqlite")
    assert all("use PostgreSQL for more than one daemon" in note for note in notes)


def logged(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (tmp_path / "daemon.log").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


@on_sqlite
def test_the_daemon_seals_while_it_runs_and_at_its_stop(
    engine: sa.Engine, script: Script, start: Start, tmp_path: Path
) -> None:
    """What came before the start and what came while it ran is sealed, signed and outside when it has stopped."""
    key = keygen(tmp_path / "key.pem")
    path = tmp_path / "checkpoints.txt"
    add(engine, "early")
    with Receiver() as receiver:
        daemon = start(
            TRACKER_SIGNING_KEY_FILE=str(tmp_path / "key.pem"),
            TRACKER_CHECKPOINT_FILE=str(path),
            TRACKER_CHECKPOINT_URL=receiver.url,
            TRACKER_SEAL_AFTER="0 s",
        )
        until(lambda: len(receiver.taken) == 1)
        until(lambda: script.asked == ["early"])
        add(engine, "late")
        until(lambda: script.asked == ["early", "late"])
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
        taken = receiver.taken
    chain = texts(engine)
    assert len(chain) >= 2
    assert taken == split(path.read_text()) == chain
    signed = list(map(parse, chain))
    assert all(one.is_genuine() and one.checkpoint.key == key for one in signed)
    assert signed[-1].checkpoint.ids["transitions"][1] == max(transitions(engine))
    assert [one["sha256"] for one in logged(tmp_path, "checkpoint")] == [one.sha256 for one in signed]
    assert "s3cret" not in (tmp_path / "daemon.log").read_text()
