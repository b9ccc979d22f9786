"""``audit verify``: is the record what was sealed, and is every history possible?

Owns the check of the chain and of the rows that each checkpoint closes. ``checks`` finds impossible histories; guards,
views and rights are checked in their own rooms. Writes nothing. Reads each sealed row once, in bounded memory.

A finding names the checkpoint, the segment or the job, never a row inside a segment. One change may give several
findings. A segment is reported only where its checkpoint is certain: its signature is valid or, without a signature,
the next checkpoint confirms it. So a changed checkpoint accuses no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import chain, pairwise
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database, guards
from tracker.audit import checks, lines, roles
from tracker.audit.checkpoint import Checkpoint, SealedSegment, Signed, parse
from tracker.audit.findings import LONGEST_LIST, AskedServer, AuditFinding, FindingKind, Report, printable
from tracker.audit.keys import PublicKey
from tracker.audit.lenient import lenient
from tracker.audit.lines import TABLES
from tracker.audit.seal import WRITTEN, columns
from tracker.errors import BadCheckpoint
from tracker.reports import views

LONGEST_WAIT: Final = timedelta(days=1)  # a daemon seals every hour, so rows that wait this long are a finding
Progress = Callable[[float, float | None, str], None]  # is called with what is done, with all there is, and its name
_BAD_INDEXES: Final = """
    SELECT 'index ' || i.indexrelid\\:\\:regclass || ' is not valid, or is a unique index that is not tracker''s'
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    WHERE c.relname IN :tables AND c.relnamespace = quote_ident(current_schema())\\:\\:regnamespace
        AND (NOT (i.indisvalid AND i.indisready AND i.indislive)
            OR i.indisunique AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid))"""


def verify(
    connection: sa.Connection,
    *,
    public_key: PublicKey | None = None,
    trusted: Iterable[Signed] = (),
    zone: ZoneInfo,
    now: datetime | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Report:
    """Check the whole record, and return what was found.

    Args:
        connection: In a transaction that sees one state of the database (`database.reading`).
        public_key: The expected key, from another person. It must have signed a checkpoint of the chain's succession,
            in which each key announces the next. None: accept any succession.
        trusted: Checkpoints that were kept outside: the chain must have them.
        zone: The legal time zone of clusters that have no source yet.
        now: The time by which rows wait too long for a seal; None: the database's time.
    """
    with lenient(connection):
        return _Verification(connection, public_key, trusted, progress).run(zone, now or database.now(connection))


@dataclass(slots=True)
class _SealRow:
    """A row of seals and its checkpoint; *signed* is None if the text is not a checkpoint: *problem* says why."""

    row: Any
    sha256: str
    signed: Signed | None = None
    is_genuine: bool | None = None
    problem: str = ""

    def is_certain(self, following: _SealRow | None) -> bool:
        """Return whether this is what was sealed, by the signature or, without one, by the next checkpoint."""
        if self.signed is None or self.signed.checkpoint.key is not None:
            return self.is_genuine is True
        if following is not None and following.signed is not None:
            return following.signed.checkpoint.previous_sha256 == self.sha256
        return bool(self.row.checkpoint_sha256 == self.sha256)

    def disagreeing(self, signed: Signed) -> list[str]:
        """Return the columns that do not agree with the checkpoint."""
        values = columns(signed) | {"sealed_at": f"{signed.checkpoint.sealed_at:%Y-%m-%d %H:%M:%S.%f}"}
        return [name for name, value in values.items() if getattr(self.row, name) != value]


class _Verification:
    """One run; `run` returns its report."""

    def __init__(
        self, connection: sa.Connection, given: PublicKey | None, trusted: Iterable[Signed], progress: Progress
    ) -> None:
        self._connection = connection
        self._progress = progress
        self._report = Report(is_key_checked=given is not None)
        self._given = given
        # By SHA-256, those that are not found in the chain yet, with the fields that are needed.
        self._trusted = {one.sha256: replace(one.checkpoint, ids={}, segments=(), key=None) for one in trusted}
        self._report.trusted = len(self._trusted)
        self._last: _SealRow | None = None  # the newest that is in order
        self._due = 1  # the number of the next
        self._expected: PublicKey | None = None  # signs the next; None: any, at the start and after a break
        self._succession: list[PublicKey] = []
        self._unexpected: dict[str, list[int]] = {}  # by key id ("": unsigned): the numbers
        self._base = 0  # the id of the seal with the newest base: rows are checked from it on
        self._rows = sum(self._scalar(f"SELECT max(id) FROM {table}") or 0 for table in TABLES)  # about

    def run(self, zone: ZoneInfo, now: datetime) -> Report:
        report, connection = self._report, self._connection
        problems = {
            FindingKind.GUARD: guards.problems,
            FindingKind.VIEW: views.problems,
            FindingKind.RIGHT: roles.problems,
        }
        for what, examine in (problems | {FindingKind.INDEX: _index_problems}).items():
            for line in examine(connection):
                self._find(what, line)
        for one in self._seals("WHERE replace(checkpoint, '\nbase ', '') <> checkpoint"):
            if one.signed is not None and one.signed.checkpoint.base is not None and one.is_genuine is not False:
                self._base = one.row.id
        for seal, following in pairwise(chain(self._seals(), [None])):
            if seal is not None:  # for mypy: only the last is None
                self._check(seal, following)
        self._keys()
        self._outside()
        self._tail(now)
        self._progress(0, None, "histories")
        for finding in checks.findings(connection, zone):
            self._keep(finding)
        report.jobs, report.transitions = (self._scalar(f"SELECT count(*) FROM {t}") for t in ("jobs", "transitions"))
        rows = connection.exec_driver_sql(
            "SELECT cluster, base_url || path, CAST(min(recorded_at) AS text) FROM sources GROUP BY 1, 2 ORDER BY 1, 3"
        )
        report.sources = [AskedServer(*map(printable, row)) for row in rows]
        return report

    def _scalar(self, query: str) -> Any:
        return self._connection.exec_driver_sql(query).scalar()

    def _find(self, what: FindingKind, message: str, checkpoint: int | None = None, segment: str | None = None) -> None:
        place = segment or (f"checkpoint {checkpoint}" if checkpoint else "")
        message = printable(f"{place}: {message}" if place else message)
        self._keep(AuditFinding(what, message, checkpoint, segment))

    def _keep(self, finding: AuditFinding) -> None:
        kept = self._report.notes if finding.is_note else self._report.findings
        if len(kept) < LONGEST_LIST:
            kept.append(finding)
        elif finding.is_note:
            self._report.more_notes += 1
        else:
            self._report.more += 1

    # The chain

    def _seals(self, where: str = "") -> Iterator[_SealRow]:
        """Yield the rows of seals by id; only a few are in memory."""
        at = "sealed_at"
        if self._connection.dialect.name != "sqlite":
            at = "to_char(sealed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
        query = (
            "SELECT id, last_transition_id, last_gap_id, last_source_id, rows, checkpoint, checkpoint_sha256,"
            f" {at} AS sealed_at, key_id FROM seals {where} ORDER BY id"
        )
        options = {"stream_results": True, "max_row_buffer": 100}
        with closing(self._connection.exec_driver_sql(query, execution_options=options)) as rows:
            for row in rows:
                text = str(row.checkpoint)
                seal = _SealRow(row, sha256(text.encode("utf-8", "surrogateescape")).hexdigest())
                try:
                    seal.signed = parse(text)
                    seal.is_genuine = seal.signed.is_genuine()
                except BadCheckpoint as error:
                    seal.problem = str(error)
                yield seal

    def _check(self, seal: _SealRow, following: _SealRow | None) -> None:
        """Check one checkpoint and the rows that it closes."""
        self._report.checkpoints += 1
        if seal.signed is None:
            message = f"its text is damaged ({seal.problem}), so its rows cannot be checked"
            self._find(FindingKind.CHECKPOINT, message, self._due)
            self._due, self._last, self._expected = self._due + 1, seal, None
            return
        one, faults = seal.signed.checkpoint, []
        self._trusted.pop(seal.sha256, None)
        if one.restored_after is not None:
            self._report.restored[one.number] = one.restored_after
        if names := seal.disagreeing(seal.signed):
            faults.append(f"its text does not agree with the columns {', '.join(names)}")
        if one.number < self._due:
            faults.append(f"it comes after checkpoint {self._due - 1}: it is a copy, or out of order")
        else:
            if one.number > self._due:
                others = "" if one.number == self._due + 1 else f", like all up to {one.number - 1}"
                self._find(FindingKind.CHECKPOINT, f"it is missing{others}", self._due)
                self._expected = None
            else:
                faults += self._link(one)
            self._due, self._last = one.number + 1, seal
        self._signature(one, seal.is_genuine)
        if one.base is not None:
            message = f"checkpoint {one.number}: {one.base}"
            self._keep(AuditFinding(FindingKind.CHECKPOINT, message, one.number, is_note=True))
        if seal.row.id < self._base:
            pass  # its rows were removed, or belong to the base
        elif seal.is_certain(following):
            self._segments(seal.row.id, one)
        else:
            faults.append("it may not be what was sealed, so its rows cannot be checked")
        if faults:
            self._find(FindingKind.CHECKPOINT, "; ".join(faults), one.number)

    def _link(self, one: Checkpoint) -> Iterator[str]:
        """Yield each reason why a checkpoint does not follow the one before it."""
        if self._last is None and any(after for after, _ in one.ids.values()):
            yield "it does not begin with the first id"
        if self._last is None or self._last.signed is None:
            return
        before = self._last.signed.checkpoint
        if one.previous_sha256 != self._last.sha256:
            yield f"it states a wrong SHA-256 for checkpoint {before.number}"
        if one.origin != before.origin:
            yield f"its origin is not that of checkpoint {before.number}"
        if one.sealed_at < before.sealed_at:
            yield f"its sealed_at is before that of checkpoint {before.number}"
        if one.base is None and any(one.ids[table][0] != before.ids[table][1] for table in TABLES):
            yield f"its ids do not continue those of checkpoint {before.number}"

    def _signature(self, one: Checkpoint, is_genuine: bool | None) -> None:
        """Check that the right key signed a checkpoint, and remember which key signs the next."""
        if is_genuine is False:
            self._find(FindingKind.KEY, "its signature is false: the text or the signature was changed", one.number)
            self._expected = None
            return
        if one.key is None:
            self._report.unsigned += 1
        else:
            first, _ = self._report.keys.get(one.key.id, (one.number, 0))
            self._report.keys[one.key.id] = first, one.number
        if self._expected not in (None, one.key):
            self._unexpected.setdefault(one.key.id if one.key else "", []).append(one.number)
        elif one.key is not None:
            if one.key not in self._succession[-1:]:
                self._succession.append(one.key)
            self._expected = one.signs_next

    def _keys(self) -> None:
        """Report the keys that no checkpoint announced, and whether the given key is in the succession."""
        for key_id, numbers in self._unexpected.items():
            how = f"it is signed with key {key_id}, which the chain did not announce"
            others = f"; {len(numbers) - 1} more up to checkpoint {numbers[-1]}" if len(numbers) > 1 else ""
            self._find(
                FindingKind.KEY, (how if key_id else "it is not signed, but earlier ones are") + others, numbers[0]
            )
        if self._given is not None and self._given not in self._succession:
            announced = " (it is announced, but has not signed yet)" if self._given == self._expected else ""
            signed = f"key {self._succession[-1].id}" if self._succession else "no key"
            self._find(
                FindingKind.KEY, f"the chain is signed by {signed}, not by the given key {self._given.id}{announced}"
            )

    def _outside(self) -> None:
        """Report the newest checkpoint, and those from outside that are not in the chain."""
        report, head = self._report, self._last.signed if self._last else None
        if head is not None:
            one = head.checkpoint
            report.number, report.sha256, report.sealed_at = one.number, head.sha256, one.sealed_at
        self._lost()
        if not self._trusted:
            return
        number, hash_, origin = min((one.number, hash_, one.origin) for hash_, one in self._trusted.items())
        why = "the chain has another checkpoint in its place, or none"
        if head is None or origin != head.checkpoint.origin:
            why = "it belongs to another database"
        elif number > head.checkpoint.number:
            why = f"the chain ends with {head.checkpoint.number}: its end was cut off, or an older copy was restored"
        more = f" (and {len(self._trusted) - 1} more)" if len(self._trusted) > 1 else ""
        self._find(FindingKind.TRUSTED, f"the trusted one (SHA-256 {hash_}) is not in the chain: {why}{more}", number)

    def _lost(self) -> None:
        """Note which trusted checkpoints the chain names as lost; each lost one names the one before it."""
        for by, last in self._report.restored.items():
            numbers: list[int] = []
            names: list[str | None] = [last]
            while names:
                if (one := self._trusted.pop(names.pop() or "", None)) is not None:
                    numbers.append(one.number)
                    self._report.trusted -= 1
                    names += (one.previous_sha256, one.restored_after)
            which = f", among them the trusted numbers {min(numbers)} to {max(numbers)}" if numbers else ""
            message = f"an older copy was restored; checkpoints up to SHA-256 {last} were lost{which}"
            self._keep(AuditFinding(FindingKind.TRUSTED, f"checkpoint {by} says: {message}", by, is_note=True))

    # The rows

    def _segments(self, seal_id: int, one: Checkpoint) -> None:
        """Check the rows that a checkpoint closes, segment by segment."""
        query = sa.text("SELECT name, part, first_id, last_id, rows, sha256 FROM segments WHERE seal_id = :id")
        found = {(row.name, row.part): row for row in self._connection.execute(query, {"id": seal_id})}
        ranges: dict[str, list[tuple[int, int]]] = {table: [] for table in TABLES}
        uncertain: set[str] = set()  # rows that are in no segment may belong to one that cannot be checked
        for segment in one.segments:
            row = found.pop((segment.name, segment.part), None)
            if row is None or not isinstance(row.first_id, int) or not isinstance(row.last_id, int):
                message = "table segments does not have it, so its rows cannot be checked"
                self._find(FindingKind.SEGMENTS, message, one.number, segment.path(one.number))
            elif self._is_as_sealed(segment, one.number, row):
                ranges[segment.name].append((row.first_id, row.last_id))
                continue
            uncertain.add(segment.name)
        if found:
            self._find(FindingKind.SEGMENTS, f"table segments has {len(found)} more segments than it names", one.number)
        for table in {*TABLES} - uncertain:
            after, upto = one.ids[table]
            if count := self._between(table, after, upto, ranges[table]):
                message = f"rows of {table} with ids from {after + 1} to {upto} that are in no segment: {count}"
                self._find(FindingKind.ROWS, message, one.number)
        self._report.sealed += one.rows

    def _is_as_sealed(self, segment: SealedSegment, number: int, row: Any) -> bool:
        """Check the rows of one segment; return whether they are those that were sealed."""
        path, hash_ = segment.path(number), sha256(lines.header(segment.name))
        first, last, count = None, None, 0
        with closing(lines.stream(self._connection, segment.name, row.first_id - 1, row.last_id)) as rows:
            for last, line in rows:
                first = last if first is None else first
                count += 1
                hash_.update(line)
        digest = hash_.hexdigest()
        is_good = digest == segment.sha256
        is_described = (first, last, count) == (row.first_id, row.last_id, row.rows)
        if row.sha256 != segment.sha256 or (is_good and not is_described):
            message = f"the row in table segments does not agree with checkpoint {number}"
            self._find(FindingKind.SEGMENTS, message, number, path)
        if not is_good and row.sha256 != digest:
            counts = "" if count == row.rows else f" ({row.rows} were sealed, {count} are there)"
            which = f"the rows of {segment.name} with ids from {row.first_id} to {row.last_id}"
            self._find(FindingKind.ROWS, f"{which} are not those that were sealed{counts}", number, path)
        self._progress(self._report.sealed, self._rows, "sealed rows")
        return is_good

    def _between(self, table: str, after: int, upto: int, ranges: list[tuple[int, int]]) -> int:
        """Return how many rows are in the range of a checkpoint but in no segment."""
        count = 0
        for first, last in [*sorted(ranges), (upto + 1, upto + 1)]:
            if first > after + 1:  # missing ids come from rolled-back transactions; or rows were added
                count += self._scalar(f"SELECT count(*) FROM {table} WHERE id > {after} AND id < {first}")
            after = max(after, last)
        return count

    def _tail(self, now: datetime) -> None:
        """Count the rows that are not sealed yet."""
        head = self._last.signed if self._last else None
        for table, (id_, written_at) in WRITTEN.items():
            if count := self._scalar(f"SELECT count(*) FROM {table} WHERE id < 1"):
                self._find(FindingKind.ROWS, f"rows of {table} with an id below 1, which is not possible: {count}")
            is_new = id_ > (head.checkpoint.ids[table][1] if head else 0)
            query = sa.select(sa.func.count(), sa.func.min(written_at) < now - LONGEST_WAIT).where(is_new)
            count, is_late = self._connection.execute(query).one()
            self._report.unsealed += count
            if is_late:
                self._find(
                    FindingKind.UNSEALED, f"rows of {table} that are not sealed, some for longer than a day: {count}"
                )
        if count := self._scalar(f"SELECT count(*) FROM segments WHERE seal_id < {self._base}"):
            self._find(FindingKind.SEGMENTS, f"rows in table segments for checkpoints before the newest base: {count}")
        if count := self._scalar("SELECT count(*) FROM segments WHERE seal_id NOT IN (SELECT id FROM seals)"):
            self._find(FindingKind.SEGMENTS, f"rows of table segments without a checkpoint: {count}")


def _index_problems(connection: sa.Connection) -> list[str]:
    """Return what the database itself finds wrong with its indexes; SQLite also checks the rows' CHECKs."""
    if connection.dialect.name == "sqlite":
        found = connection.exec_driver_sql("PRAGMA integrity_check(20)").scalars()
        return [str(line) for line in found if line != "ok"]
    query = sa.text(_BAD_INDEXES).bindparams(sa.bindparam("tables", expanding=True))
    return list(connection.execute(query, {"tables": guards.TABLES}).scalars())
