"""``tracker withdraw``, ``reopen``, ``pause`` and ``resume`` as an operator meets them, on both databases."""

from __future__ import annotations

import getpass
import io
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests import history
from tests.history import register, stand
from tracker import cli, database, operate
from tracker.errors import DatabaseUnavailable
from tracker.models import CLUSTERS
from tracker.status import Cause, State

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line on the test's database and returns exit code and messages."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)

    def run(*args: str, stdin: bytes = b"") -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main(args)
        out, err = capsys.readouterr()
        assert out == "", "there is no data, only messages"
        return code, err

    return run


@pytest.fixture
def now(engine: sa.Engine) -> datetime:
    with database.reading(engine) as connection:
        return database.now(connection)


def state(engine: sa.Engine, job_id: int) -> State:
    return State(history.job(engine, job_id).state)


def test_withdraw_and_reopen_say_what_they_did(engine: sa.Engine, run: Run) -> None:
    job_id = register(engine, "a")
    assert run("withdraw", "a", "--reason", "twice") == (0, "a of cluster w1 is withdrawn; it was open.\n")
    assert state(engine, job_id) is State.WITHDRAWN
    told = history.last(engine, job_id)
    assert (told.actor, told.reason) == (getpass.getuser(), "twice")
    assert run("reopen", "a", "--reason", "not twice", "--actor", "eve") == (
        0,
        "a of cluster w1 is reopened; it was withdrawn.\n",
    )
    assert state(engine, job_id) is State.OPEN
    assert history.last(engine, job_id).actor == "eve"


def test_a_done_job_is_never_reopened(engine: sa.Engine, run: Run, now: datetime) -> None:
    job_id = register(engine, "a", at=now - timedelta(days=1))
    history.answer(engine, job_id, ("done", now))
    code, told = run("reopen", "a", "--reason", "x")
    assert (code, told) == (
        1,
        "tracker: error: the job is done, as Elevate said: only its declared facts can be amended\n",
    )


def test_a_jid_of_two_clusters_wants_the_cluster(engine: sa.Engine, run: Run) -> None:
    ids = [register(engine, "a", name) for name in ("w1", "w2")]
    code, told = run("withdraw", "a", "--reason", "x")
    assert code == 1
    assert told.endswith("say which one with --cluster: w1, w2\n")
    assert run("withdraw", "a", "--reason", "x", "--cluster", "w2")[0] == 0
    assert [state(engine, job_id) for job_id in ids] == [State.OPEN, State.WITHDRAWN]


WRONG: list[tuple[list[str], int, str]] = [
    (["withdraw", "a"], 2, "Missing option '--reason'"),
    (["withdraw", "--reason", "x"], 2, "Give a JID, or many by --from FILE"),
    (["withdraw", "a", "--from", "-", "--reason", "x"], 2, "not both"),
    (["withdraw", "--from", "missing.txt", "--reason", "x"], 2, "missing.txt"),
    (["withdraw", "a", "--reason", "  "], 1, "reason: is empty"),
    (["withdraw", "a", "--reason", "jo@example.com"], 1, "personal data"),
    (["withdraw", "a", "--reason", "x", "--actor", " "], 1, "actor: is empty"),
    (["withdraw", "b", "--reason", "x"], 1, "no job has the jid 'b'; register it with: tracker add JID"),
    (["pause", "w1"], 2, "Missing option '--reason'"),
    (["pause", "w7", "--reason", "x"], 1, "'w7' is neither configured nor in the database (known: w1)"),
    (["resume", "w7"], 1, "'w7' is neither configured nor in the database (known: w1)"),
]


def test_what_cannot_be_done_says_why(engine: sa.Engine, run: Run) -> None:
    job_id = register(engine, "a")
    for args, code, told in WRONG:
        exit_code, message = run(*args)
        assert (exit_code, told in message) == (code, True), message
    assert state(engine, job_id) is State.OPEN


# Many at once


def test_each_line_that_cannot_be_done_is_named_and_the_rest_is_done(
    engine: sa.Engine, run: Run, now: datetime, tmp_path: Path
) -> None:
    done = register(engine, "d", at=now - timedelta(days=1))
    history.answer(engine, done, ("done", now))
    good = [register(engine, jid) for jid in ("a", "b with a blank", "ö,\"'")]
    register(engine, "two", "w1")
    register(engine, "two", "w2")
    file = tmp_path / "jids.txt"
    file.write_bytes("\ufeffa\r\n\n  \nd\nb with a blank \nnope\ntwo\nö,\"'\na\n".encode() + b"\xff\x1b[2J\nw1\n")
    code, told = run("withdraw", "--from", str(file), "--reason", "x")
    assert code == 1
    assert told.splitlines() == [
        "line 4: 'd': the job is done, as Elevate said: only its declared facts can be amended",
        "line 6: no job has the jid 'nope'; register it with: tracker add JID",
        "line 7: several clusters have a job 'two', so say which one with --cluster: w1, w2",
        "line 9: 'a': the same job as in line 1",
        "line 10: no job has the jid '\\udcff\\x1b[2J'; register it with: tracker add JID",
        "line 11: no job has the jid 'w1'; register it with: tracker add JID",
        "3 withdrawn, 6 refused.",
    ]
    assert {state(engine, job_id) for job_id in good} == {State.WITHDRAWN}
    assert state(engine, done) is State.DONE


def test_csv_may_name_the_cluster_and_comes_from_stdin(engine: sa.Engine, run: Run) -> None:
    ids = {name: register(engine, "a", name) for name in ("w1", "w2", "w3")}
    other = register(engine, "b", "w3")
    table = b'reference, Jid ,cluster\n"R, 1",a,w1\n,"a",w2\n\nx,b,\nx\n"x,a,w3\n'
    code, told = run("withdraw", "--from", "-", "--reason", "x", "--cluster", "w3", stdin=table)
    assert code == 1
    assert told.splitlines() == [
        "line 6: has not the header's 3 cells",
        "line 7: has not the header's 3 cells",
        "3 withdrawn, 2 refused.",
    ]
    assert state(engine, other) is State.WITHDRAWN
    assert [state(engine, ids[name]) for name in ids] == [State.WITHDRAWN, State.WITHDRAWN, State.OPEN]


def test_what_tracker_jobs_prints_can_be_fed_back(
    engine: sa.Engine, run: Run, now: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    for jid in ("a", "b"):
        history.answer(engine, register(engine, jid, at=now - timedelta(days=1)), *2 * [("not_found", now)])
    assert cli.main(["jobs", "--state", "lost", "--format", "csv"]) == 0
    table = capsys.readouterr().out.encode()
    assert run("reopen", "--from", "-", "--reason", "x", stdin=table) == (0, "2 reopened, 0 refused.\n")


def test_a_dry_run_says_what_would_be_done(engine: sa.Engine, run: Run) -> None:
    job_id = register(engine, "a")
    one = run("withdraw", "a", "--reason", "x", "--dry-run")
    many = run("withdraw", "--from", "-", "--reason", "x", "--dry-run", stdin=b"a\na\nb\n")
    assert one == (0, "a of cluster w1 would be withdrawn; it was open.\n")
    assert many[0] == 1
    assert many[1].splitlines()[-1] == "1 would be withdrawn, 2 refused."
    assert state(engine, job_id) is State.OPEN


def test_a_database_that_goes_away_says_how_far_it_came(
    engine: sa.Engine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = register(engine, "a"), register(engine, "b")
    find = operate.find

    def fail(connection: sa.Connection, jid: str, cluster: str | None) -> operate.Found:
        if jid == "b":
            raise DatabaseUnavailable("the database is not available: gone")
        return find(connection, jid, cluster)

    monkeypatch.setattr(operate, "find", fail)
    code, told = run("withdraw", "--from", "-", "--reason", "x", stdin=b"a\nb\n")
    assert code == 69
    assert "line 2: the database is not available: gone; the lines before it are done" in told
    assert (state(engine, first), state(engine, second)) == (State.WITHDRAWN, State.OPEN)


# Clusters


def test_pause_and_resume_say_what_they_did(engine: sa.Engine, run: Run) -> None:
    register(engine, "a")
    assert run("pause", "w1", "--reason", "maintenance") == (0, "Cluster w1 is paused until `tracker resume w1`.\n")
    code, again = run("pause", "w1", "--reason", "more")
    assert code == 0
    assert again.startswith("Cluster w1 is paused already since 20")
    assert again.endswith("+00:00 (paused: maintenance); nothing was changed.\n")
    code, resumed = run("resume", "w1", "--reason", "over")
    assert code == 0
    assert "it was paused by hand." in resumed
    assert "(paused: maintenance; resumed: over) ends with the first valid answer" in resumed
    assert run("resume", "w1") == (0, "Cluster w1 is not paused; nothing was changed.\n")


def test_an_automatic_pause_can_be_taken_over_and_ended(engine: sa.Engine, run: Run, now: datetime) -> None:
    gap = {"gap_began_at": now, "gap_cause": Cause.KEY_REFUSED, "gap_detail": "http_403"}
    stand(engine, "w1", pause_cause=Cause.KEY_REFUSED, paused_until=now, **gap)
    at = now.isoformat(" ", "seconds")
    assert run("resume", "w1")[1].splitlines() == [
        f"Cluster w1 is resumed; it was paused until {at} (key_refused).",
        f"Its gap since {at} (key_refused: http_403) ends with the first valid answer.",
    ]
    with database.writing(engine) as connection:
        connection.execute(sa.update(CLUSTERS).values(pause_cause=Cause.KEY_REFUSED, paused_until=now))
    assert run("pause", "w1", "--reason", "x")[1].splitlines() == [
        "Cluster w1 is paused until `tracker resume w1`.",
        f"It was paused until {at} (key_refused).",
        f"Its gap since {at} (key_refused: http_403) goes on, with its own cause; your reason is kept with it.",
    ]


def test_a_cluster_that_is_only_configured_can_be_paused(
    run: Run, monkeypatch: pytest.MonkeyPatch, engine: sa.Engine
) -> None:
    monkeypatch.setenv("TRACKER_CLUSTER", "w5")
    assert run("pause", "w5", "--reason", "not yet")[0] == 0
    with database.reading(engine) as connection:
        assert connection.execute(sa.select(CLUSTERS.c.cluster, CLUSTERS.c.pause_cause)).all() == [("w5", "paused")]


@pytest.mark.parametrize("command", ["withdraw", "reopen", "pause", "resume"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"  tracker {command} " in capsys.readouterr().out.partition("Example")[2]
