"""An operator's decisions, on both databases: written whole, kept in the history, and never in a poll's way."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from threading import Event

import pytest
import sqlalchemy as sa

from tests import history
from tests.history import register, stand
from tests.scripted import Script, SetClock, polling
from tracker import database, operate, status, text
from tracker.errors import AmbiguousJob, InvalidField, Refused, UnknownJob
from tracker.models import CLUSTERS, GAPS
from tracker.operate import Standing
from tracker.poller import Tally
from tracker.status import Action, Cause, State

WHY = "registered by mistake"
Act = Callable[..., status.Decision]


@pytest.fixture
def now(engine: sa.Engine) -> datetime:
    with database.reading(engine) as connection:
        return database.now(connection)


def act(engine: sa.Engine, decide: Act, job_id: int, reason: str = WHY) -> status.Decision:
    with database.writing(engine) as connection:
        return decide(connection, job_id, "bob", reason)


def in_state(engine: sa.Engine, state: State, now: datetime) -> int:
    """Return the id of a job that has come into *state*."""
    job_id = register(engine, f"a-{state}-job", at=now - timedelta(days=9))
    at = now - timedelta(days=1)
    match state:
        case State.DONE | State.FAILED:
            history.answer(engine, job_id, ("done" if state is State.DONE else "error", at))
        case State.LOST:
            history.answer(engine, job_id, ("not_found", at), ("not_found", at))
        case State.ATTESTED:
            history.record(engine, job_id, lambda job, past: status.attest(job, at, now, "eve", "seen in the archive"))
        case State.WITHDRAWN:
            history.record(engine, job_id, lambda job, past: status.withdraw(job, at, "eve", "a test"))
        case State.OPEN:
            history.answer(engine, job_id, ("waiting", at), due_at=now + timedelta(hours=1))
    return job_id


# Withdraw and reopen


@pytest.mark.parametrize("state", [State.OPEN, State.FAILED, State.LOST])
def test_a_withdrawn_job_is_polled_no_more_and_its_history_says_who_and_why(
    engine: sa.Engine, now: datetime, state: State
) -> None:
    job_id = in_state(engine, state, now)
    decision = act(engine, operate.withdraw, job_id, f"  {WHY} ")
    row, told = history.job(engine, job_id), history.last(engine, job_id)
    assert (row.state, row.due_at, row.seq) == (State.WITHDRAWN, None, told.seq)
    assert (told.action, told.from_state, told.to_state) == (Action.WITHDRAWN, state, State.WITHDRAWN)
    assert (told.actor, told.reason) == ("bob", WHY)
    assert row.ended_after == row.ended_by == told.observed_at
    assert now <= told.observed_at < now + timedelta(minutes=1)
    assert decision.transition is not None
    assert decision.transition.observed_at == told.observed_at


@pytest.mark.parametrize("state", [State.FAILED, State.LOST, State.ATTESTED, State.WITHDRAWN])
def test_a_reopened_job_is_due_at_once_and_its_errors_are_forgotten(
    engine: sa.Engine, now: datetime, state: State
) -> None:
    job_id = in_state(engine, state, now)
    history.change(engine, job_id, failures=3, last_error="Unavailable http_503")
    before = history.job(engine, job_id)
    act(engine, operate.reopen, job_id)
    row, told = history.job(engine, job_id), history.last(engine, job_id)
    assert (row.state, row.status, row.status_polls) == (State.OPEN, before.status, 0)
    assert (row.ended_after, row.ended_by, row.failures, row.last_error) == (None, None, 0, None)
    assert now <= row.due_at < now + timedelta(minutes=1)
    assert (told.action, told.from_state, told.reason) == (Action.REOPENED, state, WHY)


@pytest.mark.parametrize(
    ("decide", "state", "why"),
    [
        (operate.reopen, State.DONE, "the job is done"),
        (operate.reopen, State.OPEN, "is open already"),
        (operate.withdraw, State.DONE, "the job is done"),
        (operate.withdraw, State.WITHDRAWN, "is withdrawn already: reopen it first"),
        (operate.withdraw, State.ATTESTED, "is attested already: reopen it first"),
    ],
)
def test_what_is_not_legal_is_refused_and_nothing_changes(
    engine: sa.Engine, now: datetime, decide: Act, state: State, why: str
) -> None:
    job_id = in_state(engine, state, now)
    before = history.job(engine, job_id)
    with pytest.raises(Refused, match=why):
        act(engine, decide, job_id)
    assert history.job(engine, job_id) == before


def test_a_dry_run_decides_and_writes_nothing(engine: sa.Engine, now: datetime) -> None:
    job_id = in_state(engine, State.OPEN, now)
    before = history.job(engine, job_id)
    with database.reading(engine) as connection:
        decision = operate.withdraw(connection, job_id, "bob", WHY, dry_run=True)
    assert decision.job.state is State.WITHDRAWN
    assert history.job(engine, job_id) == before


def test_the_answer_of_a_poll_that_is_under_way_is_left_alone(engine: sa.Engine, now: datetime) -> None:
    job_id = register(engine, "a", at=now - timedelta(days=1))
    script = Script()
    script.default = "done"

    def withdraw(jid: str) -> None:
        act(engine, operate.withdraw, job_id)

    script.hold = withdraw
    with script.serve(), polling(engine, script.url, SetClock(now)) as poller:
        assert poller.run(Event()) == Tally(asked=1, lost=1)
    row = history.job(engine, job_id)
    assert (row.state, row.status, row.leased_by, row.leased_until) == (State.WITHDRAWN, None, None, None)


def test_of_two_operators_at_once_one_is_refused(engine: sa.Engine, now: datetime) -> None:
    job_id = in_state(engine, State.OPEN, now)
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
    assert (history.job(engine, job_id).seq, history.last(engine, job_id).actor) == (2, "alice")


# Reasons and actors


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("", "empty"),
        (" \t\n", "empty"),
        ("x" * 1001, "1001 characters; at most 1000"),
        ("two\nlines", "invisible character"),
        ("a\x9bm", "invisible character"),
        ("nul\0", "invisible character"),
        ("not utf-8 \udcff", "not UTF-8"),
        ("asked by jo@example.com", "personal data"),
    ],
)
def test_a_reason_is_refused_with_what_is_wrong(reason: str, why: str) -> None:
    with pytest.raises(InvalidField, match=why) as caught:
        operate.check_reason(reason)
    assert caught.value.field == "reason"


def test_the_longest_reason_is_kept_whole(engine: sa.Engine, now: datetime) -> None:
    job_id, reason = in_state(engine, State.OPEN, now), "ö" * 1000
    act(engine, operate.withdraw, job_id, reason)
    assert history.last(engine, job_id).reason == reason


@pytest.mark.parametrize("actor", ["", " ", "x" * 256, "a\x1bb"])
def test_an_actor_that_will_not_do_is_refused(actor: str) -> None:
    with pytest.raises(InvalidField, match="actor"):
        text.check("actor", actor)


def test_a_bad_reason_or_actor_changes_nothing(engine: sa.Engine, now: datetime) -> None:
    job_id = in_state(engine, State.OPEN, now)
    for actor, reason in (("bob", "jo@example.com"), ("", WHY)):
        with database.writing(engine) as connection, pytest.raises(InvalidField):
            operate.withdraw(connection, job_id, actor, reason)
    assert history.job(engine, job_id).state is State.OPEN


# Finding


def test_a_jid_finds_its_job(engine: sa.Engine) -> None:
    ids = {(jid, name): register(engine, jid, name) for jid, name in (("a", "w1"), ("a", "w2"), ("b", "w2"))}
    with database.reading(engine) as connection:
        assert operate.find(connection, "b") == operate.Found(ids["b", "w2"], "w2", "b")
        assert operate.find(connection, "a", "w1") == operate.Found(ids["a", "w1"], "w1", "a")


def test_a_jid_of_two_clusters_is_refused_with_both_named(engine: sa.Engine) -> None:
    register(engine, "a", "w2")
    register(engine, "a", "w1")
    with database.reading(engine) as connection, pytest.raises(AmbiguousJob, match=r"--cluster: w1, w2$"):
        operate.find(connection, "a")


def test_an_unknown_jid_is_refused_with_the_way_out(engine: sa.Engine) -> None:
    register(engine, "a", "w2")
    with database.reading(engine) as connection:
        with pytest.raises(UnknownJob, match=r"tracker add JID$"):
            operate.find(connection, "b")
        with pytest.raises(UnknownJob, match=r"tracker add JID --cluster w1$"):
            operate.find(connection, "b", "w1")
        with pytest.raises(UnknownJob, match="found in: w2"):
            operate.find(connection, "a", "w1")


@pytest.mark.parametrize("jid", ["", "\0", "a\x1b[2J", "\udcff", "x" * 10_000])
def test_what_cannot_be_a_jid_is_unknown_and_shown_safely(engine: sa.Engine, jid: str) -> None:
    with database.reading(engine) as connection, pytest.raises(UnknownJob) as caught:
        operate.find(connection, jid)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


# Pause and resume


def pause(engine: sa.Engine, cluster: str = "w1", reason: str = WHY) -> tuple[Standing, Standing]:
    with database.writing(engine) as connection:
        return operate.pause(connection, cluster, "anna", reason, ["w1"])


def resume(engine: sa.Engine, cluster: str = "w1", reason: str | None = None) -> tuple[Standing, Standing]:
    with database.writing(engine) as connection:
        return operate.resume(connection, cluster, reason, ["w1"])


def test_a_pause_opens_a_gap_that_keeps_the_reason(engine: sa.Engine, now: datetime) -> None:
    before, after = pause(engine)
    assert before == Standing()
    assert after.gap_began_at is not None
    assert now <= after.gap_began_at < now + timedelta(minutes=1)
    assert after == Standing(Cause.PAUSED, None, after.gap_began_at, Cause.PAUSED, WHY)


def test_pausing_again_is_harmless(engine: sa.Engine) -> None:
    _, first = pause(engine)
    assert pause(engine, reason="another") == (first, first)


def test_a_pause_by_hand_takes_over_from_an_automatic_one_and_leaves_its_gap(engine: sa.Engine, now: datetime) -> None:
    gap = {"gap_began_at": now, "gap_cause": Cause.UNREACHABLE, "gap_detail": "timeout"}
    stand(engine, "w1", pause_cause=Cause.UNREACHABLE, paused_until=now, **gap)
    _, after = pause(engine)
    assert (after.pause_cause, after.gap_began_at, after.gap_cause) == (Cause.PAUSED, now, Cause.UNREACHABLE)
    assert re.fullmatch(rf"timeout; paused 20\S+ \S+: {WHY}", after.gap_detail or "")


@pytest.mark.parametrize(("cause", "lasts"), [(Cause.PAUSED, None), (Cause.KEY_REFUSED, timedelta(hours=1))])
def test_resuming_ends_any_pause_and_leaves_the_gap_open(
    engine: sa.Engine, now: datetime, cause: Cause, lasts: timedelta | None
) -> None:
    until = now + lasts if lasts else None
    gap = {"gap_began_at": now, "gap_cause": cause, "gap_detail": "x"}
    stand(engine, "w1", pause_cause=cause, paused_until=until, **gap)
    before, after = resume(engine)
    assert before == Standing(cause, until, now, cause, "x")
    assert after == Standing(None, None, now, cause, "x")
    assert resume(engine) == (after, after)


def test_a_reason_to_resume_is_kept_with_the_gap(engine: sa.Engine) -> None:
    pause(engine)
    assert resume(engine, reason="back again")[1].gap_detail == f"{WHY}; resumed: back again"


def test_a_cluster_that_is_only_configured_or_only_in_the_database_can_be_paused(engine: sa.Engine) -> None:
    register(engine, "a", "w2")
    stand(engine, "w3")
    for name in ("w1", "w2", "w3"):
        assert pause(engine, name)[1].pause_cause is Cause.PAUSED


@pytest.mark.parametrize("change", [pause, resume])
def test_a_cluster_nobody_has_heard_of_is_refused_and_the_known_are_listed(
    engine: sa.Engine, change: Callable[[sa.Engine, str], object]
) -> None:
    register(engine, "a", "w2")
    for name in ("w22", "\udcff\0"):
        with pytest.raises(InvalidField, match=r"neither configured nor in the database \(known: w1, w2\)"):
            change(engine, name)
    with database.reading(engine) as connection:
        assert connection.execute(sa.select(CLUSTERS)).all() == []


def test_a_paused_cluster_is_not_asked_and_its_gap_ends_with_the_first_answer(engine: sa.Engine, now: datetime) -> None:
    register(engine, "a", at=now - timedelta(days=1))
    began_at = pause(engine)[1].gap_began_at
    clock = SetClock(now)
    with Script().serve() as script, polling(engine, script.url, clock) as poller:
        clock.pass_(hours=1)
        assert poller.run(Event()) == Tally()
        resume(engine)
        assert poller.run(Event()).asked == 1
    with database.reading(engine) as connection:
        [gap] = connection.execute(sa.select(GAPS)).all()
        standing = operate._standing(connection.execute(sa.select(CLUSTERS)).one())
    assert (gap.began_at, gap.ended_at, gap.cause, gap.detail) == (began_at, clock.now, Cause.PAUSED, WHY)
    assert standing == Standing()
