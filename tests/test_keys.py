"""What is asked of a key file, and what a key does."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
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

from tracker.audit.keys import PublicKey, SigningKey, keygen
from tracker.errors import BadConfiguration, Refused


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


def test_keygen_makes_a_key_that_only_its_owner_reads(umask: None, tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; the key signs, and its public half is the one that is returned."""
    for mask in (0o000, 0o022, 0o777):
        os.umask(mask)
        path = tmp_path / f"{mask}.pem"
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
        with pytest.raises(Refused, match="never overwrites"):
            keygen(there)
    assert path.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(BadConfiguration, match="cannot be written: No such file"):
        keygen(tmp_path / "no" / "key.pem")
    with pytest.raises(BadConfiguration, match="cannot be written"):
        keygen(Path("a\0b"))


ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))  # a drawn one would differ by worker
RSA = rsa.generate_private_key(65537, 2048)
PEM = private(ED25519)
PUBLIC = ED25519.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
RSA_PUBLIC = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_wrong_key_file_is_named(tmp_path: Path) -> None:
    """Whatever is wrong with it, the error names the file and the way out, and shows nothing of it."""
    for content, problem in (
        *((b"\n\n", "is empty"), (b"\0" * 100_000, "too long"), (PEM[:60], "truncated")),
        *((PUBLIC, "not an Ed25519 private key"), (private(RSA), "not an Ed25519")),
        (private(ED25519, BestAvailableEncryption(b"x")), "without a password"),
        (ED25519.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), "not an Ed25519"),
    ):
        path = write(tmp_path / "key.pem", content)
        with pytest.raises(BadConfiguration, match=problem) as caught:
            SigningKey.load(path)
        assert str(path) in str(caught.value)
        assert "tracker audit keygen" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Read, written or executed by group or others: refused, with the command that repairs it."""
    for mode in (0o644, 0o640, 0o604, 0o620, 0o602, 0o610, 0o666):
        path = write(tmp_path / "my key.pem", PEM, mode)
        with pytest.raises(BadConfiguration, match=f"chmod 600 '{path}'"):
            SigningKey.load(path)
    assert SigningKey.load(write(path, PEM, 0o400)).public.pem().encode() == PUBLIC


def test_the_credential_of_systemd_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd grants by a list whose mask shows as the group's right: in its folder, and there only, 0440 is good."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    path = write(folder / "key", PEM, 0o440)
    with pytest.raises(BadConfiguration, match="other users"):
        SigningKey.load(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert SigningKey.load(path).public.pem().encode() == PUBLIC
    for mode in (0o460, 0o444):
        path.chmod(mode)
        with pytest.raises(BadConfiguration, match="other users"):
            SigningKey.load(path)


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    """A missing file, a directory, a pipe and an impossible name are reported at once, for both kinds of key."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for load in (SigningKey.load, PublicKey.load):
        for name, problem in (("none", "No such"), (".", "directory"), ("pipe", "regular file"), ("a\0", "cannot be")):
            with pytest.raises(BadConfiguration, match=problem):
                load(tmp_path / name)


def test_a_wrong_public_key_is_named(tmp_path: Path) -> None:
    """A private, cut or foreign key given as the public one is named."""
    assert PublicKey.load(write(tmp_path / "good.pem", PUBLIC, 0o644)).pem().encode() == PUBLIC
    for content, problem in (
        *((PEM, "private key"), (RSA_PUBLIC, "not an Ed25519"), (PUBLIC[:50], "truncated")),
        *((b"x", "not an Ed25519 public key"), (b"", "empty")),
    ):
        with pytest.raises(BadConfiguration, match=problem) as caught:
            PublicKey.load(write(tmp_path / "key.pem", content, 0o644))
        assert str(tmp_path / "key.pem") in str(caught.value)
