"""tracker remembers what became of every GDPR job submitted to Voyado Elevate 3, with bounds and proof.

The public Python API is what `__all__` names:

    with engine.begin() as connection:          # your own transaction, in which you note the submission
        tracker.register(connection, jid, kind="export", submitted_at=now)

The map of the rooms is in ``README.md`` beside this file.

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

_ERRORS = (
    *("AmbiguousJob", "BadConfiguration", "Conflict", "DatabaseUnavailable"),
    *("InvalidField", "Refused", "TrackerError", "UnknownJob"),
)
_PLACES = dict.fromkeys(_ERRORS, "tracker.errors") | {
    "register": "tracker.intake",
    "durations": "tracker.reports.durations",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'tracker' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
