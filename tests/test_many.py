"""Many clusters in one daemon, and many daemons on one cluster: what it costs, and who waits for whom."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.processes import Tracker
from tests.scripted import Script
from tests.test_daemon import add, until
from tracker import database
from tracker.models import CLUSTERS, JOBS


@contextmanager
def running(url: str, clusters: dict[str, str], folder: Path, *more: str) -> Iterator[None]:
    """Run a daemon for clusters by their base URLs."""
    config = folder / "clusters.toml"
    tables = (f'[clusters.{name}]\napi_key = "k"\nbase_url = "{base_url}"\n' for name, base_url in clusters.items())
    config.write_text("\n".join([*more, *tables]))
    env = os.environ | {"TRACKER_DATABASE_URL": url, "TRACKER_CONFIG": str(config)}
    daemon = Tracker("run", env=env, log=folder / "daemon.log")
    try:
        yield
        daemon.terminate()
        assert daemon.wait(40) == 0
    finally:
        daemon.kill()


def unanswered(engine: sa.Engine, *clusters: str) -> int:
    with database.reading(engine) as connection:
        query = sa.select(sa.func.count()).where(JOBS.c.status.is_(None), JOBS.c.cluster.in_(clusters))
        return connection.execute(query).scalar_one()


def alive(engine: sa.Engine, clusters: int) -> bool:
    with database.reading(engine) as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(CLUSTERS)).scalar_one() == clusters


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_ten_clusters_that_hang_delay_none_of_ninety(
    engine: sa.Engine, script: Script, url: str, tmp_path: Path
) -> None:
    """All are due at once; what hangs holds threads of its own cluster only."""
    names = [f"c{i}" for i in range(100)]
    hung, others = names[:10], names[10:]
    go_on = threading.Event()
    script.hold = lambda jid: go_on.wait(30) if jid in hung else None
    with running(url, dict.fromkeys(names, script.url), tmp_path, 'request_timeout = "25s"'):
        until(lambda: alive(engine, 100), 40)
        for name in hung:
            add(engine, name, cluster=name)
        until(lambda: set(hung) <= set(script.asked), 20)
        for name in others:
            add(engine, f"a-{name}", cluster=name)
        began = time.monotonic()
        until(lambda: unanswered(engine, *others) == 0, 20)
        assert time.monotonic() - began < 12
        assert unanswered(engine, *hung) == 10
        go_on.set()
