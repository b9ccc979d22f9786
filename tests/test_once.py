"""`tracker run --once` as cron runs it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.processes import tracker
from tests.scripted import Script
from tests.test_daemon import TRACKER, add, environment
from tests.test_deliver import texts
from tests.test_poller import change, histories_are_whole, job, on_sqlite, stand
from tracker import database
from tracker.audit.keys import keygen
from tracker.models import JOBS, SEALS
from tracker.status import Cause

NOWHERE = "http://127.0.0.1:1"


def once(env: Mapping[str, str]) -> tuple[int, list[str]]:
    """Return the exit code, and the lines on stderr that are no events of the log."""
    done = tracker("run", "--once", env=env)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines or done.returncode == 0  # an empty mail says nothing
    return done.returncode, [line for line in lines if not line.startswith("{")]


def test_nothing_is_printed_while_all_is_well(engine: sa.Engine, script: Script, url: str) -> None:
    """Cron mails what is printed: so nothing is. What an operator paused is as intended."""
    add(engine, *[f"j{i}" for i in range(30)])
    for _ in range(2):
        done = tracker("run", "--once", env=environment(url, script.url))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(script.asked) == 30
    histories_are_whole(engine)
    stand(engine, pause_cause=Cause.PAUSED)
    done = tracker("run", "--once", env=environment(url, script.url))
    assert (done.returncode, done.stderr) == (0, "")


@on_sqlite
@pytest.mark.parametrize(
    ("says", "code", "why"),
    [
        (403, 78, "the key is refused (403)"),
        (404, 69, "check base_url and path"),
        ((429, {"Retry-After": "600"}), 69, "the server asked us to wait (429); paused until 2"),
        (None, 69, "the connection was refused"),
    ],
)
def test_a_cluster_that_cannot_be_asked(
    engine: sa.Engine, script: Script, url: str, says: int | tuple[int, dict[str, str]] | None, code: int, why: str
) -> None:
    """The exit code and one line say which cluster and why, at the first run and at the next one; a repaired one: 0."""
    add(engine, "a")
    script.default = says or "waiting"
    env = environment(url, NOWHERE if says is None else script.url)
    found, lines = once(env)
    assert (found, len(lines)) == (code, 2)
    assert lines[0].startswith("tracker: error: cluster w1: ")
    assert why in lines[0]
    assert lines[1] == "1 asked, 1 failed, 0 transitions recorded"
    with database.reading(engine) as connection:
        now = database.now(connection)
    change(engine, due_at=now)
    found, lines = once(env)
    assert (found, lines[0].startswith("tracker: error: cluster w1: ")) == (code, True)
    if isinstance(says, tuple):
        assert "no request was sent (rate_limited); paused until 2" in lines[0]  # the server wants it so
        return
    script.default = "waiting"
    change(engine, due_at=now)
    assert once(environment(url, script.url)) == (0, [])
    assert job(engine, "a").status == "waiting"


@on_sqlite
def test_each_troubled_cluster_has_a_line(engine: sa.Engine, script: Script, url: str, tmp_path: Path) -> None:
    """A refused key outweighs a server that is down; a cluster that answers has no line."""
    good = f'api_key = "hush"\nbase_url = "{script.url}"\n'
    tables = {"w1": good, "w2": f'api_key = "hush"\nbase_url = "{NOWHERE}"\n', "w3": good}
    (tmp_path / "tracker.toml").write_text("".join(f"[clusters.{name}]\n{table}" for name, table in tables.items()))
    for name in tables:
        add(engine, f"of-{name}", cluster=name)
    script.answers["of-w3"] = 401
    env = os.environ | {"TRACKER_DATABASE_URL": url, "TRACKER_CONFIG": str(tmp_path / "tracker.toml")}
    code, lines = once(env)
    assert (code, [line.split(": ")[2] for line in lines[:-1]]) == (78, ["cluster w2", "cluster w3"])
    assert once(env | {"TRACKER_CLUSTER": "w3", "TRACKER_API_KEY": "new"})[0] == 78
    script.answers["of-w3"] = "waiting"
    assert once(env)[0] == 69


@on_sqlite
def test_a_job_that_always_fails_is_no_trouble_of_its_cluster(engine: sa.Engine, script: Script, url: str) -> None:
    """It is reported once; afterwards no run fails because of it, also if no other job is due."""
    add(engine, "a", "b", "c", "poison")
    script.answers["poison"] = 500
    env = environment(url, script.url, TRACKER_MAX_CONCURRENCY="1")
    assert once(env)[0] == 0
    with database.writing(engine) as connection:
        connection.execute(sa.update(JOBS).where(JOBS.c.jid == "poison").values(due_at=database.now(connection)))
    assert once(env)[0] == 0
    assert script.asked.count("poison") == 2


def test_a_database_that_is_away(script: Script) -> None:
    """Exit code 75 and one line: try again."""
    code, lines = once(environment("postgresql+psycopg://nobody:s3cret@127.0.0.1:1/none", script.url))
    assert (code, len(lines), lines[0].startswith("tracker: error: ")) == (75, 1, True)
    assert "s3cret" not in lines[0]


@on_sqlite
def test_only_sealing_failed(engine: sa.Engine, script: Script, url: str, tmp_path: Path) -> None:
    """Exit code 1, and what was polled is recorded: without the key that signs, and on rubbish."""
    keygen(tmp_path / "key.pem")
    env = environment(url, script.url, TRACKER_SEAL_AFTER="0 s")
    assert once(env | {"TRACKER_SIGNING_KEY_FILE": str(tmp_path / "key.pem")}) == (0, [])
    add(engine, "a")
    code, lines = once(env)
    assert (code, script.asked, len(texts(engine))) == (1, ["a"], 1)
    assert lines[0].startswith("tracker: error: sealing has stopped: a key has signed the chain")
    with database.writing(engine) as connection:
        row = dict(connection.execute(sa.select(SEALS)).one()._mapping) | {"id": 2}
        text = f"tracker checkpoint v2\nsha256 {row['checkpoint_sha256']}  checkpoints/garbage"
        row |= {"checkpoint": text, "checkpoint_sha256": "0" * 64}
        connection.execute(sa.insert(SEALS).values(row))
    code, lines = once(env)
    assert (code, lines[0].startswith("tracker: error: a checkpoint in the database is damaged")) == (1, True)
    script.default = 403
    add(engine, "b")
    assert once(env)[0] == 78
    histories_are_whole(engine)


ODD_PLACE = """
mount --bind "$0" "$0" && mount -o remount,ro,bind / &&
exec setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search \\
    --no-new-privs env -i "$@"
"""
"""Shell: run a program as a uid that passwd does not know, without HOME, in a read-only system but for one folder.

It may read all files, since the Python of the tests may be in somebody's home.
"""


@on_sqlite
def test_a_container_without_a_name_a_home_and_a_place_to_write(empty_url: str, script: Script, tmp_path: Path) -> None:
    """In any locale and time zone tracker needs nothing but one folder that it may write: the database's."""
    place = ["unshare", "--mount", "sh", "-c", ODD_PLACE, str(tmp_path)]
    if os.geteuid() or subprocess.run([*place, "true"], capture_output=True).returncode:
        pytest.skip("needs root, unshare and setpriv")
    os.chown(tmp_path, 12345, 12345)
    env = environment(empty_url, script.url)
    given = [f"{name}={value}" for name, value in env.items() if name.startswith("TRACKER_")]

    def begin(odd: str, *words: str) -> subprocess.Popen[str]:
        command = [*place, *odd.split(), *given, str(TRACKER), *words]
        return subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    for odd, *words in (
        ("LANG=C TZ=:nonsense", "db", "upgrade"),
        ("LC_ALL=xx_YY.nothing TZ=Mars/Olympus+99", "add", "å"),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", "run", "--once"),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 TZ=Nowhere/Land", "status"),
        ("TZ=", "config", "check"),
    ):
        process = begin(odd, *words)
        assert "Traceback" not in process.communicate(timeout=30)[1]
        assert process.returncode == 0
    assert script.asked == ["å"]
    with begin("LANG=C TZ=Mars/Olympus+99", "run") as daemon:
        assert daemon.stderr is not None
        events = [json.loads(daemon.stderr.readline())["event"]]
        daemon.terminate()
        events += [json.loads(line)["event"] for line in daemon.communicate(timeout=30)[1].splitlines()]
    assert (daemon.returncode, events[0], events[-1]) == (0, "started", "stopped")
