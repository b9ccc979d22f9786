"""When to ask next: the calendar of nights, the growing intervals, the deadline's windows, the backoff."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import pairwise
from math import sqrt
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.test_deadline import start_of
from tracker.cadence import Rhythm, next_poll, retry_poll
from tracker.status import Answer, Facts, Job, LostRule, Past, State, decide

STOCKHOLM = ZoneInfo("Europe/Stockholm")
RHYTHM = Rhythm(STOCKHOLM)
NEVER_LOST = LostRule(polls=10**9)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def local(text: str, zone: ZoneInfo = STOCKHOLM) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)


SUBMITTED = local("2026-11-02T14:00")  # a Monday; its archive day is Saturday the 7th


def seen(status: str, seen_at: datetime, **columns: object) -> Job:
    """An open job that was answered *status* at *seen_at* for the first time, unless *columns* say otherwise."""
    known: dict[str, object] = {"status_by": seen_at, "status_polls": 1, "polls": 1, "seq": 1, **columns}
    job = Job(Facts(submitted_at=SUBMITTED), SUBMITTED + HOUR, "ann")
    return replace(job, status=status, seen_at=seen_at, **known)  # type: ignore[arg-type]  # columns of a table of cases


# --- cases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "now", "u", "due"),
    [
        # Before the archive day: the first midnight after submission, then 0, 2 and 6 hours after each.
        ("waiting", "2026-11-02T15:00", 0, "2026-11-03T00:05"),
        ("waiting", "2026-11-02T15:00", 0.5, "2026-11-03T00:10"),
        ("paused", "2026-11-02T15:00", 0, "2026-11-03T00:05"),
        ("waiting", "2026-11-03T00:05", 0, "2026-11-03T02:05"),
        ("waiting", "2026-11-03T00:04:59", 0, "2026-11-03T00:05"),
        ("waiting", "2026-11-03T00:06", 0.9, "2026-11-03T02:14"),
        ("waiting", "2026-11-03T02:14", 0.1, "2026-11-03T06:06"),
        ("waiting", "2026-11-03T06:14", 0.1, "2026-11-04T00:06"),
        # The archive midnight is the last of the nights and the first of the intervals.
        ("waiting", "2026-11-06T06:10", 0.5, "2026-11-07T00:10"),
        ("waiting", "2026-11-06T23:59:59", 0.5, "2026-11-07T00:10"),
        ("waiting", "2026-11-07T00:00", 0.5, "2026-11-07T00:00:15"),  # at least 15 s
        ("waiting", "2026-11-07T00:00:30", 0.5, "2026-11-07T00:01:30"),  # sqrt(2 * 60 * 30) = 60
        ("waiting", "2026-11-07T00:02", 0.5, "2026-11-07T00:04"),  # sqrt(2 * 60 * 120) = 120
        ("waiting", "2026-11-07T00:02", 0, "2026-11-07T00:03:48"),
        ("paused", "2026-11-07T08:00", 0.5, "2026-11-07T08:30:59.032"),
        ("waiting", "2027-11-07T00:00", 0.5, "2027-11-07T06:00"),  # at most 6 h
    ],
)
def test_when_a_waiting_job_is_asked_next(status: str, now: str, u: float, due: str) -> None:
    assert round_ms(next_poll(seen(status, local(now)), None, local(now), u, RHYTHM)) == local(due)


def round_ms(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def test_a_running_job_is_asked_by_the_age_of_its_first_sight() -> None:
    first = local("2026-11-04T03:00")
    for age, wait in [(0, 15), (1, 15), (30, 60), (120, 120), (3000, 600), (10**8, 21600)]:
        now = first + timedelta(seconds=age)
        job = seen("running", now, status_by=first)
        assert next_poll(job, None, now, 0.5, RHYTHM) == now + timedelta(seconds=wait)


def test_a_job_without_an_answer_since_it_was_registered_or_reopened_is_due_at_once() -> None:
    now = local("2026-11-04T03:00")
    new = Job(Facts(submitted_at=SUBMITTED), SUBMITTED, "ann")
    deadline_at = now + 5 * MINUTE
    assert next_poll(new, deadline_at, now, 0.7, RHYTHM) == now
    for status in ("waiting", "running", "not_found", "error", "paused"):
        reopened = seen(status, SUBMITTED + HOUR, status_polls=0)
        assert next_poll(reopened, deadline_at, now, 0.7, RHYTHM) == now


WAITS = [60, 120, 240, 480, 960, 1920, 3840, 7680, 15360, 21600, 21600, 21600]


def test_not_found_and_errors_are_asked_again_after_waits_that_double_to_six_hours() -> None:
    now = local("2026-11-04T03:00")
    for number, wait in enumerate(WAITS, 1):
        due_at = now + timedelta(seconds=wait)
        job = seen("not_found", now, status_polls=number)
        assert next_poll(job, None, now, 0.5, RHYTHM) == due_at
        assert retry_poll(number, None, now, 0.5) == due_at
    for number in (100, 10**9):
        assert retry_poll(number, None, now, 0.5) == now + 6 * HOUR


def test_a_job_counts_from_its_submission_or_else_from_its_registration() -> None:
    now = local("2026-11-05T12:00")
    job = replace(seen("waiting", now), facts=Facts(), registered_at=local("2026-11-04T12:00"))
    assert next_poll(job, None, local("2026-11-07T12:00"), 0, RHYTHM) == local("2026-11-08T00:05")
    assert next_poll(job, None, local("2026-11-09T00:00"), 0, RHYTHM) == local("2026-11-09T00:00:13.5")
    now = local("2026-11-09T12:00")
    late = replace(seen("waiting", now), registered_at=now - MINUTE)
    assert next_poll(late, None, now, 0, RHYTHM) - now > HOUR


def test_a_submission_in_the_future_does_not_keep_a_job_from_being_polled() -> None:
    now = local("2026-11-05T12:00")
    job = replace(seen("waiting", now), facts=Facts(submitted_at=local("2062-11-05T12:00")), registered_at=now)
    assert next_poll(job, None, now, 0, RHYTHM) == local("2026-11-06T00:05")


def test_an_ended_job_is_never_polled() -> None:
    for state in set(State) - {State.OPEN}:
        with pytest.raises(ValueError, match="is not polled"):
            next_poll(replace(seen("waiting", SUBMITTED + HOUR), state=state), None, SUBMITTED + DAY, 0.5, RHYTHM)


# --- bounds -----------------------------------------------------------------------------------------------------------

ANY_U = st.floats(0, 1, exclude_max=True)
STATUSES = st.sampled_from(["created", "started", "waiting", "running", "not_found", "paused"])
ZONES = ["Europe/Stockholm", "America/New_York", "Australia/Sydney", "America/Havana", "Asia/Beirut", "UTC"]
JUST_BELOW_1 = 1 - 2**-53


@given(
    status=STATUSES,
    age=st.floats(0, 400 * 86_400),
    seen_for=st.floats(0, 400 * 86_400),
    polls=st.integers(1, 60),
    ahead=st.none() | st.floats(-3600, 7200) | st.floats(0, 40 * 86_400),
    u=ANY_U,
    rhythm=st.builds(
        Rhythm,
        timezone=st.sampled_from(ZONES).map(ZoneInfo),
        archive_days=st.integers(0, 30),
        delay_per_poll=st.integers(1, 10**6).map(lambda seconds: timedelta(seconds=seconds)),
    ),
)
@settings(deadline=None, max_examples=400)
def test_every_plan_lies_in_the_future_and_within_its_bounds(
    status: str, age: float, seen_for: float, polls: int, ahead: float | None, u: float, rhythm: Rhythm
) -> None:
    now = SUBMITTED + timedelta(seconds=age)
    entered = max(SUBMITTED, now - timedelta(seconds=seen_for))
    job = seen(status, now - timedelta(milliseconds=50), status_by=entered, status_polls=polls)
    free = next_poll(job, None, now, u, rhythm)
    wait = free - now
    assert timedelta(0) < wait < 25 * HOUR + 15 * MINUTE  # a night's poll, after a day of 25 hours
    if status == "not_found":
        assert wait / timedelta(seconds=60) >= 0.9 * (1 - 1e-6)
    if status in ("not_found", "running"):
        assert 15 * 0.9 - 1e-6 <= wait.total_seconds() <= 6 * 3600 * 1.1
    failed = retry_poll(polls, None, now, u)
    assert 60 * 0.9 - 1e-6 <= (failed - now).total_seconds() <= 6 * 3600 * 1.1
    # A deadline only ever makes a poll earlier, and moves it into one of its windows.
    deadline_at = None if ahead is None else now + timedelta(seconds=ahead)
    for without, plan in [
        (free, next_poll(job, deadline_at, now, u, rhythm)),
        (failed, retry_poll(polls, deadline_at, now, u)),
    ]:
        assert now < plan <= without
        if plan != without:
            assert deadline_at is not None
            assert abs(plan - deadline_at) <= 15 * MINUTE


LONG_AFTER = SUBMITTED + 400 * DAY
PLANS: dict[str, Callable[[float], datetime]] = {
    "failed, capped": lambda u: retry_poll(50, None, LONG_AFTER, u),
    **{
        name: partial(next_poll, job, None, LONG_AFTER, rhythm=RHYTHM)
        for name, job in {
            "archived, capped": seen("waiting", LONG_AFTER),
            "not found, capped": seen("not_found", LONG_AFTER, status_polls=50),
            "running, at the floor": seen("running", LONG_AFTER),
        }.items()
    },
}


@pytest.mark.parametrize("name", PLANS)
def test_jitter_survives_the_bounds(name: str) -> None:
    bound = 15.0 if "floor" in name else 6 * 3600.0
    waits = [(PLANS[name](n / 100) - LONG_AFTER).total_seconds() / bound for n in range(100)]
    assert waits == pytest.approx([0.9 + 0.2 * n / 100 for n in range(100)])


# --- the calendar, over the changes of the clocks ---------------------------------------------------------------------


def changes_of(zone: ZoneInfo, year: int) -> list[date]:
    """The local days of *year* that are not 24 hours long."""
    days = [date(year, 1, 1) + timedelta(days=n) for n in range(365)]
    return [day for day in days if start_of(day + DAY, zone) - start_of(day, zone) != DAY]


def polls_of(
    job: Job, rhythm: Rhythm, random: Random, word: Callable[[datetime], str], started_at: datetime
) -> Iterator[datetime]:
    """Follow the plans to the letter from *started_at*, each answer taking 50 ms, until the job has ended."""
    due_at = next_poll(job, None, started_at, random.random(), rhythm)
    while True:
        yield due_at
        answered_at = due_at + timedelta(milliseconds=50)
        job = decide(job, Answer(word(due_at), due_at, answered_at), NEVER_LOST, Past()).job
        if job.state is not State.OPEN:
            return
        due_at = next_poll(job, None, answered_at, random.random(), rhythm)


@pytest.mark.parametrize(
    ("name", "year", "changes"),
    [
        ("Europe/Stockholm", 2026, 2),
        ("Australia/Lord_Howe", 2026, 2),  # by half an hour
        ("America/Sao_Paulo", 2018, 2),  # skipped a midnight
        ("UTC", 2026, 0),
    ],
)
def test_each_night_has_its_three_polls_whatever_the_clocks_do(name: str, year: int, changes: int) -> None:
    zone = ZoneInfo(name)
    days = changes_of(zone, year)
    assert len(days) == changes
    for change in days or [date(year, 3, 29)]:
        for seed in range(4):
            submitted_on = change - 3 * DAY
            submitted_at = start_of(submitted_on, zone) + timedelta(hours=6 * seed + 1)
            job = Job(Facts(submitted_at=submitted_at), submitted_at, "ann")
            archived_at = start_of(submitted_on + 7 * DAY, zone)
            expected = [
                start_of(submitted_on + n * DAY, zone) + hours * HOUR for n in range(1, 7) for hours in (0, 2, 6)
            ] + [archived_at]
            polls = polls_of(job, Rhythm(zone, 7), Random(seed), lambda _: "waiting", submitted_at)
            assert next(polls) == submitted_at
            for at in expected:
                polled_at = next(polls)
                assert at + 5 * MINUTE <= polled_at < at + 15 * MINUTE, (change, seed)
            # From there on by the age since the archive midnight, an hour missing or double in the calendar or not.
            for before, after in pairwise([polled_at, *(next(polls) for _ in range(50))]):
                interval = max(15.0, sqrt(120 * (before - archived_at).total_seconds()))
                assert (after - before).total_seconds() / interval == pytest.approx(1, abs=0.11)


# --- the deadline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "u", "due"),
    [
        # Waiting; free of a deadline the next poll would be at 06:05 plus 10 min * u. The deadline is at 04:00.
        ("2026-11-03T02:05", 0, "2026-11-03T03:45"),
        ("2026-11-03T02:05", 0.5, "2026-11-03T03:52"),  # the window ends a minute before it
        ("2026-11-03T03:45", 0, "2026-11-03T04:00"),
        ("2026-11-03T03:52", 0.5, "2026-11-03T04:07:30"),
        ("2026-11-03T03:59:59.5", 0, "2026-11-03T04:00:00.5"),
        ("2026-11-03T04:00", 0, "2026-11-03T06:05"),
    ],
)
def test_a_poll_is_moved_into_the_windows_around_the_deadline(now: str, u: float, due: str) -> None:
    due_at = next_poll(seen("waiting", local(now)), local("2026-11-03T04:00"), local(now), u, RHYTHM)
    assert due_at == local(due)


@pytest.mark.parametrize(
    ("asked", "now", "due"),
    [
        ("03:44", "03:59:30", "04:00"),  # too late for another before it
        ("03:44", "04:05", "04:05:01"),
        ("03:44", "04:16", "06:05"),  # too late for either: as if there were none
        ("04:00", "04:05", "06:05"),
    ],
)
def test_a_window_that_is_over_is_not_polled(asked: str, now: str, due: str) -> None:
    job = seen("waiting", local(f"2026-11-03T{asked}"))
    due_at = next_poll(job, local("2026-11-03T04:00"), local(f"2026-11-03T{now}"), 0, RHYTHM)
    assert due_at == local(f"2026-11-03T{due}")


LATENESS = timedelta(seconds=30)  # of a daemon that is somewhat behind


@given(
    status=STATUSES,
    zone=st.sampled_from(ZONES),
    archive_days=st.integers(0, 9),
    ahead=st.floats(16 * 60, 3 * 3600) | st.floats(16 * 60, 40 * 86_400),
    failing=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**32),
)
@example("waiting", "Europe/Stockholm", 5, 31 * 86_400.0, 0.0, 0)
@settings(deadline=None, max_examples=150)
def test_following_the_plans_asks_just_before_and_just_after_any_deadline(
    status: str, zone: str, archive_days: int, ahead: float, failing: float, seed: int
) -> None:
    random = Random(seed)
    rhythm = Rhythm(ZoneInfo(zone), archive_days)
    deadline_at = SUBMITTED + timedelta(seconds=ahead)
    job = Job(Facts(submitted_at=SUBMITTED), SUBMITTED, "ann")
    due_at, failures = SUBMITTED, 0
    asked: list[datetime] = []
    while due_at <= deadline_at + 15 * MINUTE:
        sent_at = due_at + LATENESS * random.random()
        now = sent_at + timedelta(seconds=random.uniform(0, 10))
        asked.append(sent_at)
        u = random.choice([0.0, JUST_BELOW_1, random.random()])
        if random.random() < failing:
            failures += 1
            due_at = retry_poll(failures, deadline_at, now, u)
        else:
            failures = 0
            job = decide(job, Answer(status, sent_at, now), NEVER_LOST, Past()).job
            due_at = next_poll(job, deadline_at, now, u, rhythm)
        assert due_at > now
    assert any(deadline_at - 15 * MINUTE <= at < deadline_at for at in asked)
    assert any(deadline_at <= at <= deadline_at + 15 * MINUTE + LATENESS for at in asked)
