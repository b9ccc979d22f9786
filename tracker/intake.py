"""Intake: where jobs are registered, one or a million.

Owns what a declared value may be, the only INSERT into ``jobs``, telling a registration that repeats itself from one
that contradicts what is recorded, and reading a file of jobs. The database writes the registration's transition (a
trigger). Leaves alone: amending what is declared (``operate``), and everything observed (``poller``).

One rule for text, wherever it comes from: white space around a jid, a cluster or a reference is nobody's intention and
is dropped, and what is then empty was left out.
"""

from __future__ import annotations

import csv
import getpass
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from itertools import islice
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database, text
from tracker import settings as _settings
from tracker.deadline import Deadline, deadline, deadline_of
from tracker.errors import Conflict, InvalidField, Refused
from tracker.models import JOBS, facts_of, legal_zones
from tracker.settings import Settings
from tracker.status import Facts, Kind

COLUMNS: Final = ("jid", "cluster", "kind", "submitted_at", "received_at", "reference")
"""What a file may say about a job."""
PIECE: Final = 2_000
"""Rows of a file in one transaction: it holds writers up for some 0.1 s on SQLite, and commits cost next to nothing."""
LONGEST: Final = 255
"""Characters of a jid, a reference or a registrar's name; the schema's CHECKs say the same."""
LONGEST_ROW: Final = 65_536
"""Bytes of a row in a file: several times what its longest values need, so that memory is bounded."""
SKEW: Final = timedelta(seconds=5)
"""Declared times may be ahead of the database's clock by so much: the machine that submitted has a clock of its own."""

_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # the schema's CHECKs say the same
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d(?P<time>[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?P<offset>Z|[+-]\d\d(?::?\d\d)?)?)?", re.ASCII
)
_TIME_FORM = "write it as 2026-01-31T14:00:00+01:00, or a day as 2026-01-31"


@dataclass(frozen=True, slots=True)
class Registration:
    """What is declared about one job, not checked yet.

    Attributes:
        jid: As Elevate gave it.
        cluster: May be None where one cluster is configured.
        kind: ``export``, ``removal`` or ``unknown``, which None means too.
        submitted_at: When the job was submitted to Elevate (aware), None if unknown.
        received_at: When the person's request reached the company (aware), None if unknown.
        reference: The request's ticket; groups the jobs of one person's request. No personal data.
    """

    jid: str
    cluster: str | None = None
    kind: str | None = Kind.UNKNOWN
    submitted_at: datetime | None = None
    received_at: datetime | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """A job that is registered.

    Attributes:
        cluster: Its cluster.
        jid: Its jid, without white space around it.
        already: It was registered before, and nothing that was declared now differs.
        deadline: The legal date, and what it is counted from.
    """

    cluster: str
    jid: str
    already: bool
    deadline: Deadline


class Row(NamedTuple):
    """A row of a file.

    Attributes:
        line: The physical line on which it begins, from 1.
        declared: What it says, or why that cannot be.
        plain_dates: How many of its times are plain dates, taken as the start of that day.
        named: Which job a row is about that has a time which cannot be read; None where *declared* tells, or nothing.
    """

    line: int
    declared: Registration | Refused
    plain_dates: int = 0
    named: Registration | None = None


Outcome: TypeAlias = Registered | Refused
Value: TypeAlias = str | datetime | None
"""Of a declared fact."""
_Key: TypeAlias = tuple[str, str]
_ZoneOf: TypeAlias = Callable[[str, datetime], ZoneInfo]


class _Job(NamedTuple):
    """A registration that has been checked."""

    key: _Key
    facts: Facts
    registered_at: datetime
    deadline: Deadline


def register(
    connection: sa.Connection,
    jid: str,
    *,
    cluster: str | None = None,
    kind: str | None = Kind.UNKNOWN,
    submitted_at: datetime | None = None,
    received_at: datetime | None = None,
    reference: str | None = None,
    registered_by: str | None = None,
    settings: Settings | None = None,
    now: datetime | None = None,
) -> Registered:
    """Register a job in the caller's own transaction, and return what is registered and by when it must be done.

    Nothing is committed or rolled back here: note the submission and register its jid in one transaction, and either
    both are there or neither. Doing it again with the same facts is harmless; a fact that is left out is not compared.
    When another session registers the same job at that moment, this one waits for its transaction to end.

    Args:
        connection: A SQLAlchemy connection to tracker's database, of any engine.
        jid: As Elevate gave it; at most 255 characters.
        cluster: Its name in the settings; may be left out where one is configured.
        kind: ``export``, ``removal`` or ``unknown``, which None means too.
        submitted_at: When the job was submitted to Elevate (aware), None if unknown.
        received_at: When the person's request reached the company (aware): the legal month counts from here.
        reference: The request's ticket. No personal data.
        registered_by: Who registers it; default the login of this process.
        settings: Default: those of this process (`settings.load`, without keys), read once.
        now: For simulations; default the database's clock.

    Raises:
        InvalidField: A value cannot be; nothing was inserted, and the transaction goes on.
        Conflict: It is registered with other facts; nothing was inserted, and the transaction goes on.
        BadConfiguration: The settings are wrong, or no cluster is configured.
        DatabaseUnavailable: If the connection is of an engine of tracker's; from another, SQLAlchemy's own errors.
    """
    declared = Registration(jid, cluster, kind, submitted_at, received_at, reference)
    (outcome,) = register_many(connection, [declared], registered_by=registered_by, settings=settings, now=now)
    if isinstance(outcome, Refused):
        raise outcome
    return outcome


def register_many(
    connection: sa.Connection,
    registrations: Iterable[Registration],
    *,
    registered_by: str | None = None,
    settings: Settings | None = None,
    now: datetime | None = None,
    rehearsal: sa.Connection | None = None,
) -> list[Outcome]:
    """Register many jobs in the caller's transaction, and return for each in turn what became of it.

    What is wrong with one is returned, not raised, and the others go in. All are held in memory: give some thousands.

    Args:
        connection: As for `register`, as are the other arguments.
        registrations: The same job twice is harmless, or a `Conflict`, as it is when it comes later.
        rehearsal: From `rehearsing`: then nothing is written but there, and *connection* is only read.

    Raises:
        InvalidField: *registered_by* cannot be.
        BadConfiguration, DatabaseUnavailable: As for `register`.
    """
    configured = settings or _settings_of_this_process()
    registrar = text.check("registered_by", login() if registered_by is None else registered_by)
    now = now or database.now(connection)
    zone_of = legal_zones(connection, configured.zone)
    cluster_of = cache(lambda name: configured.cluster(name).name)
    checked: list[_Job | InvalidField] = []
    jobs: dict[_Key, _Job] = {}
    for declared in registrations:
        try:
            job = _check(declared, cluster_of, zone_of, now)
        except InvalidField as error:
            checked.append(error)
        else:
            checked.append(job)
            jobs.setdefault(job.key, job)

    recorded: dict[_Key, tuple[Facts, Deadline]] = {}
    if rehearsal is not None:
        recorded = _recorded(connection, jobs, zone_of)
        connection = rehearsal
    # In the order of the keys, so that two sessions with the same jobs wait for each other, and do not deadlock.
    new = _insert(connection, [jobs[key] for key in sorted(jobs) if key not in recorded], registrar)
    recorded |= _recorded(connection, jobs.keys() - new - recorded.keys(), zone_of)

    outcomes: list[Outcome] = []
    for one in checked:
        if isinstance(one, InvalidField):
            outcomes.append(one)
        elif one.key in new:
            new.remove(one.key)  # a second row about it finds it there
            recorded[one.key] = one.facts, one.deadline
            outcomes.append(Registered(*one.key, already=False, deadline=one.deadline))
        else:
            facts, due = recorded[one.key]
            differences = {
                name: (_told(there), _told(given)) for name, (there, given) in compare(facts, one.facts).items()
            }
            again = Registered(*one.key, already=True, deadline=due)
            outcomes.append(Conflict(*one.key, differences) if differences else again)
    return outcomes


@contextmanager
def rehearsing() -> Iterator[sa.Connection]:
    """Yield a connection to a scratch database, gone afterwards, for a `register_many` that writes nothing.

    On disk, since what a million rows say about each other does not belong in memory.
    """
    with tempfile.TemporaryDirectory(prefix="tracker-") as folder:
        url = sa.URL.create("sqlite", database=os.path.join(folder, "rehearsal.db"))
        engine = database.create_engine(url.render_as_string(), make=True)
        try:
            with engine.connect() as connection:
                JOBS.create(connection)
                yield connection
        finally:
            engine.dispose()


def register_rows(
    engine: sa.Engine,
    rows: Iterable[Row],
    *,
    registered_by: str | None = None,
    settings: Settings | None = None,
    dry_run: bool = False,
) -> Iterator[list[tuple[Row, Outcome]]]:
    """Register the rows of a file, and yield each piece of them with what became of it, once it is committed.

    The next piece is read while one is written: the database works without the interpreter's lock.

    Args:
        engine: Of tracker's database.
        rows: From `read`; no transaction is open while a row is waited for.
        registered_by: As for `register`.
        settings: As for `register`.
        dry_run: Yield what would become of them, and write nothing.

    Raises:
        DatabaseUnavailable: What was yielded is committed, and of the rest a piece at most; to begin again with the
            first row is harmless.
    """
    rows = iter(rows)

    def write(piece: list[Row]) -> list[tuple[Row, Outcome]]:
        declared = [row.declared for row in piece if isinstance(row.declared, Registration)]
        with database.reading(engine) if dry_run else database.writing(engine) as connection:
            outcomes = iter(
                register_many(connection, declared, registered_by=registered_by, settings=settings, rehearsal=rehearsal)
            )
        return [(row, row.declared if isinstance(row.declared, Refused) else next(outcomes)) for row in piece]

    with rehearsing() if dry_run else nullcontext() as rehearsal, ThreadPoolExecutor(1) as writer:
        under_way: Future[list[tuple[Row, Outcome]]] | None = None
        while True:
            piece = list(islice(rows, PIECE))
            done = under_way.result() if under_way else None
            under_way = writer.submit(write, piece) if piece else None
            if done:
                yield done
            if under_way is None:
                return


def login() -> str:
    """Return the name of the user that this process runs as; ``uid N`` where it has none, as in many a container."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"


@lru_cache  # a file repeats its days
def parse_time(field: str, text: str, zone: ZoneInfo) -> tuple[datetime, bool]:
    """Return the instant (UTC) that *text* means, and whether it is a plain date, taken as that day's start in *zone*.

    Args:
        field: The column's name, for the error.
        text: ISO 8601, with an offset or Z unless it is a plain date.
        zone: The legal time zone.

    Raises:
        InvalidField: It is none, or has no offset.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise InvalidField(field, f"{text[:60]!r} is no time: {_TIME_FORM}")
    is_day = match["time"] is None
    if not is_day and match["offset"] is None:
        raise InvalidField(field, f"{text!r} has no offset, so nobody knows which instant it is: {_TIME_FORM}")
    try:
        at = datetime.fromisoformat(text)
        # Where a change of the clocks skips midnight, fold=0 names the instant of the change: the day begins there.
        return (at.replace(tzinfo=zone) if is_day else at).astimezone(UTC), is_day
    except (ValueError, OverflowError) as error:
        raise InvalidField(field, f"{text!r} is no time ({error}): {_TIME_FORM}") from None


@cache
def _settings_of_this_process() -> Settings:
    return _settings.load(keys=False)


def instant(field: str, at: object, now: datetime) -> datetime:
    """Return a declared time in UTC; raise InvalidField if it cannot be one, or is in the future."""
    if not isinstance(at, datetime):
        raise InvalidField(field, f"must be a datetime with a time zone, not {type(at).__name__}")
    if at.utcoffset() is None:
        raise InvalidField(field, f"{at} has no time zone, so nobody knows which instant it is")
    if at > now + SKEW:
        raise InvalidField(field, f"{at} is in the future: it is {now.isoformat(' ', 'seconds')}, says the database")
    if at < _EARLIEST:
        raise InvalidField(field, f"{at} is before 1970")
    return at.astimezone(UTC)


def check(
    declared: Registration, cluster_of: Callable[[str | None], str], now: datetime
) -> tuple[tuple[str, str], Facts]:
    """Return what is declared, as the key (cluster, jid) and the facts that `register` would record at *now*.

    Args:
        declared: Not checked yet.
        cluster_of: Returns the name of a cluster, of the one that is meant by None, or raises.
        now: The database's time.

    Raises:
        InvalidField: For the first value that cannot be.
    """
    jid = text.check("jid", declared.jid)
    cluster = cluster_of(None if declared.cluster is None else text.check("cluster", declared.cluster))
    try:
        kind = Kind(declared.kind or Kind.UNKNOWN)
    except ValueError:
        told = repr(str(declared.kind)[:60])
        raise InvalidField("kind", f"{told} is no kind: write export, removal or unknown") from None
    submitted_at = None if declared.submitted_at is None else instant("submitted_at", declared.submitted_at, now)
    received_at = None if declared.received_at is None else instant("received_at", declared.received_at, now)
    reference = declared.reference
    left_out = reference is None or (isinstance(reference, str) and not reference.strip())
    reference = None if left_out else text.check_no_address("reference", reference)
    return (cluster, jid), Facts(kind, reference, received_at, submitted_at)


def _check(declared: Registration, cluster_of: Callable[[str | None], str], zone_of: _ZoneOf, now: datetime) -> _Job:
    """Return *declared* as it can be registered at *now*; raise InvalidField for the first value that cannot be."""
    key, facts = check(declared, cluster_of, now)
    received_at, submitted_at = facts.received_at, facts.submitted_at
    # Within SKEW a submission may be ahead of our clock; that it is not after its registration holds all the same.
    registered_at = max(now, submitted_at or now, received_at or now)
    due = _deadline(received_at, submitted_at if received_at is None else None, registered_at, zone_of(key[0], now))
    return _Job(key, facts, registered_at, due)


_deadline = lru_cache(deadline)  # most jobs of a piece are counted from few days


_GIVEN: Final = {
    **dict.fromkeys(("cluster", "jid", "kind", "reference"), "{}"),
    **dict.fromkeys(("received_at", "submitted_at", "registered_at"), "CAST(({}) || '+00' AS timestamptz)"),
    "deadline_on": "CAST({} AS date)",
    "deadline_at": "CAST(({}) || '+00' AS timestamptz)",
}
"""By column in the order of `_insert`, how PostgreSQL makes it of a text; SQLite keeps the text."""


@cache
def _insert_statement(dialect: str) -> sa.TextClause:
    """Return the INSERT of jobs that are not there yet, from a JSON array of arrays; it returns the keys of those new.

    One statement for all rows: on SQLite twice as fast as one each; on PostgreSQL the trigger that writes the
    registrations then runs, and takes the sealer's lock, once.
    """
    if dialect == "sqlite":
        values = {column: f"json_extract(value, '$[{place}]')" for place, column in enumerate(_GIVEN)}
    else:
        values = {column: form.format(f"value ->> {place}") for place, (column, form) in enumerate(_GIVEN.items())}
    values |= {"due_at": values["registered_at"], "registered_by": ":registrar"}
    insert = f"INSERT INTO jobs ({', '.join(values)}) SELECT {', '.join(values.values())}"
    if dialect == "sqlite":
        # Not ON CONFLICT: the guard against REPLACE aborts before it. Nobody else can write in the meantime.
        rest = (
            " FROM json_each(:rows) WHERE NOT EXISTS (SELECT 1 FROM jobs j"
            f" WHERE j.cluster = {values['cluster']} AND j.jid = {values['jid']})"
        )
    else:
        rest = " FROM jsonb_array_elements(CAST(:rows AS jsonb)) AS r(value) ON CONFLICT (cluster, jid) DO NOTHING"
    return sa.text(f"{insert}{rest} RETURNING cluster, jid")


def _insert(connection: sa.Connection, jobs: Collection[_Job], registrar: str) -> set[_Key]:
    """Insert those of *jobs* that are not there, and return their keys."""
    if not jobs:
        return set()
    rows = [
        (
            *job.key,
            job.facts.kind,
            job.facts.reference,
            _written(job.facts.received_at),
            _written(job.facts.submitted_at),
            _written(job.registered_at),
            job.deadline.on.isoformat(),
            _written(job.deadline.at),
        )
        for job in jobs
    ]
    values = {"rows": json.dumps(rows), "registrar": registrar}
    new = connection.execute(_insert_statement(connection.dialect.name), values)
    return {(row[0], row[1]) for row in new}


@lru_cache
def _written(at: datetime | None) -> str | None:
    """Return *at*, in UTC, as SQLite keeps it (`models.UtcDateTime`)."""
    return None if at is None else at.isoformat(" ", "microseconds")[:26]


def _recorded(
    connection: sa.Connection, keys: Collection[_Key], zone_of: _ZoneOf
) -> dict[_Key, tuple[Facts, Deadline]]:
    """Return the facts and the deadline of those of *keys* that are registered, as they are after any amendment."""
    jids: dict[str, list[str]] = {}
    for cluster, jid in keys:
        jids.setdefault(cluster, []).append(jid)
    columns = ("jid", *Facts.__dataclass_fields__, "registered_at", "deadline_on", "deadline_at")
    found: dict[_Key, tuple[Facts, Deadline]] = {}
    for cluster, its in jids.items():
        for start in range(0, len(its), 1000):  # a database takes only so many parameters
            query = sa.select(*(JOBS.c[name] for name in columns)).where(
                JOBS.c.cluster == cluster, JOBS.c.jid.in_(its[start : start + 1000])
            )
            for row in connection.execute(query):
                found[cluster, row.jid] = facts_of(row), _deadline_of(row, zone_of(cluster, row.registered_at))
    return found


def _deadline_of(row: sa.Row[Any], zone: ZoneInfo) -> Deadline:
    """Return the deadline in a row of jobs, or what it will be where plain SQL put the row there and none is yet."""
    due = deadline_of(facts_of(row), row.registered_at, zone, [(row.registered_at, row.extended_on)])
    return due if row.deadline_at is None else Deadline(due.basis, row.deadline_on, row.deadline_at)


def compare(recorded: Facts, declared: Facts) -> dict[str, tuple[Value, Value]]:
    """Return what is declared otherwise than it is recorded, by column: (recorded, declared).

    What is left out of the declaration does not differ; an extension is an operator's decision, and not compared.
    """
    differences: dict[str, tuple[Value, Value]] = {}
    for name in ("kind", "reference", "received_at", "submitted_at"):
        there, given = getattr(recorded, name), getattr(declared, name)
        if given is not None and given is not Kind.UNKNOWN and given != there:
            differences[name] = there, given
    return differences


def _told(value: Value) -> str:
    return "unknown" if value is None else str(value)


class _TooLong(Exception):
    """A row has more bytes than `LONGEST_ROW`."""


class _Lines:
    """The physical lines of a file, an iterator that goes on after `_TooLong`.

    Bytes that are not UTF-8 become surrogates, which the check of the value that they are in refuses.

    Attributes:
        number: Of the last line, from 1.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.number = 0
        self._file = file
        self._bytes = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(LONGEST_ROW + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._bytes += len(line)
        if self._bytes > LONGEST_ROW:
            while not line.endswith(b"\n") and (line := self._file.readline(LONGEST_ROW)):
                pass
            raise _TooLong(f"is longer than {LONGEST_ROW} bytes")
        return line.decode("utf-8", "surrogateescape")

    def begin(self) -> int:
        """Begin a row, and return the number of its first line."""
        self._bytes = 0
        return self.number + 1


_Record: TypeAlias = Mapping[str, str]


def read(file: BinaryIO, zone: ZoneInfo, *, cluster: str | None = None, kind: str | None = None) -> Iterator[Row]:
    """Yield the rows of a file of jobs, a row that cannot be read included, in bounded memory.

    A file whose first character is ``{`` is JSON Lines, an object a line; any other is CSV, with a header, and comma,
    semicolon or tab between the cells, whichever the header has most of. UTF-8, with or without a byte order mark.
    Columns and keys are those of `COLUMNS`; only the jid must be there.

    Args:
        file: Open for reading bytes.
        zone: The legal time zone: a plain date is taken as that day's start there.
        cluster: For rows that name none.
        kind: For rows that name none.

    Raises:
        Refused: The file is no such file at all.
    """
    lines = _Lines(file)
    try:
        first = next((line for line in lines if line.strip("\ufeff \t\r\n")), None)
    except _TooLong as error:
        raise Refused(f"line {lines.number} {error}: this is neither CSV nor JSON Lines") from None
    if first is None:
        raise Refused("the file is empty: CSV needs a header, as in: jid,cluster,kind")
    first = first.removeprefix("\ufeff")
    if "\0" in first or first.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise Refused("the file is not UTF-8 text: save it as UTF-8 (in Excel as: CSV UTF-8)")
    if first.startswith("["):
        raise Refused("the file is a JSON array; JSON Lines has an object a line, as from: jq -c '.[]' FILE")
    records = _json_records if first.startswith("{") else _csv_records
    for line, record in records(first, lines):
        if isinstance(record, Refused):
            yield Row(line, record)
            continue
        yield _row(line, record, zone, cluster, kind)


def _row(line: int, record: _Record, zone: ZoneInfo, cluster: str | None, kind: str | None) -> Row:
    """Return the row in which *record* stands."""
    values = {name: text for name, cell in record.items() if (text := cell.strip())}
    jid, its_cluster = values.get("jid", ""), values.get("cluster", cluster)
    times: dict[str, datetime] = {}
    plain_dates = 0
    for name in ("submitted_at", "received_at"):
        if name in values:
            try:
                times[name], is_day = parse_time(name, values[name], zone)
            except InvalidField as error:
                return Row(line, error, named=Registration(jid, its_cluster))
            plain_dates += is_day
    declared = Registration(
        jid,
        its_cluster,
        values.get("kind", kind),
        times.get("submitted_at"),
        times.get("received_at"),
        values.get("reference"),
    )
    return Row(line, declared, plain_dates)


def _csv_records(first: str, lines: _Lines) -> Iterator[tuple[int, _Record | Refused]]:
    delimiter = max(",;\t", key=first.count)  # the comma, if there is none of them
    try:
        (header,) = csv.reader([first], delimiter=delimiter, skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise Refused(f"line {lines.number}: the header is no CSV: {error}") from None
    header = [name.strip().lower() for name in header]
    known = f"known are: {', '.join(COLUMNS)}"
    for name in header:
        if name not in COLUMNS:
            hint = "; the first line must be a header" if lines.number == 1 and "jid" not in header else ""
            raise Refused(f"line {lines.number}: there is no column {name[:60]!r}; {known}{hint}")
        if header.count(name) > 1:
            raise Refused(f"line {lines.number}: the column {name} is there twice")
    if "jid" not in header:
        raise Refused(f"line {lines.number}: the header has no column jid; {known}")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, _TooLong) as error:
            # Reading goes on with the next line, so that what a quote left open swallowed is named, and no more.
            upto = f" (nothing was read of lines {line} to {lines.number})" if lines.number > line else ""
            told = "a quote is not closed" if "unexpected end" in str(error) else error
            yield line, Refused(f"is no row of CSV: {told}{upto}")
            continue
        if len(cells) == len(header):
            yield line, dict(zip(header, cells, strict=True))
        elif cells:  # else the line is blank
            yield line, Refused(f"has {len(cells)} cells, where the header has {len(header)}")


def _json_records(first: str, lines: _Lines) -> Iterator[tuple[int, _Record | Refused]]:
    text = first
    while True:
        if text.strip():
            yield lines.number, _json_record(text)
        lines.begin()
        try:
            text = next(lines)
        except StopIteration:
            return
        except _TooLong as error:
            yield lines.number, Refused(str(error))
            text = ""


def _json_record(text: str) -> _Record | Refused:
    try:
        record = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return Refused(f"is no JSON object on one line: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:  # a key twice, a number of 5,000 digits, nested without end
        return Refused(f"is no JSON object on one line: {error}")
    if not isinstance(record, dict):
        return Refused('is no JSON object, such as {"jid": "…"}')
    if unknown := [key for key in record if key not in COLUMNS]:
        told = ", ".join(repr(key[:60]) for key in unknown[:10])
        return Refused(f"has the unknown key{'s' * (len(unknown) > 1)} {told}; known are: {', '.join(COLUMNS)}")
    for key, value in record.items():
        if value is not None and not isinstance(value, str):
            return InvalidField(key, f"must be text, in quotes, not {json.dumps(value)[:60]}")
    return {key: value for key, value in record.items() if value is not None}


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("it has a key twice")
    return record
