"""Registering: in the caller's transaction, twice, by two at once, and in pieces from a file."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import tracker
from tracker import database, intake, text
from tracker.deadline import deadline_of
from tracker.errors import BadConfiguration, Conflict, InvalidField, Refused
from tracker.files import Notes
from tracker.intake import JobRow, Outcome, Registered, Registration, parse_time, read, register, register_many
from tracker.models import JOBS, TRANSITIONS, facts_of
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


def rows(text: str, notes: Notes | None = None, **given: Any) -> list[JobRow]:
    return list(read(io.BytesIO(text.encode()), ZONE, notes or Notes(), **given))


def what(outcome: Outcome) -> str:
    if isinstance(outcome, Refused):
        return type(outcome).__name__
    return "already" if outcome.already else "new"


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
    due = deadline_of(facts, job.registered_at, ZONE, ())
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
    spaced = facts | {"reference": " unknown\t\u200b", "cluster": " w1"}
    elsewhere = facts | {"submitted_at": AT.astimezone(ZONE)}
    with database.writing(engine) as connection:
        first = register(connection, "a", settings=ONE, **facts)
        for again in (facts, *fewer, {}, {"kind": "unknown"}, {"kind": None}, {"reference": ""}, spaced, elsewhere):
            assert register(connection, " \ufeffa\u00a0\n", settings=ONE, registered_by="bob", **again) == replace(
                first, already=True
            )
        assert connection.execute(sa.select(sa.func.count()).select_from(TRANSITIONS)).scalar_one() == 1


def test_other_facts_are_refused(engine: sa.Engine) -> None:
    """A second registration with other facts names each difference, changes nothing, and the transaction goes on."""
    cases: list[tuple[dict[str, Any], dict[str, tuple[str, str]]]] = [
        ({"kind": "removal"}, {"kind": ("export", "removal")}),
        ({"reference": "DSR-1"}, {"reference": ("unknown", "DSR-1")}),
        (
            {"received_at": AT + timedelta(microseconds=1), "submitted_at": AT, "kind": "export"},
            {
                "received_at": ("2026-01-30 09:00:00+00:00", "2026-01-30 09:00:00.000001+00:00"),
                "submitted_at": ("unknown", "2026-01-30 09:00:00+00:00"),
            },
        ),
    ]
    with database.writing(engine) as connection:
        register(connection, "a", kind="export", received_at=AT, settings=ONE)
        for facts, differing in cases:
            with pytest.raises(Conflict) as caught:
                register(connection, "a", settings=ONE, **facts)
            assert caught.value.differences == differing
            assert all(name in str(caught.value) for name in ("job a of cluster w1", *differing))
        register(connection, "b", settings=ONE)
    assert list(jobs(engine)) == ["a", "b"]
    assert facts_of(jobs(engine)["a"]) == Facts(Kind.EXPORT, None, AT)


LOWER = "ca24b4e2-34ab-406a-a4db-b30b0247837a"


def test_a_guid_in_other_case_is_refused(engine: sa.Engine) -> None:
    """The first is named, in the database, in the same list, in a dry run; what is not a GUID may differ in case."""
    upper, other = LOWER.upper(), LOWER.replace("c", "d")
    with database.writing(engine) as connection:
        register(connection, LOWER, cluster="w1", settings=TWO)
        register(connection, upper, cluster="w2", settings=TWO)
        for jid, cluster, first in (
            (upper, "w1", LOWER),
            (LOWER, "w2", upper),
            (LOWER.replace("ca", "Ca"), "w1", LOWER),
        ):
            with pytest.raises(InvalidField, match=f"jid: is registered already as '{first}': a GUID means the same"):
                register(connection, jid, cluster=cluster, settings=TWO)
        some = [Registration(jid, "w1") for jid in (other, other.upper(), "a", "A", other, upper, LOWER)]
        for dry_run in (True, False):
            done = register_many(connection, some, settings=TWO, dry_run=dry_run)
            expected = ["new", "InvalidField", "new", "new", "already", "InvalidField", "already"]
            assert [what(outcome) for outcome in done] == expected
            assert f"'{other}'" in str(done[1])


LATER = datetime.now(UTC) + timedelta(hours=1)
NONSENSE: dict[str, list[Any]] = {
    "jid": ["", " \t\n", "x" * 256, "a b", "a\u00a0b", "a\nb", "a\u200bb", "a\0b", "a\udc80b", None, 7, b"a"],
    "cluster": ["w3", "W1", "", None, 1],
    "kind": ["Export", 7],
    "submitted_at": [datetime(2026, 1, 1), date(2026, 1, 1), "2026-01-01", LATER],  # noqa: DTZ001 - the point
    "received_at": [LATER, datetime(1969, 12, 31, 23, tzinfo=UTC), datetime.min.replace(tzinfo=ZONE)],
    "reference": ["eve@example.com", "x" * 256, "a\tb", 7],
    "registered_by": ["", "a\nb"],
}


def test_what_is_wrong_is_refused(engine: sa.Engine) -> None:
    """A wrong value names its field, inserts nothing, and the transaction goes on; an address is not repeated."""
    good: dict[str, Any] = {"jid": "a", "cluster": "w1", "settings": TWO}
    with database.writing(engine) as connection:
        for field, values in NONSENSE.items():
            for value in values:
                with pytest.raises(InvalidField) as caught:
                    register(connection, **(good | {field: value}))
                assert (caught.value.field, "eve@" in str(caught.value)) == (field, False), value
        register(connection, "x" * 255, cluster="w2", reference="é" * 255, settings=TWO)
    assert list(jobs(engine)) == ["x" * 255]


def test_clocks_may_differ_a_little(engine: sa.Engine) -> None:
    """A submission some seconds ahead of the database's clock is not after its registration; a later one is refused."""
    with database.writing(engine) as connection:
        ahead = database.now(connection) + timedelta(seconds=3)
        register(connection, "a", submitted_at=ahead, settings=ONE)
        with pytest.raises(InvalidField, match="in the future"):
            register(connection, "b", submitted_at=ahead + intake.SKEW, settings=ONE)
    assert jobs(engine)["a"].registered_at == jobs(engine)["a"].submitted_at == ahead


def test_a_job_that_plain_sql_registered(engine: sa.Engine) -> None:
    """It is registered already, and its deadline is the one that it will get."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (cluster, jid, received_at) VALUES ('w1', 'a', '2026-01-30 09:00:00.000000')"
        )
        done = register(connection, "a", received_at=AT, settings=ONE)
        with pytest.raises(Conflict):
            register(connection, "a", received_at=AT - timedelta(days=1), settings=ONE)
    assert done == Registered(
        "w1", "a", already=True, deadline=deadline_of(Facts(Kind.UNKNOWN, None, AT), AT, ZONE, ())
    )


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
            assert (row.jid, row.reference) == (text.strip(jid), text.strip(reference or "") or None)
            assert register(connection, jid, reference=reference, kind=kind, settings=ONE).already


# Two at once


def waits(engine: sa.Engine) -> bool:
    """Whether some session on PostgreSQL waits for another's lock; on SQLite nobody can tell."""
    if engine.dialect.name == "sqlite":
        return True
    with engine.connect() as connection:
        query = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)"
        return bool(connection.exec_driver_sql(query).scalar_one())


def test_two_sessions_register_the_same_job_at_once(engine: sa.Engine) -> None:
    """The second waits, sees the result of the first, and its transaction goes on."""
    cases: list[tuple[Callable[[sa.Connection], None], str, str]] = [
        (sa.Connection.commit, "export", "already"),
        (sa.Connection.commit, "removal", "Conflict"),
        (sa.Connection.rollback, "removal", "new"),
    ]
    for number, (end, second, expected) in enumerate(cases):
        jid, after = f"a{number}", f"b{number}"
        found: list[str] = []

        def register_second(jid: str = jid, kind: str = second, after: str = after, found: list[str] = found) -> None:
            with database.writing(engine) as connection:
                found.extend(map(what, register_many(connection, [Registration(jid, kind=kind)], settings=ONE)))
                register(connection, after, settings=ONE)

        thread = threading.Thread(target=register_second)
        with engine.connect() as connection:
            register(connection, jid, kind="export", settings=ONE)
            thread.start()
            until = time.monotonic() + 10
            while not waits(engine):
                assert time.monotonic() < until, "the second did not wait"
            end(connection)
        thread.join(30)
        assert found == [expected]
        there = jobs(engine)
        assert there[jid].kind == (second if expected == "new" else "export")
        assert after in there


# Many


def test_many_at_once(engine: sa.Engine) -> None:
    """Each gets its outcome in its place; what is wrong with one does not keep the others out; doubles are found."""
    some = [
        (Registration("a", "w1", "export"), "new"),
        (Registration("", "w1"), "InvalidField"),
        (Registration("a", "w2", "removal"), "new"),
        (Registration("old", "w1", "export"), "already"),
        (Registration("a", "w1"), "already"),
        (Registration("old", "w1", "removal"), "Conflict"),
        (Registration(" a ", "w1", "removal"), "Conflict"),
        (Registration("b", "w3"), "InvalidField"),
        (Registration("b", "w2", reference="b@b"), "InvalidField"),
        (Registration("b", "w2"), "new"),
    ]
    with database.writing(engine) as connection:
        register(connection, "old", cluster="w1", kind="export", settings=TWO)
        outcomes = register_many(connection, [one for one, _ in some], settings=TWO)
        assert register_many(connection, [], settings=TWO) == []
    assert [what(outcome) for outcome in outcomes] == [expected for _, expected in some]
    with database.reading(engine) as connection:
        there = connection.execute(sa.select(JOBS.c.cluster, JOBS.c.jid, JOBS.c.kind)).all()
    expected = {("w1", "old", "export"), ("w1", "a", "export"), ("w2", "a", "removal"), ("w2", "b", "unknown")}
    assert set(there) == expected


def test_more_than_a_statement_takes(engine: sa.Engine) -> None:
    """Some thousand jobs that are all there already are found, however many parameters a statement may have."""
    many = [Registration(f"j{n}", "w1" if n % 2 else "w2", "export", AT, AT, "r") for n in range(2500)]
    for expected in ("new", "already"):
        with database.writing(engine) as connection:
            assert {what(outcome) for outcome in register_many(connection, many, settings=TWO)} == {expected}
    assert len(jobs(engine)) == 2500


def test_a_dry_run_says_what_would_be_and_writes_nothing(engine: sa.Engine) -> None:
    """Jobs that are there, doubles and contradictions within a piece included."""
    some = [Registration(jid, "w1", kind) for jid, kind in (("old", "export"), ("a", "export"), ("a", "removal"))]
    with database.writing(engine) as connection:
        register(connection, "old", cluster="w1", kind="export", settings=TWO)
        rehearsed = [what(outcome) for outcome in register_many(connection, some, settings=TWO, dry_run=True)]
        assert connection.execute(sa.select(JOBS.c.jid)).scalars().all() == ["old"]
        assert rehearsed == [what(outcome) for outcome in register_many(connection, some, settings=TWO)]
    assert rehearsed == ["already", "new", "Conflict"]


# Files


def test_what_a_file_says_is_declared() -> None:
    """A plain date is that day's start; a default stands in for a cell that is empty, a key left out."""
    notes = Notes()
    csv = "jid,cluster,kind,submitted_at,received_at,reference\n"
    file = csv + "a,w1,removal,2026-01-30T10:00+01:00,2026-01-29,DSR-1\nb,,,,2026-01-30,\n"
    received_at = datetime(2026, 1, 28, 23, tzinfo=UTC)
    first = Registration("a", "w1", "removal", AT, received_at, "DSR-1")
    assert [row.declared for row in rows(file, notes, cluster="w2", kind="export")] == [
        first,
        Registration("b", "w2", "export", received_at=received_at + timedelta(days=1)),
    ]
    assert rows('{"jid": "b", "kind": null}')[0].declared == Registration("b", None, None)
    file = csv + "a,w1,,2026-02-30,,\nb,w1,,,03/02/2026,\n,w1,,,,\nc,,,,,,x\n"
    wrong = rows(file)
    assert [(row.line, row.jid, row.cluster) for row in wrong] == [
        (2, "a", "w1"),
        (3, "b", "w1"),
        (4, "", "w1"),
        (5, "", None),
    ]
    fields = [getattr(row.declared, "field", None) for row in wrong]
    assert fields == ["submitted_at", "received_at", None, None]


def test_times_in_text() -> None:
    """A time needs an offset; a plain date is that day's start in the legal time zone, in summer and winter."""
    for time_, zone, expected in (
        ("2026-01-30", "Europe/Stockholm", datetime(2026, 1, 29, 23, tzinfo=UTC)),
        ("2026-07-30", "Europe/Stockholm", datetime(2026, 7, 29, 22, tzinfo=UTC)),
        ("2018-11-04", "America/Sao_Paulo", datetime(2018, 11, 4, 3, tzinfo=UTC)),  # midnight was skipped
        ("2026-01-30T10:00Z", "Europe/Stockholm", datetime(2026, 1, 30, 10, tzinfo=UTC)),
        ("2026-01-30 10:00:01.5+01:00", "UTC", datetime(2026, 1, 30, 9, 0, 1, 500_000, tzinfo=UTC)),
        ("2026-01-30T10:00:00-0530", "UTC", datetime(2026, 1, 30, 15, 30, tzinfo=UTC)),
        ("2026-01-30 10:00:00.123456789+01", "UTC", datetime(2026, 1, 30, 9, 0, 0, 123_456, tzinfo=UTC)),
    ):
        assert parse_time("submitted_at", time_, ZoneInfo(zone)) == expected
    for wrong in (
        *("", "2026", "2026-1-2", "tomorrow", "٢٠٢٦-01-30", "9999-12-31T23:59-14:00", "2026-02-30", "0001-01-01"),
        *("2026-01-30T10:00", "2026-01-30T24:00Z", "2026-01-30T10:00Z\n", "2026-02-03T10:00:61Z"),
    ):
        with pytest.raises(InvalidField, match="write it as 2026-01-31T14:00:00"):
            parse_time("submitted_at", wrong, ZONE)
