"""A database of a cell's own: a SQLite file, or a PostgreSQL server that can be stopped, killed and made again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.conftest import run_sql
from tests.hostile import free_port
from tests.test_daemon import until
from tests.test_real_databases import NOBODY, answers, command, postgres_binaries, text
from tracker import database

PASSWORD = "pa55word-mark"  # noqa: S105  # it must not be seen anywhere
HBA = "host all postgres all trust\nhost replication all all trust\nhost all all all scram-sha-256\n"


class Sqlite:
    """A SQLite file in *folder*."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.path = folder / "tracker.db"
        shutil.copy(template / "tracker.db", self.path)
        self.url = self.admin = f"sqlite:///{self.path}"

    def close(self) -> None:
        pass


class Postgres:
    """A server with its data in *folder*, a copy of *template*; tracker has a role and a password of its own."""

    def __init__(self, folder: Path, template: Path, port: int = 0) -> None:
        self.folder, self.env, self.port = folder / "data", os.environ | {}, port or free_port()
        self.process: subprocess.Popen[bytes] | None = None
        if not self.folder.exists():
            subprocess.run(["cp", "-a", template / "data", self.folder], check=True)
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://tracker:{PASSWORD}@127.0.0.1:{self.port}/tracker"

    @property
    def admin(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/tracker"

    @property
    def root(self) -> sa.URL:
        return sa.make_url(self.admin).set(database="postgres")

    def start(self, *settings: str) -> None:
        """Start the server, also where a killed one has left something behind, and wait until it answers."""
        words = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=20", *settings]
        program = [str(postgres_binaries() / "postgres"), "-D", str(self.folder), "-p", str(self.port)]
        program += [part for word in words for part in ("-c", word)]
        end = time.monotonic() + 20
        with (self.folder.parent / "postgres.log").open("ab") as log:
            while self.process is None or not answers(self.root):
                if self.process is None or self.process.poll() is not None:
                    who: Any = NOBODY
                    self.process = subprocess.Popen(program, stdout=log, stderr=log, env=self.env, **who)
                assert time.monotonic() < end, "the server did not start"
                time.sleep(0.1)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
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
        """Make a standby of this server in *folder*, which has every commit before tracker is answered."""
        command(
            *("pg_basebackup", "-d", f"host=127.0.0.1 port={self.port} user=postgres", "-D", folder / "data"),
            *("-R", "-c", "fast", "--no-sync"),
        )
        made = Postgres(folder, folder, port)
        until(lambda: self.ask("SELECT count(*) FROM pg_stat_replication") == 1)
        self.run("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        return made

    def promote(self) -> None:
        self.run("SELECT pg_promote()")

    def ask(self, query: str) -> object:
        engine = sa.create_engine(self.admin, poolclass=sa.NullPool)
        with engine.connect() as connection:
            return connection.exec_driver_sql(query).scalar()

    def close(self) -> None:
        self.stop(signal.SIGQUIT)


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
    server.stop()


def addresses(servers: Sequence[Postgres]) -> str:
    """Return the URL of whichever of *servers* can be written."""
    hosts = "&".join(f"host=127.0.0.1:{server.port}" for server in servers)
    url = sa.make_url(f"postgresql+psycopg://tracker:{PASSWORD}@/tracker?{hosts}")
    return text(url.update_query_dict({"target_session_attrs": "read-write"}))
