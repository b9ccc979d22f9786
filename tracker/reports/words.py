"""How figures and foreign text are written for a person, at a terminal and on the page.

Owns the words for durations and verdicts, and makes text safe to print. Leaves layout to ``cli.output`` and ``page``.
Pure.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final

from tracker.status import Anomaly, State
from tracker.text import INVISIBLE

_FORMULA: Final = frozenset(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
"""Characters with which a formula begins in a spreadsheet (OWASP, CSV Injection)."""
ANOMALIES: Final = {
    Anomaly.UNKNOWN_STATUS: "a status that is not documented; the job stays open",
    Anomaly.BACKWARDS: "an earlier status after a later one",
    Anomaly.VANISHED: "not found, although it was there before",
    Anomaly.REAPPEARED: "found again after it had vanished",
    Anomaly.NEVER_FOUND: "never found: the jid or the cluster is wrong",
}
"""Each anomaly in plain words."""

_VERDICTS: Final = {
    "met": "Elevate reported the job done in time; this does not show that the person was informed",
    "missed": "it was seen not done at or after the deadline, and done later",
    "pending": "it is not done, and the deadline is in the future",
    "overdue": "it was seen not done at or after the deadline",
    "attested": "an operator says that it was done; no answer of Elevate shows it",
    "withdrawn": "an operator closed it",
}
_UNDECIDABLE: Final = {
    State.DONE: "the deadline lies between the bounds of its end",
    State.LOST: "the job is lost, so it is unknown whether it was done",
}


def verdict_meaning(verdict: str, state: str) -> str:
    """Return in plain words what the *verdict* of a job in *state* means."""
    if verdict == "undecidable":
        return _UNDECIDABLE.get(State(state), "the deadline is past, and the job was not seen since")
    if verdict == "overdue" and state == State.FAILED:
        return "it failed, and the deadline is past"
    return _VERDICTS[verdict]


def human(seconds: float | timedelta, *, up: bool = False) -> str:
    """Return a duration in its two largest units, such as ``2d 3h``, rounded down, or up if *up*.

    Round lower bounds down and upper bounds up, so that they stay true. Below 10 s there is one decimal.
    """
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds < 0:
        return "-" + human(-seconds, up=not up)
    rounded = math.ceil if up else math.floor
    if rounded(seconds * 10) < 100:
        return f"{rounded(seconds * 10) / 10:.1f}s" if seconds else "0s"
    units = (("d", 86400, 3600, "h"), ("h", 3600, 60, "m"), ("m", 60, 1, "s"))
    for unit, size, smaller, its_unit in units:
        steps = rounded(seconds / smaller)  # in the smaller unit, so that 59.5 min up is 1h, not 0h 60m
        if steps * smaller >= size:
            whole, rest = divmod(steps, size // smaller)
            return f"{whole}{unit} {rest}{its_unit}" if rest else f"{whole}{unit}"
    return f"{rounded(seconds)}s"


def exact(length: timedelta) -> str:
    """Return a duration that is known exactly: in seconds below 10 s, otherwise as `human` does."""
    seconds = length.total_seconds()
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s" if seconds < 10 else human(length)


def plain(text: str) -> str:
    """Return *text* on one line and without control characters: they become spaces (blanks) or ``\\ufffd`` (others)."""
    return INVISIBLE.sub(lambda match: " " if match[0].isspace() else "\ufffd", text)


def visible(text: str) -> str:
    """Return *text* without characters that control a terminal or end a row of a CSV file."""
    if text.isprintable():
        return text
    return INVISIBLE.sub(lambda match: match[0] if match[0] in "\t\n" else "\ufffd", text)


def for_spreadsheet(text: str) -> str:
    """Return *text* as `visible` does, with ``'`` before it if a spreadsheet would read it as a formula."""
    return f"'{visible(text)}" if text[:1] in _FORMULA else visible(text)
