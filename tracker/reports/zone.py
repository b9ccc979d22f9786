"""When days begin and end in the legal time zones: SQL needs this for deadlines, since SQLite has no time zones.

Owns the relation ``zone`` (``timezone, day, begins_at, ends_at``): a parameter on the live tables, ``zone.csv`` in an
evidence pack. It has the days from which deadlines are counted, the days on which they can fall, and the day of the
report, in each recorded time zone. The time zone '' is the one of the settings, for a cluster without a source.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from tracker.deadline import add_months, start_of_day

_DAY = timedelta(days=1)


class ZoneDay(NamedTuple):
    """A day of a time zone: from its beginning to that of the next day (aware UTC)."""

    timezone: str
    day: date
    begins_at: datetime
    ends_at: datetime


def zone_days(
    names: Iterable[object], default: ZoneInfo, declared: Iterable[Sequence[object]], at: datetime | None
) -> list[ZoneDay]:
    """Return the rows of ``zone``, in order.

    Args:
        names: The time zones, as in ``replay/zones.sql``; an unknown one has no days and gives no deadlines.
        default: The time zone of the settings.
        declared: Days from which deadlines are counted and to which they are extended, as in ``replay/days.sql``.
        at: The time of the report.
    """
    needed = {at.astimezone(UTC).date() + days * _DAY for days in (-1, 0, 1)} if at else set()
    for begun, extended in declared:
        if extended_on := _date(extended):
            needed.add(extended_on)
        if day := _date(begun):
            for local in (day - _DAY, day, day + _DAY):
                needed |= {local, add_months(local, 1), add_months(local, 3)}
    found: list[ZoneDay] = []
    for name in sorted(map(str, names)):  # SQLite holds any type in any column
        try:
            zone = ZoneInfo(name) if name else default
        except (OSError, ValueError, KeyError):
            continue
        found += (ZoneDay(name, day, start_of_day(day, zone), start_of_day(day + _DAY, zone)) for day in sorted(needed))
    return found


def as_parameter(rows: Iterable[ZoneDay]) -> str:
    """Return the rows as ``replay/zone.sql`` reads them."""
    return json.dumps([(name, str(day), _text(begins_at), _text(ends_at)) for name, day, begins_at, ends_at in rows])


def _text(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S.%f}"


def _date(value: object) -> date | None:
    """Return a day as the driver gives it; None if the CHECKs refuse it, so that it has no deadline."""
    try:
        day = date.fromisoformat(str(value))
    except ValueError:
        return None
    return day if 1970 <= day.year < 9999 else None
