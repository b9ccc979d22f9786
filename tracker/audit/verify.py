"""``audit verify``: is the record what was sealed, and can it be true?

Owns the chain of checkpoints and the rows that each closes. What no honest history says is ``checks``'; guards, views
and rights are examined by their own rooms. Writes nothing, and reads each sealed row once, in bounded memory.

A finding names the checkpoint, the segment or the job, and never a row inside a segment. One change may be several
findings. A segment is only accused where its checkpoint is certain: genuinely signed or, in a chain without signatures,
confirmed by the next checkpoint. So a changed checkpoint accuses no row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import chain, pairwise
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database, guards, models
from tracker.audit import checks, lines, roles
from tracker.audit.checkpoint import Checkpoint, Segment, Signed, parse
from tracker.audit.findings import LONGEST_LIST, Finding, KeyUse, Report, Source, What
from tracker.audit.keys import PublicKey
from tracker.audit.lines import TABLES
from tracker.errors import BadCheckpoint
from tracker.reports import views

LONGEST_WAIT: Final = timedelta(days=1)
"""A daemon seals every hour: rows that wait this long are a finding."""

Progress = Callable[[str, int, int | None], None]
"""Is called now and then with the phase, rows done, and rows in all (None: unknown)."""

_WRITTEN: Final = {
    "transitions": models.Transition.observed_at,
    "gaps": models.Gap.ended_at,
    "sources": models.Source.recorded_at,
}
_INDEXES: Final = """
    SELECT format('index %s of table %s is not valid', i.indexrelid::regclass, i.indrelid::regclass)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    WHERE c.relname IN :tables AND c.relnamespace = quote_ident(current_schema())::regnamespace
        AND NOT (i.indisvalid AND i.indisready AND i.indislive)
    UNION ALL
    SELECT format('unique index %s of table %s is not tracker''s', i.indexrelid::regclass, i.indrelid::regclass)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    WHERE c.relname IN :tables AND c.relnamespace = quote_ident(current_schema())::regnamespace
        AND i.indisunique AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)"""


def verify(
    connection: sa.Connection,
    *,
    public_key: PublicKey | None = None,
    trusted: Iterable[Signed] = (),
    zone: ZoneInfo,
    now: datetime | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> Report:
    """Check the whole record, and return what was found.

    Args:
        connection: In a transaction that sees one state of the database (`database.reading`).
        public_key: The right key, from somebody else. It must have signed the newest signed checkpoint, or be one of the
            keys before in the chain's own succession, in which each key announced the next. A key that was withdrawn
            (its owner gave the auditor a newer one) must not be given here. None: any key will do that is in one
            succession.
        trusted: Checkpoints that were kept outside: the chain must have them.
        zone: The legal time zone of clusters that have no source yet.
        now: For the age of what is not sealed; None: the database's time.
        progress: Reports how far it is.

    Raises:
        DatabaseUnavailable, BadConfiguration: The database cannot be read.
    """
    with database.lenient(connection):
        return _Verification(connection, public_key, trusted, progress).run(zone, now or database.now(connection))


@dataclass(slots=True)
class _Seal:
    """A row of seals, and the checkpoint in it; None: it is not one, and *problem* says why."""

    row: Any
    signed: Signed | None
    problem: str

    @property
    def sha256(self) -> str:
        return sha256(str(self.row.checkpoint).encode("utf-8", "surrogateescape")).hexdigest()

    def is_certain(self, following: _Seal | None) -> bool:
        """Return whether the checkpoint is what was sealed, by its signature or, without one, by what follows on it."""
        if self.signed is None or self.signed.checkpoint.key is not None:
            return self.signed is not None and self.signed.is_genuine() is True
        if following is not None and following.signed is not None:
            return following.signed.checkpoint.previous_sha256 == self.sha256
        return bool(self.row.checkpoint_sha256 == self.sha256)

    def disagreeing(self) -> list[str]:
        """Return the columns that do not agree with the text."""
        assert self.signed is not None  # noqa: S101 - the caller's condition
        one = self.signed.checkpoint
        said = {
            **{f"last_{table.removesuffix('s')}_id": one.ids[table][1] for table in TABLES},
            "rows": one.rows,
            "checkpoint_sha256": self.sha256,
            "sealed_at": f"{one.sealed_at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}",
            "key_id": one.key.id if one.key else None,
        }
        return [name for name, value in said.items() if getattr(self.row, name) != value]


class _Verification:
    """One run; `run` returns its report."""

    def __init__(
        self,
        connection: sa.Connection,
        public_key: PublicKey | None,
        trusted: Iterable[Signed],
        progress: Progress,
    ) -> None:
        self._connection = connection
        self._progress = progress
        self._report = Report(is_key_checked=public_key is not None)
        self._given = public_key
        self._trusted: dict[tuple[int, str], str] = {}  # (number, SHA-256) of those not seen yet: origin
        for signed in trusted:
            self._trusted[signed.checkpoint.number, signed.sha256] = signed.checkpoint.origin
            self._report.trusted += 1
        self._last: _Seal | None = None  # the newest that is in order
        self._due = 1  # the number of the next
        self._expected: PublicKey | None = None  # the key that should sign the next; None: any, at the start or a break
        self._succession: list[PublicKey] = []
        self._uses: dict[tuple[str, bool], KeyUse] = {}  # by key id ("": unsigned) and whether that was right
        self._counted: Counter[tuple[str, bool]] = Counter()
        self._rows_total = sum(self._scalar(f"SELECT max(id) FROM {table}") or 0 for table in TABLES)

    def run(self, zone: ZoneInfo, now: datetime) -> Report:
        report, connection = self._report, self._connection
        for what, problems in (
            (What.GUARD, guards.problems(connection)),
            (What.VIEW, views.problems(connection)),
            (What.RIGHT, roles.problems(connection)),
            (What.INDEX, self._index_problems()),
        ):
            for line in problems:
                self._found(what, line)
        for seal, following in pairwise(chain(self._seals(), [None])):
            assert seal is not None  # noqa: S101 - None is only the last
            self._checkpoint(seal, following)
        self._keys()
        self._outside()
        self._unsealed(now)
        self._progress("histories", 0, None)
        for problem in checks.findings(connection, zone):
            self._problem(problem)
        report.jobs, report.transitions = (self._scalar(f"SELECT count(*) FROM {t}") for t in ("jobs", "transitions"))
        rows = connection.exec_driver_sql(
            "SELECT cluster, base_url || path, CAST(min(recorded_at) AS text) FROM sources GROUP BY 1, 2 ORDER BY 1, 3"
        )
        report.sources = [Source(*map(_printable, row)) for row in rows]
        return report

    def _scalar(self, query: str) -> Any:
        return self._connection.exec_driver_sql(query).scalar()

    def _found(self, what: What, message: str, *, is_note: bool = False, **place: Any) -> None:
        kept = self._report.notes if is_note else self._report.findings
        if len(kept) < LONGEST_LIST:
            kept.append(Finding(what, _printable(message), **place))
        elif is_note:
            self._report.more_notes += 1
        else:
            self._report.more += 1

    def _problem(self, problem: checks.Problem) -> None:
        """Take what a check found."""
        what = What.JOB if problem.table == "jobs" else What.HISTORY
        where = f"row {problem.row_id} of {problem.table}"
        if problem.jid is not None:
            where = f"job {problem.jid} of cluster {problem.cluster}"
            where += "" if what is What.JOB else f", transition {problem.seq}"
        cluster, jid = (None if name is None else _printable(name) for name in (problem.cluster, problem.jid))
        message = f"{where}: {problem.message.removeprefix('; ')}"
        self._found(what, message, is_note=problem.is_note, cluster=cluster, jid=jid, seq=problem.seq)

    def _index_problems(self) -> list[str]:
        """Return what the database itself finds wrong with its indexes; SQLite looks at the rows' CHECKs, too."""
        if self._connection.dialect.name == "sqlite":
            found = self._connection.exec_driver_sql("PRAGMA integrity_check(20)").scalars()
            return [str(line) for line in found if line != "ok"]
        query = sa.text(_INDEXES.replace("::", "\\:\\:")).bindparams(sa.bindparam("tables", expanding=True))
        return list(self._connection.execute(query, {"tables": guards.TABLES}).scalars())

    # The chain

    def _seals(self) -> Iterator[_Seal]:
        """Yield the rows of seals in the order of their ids, few in memory."""
        at = "sealed_at"
        if self._connection.dialect.name != "sqlite":
            at = "to_char(sealed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
        query = (
            "SELECT id, last_transition_id, last_gap_id, last_source_id, rows, checkpoint, checkpoint_sha256,"
            f" {at} AS sealed_at, key_id FROM seals ORDER BY id"
        )
        options = {"stream_results": True, "max_row_buffer": 100}
        with closing(self._connection.exec_driver_sql(query, execution_options=options)) as rows:
            for row in rows:
                try:
                    yield _Seal(row, parse(str(row.checkpoint)), "")
                except BadCheckpoint as error:
                    yield _Seal(row, None, str(error))

    def _checkpoint(self, seal: _Seal, following: _Seal | None) -> None:
        """Check one checkpoint, whose neighbors are known, and the rows that it closes."""
        self._report.checkpoints += 1
        if seal.signed is None:
            message = f"its text is damaged ({seal.problem}), and what it closes cannot be checked"
            self._found(What.CHECKPOINT, f"checkpoint {self._due}: {message}", checkpoint=self._due)
            self._due, self._last, self._expected = self._due + 1, seal, None
            return
        one, faults = seal.signed.checkpoint, []
        self._trusted.pop((one.number, seal.sha256), None)
        if columns := seal.disagreeing():
            faults.append(f"its text does not agree with the columns {', '.join(columns)}")
        if one.number < self._due:
            faults.append(f"it is after checkpoint {self._due - 1}: double, or out of order")
        else:
            if one.number > self._due:
                missing = f"{self._due}" if one.number == self._due + 1 else f"{self._due} to {one.number - 1}"
                self._found(What.CHECKPOINT, f"checkpoint {missing} is missing", checkpoint=self._due)
                self._expected = None
            elif self._last is not None or one.number == 1:
                faults += self._link(one)
            self._due, self._last = one.number + 1, seal
        self._signature(seal.signed)
        if seal.is_certain(following):
            self._segments(seal.row.id, one)
        else:
            faults.append("it may not be what was sealed, and what it closes cannot be checked")
        if faults:
            self._found(What.CHECKPOINT, f"checkpoint {one.number}: {'; '.join(faults)}", checkpoint=one.number)

    def _link(self, one: Checkpoint) -> Iterator[str]:
        """Yield how a checkpoint does not follow on the one before it."""
        if self._last is None or self._last.signed is None:
            if self._last is None and any(after for after, _ in one.ids.values()):
                yield "it does not begin with the first ids"
            return
        before = self._last.signed.checkpoint
        if one.previous_sha256 != self._last.sha256:
            yield f"it states another SHA-256 for checkpoint {before.number} than that has"
        if one.origin != before.origin:
            yield f"its origin is another than that of checkpoint {before.number}"
        if one.sealed_at < before.sealed_at:
            yield f"it was sealed before checkpoint {before.number}"
        if any(one.ids[table][0] != before.ids[table][1] for table in TABLES):
            yield f"its ids do not continue those of checkpoint {before.number}"

    def _signature(self, signed: Signed) -> None:
        one, is_genuine = signed.checkpoint, signed.is_genuine()
        if is_genuine is False:
            message = f"checkpoint {one.number}: its signature is false: the text or the signature was changed"
            self._found(What.KEY, message, checkpoint=one.number)
            self._expected = None
            return
        is_right = self._expected in (None, one.key)
        use = (one.key.id if one.key else "", is_right)
        self._counted[use] += 1
        self._uses[use] = replace(self._uses.get(use) or KeyUse(use[0], one.number, 0), last=one.number)
        if one.key is not None and is_right:
            if one.key not in self._succession[-1:]:
                self._succession.append(one.key)
            self._expected = one.next_key or one.key

    def _keys(self) -> None:
        """Report the keys, those that the chain did not announce, and whether the key given is one of it."""
        report = self._report
        for (key_id, is_right), use in self._uses.items():
            count = self._counted[key_id, is_right]
            if not key_id:
                report.unsigned += count
            else:
                report.keys.append(use)
            if is_right:
                continue
            which = (
                f"checkpoint {use.first} is" if count == 1 else f"checkpoints {use.first} to {use.last} ({count}) are"
            )
            how = (
                f"signed with key {key_id}, which no checkpoint announced"
                if key_id
                else "not signed, as earlier ones are"
            )
            self._found(What.KEY, f"{which} {how}", checkpoint=use.first)
        if self._given is not None and self._given not in self._succession:
            announced = " (it is announced, but has signed nothing yet)" if self._given == self._expected else ""
            signed = f"key {self._succession[-1].id}" if self._succession else "no key"
            self._found(What.KEY, f"the chain is signed by {signed}, not by the key given: {self._given.id}{announced}")

    def _outside(self) -> None:
        """Report the newest checkpoint, and those from outside that are not in the chain."""
        report, head = self._report, self._last.signed if self._last else None
        if head is not None:
            report.origin, report.number = head.checkpoint.origin, head.checkpoint.number
            report.sha256, report.sealed_at = head.sha256, head.checkpoint.sealed_at
        if not self._trusted:
            return
        (number, hash_), origin = min(self._trusted.items())
        if head is None or origin != head.checkpoint.origin:
            why = "it is of another database"
        elif number > head.checkpoint.number:
            why = f"the chain ends with {head.checkpoint.number}: its end was cut off, or an older copy was restored"
        else:
            why = "the chain has another with this number, or none"
        more = f" (and {len(self._trusted) - 1} more)" if len(self._trusted) > 1 else ""
        message = f"the trusted checkpoint {number} (SHA-256 {hash_}) is not in the chain: {why}{more}"
        self._found(What.TRUSTED, message, checkpoint=number)

    # The rows

    def _segments(self, seal_id: int, one: Checkpoint) -> None:
        """Check the rows that a checkpoint closes, segment by segment."""
        query = sa.text("SELECT name, part, first_id, last_id, rows, sha256 FROM segments WHERE seal_id = :id")
        there = {(row.name, row.part): row for row in self._connection.execute(query, {"id": seal_id})}
        held: dict[str, list[tuple[int, int]]] = {table: [] for table in TABLES}
        doubtful = set()
        for segment in one.segments:
            row = there.pop((segment.name, segment.part), None)
            if row is not None and isinstance(row.first_id, int) and isinstance(row.last_id, int):
                held[segment.name].append((row.first_id, row.last_id))
                if not self._is_as_sealed(segment, one.number, row):
                    doubtful.add(segment.name)
            else:
                doubtful.add(segment.name)
                path = segment.path(one.number)
                message = f"{path}: table segments does not have it, and its rows cannot be checked"
                self._found(What.SEGMENTS, message, checkpoint=one.number, segment=path)
        if there:
            message = f"checkpoint {one.number}: table segments has {len(there)} that are not in it"
            self._found(What.SEGMENTS, message, checkpoint=one.number)
        for table, (after, upto) in one.ids.items():
            if table not in doubtful and (count := self._between(table, after, upto, held[table])):
                message = (
                    f"rows of {table} with ids from {after + 1} to {upto} that are in none of its segments: {count}"
                )
                self._found(What.ROWS, f"checkpoint {one.number}: {message}", checkpoint=one.number)
        self._report.sealed += one.rows

    def _is_as_sealed(self, segment: Segment, number: int, row: Any) -> bool:
        path, digest, count = segment.path(number), sha256(lines.header(segment.name)), 0
        with closing(lines.stream(self._connection, segment.name, row.first_id - 1, row.last_id)) as rows:
            for count, (_, line) in enumerate(rows, 1):
                digest.update(line)
        is_good = digest.hexdigest() == segment.sha256
        if row.sha256 != segment.sha256 or (is_good and row.rows != count):
            message = f"{path}: the row in table segments does not agree with checkpoint {number}"
            self._found(What.SEGMENTS, message, checkpoint=number, segment=path)
        if not is_good and row.sha256 != digest.hexdigest():
            message = (
                f"{path}: the rows of {segment.name} with ids from {row.first_id} to {row.last_id} are not those that"
                f" were sealed ({count} rows; {row.rows} were sealed)"
            )
            self._found(What.ROWS, message, checkpoint=number, segment=path)
        self._progress("sealed rows", self._report.sealed + count, self._rows_total)
        return is_good

    def _between(self, table: str, after: int, upto: int, held: list[tuple[int, int]]) -> int:
        """Return how many rows there are in the range of a checkpoint and in none of its segments."""
        count = 0
        for first, last in [*sorted(held), (upto + 1, upto + 1)]:
            if first > after + 1:  # ids are missing there: a transaction that was rolled back, or rows that were added
                count += self._scalar(f"SELECT count(*) FROM {table} WHERE id > {after} AND id < {first}")
            after = max(after, last)
        return count

    def _unsealed(self, now: datetime) -> None:
        """Count the rows that no checkpoint holds."""
        head = self._last.signed if self._last else None
        for table, written_at in _WRITTEN.items():
            id_ = written_at.class_.id
            if count := self._scalar(f"SELECT count(*) FROM {table} WHERE id < 1"):
                self._found(What.ROWS, f"rows of {table} with an id below 1, which no database gives: {count}")
            last = head.checkpoint.ids[table][1] if head else 0
            is_late = sa.func.min(written_at) < now - LONGEST_WAIT
            count, is_late = self._connection.execute(sa.select(sa.func.count(), is_late).where(id_ > last)).one()
            self._report.unsealed += count
            if is_late:
                message = f"rows of {table} that are not sealed, some for longer than a day: {count}"
                self._found(What.UNSEALED, message)
        orphans = self._scalar("SELECT count(*) FROM segments WHERE seal_id NOT IN (SELECT id FROM seals)")
        if orphans:
            self._found(What.SEGMENTS, f"rows of table segments whose checkpoint is missing: {orphans}")


def _printable(value: object) -> str:
    """Return a value as text that can be written: bytes that are not UTF-8 (`database.lenient`) as ``\\xNN``."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
