"""Times as people type them: a date, a time with its offset, ``today``, ``yesterday``, or how long ago.

Owns how they are read. Days are those of the legal time zone; *now* is the database's time, an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import click

HELP: Final = "a date, a time with its offset, yesterday, or how long ago (7d, 36h, 2 weeks)"
_DAYS: Final = {"today": 0, "yesterday": 1}
_LONGEST: Final = timedelta(days=3650)
"""Adding or subtracting it never leaves the calendar."""


@dataclass(frozen=True, slots=True)
class When:
    """A time as typed: an aware instant, a day, a number of days before today, or a duration before now."""

    meant: datetime | date | int | timedelta

    def instant(self, now: datetime, zone: ZoneInfo, *, at_end: bool = False) -> datetime:
        """Return the instant that is meant; of a day its beginning, or its end if *at_end*."""
        from tracker.deadline import start_of_day

        match self.meant:
            case datetime():
                return self.meant
            case timedelta():
                return now - self.meant
            case int():
                day = now.astimezone(zone).date() - timedelta(days=self.meant)
            case _:
                day = self.meant
        return start_of_day(day + timedelta(days=at_end), zone)


DAY_AGO: Final = When(timedelta(days=1))


def when(ctx: click.Context, param: click.Parameter, value: str | None) -> When | None:
    """Read a time: the ``callback`` of an option."""
    return None if value is None else When(_meant(value.strip()))


def length(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """Read a duration: the ``callback`` of an option."""
    if value is None:
        return None
    found = _length(value.strip())
    if found is None:
        raise click.BadParameter(f"{value[:80]!r} is not a duration up to ten years: write 7d, 36h or 2 weeks")
    return found


def _meant(text: str) -> datetime | date | int | timedelta:
    from tracker.intake import day_or_instant

    if text in _DAYS:
        return _DAYS[text]
    if (ago := _length(text)) is not None:
        return ago
    try:
        found = day_or_instant(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}, or yesterday, or a duration: 7d, 36h, 2 weeks") from None
    if not 1970 <= found.year <= 9998:  # what the database can hold
        raise click.BadParameter(f"{text!r} is before 1970 or after 9998")
    return found


def _length(text: str) -> timedelta | None:
    """Return *text* as a duration; None: it is not one of at most ten years. A bare number has no unit."""
    from tracker.settings import duration

    try:
        found = None if text.replace(".", "").isdigit() else duration(text)
    except ValueError:
        return None
    return found if found is not None and found <= _LONGEST else None
