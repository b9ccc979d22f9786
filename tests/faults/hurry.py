"""What is changed in the daemon's own process: hours become seconds, and one process dies at a named point.

No rule is replaced: only constants are, and a kill is put around a function of the poll.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.processes import _command
from tracker import database, elevate, health, poller

SECOND = timedelta(seconds=1)
LEASE, MISSED = 4 * SECOND, 5 * SECOND
HURRY: dict[str, object] = {
    "tracker.cadence.SHORTEST": SECOND / 2,
    "tracker.cadence.LONGEST": SECOND,
    "tracker.cadence.FIRST_WAIT": SECOND / 2,
    "tracker.clusters.LEASE": LEASE,
    "tracker.clusters.MISSED": MISSED,
    "tracker.daemon.LONGEST_WAIT": SECOND,
    "tracker.daemon.MISSED": MISSED,
    "tracker.database.BUSY_SECONDS": 2,
    "tracker.database._POSTGRESQL_SETTINGS": database._POSTGRESQL_SETTINGS.replace("'30s'", "'2s'"),
    "tracker.health._PAUSES": {kind: (SECOND, 2 * SECOND, cause) for kind, (_, _, cause) in health._PAUSES.items()},
    "tracker.health.MISSED": MISSED,
    "tracker.needs.FAR_BEHIND": SECOND,
    "tracker.poller.LEASE": LEASE,
    "tracker.web.STALE_SECONDS": 3,
    "tracker.reports.overview.ALIVE": 4 * SECOND,
}
STEPS = {
    "claim": (poller.Poller, "_claim"),
    "ask": (elevate.Elevate, "ask"),
    "decide": (poller, "decide"),
    "record": (poller.Poller, "_record"),
}
"""The steps of a poll, and the functions that do them."""


def child(
    words: tuple[str, ...], env: dict[str, str], folder: Path, out: Path, log: Path, changes: dict[str, object], at: str
) -> None:
    """Run ``tracker`` with *words*, in a hurry; it kills itself *at* a point such as ``claim: after``, if one is given.

    The points of a step: ``before`` it, ``commit`` (all is done, the commit is next), ``after`` it.
    """
    for place, value in (HURRY | changes).items():
        module, _, name = place.rpartition(".")
        setattr(import_module(module), name, value)
    if at:
        _die(*at.split(": "))
    _command(words, env, folder, out, log)


def _die(step: str, when: str) -> None:
    owner, name = STEPS[step]
    real, inside = getattr(owner, name), threading.local()

    def kill(connection: object = None) -> None:
        if getattr(inside, "now", connection is None):
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            kill()
        inside.now = when == "commit"
        result = real(*arguments, **options)
        if when == "after":
            inside.now = True
            kill()
        inside.now = False
        return result

    setattr(owner, name, dying)
    if when == "commit":
        sa.event.listen(sa.Engine, "commit", kill)


if __name__ == "__main__":  # where a fork will not do: for a preloaded library, in a namespace
    *words, slow, out, log = sys.argv[1:]
    waits: dict[str, object] = {f"tracker.cadence.{name}": float(slow) * SECOND for name in ("SHORTEST", "LONGEST")}
    child(tuple(words), dict(os.environ), Path.cwd(), Path(out), Path(log), waits, "")
