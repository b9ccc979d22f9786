"""Reconciling: whether the company's own log of submitted jids and what is registered agree.

Only a job that is registered can be followed, so a log that somebody else keeps is the one check that none was
forgotten. Owns what is compared and what a difference is called; it writes nothing. Leaves alone: reading a file and
what a declared value may be (``files``, ``intake``).

*Here* is tracker's database, *there* the file. In memory are the file's keys and facts, and what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import cache
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

import sqlalchemy as sa

from tracker import database, intake, text
from tracker.errors import InvalidField, Refused
from tracker.models import JOBS, facts_of
from tracker.settings import Settings
from tracker.status import Facts, Kind

_COLUMNS: Final = ("cluster", "jid", *Facts.__dataclass_fields__)
_FETCH: Final = 5_000
"""Rows of the database held at once."""

_Key: TypeAlias = tuple[str, str]


class DifferenceKind(StrEnum):
    """What can be found."""

    WRONG_ROW = "wrong_row"
    """A row of the file cannot be read, or has a wrong value; its job counts as not there."""
    CONTRADICTS = "contradicts"
    """A row gives a fact another value than an earlier row about the same job."""
    DIFFERS = "differs"
    """A fact is registered otherwise than the file first says."""
    MISSING_HERE = "missing_here"
    """It is in the file, and not registered: nobody follows it."""
    MISSING_THERE = "missing_there"
    """It is registered, within the scope, and not in the file."""


class Difference(NamedTuple):
    """One difference.

    Attributes:
        finding: What it is.
        line: Of the file; None where the job is not in it.
        cluster: None where a wrong row does not name it.
        jid: As the file, or else the database, has it.
        field: The fact that differs, or that is wrong.
        here: The registered value; None is unknown, or not registered.
        there: The file's value.
        problem: What is wrong with a row.
    """

    finding: DifferenceKind
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
        clusters: Of the scope.
        rows: Of the file.
        jobs: In the file, each counted once.
        registered: Jobs within the scope: those that should be in the file.
    """

    findings: list[Difference]
    clusters: tuple[str, ...]
    rows: int
    jobs: int
    registered: int


def reconcile(
    engine: sa.Engine,
    rows: Iterable[intake.JobRow],
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
        settings: For the clusters; one that is only in the database is known, too.
        cluster: In the scope though no row names it; where no row names any, the one that is configured is.
        since: Aware.
        until: Aware; the first instant that is not in the scope any more.
        moved: Is called with how many rows have been read.

    Raises:
        InvalidField: *cluster* is unknown, *until* is not after *since*, or the file names none of several clusters.
        Refused: The file is no file of jobs.
        BadConfiguration: A row names no cluster, and none is configured.
        DatabaseUnavailable: Try again.
    """
    if since is not None and until is not None and since >= until:
        raise InvalidField("until", f"{until} is not after since, {since}: no job can lie between them")
    with database.reading(engine) as connection:
        known = intake.known_clusters(connection, settings.clusters)

    @cache
    def cluster_of(name: str | None) -> str:
        if name is None or not known:
            return settings.cluster(name).name
        if name not in known:
            raise InvalidField("cluster", f"there is no cluster {name[:80]!r}; there are: {', '.join(known)}")
        return name

    clusters = set() if cluster is None else {cluster_of(cluster)}
    findings: list[Difference] = []
    jobs: dict[_Key, tuple[int, Facts]] = {}
    read = 0
    rows = iter(rows)
    while piece := list(islice(rows, intake.PIECE)):
        with database.reading(engine) as connection:
            now = database.now(connection)
        for row in piece:
            try:
                if isinstance(row.declared, Refused):
                    raise row.declared
                key, facts = intake.check(row.declared, cluster_of, now)
            except Refused as error:
                findings.append(_wrong(row, error))
                with suppress(InvalidField):  # it may be the cluster that is wrong
                    if row.jid or row.cluster:
                        clusters.add(cluster_of(row.cluster))
                continue
            line, earlier = jobs.setdefault(key, (row.line, facts))
            more: dict[str, Any] = {}
            for field, (before, value) in intake.compare(earlier, facts).items():
                if before is None or before is Kind.UNKNOWN:
                    more[field] = value
                else:
                    why, kind = f"an earlier row says {before}", DifferenceKind.CONTRADICTS
                    findings.append(Difference(kind, row.line, *key, field, there=value, problem=why))
            if more:
                jobs[key] = line, replace(earlier, **more)
        read += len(piece)
        moved(read)
    clusters.update(cluster for cluster, _ in jobs)
    # Without a scope an empty log would agree with everything.
    if not clusters and (not findings or len(settings.clusters) == 1):
        clusters.add(cluster_of(None))
    in_file, in_scope = len(jobs), 0

    def compare(job: sa.Row[Any]) -> None:
        """Compare a registered job with the file, and take it off the list of those that are missing here."""
        key = job.cluster, job.jid
        line, facts = jobs.pop(key)
        for field, (here, there) in intake.compare(facts_of(job), facts).items():
            findings.append(Difference(DifferenceKind.DIFFERS, line, *key, field, here, there))

    missing_there: list[_Key] = []
    with database.reading(engine) as connection:
        began_at = sa.func.coalesce(JOBS.c.submitted_at, JOBS.c.registered_at)
        within = sa.select(*(JOBS.c[name] for name in _COLUMNS)).where(JOBS.c.cluster.in_(clusters))
        within = within if since is None else within.where(began_at >= since)
        within = within if until is None else within.where(began_at < until)
        for job in connection.execute(within, execution_options={"yield_per": _FETCH}):
            in_scope += 1
            if (job.cluster, job.jid) in jobs:
                compare(job)
            else:
                missing_there.append((job.cluster, job.jid))
        for job in intake.registered(connection, list(jobs), *_COLUMNS):  # outside the scope
            compare(job)
    findings += [Difference(DifferenceKind.MISSING_HERE, line, *key) for key, (line, _) in jobs.items()]
    findings.sort(key=lambda found: found.line or 0)  # the others keep their order
    findings += [Difference(DifferenceKind.MISSING_THERE, None, *key) for key in sorted(missing_there)]
    return Reconciliation(findings, tuple(sorted(clusters)), read, in_file, in_scope)


def _wrong(row: intake.JobRow, error: Refused) -> Difference:
    field, problem = (error.field, error.problem) if isinstance(error, InvalidField) else (None, str(error))
    jid = row.jid[: text.LONGEST] or None
    return Difference(DifferenceKind.WRONG_ROW, row.line, row.cluster, jid, field, problem=problem)
