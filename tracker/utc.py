"""The type of a column that holds an instant, for the tables (``models``) and for what reads views without them.

A module of its own, because importing ``models`` takes a fifth of the time of `tracker status`.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An instant: aware UTC in Python, timestamptz on PostgreSQL, ``YYYY-MM-DD HH:MM:SS.ffffff`` on SQLite.

    A naive datetime raises ValueError: SQLAlchemy's own type drops the offset silently on SQLite.
    """

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without offset cannot be stored: {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
