"""When days begin and end in the legal time zones: SQL computes deadlines by it, since SQLite knows no time zone.

Owns the relation ``zone`` (``timezone, day, begins_at, ends_at``): live a parameter, in an evidence pack ``zone.csv``.
It has the days that deadlines are counted from, and all that they can fall on, in every time zone on record. The time
zone '' is the setting's: it counts where a cluster has no source.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker.deadline import add_months

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
        default: The setting's time zone.
        days: The SELECT ``replay/days.sql``, with what it reads.
        zones: The SELECT ``replay/zones.sql``, with what it reads.
    """
    wanted = sorted(_needed(connection.execute(days).all()))
    found: list[ZoneDay] = []
    for name in sorted(map(str, connection.execute(zones).scalars())):  # SQLite holds any type in any column
        try:
            zone = ZoneInfo(name) if name else default
        except (OSError, ValueError, KeyError):  # no such time zone: there are no deadlines of it
            continue
        found += (ZoneDay(name, day, _begin(day, zone), _begin(day + _DAY, zone)) for day in wanted)
    return found


def as_parameter(rows: Iterable[ZoneDay]) -> str:
    """Return the rows as ``replay/zone.sql`` reads them."""
    return json.dumps([(row.timezone, row.day.isoformat(), _text(row.begins_at), _text(row.ends_at)) for row in rows])


def _text(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S.%f}"


def _needed(rows: Iterable[Sequence[object]]) -> set[date]:
    """Return the days of which deadlines can be: those counted from, and one and three months after."""
    needed: set[date] = set()
    for begun, extended in rows:
        if extended_on := _date(extended):
            needed.add(extended_on)
        if day := _date(begun):
            for local in (day - _DAY, day, day + _DAY):
                needed |= {local, add_months(local, 1), add_months(local, 3)}
    return needed


def _date(value: object) -> date | None:
    """Return a day as the driver gives it; None if it is one that no CHECK lets in, and so has no deadline."""
    try:
        day = date.fromisoformat(str(value))
    except ValueError:
        return None
    return day if 1970 <= day.year < 9999 else None


def _begin(day: date, zone: ZoneInfo) -> datetime:
    """Return when *day* begins; where a change of the clocks skips midnight, at that change (PEP 495, fold=0)."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
