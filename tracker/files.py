"""Rows out of files that people and spreadsheets make: CSV and JSON Lines, in bounded memory.

Owns what a file may look like: its encoding, separator and header, and what a spreadsheet leaves in it. Leaves alone
what a value may be (``text``, ``intake``, ``operate``).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, BinaryIO, Final, NamedTuple

from tracker import text
from tracker.errors import InvalidField, Refused

LONGEST_ROW: Final = 65_536
"""Bytes of a row: several times what its longest values need, so that memory is bounded."""

_SEPARATOR: Final = re.compile(r'"?sep=([,;\t|])"?\1*', re.IGNORECASE)
"""A first line that names the separator for Excel."""
_AS_UTF_8: Final = "save the file as UTF-8 (in Excel: CSV UTF-8)"
_NOT_UTF_8: Final = f"is not UTF-8 text, but perhaps Windows-1252 (CP1252): {_AS_UTF_8}"


class Record(NamedTuple):
    """A row of a file.

    Attributes:
        line: The physical line on which it begins, from 1.
        values: The values by column; stripped, without empty cells.
        problem: Why it cannot be read; then there are no values.
    """

    line: int
    values: dict[str, str]
    problem: Refused | None = None


@dataclass(slots=True)
class Notes:
    """What was done to a file's values that its owner should know.

    Attributes:
        stripped: Jids and references that had blanks or invisible characters around them.
        first_stripped: The line of the first.
    """

    stripped: int = 0
    first_stripped: int = 0


def read(file: BinaryIO, columns: Collection[str], notes: Notes, *, others: bool = False) -> Iterator[Record]:
    """Yield the rows of a file, one that cannot be read included.

    A file whose first character is ``{`` is JSON Lines, an object a line. Any other is CSV with a header; comma,
    semicolon or tab is between the cells, whichever the header has most of, unless a first line such as ``sep=;`` says.
    UTF-8, with or without a byte order mark. Ignored are rows without any value, columns without a heading and values,
    and the header where it is repeated, as after ``cat a.csv b.csv``.

    Args:
        file: Open for reading bytes.
        columns: What a row may say. Only ``jid`` must be there.
        notes: Is kept up to date.
        others: Columns besides these are ignored, not refused.

    Raises:
        Refused: The file is no such file, or goes on with another header.
    """
    lines = _Lines(file)
    first = _first(lines)
    if first.startswith("["):
        raise Refused("the file is a JSON array; JSON Lines has an object a line, as from: jq -c '.[]' FILE")
    make = _json_records if first.startswith("{") else _csv_records
    yield from make(first, lines, columns, notes, others)


class _TooLong(Exception):
    """A row has more bytes than `LONGEST_ROW`."""


class _Lines:
    """The physical lines of a file, an iterator that goes on after `_TooLong`.

    Attributes:
        number: Of the last line, from 1.
        is_utf_8: Whether the lines since `begin` are; else they have surrogates in them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.number = 0
        self.is_utf_8 = True
        self._file = file
        self._bytes = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(LONGEST_ROW + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._bytes += len(line)
        if self._bytes > LONGEST_ROW:
            while not line.endswith(b"\n") and (line := self._file.readline(LONGEST_ROW)):
                pass
            raise _TooLong(f"is longer than {LONGEST_ROW} bytes")
        line = line.removeprefix(b"\xef\xbb\xbf")  # a second file's byte order mark can be in the middle
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.is_utf_8 = False
            return line.decode(errors="surrogateescape")

    def begin(self) -> int:
        """Begin a row, and return the number of its first line."""
        self._bytes, self.is_utf_8 = 0, True
        return self.number + 1


def _first(lines: _Lines) -> str:
    """Return the next line that is not blank; raise Refused if it cannot be the first of a file of ours."""
    try:
        first = next((line for line in lines if text.strip(line)), None)
    except _TooLong as error:
        raise Refused(f"line {lines.number} {error}: this is neither CSV nor JSON Lines") from None
    if first is None:
        raise Refused("the file is empty: CSV needs a header, as in: jid,cluster,kind")
    if first.startswith("PK\x03\x04"):
        raise Refused(f"the file is a workbook or another ZIP archive, not text: {_AS_UTF_8}")
    if "\0" in first or first.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise Refused(f"line {lines.number}: the file is UTF-16 text: {_AS_UTF_8}")
    if not lines.is_utf_8:
        raise Refused(f"line {lines.number} {_NOT_UTF_8}")
    return first


def _record(line: int, cells: dict[str, str], notes: Notes) -> Record:
    values = {name: value for name, cell in cells.items() if (value := text.strip(cell))}
    for name in ("jid", "reference"):
        if name in values and values[name] != cells[name]:
            notes.stripped += 1
            notes.first_stripped = notes.first_stripped or line
    return Record(line, values)


def _csv_records(first: str, lines: _Lines, columns: Collection[str], notes: Notes, others: bool) -> Iterator[Record]:
    if separator := _SEPARATOR.fullmatch(first.strip()):
        lines.begin()
        first = _first(lines)
    form: dict[str, Any] = {"skipinitialspace": True, "strict": True}
    form["delimiter"] = (
        separator[1] if separator else max(",;\t", key=first.count)
    )  # a comma if the header has no separator
    try:
        (cells,) = csv.reader([first], **form)
    except csv.Error as error:
        raise Refused(f"line {lines.number}: the header is not CSV: {_why(error)}") from None
    header = _header(cells, lines.number, columns, others)
    headings, header_line = {*header, *columns, ""}, lines.number
    reader = csv.reader(lines, **form)
    while True:
        line = lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, _TooLong) as error:
            # Reading continues with the next line, so that only the row with the open quote is lost.
            upto = f" (lines {line} to {lines.number} were not read)" if lines.number > line else ""
            yield Record(line, {}, Refused(f"is not a row of CSV: {_why(error)}{upto}"))
            continue
        if not lines.is_utf_8:
            yield Record(line, {}, Refused(_NOT_UTF_8))
            continue
        names = [text.strip(cell).lower() for cell in cells]
        if "".join(names) in ("", "sep="):
            continue
        if "jid" in names and headings.issuperset(names):
            if [*filter(None, names)] == [*filter(None, header)]:
                continue
            # Otherwise the rows below it are read by the first header, often without an error.
            raise Refused(
                f"line {line}: this header has other columns than the one in line {header_line}. The rows from here on"
                " were not read: give each file separately"
            )
        stray = [place for place, (name, cell) in enumerate(zip_longest(header, names), 1) if cell and not name]
        if stray:
            value = cells[stray[0] - 1]
            yield Record(line, {}, Refused(f"has {value[:60]!r} in column {stray[0]}, which has no heading"))
        elif len(cells) < len(header):
            yield Record(line, {}, Refused(f"has fewer cells ({len(cells)}) than the header ({len(header)})"))
        else:
            named = zip(header, cells, strict=False)
            yield _record(line, {name: cell for name, cell in named if name in columns}, notes)


def _why(error: Exception) -> str:
    """Return in plain words what is wrong with a row."""
    if "unexpected end" in str(error):
        return "a quote is not closed"
    if "new-line character" in str(error):
        return "a line ends with CR alone: save the file with the line ends of Windows or Linux"
    return str(error)


def _header(cells: list[str], line: int, columns: Collection[str], others: bool) -> list[str]:
    """Return the names of the columns, "" for one without a heading; those at the end are dropped."""
    header = [text.strip(cell).lower() for cell in cells]
    while header and not header[-1]:
        header.pop()
    known = f"allowed columns: {', '.join(columns)}"
    if "jid" not in header:
        raise Refused(f"line {line}: there is no column jid; the first line must be a header; {known}")
    for name in filter(None, header):
        if name not in columns and not others:
            raise Refused(f"line {line}: the column {name[:60]!r} is unknown; {known}")
        if name in columns and header.count(name) > 1:
            raise Refused(f"line {line}: the column {name} appears twice")
    return header


def _json_records(first: str, lines: _Lines, columns: Collection[str], notes: Notes, others: bool) -> Iterator[Record]:
    line = first
    while True:
        if not lines.is_utf_8:
            yield Record(lines.number, {}, Refused(_NOT_UTF_8))
        elif text.strip(line):
            try:
                yield _record(lines.number, _json_object(line, columns, others), notes)
            except Refused as error:
                yield Record(lines.number, {}, error)
        lines.begin()
        try:
            line = next(lines)
        except StopIteration:
            return
        except _TooLong as error:
            yield Record(lines.number, {}, Refused(str(error)))
            line = ""


def _json_object(line: str, columns: Collection[str], others: bool) -> dict[str, str]:
    """Return what a line of JSON Lines says in *columns*; raise Refused if it is wrong."""
    try:
        said = text.parse_json(line)
    except json.JSONDecodeError as error:
        raise Refused(f"is not a JSON object on one line: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # a key twice, a number of 5,000 digits, nested without end
        raise Refused(f"is not a JSON object on one line: {error}") from None
    if not isinstance(said, dict):
        raise Refused('is not a JSON object, such as {"jid": "…"}')
    if unknown := [key for key in said if key not in columns and not others]:
        raise Refused(f"has the unknown key {unknown[0][:60]!r}; allowed keys: {', '.join(columns)}")
    said = {key: value for key, value in said.items() if key in columns and value is not None}
    for key, value in said.items():
        if not isinstance(value, str):
            raise InvalidField(key, f"must be text, in quotes, not {json.dumps(value)[:60]}")
    return said
