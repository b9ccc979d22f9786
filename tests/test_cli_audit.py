"""`tracker audit head` and `keygen`, and the change of keys."""

from __future__ import annotations

import hashlib
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.conftest import Run
from tests.history import register
from tests.test_checkpoint import KEY
from tests.test_checks import unguarded
from tests.test_deliver import texts
from tracker.audit import seal as module
from tracker.audit.checkpoint import parse, split
from tracker.audit.keys import PublicKey, SigningKey, keygen
from tracker.audit.seal import seal
from tracker.errors import BadConfiguration, DatabaseUnavailable
from tracker.guards import SEAL_LOCK


@pytest.fixture
def dialect() -> str:
    """SQLite, where a test does not ask for both."""
    return "sqlite"


both = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])


def test_head_is_the_newest_checkpoint_to_the_byte(engine: sa.Engine, run: Run) -> None:
    """What is printed is what was sealed; a missing or a false signature is not called a signature."""
    nothing = "Nothing is sealed yet: `tracker run` seals rows that are TRACKER_SEAL_AFTER old.\n"
    assert run("audit", "head") == (1, "", nothing)
    register(engine, "first")
    seal(engine, None)
    code, out, err = run("audit", "head")
    assert (code, "NOT SIGNED" in err, "signature" in out) == (0, True, False)
    code, out, err = run("audit", "head", "--public-key")
    assert (code, out, "NOT SIGNED" in err) == (1, "", True)
    register(engine, "b")
    newest = seal(engine, KEY)
    assert newest is not None
    code, out, err = run("audit", "head")
    assert (code, out) == (0, newest.text)
    assert f"checkpoint 2, SHA-256 {hashlib.sha256(out.encode()).hexdigest()}, sealed at " in err
    assert err.endswith(f"signed with key {KEY.public.id}\n")
    assert run("audit", "head", "--public-key")[:2] == (0, KEY.public.pem())
    forged = replace(newest, checkpoint=replace(newest.checkpoint, origin="0" * 32)).text
    with unguarded(engine) as connection:
        connection.exec_driver_sql("UPDATE seals SET checkpoint = ? WHERE id = 2", (forged,))
    code, _, err = run("audit", "head")
    assert (code, "ITS SIGNATURE IS FALSE" in err) == (0, True)


def test_keygen_makes_a_key_that_signs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is the public key and its id; an old key is never overwritten; no database is needed."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", f"sqlite:///{tmp_path / 'missing.db'}")
    path = tmp_path / "key.pem"
    code, out, err = run("audit", "keygen", str(path))
    key = SigningKey.load(path)
    assert (code, out) == (0, f"{key.public.pem()}key id {key.public.id}\n")
    assert (stat.S_IMODE(path.stat().st_mode), "PRIVATE" in out + err) == (0o600, False)
    before = path.read_bytes()
    code, out, err = run("audit", "keygen", str(path))
    assert (code, out, path.read_bytes(), "never overwrites" in err) == (1, "", before, True)


@both
def test_a_rotation_announces_the_new_key(
    engine: sa.Engine, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old key's last checkpoint announces the new one, and is delivered; the old one then seals nothing."""
    old_path, new_path, file = tmp_path / "old.pem", tmp_path / "new.pem", tmp_path / "c.txt"
    keygen(old_path)
    old = SigningKey.load(old_path)
    register(engine, "first")
    seal(engine, old)
    register(engine, "a")
    monkeypatch.setenv("TRACKER_SIGNING_KEY_FILE", str(old_path))
    monkeypatch.setenv("TRACKER_CHECKPOINT_FILE", str(file))
    monkeypatch.setattr(module, "TRIES", 2)
    code, out, err = run("audit", "keygen", str(new_path), "--rotate")
    assert code == 0, err
    new = SigningKey.load(new_path)
    assert out == f"{new.public.pem()}key id {new.public.id}\n"
    assert "restart every daemon" in err
    last = parse(texts(engine)[-1])
    assert (last.checkpoint.key, last.checkpoint.next_key, last.is_genuine()) == (old.public, new.public, True)
    assert last.checkpoint.rows == 1
    assert split(file.read_text()) == texts(engine)
    assert f"signed with key {old.public.id}, which announces key {new.public.id}" in run("audit", "head")[2]
    register(engine, "b")
    with pytest.raises(BadConfiguration, match="announced another"):  # a daemon that was not restarted yet
        seal(engine, old)
    if engine.dialect.name == "postgresql":  # a transaction that stays open postpones rows, and not the change of keys
        monkeypatch.setenv("TRACKER_SIGNING_KEY_FILE", str(new_path))
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock_shared({SEAL_LOCK})")
            assert run("audit", "keygen", str(tmp_path / "third.pem"), "--rotate")[0] == 0


def test_a_rotation_during_the_work_of_a_sealer(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation between a daemon's look and its writing is not followed by a checkpoint of the old key."""
    register(engine, "first")
    seal(engine, KEY)
    register(engine, "a")
    other = PublicKey(bytes.fromhex("302a300506032b6570032100") + b"\1" * 32)
    build = module._build

    def rotated_meanwhile(*arguments: object) -> object:
        monkeypatch.setattr(module, "_build", build)
        built = build(*arguments)  # type: ignore[arg-type]
        seal(engine, KEY, next_key=other)
        return built

    monkeypatch.setattr(module, "_build", rotated_meanwhile)
    assert seal(engine, KEY) is None
    assert [parse(text).checkpoint.next_key for text in texts(engine)] == [None, other]


def test_a_rotation_that_fails_leaves_no_key(
    engine: sa.Engine, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right key nothing is made; if no checkpoint announces the new key, it is removed."""
    new, wrong = tmp_path / "new.pem", tmp_path / "wrong.pem"
    register(engine, "first")
    seal(engine, KEY)
    assert "--rotate" in run("audit", "keygen", str(tmp_path / "other.pem"))[2]  # said before it is too late
    code, _, err = run("audit", "keygen", str(new), "--rotate")
    assert (code, "TRACKER_SIGNING_KEY_FILE" in err) == (78, True)
    monkeypatch.setenv("TRACKER_SIGNING_KEY_FILE", str(wrong))
    assert run("audit", "keygen", str(new), "--rotate")[0] == 78
    public = keygen(wrong)
    code, _, err = run("audit", "keygen", str(new), "--rotate")
    assert (code, KEY.public.id in err, public.id in err) == (1, True, True)
    assert (new.exists(), len(texts(engine))) == (False, 1)
    register(engine, "a")
    seal(engine, KEY, next_key=public)
    write = module._write

    def unavailable(*arguments: object) -> bool:
        raise DatabaseUnavailable("it went away")

    def lost_answer(*arguments: object) -> bool:
        write(*arguments)  # type: ignore[arg-type]
        raise DatabaseUnavailable("it went away after the commit")

    monkeypatch.setattr(module, "_write", unavailable)
    code, _, err = run("audit", "keygen", str(new), "--rotate")
    assert (code, "it went away" in err, new.exists()) == (69, True, False)
    monkeypatch.setattr(module, "_write", lost_answer)
    code, out, err = run("audit", "keygen", str(new), "--rotate")
    assert (code, new.exists()) == (0, True), err
    assert parse(texts(engine)[-1]).checkpoint.next_key == SigningKey.load(new).public
    assert re.search("key id [0-9a-f]{32}\n", out)
