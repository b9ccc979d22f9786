"""The checkpoint's text, its signature, and what is asked of a key file."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.audit import checkpoint as module
from tracker.audit.checkpoint import Checkpoint, PublicKey, Segment, SigningKey, keygen, parse, sign, split, token
from tracker.errors import BadCheckpoint, BadConfiguration, Refused

KEY = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
DER = "MCowBQYDK2VwAyEAA6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="  # KEY's public half
H = "0123456789abcdef" * 4
FIRST = Checkpoint(
    origin="7f3a" * 8,
    number=1,
    previous_sha256=None,
    sealed_at=datetime(2026, 1, 29, 12, 0, 0, 1, tzinfo=UTC),
    transitions=(0, 12),
    gaps=(4, 4),
    sources=(0, 1),
    rows=12,
    segments=(
        Segment(1, "w1a2b3c4d", 2, H, (1, 1), None, (1, 1)),
        Segment(2, "å |\n%", 10, H, None, None, (2, 12)),
    ),
)
SECOND = replace(
    FIRST, number=2, previous_sha256=H, transitions=(12, 12), sources=(1, 1), rows=0, segments=(), next_key=OTHER.public
)


def test_the_text_is_as_specified() -> None:
    """The format that the README gives, to the byte."""
    assert sign(FIRST, KEY).text.splitlines()[:-1] == [
        "tracker checkpoint v1",
        "origin 7f3a7f3a7f3a7f3a7f3a7f3a7f3a7f3a",
        "number 1",
        "previous -",
        "sealed_at 1769688000000001 2026-01-29T12:00:00.000001Z",
        "transitions 0 12",
        "gaps 4 4",
        "sources 0 1",
        "rows 12",
        f"segment 1 w1a2b3c4d 2 {H} sources 1-1 gaps - transitions 1-1",
        f"segment 2 %C3%A5%20%7C%0A%25 10 {H} sources - gaps - transitions 2-12",
        f"key {KEY.public.id} {DER}",
    ]
    assert sign(FIRST, None).text == FIRST.body()


def test_openssl_agrees(tmp_path: Path) -> None:
    """The signature is over all bytes before its line, the id is the hash of the key's DER: openssl finds the same."""
    signed = sign(FIRST, KEY)
    body = signed.text[: signed.text.index("signature ")]
    (tmp_path / "body").write_bytes(body.encode())
    assert signed.signature is not None
    (tmp_path / "sig").write_bytes(signed.signature)
    (tmp_path / "pem").write_text(KEY.public.pem())
    run = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "pem", "-rawin", "-in", "body", "-sigfile", "sig"]
    assert subprocess.run(run, cwd=tmp_path, capture_output=True, timeout=10).returncode == 0
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", "pem", "-outform", "DER"], cwd=tmp_path, capture_output=True, timeout=10
    ).stdout
    assert der == KEY.public.der
    again = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", "pem", "-pubout"], cwd=tmp_path, capture_output=True, timeout=10
    ).stdout
    assert again.decode() == KEY.public.pem()


@pytest.mark.parametrize("key", [None, KEY], ids=["unsigned", "signed"])
@pytest.mark.parametrize("checkpoint", [FIRST, SECOND], ids=["first", "empty"])
def test_a_checkpoint_is_read_back(checkpoint: Checkpoint, key: SigningKey | None) -> None:
    """Reading gives what was written."""
    signed = sign(replace(checkpoint, next_key=checkpoint.next_key if key else None), key)
    back = parse(signed.text)
    assert back == signed
    assert back.is_genuine() is (None if key is None else True)
    assert back.sha256 == signed.sha256


numbers = st.integers(0, 10**18)
ranges = st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair)))


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    tables: dict[str, Any] = {name: draw(ranges) for name in module.TABLES}
    open_tables = [name for name, (after, upto) in tables.items() if upto > after]
    clusters = sorted(draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=4)))
    segments = []
    for part, cluster in enumerate(clusters if open_tables else [], 1):
        ids: dict[str, Any] = dict.fromkeys(module.TABLES)
        name = draw(st.sampled_from(open_tables))
        first = draw(st.integers(tables[name][0] + 1, tables[name][1]))
        last = draw(st.integers(first, tables[name][1]))
        ids[name] = (first, last)
        rows = draw(st.integers(1, min(1000, last - first + 1)))
        segments.append(Segment(part, cluster, rows, draw(st.sampled_from([H, "f" * 64])), **ids))
    return Checkpoint(
        origin=draw(st.binary(min_size=16, max_size=16)).hex(),
        number=(number := draw(st.integers(1, 10**12))),
        previous_sha256=None if number == 1 else H,
        sealed_at=draw(st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC))),  # noqa: DTZ001
        **tables,
        rows=sum(segment.rows for segment in segments),
        segments=tuple(segments),
        next_key=draw(st.sampled_from([None, OTHER.public])),
    )


@given(checkpoints(), st.data())
@settings(deadline=None, max_examples=60)
def test_any_checkpoint_is_read_back_and_no_change_passes(checkpoint: Checkpoint, data: st.DataObject) -> None:
    """One character changed, dropped or put in: it is no checkpoint, or its signature is false, or it is another."""
    signed = sign(checkpoint, KEY)
    assert parse(signed.text) == signed
    at = data.draw(st.integers(0, len(signed.text) - 1))
    way = data.draw(st.sampled_from(["drop", "put", "change"]))
    character = data.draw(st.sampled_from(list("0123456789abcdefA -/+=\n\r\t|")) | st.characters())
    rest = signed.text[at + 1 :] if way != "put" else signed.text[at:]
    changed = signed.text[:at] + ("" if way == "drop" else character) + rest
    if changed == signed.text:
        return
    try:
        back = parse(changed)
    except BadCheckpoint:
        return
    assert back.text == changed
    assert back.is_genuine() is not True


def lines_of(text: str) -> list[str]:
    return text.splitlines(keepends=True)


SIGNED = sign(FIRST, KEY).text
GARBAGE = {
    "nothing": "",
    "one line": "garbage",
    "binary": "\x00\x01" * 50,
    "another version": SIGNED.replace("v1", "v2", 1),
    "CR LF": SIGNED.replace("\n", "\r\n"),
    "no LF at its end": SIGNED[:-1],
    "an empty line more": SIGNED + "\n",
    "two of them": SIGNED * 2,
    "a blank more": SIGNED.replace("number 1", "number  1"),
    "a leading zero": SIGNED.replace("number 1", "number 01"),
    "a plus": SIGNED.replace("number 1", "number +1"),
    "a digit of another script": SIGNED.replace("number 1", "number ١"),
    "a huge number": SIGNED.replace("number 1", "number " + "9" * 5000),
    "number 0": SIGNED.replace("number 1", "number 0"),
    "a first with a previous": SIGNED.replace("previous -", f"previous {H}"),
    "a second without": SIGNED.replace("number 1", "number 2"),
    "two times that differ": SIGNED.replace("T12:00", "T12:01"),
    "no time": SIGNED.replace("1769688000000001", "9" * 19),
    "upper case": SIGNED.replace("7f3a", "7F3A"),
    "rows that do not add up": SIGNED.replace("rows 12", "rows 13"),
    "segments swapped": "".join([*lines_of(SIGNED)[:9], *reversed(lines_of(SIGNED)[9:11]), *lines_of(SIGNED)[11:]]),
    "a segment missing": "".join(lines_of(SIGNED)[:9] + lines_of(SIGNED)[10:]),
    "ids backwards": SIGNED.replace("2-12", "12-2"),
    "ids outside": SIGNED.replace("2-12", "2-13"),
    "a range backwards": SIGNED.replace("gaps 4 4", "gaps 4 3"),
    "more rows than ids": SIGNED.replace("2-12", "12-12"),
    "too many rows": sign(replace(FIRST, rows=2000, transitions=(0, 9999), segments=(
        Segment(1, "w1", 2000, H, None, None, (1, 9000)),)), KEY).text,
    "clusters out of order": SIGNED.replace("w1a2b3c4d", "zzz").replace("%C3%A5%20%7C%0A%25", "aaa"),
    "an escape in lower case": SIGNED.replace("%C3%A5", "%c3%a5"),
    "a cluster that is no UTF-8": SIGNED.replace("%C3%A5", "%C3"),
    "another key's id": SIGNED.replace(KEY.public.id, OTHER.public.id),
    "a key of another kind": SIGNED.replace("MCowBQYDK2Vw", "MCowBQYDK2Vv"),
    "a key cut off": SIGNED.replace("MbG4=", "").replace("Mbg=", "="),
    "a next key and no key": FIRST.body() + f"next_key {KEY.public.id} {DER}\n",
    "a key and no signature": "".join(lines_of(SIGNED)[:-1]),
    "a signature and no key": "".join(lines_of(SIGNED)[:-2] + lines_of(SIGNED)[-1:]),
    "a signature cut off": SIGNED[:-20] + "\n",
    "a word more": SIGNED + "x\n",
    "a line in between": SIGNED.replace("rows 12\n", "rows 12\ncomment x\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused_with_its_line(name: str) -> None:
    """What is no checkpoint, or contradicts itself, is refused in a short line."""
    assert GARBAGE[name] != SIGNED
    with pytest.raises(BadCheckpoint, match="no checkpoint of tracker: ") as caught:
        parse(GARBAGE[name])
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_base64_has_one_form() -> None:
    """Bits that base64 ignores must not make two texts of one signature."""
    at = SIGNED.rindex("==")
    character = SIGNED[at - 1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = alphabet[alphabet.index(character) ^ 1]
    with pytest.raises(BadCheckpoint, match="line 13"):
        parse(SIGNED[: at - 1] + twin + SIGNED[at:])


def test_a_forged_body_is_not_genuine() -> None:
    """A checkpoint that reads well and was not signed so is told; so is one that another key signed in its name."""
    assert parse(SIGNED.replace("7f3a" * 8, "7f3b" * 8)).is_genuine() is False
    named = replace(FIRST, key=KEY.public)
    forged = module.Signed(named, OTHER.sign(named.body().encode()), "")
    assert forged.is_genuine() is False
    with pytest.raises(ValueError, match="announce"):
        sign(SECOND, None)


def test_the_library_is_imported_late() -> None:
    """`tracker --help` and every command that signs nothing do without the library's 50 ms."""
    code = "import sys, tracker.audit.checkpoint; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


def test_a_file_of_many_is_split() -> None:
    """One checkpoint, or many with an empty line after each, come apart as they were."""
    one, two = SIGNED, sign(SECOND, KEY).text
    assert split(one) == [one]
    assert split(f"{one}\n{two}\n") == [one, two]
    assert split(f"\n\n{one}\n\n\n{two}") == [one, two]
    assert split("") == split("\n\n") == []


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [("w1a2b3c4d", "w1a2b3c4d"), ("a-b.c_d", "a-b.c_d"), ("../x y", "..%2Fx%20y"), ("å", "%C3%A5")],
)
def test_a_cluster_is_one_word(cluster: str, expected: str) -> None:
    """Usual names stand as they are; others have no blank, slash or sign beyond ASCII."""
    assert token(cluster) == expected


# Key files


def private(key: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    found: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return found


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_keygen_makes_a_key_that_only_its_owner_reads(umask: None, mask: int, tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; the key signs, and its public half is the one that is told."""
    os.umask(mask)
    path = tmp_path / "key.pem"
    public = keygen(path)
    os.umask(0o022)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = SigningKey.load(path)
    assert key.public == public
    assert public.verify(key.sign(b"x"), b"x")
    assert not public.verify(key.sign(b"x"), b"y")
    assert not public.verify(b"short", b"x")
    assert repr(key) == f"SigningKey({public.id})"
    shown = subprocess.run(["openssl", "pkey", "-in", path, "-pubout"], capture_output=True, text=True, timeout=10)
    assert shown.stdout == public.pem()


def test_keygen_overwrites_nothing(tmp_path: Path) -> None:
    """A file, a directory or a link that leads nowhere is left as it is."""
    path = write(tmp_path / "key.pem", b"precious")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for there in (path, link, tmp_path):
        with pytest.raises(Refused, match="never overwritten"):
            keygen(there)
    assert path.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(BadConfiguration, match="cannot be written: No such file"):
        keygen(tmp_path / "no" / "key.pem")
    with pytest.raises(BadConfiguration, match="cannot be written"):
        keygen(Path("a\0b"))


def test_a_full_disk_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that could not be written whole is removed."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadConfiguration, match="No space left"):
        keygen(tmp_path / "key.pem")
    assert list(tmp_path.glob("*.pem")) == []


ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))  # a drawn one would differ by worker
RSA = rsa.generate_private_key(65537, 2048)
PEM = private(ED25519)
PUBLIC = ED25519.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
RSA_PUBLIC = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (PEM[:60], "cut off"),
        (PEM.replace(b"M", b"N", 1), "no private key"),
        (PEM[: len(PEM) // 2] + b"\n-----END PRIVATE KEY-----\n", "cut off"),
        (os.urandom(300), "no private key"),
        (b"\0" * 100_000, "too long"),
        (PUBLIC, "is a public key"),
        (private(RSA), "of another kind"),
        (private(ED25519, BestAvailableEncryption(b"x")), "is encrypted"),
        (ED25519.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), "no private key"),
    ],
)
def test_a_wrong_key_file_is_named(content: bytes, problem: str, tmp_path: Path) -> None:
    """Whatever is wrong with it, the error names the file and the way out, and shows nothing of it."""
    path = write(tmp_path / "key.pem", content)
    with pytest.raises(BadConfiguration, match=problem) as caught:
        SigningKey.load(path)
    assert str(path) in str(caught.value)
    assert "tracker audit keygen" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o610, 0o666])
def test_a_key_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    """Read, written or executed by group or others: refused, with the command that mends it."""
    path = write(tmp_path / "my key.pem", PEM, mode)
    with pytest.raises(BadConfiguration, match=f"chmod 600 '{path}'"):
        SigningKey.load(path)
    assert SigningKey.load(write(path, PEM, 0o400)).public.pem().encode() == PUBLIC


def test_systemds_credential_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd grants by a list whose mask shows as the group's right: in its folder, and there only, 0440 is good."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    path = write(folder / "key", PEM, 0o440)
    with pytest.raises(BadConfiguration, match="others"):
        SigningKey.load(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert SigningKey.load(path).public.pem().encode() == PUBLIC
    for mode in (0o460, 0o444):
        path.chmod(mode)
        with pytest.raises(BadConfiguration, match="others"):
            SigningKey.load(path)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    """A missing file, a directory, a pipe and a name that cannot be: told at once, for both kinds of key."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for load in (SigningKey.load, PublicKey.load):
        for name, problem in (("none", "there is no"), (".", "director"), ("pipe", "is no file"), ("a\0", "cannot be")):
            with pytest.raises(BadConfiguration, match=problem):
                load(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        *((PEM, "private key"), (RSA_PUBLIC, "another kind"), (PUBLIC[:50], "cut off")),
        *((b"x", "no public key"), (b"", "empty")),
    ],
)
def test_a_wrong_public_key_is_named(content: bytes, problem: str, tmp_path: Path) -> None:
    """A private, cut or foreign key given as the public one is told."""
    assert PublicKey.load(write(tmp_path / "good.pem", PUBLIC, 0o644)).pem().encode() == PUBLIC
    with pytest.raises(BadConfiguration, match=problem) as caught:
        PublicKey.load(write(tmp_path / "key.pem", content, 0o644))
    assert str(tmp_path / "key.pem") in str(caught.value)


def test_a_time_zone_changes_nothing() -> None:
    """The text is in UTC, whatever offset the instant came with."""
    east = FIRST.sealed_at.astimezone(datetime.now().astimezone().tzinfo) + timedelta(0)
    assert replace(FIRST, sealed_at=east).body() == FIRST.body()
