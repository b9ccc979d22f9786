"""The last day rolled over days off: the table of the rule, and what no country is."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from tracker.deadline import add_months
from tracker.errors import InvalidField
from tracker.reports.working_days import roller


@pytest.mark.parametrize(
    ("received", "month", "sweden", "portugal"),
    [
        ("2026-01-29", "2026-02-28", "2026-03-02", "2026-03-02"),
        ("2026-01-30", "2026-02-28", "2026-03-02", "2026-03-02"),
        ("2026-01-31", "2026-02-28", "2026-03-02", "2026-03-02"),
        ("2028-01-30", "2028-02-29", "2028-02-29", "2028-02-29"),
        ("2028-01-31", "2028-02-29", "2028-02-29", "2028-02-29"),
        ("2026-02-28", "2026-03-28", "2026-03-30", "2026-03-30"),
        ("2026-08-31", "2026-09-30", "2026-09-30", "2026-09-30"),
        ("2026-03-05", "2026-04-05", "2026-04-07", "2026-04-06"),  # Easter Monday is a holiday in Sweden only
    ],
)
def test_the_legal_table(received: str, month: str, sweden: str, portugal: str) -> None:
    """Regulation (EEC) 1182/71, Article 3: one calendar month, then on to a working day."""
    on = add_months(date.fromisoformat(received), 1)
    assert [day.isoformat() for day in (on, roller("SE")(on), roller("PT")(on))] == [month, sweden, portugal]


def test_it_goes_on_to_the_first_working_day_and_no_further() -> None:
    """On every day of ten years: never back, at most five days on, never a weekend, and a working day stays."""
    roll = roller("SE")
    day = date(2024, 1, 1)
    while day < date(2034, 1, 1):
        rolled = roll(day)
        assert timedelta() <= rolled - day <= timedelta(days=5)
        assert rolled.weekday() < 5
        assert roll(rolled) == rolled
        assert all(roll(day + timedelta(days=n)) == rolled for n in range((rolled - day).days))
        day += timedelta(days=1)


def test_a_part_of_a_country_has_holidays_of_its_own() -> None:
    """Epiphany, 2026-01-06, is a holiday in Bavaria and not in Berlin; case and the longer code do not matter."""
    epiphany = date(2026, 1, 6)
    assert roller("DE-BY")(epiphany) == roller("deu-by")(epiphany) == date(2026, 1, 7)
    assert roller("DE-BE")(epiphany) == roller("DE")(epiphany) == epiphany


@pytest.mark.parametrize(
    ("country", "problem"),
    [
        ("SEE", "there is no country 'SEE'; close ones are: SE"),
        ("Sweden", "there is no country 'SWEDEN'; close ones are: SWE"),
        ("\x1b[1m", "close ones are"),
        ("", "there is no country ''; close ones are"),
        ("DE-BX", "there is no part 'DE-BX'; close ones are: DE-"),
        ("SE-1", "there is no part 'SE-1'; SE has none that is known"),
        ("SE-", "there is no part 'SE-'"),
    ],
)
def test_what_is_no_country_is_refused_with_close_ones(country: str, problem: str) -> None:
    """The message names the place and the way out."""
    with pytest.raises(InvalidField) as caught:
        roller(country)
    assert caught.value.field == "working_days"
    assert problem in caught.value.problem
