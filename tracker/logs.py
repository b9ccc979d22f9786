"""How the daemon tells what it does: one line an event, key=value on a terminal, JSON otherwise.

Owns the shape of the lines. An event is a fixed word, and its facts are fields; no line holds a key, a body or a URL's
secret, since those who log never have them.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import IO, Any

logger = logging.getLogger("tracker")

_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f-\x9f]+")


def event(name: str, level: int = logging.INFO, **fields: object) -> None:
    """Log the event *name* with its fields."""
    logger.log(level, name, extra={"fields": fields})


def setup(stream: IO[str] = sys.stderr, level: int = logging.INFO) -> None:
    """Send tracker's events to *stream*, and warnings of the libraries too."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(KeyValueFormatter() if stream.isatty() else JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logger.setLevel(level)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = {name: _value(value) for name, value in getattr(record, "fields", {}).items()}
    if record.exc_info and record.exc_info[1] is not None:
        facts["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
    return facts


def _value(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class JsonFormatter(logging.Formatter):
    """A JSON object a line: ``time``, ``level``, ``event``, then the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps(line | _facts(record), ensure_ascii=False)


class KeyValueFormatter(logging.Formatter):
    """``time level event key=value …``; a value is quoted where it needs to be, and holds no control character."""

    def format(self, record: logging.LogRecord) -> str:
        facts = (f"{name}={self._shown(value)}" for name, value in _facts(record).items() if value is not None)
        return " ".join([_time(record), record.levelname.lower(), record.getMessage(), *facts])

    @staticmethod
    def _shown(value: object) -> str:
        text = str(value)
        return text if _PLAIN.fullmatch(text) else json.dumps(text)
