"""How a table is laid out in a terminal: folded cells, then fewer columns, then a list of records, a line a cell.

Jids, times and names stay whole where there is room for them: a line ends at blanks, and within paths and URLs.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from itertools import zip_longest
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
            lines[-1] += piece[len(piece.rstrip()) :]  # the blank before the next piece
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
        # Shrink the column with the most spare width: long reasons fold before times do.
        give = max(range(len(widths)), key=lambda i: widths[i] - least[i])
        if widths[give] <= least[give]:
            return None
        widths[give] -= 1
    return widths


def _print_row(cells: Sequence[tuple[str, bool]], widths: Sequence[int], *, bold: bool = False) -> None:
    """Print a row of folded cells, each a text and whether it is aligned to the right."""
    from rich.cells import cell_len

    folded = [_fold(text, width) for (text, _), width in zip(cells, widths, strict=True)]
    for line in zip_longest(*folded, fillvalue=""):
        shown = ""
        for text, (_, right), width in zip(line, cells, widths, strict=True):
            space = " " * (width - cell_len(text))
            shown += (space + text if right else text + space) + " " * _GAP
        click.secho(shown.rstrip(), bold=bold)


def print_table(
    cells: Sequence[Sequence[tuple[str, bool]]], columns: Sequence[Column], title: str, records: bool
) -> None:
    """Print a table of *cells* (each a text, and whether it is aligned to the right) on standard output."""
    room = shutil.get_terminal_size((10_000, 24)).columns  # COLUMNS, the terminal, or (a file) as wide as it likes
    headings = [column.heading or column.name.replace("_", " ") for column in columns]
    shown = list(range(len(columns)))
    widths: list[int] | None = None
    while not records:
        widths = _widths([[headings[i], *(row[i][0] for row in cells)] for i in shown], room)
        optional = [i for i in shown if columns[i].optional]
        if widths or not optional:
            break
        shown.remove(optional[-1])
    for line in title.split("\n") if title else ():
        click.secho("\n".join(_fold(line, room)), bold=True)
    if not widths:
        left = max(map(len, headings))
        for number, row in enumerate(cells):
            if number:
                click.echo()
            for heading, (text, _) in zip(headings, row, strict=True):
                _print_row([(heading, False), (text, False)], [left, max(room - left - _GAP, 20)])
        return
    rights = [all(row[i][1] for row in cells if row[i][0]) for i in shown]
    _print_row([(headings[i], right) for i, right in zip(shown, rights, strict=True)], widths, bold=True)
    for row in cells:
        _print_row([(row[i][0], right) for i, right in zip(shown, rights, strict=True)], widths)
    if left_out := [column.name for i, column in enumerate(columns) if i not in shown]:
        click.echo(f"Columns that do not fit: {', '.join(left_out)} (--format csv has all).", err=True)
