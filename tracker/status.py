"""The words of the record, and the decisions: how an answer or an operator changes a job.

Owns what a status means, when a job ends, and which actions are legal in which state. Pure: times come in as aware UTC
arguments. Leaves alone when to ask next (``cadence``), the legal date (``deadline``), errors (an error is not a
status), what a declared value may look like (``intake``, ``operate``), and the replay of a history (SQL: ``reports/``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Final

from tracker.errors import InvalidField, Refused


class Kind(StrEnum):
    """What a job does with a person's data, as declared at its registration."""

    EXPORT = "export"
    REMOVAL = "removal"
    UNKNOWN = "unknown"


class Status(StrEnum):
    """The words Elevate is known to say; any other is kept verbatim, leaves the job open and is an anomaly."""

    CREATED = "created"
    STARTED = "started"
    """In one example answer of the vendor; its order among the statuses before ``running`` is not documented."""
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    ERROR = "error"
    """From the list of the call's successor."""
    NOT_FOUND = "not_found"


KNOWN: Final = frozenset(str(word) for word in Status)


class State(StrEnum):
    """What we concluded about a job."""

    OPEN = "open"
    """Entered at registration or when an operator reopens it; the only state that is polled."""
    DONE = "done"
    """Entered when Elevate says ``done``; never left."""
    FAILED = "failed"
    """Entered when Elevate says ``error``; left by an operator: reopen, attest, withdraw."""
    LOST = "lost"
    """Entered when Elevate says ``not_found`` often and long enough (`LostRule`); left as `FAILED` is."""
    ATTESTED = "attested"
    """Entered when an operator declares it done, although no answer showed that; left by reopen."""
    WITHDRAWN = "withdrawn"
    """Entered when an operator closes it; left by reopen."""


UNSETTLED: Final = (State.OPEN, State.FAILED, State.LOST)
"""The states without a final result: the job is polled, or an operator has to decide."""

CLOCK_STEP: Final = timedelta(seconds=5)
"""Clocks that differ by more than this were set or stopped; ours: adjustments by NTP are smaller."""


class Action(StrEnum):
    """What made a transition."""

    REGISTERED = "registered"
    OBSERVED = "observed"
    WITHDRAWN = "withdrawn"
    REOPENED = "reopened"
    ATTESTED = "attested"
    AMENDED = "amended"


class Anomaly(StrEnum):
    """An unusual transition that a person should look at."""

    UNKNOWN_STATUS = "unknown_status"
    """Elevate gave a status that is not documented."""
    BACKWARDS = "backwards"
    """An earlier status after a later one (``running``, then ``waiting``)."""
    VANISHED = "vanished"
    """``not_found`` after another status."""
    REAPPEARED = "reappeared"
    """Another status after it had vanished."""
    NEVER_FOUND = "never_found"
    """Lost without ever having had another status than ``not_found``."""


class Cause(StrEnum):
    """Why nothing could be observed for a while (column ``gaps.cause``), or why a cluster is paused."""

    UNREACHABLE = "unreachable"
    KEY_REFUSED = "key_refused"
    RATE_LIMITED = "rate_limited"
    BAD_ANSWER = "bad_answer"
    NOT_RUNNING = "not_running"
    PAUSED = "paused"
    CLOCK_SET = "clock_set"
    """A clock was set: it was ahead and was corrected, or it was moved forward."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One valid answer of Elevate about one job.

    Attributes:
        status: The word, verbatim.
        sent_at: When the request was sent (aware UTC).
        completed_at: When the answer was complete (not before *sent_at*).
        server_date: The answer's HTTP Date, if it has one: a clock that is not ours.
    """

    status: str
    sent_at: datetime
    completed_at: datetime
    server_date: datetime | None = None


@dataclass(frozen=True, slots=True)
class LostRule:
    """When ``not_found`` ends a job: *polls* valid answers in a row over at least *duration*."""

    polls: int = 5
    duration: timedelta = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Facts:
    """What people declared about a job and may amend; each attribute is a column of ``jobs``, None if unknown.

    Attributes:
        reference: The request's ticket; groups the jobs of one person's request.
        received_at: When the request reached the company.
        submitted_at: When the job was submitted to Elevate.
        extended_on: The day the deadline was moved to, None if it was not.
    """

    kind: Kind = Kind.UNKNOWN
    reference: str | None = None
    received_at: datetime | None = None
    submitted_at: datetime | None = None
    extended_on: date | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """The declared and observed columns of a row of ``jobs``.

    Attributes:
        status: The last word seen, verbatim; None before the first answer.
        status_after: The status was entered at or after this; None if no other had been seen before it.
        status_by: The status was entered before this.
        status_polls: Valid answers in a row that said so, since the last reopening.
        seen_at: When the request of the last valid answer was sent.
        ended_after: It ended at or after this; None while open, or if unknown.
        ended_by: It ended before this; None while open.
        seq: Of its newest transition.
        polls: Polls so far.
    """

    facts: Facts
    registered_at: datetime
    registered_by: str
    state: State = State.OPEN
    status: str | None = None
    status_after: datetime | None = None
    status_by: datetime | None = None
    status_polls: int = 0
    seen_at: datetime | None = None
    ended_after: datetime | None = None
    ended_by: datetime | None = None
    seq: int = 0
    polls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A row of ``transitions``, without the keys that only the database knows.

    Attributes:
        seq: 0 for the registration, then without a hole.
        from_status, to_status: Of the job before and after; None before the first answer.
        from_state, to_state: Of the job before and after; None before the registration.
        last_seen_at: When the request that last saw *from_status* was sent; None if there was none.
        observed_at: When the answer that first showed *to_status* was complete; else when the action was taken.
        server_date: As in `Answer`.
        claimed_at: On ``attested``, the time by which it was done, as the operator says.
        polls: Polls so far, this one included.
        actor, reason: Of an operator's action: who, and why.
        facts: On ``registered`` and ``amended``, the declared facts from here on.
    """

    seq: int
    action: Action
    from_status: str | None
    to_status: str | None
    from_state: State | None
    to_state: State
    last_seen_at: datetime | None
    observed_at: datetime
    server_date: datetime | None = None
    claimed_at: datetime | None = None
    polls: int
    actor: str | None = None
    anomaly: Anomaly | None = None
    reason: str | None = None
    facts: Facts | None = None


@dataclass(frozen=True, slots=True)
class Past:
    """What `decide` needs of the history of a job whose status is ``not_found``; the default is enough for any other.

    Attributes:
        found_before: Any status but ``not_found`` was ever seen.
        counted_from: `LostRule.duration` counts from here: the later of the entry into ``not_found`` (``status_by``)
            and the last reopening.
    """

    found_before: bool = False
    counted_from: datetime | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The job as it is now, and the transition to record with it; None where only *seen_at* and counts changed."""

    job: Job
    transition: Transition | None


_ENDING: Final = {str(Status.DONE): State.DONE, str(Status.ERROR): State.FAILED}

_BACKWARDS: Final = {
    (Status.RUNNING, Status.CREATED),
    (Status.RUNNING, Status.STARTED),
    (Status.RUNNING, Status.WAITING),
    (Status.WAITING, Status.CREATED),
}

_ACTIONS: Final = {
    Action.WITHDRAWN: (UNSETTLED, State.WITHDRAWN),
    Action.REOPENED: ((State.FAILED, State.LOST, State.ATTESTED, State.WITHDRAWN), State.OPEN),
    Action.ATTESTED: (UNSETTLED, State.ATTESTED),
    Action.AMENDED: (tuple(State), None),
}
"""For each action of an operator, the states in which it is legal, and the state that it leads to, if any."""


def decide(job: Job, answer: Answer, rule: LostRule, past: Past, deadline_at: datetime | None = None) -> Decision:
    """Return how *answer* changes an open job.

    The first answer to a request sent at or after the deadline that shows the job not done makes a transition, although
    nothing changed: that the job is overdue must rest on a row of the history. After a change of status that is the
    next answer, since the row of a change says when its answer came, not when its request was sent.

    Raises:
        ValueError: *job* is not open: an ended job is not polled, and ``done`` is never left.
    """
    if job.state is not State.OPEN:
        raise ValueError(f"the job is {job.state}: an answer can change open jobs only")
    sent_at = _after(answer.sent_at, job.seen_at)
    completed_at = max(
        sent_at, _after(answer.completed_at, job.registered_at if job.status_by is None else job.status_by)
    )
    last_seen_at = _last_seen(job, sent_at)
    if answer.status == job.status:
        status_after, status_by, status_polls = job.status_after, job.status_by, job.status_polls + 1
        counted_from = past.counted_from or job.status_by or completed_at
    else:
        status_after, status_by, status_polls = last_seen_at, completed_at, 1
        counted_from = completed_at
    # It was not found from the end of the first such answer, at the latest, to the start of this one.
    is_lost = (
        answer.status == Status.NOT_FOUND
        and status_polls >= rule.polls
        and max(sent_at, counted_from) - counted_from >= rule.duration
    )
    state = State.LOST if is_lost else _ENDING.get(answer.status, State.OPEN)
    has_ended = state is not State.OPEN
    has_changed = has_ended or answer.status != job.status
    shown_at = job.status_after if job.status_polls == 1 else last_seen_at
    # An answer not_found does not show that the job is not done.
    is_first_overdue = (
        not has_changed
        and answer.status != Status.NOT_FOUND
        and deadline_at is not None
        and sent_at >= deadline_at
        and (shown_at is None or shown_at < deadline_at)
    )
    decided = replace(
        job,
        state=state,
        status=answer.status,
        status_after=status_after,
        status_by=status_by,
        status_polls=status_polls,
        seen_at=sent_at,
        ended_after=last_seen_at if has_ended else None,
        ended_by=completed_at if has_ended else None,
        seq=job.seq + (has_changed or is_first_overdue),
        polls=job.polls + 1,
    )
    if not (has_changed or is_first_overdue):
        return Decision(decided, None)
    transition = Transition(
        seq=decided.seq,
        action=Action.OBSERVED,
        from_status=job.status,
        to_status=answer.status,
        from_state=job.state,
        to_state=state,
        last_seen_at=last_seen_at if has_changed else sent_at,  # this is the request that saw the old status
        observed_at=completed_at,
        server_date=answer.server_date,
        polls=decided.polls,
        anomaly=_anomaly(job.status, answer.status, state, past) if has_changed else None,
    )
    return Decision(decided, transition)


def _after(at: datetime, earlier: datetime | None) -> datetime:
    """Return *at*, or *earlier* if that is later by at most `CLOCK_STEP`, so that times never go back.

    If *earlier* is later by more, its clock was ahead. Then *at* counts, so that nothing is recorded in the future.
    """
    return earlier if earlier is not None and at < earlier <= at + CLOCK_STEP else at


def _last_seen(job: Job, at: datetime) -> datetime | None:
    """Return when the job's status was last seen; or, if a clock was ahead then, the best lower bound before *at*."""
    bounds = (job.seen_at, job.status_after, job.registered_at, at)
    return None if job.seen_at is None else next(bound for bound in bounds if bound is not None and bound <= at)


def withdraw(job: Job, at: datetime, actor: str, reason: str) -> Decision:
    """Return an open, failed or lost job closed by an operator who acts *at* this time.

    Raises:
        Refused: The job is in another state.
    """
    return _act(job, Action.WITHDRAWN, at, actor, reason)


def reopen(job: Job, at: datetime, actor: str, reason: str) -> Decision:
    """Return a failed, lost, attested or withdrawn job open again; it keeps its status until the next answer.

    Raises:
        Refused: The job is open or done.
    """
    return _act(job, Action.REOPENED, at, actor, reason)


def attest(job: Job, done_by: datetime, at: datetime, actor: str, reason: str) -> Decision:
    """Return an open, failed or lost job that was done *done_by* a time at the latest, as an operator says.

    Raises:
        Refused: The job is in another state.
        InvalidField: *done_by* is after *at*.
    """
    if done_by > at:
        raise InvalidField("done_by", f"{done_by} is in the future; give the time by which it was done")
    return _act(job, Action.ATTESTED, at, actor, reason, done_by=done_by)


def amend(job: Job, facts: Facts, at: datetime, actor: str, reason: str) -> Decision:
    """Return a job in any state with other declared *facts* (all of them, the unchanged ones too).

    Raises:
        Refused: The facts are as they were.
    """
    if facts == job.facts:
        raise Refused("the job has these facts already: there is nothing to amend")
    return _act(job, Action.AMENDED, at, actor, reason, facts=facts)


def _anomaly(from_status: str | None, to_status: str, to_state: State, past: Past) -> Anomaly | None:
    """Return what is odd about an observed transition; the first that applies."""
    if to_status not in KNOWN:
        return Anomaly.UNKNOWN_STATUS
    if to_status == Status.NOT_FOUND:
        if from_status not in (None, Status.NOT_FOUND):
            return Anomaly.VANISHED
        return Anomaly.NEVER_FOUND if to_state is State.LOST and not past.found_before else None
    if from_status == Status.NOT_FOUND and past.found_before:
        return Anomaly.REAPPEARED
    return Anomaly.BACKWARDS if (from_status, to_status) in _BACKWARDS else None


def _act(
    job: Job,
    action: Action,
    at: datetime,
    actor: str,
    reason: str,
    *,
    done_by: datetime | None = None,
    facts: Facts | None = None,
) -> Decision:
    """Return how an operator's action changes *job*."""
    legal, leads_to = _ACTIONS[action]
    if job.state not in legal:
        raise Refused(_refusal(job.state, action))
    for earlier in (job.registered_at, job.status_by, job.seen_at):
        at = _after(at, earlier)
    transition = Transition(
        seq=job.seq + 1,
        action=action,
        from_status=job.status,
        to_status=job.status,
        from_state=job.state,
        to_state=leads_to or job.state,
        last_seen_at=_last_seen(job, at),
        observed_at=at,
        claimed_at=done_by,
        polls=job.polls,
        actor=actor,
        reason=reason,
        facts=facts,
    )
    acted = replace(job, state=transition.to_state, seq=transition.seq, seen_at=transition.last_seen_at)
    if action is Action.AMENDED:
        return Decision(replace(acted, facts=facts or job.facts), transition)
    if action is Action.REOPENED:
        return Decision(replace(acted, ended_after=None, ended_by=None, status_polls=0), transition)
    if action is Action.ATTESTED:
        return Decision(replace(acted, ended_after=None, ended_by=done_by), transition)
    return Decision(replace(acted, ended_after=at, ended_by=at), transition)


def _refusal(state: State, action: Action) -> str:
    if state is State.DONE:
        return "the job is done, as Elevate said: only its declared facts can be amended"
    if action is Action.REOPENED:
        return "the job is open already"
    return f"the job is {state} already: reopen it first"
