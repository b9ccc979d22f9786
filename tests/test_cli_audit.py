"""`tracker audit head` and `keygen`, and the change of keys."""

from __future__ import annotations

import hashlib
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.history import register
from tests.test_checkpoint import KEY
from tests.test_deliver import texts
from tracker import cli, database
from tracker.audit import seal as module
from tracker.audit.checkpoint import parse, split
from tracker.audit.keys import PublicKey, SigningKey, keygen
from tracker.audit.seal import seal
from tracker.errors import BadConfiguration, DatabaseUnavailable
from tracker.guards import SEAL_LOCK

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line on the database and returns exit code, stdout and stderr."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def dialect() -> str:
    """SQLite, where a test does not ask for both."""
    return "sqlite"


both = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])


@both
def test_head_is_the_newest_checkpoint_to_the_byte(engine: sa.Engine, run: Run) -> None:
    """What is printed is what was sealed: its SHA-256 is what the summary says, and the next one states."""
    assert run("audit", "head") == (
        1,
        "",
        "Nothing is sealed yet: `tracker run` seals rows when they are TRACKER_SEAL_AFTER old.\n",
    )
    register(engine, "a")
    seal(engine, KEY)
    register(engine, "b")
    (newest,) = seal(engine, KEY)
    code, out, err = run("audit", "head")
    assert (code, out) == (0, newest.text)
    assert f"checkpoint 2, SHA-256 {hashlib.sha256(out.encode()).hexdigest()}, sealed at " in err
    assert err.endswith(f"signed with key {KEY.public.id}\n")
    assert run("audit", "head", "--public-key")[:2] == (0, KEY.public.pem())


def test_head_says_that_it_is_not_signed(engine: sa.Engine, run: Run) -> None:
    """Nobody takes an unsigned checkpoint for more than it is."""
    register(engine, "first")
    seal(engine, None)
    code, out, err = run("audit", "head")
    assert (code, "NOT SIGNED" in err, "signature" in out) == (0, True, False)
    code, out, err = run("audit", "head", "--public-key")
    assert (code, out, "NOT SIGNED" in err) == (1, "", True)


def test_head_says_that_a_signature_is_false(engine: sa.Engine, run: Run) -> None:
    """A checkpoint whose signature was changed in the database is not called signed."""
    register(engine, "first")
    (first,) = seal(engine, KEY)
    with database.writing(engine) as connection:
        for name in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all():
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        forged = first.text.replace(first.checkpoint.origin, "0" * 32)
        connection.exec_driver_sql("UPDATE seals SET checkpoint = ?", (forged,))
    code, _, err = run("audit", "head")
    assert (code, "ITS SIGNATURE IS FALSE" in err) == (0, True)


def test_keygen_makes_a_key_that_signs(run: Run, tmp_path: Path) -> None:
    """Mode 0600; standard output is the public key and its id, as openssl and the checkpoints have them."""
    path = tmp_path / "key.pem"
    code, out, err = run("audit", "keygen", str(path))
    assert code == 0
    pem, _, last = out.rpartition("key id ")
    key = SigningKey.load(path)
    assert (pem, last.strip()) == (key.public.pem(), key.public.id)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "PRIVATE" not in out + err
    openssl = subprocess.run(["openssl", "pkey", "-in", path, "-pubout"], capture_output=True, text=True, check=True)
    assert openssl.stdout == pem
    der = subprocess.run(
        ["openssl", "pkey", "-in", path, "-pubout", "-outform", "DER"], capture_output=True, check=True
    ).stdout
    assert hashlib.sha256(der).hexdigest()[:32] == key.public.id


def test_keygen_never_overwrites(run: Run, tmp_path: Path) -> None:
    """A key that is lost cannot be made again."""
    path = tmp_path / "key.pem"
    run("audit", "keygen", str(path))
    before = path.read_bytes()
    code, out, err = run("audit", "keygen", str(path))
    assert (code, out, path.read_bytes()) == (1, "", before)
    assert "never overwritten" in err


def test_keygen_needs_no_database(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may run where the key is to be: not on the database's machine."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", f"sqlite:///{tmp_path / 'none.db'}")
    assert run("audit", "keygen", str(tmp_path / "key.pem"))[0] == 0


def test_keygen_hints_at_the_rotation(engine: sa.Engine, run: Run, tmp_path: Path) -> None:
    """A key that was not announced is a finding: the command says so before it is too late."""
    register(engine, "first")
    seal(engine, None)
    assert "--rotate" not in run("audit", "keygen", str(tmp_path / "1.pem"))[2]
    register(engine, "a")
    seal(engine, KEY)
    err = run("audit", "keygen", str(tmp_path / "2.pem"))[2]
    assert f"signed with key {KEY.public.id}" in err
    assert "--rotate" in err


@both
def test_a_rotation_announces_the_new_key(
    engine: sa.Engine, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old key's last checkpoint announces the new one, and is delivered; the old one then seals nothing."""
    old_path, new_path, file = tmp_path / "old.pem", tmp_path / "new.pem", tmp_path / "c.txt"
    run("audit", "keygen", str(old_path))
    old = SigningKey.load(old_path)
    register(engine, "first")
    seal(engine, old)
    register(engine, "a")
    monkeypatch.setenv("TRACKER_SIGNING_KEY_FILE", str(old_path))
    monkeypatch.setenv("TRACKER_CHECKPOINT_FILE", str(file))
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
        seal(engine, old, obeys=True)
    (following,) = seal(engine, new, obeys=True)
    assert following.checkpoint.key == new.public


@both
def test_a_sealer_that_loses_the_race_to_a_rotation_obeys(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert seal(engine, KEY, obeys=True) == []
    assert [parse(text).checkpoint.next_key for text in texts(engine)] == [None, other]


def test_a_rotation_needs_the_key_that_is_expected(
    engine: sa.Engine, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the setting, or with another key than the chain expects, nothing is made."""
    new, wrong = tmp_path / "new.pem", tmp_path / "wrong.pem"
    register(engine, "first")
    seal(engine, KEY)
    code, _, err = run("audit", "keygen", str(new), "--rotate")
    assert (code, "TRACKER_SIGNING_KEY_FILE" in err) == (78, True)
    monkeypatch.setenv("TRACKER_SIGNING_KEY_FILE", str(wrong))
    assert run("audit", "keygen", str(new), "--rotate")[0] == 78
    public = keygen(wrong)
    code, _, err = run("audit", "keygen", str(new), "--rotate")
    assert (code, KEY.public.id in err, public.id in err) == (1, True, True)
    assert not new.exists()
    assert len(texts(engine)) == 1


@both
def test_a_rotation_that_fails_leaves_no_key(
    engine: sa.Engine, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing half done: if no checkpoint announces it, the new key is removed, and the command can be repeated."""
    old, new = tmp_path / "old.pem", tmp_path / "new.pem"
    keygen(old)
    monkeypatch.setenv("TRACKER_SIGNING_KEY_FILE", str(old))
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
    assert parse(texts(engine)[-1]).checkpoint.next_key == PublicKey(SigningKey.load(new).public.der)
    assert re.search("key id [0-9a-f]{32}\n", out)


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_rotation_does_not_wait_for_a_writer(
    engine: sa.Engine, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that stays open postpones rows, and not the change of keys."""
    old, new = tmp_path / "old.pem", tmp_path / "new.pem"
    keygen(old)
    monkeypatch.setenv("TRACKER_SIGNING_KEY_FILE", str(old))
    monkeypatch.setattr(module, "TRIES", 2)
    register(engine, "a")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock_shared({SEAL_LOCK})")
        code, _, err = run("audit", "keygen", str(new), "--rotate")
    assert code == 0, err
    last = parse(texts(engine)[-1]).checkpoint
    assert (last.rows, last.next_key) == (0, SigningKey.load(new).public)


@pytest.mark.parametrize("command", ["head", "keygen", "verify", "export"])
def test_the_help_fits_a_terminal(run: Run, command: str) -> None:
    """A line that the terminal folds is no example to copy."""
    _, out, _ = run("audit", command, "--help")
    assert "Example" in out
    assert [line for line in out.splitlines() if len(line) > 80] == []
