"""The legal clock: the day by which a person must be informed.

Owns the month of GDPR Article 12(3) as Regulation (EEC) 1182/71 counts it, its extension, and when a local day begins.
Pure. Leaves alone weekends and holidays (``on`` is the careful, unrolled date), when to poll around it (``cadence``),
and which verdict holds (SQL: ``reports/views``); here are only the verdicts' names.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from zoneinfo import ZoneInfo

from tracker.status import Facts


@dataclass(frozen=True, slots=True)
class Deadline:
    """A job's deadline.

    Attributes:
        on: The last day, in the legal time zone (column ``deadline_on``).
        at: The instant that day ends there, aware UTC (column ``deadline_at``).
    """

    on: date
    at: datetime


class Verdict(StrEnum):
    """What the observations show about the deadline."""

    MET = "met"
    """Elevate reported the job done in time; this does not show that the person was informed."""
    MISSED = "missed"
    """It was seen not done at or after the deadline, and done later."""
    UNDECIDABLE = "undecidable"
    """The deadline lies between the bounds, the job is lost, or it was not seen since the deadline."""
    PENDING = "pending"
    """Not done, and the deadline is in the future."""
    OVERDUE = "overdue"
    """Seen not done at or after the deadline, or failed and past it."""
    ATTESTED = "attested"
    """An operator says that it was done."""
    WITHDRAWN = "withdrawn"
    """An operator closed it."""


@lru_cache(maxsize=10_000)  # a million jobs begin on some thousand days
def add_months(day: date, months: int) -> date:
    """Return the day with the same number *months* later, or that month's last day where there is none.

    The rule of Regulation (EEC) 1182/71, Article 3(2)(c).

    Raises:
        ValueError: It would be outside the calendar (after the year 9999).
    """
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    if not date.min.year <= year <= date.max.year:
        raise ValueError(f"{months} months after {day} is outside the calendar")
    return date(year, month + 1, min(day.day, monthrange(year, month + 1)[1]))


def deadline_of(
    facts: Facts, registered_at: datetime, timezone: ZoneInfo, declared: Iterable[tuple[datetime, date | None]]
) -> Deadline:
    """Return the deadline of a job: one calendar month after the first of receipt, submission, registration known.

    An extension counts only if it was recorded before the unextended deadline and moves it to a later day; otherwise
    the deadline is as if there were none. One of more than two further months (GDPR Article 12(3)), as it becomes when
    the receipt is corrected to an earlier day, counts up to their end.

    Args:
        facts: What is declared about the job now; its times are aware.
        registered_at: When it was registered (aware).
        timezone: The legal time zone: it says which day that was, and when the last day ends.
        declared: When each declaration was made and the extension in it, the registration's first, today's last.

    Raises:
        ValueError: It would be outside the calendar (after the year 9999).
    """
    began_on = _begin(facts.received_at, facts.submitted_at, registered_at, timezone)
    on = add_months(began_on, 1)
    at = _end_of(on, timezone)
    recorded_at = extension_recorded_at(declared)
    is_in_time = recorded_at is not None and recorded_at < at
    if facts.extended_on is not None and is_in_time and facts.extended_on > on:
        on = min(facts.extended_on, add_months(began_on, 3))
        at = _end_of(on, timezone)
    return Deadline(on, at)


def latest_extension(
    received_at: datetime | None, submitted_at: datetime | None, registered_at: datetime, timezone: ZoneInfo
) -> date:
    """Return the last day that an extension may move the deadline to: two further months (GDPR Article 12(3)).

    Errors are those of `deadline_of`.
    """
    return add_months(_begin(received_at, submitted_at, registered_at, timezone), 3)


def extension_recorded_at(declared: Iterable[tuple[datetime, date | None]]) -> datetime | None:
    """Return when the extension that is in force now was recorded; None if nothing was declared.

    An amendment of other facts repeats the extension, and does not record it again; one that was cleared and is
    declared again is recorded again. *declared* is that of `deadline_of`.
    """
    current: date | None = None
    recorded_at: datetime | None = None
    for at, extended_on in declared:
        if recorded_at is None or extended_on != current:
            recorded_at, current = at, extended_on
    return recorded_at


def _begin(
    received_at: datetime | None, submitted_at: datetime | None, registered_at: datetime, timezone: ZoneInfo
) -> date:
    """Return the local day from which the deadline is counted."""
    began_at = received_at or submitted_at or registered_at
    try:
        return began_at.astimezone(timezone).date()
    except OverflowError as error:
        raise ValueError(f"{began_at} is outside the calendar in {timezone}") from error


@lru_cache(maxsize=10_000)  # a few dates serve thousands of jobs, and changing the zone is the slow part
def start_of_day(day: date, timezone: ZoneInfo) -> datetime:
    """Return the instant (UTC) at which a local day begins.

    Where a change of the clocks skips midnight, fold=0 names the instant of the change (PEP 495): the day begins there.
    """
    return datetime(day.year, day.month, day.day, tzinfo=timezone).astimezone(UTC)


def utc_offsets(timezone: ZoneInfo, since: datetime, until: datetime) -> list[tuple[datetime, datetime, timedelta]]:
    """Return the UTC offsets of a time zone between two instants: from, until (UTC, to the minute), and the offset."""

    def offset(at: datetime) -> timedelta:
        return at.astimezone(timezone).utcoffset() or timedelta()

    found: list[tuple[datetime, datetime, timedelta]] = []
    began = at = since
    while at < until:
        after = at + timedelta(days=1)
        if offset(after) != offset(at):
            while offset(after - timedelta(minutes=1)) != offset(at):
                after -= timedelta(minutes=1)
            found.append((began, after, offset(at)))
            began = after
        at = after
    return [*found, (began, at, offset(began))]


def _end_of(day: date, timezone: ZoneInfo) -> datetime:
    return start_of_day(day + timedelta(days=1), timezone)
