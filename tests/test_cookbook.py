"""The cookbook, SQL.md, says what happens: each query, run on both databases, gives the output printed there.

So do the ways into other programs, as far as those are on this machine.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.history import answer, register
from tracker import cli, database
from tracker.models import GAPS
from tracker.reports import tables
from tracker.status import Cause

SQL = Path(tables.__file__).with_name("SQL.md").read_text(encoding="utf-8")
W1, W5 = "w1a2b3c4d", "w5e6f7a8b"

# All of it is past, and whatever is still open was seen after its deadline, so that no answer depends on the day.
JOBS = """
DSR-1001 export  w1a2b3c4d received 01-07T08:30 submitted 01-07T09:00 registered 01-07T09:00
    waiting 01-07T09:00  waiting 01-11T23:05  running 01-12T00:20  running 01-12T01:55  done 01-12T02:10
DSR-1001 removal w1a2b3c4d received 01-07T08:30 submitted 01-12T12:00 registered 01-12T12:00
    created 01-12T12:00  waiting 01-12T23:05  waiting 01-16T23:05  running 01-17T01:10  done 01-17T02:40
DSR-1002 export  w1a2b3c4d received 01-09T15:00 submitted 01-10T13:00 registered 01-10T13:01
    waiting 01-10T13:01  waiting 01-15T23:05  running 01-15T23:40  running 01-17T23:50  done 01-19T20:05
DSR-1003 export  w1a2b3c4d received 01-18T10:15 submitted 01-20T09:30 registered 01-23T10:00
    waiting 01-23T10:00  waiting 01-24T23:05  running 01-24T23:35  done 01-25T00:40
DSR-1004 export  w1a2b3c4d received 01-15T17:20 submitted 01-16T10:00 registered 01-16T10:00
    waiting 01-16T10:00  waiting 01-17T23:50  not_found 01-20T01:00  waiting 01-20T07:00  running 01-21T00:30
    running 01-21T03:40  done 01-21T04:00
DSR-1005 removal w1a2b3c4d received 01-03T09:00 submitted 01-28T11:00 registered 01-28T11:00
    waiting 01-28T11:00  waiting 02-02T23:05  running 02-02T23:50  running 02-03T22:50  done 02-04T01:00
DSR-1006 export  w1a2b3c4d received 02-05T12:00 submitted 02-10T08:00 registered 02-10T08:00
    waiting 02-10T08:00  waiting 03-05T21:00  running 03-06T00:10  running 03-06T01:00  done 03-06T04:00
DSR-1007 removal w1a2b3c4d received 02-12T10:00 submitted 02-13T10:00 registered 02-13T10:00
    waiting 02-13T10:00  waiting 02-17T23:05  error 02-18T01:00
DSR-1008 export  w1a2b3c4d received 02-20T10:00 submitted 02-21T10:00 registered 02-22T16:00
    not_found 02-22T16:00  not_found 02-24T17:00
DSR-1009 removal w5e6f7a8b received 02-14T10:00 submitted 02-17T10:00 registered 02-17T10:00
    waiting 02-17T10:00  waiting 02-21T23:05  halted 02-22T01:00  halted 03-20T08:00
DSR-1010 export  w1a2b3c4d received 02-27T10:00 submitted 02-28T09:00 registered 02-28T09:00
    waiting 02-28T09:00  waiting 03-04T23:05  running 03-04T23:50  running 03-05T01:10  done 03-05T01:30
"""
OUTAGES = [
    ("01-18T00:00", "01-19T20:00", Cause.NOT_RUNNING),
    ("02-03T22:55", "02-04T00:55", Cause.UNREACHABLE),
]


def section(title: str) -> str:
    return SQL.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2025-{text}:00").replace(tzinfo=UTC)


@pytest.fixture
def story(engine: sa.Engine) -> sa.Engine:
    """Two companies' winter: most jobs end well, one late, two in doubt, one fails, one is lost, one is stuck."""
    for text in re.split(r"\n(?=DSR)", JOBS.strip()):
        head, *polls = text.split("\n")
        reference, kind, cluster, *times = head.split()
        facts: dict[str, Any] = {f"{name}_at": at(time) for name, time in zip(times[::2], times[1::2], strict=True)}
        registered_at = facts.pop("registered_at")
        jid = f"{reference[4:]}{kind[0]}"
        job = register(engine, jid, cluster, at=registered_at, kind=kind, reference=reference, **facts)
        words = " ".join(polls).split()
        answer(engine, job, *((status, at(time)) for status, time in zip(words[::2], words[1::2], strict=True)))
    with database.writing(engine) as connection:
        rows = [{"cluster": W1, "began_at": at(a), "ended_at": at(b), "cause": cause} for a, b, cause in OUTAGES]
        connection.execute(sa.insert(GAPS), rows)
    return engine


def recipes(dialect: str) -> dict[str, tuple[str, str]]:
    """Return what the cookbook asks: by title, the query for *dialect* and what is printed below it."""
    found = {}
    for part in re.split(r"^(?=\*\*)", section("Questions and answers"), flags=re.MULTILINE)[1:]:
        queries = re.findall(r"^```sql\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
        (output,) = re.findall(r"^```text\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
        other = {"sqlite": "-- PostgreSQL\n", "postgresql": "-- SQLite\n"}[dialect]
        (query,) = (query for query in queries if not query.startswith(other))
        found[part.split("**")[1]] = query, output
    return found


def cell(value: Any) -> str:
    """Return *value* as both databases' rows are printed: times are UTC, to the second."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        value = f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"
    if isinstance(value, str):
        return re.sub(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.\d{6}$", r"\1", value)
    return str(value) if isinstance(value, date) else f"{float(value):.10g}"


def printed(engine: sa.Engine, query: str) -> str:
    """Return what *query* gives as a table of text."""
    with database.reading(engine) as connection:
        result = connection.exec_driver_sql(query)
        names, rows = list(result.keys()), [list(row) for row in result]
    table = [names, *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = [all(isinstance(row[i], int | float | Decimal | None) for row in rows) for i in range(len(names))]
    lines = (
        "  ".join(text.rjust(w) if r else text.ljust(w) for text, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in table
    )
    return "".join(f"{line}\n" for line in lines)


def test_each_question_has_the_printed_answer(story: sa.Engine) -> None:
    """Ten questions: query and output are real."""
    asked = recipes(story.dialect.name)
    assert len(asked) == 10
    assert [title.split(".")[0] for title in asked] == [str(number) for number in range(1, 11)]
    assert {title: printed(story, query) for title, (query, _) in asked.items()} == {
        title: output for title, (_, output) in asked.items()
    }


def test_duckdb_reads_our_csv_with_its_types(story: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times, dates, numbers and texts are what they were, and the cookbook's query says what the database says."""
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed: pip install duckdb")
    monkeypatch.setenv("TRACKER_DATABASE_URL", story.url.render_as_string(hide_password=False))
    register(story, "0042", W1, at=at("03-10T10:00"), reference="0043")
    assert cli.main(["report", "deadlines", "-o", "deadlines.csv"]) == 0
    (query,) = re.findall(r"^```sql\n(.*?read_csv.*?)^```$", section("Open it elsewhere"), re.DOTALL | re.MULTILINE)
    (source,) = re.findall(r"FROM (read_csv\(.*\))$", query, re.MULTILINE)
    with duckdb.connect() as duck:
        types = {name: str(type_) for name, type_, *_ in duck.execute(f"DESCRIBE FROM {source}").fetchall()}
        texts = duck.execute(f"SELECT reference FROM {source} WHERE jid = '0042'").fetchall()
        found = duck.execute(query).fetchall()
    times = [name for name in types if name.endswith(("_at", "_after", "_by", "_at_first"))]
    assert {types[name] for name in times} == {"TIMESTAMP WITH TIME ZONE"}
    assert [types[n] for n in ("jid", "deadline_on", "days_left", "amendments")] == ["VARCHAR", "DATE"] + ["BIGINT"] * 2
    assert texts == [("0043",)]
    with database.reading(story) as connection:
        rows = [row._mapping for row in connection.execute(sa.select(tables.typed(connection, "report_deadlines")))]
    assert [row[0] for row in found] == sorted({row["verdict"] for row in rows})
    for word, jobs, longest in found:
        its = [row for row in rows if row["verdict"] == word]
        spans = [row["done_by"] - row["received_at"] for row in its if row["done_by"] and row["received_at"]]
        assert (jobs, longest) == (len(its), max(spans, default=None))


def test_sqlite3_and_psql_open_it_read_only(story: sa.Engine, dialect: str) -> None:
    """The cookbook's lines show a view, or what its columns mean, and cannot write."""
    program, shown_word = {"sqlite": ("sqlite3", W5), "postgresql": ("psql", "Open jobs whose next poll is")}[dialect]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    (line,) = re.findall(rf"^(?:PG.* )?{program} .*$", section("Open it elsewhere"), re.MULTILINE)
    url = story.url.set(drivername="postgresql").render_as_string(hide_password=False)
    line = line.replace("postgresql://user@host/name", f"'{url}'")
    shown = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert shown_word in shown.stdout
    line = re.sub(r"'[^']*report_clusters'", "'DELETE FROM clusters'", line)
    wrong = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert wrong.returncode != 0
    assert re.search("readonly|read-only", wrong.stderr)
