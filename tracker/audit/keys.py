"""The keys that sign checkpoints and packs: reading, making and using them.

Owns what a key file must be. Keys are Ed25519 (RFC 8032), in PEM (RFC 7468) as openssl writes it: PKCS#8 and
SubjectPublicKeyInfo. ``cryptography`` is imported late: it is slow.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tracker.errors import BadConfiguration, Refused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_DER: Final = bytes.fromhex("302a300506032b6570032100")  # how an Ed25519 SubjectPublicKeyInfo begins; 32 bytes follow
_PEM: Final = re.compile(rb"-----BEGIN PUBLIC KEY-----\s+(\S+)\s+-----END PUBLIC KEY-----")
_LONGEST_FILE: Final = 65_536  # bytes
_ANOTHER: Final = "make one with `tracker audit keygen FILE`, or set TRACKER_SIGNING_KEY_FILE to the right file"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key."""

    der: bytes  # its SubjectPublicKeyInfo

    def __post_init__(self) -> None:
        if len(self.der) != 44 or not self.der.startswith(_DER):
            raise ValueError("not the SubjectPublicKeyInfo of an Ed25519 key")

    @property
    def id(self) -> str:
        """The first 32 hex digits of the SHA-256 of its DER, short enough to compare by telephone."""
        return hashlib.sha256(self.der).hexdigest()[:32]

    def pem(self) -> str:
        """Return it as PEM, as ``openssl pkey -pubout`` writes it."""
        return f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(self.der).decode()}\n-----END PUBLIC KEY-----\n"

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Return whether *signature* was made over *data* with this key."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.der[len(_DER) :]).verify(signature, data)
        except (InvalidSignature, ValueError):  # ValueError: the key is not a point of the curve
            return False
        return True

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """Return the public key in the PEM file *path*, or raise BadConfiguration."""
        content, _ = _read(path, "public key", "`tracker audit head --public-key` prints it")
        if b"PRIVATE KEY" in content:
            raise BadConfiguration(f"{path} is a private key: give the public key, and keep the private key secret")
        text = _PEM.fullmatch(content.strip())
        try:
            return cls(base64.b64decode(text[1] if text else b"", validate=True))
        except ValueError:
            raise BadConfiguration(f"{path} is not an Ed25519 public key in PEM, or is truncated") from None


class SigningKey:
    """The private key that signs; its ``repr`` shows only the id of *public*, its public key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(_DER + key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"SigningKey({self.public.id})"

    def sign(self, data: bytes) -> bytes:
        """Return the signature over *data*: 64 bytes, the same for the same data."""
        return self._key.sign(data)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Return the signing key in the PEM file *path*; raise BadConfiguration, also if others can read it."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        content, mode = _read(path, "signing key", _ANOTHER)
        allowed = 0o700
        # systemd gives a credential through an access-control list, whose mask looks like a right of the group.
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if folder and path.absolute().is_relative_to(Path(folder).absolute()):
            allowed |= 0o040
        if mode & ~allowed:
            raise BadConfiguration(
                f"{path}: other users can read or change the signing key (mode {mode:04o}): run"
                f" chmod 600 {shlex.quote(str(path))}; if anyone may have read it, change to a new key"
            )
        try:
            key = load_pem_private_key(content, password=None)
        except (TypeError, ValueError, UnsupportedAlgorithm):  # TypeError: it has a password
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            what = "an Ed25519 private key in PEM without a password"
            raise BadConfiguration(f"{path} is not {what}, or is truncated: {_ANOTHER}")
        return cls(key)


def _read(path: Path, what: str, way_out: str) -> tuple[bytes, int]:
    """Return the content and the permission bits of a key file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # do not wait on a pipe
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LONGEST_FILE + 1) if stat.S_ISREG(mode) else b""
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        why = getattr(error, "strerror", None) or error
        raise BadConfiguration(f"the {what} {path} cannot be read ({why}): {way_out}") from error
    if not stat.S_ISREG(mode) or not content.strip() or len(content) > _LONGEST_FILE:
        raise BadConfiguration(f"the {what} {path} is empty, too long or not a regular file: {way_out}")
    return content, stat.S_IMODE(mode)


def keygen(path: Path) -> PublicKey:
    """Make a new signing key in *path*, which only its owner can read, and return its public key.

    Raises:
        Refused: The file exists; it stays as it is.
        BadConfiguration: The file cannot be written; no part of it stays.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o600)  # a umask such as 0377 would leave a key that its owner cannot read
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            sync_folder(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise Refused(f"{path} exists, and keygen never overwrites a key: name a new file") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadConfiguration(f"the signing key {path} cannot be written: {why}") from error
    return SigningKey(key).public


def sync_folder(folder: Path) -> None:
    """Write a folder to the disk, so that the name of a new file survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
