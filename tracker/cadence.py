"""When to ask about a job next: mostly when, by the vendor's calendar, its status may change.

Owns the nights of waiting, the growing intervals afterwards, the polls around a deadline, and the backoff after an
error of one job. Pure: the time and the random number are arguments. Leaves alone the pauses of a whole cluster
(``health``) and its rate (``poller``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from math import sqrt
from typing import Final
from zoneinfo import ZoneInfo

from tracker.deadline import start_of_day
from tracker.status import Job, State, Status

NIGHT_HOURS: Final = (timedelta(), timedelta(hours=2), timedelta(hours=6))
"""When the polls of a night are, after local midnight, in elapsed time (not as a clock on the wall shows it): so that
each exists once in every night, however the clocks change in it."""
NIGHT_DELAY: Final = timedelta(minutes=5)
"""Elevate needs a moment after midnight to begin; ours."""
NIGHT_SPREAD: Final = timedelta(minutes=10)
"""Jobs that wait are polled in the same nights, spread over this time so that they do not come together; ours."""

SHORTEST: Final = timedelta(seconds=15)
LONGEST: Final = timedelta(hours=6)
"""Bounds of a growing interval, before its jitter of ±10 %."""
LONGEST_NIGHT: Final = timedelta(hours=26)
"""The longest time to a next poll: from just after one midnight to the polls after the next, in a long day."""
FIRST_WAIT: Final = timedelta(seconds=60)
"""The wait after the first ``not_found``, or the first error; it doubles up to `LONGEST`; ours."""

WINDOW: Final = timedelta(minutes=15)
"""A job is polled in this window before its deadline, and in the one after it."""
LAST_MINUTE: Final = timedelta(minutes=1)
"""The poll before a deadline is due at least this long before it: the request has to be sent and answered in time."""
SOONEST: Final = timedelta(seconds=1)
"""A poll that is moved into a window is at least this long after the last."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """What the cadence of one cluster depends on.

    Attributes:
        timezone: Where Elevate's next day begins.
        archive_days: Days after the submission until its data is archived and the job can run.
        delay_per_poll: How much mean delay one request must save.
    """

    timezone: ZoneInfo
    archive_days: int = 5
    delay_per_poll: timedelta = timedelta(seconds=60)


def next_poll(job: Job, deadline_at: datetime | None, now: datetime, u: float, rhythm: Rhythm) -> datetime:
    """Return when to ask about an open job next, after an answer.

    A job that was never answered, or not since it was reopened, is due *now*; any other later than *now*. The growing
    interval is that of R. Barlow, L. Hunter, F. Proschan, "Optimum checking procedures", 1963.

    Args:
        job: The job as the answer left it.
        deadline_at: Its deadline, None if not computed.
        now: Not before the answer was complete.
        u: Uniform random number in [0, 1): spreads an interval by ±10 %, also at its bounds, and a poll over the
            window of its night or its deadline.
        rhythm: Of the cluster.

    Raises:
        ValueError: *job* has ended.
    """
    if job.state is not State.OPEN:
        raise ValueError(f"the job is {job.state}: an ended job is not polled")
    if job.seen_at is None or job.status_polls == 0:
        return now
    if job.status == Status.NOT_FOUND:
        due_at = now + _jittered(doubled(FIRST_WAIT, job.status_polls - 1, LONGEST), u)
    elif job.status == Status.RUNNING and job.status_by is not None:
        due_at = now + _growing(now - job.status_by, u, rhythm.delay_per_poll)
    else:
        # A submission in the future is a mistake; the job is polled nevertheless.
        began_at = min(job.facts.submitted_at or job.registered_at, now)
        began_on = began_at.astimezone(rhythm.timezone).date()
        archived_at = start_of_day(began_on + timedelta(days=rhythm.archive_days), rhythm.timezone)
        if now < archived_at:
            due_at = _next_night(began_on, now, u, rhythm.timezone)
        else:
            due_at = now + _growing(now - archived_at, u, rhythm.delay_per_poll)
    return _around_deadline(due_at, deadline_at, job.seen_at, now, u)


def retry_poll(failures: int, deadline_at: datetime | None, now: datetime, u: float) -> datetime:
    """Return when to ask about a job again, after *failures* errors in a row (at least one); always later than *now*.

    The other arguments are those of `next_poll`.
    """
    due_at = now + _jittered(doubled(FIRST_WAIT, failures - 1, LONGEST), u)
    # The failed request may have been sent a minute ago, so it does not count for a window that has just opened.
    return _around_deadline(due_at, deadline_at, now - LAST_MINUTE, now, u)


def _jittered(interval: timedelta, u: float) -> timedelta:
    """Return *interval* ±10 %. Applied after the bounds, so that jobs at a bound are not all due together."""
    return interval * (0.9 + 0.2 * u)


def doubled(first: timedelta, times: int, longest: timedelta) -> timedelta:
    """Return the wait *first*, doubled *times* times, at most *longest*: the backoff of all retries."""
    factor: int = 2 ** min(times, 16)  # more doublings exceed any `longest`, and in the end timedelta
    return min(first * factor, longest)


def _growing(age: timedelta, u: float, delay_per_poll: timedelta) -> timedelta:
    interval = timedelta(seconds=sqrt(max(0.0, 2 * delay_per_poll.total_seconds() * age.total_seconds())))
    return _jittered(min(max(interval, SHORTEST), LONGEST), u)


def _next_night(began_on: date, now: datetime, u: float, timezone: ZoneInfo) -> datetime:
    """Return the next poll of a night after the day *began_on*.

    A poll at any time in a spread counts for it: the next poll is in the next spread, whatever *u* was and is.
    """
    day = max(began_on + timedelta(days=1), now.astimezone(timezone).date())
    while True:
        for hours in NIGHT_HOURS:
            opens_at = start_of_day(day, timezone) + hours + NIGHT_DELAY
            if opens_at > now:
                return opens_at + NIGHT_SPREAD * u
        day += timedelta(days=1)


def _around_deadline(
    due_at: datetime, deadline_at: datetime | None, asked_at: datetime, now: datetime, u: float
) -> datetime:
    """Return *due_at*, or an earlier time if it would leave out the window before or after the deadline.

    The last request counts for the window in which it was sent, at *asked_at*.
    """
    if deadline_at is None or asked_at >= deadline_at:
        return due_at
    soonest = now + SOONEST
    opens_at, closes_at = deadline_at - WINDOW, deadline_at - LAST_MINUTE
    if asked_at >= opens_at or soonest >= closes_at:
        opens_at, closes_at = deadline_at, deadline_at + WINDOW
    begins_at = max(opens_at, soonest)
    if due_at < closes_at or begins_at >= closes_at:
        return due_at
    return begins_at + (closes_at - begins_at) * u
