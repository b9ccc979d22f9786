"""What failures and answers make of a cluster: whether it is paused, until when, and which gap is open.

Owns the rules of DESIGN.md, "The poll": what pauses a cluster, when one request is enough, how pauses grow, when a gap
begins and ends, and what a restart and a clock that was set change in all that. Pure: rows and times are arguments.
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
"""So many requests have to fail before an error counts against the cluster; ours."""
MISSED: Final = timedelta(seconds=60)
"""A poll that is later than this was missed; a process that did nothing for this long did not run."""
LONGEST_PAUSE: Final = timedelta(hours=6)
"""However long a Retry-After is, and however often the cluster failed."""

_PAUSES: Final = {  # the first pause, the longest that it doubles up to, and its cause on record
    KeyRefused: (timedelta(minutes=15), LONGEST_PAUSE, Cause.KEY_REFUSED),
    WrongTarget: (timedelta(minutes=15), LONGEST_PAUSE, Cause.UNREACHABLE),
    RateLimited: (timedelta(seconds=60), LONGEST_PAUSE, Cause.RATE_LIMITED),  # where the server does not say how long
    Unavailable: (timedelta(seconds=30), timedelta(minutes=15), Cause.UNREACHABLE),
    BadAnswer: (timedelta(seconds=30), timedelta(minutes=15), Cause.BAD_ANSWER),
}
AT_ONCE: Final = (KeyRefused, WrongTarget, RateLimited)
"""Errors of the cluster itself, whichever job was asked about."""


class Turn(Enum):
    """Why a request was sent."""

    DUE = "due"
    PROBE = "probe"
    """The one request that finds out whether a cluster answers again: only its failure makes the pause longer."""
    BY_HAND = "by hand"
    """An operator asks now, whatever the pause; a valid answer ends the pause as a probe's does."""


class May(Enum):
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

    def may_ask(self, now: datetime) -> May:
        """Return what may be asked at *now*; a pause longer than any can be is void: a clock was ahead."""
        if self.is_paused_by_hand:
            return May.NOTHING
        if self.paused_until is not None and now < self.paused_until <= now + LONGEST_PAUSE + MISSED:
            return May.NOTHING
        return May.DUE if self.pause_cause is None and self.gap_began_at is None else May.PROBE


@dataclass(frozen=True, slots=True)
class Change:
    """What an event makes of a cluster.

    Attributes:
        health: As it is now.
        gap: The gap that has ended, to be written.
        backs_off: The job that failed waits; else it stays due until the cluster may be asked again.
    """

    health: Health
    gap: EndedGap | None = None
    backs_off: bool = True


def answered(health: Health, sent_at: datetime, completed_at: datetime, turn: Turn = Turn.DUE) -> Change:
    """Return what a valid answer makes of a cluster.

    While the cluster is paused only a probe ends the pause: other answers were under way when it began. For the same
    reason no answer to a request sent before a gap began ends that gap.
    """
    last = completed_at if health.answered_at is None else max(health.answered_at, completed_at)
    health = replace(health, answered_at=last)
    if health.is_paused_by_hand or (health.pause_cause is not None and turn is Turn.DUE):
        return Change(health)
    if health.gap_began_at is not None and sent_at < health.gap_began_at:
        return Change(health)
    well = replace(health, failures=0, failing_since=None, pauses=0, paused_until=None, pause_cause=None)
    # Nothing was asked in a gap `not_running`: that ended with the request; another one with the answer.
    return _closed(well, sent_at if health.gap_cause is Cause.NOT_RUNNING else completed_at)


def failed(
    health: Health, error: AskError, now: datetime, *, job_failures: int, unfailed: int, turn: Turn = Turn.DUE
) -> Change:
    """Return what a failed request makes of a cluster.

    One poisonous job must not stop its cluster, and jobs that always fail are no news. So a failure counts against the
    cluster if the job had not failed since its last valid answer, or if fewer than three such jobs are left; and only
    if the cluster has answered nothing since the request was sent. An error of the cluster itself counts all the same;
    its gap begins with the last answer then, since until that the cluster could be observed.

    Args:
        health: Before.
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
        # That gap has ended: a daemon runs, and something else is wrong.
        ended = _closed(health, error.sent_at)
        health, gap = ended.health, ended.gap
        health = _opened(health, error.sent_at, cause, error.code)
    at_once = isinstance(error, AT_ONCE) and (job_failures == 0 or health.gap_began_at is not None)
    is_stale = health.answered_at is not None and error.sent_at <= health.answered_at
    is_known = job_failures > 0 and unfailed >= THREE - health.failures
    if is_stale and not at_once:
        return Change(health, gap)
    is_probe = turn is Turn.PROBE
    must_pause = at_once or is_probe
    since = health.failing_since or error.sent_at
    counted = health.failures + (must_pause or not is_known)
    health = replace(health, failures=counted, failing_since=since)
    if not must_pause and (is_known or counted < THREE):
        return Change(health, gap)
    if health.gap_began_at is None:
        began_at = error.sent_at if at_once else since
        health = _opened(health, max(began_at, health.answered_at or began_at), cause, error.code)
    backs_off = not at_once
    if health.is_paused_by_hand:
        return Change(health, gap, backs_off)
    asked_for = error.retry_after if isinstance(error, RateLimited) else None
    if health.pause_cause is not None and not is_probe:
        # It was under way when the pause began: only a Retry-After makes the pause longer.
        if asked_for is not None and health.paused_until is not None:
            until = max(health.paused_until, now + min(asked_for, longest))
            health = replace(health, paused_until=until)
        return Change(health, gap, backs_off)
    pause = asked_for if asked_for is not None else doubled(first, health.pauses, longest)
    until = now + max(min(pause, longest), timedelta(seconds=1))
    return Change(replace(health, pauses=health.pauses + 1, paused_until=until, pause_cause=cause), gap, backs_off)


def restarted(health: Health, now: datetime) -> tuple[Health, May]:
    """Return what the first look of a process makes of a cluster, and what it may ask.

    What failed may be mended, so one job is asked at once; but not where an operator or the server asked for a pause.
    """
    may = health.may_ask(now)
    if may is May.NOTHING and not health.is_paused_by_hand and health.pause_cause is not Cause.RATE_LIMITED:
        return replace(health, paused_until=now), May.PROBE
    return health, May.PROBE if may is May.DUE and health.failures else may


def probing(health: Health, until: datetime) -> Health:
    """Return a cluster of which one job is being asked: no other daemon asks *until* then."""
    return replace(health, paused_until=until)


def unasked(health: Health, now: datetime) -> Health:
    """Return a cluster whose probe was not sent after all, or says nothing: another job is asked at once."""
    return health if health.is_paused_by_hand or health.paused_until is None else replace(health, paused_until=now)


def absent(health: Health, since: datetime) -> Health:
    """Return a cluster that no daemon has asked from *since* on; a gap that is open already covers that."""
    return health if health.gap_began_at is not None else _opened(health, since, Cause.NOT_RUNNING, None)


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch in which the database's clock did not move as time passed, or in which the process stood still.

    Attributes:
        before: What the clock said at its begin.
        now: What the clock said at its end.
        by: How much more it moved than time passed; negative: it was set back.
    """

    before: datetime
    now: datetime
    by: timedelta


def step(before: datetime, now: datetime, elapsed: timedelta) -> Step | None:
    """Return what is wrong between two looks at the database's clock, or None if nothing is.

    *elapsed* is by a clock that cannot be set; it stands still while a machine is suspended.
    """
    by = (now - before) - elapsed
    return Step(before, now, by) if abs(by) > CLOCK_STEP or now - before >= MISSED else None


def stepped(health: Health, found: Step) -> Change:
    """Return what *found* makes of a cluster, which was observed until its last answer, perhaps by another daemon."""
    if found.by < -CLOCK_STEP:
        return _set_back(health, found.now, -found.by)
    before = max(found.before, health.answered_at or found.before)
    if found.now - found.before >= MISSED:
        return Change(absent(health, before) if found.now - before >= MISSED else health)
    detail = f"the clock was set forward by {_about(found.by)}, or the machine was suspended"
    return Change(health, EndedGap(found.before, found.now, Cause.CLOCK_SET, detail))


def _set_back(health: Health, now: datetime, by: timedelta) -> Change:
    """Return a cluster after its clock was ahead by at least *by* and is right at *now*: nothing lies in the future.

    The gap ``clock_set`` has no length: it explains to verifiers why times before it are later than those after it.
    """
    names = ("answered_at", "failing_since", "gap_began_at", "paused_until", "next_request_at")
    times = {name: getattr(health, name) for name in names}
    health = replace(health, **{name: min(at, now) for name, at in times.items() if at is not None})
    return Change(health, EndedGap(now, now, Cause.CLOCK_SET, f"the clock was ahead by {_about(by)}"))


def _about(long: timedelta) -> timedelta:
    """Return *long* to the second, or to the minute where it is hours."""
    unit = 60 if abs(long) > timedelta(hours=1) else 1
    return timedelta(seconds=unit * round(long.total_seconds() / unit))


def _opened(health: Health, began_at: datetime, cause: Cause, detail: str | None) -> Health:
    return replace(health, gap_began_at=began_at, gap_cause=cause, gap_detail=detail, gap_actor=None)


def _closed(health: Health, ended_at: datetime) -> Change:
    if health.gap_began_at is None or health.gap_cause is None:
        return Change(health)
    began_at = health.gap_began_at
    gap = EndedGap(began_at, max(ended_at, began_at), health.gap_cause, health.gap_detail, health.gap_actor)
    return Change(replace(health, gap_began_at=None, gap_cause=None, gap_detail=None, gap_actor=None), gap)
