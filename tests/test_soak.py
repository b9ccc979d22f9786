"""The simulated year, shortened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import soak

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_simulated_month_is_recorded_as_it_was(url: str, tmp_path: Path) -> None:
    """Nothing is lost or invented through outages, restarts and a change of keys; the auditor's tools agree."""
    _, findings = soak(1, 30, 400, url, tmp_path)
    assert findings == []


def test_a_run_replays_from_its_seed(url: str, sqlite_template: Path, tmp_path: Path) -> None:
    """Both databases hold the same history after the same seed."""
    (tmp_path / "again").mkdir()
    first, _ = soak(2, 15, 40, url, tmp_path)
    again, _ = soak(2, 15, 40, f"sqlite:///{tmp_path / 'again' / 'tracker.db'}", tmp_path / "again")
    assert first["seed, digest"] == again["seed, digest"]
