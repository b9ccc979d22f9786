"""FORMAT.md: a verifier that was written from it alone, and its commands by hand, on really sealed databases."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.independent import problems
from tracker import database
from tracker.audit import checkpoint, lines
from tracker.audit.keys import SigningKey
from tracker.audit.seal import chain, seal
from tracker.models import GAPS, SEGMENTS

OLD, NEW = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n in range(2))
PAGE = Path(lines.__file__).parent / "FORMAT.md"


def written(engine: sa.Engine, folder: Path, key: SigningKey | None) -> Path:
    """Write the checkpoints and segments of *engine* into *folder*, with their sums signed by *key*."""
    for name in ("checkpoints", "segments"):
        (folder / name).mkdir(parents=True)
    with database.reading(engine) as connection:
        for signed in chain(connection):
            number = signed.checkpoint.number
            (folder / checkpoint.path(number)).write_text(signed.text)
        for one in connection.execute(sa.select(SEGMENTS).order_by(SEGMENTS.c.seal_id)):
            rows = lines.stream(connection, one.name, one.first_id - 1, one.last_id)
            path = checkpoint.SealedSegment(one.name, one.part, one.sha256).path(one.seal_id)
            (folder / path).write_bytes(lines.header(one.name) + b"".join(line for _, line in rows))
    sums(folder, key)
    return folder


def sums(folder: Path, key: SigningKey | None) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "SHA256SUMS" not in path.name)
    listed = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n" for path in files
    )
    (folder / "SHA256SUMS").write_text(listed)
    if key is not None:
        (folder / "SHA256SUMS.sig").write_bytes(key.sign(listed.encode()))


@pytest.fixture
def pack(engine: sa.Engine, tmp_path: Path) -> Path:
    """Three checkpoints: 1,003 rows unsigned, a key that announces the next, one gap under that."""
    with database.writing(engine) as connection:
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1003)"
        connection.exec_driver_sql(f"{numbers} INSERT INTO jobs (cluster, jid) SELECT 'w1', 'é,\"' || i FROM n")
    gap(engine)
    seal(engine, None)
    gap(engine)
    seal(engine, OLD, next_key=NEW.public)
    gap(engine)
    seal(engine, NEW)
    return written(engine, tmp_path / "pack", NEW)


def gap(engine: sa.Engine) -> None:
    with database.writing(engine) as connection:
        now = database.now(connection)
        row = {"cluster": "w1", "began_at": now, "ended_at": now, "cause": "paused", "detail": 'say "when"'}
        connection.execute(sa.insert(GAPS).values(row))


def test_the_independent_verifier_accepts_an_honest_pack(pack: Path) -> None:
    """What tracker seals is what the page says, on both databases."""
    assert list(problems(pack, NEW.public.id)) == []
    assert len(list((pack / "segments").iterdir())) == 5
    assert list(problems(pack, OLD.public.id)) == ["no checkpoint, or the last one is not signed with the key given"]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_independent_verifier_finds_each_change(pack: Path) -> None:
    """Whatever is changed, removed, added or cut off, it says so, also where the sums were made again."""
    changes = [
        ("segments/000001-transitions-1.csv", rb'"registered"', b'"observed"'),
        ("segments/000001-transitions-2.csv", rb"(?s)\n.*", b"\n"),
        ("checkpoints/000002.txt", rb"rows 1\n", b"rows 2\n"),
        ("checkpoints/000002.txt", rb"next_key .*\n", b""),
        ("checkpoints/000003.txt", rb"(?s).*", b""),
        ("checkpoints/000001.txt", rb"sealed_at 2", b"sealed_at 3"),
        ("segments/000009-gaps-1.csv", rb"", b"id\n"),
    ]
    for name, pattern, text in changes:
        path = pack / name
        before = path.read_bytes() if path.is_file() else None
        for key in (None, NEW):
            path.write_bytes(re.sub(pattern, text, before or b"", count=1))
            if key is not None:
                sums(pack, key)
            assert list(problems(pack)) != [], name
        path.unlink() if before is None else path.write_bytes(before)
        sums(pack, NEW)
        assert list(problems(pack)) == []


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_commands_of_the_page_work_by_hand(pack: Path, tmp_path: Path) -> None:
    """Its commands, run as they stand, say OK of an honest pack; the example's hash is the one that it shows."""
    page = PAGE.read_text()
    commands = page.split("## By hand\n\n", 1)[1].split("\n\n", 1)[0].replace("/tmp", str(tmp_path))  # noqa: S108
    done = subprocess.run(["sh", "-ec", commands], cwd=pack, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert NEW.public.id in done.stdout
    assert done.stdout.count("Signature Verified Successfully") == 2
    assert done.stdout.count(": OK\n") == (3 + 5) + (2 + 5)
    example, digest = page.split("$ printf", 1)[1].strip().rsplit("\n", 1)
    done = subprocess.run(["sh", "-ec", f"printf {example}"], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == digest.split()


def test_the_page_is_short() -> None:
    """At most 500 words."""
    assert len(PAGE.read_text().split()) <= 500
