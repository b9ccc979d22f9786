"""The canonical lines: each sealed row as one CSV line, the same bytes from SQLite and PostgreSQL.

Owns the columns, their order and their form, which FORMAT.md describes: text always in quotes, integers bare, NULL
empty, instants ``2026-11-26T22:01:47.123456Z``, dates ``2026-11-26``. The CHECKs refuse control characters, so a row is
one line of the file. A row that was forced past the CHECKs still has a line; the verifiers find it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

import sqlalchemy as sa

TABLES: Final = ("transitions", "gaps", "sources")
"""What is sealed, in the order in which checkpoints name it."""

COLUMNS: Final[dict[str, dict[str, str]]] = {
    "transitions": {
        **dict.fromkeys(("cluster", "jid"), "text"),
        **dict.fromkeys(("id", "job_id", "seq"), "integer"),
        **dict.fromkeys(("action", "from_status", "to_status", "from_state", "to_state"), "text"),
        **dict.fromkeys(("last_seen_at", "observed_at", "server_date", "claimed_at"), "instant"),
        **dict.fromkeys(("source_id", "polls"), "integer"),
        **dict.fromkeys(("actor", "anomaly", "reason", "kind", "reference"), "text"),
        **dict.fromkeys(("received_at", "submitted_at"), "instant"),
        "extended_on": "date",
    },
    "gaps": {
        "id": "integer",
        "cluster": "text",
        **dict.fromkeys(("began_at", "ended_at"), "instant"),
        **dict.fromkeys(("cause", "detail", "actor"), "text"),
    },
    "sources": {
        "id": "integer",
        **dict.fromkeys(("cluster", "base_url", "path", "timezone"), "text"),
        **dict.fromkeys(("archive_days", "lost_after_polls", "lost_after_seconds"), "integer"),
        **dict.fromkeys(("legal_timezone", "version"), "text"),
        "recorded_at": "instant",
    },
}
"""By table, the type of each column, in the order of the line."""

_AT_ONCE: Final = 1000  # rows that are fetched together: some hundred kB


def header(table: str) -> bytes:
    """Return the first line of a segment of *table*."""
    return ",".join(COLUMNS[table]).encode() + b"\n"


def expression(table: str, dialect: str) -> str:
    """Return the SQL of the line, without LF, of a row ``t`` of *table*; a transition needs its job ``j``, too.

    It is for ``exec_driver_sql``: it holds colons, which ``sa.text`` takes for parameters, and no percent sign.
    """
    fields = []
    for column, type_ in COLUMNS[table].items():
        name = f"{'j' if table == 'transitions' and column in ('cluster', 'jid') else 't'}.{column}"
        fields.append(f"coalesce({field(name, type_, dialect)}, '')")
    return " || ',' || ".join(fields)


def field(name: str, type_: str, dialect: str) -> str:
    """Return the SQL of one field, NULL for NULL; the *type_* ``double``, in reports only, has six decimals."""
    if type_ == "text":
        return f"'\"' || replace({name}, '\"', '\"\"') || '\"'"
    if type_ == "instant" and dialect == "sqlite":
        return f"replace({name}, ' ', 'T') || 'Z'"
    if type_ == "instant":
        return f"to_char({name} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    if type_ == "date" and dialect != "sqlite":
        return f"to_char({name}, 'YYYY-MM-DD')"
    if type_ == "double":
        # PostgreSQL casts 15 digits only, and seconds since 1990 have 16: so take the parts before and after the point.
        parts = f"CAST(trunc({name}) AS numeric) + CAST({name} - trunc({name}) AS numeric)"
        text = f"printf('%.6f', {name})" if dialect == "sqlite" else f"CAST(round({parts}, 6) AS text)"
        return f"CASE WHEN {name} IS NOT NULL THEN {text} END"
    return f"CAST({name} AS text)"


def stream(
    connection: sa.Connection, table: str, after: int, upto: int | None = None, most: int | None = None
) -> Generator[tuple[int, bytes], None, None]:
    """Yield the id and the line, LF included, of the rows of *table* with after < id <= upto, at most *most*.

    In bounded memory; the statement stays open until the iterator is closed. A transition without a job has NULL for
    cluster and jid.
    """
    dialect = connection.dialect.name
    line = expression(table, dialect)
    if dialect == "sqlite":  # as bytes: the driver fails on text that is not UTF-8
        line = f"CAST({line} AS BLOB)"
    jobs = " LEFT JOIN jobs j ON j.id = t.job_id" if table == "transitions" else ""
    query = f"SELECT t.id, {line} FROM {table} t{jobs} WHERE t.id > {int(after)}"
    query += "" if upto is None else f" AND t.id <= {int(upto)}"
    query += " ORDER BY t.id" if most is None else f" ORDER BY t.id LIMIT {int(most)}"
    options = {"stream_results": True, "max_row_buffer": _AT_ONCE}
    result = connection.exec_driver_sql(query, execution_options=options)
    try:
        for rows in result.partitions(_AT_ONCE):
            for id_, text in rows:
                yield id_, (text if isinstance(text, bytes) else text.encode()) + b"\n"
    finally:
        result.close()
