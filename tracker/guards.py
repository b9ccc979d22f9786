"""The guards: triggers that keep the history from being changed, and that complete a plain-SQL registration.

Owns their one definition on each database and the check that they stand as defined. They hold no data, so ``env.py`` of
the migrations drops them before the revisions run and makes today's after. What they are for is in ``DESIGN.md``; a
superuser or the tables' owner can always drop a trigger: only what has left the database proves anything.
"""

from __future__ import annotations

import re

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


def _jobs_rules(differs: str, same: str, transitions: str, soon: str) -> tuple[str, str]:
    """Return the conditions under which an INSERT, and an UPDATE, of jobs is refused.

    Args:
        differs: The operator that tells two values apart, NULL included.
        same: Its opposite.
        transitions: The table's name, qualified where the database needs it.
        soon: An instant a little ahead of the database's clock: nothing is declared beforehand.
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
    early = " OR ".join(f"NEW.{column} > {soon}" for column in NEVER_AHEAD)
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

_REFUSED_CLAIM = "tracker: a registration claims nothing observed and nothing in the future: give declared columns only"
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
    soon = "strftime('%Y-%m-%d %H:%M:%f000', 'now', '+1 minute')"
    claims, update = _jobs_rules("IS NOT", "IS", "transitions", soon)
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
    soon = "clock_timestamp() + interval '1 minute'"
    claims, update = _jobs_rules("IS DISTINCT FROM", "IS NOT DISTINCT FROM", f"{schema}.transitions", soon)
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
    """Return a line for each guard that is missing, altered, switched off or not ours; none if all is well."""
    if connection.dialect.name == "sqlite":
        expected: dict[str, object] = dict(sqlite())
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        actual: dict[str, object] = {row[0]: row[1] for row in rows}
    else:
        expected, actual = _postgresql_state(connection)
    found = [f"guard {name} is missing" for name in expected if name not in actual]
    found += [f"guard {name} is altered" for name in expected if name in actual and actual[name] != expected[name]]
    found += [f"trigger {name} is not tracker's" for name in actual if name not in expected]
    if connection.dialect.name != "sqlite":
        found += _bypasses(connection)
    return found + _missing_checks(connection)


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


def _missing_checks(connection: sa.Connection) -> list[str]:
    """Return a line for each CHECK that is gone, by its name."""
    expected = {f"ck_{table}_{column}" for table, columns in CHECKS.items() for column in columns.split()}
    if connection.dialect.name == "sqlite":
        texts = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE type = 'table'").scalars()
        present = {name for text in texts if text for name in re.findall(r"CONSTRAINT (ck_\w+) CHECK", text)}
    else:
        query = (
            "SELECT conname FROM pg_constraint WHERE contype = 'c' AND convalidated"
            " AND connamespace = quote_ident(current_schema())::regnamespace"
        )
        present = set(connection.exec_driver_sql(query).scalars())
    return [f"constraint {name} is missing" for name in sorted(expected - present)]


def _postgresql_state(connection: sa.Connection) -> tuple[dict[str, object], dict[str, object]]:
    bodies = _postgresql_functions(_schema(connection))
    config = ["search_path=pg_catalog, pg_temp"]
    expected: dict[str, object] = {
        name: (table, function, kind, "A", None, "", bodies[function], config)
        for name, (table, function, kind) in _postgresql_triggers().items()
    }
    tables = [*APPEND_ONLY, "jobs"]
    rows = connection.execute(
        sa.text(
            "SELECT t.tgname, c.relname, p.proname, t.tgtype, t.tgenabled::text, t.tgqual, t.tgattr::text, p.prosrc,"
            " p.proconfig"
            " FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid"
            " WHERE NOT t.tgisinternal AND c.relname IN :tables"
            " AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
        ).bindparams(sa.bindparam("tables", tables, expanding=True))
    )
    return expected, {row[0]: tuple(row[1:]) for row in rows}


def check(connection: sa.Connection) -> None:
    """Raise GuardsMissing unless every guard stands as defined."""
    if found := problems(connection):
        raise GuardsMissing(
            f"the history is not protected: {'; '.join(found[:5])}{' …' if len(found) > 5 else ''}."
            " Find out who changed it, then run: tracker db upgrade"
        )
