"""Pauses, gaps and what counts against a cluster: by tables, then any sequence of answers and failures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker import health
from tracker.errors import AskError, BadAnswer, KeyRefused, RateLimited, Unavailable, WrongTarget
from tracker.health import LONGEST_PAUSE, ClusterChange, EndedGap, Health, Permission, RequestKind
from tracker.status import Cause

T0 = datetime(2026, 11, 24, 10, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def error(kind: type[AskError], sent: float, wait: float | None = None) -> AskError:
    if issubclass(kind, RateLimited):
        asked_for = None if wait is None else timedelta(seconds=wait)
        return kind("http_429", "wait", sent_at=at(sent), retry_after=asked_for)
    return kind("code", "words", sent_at=at(sent))


@dataclass
class Story:
    """A cluster as the poller would keep it; each request takes a second."""

    health: Health = field(default_factory=Health)
    gaps: list[EndedGap] = field(default_factory=list)

    def take(self, change: ClusterChange) -> ClusterChange:
        self.health = change.health
        self.gaps += [change.gap] if change.gap else []
        return change

    def answers(self, sent: float, turn: RequestKind = RequestKind.DUE) -> Story:
        self.take(health.answered(self.health, at(sent), at(sent + 1), turn))
        return self

    def fails(
        self,
        sent: float,
        kind: type[AskError] = Unavailable,
        *,
        turn: RequestKind = RequestKind.DUE,
        before: int = 0,
        unfailed: int = 3,
        wait: float | None = None,
        took: float = 1,
    ) -> ClusterChange:
        failed = error(kind, sent, wait)
        return self.take(
            health.failed(self.health, failed, at(sent + took), job_failures=before, unfailed=unfailed, turn=turn)
        )

    @property
    def gap(self) -> tuple[datetime | None, Cause | None]:
        return self.health.gap_began_at, self.health.gap_cause

    @property
    def pause(self) -> float | None:
        """Seconds after T0 at which the pause ends."""
        until = self.health.paused_until
        return None if until is None else (until - T0).total_seconds()


# --- what pauses a cluster --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wait", "seconds", "cause"),
    [
        (KeyRefused, None, 900, Cause.KEY_REFUSED),
        (WrongTarget, None, 900, Cause.UNREACHABLE),
        (RateLimited, None, 60, Cause.RATE_LIMITED),
        (RateLimited, 120, 120, Cause.RATE_LIMITED),
        (RateLimited, 0, 1, Cause.RATE_LIMITED),
        (RateLimited, 999_999, 6 * 3600, Cause.RATE_LIMITED),
    ],
)
def test_one_error_of_the_cluster_itself_pauses_it(
    kind: type[AskError], wait: float | None, seconds: float, cause: Cause
) -> None:
    """The gap begins when the request was sent, the pause is counted from the error, and the job stays due."""
    story = Story()
    assert not story.fails(10, kind, wait=wait).backs_off
    assert (story.pause, story.health.pause_cause, story.gap) == (11 + seconds, cause, (at(10), cause))
    assert story.health.may_ask(at(10 + seconds)) is Permission.NOTHING
    assert story.health.may_ask(at(11 + seconds)) is Permission.PROBE


@pytest.mark.parametrize(("kind", "cause"), [(Unavailable, Cause.UNREACHABLE), (BadAnswer, Cause.BAD_ANSWER)])
def test_other_errors_pause_a_cluster_after_three(kind: type[AskError], cause: Cause) -> None:
    """Three in a row of different jobs, with no valid answer between; the gap begins with the first of them."""
    story = Story().answers(0)
    for sent in (10, 20):
        assert story.fails(sent, kind).backs_off
        assert story.health.may_ask(at(sent + 1)) is Permission.DUE
    story.answers(25)
    for sent in (30, 40):
        story.fails(sent, kind)
    assert (story.health.failures, story.gap) == (2, (None, None))
    story.fails(50, kind)
    assert (story.pause, story.health.pause_cause, story.gap) == (51 + 30, cause, (at(30), cause))


@pytest.mark.parametrize(
    ("before", "unfailed", "counted"),
    [
        pytest.param([0, 0, 0], [3, 3, 3], True, id="three jobs"),
        pytest.param([0, 1, 2], [3, 3, 3], False, id="one job three times, where there are others"),
        pytest.param([0, 1, 2], [0, 0, 0], True, id="one job three times, where there is no other"),
        pytest.param([0, 1, 0], [1, 1, 0], True, id="two jobs, where there are no more"),
        pytest.param([5, 7, 9], [3, 3, 3], False, id="jobs that always fail are no news"),
        pytest.param([5, 7, 9], [0, 0, 0], True, id="unless there are no others"),
    ],
)
def test_they_have_to_be_of_different_jobs(before: list[int], unfailed: list[int], counted: bool) -> None:
    story = Story()
    for number, (failures, others) in enumerate(zip(before, unfailed, strict=True)):
        story.fails(10 * number, before=failures, unfailed=others)
    assert (story.health.pause_cause is Cause.UNREACHABLE) == counted
    assert story.health.failing_since == at(0)


def test_a_request_that_hangs_while_others_are_answered_says_nothing_of_the_cluster() -> None:
    """A failure counts only if the cluster has answered nothing since the request was sent."""
    story = Story()
    for number in range(100):
        story.answers(number)
        story.fails(number - 10, took=10)
        story.fails(number - 9.5, took=10)
    assert (story.health.failures, story.health.pauses, story.gaps) == (0, 0, [])


# --- how pauses grow --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "minutes"),
    [
        (KeyRefused, [15, 30, 60, 120, 240, 360, 360, 360]),
        (Unavailable, [0.5, 1, 2, 4, 8, 15, 15, 15]),
    ],
)
def test_only_the_failure_of_a_probe_doubles_the_pause(kind: type[AskError], minutes: list[float]) -> None:
    """Up to its longest; requests that were under way fail together and count once."""
    story, sent = Story(), 0.0
    for _ in range(2):
        story.fails(sent, kind)
    found: list[float] = []
    for _ in minutes:
        turn = RequestKind.PROBE if found else RequestKind.DUE
        story.fails(sent, kind, turn=turn, before=len(found), unfailed=0)
        assert story.pause is not None
        found.append((story.pause - sent - 1) / 60)
        for later in range(60):
            story.fails(sent, kind, took=1 + later / 60)
        assert (story.pause - sent - 1) / 60 == found[-1]
        sent = story.pause
    assert found == minutes
    assert story.gap[0] == at(0)


def test_a_server_that_asks_for_more_is_obeyed() -> None:
    """Another Retry-After under way makes the pause as long as that asks for, and no shorter."""
    story = Story()
    story.fails(0, RateLimited, wait=100)
    story.fails(0, RateLimited, wait=50, took=2)
    assert story.pause == 101
    story.fails(0, RateLimited, wait=500, took=3)
    assert (story.pause, story.health.pauses) == (503, 1)


# --- how they end -----------------------------------------------------------------------------------------------------


def test_a_probe_that_is_answered_ends_pause_and_gap() -> None:
    story = Story()
    story.fails(0, KeyRefused)
    story.answers(1000, RequestKind.PROBE)
    assert story.gaps == [EndedGap(at(0), at(1001), Cause.KEY_REFUSED, "code")]
    assert story.health == Health(answered_at=at(1001))


@pytest.mark.parametrize(
    ("turn", "ends"), [(RequestKind.DUE, False), (RequestKind.PROBE, True), (RequestKind.BY_HAND, True)]
)
def test_an_answer_that_was_under_way_ends_no_pause(turn: RequestKind, ends: bool) -> None:
    """A server that limits its rate answers some and refuses others: it is left alone for as long as it asked."""
    story = Story()
    story.fails(10, RateLimited, wait=300)
    story.answers(10.5, turn)
    assert (story.health.pause_cause is None) == ends
    assert story.health.answered_at == at(11.5)
    before = Story()
    before.fails(10, KeyRefused)
    before.answers(9, turn)
    assert before.health.pause_cause is Cause.KEY_REFUSED


def test_an_absence_that_another_daemon_ended_is_over() -> None:
    """Two daemons that waited for the database find the same absence, the second after the first one's answer."""
    found = health.step(at(0), at(75), timedelta(seconds=75))
    assert found is not None
    story = Story(Health(answered_at=at(-1)))
    story.take(health.stepped(story.health, found))
    story.answers(76, RequestKind.PROBE)
    assert health.stepped(story.health, found) == ClusterChange(story.health)
    assert story.gaps == [EndedGap(at(0), at(76), Cause.NOT_RUNNING)]
    assert health.stepped(Health(answered_at=at(10)), found).health.gap_began_at == at(10)


def test_a_pause_by_hand_is_ended_by_hand() -> None:
    """No answer, failure, restart or time ends it."""
    paused = Health(pause_cause=Cause.PAUSED, gap_began_at=at(5), gap_cause=Cause.PAUSED, gap_actor="ann")
    story = Story(paused)
    story.answers(6, RequestKind.PROBE)
    story.fails(7, KeyRefused)
    assert replace(story.health, answered_at=None, failures=0, failing_since=None) == paused
    assert story.health.may_ask(at(1e9)) is Permission.NOTHING
    assert health.restarted(paused, at(10))[1] is Permission.NOTHING
    resumed = Story(replace(paused, pause_cause=None))
    assert resumed.health.may_ask(at(10)) is Permission.PROBE
    resumed.answers(20, RequestKind.PROBE)
    assert resumed.gaps == [EndedGap(at(5), at(21), Cause.PAUSED, None, "ann")]


# --- nobody ran, and clocks -------------------------------------------------------------------------------------------


def test_a_gap_not_running_ends_with_the_first_request() -> None:
    absent = health.absent(Health(answered_at=at(-10)), at(0))
    assert health.absent(absent, at(50)) == absent
    assert absent.may_ask(at(100)) is Permission.PROBE
    well = Story(absent).answers(100, RequestKind.PROBE)
    assert well.gaps == [EndedGap(at(0), at(100), Cause.NOT_RUNNING)]
    assert well.gap == (None, None)


def test_a_server_that_is_down_when_we_return_has_a_gap_of_its_own() -> None:
    """`not_running` until the first request was sent, and from then on what that found."""
    story = Story(health.absent(Health(), at(0)))
    story.fails(100, turn=RequestKind.PROBE)
    assert story.gaps == [EndedGap(at(0), at(100), Cause.NOT_RUNNING)]
    assert (story.gap, story.health.pause_cause) == ((at(100), Cause.UNREACHABLE), Cause.UNREACHABLE)
    story.answers(2000, RequestKind.PROBE)
    assert story.gaps[1:] == [EndedGap(at(100), at(2001), Cause.UNREACHABLE, "code")]


@pytest.mark.parametrize(
    ("cause", "may"),
    [
        (Cause.KEY_REFUSED, Permission.PROBE),
        (Cause.UNREACHABLE, Permission.PROBE),
        (Cause.BAD_ANSWER, Permission.PROBE),
        (Cause.RATE_LIMITED, Permission.NOTHING),
        (Cause.PAUSED, Permission.NOTHING),
    ],
)
def test_a_restart_asks_one_job_at_once(cause: Cause, may: Permission) -> None:
    """So that a mended key or address is tried; but not through a pause by hand or one that the server asked for."""
    until = None if cause is Cause.PAUSED else at(3600)
    paused = Health(pauses=4, paused_until=until, pause_cause=cause, gap_began_at=at(0), gap_cause=cause)
    assert paused.may_ask(at(10)) is Permission.NOTHING
    after, found = health.restarted(paused, at(10))
    assert (found, after.pauses) == (may, 4)
    assert health.restarted(Health(failures=2, failing_since=at(0)), at(10))[1] is Permission.PROBE
    assert health.restarted(Health(), at(10))[1] is Permission.DUE


def test_a_pause_that_is_longer_than_any_can_be_is_void() -> None:
    paused = Health(paused_until=T0 + timedelta(days=3), pause_cause=Cause.UNREACHABLE, gap_began_at=T0)
    assert paused.may_ask(T0) is Permission.PROBE
    assert replace(paused, paused_until=T0 + LONGEST_PAUSE).may_ask(T0) is Permission.NOTHING


@pytest.mark.parametrize(
    ("moved", "passed", "gap", "open_gap"),
    [
        pytest.param(1, 1, None, None, id="nothing"),
        pytest.param(5, 1, None, None, id="an adjustment"),
        pytest.param(75, 75, None, Cause.NOT_RUNNING, id="frozen"),
        pytest.param(8 * 3600, 1, None, Cause.NOT_RUNNING, id="suspended"),
        pytest.param(20, 1, Cause.CLOCK_SET, None, id="set forward by a little"),
        pytest.param(-20, 1, Cause.CLOCK_SET, None, id="set back"),
        pytest.param(10, 75, Cause.CLOCK_SET, None, id="frozen, and set back"),
    ],
)
def test_what_two_looks_at_the_clock_show(
    moved: float, passed: float, gap: Cause | None, open_gap: Cause | None
) -> None:
    found = health.step(T0, at(moved), timedelta(seconds=passed))
    assert (found is None) == (gap is open_gap is None)
    if found is not None:
        change = health.stepped(Health(), found)
        assert (change.gap.cause if change.gap else None) == gap
        assert change.health.gap_cause == open_gap
        if open_gap:
            assert change.health.gap_began_at == T0


def test_one_job_is_being_asked() -> None:
    probing = health.probing(
        Health(pause_cause=Cause.UNREACHABLE, gap_began_at=T0, gap_cause=Cause.UNREACHABLE), at(15)
    )
    assert probing.may_ask(at(14)) is Permission.NOTHING
    assert health.unasked(probing, at(3)).may_ask(at(3)) is Permission.PROBE


# --- any sequence -----------------------------------------------------------------------------------------------------

kinds = st.sampled_from([Unavailable, BadAnswer, KeyRefused, WrongTarget, RateLimited])
events = st.fixed_dictionaries(
    {
        "what": st.sampled_from(["answer", "fail", "fail", "restart", "absent", "frozen"]),
        "kind": kinds,
        "passed": st.floats(0, 4000),
        "took": st.floats(0, 20),
        "before": st.integers(0, 3),
        "unfailed": st.integers(0, 3),
        "wait": st.none() | st.floats(0, 1e6),
        "under_way": st.booleans(),
    }
)


@given(st.lists(events, max_size=40))
@settings(deadline=None, max_examples=300)
def test_any_sequence_keeps_gaps_and_pauses_in_bounds(story: list[dict[str, Any]]) -> None:
    """No gap ends before it begins, a pause has a gap and is in bounds, and within six hours a job is asked again."""
    kept, now = Story(), 0.0
    for one in story:
        now += one["passed"]
        before = kept.health
        match one["what"]:
            case "restart":
                kept.health, _ = health.restarted(kept.health, at(now))
            case "absent":
                last = max(before.answered_at or T0, kept.gaps[-1].ended_at if kept.gaps else T0)
                kept.health = health.absent(kept.health, last)
            case "frozen":
                found = health.step(at(now), at(now + 70), timedelta(seconds=70))
                assert found is not None
                kept.take(health.stepped(kept.health, found))
                now += 70
            case what:
                may = before.may_ask(at(now))
                turn = RequestKind.PROBE if may is Permission.PROBE else RequestKind.DUE
                if may is Permission.NOTHING and not one["under_way"]:
                    continue
                sent, now = now, now + one["took"]
                if what == "answer":
                    kept.take(health.answered(kept.health, at(sent), at(now), turn))
                    assert kept.health.failures == 0 or kept.health.pause_cause is not None
                else:
                    failed = error(one["kind"], sent, one["wait"])
                    known = {"job_failures": one["before"], "unfailed": one["unfailed"]}
                    kept.take(health.failed(kept.health, failed, at(now), turn=turn, **known))
                    assert kept.health.pauses <= before.pauses + 1
                    assert (
                        turn is RequestKind.PROBE or before.pause_cause is None or kept.health.pauses == before.pauses
                    )
        after = kept.health
        assert (after.gap_began_at is None) == (after.gap_cause is None)
        assert after.pause_cause is None or after.gap_began_at is not None
        if after.paused_until is not None and after.paused_until != before.paused_until:
            assert after.paused_until <= at(now) + LONGEST_PAUSE
        assert after.may_ask(at(now + 6 * 3600 + 1)) in (Permission.DUE, Permission.PROBE)
        edges = [edge for gap in kept.gaps for edge in (gap.began_at, gap.ended_at)]
        assert all(gap.began_at <= gap.ended_at for gap in kept.gaps)
        assert max(edges, default=T0) <= at(now)
        assert edges == sorted(edges)
        assert after.gap_began_at is None or after.gap_began_at >= max(edges, default=T0)
