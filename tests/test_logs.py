"""The daemon's lines: JSON in a pipe, key=value on a terminal."""

from __future__ import annotations

import io
import json
import logging
from datetime import UTC, datetime, timedelta

import pytest

from tracker import logs
from tracker.logs import LineFormatter, Outage, event, logger


def line_of(formatter: logging.Formatter, **fields: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    try:
        event("transition", logging.WARNING, **fields)
    finally:
        logger.removeHandler(handler)
    return stream.getvalue()


def test_json_is_one_object_a_line() -> None:
    """Times, durations and hostile text come out as JSON that a machine reads back."""
    at = datetime(2026, 1, 5, 10, tzinfo=UTC)
    line = line_of(LineFormatter(as_json=True), jid='a"\n\x1b[31m', by=at, took=timedelta(seconds=2), none=None, n=3)
    assert line.count("\n") == 1
    back = json.loads(line)
    assert (back["level"], back["event"], back["jid"]) == ("warning", "transition", 'a"\n\x1b[31m')
    assert (back["by"], back["took"], back["none"], back["n"]) == ("2026-01-05T10:00:00+00:00", 2.0, None, 3)


def test_key_value_is_one_plain_line() -> None:
    """A value with spaces, quotes or controls is quoted, so that a line stays a line on any terminal."""
    line = line_of(LineFormatter(as_json=False), jid="a b\n\x1b[31m", status="waiting", none=None)
    assert line.endswith('warning transition jid="a b\\n\\u001b[31m" status=waiting\n')


def test_an_outage_is_a_few_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One when the database goes away, one in five minutes meanwhile, one when it is back; none that flickers."""
    caplog.set_level("INFO")
    outage, now = Outage(), 1000.0
    monkeypatch.setattr(logs, "monotonic", lambda: now)
    outage.came_back()
    for _ in range(601):
        outage.went_away(OSError("gone"))
        now += 1
    assert [record.getMessage() for record in caplog.records] == ["database_unavailable"] * 3
    for _ in range(20):
        outage.came_back()
        outage.went_away(OSError("gone"))
    assert [record.getMessage() for record in caplog.records[3:]] == ["database_available"]
