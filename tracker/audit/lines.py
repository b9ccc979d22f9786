"""The canonical lines: each row of the record as one line of text, the same bytes from Python, SQLite and PostgreSQL.

Owns the format and its three definitions. A line is complete in itself::

    v1|transition|CLUSTER|JID|ID|…            v1|gap|CLUSTER|ID|…            v1|source|CLUSTER|ID|…

UTF-8, LF at the end, fields between ``|``. Text has ``\\`` for a backslash, ``\\|`` for a pipe, ``\\n`` for LF and
``\\r`` for CR (a backslash and the sign that follows it here); NULL is ``\\N``; integers are decimal; instants
are microseconds since 1970-01-01 UTC, dates YYYY-MM-DD.

Two different values never give the same line, also where somebody has put a value of another type, or a time of
another shape, past the CHECKs: such a field becomes ``\\?`` and something that tells it, which is no line of ours.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

import sqlalchemy as sa

KINDS: Final = ("source", "gap", "transition")
"""What is sealed; in a segment the rows of these tables follow one another in this order."""

# What each column is: text may hold anything, a word is one of a CHECKed list and needs no escapes.
_TYPES: Final = {
    "source": {
        "cluster": "text",
        "id": "integer",
        **dict.fromkeys(("base_url", "path", "timezone"), "text"),
        **dict.fromkeys(("archive_days", "lost_after_polls", "lost_after_seconds"), "integer"),
        "version": "text",
        "recorded_at": "instant",
    },
    "gap": {
        "cluster": "text",
        "id": "integer",
        "began_at": "instant",
        "ended_at": "instant",
        "cause": "word",
        "detail": "text",
    },
    "transition": {
        "cluster": "text",
        "jid": "text",
        **dict.fromkeys(("id", "job_id", "seq"), "integer"),
        "action": "word",
        "from_status": "text",
        "to_status": "text",
        "from_state": "word",
        "to_state": "word",
        **dict.fromkeys(("last_seen_at", "observed_at", "server_date"), "instant"),
        "source_id": "integer",
        "polls": "integer",
        "actor": "text",
        "anomaly": "word",
        "reason": "text",
        "kind": "word",
        "reference": "text",
        "received_at": "instant",
        "submitted_at": "instant",
        "extended_on": "date",
    },
}

COLUMNS: Final = {kind: tuple(types) for kind, types in _TYPES.items()}
"""What follows ``v1|kind|`` in a line of each kind, in order."""

_PLAIN: Final = r"[^|\\\n\r\0]*+"
_NUMBER: Final = r"\\N|0|-?[1-9][0-9]{0,18}"
_SHAPES: Final = {
    **dict.fromkeys(("text", "word"), rf"\\N|{_PLAIN}(?:\\[\\|nr]{_PLAIN})*+"),
    **dict.fromkeys(("integer", "instant"), _NUMBER),
    "date": r"\\N|[0-9]{4}-[0-9]{2}-[0-9]{2}",
}
_LINES: Final = {
    kind: re.compile(rf"v1\|{kind}\|" + r"\|".join(f"({_SHAPES[type_]})" for type_ in types.values()) + r"\n")
    for kind, types in _TYPES.items()
}
_ESCAPES: Final = {"\\": "\\\\", "|": "\\|", "\n": "\\n", "\r": "\\r"}
_TABLE: Final = str.maketrans(_ESCAPES)
_MEANINGS: Final = {escape: sign for sign, escape in _ESCAPES.items()}
_ESCAPE: Final = re.compile(r"\\.")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_AT_ONCE = 1000  # rows that are fetched together: some hundred kB


def _field(value: str | int | datetime | date | None) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError(f"text with a NUL has no canonical form: {value!r}")
        return str(value).translate(_TABLE)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"a time without offset has no canonical form: {value!r}")
        return str((value - _EPOCH) // _MICROSECOND)
    if isinstance(value, date):
        return value.isoformat()
    return str(int(value))


def encode(kind: str, values: Sequence[str | int | datetime | date | None]) -> str:
    """Return the line, LF included, of a row of *kind* with *values* in the order of ``COLUMNS[kind]``.

    Raises:
        ValueError: The values are not as many as the columns, a time has no offset, or a text has a NUL.
    """
    if len(values) != len(COLUMNS[kind]):
        raise ValueError(f"a line of kind {kind} has {len(COLUMNS[kind])} columns, not {len(values)}")
    return f"v1|{kind}|{'|'.join(map(_field, values))}\n"


def decode(line: str) -> tuple[str, dict[str, str | None]]:
    """Return the kind of a line and its columns, as text without escapes; None for NULL.

    Raises:
        ValueError: It is no line that `encode` makes.
    """
    kind = line[3 : line.find("|", 3)]
    found = _LINES[kind].fullmatch(line) if kind in _LINES else None
    if found is None:
        raise ValueError(f"not a line of the record: {line[:1000]!r}")
    values = [
        field if "\\" not in field else None if field == "\\N" else _ESCAPE.sub(_meaning, field)
        for field in found.groups()
    ]
    return kind, dict(zip(COLUMNS[kind], values, strict=True))


def _meaning(escape: re.Match[str]) -> str:
    return _MEANINGS[escape[0]]


# SQL. No bound parameter, no sa.text(): a colon or a percent sign in it means itself.


def _sqlite(column: str, type_: str) -> str:
    """The field of *column* on SQLite, where a column holds a value of any type and GLOB and printf stop at a NUL."""
    other = f"'\\?' || hex({column})"
    if type_ == "integer":
        rule = f"typeof({column}) = 'integer' THEN {column} ELSE {other}"
    elif type_ == "instant":
        # datetime() gives back what it was given, or it was no date: February 30 is March 2 to strftime().
        second, rest = f"substr({column}, 1, 19)", f"substr({column}, 20, 7)"
        real = f"datetime({second}) || {rest} = {column} AND {rest} GLOB '.{'[0-9]' * 6}'"
        rule = f"{real} THEN {microseconds(column, 'sqlite')} ELSE {other}"
    else:
        rule = f"typeof({column}) <> 'text' OR instr({column}, char(0)) THEN {other}"
        if type_ == "text":
            escaped = column
            for sign, escape in (("'\\'", "'\\\\'"), ("'|'", "'\\|'"), ("char(10)", "'\\n'"), ("char(13)", "'\\r'")):
                escaped = f"replace({escaped}, {sign}, {escape})"
            # Most texts need no escape, and one look is cheaper than four replacements.
            rule += f" WHEN {column} GLOB '*[\\|' || char(10) || char(13) || ']*' THEN {escaped}"
        rule += f" ELSE {column}"
    return f"CASE WHEN {column} IS NULL THEN '\\N' WHEN {rule} END"


def _postgresql(column: str, type_: str) -> str:
    """The field of *column* on PostgreSQL, whose types hold; a time that Python cannot hold is to be told apart.

    Each function and operator is qualified: one of the same name in our schema would come first where its types fit
    better, and its owner could let us read what nobody else does. The rest is syntax, which nobody can redefine.
    """
    if type_ in ("integer", "word"):
        return f"coalesce(CAST({column} AS pg_catalog.text), E'\\\\N')"
    if type_ == "text":
        escaped = column
        for sign, escape in (("\\\\", "\\\\\\\\"), ("|", "\\\\|"), ("\\n", "\\\\n"), ("\\r", "\\\\r")):
            escaped = f"pg_catalog.replace({escaped}, E'{sign}', E'{escape}')"
        return f"coalesce({escaped}, E'\\\\N')"
    if type_ == "instant":
        value = f"CAST({microseconds(column, 'postgresql')} AS pg_catalog.text)"
        of, first, last = "timestamptz", "0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00"
    else:
        value = f"pg_catalog.to_char({column}, 'YYYY-MM-DD')"  # which tells no year before Christ from one after
        of, first, last = "date", "0001-01-01", "9999-12-31"
    is_held = (
        f"{column} OPERATOR(pg_catalog.>=) pg_catalog.{of} '{first}'"
        f" AND {column} OPERATOR(pg_catalog.<=) pg_catalog.{of} '{last}'"
    )
    other = f"E'\\\\?' OPERATOR(pg_catalog.||) CAST({column} AS pg_catalog.text)"
    return f"CASE WHEN {column} IS NULL THEN E'\\\\N' WHEN {is_held} THEN {value} ELSE {other} END"


def microseconds(column: str, dialect: str) -> str:
    """Return the SQL of an instant in microseconds since 1970, an integer; of a value that is none, anything."""
    if dialect == "sqlite":
        return f"strftime('%s', substr({column}, 1, 19)) * 1000000 + substr({column}, 21)"
    return f"CAST(extract(epoch FROM {column}) OPERATOR(pg_catalog.*) 1000000 AS bigint)"


def is_other(column: str, type_: str, dialect: str) -> str:
    """Return the SQL that tells whether *column* holds a value that no column of its type (as above) should."""
    if dialect == "sqlite":
        return f"substr({_sqlite(column, type_)}, 1, 2) = '\\?'"
    return f"substr({_postgresql(column, type_)}, 1, 2) = E'\\\\?'"


def is_strange(line: str) -> bool:
    """Return whether a row's line tells of a value that no honest program stores."""
    if "|\\?" not in line and "\\x" not in line:  # nearly all of them
        return False
    try:
        decode(line)
    except ValueError:
        return True
    return False


def expression(kind: str, dialect: str) -> str:
    """Return the SQL that gives the line, without its LF, of a row ``t`` (for a transition: of a job ``j`` too).

    Args:
        kind: One of KINDS.
        dialect: ``sqlite`` or ``postgresql``; on SQLite it holds a ``%``.
    """
    field = _sqlite if dialect == "sqlite" else _postgresql
    jobs = ("cluster", "jid") if kind == "transition" else ()
    fields = [field(f"{'j' if column in jobs else 't'}.{column}", type_) for column, type_ in _TYPES[kind].items()]
    if dialect == "sqlite":  # half the time of a chain of ||; concat_ws() would need SQLite 3.44
        return f"printf('v1|{kind}{'|%s' * len(fields)}', {', '.join(fields)})"
    return f"pg_catalog.concat_ws('|', 'v1', '{kind}', {', '.join(fields)})"


def stream(
    connection: sa.Connection, kind: str, after: int, upto: int | None = None, most: int | None = None
) -> Generator[tuple[int, str, str], None, None]:
    """Yield (id, cluster, line with LF) of the rows of *kind* with after < id <= upto, by id, in bounded memory.

    A transition whose job is gone has the cluster ``''`` and NULL for what the job would tell. Bytes that are no
    UTF-8, which only SQLite lets in, come as ``\\xNN``: no line of ours.

    Args:
        connection: In a transaction, of which this is one statement; it is open until the iterator is closed.
        kind: One of KINDS.
        after: Ids above this.
        upto: Ids up to this, or all.
        most: So many rows, or all.
    """
    dialect = connection.dialect.name
    cluster, line = "t.cluster", expression(kind, dialect)
    table = f"{kind}s t"
    if kind == "transition":
        cluster, table = "j.cluster", f"{table} LEFT JOIN jobs j ON j.id = t.job_id"
    if dialect == "sqlite":  # as bytes: the driver fails on text that is no UTF-8
        cluster, line = f"CAST({cluster} AS BLOB)", f"CAST({line} AS BLOB)"
    bound = "" if upto is None else f" AND t.id <= {int(upto)}"
    query = f"SELECT t.id, {cluster}, {line} FROM {table} WHERE t.id > {int(after)}{bound} ORDER BY t.id"
    if most is not None:
        query += f" LIMIT {int(most)}"
    options = {"stream_results": True, "max_row_buffer": _AT_ONCE}
    result = connection.exec_driver_sql(query, execution_options=options)
    clusters: dict[bytes | str | None, str] = {None: ""}
    try:
        for rows in result.partitions(_AT_ONCE):
            for id_, key, text in rows:
                name = clusters.get(key)
                if name is None:
                    name = clusters[key] = _decoded(key)
                yield id_, name, _decoded(text) + "\n"
    finally:
        result.close()


def _decoded(text: bytes | str) -> str:
    return text if isinstance(text, str) else text.decode("utf-8", "backslashreplace")
