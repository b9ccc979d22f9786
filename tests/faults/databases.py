"""The database of a cell: a SQLite file, or a PostgreSQL server that can be stopped, killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.conftest import run_sql
from tests.hostile import free_port
from tests.test_daemon import until
from tests.test_real_databases import NOBODY, answers, command, postgres_binaries
from tracker import database

PASSWORD = "pa55word-mark"  # noqa: S105  # no output or file may hold it
HBA = "host all postgres all trust\nhost replication all all trust\nhost all all all scram-sha-256\n"
SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "max_connections": "20"}


class Sqlite:
    """A SQLite file in *folder*."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.path = Path(shutil.copy(template / "tracker.db", folder))
        self.url = self.admin = f"sqlite:///{self.path}"

    def close(self) -> None:
        pass


class Postgres:
    """A server with its data in *folder*, a copy of *template*; tracker has a role and a password of its own."""

    def __init__(self, folder: Path, template: Path, port: int = 0) -> None:
        self.folder, self.port, self.env = folder / "data", port or free_port(), dict(os.environ)
        self.process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql+psycopg://tracker:{PASSWORD}@127.0.0.1:{self.port}/tracker"
        self.admin = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/tracker"
        self.root = sa.make_url(self.admin).set(database="postgres")
        if not self.folder.exists():
            subprocess.run(["cp", "-a", template / "data", self.folder], check=True)
        self.start()

    def start(self) -> None:
        """Start the server, also where a killed one has left something behind, and wait until it answers."""
        program = [str(postgres_binaries() / "postgres"), "-D", str(self.folder), "-p", str(self.port)]
        program += [f"--{name}={value}" for name, value in SETTINGS.items()]
        who: Any = NOBODY
        end = time.monotonic() + 30
        with (self.folder.parent / "postgres.log").open("ab") as log:
            while self.process is None or not answers(self.root):
                if self.process is None or self.process.poll() is not None:
                    self.process = subprocess.Popen(program, stdout=log, stderr=log, env=self.env, **who)
                assert time.monotonic() < end, "the server did not start"
                time.sleep(0.1)

    def close(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT: at once and clean; SIGKILL: its main process dies."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def run(self, *statements: str) -> None:
        """Run statements as superuser."""
        for statement in statements:
            run_sql(sa.make_url(self.admin), statement)

    def standby(self, folder: Path, port: int = 0) -> Postgres:
        """Make a standby of this server in *folder*, which has each commit before tracker is informed."""
        folder.mkdir(exist_ok=True)
        if NOBODY:
            os.chown(folder, NOBODY["user"], NOBODY["group"])
        where = f"host=127.0.0.1 port={self.port} user=postgres"
        command("pg_basebackup", "-d", where, "-D", folder / "data", "-R", "-c", "fast", "--no-sync")
        made = Postgres(folder, folder, port)
        until(lambda: "streaming" in str(made.ask("SELECT status FROM pg_stat_wal_receiver")))
        self.run("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        return made

    def ask(self, query: str) -> object:
        """Return the one value of *query*."""
        engine = sa.create_engine(self.admin, poolclass=sa.NullPool)
        with engine.connect() as connection:
            return connection.exec_driver_sql(query).scalar()


def make_templates(folder: Path) -> None:
    """Make one empty database of each kind, which the cells copy."""
    database.upgrade(f"sqlite:///{folder}/tracker.db")
    data = folder / "data"
    data.mkdir(0o700)
    if NOBODY:
        os.chown(data, NOBODY["user"], NOBODY["group"])
    command("initdb", "-D", data, "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C", "--wal-segsize=1")
    (data / "pg_hba.conf").write_text(HBA)
    server = Postgres(folder, folder)
    run_sql(server.root, f"CREATE ROLE tracker LOGIN PASSWORD '{PASSWORD}'")
    run_sql(server.root, "CREATE DATABASE tracker OWNER tracker")
    database.upgrade(server.url)
    server.close()
