"""Polls a second with and without a sealer beside the poller, in one run on one nginx.

    .venv/bin/python -m tests.benchmarks.sealing [--jobs N] [--rounds N]

Needs nginx (Debian: nginx-light). In turns: the poller alone, and the poller with a sealer beside it that signs and
delivers to a file. The claim of the project: sealing costs less than 5 % of the polls a second. The daemon looks every
ten seconds whether 1,000 rows wait; here it is every second, at full speed, and each poll makes a transition.
Read the ratio of the medians, and the processor time of the process, which is less noisy. Exit status 1: it was missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from threading import Event, Thread
from time import monotonic, process_time

import sqlalchemy as sa

from tests.benchmarks.poll import fill
from tests.conftest import serve_postgres
from tests.nginx import nginx
from tests.scripted import cluster_settings
from tracker import database
from tracker.audit.deliver import Courier
from tracker.audit.keys import SigningKey, keygen
from tracker.audit.seal import seal
from tracker.models import SEALS, TRANSITIONS
from tracker.poller import Poller
from tracker.settings import Settings

POLLS_A_SEAL = 1000
AT_MOST = 0.05


def polled(url: str, engine: sa.Engine, jids: list[str]) -> tuple[float, float]:
    """Return polls a second, and the seconds of processor time that each took."""
    cluster = cluster_settings(url, max_concurrency=4, max_requests_per_second=1e6)
    with Poller(engine, cluster, Settings(), "benchmark") as poller:
        began, used = monotonic(), process_time()
        tally = poller.run(Event())
        took, used = monotonic() - began, process_time() - used
    if (tally.asked, tally.failed) != (len(jids), 0):
        raise SystemExit(f"not all was polled and stored: {tally}")
    return len(jids) / took, used / len(jids)


class Beside:
    """Seals and delivers in a thread of its own, each time that so many more transitions are there."""

    def __init__(self, engine: sa.Engine, key: SigningKey, file: Path) -> None:
        self._engine, self._key, self._courier = engine, key, Courier(engine, file)
        self._stop = Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        at = 0
        while not self._stop.wait(1):
            with database.reading(self._engine) as connection:
                newest = connection.execute(sa.select(sa.func.max(TRANSITIONS.c.id))).scalar_one() or 0
            if newest - at >= POLLS_A_SEAL:
                at = newest
                seal(self._engine, self._key)
                self._courier.deliver()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=9000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    measured: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name, nginx("waiting") as url, serve_postgres() as server:
        folder = Path(name)
        keygen(folder / "key.pem")
        key = SigningKey.load(folder / "key.pem")
        for turn in range(options.rounds):
            for is_sealing in (False, True) if turn % 2 else (True, False):
                made = {"SQLite": f"sqlite:///{folder}/t{turn}{is_sealing}.db", "PostgreSQL": server()}
                for which, database_url in made.items():
                    database.upgrade(database_url)
                    engine = database.open_database(database_url)
                    jids = [f"j{i}" for i in range(options.jobs)]
                    fill(engine, jids)
                    seal(engine, key)  # the registrations: they are not what is measured
                    if is_sealing:
                        with Beside(engine, key, folder / f"{which}{turn}.txt"):
                            one = polled(url, engine, jids)
                        with database.reading(engine) as connection:
                            seals = connection.execute(sa.select(sa.func.count()).select_from(SEALS)).scalar_one() - 1
                        if not seals:
                            raise SystemExit("it was over before anything was sealed: take more --jobs")
                    else:
                        one = polled(url, engine, jids)
                    measured.setdefault((which, is_sealing), []).append(one)
                    engine.dispose()
    missed = 0
    for which in ("SQLite", "PostgreSQL"):
        rate = {each: statistics.median(one for one, _ in measured[which, each]) for each in (False, True)}
        used = {each: statistics.median(one for _, one in measured[which, each]) for each in (False, True)}
        cost = 1 - rate[True] / rate[False]
        missed += cost > AT_MOST
        rounds = "; ".join(" ".join(f"{one:.0f}" for one, _ in measured[which, each]) for each in (False, True))
        print(
            f"{which:10} {rate[False]:6.0f} polls/s alone, {rate[True]:6.0f} with sealing: {cost:.1%} less"
            f" (at most {AT_MOST:.0%}) {'MISSED' if cost > AT_MOST else 'ok'}; processor time a poll"
            f" {used[False] * 1e6:.0f} and {used[True] * 1e6:.0f} µs   (rounds: {rounds})"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
