"""``tracker add`` and ``tracker import`` as a person meets them, and what commands do with their standard streams."""

from __future__ import annotations

import csv
import getpass
import io
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import Run
from tracker import database, intake
from tracker.errors import Refused
from tracker.models import JOBS
from tracker.settings import ClusterSettings, Settings

ONE = Settings(clusters={"w1": ClusterSettings(name="w1")})


@pytest.fixture(autouse=True)
def _one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")


def jobs(engine: sa.Engine) -> dict[str, sa.Row[Any]]:
    with database.reading(engine) as connection:
        return {row.jid: row for row in connection.execute(sa.select(JOBS).order_by(JOBS.c.id))}


def test_add_says_what_happened_to_each(engine: sa.Engine, run: Run) -> None:
    """Registered or registered already, the deadline and what it is counted from."""
    code, out, err = run("add", "a", " b ", "--kind", "export", "--received-at", "2026-01-30", "--reference", "DSR-1")
    assert code == 0
    due = "deadline 2026-02-28, counted from received_at"
    assert out == f"a of cluster w1: registered; {due}\nb of cluster w1: registered; {due}\n"
    assert err == ""
    there = jobs(engine)
    assert [(job.jid, job.kind, job.reference, job.registered_by) for job in there.values()] == [
        ("a", "export", "DSR-1", getpass.getuser()),
        ("b", "export", "DSR-1", getpass.getuser()),
    ]
    assert there["a"].received_at == datetime(2026, 1, 29, 23, tzinfo=UTC)
    assert run("add", "b", "c", "--submitted-at", "2026-02-01T10:00Z", "--cluster", "w1")[:2] == (
        1,
        "c of cluster w1: registered; deadline 2026-03-01, counted from submitted_at\n",
    )
    first, second, third = run("add", "b", "d", "d")[1].splitlines()
    assert first == "b of cluster w1: registered already; deadline 2026-02-28"
    assert second.endswith("counted from registered_at")
    assert "registered already" in third


def test_add_names_what_is_refused_and_adds_the_rest(engine: sa.Engine, run: Run) -> None:
    """A wrong jid and a conflict are on stderr with their reason, and the exit code is 1; --dry-run says the same."""
    run("add", "a", "--kind", "export")
    for more, done in (["--dry-run"], "would be registered"), ([], "registered"):
        code, out, err = run("add", "a", "b\x1b[2J", "c", "c", "x y", "--kind", "removal", *more)
        assert code == 1
        assert [line.split(";")[0] for line in out.splitlines()] == [
            f"c of cluster w1: {done}",
            "c of cluster w1: registered already",
        ]
        assert err.splitlines() == [
            "job a of cluster w1 is already registered with other facts: kind is export, not removal",
            r"'b\x1b[2J': jid: contains the invisible character '\x1b'",
            "'x y': jid: contains a blank: give one jid at a time",
        ]
        assert list(jobs(engine)) == (["a"] if more else ["a", "c"])


WRONG: list[tuple[tuple[str, ...], int, str]] = [
    (("add",), 2, "Missing argument 'JID...'"),
    (("add", "a", "--cluster", "w9"), 1, "'a': cluster: 'w9' is not configured (configured: w1)"),
    (("add", "a", "--submitted-at", "2999-01-30"), 1, "'a': submitted_at: 2999-01-29 23:00:00+00:00 is in"),
    (("add", "a", "--received-at", "yesterday"), 1, "received_at: 'yesterday' is not a time: write it as"),
    (("add", "a", "--reference", "eve@example.com"), 1, "personal data"),
    (("import", "nowhere.csv"), 2, "No such file"),
    (("import", "-"), 1, "the file is empty"),
    (("import", "-", "--cluster", "w9"), 1, "cluster: 'w9' is not configured"),
]


def test_what_is_refused_as_a_whole(engine: sa.Engine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one clear error with its field and the way out, without a summary, and nothing is registered."""
    for args, code, problem in WRONG:
        found, out, err = run(*args)
        assert (found, out, problem in err) == (code, "", True), err
    monkeypatch.delenv("TRACKER_CLUSTER")
    code, _, err = run("add", "a")
    assert (code, "TRACKER_CLUSTER" in err) == (78, True)
    assert jobs(engine) == {}


def test_import_names_refused_rows_and_ends_with_a_summary(engine: sa.Engine, run: Run, tmp_path: Path) -> None:
    """Each refused row has its line, field and reason on stderr, the others are registered, the exit code is 1."""
    run("add", "old", "--kind", "export")
    file = tmp_path / "jobs.csv"
    file.write_text(
        "\ufeffjid;kind;submitted_at;received_at;reference;;\r\n"
        'a;export;2026-02-01T10:00+01:00;2026-01-30;"DSR-1";;\r\n'
        "\u200bb\u00a0;;2026-02-01;2026-01-30;\r\n"
        ";export;;;\r\n"
        "c;delete;;;\r\n"
        "f;;;;eve@example.com\r\n"
        "old;removal;;;\r\n"
        "old;;;;\r\n"
        "g;\r\n"
        "CA24B4E2-34AB-406A-A4DB-B30B0247837A;;;;\r\n",
        "utf-8",
        newline="",
    )
    code, out, err = run("import", str(file))
    assert (code, out) == (1, "3 registered, 1 registered already, 5 refused.\n")
    lines = err.splitlines()
    expected = [
        "line 4: jid: is empty",
        "line 5: kind: 'delete': write export, removal or unknown",
        "line 6: reference: contains an @",
        "line 7: job old of cluster w1 is already registered with other facts: kind is export, not removal",
        "line 9: has fewer cells (2) than the header (5)",
        "Blanks or invisible characters around a jid or reference were removed: 1 (first in line 3).",
    ]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
    assert list(jobs(engine)) == ["old", "CA24B4E2-34AB-406A-A4DB-B30B0247837A", "a", "b"]
    assert run("import", str(file))[:2] == (1, "0 registered, 4 registered already, 5 refused.\n")


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_import_says_on_a_terminal_how_far_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person sees how many rows are done; nothing of that is on stdout."""
    terminal = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    code, out, _ = run("import", "-", stdin="jid\n" + "".join(f"j{n}\n" for n in range(1_200)))
    assert (code, out) == (0, "1200 registered, 0 registered already, 0 refused.\n")
    assert "1,200 rows" in terminal.getvalue()


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_import_that_ends_early_says_how_far_it_came(
    engine: sa.Engine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was registered stays, and importing again is said to be harmless, and is; so after another header."""
    real = database.writing
    monkeypatch.setattr(intake, "PIECE", 3)
    text = b"jid\na\nb\na b\nc\nd\n"
    calls = iter(range(9))

    def failing(engine: sa.Engine) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return real(engine)

    with monkeypatch.context() as patch:
        patch.setattr(database, "writing", failing)
        code, out, err = run("import", "-", stdin=text)
    assert (code, out) == (130, "")
    assert "The import stopped early: 2 registered, 0 registered already, 1 refused.\n" in err
    assert list(jobs(engine)) == ["a", "b"]
    assert run("import", "-", stdin=text)[1] == "2 registered, 2 registered already, 1 refused.\n"
    code, out, err = run("import", "-", stdin=b"jid,kind\ne,\nf,\ng,\njid,reference\nh,R\n")
    assert (code, out) == (1, "")
    assert "stopped early: 3 registered, 0 registered already, 0 refused." in err
    assert "tracker: error: line 5: this header has other columns than the one in line 1" in err


JIDS = ["=1+1", "+x", "@x", "'quoted", '"a"', "a;b", "a,b", "å-日本", "a\\xe5", "#", "jid:x", "a\u0301"]


# Real processes


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's command line with this interpreter's tracker, in a locale that knows ASCII only."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHONIO", "PYTHONUTF8"))}
    own |= {"LANG": "C", "TRACKER_DATABASE_URL": "sqlite:///tracker.db", "TRACKER_CLUSTER": "w1"} | environment
    own["PATH"] = f"{Path(sys.executable).parent}:{own['PATH']}"
    return subprocess.run(["sh", "-c", command], env=own, capture_output=True, timeout=60)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_what_jobs_prints_is_what_withdraw_reads(engine: sa.Engine, tmp_path: Path) -> None:
    """Every jid that can be registered comes back through a pipe as it is, in any locale and format of a file."""
    with database.writing(engine) as connection:
        some = [intake.Registration(jid) for jid in JIDS]
        assert not any(isinstance(one, Refused) for one in intake.register_many(connection, some, settings=ONE))
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for environment in ({}, ascii_only):
        printed = shell("tracker jobs --format csv", **environment).stdout.decode()
        assert sorted(row["jid"] for row in csv.DictReader(io.StringIO(printed))) == sorted(JIDS)
        for decision, done_, state in (("withdraw", b"withdrawn", "withdrawn"), ("reopen", b"reopened", "open")):
            done = shell(f"tracker jobs --format csv | tracker {decision} --from - --reason R", **environment)
            assert (done.returncode, done.stdout) == (0, b"")
            assert done.stderr == b"%d %s, 0 refused.\n" % (len(JIDS), done_)
            assert {job.state for job in jobs(engine).values()} == {state}


CLOSED = [
    ("tracker run --once 2>&-", 0, b""),
    ("tracker jobs >&-", 0, b""),
    ("tracker add b 2>&-", 0, b""),
    ("tracker add c >&- 2>&- <&-", 0, b""),
    ("tracker import - <&-", 2, b"standard input is closed"),
    ("tracker withdraw --from - --reason R <&-", 2, b"standard input is closed"),
    ("echo jid,kind | tracker reconcile - >&- 2>&-", 1, b""),
    ("tracker jobs > /dev/full", 75, b"cannot read or write"),
    ("tracker jobs --state bogus 2>&-", 2, b""),
]


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_closed_standard_stream_stops_nothing(engine: sa.Engine) -> None:
    """The work is done and the exit code is right; where standard input is needed, that is a usage error."""
    for command, code, message in CLOSED:
        done = shell(command, TRACKER_API_KEY="k", TRACKER_BASE_URL="http://127.0.0.1:9")
        assert (done.returncode, b"Traceback" in done.stderr) == (code, False), (command, done.stderr)
        assert message in done.stderr, command
    assert list(jobs(engine)) == ["b", "c"]
