"""``tracker db grants``: what each of the three roles on PostgreSQL can do, and what it can not, tried as that role."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import click
import psycopg
import pytest
import sqlalchemy as sa

from tests.conftest import run_sql
from tests.scripted import Script
from tests.test_daemon import environment, until
from tracker import cli, database, guards
from tracker.audit import roles, seal
from tracker.errors import BadConfiguration, InvalidField
from tracker.models import CLUSTERS, GAPS, JOBS, METADATA, WORKERS
from tracker.reports.views import VIEWS

PASSWORD = "only for tests"  # noqa: S105
TABLES = sorted(METADATA.tables)


@dataclass
class Stand:
    """A database whose rights were given by the SQL, and a way to be each of the roles.

    Attributes:
        url: The superuser's.
        sql: What `db grants` printed.
        names: By role, the name on the server.
    """

    url: sa.URL
    names: dict[str, str]
    sql: str = ""
    engines: list[sa.Engine] = field(default_factory=list)

    def url_of(self, role: str) -> str:
        url = self.url if role == "superuser" else self.url.set(username=self.names[role], password=PASSWORD)
        return url.render_as_string(hide_password=False).replace(" ", "%20")  # as a setting is written

    def engine(self, role: str) -> sa.Engine:
        self.engines.append(database.create_engine(self.url_of(role)))
        return self.engines[-1]

    def grants(self) -> str:
        with database.reading(self.engine("superuser")) as connection:
            return roles.grants(connection, **self.names)

    def run(self, sql: str) -> None:
        """Run *sql* as psql does: each statement by itself."""
        dsn = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(sql.encode())


@pytest.fixture(scope="module")
def make_stand(make_postgres: Callable[..., str], postgres_template: str) -> Iterator[Callable[..., Stand]]:
    """Return a function that makes a database and three names on its server that nobody has."""
    made: list[Stand] = []

    def make(template: str | None = postgres_template, name: str = "{role} {key}") -> Stand:
        key = uuid.uuid4().hex[:8]
        names = {role: name.format(role=role, key=key) for role in ("owner", "writer", "auditor")}
        made.append(Stand(sa.make_url(make_postgres(template)), names))
        return made[-1]

    yield make
    for stand in made:
        for engine in stand.engines:
            engine.dispose()
        server = stand.url.set(database="postgres")
        run_sql(server, f'DROP DATABASE "{stand.url.database}" WITH (FORCE)')
        for name in stand.names.values():
            run_sql(server, "DROP ROLE IF EXISTS " + quoted(name).replace("%", "%%"))


@pytest.fixture(scope="module")
def stand(make_stand: Callable[..., Stand]) -> Stand:
    """The database that most tests share. Its roles have the nastiest names that are allowed."""
    stand = make_stand(name="{role}\"; x' $do$ \\' %s a {{0}} -- å {key}")
    stand.sql = stand.grants()
    stand.run(stand.sql)
    rows = sa.text("SELECT rolname, rolcanlogin, rolpassword FROM pg_authid WHERE rolname = ANY (:names)")
    with database.reading(stand.engine("superuser")) as connection:
        made = connection.execute(rows, {"names": list(stand.names.values())}).all()
    assert sorted(made) == sorted((name, False, None) for name in stand.names.values())
    for name in stand.names.values():
        stand.run(f"ALTER ROLE {quoted(name)} LOGIN PASSWORD '{PASSWORD}'")
    return stand


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    with Script().serve() as script:
        yield script


@pytest.fixture
def tracker(
    stand: Stand, script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Return a function that runs a command as a role and returns its exit code and what it said on stderr."""
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    monkeypatch.setenv("TRACKER_API_KEY", "hush")
    monkeypatch.setenv("TRACKER_BASE_URL", script.url)

    def run(role: str, *words: str) -> tuple[int, str]:
        monkeypatch.setenv("TRACKER_DATABASE_URL", stand.url_of(role))
        code = cli.main(words)
        return code, capsys.readouterr().err

    return run


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# ------------------------------------------------------------------------------------------------------ the commands

READING: dict[tuple[str, ...], str] = {  # by command, the rest of the line; nothing of it writes
    ("config", "check"): "",
    ("db", "check"): "",
    ("db", "grants"): "--owner a --writer b --auditor c",
    ("jobs",): "",
    ("show",): "{j}1",
    ("clusters",): "",
    ("status",): "",
    ("reconcile",): "jobs.csv",
    **{
        ("report", name): ""
        for name in ["durations", "statuses", "monthly", "deadlines", "requests", "anomalies", "gaps", "coverage"]
    },
    ("audit", "head"): "",
    ("audit", "verify"): "",
    ("audit", "export"): "pack",
}
WRITING: dict[tuple[str, ...], str] = {  # in an order in which each has something to do
    ("add",): "{j}1 {j}2 {j}3 --kind export",
    ("import",): "jobs.csv",
    ("run",): "--once",
    ("pause",): "w1 --reason maintenance",
    ("resume",): "w1",
    ("poll",): "{j}1",
    ("withdraw",): "{j}2 --reason mistaken",
    ("reopen",): "{j}2 --reason after-all",
    ("attest",): "{j}3 --done-by {now} --reason downloaded",
    ("amend",): "{j}1 --reference DSR-9 --reason mistyped",
}
FINDING = {("status",), ("reconcile",)}  # these exit with 1 when they find something, as they may here
ELSEWHERE = {("demo",), ("simulate",), ("db", "upgrade"), ("audit", "keygen")}  # no database of ours, or the owner's


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield from commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]


COMMANDS = set(commands(cli.root))


def line(path: tuple[str, ...], rest: str, jobs: str) -> list[str]:
    return [*path, *rest.format(j=jobs, now=datetime.now(UTC).isoformat()).split()]


def test_every_command_is_tried() -> None:
    """A command that comes later must be tried here, too."""
    assert {*READING, *WRITING, *ELSEWHERE} >= COMMANDS


def test_the_writer_runs_every_command(stand: Stand, tracker: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """All but `db upgrade` work as the writer, the daemon and the closing of a gap among them."""
    (tmp_path / "jobs.csv").write_text("jid,kind\nw1,export\nw2,export\nw3,export\nw4,removal\n")
    for words in (WRITING, READING):
        for path, rest in words.items():
            if path in COMMANDS:
                code, said = tracker("writer", *line(path, rest, "w"))
                assert code in (0, 1 if path in FINDING else 0), (path, said)
                assert "denied" not in said, (path, said)
        seal.seal(stand.engine("writer"), None)
    with database.reading(stand.engine("auditor")) as connection:
        polled = sa.select(JOBS.c.jid).where(JOBS.c.polls > 0, JOBS.c.jid.like("w%")).order_by(JOBS.c.jid)
        assert connection.execute(polled).scalars().all() == ["w1", "w2", "w3", "w4"]
        assert connection.execute(sa.select(GAPS.c.cause)).scalars().all() == ["paused"]
        stopped = connection.exec_driver_sql("SELECT count(*), count(stopped_at) FROM workers").one()
        assert stopped[0] == stopped[1] >= 1


def test_the_writer_is_the_daemon(stand: Stand, script: Script, tmp_path: Path) -> None:
    """As a process of its own that polls, beats and is told to stop, it never misses a right."""
    with database.writing(stand.engine("writer")) as connection:
        connection.execute(sa.insert(JOBS).values(cluster="w1", jid="daemon"))
    command = [str(Path(sys.executable).with_name("tracker")), "run"]
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(command, env=environment(stand.url_of("writer"), script.url), stderr=log)
    try:
        until(lambda: "daemon" in script.asked)
        with database.writing(stand.engine("writer")) as connection:
            beat = sa.update(WORKERS).where(WORKERS.c.stopped_at.is_(None)).values(beat_at=database.now(connection))
            assert connection.execute(beat).rowcount == 1
        daemon.terminate()
        assert daemon.wait(20) == 0
    finally:
        daemon.kill()
        daemon.wait()
    said = (tmp_path / "log").read_text()
    assert '"to_status": "waiting"' in said
    assert not re.search("denied|error|refuses", said), said


def test_the_writer_seals_and_the_auditor_does_not(stand: Stand) -> None:
    """A registration takes the sealer's lock by its trigger; the writer seals it, and the auditor reads the seal."""
    locks = sa.text("SELECT mode FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND objid = :key")
    writer, auditor = stand.engine("writer"), stand.engine("auditor")
    with database.writing(writer) as connection:
        connection.execute(sa.insert(JOBS).values(cluster="w2", jid="sealed"))
        assert connection.execute(locks, {"key": guards.SEAL_LOCK}).scalars().all() == ["ShareLock"]
    with pytest.raises(BadConfiguration, match="permission denied"):
        seal.seal(auditor, None)
    made = seal.seal(writer, None)
    with database.reading(auditor) as connection:
        assert seal.head(connection) == made[-1]


def test_the_auditor_reads_everything_and_writes_nothing(
    stand: Stand, tracker: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Tables, views and every command that only reads; every other is refused, and says why."""
    assert tracker("writer", *line(("add",), WRITING["add",], "a"))[0] == 0
    (tmp_path / "jobs.csv").write_text("jid,kind\na9,export\n")
    seal.seal(stand.engine("writer"), None)
    with database.reading(stand.engine("auditor")) as connection:
        for name in (*TABLES, *VIEWS, database.VERSION_TABLE):
            connection.exec_driver_sql(f"SELECT * FROM {name}")
    for path, rest in READING.items():
        if path in COMMANDS:
            code, said = tracker("auditor", *line(path, rest, "a"))
            assert code in (0, 1 if path in FINDING else 0), (path, said)
            assert "denied" not in said, (path, said)
    before = everything(stand)
    for path, rest in [*WRITING.items(), (("add",), "a7"), (("db", "upgrade"), "")]:
        if path in COMMANDS:
            code, said = tracker("auditor", *line(path, rest, "a"))
            assert code in (1, 69, 78), (path, said)
            assert re.search("denied|must be owner", said), (path, said)
    assert everything(stand) == before


def everything(stand: Stand) -> list[object]:
    """Return all rows of all tables."""
    with database.reading(stand.engine("superuser")) as connection:
        return [sorted(map(str, connection.execute(sa.select(METADATA.tables[name])))) for name in TABLES]


# ----------------------------------------------------------------------------------------------- what they can not do

DDL = [
    "ALTER TABLE transitions DISABLE TRIGGER ALL",
    "ALTER TABLE transitions DISABLE TRIGGER guard_transitions_change",
    "ALTER TABLE jobs ADD COLUMN note text",
    "ALTER TABLE jobs DROP CONSTRAINT ck_jobs_jid",
    "ALTER TABLE transitions ALTER id DROP IDENTITY",
    "ALTER TABLE transitions OWNER TO CURRENT_USER",
    "ALTER TABLE transitions ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE transitions RENAME TO transitions_2",
    "DROP TRIGGER guard_transitions_change ON transitions",
    "DROP FUNCTION tracker_refuse() CASCADE",
    "DROP TABLE segments",
    "DROP VIEW report_clusters",
    "DROP SCHEMA public CASCADE",
    "CREATE OR REPLACE FUNCTION tracker_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "ALTER FUNCTION tracker_refuse() RESET ALL",
    "CREATE OR REPLACE VIEW report_clusters AS SELECT 1 AS cluster",
    "CREATE TRIGGER mine BEFORE INSERT ON transitions FOR EACH ROW EXECUTE FUNCTION tracker_refuse()",
    "CREATE RULE mine AS ON INSERT TO gaps DO INSTEAD NOTHING",
    "CREATE INDEX mine ON jobs (kind)",
    "CREATE TABLE mine (id bigint)",
    "CREATE TABLE public.mine (id bigint REFERENCES jobs)",
    "CREATE TABLE mine () INHERITS (jobs)",
    "CREATE VIEW mine AS SELECT 1 AS one",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA mine",
    "COMMENT ON VIEW report_jobs IS 'mine'",
    "GRANT {owner} TO {me}",
    "SET ROLE {owner}",
    "ALTER ROLE {me} SUPERUSER",
    "ALTER ROLE {owner} PASSWORD 'x'",
    "SET session_replication_role = replica",
    "LOCK TABLE transitions IN SHARE MODE",
    "UPDATE tracker_alembic_version SET version_num = '0000'",
    "DELETE FROM tracker_alembic_version",
    "SELECT setval('transitions_id_seq', 1)",
    "SELECT setval('jobs_id_seq', 1000000)",
    "SELECT nextval('seals_id_seq')",
]
HISTORY = [
    *(f"TRUNCATE {table} CASCADE" for table in TABLES),
    *(f"DELETE FROM {table}" for table in TABLES if table != "workers"),
    *(f"UPDATE {table} SET {next(iter(METADATA.tables[table].c)).name} = DEFAULT" for table in guards.APPEND_ONLY),
    "UPDATE seals SET checkpoint = ''",
    "UPDATE segments SET sha256 = ''",
    "UPDATE transitions SET observed_at = now()",
    *(f"UPDATE jobs SET {column} = {column}" for column in guards.FIXED[1:]),
    "UPDATE jobs SET id = DEFAULT",
    "INSERT INTO jobs (id, cluster, jid) OVERRIDING SYSTEM VALUE VALUES (77, 'w1', 'mine')",
    "INSERT INTO jobs (cluster, jid, state) VALUES ('w1', 'mine', 'open')",
    "INSERT INTO transitions (id, job_id, seq, action, to_state, observed_at) OVERRIDING SYSTEM VALUE"
    " VALUES (77, 1, 77, 'observed', 'done', now())",
    "INSERT INTO gaps (id, cluster, began_at, ended_at, cause) OVERRIDING SYSTEM VALUE"
    " VALUES (77, 'w1', now(), now(), 'paused')",
    "INSERT INTO sources (id, cluster, base_url, path, timezone, archive_days, lost_after_polls, lost_after_seconds,"
    " version, recorded_at) OVERRIDING SYSTEM VALUE VALUES (77, 'w1', '', '', '', 1, 1, 1, '', now())",
    "INSERT INTO seals (id, last_transition_id, last_gap_id, last_source_id, rows, checkpoint, checkpoint_sha256,"
    " sealed_at) OVERRIDING SYSTEM VALUE VALUES (77, 0, 0, 0, 0, '', '', now())",
    "UPDATE clusters SET cluster = 'other'",
    "UPDATE workers SET worker = 'other'",
    "UPDATE deliveries SET destination = 'other'",
]
CHANGES = [  # the rights that the writer has and the auditor has not
    *(f"INSERT INTO {table} DEFAULT VALUES" for table in TABLES),
    *(f"UPDATE {table} SET {column.name} = DEFAULT" for table in TABLES for column in METADATA.tables[table].c),
    "DELETE FROM workers",
    "SELECT 1 FROM jobs FOR UPDATE",
    "SELECT 1 FROM jobs FOR KEY SHARE",
    "COPY jobs FROM STDIN",
]


@pytest.fixture(scope="module")
def refused(stand: Stand) -> Callable[[str, str], str | None]:
    """Return a function that runs a statement as a role and returns the SQLSTATE of the refusal."""
    engines = {role: stand.engine(role) for role in ("writer", "auditor")}

    def run(role: str, statement: str) -> str | None:
        given = {"me": quoted(stand.names[role]), "owner": quoted(stand.names["owner"])}
        with engines[role].connect() as connection:
            raw = connection.connection.driver_connection
            assert isinstance(raw, psycopg.Connection)
            try:
                raw.execute(statement.format(**given).encode())
            except psycopg.Error as error:
                return error.sqlstate
            finally:
                raw.rollback()
        return None

    return run


@pytest.mark.parametrize("statement", [*DDL, *HISTORY])
def test_the_writer_cannot(refused: Callable[[str, str], str | None], statement: str) -> None:
    """Its rights end at adding to the record; no trigger is needed to stop it (42501: insufficient_privilege)."""
    assert refused("writer", statement) == "42501"


@pytest.mark.parametrize("statement", [*DDL, *HISTORY, *CHANGES])
def test_the_auditor_cannot(refused: Callable[[str, str], str | None], statement: str) -> None:
    """Nor can the auditor, whose rights end at reading."""
    assert refused("auditor", statement) == "42501"


def test_the_guards_hold_for_the_writer(refused: Callable[[str, str], str | None], stand: Stand) -> None:
    """Where it has a right, they stand behind it: facts change by an amendment only, and no job is born done."""
    with database.writing(stand.engine("writer")) as connection:
        connection.execute(sa.insert(JOBS).values(cluster="w3", jid="guarded"))
    for statement in (
        "UPDATE jobs SET reference = 'other'",
        "INSERT INTO jobs (cluster, jid, due_at) VALUES ('w3', 'never', NULL)",
    ):
        assert refused("writer", statement) == "23001"  # restrict_violation, the guards' own


# --------------------------------------------------------------------------------------------------------- the owner


def rights(stand: Stand) -> dict[tuple[str, str, str], list[str]]:
    """Return by (role, relation, right) the columns to which the role has it in effect, and who owns the relation."""
    query = sa.text(
        "SELECT r.rolname, c.relname, p, array_agg(a.attname::text ORDER BY a.attnum), c.relowner::regrole::text"
        " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped,"
        " pg_roles r, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES', 'DELETE', 'TRUNCATE', 'TRIGGER']) p"
        " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'S') AND r.rolname = ANY (:names)"
        " AND CASE WHEN p IN ('DELETE', 'TRUNCATE', 'TRIGGER') THEN has_table_privilege(r.oid, c.oid, p)"
        " ELSE has_column_privilege(r.oid, c.oid, a.attnum, p) END GROUP BY 1, 2, 3, 5"
    )
    with database.reading(stand.engine("superuser")) as connection:
        found = connection.execute(query, {"names": list(stand.names.values())}).all()
    role_of = {name: role for role, name in stand.names.items()}
    return {(role_of[row[0]], row[1], row[2]): [*row[3], row[4]] for row in found}


def test_an_upgrade_by_the_owner_leaves_the_rights_as_they_are(
    stand: Stand, tracker: Callable[..., tuple[int, str]]
) -> None:
    """It makes views, functions and triggers anew; so do tables that a later version adds: readable, no more."""
    before = rights(stand)
    assert ("auditor", "report_jobs", "SELECT") in before
    assert tracker("owner", "db", "upgrade") == (0, "")
    assert rights(stand) == before
    assert tracker("auditor", "db", "check") == (0, "")
    with database.writing(stand.engine("owner")) as connection:
        connection.exec_driver_sql("CREATE TABLE later (id bigint)")
    new = {key for key in rights(stand).keys() - before.keys() if key[0] != "owner"}
    assert new == {("writer", "later", "SELECT"), ("auditor", "later", "SELECT")}
    with database.writing(stand.engine("owner")) as connection:
        connection.exec_driver_sql("DROP TABLE later")


def test_only_the_owner_upgrades(stand: Stand, tracker: Callable[..., tuple[int, str]]) -> None:
    """The writer's try is refused in one line, and leaves guards and views standing."""
    code, said = tracker("writer", "db", "upgrade")
    assert code == 78
    assert re.search("must be owner|permission denied", said)
    assert tracker("writer", "db", "check") == (0, "")


def test_the_owner_owns_all_of_it(stand: Stand) -> None:
    """Schema, tables, sequences, views and functions: nothing is left to whoever made them first."""
    query = (
        "SELECT DISTINCT owner::regrole::text FROM (SELECT relowner FROM pg_class WHERE relnamespace = n.oid"
        " UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = n.oid UNION ALL SELECT n.nspowner) t (owner)"
    )
    query = f"SELECT o.* FROM pg_namespace n, LATERAL ({query}) o WHERE nspname = 'public'"
    with database.reading(stand.engine("superuser")) as connection:
        assert connection.exec_driver_sql(query).scalars().all() == [quoted(stand.names["owner"])]


# --------------------------------------------------------------------------------------------------- the SQL itself


def test_it_can_be_run_again(stand: Stand) -> None:
    """The rights are the same after it, and so is the SQL."""
    before = rights(stand)
    stand.run(stand.sql)
    assert rights(stand) == before
    assert stand.grants() == stand.sql


def test_rights_that_are_too_many_are_named_and_taken_away(make_stand: Callable[..., Stand]) -> None:
    """What the roles or PUBLIC may do beyond what the writer needs is a finding, and gone after the SQL was run."""
    stand = make_stand()

    def named() -> list[str]:
        with database.reading(stand.engine("superuser")) as connection:
            return roles.problems(connection)

    assert named() == []  # everything is the owner's
    stand.run(stand.grants())
    expected = rights(stand)
    assert named() == []
    writer, auditor = (quoted(stand.names[role]) for role in ("writer", "auditor"))
    stand.run(
        f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON gaps, workers TO PUBLIC;"
        f"GRANT UPDATE (observed_at), INSERT (id) ON transitions TO {writer};"
        f"GRANT UPDATE (jid, due_at), DELETE ON jobs TO {auditor};"
        f"GRANT INSERT ON report_jobs TO {auditor};"
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC;"
        f"GRANT CREATE ON SCHEMA public TO PUBLIC, {writer}"
    )
    everybody, role = "everybody (PUBLIC) may", {name: f"role {name} may" for name in stand.names.values()}
    assert sorted(named()) == sorted(
        [
            *(f"{everybody} {right} gaps" for right in ("DELETE", "INSERT", "TRUNCATE", "UPDATE")),
            *(f"{everybody} {right} workers" for right in ("INSERT", "TRUNCATE", "UPDATE")),
            *(
                f"{role[stand.names['writer']]} {what}"
                for what in ("UPDATE transitions.observed_at", "INSERT transitions.id")
            ),
            *(
                f"{role[stand.names['auditor']]} {what}"
                for what in ("UPDATE jobs.jid", "DELETE jobs", "INSERT report_jobs")
            ),
        ]
    )
    assert rights(stand) != expected
    stand.run(stand.grants())
    assert (rights(stand), named()) == (expected, [])


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ("ALTER ROLE {auditor} SUPERUSER", "is a superuser"),
        ("ALTER ROLE {writer} CREATEROLE", "can make roles"),
        ("GRANT {owner} TO {writer}", "is a member of the owner"),
        ("ALTER DATABASE {database} OWNER TO {writer}", "owns the database"),
        ("GRANT pg_write_all_data TO {writer}", "can UPDATE transitions"),
        ("GRANT {writer} TO {auditor}", "is a member of the writer"),
    ],
)
def test_a_role_that_can_do_more_is_refused(make_stand: Callable[..., Stand], before: str, found: str) -> None:
    """What cannot be taken away stops it, and nothing is changed."""
    stand = make_stand()
    given = {role: quoted(name) for role, name in stand.names.items()} | {"database": quoted(stand.url.database or "")}
    for role in stand.names:
        stand.run(f"CREATE ROLE {given[role]}")
    stand.run(before.format(**given))
    owner = sa.text("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'jobs'")
    with database.reading(stand.engine("superuser")) as connection:
        owned_by = connection.execute(owner).scalar_one()
    with pytest.raises(psycopg.errors.RaiseException, match=found):
        stand.run(stand.grants())
    with database.reading(stand.engine("superuser")) as connection:
        assert connection.execute(owner).scalar_one() == owned_by


def test_a_schema_with_others_tables_stays_theirs(make_stand: Callable[..., Stand]) -> None:
    """Whatever its name; the owner can create in it, and so upgrade."""
    stand = make_stand(template=None)
    stand.run('CREATE SCHEMA "odd ""one""" CREATE TABLE theirs (id bigint)')
    stand.url = stand.url.update_query_dict({"options": '-csearch_path="odd\\ ""one"""'})
    database.upgrade(stand.url_of("superuser"))
    stand.run(stand.grants())
    stand.run(f"ALTER ROLE {quoted(stand.names['owner'])} LOGIN PASSWORD '{PASSWORD}'")
    database.upgrade(stand.url_of("owner"))
    query = "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname LIKE 'odd%%'"
    with database.reading(stand.engine("owner")) as connection:
        assert connection.exec_driver_sql(query).scalar_one() != quoted(stand.names["owner"])
        assert connection.execute(sa.select(CLUSTERS)).all() == []
        with pytest.raises(BadConfiguration, match="permission denied"):
            connection.exec_driver_sql("SELECT * FROM theirs")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "1 to 63 bytes"),
        ("x" * 64, "1 to 63 bytes"),
        ("å" * 32, "1 to 63 bytes"),
        ("public", "has another meaning"),
        ("none", "has another meaning"),
        ("pg_monitor", "has another meaning"),
        ("a\nb", "a control character"),
        ("a\0b", "a control character"),
        ("a\x85b", "a control character"),
        ("a\udc80b", "a control character"),
    ],
)
def test_a_name_that_is_none_is_refused(stand: Stand, name: str, problem: str) -> None:
    """Whichever role it is for; `GRANT … TO "public"`, for one, grants to everybody."""
    with database.reading(stand.engine("superuser")) as connection:
        for role in stand.names:
            with pytest.raises(InvalidField, match=rf"^{role}: .*{problem}"):
                roles.grants(connection, **stand.names | {role: name})


def test_three_roles_are_three(stand: Stand) -> None:
    """One name for two roles would give it the rights of both."""
    with database.reading(stand.engine("superuser")) as connection, pytest.raises(InvalidField, match="is the owner"):
        roles.grants(connection, owner="a", writer="a", auditor="b")


def test_every_table_has_rights() -> None:
    """A table that comes later must say what the writer may do to it."""
    assert sorted(roles.WRITER) == TABLES


def test_sqlite_has_no_roles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says so and what does instead, whether or not the file is there, and makes none."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", f"sqlite:///{tmp_path}/tracker.db")
    assert cli.main(["db", "grants", "--owner", "a", "--writer", "b", "--auditor", "c"]) == 78
    assert "SQLite has no roles" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_refused(make_postgres: Callable[..., str]) -> None:
    """There is nothing yet to grant rights on; the way out is named."""
    engine = database.create_engine(make_postgres())
    with database.reading(engine) as connection, pytest.raises(BadConfiguration, match="tracker db upgrade"):
        roles.grants(connection, owner="a", writer="b", auditor="c")
    engine.dispose()
