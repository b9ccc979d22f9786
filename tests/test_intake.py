"""Registering: in the caller's transaction, twice, by two at once, in pieces, and from files that people made."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import tracker
from tests import history
from tracker import database, intake, status
from tracker.deadline import Basis, deadline
from tracker.errors import BadConfiguration, Conflict, DatabaseUnavailable, InvalidField, Refused
from tracker.intake import Outcome, Registered, Registration, Row, parse_time, read, register, register_many
from tracker.models import JOBS, TRANSITIONS, facts_of, facts_values
from tracker.settings import ClusterSettings, Settings
from tracker.status import Facts, Kind

ZONE = ZoneInfo("Europe/Stockholm")
ONE = Settings(clusters={"w1": ClusterSettings(name="w1")})
TWO = Settings(clusters={name: ClusterSettings(name=name) for name in ("w1", "w2")})
AT = datetime(2026, 1, 30, 9, 0, tzinfo=UTC)
FEW = hypothesis_settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def plain_engine(url: str) -> Iterator[sa.Engine]:
    """An engine as a company makes it for itself: none of tracker's."""
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


def jobs(engine: sa.Engine) -> dict[str, sa.Row[Any]]:
    with database.reading(engine) as connection:
        return {row.jid: row for row in connection.execute(sa.select(JOBS).order_by(JOBS.c.id))}


def rows(text: str | bytes, **given: Any) -> list[Row]:
    return list(read(io.BytesIO(text if isinstance(text, bytes) else text.encode()), ZONE, **given))


def told(outcome: Outcome) -> str:
    if isinstance(outcome, Refused):
        return type(outcome).__name__
    return "already" if outcome.already else "new"


def gather(done: list[tuple[Row, Outcome]], pieces: Iterable[list[tuple[Row, Outcome]]]) -> None:
    """Add what *pieces* yields to *done*, so that it is there after an error too."""
    for piece in pieces:
        done += piece


# Registering from Python


def test_a_job_is_registered_in_the_callers_transaction(plain_engine: sa.Engine, engine: sa.Engine) -> None:
    """It is there when the caller commits, with its registration row, and gone when the caller rolls back."""
    with plain_engine.connect() as connection:
        tracker.register(connection, "a", settings=ONE)
        connection.rollback()
    assert jobs(engine) == {}
    with plain_engine.connect() as connection:
        before = database.now(connection)
        done = tracker.register(
            connection,
            "a",
            kind="export",
            submitted_at=AT,
            received_at=AT - timedelta(days=1),
            reference="DSR-1",
            registered_by="alice",
            settings=ONE,
        )
        after = database.now(connection)
        assert connection.in_transaction()
        connection.commit()
    job = jobs(engine)["a"]
    facts = Facts(Kind.EXPORT, "DSR-1", AT - timedelta(days=1), AT)
    assert facts_of(job) == facts
    assert (job.cluster, job.state, job.registered_by) == ("w1", "open", "alice")
    assert before <= job.registered_at <= after
    assert job.due_at == job.registered_at
    due = deadline(AT - timedelta(days=1), AT, job.registered_at, ZONE)
    assert (job.deadline_on, job.deadline_at) == (due.on, due.at) == (date(2026, 2, 28), due.at)
    assert done == Registered("w1", "a", already=False, deadline=due)
    with database.reading(engine) as connection:
        registration = connection.execute(sa.select(TRANSITIONS)).one()
    assert (registration.seq, registration.actor, registration.observed_at) == (0, "alice", job.registered_at)
    assert facts_of(registration) == facts


def test_the_same_again_is_harmless(engine: sa.Engine) -> None:
    """The same facts, fewer of them, or with white space around them, are `already`; nothing is written."""
    facts: dict[str, Any] = {"kind": "export", "submitted_at": AT, "received_at": AT, "reference": "unknown"}
    fewer: list[dict[str, Any]] = [{name: value for name, value in facts.items() if name != left} for left in facts]
    spaced = facts | {"reference": " unknown\t", "cluster": " w1"}
    elsewhere = facts | {"submitted_at": AT.astimezone(ZONE)}
    with database.writing(engine) as connection:
        first = register(connection, "a", settings=ONE, **facts)
        for again in (facts, *fewer, {}, {"kind": "unknown"}, {"kind": None}, {"reference": ""}, spaced, elsewhere):
            assert register(connection, " a\n", settings=ONE, registered_by="bob", **again) == replace(
                first, already=True
            )
        assert connection.execute(sa.select(sa.func.count()).select_from(TRANSITIONS)).scalar_one() == 1


@pytest.mark.parametrize(
    ("given", "differing"),
    [
        ({"kind": "removal"}, {"kind": ("export", "removal")}),
        ({"reference": "DSR-1"}, {"reference": ("unknown", "DSR-1")}),
        ({"submitted_at": AT, "kind": "export"}, {"submitted_at": ("unknown", "2026-01-30 09:00:00+00:00")}),
        (
            {"received_at": AT + timedelta(microseconds=1), "reference": "unknown", "kind": "removal"},
            {
                "kind": ("export", "removal"),
                "reference": ("unknown", "unknown"),
                "received_at": ("2026-01-30 09:00:00+00:00", "2026-01-30 09:00:00.000001+00:00"),
            },
        ),
    ],
)
def test_other_facts_are_refused(
    engine: sa.Engine, given: dict[str, Any], differing: dict[str, tuple[str, str]]
) -> None:
    """A second registration with other facts names each difference, changes nothing, and the transaction goes on."""
    with database.writing(engine) as connection:
        register(connection, "a", kind="export", received_at=AT, settings=ONE)
        with pytest.raises(Conflict) as caught:
            register(connection, "a", settings=ONE, **given)
        register(connection, "b", settings=ONE)
    assert caught.value.differences == differing
    assert all(name in str(caught.value) for name in ("job a of cluster w1", *differing))
    assert list(jobs(engine)) == ["a", "b"]
    assert facts_of(jobs(engine)["a"]) == Facts(Kind.EXPORT, None, AT)


NONSENSE: list[tuple[str, dict[str, Any]]] = [
    ("jid", {"jid": ""}),
    ("jid", {"jid": " \t\n"}),
    ("jid", {"jid": "x" * 256}),
    ("jid", {"jid": "a\nb"}),
    ("jid", {"jid": "a\0b"}),
    ("jid", {"jid": "a\x9fb"}),
    ("jid", {"jid": "a\udc80b"}),
    ("jid", {"jid": None}),
    ("jid", {"jid": 7}),
    ("jid", {"jid": b"a"}),
    ("cluster", {"cluster": "w3"}),
    ("cluster", {"cluster": "W1"}),
    ("cluster", {"cluster": ""}),
    ("cluster", {"cluster": None}),
    ("cluster", {"cluster": 1}),
    ("kind", {"kind": "Export"}),
    ("kind", {"kind": 7}),
    ("submitted_at", {"submitted_at": datetime(2026, 1, 1)}),  # noqa: DTZ001 - that is the point
    ("submitted_at", {"submitted_at": date(2026, 1, 1)}),
    ("submitted_at", {"submitted_at": "2026-01-01"}),
    ("submitted_at", {"submitted_at": datetime(9999, 12, 31, 23, tzinfo=UTC)}),
    ("submitted_at", {"submitted_at": datetime.now(UTC) + timedelta(hours=1)}),
    ("received_at", {"received_at": datetime.now(UTC) + timedelta(hours=1)}),
    ("received_at", {"received_at": datetime(1969, 12, 31, 23, tzinfo=UTC)}),
    ("received_at", {"received_at": datetime.min.replace(tzinfo=ZONE)}),
    ("reference", {"reference": "eve@example.com"}),
    ("reference", {"reference": "x" * 256}),
    ("reference", {"reference": "a\tb"}),
    ("reference", {"reference": 7}),
    ("registered_by", {"registered_by": ""}),
    ("registered_by", {"registered_by": "a\nb"}),
]


def test_what_cannot_be_is_refused(engine: sa.Engine) -> None:
    """A wrong value names its field, inserts nothing, and the caller's transaction goes on."""
    good: dict[str, Any] = {"jid": "a", "cluster": "w1", "settings": TWO}
    with database.writing(engine) as connection:
        for field, wrong in NONSENSE:
            with pytest.raises(InvalidField) as caught:
                register(connection, **(good | wrong))
            assert caught.value.field == field, wrong
        register(connection, "x" * 255, cluster="w2", reference="é" * 255, settings=TWO)
    assert list(jobs(engine)) == ["x" * 255]


def test_an_address_is_not_repeated(engine: sa.Engine) -> None:
    """The error about an @ in a reference says why, and does not put the address into a log."""
    with database.reading(engine) as connection, pytest.raises(InvalidField, match="personal data") as caught:
        register(connection, "a", reference="eve@example.com", settings=ONE)
    assert "eve" not in str(caught.value)


def test_clocks_may_differ_a_little(engine: sa.Engine) -> None:
    """A submission some seconds ahead of the database's clock is not after its registration; a later one is refused."""
    with database.writing(engine) as connection:
        ahead = database.now(connection) + timedelta(seconds=3)
        register(connection, "a", submitted_at=ahead, settings=ONE)
        with pytest.raises(InvalidField, match="in the future"):
            register(connection, "b", submitted_at=ahead + intake.SKEW, settings=ONE)
    assert jobs(engine)["a"].registered_at == jobs(engine)["a"].submitted_at == ahead


@pytest.mark.parametrize(
    ("given", "basis", "on"),
    [
        ({"received_at": AT, "submitted_at": AT + timedelta(days=40)}, Basis.RECEIVED, date(2026, 2, 28)),
        ({"submitted_at": datetime(2026, 3, 4, 23, 30, tzinfo=UTC)}, Basis.SUBMITTED, date(2026, 4, 5)),
        ({}, Basis.REGISTERED, date(2026, 6, 2)),
    ],
)
def test_the_deadline_is_computed(engine: sa.Engine, given: dict[str, Any], basis: Basis, on: date) -> None:
    """One month after receipt, else submission, else registration, in the legal time zone."""
    with database.writing(engine) as connection:
        now = datetime(2026, 5, 1, 22, 30, tzinfo=UTC)  # the 2nd in Stockholm
        due = register(connection, "a", settings=ONE, now=now, **given).deadline
    assert (due.basis, due.on) == (basis, on)
    assert (jobs(engine)["a"].deadline_on, jobs(engine)["a"].deadline_at) == (due.on, due.at)


def test_a_job_that_plain_sql_registered(engine: sa.Engine) -> None:
    """It is registered already, and the deadline that it will get is told."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (cluster, jid, received_at) VALUES ('w1', 'a', '2026-01-30 09:00:00.000000')"
        )
        done = register(connection, "a", received_at=AT, settings=ONE)
        with pytest.raises(Conflict):
            register(connection, "a", received_at=AT - timedelta(days=1), settings=ONE)
    assert done == Registered("w1", "a", already=True, deadline=deadline(AT, None, AT, ZONE))


def test_amended_facts_are_what_is_registered(engine: sa.Engine) -> None:
    """After an amendment the facts as they were first declared conflict, and the amended ones, deadline too, do not."""
    with database.writing(engine) as connection:
        register(connection, "a", kind="export", received_at=AT, settings=ONE)
    facts = Facts(Kind.REMOVAL, "DSR-9", AT - timedelta(days=9), None)
    due = deadline(facts.received_at, None, AT, ZONE)
    amend = partial(status.amend, facts=facts, at=datetime.now(UTC), actor="bob", reason="mistaken")
    derived = {"deadline_on": due.on, "deadline_at": due.at}
    history.record(engine, jobs(engine)["a"].id, lambda job, past: amend(job), **facts_values(facts), **derived)
    with database.writing(engine) as connection:
        again = register(connection, "a", kind="removal", received_at=facts.received_at, settings=ONE)
        with pytest.raises(Conflict, match="kind is removal, given export; received_at is 2026-01-21"):
            register(connection, "a", kind="export", received_at=AT, settings=ONE)
    assert again == Registered("w1", "a", already=True, deadline=due)


def test_without_settings_those_of_the_process_are_read_once(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default settings are loaded without keys; without any cluster nothing can be registered."""
    intake._settings_of_this_process.cache_clear()
    with database.writing(engine) as connection:
        with pytest.raises(BadConfiguration, match="no cluster is configured"):
            register(connection, "a")
        intake._settings_of_this_process.cache_clear()
        monkeypatch.setenv("TRACKER_CLUSTER", "w7")
        assert register(connection, "a").cluster == "w7"
        monkeypatch.setenv("TRACKER_CLUSTER", "w8")
        assert register(connection, "a").already
    intake._settings_of_this_process.cache_clear()


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever registers is the login; in a container that knows none, the user's number."""

    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", unknown)
    assert intake.login() == f"uid {os.getuid()}"


@given(jid=st.text(max_size=260), reference=st.none() | st.text(max_size=260), kind=st.sampled_from([*Kind, None]))
@example(jid="j", reference="\r", kind=None)
@FEW
def test_what_is_let_in_the_database_takes(
    engine: sa.Engine, jid: str, reference: str | None, kind: str | None
) -> None:
    """No text passes the checks here that a CHECK there refuses, and what is stored is what was given, stripped."""
    with engine.connect() as connection:
        try:
            register(connection, jid, reference=reference, kind=kind, settings=ONE)
        except InvalidField:
            assert connection.execute(sa.select(JOBS)).all() == []
        else:
            row = connection.execute(sa.select(JOBS)).one()
            assert (row.jid, row.reference) == (jid.strip(), (reference or "").strip() or None)
            assert register(connection, jid, reference=reference, kind=kind, settings=ONE).already


@given(
    submitted_at=st.datetimes(timezones=st.timezones()),
    received_at=st.none() | st.datetimes(datetime(1960, 1, 1), datetime(2026, 1, 1), timezones=st.timezones()),  # noqa: DTZ001
)
@FEW
def test_times_are_stored_as_they_are_or_refused(
    engine: sa.Engine, submitted_at: datetime, received_at: datetime | None
) -> None:
    """Any aware datetime comes back as the same instant, and finds itself registered, or is refused."""
    with engine.connect() as connection:
        try:
            register(connection, "a", submitted_at=submitted_at, received_at=received_at, settings=ONE)
        except InvalidField as error:
            at = submitted_at if error.field == "submitted_at" else received_at
            assert at is not None
            assert not datetime(1970, 1, 1, tzinfo=UTC) <= at <= datetime.now(UTC)
        else:
            row = connection.execute(sa.select(JOBS)).one()
            # In UTC: a local time that comes twice a year equals none of another zone (PEP 495).
            assert row.submitted_at == submitted_at.astimezone(UTC)
            assert row.received_at == (received_at and received_at.astimezone(UTC))
            assert register(connection, "a", submitted_at=submitted_at, received_at=received_at, settings=ONE).already


# Two at once


def waits(engine: sa.Engine) -> bool:
    """Whether some session on PostgreSQL waits for another's lock; on SQLite nobody can tell."""
    if engine.dialect.name == "sqlite":
        return True
    with engine.connect() as connection:
        query = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)"
        return bool(connection.exec_driver_sql(query).scalar_one())


@pytest.mark.parametrize(
    ("ends", "second", "expected"),
    [
        (sa.Connection.commit, "export", "already"),
        (sa.Connection.commit, "removal", "Conflict"),
        (sa.Connection.rollback, "removal", "new"),
    ],
)
def test_two_sessions_register_the_same_job_at_once(
    engine: sa.Engine, ends: Callable[[sa.Connection], None], second: str, expected: str
) -> None:
    """The second waits, finds out what became of the first, and its transaction goes on."""
    found: list[str] = []

    def register_second() -> None:
        with database.writing(engine) as connection:
            outcomes = register_many(connection, [Registration("a", kind=second)], settings=ONE)
            found.extend(map(told, outcomes))
            register(connection, "b", settings=ONE)

    thread = threading.Thread(target=register_second)
    with engine.connect() as connection:
        register(connection, "a", kind="export", settings=ONE)
        thread.start()
        until = time.monotonic() + 10
        while not waits(engine):
            assert time.monotonic() < until, "the second did not wait"
        ends(connection)
    thread.join(30)
    assert found == [expected]
    assert [(job.jid, job.kind) for job in jobs(engine).values() if job.jid == "a"] == [
        ("a", second if expected == "new" else "export")
    ]
    assert "b" in jobs(engine)


def test_jobs_go_in_in_one_order(engine: sa.Engine) -> None:
    """Whatever the order in two lists, their jobs are inserted in the order of the keys: no deadlock."""
    with database.writing(engine) as connection:
        register_many(connection, [Registration(jid) for jid in "cabd"], settings=ONE)
    assert list(jobs(engine)) == ["a", "b", "c", "d"]


# Many


def test_many_at_once(engine: sa.Engine) -> None:
    """Each gets its outcome in its place; what is wrong with one does not keep the others out; doubles are found."""
    with database.writing(engine) as connection:
        register(connection, "old", cluster="w1", kind="export", settings=TWO)
        outcomes = register_many(
            connection,
            [
                Registration("a", "w1", "export"),
                Registration("", "w1"),
                Registration("a", "w2", "removal"),
                Registration("old", "w1", "export"),
                Registration("a", "w1"),
                Registration("old", "w1", "removal"),
                Registration(" a ", "w1", "removal"),
                Registration("b", "w3"),
                Registration("b", "w2", reference="b@b"),
                Registration("b", "w2"),
            ],
            settings=TWO,
        )
        assert register_many(connection, [], settings=TWO) == []
    assert [told(outcome) for outcome in outcomes] == [
        *("new", "InvalidField", "new", "already", "already"),
        *("Conflict", "Conflict", "InvalidField", "InvalidField", "new"),
    ]
    with database.reading(engine) as connection:
        there = connection.execute(sa.select(JOBS.c.cluster, JOBS.c.jid, JOBS.c.kind)).all()
    expected = {("w1", "old", "export"), ("w1", "a", "export"), ("w2", "a", "removal"), ("w2", "b", "unknown")}
    assert set(there) == expected


def test_more_than_a_statement_takes(engine: sa.Engine) -> None:
    """Some thousand jobs that are all there already are found, however many parameters a statement may have."""
    many = [Registration(f"j{n}", "w1" if n % 2 else "w2", "export", AT, AT, "r") for n in range(2500)]
    for expected in ("new", "already"):
        with database.writing(engine) as connection:
            assert {told(outcome) for outcome in register_many(connection, many, settings=TWO)} == {expected}
    assert len(jobs(engine)) == 2500


_registrations = st.lists(
    st.builds(
        Registration,
        st.sampled_from(["a", "b", " a", "", "old"]),
        st.sampled_from(["w1", "w2", "w3"]),
        st.sampled_from([*Kind]),
        reference=st.sampled_from([None, "r", "s", "r@s"]),
    ),
    max_size=12,
)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@given(declared=_registrations)
@FEW
def test_a_rehearsal_tells_what_the_performance_will(engine: sa.Engine, declared: list[Registration]) -> None:
    """Pieces of two, rehearsed, come to what they come to when they are registered, and write nothing."""
    pieces = [declared[start : start + 2] for start in range(0, len(declared), 2)]
    with engine.connect() as connection, intake.rehearsing() as rehearsal:
        register(connection, "old", cluster="w1", kind="export", settings=TWO)
        rehearsed = [
            told(outcome)
            for piece in pieces
            for outcome in register_many(connection, piece, settings=TWO, rehearsal=rehearsal)
        ]
        assert connection.execute(sa.select(JOBS.c.jid)).scalars().all() == ["old"]
        done = [told(outcome) for piece in pieces for outcome in register_many(connection, piece, settings=TWO)]
    assert rehearsed == done


# Files


def test_a_file_goes_in_in_pieces(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in the middle loses no piece that was committed, and to begin again is harmless."""
    monkeypatch.setattr(intake, "PIECE", 2)
    declared = [Row(number, Registration(f"j{number}")) for number in range(5)]

    def torn() -> Iterator[Row]:
        yield from declared[:4]
        raise KeyboardInterrupt

    done: list[tuple[Row, Outcome]] = []
    with pytest.raises(KeyboardInterrupt):
        gather(done, intake.register_rows(engine, torn(), settings=ONE))
    assert [told(outcome) for _, outcome in done] == ["new", "new"]
    assert len(jobs(engine)) == 4
    again = [
        [(row.line, told(outcome)) for row, outcome in piece]
        for piece in intake.register_rows(engine, declared, settings=ONE)
    ]
    assert again == [[(0, "already"), (1, "already")], [(2, "already"), (3, "already")], [(4, "new")]]


def test_a_database_that_goes_away_loses_nothing(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """DatabaseUnavailable in the middle leaves what was told as registered in the database."""
    monkeypatch.setattr(intake, "PIECE", 2)
    real, calls = database.writing, iter(range(9))

    def failing(engine: sa.Engine) -> Any:
        if next(calls) == 1:
            raise DatabaseUnavailable("the database is not available: disk full")
        return real(engine)

    monkeypatch.setattr(database, "writing", failing)
    declared = [Row(number, Registration(f"j{number}")) for number in range(5)]
    done: list[tuple[Row, Outcome]] = []
    with pytest.raises(DatabaseUnavailable):
        gather(done, intake.register_rows(engine, declared, settings=ONE))
    assert [row.line for row, _ in done] == [0, 1]
    assert list(jobs(engine)) == ["j0", "j1"]


def test_a_dry_run_writes_nothing_and_finds_everything(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds conflicts with what is registered, and doubles in the file in other pieces too."""
    monkeypatch.setattr(intake, "PIECE", 2)
    with database.writing(engine) as connection:
        register(connection, "old", kind="export", settings=ONE)
    text = "jid,kind\na,export\nold,removal\nb,bogus\na,removal\n,export\na,export\nold,export\n"
    pieces = intake.register_rows(engine, rows(text), settings=ONE, dry_run=True)
    found = {row.line: told(outcome) for piece in pieces for row, outcome in piece}
    expected = ["new", "Conflict", "InvalidField", "Conflict", "InvalidField", "already", "already"]
    assert found == dict(enumerate(expected, 2))
    assert list(jobs(engine)) == ["old"]
    pieces = intake.register_rows(engine, rows(text), settings=ONE)
    assert {row.line: told(outcome) for piece in pieces for row, outcome in piece} == found


FULL = Registration("a", "w1", "export", AT, datetime(2026, 1, 28, 23, tzinfo=UTC), "DSR-1")
CSV = "jid,cluster,kind,submitted_at,received_at,reference\na,w1,export,2026-01-30T10:00+01:00,2026-01-29,DSR-1\n"
JSON = '{"jid": "a", "cluster": "w1", "kind": "export", "submitted_at": "2026-01-30T09:00:00Z", "received_at": '


@pytest.mark.parametrize(
    "text",
    [
        CSV,
        "\ufeff" + CSV,
        CSV.replace("\n", "\r\n"),
        CSV.replace(",", ";"),
        CSV.replace(",", "\t"),
        CSV.replace(",", " ,  "),
        CSV.removesuffix("\n"),
        CSV.replace("jid", "JID").replace("a,w1", ' "a" , "w1"'.replace('" ', '"')),
        "reference;received_at;submitted_at;kind;cluster;jid\n"
        '"DSR-1";2026-01-29;2026-01-30 09:00:00+00;export;w1;"a"\n',
        JSON + '"2026-01-29", "reference": "DSR-1"}\n',
        "\ufeff" + JSON + '"2026-01-29", "reference": " DSR-1 "}',
    ],
)
def test_files_as_people_make_them(text: str) -> None:
    """Comma, semicolon and tab, a byte order mark, CRLF, blanks, quotes, any order of columns; JSON Lines."""
    (row,) = rows(text)
    assert (row.declared, row.plain_dates) == (FULL, 1)


def test_lines_are_counted_as_an_editor_does() -> None:
    """A row's line is the physical line on which it begins: after blank lines, and after cells with line breaks."""
    text = '\n\njid,reference\n\na,"x\ny"\nb,\n\n"c\n\n",z\n\nd,""\n'
    expected = [(5, "a"), (7, "b"), (9, "c"), (13, "d")]
    assert [(row.line, getattr(row.declared, "jid", None)) for row in rows(text)] == expected
    text = '\n{"jid": "a"}\n\n  \n{"jid": "b"}'
    assert [(row.line, getattr(row.declared, "jid", None)) for row in rows(text)] == [(2, "a"), (5, "b")]


def test_defaults_are_for_rows_that_leave_them_out() -> None:
    """A default stands in for a column that is missing, a cell that is empty, a key that is null."""
    expected = [("w1", "export"), ("w2", "removal")]
    for text in (
        "jid,cluster,kind\na,,\nb,w2,removal\n",
        '{"jid": "a", "kind": null}\n{"jid": "b", "cluster": "w2", "kind": "removal"}\n',
    ):
        declared = [row.declared for row in rows(text, cluster="w1", kind="export")]
        assert [(one.cluster, one.kind) for one in declared if isinstance(one, Registration)] == expected
    (row,) = rows("jid\na\n")
    assert row.declared == Registration("a", None, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf \r\n\n", "empty"),
        (b"jid,name\na,b\n", r"line 1: there is no column 'name'; known are: jid, cluster, kind, submitted_at"),
        (b"a,b\nc,d\n", "the first line must be a header"),
        (b"\n\njid,kind,jid\n", "line 3: the column jid is there twice"),
        (b"kind;cluster\n", "no column jid"),
        (b"jid,\na,\n", "no column ''"),
        (b'"jid\n', "line 1: the header is no CSV"),
        (b"jid,\xe5\n", r"no column '\\udce5'"),
        ("jid,kind\na,export\n".encode("utf-16"), "not UTF-8"),
        ("jid,kind\na,export\n".encode("utf-16-be"), "not UTF-8"),
        (b"jid\0\n", "not UTF-8"),
        (b'[{"jid": "a"}]', "JSON array"),
        (b"x" * 70_000, "line 1 is longer than 65536 bytes"),
    ],
)
def test_files_that_are_none(text: bytes, problem: str) -> None:
    """What is no file of jobs at all is refused as a whole, with what is wrong."""
    with pytest.raises(Refused, match=problem):
        rows(text)


CSV_ROWS = [
    (b"a,b,c,d", None, "has 4 cells, where the header has 3"),
    (b"a", None, "has 1 cells"),
    (b'"a"b,,', None, "no row of CSV"),
    (b"a,2026-13-01,", "submitted_at", "no time"),
    (b"a,2026-02-30,", "submitted_at", "day is out of range"),
    (b"a,2026-02-03 10:00,", "submitted_at", "no offset"),
    (b"a,2026-02-03T10:00:61Z,", "submitted_at", "no time"),
    (b"a,2026-02-03T10:00:00+25:00,", "submitted_at", "no time"),
    (b"a,03/02/2026,", "submitted_at", "write it as 2026-01-31"),
    (b"a,0001-01-01,", "submitted_at", "no time"),
    (b"a,now\0,", "submitted_at", "no time"),
    (b"x" * 70_000 + b",,", None, "longer than 65536 bytes"),
]
JSON_ROWS = [
    (b"nonsense", None, "no JSON object on one line"),
    (b'{"jid": "a"', None, "no JSON object on one line"),
    (b'["a"]', None, "no JSON object"),
    (b'{"jid": "a", "customer": 1, "Kind": 2}', None, "unknown keys 'customer', 'Kind'; known are: jid, cluster"),
    (b'{"jid": "a", "jid": "b"}', None, "a key twice"),
    (b'{"jid": 17}', "jid", "must be text, in quotes, not 17"),
    (b'{"jid": "a", "kind": true}', "kind", "must be text"),
    (b'{"jid": "a", "reference": {"jid": "b"}}', "reference", "must be text"),
    (b'{"jid": "a\0"}', None, "Invalid control character"),
    (b'{"jid": ' + b"9" * 5000 + b"}", None, "no JSON object on one line"),
    (b"[" * 30_000, None, "no JSON object on one line"),
    (b'{"jid": "' + b"x" * 70_000 + b'"}', None, "longer than 65536 bytes"),
]


@pytest.mark.parametrize(
    ("begin", "good", "wrong", "field", "problem"),
    [
        *((b"jid,submitted_at,reference\n", b"good,,\n", *case) for case in CSV_ROWS),
        *((b'{"jid": "first"}\n', b'{"jid": "good"}\n', *case) for case in JSON_ROWS),
    ],
)
def test_rows_that_cannot_be_read(begin: bytes, good: bytes, wrong: bytes, field: str | None, problem: str) -> None:
    """A wrong row is named with its line, its field where there is one, and the reason; those around it are read."""
    found = {row.line: row.declared for row in rows(begin + good + wrong + b"\n" + good)}
    assert isinstance(found[2], Registration)
    assert isinstance(found[4], Registration)
    refused = found[3]
    assert isinstance(refused, Refused)
    assert problem in str(refused)
    assert getattr(refused, "field", None) == field


@pytest.mark.parametrize("last", [b"", b"\n"])
def test_a_quote_that_is_not_closed(last: bytes) -> None:
    """What it swallows is named, to the file's end or to where it is given up, and reading goes on after that."""
    (good, refused) = rows(b'jid,reference\na,b\nc,"d\ne,f\ng,h' + last)
    assert (good.line, refused.line) == (2, 3)
    assert "a quote is not closed (nothing was read of lines 3 to 5)" in str(refused.declared)
    text = b'jid,reference\n"a,b\n' + b"x,y\n" * 40_000 + last
    refused, *rest = rows(text)
    assert "longer than 65536 bytes (nothing was read of lines 2 to " in str(refused.declared)
    given_up = int(str(refused.declared).split()[-1].rstrip(")"))
    assert [row.line for row in rest] == list(range(given_up + 1, 40_003))


def test_bytes_that_are_not_utf8_spoil_their_row_only(engine: sa.Engine) -> None:
    """A Latin-1 letter is refused with its field, from CSV and JSON; so is half a character in JSON."""
    for text in (
        b"jid,reference\na,\xe5\nb\xe5,\nc,\xc3\xa5\n",
        b'{"jid": "a", "reference": "\xe5"}\n{"jid": "b\\ud800"}\n{"jid": "c", "reference": "\xc3\xa5"}\n',
    ):
        with engine.connect() as connection:
            declared = [row.declared for row in rows(text) if isinstance(row.declared, Registration)]
            first, second, third = register_many(connection, declared, settings=ONE)
        assert isinstance(first, InvalidField)
        assert isinstance(second, InvalidField)
        assert (first.field, second.field, told(third)) == ("reference", "jid", "new")
        assert "not UTF-8" in first.problem


def test_a_big_file_is_read_in_bounded_memory() -> None:
    """Reading holds a row at a time, whatever the file's length."""

    class Endless(io.RawIOBase):
        left = 20_000

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            self.left -= 1
            line = b"jid,reference\n" if self.left == 19_999 else b"a%d,%s\n" % (self.left, b"x" * 500)
            buffer[: len(line)] = line
            return len(line) if self.left >= 0 else 0

    tracemalloc.start()
    try:
        count = sum(1 for _ in read(io.BufferedReader(Endless()), ZONE))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 19_999
    assert peak < 1_000_000, "of 10 MB"


@pytest.mark.parametrize(
    ("text", "zone", "expected", "is_day"),
    [
        ("2026-01-30", "Europe/Stockholm", datetime(2026, 1, 29, 23, tzinfo=UTC), True),
        ("2026-07-30", "Europe/Stockholm", datetime(2026, 7, 29, 22, tzinfo=UTC), True),
        ("2018-11-04", "America/Sao_Paulo", datetime(2018, 11, 4, 3, tzinfo=UTC), True),  # midnight was skipped
        ("2026-01-30T10:00Z", "Europe/Stockholm", datetime(2026, 1, 30, 10, tzinfo=UTC), False),
        ("2026-01-30 10:00:01.5+01:00", "UTC", datetime(2026, 1, 30, 9, 0, 1, 500_000, tzinfo=UTC), False),
        ("2026-01-30T10:00:00-0530", "UTC", datetime(2026, 1, 30, 15, 30, tzinfo=UTC), False),
        ("2026-01-30 10:00:00.123456789+01", "UTC", datetime(2026, 1, 30, 9, 0, 0, 123_456, tzinfo=UTC), False),
    ],
)
def test_times_in_text(text: str, zone: str, expected: datetime, is_day: bool) -> None:
    """A time needs an offset; a plain date is that day's start in the legal time zone, in summer and winter."""
    assert parse_time("submitted_at", text, ZoneInfo(zone)) == (expected, is_day)


@pytest.mark.parametrize(
    "text",
    [
        *("", "2026", "2026-1-2", "20260130", "2026-W05-1", "tomorrow", "٢٠٢٦-01-30", "9999-12-31T23:59-14:00"),
        *("2026-01-30T10:00", "2026-01-30x10:00Z", "2026-01-30T24:00Z", "2026-01-30T10:00:00 Z", "2026-01-30T10:00Z\n"),
    ],
)
def test_text_that_is_no_time(text: str) -> None:
    """All else is refused, with the form that is right."""
    with pytest.raises(InvalidField, match="write it as 2026-01-31T14:00:00"):
        parse_time("submitted_at", text, ZONE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_rows_in_bounded_memory(tmp_path: Path) -> None:
    """A process that imports a million rows, or rehearses that, takes hardly more memory than for twenty thousand."""
    url = f"sqlite:///{tmp_path / 'million.db'}"
    database.upgrade(url)
    environment = os.environ | {"TRACKER_DATABASE_URL": url, "TRACKER_CLUSTER": "w1"}
    command = [sys.executable, "-c", "import sys; from tracker.cli import main; sys.exit(main())", "import"]

    def kilobytes(count: int, *options: str) -> int:
        path = tmp_path / f"{count}.csv"
        with path.open("w") as file:
            file.write("jid,kind,received_at,reference\n")
            for n in range(count):
                file.write(f"{n * 7_919 % 1_000_003:08x}-34ab-406a-a4db-{n:012x},export,2026-01-30,T-{n // 2}\n")
        process = subprocess.Popen([*command, str(path), *options], env=environment)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_maxrss

    few = kilobytes(20_000, "--dry-run")
    assert kilobytes(1_000_000, "--dry-run") < few + 30_000
    assert kilobytes(1_000_000) < few + 30_000
    engine = database.open_database(url)
    with database.reading(engine) as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(JOBS)).scalar_one() == 1_000_000
    engine.dispose()
