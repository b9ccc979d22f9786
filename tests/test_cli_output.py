"""The command line's door and its tables: quick, safe to print, readable, and with one look for every failure."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from tracker import cli, errors
from tracker.cli.output import Column, emit, example, format_option, human, plain
from tracker.settings import duration
from tracker.text import INVISIBLE

AT = datetime(2026, 11, 24, 10, 0, 0, 123456, UTC)
JID = "ca24b4e2-34ab-406a-a4db-b30b0247837a"


class Word(StrEnum):
    DONE = "done"


def printed(
    rows: Sequence[Sequence[object]], columns: Sequence[Column | str], format: str | None, width: int = 80, **more: Any
) -> str:
    """Return what `emit` prints on a terminal of *width* columns."""
    with pytest.MonkeyPatch.context() as patch:
        out = io.StringIO()
        patch.setattr(sys, "stdout", out)
        patch.setenv("COLUMNS", str(width))
        emit(rows, columns, format, **more)
    return out.getvalue()


# Values

ROW = (AT.astimezone(timezone(timedelta(hours=2))), date(2026, 1, 2), timedelta(days=2, hours=3), True, None, Word.DONE)
COLUMNS = ("seen_at", "on", "age", "late", "none", "word")


def test_times_are_utc_with_offset_and_durations_human_in_tables() -> None:
    [_, line] = printed([ROW], COLUMNS, "table", 200).splitlines()
    assert re.split(" {2,}", line) == ["2026-11-24 10:00:00+00:00", "2026-01-02", "2d 3h", "yes", "done"]


def test_csv_has_iso_times_with_microseconds_and_seconds() -> None:
    assert printed([ROW], COLUMNS, "csv") == (
        "seen_at,on,age,late,none,word\n2026-11-24T10:00:00.123456+00:00,2026-01-02,183600.0,true,,done\n"
    )


def test_json_has_numbers_and_nulls() -> None:
    assert json.loads(printed([ROW, ROW], COLUMNS, "json")) == 2 * [
        {
            "seen_at": "2026-11-24T10:00:00.123456+00:00",
            "on": "2026-01-02",
            "age": 183600.0,
            "late": True,
            "none": None,
            "word": "done",
        }
    ]


def test_numbers_of_databases_stay_numbers() -> None:
    assert json.loads(printed([], ["a"], "json")) == []
    row = (Decimal("12"), Decimal("1.5"), 3, 0.1)
    assert json.loads(printed([row], list("abcd"), "json")) == [{"a": 12, "b": 1.5, "c": 3, "d": 0.1}]
    assert printed([row], list("abcd"), "csv").splitlines()[1] == "12,1.5,3,0.1"


def test_a_column_of_seconds_is_human_in_tables_only_and_its_maximum_rounds_up() -> None:
    row = (100_000.5, 100_000.5)
    [_, line] = printed([row], ["seconds_min", "seconds_max"], "table").splitlines()
    assert line.split() == ["1d", "3h", "1d", "4h"]
    assert printed([row], ["seconds_min", "seconds_max"], "csv").splitlines()[1] == "100000.5,100000.5"


@pytest.mark.parametrize(
    ("seconds", "down", "up"),
    [
        (0.01, "0.0s", "0.1s"),
        (59.9, "59s", "1m"),
        (3599.5, "59m 59s", "1h"),
        (200_000, "2d 7h", "2d 8h"),
        (-61, "-1m 1s", "-1m 1s"),
    ],
)
def test_durations_have_two_units(seconds: float, down: str, up: str) -> None:
    assert (human(seconds), human(seconds, up=True)) == (down, up)


@given(st.floats(0, 1e8))
@settings(deadline=None, max_examples=100)
def test_a_shown_duration_never_says_more_than_was_observed(seconds: float) -> None:
    tolerance = timedelta(microseconds=1)
    assert duration(human(seconds)) <= timedelta(seconds=seconds) + tolerance
    assert duration(human(seconds, up=True)) >= timedelta(seconds=seconds) - tolerance


# Safety

NASTY = st.text(
    st.one_of(
        st.sampled_from("=+-@\t\r\n\x1b\x07\x9b\x7f\u202e,;'\"＝a1 [/bold]:smile:\\"),
        st.characters(codec="utf-8"),
    )
)


@given(NASTY)
@settings(deadline=None, max_examples=150)
def test_no_text_drives_the_terminal(text: str) -> None:
    for format in ("table", "json"):
        shown = printed([[text, JID]], ["text", "jid"], format)
        assert not [c for c in shown if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028")]
        assert JID in shown
    assert [ord(c) for c in printed([[text]], ["text"], "csv") if c in "\x1b\x07\x9b\x7f"] == []


@click.command()
@format_option
def shows(format: str | None) -> None:
    emit([[SHOWN[0], "end"]], ["text", "end"], format)


SHOWN = [""]


@given(NASTY)
@settings(deadline=None, max_examples=150)
def test_csv_and_json_are_verbatim_and_no_formula_for_a_spreadsheet(text: str) -> None:
    """What the database can hold comes back as it is; with --for-spreadsheet nothing begins a formula."""
    SHOWN[0] = text
    for args in ([], ["--for-spreadsheet"]):
        out = CliRunner().invoke(shows, ["--format", "csv", *args]).output
        _, row = csv.reader(io.StringIO(out, newline=""))
        assert len(row) == 2
        if args:
            assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
        elif not INVISIBLE.search(text):
            assert row[0] == text
    assert json.loads(printed([[text]], ["text"], "json")) == [{"text": text}]


def test_control_characters_leave_a_mark() -> None:
    assert plain("a\x1b[31mb\nc\td\u202ee") == "a\ufffd[31mb c d\ufffde"


# Wide tables

WIDE: list[Column | str] = [
    Column("cluster", optional=True),
    "jid",
    "state",
    "status_after",
    Column("status_by", optional=True),
    Column("reference", optional=True),
]
WIDE_ROW = ("w1234abcd", JID, "open", AT, AT, "ticket 4711 of the second of January")


def test_no_line_is_wider_than_the_terminal_and_jids_and_times_stay_whole() -> None:
    for width in (60, 70, 80, 100, 120, 160):
        shown = printed([WIDE_ROW, WIDE_ROW], WIDE, "table", width)
        assert max(map(cell_len, shown.splitlines())) <= width
        assert shown.count(JID) == 2
        assert "10:00:00+00:00" in shown


def test_a_narrow_terminal_leaves_optional_columns_out_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed([WIDE_ROW], WIDE, "table", 80)
    assert "cluster" in shown
    assert "reference" not in shown
    assert "status by" not in shown
    assert capsys.readouterr().err == "Columns that do not fit: status_by, reference (--format csv has all).\n"
    assert printed([WIDE_ROW], WIDE, "csv", 80).startswith("cluster,jid,state,status_after,status_by,reference\n")


def test_what_does_not_fit_at_all_is_a_list_of_records() -> None:
    rows = [[f"{JID}{i}", JID, None] for i in (1, 2)]
    shown = printed(rows, ["jid", "other_jid", "reason"], "table", 60)
    assert shown.splitlines() == [
        f"jid        {JID}1",
        f"other jid  {JID}",
        "reason",
        "",
        f"jid        {JID}2",
        f"other jid  {JID}",
        "reason",
    ]
    assert printed([[1, 2]], ["a", "b"], "table", records=True) == "a  1\nb  2\n"


def test_a_blank_stays_after_a_word_that_is_cut() -> None:
    shown = printed([["x" * 45 + " (declared)", "y"]], ["a", "b"], "table", 40)
    assert "x (declared)" in shown


def test_wide_characters_keep_the_columns_straight() -> None:
    lines = printed([["漢字", "x"], ["ab", "y"]], ["a", "b"], "table").splitlines()
    assert cell_len(lines[1].split("x")[0]) == cell_len(lines[2].split("y")[0])


def test_long_names_and_paths_fold_at_their_joints() -> None:
    path = "/etc/company/tracker/production/tracker.toml"
    shown = printed([[path, "TRACKER_MAX_REQUESTS_PER_SECOND"]], ["path", "name"], "table", 40)
    assert max(map(len, shown.splitlines())) <= 40
    first = "".join(line.split("  ")[0].strip() for line in shown.splitlines()[1:])
    assert first == path


def test_an_empty_table_says_so_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    emit([], ["a"], "table", empty="No jobs.")
    assert capsys.readouterr() == ("", "No jobs.\n")


def test_a_terminal_gets_a_table_and_a_pipe_csv(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    emit([[1]], ["the_a"])
    assert capsys.readouterr().out == "the_a\n1\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    emit([[1]], ["the_a"])
    assert click.unstyle(capsys.readouterr().out).splitlines()[0].strip() == "the a"


# The door


@click.command(epilog=example("tracker boom"))
@click.argument("what")
@format_option
def boom(what: str, format: str | None) -> int | None:
    """Fail in a way of one's choice."""
    match what:
        case "ok":
            emit([["x"]], ["a"], format)
        case "check":
            return 1
        case "interrupt":
            raise KeyboardInterrupt
        case "exit":
            click.get_current_context().exit(75)
        case "many":
            emit(([i] for i in range(200_000)), ["a"], format)
        case _:
            raise getattr(errors, what)("what is \x1b[31mwrong\n  and how to mend it")
    return None


@pytest.fixture(autouse=True)
def _boom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "boom", ("Keep", f"{__name__}:boom", "Fail."))


@pytest.mark.parametrize(
    ("what", "code", "err"),
    [
        ("ok", 0, ""),
        ("check", 1, ""),
        ("exit", 75, ""),
        ("interrupt", 130, "\n"),
        ("BadConfiguration", 78, "tracker: error: what is  [31mwrong\n  and how to mend it\n"),
        ("DatabaseUnavailable", 69, "tracker: error: what is  [31mwrong\n  and how to mend it\n"),
        ("Refused", 1, "tracker: error: what is  [31mwrong\n  and how to mend it\n"),
    ],
)
def test_each_end_has_its_exit_code(what: str, code: int, err: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["boom", what]) == code
    assert capsys.readouterr().err == err


def test_wrong_usage_exits_2_and_says_where_help_is(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["bom"], ["boom"], ["boom", "ok", "--format", "xml"], ["--nope"], ["config", "chek"]):
        assert cli.main(args) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "--help" in err


def test_a_mistake_in_the_program_is_not_hidden() -> None:
    with pytest.raises(AttributeError):
        cli.main(["boom", "NoSuchError"])


@pytest.mark.parametrize("words", [["--help"], ["config", "check"], ["boom", "many", "--format", "json"]])
def test_a_reader_who_leaves_is_no_error(words: list[str]) -> None:
    program = (
        "import sys; from tracker import cli; "
        f"cli.COMMANDS['boom'] = ('Keep', '{__name__}:boom', ''); sys.exit(cli.main(sys.argv[1:]))"
    )
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait(30) == 1
    assert "Error" not in err
    assert "Traceback" not in err


def test_help_groups_the_commands_under_headings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("Start:") < lines.index("Keep:")
    for name, (_, _, summary) in cli.COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in lines), f"{name} is not on one line"


def every_command() -> Iterator[tuple[str, click.Command]]:
    for name, (heading, where, _) in cli.COMMANDS.items():
        assert heading in cli.HEADINGS
        module, _, attribute = where.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", command.commands[sub]) for sub in command.commands)


def test_every_help_ends_with_an_example_of_that_command() -> None:
    for name, command in every_command():
        with click.Context(command, info_name=f"tracker {name}") as context:
            shown = command.get_help(context)
        head, _, examples = shown.rpartition("Example")
        assert head, f"{name} has no example"
        lines = [line.strip() for line in examples.splitlines()[1:]]
        assert lines, name
        assert all(f"tracker {name}" in line for line in lines if "tracker " in line), name
        assert f"tracker {name}" in lines[0], name


def test_help_imports_nothing_but_click() -> None:
    """Of what is not the standard library: what takes long to import is imported when a command needs it."""
    program = (
        "import sys; before = set(sys.modules); from tracker.cli import main; main(sys.argv[1:]); "
        "names = {name.partition('.')[0] for name in set(sys.modules) - before if name[0] != '_'}; "
        "print(*sorted(names - sys.stdlib_module_names))"
    )
    for args in (["--help"], ["report", "--help"], ["report", "durations", "--help"]):
        done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1].split() == ["click", "tracker"]
