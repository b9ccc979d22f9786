"""Corrections: what people declared is amended, what nobody saw is attested, and history keeps both, on both databases.

By way of `tracker.operate` and of the command line; afterwards ``jobs`` is always the replay of ``transitions``, its
deadline what the legal clock says, and a report as of now the same as the views.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests import history
from tests.conftest import Say
from tests.history import ZONE, answer, register
from tests.replay import replay, transition_of
from tests.scripted import Script, SetClock, polling
from tracker import database, operate
from tracker.deadline import add_months
from tracker.errors import InvalidField, Refused
from tracker.models import JOBS, facts_of
from tracker.operate import Amendment
from tracker.reports.about import Filters
from tracker.reports.as_of import shadows
from tracker.status import Action, Facts, Kind, State

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
R_1 = {"kind": "export", "reference": "R-1"}


def local(at: datetime) -> date:
    return at.astimezone(ZONE).date()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime | None], None]:
    """Return a function that sets the database's clock for what operators do next; None: its own again."""
    own = database.now

    def set_(when: datetime | None) -> None:
        monkeypatch.setattr(database, "now", own if when is None else lambda connection: when)

    return set_


def amend(engine: sa.Engine, job_id: int, **changes: Any) -> Amendment:
    with database.writing(engine) as connection:
        return operate.amend(connection, job_id, "alice", "the mail", changes, zone=ZONE)


def attest(engine: sa.Engine, job_id: int, done_by: datetime) -> None:
    with database.writing(engine) as connection:
        operate.attest(connection, job_id, "eve", "the archive has it", done_by)


def row(engine: sa.Engine, job_id: int) -> sa.Row[Any]:
    """Return the job's row, checked to be its replay, with the deadline that a report as of later computes."""
    found = history.job(engine, job_id)
    with database.reading(engine) as connection:
        told = [transition_of(one) for one in history._history(connection, job_id)]
        later = max(database.now(connection), told[-1].observed_at)
        ctes = shadows(connection, Filters(), later, ZONE)
        then = connection.execute(sa.select(JOBS).where(JOBS.c.id == job_id).add_cte(*ctes)).one()
    assert facts_of(found) == replay(told).job.facts
    declared = (*Facts.__dataclass_fields__, "deadline_on", "deadline_at", "state", "seq", "ended_by")
    assert [getattr(then, name) for name in declared] == [getattr(found, name) for name in declared]
    return found


# What is declared


def test_each_fact_can_be_corrected_and_cleared(engine: sa.Engine) -> None:
    """The transition holds all facts from then on, by whom and why; the job has them, and the deadline follows."""
    declared: dict[str, Any] = {"received_at": NOW - 20 * DAY, "submitted_at": NOW - 19 * DAY} | R_1
    job_id = register(engine, "a", at=NOW - 18 * DAY, **declared)
    facts = facts_of(row(engine, job_id))
    steps: list[tuple[dict[str, Any], datetime]] = [
        ({"kind": "removal"}, NOW - 20 * DAY),
        ({"reference": " R-2 "}, NOW - 20 * DAY),
        ({"received_at": NOW - 25 * DAY}, NOW - 25 * DAY),
        ({"submitted_at": NOW - 24 * DAY, "reference": None}, NOW - 25 * DAY),
        ({"received_at": None}, NOW - 24 * DAY),
        ({"submitted_at": None}, NOW - 18 * DAY),
        ({"received_at": (NOW - 26 * DAY).astimezone(ZONE), "kind": Kind.EXPORT}, NOW - 26 * DAY),
    ]
    for number, (changes, counted_from) in enumerate(steps, 1):
        kept: dict[str, Any] = {name: v.strip() if isinstance(v, str) else v for name, v in changes.items()}
        facts = replace(facts, **kept)
        before = row(engine, job_id)
        done = amend(engine, job_id, **changes)
        after, last = row(engine, job_id), history.last(engine, job_id)
        assert (after.seq, last.seq, last.action, last.to_state) == (number, number, Action.AMENDED, State.OPEN)
        assert (last.actor, last.reason, facts_of(last), facts_of(after)) == ("alice", "the mail", facts, facts)
        assert (done.was, done.decision.job.facts) == (facts_of(before), facts)
        assert (done.deadline_was, done.deadline.on) == (before.deadline_on, after.deadline_on)
        assert after.deadline_on == add_months(local(counted_from), 1)
        assert (after.state, after.status, after.polls) == (before.state, before.status, before.polls)


# Extensions


def months(at: datetime, number: int) -> date:
    return add_months(local(at), number)


RECEIVED = NOW - 45 * DAY  # its first month is over, its third is not


def test_an_extension_in_time_moves_the_deadline(engine: sa.Engine, at: Callable[[datetime | None], None]) -> None:
    """It counts from its recording on, whatever else is amended later; cleared, it counts no more."""
    job_id = register(engine, "a", at=NOW - 44 * DAY, received_at=RECEIVED, submitted_at=NOW - 44 * DAY)
    at(NOW - 30 * DAY)
    new = months(RECEIVED, 3) - 2 * DAY
    done = amend(engine, job_id, extended_on=new)
    assert (done.deadline_was, done.deadline.on, done.idle_extension) == (months(RECEIVED, 1), new, None)
    at(None)
    for changes in ({"kind": "export"}, {"received_at": RECEIVED - DAY}, {"reference": "R-1"}):
        assert amend(engine, job_id, **changes).idle_extension is None
        assert (row(engine, job_id).extended_on, row(engine, job_id).deadline_on) == (new, new)
    early = amend(engine, job_id, received_at=NOW - 62 * DAY)  # the month was over when it was recorded
    assert (early.idle_extension, early.deadline.on) == (new, months(NOW - 62 * DAY, 1))
    shorter = amend(engine, job_id, received_at=RECEIVED - 5 * DAY)  # it is now longer than two further months
    assert (shorter.idle_extension, shorter.deadline.on) == (new, months(RECEIVED - 5 * DAY, 3))
    amend(engine, job_id, extended_on=None)
    assert row(engine, job_id).deadline_on == months(RECEIVED - 5 * DAY, 1)
    new = months(RECEIVED - 5 * DAY, 3)
    assert amend(engine, job_id, extended_on=new).idle_extension == new  # recorded again, and now too late


def test_an_extension_in_force_is_not_replaced_too_late(
    engine: sa.Engine, at: Callable[[datetime | None], None]
) -> None:
    """Another day recorded after the first month would count for nothing, and take the one that counts with it."""
    job_id = register(engine, "a", at=NOW - 44 * DAY, received_at=RECEIVED)
    at(NOW - 30 * DAY)
    amend(engine, job_id, extended_on=months(RECEIVED, 2))
    amend(engine, job_id, extended_on=months(RECEIVED, 2) + DAY)  # still in time
    at(None)
    with pytest.raises(InvalidField, match="To remove that one, clear extended_on"):
        amend(engine, job_id, extended_on=months(RECEIVED, 3))
    assert row(engine, job_id).deadline_on == months(RECEIVED, 2) + DAY


def test_an_extension_recorded_before_the_first_answer_is_not_taken_for_an_early_one(
    engine: sa.Engine, script: Script
) -> None:
    """The poller computes the deadline with the first answer, and asks history when the extension was recorded."""
    job_id = register(engine, "a", at=NOW - 44 * DAY, received_at=RECEIVED)
    amend(engine, job_id, extended_on=months(RECEIVED, 3))
    with polling(engine, script.url, SetClock(datetime.now(UTC))) as poller:
        assert poller.run(threading.Event()).transitions == 1
    assert row(engine, job_id).deadline_on == months(RECEIVED, 1)


# What is refused

WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "the job has these facts already: there is nothing to amend"),
    ({"jid": "b"}, "jid: cannot be amended; these can: kind, reference, received_at"),
    ({"kind": None}, "kind: cannot be cleared"),
    ({"reference": " "}, "reference: is empty"),
    ({"received_at": NOW + HOUR}, "received_at: .* is in the future"),
    ({"received_at": NOW - 9 * DAY}, "received_at: .* is after the job was registered, at"),
    ({"submitted_at": NOW - 9 * DAY}, "submitted_at: .* is after the job was registered, at"),
    ({"extended_on": "2026-01-05"}, "extended_on: must be a date, not str"),
    ({"extended_on": months(NOW - 11 * DAY, 1)}, "extended_on: .* is not after .* the deadline without an extension"),
    ({"extended_on": months(NOW - 11 * DAY, 3) + DAY}, "extended_on: .* the last day of the two further months"),
]


def test_what_cannot_be_declared_is_refused_by_name(engine: sa.Engine) -> None:
    """A value that no registration would take, or that contradicts one, changes nothing."""
    declared: dict[str, Any] = {"received_at": NOW - 11 * DAY} | R_1
    job_id = register(engine, "a", at=NOW - 10 * DAY, **declared)
    for changes, told in WRONG:
        with pytest.raises(Refused, match=told):
            amend(engine, job_id, **changes)
    for actor, reason, field in ((" ", "x", "actor"), ("x", " ", "reason"), ("x", "jo@example.com", "reason")):
        with database.writing(engine) as connection, pytest.raises(InvalidField, match=f"^{field}: "):
            operate.amend(connection, job_id, actor, reason, {"kind": "removal"}, zone=ZONE)
    assert row(engine, job_id).seq == 0


# The poller


def test_an_open_job_whose_deadline_or_submission_moved_is_due_at_once(engine: sa.Engine) -> None:
    """Its polls were planned by them; an amendment of anything else leaves the next poll where it was."""
    job_id = register(engine, "a", at=NOW - 10 * DAY, received_at=NOW - 11 * DAY)
    later, long_ago = NOW + 5 * HOUR, NOW - DAY
    moves: list[tuple[dict[str, Any], bool]] = [
        ({"kind": "export", "reference": "R-1"}, False),
        ({"submitted_at": NOW - 12 * DAY}, True),
        ({"received_at": NOW - 13 * DAY}, True),
        ({"extended_on": months(NOW - 13 * DAY, 2)}, True),
        ({"extended_on": None}, True),
    ]
    for changes, is_moved in moves:
        for due_at in (later, long_ago):
            history.change(engine, job_id, due_at=due_at, leased_by="w", leased_until=later)
            with database.writing(engine) as connection:
                now = database.now(connection)
                operate.amend(connection, job_id, "alice", "x", changes, zone=ZONE)
                found = connection.execute(sa.select(JOBS)).one()
                assert found.leased_by == "w"  # the answer under way is still wanted
                assert (now <= found.due_at < later) if is_moved and due_at == later else found.due_at == due_at
                if due_at == later:
                    connection.rollback()
    assert row(engine, job_id).seq == len(moves)


# Attesting


def test_a_claim_that_contradicts_what_was_seen_is_refused(engine: sa.Engine) -> None:
    """No claim changes an observation, and nothing is done before it was submitted."""
    waiting = register(engine, "waiting", at=NOW - 10 * DAY, submitted_at=NOW - 11 * DAY)
    answer(engine, waiting, ("waiting", NOW - 5 * DAY))
    gone = register(engine, "gone", at=NOW - 10 * DAY)
    answer(engine, gone, ("waiting", NOW - 5 * DAY), ("not_found", NOW - 2 * DAY))
    new = register(engine, "new", at=NOW - 10 * DAY, submitted_at=NOW - 11 * DAY)
    wrong = [
        (waiting, NOW - 6 * DAY, "done_by: .* is too early: a later answer showed the job not done, at"),
        (gone, NOW - 6 * DAY, "done_by: .* showed the job not done, at"),
        (new, NOW - 12 * DAY, "done_by: .* is before the job was submitted"),
    ]
    for job_id, done_by, told in wrong:
        with pytest.raises(Refused, match=told):
            attest(engine, job_id, done_by)
    attest(engine, gone, NOW - 3 * DAY)  # between the last sight and not_found: what attesting is for
    attest(engine, new, NOW - 11 * DAY + HOUR)
    with pytest.raises(InvalidField, match=r"submitted_at: .* is after the job ended"):
        amend(engine, new, submitted_at=NOW - 11 * DAY + 2 * HOUR)


# The command line


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=ZONE).astimezone(UTC)


def test_amend_says_what_it_changed(engine: sa.Engine, say: Say) -> None:
    """Old and new facts and deadline, the same before (--dry-run) and after; a day is its start."""
    job_id = register(engine, "a", at=NOW - 10 * DAY, received_at=NOW - 40 * DAY, reference="R-1")
    answer(engine, job_id, ("waiting", NOW - DAY))
    before = row(engine, job_id)
    day, earlier = local(NOW - 20 * DAY), local(NOW - 45 * DAY)
    first, late = add_months(earlier, 1), add_months(earlier, 2)
    command = ["amend", "a", "--reason", "the letter", "--actor", "eve", "--received-at"]
    said = (
        f"reference R-1 -> unknown; received_at {NOW - 40 * DAY} -> {midnight(day)}; "
        f"deadline {before.deadline_on} -> {add_months(day, 1)}.\n"
    )
    once = [*command, str(day), "--reference", "None"]
    assert say(*once, "--dry-run") == (0, f"a of cluster w1 would be amended: {said}")
    assert tuple(row(engine, job_id)) == tuple(before)
    assert say(*once) == (0, f"a of cluster w1 is amended: {said}")
    assert (row(engine, job_id).received_at, history.last(engine, job_id).actor) == (midnight(day), "eve")
    assert say(*command, str(earlier))[0] == 0
    assert say("amend", "a", "--extended-until", str(late), "--reason", "complex") == (
        0,
        f"a of cluster w1 is amended: extended_on unknown -> {late}; deadline {first} as before; the extension to "
        f"{late} does not count: it was recorded after the first month ended, or is longer than two further "
        "months.\n",
    )
    assert "does not count: recorded too late" in " ".join(say("show", "a", "--format", "table")[1].split())
    code, said = say(*command, "none", "--extended-until", "none")
    assert (code, f"extended_on {late} -> unknown" in said) == (0, True)
    assert row(engine, job_id).received_at is None


CSV = f"""\
Jid; cluster ;received_at;reference;kind;extended_until
a;;{local(NOW - 20 * DAY)};;removal;
b;w2;none;NONE;;none
d;;2026-13-01;;;
f;;;;;2026-2-1
g;;;;;
none;;;R;;
a;;;R-4;;
l;;;;;{local(NOW + 300 * DAY)}
"""


def test_amend_reads_csv(engine: sa.Engine, say: Say) -> None:
    """An empty cell leaves a fact as it is, none clears it; what cannot be done is named by line, jid and field."""
    declared: dict[str, Any] = {"received_at": NOW - 11 * DAY} | R_1
    places = dict.fromkeys("abdfgl", "w1") | {"b": "w2"}
    ids = {jid: register(engine, jid, cluster, at=NOW - 10 * DAY, **declared) for jid, cluster in places.items()}
    first = months(NOW - 11 * DAY, 1)
    for args, is_done in (["--dry-run"], "would be amended"), ([], "is amended"):
        code, said = say("amend", "--from", "-", "--reason", "the list", *args, stdin=CSV)
        deadline = f"; deadline {first} -> {months(NOW - 20 * DAY, 1)}."
        expected = [
            f"line 2: a of cluster w1 {is_done}: kind export -> removal; received_at",
            f"line 3: b of cluster w2 {is_done}: reference R-1 -> unknown; received_at",
            "line 4: 'd': received_at: '2026-13-01' is not a time",
            "line 5: 'f': extended_until: '2026-2-1' is not a time",
            "line 6: 'g': the job has these facts already: there is nothing to amend",
            "line 7: no job has the jid 'none'",
            "line 8: 'a': the same job as in line 2",
            "line 9: 'l': extended_on: ",
            f"2 {is_done.removeprefix('is ')}, 6 refused.",
        ]
        lines = said.splitlines()
        assert code == 1
        assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
        assert lines[0].endswith(deadline)
        assert [row(engine, job_id).seq for job_id in ids.values()] == ([0] * 6 if args else [1, 1] + [0] * 4)
    assert (row(engine, ids["b"]).received_at, row(engine, ids["b"]).reference) == (None, None)
    assert (row(engine, ids["a"]).reference, row(engine, ids["a"]).kind) == ("R-1", "removal")
    objects = '{"jid": "a", "kind": null}\n{"jid": "b", "submitted_at": "x"}\n'
    said = say("amend", "--from", "-", "--submitted-at", "2026-01-06", "--reason", "x", stdin=objects)[1]
    assert said.splitlines()[1:3] == [
        "line 2: 'b': has submitted_at, but --submitted-at gives it for all jobs: remove one of the two",
        "1 amended, 1 refused.",
    ]
    assert row(engine, ids["a"]).kind == "removal"
    said = say("amend", "--from", "-", "--reason", "x", stdin=say("jobs", "--format", "csv")[1])[1]
    assert "the column 'state' is unknown; allowed columns: jid" in said


def test_attest_says_what_is_claimed(engine: sa.Engine, say: Say) -> None:
    """A day is taken as its end, or as now; many with a time each, or one for all."""
    ids = {jid: register(engine, jid, at=NOW - 10 * DAY) for jid in "abcd"}
    day = local(NOW - 3 * DAY)
    end = midnight(day + DAY)
    for args, is_done in ((["--dry-run"], "would be"), ([], "is")):
        assert say("attest", "a", "--done-by", str(day), "--reason", "the archive", *args) == (
            0,
            f"a of cluster w1 {is_done} attested: done by {end} (declared); it was open.\n",
        )
    found = row(engine, ids["a"])
    assert (found.ended_after, found.ended_by, found.state, found.due_at) == (None, end, "attested", None)
    shown = " ".join(say("show", "a", "--format", "table")[1].split())
    assert f"ended by {end}, as an operator says" in shown
    assert "done by" in shown
    today = str(datetime.now(ZONE).date())
    assert say("attest", "b", "--done-by", today, "--reason", "x")[0] == 0
    assert row(engine, ids["b"]).ended_by <= datetime.now(UTC) + timedelta(seconds=1)
    code, said = say("attest", "--from", "-", "--reason", "x", stdin=f"state,jid,done_by\nopen,c,{day}\nopen,d,\n")
    assert (code, said.splitlines()[1:]) == (
        1,
        ["line 3: 'd': done_by: is missing; give it for all jobs with --done-by", "1 attested, 1 refused."],
    )
    assert say("attest", "--from", "-", "--done-by", str(day), "--reason", "x", stdin="jid\nd\n")[0] == 0
    assert [row(engine, ids[jid]).state for jid in "abcd"] == 4 * ["attested"]


def test_what_is_asked_wrongly_changes_nothing(engine: sa.Engine, say: Say) -> None:
    """It says what is wrong, in which field, and the way out."""
    job_id = register(engine, "a", at=NOW - 10 * DAY)
    for args, code, problem in (
        ("amend a", 2, "Give at least one fact to amend: --kind, --reference, --received-at"),
        ("amend a --reference ''", 1, "reference: is empty"),
        ("amend --from - --received-at x", 1, "tracker: error: received_at: 'x' is not a time"),
        ("attest a --done-by 2062-01-05", 1, "done_by: 2062-01-04 23:00:00+00:00 is in the future"),
        ("attest a", 2, "Missing option '--done-by'"),
    ):
        exit_code, message = say(*shlex.split(args), "--reason", "x", stdin="jid\na\n")
        assert (exit_code, problem in message) == (code, True), message
    assert row(engine, job_id).seq == 0
