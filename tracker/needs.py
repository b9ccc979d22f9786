"""What needs a person: one pure function over what is stored.

Owns which facts need a person, which of them are urgent, and what to do about each. ``reports/overview.py`` gathers the
facts. `tracker status`, the page, alerts and metrics show the result and decide nothing.

Stored facts decide whether a cluster is polled, never the memory of a process: since when its oldest poll is due, when
it was last asked, and which daemons are alive. So cron and daemons are treated alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Final

from tracker.status import Anomaly, Cause

BEHIND: Final = timedelta(seconds=60)
"""A poll that has been due for longer than this is late; ``report_clusters`` counts it as behind."""
FAR_BEHIND: Final = timedelta(minutes=15)
"""A poll that is late by more than this needs a person: a short outage, many new jobs or cron do not explain it."""
SEALED_WITHIN: Final = timedelta(hours=24)
"""A row that waits this much longer than `seal_after` for its seal needs a person: cron may run once a day only. While
a daemon runs, `FAR_BEHIND` applies."""
NEAR: Final = (1, 3, 7)
"""Days left until a deadline that is near; the need of the first is urgent."""

KINDS: Final = {
    "key_refused": (True, "Set a valid key and restart `tracker run`."),
    "unreachable": (True, "Check base_url, path and the network. `tracker resume {}` asks again at once."),
    "bad_answer": (True, "Check base_url and path: is it Elevate? `tracker resume {}` asks again at once."),
    "no_daemon": (True, "Start one: `tracker run`."),
    "not_polled": (True, "Add {} to the settings of a `tracker run` and restart it."),
    "polls_late": (True, "Raise max_requests_per_second or max_concurrency, or start another `tracker run`."),
    "overdue": (True, "`tracker jobs --verdict overdue` lists them. Inform the colleague who answers the person."),
    "undecidable": (True, "`tracker jobs --verdict undecidable` lists them. `tracker poll JID` asks now."),
    "alert_undelivered": (True, "Run `tracker alerts test` and correct that URL in TRACKER_ALERT_URLS."),
    "seal_damaged": (True, "Run `tracker audit verify`; tracker/audit/ROLES.md says what the owner can do."),
    "deadline_near": (False, "`tracker jobs --due-within {}` lists them. `tracker show JID` shows the details."),
    "rate_limited": (False, "Lower max_requests_per_second, or ask Voyado for a higher limit."),
    "paused": (False, "`tracker resume {}` starts polling again."),
    "lost": (False, "`tracker jobs --state lost` lists them. Check jid and cluster, then reopen or withdraw."),
    "failed": (False, "`tracker jobs --state failed` lists them. Submit again, add the new jid, withdraw the old one."),
    "anomaly": (False, "`tracker report anomalies` lists them. Check each job with `tracker show JID`."),
    "undelivered": (
        False,
        "Make sure that the destination exists and accepts data. Delivery is retried every few minutes.",
    ),
    "unsealed": (
        False,
        "Run `tracker run --once`: it seals them or says why it cannot. The log of `tracker run` says so, too.",
    ),
    "retention": (False, "`tracker db prune --ended-before DATE --export DIR` removes them; nothing else does."),
    "download_closing": (False, "Make sure that each was downloaded: `tracker jobs --state done --kind export`."),
}
"""Every kind of need, the most urgent first: whether it is urgent, and what to do about its subject."""

URGENT: Final = "urgent"
"""The `Alerted.level` of an urgent need; all others have `NORMAL`."""
NORMAL: Final = "normal"

_LONGEST: Final = 150
"""Most characters of a reason or an error that are shown; the full text may have thousands."""

_OUTAGES: Final = {
    Cause.KEY_REFUSED: "Elevate refuses the API key",
    Cause.UNREACHABLE: "Elevate cannot be reached",
    Cause.BAD_ANSWER: "the server sends no valid answer",
}
"""The causes of gaps that are also kinds of needs, in words."""


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that needs a person.

    Attributes:
        kind: One of `KINDS`: alerts and metrics are grouped by it.
        subject: A cluster, a destination, an anomaly, or days left as ``3d``; else empty.
        since: Since when (aware UTC); None: unknown.
        is_urgent: `tracker status` exits 1 because of it.
        count: How many jobs, polls or checkpoints it is about; 1 if nothing is counted.
        what: What is wrong, one sentence without its full stop.
        action: What to do, in words and commands.
        is_acked: A person is handling it (`tracker ack`), so it is not urgent.
    """

    kind: str
    subject: str
    since: datetime | None
    is_urgent: bool
    count: int
    what: str
    action: str
    is_acked: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Its kind and subject as in ``alerts``: not empty, at most 255 characters, no invisible ones."""
        shown = "".join(letter if letter.isprintable() else "?" for letter in self.subject)
        return self.kind, shown[:255] or "-"


@dataclass(frozen=True, slots=True)
class Alerted:
    """A row of ``alerts``: a need, which messages were sent about it, and who is handling it.

    Attributes:
        kind, subject: `Need.key`.
        since: Since when the need exists.
        level: `URGENT` or `NORMAL`, when it was last sent or acknowledged.
        told_at: When a message was last sent. If later than `ended_at`, its end was sent, too.
        ended_at: None while the need exists.
        acked_by, acked_until, ack_reason: Who is handling it, until when (None: until it ends), and why.
    """

    kind: str
    subject: str
    since: datetime
    level: str
    told_at: datetime | None = None
    ended_at: datetime | None = None
    acked_by: str | None = None
    acked_until: datetime | None = None
    ack_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Daemon:
    """A row of ``workers`` that is alive: its last heartbeat is at most a minute old, and it did not stop."""

    worker: str
    host: str
    pid: int
    version: str
    started_at: datetime
    beat_at: datetime


@dataclass(frozen=True, slots=True)
class ClusterOverview:
    """A cluster, as an operator sees it.

    Attributes:
        is_configured: It is in the settings of this command.
        polls_behind, behind_since: Polls due for longer than `BEHIND`, claimed or not; when the oldest became due.
        asked_at: The last request was planned for this time; None: there was no request yet.
        answered_at: The last valid answer was complete.
        paused_until: None while `pause_cause` is set: until an operator resumes it.
        gap_began_at, gap_cause: Since when nothing could be observed, and why; None: no gap is open.
        gap_detail: An operator's reason, or the code of an error.
        next_deadline_on: The nearest future deadline of an unsettled job.
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
    """A destination that lacks checkpoints: its name without secrets, and class and code of the error."""

    destination: str
    failing_since: datetime
    last_error: str
    waiting: int


@dataclass(frozen=True, slots=True)
class Seals:
    """How the history is sealed.

    Attributes:
        number, sealed_at: Of the last checkpoint. Without a number it is damaged; without a time nothing is sealed.
        key_id: The key that it names; None: it is unsigned.
        unsealed: Number of newer rows of history.
        unsealed_since: When the oldest unsealed transition was recorded.
    """

    number: int | None = None
    sealed_at: datetime | None = None
    key_id: str | None = None
    unsealed: int = 0
    unsealed_since: datetime | None = None
    undelivered: tuple[Undelivered, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Jobs or transitions that are counted together, and the time of the oldest."""

    count: int = 0
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Overview:
    """The facts at one time that `needs` judges.

    Attributes:
        now: The database's time.
        seal_after: The setting.
        daemons: The daemons that are alive.
        last_beat_at: The newest heartbeat of any daemon; None: there was none yet.
        clusters: The clusters that are configured or in the database, by name.
        overdue, undecidable: Open and failed jobs with this verdict, since the first of their deadlines.
        lost, failed: Jobs in this state, since the first entered it.
        due_within: Number of unsettled jobs whose deadline is ahead, by the days (of the legal zone) that are left.
        anomalies: Transitions of the last day, by anomaly.
        retained_to: Jobs that had ended before this day (UTC) are older than the setting `retention`.
        retained: These jobs, and when the first became older.
        downloads: Exports whose download window closes within a day, and when the first window closes.
        seals: How the history is sealed.
        alerts: Rows of needs that exist, or whose end was not sent yet.
    """

    now: datetime
    seal_after: timedelta
    daemons: tuple[Daemon, ...] = ()
    last_beat_at: datetime | None = None
    clusters: tuple[ClusterOverview, ...] = ()
    overdue: Group = Group()
    undecidable: Group = Group()
    lost: Group = Group()
    failed: Group = Group()
    due_within: dict[int, int] = field(default_factory=dict)
    anomalies: dict[Anomaly, Group] = field(default_factory=dict)
    retained_to: date | None = None
    retained: Group = Group()
    downloads: Group = Group()
    seals: Seals = Seals()
    alerts: tuple[Alerted, ...] = ()

    @property
    def open(self) -> int:
        """How many jobs are open."""
        return sum(cluster.open for cluster in self.clusters)


def needs(seen: Overview) -> list[Need]:
    """Return what needs a person, the most urgent first.

    A done job that is missed or undecidable is not included: no action can change its verdict. A need that a person is
    handling is not urgent, unless it became urgent afterwards.
    """
    acks = {(one.kind, one.subject): one for one in seen.alerts if one.ended_at is None and _is_acked(one, seen.now)}
    found = [*_clusters(seen), *_jobs(seen), *_evidence(seen), *_alerts(seen)]
    found = [_in_hand(need, acks.get(need.key)) for need in found]
    return sorted(found, key=lambda need: (not need.is_urgent, list(KINDS).index(need.kind)))


def _need(kind: str, what: str, subject: str = "", since: datetime | None = None, count: int = 1) -> Need:
    is_urgent, action = KINDS[kind]
    return Need(kind, subject, since, is_urgent, count, what, action.format(subject))


def _clusters(seen: Overview) -> Iterator[Need]:
    """Yield the needs of clusters that are not polled."""
    left: list[ClusterOverview] = []
    for one in seen.clusters:
        name, causes = one.cluster, {one.pause_cause, one.gap_cause}
        why = _note(one.gap_detail, _since(one.gap_began_at))
        late = f"{name}: {_count(one.polls_behind, 'late poll')}{_note(_since(one.behind_since))}"
        is_far_behind = one.behind_since is not None and one.behind_since < seen.now - FAR_BEHIND
        if one.pause_cause is Cause.PAUSED:
            # A gap of another cause began earlier; its time and detail do not describe the pause.
            since, why = (one.gap_began_at, why) if one.gap_cause is Cause.PAUSED else (None, "")
            what = f"{name}: an operator stopped polling{why}; {_count(one.open, 'open job')}"
            yield _need("paused", what, name, since, one.open)
            continue
        outage = next((cause for cause in _OUTAGES if cause in causes), None)
        if outage is not None:
            yield _need(outage, f"{name}: {_OUTAGES[outage]}{why}", name, one.gap_began_at)
        if one.paused_until is not None and one.paused_until > seen.now:  # no daemon may ask
            if is_far_behind and outage is None:
                what = f"{late}. The server asked us to wait until {_time(one.paused_until)}"
                yield _need("rate_limited", what, name, one.behind_since, one.polls_behind)
        elif _is_unpolled(seen, one):
            what = f"{late}. No running daemon is configured for this cluster"
            yield _need("not_polled", what, name, one.behind_since, one.polls_behind)
        elif is_far_behind and not seen.daemons:
            left.append(one)
        elif is_far_behind and outage is None:
            yield _need("polls_late", late, name, one.behind_since, one.polls_behind)
    if left:
        count = sum(one.polls_behind for one in left)
        since = min(one.behind_since for one in left if one.behind_since is not None)
        what = f"No daemon is running; {_count(count, 'late poll')}{_note(_since(since))}"
        yield _need("no_daemon", what, "", since, count)


def _is_unpolled(seen: Overview, one: ClusterOverview) -> bool:
    """Whether polls of a cluster are late because no daemon has it in its settings.

    The settings of daemons are not stored, so this is a conclusion. While a daemon has been alive for a minute:
    nothing was asked since the oldest late poll was due, and that is 15 minutes ago or no daemon alive has asked yet.
    Without a daemon: the cluster was never asked, and is not configured here either.
    """
    if one.behind_since is None or (one.asked_at is not None and one.asked_at >= one.behind_since):
        return False
    if not seen.daemons:
        return one.asked_at is None and not one.is_configured
    began_at = min(daemon.started_at for daemon in seen.daemons)
    is_older = one.asked_at is None or one.asked_at < began_at
    return began_at < seen.now - BEHIND and (is_older or one.behind_since < seen.now - FAR_BEHIND)


def _jobs(seen: Overview) -> Iterator[Need]:
    """Yield the groups of jobs that a person has to do something about."""
    is_unseen = seen.undecidable.since is not None and seen.undecidable.since < seen.now - FAR_BEHIND
    for kind, group, what in (
        ("overdue", seen.overdue, "overdue: not done at the deadline"),
        ("undecidable", seen.undecidable if is_unseen else Group(), "not seen since the deadline"),
        ("lost", seen.lost, "lost: Elevate does not know the jid"),
        ("failed", seen.failed, "failed: Elevate said error"),
    ):
        if group.count:
            first = "" if group.since is None else f"the first on {group.since:%Y-%m-%d}"
            yield _need(kind, f"{_count(group.count, 'job')} {what}{_note(first)}", "", group.since, group.count)
    for above, days in zip((-1, *NEAR), NEAR, strict=False):
        if count := sum(jobs for left, jobs in seen.due_within.items() if above < left <= days):
            what = f"{_count(count, 'job')} not done, with {_count(days, 'day')} or less until the deadline"
            yield replace(_need("deadline_near", what, f"{days}d", None, count), is_urgent=days == NEAR[0])
    for word, group in seen.anomalies.items():
        what = f"{_count(group.count, 'transition')} with the anomaly {word} in the last 24 hours"
        yield _need("anomaly", what, word, group.since, group.count)
    if count := seen.retained.count:
        what = f"{_count(count, 'job')} ended before {seen.retained_to}, longer ago than TRACKER_RETENTION"
        yield _need("retention", f"{what}{_note(_since(seen.retained.since))}", "", seen.retained.since, count)
    if count := seen.downloads.count:
        what = f"{_count(count, 'export')} whose download window closes within a day"
        yield _need("download_closing", what, "", None, count)


def _evidence(seen: Overview) -> Iterator[Need]:
    """Yield the needs of checkpoints that are not made, or do not leave the database."""
    its = seen.seals
    if its.sealed_at is not None and its.number is None:
        what = "The newest row in `seals` is not a valid checkpoint; sealing has stopped"
        yield _need("seal_damaged", what, "", its.sealed_at)
    elif its.unsealed_since is not None:
        # A job may be registered with an old time, and a daemon may just have started.
        waiting_since = max(its.unsealed_since, its.sealed_at or its.unsealed_since)
        running_since = min((daemon.started_at for daemon in seen.daemons), default=seen.now)
        due_at = seen.now - seen.seal_after
        is_slow = its.unsealed_since < due_at - SEALED_WITHIN
        if is_slow or max(waiting_since, running_since) < due_at - FAR_BEHIND:
            what = f"{_count(its.unsealed, 'row')} of history not sealed{_note(_since(its.unsealed_since))}"
            yield _need("unsealed", what, "", its.unsealed_since, its.unsealed)
    for one in its.undelivered:
        why = _note(one.last_error, _since(one.failing_since))
        what = f"{_short(one.destination)}: {_count(one.waiting, 'checkpoint')} not delivered{why}"
        need = _need("undelivered", what, one.destination, one.failing_since, one.waiting)
        if one.last_error.startswith("OlderCopy "):
            what, _, action = one.last_error.removeprefix("OlderCopy ").partition(". ")
            what = f"Sealing has stopped: {_short(one.destination)} {what}"
            need = replace(need, is_urgent=True, what=what, action=action)
        elif one.last_error.startswith("Chain "):
            need = replace(need, is_urgent=True, action="The chain is damaged: run `tracker audit verify`.")
        elif one.last_error.startswith("CheckpointFile "):
            need = replace(need, action="Find out what that file contains, and why, before you move it.")
        yield need


def _alerts(seen: Overview) -> Iterator[Need]:
    """Yield the destinations that alerts do not reach; a short failure is no need."""
    failing = {one.subject: one.since for one in seen.alerts if one.kind == "alert_undelivered" and not one.ended_at}
    for subject, since in failing.items():
        if since < seen.now - FAR_BEHIND:
            what = f"Alerts do not reach {_short(subject)}{_note(_since(since))}"
            yield _need("alert_undelivered", what, subject, since)


def _is_acked(one: Alerted, now: datetime) -> bool:
    return one.acked_by is not None and (one.acked_until is None or one.acked_until > now)


def _in_hand(need: Need, ack: Alerted | None) -> Need:
    if ack is None or (need.is_urgent and ack.level != URGENT):
        return need
    until = "" if ack.acked_until is None else f" until {_time(ack.acked_until)}"
    handling = f"{ack.acked_by} is handling it{until}{_note(ack.ack_reason)}"
    return replace(need, is_urgent=False, is_acked=True, what=f"{need.what}. {_short(handling)}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _note(*facts: str | None) -> str:
    """Return the facts that are known, in brackets."""
    known = [_short(fact) for fact in facts if fact]
    return f" ({', '.join(known)})" if known else ""


def _since(at: datetime | None) -> str:
    return "" if at is None else f"since {_time(at)}"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
