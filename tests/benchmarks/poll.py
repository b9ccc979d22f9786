"""Polls a second: this poller, a plain loop with a commit a poll, and the bare client, in one run on one nginx.

    .venv/bin/python -m tests.benchmarks.poll [--jobs N] [--threads N] [--rounds N]

Needs nginx (Debian: nginx-light). Read the ratios: machines are noisy. The claims of the project: the poller reaches
twice the plain loop on SQLite, three times on PostgreSQL, and 0.6 of the bare client. Exit status 1: one was missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event
from time import monotonic

import requests
import sqlalchemy as sa

from tests.conftest import serve_postgres
from tests.nginx import nginx
from tests.scripted import cluster_settings
from tracker import database
from tracker.clusters import first_contact
from tracker.models import JOBS, TRANSITIONS
from tracker.poller import Poller
from tracker.settings import Settings
from tracker.status import Action, State

PATH = "/api/v2/event-data/job-status"


def fill(engine: sa.Engine, jids: list[str]) -> None:
    with database.writing(engine) as connection:
        connection.execute(sa.insert(JOBS), [{"cluster": "w1", "jid": jid} for jid in jids])


def bare(url: str, jids: list[str], threads: int) -> float:
    """`Session.send` of prepared requests, the same threads, no database."""
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=threads))
        template = session.prepare_request(requests.Request("GET", url + PATH, headers={"Api-Key": "k"}))

        def ask(jid: str) -> None:
            request = template.copy()
            request.url = f"{url}{PATH}?jid={jid}"
            answer = session.send(request, timeout=10, proxies={}, allow_redirects=False)
            if answer.json()["status"] != "waiting":
                raise SystemExit("a wrong answer")

        began = monotonic()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(ask, jids))
        return len(jids) / (monotonic() - began)


def plain(url: str, engine: sa.Engine, jids: list[str]) -> float:
    """What one would write first: a loop with `Session.get` and a commit a poll."""
    with database.writing(engine) as connection:
        source_id = first_contact(connection, cluster_settings(url), Settings())
    with requests.Session() as session:
        began = monotonic()
        for jid in jids:
            answer = session.get(url + PATH, params={"jid": jid}, headers={"Api-Key": "k"}, timeout=10).json()
            with database.writing(engine) as connection:
                row = connection.execute(sa.select(JOBS).where(JOBS.c.cluster == "w1", JOBS.c.jid == jid)).one()
                now = database.now(connection)
                if row.status != answer["status"]:
                    transition = {"job_id": row.id, "seq": row.seq + 1, "action": Action.OBSERVED, "observed_at": now}
                    transition |= {"source_id": source_id}
                    state = {"from_state": State.OPEN, "to_state": State.OPEN, "to_status": answer["status"]}
                    connection.execute(sa.insert(TRANSITIONS).values(transition | state))
                values = {"status": answer["status"], "seq": row.seq + 1, "due_at": now + timedelta(hours=6)}
                connection.execute(sa.update(JOBS).where(JOBS.c.id == row.id).values(values))
        return len(jids) / (monotonic() - began)


def ours(url: str, engine: sa.Engine, jids: list[str], threads: int) -> float:
    cluster = cluster_settings(url, max_concurrency=threads, max_requests_per_second=1e6)
    with Poller(engine, cluster, Settings(), "benchmark") as poller:
        began = monotonic()
        tally = poller.run(Event())
        took = monotonic() - began
    if (tally.asked, tally.failed, tally.transitions) != (len(jids), 0, len(jids)):
        raise SystemExit(f"not all was polled and stored: {tally}")
    return len(jids) / took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=4, help="max_concurrency; 4 is the default setting")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    measured: dict[str, list[float]] = {}

    def measure(name: str, work: Callable[[], float]) -> None:
        measured.setdefault(name, []).append(work())

    with tempfile.TemporaryDirectory() as folder, nginx("waiting") as url, serve_postgres() as server:
        for turn in range(options.rounds):
            measure("bare client", lambda: bare(url, [f"b{i}" for i in range(options.jobs)], options.threads))
            made = {
                "SQLite": f"sqlite:///{folder}/t{turn}.db",
                "PostgreSQL": server(),
            }
            for name, database_url in made.items():
                database.upgrade(database_url)
                engine = database.open_database(database_url)
                for prefix in ("p", "t"):
                    jids = [f"{prefix}{i}" for i in range(options.jobs)]
                    fill(engine, jids)
                    if prefix == "p":
                        measure(f"plain loop, {name}", lambda e=engine, j=jids: plain(url, e, j))  # type: ignore[misc]
                    else:
                        measure(f"poller, {name}", lambda e=engine, j=jids: ours(url, e, j, options.threads))  # type: ignore[misc]
                engine.dispose()
    median = {name: statistics.median(values) for name, values in measured.items()}
    for name, value in median.items():
        print(f"{name:24} {value:8.0f} polls/s   (rounds: {' '.join(f'{v:.0f}' for v in measured[name])})")
    missed = 0
    for name, least in (("SQLite", 2.0), ("PostgreSQL", 3.0)):
        for other, bound in ((f"plain loop, {name}", least), ("bare client", 0.6)):
            ratio = median[f"poller, {name}"] / median[other]
            missed += ratio < bound
            print(f"poller, {name} / {other}: {ratio:.2f} (at least {bound}) {'ok' if ratio >= bound else 'MISSED'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
