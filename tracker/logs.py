"""How the daemon reports what it does: one line an event, key=value on a terminal, JSON otherwise.

Owns the shape of the lines. An event is a fixed word, and its facts are fields. No line holds a key, a body or the
secret in a URL: the rooms that log do not have them.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime, timedelta
from threading import Lock
from time import monotonic
from typing import IO, Any, Final

from tracker.text import INVISIBLE

logger = logging.getLogger("tracker")

REPEAT_SECONDS: Final = 300  # how often the log repeats that the database is away

_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f-\x9f]+")


def event(name: str, level: int = logging.INFO, **fields: object) -> None:
    """Log the event *name* with its fields."""
    logger.log(level, name, extra={"fields": fields})


def setup(stream: IO[str] = sys.stderr, level: int = logging.INFO) -> None:
    """Send tracker's events to *stream*, and warnings of the libraries too."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(as_json=not stream.isatty()))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logger.setLevel(level)


class Outage:
    """Logs for all threads of a process that the database is away: at first, every few minutes, and when it returns."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._logged_at: float | None = None
        self._is_reported = False

    def went_away(self, error: Exception, **fields: object) -> None:
        """Log that the database is away, unless that was logged a moment ago."""
        with self._lock:
            if self._logged_at is not None and monotonic() - self._logged_at < REPEAT_SECONDS:
                return
            self._logged_at, self._is_reported = monotonic(), True
        event("database_unavailable", logging.ERROR, error=error, **fields)

    def came_back(self) -> None:
        """Log that the database is back, if it was reported away."""
        with self._lock:
            was_reported, self._is_reported = self._is_reported, False
        if was_reported:
            event("database_available")


DATABASE: Final = Outage()


class LineFormatter(logging.Formatter):
    """Time, level and event, then the event's fields: a JSON object, or ``time level event key=value …``.

    Without JSON a value is quoted where it needs to be. No line holds a control character, not even a library's line.
    """

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {name: _value(value) for name, value in getattr(record, "fields", {}).items()}
        if record.exc_info and record.exc_info[1] is not None:
            facts["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        if self._as_json:
            return _visible(json.dumps(head | facts, ensure_ascii=False))
        texts = {name: str(value) for name, value in facts.items() if value is not None}
        pairs = (f"{name}={text if _PLAIN.fullmatch(text) else json.dumps(text)}" for name, text in texts.items())
        return _visible(" ".join([*head.values(), *pairs]))


def _visible(line: str) -> str:
    """Return *line* with characters escaped that drive a terminal or change the direction of reading."""
    return INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def _value(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value if value is None or isinstance(value, bool | int | float) else str(value)
