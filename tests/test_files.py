"""Files as people and spreadsheets make them: what is read, what is ignored, what is refused by name and line."""

from __future__ import annotations

import io
from typing import Any

import pytest

from tracker.errors import InvalidField, Refused
from tracker.files import Notes, Record, read

COLUMNS = ("jid", "cluster", "kind", "reference")


def records(text: str | bytes, notes: Notes | None = None, **given: Any) -> list[Record]:
    file = io.BytesIO(text if isinstance(text, bytes) else text.encode())
    return list(read(file, COLUMNS, notes or Notes(), **given))


def good(text: str | bytes, **given: Any) -> list[tuple[int, dict[str, str]]]:
    found = records(text, **given)
    assert [record.problem for record in found] == [None] * len(found)
    return [(record.line, record.values) for record in found]


CSV = "jid,cluster,kind,reference\na,w1,export,DSR-1\n"
JSON = '{"jid": "a", "cluster": "w1", "kind": "export", "reference": '
AS_PEOPLE_MAKE_THEM = [
    CSV,
    "\ufeff" + CSV,
    "\ufeff" + CSV.replace("jid", '"jid"'),
    CSV.replace("\n", "\r\n"),
    CSV.replace(",", ";"),
    CSV.replace(",", "\t"),
    CSV.replace(",", " ,  "),
    CSV.removesuffix("\n"),
    CSV.replace("jid", " JID ").replace("a,w1", '"a", "w1"'),
    'reference;kind;cluster;jid\n"DSR-1";export;w1;"a"\n',
    JSON + '"DSR-1"}\n',
    "\ufeff" + JSON + '" DSR-1 "}',
]


@pytest.mark.parametrize("text", AS_PEOPLE_MAKE_THEM)
def test_files_as_people_make_them(text: str) -> None:
    """Comma, semicolon and tab, a byte order mark, CRLF, blanks, quotes, any order of columns; JSON Lines."""
    ((_, values),) = good(text)
    assert values == {"jid": "a", "cluster": "w1", "kind": "export", "reference": "DSR-1"}


def test_lines_are_counted_as_an_editor_does() -> None:
    """A row's line is the physical line on which it begins: after blank lines, and after cells with line breaks."""
    text = '\n\njid,reference\n\na,"x\ny"\nb,\n\n"c\n\n",z\n\nd,""\n'
    assert [(line, values["jid"]) for line, values in good(text)] == [(5, "a"), (7, "b"), (9, "c"), (13, "d")]
    assert [line for line, _ in good('\n{"jid": "a"}\n\n  \n{"jid": "b"}')] == [2, 5]


def test_what_a_spreadsheet_leaves_in_a_file_is_ignored() -> None:
    """Columns without a heading and rows without a value; a value in such a column is refused, since it was meant."""
    text = "sep=;\njid;kind;;\n;;;\na;export;;\nb;removal\n \u200b;;\n;;\nc;;;x\n;export;;\n"
    *rows, stray, without_jid = records(text)
    assert [(line, values) for line, values, _ in rows] == [
        (4, {"jid": "a", "kind": "export"}),
        (5, {"jid": "b", "kind": "removal"}),
    ]
    assert (stray.line, str(stray.problem)) == (8, "has 'x' in column 4, which has no heading")
    assert (without_jid.line, without_jid.values) == (9, {"kind": "export"})
    assert good("jid;;kind\na;;export\n") == [(2, {"jid": "a", "kind": "export"})]


def test_the_first_line_of_excel_tells_the_separator() -> None:
    """``sep=`` wins over what the header has most of; quotes and ghost columns may be around it."""
    for first in ("sep=;", '"sep=;"', "SEP=;;;", "\ufeffsep=;"):
        assert good(f"{first}\r\njid;reference\r\na;x,y\r\n") == [(3, {"jid": "a", "reference": "x,y"})]
    assert good("sep=|\njid|kind\na|export\n") == [(3, {"jid": "a", "kind": "export"})]
    with pytest.raises(Refused, match="the file is empty"):
        records("sep=;\n")


def test_a_header_in_the_middle() -> None:
    """After ``cat a.csv b.csv`` the same header is ignored; another one stops the reading, with both lines named."""
    one = "sep=,\njid,kind\na,export\n"
    assert [values["jid"] for _, values in good(one + "\ufeff" + one.replace("a,", "b,"))] == ["a", "b"]
    assert [values["jid"] for _, values in good("jid\na\n JID \nb\n")] == ["a", "b"]
    for other in ("jid,reference", "kind,jid", "jid,kind,reference", "reference,jid"):
        found: list[Record] = []
        with pytest.raises(Refused, match=r"line 5: this header has other columns than the one in line 2. The rows"):
            found.extend(iter(read(io.BytesIO(f"\njid,kind\na,export\n\n{other}\n".encode()), COLUMNS, Notes())))
    assert good("jid,kind\njid,export\n") == [(2, {"jid": "jid", "kind": "export"})]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "the file is empty: CSV needs a header, as in: jid,cluster,kind"),
        (b"jid,name\na,b\n", "line 1: the column 'name' is unknown; allowed columns: jid, cluster, kind, reference"),
        (b"a,b\nc,d\n", "line 1: there is no column jid; the first line must be a header"),
        (b"\n\njid,kind,jid\n", "line 3: the column jid appears twice"),
        (b'"jid\n', "line 1: the header is not CSV"),
        (
            b"jid,\xe5\n",
            "line 1 is not UTF-8 text, but perhaps Windows-1252 (CP1252): save the file as UTF-8 (in Excel",
        ),
        ("jid,kind\na,export\n".encode("utf-16"), "line 1: the file is UTF-16 text: save the file as UTF-8"),
        (b'[{"jid": "a"}]', "the file is a JSON array; JSON Lines has an object a line, as from: jq -c"),
        (b"PK\x03\x04\x14\0\x06\0", "the file is a workbook or another ZIP archive, not text: save the file as UTF-8"),
        (b"jid,kind\ra,export\r", "line 1: the header is not CSV: a line ends with CR alone: save the file with"),
        (b"x" * 70_000, "line 1 is longer than 65536 bytes"),
    ],
)
def test_files_that_cannot_be_read(text: bytes, problem: str) -> None:
    """They are refused as a whole, with the line, what is wrong and what to do."""
    with pytest.raises(Refused) as caught:
        records(text)
    assert problem in str(caught.value)


CSV_ROWS = [
    (b"a,b,c", None, "has 'c' in column 3, which has no heading"),
    (b"a", None, "has fewer cells (1) than the header (2)"),
    (b'"a"b,', None, "is not a row of CSV"),
    (b"a,b\rc,d", None, "a line ends with CR alone"),
    (b"a,\xe5", None, "is not UTF-8 text, but perhaps Windows-1252 (CP1252)"),
    (b"x" * 70_000 + b",", None, "longer than 65536 bytes"),
]
JSON_ROWS = [
    (b'{"jid": "a"', None, "not a JSON object on one line"),
    (b'["a"]', None, "not a JSON object"),
    (b'{"jid": "a", "customer": 1, "Kind": 2}', None, "has the unknown key 'customer'; allowed keys: jid, cluster"),
    (b'{"jid": "a", "jid": "b"}', None, "a key appears twice"),
    (b'{"jid": 17}', "jid", "must be text, in quotes, not 17"),
    (b'{"jid": "a", "reference": {"jid": "b"}}', "reference", "must be text"),
    (b'{"jid": NaN}', None, "NaN is not JSON"),
    (b'{"jid": "\xe5"}', None, "is not UTF-8 text"),
    (b'{"jid": "a\0"}', None, "Invalid control character"),
    (b"[" * 30_000, None, "not a JSON object on one line"),
    (b'{"jid": "' + b"x" * 70_000 + b'"}', None, "longer than 65536 bytes"),
]


def test_rows_that_cannot_be_read() -> None:
    """A wrong row is named with its line, its field where there is one, and the reason; those around it are read."""
    for first, fine, cases in (
        (b"jid,reference\n", b"good,\n", CSV_ROWS),
        (b'{"jid": "first"}\n', b'{"jid": "good"}\n', JSON_ROWS),
    ):
        for wrong, field, problem in cases:
            found = {record.line: record for record in records(first + fine + wrong + b"\n" + fine)}
            assert found[2].values == found[4].values == {"jid": "good"}
            assert problem in str(found[3].problem)
            assert len(str(found[3].problem)) < 200
            assert (found[3].problem.field if isinstance(found[3].problem, InvalidField) else None) == field


def test_a_quote_that_is_not_closed() -> None:
    """What it swallows is named, to the file's end or to where it is given up, and reading goes on after that."""
    for last in (b"", b"\n"):
        (fine, refused) = records(b'jid,reference\na,b\nc,"d\ne,f\ng,h' + last)
        assert (fine.line, refused.line) == (2, 3)
        assert "a quote is not closed (lines 3 to 5 were not read)" in str(refused.problem)
        refused, *rest = records(b'jid,reference\n"a,b\n' + b"x,y\n" * 40_000 + last)
        assert "longer than 65536 bytes (lines 2 to " in str(refused.problem)
        given_up = int(str(refused.problem).split()[-4])
        assert [row.line for row in rest] == list(range(given_up + 1, 40_003))


def test_blanks_and_invisible_characters_around_a_value_are_removed_and_counted() -> None:
    """A jid or reference keeps what is inside it; the first line is kept, for the warning."""
    notes = Notes()
    text = 'jid,kind,reference\na,export,R\n\u200bb\u00a0, export ,"\tR 2 "\n"c\u00ad\u2009",,x\u200by\n'
    values = [record.values for record in records(text, notes)]
    assert values == [
        {"jid": "a", "kind": "export", "reference": "R"},
        {"jid": "b", "kind": "export", "reference": "R 2"},
        {"jid": "c", "reference": "x\u200by"},
    ]
    assert notes == Notes(stripped=3, first_stripped=3)


def test_other_columns_are_ignored_where_that_is_asked_for() -> None:
    """A file of ``tracker jobs`` names jobs by two of its twenty columns; only those are looked at."""
    assert good("state,jid,state,polls\nopen,a,x,3\n", others=True) == [(2, {"jid": "a"})]
    assert good('{"jid": "a", "polls": 3, "cluster": null}\n', others=True) == [(1, {"jid": "a"})]
    with pytest.raises(Refused, match="there is no column jid"):
        records("state,polls\nopen,3\n", others=True)
