"""The checkpoint: the few lines of text about what is sealed, its signature, and the keys.

Owns that text's one form, so that reading and writing it again gives the same bytes, and what is asked of a key file.
Does not know the database. The format is in the README; signatures are Ed25519 (RFC 8032), keys PKCS#8 and
SubjectPublicKeyInfo in PEM (RFC 7468), as openssl reads them. ``cryptography`` is imported late, since it is slow.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shlex
import stat
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import quote, unquote

from tracker.errors import BadCheckpoint, BadConfiguration, Refused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SEGMENT_ROWS: Final = 1000  # at most so many rows a segment: what one wrong row can be narrowed down to
TABLES: Final = ("transitions", "gaps", "sources")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DER: Final = bytes.fromhex("302a300506032b6570032100")  # an Ed25519 SubjectPublicKeyInfo begins so; 32 bytes follow
_LONGEST_KEY_FILE: Final = 65_536  # bytes


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key.

    Attributes:
        der: Its SubjectPublicKeyInfo.
    """

    der: bytes

    def __post_init__(self) -> None:
        if len(self.der) != 44 or not self.der.startswith(_DER):
            raise ValueError("not the SubjectPublicKeyInfo of an Ed25519 key")

    @property
    def id(self) -> str:
        """The first 32 hex digits of the SHA-256 of its DER: what people compare by telephone."""
        return hashlib.sha256(self.der).hexdigest()[:32]

    def pem(self) -> str:
        """Return it as PEM, as ``openssl pkey -pubout`` writes it."""
        return f"-----BEGIN PUBLIC KEY-----\n{_base64(self.der)}\n-----END PUBLIC KEY-----\n"

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Return whether *signature* is this key's, over *data*."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.der[len(_DER) :]).verify(signature, data)
        except (InvalidSignature, ValueError):  # ValueError: a key that is no point of the curve
            return False
        return True

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """Return the public key in the PEM file *path*.

        Raises:
            BadConfiguration: The file is missing, or holds no Ed25519 public key.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

        content, _ = _read(
            path, "public key", "ask for the file public_key.pem, or print it: `tracker audit head --public-key`"
        )
        if b"PRIVATE KEY" in content:
            raise BadConfiguration(f"{path} is a private key, which nobody but the sealer needs: give the public one")
        try:
            key = load_pem_public_key(content)
        except (ValueError, UnsupportedAlgorithm):
            raise BadConfiguration(f"{path} is no public key in PEM, or is cut off: get it again") from None
        if not isinstance(key, Ed25519PublicKey):
            raise BadConfiguration(f"{path} is a public key of another kind: checkpoints are signed with Ed25519")
        return cls(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


class SigningKey:
    """The private key that signs checkpoints; its ``repr`` tells the public key's id only.

    Attributes:
        public: Its public key.
    """

    __slots__ = ("_key", "public")

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
        """Return the signing key in the PEM file *path*.

        Raises:
            BadConfiguration: The file is missing, others can read or write it, or it holds no Ed25519 private key
                that is readable without a password.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        again = "make another with `tracker audit keygen FILE`, or name the right file in TRACKER_SIGNING_KEY_FILE"
        content, mode = _read(path, "signing key", again)
        allowed = 0o700
        # systemd gives the service its credential by an access-control list, whose mask shows as the group's right.
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if folder and path.absolute().is_relative_to(Path(folder).absolute()):
            allowed |= 0o040
        if stat.S_IMODE(mode) & ~allowed:
            raise BadConfiguration(
                f"{path}: others than its owner can read or change the signing key (mode {stat.S_IMODE(mode):04o}):"
                f" chmod 600 {shlex.quote(str(path))}, and if anybody may have read it, change to a new key"
            )
        if b"PUBLIC KEY" in content:
            raise BadConfiguration(f"{path} is a public key, and a private one signs: {again}")
        try:
            key = load_pem_private_key(content, password=None)
        except TypeError:
            raise BadConfiguration(
                f"{path} is encrypted, and no password can be asked for: decrypt it with `openssl pkey`, or {again}"
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise BadConfiguration(f"{path} is no private key in PEM (PKCS#8), or is cut off: {again}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise BadConfiguration(f"{path} is a key of another kind, and checkpoints are signed with Ed25519: {again}")
        return cls(key)


def _read(path: Path, what: str, way_out: str) -> tuple[bytes, int]:
    """Return the content and the mode of a key file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not make us wait
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise BadConfiguration(f"the {what} {path} is no file: {way_out}")
            content = file.read(_LONGEST_KEY_FILE + 1)
    except IsADirectoryError:
        raise BadConfiguration(f"the {what} {path} is a directory: name the file in it") from None
    except FileNotFoundError:
        raise BadConfiguration(f"there is no {what} at {path}: {way_out}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise BadConfiguration(f"the {what} {path} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not content.strip():
        raise BadConfiguration(f"the {what} {path} is empty: {way_out}")
    if len(content) > _LONGEST_KEY_FILE:
        raise BadConfiguration(f"the {what} {path} is too long to be a key: {way_out}")
    return content, mode


def keygen(path: Path) -> PublicKey:
    """Make a new signing key in *path*, which only its owner can read, and return its public key.

    Raises:
        Refused: There is such a file already; it is not touched.
        BadConfiguration: The file cannot be written, and nothing of it stays.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Refused(f"{path} exists, and a key is never overwritten: name a new file") from None
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # a umask such as 0377 would leave a key that its owner cannot read
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return SigningKey(key).public


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError | ValueError) -> BadConfiguration:
    why = getattr(error, "strerror", None) or error
    return BadConfiguration(f"the signing key {path} cannot be written: {why}: name a file in a folder that is yours")


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows of one cluster in one checkpoint, at most SEGMENT_ROWS: its sources, then gaps, then transitions, by id.

    Attributes:
        part: 1, 2, 3 … over the checkpoint.
        sha256: Of the rows' lines, one after the other.
        sources, gaps, transitions: The first and the last id of each table in it, None where it has no row.
    """

    part: int
    cluster: str
    rows: int
    sha256: str
    sources: tuple[int, int] | None
    gaps: tuple[int, int] | None
    transitions: tuple[int, int] | None

    def line(self) -> str:
        """Return its line in the checkpoint, LF included."""
        tables = (("sources", self.sources), ("gaps", self.gaps), ("transitions", self.transitions))
        ids = " ".join(f"{name} {'-' if range_ is None else f'{range_[0]}-{range_[1]}'}" for name, range_ in tables)
        return f"segment {self.part} {token(self.cluster)} {self.rows} {self.sha256} {ids}\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one seal says.

    Attributes:
        origin: 32 hex digits, made with the first checkpoint: a database's own.
        number: 1, 2, 3 … without a hole.
        previous_sha256: Of the whole text of the checkpoint before; None for number 1.
        sealed_at: The database's time (aware UTC): every row in it had been written before.
        transitions, gaps, sources: The ids sealed: above the first, up to and including the second.
        rows: In all segments together.
        segments: By cluster (code points), then in order of the rows.
        key: Whose signature it has; None: unsigned.
        next_key: The key that is right from the next checkpoint on; None: *key* stays.
    """

    origin: str
    number: int
    previous_sha256: str | None
    sealed_at: datetime
    transitions: tuple[int, int]
    gaps: tuple[int, int]
    sources: tuple[int, int]
    rows: int
    segments: tuple[Segment, ...]
    key: PublicKey | None = None
    next_key: PublicKey | None = None

    def body(self) -> str:
        """Return its text but for the signature's line: what is signed."""
        at = self.sealed_at.astimezone(UTC)
        micros = (at - _EPOCH) // timedelta(microseconds=1)
        lines = [
            "tracker checkpoint v1\n",
            f"origin {self.origin}\n",
            f"number {self.number}\n",
            f"previous {self.previous_sha256 or '-'}\n",
            f"sealed_at {micros} {at.replace(tzinfo=None).isoformat(timespec='microseconds')}Z\n",
            *(f"{table} {after} {upto}\n" for table, (after, upto) in zip(TABLES, self._ranges(), strict=True)),
            f"rows {self.rows}\n",
            *(segment.line() for segment in self.segments),
        ]
        for name, key in (("key", self.key), ("next_key", self.next_key)):
            if key is not None:
                lines.append(f"{name} {key.id} {_base64(key.der)}\n")
        return "".join(lines)

    def _ranges(self) -> tuple[tuple[int, int], ...]:
        return self.transitions, self.gaps, self.sources


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint with its signature, as it leaves the database.

    Attributes:
        signature: 64 bytes; None: unsigned.
        text: The whole text, signature included.
    """

    checkpoint: Checkpoint
    signature: bytes | None
    text: str

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole text, in hex: what the next checkpoint calls previous."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def is_genuine(self) -> bool | None:
        """Return whether the signature is that of the key it names, or None where it is unsigned.

        Whether that key is the right one, only its id, got from somebody else, can tell.
        """
        if self.checkpoint.key is None or self.signature is None:
            return None
        return self.checkpoint.key.verify(self.signature, self.checkpoint.body().encode())


def sign(checkpoint: Checkpoint, key: SigningKey | None) -> Signed:
    """Return *checkpoint* signed with *key*, which is named in it; unsigned without a key.

    Raises:
        ValueError: It announces a next key, and there is none to vouch for that.
    """
    if key is None:
        if checkpoint.next_key is not None:
            raise ValueError("an unsigned checkpoint can announce no key")
        unsigned = replace(checkpoint, key=None)
        return Signed(unsigned, None, unsigned.body())
    named = replace(checkpoint, key=key.public)
    signature = key.sign(named.body().encode())
    return Signed(named, signature, _whole(named, signature))


def _whole(checkpoint: Checkpoint, signature: bytes | None) -> str:
    return checkpoint.body() + (f"signature {_base64(signature)}\n" if signature is not None else "")


def token(cluster: str) -> str:
    """Return a cluster's name as it stands in a checkpoint and in file names: percent-encoded where it is not plain."""
    return quote(cluster, safe="")


def split(text: str) -> list[str]:
    """Return the checkpoints' texts in a file of one or many, which empty lines part; each ends in LF."""
    return [f"{part.strip(chr(10))}\n" for part in re.split(r"\n{2,}", text) if part.strip("\n")]


_NUMBER = r"(0|[1-9]\d{0,18})"
_HEX64 = r"([0-9a-f]{64})"
_IDS = rf"(?:-|{_NUMBER}-{_NUMBER})"
_LINES: Final = {  # the first word of each line, and what it looks like
    "origin": r"([0-9a-f]{32})",
    "number": _NUMBER,
    "previous": rf"(?:-|{_HEX64})",
    "sealed_at": rf"{_NUMBER} \S+",
    **dict.fromkeys(TABLES, f"{_NUMBER} {_NUMBER}"),
    "rows": _NUMBER,
}
_SEGMENT: Final = rf"{_NUMBER} (\S+) {_NUMBER} {_HEX64} sources {_IDS} gaps {_IDS} transitions {_IDS}"


class _Reader:
    """Reads a checkpoint's lines one by one, and knows where it is for the error."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.at = 0

    def peek(self) -> str:
        return self.lines[self.at] if self.at < len(self.lines) else ""

    def take(self, word: str, pattern: str) -> tuple[str, ...]:
        """Return the groups of *pattern* in the next line, which begins with *word*; "" where a group has no part."""
        found = re.fullmatch(f"{word} {pattern}", self.peek(), re.ASCII)
        if found is None:
            self.fail(f"a line `{word} …` should stand there")
        self.at += 1
        return tuple(found.groups(""))

    def fail(self, why: str) -> NoReturn:
        line = self.peek()
        hint = ": its lines end in CR LF" if line.endswith("\r") else ""
        raise BadCheckpoint(f"no checkpoint of tracker: line {self.at + 1} is {line[:60]!r}: {why}{hint}")


def parse(text: str) -> Signed:
    """Return the checkpoint that *text* is; its ``text`` is *text*, and writing it again would give the same bytes.

    The signature's truth is not looked at: `Signed.is_genuine`.

    Raises:
        BadCheckpoint: It is none, or contradicts itself; names the line.
    """
    reader = _Reader(text)
    if reader.peek() != "tracker checkpoint v1":
        reader.fail("the first line should be `tracker checkpoint v1`")
    reader.at += 1
    head = {word: reader.take(word, pattern) for word, pattern in _LINES.items()}
    segments: list[Segment] = []
    while reader.peek().startswith("segment "):
        segments.append(_segment(reader, len(segments) + 1))
    key = _key(reader, "key")
    next_key = _key(reader, "next_key") if key else None
    signature = _signature(reader) if key else None
    if reader.lines[reader.at :] != [""]:
        reader.fail("nothing more should stand there" if reader.peek() else "it should end with one LF, and no more")
    try:
        sealed_at = _EPOCH + timedelta(microseconds=int(head["sealed_at"][0]))
    except OverflowError:
        raise BadCheckpoint("no checkpoint of tracker: line 5: sealed_at is no time") from None
    ranges = {table: (int(head[table][0]), int(head[table][1])) for table in TABLES}
    checkpoint = Checkpoint(
        origin=head["origin"][0],
        number=int(head["number"][0]),
        previous_sha256=head["previous"][0] or None,
        sealed_at=sealed_at,
        **ranges,
        rows=int(head["rows"][0]),
        segments=tuple(segments),
        key=key,
        next_key=next_key,
    )
    if contradiction := _contradiction(checkpoint):
        raise BadCheckpoint(f"no checkpoint of tracker: {contradiction}")
    again = _whole(checkpoint, signature)
    if again != text:
        number, (line, right) = next(
            (number, both)
            for number, both in enumerate(zip(text.split("\n"), again.split("\n"), strict=True), 1)
            if both[0] != both[1]
        )
        raise BadCheckpoint(f"no checkpoint of tracker: line {number} is {line[:100]!r}, should be {right[:100]!r}")
    return Signed(checkpoint, signature, text)


def _segment(reader: _Reader, part: int) -> Segment:
    groups = reader.take("segment", _SEGMENT)
    reader.at -= 1
    ids: list[tuple[int, int] | None] = []
    for first, last in (groups[4:6], groups[6:8], groups[8:10]):
        if first and int(first) > int(last):
            reader.fail(f"ids run backwards: {first}-{last}")
        ids.append((int(first), int(last)) if first else None)
    rows = int(groups[2])
    if int(groups[0]) != part:
        reader.fail(f"it should be segment {part}")
    if not 1 <= rows <= SEGMENT_ROWS:
        reader.fail(f"a segment has 1 to {SEGMENT_ROWS} rows")
    if rows > sum(last - first + 1 for first, last in filter(None, ids)):
        reader.fail("it has more rows than ids")
    reader.at += 1
    try:
        cluster = unquote(groups[1], errors="strict")
    except UnicodeDecodeError:
        reader.at -= 1
        reader.fail("its cluster is no UTF-8")
    return Segment(part, cluster, rows, groups[3], *ids)


def _key(reader: _Reader, word: str) -> PublicKey | None:
    if not reader.peek().startswith(f"{word} "):
        return None
    id_, text = reader.take(word, r"([0-9a-f]{32}) ([A-Za-z0-9+/=]+)")
    reader.at -= 1
    try:
        key = PublicKey(base64.b64decode(text, validate=True))
    except ValueError:
        reader.fail("it is no Ed25519 key")
    if key.id != id_:
        reader.fail(f"the key's id is {key.id}")
    reader.at += 1
    return key


def _signature(reader: _Reader) -> bytes:
    [text] = reader.take("signature", r"([A-Za-z0-9+/]{86}==)")
    return base64.b64decode(text, validate=True)


def _contradiction(checkpoint: Checkpoint) -> str | None:
    """Return what in *checkpoint* cannot be, whatever the database held."""
    if checkpoint.number < 1 or (checkpoint.number == 1) != (checkpoint.previous_sha256 is None):
        return f"number {checkpoint.number} with previous {checkpoint.previous_sha256 or '-'}"
    if checkpoint.rows != sum(segment.rows for segment in checkpoint.segments):
        return f"{checkpoint.rows} rows are not the sum of its segments'"
    clusters = [segment.cluster for segment in checkpoint.segments]
    if clusters != sorted(clusters):
        return "its segments are not in the order of their clusters"
    for table, (after, upto) in zip(TABLES, checkpoint._ranges(), strict=True):
        if upto < after:
            return f"{table} run backwards: {after} {upto}"
        for segment in checkpoint.segments:
            ids: tuple[int, int] | None = getattr(segment, table)
            if ids is not None and not after < ids[0] <= ids[1] <= upto:
                return f"segment {segment.part} has {table} {ids[0]}-{ids[1]}, and the checkpoint {after} {upto}"
    return None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
