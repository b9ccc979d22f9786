"""``tracker db grants``: what each of the three roles on PostgreSQL can do, and what it can not, tried as that role."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import ANY

import click
import psycopg
import pytest
import sqlalchemy as sa

from tests.conftest import run_sql
from tests.processes import Tracker
from tests.scripted import Script
from tests.test_daemon import add, environment, until
from tracker import cli, database, guards
from tracker.audit import roles, seal
from tracker.errors import BadConfiguration, InvalidField
from tracker.models import CLUSTERS, GAPS, JOBS, METADATA
from tracker.reports.tables import NAMES
from tracker.reports.views import VIEWS

PASSWORD = "only for tests"  # noqa: S105
TABLES = sorted(METADATA.tables)


@dataclass
class Stand:
    """A database whose rights were given by the SQL, and a way to be each of the roles.

    Attributes:
        url: The superuser's.
        names: By role, the name on the server.
        sql: What `db grants` printed.
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

    def grants(self, **other: str) -> str:
        with database.reading(self.engine("superuser")) as connection:
            return roles.grants(connection, **self.names | other)

    def problems(self) -> list[str]:
        with database.reading(self.engine("superuser")) as connection:
            return roles.problems(connection)

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
    """The database that most tests share. Its roles have the strangest names that are allowed."""
    stand = make_stand(name="{role}; x %s a {{0}} -- å {key}")
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
    """Return a function that runs a line as a role and returns its exit code and what it said on stderr."""
    monkeypatch.setenv("TRACKER_CLUSTER", "w1")
    monkeypatch.setenv("TRACKER_API_KEY", "hush")
    monkeypatch.setenv("TRACKER_BASE_URL", script.url)

    def run(role: str, line: str, jobs: str = "") -> tuple[int, str]:
        monkeypatch.setenv("TRACKER_DATABASE_URL", stand.url_of(role))
        code = cli.main(line.format(j=jobs, now=datetime.now(UTC).isoformat()).split())
        return code, capsys.readouterr().err

    return run


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


READING = [  # commands that write nothing
    *("config check", "db check", "db grants --owner a --writer b --auditor c", "jobs", "show {j}1", "clusters"),
    *("status", "reconcile jobs.csv", *(f"report {name}" for name in (*NAMES, "changes"))),
    *("audit head", "audit verify", "audit export pack", "db copy sqlite:///{j}.db"),
]
WRITING = [  # in an order in which each has something to do
    *("add {j}1 {j}2 {j}3 --kind export --received-at 2020-01-01", "ack undecidable --reason late", "import jobs.csv"),
    *("run --once", "pause w1 --reason maintenance"),
    *("resume w1", "poll {j}1", "withdraw {j}2 --reason mistaken", "reopen {j}2 --reason after-all"),
    *("attest {j}3 --done-by {now} --reason downloaded", "amend {j}1 --reference DSR-9 --reason mistyped"),
]
FINDING = ("status", "reconcile")  # these exit with 1 when they find something, as they may here


def test_the_writer_runs_every_command(stand: Stand, tracker: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """All but `db upgrade` work as the writer, the polling, the heartbeat and the closing of a gap among them."""
    tried = {line.split()[0] for line in (*WRITING, *READING)}
    assert {*tried, "alerts", "demo", "deploy", "simulate"} >= set(cli.root.list_commands(click.Context(cli.root)))
    (tmp_path / "jobs.csv").write_text("jid,kind\nw1,export\nw2,export\nw3,export\nw4,removal\n")
    for line in (*WRITING, "", *READING):
        if not line:
            seal.seal(stand.engine("writer"), None)
            continue
        code, said = tracker("writer", line, "w")
        assert code in (0, 1 if line.startswith(FINDING) else 0), (line, said)
        assert "denied" not in said, (line, said)
    with database.reading(stand.engine("auditor")) as connection:
        polled = sa.select(JOBS.c.jid).where(JOBS.c.polls > 0, JOBS.c.jid.like("w%")).order_by(JOBS.c.jid)
        assert connection.execute(polled).scalars().all() == ["w1", "w2", "w3", "w4"]
        assert connection.execute(sa.select(GAPS.c.cause)).scalars().all() == ["paused"]
        stopped = connection.exec_driver_sql("SELECT count(*), count(stopped_at) FROM workers").one()
        assert stopped[0] == stopped[1] >= 1


def test_the_auditor_reads_everything_and_writes_nothing(
    stand: Stand, tracker: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Tables, views and every command that only reads; every other is refused, and says why."""
    assert tracker("writer", WRITING[0], "a")[0] == 0
    (tmp_path / "jobs.csv").write_text("jid,kind\na9,export\n")
    with pytest.raises(BadConfiguration, match="permission denied"):
        seal.seal(stand.engine("auditor"), None)
    seal.seal(stand.engine("writer"), None)
    with database.reading(stand.engine("auditor")) as connection:
        for name in (*TABLES, *VIEWS, database.VERSION_TABLE):
            connection.exec_driver_sql(f"SELECT * FROM {name}")
    for line in READING:
        code, said = tracker("auditor", line, "a")
        assert code in (0, 1 if line.startswith(FINDING) else 0), (line, said)
        assert "denied" not in said, (line, said)
    stand.run("ALTER TABLE gaps ENABLE ROW LEVEL SECURITY")  # hides rows, and a copy without them looks whole
    code, said = tracker("auditor", "db copy sqlite:///part.db")
    assert (code, "row-level security" in said) == (78, True)
    stand.run("ALTER TABLE gaps DISABLE ROW LEVEL SECURITY")
    before = everything(stand)
    for line in (*WRITING[1:], "add a7", "db upgrade"):
        code, said = tracker("auditor", line, "a")
        assert code in (1, 69, 78), (line, said)
        assert re.search("denied|must be owner", said), (line, said)
    assert everything(stand) == before


def everything(stand: Stand) -> list[object]:
    """Return all rows of all tables."""
    with database.reading(stand.engine("superuser")) as connection:
        return [sorted(map(str, connection.execute(sa.select(METADATA.tables[name])))) for name in TABLES]


DDL = [
    "ALTER TABLE transitions DISABLE TRIGGER ALL",
    "ALTER TABLE jobs DROP CONSTRAINT ck_jobs_jid",
    "DROP FUNCTION tracker_refuse() CASCADE",
    "DROP TABLE segments",
    "CREATE OR REPLACE FUNCTION tracker_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "CREATE OR REPLACE VIEW report_clusters AS SELECT 1 AS cluster",
    "CREATE TRIGGER mine BEFORE INSERT ON transitions FOR EACH ROW EXECUTE FUNCTION tracker_refuse()",
    "CREATE TABLE mine (id bigint)",
    "SET ROLE {owner}",
    "SET session_replication_role = replica",
    "LOCK TABLE transitions IN SHARE MODE",
    "DELETE FROM tracker_alembic_version",
    "SELECT setval('transitions_id_seq', 1)",
]
HISTORY = [
    *(f"TRUNCATE {table} CASCADE" for table in TABLES),
    *(f"DELETE FROM {table}" for table in TABLES if table != "workers"),
    *(f"UPDATE {table} SET {next(iter(METADATA.tables[table].c)).name} = DEFAULT" for table in guards.APPEND_ONLY),
    *(
        f"INSERT INTO {name} (id) OVERRIDING SYSTEM VALUE VALUES (77)"
        for name in ("jobs", "transitions", "gaps", "seals")
    ),
    *(f"UPDATE jobs SET {column} = {column}" for column in guards.FIXED[1:]),
    "INSERT INTO jobs (cluster, jid, state) VALUES ('w1', 'mine', 'open')",
    "UPDATE clusters SET cluster = 'other'",
]
CHANGES = [  # the rights that the writer has and the auditor has not
    *(f"INSERT INTO {table} DEFAULT VALUES" for table in TABLES),
    *(f"UPDATE {table} SET {column.name} = DEFAULT" for table in TABLES for column in METADATA.tables[table].c),
    "DELETE FROM workers",
    "SELECT 1 FROM jobs FOR UPDATE",
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


def test_neither_the_writer_nor_the_auditor_can(refused: Callable[[str, str], str | None]) -> None:
    """The writer's rights end at adding to the record, the auditor's at reading (42501: insufficient_privilege)."""
    for role, statements in (("writer", [*DDL, *HISTORY]), ("auditor", [*DDL, *HISTORY, *CHANGES])):
        assert {statement: refused(role, statement) for statement in statements} == dict.fromkeys(statements, "42501")


def test_an_upgrade_by_the_owner_leaves_the_rights_as_they_are(
    stand: Stand, tracker: Callable[..., tuple[int, str]], refused: Callable[[str, str], str | None]
) -> None:
    """It makes views, functions and triggers again; tables that a later version adds can be read, no more."""
    assert tracker("owner", "db upgrade") == (0, "")
    assert (stand.problems(), tracker("auditor", "db check")) == ([], (0, ""))
    with database.writing(stand.engine("owner")) as connection:
        connection.exec_driver_sql("CREATE TABLE later (id bigint)")
    for role in ("writer", "auditor"):
        assert refused(role, "SELECT * FROM report_jobs, later") is None
        assert refused(role, "INSERT INTO later DEFAULT VALUES") == "42501"
    with database.writing(stand.engine("owner")) as connection:
        connection.exec_driver_sql("DROP TABLE later")


@pytest.mark.parametrize(
    "right", ["UPDATE ON jobs", "UPDATE ON workers", "SELECT ON clusters", "INSERT ON transitions"]
)
def test_a_right_that_is_taken_away_stops_the_daemon(stand: Stand, script: Script, right: str, tmp_path: Path) -> None:
    """It logs once what the database refuses, without a traceback, and exits with 78."""
    before, after = (f"{when}-{right.replace(' ', '-')}" for when in ("before", "after"))
    add(stand.engine("superuser"), before)
    log = tmp_path / "daemon.log"
    daemon = Tracker("run", env=environment(stand.url_of("writer"), script.url), log=log)
    try:
        until(lambda: before in script.asked)
        stand.run(f"REVOKE {right} FROM {quoted(stand.names['writer'])}")
        add(stand.engine("superuser"), after)
        assert daemon.wait(20) == 78, log.read_text()
    finally:
        daemon.kill()
        stand.run(stand.sql)
    said = log.read_text()
    assert said.count('"database_refused"') == 1
    assert f"the database refused: permission denied for table {right.split()[-1]}. Check" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert "raised an exception" not in said


def test_rights_that_are_too_many_are_named_and_taken_away(stand: Stand) -> None:
    """What the roles or PUBLIC may do beyond what the writer needs is a finding, and gone after the SQL was run."""
    assert stand.problems() == []
    writer, auditor = (quoted(stand.names[role]) for role in ("writer", "auditor"))
    stand.run(
        f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON gaps, workers TO PUBLIC;"
        f"GRANT UPDATE (observed_at), INSERT (id) ON transitions TO {writer};"
        f"GRANT UPDATE (jid, due_at), DELETE ON jobs TO {auditor};"
        f"GRANT INSERT ON report_jobs TO {auditor}"
    )
    may = {
        "everybody (PUBLIC)": "DELETE gaps, INSERT gaps, TRUNCATE gaps, UPDATE gaps, INSERT workers, TRUNCATE workers,"
        " UPDATE workers",
        f"role {stand.names['writer']}": "UPDATE transitions.observed_at, INSERT transitions.id",
        f"role {stand.names['auditor']}": "UPDATE jobs.jid, DELETE jobs, INSERT report_jobs",
    }
    assert sorted(stand.problems()) == sorted(f"{who} may {what}" for who in may for what in may[who].split(", "))
    stand.run(stand.sql)
    assert (stand.problems(), stand.grants()) == ([], stand.sql)


def test_a_role_that_can_do_more_is_refused(make_stand: Callable[..., Stand]) -> None:
    """What cannot be taken away stops it, and nothing is changed."""
    stand = make_stand()
    given = {role: quoted(name) for role, name in stand.names.items()} | {"database": quoted(stand.url.database or "")}
    assert stand.problems() == []  # everything is the superuser's
    for role in stand.names:
        stand.run(f"CREATE ROLE {given[role]}")
    for before, after, found in (
        ("ALTER ROLE {auditor} SUPERUSER", "ALTER ROLE {auditor} NOSUPERUSER", "is a superuser"),
        ("ALTER ROLE {writer} CREATEROLE", "ALTER ROLE {writer} NOCREATEROLE", "can make roles"),
        ("GRANT {owner} TO {writer}", "REVOKE {owner} FROM {writer}", "is a member of the owner"),
        ("GRANT {writer} TO {auditor}", "REVOKE {writer} FROM {auditor}", "is a member of the writer"),
        ("GRANT pg_write_all_data TO {writer}", "REVOKE pg_write_all_data FROM {writer}", "can UPDATE transitions"),
        ("ALTER DATABASE {database} OWNER TO {writer}", "SELECT 1", "owns the database"),
    ):
        stand.run(before.format(**given))
        with pytest.raises(psycopg.errors.RaiseException, match=found):
            stand.run(stand.grants())
        stand.run(after.format(**given))
        with database.reading(stand.engine("superuser")) as connection:
            owner = connection.exec_driver_sql("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'jobs'")
            assert owner.scalar_one() not in given.values()


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


def test_a_name_that_no_role_can_have_is_refused(stand: Stand) -> None:
    """Whichever role it is for; `GRANT … TO "public"`, for one, grants to everybody. And three roles are three."""
    for name, problem in (
        *(("", "1 to 63 bytes"), ("x" * 64, "1 to 63 bytes"), ("å" * 32, "1 to 63 bytes")),
        *((name, "has another meaning") for name in ("public", "none", "pg_monitor")),
        *((name, "a control character") for name in ("a\nb", "a\0b", "a\x85b", "a\udc80b", 'a"b', "a'b", "a\\", "$")),
        (stand.names["owner"], "the same name"),
    ):
        with pytest.raises(InvalidField, match=problem):
            stand.grants(writer=name)


def test_sqlite_has_no_roles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says so and what does instead, whether or not the file is there, and makes none."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", f"sqlite:///{tmp_path}/tracker.db")
    assert cli.main(["db", "grants", "--owner", "a", "--writer", "b", "--auditor", "c"]) == 78
    assert "SQLite has no roles" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_removes_jobs(stand: Stand, tracker: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """The writer is refused before anything is sealed or written; the owner removes a job, and guards are on again."""
    for line in ("add {j}1", "withdraw {j}1 --reason mistaken"):
        assert tracker("writer", line, "p")[0] == 0
    for role in ("writer", "auditor"):
        code, said = tracker(role, "db prune --jid {j}1 --export pack", "p")
        assert (code, "only the owner of the tables may remove jobs" in said) == (1, True), said
        assert not (tmp_path / "pack").exists()
    assert tracker("owner", "db prune --jid {j}1 --export pack", "p") == (0, ANY)
    assert tracker("writer", "db check")[0] == 0
