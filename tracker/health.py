"""What failures and answers make of a cluster: whether it is paused, until when, and which gap is open.

Owns the rules of DESIGN.md, "The poll": what pauses a cluster, when one request is enough, how pauses grow, when a gap
begins and ends, and what a restart and a clock that was set do to all that. Pure: rows and times are arguments. Leaves
alone: reading and writing the rows (``poller``), when one job is asked again (``cadence``), and pausing by hand
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
"""Requests have to fail before an error is held against the cluster; ours."""
MISSED: Final = timedelta(seconds=60)
"""A poll that comes later than this was missed; a process that does nothing for so long did not run."""
LONGEST_PAUSE: Final = timedelta(hours=6)
"""However long a server asks to be left alone, and however often it failed."""

_PAUSES: Final = {  # the first pause, which doubles up to the second; and what it is on record as
    KeyRefused: (timedelta(minutes=15), LONGEST_PAUSE, Cause.KEY_REFUSED),
    WrongTarget: (timedelta(minutes=15), LONGEST_PAUSE, Cause.UNREACHABLE),
    RateLimited: (timedelta(seconds=60), LONGEST_PAUSE, Cause.RATE_LIMITED),  # where the server does not say how long
    Unavailable: (timedelta(seconds=30), timedelta(minutes=15), Cause.UNREACHABLE),
    BadAnswer: (timedelta(seconds=30), timedelta(minutes=15), Cause.BAD_ANSWER),
}
AT_ONCE: Final = (KeyRefused, WrongTarget, RateLimited)
"""Errors that speak of the cluster, whichever job was asked about."""


class Turn(Enum):
    """Why a request was sent."""

    DUE = "due"
    PROBE = "probe"
    """The one request that finds out whether a cluster answers again: only its failure makes the pause longer."""
    BY_HAND = "by hand"
    """An operator asks now, whatever the pause; the answer ends it as a probe's does."""


class May(Enum):
    """What may be asked of a cluster now."""

    NOTHING = "nothing"
    PROBE = "one job, due or not"
    DUE = "all that is due"


@dataclass(frozen=True, slots=True)
class Gap:
    """A row of ``gaps`` to write."""

    began_at: datetime
    ended_at: datetime
    cause: Cause
    detail: str | None = None
    actor: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """A row of ``clusters``, without its name. All times are aware UTC.

    Attributes:
        answered_at: The last valid answer was complete.
        failures: Failed requests since then that count against the cluster.
        failing_since: The first request that failed since then was sent, whether it counts or not.
        pauses: In a row; the next one is so often doubled.
        paused_until: Nothing is asked until then; without a cause, since one job is being asked first.
        pause_cause: Why; ``paused`` is by hand and has no end.
        gap_began_at: Since when nothing could be observed; None: no gap is open.
        gap_cause, gap_detail, gap_actor: Of the open gap.
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
        """Return what may be asked at *now*. A pause that is longer than any can be is of a clock that was ahead."""
        if self.is_paused_by_hand:
            return May.NOTHING
        if self.paused_until is not None and now < self.paused_until <= now + LONGEST_PAUSE + MISSED:
            return May.NOTHING
        return May.DUE if self.pause_cause is None and self.gap_began_at is None else May.PROBE


@dataclass(frozen=True, slots=True)
class Change:
    """What something makes of a cluster.

    Attributes:
        health: As it is now.
        gap: The gap that has ended, to be written.
        backs_off: The job that failed waits for itself; else it stays due until the cluster may be asked again.
    """

    health: Health
    gap: Gap | None = None
    backs_off: bool = True


def answered(health: Health, sent_at: datetime, completed_at: datetime, turn: Turn = Turn.DUE) -> Change:
    """Return what a valid answer makes of a cluster.

    While the cluster is paused only a probe ends the pause: other answers were under way when it began. For the same
    reason no answer to a request sent before a gap began ends that gap.

    Args:
        health: Before.
        sent_at: When the request was sent.
        completed_at: When the answer was complete.
        turn: Why the request was sent.
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
    cluster if the job had not failed since its last valid answer, or if there are too few such jobs to make up three;
    and only if the cluster has answered nothing since the request was sent. An error that speaks of the cluster counts
    all the same; its gap begins with the last answer then, since until that the cluster could be observed.

    Args:
        health: Before.
        error: What came instead of an answer.
        now: The time.
        job_failures: How often in a row the job had failed before.
        unfailed: How many other open jobs have not failed since their last valid answer; three stand for more.
        turn: Why the request was sent.
    """
    first, longest, cause = next(pause for kind, pause in _PAUSES.items() if isinstance(error, kind))
    gap = None
    is_older = health.gap_began_at is not None and error.sent_at < health.gap_began_at
    if health.gap_cause is Cause.NOT_RUNNING and not health.is_paused_by_hand and not is_older:
        # That gap has ended: we run, and something else is wrong.
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
        # It was under way when the pause began: it makes it neither double nor longer, but for what a server asks for.
        if asked_for is not None and health.paused_until is not None:
            until = max(health.paused_until, now + min(asked_for, LONGEST_PAUSE))
            health = replace(health, paused_until=until)
        return Change(health, gap, backs_off)
    pause = asked_for if asked_for is not None else doubled(first, health.pauses, longest)
    until = now + max(min(pause, longest), timedelta(seconds=1))
    return Change(replace(health, pauses=health.pauses + 1, paused_until=until, pause_cause=cause), gap, backs_off)


def restarted(health: Health, now: datetime) -> tuple[Health, May]:
    """Return what a process makes of a cluster with its first request, and what it may ask.

    What failed may be mended, so one job is asked at once; but not where an operator or the server asked for a pause.
    """
    may = health.may_ask(now)
    if may is May.NOTHING and not health.is_paused_by_hand and health.pause_cause is not Cause.RATE_LIMITED:
        return replace(health, paused_until=now), May.PROBE
    return health, May.PROBE if may is May.DUE and health.failures else may


def probing(health: Health, until: datetime) -> Health:
    """Return a cluster of which one job is being asked: nobody else asks until then."""
    return replace(health, paused_until=until)


def unasked(health: Health, now: datetime) -> Health:
    """Return a cluster whose probe was not sent after all, or says nothing: another job is asked at once."""
    return health if health.is_paused_by_hand or health.paused_until is None else replace(health, paused_until=now)


def absent(health: Health, since: datetime) -> Health:
    """Return a cluster of which nobody asked anything from *since* on; a gap that is open already covers that."""
    return health if health.gap_began_at is not None else _opened(health, since, Cause.NOT_RUNNING, None)


def set_back(health: Health, now: datetime, by: timedelta) -> Change:
    """Return a cluster after its clock was ahead by at least *by* and is right at *now*: nothing lies in the future.

    The gap ``clock_set`` has no length: it explains to verifiers why times before it are later than those after it.
    """

    def past(at: datetime | None) -> datetime | None:
        return None if at is None else min(at, now)

    health = replace(
        health,
        answered_at=past(health.answered_at),
        failing_since=past(health.failing_since),
        gap_began_at=past(health.gap_began_at),
        paused_until=past(health.paused_until),
        next_request_at=past(health.next_request_at),
    )
    return Change(health, Gap(now, now, Cause.CLOCK_SET, f"the clock was ahead by {_about(by)}"))


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch between two looks at the database's clock that is not what it should be.

    Attributes:
        before: What the clock said at the look before.
        now: What it says now.
        by: How much more it moved than time passed; negative: it was set back.
    """

    before: datetime
    now: datetime
    by: timedelta


def step(before: datetime, now: datetime, elapsed: timedelta) -> Step | None:
    """Return what is wrong between two looks at the clock, or None if nothing is.

    Args:
        before: What the clock said at the first.
        now: What it says at the second.
        elapsed: What passed between them on a clock that nobody sets (it stands still while a machine is suspended).
    """
    by = (now - before) - elapsed
    return Step(before, now, by) if abs(by) > CLOCK_STEP or now - before >= MISSED else None


def stepped(health: Health, found: Step) -> Change:
    """Return what *found* makes of a cluster. Until its last answer it was observed, perhaps by another daemon."""
    if found.by < -CLOCK_STEP:
        return set_back(health, found.now, -found.by)
    before = max(found.before, health.answered_at or found.before)
    if found.now - found.before >= MISSED:
        return Change(absent(health, before) if found.now - before >= MISSED else health)
    detail = f"the clock was set forward by {_about(found.by)}, or the machine was suspended"
    return Change(health, Gap(found.before, found.now, Cause.CLOCK_SET, detail))


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
    gap = Gap(began_at, max(ended_at, began_at), health.gap_cause, health.gap_detail, health.gap_actor)
    return Change(replace(health, gap_began_at=None, gap_cause=None, gap_detail=None, gap_actor=None), gap)
