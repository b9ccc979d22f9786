"""What needs a person: by a table of cases, then any overview that Hypothesis makes up."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tracker.needs import FAR_BEHIND, ClusterOverview, Daemon, Group, Need, Overview, Seals, Undelivered, needs
from tracker.status import Anomaly, Cause

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=n) for n in (1, 60, 3600, 86400))
DAEMON = Daemon("a:1:x", "a", 1, "1", NOW - 2 * DAY, NOW)
CLUSTER = ClusterOverview("w1", True, open=3, asked_at=NOW - MINUTE, answered_at=NOW - MINUTE)


def seen(*clusters: ClusterOverview, daemons: tuple[Daemon, ...] = (DAEMON,), **other: Any) -> Overview:
    return Overview(NOW, HOUR, daemons=daemons, last_beat_at=NOW, clusters=clusters, **other)


def late(by: timedelta, **other: Any) -> ClusterOverview:
    """Return a cluster whose oldest poll is late, and that was asked a moment ago, unless said otherwise."""
    return replace(CLUSTER, polls_behind=2, behind_since=NOW - by, **other)


def gap(cause: Cause, **other: Any) -> ClusterOverview:
    return replace(CLUSTER, gap_began_at=NOW - HOUR, gap_cause=cause, **{"gap_detail": "http_401"} | other)


def sealed(**values: Any) -> Seals:
    return replace(Seals(1, NOW - 3 * DAY, "k"), **values)


OUTAGE: dict[str, Any] = {"pause_cause": Cause.UNREACHABLE, "paused_until": NOW + MINUTE}
WAITING: dict[str, Any] = {"pause_cause": Cause.RATE_LIMITED, "paused_until": NOW + HOUR}
NEW = replace(DAEMON, started_at=NOW - 59 * SECOND)
UNASKED: dict[str, Any] = {"asked_at": NOW - 3 * DAY}
STUCK = Undelivered("file /c.txt", NOW - HOUR, "OSError ENOSPC", 3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # nothing
        (seen(), []),
        (seen(daemons=()), []),
        (seen(CLUSTER), []),
        (seen(CLUSTER, daemons=()), []),  # after a good `run --once`, also the night's polls are not due yet
        (seen(late(FAR_BEHIND)), []),
        (seen(late(FAR_BEHIND, asked_at=NOW - HOUR), daemons=()), []),  # the next cron comes soon
        # what keeps clusters from being polled
        (seen(gap(Cause.KEY_REFUSED)), ["URGENT key_refused w1 1"]),
        (seen(gap(Cause.UNREACHABLE)), ["URGENT unreachable w1 1"]),
        (seen(gap(Cause.UNREACHABLE, **OUTAGE)), ["URGENT unreachable w1 1"]),
        (seen(replace(late(HOUR), **OUTAGE)), ["URGENT unreachable w1 1"]),
        (seen(gap(Cause.BAD_ANSWER)), ["URGENT bad_answer w1 1"]),
        (seen(gap(Cause.PAUSED, pause_cause=Cause.PAUSED)), ["paused w1 3"]),
        (seen(late(DAY, pause_cause=Cause.PAUSED), daemons=()), ["paused w1 3"]),
        (seen(gap(Cause.RATE_LIMITED, **WAITING)), []),
        (seen(late(16 * MINUTE, **WAITING)), ["rate_limited w1 2"]),
        (seen(late(16 * MINUTE, **WAITING | {"paused_until": NOW})), ["URGENT polls_late w1 2"]),
        (seen(gap(Cause.NOT_RUNNING)), []),
        (seen(late(16 * MINUTE)), ["URGENT polls_late w1 2"]),
        # no daemon at all: late polls are one need for all clusters, beside the causes of each
        (
            seen(late(16 * MINUTE), late(HOUR, cluster="w2"), late(MINUTE, cluster="w3"), daemons=()),
            ["URGENT no_daemon  4"],
        ),
        (
            seen(gap(Cause.KEY_REFUSED, polls_behind=2, behind_since=NOW - HOUR), daemons=()),
            ["URGENT key_refused w1 1", "URGENT no_daemon  2"],
        ),
        (seen(late(HOUR, **WAITING), daemons=()), ["rate_limited w1 2"]),  # no daemon would ask
        # a cluster that nobody has in their settings
        (seen(late(61 * SECOND, **UNASKED)), ["URGENT not_polled w1 2"]),
        (seen(late(61 * SECOND, asked_at=None)), ["URGENT not_polled w1 2"]),
        (seen(late(61 * SECOND, asked_at=None), daemons=(NEW,)), []),  # the daemon has its minute
        (seen(late(HOUR, **UNASKED), daemons=(NEW,)), ["URGENT polls_late w1 2"]),  # it takes over from one that died
        (seen(late(HOUR, **UNASKED, **OUTAGE)), ["URGENT unreachable w1 1"]),  # no daemon may ask yet
        (seen(late(61 * SECOND, asked_at=NOW - HOUR)), []),  # asked while that daemon ran, perhaps by cron
        (seen(late(16 * MINUTE, asked_at=NOW - HOUR)), ["URGENT not_polled w1 2"]),
        (seen(late(61 * SECOND, asked_at=None, is_configured=False), daemons=()), ["URGENT not_polled w1 2"]),
        (seen(late(61 * SECOND, asked_at=None), daemons=()), []),
        (seen(late(61 * SECOND, is_configured=False, **UNASKED), daemons=()), []),  # configured elsewhere, by cron
        (seen(late(16 * MINUTE, is_configured=False, **UNASKED), daemons=()), ["URGENT no_daemon  2"]),
        # groups of jobs
        (seen(overdue=Group(2, NOW - HOUR)), ["URGENT overdue  2"]),
        (seen(undecidable=Group(2, NOW - FAR_BEHIND)), []),  # the poll just after the deadline is yet to come
        (seen(undecidable=Group(2, NOW - HOUR)), ["URGENT undecidable  2"]),
        (seen(lost=Group(2, NOW), failed=Group(1, NOW)), ["lost  2", "failed  1"]),
        (
            seen(due_within={0: 1, 1: 2, 2: 4, 3: 8, 4: 16, 7: 32, 8: 64}),
            ["URGENT deadline_near 1d 3", "deadline_near 3d 12", "deadline_near 7d 48"],
        ),
        (seen(anomalies={Anomaly.BACKWARDS: Group(2, NOW)}), ["anomaly backwards 2"]),
        (seen(downloads=Group(5, NOW + HOUR)), ["download_closing  5"]),
        # evidence
        (seen(seals=sealed()), []),
        (seen(seals=sealed(number=None)), ["URGENT seal_damaged  1"]),
        (seen(seals=sealed(unsealed=5, unsealed_since=NOW - 75 * MINUTE)), []),
        (seen(seals=sealed(unsealed=5, unsealed_since=NOW - 76 * MINUTE)), ["unsealed  5"]),
        (seen(seals=sealed(unsealed=5, unsealed_since=NOW - 76 * MINUTE), daemons=(NEW,)), []),
        (seen(seals=sealed(unsealed=5, unsealed_since=NOW - 76 * MINUTE, sealed_at=NOW - HOUR)), []),
        (seen(seals=sealed(unsealed=5, unsealed_since=NOW - 25 * HOUR), daemons=()), []),
        (seen(seals=sealed(unsealed=5, unsealed_since=NOW - 26 * HOUR), daemons=()), ["unsealed  5"]),
        (seen(seals=sealed(undelivered=(STUCK,))), ["undelivered file /c.txt 3"]),
        (seen(seals=sealed(undelivered=(replace(STUCK, last_error="Chain x"),))), ["URGENT undelivered file /c.txt 3"]),
    ],
)
def test_each_thing_that_needs_a_person(given: Overview, expected: list[str]) -> None:
    """Its kind, subject, number and urgency, the urgent ones first; each is short and says what to do."""
    found = needs(given)
    assert [f"{'URGENT ' * n.is_urgent}{n.kind} {n.subject} {n.count}" for n in found] == expected
    for one in found:
        line = f"{one.what}. {one.action}"
        assert (len(line) <= 500, "None" in line) == (True, False)
        assert re.fullmatch(r"[A-Z`].*\.", one.action)


def test_a_need_says_what_is_wrong_since_when_and_what_to_do() -> None:
    """In plain words, the cluster first; a long reason is cut."""
    paused = gap(Cause.PAUSED, cluster="w2", pause_cause=Cause.PAUSED, gap_detail="x" * 900)
    refused, by_hand = needs(seen(gap(Cause.KEY_REFUSED), paused))
    assert refused == Need(
        kind="key_refused",
        subject="w1",
        since=NOW - HOUR,
        is_urgent=True,
        count=1,
        what="w1: Elevate refuses the API key (http_401, since 2026-11-27 11:00 UTC)",
        action="Set a valid key and restart `tracker run`.",
    )
    assert by_hand.what.startswith("w2: an operator stopped polling (xxx")
    assert len(f"{by_hand.what}. {by_hand.action}") <= 500
    [one] = needs(seen(replace(late(61 * SECOND, asked_at=None), polls_behind=1)))
    assert one.what == (
        "w1: 1 late poll (since 2026-11-27 11:58 UTC). No running daemon is configured for this cluster"
    )
