"""An operator's decisions: about a job (withdraw, reopen, attest, amend), and about a cluster (pause, resume).

Owns finding a job by its jid, and writing a decision: its transition and the job's row in the caller's transaction.
Leaves alone: whether a decision is legal (``status``), what a declared value may be (``intake``), the legal clock
(``deadline``), who the operator is (``cli``), and closing a gap, which only a valid answer does (``poller``).

Locks one job's row, or one cluster's, at a time, so that no operator and poller ever wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import clusters, database, intake, status, text
from tracker.deadline import Deadline, deadline_of, latest_extension
from tracker.errors import InvalidField, Refused
from tracker.models import (
    CLUSTERS,
    JOBS,
    TRANSITIONS,
    extensions,
    facts_values,
    job_of,
    legal_zones,
    observed_values,
    transition_values,
)
from tracker.status import Cause, Decision, Facts, State, Status

Fact: TypeAlias = str | datetime | date | None
"""A declared value as an operator gives it, not checked yet; None clears it."""


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job that is registered."""

    job_id: int
    cluster: str
    jid: str


@dataclass(frozen=True, slots=True)
class Amendment:
    """The result of an amendment.

    Attributes:
        decision: The job as it is now, and the transition that holds what is now declared.
        was: What was declared before.
        deadline_was: The last day before; None: it had not been computed yet.
        deadline: The deadline now.
    """

    decision: Decision
    was: Facts
    deadline_was: date | None
    deadline: Deadline

    @property
    def idle_extension(self) -> date | None:
        """An extension that does not count: it was recorded too late, or is longer than two months."""
        extended_on = self.decision.job.facts.extended_on
        return None if extended_on == self.deadline.on else extended_on


def find(connection: sa.Connection, jid: str, cluster: str | None = None) -> FoundJob:
    """Return the job with this jid (stripped), of any cluster if *cluster* is None.

    Raises:
        Refused: There is none, or several clusters have one.
    """
    jid = text.strip(jid)
    query = sa.select(JOBS.c.id, JOBS.c.cluster).where(JOBS.c.jid == jid).order_by(JOBS.c.cluster)
    rows = connection.execute(query).all() if not text.INVISIBLE.search(jid) else []
    found = [FoundJob(row.id, row.cluster, jid) for row in rows if cluster in (None, row.cluster)]
    if len(found) == 1:
        return found[0]
    shown, others = repr(jid[:255]), ", ".join(row.cluster for row in rows)
    if found:
        raise Refused(f"several clusters have a job {shown}; choose one with --cluster: {others}")
    if others:
        raise Refused(
            f"cluster {str(cluster)[:80]!r} has no job {shown}; set --cluster to a cluster that has it: {others}"
        )
    forms = intake.other_cases(jid)
    if forms and (written := connection.scalar(sa.select(JOBS.c.jid).where(JOBS.c.jid.in_(forms)))):
        raise Refused(f"no job has the jid {shown}, but one has {written!r}: write it as it was registered")
    at = "" if cluster is None else f" --cluster {cluster[:80]}"
    raise Refused(f"no job has the jid {shown}; register it with: tracker add JID{at}")


def withdraw(connection: sa.Connection, job_id: int, actor: str, reason: str) -> Decision:
    """Close an open, failed or lost job, and return the decision.

    Args:
        connection: In a transaction of `database.writing` that the caller commits.
        job_id: From `find`.
        actor: Who decides.
        reason: Why; kept in the history permanently.

    Raises:
        Refused: The job is in another state, or the reason or the actor is refused (`InvalidField`).
    """
    actor, reason = text.check("actor", actor), text.check_reason(reason)
    return _carry_out(connection, job_id, lambda job, at: status.withdraw(job, at, actor, reason))


def reopen(connection: sa.Connection, job_id: int, actor: str, reason: str) -> Decision:
    """Open a failed, lost, attested or withdrawn job again, to be asked at once, and return the decision.

    Arguments and errors are those of `withdraw`.
    """
    actor, reason = text.check("actor", actor), text.check_reason(reason)
    return _carry_out(connection, job_id, lambda job, at: status.reopen(job, at, actor, reason))


def attest(connection: sa.Connection, job_id: int, actor: str, reason: str, done_by: datetime) -> Decision:
    """End an open, failed or lost job on an operator's word, and return the decision.

    The verdict is then ``attested``: what people claim is not an observation.

    Args:
        connection: As for `withdraw`, as are the other arguments.
        done_by: When it was done at the latest (aware), by the operator's word.

    Raises:
        Refused: As for `withdraw`; or *done_by* is in the future, before the submission, or before Elevate was last
            seen to say that it was not done (`InvalidField`).
    """
    actor, reason = text.check("actor", actor), text.check_reason(reason)

    def decide(job: status.Job, at: datetime) -> Decision:
        decision = status.attest(job, intake.instant("done_by", done_by, at), at, actor, reason)
        # While Elevate says not_found, the last sight of a job that was not done is where that began.
        not_done_at = job.status_after if job.status == Status.NOT_FOUND else job.seen_at
        submitted_at = job.facts.submitted_at
        if not_done_at is not None and done_by < not_done_at:
            raise InvalidField(
                "done_by", f"{done_by} is too early: a later answer showed the job not done, at {not_done_at}"
            )
        if submitted_at is not None and done_by < submitted_at:
            raise InvalidField("done_by", f"{done_by} is before the job was submitted, at {submitted_at} (declared)")
        return decision

    return _carry_out(connection, job_id, decide)


def amend(
    connection: sa.Connection,
    job_id: int,
    actor: str,
    reason: str,
    changes: Mapping[str, Fact],
    *,
    zone: ZoneInfo,
) -> Amendment:
    """Correct what was declared about a job in any state, and return what it was and is.

    Its history keeps both. The deadline is computed again, and an open job is due at once where that or the submission
    moved, since its polls were planned by them.

    An extension (GDPR Article 12(3)) counts if it was recorded before the first month was over, as counted from what is
    declared now. So it stays in force when another fact is amended. One that is recorded later is kept, and moves
    nothing.

    Args:
        connection: As for `withdraw`, as are the other arguments.
        changes: By column of `Facts`, its new value, None to clear it; columns that are left out stay as they are.
        zone: The legal time zone, where no source of the cluster is on record yet.

    Raises:
        InvalidField: A value is refused, as by `intake.register`; or a time is after the registration; or an extension
            is not later than the deadline without it, is later than the law allows, or would end one that is in force.
        Refused: Nothing would change.
    """
    actor, reason = text.check("actor", actor), text.check_reason(reason)
    row, at = _lock_job(connection, job_id)
    job = job_of(row)
    facts = _amended(row, job, changes, at)
    decision = status.amend(job, facts, at, actor, reason)
    assert decision.transition is not None  # noqa: S101 - an amendment is one
    declared = extensions(connection, job_id)
    zone = legal_zones(connection, zone)(row.cluster, at)
    due = deadline_of(facts, job.registered_at, zone, [*declared, (decision.transition.observed_at, facts.extended_on)])
    if facts.extended_on not in (None, job.facts.extended_on):
        _check_extension(job, facts, zone, due, declared)
    values: dict[str, Any] = {**facts_values(facts), "deadline_on": due.on, "deadline_at": due.at}
    is_moved = due.at != row.deadline_at or facts.submitted_at != job.facts.submitted_at
    if job.state is State.OPEN and is_moved:
        values["due_at"] = min(row.due_at, at)
    _write(connection, job_id, decision, values)
    return Amendment(decision, job.facts, row.deadline_on, due)


def _amended(row: sa.Row[Any], job: status.Job, changes: Mapping[str, Fact], at: datetime) -> Facts:
    """Return the facts of *job* with *changes*; raise InvalidField for the first that is wrong."""
    given: dict[str, Any] = dict(changes)
    if unknown := given.keys() - Facts.__dataclass_fields__.keys():
        known = ", ".join(Facts.__dataclass_fields__)
        raise InvalidField(min(unknown), f"cannot be amended; these can: {known}")
    if "kind" in given and not given["kind"]:
        raise InvalidField("kind", "cannot be cleared: write export, removal or unknown")
    if given.get("reference") is not None:
        text.check("reference", given["reference"])  # a registration takes a blank one as left out
    extended_on = given.pop("extended_on", job.facts.extended_on)
    if extended_on is not None and (not isinstance(extended_on, date) or isinstance(extended_on, datetime)):
        raise InvalidField("extended_on", f"must be a date, not {type(extended_on).__name__}")
    _, checked = intake.check(intake.Registration(row.jid, row.cluster, **given), lambda _: str(row.cluster), at)
    facts = replace(job.facts, extended_on=extended_on, **{name: getattr(checked, name) for name in given})
    for name in ("received_at", "submitted_at"):
        when: datetime | None = getattr(facts, name)
        if when is None or when == getattr(job.facts, name):
            continue
        if when > job.registered_at:
            raise InvalidField(name, f"{when} is after the job was registered, at {job.registered_at}")
        if name == "submitted_at" and job.ended_by is not None and when > job.ended_by:  # only if that was attested
            raise InvalidField(name, f"{when} is after the job ended, by {job.ended_by}")
    return facts


def _check_extension(
    job: status.Job, facts: Facts, zone: ZoneInfo, due: Deadline, declared: list[tuple[datetime, date | None]]
) -> None:
    """Raise InvalidField if the extension in *facts*, which is new, is too early, too long or too late."""
    new, old = facts.extended_on, job.facts.extended_on
    assert new is not None  # noqa: S101 - the caller's condition
    first = deadline_of(replace(facts, extended_on=None), job.registered_at, zone, ()).on
    last = latest_extension(facts.received_at, facts.submitted_at, job.registered_at, zone)
    if new <= first:
        raise InvalidField("extended_on", f"{new} is not after {first}, which is the deadline without an extension")
    if new > last:
        raise InvalidField(
            "extended_on",
            f"{new} is after {last}, the last day of the two further months that GDPR Article 12(3) allows",
        )
    if due.on != new and deadline_of(replace(facts, extended_on=old), job.registered_at, zone, declared).on != first:
        raise InvalidField(
            "extended_on",
            f"{new} is recorded after the first month ended ({first}), so it does not count. It would also replace the "
            f"extension to {old}, which counts. To remove that one, clear extended_on",
        )


def _carry_out(connection: sa.Connection, job_id: int, decide: Callable[[status.Job, datetime], Decision]) -> Decision:
    """Apply *decide* to the job as it is now, and write the result."""
    row, at = _lock_job(connection, job_id)
    decision = decide(job_of(row), at)
    job = decision.job
    changes: dict[str, Any] = {}
    if job.state is not row.state:
        # The answer of a poll that is under way is about another state: it finds its lease lost and is left alone.
        changes |= {"due_at": None, "leased_by": None, "leased_until": None}
        if job.state is State.OPEN:
            changes |= {"due_at": at, "failures": 0, "last_error": None}
    _write(connection, job_id, decision, changes)
    return decision


def _lock_job(connection: sa.Connection, job_id: int) -> tuple[sa.Row[Any], datetime]:
    """Return the job's row, locked, and the time after that."""
    row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job_id).with_for_update()).one()
    return row, database.now(connection)


def _write(connection: sa.Connection, job_id: int, decision: Decision, changes: dict[str, Any]) -> None:
    """Write the transition, and then the job: a guard lets declared facts through only if a transition has them."""
    if decision.transition is None:
        return
    connection.execute(sa.insert(TRANSITIONS).values(transition_values(job_id, decision.transition)))
    values = observed_values(decision.job) | changes
    connection.execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(values))


def pause(connection: sa.Connection, cluster: str, actor: str, reason: str, configured: Collection[str] = ()) -> bool:
    """Stop the polling of *cluster* until it is resumed, and return whether an operator had paused it already.

    Opens a gap with *reason* as its detail. A gap that is already open goes on; *actor* and *reason* are kept in it.

    Args:
        connection: In a transaction of `database.writing` that the caller commits.
        cluster: Its name.
        actor: Who decides.
        reason: Why.
        configured: The clusters in the settings: one that was never polled can be paused too.

    Raises:
        InvalidField: The reason is refused, or no such cluster is known; then the message names those that are.
    """
    actor, reason = text.check("actor", actor), text.check_reason(reason)
    row = _lock_cluster(connection, cluster, configured)
    if row.pause_cause is Cause.PAUSED:
        return True
    now = database.now(connection)
    values: dict[str, Any] = {"pause_cause": Cause.PAUSED, "paused_until": None, "gap_actor": actor}
    if row.gap_began_at is None:
        values |= {"gap_began_at": now, "gap_cause": Cause.PAUSED, "gap_detail": reason}
    else:
        values["gap_detail"] = _detail(row, f"paused {now.isoformat(' ', 'seconds')}: {reason}")
    connection.execute(sa.update(CLUSTERS).where(CLUSTERS.c.cluster == cluster).values(values))
    return False


def resume(
    connection: sa.Connection, cluster: str, reason: str | None = None, configured: Collection[str] = ()
) -> bool:
    """End the pause of *cluster*, whatever caused it, and return whether it was paused.

    The gap stays open until a valid answer comes; *reason*, if there is one, is added to its detail. Arguments and
    errors are those of `pause`.
    """
    reason = None if reason is None else text.check_reason(reason)
    row = _lock_cluster(connection, cluster, configured)
    if row.pause_cause is None:
        return False
    values: dict[str, Any] = {"pause_cause": None, "paused_until": None}
    if row.gap_began_at is not None and reason is not None:
        values["gap_detail"] = _detail(row, f"resumed: {reason}")
    connection.execute(sa.update(CLUSTERS).where(CLUSTERS.c.cluster == cluster).values(values))
    return True


def _detail(row: sa.Row[Any], more: str) -> str:
    return f"{row.gap_detail}; {more}" if row.gap_detail else more


def _lock_cluster(connection: sa.Connection, cluster: str, configured: Collection[str]) -> sa.Row[Any]:
    """Return the cluster's row, made if there was none, and locked."""
    if cluster not in configured:
        intake.check_cluster(cluster, intake.known_clusters(connection, configured))
    return clusters.made(connection, cluster)
