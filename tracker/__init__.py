"""tracker remembers what became of every GDPR job submitted to Voyado Elevate 3, with bounds and proof.

The public Python API is what `__all__` names:

    with engine.begin() as connection:          # your own transaction, in which you note the submission
        tracker.register(connection, jid, kind="export", submitted_at=now)

The map of the rooms, each of which says at its top what it owns and what it leaves alone:

    errors      TrackerError and its tree
    settings    defaults < tracker.toml < secrets < TRACKER_* environment
    status      pure: statuses, states, the decision from an observation to the next state, the replay of a history
    cadence     pure: when to poll next
    deadline    pure: the legal clock and its verdicts
    health      pure: what failures and answers make of a cluster: pauses, gaps
    transport   sockets, TLS, the deadline of a whole request
    elevate     the only HTTP: one request to one Answer or one error; checkpoints on their way out
    models      the tables
    database    engines, transactions, the schema's version
    guards      the triggers that keep the history from being changed
    intake      register one job or a million
    clusters    the row of a cluster, which the daemons share; the watch over the database's clock
    poller      claim, ask, decide, record
    operate     an operator's decisions: withdraw, reopen, attest, amend, pause, resume
    reconcile   compare a list of submitted jids with what is registered
    daemon      APScheduler, signals, heartbeat, when to seal
    web         the page over HTTP, on this machine alone
    logs        one line an event
    reports/    the query module: one file a report; views/ has one .sql file a view
    audit/      the proof: canonical lines, checkpoints, seal, deliver, verify, export, roles
    simulator   a fake Elevate on loopback, with its own clock
    demo        all of it on one machine in 20 seconds
    cli/        click commands, one file a group; nothing but arguments and printing

Nothing is imported until it is used: ``tracker --help`` must not wait for SQLAlchemy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracker.errors import AmbiguousJob as AmbiguousJob
    from tracker.errors import BadConfiguration as BadConfiguration
    from tracker.errors import Conflict as Conflict
    from tracker.errors import DatabaseUnavailable as DatabaseUnavailable
    from tracker.errors import InvalidField as InvalidField
    from tracker.errors import Refused as Refused
    from tracker.errors import TrackerError as TrackerError
    from tracker.errors import UnknownJob as UnknownJob
    from tracker.intake import register as register
    from tracker.reports.durations import durations as durations

_PLACES = {
    "register": "tracker.intake",
    "durations": "tracker.reports.durations",
    **dict.fromkeys(
        (
            "AmbiguousJob",
            "BadConfiguration",
            "Conflict",
            "DatabaseUnavailable",
            "InvalidField",
            "Refused",
            "TrackerError",
            "UnknownJob",
        ),
        "tracker.errors",
    ),
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'tracker' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
