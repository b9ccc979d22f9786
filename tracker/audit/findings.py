"""What `audit verify` can find, and what it reports besides.

Owns the words and the values; finding is ``verify``'s and ``histories``'. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from tracker.settings import may_be_loopback

LONGEST_LIST: Final = 1000
"""Findings that are told one by one; the rest is counted: a database in which nothing fits must not fill the memory."""


class What(StrEnum):
    """What kind of thing is wrong."""

    GUARD = "guard"
    """A guard or a CHECK of the database is missing, altered or not ours."""
    VIEW = "view"
    """A view is missing or altered."""
    SEQUENCE = "sequence"
    """The database's counter of ids does not fit the table's rows."""
    CHECKPOINT = "checkpoint"
    """A checkpoint's text, or the columns beside it, are not what was sealed."""
    CHAIN = "chain"
    """A checkpoint is missing, double, out of order, or does not follow on the one before it."""
    SIGNATURE = "signature"
    """A signature is bad, or missing where there were signatures before."""
    KEY = "key"
    """A signature is by a key that is not the right one."""
    SEGMENTS = "segments"
    """The rows of ``segments`` are not what the checkpoint says."""
    ROWS = "rows"
    """The rows of a segment are not those that were sealed."""
    HISTORY = "history"
    """A job's transitions are no legal history."""
    JOB = "job"
    """A row of ``jobs`` is not what its transitions come to."""
    BACKDATED = "backdated"
    """Transitions claim to be from before a checkpoint that was made before they were recorded."""
    SOURCE = "source"
    """Transitions name a source that is not there."""
    TRUSTED = "trusted"
    """A checkpoint that was kept outside is not in this chain."""
    UNSEALED = "unsealed"
    """Rows have waited too long for a seal."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where.

    Attributes:
        what: Its kind.
        message: In words, with the place, for a person.
        checkpoint: The number of the checkpoint.
        segment: Its part.
        table: The table of the row that is wrong.
        row_id: The row's id.
        cluster: The cluster of the job or the segment.
        jid: The job.
        seq: The transition.
    """

    what: What
    message: str
    checkpoint: int | None = None
    segment: int | None = None
    table: str | None = None
    row_id: int | None = None
    cluster: str | None = None
    jid: str | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where answers came from; information, not a finding.

    Attributes:
        source_id: Its row in ``sources``.
        cluster: Whose answers.
        base_url: Scheme and host that were asked.
        path: The path on it.
        recorded_at: When a daemon first named it.
        transitions: How many it gave.
        first_at: When the first of them was observed; None: it gave none.
        last_at: When the last of them was.
    """

    source_id: int
    cluster: str
    base_url: str
    path: str
    recorded_at: datetime | None
    transitions: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Why it may not be Elevate: ``loopback`` (a server on the same machine), ``plain http`` (nobody proved it)."""
        try:
            parts = urlsplit(self.base_url)
            loopback = may_be_loopback(parts.hostname)
        except ValueError:
            return ("no address",)
        return tuple(flag for flag, is_so in (("loopback", loopback), ("plain http", parts.scheme != "https")) if is_so)


@dataclass(frozen=True, slots=True)
class KeyUse:
    """A key that checkpoints are signed with: its id, and the first and last checkpoint it signed."""

    key_id: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found, and what it read.

    Attributes:
        findings: At most `LONGEST_LIST`, in the order of their kinds.
        more: Findings beyond those.
        jobs: Jobs replayed.
        transitions: Transitions read, sealed or not.
        sealed: Rows of all kinds that the checkpoints cover.
        unsealed: Rows since.
        checkpoints: How many there are.
        unsigned: How many of them are not signed.
        origin: Of the chain; None: nothing was sealed yet.
        number: Of the last checkpoint.
        sha256: Of the last checkpoint: what to compare with what was kept outside.
        sealed_at: When that was made.
        trusted: How many checkpoints from outside were looked for.
        keys: Each key that signed.
        sources: Every source on record.
    """

    findings: list[Finding]
    more: int = 0
    jobs: int = 0
    transitions: int = 0
    sealed: int = 0
    unsealed: int = 0
    checkpoints: int = 0
    unsigned: int = 0
    origin: str | None = None
    number: int | None = None
    sha256: str | None = None
    sealed_at: datetime | None = None
    trusted: int = 0
    keys: list[KeyUse] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing was found."""
        return not self.findings
