"""`tracker config check`: every effective value and where it came from, secrets masked; what is wrong, all at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tracker import cli

KEY = "hush-hush-0123456789"


def test_it_shows_each_value_and_where_it_came_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A default, a file and a variable are told apart; keys and passwords are masked."""
    (tmp_path / "tracker.toml").write_text('lost_after_polls = 7\n[clusters.w1]\napi_key_file = "w1.key"\n')
    (tmp_path / "w1.key").write_text(KEY)
    (tmp_path / "w1.key").chmod(0o600)
    monkeypatch.setenv("TRACKER_DATABASE_URL", "postgresql+psycopg://app:hush@db/app")
    assert cli.main(["config", "check", "--format", "json"]) == 0
    out = capsys.readouterr().out
    told = {row["name"]: (row["value"], row["source"]) for row in json.loads(out)}
    assert told["timezone"] == ("Europe/Stockholm", "default")
    assert told["lost_after_polls"][0] == "7"
    assert "tracker.toml" in told["lost_after_polls"][1]
    assert told["database_url"][1] == "TRACKER_DATABASE_URL"
    assert told["clusters.w1.base_url"] == ("https://w1.api.esales.apptus.cloud", "default")
    assert "hush" not in out


def test_it_names_all_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each wrong place is told, with the way out, and the exit code is 78; no secret is repeated."""
    (tmp_path / "tracker.toml").write_text("lost_after_pols = 7\n")
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    monkeypatch.setenv("TRACKER_API_KEY", KEY)
    monkeypatch.setenv("TRACKER_BASE_URL", "http://elsewhere.example")
    monkeypatch.setenv("TRACKER_TIMEZON", "UTC")
    monkeypatch.setenv("TRACKER_PORT_80_TCP", "tcp://10.0.0.1:80")  # Kubernetes sets such
    assert cli.main(["config", "check"]) == 78
    error = capsys.readouterr().err
    for told in ("lost_after_polls", "TRACKER_BASE_URL", "TRACKER_TIMEZONE"):
        assert told in error
    assert "TRACKER_PORT" not in error
    assert KEY not in error
