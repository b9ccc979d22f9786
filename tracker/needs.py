"""What needs a person: one pure function over what is stored.

Owns which facts need a person, which of them are urgent, and what to do about each. ``reports/overview.py`` gathers the
facts; `tracker status`, the page, alerts and metrics show what this module says, and decide nothing.

Whether a cluster is polled is judged by what is stored about it, never by the memory of a process: since when its
oldest poll is due, when it was last asked, and which daemons are alive. So cron and daemons are judged alike. A daemon
does not store which clusters it has in its settings; one that asks nothing of a cluster whose polls are due has it not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Final

from tracker.status import Anomaly, Cause

BEHIND: Final = timedelta(seconds=60)
"""A poll that is due for longer than this is late."""
FAR_BEHIND: Final = timedelta(minutes=15)
"""One that is late by more than this needs a person: no short outage, no burst of registrations, no cron explains it.

A deadline that is past for longer than this needs one, too, if nobody has asked since."""
SEALED_WITHIN: Final = timedelta(hours=24)
"""A row that waits for its seal for this much longer than `seal_after` needs a person: cron may run once a day."""
SEALED_BY_DAEMON: Final = timedelta(minutes=15)
"""The same while a daemon runs."""
NEAR: Final = (1, 3, 7)
"""Days left until a deadline that is near; of the first the need is urgent."""

KINDS: Final = (
    "key_refused",
    "unreachable",
    "bad_answer",
    "no_daemon",
    "not_polled",
    "polls_late",
    "overdue",
    "undecidable",
    "seal_damaged",
    "deadline_near",
    "rate_limited",
    "paused",
    "lost",
    "failed",
    "anomaly",
    "undelivered",
    "unsealed",
    "download_closing",
)
"""Every kind of need, the most urgent first."""

_LONGEST: Final = 200
"""Characters of a reason or an error that are shown; the whole of it may have thousands."""


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that needs a person.

    Attributes:
        kind: One of `KINDS`: alerts and metrics are grouped by it.
        subject: A cluster, a destination, an anomaly, days left; empty for a group of jobs of all clusters.
        since: Since when (aware UTC); None: unknown.
        is_urgent: `tracker status` exits 1 because of it.
        count: How many jobs, polls or checkpoints it is about; 1 where nothing is counted.
        what: What is wrong, one sentence without its full stop.
        action: What to do, in words and commands.
    """

    kind: str
    subject: str
    since: datetime | None
    is_urgent: bool
    count: int
    what: str
    action: str


@dataclass(frozen=True, slots=True)
class Daemon:
    """A row of ``workers`` that is alive: it beat within a minute and was not stopped."""

    worker: str
    host: str
    pid: int
    version: str
    started_at: datetime
    beat_at: datetime


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster, as an operator sees it.

    Attributes:
        cluster: Its name.
        is_configured: It is in the settings of this command.
        open: Open jobs.
        polls_behind: Polls that are due for longer than `BEHIND`, whether a daemon has claimed them or not.
        behind_since: When the oldest of them was due.
        asked_at: The last request was planned for this time; None: nobody ever asked.
        answered_at: The last valid answer was complete.
        paused_until: None while `pause_cause` is set: until an operator resumes it.
        pause_cause: None: it is not paused.
        gap_began_at: None: no gap is open.
        gap_cause: Why nothing could be observed since.
        gap_detail: An operator's reason, or the code of an error.
        next_deadline_on: The nearest day that is a deadline still ahead of an unsettled job.
    """

    cluster: str
    is_configured: bool
    open: int = 0
    polls_behind: int = 0
    behind_since: datetime | None = None
    asked_at: datetime | None = None
    answered_at: datetime | None = None
    paused_until: datetime | None = None
    pause_cause: Cause | None = None
    gap_began_at: datetime | None = None
    gap_cause: Cause | None = None
    gap_detail: str | None = None
    next_deadline_on: date | None = None


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A destination that checkpoints cannot be delivered to.

    Attributes:
        destination: Without secrets.
        failing_since: It fails since then.
        last_error: Class and code.
        waiting: How many checkpoints it lacks.
    """

    destination: str
    failing_since: datetime
    last_error: str
    waiting: int


@dataclass(frozen=True, slots=True)
class Seals:
    """How the history is sealed.

    Attributes:
        number: Of the last checkpoint; None: it is missing or damaged.
        sealed_at: When it was made; None: nothing is sealed.
        key_id: Whose signature it says to have; None: it is unsigned.
        unsealed: Rows of history since.
        unsealed_since: When the oldest transition of them was recorded.
        undelivered: By destination.
    """

    number: int | None = None
    sealed_at: datetime | None = None
    key_id: str | None = None
    unsealed: int = 0
    unsealed_since: datetime | None = None
    undelivered: tuple[Undelivered, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Jobs or transitions that are counted together: how many, and the time of the oldest."""

    count: int = 0
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Overview:
    """How everything stands at one time: what `needs` judges.

    Attributes:
        now: The database's time.
        seal_after: The setting.
        daemons: Those alive.
        last_beat_at: The newest beat of any daemon; None: there never was one.
        clusters: Those configured or in the database, by name.
        overdue: Unsettled jobs with this verdict, since the first of their deadlines.
        undecidable: Open jobs with this verdict, since the first of their deadlines.
        lost: Jobs in this state, since the first was.
        failed: Jobs in this state, since the first was.
        due_within: Number of unsettled jobs whose deadline is ahead, by the days (of the legal zone) that are left.
        anomalies: Transitions of the last day, by word.
        downloads: Exports whose download window closes within a day; the time is when the first does.
        seals: How the history is sealed.
    """

    now: datetime
    seal_after: timedelta
    daemons: tuple[Daemon, ...] = ()
    last_beat_at: datetime | None = None
    clusters: tuple[Cluster, ...] = ()
    overdue: Group = Group()
    undecidable: Group = Group()
    lost: Group = Group()
    failed: Group = Group()
    due_within: dict[int, int] = field(default_factory=dict)
    anomalies: dict[Anomaly, Group] = field(default_factory=dict)
    downloads: Group = Group()
    seals: Seals = Seals()

    @property
    def open(self) -> int:
        """How many jobs are open."""
        return sum(cluster.open for cluster in self.clusters)


def needs(seen: Overview) -> list[Need]:
    """Return what needs a person, the most urgent first.

    A done job whose verdict is missed or undecidable is not among it: nothing that anyone does changes that any more.
    """
    found = [*_clusters(seen), *_jobs(seen), *_evidence(seen)]
    return sorted(found, key=lambda need: (not need.is_urgent, KINDS.index(need.kind)))


def _clusters(seen: Overview) -> Iterator[Need]:
    """Yield what keeps clusters from being polled."""
    far = seen.now - FAR_BEHIND
    unpolled: list[Cluster] = []
    for one in seen.clusters:
        name, since = one.cluster, one.gap_began_at
        detail = f" ({_short(one.gap_detail)})" if one.gap_detail else ""
        resume = f"`tracker resume {name}`"
        causes = {one.pause_cause, one.gap_cause}
        is_late = one.behind_since is not None and one.behind_since < far
        if one.pause_cause is Cause.PAUSED:
            if one.gap_cause is not Cause.PAUSED:  # else the gap began before, and is about something else
                since, detail = None, ""
            what = f"{name}: an operator paused it{_since(since)}{detail}; {_count(one.open, 'open job')} not polled"
            yield Need("paused", name, since, False, one.open, what, f"Start polling again: {resume}.")
            continue
        if Cause.KEY_REFUSED in causes:
            what = f"{name}: Elevate refuses the API key{_since(since)}{detail}"
            yield Need("key_refused", name, since, True, 1, what, "Set a valid key and restart `tracker run`.")
        elif Cause.UNREACHABLE in causes:
            what = f"{name}: Elevate cannot be reached{_since(since)}{detail}"
            action = f"Check base_url, path and the network. {resume} asks again at once."
            yield Need("unreachable", name, since, True, 1, what, action)
        elif Cause.BAD_ANSWER in causes:
            what = f"{name}: the server sends no valid answer{_since(since)}{detail}"
            action = f"Check base_url and path; the log of `tracker run` has details. {resume} asks again at once."
            yield Need("bad_answer", name, since, True, 1, what, action)
        elif one.pause_cause is not None and one.paused_until is not None and one.paused_until > seen.now:
            if is_late:
                what = f"{name}: the server asked us to wait until {_time(one.paused_until)}; {_late(one)}"
                action = "Lower max_requests_per_second, or ask Voyado for a higher limit."
                yield Need("rate_limited", name, one.behind_since, False, one.polls_behind, what, action)
            continue
        if _is_unpolled(seen, one):
            what = f"{name}: {_late(one)}. No running daemon is configured for this cluster"
            action = f"Add {name} to the settings of a `tracker run` and restart it."
            yield Need("not_polled", name, one.behind_since, True, one.polls_behind, what, action)
        elif is_late and not seen.daemons:
            unpolled.append(one)
        elif is_late and not causes & {Cause.KEY_REFUSED, Cause.UNREACHABLE, Cause.BAD_ANSWER}:
            action = "Raise max_requests_per_second or max_concurrency, or start another `tracker run`."
            yield Need("polls_late", name, one.behind_since, True, one.polls_behind, f"{name}: {_late(one)}", action)
    if unpolled:
        since = min(one.behind_since for one in unpolled if one.behind_since is not None)
        count = sum(one.polls_behind for one in unpolled)
        beat = f"; the last one stopped {_time(seen.last_beat_at)}" if seen.last_beat_at else ""
        what = f"No daemon runs{beat}; {_count(count, 'late poll')}, the oldest due since {_time(since)}"
        yield Need("no_daemon", "", since, True, count, what, "Start one: `tracker run`.")


def _is_unpolled(seen: Overview, one: Cluster) -> bool:
    """Whether polls of a cluster are late because no daemon has it in its settings.

    While daemons are alive: nothing was asked since the oldest late poll was due, and that is 15 minutes ago, or
    before every daemon began that is alive. Else, only if nobody ever asked and it is not configured here either.
    """
    if one.behind_since is None or (one.asked_at is not None and one.asked_at >= one.behind_since):
        return False
    if not seen.daemons:
        return one.asked_at is None and not one.is_configured
    began_at = min(daemon.started_at for daemon in seen.daemons)
    is_new = began_at >= seen.now - BEHIND
    is_before = one.asked_at is None or one.asked_at < began_at
    return one.behind_since < seen.now - FAR_BEHIND or (is_before and not is_new)


def _jobs(seen: Overview) -> Iterator[Need]:
    """Yield the groups of jobs that a person has to do something about."""
    if count := seen.overdue.count:
        what = f"{_count(count, 'job')} overdue: not done at the deadline, the first{_since(seen.overdue.since)}"
        action = "List them: `tracker jobs --verdict overdue`. Inform the colleague who answers the person."
        yield Need("overdue", "", seen.overdue.since, True, count, what, action)
    unseen = seen.undecidable
    if unseen.since is not None and unseen.since < seen.now - FAR_BEHIND:
        what = f"{_count(unseen.count, 'job')} not seen since the deadline, the first{_since(unseen.since)}"
        action = "List them: `tracker jobs --verdict undecidable`. `tracker poll JID` asks now."
        yield Need("undecidable", "", unseen.since, True, unseen.count, what, action)
    above = -1
    for days in NEAR:
        count = sum(n for left, n in seen.due_within.items() if above < left <= days)
        above = days
        if count:
            near = "1 day" if days == 1 else f"{days} days"
            what = f"{_count(count, 'job')} not done, with at most {near} until the deadline"
            action = f"List them: `tracker jobs --due-within {days}d`. `tracker show JID` says what is known."
            yield Need("deadline_near", near, None, days == NEAR[0], count, what, action)
    if count := seen.lost.count:
        what = (
            f"{_count(count, 'job')} lost: Elevate does not know the jid any more, the first{_since(seen.lost.since)}"
        )
        action = "List them: `tracker jobs --state lost`. Check jid and cluster, then reopen or withdraw."
        yield Need("lost", "", seen.lost.since, False, count, what, action)
    if count := seen.failed.count:
        what = f"{_count(count, 'job')} failed: Elevate said error, the first{_since(seen.failed.since)}"
        action = "List them: `tracker jobs --state failed`. Submit again, add the new jid, withdraw the old one."
        yield Need("failed", "", seen.failed.since, False, count, what, action)
    for word, group in seen.anomalies.items():
        what = f"{_count(group.count, 'anomaly', 'anomalies')} {word} in the last 24 hours"
        action = "List them: `tracker report anomalies --since 1d`."
        yield Need("anomaly", word.value, group.since, False, group.count, what, action)
    if count := seen.downloads.count:
        what = f"{_count(count, 'export')} that can be downloaded for less than a day"
        action = "List them: `tracker jobs --state done --kind export`. Make sure that each was downloaded."
        yield Need("download_closing", "", None, False, count, what, action)


def _evidence(seen: Overview) -> Iterator[Need]:
    """Yield what keeps checkpoints from being made, or from leaving the database."""
    its = seen.seals
    if its.sealed_at is not None and its.number is None:
        what = "The newest row in `seals` is not a valid checkpoint; sealing has stopped"
        action = "Run `tracker audit verify`; tracker/audit/ROLES.md says what the owner can do."
        yield Need("seal_damaged", "", its.sealed_at, True, 1, what, action)
    elif its.unsealed_since is not None:
        # A job may be registered as of long ago, and a daemon may have begun just now.
        waiting_since = max([its.unsealed_since, *([its.sealed_at] if its.sealed_at else [])])
        running_since = min((daemon.started_at for daemon in seen.daemons), default=seen.now)
        due_at = seen.now - seen.seal_after
        is_slow = its.unsealed_since < due_at - SEALED_WITHIN
        if is_slow or max(waiting_since, running_since) < due_at - SEALED_BY_DAEMON:
            what = f"{_count(its.unsealed, 'row')} of history not sealed, the oldest{_since(its.unsealed_since)}"
            action = "`tracker run --once` seals them or says why it cannot; so does the log of `tracker run`."
            yield Need("unsealed", "", its.unsealed_since, False, its.unsealed, what, action)
    for one in its.undelivered:
        action, is_urgent = (
            "Make sure that it exists and can be written to; it is tried again every few minutes.",
            False,
        )
        match one.last_error.split(" ")[0]:
            case "CheckpointFile":
                action = "Find out what is in that file, and why, before you move it away; the log has details."
            case "Chain":
                action, is_urgent = "The chain is damaged: run `tracker audit verify`.", True
        waiting = _count(one.waiting, "checkpoint")
        what = f"{_short(one.destination)}: {waiting} not delivered{_since(one.failing_since)} ({one.last_error})"
        yield Need("undelivered", one.destination, one.failing_since, is_urgent, one.waiting, what, action)


def _late(one: Cluster) -> str:
    since = "" if one.behind_since is None else f", due since {_time(one.behind_since)}"
    return f"{_count(one.polls_behind, 'late poll')}{since}"


def _count(number: int, noun: str, nouns: str = "") -> str:
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def _since(at: datetime | None) -> str:
    return "" if at is None else f" since {_time(at)}"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
