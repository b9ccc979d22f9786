"""``tracker report durations`` as a person and a program read it, on both databases."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import pytest
import sqlalchemy as sa

from tests.history import answer, record, register, stand
from tracker import cli, database, status
from tracker.reports.durations import Row, durations

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


def job(engine: sa.Engine, jid: str, cluster: str = "w1a2b3c4d", kind: str = "export", at: datetime = BEGAN) -> int:
    return register(engine, jid, cluster, at=at, kind=kind, submitted_at=at)


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
    assert lines[0].startswith("From submission to done: 5 jobs, as of 20")
    assert lines[0].endswith("+00:00")
    assert lines[1:4] == [
        f"tracker {version('tracker')}; filters: none",
        "A job that is not done counts as at least as old as when last seen not done.",
        "Withdrawn, and left out: 1.",
    ]
    assert [line.split() for line in lines[5:10]] == [
        ["cluster", "kind", "jobs", "done", "open", "failed", "quantile", "at", "least", "at", "most"],
        ["w1a2b3c4d", "export", "4", "2", "1", "1", "median", "6d", "6d", "2h"],
        ["p90", "not", "reached", "not", "reached"],
        ["p95", "not", "reached", "not", "reached"],
        ["max", "not", "reached", "not", "reached"],
    ]
    assert lines[-4].split() == ["all", "all", "5", "3", "1", "1", "median", "5d", "5d", "2h"]


def flat(row: Row) -> dict[str, object]:
    counts = ("cluster", "kind", "jobs", "done", "open", "failed", "lost", "attested", "withdrawn")
    found: dict[str, object] = {name: getattr(row, name) for name in counts}
    for name in ("median", "p90", "p95", "max"):
        found[f"{name}_seconds_min"] = getattr(row, name).seconds_min
        found[f"{name}_seconds_max"] = getattr(row, name).seconds_max
    return found


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
        "jobs": 5,
    }
    code, out, err = run("durations", "--format", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert rows == [{name: "" if value is None else str(value) for name, value in row.items()} for row in expected]
    assert rows[-1]["median_seconds_max"] == str(5 * 86_400 + 3601.0)
    assert "5 jobs, as of 20" in err
    assert f"tracker {version('tracker')}; filters: none" in err


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
    assert "5 jobs, as of" in out
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
    """Where no job is like that, the exit code is 0, messages say so, and what comes out is still CSV or JSON."""
    code, out, err = run("durations", "--format", format)
    assert code == 0
    assert "Nothing to report" in err
    match format:
        case "table":
            assert out == ""
            assert "0 jobs, as of" in err
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
        (["duration"], "There is no report 'duration'; there are: durations"),
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
    name = "=w\u202e1"
    job(engine, "a", name)
    told = {"table": "=w\ufffd1", "csv": "\n'=w\ufffd1,", "json": '"=w\\u202e1"'}
    for format, shown in told.items():
        code, out, err = run("durations", "--cluster", name, "--format", format)
        assert code == 0
        assert shown in out
        assert "\u202e" not in err


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
