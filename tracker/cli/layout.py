"""How a table is laid out in a terminal: folded cells, then fewer columns, then a list of records, a line a cell.

Jids, times and names stay whole where there is room for them: a line ends at blanks, and within paths and URLs.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from typing import Final

import click

from tracker.reports.catalog import Column

_GAP: Final = 2
"""Columns of space between two cells."""


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


def print_table(
    cells: list[list[tuple[str, bool]]], columns: Sequence[Column], title: str | None, records: bool
) -> None:
    """Print *cells* (text, and whether it stands on the right) on standard output."""
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
