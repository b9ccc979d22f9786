"""Changes tracker's own process: hours become seconds, and a process kills itself at a named point.

Only constants are replaced, no rule; the kill is put around a function of the poll.
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
LEASE = 4 * SECOND
HURRY: dict[str, object] = {
    "tracker.cadence.SHORTEST": SECOND / 2,
    **{f"tracker.cadence.{name}": SECOND for name in ("LONGEST", "FIRST_WAIT")},
    **{f"tracker.{room}.LEASE": LEASE for room in ("clusters", "poller")},
    **{f"tracker.{room}.MISSED": 5 * SECOND for room in ("clusters", "daemon", "health")},
    "tracker.daemon.LONGEST_WAIT": SECOND,
    "tracker.database.BUSY_SECONDS": 2,
    "tracker.database._POSTGRESQL_SETTINGS": database._POSTGRESQL_SETTINGS.replace("'30s'", "'2s'"),
    "tracker.health._PAUSES": {kind: (SECOND, 2 * SECOND, cause) for kind, (_, _, cause) in health._PAUSES.items()},
    "tracker.needs.FAR_BEHIND": SECOND,
    "tracker.reports.overview.ALIVE": 4 * SECOND,
    "tracker.web.STALE_SECONDS": 3,
}
STEPS: dict[str, tuple[Any, str]] = {
    "claim": (poller.Poller, "_claim"),
    "ask": (elevate.Elevate, "ask"),
    "decide": (poller, "decide"),
    "record": (poller.Poller, "_record"),
}
"""The steps of a poll, and the functions that do them."""


def child(
    words: tuple[str, ...], env: dict[str, str], folder: Path, out: Path, log: Path, at: str, slow: float
) -> None:
    """Run ``tracker`` with *words*; jobs are asked every *slow* seconds. It kills itself *at* a point, if one is given.

    The points of a step: ``claim: before`` it, ``claim: commit`` (the commit is next), ``claim: after`` it.
    """
    waits = {f"tracker.cadence.{name}": slow * SECOND for name in ("SHORTEST", "LONGEST") if slow}
    for place, value in (HURRY | waits).items():
        module, _, name = place.rpartition(".")
        setattr(import_module(module), name, value)
    if at:
        die(*at.split(": "))
    _command(words, env, folder, out, log)


def die(step: str, when: str) -> None:
    """Kill this process the first time that it comes to a point."""
    owner, name = STEPS[step]
    real, inside = getattr(owner, name), threading.local()

    def kill(connection: object = None) -> None:
        if connection is None or getattr(inside, "now", False):
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(*arguments: Any, **options: Any) -> Any:
        inside.now = when == "commit"
        if when == "before":
            kill()
        result = real(*arguments, **options)
        if when == "after":
            kill()
        inside.now = False
        return result

    setattr(owner, name, dying)
    if when == "commit":
        sa.event.listen(sa.Engine, "commit", kill)


if __name__ == "__main__":  # where a fork will not do: with a preloaded library, in a namespace
    slow, log = sys.argv[1:]
    child(("run",), dict(os.environ), Path.cwd(), Path(os.devnull), Path(log), "", float(slow))
