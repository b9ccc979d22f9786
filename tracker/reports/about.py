"""Which jobs a report is about, and what its head says.

Owns the filters that all reports share: as a value, as conditions of a query and in words. Leaves the reading of
options to the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from tracker.errors import InvalidField
from tracker.reports.words import plain
from tracker.status import Kind


@dataclass(frozen=True, slots=True)
class Filters:
    """Which jobs a report is about; the default is all.

    Attributes:
        since: Submitted (else, where that is unknown, registered) at this instant or later; aware.
        until: Submitted (else registered) before this instant; aware.
        clusters: Of one of these clusters; empty: of any.
        kinds: Of one of these kinds; empty: of any.

    Raises:
        InvalidField: A time has no offset, or *since* is not before *until*.
    """

    since: datetime | None = None
    until: datetime | None = None
    clusters: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = ()

    def __post_init__(self) -> None:
        for name, at in (("since", self.since), ("until", self.until)):
            if at is not None and at.tzinfo is None:
                raise InvalidField(name, f"{at} has no offset, so the instant is unclear: add one, such as +01:00")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise InvalidField("until", f"{self.until} is not after since, {self.since}: there is no time between them")

    def conditions(self, columns: sa.ColumnCollection[str, Any]) -> list[sa.ColumnElement[bool]]:
        """Return what a row must meet that has the columns cluster, kind, submitted_at and registered_at."""
        began_at = sa.func.coalesce(columns["submitted_at"], columns["registered_at"])
        found: list[sa.ColumnElement[bool]] = []
        if self.since is not None:
            found.append(began_at >= self.since)
        if self.until is not None:
            found.append(began_at < self.until)
        if self.clusters:
            found.append(columns["cluster"].in_(self.clusters))
        if self.kinds:
            found.append(columns["kind"].in_(self.kinds))
        return found

    def in_words(self, of: str = "submitted (else registered)") -> str:
        """Return which jobs were asked for, to be read by a person; empty: all. *of*: what the times are."""
        found = [f"cluster {', '.join(self.clusters)}"] if self.clusters else []
        if self.kinds:
            found.append(f"kind {', '.join(self.kinds)}")
        if self.since or self.until:
            since = f" from {self.since.astimezone(UTC).isoformat(' ')}" if self.since else ""
            until = f" before {self.until.astimezone(UTC).isoformat(' ')}" if self.until else ""
            found.append(f"{of}{since}{until}")
        return plain("; ".join(found))


@dataclass(frozen=True, slots=True)
class About:
    """The head of every report.

    Attributes:
        as_of: The database's time when it was read: nothing later is in it.
        version: Of the tracker that made it.
        filters: Which jobs were asked for.
        jobs: How many of them it is about.
    """

    as_of: datetime
    version: str
    filters: Filters
    jobs: int
