"""The legal clock: which day is the last, when it ends, and what the observations say about it."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from itertools import product
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.deadline import (
    Basis,
    Deadline,
    Verdict,
    add_months,
    deadline,
    extension_recorded_at,
    latest_extension,
    verdict,
)
from tracker.status import State

STOCKHOLM = ZoneInfo("Europe/Stockholm")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
EPOCH = datetime(2015, 1, 1, tzinfo=UTC)


def local(text: str, zone: ZoneInfo = STOCKHOLM) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


# --- the month --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("received", "last_day", "weekday"),
    [
        ("2026-01-29", "2026-02-28", "Saturday"),
        ("2026-01-30", "2026-02-28", "Saturday"),
        ("2026-01-31", "2026-02-28", "Saturday"),
        ("2028-01-30", "2028-02-29", "Tuesday"),
        ("2028-01-31", "2028-02-29", "Tuesday"),
        ("2026-02-28", "2026-03-28", "Saturday"),
        ("2026-08-31", "2026-09-30", "Wednesday"),
        ("2026-03-05", "2026-04-05", "Sunday"),
        # Not in ELEVATE.md: the turn of the year, and the days around a leap day.
        ("2026-12-31", "2027-01-31", "Sunday"),
        ("2028-01-29", "2028-02-29", "Tuesday"),
        ("2028-02-29", "2028-03-29", "Wednesday"),
    ],
)
def test_a_month_ends_on_the_same_date_or_the_last_of_the_month(received: str, last_day: str, weekday: str) -> None:
    found = deadline(local(f"{received}T12:00"), None, LONG_AGO, STOCKHOLM)
    assert (found.on, f"{found.on:%A}") == (date.fromisoformat(last_day), weekday)
    assert found.at == local(last_day) + timedelta(days=1)  # wall-clock arithmetic: the next local midnight


@pytest.mark.parametrize(
    ("day", "months", "later"),
    [
        ("2026-01-31", 3, "2026-04-30"),  # counted from the day itself, not from 28 February
        ("2026-11-30", 3, "2027-02-28"),
        ("2027-11-30", 3, "2028-02-29"),
        ("2026-01-31", 0, "2026-01-31"),
        ("2026-03-31", -1, "2026-02-28"),
        ("2026-01-31", 23, "2027-12-31"),
    ],
)
def test_months_are_added_to_the_day_itself(day: str, months: int, later: str) -> None:
    assert add_months(date.fromisoformat(day), months) == date.fromisoformat(later)


def test_the_end_of_the_calendar_is_an_error_of_its_own() -> None:
    with pytest.raises(ValueError, match="outside the calendar"):
        add_months(date(9999, 12, 1), 1)
    with pytest.raises(ValueError, match="outside the calendar"):
        deadline(datetime(9999, 12, 31, 23, 30, tzinfo=UTC), None, LONG_AGO, STOCKHOLM)
    assert deadline(datetime(9999, 11, 30, tzinfo=UTC), None, LONG_AGO, STOCKHOLM).on == date(9999, 12, 30)


def naive_month_later(day: date) -> date:
    """An independent reading of the Regulation: walk day by day into the next month, up to the same date or its end."""
    walked = day
    while walked.month == day.month:
        walked += timedelta(days=1)
    month = walked.month
    while walked.day != day.day:
        if (walked + timedelta(days=1)).month != month:
            break
        walked += timedelta(days=1)
    return walked


def naive_start(day: date, zone: ZoneInfo) -> datetime:
    """An independent search for the first instant of a local day, on the quarters of an hour."""
    moment = datetime.combine(day, time(), UTC) - timedelta(hours=15)
    while moment.astimezone(zone).date() < day:
        moment += timedelta(minutes=15)
    return moment


@pytest.mark.parametrize("name", ["Europe/Stockholm", "America/New_York", "Australia/Sydney"])
def test_every_day_of_ten_years_against_an_independent_implementation(name: str) -> None:
    zone = ZoneInfo(name)
    day = date(2024, 1, 1)
    moments = [time(0), time(23, 59, 59, 999_999)]
    while day < date(2034, 1, 1):
        on = naive_month_later(day)
        at = naive_start(on + timedelta(days=1), zone)
        for moment in moments:
            received_at = datetime.combine(day, moment, zone).astimezone(UTC)
            assert deadline(received_at, None, LONG_AGO, zone) == Deadline(Basis.RECEIVED, on, at), (day, moment)
        day += timedelta(days=1)


@pytest.mark.parametrize(
    ("zone", "received", "ends_at"),
    [
        # The last day ends in a spring night or is itself 23 or 25 hours long.
        ("Europe/Stockholm", "2026-02-28T12:00", "2026-03-28T23:00:00+00:00"),
        ("Europe/Stockholm", "2026-03-01T12:00", "2026-04-01T22:00:00+00:00"),
        ("Europe/Stockholm", "2026-09-25T12:00", "2026-10-25T23:00:00+00:00"),
        ("America/New_York", "2026-02-08T12:00", "2026-03-09T04:00:00+00:00"),
        ("Australia/Sydney", "2026-09-04T12:00", "2026-10-04T13:00:00+00:00"),
        # The midnight that ends the last day was skipped: it ends at the change, when the clocks show one.
        ("America/Sao_Paulo", "2018-10-03T12:00", "2018-11-04T03:00:00+00:00"),
        ("Asia/Beirut", "2026-02-28T12:00", "2026-03-28T22:00:00+00:00"),
        ("America/Havana", "2026-02-07T12:00", "2026-03-08T05:00:00+00:00"),
        # The midnight that ends the last day came twice: the first one ends it.
        ("America/Havana", "2026-09-30T12:00", "2026-10-31T04:00:00+00:00"),
        ("UTC", "2026-03-28T12:00", "2026-04-29T00:00:00+00:00"),
    ],
)
def test_the_last_day_ends_when_the_next_local_day_begins(zone: str, received: str, ends_at: str) -> None:
    timezone = ZoneInfo(zone)
    found = deadline(local(received, timezone), None, LONG_AGO, timezone)
    assert found.at == datetime.fromisoformat(ends_at)
    assert found.at.tzinfo is UTC


@given(
    received_at=st.integers(0, 20 * 365 * 86_400).map(lambda passed: EPOCH + timedelta(seconds=passed)),
    zone=st.sampled_from(["Europe/Stockholm", "America/Havana", "Asia/Beirut", "Pacific/Apia", "UTC"]),
)
@settings(deadline=None, max_examples=200)
def test_a_deadline_is_28_to_32_days_away_and_ends_its_day(received_at: datetime, zone: str) -> None:
    timezone = ZoneInfo(zone)
    found = deadline(received_at, None, LONG_AGO, timezone)
    assert timedelta(days=28, hours=-1) < found.at - received_at <= timedelta(days=32, hours=1)
    assert (found.at - timedelta(microseconds=1)).astimezone(timezone).date() == found.on
    assert found.at.astimezone(timezone).date() == found.on + timedelta(days=1)


# --- the basis and the extension --------------------------------------------------------------------------------------

RECEIVED, SUBMITTED, REGISTERED = local("2026-01-10T10:00"), local("2026-01-12T10:00"), local("2026-01-13T10:00")


@pytest.mark.parametrize(
    ("received_at", "submitted_at", "basis", "on"),
    [
        (RECEIVED, SUBMITTED, Basis.RECEIVED, "2026-02-10"),
        (RECEIVED, None, Basis.RECEIVED, "2026-02-10"),
        (None, SUBMITTED, Basis.SUBMITTED, "2026-02-12"),
        (None, None, Basis.REGISTERED, "2026-02-13"),
    ],
)
def test_the_clock_starts_with_the_first_of_receipt_submission_registration_that_is_known(
    received_at: datetime | None, submitted_at: datetime | None, basis: Basis, on: str
) -> None:
    found = deadline(received_at, submitted_at, REGISTERED, STOCKHOLM)
    assert (found.basis, found.on) == (basis, date.fromisoformat(on))


def test_the_day_of_receipt_is_that_of_the_legal_time_zone() -> None:
    received_at = datetime(2026, 1, 30, 23, 30, tzinfo=UTC)  # the 31st in Stockholm, the 30th in New York
    assert deadline(received_at, None, LONG_AGO, STOCKHOLM).on == date(2026, 2, 28)
    received_at += timedelta(days=1)  # 1 February in Stockholm
    assert deadline(received_at, None, LONG_AGO, STOCKHOLM).on == date(2026, 3, 1)
    assert deadline(received_at, None, LONG_AGO, ZoneInfo("America/New_York")).on == date(2026, 2, 28)


@pytest.mark.parametrize(
    ("declared", "recorded"),
    [
        pytest.param("", None, id="nothing declared"),
        pytest.param("A", 0, id="with the registration"),
        pytest.param("-A", 1, id="by an amendment"),
        pytest.param("-AAA", 1, id="repeated by amendments of other facts"),
        pytest.param("-AB", 2, id="another day"),
        pytest.param("-A-A", 3, id="cleared, and declared again"),
        pytest.param("-A-", 2, id="cleared"),
    ],
)
def test_an_extension_is_recorded_when_it_begins_to_stand(declared: str, recorded: int | None) -> None:
    days = {"-": None, "A": date(2026, 4, 1), "B": date(2026, 4, 2)}
    history = [(EPOCH + timedelta(days=number), days[letter]) for number, letter in enumerate(declared)]
    assert extension_recorded_at(iter(history)) == (None if recorded is None else EPOCH + timedelta(days=recorded))


def test_the_latest_extension_is_the_last_that_counts() -> None:
    registered_at = local("2026-02-01T10:00")
    for received_at, submitted_at in (
        (local("2026-01-31T10:00"), None),
        (None, local("2025-11-30T00:00")),
        (None, None),
    ):
        last = latest_extension(received_at, submitted_at, registered_at, STOCKHOLM)
        for day, counts in ((last, True), (last + timedelta(days=1), False)):
            found = deadline(
                received_at,
                submitted_at,
                registered_at,
                STOCKHOLM,
                extended_on=day,
                extension_recorded_at=LONG_AGO,
            )
            assert (found.on == day) is counts


@pytest.mark.parametrize(
    ("extended_on", "recorded", "on"),
    [
        pytest.param("2026-04-30", "2026-02-28T23:59:59.999999", "2026-04-30", id="recorded in the last instant"),
        pytest.param("2026-04-30", "2026-03-01T00:00:00", "2026-02-28", id="recorded too late"),
        pytest.param("2026-04-30", None, "2026-02-28", id="never recorded"),
        pytest.param("2026-05-01", "2026-02-01T00:00:00", "2026-04-30", id="more than two further months"),
        pytest.param("2026-03-01", "2026-02-01T00:00:00", "2026-03-01", id="by a day"),
        pytest.param("2026-02-27", "2026-02-01T00:00:00", "2026-02-28", id="no extension shortens"),
        pytest.param(None, "2026-02-01T00:00:00", "2026-02-28", id="no extension"),
    ],
)
def test_an_extension_counts_if_it_was_recorded_in_time_and_no_longer_than_it_may(
    extended_on: str | None, recorded: str | None, on: str
) -> None:
    found = deadline(
        local("2026-01-31T10:00"),
        None,
        LONG_AGO,
        STOCKHOLM,
        extended_on=date.fromisoformat(extended_on) if extended_on else None,
        extension_recorded_at=local(recorded) if recorded else None,
    )
    assert found == Deadline(Basis.RECEIVED, date.fromisoformat(on), (local(on) + timedelta(days=1)).astimezone(UTC))


# --- verdicts ---------------------------------------------------------------------------------------------------------

D = datetime(2026, 2, 28, 23, tzinfo=UTC)
SOON, BEFORE, AFTER, LATE = D - timedelta(days=2), D - timedelta(days=1), D + timedelta(days=1), D + timedelta(days=2)
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("done_after", "done_by", "expected"),
    [
        (SOON, BEFORE, Verdict.MET),
        (BEFORE, D, Verdict.MET),
        (BEFORE, D + TICK, Verdict.UNDECIDABLE),
        (BEFORE, AFTER, Verdict.UNDECIDABLE),
        (D - TICK, D + TICK, Verdict.UNDECIDABLE),
        (D, AFTER, Verdict.MISSED),
        (AFTER, LATE, Verdict.MISSED),
        (None, BEFORE, Verdict.MET),
        (None, AFTER, Verdict.UNDECIDABLE),
    ],
)
@pytest.mark.parametrize("now", [BEFORE, LATE])
def test_a_done_job_is_judged_by_both_bounds(
    done_after: datetime | None, done_by: datetime, expected: Verdict, now: datetime
) -> None:
    assert verdict(State.DONE, "done", done_after, done_by, done_after, done_by, D, now) is expected


@pytest.mark.parametrize(
    ("state", "now", "expected"),
    [
        (State.FAILED, D - TICK, Verdict.PENDING),
        (State.FAILED, D, Verdict.OVERDUE),
        (State.FAILED, LATE, Verdict.OVERDUE),
        (State.LOST, BEFORE, Verdict.UNDECIDABLE),
        (State.LOST, LATE, Verdict.UNDECIDABLE),
        (State.ATTESTED, BEFORE, Verdict.ATTESTED),
        (State.ATTESTED, LATE, Verdict.ATTESTED),
        (State.WITHDRAWN, BEFORE, Verdict.WITHDRAWN),
        (State.WITHDRAWN, LATE, Verdict.WITHDRAWN),
    ],
)
@pytest.mark.parametrize("seen_at", [None, SOON, AFTER])
def test_a_job_that_ended_otherwise_is_judged_by_its_state(
    state: State, now: datetime, expected: Verdict, seen_at: datetime | None
) -> None:
    assert verdict(state, "waiting" if seen_at else None, None, seen_at, None, None, D, now) is expected


@pytest.mark.parametrize(
    ("status", "status_after", "seen_at", "now", "expected"),
    [
        (None, None, None, D - TICK, Verdict.PENDING),
        ("waiting", None, BEFORE, D - TICK, Verdict.PENDING),
        ("not_found", SOON, BEFORE, D - TICK, Verdict.PENDING),
        (None, None, None, D, Verdict.UNDECIDABLE),
        ("waiting", None, BEFORE, D, Verdict.UNDECIDABLE),
        ("waiting", None, D - TICK, LATE, Verdict.UNDECIDABLE),
        ("waiting", None, D, LATE, Verdict.OVERDUE),
        ("running", SOON, AFTER, LATE, Verdict.OVERDUE),
        ("paused", SOON, AFTER, LATE, Verdict.OVERDUE),
        ("error", SOON, AFTER, LATE, Verdict.OVERDUE),  # reopened
        # Not found since: it may have been done and forgotten.
        ("not_found", None, AFTER, LATE, Verdict.UNDECIDABLE),
        ("not_found", BEFORE, AFTER, LATE, Verdict.UNDECIDABLE),
        ("not_found", D - TICK, AFTER, LATE, Verdict.UNDECIDABLE),
        ("not_found", D, AFTER, LATE, Verdict.OVERDUE),
    ],
)
def test_an_open_job_is_overdue_only_if_it_was_seen_not_done_since_the_deadline(
    status: str | None, status_after: datetime | None, seen_at: datetime | None, now: datetime, expected: Verdict
) -> None:
    assert verdict(State.OPEN, status, status_after, seen_at, None, None, D, now) is expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.OPEN, Verdict.PENDING),
        (State.DONE, Verdict.PENDING),
        (State.FAILED, Verdict.PENDING),
        (State.LOST, Verdict.UNDECIDABLE),
        (State.ATTESTED, Verdict.ATTESTED),
        (State.WITHDRAWN, Verdict.WITHDRAWN),
    ],
)
def test_without_a_deadline_nothing_is_late(state: State, expected: Verdict) -> None:
    done_by = BEFORE if state is State.DONE else None
    assert verdict(state, "waiting", None, LATE, None, done_by, None, LATE) is expected


def test_an_overdue_job_can_only_turn_out_missed() -> None:
    for seen_at, done_after, done_by in product([SOON, BEFORE, D, AFTER, LATE], repeat=3):
        # What was seen not done is done later, and the deadline's own instant is still in time.
        if seen_at <= done_after <= done_by and done_by > D:
            early = verdict(State.OPEN, "waiting", None, seen_at, None, None, D, max(seen_at, D))
            final = verdict(State.DONE, "done", done_after, done_by, done_after, done_by, D, LATE)
            assert early is not Verdict.OVERDUE or final is Verdict.MISSED
