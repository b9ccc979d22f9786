"""How figures and foreign text read to a person, wherever they are shown: at a terminal or on the page.

Owns the words for a duration and the safety of text; the look is the reader's (``cli.output``, ``page``). Pure.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final

from tracker.status import Anomaly, State
from tracker.text import INVISIBLE

_FORMULA: Final = frozenset(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
"""What a spreadsheet takes for the beginning of a formula (OWASP, CSV Injection)."""
ANOMALIES: Final = {
    Anomaly.UNKNOWN_STATUS: "a status that nobody documented; the job stays open",
    Anomaly.BACKWARDS: "an earlier status after a later one",
    Anomaly.VANISHED: "not found, although it was there before",
    Anomaly.REAPPEARED: "there again after it had vanished",
    Anomaly.NEVER_FOUND: "never found: a wrong jid, or the wrong cluster",
}
"""Each anomaly in plain words."""

_VERDICTS: Final = {
    "met": "Elevate reported the job done in time; that the person was informed is not shown",
    "missed": "it was seen not done at or after the deadline, and done later",
    "pending": "not done, and the deadline is ahead",
    "overdue": "it was seen not done at or after the deadline",
    "attested": "an operator says that it was done; Elevate was not seen to say so",
    "withdrawn": "an operator closed it",
}
_UNDECIDABLE: Final = {
    State.DONE: "the deadline lies between the bounds of its end",
    State.LOST: "the job is lost: nobody can say whether it was done",
}


def verdict_meaning(verdict: str, state: str) -> str:
    """Return in plain words what *verdict*, of a job in *state*, says, and no more than that."""
    if verdict == "undecidable":
        return _UNDECIDABLE.get(State(state), "the deadline is past, and the job was not seen since")
    if verdict == "overdue" and state == State.FAILED:
        return "it failed, and the deadline is past"
    return _VERDICTS[verdict]


def human(seconds: float | timedelta, *, up: bool = False) -> str:
    """Return a duration in its two largest units, such as ``2d 3h``, rounded down, or up if *up*.

    Down keeps a lower bound true, up an upper one. Below 10 s there is one decimal.
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
    """Return a duration that is known as it is: in seconds below 10 s, else as `human` does."""
    seconds = length.total_seconds()
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s" if seconds < 10 else human(length)


def plain(text: str) -> str:
    """Return *text* on one line and without control characters: they become spaces (blanks) or ``\\ufffd`` (others)."""
    return INVISIBLE.sub(lambda match: " " if match[0].isspace() else "\ufffd", text)


def visible(text: str) -> str:
    """Return *text* as a CSV file may hold it: no terminal takes it for a command, and no reader for the row's end."""
    if text.isprintable():
        return text
    return INVISIBLE.sub(lambda match: match[0] if match[0] in "\t\n" else "\ufffd", text)


def for_spreadsheet(text: str) -> str:
    """Return *text* as `visible` does, and with ``'`` before it if a spreadsheet would take it for a formula."""
    return f"'{visible(text)}" if text[:1] in _FORMULA else visible(text)
