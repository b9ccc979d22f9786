"""``tracker report`` as a person and a program read it, on both databases."""

from __future__ import annotations

import csv
import io
import json
import os
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import sqlalchemy as sa

from tests.conftest import Run
from tests.history import ZONE, answer, record, register, stand
from tracker import database, status
from tracker.reports.tables import NAMES, read

BEGAN = datetime(2026, 11, 2, 9, 0, 0, 250_000, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.fixture
def run(run: Run) -> Run:
    """Return a function that runs ``tracker report`` in 80 columns, and returns exit code, output and messages."""
    return lambda *args: run("report", *args)


def job(
    engine: sa.Engine, jid: str, cluster: str = "w1a2b3c4d", kind: str = "export", at: datetime = BEGAN, **more: str
) -> int:
    return register(engine, jid, cluster, at=at, kind=kind, submitted_at=at, **more)


def ended(engine: sa.Engine, job_id: int, word: str = "done", after: timedelta = 5 * DAY) -> None:
    """Let a job that began at `BEGAN` be seen waiting *after* then, and ended an hour later."""
    answer(engine, job_id, ("waiting", BEGAN + after), (word, BEGAN + after + HOUR))


@pytest.fixture
def jobs(engine: sa.Engine) -> None:
    """Four exports of which one is open and one failed, a removal that was withdrawn, and one of another cluster."""
    ended(engine, job(engine, "a"))
    ended(engine, job(engine, "b"), after=6 * DAY)
    ended(engine, job(engine, "c"), "error", after=DAY)
    answer(engine, job(engine, "d"), ("waiting", BEGAN + 9 * DAY))
    withdrawn = job(engine, "e", kind="removal")
    record(engine, withdrawn, lambda job, past: status.withdraw(job, BEGAN + DAY, "alice", "a mistake"))
    ended(engine, job(engine, "f", "w9", "removal"), after=2 * DAY)


@pytest.mark.usefixtures("jobs")
def test_a_person_reads_bounds_in_80_columns(run: Run) -> None:
    """The table says what it is, what each figure is at least and at most, and what is not reached; nothing folds."""
    code, out, err = run("durations", "--format", "table")
    assert (code, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("From submission to done: 6 jobs, as of 20")
    assert lines[0].endswith("+00:00")
    assert lines[1:5] == [
        f"tracker {version('tracker')}; filters: none",
        "Estimated (Kaplan-Meier). A job that is not done counts until it was last",
        "seen not done; so does a failed, lost or attested job.",
        "Withdrawn jobs, left out: 1.",
    ]
    assert [line.split() for line in lines[6:11]] == [
        ["cluster", "kind", "jobs", "done", "open", "failed", "quantile", "at", "least", "at", "most"],
        ["w1a2b3c4d", "export", "4", "2", "1", "1", "median", "6d", "6d", "2h"],
        ["p90", "not", "reached", "not", "reached"],
        ["p95", "not", "reached", "not", "reached"],
        ["max", "not", "reached", "not", "reached"],
    ]
    assert lines[-4].split() == ["all", "all", "5", "3", "1", "1", "median", "5d", "5d", "2h"]


def test_durations_by_month_and_week(run: Run, engine: sa.Engine) -> None:
    """--by names the first columns, in its order, of every format; the total says all, empty or null."""
    for jid, at in (("a", BEGAN), ("b", BEGAN + 31 * DAY)):
        ended(engine, job(engine, jid, at=at - 60 * DAY), after=-59 * DAY)
    out = run("durations", "--by", "month, kind", "--format", "csv")[1]
    expected = [["month", "kind", "jobs"], ["2026-09", "export", "1"], ["2026-10", "export", "1"], ["", "", "2"]]
    assert [row[:3] for row in csv.reader(io.StringIO(out))] == expected
    document = json.loads(run("durations", "--by", "week", "--format", "json")[1])
    assert [row["week"] for row in document["rows"]] == ["2026-W36", "2026-W40", None]


def test_changes_are_counted_and_listed(run: Run, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By cluster and kind, what was registered, ended or became overdue in the time; csv and json have the rows."""
    with database.reading(engine) as connection:
        now = database.now(connection)
    old, new = now - 40 * DAY, now - 3 * HOUR
    late = job(engine, "late", at=old)
    answer(engine, late, ("running", now - 2 * DAY))
    said = status.Answer("running", now - HOUR, now - HOUR)
    record(engine, late, lambda job, past: status.decide(job, said, status.LostRule(), past, now - 9 * DAY))
    answer(engine, job(engine, "done", at=old), ("waiting", old + DAY), ("done", now - HOUR))
    answer(engine, job(engine, "failed", "w9", at=new), ("error", now - HOUR))
    gone = job(engine, "gone", "w9", "removal", at=old)
    answer(engine, gone, ("not_found", now - 2 * DAY), ("not_found", now - HOUR))
    record(engine, gone, lambda job, past: status.reopen(job, now - HOUR / 2, "eve", "once more"), due_at=now)
    assert max(map(len, run("changes", "--format", "table")[1].splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run("changes", "--format", "table")
    assert out.startswith("Changes: 4 jobs, as of ")
    assert "filters: recorded from 20" in out
    _, counts, rows = (part.splitlines() for part in out.split("\n\n"))
    assert [line.split() for line in counts] == [
        ["cluster", "kind", "registered", "done", "failed", "lost", "attested", "withdrawn", "reopened", "overdue"],
        ["w1a2b3c4d", "export", *["0", "1", "0", "0", "0", "0", "0", "1"]],
        ["w9", "export", *["1", "0", "1", "0", "0", "0", "0", "0"]],
        ["w9", "removal", *["0", "0", "0", "1", "0", "0", "1", "0"]],
    ]
    assert [line.split()[2] for line in rows[1:]] == ["gone", "gone", "failed", "failed", "done", "late"]

    def count(*args: str) -> int:
        return len(list(csv.DictReader(io.StringIO(run("changes", "--format", "csv", *args)[1]))))

    assert (count(), count("--kind", "removal"), count("--cluster", "w9")) == (6, 2, 4)
    assert (count("--since", "3d"), count("--until", "1d", "--since", "3d"), count("--as-of", "3d")) == (8, 2, 0)
    # without --since: all before it, not an error about a day that nobody asked for
    assert run("changes", "--until", "2026-11-01", "--format", "json")[0] == 0


def test_times_are_dates_instants_or_how_long_ago(run: Run, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """7d and 36h are before now; a day is one of the legal zone, which --since begins with and --until ends with."""
    with database.reading(engine) as connection:
        now = database.now(connection)
    for jid, age in (("a", DAY), ("b", 3 * DAY), ("c", 10 * DAY)):
        job(engine, jid, at=now - age)

    def found(*args: str) -> object:
        return json.loads(run("coverage", "--format", "json", *args)[1])["jobs"]

    assert [found("--since", text) for text in ("25h", "4d", "1w 3 days 1 min")] == [1, 2, 3]
    assert [found("--until", text) for text in ("1h", "2d")] == [3, 2]
    assert [found("--as-of", text) for text in ("1h", "2d")] == [3, 2]
    today = datetime.combine(now.astimezone(ZONE).date(), datetime.min.time(), ZONE)
    since = json.loads(run("coverage", "--since", "yesterday", "--format", "json")[1])["since"]
    assert abs(datetime.fromisoformat(since) - (today - DAY)) <= HOUR  # a day may have 25 hours
    job(engine, "old", at=datetime(2025, 10, 31, 23, 30, tzinfo=UTC))  # half past midnight in Stockholm
    assert found("--since", "2025-11-01", "--until", "2025-11-01") == 1
    assert found("--until", "2025-10-31") == 0
    assert found("--since", "2025-10-31T23:30Z", "--until", "2025-10-31T23:30:00.000001Z") == 1
    monkeypatch.setenv("TRACKER_TIMEZONE", "Europe/London")
    assert found("--since", "2025-10-31", "--until", "2025-10-31") == 1


@pytest.mark.usefixtures("jobs")
def test_filters_are_applied_and_named(run: Run) -> None:
    """A cluster and a kind may be repeated; each format says which filters were in force."""
    _, out, err = run("durations", "--kind", "removal", "--kind", "unknown", "--cluster", "w9", "--format", "csv")
    assert [line.split(",")[:3] for line in out.splitlines()[1:]] == [["w9", "removal", "1"], ["", "", "1"]]
    assert "filters: cluster w9; kind removal, unknown" in err
    _, out, _ = run("durations", "--since", "2026-11-02T10:00:00.250000+01:00", "--cluster", "w9", "--format", "json")
    document = json.loads(out)
    assert (document["jobs"], document["clusters"], document["kinds"]) == (1, ["w9"], None)
    assert document["since"] == "2026-11-02T09:00:00.250000+00:00"
    _, out, _ = run("durations", "--until", "2026-11-02", "--format", "table")
    assert "6 jobs, as of" in out
    assert "filters: submitted (else registered) before 2026-11-02 23:00:00+00:00" in " ".join(out.split())


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_nothing_is_no_error(run: Run) -> None:
    """Where no jobs match, the exit code is 0, it is said, and what comes out is still a table, CSV or JSON."""
    code, out, err = run("durations", "--format", "table")
    assert (code, err, "Nothing to report: no rows match." in out) == (0, "", True)
    assert len(run("durations", "--format", "csv")[1].splitlines()) == 1
    assert json.loads(run("durations", "--format", "json")[1])["rows"] == []
    assert run("durations")[1].startswith("cluster,kind,jobs,done")  # a pipe gets csv


BAD = (
    (["durations", "--since", "2026-13-01"], "'--since': '2026-13-01' is not a time: write it as 2026-01-31T14:00"),
    (["durations", "--until", "9999999d"], "'--until': '9999999d' is not a time"),
    (["durations", "--since", "2026-11-01T10:00"], "has no offset, so the instant is unclear: write it as"),
    (["durations", "--since", "0001-01-01"], "'0001-01-01' is before 1970"),
    (
        ["durations", "--since", "2026-11-02", "--until", "2026-11-01"],
        "2026-11-01 23:00:00+00:00 is not after since, 2026-11-01 23:00:00+00:00",
    ),
    (["durations", "--kind", "exports"], "'--kind': 'exports' is not one of 'export', 'removal', 'unknown'"),
    (["durations", "--cluster", "w1"], "'--cluster': there is no cluster 'w1'; there are: w1a2b3c4d, w9"),
    (["durations", "--cluster", "w9", "--cluster", "\x1b[1m\udcff\u202e"], "there are: w1a2b3c4d, w9"),
    (["durations", "--by", "cluster,day"], "'--by': 'day' is not one of cluster, kind, month, week"),
    (["duration"], "No such command 'duration'"),
    (["durations", "--as-of", "2998-01-01"], "'--as-of': 2998-01-01 23:00:00+00:00 is in the future; the database's"),
    (["durations", "-o", "a.txt"], "'a.txt' does not end with .csv, .json or .html: name the format with --format"),
    (["--format", "csv"], "name a report (durations, statuses,"),
    (["--kind", "export", "gaps"], "put options after the name of the report, as in: tracker report gaps --since"),
    (["gaps", "--format", "table", "--for-spreadsheet"], "--for-spreadsheet has no effect on table: add --format csv"),
)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("jobs")
def test_bad_input_is_named_with_what_there_is(run: Run) -> None:
    """What cannot be is a usage error: it names the place, and the way out or the list."""
    for args, problem in BAD:
        code, out, err = run(*args)
        assert (code, out) == (2, ""), args
        assert problem in err


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_cluster_without_jobs_is_known(run: Run, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is configured, or that the database knows, is no mistake; where there is none at all, that is said."""
    assert "there is no cluster 'w1'; there are: none yet" in run("durations", "--cluster", "w1")[2]
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    monkeypatch.setenv("TRACKER_API_KEY", "hush")
    stand(engine, "w2")
    for cluster in ("w1", "w2"):
        assert run("durations", "--cluster", cluster)[0] == 0
    assert "there are: w1, w2" in run("durations", "--cluster", "w3")[2]


@pytest.mark.usefixtures("jobs")
def test_every_report_fits_a_terminal_and_is_whole_in_csv(run: Run, engine: sa.Engine) -> None:
    """A table has the columns that fit 80, csv all of the view's, and both say when, by which version and for what."""
    answer(engine, job(engine, "g", reference="DSR-1"), ("never heard of", BEGAN + HOUR))
    stand(engine, "w1a2b3c4d", gap_began_at=BEGAN, gap_cause="unreachable", gap_detail="timeout")
    some = ("--cluster", "w1a2b3c4d", "--kind", "export", "--since", "2026-11-01")
    for name in NAMES[1:]:
        with database.reading(engine) as connection:
            columns = read(connection, name).columns
        for args, jobs, filters in (((), 7, "none"), (some, 5, "cluster w1a2b3c4d; kind export; ")):
            code, out, err = run(name, "--format", "csv", *args)
            assert (code, tuple(out.splitlines()[0].split(","))) == (0, columns)
            assert f": {jobs} jobs, as of 20" in err
            code, out, _ = run(name, "--format", "table", *args)
            assert code == 0
            assert max(map(len, out.splitlines())) <= 80
            assert f"tracker {version('tracker')}; filters: {filters}" in " ".join(out.split())


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("jobs")
def test_output_is_the_same_in_a_file(run: Run, tmp_path: Path) -> None:
    """-o FILE holds what standard output would, in the format that its name tells unless another is asked for."""
    for name, format in (("a.csv", "csv"), ("a.JSON", "json")):
        code, out, _ = run("anomalies", "--as-of", "2026-11-09", "-o", str(tmp_path / name))
        assert (code, out) == (0, "")
        expected = run("anomalies", "--as-of", "2026-11-09", "--format", format)[1]
        assert (tmp_path / name).read_text("utf-8") == expected
    run("gaps", "--as-of", "2026-11-09", "--format", "table", "-o", str(tmp_path / "a.csv"))
    shown = run("gaps", "--as-of", "2026-11-09", "--format", "table")[1]
    assert (tmp_path / "a.csv").read_text("utf-8") == shown != ""
    assert run("durations", "-o", "-", "--as-of", "2026-11-09")[1] == run("durations", "--as-of", "2026-11-09")[1]


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("jobs")
def test_output_replaces_all_or_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails half-way leaves the file as it was, and nothing beside it; a link and the file's mode are kept."""
    old = tmp_path / "old.csv"
    old.write_text("as it was")
    old.chmod(0o640)
    link = tmp_path / "link.csv"
    link.symlink_to(old)
    before = set(tmp_path.iterdir())

    def fails(*args: object) -> None:
        click.echo("half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tracker.cli.report.emit", fails)
        code, _, err = run("coverage", "-o", str(link))
    assert (code, "No space left on device; make room" in err) == (1, True)
    assert (old.read_text(), set(tmp_path.iterdir())) == ("as it was", before)
    assert run("coverage", "-o", str(link))[0] == 0
    assert link.is_symlink()
    assert old.read_text().startswith("cluster,jid,")
    assert old.stat().st_mode & 0o777 == 0o640
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_output_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    """A folder that is not there, or that stands where the file should be: where, why, and the way out."""
    for place in (tmp_path / "not there" / "x.csv", tmp_path, Path("/dev/full")):
        code, out, err = run("durations", "-o", str(place))
        assert (code, out) == (2, "")
        assert f"'--output': cannot write {str(place)!r}: " in err
        assert "name a file in a folder that exists" in err


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.usefixtures("jobs")
def test_output_spares_the_database(run: Run, tmp_path: Path) -> None:
    """Its file, by whatever name, and those that SQLite keeps beside it are never written over."""
    database = tmp_path / "tracker.db"
    (tmp_path / "link.csv").symlink_to(database)
    before, there = database.read_bytes(), set(tmp_path.iterdir())
    for name in ("tracker.db", "link.csv", "tracker.db-wal", "tracker.db-shm", "tracker.db-journal"):
        code, out, err = run("--format", "html", "-o", name)
        assert (code, out) == (2, "")
        assert f"'--output': {name!r} belongs to the database, and is not replaced: name another file" in err
    assert (database.read_bytes(), set(tmp_path.iterdir())) == (before, there)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_output_goes_into_a_pipe_without_a_name(run: Run) -> None:
    """So does a shell's >(gzip), or /dev/stdout where that is a pipe: what the name resolves to is no path."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        assert run("durations", "-o", f"/dev/fd/{writer}")[:2] == (0, "")
        assert len(os.read(reader, 65_536)) > 100
    finally:
        os.close(reader)
        os.close(writer)


def test_a_table_says_that_there_are_more_rows(run: Run, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops at its limit; csv does not."""
    monkeypatch.setattr("tracker.cli.report.ROWS", 3)
    for number in range(4):
        job(engine, f"many{number}")
        _, out, _ = run("deadlines", "--format", "table")
        assert out.endswith("Only the first 3 rows are shown; --format csv has all.\n") is (number == 3)
    assert out.count("many") == 3
    assert run("deadlines", "--format", "csv")[1].count("many") == 4


def test_a_table_begins_with_what_a_person_looks_for(
    run: Run, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not settled before what is, and the newest first: also where there is no room for all of it."""
    for number in range(4):  # the newest are open
        at = BEGAN + number * 31 * DAY - 365 * DAY
        its = job(engine, f"j{number}", at=at, reference=f"R{number}")
        answer(engine, its, ("surprise", at + HOUR), *([("done", at + DAY)] if number < 2 else []))
    monkeypatch.setenv("COLUMNS", "200")

    def column(name: str, place: int) -> list[str]:
        _, out, _ = run(name, "--format", "table")
        return [line.split()[place] for line in out.split("\n\n")[1].splitlines()[1:]]

    monkeypatch.setattr("tracker.cli.report.ROWS", 3)
    assert column("deadlines", 0) == ["j2", "j3", "j1"]
    assert column("requests", 0) == ["R2", "R3", "R1"]
    assert column("anomalies", 2) == ["j3", "j2", "j1"]
    assert column("monthly", 0) == ["2026-02", "2026-01", "2025-12"]
