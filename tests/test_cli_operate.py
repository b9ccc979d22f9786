"""``tracker withdraw``, ``reopen``, ``pause`` and ``resume`` as an operator meets them, on both databases."""

from __future__ import annotations

import getpass
import shlex
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests import history
from tests.conftest import Say
from tests.history import register
from tracker import database
from tracker.models import CLUSTERS
from tracker.status import State


def state(engine: sa.Engine, job_id: int) -> State:
    return State(history.job(engine, job_id).state)


def test_withdraw_and_reopen_say_what_they_did(engine: sa.Engine, say: Say) -> None:
    """The job, its cluster, what it is now and was; the actor is the login, or who is named."""
    job_id = register(engine, "a")
    assert say("withdraw", "a", "--reason", "twice") == (0, "a of cluster w1 is withdrawn; it was open.\n")
    assert state(engine, job_id) is State.WITHDRAWN
    last = history.last(engine, job_id)
    assert (last.actor, last.reason) == (getpass.getuser(), "twice")
    assert say("reopen", "a", "--reason", "not twice", "--actor", "eve") == (
        0,
        "a of cluster w1 is reopened; it was withdrawn.\n",
    )
    assert say("withdraw", "a", "a", "x\x1b", "b\x1b[2J", "--reason", "x", "--dry-run") == (
        1,
        "a of cluster w1 would be withdrawn; it was open.\n"
        * 2
        + "'x\\x1b': no job has the jid 'x'; register it with: tracker add JID\n"
        "'b\\x1b[2J': jid: contains the invisible character '\\x1b'\n"
        "2 would be withdrawn, 2 refused.\n",
    )
    assert state(engine, job_id) is State.OPEN
    assert history.last(engine, job_id).actor == "eve"


WRONG: list[tuple[str, int, str]] = [
    ("withdraw a", 2, "Missing option '--reason'"),
    ("withdraw --reason x", 2, "Give either JIDs or --from FILE."),
    ("withdraw a --from - --reason x", 2, "Give either JIDs"),
    ("withdraw two --reason x", 1, "choose one with --cluster: w1, w2"),
    ("reopen done --reason x", 1, "the job is done, as Elevate said: only its declared facts can be amended"),
    ("withdraw a --reason jo@example.com", 1, "personal data"),
    ("withdraw a --reason x --actor ' '", 1, "actor: is empty"),
    ("withdraw b --reason x", 1, "no job has the jid 'b'; register it with: tracker add JID"),
    ("pause w1", 2, "Missing option '--reason'"),
    ("pause w7 --reason x", 1, "cluster: there is no cluster 'w7'; there are: w1, w2"),
]


def test_what_cannot_be_done_says_why(engine: sa.Engine, say: Say, now: datetime) -> None:
    """And nothing is changed."""
    job_id, *two = [register(engine, jid, name) for jid, name in (("a", "w1"), ("two", "w1"), ("two", "w2"))]
    history.answer(engine, register(engine, "done", at=now - timedelta(days=1)), ("done", now))
    for args, code, problem in WRONG:
        exit_code, message = say(*shlex.split(args))
        assert (exit_code, problem in message) == (code, True), message
    assert state(engine, job_id) is State.OPEN
    assert say("withdraw", "two", "--reason", "x", "--cluster", "w2")[0] == 0
    assert [state(engine, job_id) for job_id in two] == [State.OPEN, State.WITHDRAWN]


# Many at once


def test_each_line_that_cannot_be_done_is_named_and_the_rest_is_done(
    engine: sa.Engine, say: Say, now: datetime, tmp_path: Path
) -> None:
    """By line and reason, in words safe for a terminal; a jid that plain SQL registered is found whatever it is."""
    done = register(engine, "d", at=now - timedelta(days=1))
    history.answer(engine, done, ("done", now))
    good = [register(engine, jid) for jid in ("a", "b,no-blank", "ö;\"'")]
    for name in ("w1", "w2", "w3"):
        register(engine, "two", name)
    file = tmp_path / "jids.csv"
    text = '\ufeffreference, Jid ,cluster\r\n,a,\n\n ,,\n,d,\n"R, 1","\u200bb,no-blank ",\n,nope,\n,two,\n,two,w2\n'
    file.write_text(text + ',"ö;""\'",\n,a,\n,\x1b[2J\x1bx,\nx,,w1\nx\n', "utf-8", newline="")
    expected = [
        "line 5: 'd': the job is done, as Elevate said: only its declared facts can be amended",
        "line 7: no job has the jid 'nope'; register it with: tracker add JID",
        "line 8: several clusters have a job 'two'; choose one with --cluster: w1, w2, w3",
        "line 11: 'a': the same job as in line 2",
        r"line 12: '[2J\x1bx': jid: contains the invisible character '\x1b'",
        "line 13: jid: is empty",
        "line 14: has fewer cells (1) than the header (3)",
    ]
    around = "Blanks or invisible characters around a jid or reference were removed: 2 (first in line 6)."
    for args, were in (["--dry-run"], "would be withdrawn"), ([], "withdrawn"):
        code, message = say("withdraw", "--from", str(file), "--reason", "x", *args)
        assert code == 1
        assert message.splitlines() == [*expected, f"4 {were}, 7 refused.", around]
        assert {state(engine, job_id) for job_id in good} == {State.OPEN if args else State.WITHDRAWN}
    assert state(engine, done) is State.DONE
    lines = b'{"jid": "two", "cluster": "w1", "polls": 3}\n{"jid": "two"}\n'
    code, message = say("withdraw", "--from", "-", "--reason", "x", "--cluster", "w3", stdin=lines)
    assert (code, message) == (0, "2 withdrawn, 0 refused.\n")


# Clusters


def test_pause_and_resume_say_what_they_did(engine: sa.Engine, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a cluster that is only configured; twice is harmless."""
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    assert say("pause", "w1", "--reason", "maintenance") == (0, "Cluster w1 is paused until `tracker resume w1`.\n")
    assert say("pause", "w1", "--reason", "more") == (0, "Cluster w1 is already paused; nothing was changed.\n")
    resumed = "Cluster w1 is resumed. An open gap ends with the first valid answer.\n"
    assert say("resume", "w1", "--reason", "over") == (0, resumed)
    assert say("resume", "w1") == (0, "Cluster w1 is not paused; nothing was changed.\n")
    with database.reading(engine) as connection:
        assert connection.scalars(sa.select(CLUSTERS.c.gap_detail)).all() == ["maintenance; resumed: over"]
