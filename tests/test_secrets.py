"""Marks in keys, passwords and URLs appear in nothing that commands, daemons and errors print or store."""

from __future__ import annotations

import base64
import os
import shlex
import signal
import subprocess
import traceback
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.hostile import Hostile, Wire, free_port
from tests.processes import tracker
from tests.scripted import Script
from tests.test_alerts import receiver as receiver
from tests.test_cli_output import every_command
from tests.test_daemon import TRACKER, until
from tests.test_deliver import Receiver
from tests.test_hostile_input import NAMES
from tracker import cli, database, settings
from tracker.alerts import Alerts
from tracker.audit.deliver import Courier
from tracker.audit.keys import keygen
from tracker.elevate import Elevate
from tracker.models import METADATA

MARK = "MarkedSecret"
KEY, PASSWORD, HOOK, PROXY = f"{MARK}=/+%3A@x", f"{MARK}%40%2F%3Ax%25", MARK, f"{MARK}%40x"
FORMS = [MARK.encode(), *(base64.b64encode(bytes(shift) + MARK.encode() + b"+++")[4:16] for shift in range(3))]
COMMANDS = f"""config check --ask; db upgrade; db check; db grants --owner o --writer w --auditor a; deploy systemd
add a b c --reference R; import jobs.csv; poll a; run --once; withdraw b --reason x; reopen b --reason x
amend b --reference S --reason x; attest c --done-by 2026-01-05 --reason x; pause w1 --reason x; resume w1; jobs
show a; clusters; status; ack no_daemon --reason x; alerts test; reconcile jobs.csv
report -o page.html; audit head; audit export pack; audit verify; audit keygen other.pem
db copy postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/x; db copy sqlite:///copy.db
db prune --ended-before 2020-01-05 --export removed"""
FAILING = "config check --ask; poll a; add e; run --once; alerts test; status; report -o page.html"
NO_SECRETS = {"demo", "simulate"}  # they ask a server of their own, with a key of its own


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.replace("\n", ";").split(";")]


def has_no_mark(*said: object) -> None:
    for one in said:
        data = one if isinstance(one, bytes) else str(one).encode("utf-8", "backslashreplace")
        for form in FORMS:
            at = data.find(form)
            assert at < 0, data[max(0, at - 300) : at + 100]


def said_by(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command, and return all that it prints, with the whole traceback if it ends with an error."""
    if words[0] in ("run", "poll"):  # they log to the stream that the process began with
        done = tracker(*words, env=os.environ)
        return done.stdout + done.stderr
    said = ""
    try:
        cli.root.main(words, prog_name="tracker", standalone_mode=False)
    except (Exception, SystemExit) as error:
        said = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
    return said + "".join(capfd.readouterr())


@pytest.fixture
def marked(url: str, script: Script, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a mark into each secret, make files for the commands, and return the URL of the database."""
    if not url.startswith("sqlite"):
        place = sa.make_url(url).render_as_string(hide_password=False).rpartition("@")[2]
        url = f"postgresql+psycopg://postgres:{PASSWORD}@{place}{'&' if '?' in place else '?'}sslpassword={HOOK}"
    (tmp_path / "jobs.csv").write_text("jid,cluster\na,w1\nd,w1\n")
    keygen(tmp_path / "key.pem")
    hook = f"me:{HOOK}@127.0.0.1:{receiver.port}/{HOOK}?token={HOOK}"
    values = {"DATABASE_URL": url, "CLUSTER": "w1", "API_KEY": KEY, "BASE_URL": script.url, "SEAL_AFTER": "0 s"}
    values |= {"CHECKPOINT_URL": f"http://{hook}", "ALERT_URLS": f"json://{hook}", "PING_URL": f"http://{hook}"}
    values |= {"RECEIVER_PROXY": f"http://me:{PROXY}@h:1", "SIGNING_KEY_FILE": "key.pem", "REQUEST_TIMEOUT": "1 s"}
    for name, value in values.items():
        monkeypatch.setenv(f"TRACKER_{name}", value)
    return url


@pytest.mark.parametrize("dialect", ["postgresql", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_no_command_shows_or_stores_a_secret(
    marked: str, receiver: Receiver, script: Script, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No command shows a secret, with success or not; nor do tables, page, pack and the repr of its holders."""
    ran = [*commands(COMMANDS), *(["report", name] for name in NAMES)]
    leaves = {name for name, command in every_command() if not hasattr(command, "commands")}
    assert leaves - {" ".join(words[:n]) for words in ran for n in (1, 2)} == NO_SECRETS
    for words in ran:
        has_no_mark(said_by(words, capfd))
    script.default, receiver.always = 403, 500
    for words in commands(FAILING):
        has_no_mark(said_by(words, capfd))
    assert sum(HOOK in path for path, *_ in receiver.got) >= 6, "checkpoints, alerts and pings did go there"
    has_no_mark(*(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()))
    effective, engine = settings.load(), database.open_database(marked)
    with Elevate(effective.cluster(), effective.request_timeout) as elevate, database.reading(engine) as connection:
        has_no_mark(
            *map(repr, (effective, effective.clusters, settings.explain(effective), engine, engine.url, elevate))
        )
        has_no_mark(Courier.of(engine, effective), Alerts(effective, once=True), connection, engine.pool)
        for table in METADATA.tables.values():
            has_no_mark(connection.execute(sa.select(table)).all())
    engine.dispose()


def refuse(wire: Wire) -> None:
    """Be a PostgreSQL server that refuses the password."""
    while wire.connection.recv(1000)[4:8] == b"\x04\xd2\x16\x2f":  # asks for TLS
        wire.send(b"N")
    fields = b'SFATAL\0C28P01\0Mpassword authentication failed for user "me"\0\0'
    wire.send(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.usefixtures("marked")
def test_no_failure_shows_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No error shows one: of a wrong password, an absent database, a bad URL, name or file, or a proxy's 407."""
    monkeypatch.delenv("TRACKER_ALERT_URLS")
    for number, text in enumerate((f"'{KEY}", f"['{KEY}']", f"'{KEY}'\napi_key = '{KEY}'", f"'{KEY}\udcff'")):
        text = f"[clusters.w1]\nproxy = {{a = '{PROXY}'}}\napi_key = {text}"
        (tmp_path / f"{number}.toml").write_text(text, "utf-8", "surrogateescape")
    with Hostile(greet=refuse) as server, Hostile(lambda wire: wire.reply(wire.head, f"407 {KEY}")) as proxy:
        place = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1"
        ends = (
            f":{server.port}/x?sslpassword={HOOK}",
            ":1/x",
            "/x?sslmode=never",
            "/x?port=x",
            ":port/x",
            "@y/x",
            "/%zz",
        )
        for change in (
            *({"TRACKER_DATABASE_URL": place + end} for end in ends),
            *({"TRACKER_CONFIG": path.name} for path in tmp_path.glob("*.toml")),
            {"TRACKER_DATABASE_URL": f"sqlite:////nowhere/x.db?password={PASSWORD}"},
            {"TRACKER_API_KEYS": KEY, "TRACKER_API_KEY": f"{KEY} x", "TRACKER_DATABASE_URL": f"mysql://u:{PASSWORD}@h"},
            {"TRACKER_PROXY": f"socks5://u:{PROXY}@h", "TRACKER_BASE_URL": f"https://u:{PASSWORD}@h"},
            {"TRACKER_PROXY": f"http://u:{PROXY}@h:99999", "TRACKER_CHECKPOINT_URL": f"http://example.com/{HOOK}"},
            {"TRACKER_ALERT_URLS": f"json://h {HOOK}", "TRACKER_PING_URL": f"http://h/{HOOK}"},
            {"TRACKER_BASE_URL": "https://localhost:1", "TRACKER_PROXY": f"http://me:{PROXY}@127.0.0.1:{proxy.port}"},
            {"TRACKER_ALERT_URLS": f"nothing://{HOOK}"},
        ):
            with monkeypatch.context() as patch:
                for name, value in change.items():
                    patch.setenv(name, value)
                for words in commands("config check --ask; run --once; db check"):
                    has_no_mark(said_by(words, capfd))
        assert server.connections
        assert any(b"Proxy-Authorization" in request for request in proxy.requests)


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.usefixtures("marked")
def test_no_daemon_shows_a_secret(
    engine: sa.Engine, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon shows none, over HTTP, in a Python crash, or if receivers echo what they get in broken headers."""
    port, script.default = str(free_port()), "done"

    def echo(wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nbroken\r\n" + wire.head + b"\r\n\r\n")
        wire.close()

    with Hostile(echo) as server, (tmp_path / "log").open("wb") as log, database.writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'a')")
        connection.commit()
        hook = f"{server.url}/{HOOK}?token={HOOK}"
        more = {"PING_URL": hook, "CHECKPOINT_URL": hook, "HTTP_PORT": port}
        env = os.environ | {f"TRACKER_{name}": value for name, value in more.items()} | {"PYTHONFAULTHANDLER": "1"}
        daemon = subprocess.Popen([TRACKER, "run"], stderr=log, stdout=log, cwd=tmp_path, env=env)
        try:
            said = (tmp_path / "log").read_text
            until(lambda: '"checkpoint"' in said() and len(server.requests) >= 2, 30)
            for path in ("", "metrics", "readyz", "healthz"):
                with (
                    suppress(urllib.error.HTTPError),
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as page,
                ):
                    has_no_mark(page.read())
            daemon.send_signal(signal.SIGABRT)
            daemon.wait(20)
        finally:
            daemon.kill()
            daemon.wait()
    assert "Fatal Python error: Aborted" in said()
    has_no_mark(said())
