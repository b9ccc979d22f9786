"""``audit verify``: is the record what was sealed, and does everything else follow from it?

Owns the chain of checkpoints, the rows that each covers, and what becomes one finding. Each job's history is
``histories``', what a checkpoint says is ``checkpoint``'s, and the bytes of a row are ``lines``'. Writes nothing, and
reads each table once, in bounded memory: the checkpoints in order, beside them the rows that they cover, then the jobs.

One change is one finding. Of a checkpoint and its surroundings (the hash beside it, and the next one, which names it)
the one that disagrees with the others is to blame; and a segment whose rows differ is told as the row, where a job's
history shows which it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, TypeAlias
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database, guards
from tracker.audit import histories, lines
from tracker.audit.checkpoint import PublicKey, Segment, Signed, parse
from tracker.audit.findings import LONGEST_LIST, Finding, KeyUse, Report, Source, What
from tracker.audit.histories import Suspicion, instant
from tracker.audit.seal import MOST
from tracker.errors import DatabaseUnavailable, Refused
from tracker.models import UtcDateTime
from tracker.reports import views

DAY = timedelta(days=1)
"""A daemon seals every few minutes: rows that have waited for so long, as has the last seal, are nobody's care."""
SLACK = timedelta(hours=1)
"""How much older than a checkpoint an observation recorded after it may say it is: an answer is written within seconds,
or within minutes where the database was away. Ours."""

_TABLES: Final = {"source": "sources", "gap": "gaps", "transition": "transitions"}
_TIMES: Final = {"source": "recorded_at", "gap": "ended_at", "transition": "observed_at"}
_LAST: Final = {"source": "last_source_id", "gap": "last_gap_id", "transition": "last_transition_id"}
_LOWEST: Final = -(1 << 63)
_FEW_SEGMENTS: Final = 100  # that are compared with each other

_SEALS = (
    "SELECT id, last_transition_id, last_gap_id, last_source_id, rows, previous_sha256, checkpoint, checkpoint_sha256,"
    " sealed_at, key_id FROM seals ORDER BY id"
)
_SEGMENTS = "SELECT seal_id, part, cluster, rows, sha256 FROM segments ORDER BY seal_id, part"


def checkpoints(texts: Iterable[str]) -> Iterator[Signed]:
    """Yield the checkpoints in the lines of a file of one or many, separated by empty lines, one in memory at a time.

    Raises:
        Refused: One of them is none; the message names the line.
    """
    text: list[str] = []
    number = 0
    for number, line in enumerate(texts, 1):
        if line.strip():
            text.append(line)
        elif text:
            yield _parsed(text, number - len(text))
            text = []
    if text:
        yield _parsed(text, number - len(text) + 1)


def _parsed(text: list[str], first: int) -> Signed:
    try:
        return parse("".join(text))
    except Refused as error:
        raise Refused(f"the checkpoint that begins at line {first} is none: {error}") from error


@dataclass(slots=True)
class _Seal:
    """A row of seals and what its text says."""

    row: Any
    signed: Signed | None
    sha256: str
    number: int = 0
    is_true: bool = True
    is_early: bool = False  # it stands before its place in the chain

    @property
    def said(self) -> int:
        """The number in its text; 0: it is no checkpoint."""
        return self.signed.checkpoint.number if self.signed else 0

    @classmethod
    def of(cls, row: Any) -> _Seal:
        text = row.checkpoint if isinstance(row.checkpoint, str) else ""
        try:
            signed = parse(text)
        except Refused:
            signed = None
        return cls(row, signed, sha256(text.encode("utf-8", "surrogateescape")).hexdigest())


@dataclass(slots=True)
class _Open:
    """A segment whose rows are being read."""

    segment: Segment
    digest: Any = field(default_factory=sha256)
    rows: int = 0


_Trusted: TypeAlias = dict[int, list[tuple[str, str, bool | None]]]
"""By number, of the checkpoints from outside: SHA-256, origin, and whether the signature is genuine."""

_Lanes: TypeAlias = defaultdict[str, deque[tuple[int, int, _Open]]]
"""By cluster, the segments with rows of one table, in order, each with the first and last id of them."""


@dataclass(frozen=True, slots=True)
class _Stray:
    """A row that is in no segment of its cluster, below the last id of a checkpoint."""

    number: int
    kind: str
    cluster: str
    row_id: int


@dataclass(frozen=True, slots=True)
class _Mismatch:
    """A segment whose rows are not those that were sealed."""

    number: int
    segment: Segment
    rows: int

    def may_lack(self, kind: str, cluster: str, rows: int) -> bool:
        """Whether just so many rows of the kind may have gone from it."""
        ids = getattr(self.segment, _TABLES[kind])
        return ids is not None and self.segment.cluster == cluster and self.segment.rows - self.rows == rows

    def holds(self, row_id: int, kind: str = "transition") -> bool:
        ids: tuple[int, int] | None = getattr(self.segment, _TABLES[kind])
        return ids is not None and ids[0] <= row_id <= ids[1]


@dataclass(slots=True)
class _Stretch:
    """Checkpoints in a row with the same fault are one finding."""

    what: What
    told: str
    first: int = 0
    last: int = 0


def _told(value: object) -> str:
    """Return a value as text that can be written: bytes that are no UTF-8 (`database.lenient`) as ``\\xNN``."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class _Findings:
    """Keeps the first, and counts the rest."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.more = 0

    def add(self, finding: Finding) -> None:
        if len(self.kept) < LONGEST_LIST:
            cluster, jid = (None if name is None else _told(name) for name in (finding.cluster, finding.jid))
            seq = finding.seq if isinstance(finding.seq, int) else None  # SQLite holds any type in any column
            self.kept.append(replace(finding, message=_told(finding.message), cluster=cluster, jid=jid, seq=seq))
        else:
            self.more += 1


class _Chain:
    """The checkpoints in order, and the rows that each covers."""

    def __init__(
        self,
        connection: sa.Connection,
        found: _Findings,
        public_key: PublicKey | None,
        trusted: _Trusted,
        progress: Callable[[int], None],
    ) -> None:
        self._connection = connection
        self._found = found
        self._progress = progress
        self._given = public_key
        self._trusted = dict(trusted)
        self._opened = ExitStack()
        self._streams = {
            kind: self._opened.enter_context(closing(lines.stream(connection, kind, _LOWEST))) for kind in lines.KINDS
        }
        self._ahead: dict[str, tuple[int, str, str] | None] = {k: next(s, None) for k, s in self._streams.items()}
        self._at = dict.fromkeys(lines.KINDS, 0)  # sealed up to these ids
        self._stretches: dict[str, _Stretch] = {}
        self._missing: dict[int, Finding] = {}  # by number
        self._key: PublicKey | None = None  # in force
        self._in_force: set[str] = set()
        self._segments = groupby(self._read(_SEGMENTS), itemgetter(0))
        self._segment_rows: tuple[Any, list[Any]] | None = None
        self._lacking: set[tuple[Any, ...]] = set()  # rows of segments that a seal should have
        self._left: list[Any] = []  # those of no seal
        self.mismatches: list[_Mismatch] = []
        self.strays: list[_Stray] = []
        self.strange: list[_Stray] = []
        self.origin: str | None = None
        self.last: _Seal | None = None
        self.count = 0
        self.unsigned = 0
        self.sealed = 0
        self.unsealed = 0
        self.keys: dict[str, KeyUse] = {}
        self._floor_ids: list[int] = []
        self._floors: list[tuple[int, Any]] = []
        self._rewritten: list[tuple[int, str, str, bool | None]] = []
        self._bind = UtcDateTime().dialect_impl(connection.dialect).bind_processor(connection.dialect)

    def _read(self, query: str) -> Iterator[Any]:
        return self._opened.enter_context(closing(histories.stream(self._connection, query, 500)))

    def close(self) -> None:
        """Let go of what is still being read."""
        self._opened.close()

    @property
    def sealed_up_to(self) -> int:
        """The id of the last transition that is sealed."""
        return self._at["transition"]

    def floor(self, row_id: int) -> tuple[int, Any] | None:
        """Return the newest checkpoint made before the transition was recorded, and the oldest time it can be of."""
        place = bisect_left(self._floor_ids, row_id)
        return self._floors[place - 1] if place else None

    def run(self) -> None:
        before: _Seal | None = None
        seal: _Seal | None = None
        for following in self._in_order():
            if seal is not None:
                before = self._one(before, seal, following)
            seal = following
        if seal is not None:
            self.last = self._one(before, seal, None)
        self._orphans(None)
        self._deleted()
        for finding in self._missing.values():
            self._found.add(finding)
        for stretch in [*self._stretches.values()]:
            self._flush(stretch)
        for kind in lines.KINDS:
            while (ahead := self._ahead[kind]) is not None:
                self.unsealed += 1
                self._look(kind, self.count + 1, *ahead)
                self._ahead[kind] = next(self._streams[kind], None)
        self._end()

    # The checkpoints

    def _in_order(self) -> Iterator[_Seal]:
        """Yield the seals by their ids, but one that was put before its place in that: the others go on without it.

        A database gives ids from 1 up, so that of a checkpoint is its number or, where one was lost, more.
        """
        due, early = 1, dict[int, _Seal]()
        seals = map(_Seal.of, self._read(_SEALS))
        seal = next(seals, None)
        while seal is not None:
            following = next(seals, None)
            is_next = following is not None and following.said == due
            if seal.row.id < seal.said and seal.said > due and is_next and len(early) < LONGEST_LIST:
                seal.is_early = True
                early[seal.said] = seal
            else:
                yield seal
                due = max(due, (seal.said or due) + 1)
                while due in early:
                    yield early.pop(due)
                    due += 1
            seal = following
        yield from early.values()

    def _one(self, before: _Seal | None, seal: _Seal, following: _Seal | None) -> _Seal:
        """Check one checkpoint, whose neighbours are given, and return the newest of the chain so far."""
        self.count += 1
        due = before.number + 1 if before else 1
        said = seal.said or due
        votes = [seal.row.checkpoint_sha256]
        if following is not None and following.said in (0, said + 1, due + 1):
            votes.append(following.row.previous_sha256)
            if following.signed is not None:
                votes.append(following.signed.checkpoint.previous_sha256)
        agreeing = votes.count(seal.sha256)
        seal.is_true = seal.signed is not None and agreeing * 2 > len(votes)
        # A text alone with a hash that is not its own, or one vote against another, as where the next row is rubbish: a
        # genuine signature by the key in force says that it is not the text that is to blame.
        if seal.signed is not None and (agreeing * 2 == len(votes) or (len(votes) == 1 and not agreeing)):
            key = seal.signed.checkpoint.key
            seal.is_true = key is not None and self._key in (None, key) and seal.signed.is_genuine() is True
        faults: list[tuple[What, str]] = []
        if not seal.is_true:
            seal.number = due
            seal.sha256 = Counter(votes).most_common(1)[0][0] or seal.sha256
            kept = "beside it" if len(votes) == 1 else "beside it and in the next one"
            why = "is no checkpoint" if seal.signed is None else f"does not have the hash that is kept {kept}"
            faults.append((What.CHECKPOINT, f"its text was changed: it {why}; what it covers cannot be checked"))
            is_in_order = True
            if seal.signed is not None and seal.signed.checkpoint.next_key is not None:
                self._key = seal.signed.checkpoint.next_key  # or all that follow would be findings, too
        else:
            assert seal.signed is not None  # noqa: S101 - a text that is no checkpoint is not true
            is_in_order = self._place(before, seal, said, due, faults)
            faults += self._columns(seal)
            self._signature(seal)
        self._compare_trusted(seal)
        if is_in_order:
            differing = self._rows(seal)
            if seal.is_true:
                self._compare_segments(seal, differing, faults)
        if faults:
            what, told = faults[0][0], "; ".join(fault for _, fault in faults)
            self._found.add(
                Finding(
                    what, f"checkpoint {seal.number}: {told}", checkpoint=seal.number, table="seals", row_id=seal.row.id
                )
            )
        return seal if is_in_order else before or seal

    def _place(self, before: _Seal | None, seal: _Seal, said: int, due: int, faults: list[tuple[What, str]]) -> bool:
        """Check that *seal* follows on the one before it; return whether it stands in order."""
        assert seal.signed is not None  # noqa: S101 - the caller's condition
        checkpoint = seal.signed.checkpoint
        seal.number = said
        if seal.is_early:
            faults.append((What.CHAIN, "its row stands before those of checkpoints before it: out of order"))
        if said < due:
            self._missing.pop(said, None)
            faults.append((What.CHAIN, f"it stands after checkpoint {due - 1}: double, or out of order"))
            return False
        if said > due:
            gone = f"checkpoint {due} is" if said == due + 1 else f"checkpoints {due} to {said - 1} are"
            lost = [
                f"{_TABLES[kind]} {self._at[kind] + 1} to {begin}"
                for kind, (begin, _) in _ranges(seal.signed).items()
                if begin > self._at[kind]
            ]
            covered = f"; nothing covers {', '.join(lost)}" if lost else ""
            message = f"{gone} missing: the next is {said}{covered}"
            self._missing[due] = Finding(What.CHAIN, message, checkpoint=due, table="seals")
        elif checkpoint.previous_sha256 != (before.sha256 if before else None):
            name = f"checkpoint {due - 1}" if before else "nothing"
            faults.append((What.CHAIN, f"it does not follow on {name}, by the hash that it names"))
        if self.origin is None:
            self.origin = checkpoint.origin
        elif self.origin != checkpoint.origin:
            faults.append((What.CHAIN, f"it is of another chain: its origin is {checkpoint.origin}, not {self.origin}"))
        if said == due:
            for kind, (begin, _) in _ranges(seal.signed).items():
                if begin != self._at[kind]:
                    told = f"its {_TABLES[kind]} begin after {begin}, and those before it end with {self._at[kind]}"
                    faults.append((What.CHAIN, told))
        return True

    def _columns(self, seal: _Seal) -> list[tuple[What, str]]:
        """Compare the columns beside the text with it."""
        assert seal.signed is not None  # noqa: S101 - the caller's condition
        checkpoint, row = seal.signed.checkpoint, seal.row
        right: dict[str, object] = {_LAST[kind]: upto for kind, (_, upto) in _ranges(seal.signed).items()}
        right |= {
            "rows": checkpoint.rows,
            "previous_sha256": checkpoint.previous_sha256,
            "checkpoint_sha256": seal.sha256,
            "key_id": checkpoint.key.id if checkpoint.key else None,
        }
        wrong = [name for name, value in right.items() if getattr(row, name) != value]
        if not _is_at(row.sealed_at, checkpoint.sealed_at):
            wrong.append("sealed_at")
        told = f"its text is right, and beside it in the row of seals differs: {', '.join(wrong)}"
        return [(What.CHECKPOINT, told)] if wrong else []

    def _signature(self, seal: _Seal) -> None:
        """Check who signed, and keep the key that is right for the next one."""
        assert seal.signed is not None  # noqa: S101 - the caller's condition
        key, next_key = seal.signed.checkpoint.key, seal.signed.checkpoint.next_key
        number = seal.number
        if key is None:
            self.unsigned += 1
        else:
            use = self.keys.get(key.id)
            self.keys[key.id] = KeyUse(key.id, use.first if use else number, number)
        is_good = key is not None and seal.signed.is_genuine() is True
        is_unsigned = key is None and self._key is not None
        self._mark(What.SIGNATURE, "unsigned", is_unsigned, number, "not signed, though those before are")
        self._mark(What.SIGNATURE, "bad", key is not None and not is_good, number, "bad signature")
        if not is_good or key is None:
            return
        if self._key is None:
            self._key = key
            self._in_force.add(key.id)
        is_other = key.id != self._key.id
        told = f"signed with key {key.id}, and by those before it the right key is {self._key.id}"
        self._mark(What.KEY, "key", is_other, number, told)
        if next_key is not None and not is_other:
            self._key = next_key
            self._in_force.add(next_key.id)

    def _mark(self, what: What, name: str, is_wrong: bool, number: int, told: str) -> None:
        stretch = self._stretches.get(name)
        if is_wrong and stretch is None:
            self._stretches[name] = _Stretch(what, told, number, number)
        elif is_wrong and stretch is not None:
            stretch.last = number
        elif stretch is not None:
            self._flush(stretch)
            del self._stretches[name]

    def _flush(self, stretch: _Stretch) -> None:
        to = f" to {stretch.last}" if stretch.last > stretch.first else ""
        message = f"checkpoint {stretch.first}{to}: {stretch.told}"
        self._found.add(Finding(stretch.what, message, checkpoint=stretch.first, table="seals"))

    def _compare_trusted(self, seal: _Seal) -> None:
        """Remember which trusted checkpoint of this number is not this one."""
        other = next((told for told in self._trusted.pop(seal.number, []) if told[0] != seal.sha256), None)
        if other is not None:
            self._rewritten.append((seal.number, *other))

    # The rows that a checkpoint covers

    def _rows(self, seal: _Seal) -> set[int]:
        """Read the rows that *seal* covers; return the parts whose rows differ from its text."""
        if seal.signed is not None and seal.is_true:
            ranges, segments = _ranges(seal.signed), seal.signed.checkpoint.segments
        else:  # the columns are all that is left
            last = {kind: getattr(seal.row, _LAST[kind]) for kind in lines.KINDS}
            ranges = {kind: (at, last[kind] if isinstance(last[kind], int) else at) for kind, at in self._at.items()}
            segments = ()
        opened = [_Open(segment) for segment in segments]
        for kind in lines.KINDS:
            after, upto = ranges[kind]
            lanes: _Lanes = defaultdict(deque)
            for each in opened:
                ids: tuple[int, int] | None = getattr(each.segment, _TABLES[kind])
                if ids is not None:
                    lanes[each.segment.cluster].append((*ids, each))
            # A row before the range belongs to a checkpoint that is missing, but for the first: to none.
            self._take(kind, seal, lanes, after if seal.number > 1 else _LOWEST, upto)
            self._at[kind] = max(self._at[kind], upto)
        # One that is full has left rows to the next, which are as old as its own.
        if seal.is_true and seal.signed is not None and seal.signed.checkpoint.rows < MOST:
            floor = seal.signed.checkpoint.sealed_at - SLACK
            self._floor_ids.append(self._at["transition"])
            self._floors.append((seal.number, self._bind(floor) if self._bind else floor))
        differing = set()
        for each in opened:
            if (each.rows, each.digest.hexdigest()) != (each.segment.rows, each.segment.sha256):
                differing.add(each.segment.part)
                if len(self.mismatches) < LONGEST_LIST:
                    self.mismatches.append(_Mismatch(seal.number, each.segment, each.rows))
                else:
                    self._found.more += 1
        return differing

    def _take(self, kind: str, seal: _Seal, lanes: _Lanes, after: int, upto: int) -> None:
        """Read the rows of *kind* up to the id *upto* into their segments, and keep those that are in none."""
        stream, ahead = self._streams[kind], self._ahead[kind]
        taken = 0
        while ahead is not None and ahead[0] <= upto:
            row_id, cluster, line = ahead
            taken += 1
            self._look(kind, seal.number, row_id, cluster, line)
            if row_id > after:
                segments = lanes[cluster]
                while segments and segments[0][1] < row_id:
                    segments.popleft()
                if segments and segments[0][0] <= row_id:
                    opened = segments[0][2]
                    opened.digest.update(line.encode())
                    opened.rows += 1
                elif seal.is_true and cluster:  # "": of a job that is gone, which its history tells
                    if len(self.strays) < LONGEST_LIST:
                        self.strays.append(_Stray(seal.number, kind, cluster, row_id))
                    else:
                        self._found.more += 1
            ahead = next(stream, None)
        self._ahead[kind] = ahead
        self.sealed += taken
        self._progress(self.sealed)

    def _look(self, kind: str, number: int, row_id: int, cluster: str, line: str) -> None:
        """Keep a row with a value that no honest program stores: sealed so, or not sealed yet."""
        if lines.is_strange(line):
            if len(self.strange) < LONGEST_LIST:
                self.strange.append(_Stray(number, kind, cluster, row_id))
            else:
                self._found.more += 1

    def _compare_segments(self, seal: _Seal, differing: set[int], faults: list[tuple[What, str]]) -> None:
        """Compare the rows of ``segments`` with the text; a part whose rows differ is told already."""
        assert seal.signed is not None  # noqa: S101 - the caller's condition
        self._orphans(seal.row.id)
        current = self._segment_rows
        there = {}
        if current is not None and current[0] == seal.row.id:
            there = {row.part: (row.cluster, row.rows, row.sha256) for row in current[1]}
            self._segment_rows = None
        right = {s.part: (s.cluster, s.rows, s.sha256) for s in seal.signed.checkpoint.segments}
        self._lacking.update((p, *right[p]) for p in right.keys() - there.keys())
        parts = there.keys() | right.keys()
        wrong = sorted((p for p in parts if there.get(p) != right.get(p) and p not in differing), key=_order)
        if wrong:
            shown = ", ".join(map(str, wrong[:10])) + (" …" if len(wrong) > 10 else "")
            faults.append((What.SEGMENTS, f"the rows of segments (part {shown}) differ from its text"))

    def _orphans(self, seal_id: int | None) -> None:
        """Pass over the rows of ``segments`` of seals before *seal_id*; those of no seal are a deleted one's."""
        while True:
            if self._segment_rows is None:
                group = next(self._segments, None)
                if group is None:
                    return
                self._segment_rows = group[0], list(group[1])
            if seal_id is not None and _order(self._segment_rows[0]) >= _order(seal_id):
                return
            (left, rows), self._segment_rows = self._segment_rows, None
            if not self._missing and len(self._left) < LONGEST_LIST and not self._is_seal(left):
                self._left += rows

    def _deleted(self) -> None:
        """Tell of rows of ``segments`` whose seal is not there, once, unless a seal that is there lacks them."""
        left = [row for row in self._left if (row.part, row.cluster, row.rows, row.sha256) not in self._lacking]
        if left:
            seal_id = left[0].seal_id
            message = f"the segments of the seal with id {seal_id} are there, and the seal is not: it was deleted"
            row_id = seal_id if isinstance(seal_id, int) else None
            self._found.add(Finding(What.CHAIN, message, table="segments", row_id=row_id))

    def _is_seal(self, seal_id: object) -> bool:
        query = sa.text("SELECT 1 FROM seals WHERE id = :id")
        return isinstance(seal_id, int) and self._connection.execute(query, {"id": seal_id}).first() is not None

    # What the chain comes to

    def _end(self) -> None:
        left = [(number, *known) for number, listed in self._trusted.items() for known in listed]
        foreign = [one for one in [*self._rewritten, *left] if self.origin not in (None, one[2])]
        forged = "; but its own signature is bad: was the file with it forged?"
        if foreign:
            number, _, origin, genuine = foreign[0]
            rest = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
            message = (
                f"checkpoint {number} is trusted, and is of another chain{rest}: its origin is {origin}, here it is"
                f" {self.origin}: is the file another database's, or was all of this one sealed anew?"
            )
            self._found.add(Finding(What.TRUSTED, message + forged * (genuine is False), checkpoint=number))
        rewritten = [one for one in self._rewritten if one not in foreign]
        if rewritten:
            number, sha, _, genuine = rewritten[0]
            rest = f" (nor are {len(rewritten) - 1} after it)" if len(rewritten) > 1 else ""
            message = f"checkpoint {number} is not the trusted one{rest}: that has the SHA-256 {sha}"
            self._found.add(Finding(What.TRUSTED, message + forged * (genuine is False), checkpoint=number))
        missing = [one[0] for one in left if one not in foreign]
        if missing:
            number = max(missing)
            newest = self.last.number if self.last else 0
            if number > newest:
                lost = f"the chain ends with {newest}: what came after was cut off, or an old copy restored"
            else:
                lost = "it is missing here"
            if not (number <= newest and self._missing):
                self._found.add(Finding(What.TRUSTED, f"checkpoint {number} is trusted, and {lost}", checkpoint=number))
        if self._given is not None and self.count and self._given.id not in self._in_force:
            shown = ", ".join(self.keys) or "none"
            message = f"no checkpoint is signed with the given key {self._given.id}: they are with {shown}"
            self._found.add(Finding(What.KEY, message))

    def overdue(self, now: datetime) -> None:
        """Tell if rows have waited too long for a seal."""
        if not self.unsealed:
            return
        if self.last is not None and self.last.signed and now - self.last.signed.checkpoint.sealed_at <= DAY:
            return
        oldest: list[datetime] = []
        for kind, table in _TABLES.items():
            query = sa.text(f"SELECT min({_TIMES[kind]}) FROM {table} WHERE id > :last")
            at = _shown(self._connection.execute(query, {"last": self._at[kind]}).scalar())
            oldest += [at] if at else []
        if oldest and now - min(oldest) > DAY:
            since = "ever" if self.last is None else f"since checkpoint {self.last.number}"
            message = (
                f"{self.unsealed} rows, the oldest of {min(oldest)}, wait for a seal, and none was made {since}:"
                " does a daemon run?"
            )
            self._found.add(Finding(What.UNSEALED, message))


def _ranges(signed: Signed) -> dict[str, tuple[int, int]]:
    checkpoint = signed.checkpoint
    return {"source": checkpoint.sources, "gap": checkpoint.gaps, "transition": checkpoint.transitions}


def _order(value: Any) -> tuple[int, Any]:
    """Return what sorts a value as SQLite does, which holds any type in any column."""
    if value is None:
        return 0, 0
    return (1, value) if isinstance(value, (int, float)) else (2, str(value))


def _ids(rows: list[_Stray]) -> str:
    return ", ".join(str(row.row_id) for row in rows[:5]) + (" …" if len(rows) > 5 else "")


def _is_at(value: object, at: datetime) -> bool:
    try:
        return instant(value) == at
    except ValueError:
        return False


def _view_problems(connection: sa.Connection) -> list[str]:
    """Return what is wrong with the views; on PostgreSQL by way of temporary ones, which are taken back."""
    if connection.dialect.name == "sqlite":
        return views.problems(connection)
    if connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "off":
        with connection.begin_nested() as point:
            found = views.problems(connection)
            point.rollback()
        return found
    with connection.engine.connect() as other:  # a reader may not make even temporary ones
        found = views.problems(other)
        other.rollback()
    return found


def _given(connection: sa.Connection, table: str) -> int | None:
    """Return the last id that *table* gave, by its counter; None if our role may not look."""
    if connection.dialect.name == "sqlite":
        query = sa.text("SELECT seq FROM sqlite_sequence WHERE name = :name")
        return int(connection.execute(query, {"name": table}).scalar() or 0)
    query = sa.text(
        "SELECT s FROM pg_get_serial_sequence(quote_ident(current_schema()) || '.' || :name, 'id') s"
        " WHERE has_sequence_privilege(s, 'SELECT')"
    )
    sequence = connection.execute(query, {"name": table}).scalar()
    if sequence is None:
        return None
    statement = f"SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM {sequence}"
    return int(connection.exec_driver_sql(statement.replace("%", "%%")).scalar_one())


def _sequences(connection: sa.Connection, found: _Findings) -> None:
    """Tell of each counter of ids that does not fit its table."""
    for table in ("transitions", "gaps", "sources", "seals"):
        newest = connection.exec_driver_sql(f"SELECT max(id) FROM {table}").scalar() or 0
        given = _given(connection, table)
        if given is not None and given < newest:
            why = f"its counter of ids stands at {given}, and its newest row has {newest}: it was set back"
        # SQLite takes an id back with the transaction that asked for it; PostgreSQL does not.
        elif given is not None and given > newest and connection.dialect.name == "sqlite":
            why = f"it has given ids up to {given}, and its newest row has {newest}: rows were deleted at its end"
        else:
            continue
        found.add(Finding(What.SEQUENCE, f"table {table}: {why}", table=table, row_id=newest))


def _sources(connection: sa.Connection, read: histories.Histories, telling: _Telling) -> list[Source]:
    """Return every source with its use, and tell of those that are used and not there."""
    listed = []
    used = dict(read.sources)
    query = "SELECT id, cluster, base_url, path, recorded_at FROM sources ORDER BY id"
    for row in connection.exec_driver_sql(query):
        use = used.pop(row.id, None)
        times = (_shown(use.first_at), _shown(use.last_at)) if use else (None, None)
        listed.append(
            Source(
                row.id,
                _told(row.cluster),
                _told(row.base_url),
                _told(row.path),
                _shown(row.recorded_at),
                use.transitions if use else 0,
                *times,
            )
        )
    for source_id, use in used.items():
        telling.source(source_id, use)
    return listed


def _shown(value: object) -> datetime | None:
    try:
        return instant(value)
    except ValueError:
        return None


class _Telling:
    """Makes findings of segments whose rows differ and of jobs that do not fit, each change once."""

    def __init__(self, connection: sa.Connection, chain: _Chain, found: _Findings) -> None:
        self._connection = connection
        self._found = found
        self._sealed = chain.sealed_up_to
        self._open = list(chain.mismatches)  # what nothing explains yet
        self._mismatches = chain.mismatches
        self._strays = chain.strays
        self._strange = chain.strange

    def _explain(self, mismatches: Iterable[_Mismatch]) -> None:
        self._open = [mismatch for mismatch in self._open if mismatch not in mismatches]

    def suspicion(self, suspicion: Suspicion) -> None:
        """Tell of a job that does not fit: as its transition, where a segment says that this was changed."""
        finding, missing = suspicion.finding, suspicion.missing
        known = {row_id for row_id, _ in suspicion.rows}
        self._strays = [stray for stray in self._strays if stray.kind != "transition" or stray.row_id not in known]
        self._strange = [each for each in self._strange if each.kind != "transition" or each.row_id not in known]
        held: list[tuple[int, int]] = []
        causes = []
        for mismatch in self._mismatches:
            if finding.cluster not in (None, mismatch.segment.cluster):
                continue
            here = [row for row in suspicion.rows if mismatch.holds(row[0])]
            ids = mismatch.segment.transitions
            # Between two rows that are there, a row is missing or became another; beyond them only fewer rows tell.
            is_missing = (
                missing is not None
                and ids is not None
                and missing[0] < ids[1]
                and ids[0] < missing[1]
                and (mismatch.rows < mismatch.segment.rows or (missing[0] > _LOWEST and missing[1] < -_LOWEST - 1))
            )
            if here or is_missing:
                causes.append(mismatch)
                held += [] if is_missing else here
        if causes:
            self._explain(causes)
            number, part = causes[0].number, causes[0].segment.part
            message = f"{finding.message} (segment {part} of checkpoint {number} shows it too)"
            finding = replace(finding, checkpoint=number, segment=part)
            if finding.what is What.HISTORY and finding.table == "jobs":
                pass  # without a job or without a history: that says it all
            elif held:
                row_id, seq = next(row for row in suspicion.rows if row in held)
                message += f": transition {seq} (id {row_id}) is not what was sealed"
                finding = replace(finding, what=What.HISTORY, table="transitions", row_id=row_id, seq=seq)
            elif finding.what is What.JOB:
                seq = max(row[1] for row in suspicion.rows) + 1
                message += f": transition {seq} is missing"
                finding = replace(finding, what=What.HISTORY, table="transitions", row_id=None, seq=seq)
            finding = replace(finding, message=message)
        self._found.add(finding)

    def strays(self) -> None:
        """Tell of rows that are in no segment, once for each job, with the segments that lack them."""
        jobs: dict[tuple[str, int], list[_Stray]] = {}
        for stray in self._strays:
            jobs.setdefault((stray.kind, self._job_of(stray)), []).append(stray)
        for (kind, key), strays in jobs.items():
            first = strays[0]
            jid = None
            if kind == "transition":
                query = sa.text("SELECT CAST(jid AS text) FROM jobs WHERE id = :id")
                jid = self._connection.execute(query, {"id": key}).scalar()
            lacking = [
                mismatch
                for mismatch in self._open
                if mismatch.rows < mismatch.segment.rows
                and any(mismatch.number == s.number and mismatch.holds(s.row_id, s.kind) for s in strays)
            ]
            moved = None
            if not lacking and first.row_id <= 0:  # which is no id that a database gives
                moved = next((m for m in self._open if m.may_lack(kind, first.cluster, len(strays))), None)
                lacking = [moved] if moved else []
            self._explain(lacking)
            of = f" of job {jid}" if jid else ""
            was = f"its cluster was {lacking[0].segment.cluster}" if lacking else "added since"
            if moved is not None:
                was = f"it was in segment {moved.segment.part} of checkpoint {moved.number}, with another id"
            message = (
                f"checkpoint {first.number}: {_TABLES[kind]}{of} with id {_ids(strays)}: in no segment of cluster"
                f" {first.cluster}, and so not there when it was sealed: {was}"
            )
            self._found.add(
                Finding(What.ROWS, message, first.number, None, _TABLES[kind], first.row_id, first.cluster, jid)
            )

    def source(self, source_id: object, use: histories.Use) -> None:
        """Tell of a source that is used and not there, with the segments of which that changed a row."""
        row_id = source_id if isinstance(source_id, int) else None
        held = [m for m in self._mismatches if row_id is not None and m.holds(row_id, "source")]
        if held and not any(mismatch in self._open for mismatch in held):
            return  # what became of it is told
        causes = held or [m for m in self._open if use.transitions == 1 and m.holds(use.row_id)]
        message = f"{use.transitions} transitions name the source {source_id}, which is not there"
        number, part = (causes[0].number, causes[0].segment.part) if causes else (None, None)
        if causes:
            self._explain(causes)
            message += f" (segment {part} of checkpoint {number} shows it too)"
        self._strange = [each for each in self._strange if (each.kind, each.row_id) != ("transition", use.row_id)]
        self._found.add(Finding(What.SOURCE, message, number, part, "sources", row_id, use.cluster))

    def strange(self) -> None:
        """Tell of rows with a value that no honest program stores, where nothing else does: they were sealed so."""
        told: dict[tuple[str, Any], list[_Stray]] = {}
        for row in self._strange:
            if not any(mismatch.holds(row.row_id, row.kind) for mismatch in self._mismatches):
                told.setdefault((row.kind, self._job_of(row)), []).append(row)
        for (kind, _), rows in told.items():
            table, row_id = _TABLES[kind], rows[0].row_id
            message = (
                f"{table} with id {_ids(rows)}: a value in the row, or in its job's, is of another type or form than"
                " tracker writes"
            )
            self._found.add(Finding(What.ROWS, message, None, None, table, row_id, rows[0].cluster or None))

    def _job_of(self, row: _Stray) -> Any:
        """Return the id of a transition's job; of another row its own."""
        if row.kind != "transition":
            return row.row_id
        query = sa.text("SELECT job_id FROM transitions WHERE id = :id")
        return self._connection.execute(query, {"id": row.row_id}).scalar_one()

    def segments(self) -> None:
        """Tell of the segments that nothing explains; of several of one cluster as one, where one job explains them."""
        by_cluster: dict[str, list[_Mismatch]] = {}
        for mismatch in self._open:
            by_cluster.setdefault(mismatch.segment.cluster, []).append(mismatch)
        for cluster, mismatches in by_cluster.items():
            jobs = self._in_each(cluster, mismatches) if 1 < len(mismatches) <= _FEW_SEGMENTS else []
            if jobs:
                first = mismatches[0]
                where = ", ".join(f"{m.number}/{m.segment.part}" for m in mismatches)
                shown = ", ".join(map(str, jobs[:5])) + (" …" if len(jobs) > 5 else "")
                message = (
                    f"segments {where} (checkpoint/segment, cluster {cluster}): their rows are not those that were"
                    f" sealed; in each of them, and in no other, are rows of job {shown}: was its jid changed?"
                )
                jid = jobs[0] if len(jobs) == 1 else None
                part = first.segment.part
                self._found.add(Finding(What.ROWS, message, first.number, part, "jobs", None, cluster, jid))
                continue
            for mismatch in mismatches:
                self._segment(mismatch)

    def _segment(self, mismatch: _Mismatch) -> None:
        segment = mismatch.segment
        tables = {"sources": segment.sources, "gaps": segment.gaps, "transitions": segment.transitions}
        covered = [f"{name} {ids[0]} to {ids[1]}" for name, ids in tables.items() if ids]
        lacking = segment.rows - mismatch.rows
        if lacking:
            how = f"{abs(lacking)} {'missing' if lacking > 0 else 'too many'}"
        else:
            how = "as many, but changed or in another order"
        message = (
            f"checkpoint {mismatch.number}, segment {segment.part} (cluster {segment.cluster}; {', '.join(covered)}):"
            f" its rows are not those that were sealed: {how}"
        )
        self._found.add(Finding(What.ROWS, message, mismatch.number, segment.part, None, None, segment.cluster))

    def _in_each(self, cluster: str, mismatches: list[_Mismatch]) -> list[str]:
        """Return the jids of the jobs that have rows in each of these segments, and in no other one."""
        query = sa.text(
            "SELECT DISTINCT t.job_id FROM transitions t JOIN jobs j ON j.id = t.job_id"
            " WHERE t.id BETWEEN :first AND :last AND j.cluster = :cluster"
        )
        common: set[int] | None = None
        for mismatch in mismatches:
            if mismatch.segment.transitions is None or mismatch.rows != mismatch.segment.rows:
                return []
            first, last = mismatch.segment.transitions
            values = {"first": first, "last": last, "cluster": cluster}
            found = set(self._connection.execute(query, values).scalars())
            common = found if common is None else common & found
        rows = sa.text(
            "SELECT t.id, CAST(j.jid AS text) AS jid FROM transitions t JOIN jobs j ON j.id = t.job_id"
            " WHERE t.job_id = :id"
        )
        jids = []
        for job_id in sorted(common or ()):
            there = self._connection.execute(rows, {"id": job_id}).all()
            sealed = [row.id for row in there if row.id <= self._sealed]
            if all(any(mismatch.holds(row_id) for mismatch in mismatches) for row_id in sealed):
                jids.append(there[0].jid)
        return jids


def verify(
    connection: sa.Connection,
    *,
    public_key: PublicKey | None = None,
    trusted: Iterable[Signed] = (),
    zone: ZoneInfo | None = None,
    now: datetime | None = None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Report:
    """Check the whole record, and return what was found.

    Args:
        connection: In a transaction that sees one state of the database (`database.reading`).
        public_key: The right one, from somebody else; it, or one that it named or that named it, has signed the chain.
            None: any key that the checkpoints name will do, if each change of keys was announced.
        trusted: Checkpoints that were kept outside: the chain must have them.
        zone: The legal time zone: the jobs' deadlines are computed anew; None: they are not looked at.
        now: For the age of what is not sealed; None: the database's time.
        progress: Is told now and then (phase, rows done, rows in all).

    Raises:
        DatabaseUnavailable, BadConfiguration: The database cannot be read.
    """
    known: _Trusted = {}
    count = 0
    for signed in trusted:
        count += 1
        told = (signed.sha256, signed.checkpoint.origin, signed.is_genuine())
        of_number = known.setdefault(signed.checkpoint.number, [])
        if told not in of_number:
            of_number.append(told)
    read = partial(_verified, connection, public_key, known, count, zone, now, progress)
    refused: type[Exception] = DatabaseUnavailable if connection.dialect.name == "sqlite" else sa.exc.DataError
    try:
        return read()
    except refused:
        # The driver met a value that it cannot hold: where that is, and what else there is, is still to be told.
        with database.lenient(connection):
            return read()


def _verified(
    connection: sa.Connection,
    public_key: PublicKey | None,
    trusted: _Trusted,
    trusted_count: int,
    zone: ZoneInfo | None,
    now: datetime | None,
    progress: Callable[[str, int, int], None],
) -> Report:
    found = _Findings()
    for line in guards.problems(connection):
        found.add(Finding(What.GUARD, line))
    for line in _view_problems(connection):
        found.add(Finding(What.VIEW, line))
    # About the number of rows, for the progress: a count would read the table once more.
    about = sum(connection.exec_driver_sql(f"SELECT max(id) FROM {t}").scalar() or 0 for t in _TABLES.values())
    chain = _Chain(connection, found, public_key, trusted, lambda done: progress("what is sealed", done, about))
    with closing(chain):
        chain.run()
    chain.overdue(now or database.now(connection))
    suspicions: list[Suspicion] = []
    elsewhere: list[Suspicion] = []  # deadlines that may have been computed in another zone
    others = 0

    def suspect(suspicion: Suspicion) -> None:
        nonlocal others
        others += suspicion.is_zonal
        kept = elsewhere if suspicion.is_zonal else suspicions
        if len(kept) < LONGEST_LIST:
            kept.append(suspicion)
        elif not suspicion.is_zonal:
            found.more += 1

    read = histories.read(
        connection,
        suspect,
        floor=chain.floor,
        zone=zone,
        progress=lambda done: progress("histories of jobs", done, about),
    )
    if zone is not None and others > 1 and 2 * others > read.deadlines:
        message = (
            f"the deadlines were not computed in the zone {zone.key} (setting timezone): {others} of {read.deadlines}"
            f" differ by less than a week, the first: {elsewhere[0].finding.message}. Set TRACKER_TIMEZONE to the"
            " record's own zone: what differs then is told one by one"
        )
        suspicions.append(Suspicion(Finding(What.JOB, message, table="jobs")))
    else:
        suspicions += elsewhere
        found.more += others - len(elsewhere)
    telling = _Telling(connection, chain, found)
    for suspicion in suspicions:
        telling.suspicion(suspicion)
    telling.strays()
    sources = _sources(connection, read, telling)
    telling.strange()
    telling.segments()
    if not any(finding.what in (What.ROWS, What.HISTORY, What.JOB, What.SOURCE, What.CHAIN) for finding in found.kept):
        _sequences(connection, found)
    order = list(What)
    last = chain.last
    return Report(
        findings=sorted(found.kept, key=lambda finding: order.index(finding.what)),
        more=found.more,
        jobs=read.jobs,
        transitions=read.transitions,
        sealed=chain.sealed,
        unsealed=chain.unsealed,
        checkpoints=chain.count,
        unsigned=chain.unsigned,
        origin=chain.origin,
        number=last.number if last else None,
        sha256=_told(last.sha256) if last else None,
        sealed_at=last.signed.checkpoint.sealed_at if last and last.signed else None,
        trusted=trusted_count,
        keys=list(chain.keys.values()),
        sources=sources,
    )
