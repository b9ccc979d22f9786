"""The daemon as a real process: signalled, killed, restarted, two at once; and what it refuses."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.scripted import Script
from tests.test_deliver import Receiver, texts
from tests.test_poller import histories_are_whole
from tracker import database
from tracker.audit.checkpoint import parse, split
from tracker.audit.keys import keygen
from tracker.models import CLUSTERS, JOBS, TRANSITIONS, Delivery, Seal, Worker
from tracker.status import Cause, State

TRACKER = Path(sys.executable).with_name("tracker")


def environment(url: str, base_url: str, **more: str) -> dict[str, str]:
    settings = {
        "TRACKER_DATABASE_URL": url,
        "TRACKER_CLUSTER": "w1",
        "TRACKER_API_KEY": "hush-hush",
        "TRACKER_BASE_URL": base_url,
        "TRACKER_MAX_REQUESTS_PER_SECOND": "100000",
    }
    return os.environ | settings | more


def tracker(*words: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TRACKER, *words], env=env, text=True, capture_output=True, timeout=60)


@pytest.fixture
def script() -> Iterator[Script]:
    with Script().serve() as script:
        yield script


@pytest.fixture
def start(url: str, script: Script, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function that starts a daemon which logs to daemon.log; what still runs at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**more: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "daemon.log").open("ab") as log:
            process = subprocess.Popen([TRACKER, "run"], env=environment(url, script.url, **more), stderr=log)
        started.append(process)
        return process

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


def add(engine: sa.Engine, *jids: str) -> None:
    with database.writing(engine) as connection:
        for jid in jids:
            connection.execute(sa.insert(JOBS).values(cluster="w1", jid=jid))


def test_sigterm_in_mid_poll_records_what_is_under_way(
    engine: sa.Engine, script: Script, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """The first signal stops claiming; the running request ends, is recorded, and the daemon exits 0."""
    add(engine, "a", "b", "c")
    asked, go_on = threading.Event(), threading.Event()

    def hold(jid: str) -> None:
        asked.set()
        go_on.wait(10)

    script.hold = hold
    daemon = start(TRACKER_MAX_CONCURRENCY="1")
    assert asked.wait(20)
    daemon.send_signal(signal.SIGTERM)
    time.sleep(0.2)  # the signal is to arrive before the answer
    go_on.set()
    assert daemon.wait(20) == 0
    log = (tmp_path / "daemon.log").read_text()
    assert script.asked == ["a"]
    with database.reading(engine) as connection:
        rows = connection.execute(sa.select(JOBS).order_by(JOBS.c.id)).all()
        worker = connection.execute(sa.select(Worker.__table__)).one()
    assert [(row.status, row.leased_by) for row in rows] == [("waiting", None), (None, None), (None, None)]
    assert worker.stopped_at is not None
    told = [line for line in map(json.loads, log.splitlines()) if line["event"] != "checkpoint"]
    assert [line["event"] for line in told] == ["started", "transition", "stopping", "stopped"] or [
        line["event"] for line in told
    ] == ["started", "stopping", "transition", "stopped"]
    transition = next(line for line in told if line["event"] == "transition")
    expected = {"cluster": "w1", "jid": "a", "from_status": None, "to_status": "waiting", "after": None}
    assert expected.items() <= transition.items()
    assert transition["by"] == rows[0].status_by.isoformat()
    assert "hush-hush" not in log


def test_a_second_signal_exits_at_once(
    engine: sa.Engine, script: Script, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Whoever signals twice does not wait for the request under way; its job's lease ends by itself."""
    add(engine, "a")
    asked, go_on = threading.Event(), threading.Event()

    def hold(jid: str) -> None:
        asked.set()
        go_on.wait(10)

    script.hold = hold
    daemon = start()
    assert asked.wait(20)
    daemon.send_signal(signal.SIGINT)
    time.sleep(0.8)
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(5) == 128 + signal.SIGINT
    go_on.set()
    with database.reading(engine) as connection:
        assert connection.execute(sa.select(JOBS.c.status)).scalar_one() is None


def test_the_daemon_follows_jobs_that_come_while_it_runs(
    engine: sa.Engine, script: Script, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """A job registered by plain SQL is polled within moments, and the heartbeat goes by the database's clock."""
    daemon = start()

    def answered(jid: str) -> bool:
        with database.reading(engine) as connection:
            query = sa.select(JOBS.c.status).where(JOBS.c.jid == jid)
            return connection.execute(query).scalar() is not None

    add(engine, "early")
    until(lambda: answered("early"))
    add(engine, "late")
    until(lambda: answered("late"))
    with database.reading(engine) as connection:
        beat = connection.execute(sa.select(Worker.beat_at)).scalar_one()
        assert abs(database.now(connection) - beat) < timedelta(seconds=30)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0


def test_one_slow_cluster_does_not_delay_another(engine: sa.Engine, script: Script, url: str, tmp_path: Path) -> None:
    """Each cluster is polled by a job of its own."""
    with database.writing(engine) as connection:
        for name, jid in (("slow", "stuck"), ("w1", "a"), ("w1", "b")):
            connection.execute(sa.insert(JOBS).values(cluster=name, jid=jid))
    go_on = threading.Event()

    def hold(jid: str) -> None:
        if jid == "stuck":
            go_on.wait(20)

    script.hold = hold
    config = tmp_path / "clusters.toml"
    config.write_text(
        "".join(f'[clusters.{name}]\napi_key = "k"\nbase_url = "{script.url}"\n' for name in ("slow", "w1"))
    )
    env = os.environ | {"TRACKER_DATABASE_URL": url, "TRACKER_CONFIG": str(config)}
    daemon = subprocess.Popen([TRACKER, "run"], env=env, stderr=subprocess.DEVNULL)

    def recorded() -> bool:
        with database.reading(engine) as connection:
            query = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.status == "waiting")
            return connection.execute(query).scalar_one() == 2

    try:
        until(recorded)
        until(lambda: "stuck" in script.asked)  # and still is: nothing else ends it before the stop below
    finally:
        go_on.set()
        daemon.terminate()
        assert daemon.wait(30) == 0


def test_once_polls_what_is_due_and_exits(engine: sa.Engine, script: Script, url: str) -> None:
    """`--once` is for cron: it polls all that is due, says what it did, and exits 0."""
    add(engine, *[f"j{i}" for i in range(30)])
    done = tracker("run", "--once", env=environment(url, script.url))
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("30 asked, 0 failed, 30 transitions recorded\n")
    again = tracker("run", "--once", env=environment(url, script.url))
    assert again.stderr.endswith("0 asked, 0 failed, 0 transitions recorded\n")
    histories_are_whole(engine)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_one_open_job_and_a_server_that_is_down_is_a_gap_for_cron_too(
    engine: sa.Engine, script: Script, url: str
) -> None:
    """Each run asks once; the third failure opens the gap, and `tracker status` names it."""
    add(engine, "a")
    script.default = 500
    env = environment(url, script.url)
    for failures in (1, 2, 3):
        with database.reading(engine) as connection:
            assert connection.execute(sa.select(CLUSTERS.c.gap_began_at)).scalar() is None
        assert "1 asked, 1 failed" in tracker("run", "--once", env=env).stderr
        with database.reading(engine) as connection:
            row = connection.execute(sa.select(CLUSTERS)).one()
        assert (row.failures, row.failing_since is None) == (failures, False)
    assert (row.gap_cause, row.gap_began_at) == (Cause.UNREACHABLE, row.failing_since)
    shown = tracker("status", env=env)
    assert (shown.returncode, "unreachable since" in shown.stdout) == (1, True), shown.stdout


def test_daemons_of_long_ago_are_not_listed_for_ever(engine: sa.Engine, script: Script, url: str) -> None:
    """Runs of cron would fill the table; the last sign of life stays, however old."""
    with database.writing(engine) as connection:
        now = database.now(connection)
        for days in (40, 50, 60):
            at = now - timedelta(days=days)
            facts = {"host": "h", "pid": 1, "version": "1", "started_at": at, "beat_at": at, "stopped_at": at}
            connection.execute(sa.insert(Worker).values(worker=f"old{days}", **facts))
    tracker("run", "--once", env=environment(url, script.url))
    with database.reading(engine) as connection:
        left = connection.execute(sa.select(Worker.worker).where(Worker.worker.like("old%"))).scalars().all()
    assert left == ["old40"]


def test_poll_asks_now(engine: sa.Engine, script: Script, url: str) -> None:
    """`tracker poll JID` asks out of turn and prints what came of it; it refuses what must not be asked."""
    add(engine, "a", "gone")
    env = environment(url, script.url)
    tracker("run", "--once", env=env)
    script.default = "running"
    done = tracker("poll", "a", "--format", "json", env=env)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["before"], row["status"], row["state"], row["last_error"]) == ("waiting", "running", "open", None)
    script.default = 503
    failed = tracker("poll", "a", env=env)
    assert failed.returncode == 69
    assert "Unavailable http_503" in failed.stdout
    unknown = tracker("poll", "nowhere", env=env)
    assert (unknown.returncode, "no job has the jid" in unknown.stderr) == (1, True)
    with database.writing(engine) as connection:
        ended = {"state": State.WITHDRAWN, "due_at": None}
        connection.execute(sa.update(JOBS).where(JOBS.c.jid == "gone").values(ended))
        connection.execute(sa.update(CLUSTERS).values(pause_cause=Cause.PAUSED))
    assert "is withdrawn, and only open jobs" in tracker("poll", "gone", env=env).stderr
    assert "tracker resume w1" in tracker("poll", "a", env=env).stderr


def test_it_refuses_what_it_must_not_run_on(empty_url: str, dialect: str, script: Script) -> None:
    """A missing file, an empty database, another version's schema, a missing guard, no cluster: each with its mend."""
    env = environment(empty_url, script.url)
    if dialect == "sqlite":
        missing = tracker("run", env=env)
        assert (missing.returncode, "tracker db upgrade" in missing.stderr) == (78, True)
        assert not Path(str(sa.make_url(empty_url).database)).exists()
        Path(str(sa.make_url(empty_url).database)).touch()
    empty = tracker("run", env=env)
    assert (empty.returncode, "the database is empty: run `tracker db upgrade`" in empty.stderr) == (78, True)
    database.upgrade(empty_url)
    engine = database.open_database(empty_url)
    with database.writing(engine) as connection:
        table = "" if dialect == "sqlite" else " ON jobs"
        connection.exec_driver_sql(f"DROP TRIGGER guard_jobs_claim{table}")
    unguarded = tracker("run", env=env)
    assert unguarded.returncode == 78
    assert "guard_jobs_claim is missing" in unguarded.stderr
    assert "tracker db upgrade" in unguarded.stderr
    with database.writing(engine) as connection:
        connection.exec_driver_sql("UPDATE tracker_alembic_version SET version_num = '0000'")
    other = tracker("run", env=env)
    assert (other.returncode, "revision 0000" in other.stderr, "tracker db upgrade" in other.stderr) == (78, True, True)
    engine.dispose()
    without = {name: value for name, value in env.items() if not re.match("TRACKER_(CLUSTER|API|BASE|MAX)", name)}
    nothing = tracker("run", env=without)
    assert (nothing.returncode, "no cluster is configured" in nothing.stderr) == (78, True)
    for refused in (empty, unguarded, other, nothing):
        assert "Traceback" not in refused.stderr


def killed_and_restarted(
    engine: sa.Engine, script: Script, start: Callable[..., subprocess.Popen[bytes]], kills: int
) -> None:
    """Kill daemons at random moments while jobs change, and assert that the record is whole after each."""
    random_moment = random.Random(1)
    jids = [f"j{i}" for i in range(200)]
    add(engine, *jids)
    statuses = ["waiting", "running", "waiting", "started"]
    acknowledged: dict[int, tuple[Any, ...]] = {}
    for turn in range(kills):
        script.default = statuses[turn % len(statuses)]
        with database.writing(engine) as connection:  # due, and free of the killed one's leases
            now = database.now(connection)
            connection.execute(sa.update(JOBS).values(due_at=now, leased_until=None, leased_by=None))
        before = len(script.asked)
        daemon = start()
        until(lambda before=before: len(script.asked) > before)  # type: ignore[misc]
        time.sleep(random_moment.random() * 0.4)
        daemon.kill()
        daemon.wait()
        with database.reading(engine) as connection:
            rows = {row.id: tuple(row) for row in connection.execute(sa.select(TRANSITIONS))}
        assert acknowledged.items() <= rows.items()  # what was there stays as it was
        acknowledged = rows
    histories_are_whole(engine)
    with database.reading(engine) as connection:
        keys = connection.execute(sa.select(TRANSITIONS.c.job_id, TRANSITIONS.c.seq)).all()
    assert len(keys) == len(set(keys))
    assert len(keys) > 200


def test_kill_and_restart_loses_nothing(
    engine: sa.Engine, script: Script, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """kill -9 at random moments: what was committed stays, each job is the replay of its history."""
    killed_and_restarted(engine, script, start, 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fifty_kills_lose_nothing(
    engine: sa.Engine, script: Script, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """The same fifty times."""
    killed_and_restarted(engine, script, start, 50)


def test_two_daemons_share_one_database(
    engine: sa.Engine, script: Script, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Two daemons ask about each job once, and record one transition for each answer."""
    first, second = start(), start()

    def both_alive() -> bool:
        with database.reading(engine) as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(Worker)).scalar_one() == 2

    until(both_alive)
    jids = [f"j{i}" for i in range(300)]
    add(engine, *jids)

    def all_answered() -> bool:
        with database.reading(engine) as connection:
            query = sa.select(sa.func.count()).select_from(JOBS).where(JOBS.c.status.is_(None))
            return connection.execute(query).scalar_one() == 0

    until(all_answered)
    for daemon in (first, second):
        daemon.terminate()
        assert daemon.wait(20) == 0
    assert sorted(script.asked) == sorted(jids)
    histories_are_whole(engine)


def last_transition(engine: sa.Engine) -> int:
    with database.reading(engine) as connection:
        return int(connection.execute(sa.select(sa.func.max(TRANSITIONS.c.id))).scalar_one())


def told(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (tmp_path / "daemon.log").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


def test_the_daemon_seals_while_it_runs_and_at_its_stop(
    engine: sa.Engine, script: Script, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
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
    assert signed[-1].checkpoint.ids["transitions"][1] == last_transition(engine)
    assert [one["sha256"] for one in told(tmp_path, "checkpoint")] == [one.sha256 for one in signed]
    assert "s3cret" not in (tmp_path / "daemon.log").read_text()


def test_once_seals_by_the_same_rule(engine: sa.Engine, script: Script, url: str, tmp_path: Path) -> None:
    """A run of cron leaves new rows to a later one, with 0 s it seals them; nothing new makes no checkpoint."""
    add(engine, "a")
    env = environment(url, script.url, TRACKER_CHECKPOINT_FILE=str(tmp_path / "c.txt"))
    assert tracker("run", "--once", env=env).returncode == 0
    assert texts(engine) == []
    assert tracker("run", "--once", env=env | {"TRACKER_SEAL_AFTER": "0 s"}).returncode == 0
    (text,) = texts(engine)
    assert parse(text).checkpoint.ids["transitions"] == (0, last_transition(engine))
    assert parse(text).is_genuine() is None
    (tmp_path / "c.txt").unlink()
    assert tracker("run", "--once", env=env | {"TRACKER_SEAL_AFTER": "0 s"}).returncode == 0
    assert texts(engine) == [text] == split((tmp_path / "c.txt").read_text())


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_once_exits_with_an_error_when_it_could_not_seal(
    engine: sa.Engine, script: Script, url: str, tmp_path: Path
) -> None:
    """Cron reports it, and what was polled is recorded: without the key that signs, and on rubbish."""
    keygen(tmp_path / "key.pem")
    env = environment(url, script.url, TRACKER_SEAL_AFTER="0 s")
    assert tracker("run", "--once", env=env | {"TRACKER_SIGNING_KEY_FILE": str(tmp_path / "key.pem")}).returncode == 0
    add(engine, "a")
    ended = tracker("run", "--once", env=env)
    assert (ended.returncode, script.asked, len(texts(engine))) == (78, ["a"], 1)
    assert "error: sealing has stopped: a key signs the chain" in ended.stderr
    with database.writing(engine) as connection:
        row = dict(connection.execute(sa.select(Seal.__table__)).one()._mapping) | {"id": 2}
        text = f"tracker checkpoint v2\nsha256 {row['checkpoint_sha256']}  checkpoints/garbage"
        row |= {"checkpoint": text, "checkpoint_sha256": "0" * 64}
        connection.execute(sa.insert(Seal).values(row))
    ended = tracker("run", "--once", env=env)
    assert (ended.returncode, "error: a checkpoint in the database is damaged" in ended.stderr) == (1, True)
    histories_are_whole(engine)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_kill_loses_no_delivery(
    engine: sa.Engine, script: Script, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """What a killed daemon had sealed and could not deliver, the next one delivers, in order."""
    with Receiver() as receiver:
        receiver.always = 503
        for jid in ("a", "b"):
            add(engine, jid)
            before = len(receiver.got)
            daemon = start(TRACKER_CHECKPOINT_URL=receiver.url, TRACKER_SEAL_AFTER="0 s")
            until(lambda before=before: len(receiver.got) > before)  # type: ignore[misc]
            daemon.kill()
            daemon.wait()
        receiver.always = None
        add(engine, "c")
        daemon = start(TRACKER_CHECKPOINT_URL=receiver.url, TRACKER_SEAL_AFTER="0 s")
        until(lambda: len(receiver.taken) >= 3 and receiver.taken == texts(engine))
        taken = receiver.taken
    assert taken == texts(engine)

    def noted() -> bool:
        with database.reading(engine) as connection:
            query = sa.select(Delivery).where(Delivery.destination.like("http%"))
            (row,) = connection.execute(sa.select(query.subquery())).all()
            return (row.last_number, row.failing_since) == (len(taken), None)

    until(noted)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_polling_goes_on_when_sealing_fails(
    engine: sa.Engine, script: Script, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """A damaged chain and a file that cannot be written are told, and cost no poll."""
    with database.writing(engine) as connection:
        values: dict[str, Any] = {"last_transition_id": 0, "last_gap_id": 0, "last_source_id": 0, "rows": 0}
        values |= {"checkpoint": "tracker checkpoint v2\ngarbage", "checkpoint_sha256": "0" * 64}
        connection.execute(sa.insert(Seal).values(values | {"sealed_at": database.now(connection)}))
    daemon = start(TRACKER_CHECKPOINT_FILE=str(tmp_path / "missing" / "c.txt"))
    until(lambda: (tmp_path / "daemon.log").exists() and bool(told(tmp_path, "delivery_failed")))
    add(engine, "a")
    until(lambda: script.asked == ["a"])
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    assert "damaged" in told(tmp_path, "sealing_failed")[0]["error"]
    assert {one["error"] for one in told(tmp_path, "delivery_failed")} == {
        "Chain damaged",
        "FileNotFoundError ENOENT",
    }
    histories_are_whole(engine)


@pytest.mark.parametrize("fault", ["missing", "readable by others", "garbage"])
def test_a_signing_key_that_cannot_be_used_stops_the_start(script: Script, tmp_path: Path, fault: str) -> None:
    """Nobody learns months later that nothing was signed."""
    path = tmp_path / "key.pem"
    if fault == "readable by others":
        keygen(path)
        path.chmod(0o640)
    elif fault == "garbage":
        path.write_text("-----BEGIN PRIVATE KEY-----\nMC4C\n")
        path.chmod(0o600)
    env = environment(f"sqlite:///{tmp_path / 'no.db'}", script.url, TRACKER_SIGNING_KEY_FILE=str(path))
    ended = tracker("run", "--once", env=env)
    assert ended.returncode == 78
    assert str(path) in ended.stderr
