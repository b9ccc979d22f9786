"""How tables come out: for a person at a terminal, as CSV, or as JSON.

Owns the look of times and missing values, and the safety of what is printed: no text from the server or the database
moves a terminal's cursor. CSV is verbatim, so that another command can read it; only ``--for-spreadsheet`` marks what a
spreadsheet would take for a formula. The words for durations are `tracker.reports.words`'. Fetches nothing.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, TypeVar

import click

from tracker.cli.layout import print_table
from tracker.reports.catalog import Column as Column
from tracker.reports.words import for_spreadsheet, visible
from tracker.reports.words import human as human
from tracker.reports.words import plain as plain
from tracker.text import INVISIBLE

FORMATS = ("table", "csv", "json")

_F = TypeVar("_F", bound=Callable[..., Any])

_COMPACT = json.JSONEncoder(ensure_ascii=False)


_CLEAR_LINE = "\r\x1b[K"
"""Clears a terminal's line and moves the cursor to its beginning."""
_SPREADSHEET = f"{__name__}.spreadsheet"
"""In click's context: the option was given."""


def spreadsheet_option(command: _F) -> _F:
    """Give *command* the option ``--for-spreadsheet``, which `emit` reads."""
    return click.option(
        "--for-spreadsheet",
        is_flag=True,
        expose_value=False,
        callback=lambda ctx, _, value: ctx.meta.update({_SPREADSHEET: value}),
        help="In csv, put ' before text that a spreadsheet would read as a formula. Without it, csv is verbatim.",
    )(command)


def format_option(command: _F) -> _F:
    """Give *command* the option ``--format``, passed on as *format*: ``str | None``, for `emit`."""
    return click.option(
        "--format",
        "format",
        type=click.Choice(FORMATS),
        help="The output format. Default: table on a terminal, csv in a pipe.",
    )(spreadsheet_option(command))


def example(*lines: str) -> str:
    """Return the ``epilog`` of a command: its help ends with these examples, one a line."""
    return "\b\n" + "\n  ".join(("Example:" if len(lines) == 1 else "Examples:", *lines))


def counted(number: int, noun: str) -> str:
    """Return *number* and *noun*, as ``1 row`` or ``2 rows``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def of_one_cluster(columns: Sequence[Column], clusters: Collection[object]) -> list[Column]:
    """Return *columns*; with one cluster only, a narrow terminal may leave its name out."""
    return [replace(one, optional=True) if len(clusters) < 2 and one.name == "cluster" else one for one in columns]


def chosen(format: str | None) -> str:
    """Return *format*, or what standard output gets when None: ``table`` on a terminal, ``csv`` elsewhere.

    Raises:
        click.UsageError: It is not ``csv``, and ``--for-spreadsheet`` was given.
    """
    found = format or ("table" if sys.stdout.isatty() else "csv")
    if found != "csv" and _is_for_spreadsheet():
        raise click.UsageError(f"--for-spreadsheet has no effect on {found}: add --format csv")
    return found


def _is_for_spreadsheet() -> bool:
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.meta.get(_SPREADSHEET))


def emit(
    rows: Iterable[Sequence[object]],
    columns: Sequence[Column | str],
    format: str | None = None,
    *,
    title: str = "",
    empty: str = "Nothing to show.",
    records: bool = False,
) -> None:
    """Print *rows* on standard output.

    CSV and JSON are written row by row, in bounded memory; a table needs all rows at once, so give it a limit. A table
    that does not fit the terminal folds its cells, then leaves optional columns out, then becomes a list of records, a
    line a cell.

    Args:
        rows: Sequences as long as *columns*: text, numbers, bools, enums, dates, aware datetimes, timedeltas or None.
        columns: A string is a `Column` of that name.
        format: One of `FORMATS`, or None to choose by where the output goes.
        title: A line above, in tables only.
        empty: The message on standard error in place of a table without rows.
        records: Whether a table is always a list of records, however wide the terminal is.
    """
    shown = [Column(column) if isinstance(column, str) else column for column in columns]
    match chosen(format):
        case "csv":
            guard = for_spreadsheet if _is_for_spreadsheet() else visible
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow([column.name for column in shown])
            writer.writerows([_csv_cell(value, guard) for value in row] for row in rows)
        case "json":
            names = [column.name for column in shown]
            separator = "["
            for row in rows:
                line = _COMPACT.encode(dict(zip(names, map(json_value, row), strict=True)))
                line = INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", line)
                sys.stdout.write(f"{separator}\n  {line}")
                separator = ","
            sys.stdout.write("[]\n" if separator == "[" else "\n]\n")
        case _:
            cells = [[_table_cell(value, column) for value, column in zip(row, shown, strict=True)] for row in rows]
            if cells:
                print_table(cells, shown, title, records)
            else:
                click.echo(empty, err=True)


@contextmanager
def progress(unit: str = "") -> Iterator[Callable[[float, float | None, str], None]]:
    """Yield ``report_progress(done, total, what)``, which prints the progress on standard error, if that is a terminal.

    Each call replaces the line of the call before. Other output on standard error stays.

    Args:
        unit: What *done* counts, as ``rows``. Default: the share of *total* only.
    """
    is_shown = sys.stderr.isatty()

    def report_progress(done: float, total: float | None, what: str) -> None:
        if is_shown:
            count = f"{done:,.0f} {unit}" if unit else ""
            share = f"{done / total:.0%}" if total else ""
            sys.stderr.write(f"{_CLEAR_LINE}{' '.join(filter(None, (what, count, share)))}\r")
            sys.stderr.flush()

    try:
        yield report_progress
    finally:
        if is_shown:
            sys.stderr.write(_CLEAR_LINE)


def utc(at: datetime) -> datetime:
    """Return *at*, which is aware, in UTC."""
    return at if at.tzinfo is UTC else at.astimezone(UTC)


def _table_cell(value: object, column: Column) -> tuple[str, bool]:
    """Return the cell's text and whether it is aligned to the right."""
    if isinstance(value, bool):
        return ("yes" if value else "no"), False
    words = column.name.split("_")
    if isinstance(value, timedelta) or ("seconds" in words and isinstance(value, int | float | Decimal)):
        return human(value if isinstance(value, timedelta) else float(value), up="max" in words), True
    if isinstance(value, datetime):
        return utc(value).isoformat(" ", "seconds"), False
    if isinstance(value, int | float | Decimal):
        return f"{value:.10g}" if isinstance(value, float) else str(value), True
    if isinstance(value, Enum):
        value = value.value
    return plain("" if value is None else str(value)), False


def json_value(value: object) -> object:
    if isinstance(value, datetime):
        return utc(value).isoformat(timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _csv_cell(value: object, guard: Callable[[str], str]) -> object:
    # A million rows have twenty million cells, and nearly all are of these kinds: a needless step takes ten seconds.
    kind = type(value)
    if kind is datetime and value.tzinfo is UTC:  # type: ignore[attr-defined]  # mypy does not follow `kind`
        return value.isoformat("T", "microseconds")  # type: ignore[attr-defined]
    if value is None or kind is int or kind is float:
        return value
    if kind is not str:
        value = json_value(value)
    if isinstance(value, bool):
        return str(value).lower()
    return guard(value) if isinstance(value, str) else value
