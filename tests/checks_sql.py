"""Writes ``tracker/audit/checks.sql``: the product's own SQL as one file for the sqlite3 shell.

``python -m tests.checks_sql`` also writes its SHA-256 and that of ``verify.sh`` into ``CHANGES.md``; tests compare. It
is made of ``reports/replay``, ``reports/views``, ``audit/checks`` and of what is here: reading the CSV files of an
evidence pack, and comparing the published reports.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from tracker.audit import checks, lines, pack
from tracker.reports import render, tables, views
from tracker.reports.render import Mode

FILE = Path(checks.__file__).with_name("checks.sql")
CHANGES = FILE.parents[1] / "CHANGES.md"

HEAD = """\
-- Checks what an evidence pack of tracker says. `python -m tests.checks_sql` makes it from tracker's own SQL.
--
-- For the sqlite3 shell, 3.40 or newer. First load the pack's CSV files with `.import --csv FILE TABLE`: the segments,
-- joined, into csv_transitions, csv_gaps, csv_sources; zone.csv into csv_zone; each reports/NAME.csv into csv_NAME; and
-- the number, sealed_at and last ids of each checkpoint into csv_seals. It prints a line with `NOT OK:` for each
-- finding, one with `note:` where a person should look, and last how much it has read.
"""

SEALS = {"number": "integer", "sealed_at": "instant"} | dict.fromkeys(
    ("last_transition_id", "last_gap_id", "last_source_id"), "integer"
)
ZONE = {"timezone": "name", "day": "date", "begins_at": "instant", "ends_at": "instant"}


def text() -> str:
    """Return the file."""
    return HEAD + "".join(f"\n{part}" for part in (*_load(), *_replay(), *_checks(), *_reports(), _last()))


def _load() -> Iterator[str]:
    """Yield the SQL that makes the tables of the CSV files."""
    yield "-- The rows of the segments, with the types that they have in the database.\n"
    for table, columns in lines.COLUMNS.items():
        yield _typed(table, columns)
    yield _typed("seals", SEALS, number="id")
    yield _typed("zone", ZONE)
    yield (
        "CREATE TABLE names AS SELECT DISTINCT job_id AS id, cluster, jid FROM transitions;\n"
        "CREATE TABLE clock AS SELECT sealed_at AS at FROM seals ORDER BY id DESC LIMIT 1;\n"
    )
    for table, indexed in (
        ("transitions", "job_id, seq"),
        *((table, "id") for table in lines.TABLES),
        *(("gaps", f"cluster, {column}") for column in ("began_at", "ended_at")),
        *(("seals", column) for column in ("id", "last_transition_id")),
        ("zone", "timezone, day"),
        ("names", "id"),
    ):
        yield f"CREATE INDEX {table}_{indexed.replace(', ', '_')} ON {table} ({indexed});\n"


def _typed(table: str, columns: dict[str, str], **renamed: str) -> str:
    listed = ", ".join(columns)
    fields = ",\n".join(f"    {_value(name, type_)} AS {renamed.get(name, name)}" for name, type_ in columns.items())
    given = f"CREATE TABLE IF NOT EXISTS csv_{table} ({listed});\n"
    return f"{given}CREATE TABLE {table} AS SELECT\n{fields}\nFROM csv_{table};\n"


def _value(name: str, type_: str) -> str:
    """Return the value in a field of a CSV file, in the form of SQLite's tables."""
    if type_ == "name":  # never NULL: '' is the setting's time zone
        return name
    if type_ == "instant":
        name = f"replace(replace({name}, 'T', ' '), 'Z', '')"
    return f"CAST(nullif({name}, '') AS INTEGER)" if type_ == "integer" else f"nullif({name}, '')"


def _replay() -> Iterator[str]:
    yield "-- Each job as its transitions leave it, the clusters, and the reports, as of the last checkpoint.\n"
    for table in ("jobs", "clusters"):
        yield f"CREATE TABLE {table} AS\n{_sql(f'reports/replay/{table}')};\n"
    for columns in ("id", "cluster"):
        yield f"CREATE INDEX jobs_{columns} ON jobs ({columns});\n"
    yield "ANALYZE;\n"
    for view in views.VIEWS:
        yield f"CREATE VIEW {view} AS\n{_sql(f'reports/views/{view}')};\n"


def _checks() -> Iterator[str]:
    yield "-- The checks: each SELECT lists rows that no possible history has.\n"
    for name in ("pack", *checks.CHECKS):
        line = (
            "CASE f.is_note WHEN 1 THEN 'note: ' ELSE 'NOT OK: ' END || f.name || ' id ' || coalesce(f.id, 'empty')"
            " || coalesce(', job ' || f.jid, '') || coalesce(' of cluster ' || f.cluster, '')"
            " || coalesce(', seq ' || f.seq, '') || ': ' || f.message"
        )
        yield f"SELECT {_shown(line)} FROM (\n{_sql(f'audit/checks/{name}')}\n) f;\n"


def _reports() -> Iterator[str]:
    yield "-- The published reports have the rows that follow from the segments, and no others.\n"
    with_views = _columns()
    for view, columns in with_views.items():
        listed = ", ".join(columns)
        fields = ",\n".join(f"    {_field(column)} AS {column}" for column in columns)
        row = " || ',' || ".join(columns)
        yield (
            f"CREATE TABLE IF NOT EXISTS csv_{view} ({listed});\n"
            f"CREATE TABLE right_{view} AS SELECT\n{fields}\nFROM {view};\n"
        )
        for words, one, other in (
            ("has a row that does not follow from the segments", f"csv_{view}", f"right_{view}"),
            ("lacks a row that follows from the segments", f"right_{view}", f"csv_{view}"),
        ):
            line = f"'NOT OK: reports/{view}.csv {words}: ' || substr({row}, 1, 300)"
            yield f"SELECT {_shown(line)} FROM (SELECT {listed} FROM {one} EXCEPT SELECT {listed} FROM {other});\n"
        yield (
            f"SELECT 'NOT OK: reports/{view}.csv has ' || c.rows || ' rows, but from the segments follow ' || r.rows\n"
            f"FROM (SELECT count(*) AS rows FROM csv_{view}) c, (SELECT count(*) AS rows FROM right_{view}) r\n"
            "WHERE c.rows <> r.rows;\n"
        )
    unknown = "'NOT OK: reports/' || substr(name, 5) || '.csv is no report of tracker''s'"
    yield (
        f"SELECT {_shown(unknown)} FROM sqlite_schema\n"
        "WHERE name LIKE 'csv_report_%' AND 'right' || substr(name, 4) NOT IN (SELECT name FROM sqlite_schema);\n"
    )


def _columns() -> dict[str, list[str]]:
    """Return the columns of each view, which SQLite names for the views over empty tables."""
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        for part in (*_load(), *_replay()):
            for statement in part.split(";\n"):
                connection.exec_driver_sql(statement)
        return {
            view: [row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({view})")] for view in views.VIEWS
        }


def _field(column: str) -> str:
    """Return the field of a published report as `pack.report_line` writes it, without the quotes of CSV."""
    type_ = tables.column_type(column)
    if column in pack._UNKNOWN:
        return "''"
    return f"coalesce({column if type_ == 'text' else lines.field(column, type_, 'sqlite')}, '')"


def _last() -> str:
    counted = [(table, table) for table in ("jobs", "transitions", "gaps")]
    counts = " || ', ' || ".join(f"(SELECT count(*) FROM {table}) || ' {name}'" for table, name in counted)
    return f"SELECT 'checked ' || {counts} || ', {len(views.VIEWS)} reports';\n"


def _shown(line: str) -> str:
    """Return SQL for *line* without characters that a terminal takes for a command or a line end."""
    for number in (10, 13, 27, 155):
        line = f"replace({line}, char({number}), '?')"
    return line


def _sql(name: str) -> str:
    return render.sql(name, "sqlite", Mode.PACK)


def main() -> None:
    FILE.write_text(text(), encoding="utf-8")
    changes = CHANGES.read_text(encoding="utf-8")
    for name in ("verify.sh", "checks.sql"):
        sha256 = hashlib.sha256(FILE.with_name(name).read_bytes()).hexdigest()
        changes = re.sub(rf"[0-9a-f]{{64}}(?=  {name}\n)", sha256, changes)
    CHANGES.write_text(changes, encoding="utf-8")


if __name__ == "__main__":
    main()
