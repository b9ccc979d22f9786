"""``tracker jobs``, ``show``, ``clusters`` and ``status`` as a person and a program read them, on both databases."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests import history
from tests.history import answer, change, register, stand
from tracker import cadence, cli, database, deadline, status
from tracker.audit.seal import seal
from tracker.models import JOBS, Delivery, Gap, Seal, Source, Worker
from tracker.reports import jobs as queries
from tracker.reports import words
from tracker.status import Anomaly, Cause, State

JID = "ca24b4e2-34ab-406a-a4db-b30b0247837a"
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
HOSTILE = "=cmd|' /C calc'!A0 <b>"  # what the CHECKs let through

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line in 80 columns, and returns exit code, output and messages."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args: str) -> tuple[int, str, str]:
        code = cli.main(args)
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err
        assert "\u202e" not in out + err
        return code, out, err

    return run


@pytest.fixture
def now(engine: sa.Engine) -> datetime:
    with database.reading(engine) as connection:
        return database.now(connection)


def table(run: Run, *args: str) -> list[dict[str, str]]:
    code, out, _ = run(*args, "--format", "csv")
    assert code == 0
    return list(csv.DictReader(io.StringIO(out)))


def jids(run: Run, *args: str) -> list[str]:
    return [row["jid"] for row in table(run, "jobs", *args)]


def records(text: str) -> dict[str, str]:
    """Return a table of one record, a line a cell, as heading -> text, folded lines put together again."""
    found: dict[str, str] = {}
    lines = text.splitlines()
    left = next(len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines if "  " in line)
    for line in lines:
        if line[:left].strip():
            heading = line[:left].strip()
            found[heading] = line[left:].strip()
        elif line.strip():
            found[heading] += " " + line.strip()
    return found


def at(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(" ", "seconds")


@pytest.fixture
def many(engine: sa.Engine, now: datetime) -> None:
    """A job in each state and with each verdict; the jid says which."""
    long_ago = now - 40 * DAY
    answer(engine, register(engine, "met", at=long_ago), ("done", long_ago + DAY))
    answer(engine, register(engine, "missed", at=long_ago), ("running", now - DAY), ("done", now - HOUR))
    answer(engine, register(engine, "between", at=long_ago), ("waiting", long_ago + DAY), ("done", now - 2 * HOUR))
    answer(engine, register(engine, "overdue", at=long_ago), ("running", now - DAY))
    answer(engine, register(engine, "unseen", at=long_ago + DAY), ("waiting", long_ago + 2 * DAY))
    answer(engine, register(engine, "lost", at=now - 3 * DAY), ("not_found", now - DAY), ("not_found", now - HOUR))
    answer(engine, register(engine, "failed", "w2", at=now - 4 * DAY, kind="export"), ("error", now - DAY))
    register(engine, "new", "w2", at=now - HOUR, kind="removal", reference="DSR-1")
    closed = register(engine, "closed", at=now - 2 * DAY, reference="DSR-1")
    history.record(engine, closed, lambda job, past: status.withdraw(job, now - 3 * HOUR, "eve", "a test"))


# jobs


@pytest.mark.usefixtures("many")
def test_jobs_come_most_urgent_first(run: Run) -> None:
    unsettled = ["overdue", "unseen", "failed", "lost", "new"]  # the nearest deadline first
    assert jids(run) == [*unsettled, "missed", "between", "closed", "met"]  # the last to end first


@pytest.mark.usefixtures("many")
def test_each_filter_of_jobs_narrows(run: Run) -> None:
    assert jids(run, "--state", "lost", "--state", "failed") == ["failed", "lost"]
    assert jids(run, "--status", "waiting") == ["unseen"]
    assert jids(run, "--cluster", "w2") == ["failed", "new"]
    assert jids(run, "--kind", "export") == ["failed"]
    assert jids(run, "--reference", "DSR-1") == ["new", "closed"]
    assert jids(run, "--reference", "DSR-1", "--cluster", "w2") == ["new"]
    assert set(jids(run, "--past-deadline")) == {"overdue", "unseen", "missed", "between"}
    assert jids(run, "--limit", "2") == ["overdue", "unseen"]


def test_a_lost_job_is_past_its_deadline_only_when_it_is(engine: sa.Engine, run: Run, now: datetime) -> None:
    for jid, since in (("late", 40 * DAY), ("not-yet", 3 * DAY)):
        answer(engine, register(engine, jid, at=now - since), ("not_found", now - DAY), ("not_found", now - HOUR))
    assert jids(run, "--past-deadline") == ["late"]


def test_no_filter_takes_what_no_database_can_hold(engine: sa.Engine, run: Run) -> None:
    code, _, err = run("jobs", "--reference", "\udcff")
    assert code == 2
    assert "--reference has a control character, or bytes that are not UTF-8" in err


def test_csv_and_json_have_every_column_of_the_view_and_plain_values(
    engine: sa.Engine, run: Run, now: datetime
) -> None:
    submitted_at = now - 2 * DAY
    job_id = register(engine, JID, at=now - DAY, submitted_at=submitted_at, reference="=1+1")
    answer(engine, job_id, ("waiting", now - HOUR))
    [row] = table(run, "jobs")
    with database.reading(engine) as connection:
        assert list(row) == list(connection.execute(sa.text("SELECT * FROM report_jobs")).keys())
    assert row["submitted_at"] == submitted_at.isoformat(timespec="microseconds")
    assert row["reference"] == "'=1+1"
    assert 2 * 86400 <= float(row["age_seconds"]) < 2 * 86400 + 3600
    [read] = json.loads(run("jobs", "--format", "json")[1])
    assert (read["reference"], read["status_by"], read["polls"]) == ("=1+1", row["status_by"], 1)
    assert read["ended_by"] is None


def test_a_table_of_jobs_fits_80_columns_with_the_longest_words(engine: sa.Engine, run: Run, now: datetime) -> None:
    for number, cluster in enumerate(("w1a2b3c4d", "w9z8y7x6w")):
        for said in ("waiting", "not_found", "x" * 255, HOSTILE, "x y " * 60):
            jid = f"{JID[:-1]}{len(said) % 10}"
            job_id = register(engine, f"{jid[:-4]}{len(said):04}", cluster, at=now - (40 + number) * DAY)
            answer(engine, job_id, (said, now - 39 * DAY))
            if said == "waiting":
                history.record(engine, job_id, lambda job, past: status.withdraw(job, now, "eve", "x"))
    code, out, err = run("jobs", "--format", "table")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["cluster", "jid", "state", "verdict"]
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith(("w1a2b3c4d ", "w9z8y7x6w ")) for line in lines) == 10
    assert "deadline_on" in err
    code, out, _ = run("jobs", "--format", "table", "--cluster", "w1a2b3c4d", "--state", "withdrawn")
    assert out.splitlines()[0].split()[:4] == ["jid", "state", "verdict", "deadline"]


def test_a_table_stops_at_its_limit_and_says_so_and_csv_does_not(engine: sa.Engine, run: Run) -> None:
    with database.writing(engine) as connection:
        connection.execute(sa.insert(JOBS), [{"cluster": "w1", "jid": f"j{n}"} for n in range(51)])
    _, out, err = run("jobs", "--format", "table")
    assert len(out.splitlines()) == 1 + 50
    assert "There are more than these 50" in err
    _, out, err = run("jobs", "--format", "table", "--limit", "51")
    assert (len(out.splitlines()), err.count("more")) == (1 + 51, 0)
    _, out, err = run("jobs", "--format", "csv")
    assert (len(out.splitlines()), err) == (1 + 51, "")
    _, out, err = run("jobs", "--format", "json", "--limit", "7")
    assert len(json.loads(out)) == 7
    assert "more than these 7" in err


def test_any_number_of_jobs_is_streamed(
    engine: sa.Engine, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Memory does not grow with the rows."""
    jobs = 8_000
    with database.writing(engine) as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (cluster, jid, registered_at)"
            f" WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {jobs})"
            " SELECT 'w1', 'many' || CAST(n AS VARCHAR), '2026-11-02 09:00:00.000000' FROM s"
        )
    monkeypatch.setattr(queries, "_BATCH", 20)
    run("jobs", "--format", "csv", "--limit", "1")  # what is imported and cached
    with (tmp_path / "many").open("w") as file, redirect_stdout(file):
        tracemalloc.start()
        try:
            assert cli.main(["jobs", "--format", "csv"]) == 0
            assert tracemalloc.get_traced_memory()[1] < 100 * jobs
        finally:
            tracemalloc.stop()
    assert (tmp_path / "many").read_text().count("many") == jobs


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_full_disk_is_an_error_in_one_line(url: str, engine: sa.Engine, tmp_path: Path) -> None:
    """Below the output, and below the temporary file in which the rows wait; half a table never comes out."""
    with database.writing(engine) as connection:
        connection.execute(sa.insert(JOBS), [{"cluster": "w1", "jid": f"j{n}"} for n in range(500)])
    tracker = Path(sys.executable).with_name("tracker")
    environment = os.environ | {"TRACKER_DATABASE_URL": url}

    def fails(command: str, limit: int | None = None) -> tuple[int, str, str]:
        def limited() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        ran = subprocess.run(
            ["sh", "-c", command.replace("tracker", str(tracker), 1)],
            env=environment,
            preexec_fn=limited,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return ran.returncode, ran.stdout, ran.stderr

    code, _, err = fails("tracker jobs --format csv > /dev/full")
    assert (code, err) == (75, "tracker: error: cannot read or write: No space left on device\n")
    code, out, err = fails("tracker jobs --format csv", 40_000)
    assert (code, out) == (1, "")
    assert err == (
        "tracker: error: cannot keep the rows in a temporary file: File too large; make room, or name another folder "
        "in TMPDIR\n"
    )


def test_no_job_is_said_to_be_none(engine: sa.Engine, run: Run) -> None:
    assert run("jobs", "--format", "table") == (0, "", "No job is like that.\n")
    assert run("jobs", "--format", "json") == (0, "[]\n", "")


# show


def test_show_tells_all_of_a_job(engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    began = (now - 20 * DAY).replace(microsecond=0)
    job_id = register(
        engine, JID, at=began, submitted_at=began - HOUR, received_at=began - DAY, kind="export", reference="DSR-1"
    )
    seen = [began + HOUR, began + DAY, began + 2 * DAY, began + 3 * DAY]
    due_at = now + 2 * HOUR + MINUTE
    answer(engine, job_id, *zip(["waiting", "running", "waiting", "waiting"], seen, strict=True), due_at=due_at)
    code, out, err = run("show", JID, "--format", "table")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    title, _, rest = out.partition("\n")
    facts, _, timeline = rest.partition("\nTimeline\n")
    told = records(facts)
    assert title == f"Job {JID}"
    assert told["kind"] == "export (declared)"
    assert told["reference"] == "DSR-1 (declared)"
    assert told["request received"] == f"{at(began - DAY)} (declared)"
    assert told["submitted"] == f"{at(began - HOUR)} (declared)"
    assert told["registered"] == f"{at(began)} by alice"
    second = timedelta(seconds=1)
    assert told["status"] == f"waiting; began between {at(seen[1])} and {at(seen[2] + second)}; 2 answers in a row"
    assert told["last seen"] == at(seen[3])
    assert told["verdict"] == "pending: not done, and the deadline is ahead"
    assert told["next poll"].startswith(f"{at(due_at)}, in 2h")
    assert told["polls"] == "4"
    assert [line.split() for line in timeline.splitlines()][:2] == [
        ["#", "not", "before", "no", "later", "than", "change", "note"],
        f"0 {began:%Y-%m-%d} registered by alice".split(),
    ]
    monkeypatch.setenv("COLUMNS", "200")
    timeline = run("show", JID, "--format", "table")[1].partition("\nTimeline\n")[2]
    assert [line.split("  ", 1)[1].strip() for line in timeline.splitlines()[2:]] == [
        f"{at(began - HOUR)} (declared)  {at(seen[0] + second)}  waiting",
        f"{at(seen[0])}             {at(seen[1] + second)}  waiting -> running",
        f"{at(seen[1])}             {at(seen[2] + second)}  running -> waiting  backwards: an earlier status after a "
        "later one",
    ]


def test_the_bounds_of_each_change_are_in_csv_and_json(engine: sa.Engine, run: Run, now: datetime) -> None:
    sent = [now - 3 * HOUR, now - HOUR]
    job_id = register(engine, JID, at=now - DAY)
    answer(engine, job_id, ("waiting", sent[0]), ("done", sent[1]))
    _, first, second = table(run, "show", JID)
    assert (first["last_seen_at"], first["to_status"]) == ("", "waiting")
    assert second["last_seen_at"] == sent[0].isoformat(timespec="microseconds")
    assert second["observed_at"] == (sent[1] + timedelta(seconds=1)).isoformat(timespec="microseconds")
    read = json.loads(run("show", JID, "--format", "json")[1])
    assert [change["observed_at"] for change in read["timeline"][1:]] == [first["observed_at"], second["observed_at"]]
    assert read["job"]["ended_after"] == second["last_seen_at"]
    assert read["job"]["verdict_meaning"] == (
        "Elevate reported the job done in time; that the person was informed is not shown"
    )
    assert read["job"]["next_poll_why"] == "none: an ended job is not polled"


@pytest.mark.usefixtures("many")
def test_show_says_no_more_than_the_verdict_does(run: Run) -> None:
    meanings = {
        "met": "met: Elevate reported the job done in time; that the person was informed is not shown",
        "missed": "missed: it was seen not done at or after the deadline, and done later",
        "between": "undecidable: the deadline lies between the bounds of its end",
        "overdue": "overdue: it was seen not done at or after the deadline",
        "unseen": "undecidable: the deadline is past, and the job was not seen since",
        "lost": "undecidable: the job is lost: nobody can say whether it was done",
        "failed": "pending: not done, and the deadline is ahead",
        "closed": "withdrawn: an operator closed it",
    }
    for jid, meaning in meanings.items():
        assert records(run("show", jid, "--format", "table")[1].partition("\n")[2])["verdict"] == meaning


def test_every_verdict_and_anomaly_has_its_words() -> None:
    assert {words.verdict_meaning(verdict, state) for verdict in deadline.Verdict for state in State}
    assert set(words.ANOMALIES) == set(Anomaly)


def test_show_gives_an_operators_reason_and_what_they_claim(
    engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    job_id = register(engine, "a", at=now - DAY)
    claimed = now - HOUR
    history.record(engine, job_id, lambda job, past: status.attest(job, claimed, now, "eve", "saw the archive"))
    _, out, _ = run("show", "a", "--format", "table")
    facts, _, timeline = out.partition("\nTimeline\n")
    assert records(facts.partition("\n")[2])["ended"] == f"by {at(claimed)}, as an operator says"
    assert timeline.splitlines()[-1].split("  ", 1)[1].strip() == (
        f"{at(now)}  attested (was open)  by eve: saw the archive; done by {at(claimed)} (declared)"
    )


def test_show_marks_the_row_that_proves_a_job_overdue(
    engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing changed: it was seen, still not done, after its deadline."""
    job_id = register(engine, "a", at=now - 3 * DAY)
    answer(engine, job_id, ("waiting", now - 2 * DAY))
    said = status.Answer("waiting", now - HOUR, now - HOUR)
    rule = status.LostRule()
    history.record(engine, job_id, lambda job, past: status.decide(job, said, rule, past, now - DAY))
    assert " ".join(timeline(run, monkeypatch)[-1]).endswith("still waiting first seen not done after its deadline")


def gap(engine: sa.Engine, began_at: datetime, ended_at: datetime, cluster: str = "w1", detail: str = "") -> None:
    values = {"cluster": cluster, "began_at": began_at, "ended_at": ended_at, "cause": Cause.UNREACHABLE}
    with database.writing(engine) as connection:
        connection.execute(sa.insert(Gap).values(values | {"detail": detail or None}))


def timeline(run: Run, monkeypatch: pytest.MonkeyPatch, width: str = "200") -> list[list[str]]:
    monkeypatch.setenv("COLUMNS", width)
    code, out, _ = run("show", "a", "--format", "table")
    assert code == 0
    assert max(map(len, out.splitlines())) <= int(width)
    return [line.split() for line in out.partition("\nTimeline\n")[2].splitlines()]


def test_show_marks_the_gaps_that_explain_a_wide_bound(
    engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below each change, with how much of its bounds each explains; of a first status these begin with submission."""
    began = (now - 20 * DAY).replace(microsecond=0)
    job_id = register(engine, "a", at=began, submitted_at=began - HOUR)
    answer(engine, job_id, ("waiting", began + 2 * HOUR), ("running", began + 12 * HOUR), ("done", began + 13 * HOUR))
    gap(engine, began - 3 * HOUR, began - HOUR)  # ends as the bounds begin
    gap(engine, began - 2 * HOUR, began, detail="connect_timeout")  # half of it before the submission
    gap(engine, began + 3 * HOUR, began + 10 * HOUR + 20 * MINUTE, detail="http_503")
    gap(engine, began + 3 * HOUR, began + 12 * HOUR, "w2")
    shown = timeline(run, monkeypatch)
    marked = [(shown[n - 1][0], " ".join(line)) for n, line in enumerate(shown) if "explains" in line]
    assert marked == [
        (
            "1",
            f"{at(began - 2 * HOUR)} {at(began)} gap explains 1h of these 3h 1m (unreachable: connect_timeout)",
        ),
        (
            "2",
            f"{at(began + 3 * HOUR)} {at(began + 10 * HOUR + 20 * MINUTE)} gap explains 7h 20m of these 10h 1m "
            "(unreachable: http_503)",
        ),
    ]
    told = [f"{row['gaps']} {row['gap_seconds']}" for row in table(run, "show", "a")]
    assert told == ["0 0.0", "1 3600.0", "1 26400.0", "0 0.0"]
    read = json.loads(run("show", "a", "--format", "json")[1])
    assert [[one["detail"] for one in change["gaps"]] for change in read["timeline"]] == [
        [],
        ["connect_timeout"],
        ["http_503"],
        [],
    ]
    assert read["timeline"][2]["gap_seconds"] == 26_400
    assert read["timeline"][2]["gaps"][0]["began_at"] == (began + 3 * HOUR).isoformat(timespec="microseconds")
    assert read["job"]["open_gap"] is None


def test_without_a_submission_the_first_bounds_begin_with_registration(
    engine: sa.Engine, run: Run, now: datetime
) -> None:
    answer(engine, register(engine, "a", at=now - 3 * HOUR), ("waiting", now - 2 * HOUR))
    gap(engine, now - 4 * HOUR, now - 2 * HOUR - MINUTE)
    assert [row["gap_seconds"] for row in table(run, "show", "a")] == ["0.0", str(59 * 60.0)]


def test_many_gaps_are_one_line_and_what_overlaps_counts_once(
    engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = (now - 20 * DAY).replace(microsecond=0)
    answer(engine, register(engine, "a", at=began), ("waiting", began + HOUR), ("done", began + 100 * HOUR))
    for n in range(90):
        gap(engine, began + (n + 2) * HOUR, began + (n + 2) * HOUR + 2 * (HOUR if n == 40 else MINUTE))
    shown = timeline(run, monkeypatch)
    assert [" ".join(line) for line in shown if "gap" in " ".join(line)] == [
        f"{at(began + 2 * HOUR)} {at(began + 91 * HOUR + 2 * MINUTE)} 90 gaps explain 4h 56m of these 4d 4h; "
        f"the longest 2h, from {at(began + 42 * HOUR)} (unreachable)"
    ]
    assert [(row["gaps"], row["gap_seconds"]) for row in table(run, "show", "a")][2] == ("90", str(296 * 60.0))
    assert len(json.loads(run("show", "a", "--format", "json")[1])["timeline"][2]["gaps"]) == 90
    assert len(timeline(run, monkeypatch, "80")) < 20


@pytest.mark.parametrize("unsettled", [True, False])
def test_show_says_that_nothing_can_be_observed_now(
    engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch, unsettled: bool
) -> None:
    """Of an open job; an ended one is not looked for. What another daemon saw in an open gap has it in its bounds."""
    began = (now - 20 * DAY).replace(microsecond=0)
    stand(engine, "w1", gap_began_at=began + 2 * HOUR, gap_cause=Cause.KEY_REFUSED, gap_detail="http_401")
    said = "running" if unsettled else "done"
    answer(engine, register(engine, "a", at=began), ("waiting", began + HOUR), (said, began + 3 * HOUR))
    shown = [" ".join(line) for line in timeline(run, monkeypatch) if "still" in line]
    assert shown == [
        f"{at(began + 2 * HOUR)} still open gap explains 1h of these 2h 1m (key_refused: http_401)",
        *[f"{at(began + 2 * HOUR)} still open gap nothing could be observed since (key_refused: http_401)"] * unsettled,
    ]
    open_gap = json.loads(run("show", "a", "--format", "json")[1])["job"]["open_gap"]
    assert (open_gap and open_gap["cause"]) == ("key_refused" if unsettled else None)


def test_what_an_operator_did_has_no_bounds_to_explain(engine: sa.Engine, run: Run, now: datetime) -> None:
    job_id = register(engine, "a", at=now - DAY)
    gap(engine, now - 2 * DAY, now - HOUR)
    history.record(engine, job_id, lambda job, past: status.withdraw(job, now - 2 * HOUR, "eve", "x"))
    assert [row["gaps"] for row in table(run, "show", "a")] == ["0", "0"]


def test_show_of_hostile_text_is_plain_and_fits(engine: sa.Engine, run: Run, now: datetime) -> None:
    job_id = register(engine, HOSTILE, at=now - DAY, reference=HOSTILE)
    answer(engine, job_id, (HOSTILE, now - HOUR))
    change(engine, job_id, failures=1, last_error=HOSTILE)
    stand(engine, "w1", pause_cause=Cause.PAUSED, gap_began_at=now, gap_cause=Cause.PAUSED, gap_detail=HOSTILE)
    for command in (["show", HOSTILE], ["jobs"], ["clusters"]):
        for format in ("table", "csv", "json"):
            code, out, _ = run(*command, "--format", format)  # `run` looks for what must not be there
            assert code == 0
            if format == "table":
                assert max(map(len, out.splitlines())) <= 80
    assert run("status")[0] == 1


def test_a_jid_of_two_clusters_is_refused_with_both_named(engine: sa.Engine, run: Run) -> None:
    for name in ("w1", "w2"):
        register(engine, "a", name)
    code, _, err = run("show", "a")
    assert (code, err.endswith("--cluster: w1, w2\n")) == (1, True)
    assert [row["cluster"] for row in table(run, "show", "a", "--cluster", "w2")] == ["w2"]
    assert run("show", "b")[0] == 1


def why(run: Run, jid: str = "a") -> str:
    return str(json.loads(run("show", jid, "--format", "json")[1])["job"]["next_poll_why"])


def test_the_next_poll_says_why(engine: sa.Engine, run: Run, now: datetime) -> None:
    job_id = register(engine, "a", at=now - 20 * DAY)
    assert why(run) == cadence.Why.FIRST
    answer(engine, job_id, ("not_found", now - 20 * DAY + MINUTE))
    assert why(run) == cadence.Why.NOT_FOUND
    answer(engine, job_id, ("waiting", now - 19 * DAY))
    assert why(run) == cadence.Why.NIGHT
    answer(engine, job_id, ("waiting", now - 3 * DAY))
    assert why(run) == cadence.Why.ARCHIVED
    answer(engine, job_id, ("running", now - 2 * DAY))
    assert why(run) == cadence.Why.RUNNING
    change(engine, job_id, failures=3, last_error="Unavailable http_503")
    assert why(run) == "3 errors in a row: waits grow"
    stand(engine, "w1", pause_cause=Cause.KEY_REFUSED, paused_until=now)
    paused = f"but cluster w1 is paused: key_refused until {at(now)}"
    assert why(run) == f"3 errors in a row: waits grow; {paused}"
    change(engine, job_id, failures=0)
    history.record(engine, job_id, lambda job, past: status.withdraw(job, now, "eve", "x"))
    assert why(run) == "none: an ended job is not polled"
    history.record(engine, job_id, lambda job, past: status.reopen(job, now, "eve", "x"), due_at=now)
    assert why(run) == f"{cadence.Why.REOPENED}; {paused}"


def test_the_reason_goes_by_the_clusters_own_calendar(
    engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As configured here; else as the last daemon had it; else by the defaults."""
    answer(engine, register(engine, "a", at=now - 4 * DAY), ("waiting", now - HOUR))
    assert why(run) == cadence.Why.NIGHT
    values = {"cluster": "w1", "base_url": "http://127.0.0.1", "path": "/", "lost_after_polls": 5, "version": "1"}
    values |= {"lost_after_seconds": 1, "legal_timezone": "UTC", "recorded_at": now, "timezone": "Nowhere/Else"}
    with database.writing(engine) as connection:
        for days in (5, 2):
            connection.execute(sa.insert(Source).values(**values, archive_days=days))
    assert why(run) == cadence.Why.ARCHIVED
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    monkeypatch.setenv("TRACKER_ARCHIVE_DAYS", "9")
    assert why(run) == cadence.Why.NIGHT


def test_a_job_that_plain_sql_registered_is_shown_before_its_first_poll(engine: sa.Engine, run: Run) -> None:
    with database.writing(engine) as connection:
        connection.execute(sa.text("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')"))
    code, out, _ = run("show", "a", "--format", "table")
    told = records(out.partition("\n")[2].partition("\nTimeline\n")[0])
    assert code == 0
    assert (told["status"], told["deadline"]) == ("not answered yet", "computed at the first answer")


# clusters


def test_clusters_has_a_row_for_each_that_is_configured_or_in_the_database(
    engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKER_CLUSTER", "w0")
    for jid, since, due_at in (("a", 40, now - 2 * HOUR), ("b", 20, now - 61 * timedelta(seconds=1)), ("c", 10, now)):
        change(engine, register(engine, jid, at=now - since * DAY), due_at=due_at, leased_by="w", leased_until=now)
    answer(engine, register(engine, "d", at=now - 30 * DAY), ("done", now))
    gap = {"gap_began_at": now - HOUR, "gap_cause": Cause.UNREACHABLE, "gap_detail": "timeout"}
    stand(engine, "w1", answered_at=now - DAY, pause_cause=Cause.UNREACHABLE, paused_until=now, **gap)
    stand(engine, "w2")
    rows = json.loads(run("clusters", "--format", "json")[1])
    assert [(row["cluster"], row["configured"], row["open"]) for row in rows] == [
        ("w0", True, 0),
        ("w1", False, 3),
        ("w2", False, 0),
    ]
    iso = {"sep": "T", "timespec": "microseconds"}
    [b] = [row["deadline_on"] for row in table(run, "jobs") if row["jid"] == "b"]
    assert rows[1] == {
        "cluster": "w1",
        "configured": False,
        "open": 3,
        "polls_behind": 2,
        "behind_since": (now - 2 * HOUR).isoformat(**iso),
        "answered_at": (now - DAY).isoformat(**iso),
        "paused_until": now.isoformat(**iso),
        "pause_cause": "unreachable",
        "gap_began_at": (now - HOUR).isoformat(**iso),
        "gap_cause": "unreachable",
        "gap_detail": "timeout",
        "next_deadline_on": b,
    }
    code, out, _ = run("clusters", "--format", "table")
    lines = out.splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 80
    assert " ".join(lines[0].split() + lines[1].split()) == "polls cluster open behind last answer paused gap"


def test_no_cluster_at_all_is_said(engine: sa.Engine, run: Run) -> None:
    code, out, err = run("clusters", "--format", "table")
    assert (code, out) == (0, "")
    assert err == "No cluster is configured, and none is in the database.\n"


# status


def daemon(
    engine: sa.Engine,
    worker: str,
    beat_at: datetime,
    stopped_at: datetime | None = None,
    started_at: datetime | None = None,
) -> None:
    values = {"host": f"host-{worker}", "pid": 1, "version": "1", "stopped_at": stopped_at}
    values["started_at"] = started_at or beat_at
    with database.writing(engine) as connection:
        connection.execute(sa.insert(Worker).values(worker=worker, beat_at=beat_at, **values))


def screen(run: Run) -> tuple[int, dict[str, str], list[str]]:
    """Return the exit code of ``tracker status``, what it shows, and what needs a person."""
    code, out, err = run("status")
    assert err == ""
    shown, _, needs = out.partition("\n\n")
    assert max(map(len, shown.splitlines())) <= 80
    return code, records(shown), needs.splitlines()


def test_nothing_needs_a_person_when_all_is_well(engine: sa.Engine, run: Run, now: datetime) -> None:
    assert screen(run)[0] == 0  # no job, no daemon: nothing to do
    daemon(engine, "a", now)
    daemon(engine, "dead", now - HOUR)
    daemon(engine, "stopped", now, now)
    answer(engine, register(engine, "a", at=now - 25 * DAY), ("running", now), due_at=now + HOUR)
    answer(engine, register(engine, "met", at=now - 60 * DAY), ("done", now - 50 * DAY))
    seal(engine, None)
    code, shown, needs = screen(run)
    assert (code, needs) == (0, ["Nothing needs a person."])
    assert shown["daemons alive"].startswith("host-a:1, beat ")
    assert "dead" not in shown["daemons alive"]
    assert "stopped" not in shown["daemons alive"]
    assert (shown["open jobs"], shown["polls behind"], shown["gaps now"], shown["pauses"]) == ("1", "0", "none", "none")
    assert shown["deadlines"] == "1 within 7 days; past: 0 overdue, 0 undecidable"
    assert shown["anomalies"] == "none in the last 24 hours"
    assert re.fullmatch(r"number 1, \S+ ago, NOT SIGNED", shown["last seal"])


@pytest.mark.usefixtures("many")
def test_each_thing_that_needs_a_person_is_a_line_with_what_to_do(engine: sa.Engine, run: Run, now: datetime) -> None:
    daemon(engine, "dead", now - 61 * timedelta(seconds=1))
    for name, cause in (("w1", Cause.KEY_REFUSED), ("w3", Cause.UNREACHABLE), ("w4", Cause.PAUSED)):
        gap = {"gap_began_at": now - HOUR, "gap_cause": cause, "gap_detail": "a detail"}
        stand(engine, name, pause_cause=cause, paused_until=None if cause is Cause.PAUSED else now, **gap)
    register(engine, "odd", "w2", at=now - DAY)
    answer(engine, register(engine, "odder", "w2", at=now - DAY), ("pondering", now - HOUR), due_at=now + HOUR)
    seal(engine, None)
    code, shown, needs = screen(run)
    assert code == 1
    since = f"since {at(now - HOUR)} (a detail)"
    assert needs == [
        f"No daemon is alive (last beat {at(now - 61 * timedelta(seconds=1))}), and 5 jobs are open; "
        "start one: `tracker run`.",
        f"The key of cluster w1 is refused {since}; put a valid key in place and restart `tracker run`; "
        "`tracker resume w1` then asks at once.",
        f"Cluster w2 has 2 polls behind, the oldest since {at(now - DAY)}; it is not configured here; see that some "
        "`tracker run` has it in its settings.",
        f"Cluster w3 cannot be reached {since}; check base_url, path and the network; `tracker resume w3` then asks "
        "at once.",
        f"Cluster w4 is paused by hand {since}; `tracker resume w4` when it may be asked again.",
        "1 job is overdue: not done at the deadline; see `tracker jobs --past-deadline`; tell the colleague who "
        "answers the person.",
        "1 job is undecidable: not seen since the deadline; see `tracker jobs --past-deadline`; `tracker poll JID` "
        "asks now.",
        "1 job is lost: Elevate knows no such jid; see `tracker jobs --state lost`; check jid and cluster, then reopen "
        "or withdraw.",
        "1 job is in state failed: Elevate said error; see `tracker jobs --state failed`; submit it again, add the new "
        "jid, withdraw the old.",
    ]
    assert (shown["daemons alive"], shown["failed, lost"]) == ("none", "1, 1")
    assert shown["deadlines"].endswith("past: 1 overdue, 1 undecidable")
    assert shown["gaps now"].startswith(f"w1: key_refused since {at(now - HOUR)}: a detail; w3: ")
    assert "w4: paused until resumed" in shown["pauses"]
    anomalies = shown["anomalies"].replace("_ ", "_")
    assert "1 never_found (never found: a wrong jid, or the wrong cluster)" in anomalies
    assert "1 unknown_status" in anomalies


def test_rows_that_nobody_seals_need_a_person(engine: sa.Engine, run: Run, now: datetime) -> None:
    daemon(engine, "a", now)
    history.change(engine, register(engine, "a", at=now - 24 * HOUR), due_at=now + HOUR)
    code, shown, _ = screen(run)
    assert (code, shown["last seal"]) == (0, "no seal yet; 1 row not sealed yet")
    seal(engine, None)
    assert re.fullmatch(r"number 1, \S+ ago, NOT SIGNED", screen(run)[1]["last seal"])
    history.change(engine, register(engine, "b", at=now - 26 * HOUR), due_at=now + HOUR)
    code, shown, needs = screen(run)
    assert (code, shown["last seal"].endswith("NOT SIGNED; 1 row not sealed yet")) == (1, True)
    assert needs == [
        f"unsealed rows of history: 1, the oldest since {at(now - 26 * HOUR)}; `tracker run --once` seals them "
        "or says why it cannot; so does a daemon's log (sealing, seal)."
    ]


def test_a_daemon_that_does_not_seal_needs_a_person(engine: sa.Engine, run: Run, now: datetime) -> None:
    """It seals rows that are an hour old, so a person need not wait a day; one that began just now has its time."""
    minute = timedelta(minutes=1)
    history.change(engine, register(engine, "a", at=now - 80 * minute), due_at=now + HOUR)
    for worker, started_at, code in (("a", now, 0), ("b", now - 76 * minute, 1)):
        daemon(engine, worker, now, started_at=started_at)
        assert screen(run)[0] == code
    assert screen(run)[2][0].startswith(f"unsealed rows of history: 1, the oldest since {at(now - 80 * minute)}; ")
    seal(engine, None)
    assert screen(run)[0] == 0
    history.change(engine, register(engine, "b", at=now - 80 * minute), due_at=now + HOUR)
    assert screen(run)[0] == 0  # registered as of then, since that seal


def test_a_newest_seal_that_is_no_checkpoint_needs_a_person(engine: sa.Engine, run: Run, now: datetime) -> None:
    with database.writing(engine) as connection:
        values: dict[str, Any] = {"last_transition_id": 0, "last_gap_id": 0, "last_source_id": 0, "rows": 0}
        values |= {"checkpoint": "tracker checkpoint v2\n", "checkpoint_sha256": "0" * 64, "sealed_at": now}
        connection.execute(sa.insert(Seal).values(values))
    code, shown, needs = screen(run)
    assert (code, shown["last seal"].startswith("DAMAGED")) == (1, True)
    assert [need.partition("; ")[0] for need in needs] == ["The newest row in `seals` is not a valid checkpoint"]


def test_checkpoints_that_cannot_be_delivered_need_a_person(engine: sa.Engine, run: Run, now: datetime) -> None:
    """Which, since when, why, how many wait, and the way out; what is delivered elsewhere is no comfort."""
    for jid in ("a", "b", "c"):
        history.change(engine, register(engine, jid, at=now), due_at=now + HOUR)
        seal(engine, None)
    daemon(engine, "a", now)
    rows = [
        {"destination": "log", "last_number": 3, "failing_since": None, "last_error": None},
        {"destination": "file /c.txt", "last_number": 3, "failing_since": now - HOUR, "last_error": "OSError ENOSPC"},
        {"destination": "file /d.txt", "last_number": 2, "failing_since": now, "last_error": "CheckpointFile ahead"},
        {"destination": "https://h", "last_number": 0, "failing_since": now, "last_error": "Unavailable http_503"},
    ]
    with database.writing(engine) as connection:
        connection.execute(sa.insert(Delivery), rows)
    code, _, needs = screen(run)
    assert code == 1
    write = "see that it is there and can be written to; it is tried every few minutes, in order."
    assert needs == [
        f"No checkpoint can be delivered to file /c.txt since {at(now - HOUR)} (OSError ENOSPC), 0 checkpoints wait; "
        + write,
        f"No checkpoint can be delivered to file /d.txt since {at(now)} (CheckpointFile ahead), 1 checkpoint waits; "
        "find out what is in that file and why before you move it away; the daemon's log says more.",
        f"No checkpoint can be delivered to https://h since {at(now)} (Unavailable http_503), 3 checkpoints wait; "
        + write,
    ]
    with database.writing(engine) as connection:
        connection.execute(sa.update(Delivery).values(failing_since=None))
    assert screen(run)[0] == 0


@pytest.mark.parametrize(("late", "code"), [(14 * MINUTE, 0), (16 * MINUTE, 1)])
def test_polls_that_are_far_behind_need_a_person(
    engine: sa.Engine, run: Run, now: datetime, monkeypatch: pytest.MonkeyPatch, late: timedelta, code: int
) -> None:
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    daemon(engine, "a", now)
    job_id = register(engine, "a", at=now - DAY)
    change(engine, job_id, due_at=now - late)
    exit_code, shown, needs = screen(run)
    assert (exit_code, shown["polls behind"]) == (code, "1")
    if code:
        assert "raise max_requests_per_second" in needs[0]
        stand(engine, "w1", pause_cause=Cause.RATE_LIMITED, paused_until=now)
        assert f"it is paused (rate_limited) until {at(now)}" in screen(run)[2][0]


def test_what_nobody_can_change_any_more_needs_nobody(engine: sa.Engine, run: Run, now: datetime) -> None:
    """A done job's verdict is final; who looked at a withdrawn one has decided."""
    long_ago = now - 40 * DAY
    answer(engine, register(engine, "missed", at=long_ago), ("running", now - DAY), ("done", now - HOUR))
    answer(engine, register(engine, "between", at=long_ago), ("waiting", long_ago + DAY), ("done", now - HOUR))
    lost = register(engine, "lost", at=now - 3 * DAY)
    answer(engine, lost, ("not_found", now - 2 * DAY), ("not_found", now - 2 * DAY))
    history.record(engine, lost, lambda job, past: status.withdraw(job, now, "eve", "x"))
    seal(engine, None)
    assert screen(run)[0] == 0


# all of them


@pytest.mark.parametrize("command", ["jobs", "show", "clusters", "status"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"  tracker {command}" in capsys.readouterr().out.partition("Example")[2]


def test_no_command_makes_a_database(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[list[str]] = [["jobs"], ["show", "a"], ["clusters"], ["status"], ["withdraw", "a", "--reason", "x"]]
    for line in lines:
        assert cli.main(line) == 78
        assert "make it with `tracker db upgrade`" in capsys.readouterr().err
