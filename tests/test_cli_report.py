"""``tracker report`` as a person and a program read it, on both databases."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import sqlalchemy as sa

from tests.history import answer, record, register, stand
from tracker import cli, database, status
from tracker.models import Gap
from tracker.reports.about import Filters
from tracker.reports.durations import Row, durations
from tracker.reports.tables import NAMES, read
from tracker.status import Kind

BEGAN = datetime(2026, 11, 2, 9, 0, 0, 250_000, tzinfo=UTC)
DAY, HOUR, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(seconds=1)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs ``tracker report`` in 80 columns, and returns exit code, output and messages."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args: str) -> tuple[int, str, str]:
        code = cli.main(["report", *args])
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err
        assert "\u202e" not in out + err
        return code, out, err

    return run


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
    assert lines[1:6] == [
        f"tracker {version('tracker')}; filters: none",
        "Estimated (Kaplan-Meier): a job that is not done, also a failed, lost or",
        "attested one, counts until last seen not done, and leaves the curve there.",
        "Withdrawn, and left out: 1.",
        "Registered after submission: median 0s, max 0s; later than a day: 0.",
    ]
    assert [line.split() for line in lines[7:12]] == [
        ["cluster", "kind", "jobs", "done", "open", "failed", "quantile", "at", "least", "at", "most"],
        ["w1a2b3c4d", "export", "4", "2", "1", "1", "median", "6d", "6d", "2h"],
        ["p90", "not", "reached", "not", "reached"],
        ["p95", "not", "reached", "not", "reached"],
        ["max", "not", "reached", "not", "reached"],
    ]
    assert lines[-4].split() == ["all", "all", "5", "3", "1", "1", "median", "5d", "5d", "2h"]


@pytest.mark.usefixtures("jobs")
def test_every_report_is_about_the_same_jobs(run: Run) -> None:
    """What it says of itself counts them all, the withdrawn one too, which the figures of durations leave out."""
    assert {json.loads(run(name, "--format", "json")[1])["jobs"] for name in NAMES} == {6}
    assert ">6 jobs, as of" in run("--format", "html")[1]
    _, out, _ = run("durations", "--kind", "removal", "--format", "table")
    assert out.startswith("From submission to done: 2 jobs, as of 20")
    assert "Withdrawn, and left out: 1.\n" in out


def flat(row: Row) -> dict[str, object]:
    counts = ("cluster", "kind", "jobs", "done", "open", "failed", "lost", "attested", "withdrawn")
    found: dict[str, object] = {name: getattr(row, name) for name in counts}
    for name in ("median", "p90", "p95", "max"):
        found[f"{name}_seconds_min"] = getattr(row, name).seconds_min
        found[f"{name}_seconds_max"] = getattr(row, name).seconds_max
    late = row.registered
    found |= {"late_median_seconds": late.median, "late_max_seconds": late.max, "late_over_1d": late.over_a_day}
    return found | {"submission_unknown": late.unknown}


@pytest.mark.usefixtures("jobs")
def test_every_format_says_what_python_says(run: Run, engine: sa.Engine) -> None:
    """CSV, JSON and the Python function have the same rows and figures; nothing is null in JSON and empty in CSV."""
    with database.reading(engine) as connection:
        made = durations(connection)
    expected = [flat(row) for row in (*made.rows, made.total)]
    code, out, _ = run("durations", "--format", "json")
    assert code == 0
    document = json.loads(out)
    assert document.pop("rows") == expected
    as_of = datetime.fromisoformat(document.pop("as_of"))
    assert made.about.as_of <= as_of <= made.about.as_of + timedelta(minutes=2)
    assert document == {
        "report": "durations",
        "version": version("tracker"),
        "since": None,
        "until": None,
        "clusters": None,
        "kinds": None,
        "jobs": 6,
    }
    code, out, err = run("durations", "--format", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert rows == [{name: "" if value is None else str(value) for name, value in row.items()} for row in expected]
    assert rows[-1]["median_seconds_max"] == str(5 * 86_400 + 3601.0)
    assert "6 jobs, as of 20" in err
    assert f"tracker {version('tracker')}; filters: none" in err


def test_how_late_registrations_came_is_told(run: Run, engine: sa.Engine) -> None:
    """In the table for all, in csv by row: median and max, how many came later than a day, and how many are unknown."""
    for jid, late in (("a", 90 * SECOND), ("b", DAY), ("c", DAY + timedelta(microseconds=1)), ("d", 50 * HOUR)):
        register(engine, jid, "w1", at=BEGAN, submitted_at=BEGAN - late)
    register(engine, "e", "w2", at=BEGAN)
    _, out, _ = run("durations", "--format", "table")
    assert out.splitlines()[4:6] == [
        "Registered after submission: median 1d, max 2d 2h; later than a day: 2.",
        "Submission unknown: 1.",
    ]
    rows = list(csv.DictReader(io.StringIO(run("durations", "--format", "csv")[1])))
    assert [[row[name] for name in list(row)[-4:]] for row in rows] == [
        ["86400.0", "180000.0", "2", "0"],
        ["", "", "0", "1"],
        ["86400.0", "180000.0", "2", "1"],
    ]
    _, out, _ = run("durations", "--cluster", "w2", "--format", "table")
    assert out.splitlines()[4] == "Without a declared submission nobody can say how late a registration came."


def test_a_pipe_gets_csv(run: Run) -> None:
    """Without --format, what is no terminal gets CSV, its heading even where there is nothing."""
    code, out, _ = run("durations")
    assert (code, out.splitlines()[0][:22], len(out.splitlines())) == (0, "cluster,kind,jobs,done", 1)


@pytest.mark.usefixtures("jobs")
def test_filters_are_applied_and_told(run: Run) -> None:
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
    assert "filters: submitted (else registered) until before 2026-11-02 23:00:00+00:00" in " ".join(out.split())


def test_dates_are_days_of_the_legal_time_zone(run: Run, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """--since begins with the day, --until ends with it: half past eleven in London is the next day in Stockholm."""
    job(engine, "a", at=datetime(2026, 10, 31, 23, 30, tzinfo=UTC))

    def found(*filters: str) -> int:
        jobs = json.loads(run("durations", *filters, "--format", "json")[1])["jobs"]
        assert isinstance(jobs, int)
        return jobs

    assert found("--since", "2026-11-01", "--until", "2026-11-01") == 1
    assert found("--until", "2026-10-31") == 0
    monkeypatch.setenv("TRACKER_TIMEZONE", "Europe/London")
    assert found("--since", "2026-11-01") == 0
    assert found("--since", "2026-10-31", "--until", "2026-10-31") == 1
    assert found("--since", "2026-10-31T23:30Z", "--until", "2026-10-31T23:30:00.000001Z") == 1
    assert found("--until", "2026-10-31T23:30Z") == 0


@pytest.mark.parametrize("format", ["table", "csv", "json"])
def test_nothing_is_no_error(run: Run, format: str) -> None:
    """Where no job is like that, the exit code is 0, it is said, and what comes out is still a table, CSV or JSON."""
    code, out, err = run("durations", "--format", format)
    assert code == 0
    assert "Nothing to report" in (out if format == "table" else err)
    match format:
        case "table":
            assert out.startswith("From submission to done: 0 jobs, as of")
            assert f"tracker {version('tracker')}; filters: none" in out
            assert err == ""
        case "csv":
            assert len(out.splitlines()) == 1
        case _:
            assert (json.loads(out)["rows"], json.loads(out)["jobs"]) == ([], 0)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["durations", "--since", "2026-13-01"], "'--since': '2026-13-01' is no date: write one as in 2026-11-24"),
        (["durations", "--until", "yesterday"], "'--until': 'yesterday' is no date"),
        (["durations", "--since", "2026-11-01T10:00"], "has no offset: write 2026-11-01T10:00+01:00"),
        (["durations", "--since", "0001-01-01"], "'0001-01-01' is before 1970"),
        (["durations", "--until", "9999-12-31"], "after 9998"),
        (["durations", "--since", "2026-11-02", "--until", "2026-11-01"], "2026-11-01 is not after --since 2026-11-02"),
        (
            ["durations", "--since", "2026-11-02T10:00Z", "--until", "2026-11-02T11:00+01:00"],
            "2026-11-02 11:00:00+01:00 is not after --since 2026-11-02 10:00:00+00:00",
        ),
        (["durations", "--kind", "exports"], "'--kind': 'exports' is not one of 'export', 'removal', 'unknown'"),
        (["durations", "--cluster", "w1"], "'--cluster': there is no cluster 'w1'; there are: w1a2b3c4d, w9"),
        (["durations", "--cluster", "w9", "--cluster", "\x1b[1m\udcff\u202e"], "there are: w1a2b3c4d, w9"),
        (["duration"], f"There is no report 'duration'; there are: {', '.join(NAMES)}\n"),
        (["clusters"], f"there are: {', '.join(NAMES)} (what you mean may be: tracker clusters)\n"),
        *(
            (["durations", "--as-of", value], f"'--as-of': {told}")
            for value, told in (
                ("soon", "'soon' is no date"),
                ("2026-11-01T10:00", "'2026-11-01T10:00' has no offset"),
                ("2998-01-01T10:00+01:00", "2998-01-01 10:00:00+01:00 is in the future; the database's time is 20"),
                ("2998-01-01", "2998-01-01 has not ended yet, so nobody knows all of it: give a time with its offset"),
            )
        ),
        (["coverage", "--as-of", "2998-01-01T10:00+01:00"], "is in the future"),
        (["deadlines", "--working-days", "SEE"], "'--working-days': there is no country 'SEE'; close ones are: SE"),
        (["coverage", "--working-days", "SE"], "No such option '--working-days'"),
    ],
)
@pytest.mark.usefixtures("jobs")
def test_bad_input_is_named_with_what_there_is(run: Run, args: list[str], problem: str) -> None:
    """What cannot be is a usage error: it names the place, and the way out or the list."""
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert problem in err


def test_a_cluster_without_jobs_is_known(run: Run, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is configured, or that the database knows, is no mistake; where there is none at all, that is said."""
    assert "there is no cluster 'w1'; there is none yet" in run("durations", "--cluster", "w1")[2]
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    monkeypatch.setenv("TRACKER_API_KEY", "hush")
    stand(engine, "w2")
    for cluster in ("w1", "w2"):
        assert run("durations", "--cluster", cluster)[0] == 0
    assert "there are: w1, w2" in run("durations", "--cluster", "w3")[2]


def test_hostile_names_do_not_reach_the_terminal(run: Run, engine: sa.Engine) -> None:
    """Plain SQL can register a cluster that no setting would take: neither terminal nor spreadsheet obeys it."""
    name = "=w1"
    job(engine, "a", name)
    told = {"table": "=w1", "csv": "\n'=w1,", "json": '"=w1"'}
    for format, shown in told.items():
        code, out, _ = run("durations", "--cluster", name, "--format", format)
        assert code == 0
        assert shown in out


def test_a_long_name_is_shown_whole(run: Run, engine: sa.Engine) -> None:
    """Two clusters with the longest names there can be: the table becomes a list, and nothing is cut."""
    names = ["w" * 63, "x" * 63]
    for name in names:
        job(engine, "a", name)
    _, out, _ = run("durations", "--format", "table")
    assert max(map(len, out.splitlines())) <= 80
    assert all(name in out for name in names)


def test_help_has_an_example_and_waits_for_no_database(run: Run) -> None:
    """--help of the group and of the report show how it is used, without importing SQLAlchemy."""
    for args in ((), ("durations",)):
        script = (
            "import sys; from tracker import cli; code = cli.main(sys.argv[1:]); "
            "sys.exit(code or 'sqlalchemy' in sys.modules)"
        )
        shown = subprocess.run(
            [sys.executable, "-c", script, "report", *args, "--help"], text=True, capture_output=True, timeout=30
        )
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "Example" in shown.stdout
        assert "tracker report durations" in shown.stdout
        assert "How long jobs take" in shown.stdout


def outputs(run: Run, *args: str) -> dict[str, str]:
    """Return what each report and format prints, but for when it was made."""
    found = {}
    for name in NAMES:
        for format in ("csv", "json"):
            code, out, _ = run(name, "--format", format, *args)
            assert code == 0
            found[f"{name}.{format}"] = out
    return found


def test_a_report_of_gaps_says_what_its_times_choose(run: Run) -> None:
    """They choose gaps, not jobs by their submission."""
    assert "filters: overlapping the time from 2026-10-31 23:00" in run("gaps", "--since", "2026-11-01")[2]
    assert "filters: submitted (else registered) from 2026" in run("coverage", "--since", "2026-11-01")[2]


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("args", [(), ("--cluster", "w1a2b3c4d", "--kind", "export", "--since", "2026-11-01")])
def test_every_report_says_what_python_says(run: Run, engine: sa.Engine, name: str, args: tuple[str, ...]) -> None:
    """Its CSV and JSON have the rows of the query module, its table those columns that fit 80 columns."""
    answer(engine, job(engine, "g", reference="DSR-1"), ("never heard of", BEGAN + HOUR))
    stand(engine, "w1a2b3c4d", gap_began_at=BEGAN, gap_cause="unreachable", gap_detail="timeout")
    since = datetime(2026, 10, 31, 23, tzinfo=UTC)
    asked = Filters(since=since, clusters=("w1a2b3c4d",), kinds=(Kind.EXPORT,)) if args else Filters()
    code, out, _ = run(name, "--format", "json", *args)
    assert code == 0
    document = json.loads(out)
    as_of = datetime.fromisoformat(document["as_of"])
    with database.reading(engine) as connection:
        table = read(connection, name, asked)
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert (document["report"], document["version"], document["jobs"]) == (name, version("tracker"), table.about.jobs)
    assert table.about.jobs == (5 if args else 7)
    assert table.about.as_of - as_of < timedelta(minutes=2)
    assert len(rows) == len(document["rows"]) > 0
    moving = {"days_left", "seconds", "seconds_max", "covered_share", "longest_unobserved_seconds"}  # with the clock
    for row, told in zip(rows, document["rows"], strict=True):
        assert list(told) == list(table.columns)
        for column in set(row) - moving:
            value = row[column]
            if isinstance(value, datetime):
                value = value.isoformat(timespec="microseconds")
            elif isinstance(value, date):
                value = value.isoformat()
            assert told[column] == value, column
    code, out, err = run(name, "--format", "csv", *args)
    assert code == 0
    assert list(csv.DictReader(io.StringIO(out)))[-1].keys() == set(table.columns)
    assert len(list(csv.reader(io.StringIO(out)))) == len(rows) + 1
    assert ("7 jobs, as of 20" in err) is not bool(args)
    code, out, _ = run(name, "--format", "table", *args)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert f"tracker {version('tracker')}; filters: {'cluster' if args else 'none'}" in out


@pytest.mark.usefixtures("jobs")
def test_as_of_says_the_same_whatever_came_since(run: Run, engine: sa.Engine) -> None:
    """CSV and JSON as of a time are the same bytes for ever; a date means its end in the legal time zone."""
    then = outputs(run, "--as-of", "2026-11-09")
    assert outputs(run, "--as-of", "2026-11-09T23:00:00Z") == then
    late = job(engine, "late", at=BEGAN + 10 * DAY)
    answer(engine, late, ("waiting", BEGAN + 11 * DAY), ("never heard of", BEGAN + 12 * DAY))
    assert outputs(run, "--as-of", "2026-11-09") == then
    assert outputs(run, "--as-of", "2026-11-16") != then
    _, out, _ = run("durations", "--as-of", "2026-11-09", "--format", "table")
    assert out.startswith("From submission to done: 6 jobs, as of 2026-11-09 23:00:00+00:00\n")
    assert "What could be known then" in out


def test_working_days_are_added(run: Run, engine: sa.Engine) -> None:
    """The day stands beside the deadline, in all formats, which say whose days; the verdict and the deadline stay."""
    register(engine, "a", received_at=datetime(2026, 1, 31, 12, tzinfo=UTC), at=BEGAN)
    _, plain, _ = run("deadlines", "--format", "csv")
    _, out, err = run("deadlines", "--working-days", "SE", "--format", "csv")
    assert "; filters: none; working days of SE\n" in err
    [row] = csv.DictReader(io.StringIO(out))
    assert (row["deadline_on"], row.pop("working_day_on")) == ("2026-02-28", "2026-03-02")
    assert row == {**next(csv.DictReader(io.StringIO(plain))), "days_left": row["days_left"]}
    _, out, _ = run("deadlines", "--working-days", "se", "--format", "table")
    assert "2026-02-28  2026-03-02" in out
    assert "; filters: none; working days of SE\n" in out
    made = [json.loads(run("deadlines", *args, "--format", "json")[1]) for args in ((), ("--working-days", "de-by"))]
    assert [one["working_days"] for one in made] == [None, "DE-BY"]


@pytest.mark.usefixtures("jobs")
def test_output_is_the_same_in_a_file(run: Run, tmp_path: Path) -> None:
    """-o FILE holds what standard output would, in the format that its name tells unless another is asked for."""
    for name, format in (("a.csv", "csv"), ("a.JSON", "json"), ("a", "csv"), ("a.txt", "csv")):
        code, out, _ = run("anomalies", "--as-of", "2026-11-09", "-o", str(tmp_path / name))
        assert (code, out) == (0, "")
        expected = run("anomalies", "--as-of", "2026-11-09", "--format", format)[1]
        assert (tmp_path / name).read_text("utf-8") == expected
    run("durations", "--as-of", "2026-11-09", "--format", "table", "-o", str(tmp_path / "a.csv"))
    shown = run("durations", "--as-of", "2026-11-09", "--format", "table")[1]
    assert (tmp_path / "a.csv").read_text("utf-8") == shown
    run("gaps", "--as-of", "2026-11-09", "--format", "table", "-o", str(tmp_path / "a.txt"))
    shown = run("gaps", "--as-of", "2026-11-09", "--format", "table")[1]
    assert (tmp_path / "a.txt").read_text("utf-8") == shown != ""
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "a"))) == [
        "a",
        "a.JSON",
        "a.csv",
        "a.txt",
    ]
    assert run("durations", "-o", "-", "--as-of", "2026-11-09")[1] == run("durations", "--as-of", "2026-11-09")[1]


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
    assert code == 2
    assert f"'--output': cannot write {str(link)!r}: No space left on device" in err
    assert (old.read_text(), set(tmp_path.iterdir())) == ("as it was", before)
    assert run("coverage", "-o", str(link))[0] == 0
    assert link.is_symlink()
    assert old.read_text().startswith("cluster,jid,")
    assert old.stat().st_mode & 0o777 == 0o640
    assert set(tmp_path.iterdir()) == before


def test_output_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    """A folder that is not there, or that stands where the file should be: where, why, and the way out."""
    for place in (tmp_path / "not there" / "x.csv", tmp_path, Path("/dev/full")):
        for report in (["durations"], ["deadlines", "--format", "html"], ["--format", "html"]):
            code, out, err = run(*report, "-o", str(place))
            assert (code, out) == (2, "")
            assert f"'--output': cannot write {str(place)!r}: " in err
            assert "name a file in a folder that is there" in err


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize(
    "report", [["durations"], ["gaps", "--format", "table"], ["gaps", "--format", "html"], ["--format", "html"]]
)
@pytest.mark.usefixtures("jobs")
def test_output_spares_the_database(run: Run, tmp_path: Path, report: list[str]) -> None:
    """Its file, by whatever name, and those that SQLite keeps beside it are never written over."""
    database = tmp_path / "tracker.db"
    (tmp_path / "link.csv").symlink_to(database)
    os.link(database, tmp_path / "hard.csv")
    before, there = database.read_bytes(), set(tmp_path.iterdir())
    beside = [f"tracker.db{ending}" for ending in ("-wal", "-shm", "-journal")]
    for name in ("tracker.db", "link.csv", "hard.csv", *beside):
        code, out, err = run(*report, "-o", name)
        assert (code, out) == (2, "")
        assert f"'--output': {name!r} belongs to the database, and is not replaced: name another file" in err
    assert (database.read_bytes(), set(tmp_path.iterdir())) == (before, there)


def test_a_file_without_permission_is_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be written to is not replaced either, though its folder would allow it."""
    old = tmp_path / "old.csv"
    old.write_text("as it was")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the test may run as root, who may do anything
    code, out, err = run("durations", "-o", str(old))
    assert (code, out, old.read_text()) == (2, "", "as it was")
    assert f"cannot write {str(old)!r}: Permission denied" in err


@pytest.mark.parametrize(
    ("url", "revision", "code", "problem"),
    [
        ("sqlite:///none.db", None, 78, "there is no database at none.db: make it with `tracker db upgrade`"),
        ("sqlite:///tracker.db", "0000", 78, "the database has revision 0000, this version needs"),
        ("sqlite:///tracker.db", "9999", 78, "newer than this version's: install a newer tracker"),
        ("sqlite:///text.db", None, 78, "the file is no SQLite database, or is damaged"),
        ("postgresql+psycopg://nobody@127.0.0.1:1/none", None, 69, "the database is not available"),
    ],
)
@pytest.mark.parametrize(
    "args",
    [
        ["report", "durations", "-o", "old.csv"],
        ["report", "gaps", "--format", "html", "-o", "old.csv"],
        ["report", "--format", "html", "-o", "old.csv"],
        ["reconcile", "old.csv"],
    ],
)
def test_a_database_that_cannot_be_read_is_named_and_no_file_is_lost(
    sqlite_template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    url: str,
    revision: str | None,
    code: int,
    problem: str,
) -> None:
    """One that is missing, older, newer, none at all or does not answer: where, the way out, and its exit code."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    (tmp_path / "old.csv").write_text("jid\n")
    (tmp_path / "text.db").write_text("not a database\n" * 100)
    if revision is not None:
        shutil.copy(sqlite_template, tmp_path / "tracker.db")
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE tracker_alembic_version SET version_num = :found"), {"found": revision})
        engine.dispose()
    before = set(tmp_path.iterdir())
    assert cli.main(args) == code
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert problem in err
    assert ((tmp_path / "old.csv").read_text(), set(tmp_path.iterdir())) == ("jid\n", before)


def test_output_to_what_is_no_file_is_written_to_it(run: Run, tmp_path: Path) -> None:
    """A pipe, as /dev/null, is not replaced by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("durations", "-o", str(pipe))[0] == 0
        assert os.read(reader, 100).startswith(b"cluster,kind,jobs")
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_output_goes_into_a_pipe_without_a_name(run: Run) -> None:
    """So does a shell's >(gzip), or /dev/stdout where that is a pipe: what the name resolves to is no path."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        for report in (["durations"], ["gaps", "--format", "json"], ["--format", "html"]):
            assert run(*report, "-o", f"/dev/fd/{writer}")[:2] == (0, "")
            assert len(os.read(reader, 65_536)) > 100
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("format", ["table", "csv", "json", "html"])
@pytest.mark.usefixtures("jobs")
def test_a_full_disk_below_standard_output_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """Whatever the format: the place, why, and the exit status that says to try again; not that TMPDIR is full."""
    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        code, _, err = run("statuses", "--format", format)
    assert (code, err.splitlines()[-1]) == (75, "tracker: error: cannot read or write: No space left on device")


def test_csv_is_streamed(run: Run, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Memory does not grow with the rows; a table shows the first ones, and says that there are more."""
    jobs = 10_000
    with database.writing(engine) as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (cluster, jid, registered_at)"
            f" WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {jobs})"
            " SELECT 'w1', 'many' || CAST(n AS VARCHAR), '2026-11-02 09:00:00.000000' FROM s"
        )
    monkeypatch.setattr("tracker.reports.tables._BATCH", 100)
    run("deadlines", "--format", "csv")  # what is imported and cached
    tracemalloc.start()
    try:
        assert run("deadlines", "-o", str(tmp_path / "many.csv"))[0] == 0
        assert tracemalloc.get_traced_memory()[1] < 100 * jobs
    finally:
        tracemalloc.stop()
    assert len((tmp_path / "many.csv").read_text().splitlines()) == jobs + 1
    _, out, _ = run("deadlines", "--format", "table")
    assert sum("many" in line for line in out.splitlines()) == 200
    assert out.endswith("\n\nThese are the first 200 of 10,000 rows; --format csv has all.\n")


def test_a_table_begins_with_what_a_person_looks_for(
    run: Run, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not settled before what is, and the newest first: also where there is no room for all of it."""
    for number in range(4):  # the newest are open
        at = BEGAN + number * 31 * DAY - 365 * DAY
        its = job(engine, f"j{number}", at=at, reference=f"R{number}")
        answer(engine, its, ("surprise", at + HOUR), *([("done", at + DAY)] if number < 2 else []))
    with database.writing(engine) as connection:
        for number in range(3):
            at = BEGAN + number * DAY
            gap = {"cluster": "w1a2b3c4d", "began_at": at, "ended_at": at + HOUR, "cause": "rate_limited"}
            connection.execute(sa.insert(Gap).values(**gap))
    stand(engine, "w1a2b3c4d", gap_began_at=BEGAN - 9 * DAY, gap_cause="unreachable")

    monkeypatch.setenv("COLUMNS", "200")

    def column(name: str, place: int) -> list[str]:
        _, out, _ = run(name, "--format", "table")
        return [line.split()[place] for line in out.split("\n\n")[1].splitlines()[1:]]

    for limit in (200, 3):
        monkeypatch.setattr("tracker.cli.report.ROWS", limit)
        assert column("deadlines", 0) == ["j2", "j3", "j1", "j0"][:limit]
        assert column("requests", 0) == ["R2", "R3", "R1", "R0"][:limit]
        assert column("anomalies", 2) == ["j3", "j2", "j1", "j0"][:limit]
        assert column("monthly", 0) == ["2026-02", "2026-01", "2025-12", "2025-11"][:limit]
        assert column("gaps", 1) == ["2026-10-24", "2026-11-04", "2026-11-03", "2026-11-02"][:limit]
