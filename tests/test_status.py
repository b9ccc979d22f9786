"""Decisions: what an answer or an operator makes of a job, and that its history says the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replay import registration, replay
from tracker.errors import InvalidField, Refused
from tracker.status import (
    KNOWN,
    Action,
    Anomaly,
    Answer,
    Decision,
    Facts,
    Job,
    Kind,
    LostRule,
    Past,
    State,
    Transition,
    amend,
    attest,
    decide,
    reopen,
    withdraw,
)

T0 = datetime(2026, 11, 24, 10, tzinfo=UTC)
FACTS = Facts(Kind.EXPORT, "case-1", T0 - timedelta(days=3), T0 - timedelta(hours=1))
RULE = LostRule()


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def answer(status: str, sent: float, completed: float | None = None) -> Answer:
    """An answer by seconds after the registration; it takes a second unless given."""
    return Answer(status, at(sent), at(sent + 1 if completed is None else completed))


@dataclass
class History:
    """A job as the shell would keep it: the row, and its transitions as they were recorded."""

    rule: LostRule = RULE
    job: Job = field(default_factory=lambda: Job(FACTS, T0, "ann"))
    transitions: list[Transition] = field(default_factory=lambda: [registration(FACTS, T0, "ann")])

    def record(self, decision: Decision) -> Transition | None:
        self.job = decision.job
        if decision.transition is not None:
            self.transitions.append(decision.transition)
        return decision.transition

    def hears(self, status: str, sent: float, completed: float | None = None) -> Transition | None:
        past = replay(self.transitions).past
        return self.record(decide(self.job, answer(status, sent, completed), self.rule, past))


def heard(*words: str, seconds: float = 100) -> History:
    """The history of a job that was answered with *words*, *seconds* apart."""
    history = History()
    for number, word in enumerate(words, 1):
        history.hears(word, number * seconds)
    return history


def as_kept(job: Job) -> Job:
    """*job* without what transitions do not hold."""
    return replace(job, seen_at=None, status_polls=0, polls=0)


# --- what an answer makes of a job ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("not_found", State.OPEN),
        ("done", State.DONE),
        ("error", State.FAILED),
        ("DONE", State.OPEN),
        ("done ", State.OPEN),
    ],
)
def test_the_first_answer_is_kept_verbatim_with_no_lower_bound(word: str, state: State) -> None:
    history = History()
    transition = history.hears(word, 60, 61)
    ended = None if state is State.OPEN else at(61)
    seen: dict[str, Any] = {"status": word, "status_by": at(61), "status_polls": 1, "seen_at": at(60), "polls": 1}
    assert history.job == Job(FACTS, T0, "ann", state=state, ended_by=ended, seq=1, **seen)
    assert transition == Transition(
        seq=1,
        action=Action.OBSERVED,
        from_status=None,
        to_status=word,
        from_state=State.OPEN,
        to_state=state,
        last_seen_at=None,
        observed_at=at(61),
        polls=1,
        anomaly=None if word in KNOWN else Anomaly.UNKNOWN_STATUS,
    )


def test_a_change_lies_between_the_last_sight_of_the_old_and_the_first_of_the_new() -> None:
    history = heard("waiting", "waiting")
    transition = history.record(
        decide(history.job, replace(answer("done", 300, 305), server_date=at(-7)), RULE, Past())
    )
    assert (history.job.status_after, history.job.status_by) == (at(200), at(305))
    assert (history.job.ended_after, history.job.ended_by) == (at(200), at(305))
    assert transition is not None
    assert (transition.last_seen_at, transition.observed_at, transition.server_date) == (at(200), at(305), at(-7))


def test_the_same_word_again_makes_no_transition() -> None:
    history = heard("waiting", "waiting", "waiting")
    assert len(history.transitions) == 2
    assert (history.job.status_polls, history.job.polls, history.job.seq) == (3, 3, 1)
    assert (history.job.status_after, history.job.status_by, history.job.seen_at) == (None, at(101), at(300))


@pytest.mark.parametrize(
    ("words", "anomaly"),
    [
        ("created started waiting started created", None),
        ("waiting created", Anomaly.BACKWARDS),
        ("running waiting", Anomaly.BACKWARDS),
        ("running started", Anomaly.BACKWARDS),
        ("running created", Anomaly.BACKWARDS),
        ("waiting done", None),
        ("paused stopped", Anomaly.UNKNOWN_STATUS),
        ("paused waiting", None),
        ("not_found", None),
        ("not_found waiting", None),
        ("paused not_found", Anomaly.VANISHED),
        ("waiting not_found waiting", Anomaly.REAPPEARED),
        ("waiting not_found done", Anomaly.REAPPEARED),
        ("waiting not_found paused", Anomaly.UNKNOWN_STATUS),
        ("not_found waiting not_found", Anomaly.VANISHED),
    ],
)
def test_what_is_odd_about_the_last_of_these_answers(words: str, anomaly: Anomaly | None) -> None:
    assert heard(*words.split()).transitions[-1].anomaly == anomaly


DAY = 86_400.0


@pytest.mark.parametrize(
    ("rule", "sent", "lost_at"),
    [
        pytest.param(RULE, [0, DAY, DAY + 1, 2 * DAY, 2 * DAY + 1], 5, id="often and long enough at once"),
        pytest.param(RULE, [0, 1, 2, 3, 4, 5, 2 * DAY - 1, 2 * DAY + 1], 8, id="often, but not long enough"),
        pytest.param(RULE, [0, 3 * DAY, 4 * DAY, 5 * DAY, 6 * DAY], 5, id="long, but not often enough"),
        pytest.param(RULE, [0, DAY, DAY + 1, DAY + 2, 2 * DAY + 0.999, 2 * DAY + 1], 6, id="a moment too early"),
        pytest.param(LostRule(1, timedelta()), [0], 1, id="the first answer, if the rule says so"),
        pytest.param(LostRule(1, timedelta(seconds=5)), [0, 3, 6], 3, id="by time alone"),
    ],
)
@pytest.mark.parametrize("was_found", [True, False])
def test_not_found_ends_a_job_only_often_and_long_enough(
    rule: LostRule, sent: list[float], lost_at: int, was_found: bool
) -> None:
    history = History(rule)
    if was_found:
        history.hears("waiting", -5, -4.5)
    for number, seconds in enumerate(sent, 1):
        history.hears("not_found", seconds)
        assert (history.job.state is State.LOST) == (number == lost_at), f"answer {number}"
    last = history.transitions[-1]
    expected = None if was_found else Anomaly.NEVER_FOUND
    if len(sent) == 1 and was_found:
        expected = Anomaly.VANISHED
    assert (last.to_status, last.to_state, last.anomaly) == ("not_found", State.LOST, expected)
    previous = at(sent[-2]) if len(sent) > 1 else at(-5) if was_found else None
    assert (history.job.ended_after, history.job.ended_by) == (previous, at(sent[-1] + 1))


def test_a_reopening_starts_the_count_again() -> None:
    history = History(LostRule(2, timedelta(days=1)))
    history.hears("not_found", 0)
    history.hears("not_found", 2 * DAY)
    assert history.job.state is State.LOST
    history.record(reopen(history.job, at(3 * DAY), "ann", "asked the vendor"))
    for days, state in [(3.1, State.OPEN), (3.9, State.OPEN), (4, State.LOST)]:
        history.hears("not_found", days * DAY)
        assert history.job.state is state, days


def test_a_job_that_failed_again_after_a_reopening_ends_between_its_last_two_sights() -> None:
    history = heard("running", "error")
    entered = (history.job.status_after, history.job.status_by)
    history.record(reopen(history.job, at(1000), "ann", "run again"))
    assert (history.job.state, history.job.status, history.job.status_polls) == (State.OPEN, "error", 0)
    assert (history.job.ended_after, history.job.ended_by) == (None, None)
    transition = history.hears("error", 1001)
    assert transition is not None
    assert (transition.from_status, transition.to_status) == ("error", "error")
    assert (history.job.state, history.job.ended_after, history.job.ended_by) == (State.FAILED, at(200), at(1002))
    assert (history.job.status_after, history.job.status_by) == entered


def test_a_clock_that_is_adjusted_by_moments_never_turns_times_over() -> None:
    history = heard("waiting", "waiting")
    transition = history.hears("running", 196, 197)
    assert transition is not None
    assert (transition.last_seen_at, transition.observed_at, history.job.seen_at) == (at(200), at(200), at(200))
    first = History().hears("waiting", -4)
    assert first is not None
    assert first.observed_at == T0
    slow = History()
    slow.hears("waiting", 10, 20)
    withdrawn = withdraw(slow.job, at(15), "ann", "mistake").transition
    assert withdrawn is not None
    assert withdrawn.observed_at == at(20)


def test_after_a_clock_that_was_ahead_nothing_is_recorded_in_the_future() -> None:
    """The best lower bound that is not in the future itself takes the place of the last sight."""
    history = History()
    history.hears("created", 100)
    history.hears("waiting", 200)
    history.hears("waiting", 3 * DAY)  # here the clock was ahead
    transition = history.hears("running", 300)
    assert transition is not None
    assert (transition.last_seen_at, transition.observed_at, history.job.seen_at) == (at(100), at(301), at(300))
    assert (history.job.status_after, history.job.status_by) == (at(100), at(301))
    ahead = History()
    ahead.hears("waiting", 3 * DAY)
    withdrawn = withdraw(ahead.job, at(500), "ann", "mistake").transition
    assert withdrawn is not None
    assert (withdrawn.last_seen_at, withdrawn.observed_at) == (T0, at(500))


# --- the deadline -----------------------------------------------------------------------------------------------------

DUE = 1000.0


@pytest.mark.parametrize(
    ("before", "word", "sent", "is_row"),
    [
        pytest.param(["waiting"], "waiting", DUE, True, id="seen not done at the deadline"),
        pytest.param(["waiting"], "waiting", DUE - 1, False, id="asked before the deadline, answered at it"),
        pytest.param(["odd"], "odd", DUE, True, id="a status that nobody documented"),
        pytest.param(["waiting", "not_found"], "not_found", DUE, False, id="not found is no sight of it"),
    ],
)
def test_the_first_sight_of_a_job_not_done_after_its_deadline_is_a_row_of_its_own(
    before: list[str], word: str, sent: float, is_row: bool
) -> None:
    history = heard(*before)
    job, known = history.job, len(history.transitions)
    decision = decide(job, answer(word, sent, sent + 2), RULE, Past(), at(DUE))
    row = history.record(decision)
    assert (row is not None) == is_row
    assert (history.job.status_after, history.job.status_by) == (job.status_after, job.status_by)
    assert (history.job.seen_at, history.job.status_polls) == (at(sent), 2)
    if row is not None:
        assert (row.from_status, row.to_status, row.from_state, row.to_state) == (word, word, State.OPEN, State.OPEN)
        assert (row.last_seen_at, row.observed_at, row.anomaly) == (at(sent), at(sent + 2), None)
        assert history.job.seq == known
        again = decide(history.job, answer(word, sent + 60), RULE, Past(), at(DUE))
        assert again.transition is None
        later = decide(history.job, answer(word, sent + DAY), RULE, Past(), at(sent + DAY))  # it was extended meanwhile
        assert later.transition is not None
    replayed = replay(history.transitions).job
    assert as_kept(replayed) == as_kept(history.job)
    assert not is_row or replayed.seen_at == at(sent)


def test_a_job_that_changes_after_its_deadline_is_shown_not_done_by_the_next_answer() -> None:
    """The row of the change does not say when its request was sent, so the replay takes the job for not yet seen."""
    history = heard("waiting")
    for sent in (DUE, DUE + 60, DUE + 120):
        history.record(decide(history.job, answer("running", sent), RULE, Past(), at(DUE)))
    assert [row.to_status for row in history.transitions[1:]] == ["waiting", "running", "running"]
    assert replay(history.transitions).job.seen_at == at(DUE + 60)


# --- what operators may do --------------------------------------------------------------------------------------------


def in_state(state: State) -> History:
    match state:
        case State.OPEN:
            return heard("waiting")
        case State.DONE:
            return heard("waiting", "done")
        case State.FAILED:
            return heard("waiting", "error")
        case State.LOST:
            return heard("waiting", *["not_found"] * 5, seconds=DAY)
        case State.ATTESTED:
            history = heard("waiting")
            history.record(attest(history.job, at(150), at(200), "ann", "downloaded it myself"))
            return history
        case State.WITHDRAWN:
            history = heard("waiting")
            history.record(withdraw(history.job, at(200), "ann", "mistake"))
            return history


LATER = at(9 * DAY)
OTHER = replace(FACTS, reference="case-2", extended_on=date(2027, 1, 1))
ACTS: dict[Action, Callable[[Job], Decision]] = {
    Action.WITHDRAWN: lambda job: withdraw(job, LATER, "bob", "why"),
    Action.REOPENED: lambda job: reopen(job, LATER, "bob", "why"),
    Action.ATTESTED: lambda job: attest(job, at(8 * DAY), LATER, "bob", "why"),
    Action.AMENDED: lambda job: amend(job, OTHER, LATER, "bob", "why"),
}
LEGAL = {
    Action.WITHDRAWN: {State.OPEN, State.FAILED, State.LOST},
    Action.REOPENED: {State.FAILED, State.LOST, State.ATTESTED, State.WITHDRAWN},
    Action.ATTESTED: {State.OPEN, State.FAILED, State.LOST},
    Action.AMENDED: set(State),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("action", ACTS)
def test_an_operators_action_is_legal_in_these_states_only(action: Action, state: State) -> None:
    history = in_state(state)
    before = history.job
    assert before.state is state
    if state not in LEGAL[action]:
        with pytest.raises(Refused):
            ACTS[action](before)
        return
    transition = history.record(ACTS[action](before))
    assert transition is not None
    after = history.job
    assert (transition.action, transition.seq, transition.polls) == (action, before.seq + 1, before.polls)
    assert (transition.from_state, transition.to_state) == (state, after.state)
    assert transition.from_status == transition.to_status == before.status == after.status
    assert (transition.last_seen_at, transition.observed_at) == (before.seen_at, LATER)
    assert (transition.actor, transition.reason, transition.anomaly) == ("bob", "why", None)
    assert transition.facts == (OTHER if action is Action.AMENDED else None)
    assert transition.claimed_at == (at(8 * DAY) if action is Action.ATTESTED else None)
    ended = (after.ended_after, after.ended_by)
    match action:
        case Action.WITHDRAWN:
            assert (after.state, ended) == (State.WITHDRAWN, (LATER, LATER))
        case Action.REOPENED:
            assert (after.state, ended, after.status_polls) == (State.OPEN, (None, None), 0)
        case Action.ATTESTED:
            assert (after.state, ended) == (State.ATTESTED, (None, at(8 * DAY)))
        case _:
            assert after == replace(before, facts=OTHER, seq=before.seq + 1)
    assert as_kept(replay(history.transitions).job) == as_kept(after)


def test_nobody_attests_the_future() -> None:
    with pytest.raises(InvalidField) as caught:
        attest(in_state(State.LOST).job, LATER + timedelta(seconds=1), LATER, "ann", "will be")
    assert caught.value.field == "done_by"
    assert attest(in_state(State.LOST).job, LATER, LATER, "ann", "just now").job.ended_by == LATER


@pytest.mark.parametrize("state", [state for state in State if state is not State.OPEN])
def test_an_ended_job_takes_no_answer(state: State) -> None:
    with pytest.raises(ValueError, match="open jobs only"):
        decide(in_state(state).job, answer("running", 9 * DAY), RULE, Past())


# --- any history ------------------------------------------------------------------------------------------------------

words = st.sampled_from(sorted(KNOWN)) | st.sampled_from(["paused", "Done", "ångrad"])
facts = st.builds(
    Facts,
    kind=st.sampled_from(Kind),
    reference=st.none() | st.sampled_from(["case-1", "case-2"]),
    submitted_at=st.none() | st.just(T0 - timedelta(hours=1)),
    extended_on=st.none() | st.just(date(2027, 1, 1)),
)
# Hours that pass before each event: mostly forwards; sometimes a clock is set back.
hours = st.floats(-30, 80) | st.just(0.0)
# Open jobs, lost ones above all, should come up often enough: most events are answers, and most of those do not end it.
events = st.one_of(
    st.tuples(st.just("answer"), st.sampled_from(["created", "waiting", "running", "not_found"]), hours),
    st.tuples(st.just("answer"), st.just("not_found"), st.floats(10, 30)),
    st.tuples(st.just("answer"), words, hours),
    st.tuples(st.just("error"), st.none(), hours),
    st.tuples(st.sampled_from(["withdraw", "reopen"]), st.none(), hours),
    st.tuples(st.just("reopen"), st.none(), st.floats(0, 5)),
    st.tuples(st.just("attest"), st.floats(-50, 1), hours),
    st.tuples(st.just("amend"), facts, hours),
)
rules = st.builds(LostRule, st.integers(1, 4), st.integers(0, 60).map(lambda h: timedelta(hours=h)))


def happens(history: History, event: str, detail: object, now: float) -> None:
    """Do to *history* what the shell does when *event* comes; what is refused changes nothing."""
    job = history.job
    match event, detail:
        case "answer", str(word) if job.state is State.OPEN:
            history.hears(word, now, now + 2)
        case "withdraw", _:
            history.record(withdraw(job, at(now), "ann", "r"))
        case "reopen", _:
            history.record(reopen(job, at(now), "ann", "r"))
        case "attest", float(ago):
            history.record(attest(job, at(now + ago * 3600), at(now), "ann", "r"))
        case "amend", Facts() as changed:
            history.record(amend(job, changed, at(now), "ann", "r"))
        case _:
            pass  # an error is not a status, and an ended job is not asked


@given(rule=rules, story=st.lists(events, max_size=25))
@settings(deadline=None, max_examples=300)
def test_any_sequence_gives_a_legal_history_whose_replay_is_the_job(
    rule: LostRule, story: list[tuple[str, object, float]]
) -> None:
    history = History(rule)
    now = latest = 0.0
    found = False
    for event, detail, passed in story:
        now += passed * 3600
        before, known = history.job, len(history.transitions)
        try:
            happens(history, event, detail, now)
        except Refused:
            assert (history.job, len(history.transitions)) == (before, known)
        job, replayed = history.job, replay(history.transitions)

        assert as_kept(replayed.job) == as_kept(job)
        assert replayed.job.polls <= job.polls
        found |= job.status not in (None, "not_found")
        assert replayed.past.found_before == found
        again = [row.observed_at for row in history.transitions if row.action is Action.REOPENED]
        counted = [job.status_by, *again[-1:]] if job.status == "not_found" else [None]
        assert replayed.past.counted_from == max(counted, key=lambda moment: moment or T0)
        assert [row.seq for row in history.transitions] == list(range(job.seq + 1))
        assert job.seq == before.seq + len(history.transitions) - known

        assert (job.status is None) == (job.status_by is None) == (job.seen_at is None)
        assert (job.status == "done") == (job.state is State.DONE)
        assert job.state is not State.FAILED or job.status == "error"
        assert job.state is not State.LOST or (job.status == "not_found" and job.status_polls >= rule.polls)
        assert (job.ended_by is None) == (job.state is State.OPEN)
        if before.state is State.DONE:
            assert job.state is State.DONE
            assert replace(job, facts=before.facts, seq=before.seq, seen_at=before.seen_at) == before
        latest = max(latest, now)
        if now >= latest and before.status_by is not None and before.seen_at is not None:
            assert job.status_by is not None
            assert job.seen_at is not None
            assert job.status_by >= before.status_by
            assert job.seen_at >= before.seen_at
        assert job.status_by is None or job.status_after is None or job.status_after <= job.status_by
        for row in history.transitions[known:]:
            assert now < latest or row.last_seen_at == before.seen_at
            assert (row.last_seen_at is None) == (before.seen_at is None)
            assert (row.last_seen_at or row.observed_at) <= row.observed_at <= at(now + 2 + 5)
            assert row.action in (Action.REGISTERED, Action.OBSERVED) or row.from_state in LEGAL[row.action]


ONWARD = ["created", "waiting", "running", "done"]


@given(
    lengths=st.lists(st.floats(1, 5000), min_size=4, max_size=4),
    polls=st.lists(st.tuples(st.floats(0, 3000), st.floats(0, 60), st.floats(0, 1)), min_size=1, max_size=20),
)
@settings(deadline=None, max_examples=200)
def test_what_truly_happened_lies_within_the_bounds(
    lengths: list[float], polls: list[tuple[float, float, float]]
) -> None:
    entered = [sum(lengths[:n]) for n in range(4)]  # when the job truly entered each word, seconds after T0
    history = History()
    now = 0.0
    for waited, took, share in polls:
        sent = now + waited
        now = sent + took
        true_at = min(now, sent + took * share)  # Elevate looks somewhere between the request and its answer
        word = ONWARD[max(n for n in range(4) if entered[n] <= true_at)]
        history.hears(word, sent, now)
        job = history.job
        assert job.status == word
        truly = at(entered[ONWARD.index(word)])
        assert (job.status_after or T0) <= truly <= (job.status_by or T0)
        if job.state is State.DONE:
            assert (job.ended_after, job.ended_by) == (job.status_after, job.status_by)
            break
