"""Who may do what to the record: the rights of three roles on PostgreSQL.

Owns the SQL that ``tracker db grants`` prints, and the search for rights that a role should not have. Leaves alone:
running that SQL (an administrator does it), logins and passwords.

The owner runs ``tracker db upgrade``. The writer runs the daemon and every other command. It can add to the history but
not change it: it inserts by column, without the id, so that it cannot choose one (``OVERRIDING SYSTEM VALUE``). The
auditor reads. The triggers run with the rights of the role that writes, not of the owner: it has the right to what they
insert.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import sqlalchemy as sa

from tracker import database, guards
from tracker.errors import BadConfiguration, InvalidField
from tracker.models import METADATA
from tracker.reports.views import VIEWS

LONGEST = 63  # bytes; PostgreSQL cuts a longer name, so two could become one
RESERVED = ("public", "none")  # `GRANT … TO "public"` grants to everybody, quoted or not


@dataclass(frozen=True, slots=True)
class Rights:
    """What the writer may do to a table besides reading; DELETE is the only right to whole rows."""

    insert: tuple[str, ...]
    update: tuple[str, ...] = ()
    delete: bool = False


def _columns(table: str, *but: str) -> tuple[str, ...]:
    return tuple(column.name for column in METADATA.tables[table].columns if column.name not in but)


WRITER: dict[str, Rights] = {
    "jobs": Rights(_columns("jobs", "id", *guards.UNOBSERVED), _columns("jobs", *guards.FIXED)),
    **{table: Rights(_columns(table, "id")) for table in guards.APPEND_ONLY},
    "clusters": Rights(("cluster",), _columns("clusters", "cluster")),
    "workers": Rights(_columns("workers", "stopped_at"), ("beat_at", "stopped_at"), delete=True),  # old ones go
    "deliveries": Rights(_columns("deliveries"), _columns("deliveries", "destination")),
    "alerts": Rights(_columns("alerts"), _columns("alerts", "kind", "subject", "since")),
}
"""By table; the writer can only read a table that is not here."""


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
    roles = {"owner": owner, "writer": writer, "auditor": auditor}
    holders: dict[str, str] = {}
    for role, name in roles.items():
        _check(role, name)
        if name in holders:
            raise InvalidField(role, f"{name!r} is the {holders[name]}, too: name three different roles")
        holders[name] = role
    database.require_schema(connection)
    return "\n".join(_Script(connection, owner, writer, auditor).lines()) + "\n"


def problems(connection: sa.Connection) -> list[str]:
    """Return a line for each right to change tracker's tables that a role has but the writer does not need.

    Rights of the owner, of a superuser, or through another role are not included.
    """
    if connection.dialect.name == "sqlite":
        return []
    ours = [*METADATA.tables, database.VERSION_TABLE, *VIEWS]
    found: dict[str, None] = {}  # in order, each once
    for role, right, relation, column in connection.execute(sa.text(_GIVEN), {"ours": ours}):
        rights = WRITER.get(relation, Rights(()))
        allowed = {"INSERT": rights.insert, "UPDATE": rights.update}.get(right, ())
        is_whole = right == "DELETE" and rights.delete
        columns = [column] if column else _columns(relation) if relation in WRITER else ["all"]
        if not is_whole and not {*columns} <= {*allowed}:
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
    encoded = name.encode("utf-8", "surrogateescape")
    if not name or len(encoded) > LONGEST:
        raise InvalidField(role, f"a role's name has 1 to {LONGEST} bytes; this one has {len(encoded)}")
    if re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):  # a line end would end a comment in the SQL
        raise InvalidField(role, f"{name!r} holds a control character: name another role")
    if name in RESERVED or name.startswith("pg_"):
        raise InvalidField(role, f"{name!r} has another meaning in PostgreSQL: name another role")


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    """Return *text* as a string that does not depend on ``standard_conforming_strings``."""
    quoted = "'" + text.replace("'", "''") + "'"
    return " E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


def _do(body: str) -> str:
    """Return an anonymous block; no name in it can end its quotes."""
    quotes = "$do$"
    while quotes in body:
        quotes = f"{quotes[:-1]}o$"
    return f"DO {quotes}\n{body}\n{quotes};"


class _Script:
    """The SQL for one database; `lines` returns it."""

    def __init__(self, connection: sa.Connection, owner: str, writer: str, auditor: str) -> None:
        self._names = {"owner": owner, "writer": writer, "auditor": auditor}
        self._owner, self._writer, self._auditor = map(_identifier, (owner, writer, auditor))
        here = connection.exec_driver_sql("SELECT current_database(), current_schema()").one()
        self._database, self._schema = map(_identifier, here)
        self._tables = (*sorted(METADATA.tables), database.VERSION_TABLE)
        functions = guards.functions()
        sequences = sa.text(
            "SELECT s.relname FROM pg_class s JOIN pg_depend d ON d.objid = s.oid AND d.deptype IN ('a', 'i')"
            " AND d.classid = 'pg_class'::regclass JOIN pg_class t ON t.oid = d.refobjid"
            " WHERE s.relkind = 'S' AND t.relname IN :ours"
            " AND t.relnamespace = quote_ident(current_schema())::regnamespace ORDER BY 1"
        ).bindparams(sa.bindparam("ours", self._tables, expanding=True))
        self._sequences = connection.execute(sequences).scalars().all()
        others = sa.text(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f')"
            " AND relnamespace = quote_ident(current_schema())::regnamespace AND relname NOT IN :relations"
            " UNION ALL SELECT proname FROM pg_proc"
            " WHERE pronamespace = quote_ident(current_schema())::regnamespace AND proname NOT IN :functions"
        ).bindparams(
            sa.bindparam("relations", (*self._tables, *VIEWS), expanding=True),
            sa.bindparam("functions", functions, expanding=True),
        )
        self._is_shared = connection.execute(others).first() is not None
        self._functions = functions

    def _in_schema(self, name: str) -> str:
        return f"{self._schema}.{_identifier(name)}"

    def lines(self) -> list[str]:
        both = f"{self._writer}, {self._auditor}"
        everybody = f"PUBLIC, {both}"
        tables = ", ".join(map(self._in_schema, self._tables))
        views = ", ".join(map(self._in_schema, VIEWS))
        sequences = ", ".join(map(self._in_schema, self._sequences))
        if self._is_shared:
            schema = [
                "-- The schema holds other tables, too, so it keeps its owner, who can drop tracker's tables.",
                f"GRANT USAGE, CREATE ON SCHEMA {self._schema} TO {self._owner};",
            ]
        else:
            schema = [f"ALTER SCHEMA {self._schema} OWNER TO {self._owner};"]
        return [
            "-- The rights of tracker's three roles. Run it as a superuser, in this database:",
            "--     psql --set ON_ERROR_STOP=1 --file FILE URL",
            "-- On an error nothing is changed. Run it again after each `tracker db upgrade` that adds tables.",
            "BEGIN;",
            "SET LOCAL search_path = pg_catalog, pg_temp;",
            "",
            "-- Missing roles, without login and password: give them those yourself.",
            *map(self._make, self._names.values()),
            "",
            "-- The owner runs `tracker db upgrade`.",
            *schema,
            *(f"ALTER TABLE {self._in_schema(name)} OWNER TO {self._owner};" for name in self._tables),
            *(f"ALTER VIEW {self._in_schema(name)} OWNER TO {self._owner};" for name in VIEWS),
            *(f"ALTER FUNCTION {self._in_schema(name)}() OWNER TO {self._owner};" for name in self._functions),
            "",
            "-- Take away other rights.",
            f"REVOKE CREATE ON SCHEMA {self._schema} FROM {everybody};",
            f"REVOKE ALL ON {tables} FROM {everybody};",
            f"REVOKE ALL ON {views} FROM {everybody};",
            f"REVOKE ALL ON SEQUENCE {sequences} FROM {everybody};",
            "",
            "-- The writer and the auditor read, also what the owner makes later: an upgrade makes the views again.",
            f"GRANT CONNECT ON DATABASE {self._database} TO {self._owner}, {both};",
            f"GRANT USAGE ON SCHEMA {self._schema} TO {both};",
            f"GRANT SELECT ON {tables} TO {both};",
            f"GRANT SELECT ON {views} TO {both};",
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {self._owner} IN SCHEMA {self._schema}"
            f" GRANT SELECT ON TABLES TO {both};",
            "",
            "-- The writer runs every command except `tracker db upgrade`. By column, so that it cannot choose an id.",
            *(line for table, rights in WRITER.items() for line in self._grant(table, rights)),
            "",
            "-- Undo everything if one of them can do more: as a superuser, as the owner of the database, or through",
            "-- another role.",
            self._refuse_more(),
            "COMMIT;",
        ]

    def _make(self, name: str) -> str:
        missing = f"NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {_literal(name)})"
        return _do(f"BEGIN IF {missing} THEN CREATE ROLE {_identifier(name)} NOLOGIN; END IF; END")

    def _grant(self, table: str, rights: Rights) -> list[str]:
        given = [("INSERT", rights.insert), ("UPDATE", rights.update)]
        parts = [f"{right} ({', '.join(map(_identifier, columns))})" for right, columns in given if columns]
        parts += ["DELETE"] if rights.delete else []
        return [f"GRANT {each} ON {self._in_schema(table)} TO {self._writer};" for each in parts]

    def _refuse_more(self) -> str:
        """Return the block that checks what the roles can really do, also through another role."""
        writer, auditor, owner = (f"{_literal(self._names[role])}::name" for role in ("writer", "auditor", "owner"))
        roles = f"(VALUES ({writer}, true), ({auditor}, false)) AS role (name, writes)"
        schema = f"{_literal(self._schema)}::regnamespace"
        tables = ", ".join(map(_literal, self._tables))
        too_much = "IF found IS NOT NULL THEN RAISE EXCEPTION 'tracker: a role has other rights: %', found; END IF;"
        return _do(f"""\
DECLARE found text;
BEGIN
  SELECT string_agg(format('%s %s', role.name, what), '; ') INTO found
  FROM {roles}
    JOIN pg_roles r ON r.rolname = role.name
    JOIN pg_database d ON d.datname = current_database(),
    LATERAL (VALUES
        (r.rolsuper, 'is a superuser'),
        (r.rolcreaterole, 'can make roles'),
        (pg_has_role(r.oid, {owner}, 'MEMBER'), 'is a member of the owner'),
        (NOT writes AND pg_has_role(r.oid, {writer}, 'MEMBER'), 'is a member of the writer'),
        (pg_has_role(r.oid, d.datdba, 'MEMBER'), 'owns the database'),
        (has_schema_privilege(r.oid, {schema}, 'CREATE'), 'can create in the schema')
      ) AS can (is_so, what)
  WHERE is_so;
  {too_much}

  SELECT string_agg(format('%s can %s %s', role.name, wanted, relname), '; ') INTO found
  FROM {roles}, pg_class c, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) wanted
  WHERE c.relname IN ({tables}) AND c.relnamespace = {schema} AND has_table_privilege(role.name, c.oid, wanted)
    AND NOT (writes AND wanted = 'DELETE' AND relname = 'workers');
  {too_much}
END""")
