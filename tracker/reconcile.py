"""Reconciling: whether the company's own log of submitted jids and what is registered agree.

Only a job that is registered can be followed, so a log that somebody else keeps is the one check that none was
forgotten. Owns what is compared and what a disagreement is called. Leaves alone: reading a file and what a declared
value may be (`intake`); it writes nothing.

*Here* is tracker's database, *there* the file. In memory are the file's keys and facts, and what was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

import sqlalchemy as sa

from tracker import database, intake, text
from tracker.errors import BadConfiguration, InvalidField, Refused
from tracker.models import CLUSTERS, JOBS, facts_of
from tracker.settings import Settings
from tracker.status import Facts, Kind

_NOTHING: Final = Facts(Kind.UNKNOWN, None, None, None)
_COLUMNS: Final = tuple(JOBS.c[name] for name in ("cluster", "jid", *Facts.__dataclass_fields__))
_FETCH: Final = 5_000
"""Rows of the database held at once."""
_LOOKED_UP: Final = 1_000
"""Jids in one statement: a database takes only so many parameters."""

_Key: TypeAlias = tuple[str, str]
_Given: TypeAlias = tuple[int, Facts]


class Disagreement(StrEnum):
    """What can be found."""

    WRONG_ROW = "wrong_row"
    """A row of the file is none, or has a value that cannot be; its job counts as not there."""
    CONTRADICTS = "contradicts"
    """Rows of the file give one job different values of one fact; each value is a finding."""
    DIFFERS = "differs"
    """A fact is registered otherwise than the file says."""
    MISSING_HERE = "missing_here"
    """It is in the file, and not registered: nobody follows it."""
    MISSING_THERE = "missing_there"
    """It is registered, within the scope, and not in the file."""


class Finding(NamedTuple):
    """One disagreement.

    Attributes:
        finding: What it is.
        line: Of the file; None where the job is not in it.
        cluster: None where a wrong row leaves it open.
        jid: As the file, or else the database, has it; of a wrong row no more than a jid can have.
        field: The fact that differs, or that is wrong.
        here: The registered value; None is unknown, or not registered.
        there: The file's value.
        problem: What is wrong with a row.
    """

    finding: Disagreement
    line: int | None
    cluster: str | None
    jid: str | None
    field: str | None = None
    here: intake.Value = None
    there: intake.Value = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What came of it.

    Attributes:
        findings: By line, then what is missing there by cluster and jid; empty: all agree.
        clusters: Of the scope: the registered jobs that should be in the file.
        since, until: Its bounds.
        rows: Of the file.
        jobs: In the file, each counted once.
        registered: Jobs within the scope.
        plain_dates: Times in the file that are plain dates, taken as that day's start.
    """

    findings: list[Finding]
    clusters: tuple[str, ...]
    since: datetime | None
    until: datetime | None
    rows: int
    jobs: int
    registered: int
    plain_dates: int

    def count(self) -> dict[Disagreement, int]:
        """Return how many findings there are of each kind."""
        counted = Counter(found.finding for found in self.findings)
        return {kind: counted[kind] for kind in Disagreement}


def reconcile(
    engine: sa.Engine,
    rows: Iterable[intake.Row],
    *,
    settings: Settings,
    cluster: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    moved: Callable[[int], None] = lambda rows: None,
) -> Reconciliation:
    """Compare a file of submitted jobs with what is registered, as it is after any amendment; write nothing.

    A job of the file is looked for among all that are registered. A registered job should be in the file if it is
    within the scope: of a cluster that the file names (or *cluster*), and submitted, else registered, within *since*
    and *until*. A fact that the file leaves out is not compared.

    Args:
        engine: Of tracker's database; it is read at one instant, after the last row.
        rows: From `intake.read`; no transaction is open while one is waited for.
        settings: For the clusters; one that is only in the database will do.
        cluster: In the scope though no row names it; where no row names any, the one that is configured is.
        since: Aware.
        until: Aware; the first instant that is not in the scope any more.
        moved: Is told how many rows have been read.

    Raises:
        InvalidField: *cluster* is unknown, a bound cannot be, or nobody can tell which cluster an empty file is about.
        Refused: The file is none at all.
        BadConfiguration: A row names no cluster, and none is configured.
        DatabaseUnavailable: Try again.
    """
    if since is not None and until is not None and since >= until:  # refused before a row is read
        raise InvalidField("until", f"{until} is not after since, {since}: no job can lie between them")
    with database.reading(engine) as connection:
        known = set(connection.scalars(sa.union(sa.select(JOBS.c.cluster), sa.select(CLUSTERS.c.cluster))))

    @cache
    def cluster_of(name: str | None) -> str:
        if name is None and not settings.clusters:
            raise BadConfiguration(
                "the file does not name the cluster, and none is configured: say --cluster NAME, add a column cluster, "
                "or set TRACKER_CLUSTER"
            )
        if name is None or not known or name in settings.clusters:
            return settings.cluster(name).name
        if name not in known:
            there = ", ".join(sorted({*known, *settings.clusters}))
            raise InvalidField("cluster", f"there is no cluster {name[:80]!r}; there are: {there}")
        return name

    clusters = set() if cluster is None else {cluster_of(cluster)}
    findings: list[Finding] = []
    jobs: dict[_Key, _Given] = {}
    repeated: dict[_Key, list[_Given]] = {}  # later rows about a job that say something else, or more
    read = plain_dates = 0
    rows = iter(rows)
    while piece := list(islice(rows, intake.PIECE)):
        with database.reading(engine) as connection:
            now = database.now(connection)
        for row in piece:
            plain_dates += row.plain_dates
            try:
                if isinstance(row.declared, Refused):
                    raise row.declared
                key, facts = intake.check(row.declared, cluster_of, now)
            except Refused as error:
                findings.append(_wrong(row, error))
                with suppress(InvalidField):  # it may be the cluster that is wrong
                    if (named := _named(row)) is not None:
                        clusters.add(cluster_of(named.cluster))
                continue
            first = jobs.setdefault(key, (row.line, facts))
            if first[1] != facts:
                repeated.setdefault(key, []).append((row.line, facts))
        read += len(piece)
        moved(read)
    clusters.update(cluster for cluster, _ in jobs)
    # Without a scope an empty log would agree with everything.
    if not clusters and (not findings or len(settings.clusters) == 1):
        clusters.add(cluster_of(None))
    in_file = len(jobs)

    missing_there: list[_Key] = []
    registered = 0

    def meet(job: sa.Row[Any]) -> bool:
        """Compare a registered job with the file, take it off the list, and return whether it was there."""
        key = job.cluster, job.jid
        first = jobs.pop(key, None)
        if first is None:
            return False
        findings.extend(_compare(key, [first, *repeated.get(key, ())], facts_of(job)))
        return True

    with database.reading(engine) as connection:
        if clusters:
            began_at = sa.func.coalesce(JOBS.c.submitted_at, JOBS.c.registered_at)
            within = sa.select(*_COLUMNS).where(JOBS.c.cluster.in_(clusters))
            within = within if since is None else within.where(began_at >= since)
            within = within if until is None else within.where(began_at < until)
            for job in connection.execute(within, execution_options={"yield_per": _FETCH}):
                registered += 1
                if not meet(job):
                    missing_there.append((job.cluster, job.jid))
        if since is not None or until is not None:
            for name in sorted(clusters):
                jids = [jid for cluster, jid in jobs if cluster == name]
                for start in range(0, len(jids), _LOOKED_UP):
                    among = _among(connection, jids[start : start + _LOOKED_UP])
                    for job in connection.execute(sa.select(*_COLUMNS).where(JOBS.c.cluster == name, among)):
                        meet(job)
    for key, first in jobs.items():
        findings.append(Finding(Disagreement.MISSING_HERE, first[0], *key))
        findings.extend(_compare(key, [first, *repeated.get(key, ())], None))
    findings.sort(key=lambda found: found.line or 0)  # the others keep their order
    findings.extend(Finding(Disagreement.MISSING_THERE, None, *key) for key in sorted(missing_there))
    scope = tuple(sorted(clusters)), since, until
    return Reconciliation(findings, *scope, read, in_file, registered, plain_dates)


def _among(connection: sa.Connection, jids: list[str]) -> sa.ColumnElement[bool]:
    """Return the condition that a job has one of *jids*: on PostgreSQL one array, planned in no time."""
    if connection.dialect.name == "sqlite":
        return JOBS.c.jid.in_(jids)
    return JOBS.c.jid == sa.any_(sa.bindparam(None, jids, type_=sa.ARRAY(sa.String())))


def _named(row: intake.Row) -> intake.Registration | None:
    """Return what tells which job *row* is about; None: it is no row at all."""
    return row.named if isinstance(row.declared, Refused) else row.declared


def _wrong(row: intake.Row, error: Refused) -> Finding:
    """Return the finding for a row that cannot be compared."""
    cluster = jid = field = None
    if (named := _named(row)) is not None:
        cluster, jid = named.cluster, named.jid[: text.LONGEST]
    problem = str(error)
    if isinstance(error, InvalidField):
        field, problem = error.field, error.problem
    return Finding(Disagreement.WRONG_ROW, row.line, cluster, jid or None, field, problem=problem)


def _compare(key: _Key, given: Sequence[_Given], recorded: Facts | None) -> Iterator[Finding]:
    """Yield where the rows of the file about a job contradict each other, or the facts *recorded* (None: it is not)."""
    values: dict[str, dict[intake.Value, int]] = {}
    if len(given) > 1:
        for line, facts in given:
            for field, (_, value) in intake.compare(_NOTHING, facts).items():
                values.setdefault(field, {}).setdefault(value, line)
    for field, lines in values.items():
        if len(lines) > 1:
            here = None if recorded is None else getattr(recorded, field)
            for value, line in lines.items():
                yield Finding(Disagreement.CONTRADICTS, line, *key, field, here, value)
    if recorded is None:
        return
    told = set()
    for line, facts in given:
        for field, (here, there) in intake.compare(recorded, facts).items():
            if field not in told and len(values.get(field, ())) < 2:
                told.add(field)  # a row that repeats it adds nothing
                yield Finding(Disagreement.DIFFERS, line, *key, field, here, there)
