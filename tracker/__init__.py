"""tracker records what happens to every GDPR job submitted to Voyado Elevate 3, with bounds and proof.

The public Python API is `register` and `durations`; their errors are in ``tracker.errors``:

    with engine.begin() as connection:          # your own transaction, in which you note the submission
        tracker.register(connection, jid, kind="export", submitted_at=now)

The map of the rooms is in ``README.md`` beside this file.

Nothing is imported until it is used: ``tracker --help`` must not wait for SQLAlchemy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracker.intake import register as register
    from tracker.reports.durations import durations as durations

_PLACES = {"register": "tracker.intake", "durations": "tracker.reports.durations"}
__all__ = ["durations", "register"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'tracker' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
