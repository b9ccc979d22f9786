"""How failures and answers change a cluster: whether it is paused, until when, and which gap is open.

Owns the rules of DESIGN.md, "The poll": what pauses a cluster, when one request is enough, how pauses grow, when a gap
begins and ends, and the effects of a restart and of a clock that was set. Pure: rows and times are arguments.
Leaves alone reading and writing the rows (``clusters``), when one job is asked again (``cadence``), and pausing by hand
(``operate``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from tracker.cadence import doubled
from tracker.errors import AskError, BadAnswer, KeyRefused, RateLimited, Unavailable, WrongTarget
from tracker.status import CLOCK_STEP, Cause

THREE: Final = 3
"""This many requests must fail before an error pauses the cluster; ours."""
MISSED: Final = timedelta(seconds=60)
"""A poll that is later than this was missed; a process that did nothing for this long did not run."""
LONGEST_PAUSE: Final = timedelta(hours=6)
"""The longest pause, whatever Retry-After says and however often the cluster failed."""

_PAUSES: Final = {  # the first pause, the longest that it doubles up to, and its cause on record
    KeyRefused: (timedelta(minutes=15), LONGEST_PAUSE, Cause.KEY_REFUSED),
    WrongTarget: (timedelta(minutes=15), LONGEST_PAUSE, Cause.UNREACHABLE),
    RateLimited: (timedelta(seconds=60), LONGEST_PAUSE, Cause.RATE_LIMITED),  # where the server does not say how long
    Unavailable: (timedelta(seconds=30), timedelta(minutes=15), Cause.UNREACHABLE),
    BadAnswer: (timedelta(seconds=30), timedelta(minutes=15), Cause.BAD_ANSWER),
}
AT_ONCE: Final = (KeyRefused, WrongTarget, RateLimited)
"""Errors of the cluster itself, whichever job was asked about."""


class RequestKind(Enum):
    """Why a request was sent."""

    DUE = "due"
    PROBE = "probe"
    """The one request that finds out whether a cluster answers again: only its failure makes the pause longer."""
    BY_HAND = "by hand"
    """An operator asks now, whatever the pause; a valid answer ends the pause as a probe's does."""


class Permission(Enum):
    """What may be asked of a cluster now."""

    NOTHING = "nothing"
    PROBE = "one job, due or not"
    DUE = "all that is due"


@dataclass(frozen=True, slots=True)
class EndedGap:
    """A row of ``gaps`` to write."""

    began_at: datetime
    ended_at: datetime
    cause: Cause
    detail: str | None = None
    actor: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """A row of ``clusters``, without its name.

    Attributes:
        answered_at: When the last valid answer was complete.
        failures: Failed requests since then that count against the cluster.
        failing_since: When the first request that failed since then was sent, whether it counts or not.
        pauses: How many in a row; each doubles the next one.
        paused_until: Nothing is asked until then; without a cause, because one job is being asked first.
        pause_cause: Why it is paused; ``paused``: by hand, until an operator resumes it.
        gap_began_at: Since when nothing could be observed; None: no gap is open.
        next_request_at: The next free place in the rate.
    """

    answered_at: datetime | None = None
    failures: int = 0
    failing_since: datetime | None = None
    pauses: int = 0
    paused_until: datetime | None = None
    pause_cause: Cause | None = None
    gap_began_at: datetime | None = None
    gap_cause: Cause | None = None
    gap_detail: str | None = None
    gap_actor: str | None = None
    next_request_at: datetime | None = None

    @property
    def is_paused_by_hand(self) -> bool:
        """Whether only an operator ends the pause."""
        return self.pause_cause is Cause.PAUSED

    def may_ask(self, now: datetime) -> Permission:
        """Return what may be asked at *now*. A pause longer than any valid one is ignored: a clock was ahead."""
        if self.is_paused_by_hand:
            return Permission.NOTHING
        if self.paused_until is not None and now < self.paused_until <= now + LONGEST_PAUSE + MISSED:
            return Permission.NOTHING
        return Permission.DUE if self.pause_cause is None and self.gap_began_at is None else Permission.PROBE


@dataclass(frozen=True, slots=True)
class ClusterChange:
    """How an event changes a cluster.

    Attributes:
        health: The cluster after the event.
        gap: The gap that has ended, to be written.
        backs_off: Whether the job that failed waits; otherwise it stays due until the cluster may be asked again.
    """

    health: Health
    gap: EndedGap | None = None
    backs_off: bool = True


def answered(
    health: Health, sent_at: datetime, completed_at: datetime, turn: RequestKind = RequestKind.DUE
) -> ClusterChange:
    """Return how a valid answer changes a cluster.

    While the cluster is paused, only a probe ends the pause: other requests were in progress when it began. For the
    same reason, an answer to a request sent before a gap began does not end that gap.
    """
    last = completed_at if health.answered_at is None else max(health.answered_at, completed_at)
    health = replace(health, answered_at=last)
    if health.is_paused_by_hand or (health.pause_cause is not None and turn is RequestKind.DUE):
        return ClusterChange(health)
    if health.gap_began_at is not None and sent_at < health.gap_began_at:
        return ClusterChange(health)
    well = replace(health, failures=0, failing_since=None, pauses=0, paused_until=None, pause_cause=None)
    # No request is sent during a gap `not_running`, so it ends with the request; any other gap ends with the answer.
    return _closed(well, sent_at if health.gap_cause is Cause.NOT_RUNNING else completed_at)


def failed(
    health: Health,
    error: AskError,
    now: datetime,
    *,
    job_failures: int,
    unfailed: int,
    turn: RequestKind = RequestKind.DUE,
) -> ClusterChange:
    """Return how a failed request changes a cluster.

    One job that always fails must not stop its cluster. So a failure counts against the cluster only if the job had not
    failed since its last valid answer, or if fewer than three such jobs are left. It also counts only if the cluster
    has not answered since the request was sent. An error of the cluster itself counts even after such an answer; its
    gap then begins with the last answer, since until then the cluster could be observed.

    Args:
        health: The cluster before the failure.
        error: What came instead of an answer.
        now: The time.
        job_failures: How often in a row the job had failed before.
        unfailed: How many other open jobs have not failed since their last valid answer, at most three.
        turn: Why the request was sent.
    """
    first, longest, cause = next(pause for kind, pause in _PAUSES.items() if isinstance(error, kind))
    gap = None
    is_older = health.gap_began_at is not None and error.sent_at < health.gap_began_at
    if health.gap_cause is Cause.NOT_RUNNING and not health.is_paused_by_hand and not is_older:
        # The gap `not_running` has ended: a daemon runs. A gap of another cause begins.
        ended = _closed(health, error.sent_at)
        health, gap = ended.health, ended.gap
        health = _opened(health, error.sent_at, cause, error.code)
    at_once = isinstance(error, AT_ONCE) and (job_failures == 0 or health.gap_began_at is not None)
    is_stale = health.answered_at is not None and error.sent_at <= health.answered_at
    is_known = job_failures > 0 and unfailed >= THREE - health.failures
    if is_stale and not at_once:
        return ClusterChange(health, gap)
    is_probe = turn is RequestKind.PROBE
    must_pause = at_once or is_probe
    since = health.failing_since or error.sent_at
    counted = health.failures + (must_pause or not is_known)
    health = replace(health, failures=counted, failing_since=since)
    if not must_pause and (is_known or counted < THREE):
        return ClusterChange(health, gap)
    if health.gap_began_at is None:
        began_at = error.sent_at if at_once else since
        health = _opened(health, max(began_at, health.answered_at or began_at), cause, error.code)
    backs_off = not at_once
    if health.is_paused_by_hand:
        return ClusterChange(health, gap, backs_off)
    asked_for = error.retry_after if isinstance(error, RateLimited) else None
    if health.pause_cause is not None and not is_probe:
        # The request was in progress when the pause began: only a Retry-After makes the pause longer.
        if asked_for is not None and health.paused_until is not None:
            until = max(health.paused_until, now + min(asked_for, longest))
            health = replace(health, paused_until=until)
        return ClusterChange(health, gap, backs_off)
    pause = asked_for if asked_for is not None else doubled(first, health.pauses, longest)
    until = now + max(min(pause, longest), timedelta(seconds=1))
    return ClusterChange(
        replace(health, pauses=health.pauses + 1, paused_until=until, pause_cause=cause), gap, backs_off
    )


def restarted(health: Health, now: datetime) -> tuple[Health, Permission]:
    """Return the cluster as a process that starts finds it, and what the process may ask.

    The fault may be repaired, so one job is asked at once; but not if an operator or the server asked for the pause.
    """
    may = health.may_ask(now)
    if may is Permission.NOTHING and not health.is_paused_by_hand and health.pause_cause is not Cause.RATE_LIMITED:
        return replace(health, paused_until=now), Permission.PROBE
    return health, Permission.PROBE if may is Permission.DUE and health.failures else may


def probing(health: Health, until: datetime) -> Health:
    """Return a cluster while one job is being asked: no other daemon asks *until* then."""
    return replace(health, paused_until=until)


def unasked(health: Health, now: datetime) -> Health:
    """Return a cluster whose probe was not sent or showed nothing: another job is asked at once."""
    return health if health.is_paused_by_hand or health.paused_until is None else replace(health, paused_until=now)


def absent(health: Health, since: datetime) -> Health:
    """Return a cluster that no daemon has asked since *since*; a gap that is already open covers that time."""
    return health if health.gap_began_at is not None else _opened(health, since, Cause.NOT_RUNNING, None)


@dataclass(frozen=True, slots=True)
class ClockStep:
    """A time in which the database's clock and elapsed time disagree, or in which the process did nothing.

    Attributes:
        before: The clock at the beginning.
        now: The clock at the end.
        by: How much more the clock moved than time passed; negative: it was set back.
    """

    before: datetime
    now: datetime
    by: timedelta


def step(before: datetime, now: datetime, elapsed: timedelta) -> ClockStep | None:
    """Return the step between two readings of the database's clock, or None if there is none.

    *elapsed* comes from a clock that cannot be set; it stops while a machine is suspended.
    """
    by = (now - before) - elapsed
    return ClockStep(before, now, by) if abs(by) > CLOCK_STEP or now - before >= MISSED else None


def stepped(health: Health, found: ClockStep) -> ClusterChange:
    """Return how *found* changes a cluster that was observed until its last answer, perhaps by another daemon."""
    if found.by < -CLOCK_STEP:
        return _set_back(health, found.now, -found.by)
    before = max(found.before, health.answered_at or found.before)
    if found.now - found.before >= MISSED:
        return ClusterChange(absent(health, before) if found.now - before >= MISSED else health)
    detail = f"the clock was set forward by {_about(found.by)}, or the machine was suspended"
    return ClusterChange(health, EndedGap(found.before, found.now, Cause.CLOCK_SET, detail))


def _set_back(health: Health, now: datetime, by: timedelta) -> ClusterChange:
    """Return a cluster, without future times, after its clock was ahead by at least *by* and was corrected to *now*.

    The gap ``clock_set`` has no length: it explains to verifiers why times before it are later than those after it.
    """
    names = ("answered_at", "failing_since", "gap_began_at", "paused_until", "next_request_at")
    times = {name: getattr(health, name) for name in names}
    health = replace(health, **{name: min(at, now) for name, at in times.items() if at is not None})
    return ClusterChange(health, EndedGap(now, now, Cause.CLOCK_SET, f"the clock was ahead by {_about(by)}"))


def _about(long: timedelta) -> timedelta:
    """Return *long* rounded to the second, or to the minute if it is longer than an hour."""
    unit = 60 if abs(long) > timedelta(hours=1) else 1
    return timedelta(seconds=unit * round(long.total_seconds() / unit))


def _opened(health: Health, began_at: datetime, cause: Cause, detail: str | None) -> Health:
    return replace(health, gap_began_at=began_at, gap_cause=cause, gap_detail=detail, gap_actor=None)


def _closed(health: Health, ended_at: datetime) -> ClusterChange:
    if health.gap_began_at is None or health.gap_cause is None:
        return ClusterChange(health)
    began_at = health.gap_began_at
    gap = EndedGap(began_at, max(ended_at, began_at), health.gap_cause, health.gap_detail, health.gap_actor)
    return ClusterChange(replace(health, gap_began_at=None, gap_cause=None, gap_detail=None, gap_actor=None), gap)
