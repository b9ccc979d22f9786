"""What OPERATIONS.md says is so: each of its commands runs, its table of needs is the program's, its snippets work."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tests.nginx import BINARY
from tests.test_readme import README, blocks
from tests.units import below
from tracker import database, needs
from tracker.demo.simulator import Simulator

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "tracker/deploy/OPERATIONS.md").read_text(encoding="utf-8")
KEY = "simulated-key"
INSTALL = ("python3 -m venv", "/opt/tracker/bin/pip install")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Receiver(BaseHTTPRequestHandler):
    """Takes alerts."""

    got: list[str]

    def do_POST(self) -> None:
        self.got.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def elevate() -> Iterator[str]:
    with Simulator(lambda: datetime.now(UTC), api_key=KEY).serve() as url:
        yield url


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Receiver,), {"got": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"json://127.0.0.1:{server.server_port}/", handler.got  # type: ignore[attr-defined]
        server.shutdown()


def stubs(root: Path) -> Path:
    """Make a systemctl and a journalctl that work without systemd, and return their folder."""
    (root / "bin").mkdir(parents=True)
    units = f"PYTHONPATH={ROOT} exec {sys.executable} -m tests.units {root}"
    for name, line in (("systemctl", f'{units} "$@"'), ("journalctl", f"cat {root}/journal")):
        (root / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (root / "bin" / name).chmod(0o755)
    return root / "bin"


def script(root: Path, elevate: str, receiver: str, port: int) -> str:
    """Return all commands of the document in their order, for a server below *root* and a fake Elevate."""
    text = "\n".join(blocks("sh", TEXT)).replace("8080", str(port))
    text = re.sub(r"(\[clusters\.\w+\])", rf'\1\nbase_url = "{elevate}"', text)
    text = re.sub(r"^(install .*/dev/stdin .*)$", rf"\1 <<< {KEY}", text, flags=re.MULTILINE)
    text = text.replace(f"alert_urls <<< {KEY}", f"alert_urls <<< {receiver}")
    lines = [line for line in below(str(root), text).splitlines() if not line.startswith("docker ")]
    if shutil.which("promtool") is None:
        lines = [line for line in lines if not line.startswith("promtool")]
    return "\n".join(lines)


def run_all(root: Path, text: str) -> str:
    """Run *text* by bash, stop what it left running, and return what it printed."""
    environment = {"PATH": f"{root}/bin:{os.environ['PATH']}", "HOME": str(root)}
    command = ["bash", "-euxo", "pipefail", "-c", text]
    try:
        # A file, not a pipe: the daemon that goes on would hold it open.
        with (root / "output").open("w+") as output:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, timeout=100)
        said = (root / "output").read_text()
        journal = (root / "journal").read_text() if (root / "journal").exists() else ""
        assert done.returncode == 0, f"{said[-3000:]}\n{journal[-3000:]}"
        return said
    finally:
        for file in root.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)


def test_each_command_runs(tmp_path: Path, elevate: str, receiver: tuple[str, list[str]]) -> None:
    """From the settings to alerts, each line runs as it stands, two clusters are polled, and each reload is heard."""
    stubs(tmp_path)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "etc/prometheus/tracker").mkdir(parents=True)
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/tracker").symlink_to(sys.prefix)
    text = script(tmp_path, elevate, receiver[0], free_port())
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("python3 -m venv", f"{tmp_path}/opt")))
    said = run_all(tmp_path, text.replace("> Dockerfile", f"> {tmp_path}/Dockerfile"))
    assert "w5e6f7a8b" in said
    assert any("test" in message for message in receiver[1])
    journal = (tmp_path / "journal").read_text()
    assert '"clusters": "w1a2b3c4d,w5e6f7a8b"' in journal
    assert "reloaded" in journal
    assert not re.search("[Tt]raceback|key_refused", journal)


@pytest.mark.slow
def test_a_fresh_installation_has_the_files(tmp_path: Path) -> None:
    """The document's first commands install tracker with its files of deployment and its extras."""
    (tmp_path / "opt").mkdir()
    run_all(tmp_path, below(str(tmp_path), blocks("sh", TEXT)[0]))
    tracker = tmp_path / "opt/tracker/bin/tracker"
    for name, file in (("docker", "Dockerfile"), ("systemd", "tracker.service"), ("compose", "compose.yaml")):
        done = subprocess.run([tracker, "deploy", name], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stdout == (ROOT / "tracker/deploy" / file).read_text()
    subprocess.run([tracker.with_name("python"), "-c", "import apprise, psycopg"], check=True)


def test_the_table_of_needs_is_the_programs() -> None:
    """Each kind of need is in the table, in the program's order, with its urgency and what to do."""
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \| (.*) \|$", TEXT, re.MULTILINE)
    subjects = {"deadline_near": "DAYS"}
    assert rows == [
        (kind, "yes" if is_urgent else "no", action.format(subjects.get(kind, "CLUSTER")))
        for kind, (is_urgent, action) in needs.KINDS.items()
    ]


def test_cron_mails_what_went_wrong_and_nothing_else(tmp_path: Path, elevate: str, sqlite_template: Path) -> None:
    """It prints nothing while all is well, and names a refused key, an Elevate that is away and a missing database."""
    (line,) = re.findall(r"^\*/10(?: \*){4} (.*)$", blocks("crontab", TEXT)[0], re.MULTILINE)
    assert line in README
    assert "%" not in line  # cron would end the line there
    shutil.copy(sqlite_template, tmp_path / "tracker.db")

    def mail(key: str = KEY, url: str = elevate) -> str:
        settings = {"TRACKER_CLUSTER": "w1a2b3c4d", "TRACKER_API_KEY": key, "TRACKER_BASE_URL": url}
        environment = {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", **settings}
        done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    add = [f"{sys.prefix}/bin/tracker", "add", "ca24b4e2-34ab-406a-a4db-b30b0247837a", "--cluster", "w1a2b3c4d"]
    environment = {"TRACKER_CLUSTER": "w1a2b3c4d", "TRACKER_API_KEY": KEY}
    subprocess.run(add, env=environment, check=True, capture_output=True)
    assert re.search("code 69.*w1a2b3c4d", mail(url=f"http://127.0.0.1:{free_port()}"), re.DOTALL)
    assert re.search("code 78.*w1a2b3c4d", mail(key="another"), re.DOTALL)
    assert mail() == ""
    (tmp_path / "tracker.db").unlink()
    assert "there is no database" in mail()


def test_the_other_applications_alembic_leaves_our_tables_alone(engine: sa.Engine) -> None:
    """With the document's `include_object` a comparison does not touch tracker's tables; without it, it drops them."""
    (code,) = blocks("python", TEXT)
    given: dict[str, object] = {}
    exec(code.partition("context.configure")[0], given)  # noqa: S102 - it is what a reader would run
    theirs = sa.MetaData()
    sa.Table("orders", theirs, sa.Column("id", sa.Integer, primary_key=True))
    with database.reading(engine) as connection:
        for include, expected in ((None, {"add_table", "remove_table"}), (given["include_object"], {"add_table"})):
            options = {"include_object": include} if include else {}
            changes = compare_metadata(MigrationContext.configure(connection, opts=options), theirs)
            assert {change[0] for change in changes if "table" in change[0]} == expected
            assert include is None or len(changes) == 1


@pytest.mark.skipif(BINARY is None, reason="nginx is not installed")
def test_nginx_reads_the_proxy(tmp_path: Path) -> None:
    """nginx finds nothing wrong with the example."""
    (tmp_path / "etc/nginx").mkdir(parents=True)
    files = ["-keyout", f"{tmp_path}/etc/nginx/tracker.key", "-out", f"{tmp_path}/etc/nginx/tracker.pem"]
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=tracker"]
    subprocess.run([*openssl, *files], check=True, capture_output=True)
    (tmp_path / "etc/nginx/tracker.users").write_text("operator:{PLAIN}secret\n")
    server = below(str(tmp_path), blocks("nginx", TEXT)[0]).replace("443", str(free_port()))
    http = f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {server} }}"
    (tmp_path / "nginx.conf").write_text(http)
    done = subprocess.run([str(BINARY), "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
