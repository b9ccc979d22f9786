"""Metrics in Prometheus' text format: what this daemon has counted, and what the database shows.

Owns the names and labels of the metrics; no label holds a jid. What is counted (requests, looks) is this daemon's
alone. The rest is read from the database, so that every daemon on it reports the same; what needs a person
is for `tracker.needs` to say.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from time import monotonic
from typing import Any, Final

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tracker import database
from tracker.daemon import Pulse
from tracker.errors import TrackerError
from tracker.needs import KINDS, Overview, needs
from tracker.reports import overview
from tracker.settings import Settings
from tracker.status import Cause
from tracker.utc import UtcDateTime

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
OUTCOMES: Final = ("answer", "unavailable", "wrong_target", "key_refused", "rate_limited", "bad_answer")
FRESH_SECONDS: Final = 10.0  # the values read are reported for at least this time …
SHARE: Final = 20  # … and this many times as long as reading took: a million open jobs cost a twentieth of a core

_CLUSTER: Final = ("cluster",)
# The states are literals, as in the indexes: no bound parameter finds a partial index.
_JOBS: Final = """
    SELECT
        v.cluster,
        (SELECT count(*) FROM jobs j WHERE j.cluster = v.cluster AND j.due_at <= :now) AS due,
        (
            SELECT min(coalesce(j.submitted_at, j.registered_at)) FROM jobs j
            WHERE j.cluster = v.cluster AND j.state IN ('open', 'failed', 'lost') AND j.state = 'open'
        ) AS oldest_at,
        (
            SELECT min(j.deadline_at) FROM jobs j
            WHERE j.cluster = v.cluster AND j.state IN ('open', 'failed', 'lost') AND j.deadline_at > :now
        ) AS deadline_at
    FROM report_clusters v"""


class Metrics(Pulse):
    """What a daemon counts, from its start on."""

    def __init__(self) -> None:
        super().__init__()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Gauge("tracker_build_info", "The version of tracker that runs", ["version"], registry=registry)
        build.labels(version("tracker")).set(1)
        text = "Requests to Elevate, by outcome"
        self._polls = Counter("tracker_polls", text, ["cluster", "outcome"], registry=registry)
        name, text = "tracker_request_duration_seconds", "Time for one request to Elevate"
        self._requests = Histogram(name, text, _CLUSTER, registry=registry)
        text = "Time to look at all clusters and start the polls that are due"
        self._ticks = Histogram("tracker_tick_duration_seconds", text, registry=registry)

    def expect(self, clusters: Iterable[str]) -> None:
        """Report zeros for *clusters*: Prometheus does not see the increase of a counter that begins with 1."""
        for cluster in clusters:
            self._requests.labels(cluster)
            for outcome in OUTCOMES:
                self._polls.labels(cluster, outcome)

    def tick(self, seconds: float) -> None:
        """Count a look at the clusters."""
        super().tick(seconds)
        self._ticks.observe(seconds)

    def asked(self, cluster: str, outcome: str, seconds: float) -> None:
        """Count a request; *outcome* is one of `OUTCOMES`."""
        self._polls.labels(cluster, outcome).inc()
        self._requests.labels(cluster).observe(seconds)

    def text(self, stored: StoredMetrics) -> str:
        """Return all metrics; while the database is away, only what is counted."""
        gauges = CollectorRegistry()
        gauges.register(stored)
        return (generate_latest(self._registry) + generate_latest(gauges)).decode()


class StoredMetrics(Collector):
    """The state of the database, as it was some seconds ago. For several threads."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._lock = threading.Lock()
        self._until = float("-inf")

    def overview(self) -> Overview:
        """Return what needs are judged by. Raises TrackerError."""
        return self._read()[0]

    def _read(self) -> tuple[Overview, Sequence[sa.Row[Any]], Sequence[str]]:
        """Return the overview, a row a cluster, and the destinations of checkpoints."""
        its = self._settings
        with self._lock:
            if (began := monotonic()) >= self._until:
                with database.reading(self._engine) as connection:
                    seen = overview.overview(connection, its.clusters, its.seal_after, its.retention)
                    query = sa.text(_JOBS).bindparams(sa.bindparam("now", seen.now, UtcDateTime()))
                    jobs = connection.execute(query.columns(oldest_at=UtcDateTime(), deadline_at=UtcDateTime())).all()
                    names = connection.execute(sa.text("SELECT destination FROM deliveries ORDER BY 1")).scalars().all()
                self._last = seen, jobs, names
                self._until = monotonic() + max(FRESH_SECONDS, SHARE * (monotonic() - began))
            return self._last

    def describe(self) -> list[Metric]:
        """Return nothing, so that nothing is read when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its values; nothing while the database is away."""
        try:
            seen, jobs, destinations = self._read()
        except TrackerError:  # it is away, or its file is
            return
        clusters = {(one.cluster,): one for one in seen.clusters}
        yield _gauge("jobs_open", "Open jobs", _CLUSTER, {key: one.open for key, one in clusters.items()})
        values = dict.fromkeys(clusters, 0.0) | {(row.cluster,): row.due for row in jobs}
        yield _gauge("jobs_due", "Open jobs whose poll is due", _CLUSTER, values)
        values = {key: one.polls_behind for key, one in clusters.items()}
        yield _gauge("jobs_late", "Open jobs whose poll is due for longer than a minute", _CLUSTER, values)
        values = {(row.cluster,): (seen.now - row.oldest_at).total_seconds() for row in jobs if row.oldest_at}
        yield _gauge("oldest_open_age_seconds", "Time since the oldest open job was submitted", _CLUSTER, values)
        values = {(row.cluster,): row.deadline_at.timestamp() for row in jobs if row.deadline_at}
        yield _gauge("nearest_deadline_timestamp_seconds", "The nearest deadline still ahead", _CLUSTER, values)
        gaps = {(*key, cause.value): float(one.gap_cause is cause) for key, one in clusters.items() for cause in Cause}
        yield _gauge("gap_open", "Whether nothing can be observed now, by cause", (*_CLUSTER, "cause"), gaps)
        found = [need.kind for need in needs(seen) if not need.is_acked]
        kinds = {(kind,): float(found.count(kind)) for kind in KINDS}
        yield _gauge("needs", "Needs that nobody is handling, by kind", ("kind",), kinds)
        sealed_at = seen.seals.sealed_at
        age = {(): (seen.now - sealed_at).total_seconds()} if sealed_at else {}
        yield _gauge("seal_age_seconds", "Time since the last seal", (), age)
        waiting = dict.fromkeys(destinations, 0) | {one.destination: one.waiting for one in seen.seals.undelivered}
        lacking = {(name,): number for name, number in waiting.items()}
        yield _gauge("checkpoints_undelivered", "Checkpoints that a destination lacks", ("destination",), lacking)


def _gauge(name: str, text: str, labels: Sequence[str], values: Mapping[Any, float]) -> Metric:
    """Return a metric with its *values* by the values of its labels."""
    made = GaugeMetricFamily(f"tracker_{name}", text, labels=labels)
    for key, value in values.items():
        made.add_metric(key, value)
    return made
