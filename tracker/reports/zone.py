"""When days begin and end in the legal time zones: SQL needs this for deadlines, since SQLite has no time zones.

Owns the relation ``zone`` (``timezone, day, begins_at, ends_at``): a parameter on the live tables, ``zone.csv`` in an
evidence pack. It has the days from which deadlines are counted and the days on which they can fall, in each recorded
time zone. The time zone '' is the one of the settings, for a cluster without a source.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker.deadline import add_months, start_of_day

_DAY = timedelta(days=1)


class ZoneDay(NamedTuple):
    """A day of a time zone: from its beginning to that of the next day (aware UTC)."""

    timezone: str
    day: date
    begins_at: datetime
    ends_at: datetime


def zone_days(
    connection: sa.Connection, default: ZoneInfo, days: sa.TextualSelect, zones: sa.TextualSelect
) -> list[ZoneDay]:
    """Return the rows of ``zone``, in order.

    Args:
        connection: In a transaction.
        default: The time zone of the settings.
        days: The SELECT ``replay/days.sql``, with the CTEs that it reads.
        zones: The SELECT ``replay/zones.sql``, with the CTEs that it reads.
    """
    wanted = sorted(_needed(connection.execute(days).all()))
    found: list[ZoneDay] = []
    for name in sorted(map(str, connection.execute(zones).scalars())):  # SQLite holds any type in any column
        try:
            zone = ZoneInfo(name) if name else default
        except (OSError, ValueError, KeyError):  # an unknown time zone: it gives no deadlines
            continue
        found += (ZoneDay(name, day, start_of_day(day, zone), start_of_day(day + _DAY, zone)) for day in wanted)
    return found


def as_parameter(rows: Iterable[ZoneDay]) -> str:
    """Return the rows as ``replay/zone.sql`` reads them."""
    return json.dumps([(row.timezone, row.day.isoformat(), _text(row.begins_at), _text(row.ends_at)) for row in rows])


def _text(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S.%f}"


def _needed(rows: Iterable[Sequence[object]]) -> set[date]:
    """Return the days that deadlines need: those that they are counted from, and one and three months later."""
    needed: set[date] = set()
    for begun, extended in rows:
        if extended_on := _date(extended):
            needed.add(extended_on)
        if day := _date(begun):
            for local in (day - _DAY, day, day + _DAY):
                needed |= {local, add_months(local, 1), add_months(local, 3)}
    return needed


def _date(value: object) -> date | None:
    """Return a day as the driver gives it; None if the CHECKs refuse it, so that it has no deadline."""
    try:
        day = date.fromisoformat(str(value))
    except ValueError:
        return None
    return day if 1970 <= day.year < 9999 else None
