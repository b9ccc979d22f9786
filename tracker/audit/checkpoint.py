"""The checkpoint: a short text that names what is sealed, with its signature.

Owns the form of that text, which FORMAT.md describes: reading and writing it again gives the same bytes. Does not know
the database. ``keys`` makes and checks signatures.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Final

from tracker.audit.keys import PublicKey, SigningKey
from tracker.audit.lines import TABLES
from tracker.errors import BadCheckpoint

SEGMENT_ROWS: Final = 1000  # most rows of a segment: a verifier names the wrong segment, not the row


def instant(at: datetime) -> str:
    """Return a time as checkpoints and packs have it."""
    return f"{at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def path(number: int) -> str:
    """Return the path of checkpoint *number* in a pack."""
    return f"checkpoints/{number:06}.txt"


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """At most SEGMENT_ROWS sealed rows of one table."""

    name: str  # the table
    part: int  # 1, 2, 3 … for each table of a checkpoint
    sha256: str  # of its CSV file, header included

    def path(self, number: int) -> str:
        """Return its path in a pack, as a segment of checkpoint *number*."""
        return f"segments/{number:06}-{self.name}-{self.part}.csv"


@dataclass(frozen=True, slots=True)
class Base:
    """What was removed from the database before a base checkpoint sealed what was left."""

    ended_before: date | None  # jobs that ended before this day (UTC); None: jobs that were named by their jids
    jobs: int  # how many jobs
    pack_sha256: str  # of SHA256SUMS in the pack with all that was there, in hex

    def __str__(self) -> str:
        day = "" if self.ended_before is None else f" that ended before {self.ended_before}"
        jobs = f"{self.jobs} job{'' if self.jobs == 1 else 's'}{day}"
        return f"before it, `tracker db prune` removed {jobs}; SHA-256 of the pack: {self.pack_sha256}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one seal says."""

    origin: str  # 32 hex digits, made with the first checkpoint: the database's own
    number: int  # 1, 2, 3 …; no number is missing
    previous_sha256: str | None  # of the previous checkpoint's whole text; None for number 1
    sealed_at: datetime  # the database's time (aware UTC) when all its rows had been written
    ids: dict[str, tuple[int, int]]  # by table: the sealed ids are above the first, up to and including the second
    rows: int  # in all segments together
    segments: tuple[SealedSegment, ...]  # in the order of TABLES, then by part
    key: PublicKey | None = None  # signs it; None: it is unsigned
    next_key: PublicKey | None = None  # signs from the next checkpoint on; None: *key* does
    base: Base | None = None  # its segments hold all rows from the first id on; earlier checkpoints have no rows left
    restored_after: str | None = None  # SHA-256 of the last checkpoint that was lost before an older copy was restored

    @property
    def signs_next(self) -> PublicKey | None:
        """The key that signs the next checkpoint; None: any key, or no key."""
        return self.next_key or self.key

    def body(self) -> str:
        """Return what is signed: the text without the line of the signature."""
        lines = [
            "tracker checkpoint v2",
            f"origin {self.origin}",
            f"number {self.number}",
            f"sealed_at {instant(self.sealed_at)}",
            *(f"ids {table} {self.ids[table][0]} {self.ids[table][1]}" for table in TABLES),
            f"rows {self.rows}",
        ]
        if self.restored_after is not None:
            lines.append(f"restored_after {self.restored_after}")
        if self.base is not None:
            day = "" if self.base.ended_before is None else f"ended_before {self.base.ended_before} "
            lines.append(f"base {day}jobs {self.base.jobs} pack {self.base.pack_sha256}")
            lines.append(f"follows {self.previous_sha256}")
        elif self.previous_sha256 is not None:
            lines.append(f"sha256 {self.previous_sha256}  {path(self.number - 1)}")
        lines += (f"sha256 {segment.sha256}  {segment.path(self.number)}" for segment in self.segments)
        for word, key in (("key", self.key), ("next_key", self.next_key)):
            if key is not None:
                lines.append(f"{word} {key.id} {_base64(key.der)}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint with its signature, as it leaves the database."""

    checkpoint: Checkpoint
    signature: bytes | None  # 64 bytes; None: unsigned

    @property
    def text(self) -> str:
        """The whole text, signature included."""
        line = "" if self.signature is None else f"signature {_base64(self.signature)}\n"
        return self.checkpoint.body() + line

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole text, in hex, which the next checkpoint states."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def is_genuine(self) -> bool | None:
        """Return whether the key that it names signed it; None if it is unsigned.

        Only an id that came through a separate channel shows whether that is the right key.
        """
        if self.checkpoint.key is None or self.signature is None:
            return None
        return self.checkpoint.key.verify(self.signature, self.checkpoint.body().encode())


def sign(checkpoint: Checkpoint, key: SigningKey | None) -> Signed:
    """Return *checkpoint* signed with *key*, which it then names; unsigned without a key."""
    if key is None and checkpoint.next_key is not None:
        raise ValueError("an unsigned checkpoint cannot announce a key")
    named = replace(checkpoint, key=key.public if key else None)
    return Signed(named, key.sign(named.body().encode()) if key else None)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def split(text: str) -> list[str]:
    """Return the checkpoints in a file, which empty lines separate; each ends in LF."""
    return [f"{part.strip(chr(10))}\n" for part in re.split(r"\n{2,}", text) if part.strip("\n")]


_NUMBER: Final = r"(?:0|[1-9][0-9]{0,18})"
_LINES: Final = (  # the lines of each kind, in order; FORMAT.md has the table
    r"tracker checkpoint v2\n",
    r"origin (?P<origin>[0-9a-f]{32})\n",
    r"number (?P<number>[1-9][0-9]{0,18})\n",
    r"sealed_at (?P<sealed_at>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6})Z\n",
    *(rf"ids {table} (?P<{table}>{_NUMBER} {_NUMBER})\n" for table in TABLES),
    rf"rows (?P<rows>{_NUMBER})\n",
    r"(?:restored_after (?P<restored_after>[0-9a-f]{64})\n)?",
    r"(?:base (?:ended_before (?P<ended_before>[0-9]{4}-[0-9]{2}-[0-9]{2}) )?"
    rf"jobs (?P<jobs>{_NUMBER}) pack (?P<pack>[0-9a-f]{{64}})\nfollows (?P<follows>[0-9a-f]{{64}})\n)?",
    r"(?P<files>(?:sha256 [0-9a-f]{64}  [!-~]+\n)*)",
    r"(?:key [0-9a-f]{32} (?P<key>[A-Za-z0-9+/=]+)\n(?:next_key [0-9a-f]{32} (?P<next_key>[A-Za-z0-9+/=]+)\n)?"
    r"signature (?P<signature>[A-Za-z0-9+/]{86}==)\n)?",
)
_KEYS: Final = ("key", "next_key")
_FORM: Final = re.compile("".join(_LINES))


def parse(text: str) -> Signed:
    """Return the checkpoint in *text*; writing it again gives the same bytes.

    `Signed.is_genuine` checks the signature, not this.

    Raises:
        BadCheckpoint: It is not a checkpoint, or contradicts itself; the message names the line.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise BadCheckpoint(f"not a checkpoint: {_misplaced(text)}")
    number, rows = int(found["number"]), int(found["rows"])
    files = [line.split()[1:] for line in found["files"].splitlines()]
    previous = found["follows"]
    if previous is None and number > 1 and files:
        previous = files.pop(0)[0]
    if (previous is None) != (number == 1):
        raise BadCheckpoint(f"not a checkpoint: number {number} {'with' if previous else 'without'} a previous one")
    segments: list[SealedSegment] = []
    parts: Counter[str] = Counter()
    for digest, name in files:
        table = next((table for table in TABLES if f"-{table}-" in name), TABLES[0])
        parts[table] += 1
        segments.append(SealedSegment(table, parts[table], digest))
    segments.sort(key=lambda segment: TABLES.index(segment.name))
    ids = {}
    for table in TABLES:
        after, upto = map(int, found[table].split())
        ids[table] = (after, upto)
        if upto - after < parts[table] or (found["follows"] and after):
            raise BadCheckpoint(f"not a checkpoint: ids {table} {after} {upto} and {parts[table]} segments")
    if not len(segments) <= rows <= len(segments) * SEGMENT_ROWS:
        raise BadCheckpoint(f"not a checkpoint: {len(segments)} segments cannot have {rows} rows")
    try:
        at = datetime.fromisoformat(found["sealed_at"]).replace(tzinfo=UTC)
        key, next_key = (
            PublicKey(base64.b64decode(found[word], validate=True)) if found[word] else None for word in _KEYS
        )
        day = date.fromisoformat(found["ended_before"]) if found["ended_before"] else None
    except ValueError as error:
        raise BadCheckpoint(f"not a checkpoint: a time, a date or a key is not valid: {error}") from None
    base = Base(day, int(found["jobs"]), found["pack"]) if found["follows"] else None
    signature = base64.b64decode(found["signature"]) if found["signature"] else None
    one = Checkpoint(
        found["origin"], number, previous, at, ids, rows, tuple(segments), key, next_key, base, found["restored_after"]
    )
    signed = Signed(one, signature)
    for line, (is_, should) in enumerate(zip(text.split("\n"), signed.text.split("\n"), strict=True), 1):
        if is_ != should:  # the form allows any path, any id of a key, and bits that base64 ignores
            raise BadCheckpoint(f"not a checkpoint: line {line} is {is_[:100]!r}, should be {should[:100]!r}")
    return signed


def _misplaced(text: str) -> str:
    """Return which line of *text* is the first that does not have the form of a checkpoint."""
    end = 0
    for line in _LINES:
        if (match := re.compile(line).match(text, end)) is None:
            break
        end = match.end()
    rest = text[end:].partition("\n")[0]
    hint = "; its lines end in CR LF" if rest.endswith("\r") else ""
    return f"line {text.count(chr(10), 0, end) + 1} is {rest[:60]!r}, which does not belong there{hint}"
