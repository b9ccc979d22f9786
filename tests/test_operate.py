"""An operator's decisions, on both databases: written whole, kept in the history, and never in a poll's way."""

from __future__ import annotations

import getpass
import re
import shlex
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests import history
from tests.conftest import Say
from tests.history import register, stand
from tracker import database, operate, status, text
from tracker.errors import InvalidField, Refused
from tracker.models import CLUSTERS
from tracker.status import Action, Cause, State

WHY = "registered by mistake"
Act = Callable[..., status.Decision]


def act(engine: sa.Engine, decide: Act, job_id: int, reason: str = WHY) -> status.Decision:
    with database.writing(engine) as connection:
        return decide(connection, job_id, "bob", reason)


# Withdraw and reopen


def test_a_decision_is_written_whole(engine: sa.Engine, now: datetime) -> None:
    """A withdrawn job is not polled; a reopened one is due at once, and its errors are forgotten; both say who, why."""
    job_id = register(engine, "a", at=now - timedelta(days=9))
    history.answer(engine, job_id, ("waiting", now - timedelta(days=1)), due_at=now + timedelta(hours=1))
    history.change(engine, job_id, failures=3, last_error="Unavailable http_503")
    decision = act(engine, operate.withdraw, job_id, f"  {WHY} ")
    row, last = history.job(engine, job_id), history.last(engine, job_id)
    assert (row.state, row.due_at, row.seq) == (State.WITHDRAWN, None, last.seq)
    assert (last.action, last.to_state, last.actor, last.reason) == (Action.WITHDRAWN, State.WITHDRAWN, "bob", WHY)
    assert row.ended_after == row.ended_by == last.observed_at
    assert now <= last.observed_at < now + timedelta(minutes=1)
    assert decision.transition is not None
    assert decision.transition.observed_at == last.observed_at
    act(engine, operate.reopen, job_id, why := "ö" * 1000)
    row, last = history.job(engine, job_id), history.last(engine, job_id)
    assert (row.state, row.status, row.status_polls) == (State.OPEN, "waiting", 0)
    assert (row.ended_after, row.ended_by, row.failures, row.last_error) == (None, None, 0, None)
    assert now <= row.due_at < now + timedelta(minutes=1)
    assert (last.action, last.reason) == (Action.REOPENED, why)


def test_what_is_not_legal_is_refused_and_nothing_changes(engine: sa.Engine, now: datetime) -> None:
    """The state says why (all of them are in `test_status`); so does a wrong reason or actor."""
    job_id = register(engine, "a", at=now - timedelta(days=9))
    before = history.job(engine, job_id)
    with pytest.raises(Refused, match="is open already"):
        act(engine, operate.reopen, job_id)
    for actor, reason in (("bob", "jo@example.com"), ("", WHY)):
        with database.writing(engine) as connection, pytest.raises(InvalidField):
            operate.withdraw(connection, job_id, actor, reason)
    assert history.job(engine, job_id) == before


def test_of_two_operators_at_once_one_is_refused(engine: sa.Engine, now: datetime) -> None:
    job_id = register(engine, "a", at=now - timedelta(days=9))
    refused: list[str] = []

    def second() -> None:
        try:
            act(engine, operate.withdraw, job_id)
        except Refused as error:
            refused.append(str(error))

    thread = threading.Thread(target=second)
    with database.writing(engine) as connection:
        operate.withdraw(connection, job_id, "alice", WHY)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive(), "the second waits for the first"
    thread.join(10)
    assert refused == ["the job is withdrawn already: reopen it first"]
    assert (history.job(engine, job_id).seq, history.last(engine, job_id).actor) == (1, "alice")


# Reasons and actors


def test_texts_are_refused_with_what_is_wrong() -> None:
    """A reason, a jid, an actor: too long, empty, with an address, an invisible character or half a letter in it."""
    wrong: list[tuple[Callable[[object], str], object, str]] = [
        (text.check_reason, "", "reason: is empty"),
        (text.check_reason, " \t\n\u200b\x1b", "reason: is empty"),
        (text.check_reason, "x" * 1001, "reason: has 1001 characters; at most 1000"),
        (text.check_reason, "two\nlines", r"invisible character '\\n'"),
        (text.check_reason, "a\u202eb", "invisible character"),
        (text.check_reason, "not utf-8 \udcff", "not UTF-8"),
        (text.check_reason, "asked by jo@example.com", "personal data"),
        (text.check_jid, "x" * 256, "jid: has 256 characters; at most 255"),
        (text.check_jid, "a b", "jid: contains a blank: give one jid at a time"),
        (text.check_jid, "a\u3000b", "jid: contains a blank"),
        (text.check_jid, "b\udce5", "jid: contains a byte or half a character that is not UTF-8"),
        (text.check_jid, None, "jid: must be text, not NoneType"),
        (lambda value: text.check("actor", value), "x" * 256, "actor: has 256 characters"),
    ]
    for check, value, why in wrong:
        with pytest.raises(InvalidField, match=why):
            check(value)
    around = ("\ufeff\u200b", "\u00a0\t", "\u00ad", "\r\n", "\0", "\u3000", "\u2066")
    assert {text.check_jid(f"{one}j{one}") for one in around} == {"j"}


# Finding


def test_a_jid_finds_its_job(engine: sa.Engine) -> None:
    """In one cluster or the one that is named; what is not found, or found twice, is refused with the way out."""
    ids = {(jid, name): register(engine, jid, name) for jid, name in (("a", "w2"), ("a", "w1"), ("b,c", "w2"))}
    with database.reading(engine) as connection:
        assert operate.find(connection, "b,c") == operate.FoundJob(ids["b,c", "w2"], "w2", "b,c")
        assert operate.find(connection, "a", "w1") == operate.FoundJob(ids["a", "w1"], "w1", "a")
        assert operate.find(connection, "\u200b b,c\n").jid == "b,c"  # as add and import read it
        with pytest.raises(Refused, match=r"--cluster: w1, w2$"):
            operate.find(connection, "a")
        with pytest.raises(Refused, match=r"tracker add JID$"):
            operate.find(connection, "b")
        with pytest.raises(Refused, match=r"tracker add JID --cluster w1$"):
            operate.find(connection, "b", "w1")
        with pytest.raises(Refused, match="has it: w1, w2"):
            operate.find(connection, "a", "w3")


# Pause and resume


def pause(engine: sa.Engine, cluster: str = "w1", reason: str = WHY) -> bool:
    with database.writing(engine) as connection:
        return operate.pause(connection, cluster, "anna", reason, ["w1"])


def resume(engine: sa.Engine, cluster: str = "w1", reason: str | None = None) -> bool:
    with database.writing(engine) as connection:
        return operate.resume(connection, cluster, reason, ["w1"])


def standing(engine: sa.Engine, cluster: str = "w1") -> tuple[Any, ...]:
    """Return the pause and the open gap of a cluster: cause, until; since, cause, detail, actor."""
    columns = ("pause_cause", "paused_until", "gap_began_at", "gap_cause", "gap_detail", "gap_actor")
    with database.reading(engine) as connection:
        query = sa.select(*(CLUSTERS.c[name] for name in columns)).where(CLUSTERS.c.cluster == cluster)
        return tuple(connection.execute(query).one())


def test_a_pause_opens_a_gap_that_keeps_the_reason(engine: sa.Engine, now: datetime) -> None:
    """Pausing again is harmless; the reason to resume is added, and the gap stays open."""
    assert not pause(engine)
    _, _, began_at, *_ = paused = standing(engine)
    assert now <= began_at < now + timedelta(minutes=1)
    assert paused == (Cause.PAUSED, None, began_at, Cause.PAUSED, WHY, "anna")
    assert pause(engine, reason="another")
    assert standing(engine) == paused
    assert resume(engine, reason="back again")
    resumed = (None, None, began_at, Cause.PAUSED, f"{WHY}; resumed: back again", "anna")
    assert standing(engine) == resumed
    assert not resume(engine)
    assert standing(engine) == resumed


def test_a_pause_by_hand_takes_over_from_an_automatic_one_and_leaves_its_gap(engine: sa.Engine, now: datetime) -> None:
    """The gap keeps its cause, and its detail says since when an operator paused the cluster too."""
    gap = {"gap_began_at": now, "gap_cause": Cause.UNREACHABLE, "gap_detail": "timeout"}
    stand(engine, "w1", pause_cause=Cause.UNREACHABLE, paused_until=now, **gap)
    assert not pause(engine)
    cause, until, began_at, gap_cause, detail, _ = standing(engine)
    assert (cause, until, began_at, gap_cause) == (Cause.PAUSED, None, now, Cause.UNREACHABLE)
    assert re.fullmatch(rf"timeout; paused 20\S+ \S+: {WHY}", detail)


def test_which_clusters_can_be_paused(engine: sa.Engine) -> None:
    """One that is only configured or only in the database; any other is refused, with those that are known."""
    register(engine, "a", "w2")
    for change in (pause, resume):
        for name in ("w22", "\udcff\0"):
            with pytest.raises(InvalidField, match=r"there is no cluster .*; there are: w1, w2"):
                change(engine, name)
    with database.reading(engine) as connection:
        assert connection.execute(sa.select(CLUSTERS)).all() == []
    stand(engine, "w3")
    for name in ("w1", "w2", "w3"):
        pause(engine, name)
        assert standing(engine, name)[0] is Cause.PAUSED


# The commands


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
