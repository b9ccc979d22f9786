"""The guards: triggers that keep the history from being changed, and that complete a plain-SQL registration.

Owns their one definition on each database, and the check that they and the tables stand as defined. They hold no data,
so ``env.py`` of the migrations drops them before the revisions run and makes today's after. What they are for is in
``DESIGN.md``; a superuser or the tables' owner can always drop a trigger: only what has left the database proves
anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256

import sqlalchemy as sa

from tracker import database
from tracker.errors import GuardsMissing

# Each append-only table with its unique keys: SQLite's REPLACE deletes a row by any of them, past a DELETE trigger.
APPEND_ONLY: dict[str, tuple[tuple[str, ...], ...]] = {
    "transitions": (("id",), ("job_id", "seq")),
    "sources": (("id",),),
    "gaps": (("id",),),
    "seals": (("id",), ("checkpoint_sha256",)),
    "segments": (("seal_id", "part"), ("rowid",)),  # rowid: SQLite's own key, where the primary key is of two columns
}
SEALED = ("transitions", "sources", "gaps")  # what the sealer reads by id, so that their writers take its lock, shared
SEAL_LOCK = 0x7472616B  # the advisory lock between writers (shared) and the sealer (exclusive): "trak"

FACTS = ("kind", "reference", "received_at", "submitted_at", "extended_on")  # what an amendment may change
FIXED = ("id", "cluster", "jid", "registered_at", "registered_by")
NEVER_AHEAD = ("received_at", "submitted_at", "registered_at", "due_at")  # of the clock, in a registration
# What only an observation may claim, and the value it has before the first.
UNOBSERVED = {
    "state": "'open'",
    **dict.fromkeys(("status", "status_after", "status_by", "seen_at", "ended_after", "ended_by"), "NULL"),
    **dict.fromkeys(("status_polls", "seq", "polls", "failures"), "0"),
    **dict.fromkeys(("last_error", "leased_by", "leased_until"), "NULL"),
}


def _jobs_rules(
    differs: str, same: str, transitions: str, now: str, minute_after: Callable[[str], str]
) -> tuple[str, str]:
    """Return the conditions under which an INSERT, and an UPDATE, of jobs is refused.

    Args:
        differs: The operator that tells two values apart, NULL included.
        same: Its opposite.
        transitions: The table's name, qualified where the database needs it.
        now: The database's clock. Nothing is declared beforehand, nor a submission after the registration, which needs
            the jid: a job could have been done before it was submitted, in less than no time.
        minute_after: Makes an instant a minute later: clocks differ.
    """
    claims = " OR ".join(f"NEW.{column} {differs} {value}" for column, value in UNOBSERVED.items())
    amended = (
        f"NEW.seq = OLD.seq + 1 AND EXISTS (SELECT 1 FROM {transitions} t WHERE t.job_id = NEW.id AND t.seq = NEW.seq"
        f" AND t.action = 'amended' AND {' AND '.join(f't.{c} {same} NEW.{c}' for c in FACTS)})"
    )

    def changed(columns: tuple[str, ...]) -> str:
        return "(" + " OR ".join(f"NEW.{c} {differs} OLD.{c}" for c in columns) + ")"

    # The deadline is derived: whoever asks first computes it again, so that plain SQL cannot set it for good.
    settled = f"OLD.polls > 0 AND OLD.deadline_at {differs} NULL"
    update = (
        f"{changed(FIXED)}"
        f" OR ({changed(FACTS)} OR ({settled} AND {changed(('deadline_on', 'deadline_at'))})) AND NOT ({amended})"
    )
    lasting = f"NEW.state = 'open' AND NEW.due_at {same} NULL"  # it would never be polled again
    early = " OR ".join(
        f"NEW.{column} > {minute_after(limit)}"
        for limit, columns in ((now, NEVER_AHEAD), ("NEW.registered_at", ("received_at", "submitted_at")))
        for column in columns
    )
    return f"{claims} OR {lasting} OR {early}", f"{update} OR ({lasting})"


def _seal_rule(differs: str, lf: str, seals: str) -> str:
    """Return the condition under which an INSERT of seals is refused: no checkpoint, or not the next one.

    The sealer builds on the newest row alone, and none is ever taken back: rubbish there would stop it for good.
    """
    newest = f"(SELECT * FROM {seals} ORDER BY id DESC LIMIT 1) s"
    falls = " OR ".join(f"NEW.last_{kind}_id < s.last_{kind}_id" for kind in ("transition", "gap", "source"))
    return (
        f"substr(NEW.checkpoint, 1, 22) {differs} 'tracker checkpoint v1' || {lf}"
        " OR length(NEW.checkpoint_sha256) <> 64 OR ltrim(NEW.checkpoint_sha256, '0123456789abcdef') <> ''"
        f" OR NEW.previous_sha256 {differs} (SELECT s.checkpoint_sha256 FROM {newest})"
        f" OR EXISTS (SELECT 1 FROM {newest} WHERE {falls})"
    )


CHECKS = {  # the columns that have one, by table; its name is ck_TABLE_COLUMN
    "jobs": "cluster jid reference registered_by kind state status_polls seq polls failures "
    "received_at submitted_at registered_at deadline_at status_after status_by seen_at "
    "ended_after ended_by due_at leased_until extended_on deadline_on",
    "transitions": "action from_state to_state anomaly kind reference seq polls last_seen_at observed_at "
    "server_date received_at submitted_at extended_on",
    "sources": "cluster archive_days lost_after_polls lost_after_seconds recorded_at",
    "gaps": "cluster cause began_at ended_at order",
    "clusters": "cluster pause_cause gap_cause answered_at paused_until gap_began_at next_request_at",
    "workers": "started_at beat_at stopped_at",
    "seals": "last_transition_id last_gap_id last_source_id rows sealed_at",
    "segments": "cluster rows",
    "deliveries": "destination last_number delivered_at failing_since",
}

# What `digest` makes of `definitions` after the migrations, which alone say what a table is: a test compares.
TABLES = {
    "sqlite": {
        "jobs": "860d0464d45cd4f4",
        "transitions": "a2e29b0b894350e6",
        "sources": "b39e1022ea8406c9",
        "gaps": "50cb676d81ab04c5",
        "clusters": "bf235579bc98d5da",
        "workers": "fb7b477321a77ecd",
        "seals": "69d182864ee2301e",
        "segments": "1bb560b4e3571060",
        "deliveries": "a684879eaa0fe8f2",
    },
    "postgresql": {  # 15 to 18 tell the same
        "jobs": "29d9852bec208c48",
        "transitions": "bf5e0f4d88b84463",
        "sources": "ae57750cbe68b644",
        "gaps": "1157f09b8fd86103",
        "clusters": "5d3871e87a6091f2",
        "workers": "f27a68c47bb77ebd",
        "seals": "f0baab13c61eb164",
        "segments": "f7af3fc99b68fe4b",
        "deliveries": "b8d92b84404d567c",
    },
}

_REFUSED_CLAIM = (
    "tracker: a registration claims nothing observed, and nothing later than now or itself: give declared columns only"
)
_REFUSED_SEAL = "tracker: a seal holds a checkpoint that follows on the newest one, and is no other text"
_REFUSED_CHANGE = "tracker: declared facts change by an amendment only, and an open job has a next poll"


def sqlite() -> dict[str, str]:
    """Return each trigger's DDL by its name."""
    ddl: dict[str, str] = {}

    def trigger(name: str, event: str, table: str, message: str, when: str = "") -> None:
        condition = f" WHEN {when}" if when else ""
        ddl[name] = f"CREATE TRIGGER {name} {event} ON {table}{condition} BEGIN SELECT RAISE(ABORT, '{message}'); END"

    def replace(table: str, keys: tuple[tuple[str, ...], ...]) -> None:
        exists = " OR ".join(
            f"EXISTS (SELECT 1 FROM {table} WHERE {' AND '.join(f'{c} = NEW.{c}' for c in key)})" for key in keys
        )
        message = f"tracker: {table} has a row with this key, and none is replaced"
        trigger(f"guard_{table}_replace", "BEFORE INSERT", table, message, exists)

    for table, keys in APPEND_ONLY.items():
        for event in ("UPDATE", "DELETE"):
            message = f"tracker: {table} is append-only: {event} refused"
            trigger(f"guard_{table}_{event.lower()}", f"BEFORE {event}", table, message)
        replace(table, keys)
    trigger("guard_seals_next", "BEFORE INSERT", "seals", _REFUSED_SEAL, _seal_rule("IS NOT", "char(10)", "seals"))
    claims, update = _jobs_rules(
        "IS NOT", "IS", "transitions", "'now'", lambda at: f"strftime('%Y-%m-%d %H:%M:%f000', {at}, '+1 minute')"
    )
    trigger("guard_jobs_delete", "BEFORE DELETE", "jobs", "tracker: jobs are never deleted: withdraw it")
    replace("jobs", (("id",), ("cluster", "jid")))
    trigger("guard_jobs_claim", "BEFORE INSERT", "jobs", _REFUSED_CLAIM, claims)
    trigger("guard_jobs_update", "BEFORE UPDATE", "jobs", _REFUSED_CHANGE.replace("'", "''"), update)
    facts = ", ".join(FACTS)
    ddl["register_job"] = (
        f"CREATE TRIGGER register_job AFTER INSERT ON jobs BEGIN"
        f" INSERT INTO transitions (job_id, seq, action, to_state, observed_at, actor, {facts})"
        f" VALUES (NEW.id, 0, 'registered', 'open', NEW.registered_at, NEW.registered_by,"
        f" {', '.join(f'NEW.{c}' for c in FACTS)}); END"
    )
    return ddl


# PostgreSQL: name -> (table, function, events, level); all BEFORE but register_job.
_ROW, _BEFORE, _INSERT, _DELETE, _UPDATE, _TRUNCATE = 1, 2, 4, 8, 16, 32  # bits of pg_trigger.tgtype
_EVENTS = {_INSERT: "INSERT", _DELETE: "DELETE", _UPDATE: "UPDATE", _TRUNCATE: "TRUNCATE"}


def _postgresql_triggers() -> dict[str, tuple[str, str, int]]:
    triggers: dict[str, tuple[str, str, int]] = {}
    for table in APPEND_ONLY:
        triggers[f"guard_{table}_change"] = (table, "tracker_refuse", _ROW | _BEFORE | _UPDATE | _DELETE)
        triggers[f"guard_{table}_truncate"] = (table, "tracker_refuse", _BEFORE | _TRUNCATE)
    for table in SEALED:
        triggers[f"lock_{table}"] = (table, "tracker_share_seal_lock", _BEFORE | _INSERT)
    triggers["guard_seals_next"] = ("seals", "tracker_refuse_seal", _ROW | _BEFORE | _INSERT)
    triggers["guard_jobs_delete"] = ("jobs", "tracker_refuse", _ROW | _BEFORE | _DELETE)
    triggers["guard_jobs_truncate"] = ("jobs", "tracker_refuse", _BEFORE | _TRUNCATE)
    triggers["guard_jobs_claim"] = ("jobs", "tracker_refuse_claim", _ROW | _BEFORE | _INSERT)
    triggers["guard_jobs_update"] = ("jobs", "tracker_refuse_change", _ROW | _BEFORE | _UPDATE)
    triggers["register_job"] = ("jobs", "tracker_register", _INSERT)
    return triggers


def _postgresql_functions(schema: str) -> dict[str, str]:
    """Return each function's body by its name."""
    claims, update = _jobs_rules(
        *("IS DISTINCT FROM", "IS NOT DISTINCT FROM", f"{schema}.transitions", "clock_timestamp()"),
        lambda at: f"{at} + interval '1 minute'",
    )
    seal = _seal_rule("IS DISTINCT FROM", "chr(10)", f"{schema}.seals")
    refuse = "USING ERRCODE = 'restrict_violation'"
    facts = ", ".join(FACTS)
    return {
        "tracker_refuse": f"BEGIN RAISE EXCEPTION 'tracker: % of % refused', TG_OP, TG_TABLE_NAME {refuse}; END",
        "tracker_refuse_claim": f"BEGIN IF {claims} THEN RAISE EXCEPTION '{_REFUSED_CLAIM}' {refuse}; END IF;"
        " RETURN NEW; END",
        "tracker_refuse_change": f"BEGIN IF {update} THEN RAISE EXCEPTION '{_REFUSED_CHANGE}' {refuse}; END IF;"
        " RETURN NEW; END",
        "tracker_refuse_seal": f"BEGIN IF {seal} THEN RAISE EXCEPTION '{_REFUSED_SEAL}' {refuse}; END IF;"
        " RETURN NEW; END",
        "tracker_share_seal_lock": f"BEGIN PERFORM pg_advisory_xact_lock_shared({SEAL_LOCK}); RETURN NULL; END",
        # One statement for all rows of one INSERT: a bulk import pays the lock above once.
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
    must not stand in for ours. ENABLE ALWAYS: otherwise ``session_replication_role = replica`` walks past.
    """
    statements = [
        f"CREATE FUNCTION {schema}.{name}() RETURNS trigger LANGUAGE plpgsql"
        f" SET search_path = pg_catalog, pg_temp AS $guard${body}$guard$"
        for name, body in _postgresql_functions(schema).items()
    ]
    for name, (table, function, kind) in _postgresql_triggers().items():
        when = "BEFORE" if kind & _BEFORE else "AFTER"
        events = " OR ".join(word for bit, word in _EVENTS.items() if kind & bit)
        rows = " REFERENCING NEW TABLE AS registered" if name == "register_job" else ""
        level = "ROW" if kind & _ROW else "STATEMENT"
        statements += [
            f"CREATE TRIGGER {name} {when} {events} ON {schema}.{table}{rows}"
            f" FOR EACH {level} EXECUTE FUNCTION {schema}.{function}()",
            f"ALTER TABLE {schema}.{table} ENABLE ALWAYS TRIGGER {name}",
        ]
    return statements


def _schema(connection: sa.Connection) -> str:
    return str(connection.exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one())


def create(connection: sa.Connection) -> None:
    """Make the guards; none may be there."""
    sqlite_like = connection.dialect.name == "sqlite"
    for statement in sqlite().values() if sqlite_like else postgresql(_schema(connection)):
        database.execute(connection, statement)


def drop(connection: sa.Connection) -> None:
    """Drop every guard that is there."""
    for name, table in _present(connection):
        on_table = "" if connection.dialect.name == "sqlite" else f" ON {_schema(connection)}.{table}"
        connection.exec_driver_sql(f'DROP TRIGGER "{name}"{on_table}')
    if connection.dialect.name != "sqlite":
        schema = _schema(connection)
        for name in _postgresql_functions(schema):
            connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {schema}.{name}()")


def _present(connection: sa.Connection) -> list[tuple[str, str]]:
    """Return (trigger, table) for each trigger on a table of ours."""
    tables = [*APPEND_ONLY, "jobs"]
    if connection.dialect.name == "sqlite":
        query = "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' AND tbl_name IN :tables"
    else:
        query = (
            "SELECT t.tgname, c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
            " WHERE NOT t.tgisinternal AND c.relname IN :tables"
            " AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
        )
    statement = sa.text(query + " ORDER BY 1").bindparams(sa.bindparam("tables", tables, expanding=True))
    return [(row[0], row[1]) for row in connection.execute(statement)]


def problems(connection: sa.Connection) -> list[str]:
    """Return a line for each guard that is missing, altered, switched off or not ours; none if all is well.

    Also for each CHECK that is missing, each table that is altered, and on PostgreSQL for what can stand in for its own
    functions, operators and casts. One change is one line.
    """
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        found = _differences("guard", sqlite(), {row[0]: row[1] for row in rows})
    else:
        found = _shadowed_catalog(connection)
        if found:  # what the others say comes by way of these names
            return found
        found = _shadows(connection) + _postgresql_differences(connection) + _bypasses(connection)
    return found + _table_differences(connection)


def _differences(what: str, expected: Mapping[str, object], actual: Mapping[str, object]) -> list[str]:
    found = [f"{what} {name} is missing" for name in expected if name not in actual]
    found += [f"{what} {name} is altered" for name in expected if name in actual and actual[name] != expected[name]]
    return found + [f"trigger {name} is not tracker's" for name in actual if name not in expected]


def _shadowed_catalog(connection: sa.Connection) -> list[str]:
    """Return a line if the search path, of a role or a database, lets another schema come before pg_catalog."""
    path: list[str] = connection.exec_driver_sql("SELECT pg_catalog.current_schemas(true)").scalar_one()
    before = [name for name in path[: path.index("pg_catalog")] if not name.startswith("pg_temp_")]
    if not before:
        return []
    return [f"the search path has {', '.join(before)} before pg_catalog: whatever else is said here may be false"]


def _shadows(connection: sa.Connection) -> list[str]:
    """Return a line for each function and operator in a schema of ours that PostgreSQL might take for its own.

    One whose types fit better comes first, whatever the search path: so it would in our views. Extensions have many
    such, made by a superuser. Relations need no look: pg_catalog's come first, whatever they hold. Each operator here
    is one of PostgreSQL's own for exactly these types, with which nobody can compete.
    """
    found = []
    for what, table, name, schema, owner in (
        ("function", "pg_proc", "proname", "pronamespace", "proowner"),
        ("operator", "pg_operator", "oprname", "oprnamespace", "oprowner"),
    ):
        rows = connection.exec_driver_sql(
            f"SELECT DISTINCT n.nspname, o.{name} FROM pg_catalog.{table} o"
            f" JOIN pg_catalog.pg_namespace n ON n.oid = o.{schema}"
            " WHERE n.nspname = ANY (pg_catalog.current_schemas(false)) AND n.nspname <> 'pg_catalog'"
            f" AND EXISTS (SELECT FROM pg_catalog.{table} b WHERE b.{name} = o.{name}"
            f" AND b.{schema} = 'pg_catalog'::regnamespace::oid)"
            f" AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_roles r ON r.oid = o.{owner}"
            f" WHERE d.classid = 'pg_catalog.{table}'::regclass::oid AND d.objid = o.oid AND d.deptype = 'e'"
            " AND r.rolsuper) ORDER BY 1, 2"
        )
        found += [f"{what} {of}.{its} has the name of one of PostgreSQL's, and can stand in for it" for of, its in rows]
    rows = connection.exec_driver_sql(
        "SELECT c.castsource::regtype::text, c.casttarget::regtype::text FROM pg_catalog.pg_cast c"
        " JOIN pg_catalog.pg_type s ON s.oid = c.castsource JOIN pg_catalog.pg_type t ON t.oid = c.casttarget"
        " WHERE c.oid >= '16384'"  # the first that is not PostgreSQL's own
        " AND s.typnamespace = 'pg_catalog'::regnamespace::oid AND t.typnamespace = 'pg_catalog'::regnamespace::oid"
        " AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_cast'::regclass::oid"
        " AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1, 2"
    )
    return found + [f"the cast from {source} to {target} is not PostgreSQL's" for source, target in rows]


def _postgresql_differences(connection: sa.Connection) -> list[str]:
    """Return a line for each function and trigger that is missing or altered, and each trigger that is not ours."""
    bodies = _postgresql_functions(_schema(connection))
    triggers = _postgresql_triggers()
    here = "quote_ident(current_schema())::regnamespace"
    rows = connection.execute(
        sa.text(
            "SELECT p.proname, p.prosrc, p.proconfig, p.prosecdef, l.lanname FROM pg_proc p"
            f" JOIN pg_language l ON l.oid = p.prolang WHERE p.pronamespace = {here} AND p.pronargs = 0"
            " AND p.proname IN :names"
        ).bindparams(sa.bindparam("names", [*bodies], expanding=True))
    )
    functions = {row[0]: tuple(row[1:]) for row in rows}
    config = ["search_path=pg_catalog, pg_temp"]
    found = _differences("function", {name: (bodies[name], config, False, "plpgsql") for name in bodies}, functions)
    rows = connection.execute(
        sa.text(
            "SELECT t.tgname, c.relname, p.proname, p.pronamespace = c.relnamespace, t.tgtype, t.tgenabled::text,"
            " t.tgqual, t.tgattr::text"
            " FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid"
            f" WHERE NOT t.tgisinternal AND c.relname IN :tables AND c.relnamespace = {here}"
        ).bindparams(sa.bindparam("tables", [*APPEND_ONLY, "jobs"], expanding=True))
    )
    expected = {
        name: (table, function, True, kind, "A", None, "")
        for name, (table, function, kind) in triggers.items()
        if function in functions  # a function takes its triggers with it
    }
    return found + _differences("guard", expected, {row[0]: tuple(row[1:]) for row in rows})


def _bypasses(connection: sa.Connection) -> list[str]:
    """Return a line for each thing on our tables that PostgreSQL would do in a guard's stead."""
    here = "quote_ident(current_schema())::regnamespace"
    ours = f"(SELECT oid FROM pg_class WHERE relname IN :tables AND relnamespace = {here})"
    queries = (
        f"SELECT 'rule ' || rulename || ' is not tracker''s' FROM pg_rewrite WHERE ev_class IN {ours}",
        "SELECT 'table ' || inhrelid::regclass || ' is not tracker''s, and inherits from one of them'"
        f" FROM pg_inherits WHERE inhparent IN {ours}",
        "SELECT 'table ' || relname || ' has row security, which hides rows' FROM pg_class"
        f" WHERE relrowsecurity AND oid IN {ours}",
    )
    statements = [sa.text(query).bindparams(sa.bindparam("tables", expanding=True)) for query in queries]
    return [row for each in statements for row in connection.execute(each, {"tables": [*CHECKS]}).scalars()]


def _table_differences(connection: sa.Connection) -> list[str]:
    """Return a line for each CHECK that is gone, and each table that is altered in another way."""
    found = []
    right = TABLES[connection.dialect.name] if _is_known(connection) else {}
    for table, text in definitions(connection).items():
        gone = [f"ck_{table}_{column}" for column in CHECKS[table].split() if f" ck_{table}_{column} " not in text]
        found += [f"constraint {name} is missing" for name in gone]
        if not gone and right and digest(text) != right[table]:
            found.append(f"table {table} is altered: its columns or constraints are not as tracker makes them")
    return found


def _is_known(connection: sa.Connection) -> bool:
    """Whether tables are told as `TABLES` has them: another PostgreSQL may find other words for the same."""
    if connection.dialect.name == "sqlite":
        return True
    version: str = connection.exec_driver_sql("SHOW server_version_num").scalar_one()
    return 15 <= int(version) // 10_000 <= 18


def digest(text: str) -> str:
    """Return what `TABLES` keeps of a table's definition."""
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def definitions(connection: sa.Connection) -> dict[str, str]:
    """Return each table of ours that is there with its columns and constraints, as the database tells them."""
    tables = [*CHECKS]
    if connection.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name IN :tables"
    else:
        # NOT NULL is told by the columns: as a constraint it is there since version 18 only.
        query = """
            WITH ours AS (
                SELECT oid, relname, relkind, relpersistence FROM pg_class
                WHERE relnamespace = quote_ident(current_schema())::regnamespace AND relname IN :tables
            ), told AS (
                SELECT oid, 0 AS kind, 0 AS place, concat_ws(' ', relkind, relpersistence) AS line FROM ours
                UNION ALL
                SELECT attrelid, 1, attnum, concat_ws(' ', attname, format_type(atttypid, atttypmod),
                    attcollation::regcollation, CASE WHEN attnotnull THEN 'NOT NULL' END, attidentity, attgenerated,
                    pg_get_expr(adbin, adrelid))
                FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
                WHERE attnum > 0 AND NOT attisdropped
                UNION ALL
                SELECT conrelid, 2, 0, concat_ws(' ', 'CONSTRAINT', conname, pg_get_constraintdef(oid))
                FROM pg_constraint WHERE contype <> 'n'
            )
            SELECT relname, string_agg(line, E'\n' ORDER BY kind, place, line COLLATE "C")
            FROM ours JOIN told USING (oid) GROUP BY relname"""
    statement = sa.text(query).bindparams(sa.bindparam("tables", tables, expanding=True))
    found = {name: " ".join(text.split()) for name, text in connection.execute(statement)}
    return {table: found[table] for table in tables if table in found}


def check(connection: sa.Connection) -> None:
    """Raise GuardsMissing unless every guard stands as defined."""
    if found := problems(connection):
        raise GuardsMissing(
            f"the history is not protected: {'; '.join(found[:5])}{' …' if len(found) > 5 else ''}."
            " Find out who changed it, then run: tracker db upgrade"
        )
