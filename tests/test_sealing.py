"""Sealing beside the polling: when it is done, and that nothing stops it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.history import register
from tests.test_daemon import until
from tests.test_deliver import texts
from tracker.audit import sealing as module
from tracker.audit.checkpoint import split
from tracker.audit.seal import seal
from tracker.audit.sealing import Sealing
from tracker.errors import DatabaseUnavailable
from tracker.logs import Outage
from tracker.settings import Settings


@pytest.fixture
def dialect() -> str:
    return "sqlite"


def settings(tmp_path: Path, **more: Any) -> Settings:
    return Settings(checkpoint_file=tmp_path / "c.txt", **more)


def test_sealing_goes_on_whatever_fails(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """New rows are sealed and delivered while it runs, after a failure too; the end seals what came last."""
    for name in ("LOOK_SECONDS", "AWAY_SECONDS", "FAILED_SECONDS"):
        monkeypatch.setattr(module, name, 0.05)
    failures = [DatabaseUnavailable("it went away"), RuntimeError("a fault of ours")]

    def fails_twice(*arguments: Any, **more: Any) -> object:
        if failures and texts(engine):
            raise failures.pop(0)
        return seal(*arguments, **more)

    monkeypatch.setattr(module, "seal", fails_twice)
    monkeypatch.setattr(module, "DATABASE", Outage())
    with Sealing(settings(tmp_path, seal_after="0 s"))(engine):
        for number in range(1, 3):
            register(engine, f"j{number}")
            until(lambda number=number: len(texts(engine)) == number, 10)  # type: ignore[misc]
        assert {"database_unavailable", "sealing_failed"} <= {record.message for record in caplog.records}
        register(engine, "last")
    assert len(texts(engine)) == 3
    assert split((tmp_path / "c.txt").read_text()) == texts(engine)


def test_rows_wait_for_their_time_until_the_end(engine: sa.Engine, tmp_path: Path) -> None:
    """Young rows are not sealed at once, and at a clean stop they are; a run of cron leaves them to a later one."""
    with Sealing(settings(tmp_path))(engine):
        register(engine, "a")
        until((tmp_path / "c.txt").exists, 10)
        assert texts(engine) == []
    assert len(texts(engine)) == 1
    register(engine, "b")
    with Sealing(settings(tmp_path), once=True)(engine):
        pass
    assert len(texts(engine)) == 1
    with Sealing(settings(tmp_path, seal_after=0), once=True)(engine):
        pass
    assert len(texts(engine)) == 2


def test_the_end_does_not_wait_for_long(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A seal that does not end is left: it is written whole or not at all."""
    over = threading.Event()
    monkeypatch.setattr(module, "seal", lambda *arguments, **more: over.wait(20))
    monkeypatch.setattr(module, "CLOSING_SECONDS", 0.2)
    with Sealing(settings(tmp_path))(engine):
        pass
    assert "sealing_unfinished" in {record.message for record in caplog.records}
    over.set()
