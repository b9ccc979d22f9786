"""What `audit verify` finds, and what else it reports.

Owns the words and the values; ``verify`` and ``checks`` find. Pure.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

LONGEST_LIST: Final = 1000
"""Most findings that are kept. Others are only counted, so that a damaged database does not fill the memory."""


class FindingKind(StrEnum):
    """What kind of thing is wrong."""

    GUARD = "guard"  # a guard, table or CHECK is missing, changed or not tracker's
    VIEW = "view"  # a view is missing or changed
    RIGHT = "right"  # a role has a right that the writer does not need
    INDEX = "index"  # an index hides rows; on SQLite also: a row violates a CHECK
    CHECKPOINT = "checkpoint"  # its text or columns were changed, or it does not follow the one before
    KEY = "key"  # a signature is false or missing, or its key was not announced or is not the given key
    SEGMENTS = "segments"  # table `segments` does not agree with the checkpoint
    ROWS = "rows"  # the rows of a segment are not those that were sealed
    HISTORY = "history"  # a row of `transitions`, `gaps` or `sources` that is impossible
    JOB = "job"  # a row of `jobs` is not the replay of its transitions
    TRUSTED = "trusted"  # a checkpoint that was kept outside is not in the chain
    UNSEALED = "unsealed"  # rows have waited too long for a seal


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """One thing that is wrong, in words and with its place."""

    what: FindingKind
    message: str
    checkpoint: int | None = None  # its number
    segment: str | None = None  # its path in a pack
    cluster: str | None = None
    jid: str | None = None
    seq: int | None = None  # of the transition
    is_note: bool = False  # it may have a harmless cause; a person should look


@dataclass(frozen=True, slots=True)
class AskedServer:
    """Where answers came from, and since when: a person must judge."""

    cluster: str
    asked: str
    recorded_at: str

    @property
    def flags(self) -> tuple[str, ...]:
        """Why it may not be Elevate: ``loopback`` (the same machine), ``plain http`` (nothing proves who answered)."""
        try:
            parts = urlsplit(self.asked)
            flags = (("loopback", may_be_loopback(parts.hostname)), ("plain http", parts.scheme != "https"))
        except ValueError:
            return ("no address",)
        return tuple(flag for flag, is_so in flags if is_so)


def may_be_loopback(host: str | None) -> bool:
    """Return whether *host* may lead to this machine, however it is spelled: a superset of `is_loopback`.

    The resolver decides about a name below ``localhost`` or with a dot at its end, the system about 0.0.0.0. So no key
    goes there without TLS, and the lists of sources mark such a host.
    """
    bare = (host or "").casefold().rstrip(".")
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    with suppress(ValueError):
        address = ipaddress.ip_address(bare)
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified
    with suppress(OSError):  # a resolver also reads 127.1 and 2130706433
        return may_be_loopback(socket.inet_ntoa(socket.inet_aton(bare)))
    return False


@dataclass(slots=True)
class Report:
    """What `verify` found, and what it read."""

    findings: list[AuditFinding] = field(default_factory=list)
    notes: list[AuditFinding] = field(default_factory=list)
    more: int = 0  # findings beyond LONGEST_LIST
    more_notes: int = 0
    jobs: int = 0
    transitions: int = 0
    checkpoints: int = 0
    unsigned: int = 0  # checkpoints
    sealed: int = 0  # rows
    unsealed: int = 0
    number: int | None = None  # this and the next two: of the newest checkpoint; None: nothing is sealed yet
    sha256: str | None = None
    sealed_at: datetime | None = None
    is_key_checked: bool = False  # a key was given
    trusted: int = 0  # checkpoints that were given, without those that were lost
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)  # by id: its first and its last checkpoint
    restored: dict[int, str] = field(default_factory=dict)  # by number: the SHA-256 of the last lost one that it names
    sources: list[AskedServer] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.findings

    @property
    def qualifications(self) -> tuple[str, ...]:
        """What qualifies a good result, in the words of verify.sh."""
        words = (
            ("NOTHING SEALED", not self.checkpoints),
            ("NOT SIGNED", 0 < self.unsigned == self.checkpoints),
            ("PARTLY NOT SIGNED", 0 < self.unsigned < self.checkpoints),
            ("KEY NOT CHECKED", self.unsigned < self.checkpoints and not self.is_key_checked),
            ("NOTHING TRUSTED GIVEN", self.checkpoints > 0 and not self.trusted),
            ("RESTORED AFTER A LOSS", bool(self.restored)),
            ("A SIMULATOR MAY HAVE ANSWERED", any(source.flags for source in self.sources)),
        )
        return tuple(word for word, is_so in words if is_so)


def printable(value: object) -> str:
    """Return a value as text that can be printed: bytes that are not UTF-8 (`lenient`) as ``\\xNN``."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
