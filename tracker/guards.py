"""The guards: triggers that refuse changes of the history, and that complete a registration by plain SQL.

Owns their one definition on each database, and the check that they and the tables are as defined. They hold no data, so
``env.py`` of the migrations drops them before the revisions run and makes today's after. ``DESIGN.md`` says what they
are for. A superuser or the owner of the tables can always drop a trigger: only what has left the database is proof.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import sqlalchemy as sa

from tracker import database
from tracker.errors import GuardsMissing
from tracker.models import FACTS

# Each append-only table with its unique keys: SQLite's REPLACE deletes a row by any of them, past a DELETE trigger.
APPEND_ONLY: dict[str, tuple[tuple[str, ...], ...]] = {
    "transitions": (("id",), ("job_id", "seq")),
    "sources": (("id",),),
    "gaps": (("id",),),
    "seals": (("id",), ("checkpoint_sha256",)),
    "segments": (("seal_id", "name", "part"), ("rowid",)),  # rowid: SQLite's own key; there is no id
}
_LONGEST = 200  # characters of a definition in a message
SEALED = ("transitions", "sources", "gaps")  # the sealer reads them by id, so their writers take its lock, shared
SEAL_LOCK = 0x7472616B  # the advisory lock between writers (shared) and the sealer (exclusive): "trak"

FIXED = ("id", "cluster", "jid", "registered_at", "registered_by")
NEVER_AHEAD = ("received_at", "submitted_at", "registered_at", "due_at")  # of the clock, at registration
# What only an observation may claim, and the value it has before the first.
UNOBSERVED = {
    "state": "'open'",
    **dict.fromkeys(("status", "status_after", "status_by", "seen_at", "ended_after", "ended_by"), "NULL"),
    **dict.fromkeys(("status_polls", "seq", "polls", "failures"), "0"),
    **dict.fromkeys(("last_error", "leased_by", "leased_until"), "NULL"),
}


TABLES = (
    *("sources", "jobs", "transitions", "gaps", "clusters", "workers", "seals", "segments", "deliveries", "alerts"),
)
# What is refused besides changes of the history: table, event and message; `_conditions` says when.
RULES = {
    "claim": ("jobs", "INSERT", "INSERT into jobs may set declared columns only, and no time in the future"),
    "change": ("jobs", "UPDATE", "only an amendment changes declared facts, and an open job must have a due_at"),
    "next": ("seals", "INSERT", "a row of seals must be a checkpoint that follows the newest one"),
    "source": ("transitions", "INSERT", "an observed transition must name a source of its own job''s cluster"),
}


def _conditions(schema: str, now: str, minute_after: Callable[[str], str]) -> dict[str, str]:
    """Return for each of `RULES` the condition under which a row is refused, as PostgreSQL writes it.

    Args:
        schema: The schema with a dot, or nothing.
        now: The database's clock.
        minute_after: Makes an instant a minute later, since clocks differ.
    """

    def changed(columns: tuple[str, ...]) -> str:
        return "(" + " OR ".join(f"NEW.{c} IS DISTINCT FROM OLD.{c}" for c in columns) + ")"

    lasting = "NEW.state = 'open' AND NEW.due_at IS NULL"  # it would never be polled again
    # No time may be declared in the future, and no submission after the registration, which needs the jid: else a job
    # could be done before its submission.
    early = " OR ".join(
        f"NEW.{column} > {minute_after(limit)}"
        for limit, columns in ((now, NEVER_AHEAD), ("NEW.registered_at", ("received_at", "submitted_at")))
        for column in columns
    )
    claims = " OR ".join(f"NEW.{column} IS DISTINCT FROM {value}" for column, value in UNOBSERVED.items())
    amended = (
        f"NEW.seq = OLD.seq + 1 AND EXISTS (SELECT 1 FROM {schema}transitions t WHERE t.job_id = NEW.id"
        f" AND t.seq = NEW.seq AND t.action = 'amended'"
        f" AND {' AND '.join(f't.{c} IS NOT DISTINCT FROM NEW.{c}' for c in FACTS)})"
    )
    # The deadline is derived: the first answer computes it again, so plain SQL cannot set it permanently.
    settled = f"OLD.status IS NOT NULL AND OLD.deadline_at IS NOT NULL AND {changed(('deadline_on', 'deadline_at'))}"
    # The sealer builds on the newest row of seals, and no row can be removed: a bad one would stop it permanently.
    newest = f"(SELECT * FROM {schema}seals ORDER BY id DESC LIMIT 1) s"
    falls = " OR ".join(f"NEW.last_{kind}_id < s.last_{kind}_id" for kind in ("transition", "gap", "source"))
    folder = "'  checkpoints/'"
    previous = f"'sha256 ' || s.checkpoint_sha256 || {folder}"
    names_previous = f"replace(NEW.checkpoint, {previous}, '') <> NEW.checkpoint"
    names_any = f"replace(NEW.checkpoint, {folder}, '') <> NEW.checkpoint"
    own = f"SELECT 1 FROM {schema}sources s JOIN {schema}jobs j ON j.cluster = s.cluster"
    return {
        "claim": f"{claims} OR {lasting} OR {early}",
        "change": f"{changed(FIXED)} OR ({changed(FACTS)} OR {settled}) AND NOT ({amended}) OR {lasting}",
        "next": "substr(NEW.checkpoint, 1, 22) IS DISTINCT FROM 'tracker checkpoint v2\n'"
        f" OR EXISTS (SELECT 1 FROM {newest} WHERE {falls} OR NOT {names_previous})"
        f" OR ({names_any} AND NOT EXISTS (SELECT 1 FROM {schema}seals))",
        "source": f"NEW.action = 'observed' AND NOT EXISTS ({own} WHERE s.id = NEW.source_id AND j.id = NEW.job_id)",
    }


def sqlite() -> dict[str, str]:
    """Return the DDL of each trigger by name."""
    ddl: dict[str, str] = {}

    def trigger(name: str, event: str, table: str, message: str, when: str = "") -> None:
        condition = f" WHEN {when}" if when else ""
        ddl[name] = f"CREATE TRIGGER {name} {event} ON {table}{condition} BEGIN SELECT RAISE(ABORT, '{message}'); END"

    def replace(table: str, keys: tuple[tuple[str, ...], ...]) -> None:
        exists = " OR ".join(
            f"EXISTS (SELECT 1 FROM {table} WHERE {' AND '.join(f'{c} = NEW.{c}' for c in key)})" for key in keys
        )
        message = f"tracker: {table} already has a row with this key"
        trigger(f"guard_{table}_replace", "BEFORE INSERT", table, message, exists)

    for table, keys in APPEND_ONLY.items():
        for event in ("UPDATE", "DELETE"):
            message = f"tracker: {table} is append-only: {event} refused"
            trigger(f"guard_{table}_{event.lower()}", f"BEFORE {event}", table, message)
        replace(table, keys)
    conditions = _conditions("", "'now'", lambda at: f"strftime('%Y-%m-%d %H:%M:%f000', {at}, '+1 minute')")
    for rule, (table, event, message) in RULES.items():
        # Not SQLite 3.39's IS DISTINCT FROM: an older sqlite3 shell could not read the database.
        condition = conditions[rule].replace("IS NOT DISTINCT FROM", "IS").replace("IS DISTINCT FROM", "IS NOT")
        trigger(f"guard_{table}_{rule}", f"BEFORE {event}", table, f"tracker: {message}", condition)
    is_wrong = " OR ".join(
        _is_not_utf_8(f"NEW.{column}") for column in ("cluster", "jid", "reference", "registered_by")
    )
    trigger("guard_jobs_utf_8", "BEFORE INSERT", "jobs", "tracker: text in jobs must be UTF-8", is_wrong)
    trigger("guard_jobs_delete", "BEFORE DELETE", "jobs", "tracker: jobs cannot be deleted: withdraw the job instead")
    replace("jobs", (("id",), ("cluster", "jid")))
    facts = ", ".join(FACTS)
    ddl["register_job"] = (
        f"CREATE TRIGGER register_job AFTER INSERT ON jobs BEGIN"
        f" INSERT INTO transitions (job_id, seq, action, to_state, observed_at, actor, {facts})"
        f" VALUES (NEW.id, 0, 'registered', 'open', NEW.registered_at, NEW.registered_by,"
        f" {', '.join(f'NEW.{c}' for c in FACTS)}); END"
    )
    return ddl


def _is_not_utf_8(column: str) -> str:
    """Return the condition that a text has bytes which are not UTF-8.

    SQLite stores any bytes. No command can read such a row, and no daemon any job of its cluster. The condition reads
    each character and writes it again: what is not UTF-8 becomes other bytes. So do U+FFFE and U+FFFF, which are
    allowed: they are replaced first.
    """
    text = f"replace(replace({column}, char(65534), 'x'), char(65535), 'x')"
    places = f"json_each('[' || substr(replace(hex(zeroblob(length({text}))), '00', ',0'), 2) || ']')"
    again = f"(SELECT group_concat(char(unicode(substr({text}, key + 1, 1))), '') FROM {places})"
    return f"{column} GLOB '*[^' || char(1) || '-~]*' AND {text} <> {again}"


_HERE = "quote_ident(current_schema())::regnamespace"


def _postgresql_triggers(schema: str) -> dict[str, tuple[str, str]]:
    """Return each trigger's table and what makes it, by name and word for word as ``pg_get_triggerdef`` prints it."""
    ddl: dict[str, tuple[str, str]] = {}

    def trigger(name: str, when: str, table: str, function: str, level: str = "FOR EACH ROW") -> None:
        ddl[name] = table, f"CREATE TRIGGER {name} {when} ON {schema}.{table} {level} EXECUTE FUNCTION {function}()"

    for table in APPEND_ONLY:
        trigger(f"guard_{table}_change", "BEFORE DELETE OR UPDATE", table, "tracker_refuse")
    trigger("guard_jobs_delete", "BEFORE DELETE", "jobs", "tracker_refuse")
    for table in (*APPEND_ONLY, "jobs"):
        trigger(f"guard_{table}_truncate", "BEFORE TRUNCATE", table, "tracker_refuse", "FOR EACH STATEMENT")
    for table in SEALED:
        trigger(f"lock_{table}", "BEFORE INSERT", table, "tracker_share_seal_lock", "FOR EACH STATEMENT")
    for rule, (table, event, _) in RULES.items():
        trigger(f"guard_{table}_{rule}", f"BEFORE {event}", table, f"tracker_refuse_{rule}")
    level = "REFERENCING NEW TABLE AS registered FOR EACH STATEMENT"
    trigger("register_job", "AFTER INSERT", "jobs", "tracker_register", level)
    return ddl


def _postgresql_functions(schema: str) -> dict[str, str]:
    """Return the body of each function by name."""
    conditions = _conditions(f"{schema}.", "clock_timestamp()", lambda at: f"{at} + interval '1 minute'")
    refuse = "USING ERRCODE = 'restrict_violation'"
    facts = ", ".join(FACTS)
    return {
        "tracker_refuse": f"BEGIN RAISE EXCEPTION 'tracker: % of % refused', TG_OP, TG_TABLE_NAME {refuse}; END",
        **{
            f"tracker_refuse_{rule}": f"BEGIN IF {conditions[rule]} THEN RAISE EXCEPTION 'tracker: {message}' {refuse};"
            " END IF; RETURN NEW; END"
            for rule, (_, _, message) in RULES.items()
        },
        "tracker_share_seal_lock": f"BEGIN PERFORM pg_advisory_xact_lock_shared({SEAL_LOCK}); RETURN NULL; END",
        # One statement for all rows of one INSERT, so a bulk import takes the lock above once.
        "tracker_register": f"BEGIN INSERT INTO {schema}.transitions"
        f" (job_id, seq, action, to_state, observed_at, actor, {facts})"
        f" SELECT id, 0, 'registered', 'open', registered_at, registered_by, {facts} FROM registered ORDER BY id;"
        " RETURN NULL; END",
    }


def functions() -> list[str]:
    """Return the names of the functions on PostgreSQL; none takes an argument."""
    return list(_postgresql_functions(""))


def postgresql(schema: str) -> list[str]:
    """Return the statements that make the functions and triggers in *schema*, a quoted identifier.

    Names in the functions are qualified and their search path is fixed: a session's own temporary table or operator
    must not replace ours. ENABLE ALWAYS: otherwise ``session_replication_role = replica`` skips them.
    """
    statements = [
        f"CREATE FUNCTION {schema}.{name}() RETURNS trigger LANGUAGE plpgsql"
        f" SET search_path = pg_catalog, pg_temp AS $guard${body}$guard$"
        for name, body in _postgresql_functions(schema).items()
    ]
    for name, (table, statement) in _postgresql_triggers(schema).items():
        statements += [statement, f"ALTER TABLE {schema}.{table} ENABLE ALWAYS TRIGGER {name}"]
    return statements


def _schema(connection: sa.Connection) -> str:
    return str(connection.exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one())


def create(connection: sa.Connection) -> None:
    """Make the guards, which must be missing."""
    sqlite_like = connection.dialect.name == "sqlite"
    for statement in sqlite().values() if sqlite_like else postgresql(_schema(connection)):
        database.execute(connection, statement)


def drop(connection: sa.Connection) -> None:
    """Drop every existing guard."""
    for name, (table, _) in _triggers(connection).items():
        on_table = "" if connection.dialect.name == "sqlite" else f" ON {_schema(connection)}.{table}"
        connection.exec_driver_sql(f'DROP TRIGGER "{name}"{on_table}')
    if connection.dialect.name != "sqlite":
        schema = _schema(connection)
        for name in _postgresql_functions(schema):
            connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {schema}.{name}()")


@contextmanager
def off(connection: sa.Connection) -> Iterator[None]:
    """Switch every guard off during the block, in this transaction only. Others can read, unlike after `drop`."""
    if connection.dialect.name == "sqlite":
        drop(connection)
        yield
        create(connection)
        return
    schema = _schema(connection)
    for how in ("DISABLE", "ENABLE ALWAYS"):
        for name, (table, _) in _postgresql_triggers(schema).items():
            database.execute(connection, f"ALTER TABLE {schema}.{table} {how} TRIGGER {name}")
        if how == "DISABLE":
            yield


def _rows(connection: sa.Connection, query: str, names: Iterable[str]) -> list[sa.Row[*tuple[Any, ...]]]:
    """Return the rows of *query*, in which ``:names`` is a list."""
    statement = sa.text(query).bindparams(sa.bindparam("names", expanding=True))
    return list(connection.execute(statement, {"names": [*names]}))


def _triggers(connection: sa.Connection) -> dict[str, tuple[str, str]]:
    """Return for each trigger on a table with history its table, and its definition as the database has it.

    On PostgreSQL a letter at the end says when it is enabled (``pg_trigger.tgenabled``).
    """
    query = (
        "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name IN :names ORDER BY 1"
        if connection.dialect.name == "sqlite"
        else "SELECT t.tgname, c.relname, concat(pg_get_triggerdef(t.oid), ' ', t.tgenabled) FROM pg_trigger t"
        " JOIN pg_class c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal AND c.relname IN :names"
        f" AND c.relnamespace = {_HERE} ORDER BY 1"
    )
    return {name: (table, text) for name, table, text in _rows(connection, query, [*APPEND_ONLY, "jobs"])}


def problems(connection: sa.Connection) -> list[str]:
    """Return a line for each guard, table or CHECK that is missing, changed, disabled or not ours."""
    actual = {name: text for name, (_, text) in _triggers(connection).items()}
    if connection.dialect.name == "sqlite":
        found = _differences("guard", sqlite(), actual)
    else:
        schema = _schema(connection)
        always = {name: f"{text} A" for name, (_, text) in _postgresql_triggers(schema).items()}
        found = _function_differences(connection, schema) + _differences("guard", always, actual)
    expected = json.loads(files(__package__).joinpath("tables.json").read_text(encoding="utf-8"))
    return found + _table_differences(expected[connection.dialect.name], definitions(connection))


def _differences(what: str, expected: Mapping[str, object], actual: Mapping[str, object]) -> list[str]:
    found = [f"{what} {name} is missing" for name in expected if name not in actual]
    found += [f"{what} {name} is changed" for name in expected if name in actual and actual[name] != expected[name]]
    return found + [f"trigger {name} is not tracker's" for name in actual if name not in expected]


def _function_differences(connection: sa.Connection, schema: str) -> list[str]:
    """Return a line for each function that is missing or changed."""
    bodies = _postgresql_functions(schema)
    query = (
        "SELECT p.proname, p.prosrc, p.proconfig, p.prosecdef, l.lanname FROM pg_proc p"
        f" JOIN pg_language l ON l.oid = p.prolang WHERE p.pronamespace = {_HERE} AND p.pronargs = 0"
        " AND p.proname IN :names"
    )
    # A dump of a database with quote_all_identifiers also puts quotes into the settings.
    actual = {
        row[0]: (row[1], [one.replace('"', "") for one in row[2] or ()], *row[3:])
        for row in _rows(connection, query, bodies)
    }
    config = ["search_path=pg_catalog, pg_temp"]
    return _differences("function", {name: (bodies[name], config, False, "plpgsql") for name in bodies}, actual)


def _table_differences(expected: dict[str, list[str]], actual: dict[str, list[str]]) -> list[str]:
    """Return a line for each column and constraint that is missing, changed or not ours."""
    found = [f"table {table} is missing" for table in expected if table not in actual]
    for table, there in actual.items():
        lines = expected[table]
        found += [f"table {table}: missing or changed: {_begin(line)}" for line in lines if line not in there]
        found += [f"table {table}: not tracker's: {_begin(line)}" for line in there if line not in lines]
    return found


def _begin(line: str) -> str:
    """Return so much of a definition as a message has room for; a CHECK of a text has a thousand characters."""
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def definitions(connection: sa.Connection) -> dict[str, list[str]]:
    """Return the columns and constraints of each table of ours, a line each, in a form that survives a restored dump.

    ``tables.json`` has what the migrations make; a test compares. SQLite keeps the text of CREATE TABLE, also in a
    copy. PostgreSQL prints what it parsed; after a dump and a restore, casts and parentheses are different. So `normal`
    leaves them out.
    """
    if connection.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name IN :names"
    else:
        # NOT NULL is read with the columns: only version 18 and later have it as a constraint.
        query = f"""
            WITH ours AS (
                SELECT oid, relname, relkind, relpersistence FROM pg_class
                WHERE relnamespace = {_HERE} AND relname IN :names
            ), parts AS (
                SELECT oid, concat_ws(' ', 'TABLE', relkind, relpersistence) AS line FROM ours
                UNION ALL
                SELECT attrelid, concat_ws(' ', attname, format_type(atttypid, atttypmod), collname,
                    CASE WHEN attnotnull THEN 'NOT NULL' END, nullif(attidentity, '')::text,
                    nullif(attgenerated, '')::text, 'DEFAULT ' || pg_get_expr(adbin, adrelid))
                FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
                    LEFT JOIN pg_collation c ON c.oid = attcollation
                WHERE attnum > 0 AND NOT attisdropped
                UNION ALL
                SELECT conrelid, concat_ws(' ', 'CONSTRAINT', conname, pg_get_constraintdef(oid))
                FROM pg_constraint WHERE contype <> 'n'
            )
            SELECT relname, string_agg(line, E'\n' ORDER BY line COLLATE "C")
            FROM ours JOIN parts USING (oid) GROUP BY relname"""
    found: dict[str, list[str]] = {}
    for table, text in sorted(map(tuple, _rows(connection, query, TABLES))):
        lines = (line.strip().rstrip(",") for line in text.split("\n"))
        found[table] = [line if connection.dialect.name == "sqlite" else normal(line) for line in lines]
    return found


_CAST = re.compile(r"::(?:character varying|timestamp with(?:out)? time zone|double precision|\"?\w+\"?)(?:\[\])*")


def normal(text: str) -> str:
    """Return the words of a definition that PostgreSQL prints, without casts, quotes around names, brackets and commas.

    They are the same after a dump and a restore; the parentheses that it prints are not.
    """
    return " ".join(re.sub(r'[][(),"]', " ", _CAST.sub("", text)).split())


def check(connection: sa.Connection) -> None:
    """Raise GuardsMissing unless every guard is as defined."""
    if found := problems(connection):
        raise GuardsMissing(
            f"the history is not protected: {'; '.join(found[:5])}{'; and more' if len(found) > 5 else ''}."
            " Find out who changed it, then run `tracker db upgrade`"
        )
