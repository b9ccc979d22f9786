"""The legal last day where the calendar's falls on a day off.

Owns the rule of Regulation (EEC) 1182/71, Article 3(4), and how a country is named. Which days are public holidays the
``holidays`` library knows. Leaves alone ``deadline_on``, which stays the unrolled, careful date.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from difflib import get_close_matches

from tracker.errors import InvalidField

_ONE_DAY = timedelta(days=1)


def roller(country: str) -> Callable[[date], date]:
    """Return a function from a last day to itself, or to the next working day if it is a day off.

    Days off are Saturdays, Sundays and public holidays (Regulation (EEC) 1182/71, Article 3(4)).

    Args:
        country: Its ISO 3166-1 code, such as ``SE``, in whatever case; with a subdivision (ISO 3166-2) that has
            holidays of its own, such as ``DE-BY``.

    Raises:
        InvalidField: There is no such country or subdivision; the message names close ones.
    """
    from holidays import country_holidays, list_supported_countries  # takes a quarter of a second

    code, _, part = country.upper().partition("-")
    countries = list_supported_countries()
    if code not in countries:
        raise InvalidField("working_days", _unknown("country", code, countries, "write its code, such as SE"))
    if "-" in country and part not in countries[code]:
        parts = [f"{code}-{its}" for its in countries[code]]
        raise InvalidField("working_days", _unknown("part", f"{code}-{part}", parts, f"{code} has none that is known"))
    # With observed days: where a holiday on a weekend is kept on the Monday, that Monday is off.
    off = country_holidays(code, subdiv=part or None)

    def roll(day: date) -> date:
        while day.weekday() >= 5 or day in off:
            day += _ONE_DAY
        return day

    return roll


def _unknown(what: str, given: str, known: list[str] | dict[str, list[str]], otherwise: str) -> str:
    near = get_close_matches(given[:20], known, n=5, cutoff=0.3) or list(known)[:20]
    return f"there is no {what} {given[:20]!r}; " + (f"close ones are: {', '.join(near)}" if near else otherwise)
