"""Reconciling: whether the company's own log of submitted jids and what is registered agree.

Only registered jobs are followed, so an independent list of submissions is the only check that none was
forgotten. Owns what is compared and what a difference is called; it writes nothing. Leaves alone: reading a file and
what a declared value may be (``files``, ``intake``).

*Here* is tracker's database, *there* the file. In memory are the file's keys and facts, and what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Final, NamedTuple, TypeAlias

import sqlalchemy as sa

from tracker import database, intake, text
from tracker.errors import InvalidField, Refused
from tracker.models import JOBS, facts_of
from tracker.settings import Settings
from tracker.status import Facts

_COLUMNS: Final = ("cluster", "jid", *Facts.__dataclass_fields__)
_FETCH: Final = 5_000
"""Rows of the database held at once."""

_Key: TypeAlias = tuple[str, str]


class DifferenceKind(StrEnum):
    """What can be found."""

    WRONG_ROW = "wrong_row"
    """A row of the file cannot be read, or has a wrong value; its job counts as not there."""
    DIFFERS = "differs"
    """A fact is registered otherwise than a row says."""
    MISSING_HERE = "missing_here"
    """It is in the file, but not registered: tracker does not follow it."""
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
    """The result.

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
) -> Reconciliation:
    """Compare a file of submitted jobs with what is registered, as it is after any amendment; write nothing.

    A job of the file is looked for among all that are registered. A registered job should be in the file if it is
    within the scope: of a cluster that the file names (or *cluster*), and submitted, else registered, within *since*
    and *until*. A fact that the file leaves out is not compared.

    Args:
        engine: Of tracker's database; it is read at one instant, after the last row.
        rows: From `intake.read`.
        settings: For the clusters; one that is only in the database is known, too.
        cluster: In the scope though no row names it; where no row names any, the one that is configured is.
        since: Aware.
        until: Aware; the first instant that is not in the scope any more.

    Raises:
        InvalidField: *cluster* is unknown, *until* is not after *since*, or the file names none of several clusters.
        Refused: The file is no file of jobs.
        BadConfiguration: A row names no cluster, and none is configured.
        DatabaseUnavailable: Try again.
    """
    if since is not None and until is not None and since >= until:
        raise InvalidField("until", f"{until} is not after since, {since}: there is no time between them")
    listed = list(rows)  # first, so that no transaction is open while a row is waited for
    with database.reading(engine) as connection:
        known, now = intake.known_clusters(connection, settings.clusters), database.now(connection)

        @cache
        def cluster_of(name: str | None) -> str:
            if name is None or not known:
                return settings.cluster(name).name
            return intake.check_cluster(name, known)

        clusters = set() if cluster is None else {cluster_of(cluster)}
        declared, findings = _in_file(listed, cluster_of, now)
        jobs = {key: line for line, key, _ in reversed(declared)}  # with the first line about each
        clusters |= {cluster for cluster, _ in jobs}
        for row in listed:
            with suppress(InvalidField):  # it may be the cluster that is wrong
                if row.jid or row.cluster:
                    clusters.add(cluster_of(row.cluster))
        # Without a scope an empty log would agree with everything.
        if not clusters and (not findings or len(settings.clusters) == 1):
            clusters.add(cluster_of(None))
        began_at = sa.func.coalesce(JOBS.c.submitted_at, JOBS.c.registered_at)
        within = sa.select(*(JOBS.c[name] for name in _COLUMNS)).where(JOBS.c.cluster.in_(clusters))
        within = within if since is None else within.where(began_at >= since)
        within = within if until is None else within.where(began_at < until)
        in_scope: dict[_Key, Facts | None] = {}
        for job in connection.execute(within, execution_options={"yield_per": _FETCH}):
            key = job.cluster, job.jid
            in_scope[key] = facts_of(job) if key in jobs else None
        others = intake.registered(connection, jobs.keys() - in_scope.keys(), *_COLUMNS)
        registered = in_scope | {(job.cluster, job.jid): facts_of(job) for job in others}

    for line, key, given in declared:
        if (facts := registered.get(key)) is not None:
            for field, (here, there) in intake.compare(facts, given).items():
                findings.append(Difference(DifferenceKind.DIFFERS, line, *key, field, here, there))
        elif jobs[key] == line:
            findings.append(Difference(DifferenceKind.MISSING_HERE, line, *key))
    findings.sort(key=lambda found: found.line or 0)  # the others keep their order
    missing_there = sorted(in_scope.keys() - jobs.keys())
    findings += [Difference(DifferenceKind.MISSING_THERE, None, *key) for key in missing_there]
    return Reconciliation(findings, tuple(sorted(clusters)), len(listed), len(jobs), len(in_scope))


def _in_file(
    rows: Iterable[intake.JobRow], cluster_of: Callable[[str | None], str], now: datetime
) -> tuple[list[tuple[int, _Key, Facts]], list[Difference]]:
    """Return what each row says, with its line, and which rows are wrong."""
    declared: list[tuple[int, _Key, Facts]] = []
    wrong: list[Difference] = []
    for row in rows:
        try:
            if isinstance(row.declared, Refused):
                raise row.declared
            declared.append((row.line, *intake.check(row.declared, cluster_of, now)))
        except Refused as error:
            field, problem = (error.field, error.problem) if isinstance(error, InvalidField) else (None, str(error))
            jid = row.jid[: text.LONGEST] or None
            wrong.append(Difference(DifferenceKind.WRONG_ROW, row.line, row.cluster, jid, field, problem=problem))
    return declared, wrong
