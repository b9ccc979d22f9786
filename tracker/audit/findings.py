"""What `audit verify` can find, and what it reports besides.

Owns the words and the values; finding is the work of ``verify`` and ``checks``. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from tracker.settings import may_be_loopback

LONGEST_LIST: Final = 1000
"""Findings that are kept; the rest is counted, so that a database in which nothing fits does not fill the memory."""


class What(StrEnum):
    """What kind of thing is wrong."""

    GUARD = "guard"
    """A guard, a table or a CHECK is missing, changed or not tracker's."""
    VIEW = "view"
    """A view is missing or changed."""
    RIGHT = "right"
    """A role may do more than a writer needs."""
    INDEX = "index"
    """The database's own examination failed: an index that hides rows, a row that violates a CHECK."""
    CHECKPOINT = "checkpoint"
    """A checkpoint's text or the columns beside it were changed, or it does not follow on the one before it."""
    KEY = "key"
    """A signature is false or missing, or by a key that the chain did not announce, or not by the key given."""
    SEGMENTS = "segments"
    """The table ``segments`` does not agree with the checkpoint."""
    ROWS = "rows"
    """The rows of a segment are not those that were sealed."""
    HISTORY = "history"
    """A row of ``transitions``, ``gaps`` or ``sources`` that no honest history has."""
    JOB = "job"
    """A row of ``jobs`` is not the replay of its transitions."""
    TRUSTED = "trusted"
    """A checkpoint that was kept outside is not in the chain."""
    UNSEALED = "unsealed"
    """Rows have waited too long for a seal."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where.

    Attributes:
        what: Its kind.
        message: In words, with the place.
        checkpoint: The number of the checkpoint.
        segment: The segment's path in a pack.
        cluster, jid, seq: The job, and the transition.
    """

    what: What
    message: str
    checkpoint: int | None = None
    segment: str | None = None
    cluster: str | None = None
    jid: str | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where answers came from: for a person to judge, not a finding.

    Attributes:
        asked: Scheme, host and path.
        recorded_at: When a daemon first asked there, as the database has it.
    """

    cluster: str
    asked: str
    recorded_at: str

    @property
    def flags(self) -> tuple[str, ...]:
        """Why it may not be Elevate: ``loopback`` (a server on the same machine), ``plain http`` (no proof who it is)."""
        try:
            parts = urlsplit(self.asked)
            is_loopback = may_be_loopback(parts.hostname)
        except ValueError:
            return ("no address",)
        flags = (("loopback", is_loopback), ("plain http", parts.scheme != "https"))
        return tuple(flag for flag, is_so in flags if is_so)


@dataclass(frozen=True, slots=True)
class KeyUse:
    """A key that checkpoints are signed with: its id, and the first and last checkpoint it signed."""

    key_id: str
    first: int
    last: int


@dataclass(slots=True)
class Report:
    """What `verify` found, and what it read.

    Attributes:
        findings: At most `LONGEST_LIST`.
        more: Findings beyond those.
        notes: What may well be honest, but a person should look at; at most `LONGEST_LIST`.
        more_notes: Notes beyond those.
        jobs, transitions: How many there are.
        checkpoints, unsigned: How many there are, and how many of them are not signed.
        sealed, unsealed: Rows that checkpoints hold, and rows since.
        origin, number, sha256, sealed_at: Of the newest checkpoint; None: nothing is sealed yet.
        is_key_checked: Whether a key was given.
        trusted: How many checkpoints from outside were looked for.
        keys: Each key that signed.
        sources: Every address that was asked.
    """

    findings: list[Finding] = field(default_factory=list)
    more: int = 0
    notes: list[Finding] = field(default_factory=list)
    more_notes: int = 0
    jobs: int = 0
    transitions: int = 0
    checkpoints: int = 0
    unsigned: int = 0
    sealed: int = 0
    unsealed: int = 0
    origin: str | None = None
    number: int | None = None
    sha256: str | None = None
    sealed_at: datetime | None = None
    is_key_checked: bool = False
    trusted: int = 0
    keys: list[KeyUse] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def qualifications(self) -> tuple[str, ...]:
        """What a good result does not rest on, in capitals; empty: on everything."""
        asked = {flag for source in self.sources for flag in source.flags}
        said = (
            ("NOTHING SEALED", not self.checkpoints),
            ("UNSIGNED", self.unsigned == self.checkpoints > 0),
            ("PARTLY UNSIGNED", 0 < self.unsigned < self.checkpoints),
            ("KEY NOT CHECKED", self.unsigned < self.checkpoints and not self.is_key_checked),
            ("NOTHING TRUSTED GIVEN", self.checkpoints > 0 and not self.trusted),
            ("LOOPBACK SOURCES", "loopback" in asked),
            ("PLAIN HTTP SOURCES", "plain http" in asked),
        )
        return tuple(word for word, is_so in said if is_so)
