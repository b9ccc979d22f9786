"""``tracker add`` and ``tracker import`` as a person meets them, on both databases."""

from __future__ import annotations

import getpass
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tracker import cli, database, intake
from tracker.errors import DatabaseUnavailable
from tracker.models import JOBS, WORKERS

Run = Callable[..., tuple[int, str, str]]

HINT = "No daemon is alive to follow them: start one with `tracker run`.\n"


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line on the test's database and returns exit code, stdout and stderr."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")

    def run(*args: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main(args)
        return code, *capsys.readouterr()

    return run


def jobs(engine: sa.Engine) -> dict[str, sa.Row[Any]]:
    with database.reading(engine) as connection:
        return {row.jid: row for row in connection.execute(sa.select(JOBS).order_by(JOBS.c.id))}


def test_add_says_what_happened_to_each(engine: sa.Engine, run: Run) -> None:
    """Registered or registered already, the deadline and what it is counted from, and the next step."""
    code, out, err = run("add", "a", " b ", "--kind", "export", "--received-at", "2026-01-30", "--reference", "DSR-1")
    assert code == 0
    counted = "deadline 2026-02-28, counted from the declared receipt of the request"
    assert out == f"a of cluster w1: registered; {counted}\nb of cluster w1: registered; {counted}\n"
    start = "that day's start in Europe/Stockholm: 2026-01-29 23:00:00+00:00"
    assert err == f"received_at: 2026-01-30 is taken as {start}\n{HINT}"
    there = jobs(engine)
    assert [(job.jid, job.kind, job.reference, job.registered_by) for job in there.values()] == [
        ("a", "export", "DSR-1", getpass.getuser()),
        ("b", "export", "DSR-1", getpass.getuser()),
    ]
    assert there["a"].received_at == datetime(2026, 1, 29, 23, tzinfo=UTC)

    assert run("add", "b", "c", "--submitted-at", "2026-02-01T10:00Z", "--cluster", "w1")[:2] == (
        1,
        "c of cluster w1: registered; deadline 2026-03-01, "
        "counted from the declared submission, since no receipt is declared\n",
    )
    code, out, _ = run("add", "b", "d", "d")
    first, second, third = out.splitlines()
    assert first == f"b of cluster w1: registered already; {counted}"
    assert "registered; deadline" in second
    assert second.endswith("counted from the registration, since neither receipt nor submission is declared")
    assert "registered already" in third


def test_add_names_what_is_refused_and_adds_the_rest(engine: sa.Engine, run: Run) -> None:
    """A wrong jid and a conflict are told on stderr with their reason, and the exit code is 1."""
    run("add", "a", "--kind", "export")
    code, out, err = run("add", "a", "b\x1b[2J", "c", "--kind", "removal")
    assert code == 1
    assert out.startswith("c of cluster w1: registered;")
    assert err.splitlines() == [
        "job a of cluster w1 is registered already with other facts: kind is export, given removal",
        r"'b\x1b[2J': jid: has the invisible character '\x1b' in it",
        HINT.strip(),
    ]
    assert list(jobs(engine)) == ["a", "c"]


@pytest.mark.parametrize(
    ("args", "code", "problem"),
    [
        ((), 2, "Missing argument 'JID...'"),
        (("a", "--kind", "bogus"), 2, "'bogus' is not one of"),
        (("a", "--cluster", "w9"), 1, "'a': cluster: 'w9' is not configured (configured: w1)"),
        (("a", "--submitted-at", "2026-01-30 10:00"), 1, "submitted_at: '2026-01-30 10:00' has no offset"),
        (("a", "--submitted-at", "2999-01-30"), 1, "'a': submitted_at: 2999-01-29 23:00:00+00:00 is in"),
        (("a", "--received-at", "yesterday"), 1, "received_at: 'yesterday' is no time: write it as"),
        (("a", "--reference", "eve@example.com"), 1, "personal data"),
    ],
)
def test_add_refuses(engine: sa.Engine, run: Run, args: tuple[str, ...], code: int, problem: str) -> None:
    """What cannot be is refused with its field and the way out, and nothing is registered or hinted at."""
    found, out, err = run("add", *args)
    assert (found, out) == (code, "")
    assert problem in err
    assert HINT not in err
    assert jobs(engine) == {}


def test_add_wants_a_cluster(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no cluster configured, the settings that are missing are named."""
    monkeypatch.delenv("TRACKER_CLUSTER")
    code, _, err = run("add", "a")
    assert code == 78
    assert "TRACKER_CLUSTER" in err


def test_add_rehearsed_writes_nothing(engine: sa.Engine, run: Run) -> None:
    """--dry-run says what would be, doubles among the arguments included."""
    run("add", "a", "--kind", "export")
    code, out, err = run("add", "a", "b", "b", "--kind", "removal", "--dry-run")
    assert code == 1
    assert [line.split(";")[0] for line in out.splitlines()] == [
        "b of cluster w1: would be registered",
        "b of cluster w1: registered already",
    ]
    assert "kind is export, given removal" in err
    assert HINT not in err
    assert list(jobs(engine)) == ["a"]


@pytest.mark.parametrize(
    ("values", "hinted"),
    [({}, False), ({"beat_at": timedelta(minutes=-2)}, True), ({"stopped_at": timedelta()}, True)],
)
def test_no_hint_while_a_daemon_is_alive(
    engine: sa.Engine, run: Run, values: dict[str, timedelta], hinted: bool
) -> None:
    """A daemon that beats is alive; one that stopped, or has not beaten for a while, is not."""
    with database.writing(engine) as connection:
        now = database.now(connection)
        times = {"started_at": now, "beat_at": now} | {name: now + since for name, since in values.items()}
        connection.execute(sa.insert(WORKERS).values(worker="x", host="h", pid=1, version="1", **times))
    assert (HINT in run("add", "a")[2]) is hinted


def test_import_tells_refused_rows_and_a_summary(engine: sa.Engine, run: Run, tmp_path: Path) -> None:
    """Each refused row has its line, field and reason on stderr, the rest goes in, a summary ends it, exit code 1."""
    run("add", "old", "--kind", "export")
    file = tmp_path / "jobs.csv"
    file.write_text(
        "\ufeffjid;kind;submitted_at;received_at;reference\r\n"
        'a;export;2026-02-01T10:00+01:00;2026-01-30;"DSR-1"\r\n'
        "b;;2026-02-01;2026-01-30;\r\n"
        ";export;;;\r\n"
        "c;delete;;;\r\n"
        "d;;2026-02-01 10:00;;\r\n"
        "e;;2999-02-01;;\r\n"
        "f;;;;eve@example.com\r\n"
        "old;removal;;;\r\n"
        "old;;;;\r\n"
        "g;\r\n"
        f"{'x' * 256};;;;\r\n",
        "utf-8",
        newline="",
    )
    code, out, err = run("import", str(file))
    assert (code, out) == (1, "2 registered, 1 registered already, 8 refused.\n")
    lines = err.splitlines()
    expected = [
        "line 4: jid: is empty",
        "line 5: kind: 'delete' is no kind",
        "line 6: submitted_at: '2026-02-01 10:00' has no offset",
        "line 7: submitted_at: 2999-01-31 23:00:00+00:00 is in the future",
        "line 8: reference: has an @ in it",
        "line 9: job old of cluster w1 is registered already with other facts: kind is export, given removal",
        "line 11: has 2 cells, where the header has 5",
        "line 12: jid: has 256 characters; at most 255 are allowed",
        "Plain dates that were taken as that day's start in Europe/Stockholm: 4.",
        HINT.strip(),
    ]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
    assert list(jobs(engine)) == ["old", "a", "b"]
    assert run("import", str(file))[:2] == (1, "0 registered, 3 registered already, 8 refused.\n")


def test_import_from_a_pipe(engine: sa.Engine, run: Run) -> None:
    """JSON Lines on standard input, with defaults for what the rows leave out; all good is exit code 0."""
    text = b'{"jid": "a"}\n{"jid": "b", "kind": "export"}\n'
    assert run("import", "-", "--kind", "removal", "--cluster", "w1", stdin=text) == (
        0,
        "2 registered, 0 registered already, 0 refused.\n",
        HINT,
    )
    assert [(job.jid, job.kind) for job in jobs(engine).values()] == [("a", "removal"), ("b", "export")]


def test_import_rehearsed_writes_nothing(engine: sa.Engine, run: Run) -> None:
    """--dry-run finds what the import would find, and exits as it would."""
    text = b"jid,kind\na,export\na,removal\nb,\n"
    code, out, err = run("import", "-", "--dry-run", stdin=text)
    assert (code, out) == (
        1,
        "2 would be registered, 0 registered already, 1 refused; nothing was written (--dry-run).\n",
    )
    assert err == "line 3: job a of cluster w1 is registered already with other facts: kind is export, given removal\n"
    assert jobs(engine) == {}


@pytest.mark.parametrize(
    ("args", "stdin", "code", "problem"),
    [
        (("nowhere.csv",), b"", 2, "No such file"),
        ((".",), b"", 2, "Is a directory"),
        (("-",), b"", 1, "the file is empty"),
        (("-",), b"jid,name\n", 1, "line 1: there is no column 'name'; known are: jid, cluster"),
        (("-", "--cluster", "w9"), b"jid\na\n", 1, "cluster: 'w9' is not configured"),
        (("-",), "jid\na\n".encode("utf-16"), 1, "not UTF-8"),
    ],
)
def test_import_refuses_the_whole(run: Run, args: tuple[str, ...], stdin: bytes, code: int, problem: str) -> None:
    """A file that is none is one clear error, without a summary."""
    found, out, err = run("import", *args, stdin=stdin)
    assert (found, out) == (code, "")
    assert problem in err


@pytest.mark.parametrize(("error", "code"), [(DatabaseUnavailable("it is down"), 69), (KeyboardInterrupt(), 130)])
def test_import_that_ends_early_says_how_far_it_came(
    engine: sa.Engine, run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    """What was told as registered stays, and importing again is said to be harmless, and is."""
    real, calls = database.writing, iter(range(9))

    def failing(engine: sa.Engine) -> Any:
        if next(calls) == 1:
            raise error
        return real(engine)

    text = b"jid\na\nb\n,\nc\nd\n"
    with monkeypatch.context() as patch:
        patch.setattr(intake, "PIECE", 3)
        patch.setattr(database, "writing", failing)
        found, out, err = run("import", "-", stdin=text)
    assert (found, out) == (code, "")
    assert "ended early, after 3 rows: 2 registered; they stay, and to import the file again is harmless" in err
    assert list(jobs(engine)) == ["a", "b"]
    assert run("import", "-", stdin=text)[1] == "2 registered, 2 registered already, 1 refused.\n"


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_import_shows_a_bar_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A person sees how far it is, and refused rows in whole lines above; nothing of the bar is on stdout."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stderr", terminal)
    file = tmp_path / "jobs.csv"
    file.write_text("jid,reference\n" + "".join(f"j{n},\n" for n in range(2_500)) + "k,[red]eve@example.com[/red]\n")
    code, out, _ = run("import", str(file))
    assert (code, out) == (1, "2500 registered, 0 registered already, 1 refused.\n")
    shown = terminal.getvalue()
    assert "2,501 rows" in shown
    assert "100%" in shown
    refused = next(line for line in shown.splitlines() if "personal data" in line)
    assert refused.endswith("name a ticket instead")


@pytest.mark.parametrize("command", ["add", "import"])
def test_help_has_examples(command: str, run: Run) -> None:
    """The help ends with command lines that can be copied."""
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"  tracker {command} " in out.split("Examples:")[1]
