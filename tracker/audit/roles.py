"""Who may do what to the record: the rights of three roles on PostgreSQL.

Owns the SQL that ``tracker db grants`` prints, and the search for rights that a role should not have. Leaves alone:
running that SQL (an administrator does it), logins and passwords.

ROLES.md says what the roles are for. The writer can add to the history but not change it: it inserts by column, without
the id, so that it cannot choose one (``OVERRIDING SYSTEM VALUE``). The triggers run with the rights of the role that
writes, not of the owner: it has the right to what they insert.
"""

from __future__ import annotations

import re

import sqlalchemy as sa

from tracker import database, guards
from tracker.errors import BadConfiguration, InvalidField
from tracker.models import METADATA
from tracker.reports.views import VIEWS

LONGEST = 63  # bytes; PostgreSQL cuts a longer name, so two could become one
RESERVED = ("public", "none")  # `GRANT … TO "public"` grants to everyone, quoted or not


def _columns(table: str, *but: str) -> tuple[str, ...]:
    return tuple(column.name for column in METADATA.tables[table].columns if column.name not in but)


WRITER: dict[str, dict[str, tuple[str, ...]]] = {
    "jobs": {"INSERT": _columns("jobs", "id", *guards.UNOBSERVED), "UPDATE": _columns("jobs", *guards.FIXED)},
    **{table: {"INSERT": _columns(table, "id")} for table in guards.APPEND_ONLY},
    "clusters": {"INSERT": ("cluster",), "UPDATE": _columns("clusters", "cluster")},
    "workers": {"INSERT": _columns("workers", "stopped_at"), "UPDATE": ("beat_at", "stopped_at"), "DELETE": ()},
    "deliveries": {"INSERT": _columns("deliveries"), "UPDATE": _columns("deliveries", "destination")},
    "alerts": {"INSERT": _columns("alerts"), "UPDATE": _columns("alerts", "kind", "subject", "since")},
}
"""By table: what the writer may do besides reading, and to which columns; DELETE, of old workers, is to whole rows."""


def grants(connection: sa.Connection, *, owner: str, writer: str, auditor: str) -> str:
    """Return the SQL that gives the three roles their rights, and no others, in the schema of *connection*.

    It makes missing roles, without login or password. It takes all other rights on tracker's tables from the writer,
    the auditor and PUBLIC. It ends with a check that undoes everything if one of them can still do more. Harmless to
    repeat. A superuser runs it.

    Raises:
        BadConfiguration: The database is not PostgreSQL.
        InvalidField: A name cannot be a role's, or two roles have the same.
        SchemaMismatch: The tables are missing, or belong to another version.
    """
    require_postgresql(connection.dialect)
    names = {"owner": owner, "writer": writer, "auditor": auditor}
    for role, name in names.items():
        _check(role, name)
    if len(set(names.values())) < len(names):
        raise InvalidField("owner, writer, auditor", "two of them have the same name: name three different roles")
    database.require_schema(connection)
    return _script(connection, owner, writer, auditor)


def problems(connection: sa.Connection) -> list[str]:
    """Return a line for each right to change tracker's tables that a role has but the writer does not need.

    Rights of the owner, of a superuser, or through another role are not included.
    """
    if connection.dialect.name == "sqlite":
        return []
    ours = [*METADATA.tables, database.VERSION_TABLE, *VIEWS]
    found: dict[str, None] = {}  # in order, each once
    for role, right, relation, column in connection.execute(sa.text(_GIVEN), {"ours": ours}):
        allowed = WRITER.get(relation, {}).get(right)
        columns = {column} if column else set(_columns(relation) if relation in WRITER else ())
        if allowed is None or (right != "DELETE" and not columns <= {*allowed}):
            found[f"{role} may {right} {relation}{f'.{column}' if column else ''}"] = None
    return [*found]


_GIVEN = """
    WITH ours AS (
        SELECT * FROM pg_class
        WHERE relname = ANY (:ours) AND relnamespace = quote_ident(current_schema())::regnamespace
    ), given AS (
        SELECT relname, relowner, NULL AS attname, acl.* FROM ours, aclexplode(relacl) acl
        UNION ALL
        SELECT relname, relowner, attname, acl.* FROM ours JOIN pg_attribute ON attrelid = oid, aclexplode(attacl) acl
    )
    SELECT CASE grantee WHEN 0 THEN 'everybody (PUBLIC)' ELSE 'role ' || pg_get_userbyid(grantee) END,
        privilege_type, relname, attname
    FROM given WHERE grantee <> relowner AND privilege_type <> 'SELECT' ORDER BY 1, 3, 4, 2
""".replace("::", r"\:\:")


def require_postgresql(dialect: sa.Dialect) -> None:
    """Raise BadConfiguration unless the database has roles."""
    if dialect.name != "postgresql":
        raise BadConfiguration(
            "SQLite has no roles: anyone who can write the file can change all of it. Give the file and its folder only"
            " to the user that runs tracker (chmod 700), and give auditors a copy or `tracker audit export`. For roles,"
            " set TRACKER_DATABASE_URL to a PostgreSQL database"
        )


def _check(role: str, name: str) -> None:
    """Raise InvalidField unless *name* can be the name of a role and, in quotes, means that role only."""
    if not 0 < len(name.encode("utf-8", "surrogateescape")) <= LONGEST:
        raise InvalidField(role, f"a role's name has 1 to {LONGEST} bytes")
    if re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\"'\\$]", name):  # it could end a comment or a quotation
        raise InvalidField(role, f"{name!r} holds a quote, a backslash, a $ or a control character: name another role")
    if name in RESERVED or name.startswith("pg_"):
        raise InvalidField(role, f"{name!r} has another meaning in PostgreSQL: name another role")


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _script(connection: sa.Connection, owner: str, writer: str, auditor: str) -> str:
    """Return the SQL of `grants`."""
    here = "quote_ident(current_schema())\\:\\:regnamespace"
    ours = [*sorted(METADATA.tables), database.VERSION_TABLE]
    others = sa.text(
        f"SELECT FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND relnamespace = {here}"
        " AND relname <> ALL (:ours) LIMIT 1"
    )
    is_shared = connection.execute(others, {"ours": [*ours, *VIEWS]}).first() is not None
    with_id = [name for name, table in METADATA.tables.items() if "id" in table.c]
    own = sa.text("SELECT pg_get_serial_sequence(name, 'id') FROM unnest(CAST(:with_id AS text[])) name ORDER BY 1")
    sequences = ", ".join(connection.execute(own, {"with_id": with_id}).scalars())
    names = connection.exec_driver_sql("SELECT current_database(), current_schema()").one()
    this_database, schema = map(_identifier, names)
    missing = [
        f"DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {_literal(name)})"
        f" THEN CREATE ROLE {_identifier(name)} NOLOGIN; END IF; END $do$;"
        for name in (owner, writer, auditor)
    ]
    too_much = _refuse_more(schema, ours, owner, writer, auditor)
    owner, writer, auditor = map(_identifier, (owner, writer, auditor))
    both = f"{writer}, {auditor}"
    tables, views = ([f"{schema}.{_identifier(name)}" for name in some] for some in (ours, VIEWS))
    schema_line = f"ALTER SCHEMA {schema} OWNER TO {owner};"
    if is_shared:
        schema_line = (
            "-- The schema holds other tables, too, so it keeps its owner, who can drop tracker's tables.\n"
            f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {owner};"
        )
    owned = [
        *(f"ALTER TABLE {name} OWNER TO {owner};" for name in tables),
        *(f"ALTER VIEW {name} OWNER TO {owner};" for name in views),
        *(f"ALTER FUNCTION {schema}.{_identifier(name)}() OWNER TO {owner};" for name in guards.functions()),
    ]
    given = []
    for table, rights in WRITER.items():
        for right, columns in rights.items():
            listed = f" ({', '.join(map(_identifier, columns))})" if columns else ""
            given.append(f"GRANT {right}{listed} ON {schema}.{_identifier(table)} TO {writer};")
    line = "\n"
    return f"""\
-- The rights of tracker's three roles. Run it as a superuser, in this database:
--     psql --set ON_ERROR_STOP=1 --file FILE URL
-- On an error nothing is changed. Run it again after each `tracker db upgrade` that adds tables.
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;

-- Missing roles, without login and password: give them those yourself.
{line.join(missing)}

-- The owner runs `tracker db upgrade` and `tracker db prune`.
{schema_line}
{line.join(owned)}

-- Take away other rights.
REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {both};
REVOKE ALL ON {", ".join(tables + views)} FROM PUBLIC, {both};
REVOKE ALL ON SEQUENCE {sequences} FROM PUBLIC, {both};

-- The writer and the auditor read, also what the owner makes later: an upgrade makes the views again.
GRANT CONNECT ON DATABASE {this_database} TO {owner}, {both};
GRANT USAGE ON SCHEMA {schema} TO {both};
GRANT SELECT ON {", ".join(tables + views)} TO {both};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT SELECT ON TABLES TO {both};

-- The writer runs every other command. By column, so that it cannot choose an id.
{line.join(given)}

-- Undo everything if one of them can do more: as a superuser, as the owner of the database, or through another role.
{too_much}
COMMIT;
"""


def _refuse_more(schema: str, tables: list[str], owner: str, writer: str, auditor: str) -> str:
    """Return the block that checks what the roles can really do, also through another role."""
    roles = f"(VALUES ({_literal(writer)}::name, true), ({_literal(auditor)}::name, false)) AS role (name, writes)"
    in_schema = f"{_literal(schema)}::regnamespace"
    return f"""\
DO $do$ DECLARE found text;
BEGIN
  SELECT string_agg(format('%s %s', name, what), '; ') INTO found FROM (
    SELECT role.name, what
    FROM {roles}
      JOIN pg_roles r ON r.rolname = role.name
      JOIN pg_database d ON d.datname = current_database(),
      LATERAL (VALUES
        (r.rolsuper, 'is a superuser'),
        (r.rolcreaterole, 'can make roles'),
        (pg_has_role(r.oid, {_literal(owner)}::name, 'MEMBER'), 'is a member of the owner'),
        (NOT writes AND pg_has_role(r.oid, {_literal(writer)}::name, 'MEMBER'), 'is a member of the writer'),
        (pg_has_role(r.oid, d.datdba, 'MEMBER'), 'owns the database'),
        (has_schema_privilege(r.oid, {in_schema}, 'CREATE'), 'can create in the schema')
      ) AS can (is_so, what)
    WHERE is_so
    UNION ALL
    SELECT role.name, format('can %s %s', wanted, relname)
    FROM {roles}, pg_class c, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) wanted
    WHERE c.relname IN ({", ".join(map(_literal, tables))}) AND c.relnamespace = {in_schema}
      AND has_table_privilege(role.name, c.oid, wanted)
      AND NOT (writes AND wanted = 'DELETE' AND relname = 'workers')
  ) more;
  IF found IS NOT NULL THEN RAISE EXCEPTION 'tracker: a role has other rights: %', found; END IF;
END $do$;"""
