"""The legal clock: which day is the last, and when it ends."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from tests.reference import month_after
from tracker.deadline import Deadline, add_months, deadline_of, extension_recorded_at, latest_extension
from tracker.status import Facts

STOCKHOLM = ZoneInfo("Europe/Stockholm")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
EPOCH = datetime(2015, 1, 1, tzinfo=UTC)


def local(text: str, zone: ZoneInfo = STOCKHOLM) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


def after_receipt(received_at: datetime, zone: ZoneInfo = STOCKHOLM) -> Deadline:
    return deadline_of(Facts(received_at=received_at), LONG_AGO, zone, ())


# --- the month --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("received", "last_day", "weekday"),
    [
        ("2026-01-30", "2026-02-28", "Saturday"),
        ("2028-01-31", "2028-02-29", "Tuesday"),
        ("2026-02-28", "2026-03-28", "Saturday"),
        ("2026-08-31", "2026-09-30", "Wednesday"),
        ("2026-03-05", "2026-04-05", "Sunday"),
    ],
)
def test_a_month_ends_on_the_same_date_or_the_last_of_the_month(received: str, last_day: str, weekday: str) -> None:
    found = after_receipt(local(f"{received}T12:00"))
    assert (found.on, f"{found.on:%A}") == (date.fromisoformat(last_day), weekday)
    assert found.at == local(last_day) + timedelta(days=1)  # wall-clock arithmetic: the next local midnight


def test_the_end_of_the_calendar_is_an_error_of_its_own() -> None:
    with pytest.raises(ValueError, match="outside the calendar"):
        add_months(date(9999, 12, 1), 1)
    with pytest.raises(ValueError, match="outside the calendar"):
        after_receipt(datetime(9999, 12, 31, 23, 30, tzinfo=UTC))
    assert after_receipt(datetime(9999, 11, 30, tzinfo=UTC)).on == date(9999, 12, 30)


def start_of(day: date, zone: ZoneInfo) -> datetime:
    """An independent search for the first instant of a local day, on the quarters of an hour."""
    moment = datetime.combine(day, time(), UTC) - timedelta(hours=15)
    while moment.astimezone(zone).date() < day:
        moment += timedelta(minutes=15)
    return moment


# Havana: a midnight that is skipped, and one that comes twice.
@pytest.mark.parametrize("name", ["Europe/Stockholm", "America/New_York", "Australia/Sydney", "America/Havana"])
def test_every_day_of_ten_years_against_an_independent_implementation(name: str) -> None:
    zone = ZoneInfo(name)
    day = date(2024, 1, 1)
    moments = [time(0), time(23, 59, 59, 999_999)]
    while day < date(2034, 1, 1):
        on = month_after(day, 1)
        at = start_of(on + timedelta(days=1), zone)
        for moment in moments:
            received_at = datetime.combine(day, moment, zone).astimezone(UTC)
            assert after_receipt(received_at, zone) == Deadline(on, at), (day, moment)
        day += timedelta(days=1)


# --- the basis and the extension --------------------------------------------------------------------------------------

RECEIVED, SUBMITTED, REGISTERED = local("2026-01-10T10:00"), local("2026-01-12T10:00"), local("2026-01-13T10:00")


@pytest.mark.parametrize(
    ("received_at", "submitted_at", "on"),
    [
        (RECEIVED, SUBMITTED, "2026-02-10"),
        (RECEIVED, None, "2026-02-10"),
        (None, SUBMITTED, "2026-02-12"),
        (None, None, "2026-02-13"),
    ],
)
def test_the_clock_starts_with_the_first_of_receipt_submission_registration_that_is_known(
    received_at: datetime | None, submitted_at: datetime | None, on: str
) -> None:
    facts = Facts(received_at=received_at, submitted_at=submitted_at)
    found = deadline_of(facts, REGISTERED, STOCKHOLM, ())
    assert found.on == date.fromisoformat(on)


def test_the_day_of_receipt_is_that_of_the_legal_time_zone() -> None:
    received_at = datetime(2026, 1, 30, 23, 30, tzinfo=UTC)  # the 31st in Stockholm, the 30th in New York
    assert after_receipt(received_at).on == date(2026, 2, 28)
    received_at += timedelta(days=1)  # 1 February in Stockholm
    assert after_receipt(received_at).on == date(2026, 3, 1)
    assert after_receipt(received_at, ZoneInfo("America/New_York")).on == date(2026, 2, 28)


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
def test_an_extension_is_recorded_when_it_was_first_declared(declared: str, recorded: int | None) -> None:
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
            facts = Facts(received_at=received_at, submitted_at=submitted_at, extended_on=day)
            found = deadline_of(facts, registered_at, STOCKHOLM, [(LONG_AGO, day)])
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
    day = date.fromisoformat(extended_on) if extended_on else None
    declared = [(local(recorded), day)] if recorded else []
    found = deadline_of(Facts(received_at=local("2026-01-31T10:00"), extended_on=day), LONG_AGO, STOCKHOLM, declared)
    assert found == Deadline(date.fromisoformat(on), (local(on) + timedelta(days=1)).astimezone(UTC))
