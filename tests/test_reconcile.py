"""``tracker reconcile`` on both databases: what it finds, and that it finds nothing else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests import history
from tests.conftest import Run
from tracker import database, intake, reconcile
from tracker.models import JOBS
from tracker.settings import ClusterSettings, Settings

AT = datetime(2026, 1, 30, 9, 0, tzinfo=UTC)
HEAD = ["finding", "line", "cluster", "jid", "field", "here", "there", "problem"]


Reconcile = Callable[..., tuple[int, str, str]]


@pytest.fixture
def reconciled(run: Run, monkeypatch: pytest.MonkeyPatch) -> Reconcile:
    """Return a function that reconciles standard input on the test's database: exit code, stdout and stderr."""
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    monkeypatch.setenv("COLUMNS", "110")
    return lambda text, *args, file="-": run("reconcile", file, *args, stdin=text)


def cells(text: str) -> list[list[str]]:
    head, *rows = csv.reader(io.StringIO(text))
    assert head == HEAD
    return rows


def test_each_difference_is_named(engine: sa.Engine, reconciled: Reconcile) -> None:
    """Missing here, missing there, other facts and wrong rows, by line."""
    history.register(engine, "a", kind="export", submitted_at=AT)
    history.register(engine, "c", kind="removal")
    history.register(engine, "x")
    history.register(engine, "elsewhere", "w2")
    text = (
        "jid,kind,reference,submitted_at\n"
        "new,export,,\n"
        "a,removal,,2026-01-30T10:00:00.5+01:00\n"
        "c,removal,,\n"
        "c,removal,DSR-3,\n"
        "a,removal,DSR-2,\n"
        "new,removal,,\n"
        ",export,,\n"
        "e,,eve@example.com,\n"
        "f\x1b[2J,,,\n"
        "g\n"
    )
    code, out, err = reconciled(text)
    found, day = cells(out), "2026-01-30"
    assert (code, [row[:7] for row in found]) == (
        1,
        [
            ["missing_here", "2", "w1", "new", "", "", ""],
            ["differs", "3", "w1", "a", "kind", "export", "removal"],
            ["differs", "3", "w1", "a", "submitted_at", f"{day}T09:00:00.000000+00:00", f"{day}T09:00:00.500000+00:00"],
            ["differs", "5", "w1", "c", "reference", "", "DSR-3"],
            ["differs", "6", "w1", "a", "kind", "export", "removal"],
            ["differs", "6", "w1", "a", "reference", "", "DSR-2"],
            ["wrong_row", "8", "", "", "jid", "", ""],
            ["wrong_row", "9", "", "e", "reference", "", ""],
            ["wrong_row", "10", "", "f\ufffd[2J", "jid", "", ""],
            ["wrong_row", "11", "", "", "", "", ""],
            ["missing_there", "", "w1", "x", "", "", ""],
        ],
    )
    problems = [row[7].split(":")[0] for row in found if row[7]]
    assert problems[:2] == ["is empty", "contains an @"]
    assert "eve@" not in out + err
    assert err == (
        "They do not agree: 5 differs, 1 missing_here, 1 missing_there, 4 wrong_row. Compared: 3 jobs "
        "in 10 rows in the file, 3 registered in w1.\n"
    )
    made = json.loads(reconciled(text, "--format", "json")[1])
    assert made[0] == dict.fromkeys(HEAD) | {"finding": "missing_here", "line": 2, "cluster": "w1", "jid": "new"}


def missing(out: str) -> list[tuple[str, str, str]]:
    return [(row[0], row[2], row[3]) for row in cells(out)]


def test_the_scope_is_of_the_clusters_named(
    engine: sa.Engine, reconciled: Reconcile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of clusters that neither the file nor --cluster names are not missed; one only in the database will do."""
    for cluster in ("w1", "w2", "old"):
        history.register(engine, "a", cluster)
        history.register(engine, "b", cluster)
    assert missing(reconciled("jid\na\n")[1]) == [("missing_there", "w1", "b")]
    assert missing(reconciled("jid,cluster\na,w1\na,old\n")[1]) == [
        ("missing_there", "old", "b"),
        ("missing_there", "w1", "b"),
    ]
    assert missing(reconciled("jid,cluster\na,w1\nb,w1\n", "--cluster", "w2")[1]) == [
        ("missing_there", "w2", "a"),
        ("missing_there", "w2", "b"),
    ]
    assert missing(reconciled("jid\nb\n", "--cluster", "old")[1]) == [("missing_there", "old", "a")]
    assert cells(reconciled("jid,cluster\na,w9\n")[1])[0][3:5] == ["a", "cluster"]


def test_an_empty_list_agrees_with_nothing(
    engine: sa.Engine, reconciled: Reconcile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A header alone means the one cluster that is configured; of several it must be said which."""
    history.register(engine, "a")
    assert reconciled("jid\n")[0] == 1
    assert missing(reconciled("jid\n")[1]) == [("missing_there", "w1", "a")]
    monkeypatch.delenv("TRACKER_CLUSTER")
    (tmp_path / "tracker.toml").write_text("[clusters.w1]\n[clusters.w2]\n")
    code, out, err = reconciled("jid\n")
    assert (code, out) == (2, "")
    assert "'--cluster': several are configured; name one of them: w1, w2" in err
    assert reconciled("jid\n", "--cluster", "w2")[0] == 0


def test_the_scope_is_within_since_and_until(engine: sa.Engine, reconciled: Reconcile) -> None:
    """By submission, else registration, whole days in the legal zone; jobs of the file are found outside it too."""
    edge = datetime(2026, 3, 30, tzinfo=ZoneInfo("Europe/Stockholm"))  # the day before had 23 hours
    history.register(engine, "on", submitted_at=edge, at=edge + timedelta(days=90))
    history.register(engine, "before", at=edge - timedelta(microseconds=1), kind="export")
    assert missing(reconciled("jid\n", "--until", "2026-03-29")[1]) == [("missing_there", "w1", "before")]
    assert missing(reconciled("jid\n", "--since", "2026-03-30")[1]) == [("missing_there", "w1", "on")]
    text = "jid,kind\non,\nbefore,removal\n"
    code, out, err = reconciled(text, "--since", "2026-03-30", "--until", "2026-03-30T01:00+02:00")
    assert (code, cells(out)) == (1, [["differs", "3", "w1", "before", "kind", "export", "removal", ""]])
    window = "submitted (else registered) from 2026-03-29 22:00:00+00:00 until before 2026-03-29 23:00:00+00:00"
    assert f"2 jobs in 2 rows in the file, 1 registered in w1, {window}." in err


MISUSED: list[tuple[bytes, tuple[str, ...], str]] = [
    (b"", (), "Invalid value for 'FILE': the file is empty"),
    (b"jid,name\n", (), "line 1: the column 'name' is unknown"),
    (b"jid\na\n", ("--cluster", "w9"), "Invalid value for '--cluster': there is no cluster 'w9'; there are: old, w1"),
    (b"jid\na\n", ("--since", "soon"), "Invalid value for '--since': 'soon' is not a time"),
    (b"jid\na\n", ("--since", "2026-01-30", "--until", "2026-01-29"), "is not after"),
]


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_what_cannot_be_compared_is_one_error(
    engine: sa.Engine, reconciled: Reconcile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong file, cluster or time is a usage error, since 1 says that they do not agree; in a row it is a finding."""
    history.register(engine, "a", "old")
    for text, args, problem in MISUSED:
        code, out, err = reconciled(text, *args)
        assert (code, out, problem in err) == (2, "", True), err
    code, out, _ = reconciled("jid,cluster\na,w9\n")
    assert (code, cells(out)[0][-1]) == (1, "there is no cluster 'w9'; there are: old, w1")
    assert "No such file" in reconciled("", file="nowhere.csv")[2]
    monkeypatch.delenv("TRACKER_CLUSTER")
    code, out, err = reconciled("jid\na\n")
    assert (code, out) == (78, "")
    assert "no cluster is configured: set TRACKER_CLUSTER" in err
    assert reconciled("jid\na\n", "--cluster", "old")[0] == 0


def test_a_table_is_for_a_person(engine: sa.Engine, reconciled: Reconcile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty columns are left out, a time has its microseconds, and what is too much is said, not shown."""
    history.register(engine, "a", submitted_at=AT)
    _, out, err = reconciled("jid,submitted_at\na,2026-01-30T09:00:00.000001Z\n", "--format", "table")
    assert [line.rstrip() for line in out.splitlines()] == [
        "finding  line  cluster  jid  field         here                       there",
        "differs     2  w1       a    submitted_at  2026-01-30 09:00:00+00:00  2026-01-30 09:00:00.000001+00:00",
    ]
    assert reconciled("jid\na\n", "--format", "table")[1] == ""
    monkeypatch.setattr("tracker.cli.reconcile.SHOWN", 2)
    _, out, err = reconciled("jid\nb\nc\nd\n", "--format", "table")
    assert len(out.splitlines()) == 3
    assert err.startswith("These are 2 of 4 findings; --format csv has all.\nThey do not agree: 3 missing_here, ")


FACTS = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["export", "removal"]),
        "reference": st.sampled_from(["DSR-1", "DSR-2"]),
        "submitted_at": st.sampled_from([AT, AT + timedelta(microseconds=1)]),
        "received_at": st.sampled_from([AT, AT - timedelta(days=1)]),
    },
)
KEYS = st.tuples(st.sampled_from(["w1", "w2"]), st.sampled_from("abcdef"))


@given(
    here=st.dictionaries(KEYS, FACTS, max_size=8),
    there=st.lists(st.tuples(KEYS, FACTS), min_size=1, max_size=10),
    since=st.none() | st.just(AT + timedelta(microseconds=1)),
)
@hypothesis_settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_finds_what_the_plainest_comparison_finds(
    engine: sa.Engine,
    here: dict[tuple[str, str], dict[str, Any]],
    there: list[tuple[tuple[str, str], dict[str, Any]]],
    since: datetime | None,
) -> None:
    """Whatever is registered and whatever the file says: each finding, and no other."""
    with database.reading(engine) as connection:  # the clusters of each example are its own
        offset = connection.execute(sa.select(sa.func.count()).select_from(JOBS)).scalar_one()
    names = {name: f"{name}-{offset}" for name in ("w1", "w2")}
    settings = Settings(clusters={name: ClusterSettings(name=name) for name in names.values()})
    for (cluster, jid), facts in here.items():
        history.register(engine, jid, names[cluster], **facts)
    rows = [
        intake.JobRow(line, intake.Registration(jid, names[cluster], **facts))
        for line, ((cluster, jid), facts) in enumerate(there, 2)
    ]
    made = reconcile.reconcile(engine, rows, settings=settings, since=since)

    expected: set[tuple[object, ...]] = set()
    in_file = {key for key, _ in there}
    for key in in_file:
        lines = [(line, facts) for line, (one, facts) in enumerate(there, 2) if one == key]
        cluster, jid = names[key[0]], key[1]
        if key not in here:
            expected.add(("missing_here", lines[0][0], cluster, jid, None, None, None))
        for field in ("kind", "reference", "submitted_at", "received_at"):
            recorded = here.get(key, {}).get(field, "unknown" if field == "kind" and key in here else None)
            expected |= {
                ("differs", line, cluster, jid, field, recorded, facts[field])
                for line, facts in lines
                if key in here and facts.get(field, recorded) != recorded
            }
    for key, facts in here.items():
        within = since is None or "submitted_at" not in facts or facts["submitted_at"] >= since  # registered: now
        if key not in in_file and within and key[0] in {cluster for cluster, _ in in_file}:
            expected.add(("missing_there", None, names[key[0]], key[1], None, None, None))
    assert len(made.findings) == len(expected)
    assert {tuple(found[:7]) for found in made.findings} == expected
