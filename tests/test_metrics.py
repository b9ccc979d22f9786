"""Metrics: what is counted and how everything stands, on both databases, and that Prometheus' checker accepts it."""

from __future__ import annotations

import shutil
import subprocess
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from tests.history import change, register, stand
from tracker import alerts, database
from tracker.audit.seal import seal
from tracker.metrics import OUTCOMES, Metrics, StoredMetrics
from tracker.models import DELIVERIES
from tracker.needs import KINDS, needs
from tracker.settings import Settings
from tracker.status import Cause

PROMTOOL = shutil.which("promtool")
JID = "jid-secret"


def samples(text: str) -> dict[str, float]:
    """Return the value of each line by its name and the values of its labels."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def settings() -> Settings:
    cluster = {"name": "w3", "api_key": "k"}
    return Settings.model_validate({"clusters": {"w3": cluster}})


def fill(engine: sa.Engine) -> Any:
    """Make jobs of two clusters, a gap, a seal, and a destination that lacks a checkpoint; return the time."""
    with database.reading(engine) as connection:
        now = database.now(connection)
    hour = timedelta(hours=1)
    for number, due_in in enumerate((-hour, -timedelta(seconds=20), hour)):
        job = register(engine, f"{JID}-{number}", at=now - 3 * hour, reference="T-secret")
        change(engine, job, due_at=now + due_in, deadline_at=now + (1 + number) * 48 * hour)
    register(engine, JID, "w2", at=now - hour, submitted_at=now - 5 * hour)
    stand(engine, "w1", gap_cause=Cause.KEY_REFUSED, gap_began_at=now - hour, answered_at=now - hour)
    seal(engine, None)
    with database.writing(engine) as connection:
        failing = {"failing_since": now, "last_error": "Unavailable timeout"}
        connection.execute(sa.insert(DELIVERIES).values(destination="https://hook", last_number=0, **failing))
        connection.execute(sa.insert(DELIVERIES).values(destination="log", last_number=1))
    return now


def test_how_everything_stands(engine: sa.Engine, settings: Settings) -> None:
    """Each figure is what is stored, by cluster, in base units; a kind of need that nothing is of is 0; no jid."""
    now = fill(engine)
    text = Metrics().text(StoredMetrics(engine, settings))
    found = samples(text)
    for name, values in {"open": (3, 1, 0), "due": (2, 1, 0), "late": (1, 1, 0)}.items():
        assert tuple(found[f"tracker_jobs_{name} {cluster}"] for cluster in ("w1", "w2", "w3")) == values
    ages = [found[f"tracker_oldest_open_age_seconds {cluster}"] for cluster in ("w1", "w2")]
    assert ages == pytest.approx([3 * 3600, 5 * 3600], abs=30)
    assert "tracker_oldest_open_age_seconds w3" not in found
    deadline = found["tracker_nearest_deadline_timestamp_seconds w1"]
    assert deadline == pytest.approx((now + timedelta(hours=48)).timestamp(), abs=1)
    assert {kind for kind in KINDS if found[f"tracker_needs {kind}"]} >= {"key_refused", "undelivered"}
    assert found["tracker_needs lost"] == 0
    assert [found[f"tracker_gap_open {cause} w1"] for cause in ("key_refused", "paused")] == [1, 0]
    assert found["tracker_seal_age_seconds"] == pytest.approx(0, abs=30)
    waiting = {name: found[f"tracker_checkpoints_undelivered {name}"] for name in ("https://hook", "log")}
    assert waiting == {"https://hook": 1, "log": 0}
    assert "secret" not in text


def test_what_a_person_has_in_hand_is_not_counted(engine: sa.Engine, settings: Settings) -> None:
    """So `tracker ack` quiets Prometheus' alerts, too."""
    now = fill(engine)
    found = needs(StoredMetrics(engine, settings).overview())
    with database.writing(engine) as connection:
        alerts.ack(connection, next(one for one in found if one.kind == "key_refused"), "eve", "OPS-1", None, now)
    counted = samples(Metrics().text(StoredMetrics(engine, settings)))
    assert (counted["tracker_needs key_refused"], counted["tracker_needs undelivered"]) == (0, 1)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_what_a_daemon_counts(engine: sa.Engine, settings: Settings) -> None:
    """Requests by outcome from 0 on, and how long they and the looks took; also while the database is away."""
    counted = Metrics()
    counted.expect(["w1"])
    counted.asked("w1", "answer", 0.2)
    counted.asked("w1", "key_refused", 0.1)
    counted.tick(0.01)
    engine.dispose()
    away = database.create_engine("sqlite:////nowhere/tracker.db")
    found = samples(counted.text(StoredMetrics(away, settings)))
    assert [found[f"tracker_polls_total w1 {outcome}"] for outcome in OUTCOMES] == [1, 0, 0, 1, 0, 0]
    assert found["tracker_request_duration_seconds_sum w1"] == pytest.approx(0.3)
    assert found["tracker_tick_duration_seconds_count"] == 1
    assert found["tracker_build_info " + version("tracker")] == 1
    assert not [name for name in found if name.startswith(("tracker_jobs", "tracker_needs")) or "_created" in name]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian: prometheus) is not installed")
@pytest.mark.parametrize("dialect", ["sqlite"])
def test_prometheus_accepts_them(engine: sa.Engine, settings: Settings) -> None:
    """``promtool check metrics`` has nothing to say, also of an empty database."""
    counted = Metrics()
    texts = [counted.text(StoredMetrics(engine, settings))]
    fill(engine)
    counted.asked("w1", "answer", 0.2)
    for text in (*texts, counted.text(StoredMetrics(engine, settings))):
        done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
