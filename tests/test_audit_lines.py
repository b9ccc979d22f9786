"""The canonical lines: the same bytes from Python, SQLite and PostgreSQL, and never the same for two values."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.history import register
from tracker import database
from tracker.audit import lines
from tracker.models import TRANSITIONS, Gap, Source
from tracker.status import Action, Cause, State

AT = datetime(2026, 1, 5, 10, 0, 0, 123456, tzinfo=UTC)
HOSTILE = [
    *("|", "\\", "\n", "\r", "\r\n", "'", '"', "\\N", "\\\\N", "N", "\\|", "\\n", "a\\", "a|", "||", "\\\\|\\"),
    *(
        "%s",
        "%",
        "%%",
        ":x",
        "::text",
        "?",
        "$1",
        "{}",
        "\u2028",
        "\x85",
        "\x7f",
        "\x01",
        " ",
        "",
        "😀",
        "e\u0301",
        "é",
    ),
    *("\\?", "v1|gap|", "*[|]*", "\t", "😀|\\\r\n'\"%:é", "\ufffd", "\U0010ffff"),
]
texts = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
quick = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
instants = st.datetimes(datetime(1970, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001


def streamed(engine: sa.Engine, kind: str, after: int = 0, upto: int | None = None) -> list[tuple[int, str, str]]:
    with database.reading(engine) as connection:
        return list(lines.stream(connection, kind, after, upto))


@given(rows=st.lists(st.tuples(texts, texts, texts, texts, instants, instants | st.none()), min_size=1, max_size=30))
@example(rows=[(text, text, text, text, AT, None) for text in HOSTILE])
@quick
def test_hostile_rows_have_the_same_line_in_python_and_sql(
    engine: sa.Engine, rows: list[tuple[str, str, str, str, datetime, datetime | None]]
) -> None:
    """Whatever a row holds, the database's line is Python's, byte for byte; so both databases' are the same."""
    last = {kind: max((row[0] for row in streamed(engine, kind)), default=0) for kind in lines.KINDS}
    expected: dict[str, list[str]] = {kind: [] for kind in lines.KINDS}
    percent = "%" if engine.dialect.name == "sqlite" else "%%"  # psycopg's escape
    with database.writing(engine) as connection:
        job = connection.exec_driver_sql("SELECT id FROM jobs").scalar()
        if job is None:
            job = connection.exec_driver_sql(
                f"INSERT INTO jobs (cluster, jid) VALUES ('w|1', 'a\\|😀''\"{percent}') RETURNING id"
            ).scalar_one()
            last["transition"] = connection.execute(sa.select(sa.func.max(TRANSITIONS.c.id))).scalar_one()
        start = connection.execute(sa.select(sa.func.max(TRANSITIONS.c.seq))).scalar_one()
        for seq, (one, two, three, four, at, maybe) in enumerate(rows, start + 1):
            values: dict[str, Any] = {
                "job_id": job,
                "seq": seq,
                "action": Action.OBSERVED,
                "from_status": one,
                "to_status": two,
                "from_state": None,
                "to_state": State.OPEN,
                "last_seen_at": maybe,
                "observed_at": at,
                "server_date": None,
                "source_id": None,
                "polls": seq,
                "actor": three,
                "anomaly": None,
                "reason": four,
                "kind": None,
                "reference": None,
                "received_at": maybe,
                "submitted_at": at,
                "extended_on": at.date(),
            }
            id_ = connection.execute(sa.insert(TRANSITIONS).values(values).returning(TRANSITIONS.c.id)).scalar_one()
            expected["transition"].append(lines.encode("transition", ["w|1", "a\\|😀'\"%", id_, *values.values()]))
            gap = {"cluster": "w2", "began_at": at, "ended_at": at, "cause": Cause.PAUSED, "detail": one}
            id_ = connection.execute(sa.insert(Gap).values(gap).returning(Gap.id)).scalar_one()
            expected["gap"].append(lines.encode("gap", ["w2", id_, at, at, "paused", one]))
            source: dict[str, Any] = {
                "cluster": "w3",
                "base_url": one,
                "path": two,
                "timezone": three,
                "archive_days": 5,
                "lost_after_polls": 0,
                "lost_after_seconds": 2**31 - 1,
                "version": four,
                "recorded_at": at,
            }
            id_ = connection.execute(sa.insert(Source).values(source).returning(Source.id)).scalar_one()
            expected["source"].append(lines.encode("source", ["w3", id_, *list(source.values())[1:]]))
    for kind, cluster in (("transition", "w|1"), ("gap", "w2"), ("source", "w3")):
        found = streamed(engine, kind, last[kind])
        assert [line for _, _, line in found] == expected[kind]
        assert {name for _, name, _ in found} == {cluster}
        for _, _, line in found:
            assert lines.decode(line)[0] == kind


@pytest.fixture(scope="module")
def databases(
    tmp_path_factory: pytest.TempPathFactory, make_postgres: Callable[..., str]
) -> Iterator[dict[str, sa.Engine]]:
    """An empty database of each kind, for what takes no table."""
    sqlite = database.create_engine(f"sqlite:///{tmp_path_factory.mktemp('lines')}/empty.db", make=True)
    engines = {"sqlite": sqlite, "postgresql": database.create_engine(make_postgres())}
    yield engines
    for engine in engines.values():
        engine.dispose()


def select(engine: sa.Engine, began_at: str, detail: str = "NULL", cause: str = "'paused'", id_: str = "7") -> str:
    """Return the line of a gap of these SQL expressions, which no CHECK has seen."""
    instant = "text" if engine.dialect.name == "sqlite" else "timestamptz"
    values = f"'w1' AS cluster, {id_} AS id, {began_at} AS began_at, {cause} AS cause, {detail} AS detail"
    rows = f"(SELECT {values}, CAST(NULL AS {instant}) AS ended_at) t"
    with database.reading(engine) as connection:
        query = f"SELECT {lines.expression('gap', engine.dialect.name)} FROM {rows}"
        return str(connection.exec_driver_sql(query).scalar_one()) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        *("1970-01-01 00:00:00.000000", "1969-12-31 23:59:59.999999", "1969-12-31 00:00:00.000001"),
        *("1901-02-28 23:59:59.500000", "0001-01-01 00:00:00.000000", "9999-12-31 23:59:59.999999"),
        *("2024-02-29 12:00:00.000001", "2026-01-05 10:00:00.100000", "2262-04-11 23:47:16.854775"),
    ],
)
def test_instants_are_exact_microseconds(databases: dict[str, sa.Engine], dialect: str, text: str) -> None:
    """Before 1970 and in the year 9999 too, the databases count as Python does."""
    engine = databases[dialect]
    at = datetime.fromisoformat(text).replace(tzinfo=UTC)
    value = f"'{text}'" if engine.dialect.name == "sqlite" else f"CAST('{text}+00' AS timestamptz)"
    assert select(engine, value) == lines.encode("gap", ["w1", 7, at, None, "paused", None])
    east = at.astimezone(timezone(timedelta(hours=5, minutes=30))) if 1 < at.year < 9999 else at
    assert lines.encode("gap", ["w1", 7, east, None, "paused", None]) == select(engine, value)


@pytest.mark.parametrize(
    "changed",
    [
        {"began_at": f"'{text}'"}
        for text in (
            *("2026-01-05T10:00:00.123456", "2026-01-05 10:00:00.1234560", "2026-01-05 10:00:00.123456 ", "x"),
            *("2026-01-04 34:00:00.123456", "2026-01-05 10:00:00", "2461045.9166666667.123456", ""),
            *("2026-01-05 09:59:60.123456", "2026-01-05 10:00:00.-23456", "2026-01-05 10:00:00+123456"),
        )
    ]
    + [
        {"began_at": "CAST('2026-01-05 10:00:00.123456' AS BLOB)"},
        {"began_at": "'2026-01-05 10:00:00.123456' || char(0) || 'x'"},
        {"began_at": "1767607200"},
        {"detail": "CAST('a' AS BLOB)"},
        {"detail": "'a' || char(0)"},
        {"detail": "'a' || char(0) || '|x'"},
        {"detail": "1.5"},
        {"cause": "CAST('paused' AS BLOB)"},
        {"cause": "'paused|\\N'"},
        {"id_": "CAST('7' AS BLOB)"},
        {"id_": "'7'"},
        {"id_": "7.0"},
    ],
    ids=str,
)
def test_a_value_of_another_shape_is_another_line(databases: dict[str, sa.Engine], changed: dict[str, str]) -> None:
    """SQLite holds any type in any column: what looks alike is told apart, and is no line of the record."""
    engine = databases["sqlite"]
    original = {"began_at": "'2026-01-05 10:00:00.123456'", "detail": "'a'"}
    assert lines.decode(select(engine, **original))[1]["detail"] == "a"
    line = select(engine, **original | changed)
    assert line != select(engine, **original)
    with pytest.raises(ValueError, match="line of the record"):
        lines.decode(line)


def test_february_30_is_not_march_2(databases: dict[str, sa.Engine]) -> None:
    """A date that is none does not count as the day that it overflows to."""
    engine = databases["sqlite"]
    assert select(engine, "'2026-02-30 10:00:00.000000'") != select(engine, "'2026-03-02 10:00:00.000000'")


@pytest.mark.parametrize("value", ["infinity", "-infinity", "20000-01-01 00:00:00+00", "0044-03-15 00:00:00+00 BC"])
def test_a_time_that_python_cannot_hold_is_another_line(databases: dict[str, sa.Engine], value: str) -> None:
    """`infinity` and what is beyond the years 1 to 9999, which a CHECK refuses, break no reader, and are not NULL."""
    line = select(databases["postgresql"], f"CAST('{value}' AS timestamptz)")
    assert line == f"v1|gap|w1|7|\\?{value}|\\N|paused|\\N\n"
    with pytest.raises(ValueError, match=r"\\\?"):
        lines.decode(line)


@pytest.mark.parametrize("value", ["infinity", "20000-01-01", "2026-03-05 BC"])
def test_a_day_that_python_cannot_hold_is_another_line(databases: dict[str, sa.Engine], value: str) -> None:
    """A day before Christ is not the one after."""
    with database.reading(databases["postgresql"]) as connection:
        query = f"SELECT {lines._postgresql('d', 'date')} FROM (SELECT CAST('{value}' AS date) AS d) t"
        assert connection.exec_driver_sql(query).scalar_one() == f"\\?{value}"


def test_a_function_of_our_schema_makes_no_line(databases: dict[str, sa.Engine]) -> None:
    """One whose types fit better than PostgreSQL's own would come first if the name were not qualified."""
    engine = databases["postgresql"]
    honest = select(engine, "CAST('2026-01-05 10:00:00.123456+00' AS timestamptz)", "CAST('a|b' AS varchar)")
    many = ", ".join(["text"] * 9)
    with engine.connect() as connection:
        for statement in (
            f"CREATE FUNCTION concat_ws({many}) RETURNS text LANGUAGE sql AS $$ SELECT 'old' $$",
            "CREATE FUNCTION replace(varchar, text, text) RETURNS text LANGUAGE sql AS $$ SELECT 'old' $$",
            "CREATE FUNCTION times(numeric, integer) RETURNS numeric LANGUAGE sql AS $$ SELECT 0.0 $$",
            "CREATE OPERATOR * (FUNCTION = times, LEFTARG = numeric, RIGHTARG = integer)",
        ):
            connection.exec_driver_sql(statement)
        row = (
            "(SELECT varchar 'w1' AS cluster, bigint '7' AS id, varchar 'paused' AS cause, varchar 'a|b' AS detail,"
            " timestamptz '2026-01-05 10:00:00.123456+00' AS began_at, timestamptz 'infinity' AS ended_at) t"
        )
        query = f"SELECT {lines.expression('gap', 'postgresql')} FROM {row}"
        assert connection.exec_driver_sql(query).scalar_one() == honest[:-1].replace("\\N", "\\?infinity")
        connection.rollback()


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_text_that_is_no_utf8_stops_nobody(engine: sa.Engine) -> None:
    """Bytes that are no UTF-8, which SQLite lets in, come out as no line of the record."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql(
            "INSERT INTO gaps (cluster, began_at, ended_at, cause, detail) VALUES"
            " ('w1', '2026-01-05 10:00:00.000000', '2026-01-05 10:00:00.000000', 'paused', CAST(x'61ff' AS TEXT))"
        )
    [(_, cluster, line)] = streamed(engine, "gap")
    assert (cluster, line.encode()) == ("w1", line.encode("ascii"))
    with pytest.raises(ValueError, match="line of the record"):
        lines.decode(line)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_transition_without_its_job_is_not_hidden(engine: sa.Engine) -> None:
    """Where the job is gone, past every guard, the line is there without what the job told."""
    register(engine, "a")
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.execute("ROLLBACK") if raw.in_transaction else None
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute("DROP TRIGGER guard_jobs_delete")
        raw.execute("DELETE FROM jobs")
    [(_, cluster, line)] = streamed(engine, "transition")
    assert cluster == ""
    assert line.startswith("v1|transition|\\N|\\N|1|1|0|registered|")


@given(
    st.tuples(
        *(
            {
                "text": texts | st.none(),
                "word": st.sampled_from(["open", "done"]) | st.none(),
                "integer": st.integers(-(2**63), 2**63 - 1) | st.none(),
                "instant": st.datetimes(timezones=st.just(UTC)) | st.none(),
                "date": st.dates() | st.none(),
            }[type_]
            for type_ in lines._TYPES["transition"].values()
        )
    )
)
@settings(deadline=None, max_examples=100)
def test_a_line_is_read_back(values: tuple[str | int | datetime | date | None, ...]) -> None:
    """`decode` gives what `encode` was given, so that no two rows have one line."""
    kind, found = lines.decode(lines.encode("transition", values))
    assert kind == "transition"
    for column, value in zip(lines.COLUMNS["transition"], values, strict=True):
        if isinstance(value, datetime):
            micro = found[column]
            assert micro is not None
            assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(micro)) == value
        else:
            assert found[column] == (None if value is None else str(value))


GOOD = "v1|gap|w1|4|1767607200123456|1767607260000000|paused|a\\|b\\\\c\\nd\\re\n"
DIGEST = "09bf9560b994773641baa451a9a8cfa5b7bc27599b5be53602b447df31e2dc2e"


def test_the_worked_example() -> None:
    """The README's example: these values, this line, this hash."""
    later = datetime(2026, 1, 5, 10, 1, tzinfo=UTC)
    assert lines.encode("gap", ["w1", 4, AT, later, "paused", "a|b\\c\nd\re"]) == GOOD
    assert hashlib.sha256(GOOD.encode()).hexdigest() == DIGEST


@pytest.mark.parametrize(
    "line",
    [
        *("", "\n", "v1\n", "v1|gap\n", "garbage", GOOD[:-1], GOOD + "\n", GOOD * 2, GOOD.replace("\n", "\r\n")),
        *(GOOD.replace("v1", "v2"), GOOD.replace("gap", "gaps"), GOOD.replace("gap", "source"), "\ufeff" + GOOD),
        *(GOOD.replace("|paused", ""), GOOD.replace("paused", "paused|x"), GOOD.replace("a\\|b", "a|b")),
        *(
            GOOD.replace("\\n", "\\t"),
            GOOD.replace("\\re", "\\"),
            GOOD.replace("\\re", "\\?41"),
            GOOD.replace("c", "\r"),
        ),
        *(
            GOOD.replace("|4|", "|04|"),
            GOOD.replace("|4|", "|4.0|"),
            GOOD.replace("|4|", "||"),
            GOOD.replace("c", "\0"),
        ),
        *(GOOD.replace("|4|", "|٤|"), GOOD.replace("|4|", "|-0|"), GOOD.replace("|4|", f"|{'9' * 30}|")),
        *(GOOD.replace("c", "\0"), GOOD.replace("c", "\r")),
        GOOD.replace("1767607260000000", "2026-01-05 10:01:00.000000"),
    ],
)
def test_what_is_no_line_is_refused(line: str) -> None:
    """A line that `encode` cannot have made is no line."""
    assert lines.decode(GOOD)[1]["detail"] == "a|b\\c\nd\re"
    with pytest.raises(ValueError, match="not a line of the record"):
        lines.decode(line)


def test_what_has_no_line_is_refused() -> None:
    """A naive time, a NUL and too few columns are a caller's mistake."""
    naive: list[Any] = ["w1", 1, AT.replace(tzinfo=None), AT, "paused", None]
    nul: list[Any] = ["w1", 1, AT, AT, "paused", "\0"]
    for values in (naive, nul, nul[:-1]):
        with pytest.raises(ValueError, match=r"canonical|columns"):
            lines.encode("gap", values)


def test_rows_come_by_id_and_in_bounded_memory(engine: sa.Engine) -> None:
    """A long table is never held as a whole: 20,000 lines pass through less than 4 MB."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
    at = "'2026-01-05 10:00:00.000000'"
    with database.writing(engine) as connection:
        connection.exec_driver_sql(
            f"INSERT INTO gaps (cluster, began_at, ended_at, cause, detail) {numbers}"
            f" SELECT 'w' || (i - i / 3 * 3), {at}, {at}, 'paused', 'row ' || i FROM n"
            if engine.dialect.name == "sqlite"
            else "INSERT INTO gaps (cluster, began_at, ended_at, cause, detail)"
            f" SELECT 'w' || i %% 3, {at}, {at}, 'paused', 'row ' || i FROM generate_series(1, 20000) i ORDER BY i"
        )
    with database.reading(engine) as connection:
        rows = lines.stream(connection, "gap", 10, 19_990)
        next(rows)
        tracemalloc.start()
        try:
            last, count = 11, 1
            for id_, _, _ in rows:
                assert id_ > last
                last, count = id_, count + 1
            assert tracemalloc.get_traced_memory()[1] < 4_000_000
        finally:
            tracemalloc.stop()
        assert (last, count) == (19_990, 19_980)
        rows = lines.stream(connection, "gap", 0)
        assert next(rows)[1] == "w1"
        rows.close()
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
