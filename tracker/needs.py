"""What needs a person: one pure function over what is stored.

Owns which facts need a person, which of them are urgent, and what to do about each. ``reports/overview.py`` gathers the
facts; `tracker status`, the page, alerts and metrics show what this module says, and decide nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from tracker.status import Anomaly, Cause, State

BEHIND: Final = timedelta(seconds=60)
"""A poll that is due for longer than this is late."""


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that needs a person.

    Attributes:
        kind: One word of a fixed list, as ``key_refused``: alerts and metrics are grouped by it.
        subject: A cluster, a destination, or empty for a group of jobs of all clusters.
        since: Since when (aware UTC); None: unknown.
        is_urgent: `tracker status` exits 1 because of it.
        count: How many jobs, polls or checkpoints it is about; 1 where nothing is counted.
        what: What is wrong, one sentence without its full stop.
        action: What to do, in words and commands.
    """

    kind: str
    subject: str
    since: datetime | None
    is_urgent: bool
    count: int
    what: str
    action: str


@dataclass(frozen=True, slots=True)
class Daemon:
    """A row of ``workers`` that is alive: it beat within a minute and was not stopped."""

    worker: str
    host: str
    pid: int
    version: str
    started_at: datetime
    beat_at: datetime


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster, as an operator sees it.

    Attributes:
        cluster: Its name.
        is_configured: It is in the settings of this command.
        open: Open jobs.
        polls_behind: Polls that are due for longer than `BEHIND`, whether a daemon has claimed them or not.
        behind_since: When the oldest of them was due.
        answered_at: The last valid answer was complete.
        paused_until: None while `pause_cause` is set: until an operator resumes it.
        pause_cause: None: it is not paused.
        gap_began_at: None: no gap is open.
        gap_cause: Why nothing could be observed since.
        gap_detail: An operator's reason, or the code of an error.
        next_deadline_on: The nearest day that is a deadline still ahead of an unsettled job.
    """

    cluster: str
    is_configured: bool
    open: int = 0
    polls_behind: int = 0
    behind_since: datetime | None = None
    answered_at: datetime | None = None
    paused_until: datetime | None = None
    pause_cause: Cause | None = None
    gap_began_at: datetime | None = None
    gap_cause: Cause | None = None
    gap_detail: str | None = None
    next_deadline_on: date | None = None


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A destination that checkpoints cannot be delivered to.

    Attributes:
        destination: Without secrets.
        failing_since: It fails since then.
        last_error: Class and code.
        waiting: How many checkpoints it lacks.
    """

    destination: str
    failing_since: datetime
    last_error: str
    waiting: int


@dataclass(frozen=True, slots=True)
class Seals:
    """How the history is sealed.

    Attributes:
        number: Of the last checkpoint; None: it is missing or damaged.
        sealed_at: When it was made; None: nothing is sealed.
        key_id: Whose signature it says to have; None: it is unsigned.
        unsealed: Rows of history since.
        unsealed_since: When the oldest transition of them was recorded.
        undelivered: By destination.
    """

    number: int | None
    sealed_at: datetime | None
    key_id: str | None
    unsealed: int
    unsealed_since: datetime | None
    undelivered: tuple[Undelivered, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """How everything stands at one time: what `needs` judges.

    Attributes:
        now: The database's time.
        daemons: Those alive.
        last_beat_at: The newest beat of any daemon; None: there never was one.
        clusters: Those configured or in the database, by name.
        unsettled: Number of unsettled jobs by (state, verdict).
        due_within: Number of unsettled jobs whose deadline is ahead, by the days (of the legal zone) that are left.
        anomalies: Number of transitions of the last day, by word.
        seals: How the history is sealed.
        seal_after: The setting.
    """

    now: datetime
    daemons: tuple[Daemon, ...]
    last_beat_at: datetime | None
    clusters: tuple[Cluster, ...]
    unsettled: dict[tuple[State, str], int]
    due_within: dict[int, int]
    anomalies: dict[Anomaly, int]
    seals: Seals
    seal_after: timedelta
