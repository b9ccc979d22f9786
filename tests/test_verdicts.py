"""Every verdict in every state: what the views say on both databases, and what the decision in Python says."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import TypeAlias

import pytest
import sqlalchemy as sa

from tests.history import answer, record, register
from tracker import database, deadline, status
from tracker.deadline import Verdict
from tracker.models import JOBS
from tracker.status import State

DAY, HOUR, SECOND, TICK = timedelta(days=1), timedelta(hours=1), timedelta(seconds=1), timedelta(microseconds=1)
PAST, AHEAD = -5 * DAY, 5 * DAY
"""The deadline, from now."""

Step: TypeAlias = tuple[str, timedelta]
"""What happened (a status that Elevate said, or what an operator did), and how long after the deadline (past) or, where
there is none or it is ahead, after five days ago."""

BEFORE, AT, AFTER, LATER = -DAY, timedelta(), DAY, 2 * DAY

CASES: list[tuple[State, timedelta | None, tuple[Step, ...], Verdict]] = [
    # open: pending until the deadline, then what was last seen not done decides
    (State.OPEN, AHEAD, (), Verdict.PENDING),
    (State.OPEN, AHEAD, (("waiting", LATER),), Verdict.PENDING),
    (State.OPEN, AHEAD, (("not_found", LATER),), Verdict.PENDING),
    (State.OPEN, None, (("waiting", LATER),), Verdict.PENDING),
    (State.OPEN, PAST, (), Verdict.UNDECIDABLE),
    (State.OPEN, PAST, (("waiting", BEFORE),), Verdict.UNDECIDABLE),
    (State.OPEN, PAST, (("waiting", -TICK),), Verdict.UNDECIDABLE),
    (State.OPEN, PAST, (("waiting", AT),), Verdict.OVERDUE),
    (State.OPEN, PAST, (("waiting", BEFORE), ("waiting", AFTER)), Verdict.OVERDUE),
    (State.OPEN, PAST, (("never heard of", AFTER),), Verdict.OVERDUE),
    (State.OPEN, PAST, (("not_found", AFTER),), Verdict.UNDECIDABLE),
    (State.OPEN, PAST, (("waiting", BEFORE), ("not_found", AFTER)), Verdict.UNDECIDABLE),
    (State.OPEN, PAST, (("waiting", AT), ("not_found", AFTER)), Verdict.OVERDUE),
    (State.OPEN, PAST, (("error", BEFORE), ("reopen", AFTER)), Verdict.UNDECIDABLE),
    (State.OPEN, PAST, (("error", AFTER), ("reopen", LATER)), Verdict.OVERDUE),
    (State.OPEN, PAST, (("withdraw", BEFORE), ("reopen", AFTER)), Verdict.UNDECIDABLE),
    # done: both bounds decide, and now does not matter
    (State.DONE, AHEAD, (("done", LATER),), Verdict.MET),
    (State.DONE, AHEAD, (("waiting", BEFORE), ("done", LATER)), Verdict.MET),
    (State.DONE, PAST, (("done", BEFORE),), Verdict.MET),
    (State.DONE, PAST, (("waiting", BEFORE), ("done", -SECOND)), Verdict.MET),  # an answer takes a second
    (State.DONE, PAST, (("waiting", BEFORE), ("done", TICK - SECOND)), Verdict.UNDECIDABLE),
    (State.DONE, PAST, (("waiting", -TICK), ("done", AFTER)), Verdict.UNDECIDABLE),
    (State.DONE, PAST, (("done", AFTER),), Verdict.UNDECIDABLE),
    (State.DONE, PAST, (("waiting", AT), ("done", AFTER)), Verdict.MISSED),
    (State.DONE, PAST, (("running", AFTER), ("done", LATER)), Verdict.MISSED),
    (State.DONE, PAST, (("not_found", AFTER), ("done", LATER)), Verdict.MISSED),
    # failed: somebody still waits
    (State.FAILED, AHEAD, (("error", LATER),), Verdict.PENDING),
    (State.FAILED, None, (("error", LATER),), Verdict.PENDING),
    (State.FAILED, PAST, (("error", BEFORE),), Verdict.OVERDUE),
    (State.FAILED, PAST, (("waiting", BEFORE), ("error", AFTER)), Verdict.OVERDUE),
    # lost: nobody can say
    (State.LOST, AHEAD, (("not_found", AFTER), ("not_found", LATER)), Verdict.UNDECIDABLE),
    (State.LOST, None, (("not_found", AFTER), ("not_found", LATER)), Verdict.UNDECIDABLE),
    (State.LOST, PAST, (("not_found", BEFORE), ("not_found", AFTER)), Verdict.UNDECIDABLE),
    (State.LOST, PAST, (("waiting", AFTER), ("not_found", AFTER), ("not_found", LATER)), Verdict.UNDECIDABLE),
    # an operator's word stands, whatever was seen
    *(
        (state, due, (*seen, (act, LATER)), verdict)
        for state, act, verdict in (
            (State.ATTESTED, "attest", Verdict.ATTESTED),
            (State.WITHDRAWN, "withdraw", Verdict.WITHDRAWN),
        )
        for due in (AHEAD, PAST, None)
        for seen in ((), (("waiting", AFTER),), (("error", BEFORE),))
    ),
]


def happen(engine: sa.Engine, job_id: int, what: str, at: datetime) -> None:
    acts: dict[str, Callable[[status.Job], status.Decision]] = {
        "withdraw": partial(status.withdraw, at=at, actor="eve", reason="a test"),
        "reopen": partial(status.reopen, at=at, actor="eve", reason="a test"),
        "attest": partial(status.attest, done_by=at - HOUR, at=at, actor="eve", reason="a test"),
    }
    if what in acts:
        record(engine, job_id, lambda job, past: acts[what](job), due_at=at)
    else:
        answer(engine, job_id, (what, at))


def test_each_case_has_its_verdict_in_the_views_and_in_python(engine: sa.Engine) -> None:
    """``report_jobs``, ``report_deadlines`` and ``deadline.verdict`` agree on the table above."""
    with database.reading(engine) as connection:
        now = database.now(connection)
    names = {}
    for number, (_, due, steps, _) in enumerate(CASES):
        declared = {"deadline_at": None, "deadline_on": None} if due is None else {"deadline_at": now + due}
        job_id = register(engine, f"j{number}", at=now - 20 * DAY, **declared)
        for what, after in steps:
            happen(engine, job_id, what, now + PAST + after)
        names[f"j{number}"] = f"{number}: due in {due}, {steps}"
    with database.reading(engine) as connection:
        states, decided = {}, {}
        for row in connection.execute(sa.select(JOBS)):
            states[names[row.jid]] = row.state
            by = row.ended_by if row.state is State.DONE else None
            not_before = row.ended_after if row.state is State.DONE else None
            seen = row.status, row.status_after, row.seen_at
            decided[names[row.jid]] = deadline.verdict(row.state, *seen, not_before, by, row.deadline_at, now)
        shown = {}
        for view in ("report_jobs", "report_deadlines"):
            rows = connection.execute(sa.text(f"SELECT jid, verdict FROM {view}"))
            shown[view] = {names[jid]: verdict for jid, verdict in rows}
    expected = dict(zip(names.values(), (verdict for *_, verdict in CASES), strict=True))
    assert states == dict(zip(names.values(), (state for state, *_ in CASES), strict=True))
    assert decided == expected
    assert shown == {"report_jobs": expected, "report_deadlines": expected}


@pytest.mark.parametrize("state", State)
def test_no_state_is_left_out(state: State) -> None:
    """Each state is judged with its deadline ahead and past, and all seven verdicts come about."""
    assert {due for its, due, *_ in CASES if its is state} >= {AHEAD, PAST}
    assert {verdict for *_, verdict in CASES} == set(Verdict)


def test_a_submission_after_the_deadline_shows_that_it_was_missed(engine: sa.Engine) -> None:
    """The month counts from receipt: what was submitted after its end was not done in time, though never seen so."""
    with database.reading(engine) as connection:
        now = database.now(connection)
    received_at, submitted_at = now - 50 * DAY, now - 3 * DAY
    late = register(engine, "late", at=now - 2 * DAY, received_at=received_at, submitted_at=submitted_at)
    unknown = register(engine, "unknown", at=now - 2 * DAY, received_at=received_at)
    for job_id in (late, unknown):
        answer(engine, job_id, ("done", now - DAY))
    with database.reading(engine) as connection:
        for view in ("report_jobs", "report_deadlines"):
            rows = connection.execute(sa.text(f"SELECT jid, verdict FROM {view} ORDER BY jid"))
            assert [tuple(row) for row in rows] == [("late", "missed"), ("unknown", "undecidable")]
