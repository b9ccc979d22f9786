"""The vocabulary of statuses and states, and the decision from an observation to the next state.

Owns: what a status means, when a job ends, which transitions are legal, and the replay of a history. Pure: no clock, no
database, no network; times come in as aware UTC arguments. Leaves alone: when to ask next (``cadence``), the legal date
(``deadline``), errors (an error is not a status), and what a declared value may look like (``intake``, ``operate``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Final

from tracker.errors import InvalidField, Refused


class Kind(StrEnum):
    """What a job does with a person's data; declared by whoever registers it."""

    EXPORT = "export"
    REMOVAL = "removal"
    UNKNOWN = "unknown"


class Status(StrEnum):
    """The words Elevate is known to say; any other is kept verbatim, leaves the job open and is an anomaly."""

    CREATED = "created"
    STARTED = "started"
    """In one example answer of the vendor's; where it stands among the words before ``running`` is not documented."""
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
    """Entered when an operator says that it was done, unseen by us; left by reopen."""
    WITHDRAWN = "withdrawn"
    """Entered when an operator closes it; left by reopen."""


UNSETTLED: Final = (State.OPEN, State.FAILED, State.LOST)
"""The states in which somebody still waits for the job: it is polled, or a person has to decide."""

CLOCK_STEP: Final = timedelta(seconds=5)
"""Clocks that differ by more than this were set, or stood still; ours: adjustments by NTP are smaller."""


class Action(StrEnum):
    """What made a transition."""

    REGISTERED = "registered"
    OBSERVED = "observed"
    WITHDRAWN = "withdrawn"
    REOPENED = "reopened"
    ATTESTED = "attested"
    AMENDED = "amended"


class Anomaly(StrEnum):
    """What is odd about a transition and worth a person's look."""

    UNKNOWN_STATUS = "unknown_status"
    """Elevate said a word that nobody documented."""
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
    """A clock that was ahead was set right."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One valid answer of Elevate about one job.

    Attributes:
        status: The word, verbatim.
        sent_at: When the request was sent (aware UTC).
        completed_at: When the answer was complete (aware UTC, not before *sent_at*).
        server_date: The answer's HTTP Date, or None: a clock that is not ours.
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
    """What people declared about a job and may amend; each attribute is a column of ``jobs``.

    Attributes:
        kind: Export or removal.
        reference: The request's ticket; groups the jobs of one person's request.
        received_at: When the request reached the company, None if unknown.
        submitted_at: When the job was submitted to Elevate, None if unknown.
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
        facts: What may be amended.
        registered_at: When it was registered.
        registered_by: Who registered it.
        state: What we concluded.
        status: The last word seen, verbatim; None before the first answer.
        status_after: The status was entered at or after this; None if no other had been seen before it.
        status_by: The status was entered before this; None before the first answer.
        status_polls: Valid answers in a row that said so, since the last reopening; 0 right after one.
        seen_at: When the request of the last valid answer was sent; None before the first answer.
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

    @classmethod
    def registered(cls, facts: Facts, registered_at: datetime, registered_by: str) -> Job:
        """Return the job as it is right after its registration."""
        return cls(facts, registered_at, registered_by)


@dataclass(frozen=True, slots=True)
class Transition:
    """A row of ``transitions``, without the keys that only the database knows.

    Attributes:
        seq: 0 for the registration, then without a hole.
        action: What made it.
        from_status: Status before; None before the first answer.
        to_status: Status after.
        from_state: State before; None on the registration.
        to_state: State after.
        last_seen_at: When the request that last saw *from_status* was sent; None if there was none.
        observed_at: When the answer that first showed *to_status* was complete; else when the action was taken.
        server_date: The answer's HTTP Date: a clock that is not ours.
        claimed_at: On ``attested``, the time by which it was done, as the operator says.
        polls: Polls so far, this one included.
        actor: Who acted; None if it was observed.
        anomaly: What is odd about it.
        reason: An operator's words.
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
    server_date: datetime | None
    claimed_at: datetime | None
    polls: int
    actor: str | None
    anomaly: Anomaly | None
    reason: str | None
    facts: Facts | None


@dataclass(frozen=True, slots=True)
class Past:
    """What a decision about a ``not_found`` job needs of its history; the default does for any other job.

    Attributes:
        found_before: Any status but ``not_found`` was ever seen.
        counted_from: `LostRule.duration` counts from here: the later of the entry into ``not_found`` (``status_by``)
            and the last reopening.
    """

    found_before: bool = False
    counted_from: datetime | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The job as it is now, and the transition to record with it (None: nothing changed but the last sight)."""

    job: Job
    transition: Transition | None


@dataclass(frozen=True, slots=True)
class Replay:
    """What a history comes to.

    Attributes:
        job: Equal to the row of ``jobs`` but for what transitions do not tell: ``seen_at`` (here only a lower bound),
            ``status_polls`` (here 0 after a reopening, else 1) and the ``polls`` since the last transition.
        past: What `decide` needs of the history.
    """

    job: Job
    past: Past


_ENDING: Final = {str(Status.DONE): State.DONE, str(Status.ERROR): State.FAILED}

_BACKWARDS: Final = frozenset(
    {
        (str(Status.RUNNING), str(Status.CREATED)),
        (str(Status.RUNNING), str(Status.STARTED)),
        (str(Status.RUNNING), str(Status.WAITING)),
        (str(Status.WAITING), str(Status.CREATED)),
    }
)

_FROM: Final = {
    Action.OBSERVED: frozenset({State.OPEN}),
    Action.WITHDRAWN: frozenset({State.OPEN, State.FAILED, State.LOST}),
    Action.REOPENED: frozenset({State.FAILED, State.LOST, State.ATTESTED, State.WITHDRAWN}),
    Action.ATTESTED: frozenset({State.OPEN, State.FAILED, State.LOST}),
    Action.AMENDED: frozenset(State),
}
"""The states in which an action is legal; all but a registration, which begins a history."""

_TO: Final = {
    Action.WITHDRAWN: State.WITHDRAWN,
    Action.REOPENED: State.OPEN,
    Action.ATTESTED: State.ATTESTED,
}
"""The state that an operator's action leads to; an amendment changes none."""


def registration(facts: Facts, registered_at: datetime, registered_by: str) -> Transition:
    """Return the transition with seq 0, as a trigger of the database writes it."""
    return Transition(
        seq=0,
        action=Action.REGISTERED,
        from_status=None,
        to_status=None,
        from_state=None,
        to_state=State.OPEN,
        last_seen_at=None,
        observed_at=registered_at,
        server_date=None,
        claimed_at=None,
        polls=0,
        actor=registered_by,
        anomaly=None,
        reason=None,
        facts=facts,
    )


def decide(job: Job, answer: Answer, rule: LostRule, past: Past, deadline_at: datetime | None = None) -> Decision:
    """Return what *answer* makes of *job*.

    The first answer to a request sent at or after the deadline that shows the job not done makes a transition, although
    nothing changed: that the job is overdue must rest on a row of the history. After a change of status that is the
    next answer, since the row of a change says when its answer came, not when its request was sent.

    Args:
        job: An open job, as it is recorded.
        answer: A valid answer about it, to a request sent after the one of its last answer.
        rule: When ``not_found`` ends a job.
        past: Its history, if its status is ``not_found``; else the default does.
        deadline_at: Its deadline, None if not computed.

    Raises:
        ValueError: *job* is not open: an ended job is not polled, and ``done`` is never left.
    """
    if job.state is not State.OPEN:
        raise ValueError(f"the job is {job.state}, and only an open job is decided by an answer: do not poll it")
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
    # Certainly not found from the end of the first such answer to the start of this one.
    is_lost = (
        answer.status == Status.NOT_FOUND
        and status_polls >= rule.polls
        and max(sent_at, counted_from) - counted_from >= rule.duration
    )
    state = State.LOST if is_lost else _ENDING.get(answer.status, State.OPEN)
    has_ended = state is not State.OPEN
    has_changed = has_ended or answer.status != job.status
    shown_at = job.status_after if job.status_polls == 1 else last_seen_at
    # While Elevate says not_found nobody sees that the job is not done.
    is_first_overdue = (
        not has_changed
        and answer.status != Status.NOT_FOUND
        and deadline_at is not None
        and sent_at >= deadline_at
        and (shown_at is None or shown_at < deadline_at)
    )
    decided = Job(
        facts=job.facts,
        registered_at=job.registered_at,
        registered_by=job.registered_by,
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
        last_seen_at=last_seen_at if has_changed else sent_at,  # the request that saw the old status is this one
        observed_at=completed_at,
        server_date=answer.server_date,
        claimed_at=None,
        polls=decided.polls,
        actor=None,
        anomaly=_anomaly(job.status, answer.status, state, past) if has_changed else None,
        reason=None,
        facts=None,
    )
    return Decision(decided, transition)


def _after(at: datetime, earlier: datetime | None) -> datetime:
    """Return *at*, or *earlier* if that is a little later: clocks are adjusted by moments, and times do not run back.

    Where it is much later, its clock was ahead, and *at* stands: nothing is recorded in the future.
    """
    return earlier if earlier is not None and at < earlier <= at + CLOCK_STEP else at


def _last_seen(job: Job, at: datetime) -> datetime | None:
    """Return when the job's status was last seen, or where that lies after *at* the best lower bound that does not.

    It lies after *at* if a clock was ahead then and is right now.
    """
    bounds = (job.seen_at, job.status_after, job.registered_at, at)
    return None if job.seen_at is None else next(bound for bound in bounds if bound is not None and bound <= at)


def withdraw(job: Job, at: datetime, actor: str, reason: str) -> Decision:
    """Return *job* closed by an operator, and the transition that says so.

    Args:
        job: An open, failed or lost job.
        at: When the operator acts.
        actor: Who acts.
        reason: Why.

    Raises:
        Refused: The job is in another state.
    """
    return _act(job, Action.WITHDRAWN, at, actor, reason)


def reopen(job: Job, at: datetime, actor: str, reason: str) -> Decision:
    """Return *job* open again, its status kept and to be asked at once, and the transition that says so.

    Args:
        job: A failed, lost, attested or withdrawn job.
        at: When the operator acts.
        actor: Who acts.
        reason: Why.

    Raises:
        Refused: The job is open or done.
    """
    return _act(job, Action.REOPENED, at, actor, reason)


def attest(job: Job, done_by: datetime, at: datetime, actor: str, reason: str) -> Decision:
    """Return *job* as an operator says it ended, unseen by us, and the transition that says so.

    Args:
        job: An open, failed or lost job.
        done_by: The operator's word for when it was done at the latest.
        at: When the operator acts.
        actor: Who acts.
        reason: How the operator knows.

    Raises:
        Refused: The job is in another state, or *done_by* is after *at* (`InvalidField`).
    """
    if done_by > at:
        raise InvalidField("done_by", f"{done_by} is in the future; give the time by which it was done")
    return _act(job, Action.ATTESTED, at, actor, reason, done_by=done_by)


def amend(job: Job, facts: Facts, at: datetime, actor: str, reason: str) -> Decision:
    """Return *job* with other declared facts, and the transition that keeps them in its history.

    Args:
        job: A job in any state.
        facts: All its facts, the unchanged ones too.
        at: When the operator acts.
        actor: Who acts.
        reason: Why.

    Raises:
        Refused: The facts are as they were.
    """
    if facts == job.facts:
        raise Refused("the job has these facts already: there is nothing to amend")
    return _act(job, Action.AMENDED, at, actor, reason, facts=facts)


def replay(transitions: Iterable[Transition]) -> Replay:
    """Return what a job's whole history comes to, in the order of ``seq``.

    Raises:
        ValueError: The history is not legal; the message names the transition.
    """
    job: Job | None = None
    found_before = False
    reopened_at: datetime | None = None
    for transition in transitions:
        problem = _problem(job, transition)
        if problem is not None:
            raise ValueError(f"transition {transition.seq} ({transition.action}): {problem}")
        job = _step(job, transition)
        found_before |= transition.to_status not in (None, Status.NOT_FOUND)
        if transition.action is Action.REOPENED:
            reopened_at = transition.observed_at
    if job is None:
        raise ValueError("there is no transition, not even the registration")
    counted_from = job.status_by if job.status == Status.NOT_FOUND else None
    if counted_from is not None and reopened_at is not None:
        counted_from = max(counted_from, reopened_at)
    return Replay(job, Past(found_before, counted_from))


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
    """Return what an operator's action makes of *job*."""
    if job.state not in _FROM[action]:
        raise Refused(_refusal(job.state, action))
    for earlier in (job.registered_at, job.status_by, job.seen_at):
        at = _after(at, earlier)
    transition = Transition(
        seq=job.seq + 1,
        action=action,
        from_status=job.status,
        to_status=job.status,
        from_state=job.state,
        to_state=_TO.get(action, job.state),
        last_seen_at=_last_seen(job, at),
        observed_at=at,
        server_date=None,
        claimed_at=done_by,
        polls=job.polls,
        actor=actor,
        anomaly=None,
        reason=reason,
        facts=facts,
    )
    return Decision(_step(job, transition), transition)


def _refusal(state: State, action: Action) -> str:
    if state is State.DONE:
        return "the job is done, as Elevate said: only its declared facts can be amended"
    if action is Action.REOPENED:
        return "the job is open already"
    return f"the job is {state} already: reopen it first"


def _problem(job: Job | None, transition: Transition) -> str | None:
    """Return why *transition* cannot follow on *job* (None: the history begins with it), or None if it can."""
    action = transition.action
    if job is None:
        begun = transition.facts and registration(transition.facts, transition.observed_at, transition.actor or "")
        return None if transition == begun else "a history begins with a plain registration, seq 0"
    if transition.seq != job.seq + 1:
        return f"follows on {job.seq}: a transition is missing, double or out of order"
    if action is Action.REGISTERED:
        return "the job is registered already"
    if (transition.from_status, transition.from_state) != (job.status, job.state):
        return f"leaves {transition.from_status}, {transition.from_state}, but the job was at {job.status}, {job.state}"
    if job.state not in _FROM[action]:
        return f"not legal in state {job.state}"
    if transition.polls < job.polls + (action is Action.OBSERVED):
        return f"says {transition.polls} polls after {job.polls}"
    if (transition.facts is None) is (action is Action.AMENDED):
        return "declared facts belong to a registration or an amendment, and to nothing else"
    if (transition.last_seen_at is None) is not (job.status is None):
        return "says when the old status was last seen if there was one, and only then"
    if transition.last_seen_at is not None and transition.last_seen_at > transition.observed_at:
        return "its times are out of order"
    if action is Action.OBSERVED:
        return _observed_problem(transition)
    if transition.to_status != job.status or transition.to_state is not _TO.get(action, job.state):
        return f"cannot lead to {transition.to_status}, {transition.to_state}"
    if action is Action.ATTESTED and (transition.claimed_at is None or transition.claimed_at > transition.observed_at):
        return "claims no time, or one in its future"
    return None


def _observed_problem(transition: Transition) -> str | None:
    """Return why an observed transition from an open job cannot be, or None if it can."""
    status, state = transition.to_status, transition.to_state
    if status is None:
        return "an answer has a status"
    legal = {State.OPEN, State.LOST} if status == Status.NOT_FOUND else {_ENDING.get(status, State.OPEN)}
    if state not in legal:
        return f"{status!r} does not make a job {state}"
    if status == transition.from_status == Status.NOT_FOUND and state is State.OPEN:
        return "changes nothing"
    return None


def _step(job: Job | None, transition: Transition) -> Job:
    """Return the job after a legal transition, as far as the transition tells."""
    action = transition.action
    if job is None:
        facts = transition.facts or Facts()
        return Job.registered(facts, transition.observed_at, transition.actor or "")
    told = replace(
        job,
        state=transition.to_state,
        seq=transition.seq,
        polls=transition.polls,
        seen_at=transition.last_seen_at,
    )
    if action is Action.AMENDED:
        return replace(told, facts=transition.facts or job.facts)
    if action is Action.REOPENED:
        return replace(told, ended_after=None, ended_by=None, status_polls=0)
    if action is Action.WITHDRAWN:
        return replace(told, ended_after=transition.observed_at, ended_by=transition.observed_at)
    if action is Action.ATTESTED:
        return replace(told, ended_after=None, ended_by=transition.claimed_at)
    if transition.to_status != job.status:
        told = replace(
            told,
            status=transition.to_status,
            status_after=transition.last_seen_at,
            status_by=transition.observed_at,
        )
    if transition.to_state is not State.OPEN:
        told = replace(told, ended_after=transition.last_seen_at, ended_by=transition.observed_at)
    return replace(told, status_polls=1)
