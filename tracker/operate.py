"""An operator's decisions: about a job (withdraw, reopen), and about a cluster (pause, resume).

Owns finding a job by its jid, what a reason may be, and writing a decision: its transition and the job's row in the
caller's transaction. Leaves alone: whether a decision is legal (``status``), who the operator is (``cli``), and closing
a gap, which only a valid answer does (``poller``).

Locks one job's row, or one cluster's, at a time, so that no operator and poller ever wait for each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from tracker import database, status
from tracker.errors import AmbiguousJob, InvalidField, UnknownJob
from tracker.models import CLUSTERS, JOBS, TRANSITIONS, job_of, observed_values, transition_values
from tracker.status import Cause, Decision, State

LONGEST_REASON = 1000
"""Characters; ours: a sentence or two, not a file."""
LONGEST_ACTOR = 255
"""Characters; as long as ``registered_by`` may be."""

_TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
"""No C0, DEL, C1, and no surrogate, which is what Python makes of bytes in an argument that are not UTF-8."""


@dataclass(frozen=True, slots=True)
class Found:
    """A job that is registered."""

    job_id: int
    cluster: str
    jid: str


@dataclass(frozen=True, slots=True)
class Standing:
    """A cluster's pause and open gap.

    Attributes:
        pause_cause: Why it is paused; None: it is not.
        paused_until: None while paused: until an operator resumes it.
        gap_began_at: Since when nothing could be observed of it; None: no gap is open.
        gap_cause: Why.
        gap_detail: An operator's reason, or the code of an error.
    """

    pause_cause: Cause | None = None
    paused_until: datetime | None = None
    gap_began_at: datetime | None = None
    gap_cause: Cause | None = None
    gap_detail: str | None = None


def find(connection: sa.Connection, jid: str, cluster: str | None = None) -> Found:
    """Return the job with this jid, in any cluster if *cluster* is None.

    Raises:
        UnknownJob: There is none; the message gives the way out.
        AmbiguousJob: Several clusters have one; the message names them.
    """
    query = sa.select(JOBS.c.id, JOBS.c.cluster).where(JOBS.c.jid == jid).order_by(JOBS.c.cluster)
    rows = connection.execute(query).all() if is_text(jid) else []
    found = [Found(row.id, row.cluster, jid) for row in rows if cluster in (None, row.cluster)]
    if len(found) == 1:
        return found[0]
    shown, others = repr(jid[:255]), ", ".join(row.cluster for row in rows)
    if found:
        raise AmbiguousJob(f"several clusters have a job {shown}, so say which one with --cluster: {others}")
    if others:
        raise UnknownJob(f"cluster {str(cluster)[:80]!r} has no job {shown}; found in: {others} (--cluster)")
    at = "" if cluster is None else f" --cluster {cluster[:80]}"
    raise UnknownJob(f"no job has the jid {shown}; register it with: tracker add JID{at}")


def is_text(text: str) -> bool:
    """Return whether a database can hold *text* in a column of ours: it has no control character, and is UTF-8."""
    return _TEXT.fullmatch(text) is not None


def check_reason(reason: str) -> str:
    """Return *reason* without blanks at its ends.

    Raises:
        InvalidField: It is blank, too long, or holds what a reason must not.
    """
    reason = reason.strip()
    if not reason:
        raise InvalidField("reason", "is blank; say why, for whoever reads the history")
    if "@" in reason:
        raise InvalidField(
            "reason",
            "has an @ in it: an address is personal data, and what is in the history cannot be taken out of it again; "
            "name a ticket instead",
        )
    return _checked("reason", reason, LONGEST_REASON)


def check_actor(actor: str) -> str:
    """Return *actor* without blanks at its ends.

    Raises:
        InvalidField: It is blank, too long, or has a control character in it.
    """
    actor = actor.strip()
    if not actor:
        raise InvalidField("actor", "is blank; say who decides")
    return _checked("actor", actor, LONGEST_ACTOR)


def _checked(field: str, text: str, longest: int) -> str:
    if len(text) > longest:
        raise InvalidField(field, f"has {len(text)} characters; at most {longest} are kept")
    if not is_text(text):
        raise InvalidField(field, "has a line break, another control character, or bytes that are not UTF-8 in it")
    return text


def withdraw(connection: sa.Connection, job_id: int, actor: str, reason: str, *, dry_run: bool = False) -> Decision:
    """Close an open, failed or lost job, and return what became of it.

    Args:
        connection: In a transaction of `database.writing` that the caller commits.
        job_id: From `find`.
        actor: Who decides.
        reason: Why; kept in the history for ever.
        dry_run: Decide and write nothing; a transaction of `database.reading` will do.

    Raises:
        Refused: The job is in another state, or the reason or the actor will not do (`InvalidField`).
    """
    actor, reason = check_actor(actor), check_reason(reason)
    return _carry_out(connection, job_id, lambda job, at: status.withdraw(job, at, actor, reason), dry_run)


def reopen(connection: sa.Connection, job_id: int, actor: str, reason: str, *, dry_run: bool = False) -> Decision:
    """Open a failed, lost, attested or withdrawn job again, to be asked at once, and return what became of it.

    Arguments and errors are those of `withdraw`.
    """
    actor, reason = check_actor(actor), check_reason(reason)
    return _carry_out(connection, job_id, lambda job, at: status.reopen(job, at, actor, reason), dry_run)


def _carry_out(
    connection: sa.Connection, job_id: int, decide: Callable[[status.Job, datetime], Decision], dry_run: bool
) -> Decision:
    """Return what *decide* makes of the job now, and write it."""
    query = sa.select(JOBS).where(JOBS.c.id == job_id)
    row = connection.execute(query if dry_run else query.with_for_update()).one()
    at = database.now(connection)
    decision = decide(job_of(row), at)
    job, transition = decision.job, decision.transition
    if dry_run or transition is None:
        return decision
    changes: dict[str, Any] = observed_values(job)
    if job.state is not row.state:
        # The answer of a poll that is under way is about another state: it finds its lease lost and is left alone.
        changes |= {"due_at": None, "leased_by": None, "leased_until": None}
        if job.state is State.OPEN:
            changes |= {"due_at": at, "failures": 0, "last_error": None}
    connection.execute(sa.insert(TRANSITIONS).values(transition_values(job_id, transition)))
    connection.execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(changes))
    return decision


def pause(
    connection: sa.Connection, cluster: str, reason: str, configured: Collection[str] = ()
) -> tuple[Standing, Standing]:
    """Stop the polling of *cluster* until it is resumed, and return how it stood before and stands now.

    Opens a gap with *reason* as its detail; a gap that is open already stays as it is. Harmless if it is paused so
    already.

    Args:
        connection: In a transaction of `database.writing` that the caller commits.
        cluster: Its name.
        reason: Why.
        configured: The clusters in the settings: one that was never polled can be paused too.

    Raises:
        InvalidField: The reason will not do, or nobody has heard of the cluster; then the message names those known.
    """
    reason = check_reason(reason)
    before = _lock(connection, cluster, configured)
    if before.pause_cause is Cause.PAUSED:
        return before, before
    values: dict[str, Any] = {"pause_cause": Cause.PAUSED, "paused_until": None}
    if before.gap_began_at is None:
        values |= {"gap_began_at": database.now(connection), "gap_cause": Cause.PAUSED, "gap_detail": reason}
    else:  # what the gap was before stays in it, and from when on it is ours too
        told = f"paused {database.now(connection).isoformat(' ', 'seconds')}: {reason}"
        values["gap_detail"] = "; ".join(filter(None, (before.gap_detail, told)))
    return before, _change(connection, cluster, values)


def resume(
    connection: sa.Connection, cluster: str, reason: str | None = None, configured: Collection[str] = ()
) -> tuple[Standing, Standing]:
    """End the pause of *cluster*, whatever caused it, and return how it stood before and stands now.

    The gap stays open until a valid answer comes; *reason*, if there is one, is added to its detail. Harmless if the
    cluster is not paused. Arguments and errors are those of `pause`.
    """
    reason = None if reason is None else check_reason(reason)
    before = _lock(connection, cluster, configured)
    if before.pause_cause is None:
        return before, before
    values: dict[str, Any] = {"pause_cause": None, "paused_until": None}
    if before.gap_began_at is not None and reason is not None:
        values["gap_detail"] = "; ".join(filter(None, (before.gap_detail, f"resumed: {reason}")))
    return before, _change(connection, cluster, values)


def known_clusters(connection: sa.Connection, configured: Collection[str] = ()) -> list[str]:
    """Return the names of all clusters that are configured or in the database."""
    query = sa.union(sa.select(CLUSTERS.c.cluster), sa.select(JOBS.c.cluster))
    return sorted({*configured, *connection.execute(query).scalars()})


def _lock(connection: sa.Connection, cluster: str, configured: Collection[str]) -> Standing:
    """Return how *cluster* stands, its row made if there was none, and locked."""
    if cluster not in configured and cluster not in (known := known_clusters(connection, configured)):
        told = f"known: {', '.join(known)}" if known else "none is known yet"
        raise InvalidField("cluster", f"{cluster[:80]!r} is neither configured nor in the database ({told})")
    make = sa.text("INSERT INTO clusters (cluster) VALUES (:cluster) ON CONFLICT DO NOTHING")
    connection.execute(make, {"cluster": cluster})
    row = connection.execute(sa.select(CLUSTERS).where(CLUSTERS.c.cluster == cluster).with_for_update()).one()
    return _standing(row)


def _change(connection: sa.Connection, cluster: str, values: dict[str, Any]) -> Standing:
    connection.execute(sa.update(CLUSTERS).where(CLUSTERS.c.cluster == cluster).values(values))
    return _standing(connection.execute(sa.select(CLUSTERS).where(CLUSTERS.c.cluster == cluster)).one())


def _standing(row: sa.Row[Any]) -> Standing:
    return Standing(row.pause_cause, row.paused_until, row.gap_began_at, row.gap_cause, row.gap_detail)
