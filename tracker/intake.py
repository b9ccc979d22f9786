"""Intake: where jobs are registered, one or a million.

Owns what a declared value may be, the only INSERT into ``jobs``, and what a second registration of a job means. The
database writes the registration's transition (a trigger). Leaves alone: how a file is read (``files``), amending what
is declared (``operate``), and everything observed (``poller``).
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from itertools import islice
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from tracker import database, files, text
from tracker import settings as _settings
from tracker.deadline import Deadline, deadline_of, start_of_day
from tracker.errors import Conflict, InvalidField, Refused
from tracker.models import CLUSTERS, JOBS, facts_of, legal_zones
from tracker.settings import Settings
from tracker.status import Facts, Kind

COLUMNS: Final = ("jid", "cluster", "kind", "submitted_at", "received_at", "reference")
"""What a file may say about a job."""
PIECE: Final = 2_000
"""Rows of a file in one transaction: it blocks writers for about 0.1 s on SQLite, and commits cost almost nothing."""
SKEW: Final = timedelta(seconds=5)
"""How far declared times may be ahead of the database's clock: the machine that submitted has its own clock."""

_GUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_LOOKED_UP: Final = 1_000
"""Most jids in one statement: databases limit the number of parameters."""
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # the schema's CHECKs say the same
_TIME_FORM = "write it as 2026-01-31T14:00:00+01:00, or a day as 2026-01-31"


@dataclass(frozen=True, slots=True)
class Registration:
    """What is declared about one job, not checked yet.

    Attributes:
        jid: As Elevate gave it; at most 255 characters.
        cluster: Its name in the settings; may be None where one is configured.
        kind: ``export``, ``removal`` or ``unknown``, which None means too.
        submitted_at: When the job was submitted to Elevate (aware), None if unknown.
        received_at: When the person's request reached the company (aware): the legal month counts from here.
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
    """A job that is registered, its jid stripped.

    Attributes:
        already: It was registered before, and nothing that was declared now differs.
        deadline: The legal date.
    """

    cluster: str
    jid: str
    already: bool
    deadline: Deadline


class JobRow(NamedTuple):
    """A row of a file of jobs.

    Attributes:
        line: The physical line on which it begins, from 1.
        declared: What it says, or why that cannot be.
        jid: As far as it can be read, else "".
        cluster: The same, else None.
    """

    line: int
    declared: Registration | Refused
    jid: str = ""
    cluster: str | None = None


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
        jid: And further facts: as for `Registration`.
        registered_by: Who registers it; default the login of this process.
        settings: Default: those of this process (`settings.load`, without keys), read once.
        now: For simulations; default the database's clock.

    Raises:
        InvalidField: A value is wrong; nothing was inserted, and the transaction goes on.
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
    dry_run: bool = False,
) -> list[Outcome]:
    """Register many jobs in the caller's transaction, and return the result for each, in order.

    A refusal is returned, not raised, and the other jobs are registered. All are held in memory: give some thousands.

    Args:
        connection: As for `register`, as are the other arguments and errors.
        registrations: The same job twice is harmless, or a `Conflict`, as it is when it comes later.
        dry_run: Write nothing; return what would be.
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

    recorded = _recorded(connection, jobs, zone_of)
    other_case = _in_other_case(connection, jobs)
    # In the order of the keys, so that two sessions with the same jobs wait for each other, and do not deadlock.
    missing = [jobs[key] for key in sorted(jobs) if key not in recorded and key not in other_case]
    new = {job.key for job in missing} if dry_run else _insert(connection, missing, registrar)
    recorded |= _recorded(connection, jobs.keys() - new - recorded.keys(), zone_of)

    outcomes: list[Outcome] = []
    for one in checked:
        if isinstance(one, InvalidField):
            outcomes.append(one)
        elif one.key in new:
            new.remove(one.key)  # a second row about it finds it there
            recorded[one.key] = one.facts, one.deadline
            outcomes.append(Registered(*one.key, already=False, deadline=one.deadline))
        elif one.key in recorded:
            facts, due = recorded[one.key]
            compared = compare(facts, one.facts)
            differences = {name: (str(there or "unknown"), str(given)) for name, (there, given) in compared.items()}
            again = Registered(*one.key, already=True, deadline=due)
            outcomes.append(Conflict(*one.key, differences) if differences else again)
        else:
            why = f"is registered already as {other_case[one.key]!r}: a GUID means the same in capitals"
            outcomes.append(InvalidField("jid", why))
    return outcomes


def register_rows(
    engine: sa.Engine,
    rows: Iterable[JobRow],
    *,
    settings: Settings | None = None,
    dry_run: bool = False,
) -> Iterator[list[tuple[JobRow, Outcome]]]:
    """Register the rows of a file; yield each piece of them with its results, once it is committed.

    No transaction is open while a row is waited for. A dry run writes nothing, and so compares each row only with what
    is registered and with its own piece.

    Raises:
        DatabaseUnavailable: What was yielded is committed; to begin again with the first row is harmless.
    """
    rows = iter(rows)
    transaction = database.reading if dry_run else database.writing
    while piece := list(islice(rows, PIECE)):
        declared = [row.declared for row in piece if isinstance(row.declared, Registration)]
        with transaction(engine) as connection:
            outcomes = iter(register_many(connection, declared, settings=settings, dry_run=dry_run))
        yield [(row, row.declared if isinstance(row.declared, Refused) else next(outcomes)) for row in piece]


def login() -> str:
    """Return the name of the user that this process runs as; ``uid N`` where it has none, as in many a container."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"


def read(
    file: BinaryIO, zone: ZoneInfo, notes: files.Notes, *, cluster: str | None = None, kind: str | None = None
) -> Iterator[JobRow]:
    """Yield the rows of a file of jobs, one that cannot be read included; arguments and errors as for `files.read`.

    Args:
        file: Its columns are `COLUMNS`.
        zone: The legal time zone: a plain date is taken as that day's start there.
        notes: Is kept up to date.
        cluster, kind: For rows that name none.
    """
    for record in files.read(file, COLUMNS, notes):
        values = {"cluster": cluster, "kind": kind, "jid": ""} | record.values
        jid, its_cluster = values["jid"] or "", values["cluster"]
        times: dict[str, datetime] = {}
        problem = record.problem
        try:
            for name in ("submitted_at", "received_at"):
                if written := values.get(name):
                    times[name] = parse_time(name, written, zone)
        except InvalidField as error:
            problem = error
        declared = Registration(jid, its_cluster, values["kind"], reference=values.get("reference"), **times)
        yield JobRow(record.line, problem or declared, jid, its_cluster)


@lru_cache  # a file repeats its days
def parse_time(field: str, text: str, zone: ZoneInfo) -> datetime:
    """Return the instant (UTC) that *text* means; a plain date is taken as that day's start in *zone*.

    Args:
        field: The column's name, for the error.
        text: ISO 8601, with an offset or Z unless it is a plain date.
        zone: The legal time zone.

    Raises:
        InvalidField: It is not a time, or has no offset.
    """
    try:
        found = day_or_instant(text)
        return found.astimezone(UTC) if isinstance(found, datetime) else start_of_day(found, zone)
    except ValueError as error:
        raise InvalidField(field, str(error)) from None
    except OverflowError as error:
        raise InvalidField(field, f"{text[:60]!r} is not a time ({error}): {_TIME_FORM}") from None


def day_or_instant(text: str) -> date | datetime:
    """Return the day, or the aware instant, that *text* is in ISO 8601; raise ValueError with what is wrong."""
    found: date | None = None
    for parse in (date.fromisoformat, datetime.fromisoformat):
        with suppress(ValueError):
            found = found or parse(text)
    if found is None:
        raise ValueError(f"{text[:60]!r} is not a time: {_TIME_FORM}")
    if isinstance(found, datetime) and found.tzinfo is None:
        raise ValueError(f"{text!r} has no offset, so the instant is unclear: {_TIME_FORM}")
    return found


@cache
def _settings_of_this_process() -> Settings:
    return _settings.load(keys=False)


def instant(field: str, at: object, now: datetime) -> datetime:
    """Return a declared time in UTC; raise InvalidField if it is not one, or is in the future."""
    if not isinstance(at, datetime):
        raise InvalidField(field, f"must be a datetime with a time zone, not {type(at).__name__}")
    if at.utcoffset() is None:
        raise InvalidField(field, f"{at} has no time zone, so the instant is unclear")
    if at > now + SKEW:
        raise InvalidField(field, f"{at} is in the future: the database's clock says {now.isoformat(' ', 'seconds')}")
    if at < _EARLIEST:
        raise InvalidField(field, f"{at} is before 1970")
    return at.astimezone(UTC)


def check(
    declared: Registration, cluster_of: Callable[[str | None], str], now: datetime
) -> tuple[tuple[str, str], Facts]:
    """Return what is declared, as the key (cluster, jid) and the facts that `register` would record at *now*.

    Args:
        cluster_of: Returns the name of a cluster, of the one that is meant by None, or raises.

    Raises:
        InvalidField: For the first value that is wrong.
    """
    jid = text.check_jid(declared.jid)
    cluster = cluster_of(None if declared.cluster is None else text.check("cluster", declared.cluster))
    try:
        kind = Kind(declared.kind or Kind.UNKNOWN)
    except ValueError:
        raise InvalidField("kind", f"{str(declared.kind)[:60]!r}: write export, removal or unknown") from None
    submitted_at = None if declared.submitted_at is None else instant("submitted_at", declared.submitted_at, now)
    received_at = None if declared.received_at is None else instant("received_at", declared.received_at, now)
    reference = declared.reference
    left_out = reference is None or (isinstance(reference, str) and not text.strip(reference))
    reference = None if left_out else text.check_no_address("reference", reference)
    return (cluster, jid), Facts(kind, reference, received_at, submitted_at)


def _check(declared: Registration, cluster_of: Callable[[str | None], str], zone_of: _ZoneOf, now: datetime) -> _Job:
    """Return *declared* as it can be registered at *now*; raise InvalidField for the first value that is wrong."""
    key, facts = check(declared, cluster_of, now)
    # Within SKEW a submission may be ahead of our clock; that it is not after its registration holds all the same.
    registered_at = max(now, facts.submitted_at or now, facts.received_at or now)
    return _Job(key, facts, registered_at, deadline_of(facts, registered_at, zone_of(key[0], now), ()))


def _insert(connection: sa.Connection, jobs: Collection[_Job], registrar: str) -> set[_Key]:
    """Insert *jobs*, and return the keys of those that no other session has inserted meanwhile."""
    if not jobs:
        return set()
    rows = [
        {
            "cluster": key[0],
            "jid": key[1],
            "registered_at": registered_at,
            "registered_by": registrar,
            "deadline_at": due.at,
            "deadline_on": due.on,
            "due_at": registered_at,
            **{name: getattr(facts, name) for name in ("kind", "reference", "received_at", "submitted_at")},
        }
        for key, facts, registered_at, due in jobs
    ]
    insert = sa.insert(JOBS)
    if connection.dialect.name == "postgresql":  # on SQLite no other session can write in the meantime
        insert = postgresql.insert(JOBS).on_conflict_do_nothing(index_elements=["cluster", "jid"])
    return {(row[0], row[1]) for row in connection.execute(insert.returning(JOBS.c.cluster, JOBS.c.jid), rows)}


def _recorded(
    connection: sa.Connection, keys: Collection[_Key], zone_of: _ZoneOf
) -> dict[_Key, tuple[Facts, Deadline]]:
    """Return the facts and the deadline of those of *keys* that are registered, as they are after any amendment."""
    names = ("cluster", "jid", *Facts.__dataclass_fields__, "registered_at", "deadline_on", "deadline_at")
    return {
        (row.cluster, row.jid): (facts_of(row), _deadline_of(row, zone_of(row.cluster, row.registered_at)))
        for row in registered(connection, keys, *names)
    }


def registered(connection: sa.Connection, keys: Iterable[_Key], *names: str) -> Iterator[sa.Row[Any]]:
    """Yield these columns of the jobs among *keys* that are registered, many with one statement."""
    jids: dict[str, list[str]] = {}
    for cluster, jid in keys:
        jids.setdefault(cluster, []).append(jid)
    for cluster, its in jids.items():
        for start in range(0, len(its), _LOOKED_UP):
            some = its[start : start + _LOOKED_UP]
            query = sa.select(*(JOBS.c[name] for name in names)).where(JOBS.c.cluster == cluster)
            yield from connection.execute(query.where(JOBS.c.jid.in_(some)))


def other_cases(jid: str) -> set[str]:
    """Return how else a GUID may be written, in small letters or in capitals; nothing if *jid* is no GUID."""
    return {jid.lower(), jid.upper()} - {jid} if _GUID.fullmatch(jid) else set()


def _in_other_case(connection: sa.Connection, keys: Iterable[_Key]) -> dict[_Key, str]:
    """Return the other spelling of each GUID that the database or an earlier key has in the other case.

    One that is registered in mixed case is not found: no index serves that.
    """
    guids = [key for key in keys if _GUID.fullmatch(key[1])]
    others = ((cluster, form) for cluster, jid in guids for form in other_cases(jid))
    first = {(row.cluster, row.jid.lower()): row.jid for row in registered(connection, others, "cluster", "jid")}
    for cluster, jid in guids:
        first.setdefault((cluster, jid.lower()), jid)
    return {key: written for key in guids if (written := first[key[0], key[1].lower()]) != key[1]}


def _deadline_of(row: sa.Row[Any], zone: ZoneInfo) -> Deadline:
    """Return the deadline in a row of jobs, or what it will be where plain SQL put the row there and none is yet."""
    if row.deadline_at is not None:
        return Deadline(row.deadline_on, row.deadline_at)
    return deadline_of(facts_of(row), row.registered_at, zone, [(row.registered_at, row.extended_on)])


def known_clusters(connection: sa.Connection, configured: Iterable[str]) -> list[str]:
    """Return the names of all clusters that are configured or in the database, in order."""
    query = sa.union(sa.select(CLUSTERS.c.cluster), sa.select(JOBS.c.cluster))
    return sorted({*configured, *connection.scalars(query)})


def check_cluster(name: str, known: Collection[str]) -> str:
    """Return *name*; raise InvalidField if it is not one of *known*."""
    if name not in known:
        raise InvalidField("cluster", f"there is no cluster {name[:80]!r}; there are: {', '.join(known) or 'none yet'}")
    return name


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
