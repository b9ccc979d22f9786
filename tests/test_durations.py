"""The quantiles of durations: the estimator against an established one, their groups, filters and memory.

Which jobs enter where is in ``test_reference``.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import lives
from tests.history import answer, register
from tests.reference import SHARES as EXACT_SHARES
from tests.reference import quantile
from tracker import database
from tracker.reports.durations import SHARES, Bounds, durations
from tracker.reports.survival import Curve

# The estimator


AGES = st.lists(st.integers(0, 12), max_size=25)


@given(AGES, AGES)
@settings(deadline=None, max_examples=300)
def test_the_estimator_is_the_definition(ended: list[int], unended: list[int]) -> None:
    """On any data with ties the quantiles are those of the definition in exact fractions."""
    assert Curve(ended, unended).quantiles(SHARES) == [
        quantile(ended, unended, share) for share in EXACT_SHARES.values()
    ]


# The report

BEGAN = datetime(2026, 10, 2, 9, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_the_bounds_are_in_order_where_the_curves_cross(engine: sa.Engine) -> None:
    """Where a job was last seen open between the bounds of a done one, only the upper curve comes down to the p90."""
    done = register(engine, "a", at=BEGAN, submitted_at=BEGAN)
    answer(engine, done, ("waiting", BEGAN + HOUR), ("done", BEGAN + 3 * HOUR))
    answer(engine, register(engine, "b", at=BEGAN, submitted_at=BEGAN), ("waiting", BEGAN + 2 * HOUR))
    with database.reading(engine) as connection:
        made = durations(connection).total
    assert (made.median, made.p90) == (Bounds(3600.0, 10_801.0), Bounds(10_801.0, None))


def first_day(row: Any) -> date:
    if row.month:
        return datetime.strptime(f"{row.month}-01", "%Y-%m-%d").date()  # noqa: DTZ007 - a day
    return date.fromisoformat(f"{row.week}-1")


def test_a_group_is_the_report_of_its_jobs(engine: sa.Engine) -> None:
    """By cluster, kind, month or week, or several: each row equals the total of a report of those jobs only."""
    lives.write(engine, 1, lives.drawn(1, 40))
    with database.reading(engine) as connection:
        for by in (("month",), ("week", "kind"), ("kind", "cluster", "month"), ("cluster",)):
            made = durations(connection, by=by)
            assert made.by == by
            assert sum(row.jobs + row.withdrawn for row in made.rows) == made.about.jobs == 40
            assert [[getattr(row, name) for name in by] for row in made.rows] == sorted(
                [getattr(row, name) for name in by] for row in made.rows
            )
            for row in made.rows[:: max(1, len(made.rows) // 5)]:
                assert {name for name in ("cluster", "kind", "month", "week") if getattr(row, name)} == set(by)
                filters: dict[str, Any] = {name: getattr(row, name) for name in by if name in ("cluster", "kind")}
                if row.month or row.week:
                    day = first_day(row)
                    end = (day + timedelta(days=32)).replace(day=1) if row.month else day + timedelta(days=7)
                    filters["since"], filters["until"] = (
                        datetime(one.year, one.month, one.day, tzinfo=UTC) for one in (day, end)
                    )
                alone = durations(connection, **filters).total
                assert replace(row, cluster=None, kind=None, month=None, week=None) == alone
