"""The checkpoint: a short text that says what is sealed, with its signature.

Owns the one form of that text, which FORMAT.md describes: reading and writing it again gives the same bytes. Knows
nothing of the database. Signatures are those of ``keys``.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, NoReturn

from tracker.audit.keys import PublicKey, SigningKey
from tracker.audit.lines import TABLES
from tracker.errors import BadCheckpoint

SEGMENT_ROWS: Final = 1000  # the most rows of a segment: a verifier names the segment that is wrong, not the row


def path(number: int) -> str:
    """Return the path of checkpoint *number* in a pack."""
    return f"checkpoints/{number:06}.txt"


@dataclass(frozen=True, slots=True)
class Segment:
    """At most SEGMENT_ROWS sealed rows of one table.

    Attributes:
        name: The table.
        part: 1, 2, 3 … for each table of a checkpoint.
        sha256: Of its CSV file, header included.
    """

    name: str
    part: int
    sha256: str

    def path(self, number: int) -> str:
        """Return its path in a pack, as a segment of checkpoint *number*."""
        return f"segments/{number:06}-{self.name}-{self.part}.csv"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one seal says.

    Attributes:
        origin: 32 hex digits, made with the first checkpoint: the database's own.
        number: 1, 2, 3 … without a hole.
        previous_sha256: Of the previous checkpoint's whole text; None for number 1.
        sealed_at: The database's time (aware UTC) when all its rows had been written.
        ids: By table: the ids sealed are above the first number, up to and including the second.
        rows: In all segments together.
        segments: In the order of TABLES, then by part.
        key: The key that signs it; None: unsigned.
        next_key: The key that signs from the next checkpoint on; None: *key* does.
    """

    origin: str
    number: int
    previous_sha256: str | None
    sealed_at: datetime
    ids: dict[str, tuple[int, int]]
    rows: int
    segments: tuple[Segment, ...]
    key: PublicKey | None = None
    next_key: PublicKey | None = None

    def body(self) -> str:
        """Return what is signed: its text without the signature's line."""
        at = self.sealed_at.astimezone(UTC).replace(tzinfo=None)
        lines = [
            "tracker checkpoint v2",
            f"origin {self.origin}",
            f"number {self.number}",
            f"sealed_at {at.isoformat(timespec='microseconds')}Z",
            *(f"ids {table} {self.ids[table][0]} {self.ids[table][1]}" for table in TABLES),
            f"rows {self.rows}",
        ]
        if self.previous_sha256 is not None:
            lines.append(f"sha256 {self.previous_sha256}  {path(self.number - 1)}")
        lines += (f"sha256 {segment.sha256}  {segment.path(self.number)}" for segment in self.segments)
        for word, key in (("key", self.key), ("next_key", self.next_key)):
            if key is not None:
                lines.append(f"{word} {key.id} {_base64(key.der)}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint with its signature, as it leaves the database.

    Attributes:
        signature: 64 bytes; None: unsigned.
        text: The whole text, signature included.
    """

    checkpoint: Checkpoint
    signature: bytes | None
    text: str

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole text, in hex, which the next checkpoint states."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def is_genuine(self) -> bool | None:
        """Return whether the key that it names signed it; None where it is unsigned.

        Whether that is the right key, only an id that came through a separate channel shows.
        """
        if self.checkpoint.key is None or self.signature is None:
            return None
        return self.checkpoint.key.verify(self.signature, self.checkpoint.body().encode())


def sign(checkpoint: Checkpoint, key: SigningKey | None) -> Signed:
    """Return *checkpoint* signed with *key*, which it then names; unsigned without a key.

    Raises:
        ValueError: It announces a next key, and there is no key to sign that.
    """
    named = replace(checkpoint, key=key.public if key else None)
    if key is None and named.next_key is not None:
        raise ValueError("an unsigned checkpoint cannot announce a key")
    signature = key.sign(named.body().encode()) if key else None
    return Signed(named, signature, _whole(named, signature))


def _whole(checkpoint: Checkpoint, signature: bytes | None) -> str:
    return checkpoint.body() + (f"signature {_base64(signature)}\n" if signature is not None else "")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def split(text: str) -> list[str]:
    """Return the texts in a file of one or many checkpoints, with empty lines between; each ends in LF."""
    return [f"{part.strip(chr(10))}\n" for part in re.split(r"\n{2,}", text) if part.strip("\n")]


_NUMBER: Final = r"(0|[1-9][0-9]{0,18})"
_HASH: Final = r"sha256 ([0-9a-f]{64})  (\S+)"
_KEY: Final = r"[0-9a-f]{32} ([A-Za-z0-9+/=]+)"


class _Reader:
    """Reads a checkpoint's lines one by one, and knows where it is for the error."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.at = 0

    def find(self, pattern: str) -> re.Match[str] | None:
        """Return the match of the next line, and go on to the one after; None, and stay, if it does not match."""
        found = re.fullmatch(pattern, self.lines[self.at]) if self.at < len(self.lines) else None
        self.at += found is not None
        return found

    def hash_of(self, path: str) -> str | None:
        """Return the SHA-256 in the next line, and go on to the one after; None, and stay, if it is not of *path*."""
        found = self.find(_HASH)  # one pattern for all paths: compiling it takes longer than the rest
        if found is None or found[2] == path:
            return found and found[1]
        self.at -= 1
        return None

    def take(self, word: str, pattern: str) -> re.Match[str]:
        """Return the match of the next line, which must be *word*, a blank and *pattern*."""
        return self.find(f"{word} {pattern}") or self.fail(f"expected a line `{word} …`")

    def fail(self, why: str) -> NoReturn:
        line = self.lines[self.at] if self.at < len(self.lines) else ""
        hint = "; its lines end in CR LF" if line.endswith("\r") else ""
        raise BadCheckpoint(f"not a checkpoint: line {self.at + 1} is {line[:60]!r}: {why}{hint}")


def parse(text: str) -> Signed:
    """Return the checkpoint that *text* is; writing it again gives the same bytes.

    Whether the signature is true is not examined here, but by `Signed.is_genuine`.

    Raises:
        BadCheckpoint: It is not a checkpoint, or contradicts itself; the message names the line.
    """
    reader = _Reader(text)
    reader.take("tracker", "checkpoint v2")
    origin = reader.take("origin", "([0-9a-f]{32})")[1]
    number = int(reader.take("number", "([1-9][0-9]{0,18})")[1])
    sealed_at = reader.take("sealed_at", r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6})Z")[1]
    ids = {}
    for table in TABLES:
        found = reader.take("ids", f"{table} {_NUMBER} {_NUMBER}")
        ids[table] = (int(found[1]), int(found[2]))
    rows = int(reader.take("rows", _NUMBER)[1])
    previous = reader.hash_of(path(number - 1)) if number > 1 else None
    if number > 1 and previous is None:
        reader.fail(f"expected the SHA-256 of {path(number - 1)}")
    segments: list[Segment] = []
    parts: Counter[str] = Counter()
    for table in TABLES:
        while digest := reader.hash_of(Segment(table, parts[table] + 1, "").path(number)):
            parts[table] += 1
            segments.append(Segment(table, parts[table], digest))
    key = _key(reader, "key")
    next_key = _key(reader, "next_key") if key else None
    signature = base64.b64decode(reader.take("signature", "([A-Za-z0-9+/]{86}==)")[1]) if key else None
    if reader.lines[reader.at :] != [""]:
        reader.fail("expected the end, after one LF")
    try:
        at = datetime.fromisoformat(sealed_at).replace(tzinfo=UTC)
    except ValueError:
        raise BadCheckpoint(f"not a checkpoint: sealed_at {sealed_at} is not a time") from None
    checkpoint = Checkpoint(origin, number, previous, at, ids, rows, tuple(segments), key, next_key)
    if not len(segments) <= rows <= len(segments) * SEGMENT_ROWS:
        raise BadCheckpoint(f"not a checkpoint: {len(segments)} segments cannot have {rows} rows")
    for table, (after, upto) in ids.items():
        if upto - after < parts[table]:
            raise BadCheckpoint(f"not a checkpoint: ids {table} {after} {upto} and {parts[table]} segments")
    again = _whole(checkpoint, signature).split("\n")
    for line, (is_, should) in enumerate(zip(reader.lines, again, strict=True), 1):
        if is_ != should:  # what no pattern sees: another id of a key, bits that base64 ignores
            raise BadCheckpoint(f"not a checkpoint: line {line} is {is_[:100]!r}, should be {should[:100]!r}")
    return Signed(checkpoint, signature, text)


def _key(reader: _Reader, word: str) -> PublicKey | None:
    found = reader.find(f"{word} {_KEY}")
    try:
        return PublicKey(base64.b64decode(found[1], validate=True)) if found else None
    except ValueError:
        reader.at -= 1
        reader.fail("it is not an Ed25519 key")
