"""What a history of transitions comes to: in Python, apart from the product, whose replay is SQL (`reports/replay`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from tracker.models import facts_of
from tracker.status import Action, Facts, Job, Past, State, Transition


@dataclass(frozen=True)
class Replay:
    """A replayed history.

    Attributes:
        job: The row of ``jobs``, but for what transitions do not hold: ``seen_at`` (here a lower bound),
            ``status_polls`` (here 0 after a reopening, else 1) and the polls since the last transition.
        past: What `status.decide` needs of the history.
    """

    job: Job
    past: Past


def registration(facts: Facts, at: datetime, actor: str) -> Transition:
    """Return the transition that a trigger of the database writes."""
    return Transition(
        seq=0,
        action=Action.REGISTERED,
        from_status=None,
        to_status=None,
        from_state=None,
        to_state=State.OPEN,
        last_seen_at=None,
        observed_at=at,
        polls=0,
        actor=actor,
        facts=facts,
    )


def transition_of(row: sa.Row[Any]) -> Transition:
    """Return the transition in a row of transitions."""
    facts = facts_of(row) if row.action in (Action.REGISTERED, Action.AMENDED) else None
    names = [field.name for field in fields(Transition) if field.name != "facts"]
    return Transition(**{name: getattr(row, name) for name in names}, facts=facts)


def replay(transitions: Iterable[Transition]) -> Replay:
    """Return what a whole history comes to; fails if a transition does not follow on the one before it."""
    first, *others = transitions
    assert first == registration(first.facts or Facts(), first.observed_at, first.actor or "")
    job = Job(first.facts or Facts(), first.observed_at, first.actor or "")
    found_before, reopened_at = False, None
    for row in others:
        assert (row.seq, row.from_status, row.from_state) == (job.seq + 1, job.status, job.state)
        job = replace(job, state=row.to_state, seq=row.seq, polls=row.polls, seen_at=row.last_seen_at)
        ends = {State.OPEN: (None, None), State.ATTESTED: (None, row.claimed_at)}
        ended_after, ended_by = ends.get(row.to_state, (row.last_seen_at, row.observed_at))
        match row.action:
            case Action.AMENDED:
                job = replace(job, facts=row.facts or job.facts)
                continue
            case Action.REOPENED:
                job = replace(job, status_polls=0)
                reopened_at = row.observed_at
            case Action.WITHDRAWN:
                ended_after = row.observed_at
            case Action.OBSERVED:
                if row.to_status != job.status:
                    job = replace(job, status=row.to_status)
                    job = replace(job, status_after=row.last_seen_at, status_by=row.observed_at)
                job = replace(job, status_polls=1)
                found_before |= row.to_status != "not_found"
        job = replace(job, ended_after=ended_after, ended_by=ended_by)
    counted_from = max(filter(None, (job.status_by, reopened_at)), default=None) if job.status == "not_found" else None
    return Replay(job, Past(found_before, counted_from))
