"""How tables come out: for a person at a terminal, as CSV, or as JSON.

Owns the look of times and missing values, and the safety of what is printed: no text from the server or the database
moves a terminal's cursor, or becomes a formula in a spreadsheet. The words for durations are `tracker.reports.words`'.
Fetches nothing.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import IO, Any, TypeVar

import click

from tracker.errors import Refused
from tracker.reports.words import cell
from tracker.reports.words import human as human
from tracker.reports.words import plain as plain
from tracker.text import INVISIBLE

FORMATS = ("table", "csv", "json")

_F = TypeVar("_F", bound=Callable[..., Any])

_COMPACT = json.JSONEncoder(ensure_ascii=False)
_GAP = 2
"""Columns of space between two cells."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: The heading in CSV and the key in JSON. A column with the word ``seconds`` in its name is shown as
            durations in tables, rounded up if it has ``max`` in it too (an upper bound stays one).
        heading: The heading in tables; default the name with spaces.
        optional: A table may leave it out where there is no room, and says so. CSV and JSON have it always.
    """

    name: str
    heading: str | None = None
    optional: bool = False


def format_option(command: _F) -> _F:
    """Give *command* the option ``--format``, passed on as *format*: ``str | None``, for `emit`."""
    return click.option(
        "--format",
        "format",
        type=click.Choice(FORMATS),
        help="How the table comes out. Default: table on a terminal, csv in a pipe.",
    )(command)


def example(*lines: str) -> str:
    """Return the ``epilog`` of a command: its help ends with these examples, one a line."""
    return "\b\n" + "\n  ".join(("Example:" if len(lines) == 1 else "Examples:", *lines))


def counted(number: int, noun: str) -> str:
    """Return *number* and *noun*, as ``1 row`` or ``2 rows``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def chosen(format: str | None) -> str:
    """Return *format*, or what standard output gets when None: ``table`` on a terminal, ``csv`` elsewhere."""
    return format or ("table" if sys.stdout.isatty() else "csv")


def emit(
    rows: Iterable[Sequence[object]],
    columns: Sequence[Column | str],
    format: str | None = None,
    *,
    title: str | None = None,
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
        empty: What to say, on standard error, in place of a table without rows.
        records: A table is a list of records however wide the terminal is.

    Raises:
        ValueError: a datetime is naive.
    """
    shown = [Column(column) if isinstance(column, str) else column for column in columns]
    match chosen(format):
        case "csv":
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow([column.name for column in shown])
            writer.writerows([_csv_cell(value) for value in row] for row in rows)
        case "json":
            names = [column.name for column in shown]
            separator = "["
            for row in rows:
                line = _COMPACT.encode(dict(zip(names, map(_json_value, row), strict=True)))
                if not line.isprintable():
                    line = INVISIBLE.sub(_escaped, line)
                sys.stdout.write(f"{separator}\n  {line}")
                separator = ","
            sys.stdout.write("[]\n" if separator == "[" else "\n]\n")
        case _:
            cells = [[_table_cell(value, column) for value, column in zip(row, shown, strict=True)] for row in rows]
            if cells:
                _print_table(cells, shown, title, records)
            else:
                click.echo(empty, err=True)


@contextmanager
def spooled() -> Iterator[IO[str]]:
    """Yield a file whose content goes to standard output at the end, if nothing fails.

    So a reader that waits, such as a pager, holds no transaction open, and the rows need no memory.

    Raises:
        Refused: There is no room for it on the disk.
    """
    try:
        spool = tempfile.TemporaryFile("w+", encoding="utf-8", newline="")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _no_room(error) from error
    with closing(spool):
        try:
            yield spool
            spool.seek(0)
        except OSError as error:
            with suppress(OSError):
                spool.close()  # it would try to write the rest once more, and fail once more
            raise _no_room(error) from error
        shutil.copyfileobj(spool, sys.stdout)


def _no_room(error: OSError) -> Refused:
    why = error.strerror or str(error)
    return Refused(f"cannot keep the rows in a temporary file: {why}; make room, or name another folder in TMPDIR")


@contextmanager
def progress(unit: str = "") -> Iterator[Callable[[float, float | None, str], None]]:
    """Yield ``tell(done, total, what)``, which moves a bar on standard error, if that is a terminal.

    Each *what* has a bar of its own; a *total* of None: nobody knows how long it takes. What is printed on
    standard error meanwhile comes out above the bar.

    Args:
        unit: What *done* counts, as ``rows``; it is shown before the bar. Default: the share only.
    """
    if not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    counter = [TextColumn(f"{{task.completed:,.0f}} {unit}")] if unit else []
    columns = (TextColumn("{task.description}"), *counter, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(done: float, total: float | None, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield tell


def utc(at: datetime) -> datetime:
    """Return *at* in UTC; a naive time is a mistake in the program, since nobody knows what it means.

    Raises:
        ValueError: *at* is naive.
    """
    if at.tzinfo is None:
        raise ValueError(f"{at} has no offset")
    return at if at.tzinfo is UTC else at.astimezone(UTC)


def _is_duration(column: Column) -> bool:
    return "seconds" in column.name.split("_")


def _table_cell(value: object, column: Column) -> tuple[str, bool]:
    """Return the cell's text and whether it stands on the right."""
    if isinstance(value, bool):
        return ("yes" if value else "no"), False
    if isinstance(value, timedelta) or (isinstance(value, int | float | Decimal) and _is_duration(column)):
        seconds = value if isinstance(value, timedelta) else float(value)
        return human(seconds, up="max" in column.name.split("_")), True
    if isinstance(value, datetime):
        return utc(value).isoformat(" ", "seconds"), False
    if isinstance(value, int | float | Decimal):
        return f"{value:.10g}" if isinstance(value, float) else str(value), True
    if isinstance(value, Enum):
        value = value.value
    return plain("" if value is None else str(value)), False


def _json_value(value: object) -> object:
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


def _csv_cell(value: object) -> object:
    # A million rows have twenty million cells, and nearly all are of these kinds: a needless step takes ten seconds.
    kind = type(value)
    if kind is datetime and value.tzinfo is UTC:  # type: ignore[attr-defined]  # mypy does not follow `kind`
        return value.isoformat("T", "microseconds")  # type: ignore[attr-defined]
    if value is None or kind is int or kind is float:
        return value
    if kind is not str:
        value = _json_value(value)
    if isinstance(value, bool):
        return str(value).lower()
    return cell(value) if isinstance(value, str) else value


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _pieces(text: str) -> list[str]:
    """Return *text* in pieces between which a line may end: after blanks, and within names, paths and URLs."""
    return re.findall(r"[^\s/_]*[/_]+|[^\s/_]+\s*|\s+", text)


def _fold(text: str, width: int) -> list[str]:
    """Return *text* as lines of at most *width* columns; a piece that is longer is cut."""
    from rich.cells import cell_len, chop_cells

    lines = [""]
    for piece in _pieces(text):
        if cell_len((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
        elif cell_len(piece.rstrip()) <= width:
            lines.append(piece)
        else:
            lines += chop_cells(piece.rstrip(), width)
    return [line.rstrip() for line in lines if line.strip()] or [""]


def _widths(texts: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return a width for each of the columns *texts* (heading and cells), or None when they do not fit into *room*."""
    from rich.cells import cell_len

    widths = [max(cell_len(text) for text in column) for column in texts]
    least = [
        max((cell_len(piece.rstrip()) for text in column for piece in _pieces(text)), default=0) for column in texts
    ]
    room -= _GAP * (len(texts) - 1)
    while sum(widths) > room:
        # The column that has most to give gives one: long reasons fold before times do.
        give = max(range(len(widths)), key=lambda i: widths[i] - least[i])
        if widths[give] <= least[give]:
            return None
        widths[give] -= 1
    return widths


def _print_table(
    cells: list[list[tuple[str, bool]]], columns: Sequence[Column], title: str | None, records: bool
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    room = shutil.get_terminal_size((10_000, 24)).columns  # COLUMNS, the terminal, or (a file) as wide as it likes
    console = Console(width=room, highlight=False, markup=False, emoji=False)
    headings = [column.heading or column.name.replace("_", " ") for column in columns]
    shown = list(range(len(columns)))
    widths: list[int] | None = None
    while not records:
        texts = [[headings[i], *(row[i][0] for row in cells)] for i in shown]
        widths = _widths(texts, room)
        optional = [i for i in shown if columns[i].optional]
        if widths or not optional:
            break
        shown.remove(optional[-1])
    if title:
        console.print(Text(title, style="bold"))
    if not widths:
        left = max(map(len, headings))
        for number, row in enumerate(cells):
            if number:
                console.print()
            for heading, (text, _) in zip(headings, row, strict=True):
                lines = _fold(text, max(room - left - _GAP, 20))
                console.print(Text(heading.ljust(left + _GAP), style="bold") + Text(lines[0]))
                for line in lines[1:]:
                    console.print(Text(" " * (left + _GAP) + line))
        return
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=True, header_style="bold")
    for i, width in zip(shown, widths, strict=True):
        right = all(row[i][1] for row in cells if row[i][0])
        table.add_column(
            Text("\n".join(_fold(headings[i], width))), width=width, no_wrap=True, justify="right" if right else "left"
        )
    for row in cells:
        table.add_row(*(Text("\n".join(_fold(row[i][0], width))) for i, width in zip(shown, widths, strict=True)))
    console.print(table)
    if left_out := [column.name for i, column in enumerate(columns) if i not in shown]:
        click.echo(f"Left out for lack of room: {', '.join(left_out)} (--format csv has all).", err=True)
