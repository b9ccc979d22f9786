"""The canonical lines: the same bytes from Python, SQLite and PostgreSQL, whatever a row holds."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.history import register
from tracker import database
from tracker.audit import lines
from tracker.models import GAPS, SOURCES, TRANSITIONS
from tracker.text import INVISIBLE

AWKWARD = [*"\",'\\#é😀", '""', '","', "\\N", "%s", ":x", "$1", "NULL", " a ", "=1+1", "e\u0301"]
EXTREMES = [
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(9998, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=UTC),
    datetime(2026, 1, 5, 10, 0, 0, 100000, tzinfo=UTC),
]


def texts(chance: random.Random) -> Iterator[str]:
    """Yield text of awkward pieces and of characters from every plane of Unicode."""
    yield from AWKWARD
    while True:
        pieces = []
        for _ in range(chance.randint(1, 6)):
            code = chance.choice(
                [chance.randrange(0x20, 0x3000), (chance.randrange(17) << 16) + chance.randrange(65536)]
            )
            pieces.append(chance.choice([chr(code), chance.choice(AWKWARD)]))
        text = "".join(pieces).replace("@", "a")[:63]
        if text.strip(" ") and not INVISIBLE.search(text):
            yield text


def instants(chance: random.Random) -> Iterator[datetime]:
    yield from EXTREMES
    while True:
        yield EXTREMES[0] + timedelta(
            microseconds=chance.randrange((EXTREMES[1] - EXTREMES[0]) // timedelta.resolution)
        )


def expected(values: list[str | int | datetime | date | None]) -> bytes:
    """Return the line as Python's csv module writes it, field by field."""
    fields = io.StringIO()
    for value in values:
        if isinstance(value, datetime):
            value = value.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
            fields.write(value)
        elif isinstance(value, str):
            csv.writer(fields, quoting=csv.QUOTE_ALL, lineterminator="").writerow([value])
        elif value is not None:
            fields.write(str(value))
        fields.write(",")
    return fields.getvalue()[:-1].encode() + b"\n"


def streamed(engine: sa.Engine, table: str, *bounds: int) -> list[tuple[int, bytes]]:
    with database.reading(engine) as connection:
        return list(lines.stream(connection, table, *(bounds or (0,))))


def test_hostile_rows_have_the_same_line_from_both_databases_and_python(engine: sa.Engine) -> None:
    """Quotes, commas, every plane of Unicode, NULLs and extreme times: the database's bytes are those of csv."""
    chance = random.Random(11)
    text, at = texts(chance), instants(chance)

    def maybe(values: Iterator[Any]) -> Any:
        return next(values) if chance.random() < 0.7 else None

    job = {"cluster": 'w"1,', "jid": "😀','\""}
    job_id = register(engine, job["jid"], job["cluster"])
    wanted: dict[str, list[bytes]] = {"transitions": [], "gaps": [], "sources": []}
    rows: dict[str, list[dict[str, Any]]] = {"transitions": [], "gaps": [], "sources": []}
    for number in range(1, 301):
        began_at, ended_at = sorted((next(at), next(at)))
        gap = {"cluster": next(text), "began_at": began_at, "ended_at": ended_at, "cause": "paused"}
        rows["gaps"].append(gap | {"detail": maybe(text), "actor": maybe(text)})
        server: dict[str, Any] = {
            name: next(text) for name in ("cluster", "base_url", "path", "timezone", "legal_timezone", "version")
        }
        server |= dict.fromkeys(("archive_days", "lost_after_polls"), 0) | {"lost_after_seconds": 2**31 - 1}
        rows["sources"].append(server | {"recorded_at": next(at)})
        seen_at, taken_at = sorted((next(at), next(at)))
        amended = {"job_id": job_id, "seq": number, "action": "amended", "from_state": "open", "to_state": "open"}
        amended |= {"from_status": (status := maybe(text)), "to_status": status, "last_seen_at": seen_at}
        amended |= {"observed_at": taken_at, "polls": number, "actor": next(text), "reason": next(text)}
        amended |= {"kind": "export", "reference": maybe(text), "received_at": maybe(at), "submitted_at": maybe(at)}
        rows["transitions"].append(amended | {"extended_on": (day := maybe(at)) and day.date()})
    for table, model in (("transitions", TRANSITIONS), ("gaps", GAPS), ("sources", SOURCES)):
        with database.writing(engine) as connection:
            for row in rows[table]:
                id_ = connection.execute(sa.insert(model).values(row).returning(model.c.id)).scalar_one()
                known = row | {"id": id_} | (job if table == "transitions" else {})
                wanted[table].append(expected([known.get(column) for column in lines.COLUMNS[table]]))
        found = [line for _, line in streamed(engine, table)]
        assert found[-300:] == wanted[table]
        read = list(csv.reader(io.StringIO((lines.header(table) + b"".join(found)).decode(), newline="")))
        assert {len(row) for row in read} == {len(lines.COLUMNS[table])}
        assert read[-1][lines.header(table).decode().strip().split(",").index("id")] == str(
            streamed(engine, table)[-1][0]
        )


def test_a_report_s_number_has_six_decimals_however_big_it_is(engine: sa.Engine) -> None:
    """Seconds since 1990 have 16 digits; half of the last decimal is rounded up."""
    field = lines.field("x", "double", engine.dialect.name)
    with database.reading(engine) as connection:
        for number in ("1163066401.062274", "0.000001", "0.0078125", "1791590400.999999", "86400.5", "0.0"):
            query = f"SELECT {field} FROM (SELECT CAST('{number}' AS double precision) AS x) t"
            text = connection.exec_driver_sql(query).scalar_one()
            assert text == str(Decimal(number).quantize(Decimal("0.000001"), ROUND_HALF_UP))


def test_the_columns_are_those_of_the_tables() -> None:
    """Every column of the three tables is sealed; a transition's line begins with its job's cluster and jid."""
    for table, model in (("gaps", GAPS), ("sources", SOURCES), ("transitions", TRANSITIONS)):
        names = [*(["cluster", "jid"] if table == "transitions" else []), *model.c.keys()]
        assert list(lines.COLUMNS[table]) == names
        assert lines.header(table) == (",".join(names) + "\n").encode()


def test_the_example_of_format_md(engine: sa.Engine) -> None:
    """The page's example is what the database gives for these values."""
    values = {"cluster": "w1", "cause": "paused", "detail": 'say "when"'}
    began, ended = datetime(2026, 1, 5, 10, 0, 0, 123456, tzinfo=UTC), datetime(2026, 1, 5, 10, 1, tzinfo=UTC)
    for _ in range(7):
        with database.writing(engine) as connection:
            connection.execute(sa.insert(GAPS).values(values | {"began_at": began, "ended_at": ended}))
    [(id_, line)] = streamed(engine, "gaps", 6)
    assert id_ == 7
    assert f"'{line.decode().strip()}'" in (Path(lines.__file__).parent / "FORMAT.md").read_text()
