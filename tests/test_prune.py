"""Retention: removed jobs are in the pack only, the rest is as before, and a crash leaves all or nothing."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests import history
from tests.conftest import Run
from tests.history import ZONE, answer, register
from tests.independent import problems
from tests.scripted import Script
from tests.test_checkpoint import KEY
from tests.test_daemon import Start, until
from tests.test_daemon import start as start
from tests.test_verify import found, verified
from tracker import database, guards, operate
from tracker.audit import pack, prune, seal
from tracker.audit.checkpoint import Base, Signed, parse, sign
from tracker.audit.deliver import Courier
from tracker.audit.keys import SigningKey, keygen
from tracker.audit.verify import verify
from tracker.errors import BadConfiguration, Refused, TryAgain
from tracker.models import JOBS, SEALS, TRANSITIONS
from tracker.reports import views

OLD = datetime(2024, 3, 1, 9, tzinfo=UTC)
DAY = datetime(2025, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SCRIPT = Path(prune.__file__).with_name("verify.sh")


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    keygen(tmp_path / "key")
    monkeypatch.setenv("TRACKER_SIGNING_KEY_FILE", str(tmp_path / "key"))
    return SigningKey.load(tmp_path / "key")


def live(engine: sa.Engine, name: str, *old: str) -> None:
    """Write jobs that ended in 2024, one that ended now, and one that is open."""
    for jid in old:
        answer(engine, register(engine, jid, at=OLD), ("waiting", OLD + HOUR), ("done", OLD + 2 * HOUR))
    now = datetime.now(UTC)
    answer(engine, register(engine, f"new-{name}"), ("waiting", now), ("done", now))
    register(engine, f"open-{name}")


def chain(engine: sa.Engine) -> list[Signed]:
    with database.reading(engine) as connection:
        return list(seal.chain(connection))


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def removed(engine: sa.Engine, folder: Path, key: SigningKey | None, *ids: int) -> Signed:
    """Remove one job, and return the base."""
    choice = prune.Choice(None if ids else DAY, ids)
    made = prune.prune(Courier(engine), choice, folder, ZONE, key, lambda *progress: None)
    base = chain(engine)[-1]
    assert base.checkpoint.base == made == Base(None if ids else DAY.date(), 1, digest_of(folder / pack.SUMS))
    return base


def script(folder: Path, trusted: str = "", *more: str) -> tuple[int, str]:
    """Run verify.sh on a pack."""
    folder.with_name("trusted").write_text(trusted)
    words = ["sh", str(SCRIPT), "--reports", *(["--trusted", "../trusted"] if trusted else []), *more]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def reports(engine: sa.Engine) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each view about jobs, without the seal of a transition."""
    found = {}
    with database.reading(engine) as connection:
        for view in views.VIEWS:
            rows = history.selected(connection, view, datetime(2027, 1, 1, tzinfo=UTC))
            rows = [row | {"seal_id": None} for row in rows if not str(row.get("jid")).startswith("old")]
            found[view] = sorted(rows, key=str)
    del found["report_monthly"]  # it no longer counts the removed jobs
    return found


def test_what_is_removed_is_in_the_pack_and_the_rest_is_sealed_again(
    engine: sa.Engine, run: Run, key: SigningKey, dialect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two removals both packs, the database and earlier checkpoints verify; other jobs' reports are as before."""
    live(engine, "a", "old-1", "old-2", "old-3")
    seal.seal(engine, key)
    live(engine, "b")
    before = reports(engine)
    monkeypatch.setenv("TRACKER_RETENTION", "300 d")
    need = "longer ago than TRACKER_RETENTION (since 2024-12-26 11:00 UTC). `tracker db prune"
    assert need in run("status")[1]
    words = ("db", "prune", "--ended-before", "2025-01-01")
    assert run(*words, "--dry-run") == (0, "", "3 jobs with 9 transitions would be removed.\n")
    code, out, err = run(*words, "--export", "first")
    assert (code, out) == (0, ""), err
    assert "3 jobs removed. The pack in first still has their rows: delete it when" in err
    assert reports(engine) == before
    base, digest = chain(engine)[-1].checkpoint, digest_of(tmp_path / "first/SHA256SUMS")
    assert (base.number, base.base) == (3, Base(DAY.date(), 3, digest))
    assert base.previous_sha256 == digest_of(tmp_path / "first/checkpoints/000002.txt")
    if dialect == "sqlite":
        assert b"old-" not in b"".join(path.read_bytes() for path in tmp_path.glob("tracker.db*"))
    assert (run("show", "old-1")[0], "TRACKER_RETENTION" in run("status")[1]) == (1, False)
    for as_of in ("2026-01-01", datetime.now(UTC).isoformat()):
        said = run("report", "gaps", "--as-of", as_of)[2]
        assert ("are missing here" in said) == (as_of == "2026-01-01")
    assert run(*words, "--export", "none") == (0, "", "Nothing to remove: no job ended before that day.\n")
    register(engine, "later")
    seal.seal(engine, key)
    code, _, err = run("db", "prune", "--jid", "new-a", "--jid", "new-a", "--export", "second", "--yes")
    assert (code, "1 job removed" in err) == (0, True), err
    run("audit", "export", "third")
    texts = [one.text for one in chain(engine)]
    for folder, last in (("first", 2), ("second", 4), ("third", 5)):
        assert list(problems(tmp_path / folder, key.public.id)) == []
        code, said = script(tmp_path / folder, "\n".join(texts[:last]), "--key-id", key.public.id)
        assert (code, "\nOK: checkpoints" in said) == (0, True), said
    assert "Jobs removed with checkpoint 5; nothing before it was checked: jobs 1 pack" in said
    assert "NOTHING TRUSTED GIVEN: " in script(tmp_path / "third", texts[2])[1]  # it has none since the base
    code, said = script(tmp_path / "third", sign(chain(engine)[3].checkpoint, KEY).text)
    assert (code, "NOT OK: checkpoints in ../trusted that are not in this pack" in said) == (1, True), said
    (tmp_path / "outside").write_text("\n".join(texts))
    code, out, _ = run("audit", "verify", "--trusted", "outside", "--format", "table")
    assert code == 0, out
    assert f"removed 3 jobs that ended before 2025-01-01; SHA-256 of the pack: {digest}" in out
    assert "OK, BUT KEY NOT CHECKED: 4 jobs, 6 transitions, 5 checkpoints over 7 rows" in out
    with database.reading(engine) as connection:
        assert set(connection.exec_driver_sql("SELECT DISTINCT seal_id FROM report_transitions").scalars()) == {5}


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_no_trace_of_a_row_stays_in_the_file(engine: sa.Engine, tmp_path: Path) -> None:
    """Rows that grew and moved leave nothing either; while another process reads the file, it is said that they may."""
    ids = [register(engine, f"old-{number}", at=OLD) for number in range(60)]
    for length in (150, 40, 110):
        for id_ in ids[::-1]:
            history.change(engine, id_, failures=1, last_error="x" * (length + id_))
    answered = ids[1::2], ids[::2]
    for some in answered:
        for id_ in some:
            answer(engine, id_, ("waiting", OLD + HOUR), ("done", OLD + 2 * HOUR))
    prune.prune(Courier(engine), prune.Choice(None, (*ids[1:],)), tmp_path / "pack", ZONE, None, lambda *progress: None)
    left = b"".join(path.read_bytes() for path in tmp_path.glob("tracker.db*"))
    assert set(re.findall(rb"old-\d+", left)) == {b"old-0"}
    file = f"file:{tmp_path / 'tracker.db'}?mode=ro"
    reader = f"import sqlite3; c = sqlite3.connect({file!r}, uri=True, isolation_level=None); c.execute('BEGIN');"
    reader += "print(*c.execute('SELECT max(id) FROM jobs'), flush=True); input()"
    words = [sys.executable, "-c", reader]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reading:
        assert reading.stdout is not None
        assert reading.stdout.readline()
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 1")
        with pytest.raises(Refused, match=r"removed, but traces of their rows are still in the file .*: sqlite3 "):
            removed(engine, tmp_path / "again", None, ids[0])
        reading.communicate("\n")


def put(connection: sa.Connection, rows: dict[str, list[dict[str, Any]]], *tables: str) -> None:
    """Insert the rows of *tables* as they are, ids included."""
    for table in tables:
        names = rows[table][0]
        by = "OVERRIDING SYSTEM VALUE" if connection.dialect.name != "sqlite" and "id" in names else ""
        values = f"({', '.join(names)}) {by} VALUES ({', '.join(f':{name}' for name in names)})"
        connection.execute(sa.text(f"INSERT INTO {table} {values}"), rows[table])


def test_what_was_changed_after_a_base_is_found(engine: sa.Engine, key: SigningKey, tmp_path: Path) -> None:
    """Each is found: a job or its rows put back, a row removed, a forged base, another number of jobs, old segments."""
    live(engine, "a", "old-1")
    seal.seal(engine, key)
    there = {"jobs": "id = 1", "transitions": "job_id = 1", "segments": "name = 'transitions'"}
    with database.reading(engine) as connection:
        old = {
            table: list(map(dict, connection.exec_driver_sql(f"SELECT * FROM {table} WHERE {its}").mappings()))
            for table, its in there.items()
        }
    base = removed(engine, tmp_path / "pack", key)
    assert found(verified(engine, public_key=key.public)) == []
    more = parse(base.text.replace("jobs 1 pack", "jobs 2 pack"))
    forged = sign(replace(base.checkpoint, number=3, previous_sha256=base.sha256), KEY)

    instead, after = ({"checkpoint": one.text, **seal.columns(one)} for one in (more, forged))
    attacks: list[tuple[Callable[[sa.Connection], object], str]] = [
        (lambda c: put(c, old, "jobs"), "job: job old-1 of cluster w1: its registration is missing"),
        (lambda c: put(c, old, "jobs", "transitions"), "ids from 1 to 7 that are in no segment: 3"),
        (lambda c: c.execute(sa.delete(TRANSITIONS).where(TRANSITIONS.c.id == 5)), "(4 were sealed, 3 are there)"),
        (lambda c: put(c, old, "segments"), "rows in table segments for checkpoints before the newest base: 1"),
        (lambda c: c.execute(sa.update(SEALS).where(SEALS.c.id == 2).values(instead)), "2: its signature is false"),
        (lambda c: c.execute(sa.insert(SEALS).values(after)), f"3: it is signed with key {KEY.public.id}, which the"),
    ]
    for attack, words in attacks:
        with engine.connect() as connection:
            guards.drop(connection)
            attack(connection)
            guards.create(connection)
            findings = found(verify(connection, zone=ZONE))
            connection.rollback()
        assert any(words in one for one in findings), (words, findings)
    assert found(verified(engine)) == []


DYING = """
import os, sys
from tracker import cli, guards
from tracker.audit import pack, prune, seal
from tracker.cli import db
room, name, left = globals()[sys.argv[1]], sys.argv[2], [int(sys.argv[3])]
real = getattr(room, name)
def dying(*given, **named):
    left[0] -= 1
    return real(*given, **named) if left[0] else os.kill(os.getpid(), 9)
setattr(room, name, dying)
cli.main(sys.argv[4:])
"""
POINTS = ("pack _put_reports 1", "prune verify 1", "prune _lock 1", "seal _append 1", "guards check 2", "db counted 3")


def test_a_kill_at_any_point_leaves_all_or_nothing(
    engine: sa.Engine, url: str, key: SigningKey, tmp_path: Path
) -> None:
    """A kill before the commit leaves all jobs, one after it leaves none of them; a pack is complete or not there."""
    live(engine, "a", "old-1", "old-2")
    for number, point in enumerate(POINTS):
        words = [*point.split(), "db", "prune", "--ended-before", "2025-01-01", "--export", f"pack-{number}"]
        env = os.environ | {"TRACKER_DATABASE_URL": url}
        assert subprocess.run([sys.executable, "-c", DYING, *words], env=env, timeout=60).returncode == -9, point
        with database.reading(engine) as connection:
            jobs, _ = prune.Choice(DAY).count(connection)
            bases = [one.checkpoint.number for one in seal.chain(connection) if one.checkpoint.base]
        assert (jobs, bases) == ((2, []) if point != POINTS[-1] else (0, [2])), point
        assert found(verified(engine)) == [], point
        assert (folder := tmp_path / f"pack-{number}").exists() == (number > 0), point
        assert number == 0 or list(problems(folder, key.public.id)) == [], point


@pytest.mark.parametrize("first", [KEY, None])
def test_a_base_over_nothing_and_one_by_a_new_key(engine: sa.Engine, tmp_path: Path, first: SigningKey | None) -> None:
    """The chain continues if no row is left, if it is not signed, and if the base is the new key's first checkpoint."""
    with database.writing(engine) as connection:
        new = sa.insert(JOBS).values(cluster="w1", jid="old").returning(JOBS.c.id)
        job = connection.execute(new).scalar_one()
        operate.withdraw(connection, job, "alice", "mistaken")
    assert removed(engine, tmp_path / "1", first, job).checkpoint.rows == 0
    keygen(tmp_path / "new")
    second = SigningKey.load(tmp_path / "new")
    live(engine, "a")
    seal.seal(engine, first, next_key=second.public if first else None)
    if first:
        with pytest.raises(BadConfiguration, match="announced another key"):
            removed(engine, tmp_path / "2", first, job + 1)
    assert removed(engine, tmp_path / "3", second, job + 1).checkpoint.number == 4
    assert (found(verified(engine, public_key=second.public)), len(chain(engine))) == ([], 4)
    pack.export(engine, tmp_path / "4", zone=ZONE, key=second)
    for name in "134":
        code, said = script(tmp_path / name, "", "--unsigned")
        assert code == 0, said


def test_what_cannot_be_removed_is_refused(
    engine: sa.Engine, run: Run, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is removed if a job is open, a day in the future, the folder there, or something is sealed meanwhile."""
    live(engine, "a", "old-1")
    for code, words, said in (
        (1, "--jid open-a --export x", "job open-a is open: withdraw it first"),
        (1, "--jid none --export x", "no job has the jid"),
        (1, f"--jid new-a --export {tmp_path}", "exists: name a new folder"),
        (1, "--ended-before 2999-01-01 --export x", "2999-01-01 is in the future"),
        (2, "--ended-before 2025-01-01", "give --export DIR"),
        (2, "--export x", "give either"),
    ):
        result = run("db", "prune", *words.split())
        assert (result[0], said in result[2]) == (code, True), result

    def meanwhile(made: pack.Pack) -> None:
        register(engine, "b")
        seal.seal(engine, key)

    monkeypatch.setattr(prune, "_reread", meanwhile)
    code, _, err = run("db", "prune", "--ended-before", "2025-01-01", "--export", "pack")
    assert (code, "something was sealed while the pack was written: nothing was removed. Delete" in err) == (75, True)
    assert found(verified(engine)) == []


def test_daemons_go_on(engine: sa.Engine, start: Start, script: Script, key: SigningKey, tmp_path: Path) -> None:
    """A daemon that polls and a thread that registers jobs wait for a moment; no row is missing afterwards."""
    live(engine, "a", "old-1")
    script.default = "done"
    over = threading.Event()
    added: list[int] = []

    def busy() -> None:
        while not over.is_set():
            added.append(register(engine, f"busy-{len(added)}"))

    daemon, writer = start(), threading.Thread(target=busy)
    writer.start()
    until(lambda: len(script.asked) > 20)
    try:
        for number in range(5):
            with suppress(TryAgain):  # the daemon has sealed a thousand rows meanwhile
                removed(engine, tmp_path / f"pack-{number}", key)
                break
        asked = len(script.asked)
        until(lambda: len(script.asked) > asked + 20)
    finally:
        over.set()
        writer.join()
    daemon.terminate()
    assert daemon.wait() == 0
    report = verified(engine)
    assert (report.jobs, found(report)) == (len(added) + 2, [])
    assert '"level": "error"' not in (tmp_path / "daemon.log").read_text()
