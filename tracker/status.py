"""The vocabulary of statuses and states, and the decision from an observation to the next state.

Owns: what a status means, when a job ends, which transitions are legal, and the replay of a history. Pure: no clock, no
database, no network; times come in as aware UTC arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class Kind(StrEnum):
    """What a job does with a person's data; declared by whoever registers it."""

    EXPORT = "export"
    REMOVAL = "removal"
    UNKNOWN = "unknown"


class State(StrEnum):
    """What we concluded about a job."""

    OPEN = "open"
    """Entered at registration or when an operator reopens it; the only state that is polled."""
    DONE = "done"
    """Entered when Elevate says ``done``; never left."""
    FAILED = "failed"
    """Entered when Elevate says ``error``; left by an operator's reopen or withdraw."""
    LOST = "lost"
    """Entered when Elevate says ``not_found`` often and long enough (`LostRule`); left by an operator."""
    ATTESTED = "attested"
    """Entered when an operator says that it was done, unseen by us; left by reopen."""
    WITHDRAWN = "withdrawn"
    """Entered when an operator closes it; left by reopen."""


class Action(StrEnum):
    """What made a transition."""

    REGISTERED = "registered"
    OBSERVED = "observed"
    WITHDRAWN = "withdrawn"
    REOPENED = "reopened"
    ATTESTED = "attested"
    AMENDED = "amended"


class Anomaly(StrEnum):
    """What is odd about a transition and worth a person's look."""

    UNKNOWN_STATUS = "unknown_status"
    """Elevate said a word that nobody documented."""
    BACKWARDS = "backwards"
    """An earlier status after a later one (``running``, then ``waiting``)."""
    VANISHED = "vanished"
    """``not_found`` after another status."""
    REAPPEARED = "reappeared"
    """Another status after it had vanished."""
    NEVER_FOUND = "never_found"
    """Lost without ever having had another status than ``not_found``."""


class Cause(StrEnum):
    """Why nothing could be observed for a while (column ``gaps.cause``), or why a cluster is paused."""

    UNREACHABLE = "unreachable"
    KEY_REFUSED = "key_refused"
    RATE_LIMITED = "rate_limited"
    BAD_ANSWER = "bad_answer"
    NOT_RUNNING = "not_running"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Answer:
    """One valid answer of Elevate about one job.

    Attributes:
        status: The word, verbatim.
        sent_at: When the request was sent (aware UTC).
        completed_at: When the answer was complete (aware UTC, not before *sent_at*).
        server_date: The answer's HTTP Date, or None: a clock that is not ours.
    """

    status: str
    sent_at: datetime
    completed_at: datetime
    server_date: datetime | None = None


@dataclass(frozen=True, slots=True)
class LostRule:
    """When ``not_found`` ends a job: *polls* valid answers in a row over at least *duration*."""

    polls: int = 5
    duration: timedelta = timedelta(days=2)
